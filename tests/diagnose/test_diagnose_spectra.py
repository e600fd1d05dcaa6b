"""Spectra without Jacobians against dense ones and formulas, and largest stable steps against solves that blow up or do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, NeuralDynamics, ODEBlock, ReactionDiffusionAdvection, odeint
from anodev2.diagnose.spectra import Stability, stability
from anodev2.pde import Advection, Diffusion, Grid1D, Wave
from problems import MLP, vector


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest distance between two spectra, matched one to one."""
    assert len(found) == len(expected)
    between = (found[:, None] - expected.to(found)[None, :]).abs()
    return between[linear_sum_assignment(between.numpy())].max().item()


def linear(A: Tensor) -> Any:
    return lambda t, z: z @ A.T


class Tanh(nn.Module):
    """tanh(W z + b t) on z of any shape."""

    def __init__(self, size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, dtype=torch.float64)
        self.scale = scale

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.scale * nn.functional.linear(z, self.linear.weight) + self.linear.bias * t)


class Convolution(nn.Module):
    """conv(relu(BN(conv z))), counting how often it is called."""

    def __init__(self, channels: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)
        self.norm = nn.BatchNorm2d(channels, dtype=dtype)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)
        self.calls = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        return self.conv2(torch.relu(self.norm(self.conv1(z))))


MATRICES = {
    "any": torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "far from normal": torch.diag(vector(-1, -2, -3, -4, -5)) + 30 * torch.triu(torch.ones(5, 5, dtype=torch.float64), 1),
    "rotations": torch.block_diag(*(w * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64) for w in (1, 2, 2, 5))),
    "multiple": torch.diag(vector(-3, -3, -3, -1, -1, 0)),
    "one unknown": vector(-7)[:, None],
    "nothing": torch.zeros(4, 4, dtype=torch.float64),
    "largest done completely": torch.randn(64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
}


@pytest.mark.parametrize("name", MATRICES)
def test_small_systems_have_all_eigenvalues_of_the_dense_matrix(name: str) -> None:
    A = MATRICES[name]
    report = stability(linear(A), torch.randn(len(A), dtype=torch.float64), steps=2)
    for spectrum in report.spectra:
        assert distance(spectrum.eigenvalues, torch.linalg.eigvals(A)) < 1e-6
        assert spectrum.vectors == spectrum.unknowns == len(A)


def test_the_jacobian_is_that_of_the_solved_path_at_its_times() -> None:
    f, z0 = Tanh(3), torch.randn(4, 3, dtype=torch.float64)
    block = ODEBlock(f, steps=5, method="rk4", t=(1.0, 2.0))
    path = block.trajectory(z0).detach()
    report = stability(block, z0)
    assert [spectrum.t for spectrum in report.spectra] == pytest.approx([1.0, 1.4, 2.0])
    for spectrum, place in zip(report.spectra, (0, 2, 5), strict=True):
        J = torch.func.jacrev(lambda z, t=spectrum.t: f(t, z))(path[place]).reshape(12, 12)
        assert distance(spectrum.eigenvalues, torch.linalg.eigvals(J.detach())) < 1e-6


def test_states_may_be_trees_and_complex() -> None:
    def f(t: Tensor, z: dict[str, Any], rate: float) -> dict[str, Any]:
        return {"a": -rate * z["a"], "b": (z["b"][1], -4 * z["b"][0]), "c": (1j - 0.5) * z["c"]}

    z0 = {"a": torch.ones(2, 1), "b": (torch.ones(1), torch.zeros(1)), "c": torch.ones(1, dtype=torch.complex128)}
    report = stability(f, z0, steps=3, args=(3.0,))
    expected = torch.tensor([-3, -3, 2j, -2j, -0.5 + 1j, -0.5 - 1j], dtype=torch.complex128)
    assert distance(report.spectra[0].eigenvalues, expected) < 1e-5


@pytest.mark.parametrize("method", ["euler", "heun2", "rk4"])
@pytest.mark.parametrize("equation", [Diffusion(Grid1D(32), 0.3), Diffusion(Grid1D(32), 0.3) + Advection(Grid1D(32), 0.8, "upwind1")])
def test_equations_on_a_periodic_grid_have_their_symbols_and_their_limit(equation: Any, method: str) -> None:
    k = 2 * math.pi * torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    report = stability(equation, torch.randn(32, dtype=torch.float64), (0.0, 1e-3), method=method, steps=1)
    assert distance(report.spectra[0].eigenvalues, equation.symbol(k)) < 1e-6
    assert report.limit == pytest.approx(equation.max_stable_step(method), rel=1e-6)


