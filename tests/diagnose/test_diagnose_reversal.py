"""Solving forwards and then backwards: what is measured, against closed forms, and what it tells about BacksolveAdjoint."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, NeuralDynamics, ODEBlock, ReactionDiffusionAdvection, SolveError, Static, odeint
from anodev2.diagnose import reversal
from anodev2.diagnose.reversal import Reversibility, reversibility
from problems import MLP

DOUBLE = torch.float64


def decay(rate: float, rest: float = 0.0) -> Any:
    return lambda t, z: -rate * (z - rest)


# What it measures


@pytest.mark.parametrize("rate", [0.5, 4.0, 20.0])
def test_of_a_decay_lipschitz_and_growth_are_lambda_squared(rate: float) -> None:
    report = reversibility(decay(rate), torch.ones(3, dtype=DOUBLE), (0.0, 0.5), method="rk4", steps=40)
    assert report.lipschitz == pytest.approx([rate] * 9, rel=1e-12) and report.expansion == pytest.approx([rate] * 9, rel=1e-12)
    assert report.exponent == pytest.approx(rate / 2, rel=1e-12)
    assert report.norms == pytest.approx([math.sqrt(3) * math.exp(-rate * t) for t in report.times], rel=1e-3)


def test_time_that_falls_turns_the_growth_around() -> None:
    report = reversibility(decay(4.0), torch.ones(3, dtype=DOUBLE), (1.0, 0.0), method="rk4", steps=40)
    assert report.times[0] == 1 and report.times[-1] == 0
    assert report.exponent == pytest.approx(-4.0, rel=1e-12) and report.lipschitz[0] == pytest.approx(4.0, rel=1e-12)


def test_of_a_linear_system_the_spectra_are_those_of_the_matrix() -> None:
    for n, accuracy in ((1, 1e-12), (12, 1e-9), (30, 1e-6), (200, 2e-3)):
        A = torch.randn(n, n, dtype=DOUBLE) / math.sqrt(n)
        report = reversibility(lambda t, z: z @ A.T, torch.randn(n, dtype=DOUBLE), method="rk4", steps=4, times=2)  # noqa: B023
        assert report.lipschitz[0] == pytest.approx(torch.linalg.svdvals(A)[0].item(), rel=accuracy)
        assert report.expansion[0] == pytest.approx(torch.linalg.eigvalsh(-(A + A.T) / 2)[-1].item(), rel=accuracy)


def test_spectra_follow_the_state_and_the_time() -> None:
    f = lambda t, z: -(1 + t) * z**2
    report = reversibility(f, torch.tensor([1.0, 0.2], dtype=DOUBLE), method="rk4", steps=16, times=5)
    path = odeint(f, torch.tensor([1.0, 0.2], dtype=DOUBLE), report.times, method="rk4", steps=4)
    expected = [2 * (1 + t) * z.max().item() for t, z in zip(report.times, path, strict=True)]
    assert report.lipschitz == pytest.approx(expected, rel=1e-9) and report.expansion == pytest.approx(expected, rel=1e-9)


def test_complex_states_have_the_spectra_of_their_real_form() -> None:
    turning, rate = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.1])
    report = reversibility(lambda t, z: (1j * turning - rate) * z, torch.randn(2, dtype=torch.complex128), method="rk4", steps=50, times=2)
    assert report.lipschitz[0] == pytest.approx(abs(3j - 0.1), rel=1e-6) and report.expansion[0] == pytest.approx(0.5, rel=1e-6)
    assert report.error < 1e-6


def test_errors_are_those_of_the_same_steps_taken_back() -> None:
    z0, n, h = torch.tensor([2.0], dtype=DOUBLE), 8, 5.0 / 8
    report = reversibility(decay(5.0), z0, method="euler", steps=n)
    law = [abs((1 - h**2) ** (n - k) - 1) for k in range(n + 1)]  # each step there and back multiplies by (1 - h)(1 + h)
    assert report.errors == pytest.approx(law, rel=1e-9, abs=1e-15)
    assert report.error == report.errors[0] and report.worst == max(report.errors) and report.status.ok
    grown = (1 - (1 - h**2) ** n) / (h**2 * (1 - h) ** (n - 1))
    assert report.growth == pytest.approx(grown, rel=1e-9)


def test_errors_of_error_control_grow_as_fast_as_mu_says() -> None:
    report = reversibility(decay(20.0, rest=1.0), torch.full((2,), 3.0, dtype=DOUBLE), method="dopri5", rtol=1e-6, atol=1e-6)
    assert math.log(report.growth) == pytest.approx(20 * 7 / 8, abs=1.0) and report.error > 1


def test_the_way_back_is_that_of_backsolve_adjoint_to_the_bit() -> None:
    seen: list[Tensor] = []

    def f(t: Tensor, z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return torch.tanh(z * weight)

    weight, z0 = nn.Parameter(torch.tensor([1.0, -2.0])), torch.tensor([0.3, 0.8])
    end = odeint(f, z0, [0.0, 1.0], method="midpoint", steps=5, adjoint="backsolve")[-1]
    seen.clear()
    end.sum().backward()
    backsolve = seen[2:]  # a first step is redone to see whether f is what it was
    seen.clear()
    reversibility(f, z0, method="midpoint", steps=5, times=2)
    assert all(map(torch.equal, seen[10:20], backsolve)) and len(backsolve) == 10


def test_a_solve_backwards_that_diverges_is_a_result() -> None:
    report = reversibility(lambda t, z: -(z**3), torch.full((2,), 10.0), (0.0, 3.0), method="dopri5", rtol=1e-2, atol=1e-6, times=3)
    assert not report.status.ok and report.errors[0] == math.inf and math.isfinite(report.errors[1])
    report = reversibility(lambda t, z: -(z**3), torch.full((2,), 3.0), (0.0, 3.0), method="midpoint", steps=20, times=5)
    assert report.errors[0] == report.error == report.worst == math.inf and report.status.reason == "not finite"
    assert report.errors[-1] == 0 and math.isfinite(report.errors[-2]) and report.growth == math.inf
    assert "no way back" in str(report) and "BacksolveAdjoint will fail" in str(report)


def test_a_solve_backwards_that_needs_too_many_steps_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reversal, "PATIENCE", 1)
    report = reversibility(lambda t, z: -(z**3), torch.full((2,), 10.0), (0.0, 3.0), method="dopri5", rtol=1e-2, atol=1e-6, times=3)
    assert report.status.reason == "max_steps" and report.errors[0] == math.inf and math.isfinite(report.errors[1])


def test_a_solve_forwards_that_diverges_is_an_error() -> None:
    with pytest.raises(SolveError, match="not finite"):
        reversibility(lambda t, z: z**3, torch.full((2,), 30.0), method="euler", steps=20)


def test_without_forward_mode_the_spectra_are_left_out() -> None:
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0]

    report = reversibility(lambda t, z: Sine.apply(z), torch.ones(3), method="euler", steps=5)
    assert all(map(math.isnan, (*report.lipschitz, *report.expansion, report.exponent))) and 0 < report.error < 1
    assert "grow" not in report.verdict


# What it takes, and leaves alone


def test_a_tree_is_as_good_as_a_tensor() -> None:
    a, b = torch.tensor([1.0, 2.0], dtype=DOUBLE), torch.tensor([[0.5]], dtype=DOUBLE)
    mixed = lambda x, y: (-3 * x + y.sum(), y * x.sum())
    tree = reversibility(lambda t, z: dict(zip("xy", mixed(z["x"], z["y"]), strict=True)), {"x": a, "y": b}, method="rk4", steps=6)

    def flat(t: Tensor, z: Tensor) -> Tensor:
        x, y = mixed(z[:2], z[2:].reshape(1, 1))
        return torch.cat([x, y.reshape(1)])

    tensor = reversibility(flat, torch.cat([a, b.reshape(1)]), method="rk4", steps=6)
    for name in ("errors", "norms", "lipschitz", "expansion"):
        assert getattr(tree, name) == pytest.approx(getattr(tensor, name), rel=1e-9, abs=1e-15), name


class Normed(nn.Module):
    """A BatchNorm per step, dropout and a cached tensor: everything that an evaluation may move."""

    def __init__(self, steps: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(steps))
        self.dropout = nn.Dropout(dropout)
        self.seen: list[int] = []
        self.cached = torch.zeros(())

    def forward(self, t: Tensor, z: Tensor, *, step: int) -> Tensor:
        self.seen.append(step)
        self.cached = z.detach().mean()
        return self.dropout(torch.relu(self.norms[step](self.conv(z))))


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_per_step_is_read_by_its_own_step_on_the_way_back(training: bool) -> None:
    f = Normed(4).double().train(training)
    for k, norm in enumerate(f.norms):
        nn.init.constant_(norm.weight, 1.0 + k)  # pyright: ignore[reportArgumentType]
    z0 = torch.randn(3, 2, 5, 5, dtype=DOUBLE)
    report = reversibility(ODEBlock(f, steps=4), z0)
    assert f.seen[:8] == [0, 1, 2, 3, 3, 2, 1, 0]
    assert set(f.seen[8:]) == {0, 1, 2, 3}
    with torch.no_grad():
        z = z0
        for step in range(4):
            z = z + f(torch.tensor(step / 4), z, step=step) / 4
        for step in reversed(range(4)):
            z = z - f(torch.tensor((step + 1) / 4), z, step=step) / 4
    assert report.error == pytest.approx(((z - z0).norm() / z0.norm()).item(), rel=1e-9)


def test_the_model_and_the_generators_stay_as_they_were() -> None:
    f = Normed(4, dropout=0.3).train()
    z0 = torch.randn(3, 2, 5, 5)
    state = {name: value.clone() for name, value in f.state_dict().items()}
    cached, generator = f.cached, torch.get_rng_state()
    first = reversibility(ODEBlock(f, steps=4), z0)
    assert torch.equal(torch.get_rng_state(), generator) and f.cached is cached and f.training
    assert all(torch.equal(value, state[name]) for name, value in f.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in f.parameters())
    assert reversibility(ODEBlock(f, steps=4), z0) == first  # the same draws
    torch.manual_seed(1)
    assert reversibility(ODEBlock(f, steps=4), z0).error != first.error


def test_all_products_with_a_jacobian_see_the_same_draws() -> None:
    A, dropout = torch.randn(6, 6, dtype=DOUBLE), nn.Dropout(0.5)
    torch.manual_seed(3)
    report = reversibility(lambda t, z: dropout(z @ A.T), torch.randn(6, dtype=DOUBLE), method="euler", steps=1)
    torch.manual_seed(3)
    torch.randn(6, dtype=DOUBLE)
    J = dropout(torch.ones(6, dtype=DOUBLE))[:, None] * A
    assert report.lipschitz == pytest.approx([torch.linalg.svdvals(J)[0].item()] * 2, rel=1e-9)
    assert report.expansion == pytest.approx([torch.linalg.eigvalsh(-(J + J.T) / 2)[-1].item()] * 2, rel=1e-9)


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.conv(z))


def test_a_coupled_block_is_read_by_its_weights_at_the_time() -> None:
    f, z0 = Convolved().double(), torch.randn(2, 2, 6, 6, dtype=DOUBLE)
    assert reversibility(CoupledODEBlock(f, Static(), steps=6), z0) == reversibility(ODEBlock(f, steps=6), z0)
    for which in ("along", "final"):
        block = CoupledODEBlock(f, ReactionDiffusionAdvection(tau=0.3, rho=1.0), steps=6, t=(0.0, 0.1), weights=which)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            z = block(z0)
            for step in reversed(range(6)):
                t = 0.1 if which == "final" else 0.1 * (step + 1) / 6
                z = z - 0.1 / 6 * torch.func.functional_call(f, block.weights(min(t, 0.1)), (None, z))
        assert reversibility(block, z0).error == pytest.approx(((z - z0).norm() / z0.norm()).item(), rel=1e-6)
        single = reversibility(block.float(), z0.float())  # 0.1 in float32 is beyond 0.1
        assert math.isfinite(single.error)
        f.double()


def test_wrong_arguments_are_named() -> None:
    block, z0 = ODEBlock(Convolved(), steps=2), torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match="leave out steps"):
        reversibility(block, z0, steps=3)
    with pytest.raises(ValueError, match="times=1"):
        reversibility(block, z0, times=1)
    with pytest.raises(ValueError, match="steps"):
        reversibility(block.f, z0, method="euler")
    with pytest.raises(ValueError, match="t="):
        reversibility(block.f, z0, (0.0, 0.5, 1.0), method="euler", steps=2)


# What it says


def test_the_verdict_is_about_the_largest_error() -> None:
    start = torch.full((2,), 3.0, dtype=DOUBLE)
    safe = reversibility(decay(1.0), start, method="rk4", steps=20)
    assert safe.verdict.endswith("BacksolveAdjoint is off by its steps alone; small errors grow by up to exp(1)")
    doubtful = reversibility(decay(1.0), start, method="euler", steps=20)
    assert 1e-3 < doubtful.worst < 0.1 and "is off by a percent to a third" in doubtful.verdict
    failing = reversibility(decay(20.0, rest=1.0), start, method="dopri5", rtol=1e-6, atol=1e-6)
    assert failing.verdict.endswith("the gradient of BacksolveAdjoint will fail; small errors grow by up to exp(20)")
    lines = str(safe).splitlines()
    assert lines[0].split() == ["t", "error", "|z|", "Lipschitz", "mu", "backwards"] and lines[-1] == safe.verdict and len(lines) == 12
    way = Reversibility((0.0, 0.5, 1.0), (0.02, 0.6, 0.0), (1.0, 1.0, 1.0), (1.0,) * 3, (1.0,) * 3, "euler", safe.status)
    assert way.worst == 0.6 and way.verdict.startswith("the way back is off by 0.6 at most")


# What it predicts: 40 random fields, of which the reverse solve gets some right


ACTIVATIONS = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "softplus": nn.Softplus, "tanh": nn.Tanh}
SOLVES = [
    *({"method": "euler", "steps": 5}, {"method": "euler", "steps": 20}, {"method": "midpoint", "steps": 10}),
    *({"method": "rk4", "steps": 4}, {"method": "rk4", "steps": 20}),
    *({"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}, {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}),
]
WRONG = 0.1  # relative error of the parameters' gradient from which on a reverse solve counts as failed
LONG = 20_000  # evaluations after which it counts as failed too


class TooLong(Exception):
    pass


class Field(nn.Module):
    """One or two layers, the weights of PyTorch's initialisation times a scale."""

    def __init__(self, layers: nn.Sequential, scale: float) -> None:
        super().__init__()
        self.layers = layers
        self.evaluations = 0
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(scale)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations > LONG:
            raise TooLong
        return self.layers(z)


