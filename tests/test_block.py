from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anodev2 import (
    METHODS,
    CheckpointAdjoint,
    CoupledODEBlock,
    CoupledSystem,
    NeuralDynamics,
    ODEBlock,
    ReactionDiffusionAdvection,
    Static,
    Tableau,
    odeint,
)
from anodev2.gradients.adjoint import as_adjoint
from anodev2.testing import observed_order
from problems import MLP, Convolutions, Rates, image
from sampled import rows


def test_an_ode_block_is_odeint_to_the_end() -> None:
    block, z = ODEBlock(Convolutions(), steps=4, method="midpoint", t=(0.0, 2.0)), image()
    expected = odeint(block.f, z, [0.0, 2.0], steps=4, method="midpoint")
    assert torch.equal(block.eval()(z), odeint(block.f, z, [0.0, 2.0], steps=4, method="midpoint")[-1])
    path = block.trajectory(z)
    assert path.shape == (5, *z.shape) and torch.equal(path[0], z) and torch.equal(path[-1], block(z))
    assert expected.shape == (2, *z.shape)


def test_one_euler_step_is_a_residual_block() -> None:
    branch, z = Convolutions(), image()
    assert torch.equal(ODEBlock(branch, steps=1)(z), z + branch(torch.tensor(0.0), z))


def test_a_tree_passes_through_a_block() -> None:
    class Oscillator(nn.Module):
        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return y[1], -y[0]

    q, p = ODEBlock(Oscillator(), steps=100, method="rk4")((torch.ones(2), torch.zeros(2)))
    torch.testing.assert_close(q, torch.full((2,), 0.540302), rtol=1e-5, atol=0)
    assert p.shape == (2,)


@pytest.mark.parametrize("dynamics", [Static(), ReactionDiffusionAdvection(0.0), ReactionDiffusionAdvection(0.0, learnable=False)])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("weights", ["along", "final"])
def test_standing_weights_compute_the_ode_block_to_the_bit(dynamics: Any, method: str, weights: Any) -> None:
    branch, z = Convolutions(), image()
    dynamics = copy.deepcopy(dynamics)
    coupled = CoupledODEBlock(copy.deepcopy(branch), dynamics, steps=3, method=method, weights=weights)
    plain = ODEBlock(branch, steps=3, method=method)
    for mode in (True, False):
        assert torch.equal(coupled.train(mode)(z), plain.train(mode)(z))


def joint(block: CoupledODEBlock, z: Tensor, steps: int, method: str) -> Tensor:
    """The same problem with z and theta stepped together."""

    def f(t: Tensor, z: Tensor, theta: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block.f, theta, (t, z))

    theta0 = {name: block.f.get_parameter(name) for name in block.evolving}
    return odeint(CoupledSystem(f, block.dynamics), (z, theta0), [0.0, 1.0], steps=steps, method=method)[0][-1]


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize(
    "dynamics", [lambda: ReactionDiffusionAdvection(0.1, 0.4, 0.3), lambda: NeuralDynamics(Rates())], ids=["closed", "stepped"]
)
def test_block_and_joint_system_agree_at_the_order_of_the_method(dynamics: Any, method: str, order: int) -> None:
    branch, q, z = Convolutions().eval(), dynamics(), image()
    gaps = []
    for steps in (8, 16):
        block = CoupledODEBlock(branch, copy.deepcopy(q), evolve="conv*.weight", steps=steps, method=method).eval()
        gaps.append((block(z) - joint(block, z, steps, method)).abs().max().item())
    if isinstance(q, NeuralDynamics) and method == "euler":
        assert max(gaps) < 1e-14  # the same arithmetic: stepped alternately on one grid
    else:
        assert gaps[0] / gaps[1] > 2**order * 0.8


ORDERS = {"euler": 1, "midpoint": 2, "ralston": 2, "rk4": 4, "backward_euler": 1, "implicit_midpoint": 2}


FALLING = [
    (method, adjoint, 1.0)
    for method, adjoint in (("rk4", "direct"), ("implicit_midpoint", "direct"), ("ralston", "reversible"), ("midpoint", "backsolve"))
]


