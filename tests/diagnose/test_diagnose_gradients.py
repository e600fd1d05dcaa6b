"""gradient_report: which adjoint is named, which is not, what the referee says, and that nothing of the user's is touched."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from anodev2 import BacksolveAdjoint, CheckpointAdjoint, ODEBlock, ReversibleAdjoint
from anodev2.diagnose.gradients import GradientReport, gradient_report
from anodev2.models import resnet4
from problems import van_der_pol, vector
from tests.problems import MLP, Pendulum, pendulum_state

EXACT = ("checkpoint", "reversible")


class Decay(nn.Module):
    """x' = -20 x, y' = w x: solved backwards, x grows by exp(20)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-20 * y[0], self.w * y[0]])


class ConvField(nn.Module):
    """conv relu conv with PyTorch's own initial weights."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return self.conv2(self.dropout(torch.relu(self.conv1(z))))


class _Doubled(torch.autograd.Function):
    """x^2 / 2 whose derivative is said to be 2 x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradients[0]


def test_the_reverse_solve_of_the_closed_form_case_is_named_and_nothing_else() -> None:
    report = gradient_report(Decay(), vector(1.0, 0.0), method="dopri5", rtol=1e-6, atol=1e-6, loss=lambda end: end[1])
    assert report.bad == ("backsolve",) and report.exact == ("checkpoint",) and not report.refuted
    assert report.lengths["w"] == pytest.approx((1 - math.exp(-20)) / 20, rel=1e-6)
    assert report.errors["checkpoint"]["w"] < 1e-14
    assert report.errors["backsolve"]["w"] > 2 and report.ratios["backsolve"]["w"] > 3
    assert report.errors["backsolve"]["z0"] < 1e-6  # alpha itself can be solved backwards
    assert "grids" in report.skipped["reversible"]
    assert report.differences["w"] < 1e-9 and report.uncertainty["w"] < 1e-6
    assert "4.5" in str(report) and report.verdict == "ok; not exact, and does not promise it: backsolve"


def test_ok_is_about_adjoints_that_promise_to_be_exact_and_the_one_in_use() -> None:
    z0 = vector(1.0, 0.0)
    healthy, sick = (gradient_report(ODEBlock(Decay(), steps=10, method="rk4", adjoint=a), z0) for a in ("checkpoint", "backsolve"))
    assert healthy.errors == sick.errors and healthy.bad == sick.bad == ("backsolve",)
    assert healthy.ok and healthy.promised == EXACT
    assert not sick.ok and sick.promised == (*EXACT, "backsolve")
    assert sick.verdict == "not ok: not the gradient of the loss: backsolve"
    chosen = gradient_report(ODEBlock(Decay(), steps=10, method="rk4", adjoint=BacksolveAdjoint(rtol=1e-3)), z0, adjoints=("checkpoint",))
    assert list(chosen.failed) == ["BacksolveAdjoint(rtol=0.001)"] and chosen.exact == ("checkpoint",) and not chosen.ok


def test_an_adjoint_in_use_that_has_no_gradient_is_bad_and_another_is_left_out() -> None:
    constant = torch.ones(3)

    def loss(end: Tensor) -> Tensor:
        constant.mul_(1)  # so that steps cannot be redone
        return end.sum()

    report = gradient_report(lambda t, z: constant + torch.sin(z), torch.ones(3), steps=3, loss=loss, adjoints=EXACT)
    assert list(report.failed) == ["checkpoint"] and list(report.skipped) == ["reversible"]
    assert report.bad == ("checkpoint",) and not report.ok and "modified in place" in str(report)


@pytest.mark.parametrize("loss", [lambda end: end[0] ** 2 + end[1], None])
def test_the_reverse_solve_of_van_der_pol_is_named_and_nothing_else(loss: Any) -> None:
    report = gradient_report(van_der_pol, vector(2.0, 0.0), (0.0, 3.0), method="dopri8", rtol=1e-6, atol=1e-6, loss=loss)
    assert report.bad == ("backsolve",) and report.groups == ("z0",)
    assert report.errors["backsolve"]["z0"] > 0.5 and report.angles["backsolve"]["z0"] > 20
    assert report.errors["checkpoint"]["z0"] == 0.0
    assert report.differences["z0"] < 1e-7