def test_leapfrog_is_judged_by_frequencies() -> None:
    wave = Wave(Grid1D(16), 1.5)
    report = stability(wave, (torch.randn(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)), method="leapfrog", steps=50)
    assert report.limit == pytest.approx(wave.max_stable_step("leapfrog"), rel=1e-5) and report.inside


@pytest.mark.parametrize("method", ["euler", "midpoint", "ssprk3", "rk4"])
def test_a_solve_blows_up_beyond_the_step_and_not_below(method: str) -> None:
    A = torch.tensor([[-1.0, 40.0, 0.0], [0.0, -9.0, 6.0], [0.0, -6.0, -9.0]], dtype=torch.float64)
    z0 = torch.ones(3, dtype=torch.float64)
    limit = stability(linear(A), z0, method=method).limit

    def size_after(h: float, steps: int = 1500) -> float:
        return odeint(linear(A), z0, [0.0, steps * h], method=method, steps=steps)[-1].norm().item()

    assert size_after(0.98 * limit) < 1e-6 and size_after(1.02 * limit) > 1e6


def test_the_steps_needed_are_inside_and_one_less_is_not() -> None:
    f = linear(torch.diag(vector(-30, -1)))
    few = stability(f, torch.ones(2, dtype=torch.float64), (0.0, 4.0), method="euler", steps=10)
    assert few.inside is False and few.steps_needed == 60 and few.step == 0.4
    assert str(few).endswith("euler is stable up to a step of 0.0667 (60 over t); the step 0.4 is outside")
    factor, mode = few.spurious()
    assert factor == pytest.approx(11, rel=1e-6) and mode.item() == pytest.approx(-30)
    for steps in (59, 60):
        assert stability(f, torch.ones(2, dtype=torch.float64), (0.0, 4.0), method="euler", steps=steps).inside is (steps == 60)


def test_growing_modes_limit_no_step_and_are_named() -> None:
    report = stability(linear(torch.diag(vector(2, 0, -5))), torch.ones(3, dtype=torch.float64), method="euler", steps=10)
    assert report.limit == pytest.approx(0.4, rel=1e-5) and report.inside
    assert report.growing(report.spectra[0]).tolist() == pytest.approx([2])


