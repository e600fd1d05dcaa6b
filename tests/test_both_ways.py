"""Weights that read the features: one set per sample, solved jointly with z."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import (
    CheckpointAdjoint,
    Compile,
    CoupledODEBlock,
    CoupledSystem,
    NeuralDynamics,
    ODEBlock,
    ReversibleAdjoint,
    Static,
    odeint,
)
from anodev2.diagnose.program import Stored
from anodev2.gradients.adjoint import as_adjoint
from anodev2.integrate.compiled import as_compile
from anodev2.testing import observed_order
from reading_features import BATCH, CASES, Images, Product, Rule, features, leaves, made, one_by_one


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_the_coupled_system_of_all_samples(case: str, method: str) -> None:
    block, z, together = made(case, method=method)
    system, start = one_by_one(block, z)
    found, paths = block(z), block.trajectory(z)
    assert list(block._together.found.values()) == [together]
    z_path, state = odeint(system, (z, start), [0.0, 1.0], method=method, steps=4)
    for own, path, other in zip(leaves(found), leaves(paths), leaves(z_path), strict=True):
        torch.testing.assert_close(own, other[-1], rtol=1e-12, atol=1e-12)
        assert torch.equal(path[-1], own) and torch.equal(path[0], other[0])
    if method == "rk4" and case in ("vectors", "momentum"):  # the dynamics says itself that it reads z
        again = odeint(CoupledSystem(system.f, block.dynamics), (z, start), [0.0, 1.0], method=method, steps=4)
        assert torch.equal(again[0], z_path)
    expected, theta = block.dynamics.weights(state), block.weights([0.0, 1.0], z)
    for name in block.evolving:
        torch.testing.assert_close(theta[name], expected[name], rtol=1e-12, atol=1e-12)


def test_euler_is_the_loop_written_by_hand_to_the_bit() -> None:
    block, z, _ = made("einsum")
    rate, own = block.dynamics.get_parameter("module.rate"), block.f.get_parameter("w")
    h, w, x = 0.25, own.expand(BATCH, 4, 4), z
    for n in range(4):
        t = torch.tensor(n / 4, dtype=torch.float64)
        mean = torch.tanh(x.square().mean(1) + t).view(-1, 1, 1)
        x, w = (
            x + h * (torch.tanh(torch.bmm(x.unsqueeze(1), w.mT).squeeze(1)) * torch.cos(t)),
            w + h * (rate * mean * torch.cos(w) - 0.3 * w),
        )
    assert torch.equal(block(z), x) and torch.equal(block.weights(1.0, z)["w"], w)


@pytest.mark.parametrize(("method", "order"), [("midpoint", 2), ("rk4", 4)])
def test_the_order_is_that_of_the_method(method: str, order: int) -> None:
    block, z, _ = made("einsum", method=method)
    system, start = one_by_one(block, z)
    exact = odeint(system, (z, start), [0.0, 1.0], method="dopri8", steps=20)[0][-1]

    def error(steps: int) -> float:
        block.steps = steps
        return (block(z) - exact).abs().max().item()

    assert observed_order(error, (16, 32)) == pytest.approx(order, abs=0.15)


def gradients(block: CoupledODEBlock, z: Any, adjoint: Any, compile: Any = False) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    block.adjoint, block.compiling = as_adjoint(adjoint), as_compile(compile) or False
    inputs = {key: x.clone().requires_grad_() for key, x in z.items()} if isinstance(z, dict) else z.clone().requires_grad_()
    ends = leaves(block(inputs))
    loss = sum(end.sin().sum() for end in ends)
    found = torch.autograd.grad(loss, [*leaves(inputs), *block.parameters()])  # type: ignore[arg-type]
    return [end.detach() for end in ends], list(found[: len(ends)]), list(found[len(ends) :])


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_discrete_program(case: str, method: str) -> None:
    block, z, _ = made(case, method=method)
    exact = gradients(block, z, "direct")
    for adjoint in ("checkpoint", CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MB"), CheckpointAdjoint(offload="cpu")):
        ends, state, parameters = gradients(block, z, adjoint)
        assert all(map(torch.equal, ends, exact[0])) and all(map(torch.equal, state, exact[1]))
        for own, other in zip(parameters, exact[2], strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-13)
    own, other = gradients(block, z, ReversibleAdjoint()), gradients(block, z, Stored(ReversibleAdjoint()))
    for a, b in zip(chain(*own), chain(*other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    if method == "rk4" and case in ("vectors", "einsum", "tree"):
        block.steps = 16
        for a, b in zip(chain(*gradients(block, z, "backsolve")), chain(*gradients(block, z, "direct")), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ["vectors", *(pytest.param(case, marks=pytest.mark.slow) for case in ("einsum", "images"))])
def test_compiled_steps_have_the_same_gradients(case: str) -> None:
    block, z, _ = made(case, steps=2)
    exact, found = gradients(block, z, "direct"), gradients(block, z, "checkpoint", Compile(backend="aot_eager", steps=2))
    for a, b in zip(chain(*exact), chain(*found), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("training", [True, False])
def test_batchnorm_sees_the_batch_and_moves_once_per_call(training: bool) -> None:
    """f's linear and convolution layers take all samples at once; a hand-written loop, with grouped convolutions of its own."""
    torch.manual_seed(0)
    block = CoupledODEBlock(Images(lambda: nn.BatchNorm2d(6)).double(), NeuralDynamics(Rule()).double(), evolve="[ab].weight", steps=2)
    block.train(training)
    z, norm = features(4, 5, 5), nn.BatchNorm2d(6).double().train(training)
    assert isinstance(block.f, Images)
    x, a, b = z, torch.stack([block.f.a.weight] * BATCH), torch.stack([block.f.b.weight] * BATCH)
    for n in range(2):
        t = torch.tensor(n / 2, dtype=torch.float64)
        slopes = block.dynamics(t, {"a": a, "b": b}, x)
        hidden = torch.cat([torch.conv2d(x[i : i + 1], a[i], block.f.a.bias, padding=1, groups=2) for i in range(BATCH)])
        hidden = torch.tanh(norm(hidden))
        x = x + 0.5 * torch.cat([torch.conv2d(hidden[i : i + 1], b[i], padding=2, dilation=2) for i in range(BATCH)])
        a, b = a + 0.5 * slopes["a"], b + 0.5 * slopes["b"]
    torch.testing.assert_close(block(z), x, rtol=1e-12, atol=1e-12)
    own = block.f.norm
    assert isinstance(own, nn.BatchNorm2d) and own.num_batches_tracked == norm.num_batches_tracked == 2 * training
    torch.testing.assert_close(own.running_mean, norm.running_mean, rtol=1e-12, atol=1e-12)
    block(z.requires_grad_()).sum().backward()
    assert own.num_batches_tracked == 4 * training