def test_a_small_network_has_nothing_wrong() -> None:
    report = gradient_report(MLP(), torch.randn(3, 4, dtype=torch.float64), method="rk4", steps=10)
    assert report.bad == () == report.refuted == report.undecided and report.ok and not report.skipped
    assert report.groups == ("z0", "inner.weight", "inner.bias", "outer.weight", "outer.bias") and sum(report.sizes.values()) == 12 + 76
    assert all(error < 1e-13 for name in EXACT for error in report.errors[name].values())
    assert 1e-11 < max(report.errors["backsolve"].values()) < 1e-3  # the order of rk4, not round-off
    assert max(report.differences.values()) < 1e-8
    assert str(report).endswith("\nok")


def test_the_steps_of_error_control_are_constants_for_the_differences_too() -> None:
    def f(t: Tensor, z: Tensor, rate: Tensor) -> Tensor:
        return rate * torch.sin(3 * z) * (1 + t)

    rate = vector(2.0)[0].requires_grad_()
    report = gradient_report(f, torch.randn(5, dtype=torch.float64), (0.0, 2.0), method="bosh3", rtol=1e-2, atol=1e-2, args=(rate,))
    assert report.groups == ("z0", "args[0]") and max(report.differences.values()) < 1e-8
    assert all(report.errors["checkpoint"][group] < 1e-14 for group in report.groups)
    assert "backsolve" in report.bad and list(report.skipped) == ["reversible"]


def test_the_reversible_scheme_is_judged_by_its_own_gradient_and_the_difference_told() -> None:
    report = gradient_report(MLP(), torch.randn(3, 4, dtype=torch.float64), method="euler", steps=4, directions=0)
    assert max(report.errors["reversible"].values()) < 1e-13
    assert 1e-3 < max(report.own_scheme["reversible"].values()) < 0.5
    assert "scheme of reversible" in str(report) and report.ok
    assert report.differences == {} and "finite differences" not in str(report)


def test_a_well_scaled_convolution_is_right_with_a_fine_method_and_off_by_the_steps_of_a_coarse_one() -> None:
    z0 = torch.randn(2, 4, 8, 8)
    fine = gradient_report(ODEBlock(ConvField(), steps=5, method="rk4"), z0)
    assert fine.bad == () and fine.ok and fine.dtype == torch.float32
    assert max(fine.errors["backsolve"].values()) < 1e-3
    coarse = gradient_report(ODEBlock(ConvField(), steps=5, method="euler"), z0)
    assert coarse.bad == ("backsolve",) and 0.01 < max(coarse.errors["backsolve"].values()) < 0.3
    assert all(error < 1e-5 for report in (fine, coarse) for name in EXACT for error in report.errors[name].values())


@pytest.mark.parametrize(("kind", "norm"), [("ode", "per_step"), ("coupled", "shared")])
def test_a_whole_network_in_training_is_left_as_it_was(kind: Any, norm: Any) -> None:
    network = resnet4(block=kind, norm=norm, steps=3, adjoint="backsolve").double()
    block = next(module for module in network if isinstance(module, ODEBlock))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    memory = {name: value.data_ptr() for name, value in network.state_dict().items()}
    versions = [p._version for p in network.parameters()]
    z0 = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    drawn = torch.get_rng_state()
    report = gradient_report(network, z0, directions=1)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert report.bad == ("backsolve",) and not report.ok and not report.refuted
    assert {"z0", "0.weight", "1.bias", "3.f.conv1", "3.f.norm2", "7.bias"} <= set(report.groups)
    assert ("3.dynamics.upsilon" in report.groups) == (kind == "coupled")
    assert len(report.groups) <= 13 and sum(report.sizes.values()) == 9216 + sum(p.numel() for p in network.parameters())
    for name in EXACT:
        assert all(error <= max(1e-5, 10 * report.round_off[group]) for group, error in report.errors[name].items()), name
    assert max(report.differences.values()) < 0.01
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) and memory[name] == after[name].data_ptr() for name, value in before.items())
    assert versions == [p._version for p in network.parameters()]
    assert all(p.grad is None for p in network.parameters()) and network.training
    assert isinstance(block.adjoint, BacksolveAdjoint)