@pytest.mark.parametrize(("method", "adjoint", "start"), rows(ORDERS, ["direct", "reversible", "backsolve"], [0.0, 1.0], quick=FALLING))
def test_moving_weights_are_read_at_the_times_of_the_stages_whichever_way_a_step_goes(method: str, adjoint: str, start: float) -> None:
    if adjoint != "direct" and not isinstance(METHODS[method], Tableau):
        pytest.skip("these steps cannot be taken backwards")
    torch.manual_seed(0)
    f, z = MLP(), torch.randn(3, 4, dtype=torch.float64)

    def found(method: str, steps: int, adjoint: str) -> Tensor:
        options: dict[str, Any] = {"weight_steps": 64, "weight_method": "rk4", "t": (start, 1.0 - start)}
        block = CoupledODEBlock(f, NeuralDynamics(Rates()), steps=steps, method=method, **options)
        block.adjoint = as_adjoint(adjoint)
        z0 = z.clone().requires_grad_()
        end = block(z0)
        return torch.cat([x.flatten() for x in (end, *torch.autograd.grad(end.square().sum(), [z0, *f.parameters()]))]).detach()

    exact = found("rk4", 64, "direct")
    order = observed_order(lambda n: (found(method, n, adjoint) - exact).norm().item(), (8, 16))
    assert order == pytest.approx(ORDERS[method], abs=0.25)


@pytest.mark.parametrize("weights", ["along", "final"])
def test_unrolled_reversible_steps_read_the_same_weights(weights: Any) -> None:
    f, z = MLP(), torch.randn(3, 4, dtype=torch.float64)
    block = CoupledODEBlock(f, NeuralDynamics(Rates()), steps=3, method="ralston", weights=weights, adjoint="reversible")
    assert torch.equal(block.unroll()(z), block(z))


def test_configuration_2_has_a_finer_grid_for_the_weights() -> None:
    calls = 0

    def q(t: Tensor, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return {name: -w for name, w in theta.items()}

    options: dict[str, Any] = {"evolve": "conv*.weight", "adjoint": "direct"}
    block = CoupledODEBlock(Convolutions(), NeuralDynamics(q), steps=2, weight_steps=10, weight_method="euler", **options)
    block(image())
    assert calls == 5  # z reads theta(0) and theta(1/2)
    calls = 0
    theta = block.weights(1.0)
    assert calls == 10
    torch.testing.assert_close(theta["conv1.weight"], 0.9**10 * block.f.get_parameter("conv1.weight"))
    calls = 0
    CoupledODEBlock(Convolutions(), NeuralDynamics(q), steps=2, weight_steps=10, weights="final", **options)(image())
    assert calls == 10


def test_each_stage_reads_the_weights_of_its_own_time() -> None:
    seen: list[tuple[float, float]] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            seen.append((t.item(), self.w.item()))
            return self.w * z

    clock = NeuralDynamics(lambda t, theta: {name: torch.ones_like(w) for name, w in theta.items()})  # theta(t) = t - t0
    for method, t in itertools.product(("euler", "midpoint", "rk4"), ((0.0, 1.0), (1.0, 3.0), (2.0, 0.0))):
        seen.clear()
        CoupledODEBlock(Spy(), clock, steps=3, method=method, t=t)(torch.ones(1, dtype=torch.float64))
        assert all(w == pytest.approx(time - t[0], abs=1e-12) for time, w in seen) and len(seen) >= 3
    seen.clear()
    CoupledODEBlock(Spy(), clock, steps=3, weights="final")(torch.ones(1, dtype=torch.float64))
    assert all(w == pytest.approx(1.0) for _, w in seen)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_weights_are_solved_once_per_forward_pass_whatever_the_batch(adjoint: str) -> None:
    rates = Rates()
    calls = []
    rates.register_forward_pre_hook(lambda *_: calls.append(1))
    block = CoupledODEBlock(Convolutions(), NeuralDynamics(rates), evolve="conv*.weight", steps=4, adjoint=adjoint)
    for batch in (1, 64):
        calls.clear()
        loss = block(torch.randn(batch, 3, 5, 5, dtype=torch.float64)).sum()
        assert len(calls) == 3  # Euler steps to the times 1/4, 1/2, 3/4
        loss.backward()
        assert len(calls) == (6 if adjoint == "checkpoint" else 3)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize(
    "dynamics", [lambda: ReactionDiffusionAdvection(0.1, 0.4, 0.3), lambda: NeuralDynamics(Rates())], ids=["closed", "stepped"]
)
@pytest.mark.parametrize("weights", ["along", "final"])
def test_checkpointed_gradients_are_exact(dynamics: Any, method: str, weights: Any) -> None:
    branch, q, z = Convolutions(), dynamics(), image()
    ends = []
    for adjoint in ("direct", "checkpoint"):
        block = CoupledODEBlock(
            copy.deepcopy(branch), copy.deepcopy(q), evolve="conv*.weight", steps=3, method=method, weights=weights, adjoint=adjoint
        )
        start = z.clone().requires_grad_()
        block(start).square().sum().backward()
        assert start.grad is not None
        ends.append((start.grad, {name: p.grad for name, p in block.named_parameters()}))
    assert torch.equal(ends[0][0], ends[1][0])
    for name, expected in ends[0][1].items():
        assert expected is not None and (ends[1][1][name] - expected).norm() <= 1e-13 * expected.norm() + 1e-14, name


def test_state_dict_names_are_those_of_f() -> None:
    plain, coupled = ODEBlock(Convolutions(), steps=2), CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(), steps=2)
    more = [name for name in coupled.state_dict() if name not in plain.state_dict()]
    assert set(plain.state_dict()) <= set(coupled.state_dict()) and all(name.startswith("dynamics.") for name in more)
    assert coupled.evolving == ("conv1.weight", "conv2.weight")
    with torch.no_grad():
        coupled.f.get_parameter("conv1.weight").zero_()  # theta(0) is the parameter itself, also after the block was made
        coupled.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(coupled.weights(0.0)["conv1.weight"], plain.f.get_parameter("conv1.weight"))