def test_a_growing_mode_that_the_method_grows_much_more_is_told() -> None:
    A = torch.tensor([[0.01, 9.0], [-9.0, 0.01]], dtype=torch.float64)
    report = stability(linear(A), torch.ones(2, dtype=torch.float64), method="euler", steps=10)
    ratio = abs(1 + 0.1 * (0.01 + 9j)) ** 10 / math.exp(0.01)
    assert report.inside and report.spurious()[0] ** 10 == pytest.approx(ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_the_imaginary_axis_no_step_of_euler_is_stable_and_rk4_takes_its_own(dtype: torch.dtype) -> None:
    f, z0 = Advection(Grid1D(24), 1.0, "central2"), torch.randn(24, dtype=dtype)
    euler = stability(f, z0, method="euler", steps=40)
    assert euler.limit == 0 and euler.steps_needed is None and euler.inside is False
    assert str(euler).endswith("no step of euler is stable; the step 0.025 is outside")
    rk4 = stability(f, z0, method="rk4", steps=40)
    assert rk4.limit == pytest.approx(2 * math.sqrt(2) / 24, rel=1e-4) and rk4.inside


def test_time_that_falls_turns_growth_into_decay() -> None:
    report = stability(linear(vector(3)[:, None]), vector(1), (1.0, 0.0), method="euler", steps=2)
    assert report.limit == pytest.approx(2 / 3) and report.inside
    assert report.spectra[0].eigenvalues.real.item() == pytest.approx(3) and not len(report.growing(report.spectra[0]))


def test_without_steps_the_limit_alone_is_told() -> None:
    f, z0 = linear(torch.diag(vector(-30, -1))), torch.ones(2, dtype=torch.float64)
    for report in (stability(f, z0, method="euler"), stability(f, z0, method="dopri5", rtol=1e-6, atol=1e-8)):
        assert report.inside is None and report.step is None and 0 < report.limit < 1
        assert "is stable up to a step of" in str(report)
    assert stability(f, z0, method="backward_euler", steps=1).limit == math.inf


def test_a_linear_part_treated_by_itself_is_left_out() -> None:
    equation = Diffusion(Grid1D(32), 1.0) + Advection(Grid1D(32), 0.5, "central2")
    z0 = torch.randn(32, dtype=torch.float64)
    whole = stability(equation, z0, (0.0, 0.1), method="rk4", steps=5)
    parts = stability(equation, z0, (0.0, 0.1), method="etdrk4", steps=5)
    assert parts.limit > 20 * whole.limit and "linear part" in str(parts)


def test_images_need_products_alone_and_agree_with_the_dense_matrix() -> None:
    f, z0 = Convolution(4).eval(), torch.randn(1, 4, 10, 10, dtype=torch.float64)
    block = ODEBlock(f, steps=2, method="rk4")
    report = stability(block, z0)
    assert f.calls <= 3 * 100 + 8
    dense = torch.linalg.eigvals(torch.func.jacrev(lambda z: f(torch.tensor(0.0), z))(z0).detach().reshape(400, 400))
    spectrum = report.spectra[0]
    assert spectrum.unknowns == 400 and spectrum.vectors <= 100
    assert spectrum.size == pytest.approx(dense.abs().max().item(), rel=1e-3)
    assert spectrum.eigenvalues.real.max().item() == pytest.approx(dense.real.max().item(), rel=1e-3)
    own = report.function
    assert own is not None and report.limit_at(spectrum) == pytest.approx(own.limit(dense[dense.real <= 0]), rel=1e-2)
    nearest = (spectrum.eigenvalues[:, None] - dense[None, :]).abs().min(1).values
    assert (nearest[spectrum.residuals < 1e-6 * spectrum.size] < 1e-4).all() and (spectrum.residuals < 1e-6 * spectrum.size).sum() > 3


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_modes_that_arnoldi_does_not_see_are_not_passed_over(method: str) -> None:
    f, z0 = Convolution(4).eval(), torch.randn(1, 4, 6, 6, dtype=torch.float64)
    report = stability(f, z0, method=method, steps=4, vectors=40)
    assert report.unseen is (method == "euler") and ("modes on the imaginary axis" in str(report)) is report.unseen
    assert not stability(f, z0[..., :4, :4], method=method, steps=4).unseen  # 64 unknowns: all were seen


def test_single_precision_costs_single_precision() -> None:
    f = Convolution(2).eval()
    z0 = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    exact = stability(f, z0, steps=2).spectra[0].eigenvalues
    rounded = stability(f.float(), z0.float(), steps=2).spectra[0].eigenvalues
    assert rounded.dtype == torch.complex128 and 0 < distance(rounded[:6], exact[:6]) < 1e-4 * exact[0].abs()


def test_the_model_is_left_as_it_was() -> None:
    f = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.3))
    f.forward = lambda t, z: f[2](f[1](f[0](z)))  # pyright: ignore[reportAttributeAccessIssue]
    before = {name: value.clone() for name, value in f.state_dict().items()}
    drawn = torch.get_rng_state()
    report = stability(ODEBlock(f, steps=3), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in f.state_dict().items()) and f.training
    assert torch.equal(torch.get_rng_state(), drawn) and all(p.grad is None for p in f.parameters())
    assert "BatchNorm in training mode" in str(report) and "dropout in training mode" in str(report)


def test_dropout_is_one_draw_for_all_products() -> None:
    dropout = nn.Dropout(0.5)
    found = stability(lambda t, z: -dropout(z), torch.ones(40, dtype=torch.float64), steps=1).spectra[0].eigenvalues
    kept = (found + 2).abs() < 1e-9
    assert (kept | (found.abs() < 1e-9)).all() and 5 < kept.sum() < 35


def test_batchnorm_in_training_mode_couples_the_samples() -> None:
    f, z0 = Convolution(1), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    found = stability(f, z0, steps=1).spectra[0].eigenvalues
    J = torch.func.jacrev(lambda z: f.conv2(torch.relu(_normalised(f.conv1(z), f.norm))))(z0).detach().reshape(32, 32)
    assert distance(found, torch.linalg.eigvals(J)) < 1e-6


def _normalised(z: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), keepdim=True, unbiased=False)
    return (z - mean) / torch.sqrt(var + norm.eps)


def test_each_time_is_seen_with_its_own_step() -> None:
    class Stepped(nn.Module):
        def forward(self, t: Tensor, z: Tensor, *, step: int) -> Tensor:
            return -(1.0 + step) * z

    report = stability(ODEBlock(Stepped(), steps=6), torch.ones(1, dtype=torch.float64))
    assert [s.eigenvalues.real.item() for s in report.spectra] == pytest.approx([-1, -4, -6])