def test_dropout_is_the_same_in_every_run_and_the_generator_is_not_moved() -> None:
    network = nn.Sequential(ODEBlock(ConvField(dropout=0.5), steps=3, method="midpoint"), nn.Flatten(), nn.Linear(256, 3))
    z0, drawn = torch.randn(2, 4, 8, 8), torch.get_rng_state()
    one, other = (gradient_report(network, z0, adjoints=("direct", "checkpoint"), seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert one.bad == () == other.bad and not one.refuted and not other.refuted
    assert all(error < 1e-5 for name in one.errors for error in one.errors[name].values())
    again = gradient_report(network, z0, adjoints=(), directions=0)
    assert again.lengths == one.lengths != other.lengths
    torch.rand(1)  # other draws
    assert gradient_report(network, z0, adjoints=(), directions=0).lengths != one.lengths
    backsolve = gradient_report(network, z0, adjoints=("backsolve",))
    assert backsolve.bad == ("backsolve",)  # its dropout is drawn anew on the way back


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: numpy.random.rand()], ids=["random", "numpy"])
def test_an_f_that_draws_from_elsewhere_than_torch_is_no_function_and_told(draw: Any) -> None:
    with pytest.raises(ValueError, match=r"run twice .* it is no function of its inputs"):
        gradient_report(lambda t, z: draw() - z, torch.ones(3), steps=3)
    assert gradient_report(lambda t, z: torch.rand_like(z) - z, torch.ones(3), steps=3).ok