class Case(NamedTuple):
    f: Field
    z0: Tensor
    solve: dict[str, Any]
    seed: Tensor

    @classmethod
    def drawn(cls, number: int) -> Case:
        """Convolutions on 8 x 8 pixels or dense layers; scales from 1/2 to 16 times the usual ones; everything from the number."""
        rng = random.Random(number)
        torch.manual_seed(number)
        convolve, activation = rng.random() < 0.5, ACTIVATIONS[rng.choice(sorted(ACTIVATIONS))]
        depth, scale = rng.choice([1, 2]), rng.uniform(-1, 4)
        options, width = rng.choice(SOLVES), rng.choice([2, 4, 8])
        layers = [nn.Conv2d(width, width, 3, padding=1) if convolve else nn.Linear(2 * width, 2 * width) for _ in range(depth)]
        z0 = torch.randn(2, width, 8, 8) if convolve else torch.randn(8, 2 * width)
        f = Field(nn.Sequential(layers[0], activation(), *layers[1:]), 2**scale)
        return cls(f, z0, options, torch.randn_like(z0))

    def gradient(self, adjoint: str) -> Tensor | None:
        """Of the sum of z(1) times ``seed`` with respect to the weights; None where the solve backwards fails."""
        self.f.evaluations = 0
        z1 = odeint(self.f, self.z0, [0.0, 1.0], adjoint=adjoint, **self.solve)[-1]
        try:
            return torch.cat([g.flatten() for g in torch.autograd.grad((z1 * self.seed).sum(), list(self.f.parameters()))]).double()
        except (SolveError, TooLong):
            return None

    def wrong(self) -> float:
        """The relative error of BacksolveAdjoint's gradient."""
        exact, found = self.gradient("direct"), self.gradient("backsolve")
        assert exact is not None and exact.isfinite().all()
        return math.inf if found is None or not found.isfinite().all() else ((found - exact).norm() / exact.norm()).item()

    def foretold(self) -> float:
        self.f.evaluations = -100 * LONG
        return reversibility(self.f, self.z0, times=3, **self.solve).worst  # by default 9, which tells the same in three times the time