def test_a_copied_block_is_independent() -> None:
    block, z = CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(0.1), steps=2).eval(), image()
    other = copy.deepcopy(block)
    before = block(z)
    with torch.no_grad():
        other.f.get_parameter("conv1.weight").zero_()
    assert torch.equal(block(z), before) and not torch.equal(other(z), before)


def test_weights_along_the_way() -> None:
    block = CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(0.1), steps=2)
    path = block.weights([0.0, 0.5, 1.0])
    assert path["conv1.weight"].shape == (3, 3, 3, 3, 3)
    torch.testing.assert_close(path["conv1.weight"][1], block.weights(0.5)["conv1.weight"])
    stepped = CoupledODEBlock(Convolutions(), NeuralDynamics(Rates()), evolve="conv1.*", steps=4)
    assert torch.equal(stepped.weights(0.0)["conv1.bias"], stepped.f.get_parameter("conv1.bias"))
    unsorted = stepped.weights([0.5, 0.0, 0.5])["conv1.bias"]
    assert torch.equal(unsorted[1], stepped.f.get_parameter("conv1.bias")) and torch.equal(unsorted[0], unsorted[2])
    torch.testing.assert_close(unsorted[0], stepped.weights(torch.tensor(0.5))["conv1.bias"])
    for wrong in (1.5, [], float("nan"), [-0.1, 0.5]):
        with pytest.raises(ValueError, match=r"between 0.0 and 1.0"):
            block.weights(wrong)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_weights_may_be_swapped_in_from_outside(adjoint: str) -> None:
    block, z = CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(0.1), steps=2, adjoint=adjoint), image()
    swapped = {name: (2 * p).detach().requires_grad_() for name, p in block.named_parameters()}
    expected = copy.deepcopy(block)
    with torch.no_grad():
        for p in expected.parameters():
            p.mul_(2)
    out = torch.func.functional_call(block, swapped, (z,))
    torch.testing.assert_close(out, expected(z))
    out.sum().backward()
    assert all(p.grad is not None for p in swapped.values()) and all(p.grad is None for p in block.parameters())


def test_f_may_be_replaced_or_compiled_after_construction() -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, t: Tensor, z: Tensor, *, step: int = 0) -> Tensor:
            return (step + 1) * self.conv(z)

    z = image().float()
    block = CoupledODEBlock(Stepped(), ReactionDiffusionAdvection(0.1), steps=3)
    other = Stepped()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    kept, block.f = block.f, other
    assert torch.equal(block(z), z)
    plain = ODEBlock(kept, steps=3)
    compiled = ODEBlock(torch.compile(kept, backend="eager"), steps=3)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(compiled(z), plain(z))


def test_evaluation_first_does_not_spoil_training() -> None:
    from anodev2 import tables

    tables._made.cache_clear()
    block = CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(0.1), steps=2)
    with torch.inference_mode():
        block(image())
    block(image()).sum().backward()
    assert all(p.grad is not None for p in block.dynamics.parameters())


def test_a_whole_block_can_be_saved(tmp_path: Any) -> None:
    block, z = CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(0.1), steps=2).eval(), image()
    torch.save(block, tmp_path / "block.pt")
    assert torch.equal(torch.load(tmp_path / "block.pt", weights_only=False)(z), block(z))