def test_all_is_restored_after_an_error() -> None:
    block = ODEBlock(ConvField(), steps=2, adjoint="reversible", compile=True)
    norm = nn.BatchNorm2d(4)
    mean, drawn = norm.running_mean, torch.get_rng_state()

    def failing(end: Tensor) -> Tensor:
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        gradient_report(nn.Sequential(norm, block), torch.ones(2, 4, 8, 8), loss=failing)
    assert isinstance(block.adjoint, ReversibleAdjoint) and block.compiling
    assert mean is not None and norm.running_mean is mean and not mean.any() and norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_wrong_derivative_is_found_by_differences_and_told() -> None:
    def f(t: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return -z + _Doubled.apply(w)

    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    report = gradient_report(f, torch.randn(4, dtype=torch.float64), steps=5, args=(w,))
    assert report.refuted == ("args[0]",) and not report.ok
    assert report.differences["args[0]"] == pytest.approx(0.5, abs=1e-6)  # half of what is claimed
    assert report.differences["z0"] < 1e-8
    assert str(report).endswith("contradict plain autograd in args[0]: a custom autograd Function, a detach() or a jump")


def test_what_is_detached_is_found_too() -> None:
    def f(t: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return -z + w.detach()

    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    report = gradient_report(f, torch.randn(4, dtype=torch.float64), steps=5, args=(w,))
    assert report.refuted == ("args[0]",) and report.lengths["args[0]"] == 0


def test_kinks_are_uncertainty_and_no_alarm() -> None:
    """z0 has exact zeros, where ReLU's derivative is a matter of taste."""

    class Activated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, t: Any, z: Tensor) -> Tensor:
            return self.conv(torch.relu(z))

    z0 = torch.randn(2, 4, 8, 8, dtype=torch.float64).relu()
    report = gradient_report(ODEBlock(Activated().double(), steps=5), z0, adjoints=("checkpoint",))
    assert report.bad == () == report.refuted and report.undecided == ("z0",)
    assert report.uncertainty["z0"] > 0.01 and report.differences["f.conv.weight"] < 1e-6


def test_a_gradient_that_is_only_round_off_is_not_judged() -> None:
    """A bias before BatchNorm in training has none."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, t: Any, z: Tensor) -> Tensor:
            return torch.tanh(self.norm(self.linear(z)))

    for dtype in (torch.float32, torch.float64):
        report = gradient_report(Normed().to(dtype), torch.randn(16, 4, dtype=dtype), steps=4, method="rk4", adjoints=EXACT)
        assert report.bad == () == report.refuted and report.round_off["linear.bias"] > 0.1
        assert report.ok


def test_of_a_copy_in_float64_differences_know_more_digits() -> None:
    net, z0 = MLP().float(), torch.randn(3, 4)
    report = gradient_report(net, z0, method="rk4", steps=10)
    assert report.ok and report.dtype == torch.float32 and set(EXACT) <= set(report.exact)
    assert all(1e-9 < share < 1e-5 for share in report.round_off.values())
    assert 1e-8 < max(report.differences.values()) < 1e-2
    assert max(gradient_report(copy.deepcopy(net).double(), z0.double(), method="rk4", steps=10).differences.values()) < 1e-8


def test_what_a_function_reaches_by_closure_is_one_group() -> None:
    net = MLP().float()
    report = gradient_report(lambda t, z: net(t, z), torch.randn(3, 4), steps=10)
    assert report.groups == ("z0", "closure") and report.sizes["closure"] == 76 and report.ok


def test_autocast_is_that_of_the_caller_and_its_cache_keeps_nothing() -> None:
    net, z0 = MLP().float(), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = net(torch.tensor(0.0), z0)
        report = gradient_report(net, z0, steps=4, adjoints=EXACT)
        own = gradient_report(lambda t, z: net(t, z), z0, steps=4, adjoints=EXACT)
        assert torch.equal(net(torch.tensor(0.0), z0), before)
    assert report.ok and report.dtype == own.dtype == torch.bfloat16 and not own.refuted
    assert 1e-4 < max(report.round_off.values()) < 0.1


def test_states_and_arguments_are_trees_and_groups_have_names() -> None:
    class Field(nn.Module):
        def forward(self, t: Tensor, z: Tensor, net: nn.Module, scale: dict[str, Tensor]) -> Tensor:
            return scale["by"] * net(z) + scale["plus"]

    scale = {"by": vector(0.5).requires_grad_(), "plus": vector(1.0)}
    net = nn.Linear(4, 4).double()
    report = gradient_report(Field(), torch.randn(3, 4, dtype=torch.float64), steps=4, args=(net, scale))
    assert report.groups == ("z0", "args[1]", "args[0].weight", "args[0].bias") and not report.refuted
    assert all(p.grad is None for p in (*net.parameters(), scale["by"]))
    state = pendulum_state()
    report = gradient_report(Pendulum(), state, steps=6, adjoints=EXACT)
    assert report.ok and report.groups == ("z0", "stiffness") and report.sizes["z0"] == 11 and state["q"].grad is None


def test_complex_states() -> None:
    report = gradient_report(
        lambda t, z, a: a * z, torch.randn(3, dtype=torch.complex128), steps=8, args=(torch.tensor(1j, requires_grad=True),)
    )
    assert report.ok and report.sizes == {"z0": 6, "args[0]": 2}
    assert report.dtype == torch.float32  # the coarsest, that of the argument


def test_adjoints_may_be_objects_and_keep_their_names() -> None:
    chosen = ("direct", CheckpointAdjoint(slots=2), BacksolveAdjoint())
    report = gradient_report(MLP(), torch.randn(3, 4, dtype=torch.float64), steps=5, adjoints=chosen, directions=0)
    assert tuple(report.errors) == ("direct", "CheckpointAdjoint(slots=2)", "BacksolveAdjoint()") and report.ok


def test_many_parameters_are_grouped_by_their_modules() -> None:
    network = nn.Sequential(
        *(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(5)), ODEBlock(MLP().float(), steps=2)
    )
    report = gradient_report(network, torch.randn(3, 4), adjoints=("direct",), directions=0)
    assert report.groups == ("z0", *(f"{i}.{j}" for i in range(5) for j in (0, 2)), "5.f")
    assert report.sizes["0.2"] == 20 and report.sizes["5.f"] == 76


def test_a_backward_solve_that_ends_early_is_bad() -> None:
    def f(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    mu = vector(5.0)[0].requires_grad_()
    report = gradient_report(f, vector(2.0, 0.0), (0.0, 3.0), method="dopri5", rtol=1e-6, atol=1e-6, args=(mu,), directions=0)
    assert report.bad == ("backsolve",) and "step size fell" in report.failed["backsolve"]
    assert "backsolve: failed" in str(report)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ODEBlock(MLP(), steps=2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.block(inputs[-1])


class Nested(nn.Module):
    """A right-hand side that itself holds a block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ODEBlock(MLP(), steps=2, adjoint="backsolve")

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.block(z) - z


def test_networks_and_right_hand_sides_are_told_apart() -> None:
    z0 = torch.randn(3, 4, dtype=torch.float64)
    assert isinstance(gradient_report(Both(), z0, directions=0), GradientReport)
    nested = Nested()
    report = gradient_report(nested, z0, steps=3, adjoints=EXACT, directions=1)
    assert report.ok and isinstance(nested.block.adjoint, BacksolveAdjoint)
    with pytest.raises(ValueError, match="leave out steps"):
        gradient_report(ODEBlock(MLP(), steps=2), z0, steps=3)
    with pytest.raises(TypeError, match=r"func must be callable as func\(t, y\)"):
        gradient_report(nn.Linear(4, 4).double(), z0, steps=3)


def test_misuse_is_told() -> None:
    z0 = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="steps"):
        gradient_report(MLP(), z0)
    with pytest.raises(ValueError, match="adjoint='exact' is unknown"):
        gradient_report(MLP(), z0, steps=2, adjoints=("exact",))
    with pytest.raises(ValueError, match="tolerance=0 must be positive"):
        gradient_report(MLP(), z0, steps=2, tolerance=0)
    with pytest.raises(ValueError, match="directions=-1"):
        gradient_report(MLP(), z0, steps=2, directions=-1)
    with pytest.raises(TypeError, match="loss must return one real number as a tensor, got a tensor of shape"):
        gradient_report(MLP(), z0, steps=2, loss=lambda end: end)
    with pytest.raises(TypeError, match="loss must be callable"):
        gradient_report(MLP(), z0, steps=2, loss=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="args must be a tuple"):
        gradient_report(MLP(), z0, steps=2, args=[z0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="does not depend"):
        gradient_report(MLP(), z0, steps=2, loss=lambda end: torch.zeros(()))
    with pytest.raises(ValueError, match="the gradient under adjoint='direct' is not finite"):
        gradient_report(lambda t, z: torch.sqrt(z), torch.zeros(2), steps=2)


def test_a_hook_that_changes_gradients_is_contradicted_by_differences() -> None:
    first = nn.Linear(4, 8).double()
    first.weight.register_hook(lambda g: 2 * g)
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(8, 4).double())
    report = gradient_report(ODEBlock(OfState(net), steps=3, method="rk4"), torch.randn(3, 4, dtype=torch.float64))
    assert report.refuted == ("f.inner.0.weight",) and not report.ok