def mann_whitney(scores: list[float], failed: list[bool]) -> float:
    """How often a failed one scores higher than one that is right, ties counted half: the area under the ROC curve."""
    pairs = [(a, b) for a, fails in zip(scores, failed, strict=True) if fails for b, other in zip(scores, failed, strict=True) if not other]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, equal values sharing their mean rank."""
    ranks = [[sum(y < x for y in values) + sum(y == x for y in values) / 2 for x in values] for values in (a, b)]
    return torch.corrcoef(torch.tensor(ranks, dtype=DOUBLE))[0, 1].item()


@pytest.mark.slow
def test_the_error_tells_where_backsolve_adjoint_fails() -> None:
    cases = [Case.drawn(number) for number in range(40)]
    wrong, foretold = [case.wrong() for case in cases], [case.foretold() for case in cases]
    failed = [error > WRONG for error in wrong]
    assert 10 <= sum(failed) <= 30
    print(f"{sum(failed)} of 40 fail, AUC {mann_whitney(foretold, failed):.3f}, rank correlation {rank_correlation(foretold, wrong):.3f}")
    assert mann_whitney(foretold, failed) >= 0.9
    assert rank_correlation(foretold, wrong) > 0.8
    for error, told in zip(wrong, foretold, strict=True):  # what the verdicts promise
        assert error > WRONG / 2 or told < reversal.FAILS
        assert error < 2 * WRONG or told > reversal.SAFE


def test_inference_mode_hides_no_derivative() -> None:
    with torch.inference_mode():
        report = reversibility(lambda t, z: -20 * z, torch.ones(2, dtype=torch.float64), method="rk4", steps=20)
    assert report.lipschitz[0] == pytest.approx(20) and report.expansion[0] == pytest.approx(20)


def test_where_z_starts_at_zero_errors_are_relative_to_its_largest_size() -> None:
    report = reversibility(lambda t, z: torch.cos(z), torch.zeros(2, dtype=torch.float64), method="rk4", steps=10)
    assert report.worst < 1e-5


def test_the_way_of_theta_is_that_of_its_own_equation() -> None:
    block = CoupledODEBlock(MLP(), NeuralDynamics(lambda t, theta: {name: -w for name, w in theta.items()}), steps=5)
    theta = {name: w.detach() for name, w in block.weights(0.0).items()}
    report = reversibility(block.dynamics, theta, method="euler", steps=5)
    assert report.error == pytest.approx(1 - (1 - 0.2**2) ** 5) and report.exponent == pytest.approx(1)