def test_weight_dynamics_keep_their_precision_under_autocast() -> None:
    block = CoupledODEBlock(Convolutions().float(), ReactionDiffusionAdvection(0.1), steps=2)
    expected = block.weights(1.0)["conv1.weight"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.weights(1.0)["conv1.weight"], expected)
        assert block(image().float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"evolve": "norm.weight"}, ValueError, r"norm.weight of shape \(3,\)"),
        ({"evolve": ["conv1.*"]}, ValueError, r"conv1.bias of shape \(3,\)"),
        ({"evolve": "dense.*"}, ValueError, "matches no parameter"),
        ({"dynamics": lambda t, theta: theta}, TypeError, "NeuralDynamics"),
        ({"f": nn.Linear(3, 3)}, ValueError, "no parameter that ReactionDiffusionAdvection can evolve"),
        ({"f": lambda t, z: z}, TypeError, "f must be an nn.Module"),
        ({"f": nn.Sequential(nn.Conv2d(3, 3, 3))}, TypeError, r"f must be callable as f\(t, z\), got Sequential"),
        ({"evolve": []}, ValueError, "evolve=.. lets nothing evolve"),
        ({"weights": "both"}, ValueError, "weights='both'"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"weight_steps": 0}, ValueError, "weight_steps=0"),
        ({"t": (0.0, 0.5, 1.0)}, ValueError, "two numbers"),
        ({"method": "rk5"}, ValueError, "method='rk5'"),
        ({"adjoint": "reverse"}, ValueError, "adjoint='reverse'"),
    ],
)
def test_user_mistakes_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    if isinstance(options.get("f"), nn.Linear):
        options["f"].forward = lambda t, z: z
    call: dict[str, Any] = {"f": Convolutions(), "dynamics": ReactionDiffusionAdvection(), **options}
    with pytest.raises(error, match=message):
        CoupledODEBlock(call.pop("f"), call.pop("dynamics"), **call)


RERUN = {
    "a module": lambda net, z: checkpoint(net, z, use_reentrant=False),
    "a module, reentrant": lambda net, z: checkpoint(net, z, use_reentrant=True),
    "a function": lambda net, z: checkpoint(lambda x: torch.tanh(x @ net.weight.T), z, use_reentrant=False),
}
KEPT = {
    "weights as arguments": lambda net, z: checkpoint(lambda x, w: torch.tanh(x @ w.T), z, net.weight, use_reentrant=False),
    "weights read without a graph": lambda net, z: net(z) / checkpoint(torch.exp, z, use_reentrant=False) + _norm(net),
    "tensors saved elsewhere": lambda net, z: _saved_elsewhere(net, z),
}


@torch.no_grad()
def _norm(net: nn.Linear) -> Tensor:
    return net.weight.norm()


def _saved_elsewhere(net: nn.Linear, z: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return net(z)


class Inside(nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.net, self.run = nn.Linear(4, 4, dtype=torch.float64), run

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.run(self.net, z)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", CheckpointAdjoint(slots=1), "reversible", "backsolve"], ids=str)
@pytest.mark.parametrize("how", [*RERUN, *KEPT])
def test_what_f_would_run_again_with_other_weights_is_refused(how: str, adjoint: Any) -> None:
    """torch.utils.checkpoint in f computes anew after the block is done, with theta(t0); around the block it may."""
    block = CoupledODEBlock(Inside((RERUN | KEPT)[how]), NeuralDynamics(Rates()), steps=2, adjoint=adjoint)
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    if how in RERUN:
        with pytest.raises(ValueError, match=r"torch.utils.checkpoint inside f would recompute it"):
            block(z)
        return
    inputs = [z, block.f.get_parameter("net.weight")]
    gradients = lambda solve: torch.autograd.grad(solve(z).square().sum(), inputs)
    wanted = gradients(block)
    assert all(map(torch.equal, gradients(lambda z: checkpoint(block, z, use_reentrant=False)), wanted))
    if adjoint not in ("reversible", "backsolve"):
        assert all(map(torch.equal, gradients(CoupledODEBlock(block.f, block.dynamics, steps=2, adjoint="direct")), wanted))


def test_repr_reads_well() -> None:
    text = repr(CoupledODEBlock(Convolutions(), ReactionDiffusionAdvection(), steps=2))
    assert "steps=2, method='euler'" in text and "evolving=['conv1.weight', 'conv2.weight']" in text


def test_steps_and_method_may_be_changed_afterwards() -> None:
    f, z = MLP(), torch.randn(3, 4, dtype=torch.float64)
    block = CoupledODEBlock(f, NeuralDynamics(Rates()), steps=8, weight_steps=64)
    for steps, method in ((4, "euler"), (16, "euler"), (4, "rk4")):
        fresh = CoupledODEBlock(f, block.dynamics, steps=steps, method=method, weight_steps=64, weight_method="euler")
        block.steps, block.method = steps, fresh.method
        assert torch.equal(block(z), fresh(z))


def test_a_block_takes_as_many_steps_as_a_coupled_one_where_none_are_given() -> None:
    """Five, as in the paper's first configuration."""
    f = MLP()
    assert ODEBlock(f).steps == CoupledODEBlock(f, Static()).steps == 5