def test_a_reversible_scheme_that_leaves_the_solution_is_told_though_its_gradient_is_right() -> None:
    report = gradient_report(lambda t, z: -20 * z, torch.ones(1, dtype=torch.float64), method="rk4", steps=20, adjoints=EXACT, directions=0)
    assert report.own_scheme["reversible"]["z0"] > 1 and report.bad == () and report.ok


class Sized(nn.Module):
    """Two layers with weights of a size, and a decay."""

    def __init__(self, size: float, decay: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.decay = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), decay
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(size)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return self.net(z) - self.decay * z


INCREMENTS = {"euler": lambda f, z, h: h * f(0, z), "midpoint": lambda f, z, h: h * f(0, z + h / 2 * f(0, z))}


def by_hand(f: Sized, z0: Tensor, method: str, steps: int, reversible: bool, nudge: float = 0.0) -> list[Tensor]:
    """The gradient of the sum of squares at the end, by a loop; ``nudge``: with inputs moved by so much of their size."""
    wide, h, c = copy.deepcopy(f), 1 / steps, ReversibleAdjoint().coupling
    start = z0.clone().requires_grad_()
    with torch.no_grad():
        for leaf in (start, *wide.parameters()):
            leaf += nudge * leaf.square().mean().sqrt() * torch.randn_like(leaf)
    y = z = start
    for _ in range(steps):
        if reversible:
            y = c * y + (1 - c) * z + INCREMENTS[method](wide, z, h)
            z = z - INCREMENTS[method](wide, y, -h)
        else:
            y = y + INCREMENTS[method](wide, y, h)
    return list(torch.autograd.grad(y.square().sum(), [start, *wide.parameters()]))