class Scaled(nn.Module):
    """w z, one weight."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.w * z


def decay(rate: float) -> NeuralDynamics:
    return NeuralDynamics(lambda t, theta: {name: -rate * w for name, w in theta.items()})


@pytest.mark.parametrize("weights", ["along", "final"])
def test_a_coupled_block_is_seen_with_the_weights_of_each_time(weights: Any) -> None:
    block = CoupledODEBlock(Scaled(-3.0), decay(1.0), steps=8, method="rk4", weights=weights)
    report = stability(block, torch.ones(1, dtype=torch.float64))
    expected = [-3.0, -3.0 * math.exp(-0.5), -3.0 * math.exp(-1)] if weights == "along" else [-3.0 * math.exp(-1)] * 3
    assert [s.eigenvalues.real.item() for s in report.spectra] == pytest.approx(expected, rel=1e-4)


def of_theta(block: CoupledODEBlock) -> Stability:
    """Of the equation of the weights."""
    theta = {name: w.detach() for name, w in block.weights(0.0).items()}
    return stability(block.dynamics, theta, method=block.weight_method, steps=block.weight_steps)


def test_the_steps_of_theta_are_judged_by_its_own_equation() -> None:
    block = CoupledODEBlock(Scaled(-1.0), decay(9.0), steps=4, weight_steps=4)
    report = of_theta(block)
    assert report.step == 0.25 and report.limit == pytest.approx(2 / 9) and report.inside is False
    assert stability(block, torch.ones(1, dtype=torch.float64)).inside
    block.weight_steps = 8
    assert of_theta(block).inside


class Kernel(nn.Conv2d):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(z)


@pytest.mark.parametrize("groups", [6, 1])
def test_reaction_diffusion_advection_has_the_eigenvalues_of_its_formula(groups: int) -> None:
    tau, upsilon, rho = 0.3, (0.5, -0.2), -0.1
    f = Kernel(6, 6, 3, padding=1, groups=groups, dtype=torch.float64)
    block = CoupledODEBlock(f, ReactionDiffusionAdvection(tau, upsilon, rho), steps=3)
    report = of_theta(block)
    k = 2 * math.pi * torch.fft.fftfreq(3, dtype=torch.float64)
    k = torch.cartesian_prod(k, k)
    formula = torch.complex(rho - tau * (k**2).sum(1), k @ vector(*upsilon))
    for spectrum in report.spectra:  # 54 unknowns: each mode as often as there are kernels; 324: each once, in 9 products
        assert distance(spectrum.eigenvalues, formula.repeat(6 if groups == 6 else 1)) < 1e-6
        assert spectrum.vectors == (54 if groups == 6 else 9)


def test_a_path_that_is_not_finite_is_told() -> None:
    report = stability(lambda t, z: z**3, torch.full((1,), 1e60, dtype=torch.float64), method="euler", steps=4)
    assert len(report.spectra) == 1 and "not finite" in str(report)


def test_mistakes_are_named() -> None:
    z0 = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="leave out method"):
        stability(ODEBlock(Scaled(1.0), steps=2), z0, method="rk4")
    with pytest.raises(ValueError, match="vectors=0"):
        stability(Scaled(1.0), z0, steps=2, vectors=0)
    with pytest.raises(ValueError, match="without forward mode"):
        stability(lambda t, z: _OwnDerivative.apply(z), z0, steps=2)
    with pytest.raises(ValueError, match="not finite at this state"):
        stability(lambda t, z: torch.sqrt(z), torch.zeros(1), method="euler", steps=1)


class _OwnDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return -z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -g


def test_inference_mode_hides_no_derivative() -> None:
    with torch.inference_mode():
        report = stability(lambda t, z: -30 * z, torch.ones(2, dtype=torch.float64), method="euler", steps=10)
    assert report.limit == pytest.approx(2 / 30) and report.inside is False
    assert report.spurious()[0] == pytest.approx(2)


def test_a_compiled_block_is_looked_at_as_it_is() -> None:
    block = ODEBlock(MLP(), steps=4)
    z0 = torch.randn(3, 4, dtype=torch.float64)
    assert str(stability(torch.compile(block), z0)) == str(stability(block, z0))  # pyright: ignore[reportArgumentType]


def test_what_modules_keep_is_put_back() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.kept: Tensor | None = None

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = self.w.square()
            return -self.kept * z

    f = Keeping()
    stability(f, torch.ones(3, dtype=torch.float64), steps=4)
    assert f.kept is None