def test_samples_have_weights_of_their_own() -> None:
    for case in CASES:
        if case != "turned":
            block, z, _ = made(case)
            for i in range(BATCH):
                alone = {key: x[i : i + 1] for key, x in z.items()} if isinstance(z, dict) else z[i : i + 1]
                for own, other in zip(leaves(block(z)), leaves(block(alone)), strict=True):
                    torch.testing.assert_close(own[i : i + 1], other, rtol=1e-12, atol=1e-12)


class Initial(nn.Module):
    """theta(t0) by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 16)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {"w": self.layer(z).view(-1, 4, 4)}


def test_theta_may_start_from_the_input() -> None:
    torch.manual_seed(0)
    f, z = Product().double(), features(4)
    block = CoupledODEBlock(f, NeuralDynamics(Rule()).double(), steps=3, initial=Initial().double())
    start = block.initial(z)["w"]  # type: ignore[misc]
    for i in range(BATCH):
        other = CoupledODEBlock(Product().double(), block.dynamics, steps=3)
        with torch.no_grad():
            other.f.w.copy_(start[i])  # pyright: ignore
        torch.testing.assert_close(block(z)[i], other(z[i : i + 1])[0], rtol=1e-12, atol=1e-12)
    block(z).sum().backward()
    assert block.initial.layer.weight.grad.abs().sum() > 0 and f.w.grad is None  # pyright: ignore
    assert torch.equal(block.unroll()(z), block(z))


def test_weights_between_steps_are_those_after_a_shorter_one() -> None:
    for t in ((0.0, 1.0), (2.0, 0.5)):
        block, z, _ = made("vectors", t=t)
        system, start = one_by_one(block, z)
        middle = t[0] + 0.4 * (t[1] - t[0])
        grid = [t[0], t[0] + 0.25 * (t[1] - t[0]), middle]
        expected = odeint(system, (z, start), [t[0], middle], grid=grid, method="euler")[1]
        found = block.weights([t[0], middle], z)
        for name in block.evolving:
            assert found[name].shape == (2, BATCH, *block.f.get_parameter(name).shape)
            torch.testing.assert_close(found[name][1], expected[name][-1], rtol=1e-12, atol=1e-12)


def test_autocast_leaves_the_rule_in_its_own_precision() -> None:
    seen: list[torch.dtype] = []

    def q(t: Tensor, theta: dict[str, Tensor], z: Tensor) -> dict[str, Tensor]:
        seen.append((z @ z.mT).dtype)
        return {name: -w for name, w in theta.items()}

    block, z = CoupledODEBlock(nn_linear(), NeuralDynamics(q), steps=2), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        block(z)
    assert set(seen) == {torch.float32}


def nn_linear() -> nn.Module:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.a(z)

    return Linear()


def test_the_plan_tells_the_memory_of_a_sample() -> None:
    block, z, _ = made("vectors", steps=7)
    numbers = 4 + sum(w.numel() for w in block.f.parameters())
    plan = block.plan(z)
    assert plan.state_bytes == 8 * BATCH * numbers and plan.samples == BATCH and plan.evaluations_forward == 7
    more = block.plan(torch.cat([z, z]))
    assert more.state_bytes == 2 * plan.state_bytes and "per sample" in str(more)
    assert "per sample" not in str(ODEBlock(nn_linear(), steps=3).plan(torch.randn(2, 4)))
    assert CoupledODEBlock(nn_linear(), Static(), steps=3).plan(torch.randn(2, 4)).evaluations_forward == 3


def test_errors_name_the_argument_and_the_cure() -> None:
    f, q = Product().double(), NeuralDynamics(Rule()).double()
    z = features(4)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weight_steps": 3}, "weight_steps"),
        ({"weight_method": "rk4", "weights": "final"}, "weight_method, weights"),
        ({"initial": 3}, "initial"),
    ]
    for options, words in cases:
        with pytest.raises((ValueError, TypeError), match=words):
            CoupledODEBlock(f, q, **options)
    with pytest.raises(ValueError, match="moves one theta for all"):
        CoupledODEBlock(f, Static(), initial=lambda z: {})
    block = CoupledODEBlock(f, q)
    with pytest.raises(ValueError, match=r"weights\(t, z0\)"):
        block.weights(0.5)
    with pytest.raises(ValueError, match="batch in front"):
        block(torch.zeros((), dtype=torch.float64))
    for given, words in (({"v": z}, "does not evolve"), ({"w": z}, "per sample it is")):
        with pytest.raises(ValueError, match=words):
            CoupledODEBlock(f, q, initial=lambda z, given=given: given)(z)
    with pytest.raises(ValueError, match="do not read the features"):
        CoupledODEBlock(f, Static()).joint(z)
    norm = Images(lambda: nn.BatchNorm2d(6)).double()
    with pytest.raises(ValueError, match="BatchNorm in training"):
        CoupledODEBlock(norm, q, evolve="norm.weight")(features(4, 5, 5))
    with pytest.raises(ValueError, match="of shape"):  # the slope of one sample
        CoupledODEBlock(f, NeuralDynamics(lambda t, theta, z: {"w": theta["w"][0]}))(z)


@pytest.mark.parametrize("q", [lambda t, a, b: a, lambda t, theta, z=None: theta, lambda t, p, q, r: p])
def test_a_rule_whose_arguments_say_not_which_is_which_is_refused_when_it_is_made(q: Any) -> None:
    with pytest.raises(TypeError, match=r"theta"):
        NeuralDynamics(q)


def test_arguments_are_handed_over_as_they_are_named() -> None:
    z, f = features(4), Product().double()
    plain = CoupledODEBlock(f, NeuralDynamics(lambda t, theta, z: {"w": theta["w"] * z.mean()}))(z)
    for q in (lambda t, z, theta: {"w": theta["w"] * z.mean()}, lambda t, x, w: {"w": w["w"] * x.mean()}):
        assert torch.equal(CoupledODEBlock(f, NeuralDynamics(q))(z), plain)
    assert torch.equal(CoupledODEBlock(f, NeuralDynamics(lambda t, a, b: {"w": a["w"] * b.mean()}, reads_z=True))(z), plain)