def shares(found: list[Tensor], right: list[Tensor]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, right, strict=True)]


@pytest.mark.filterwarnings("ignore:ReversibleAdjoint found y0 again:RuntimeWarning")
@pytest.mark.parametrize(("method", "steps", "decay"), [("euler", 2, 0.0), ("euler", 4, 8.0), ("midpoint", 12, 2.0)])
@pytest.mark.parametrize("size", [0.5, 1, 3, 6, 12])
def test_whether_a_gradient_is_exact_and_whether_that_matters_are_two_verdicts(size: float, method: str, steps: int, decay: float) -> None:
    """Each against the gradient that the block gives, compared with one by hand and with what round-off does to that."""
    f, z0, eps = Sized(size, decay), torch.randn(16, 8), torch.finfo(torch.float32).eps
    report = gradient_report(ODEBlock(f, steps=steps, method=method), z0, loss=lambda end: end.square().sum(), directions=0)
    harmless = set()
    for name in report.errors:
        right = by_hand(f, z0, method, steps, name == "reversible")
        noise = max(max(shares(by_hand(f, z0, method, steps, name == "reversible", eps), right)) for _ in range(3))
        start = z0.clone().requires_grad_()
        end = ODEBlock(f, steps=steps, method=method, adjoint=name)(start)
        errors = shares(list(torch.autograd.grad(end.square().sum(), [start, *f.parameters()])), right)
        assert list(report.errors[name].values()) == pytest.approx(errors, rel=1e-3, abs=max(10 * eps, noise)), name
        harmless |= {name} if max(errors) <= 0.01 else set()
        if name in report.exact:
            assert max(errors) <= max(100 * eps, 30 * noise), name
        else:
            assert max(errors) > max(50 * eps, 3 * noise), name
    assert set(report.bad) == {*report.errors} - harmless
    assert report.ok is ("reversible" not in report.bad)


def test_a_warning_of_an_adjoint_that_is_compared_is_its_error_in_the_report() -> None:
    block = ODEBlock(Sized(6.0, 8.0), steps=30, adjoint="reversible")
    z0 = torch.randn(16, 8, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="ReversibleAdjoint found y0 again"):
        block(z0).sum().backward()
    assert max(gradient_report(block, z0).errors["reversible"].values()) > 1e-5


def test_the_projection_is_not_along_an_input_drawn_from_the_same_seed() -> None:
    class Skew(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return z @ (self.w - self.w.mT)

    torch.manual_seed(0)
    report = gradient_report(Skew(), torch.randn(6, dtype=torch.float64), steps=3, adjoints=("direct",), directions=0)
    assert report.lengths["w"] > 0.1


def test_a_network_may_begin_in_place() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), ODEBlock(OfState(nn.Linear(4, 4)), steps=2))
    assert gradient_report(network, torch.randn(3, 4), adjoints=("checkpoint",), directions=0).ok


class OfState(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.inner(z)
