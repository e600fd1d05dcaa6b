"""Tensors that reach f by closure get their gradient, or a clear error; never nothing."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, DirectAdjoint, ReversibleAdjoint, odeint, solve
from anodev2.integrate.captured import reachable
from compared import CHECKPOINTS, agree
from hiding import EasyDict

GLOBAL = torch.full((3,), 0.5, requires_grad=True)


def leaf(shape: tuple[int, ...] = (3,)) -> Tensor:
    return torch.randn(shape, requires_grad=True)


class Holder:
    def __init__(self, weight: Tensor) -> None:
        self.items = {"weights": [weight]}

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self._slope(y)

    def _slope(self, y: Tensor) -> Tensor:
        return self.items["weights"][0] * y


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.weight * y


class Attribute(nn.Module):
    """A tensor as a plain attribute: neither parameter nor buffer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(self.weight * y)


def late(weight: Tensor) -> Callable[..., Tensor]:
    """Used in the second half of the time only."""
    return lambda t, y: -y if t < 0.5 else weight * y


class ClassAttribute:
    weight: Tensor

    @classmethod
    def f(cls, t: Tensor, y: Tensor) -> Tensor:
        return cls.weight * y


def class_attribute(weight: Tensor) -> Callable[..., Tensor]:
    ClassAttribute.weight = weight
    return ClassAttribute.f


WAYS: dict[str, Callable[[Tensor], Callable[..., Any]]] = {
    "closure": lambda w: lambda t, y: torch.sin(w * y),
    "nested function": lambda w: (lambda g: lambda t, y: g(y))(lambda y: w * y),
    "default": lambda w: lambda t, y, w=w: w * y,
    "partial": lambda w: functools.partial(lambda w, t, y: w * y, w),
    "partial keyword": lambda w: functools.partial(lambda t, y, w: w * y, w=w),
    "object": Holder,
    "bound method": lambda w: Slotted(w).f,
    "module attribute": Attribute,
    "late": late,
    "class attribute": class_attribute,
    "deque": lambda w: lambda t, y, box=deque([w]): box[0] * y,
    "cached function": lambda w: (lambda get: lambda t, y: get() * y)(functools.lru_cache(lambda: w)),
    "dict subclass": lambda w: (lambda box: lambda t, y: box.w * y)(EasyDict(w=w)),
    "inside a list in torch.stack": lambda w: lambda t, y: torch.stack([w[0], w[1], w[2]]) * y,
}


@pytest.mark.parametrize("inner", [False, True], ids=["leaf", "inner"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_into_f_is_found(way: str, inner: bool) -> None:
    gradients = []
    for adjoint in ("direct", *CHECKPOINTS):
        torch.manual_seed(0)
        w = leaf()
        f = WAYS[way](w.exp() if inner else w)
        ys = odeint(f, torch.ones(3), [0.0, 1.0], steps=4, method="midpoint", adjoint=adjoint)
        gradients.append(torch.autograd.grad(ys.square().sum(), w))
    assert agree(gradients)


def test_globals_are_found() -> None:
    f = lambda t, y: GLOBAL * y
    for adjoint in ("direct", *CHECKPOINTS):
        (found,) = torch.autograd.grad(odeint(f, torch.ones(3), [0.0, 1.0], steps=4, adjoint=adjoint)[-1].sum(), GLOBAL)
        torch.testing.assert_close(found, torch.exp(GLOBAL.detach()), rtol=1e-4, atol=0)


def test_an_inner_tensor_beside_its_own_ancestors_is_not_counted_twice() -> None:
    gradients = []
    for adjoint in ("direct", *CHECKPOINTS):
        torch.manual_seed(0)
        w, x = leaf(), leaf()
        y0 = x.square()
        s = torch.nn.functional.softplus(w * x)
        f = lambda t, y, a, s=s, y0=y0, w=w: s * torch.tanh(y) + w * a - y0
        ys = odeint(f, y0, [0.0, 0.5, 1.0], steps=3, args=(s * 2,), adjoint=adjoint)
        gradients.append(torch.autograd.grad(ys.square().sum(), [w, x]))
    assert agree([*gradients[:2], gradients[3]])
    torch.testing.assert_close(gradients[2], gradients[0])  # w and x are reached from outside too: summed in another order


def test_inner_tensors_that_f_does_not_use_are_left_alone() -> None:
    """A result kept from an earlier pass, whose graph is gone, is no input of this solve."""
    module = Attribute(leaf())
    module.kept = module.weight.exp()
    module.kept.sum().backward()
    module.weight.grad = None
    odeint(module, torch.ones(3), [0.0, 1.0], steps=3)[-1].sum().backward()
    assert module.weight.grad is not None


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("weight_norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hooks", "parametrization"])
def test_weight_norm_recomputes_its_inner_weight_in_each_call(weight_norm: Callable[[nn.Module], nn.Module]) -> None:
    gradients = []
    for adjoint in ("direct", *CHECKPOINTS):
        torch.manual_seed(0)
        net = weight_norm(nn.Linear(3, 3))
        f = lambda t, y, net=net: torch.tanh(net(y))
        for _ in range(2):
            net.zero_grad()
            odeint(f, torch.ones(2, 3), [0.0, 1.0], steps=3, adjoint=adjoint).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert agree(gradients)


class Hidden(torch.autograd.Function):
    """Scales by a tensor that Python's eyes cannot find: it arrives through a C iterator."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(y, w)
        return y * w

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        y, w = ctx.saved_tensors
        return cotangents[0] * w, cotangents[0] * y


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1), "reversible"], ids=str)
@pytest.mark.parametrize("inner", [False, True], ids=["leaf", "inner"])
def test_what_no_search_finds_has_its_gradient_or_is_refused_with_the_cure(inner: bool, adjoint: Any) -> None:
    w, net = leaf(), nn.Linear(3, 3)
    hidden = {"w": w.exp() if inner else w}.get  # a builtin method, and a Function that torch function modes do not see

    def gradient(adjoint: Any) -> Tensor:
        ys = odeint(lambda t, y: Hidden.apply(net(y), hidden("w")), torch.ones(2, 3), [0.0, 1.0], steps=2, adjoint=adjoint)
        return torch.autograd.grad(ys.sum(), w, retain_graph=True)[0]

    if inner and adjoint != "checkpoint":
        with pytest.raises(ValueError, match=r"by a path that cannot be followed.*args=\(...\)"):
            gradient(adjoint)
    elif adjoint == "reversible":
        assert gradient(adjoint).abs().min() > 0
    else:
        assert torch.equal(gradient(adjoint), gradient("direct"))


def test_where_nothing_known_wants_a_gradient_a_hidden_tensor_still_gets_its_own() -> None:
    w = leaf()
    hidden = {"w": w}.get
    odeint(lambda t, y: hidden("w") * y, torch.ones(3), [0.0, 1.0], steps=2)[-1].sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1)], ids=str)
def test_a_hidden_tensor_in_a_step_that_needs_nothing_else_has_its_gradient(adjoint: Any) -> None:
    w = leaf()
    hidden = {"w": w}.get
    net = nn.Linear(3, 3)
    odeint(partly(net, hidden), torch.ones(2, 3), [0.0, 1.0], steps=2, method="euler", adjoint=adjoint)[-1].sum().backward()
    assert w.grad is not None


def partly(net: nn.Module, hidden: Callable[[str], Any]) -> Callable[..., Tensor]:
    """The parameters of net are known but unused; what is used is hidden."""
    return lambda t, y: hidden("w") * y + (0 if t < 0.5 else net(y))


@pytest.mark.parametrize("adjoint", [CheckpointAdjoint(slots=1), CheckpointAdjoint(slots=3), "reversible"], ids=str)
def test_a_tensor_with_a_history_that_later_steps_alone_read(adjoint: Any) -> None:
    """Such a step is taken again once this is known, with all that it did undone: random numbers, statistics, the count."""

    def run(adjoint: Any) -> list[Tensor]:
        torch.manual_seed(0)
        w, norm = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True), nn.BatchNorm1d(3).double()
        hidden: Any = {"w": w.exp()}.get
        noisy = lambda y: nn.functional.dropout(norm(y), 0.3)
        f: Any = lambda t, y: noisy(y) * (torch.ones(()) if 0.2 < t < 0.45 else hidden("w") if t > 0.5 else torch.tanh(y))
        y0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        found = solve(f, y0, [0.0, 1.0], method="midpoint", steps=6, adjoint=adjoint)
        evaluations = found.stats.evaluations_forward
        found.ys[-1].sum().backward()
        assert w.grad is not None and y0.grad is not None
        return [found.ys[-1].detach(), *norm.buffers(), torch.get_rng_state(), torch.tensor(evaluations), w.grad, y0.grad]

    direct = DirectAdjoint() if adjoint != "reversible" else Stored()
    *exactly, expected, start = run(direct)
    *found, gradient, own = run(adjoint)
    assert all(map(torch.equal, exactly, found))
    torch.testing.assert_close([gradient, own], [expected, start], rtol=1e-12, atol=1e-13)


class Stored(ReversibleAdjoint):
    """The reversible scheme by plain autograd."""

    def solve(self, problem: Any, y0: Any, args: Any) -> Any:
        return self.stored(problem, y0, args)


def test_dict_subclasses_in_args() -> None:
    net = nn.Linear(3, 3)
    ends = []
    for adjoint in ("direct", *CHECKPOINTS):
        net.zero_grad()
        w = torch.full((3,), 0.5, requires_grad=True)
        f = lambda t, y, options: options.net(y) * options.w
        odeint(f, torch.ones(2, 3), [0.0, 1.0], steps=2, args=(EasyDict(net=net, w=w),), adjoint=adjoint)[-1].sum().backward()
        ends.append([w.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert agree(ends)


def test_leaves_that_f_makes_itself_are_its_own_business() -> None:
    """A Hamiltonian field differentiates inside f; its inner leaf must not be taken for a lost one."""

    class Hamiltonian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                point = y.detach().clone().requires_grad_()
                (slope,) = torch.autograd.grad(self.energy(point).sum(), point, create_graph=True)
            return torch.stack([slope[..., 1], -slope[..., 0]], -1) - 0.1 * y

    gradients = []
    for adjoint in ("direct", *CHECKPOINTS):
        torch.manual_seed(0)
        net = Hamiltonian()
        odeint(net, torch.ones(4, 2), [0.0, 1.0], steps=3, adjoint=adjoint)[-1].square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert agree(gradients)


def test_the_search_is_bounded_and_skips_what_is_not_python() -> None:
    big = [object() for _ in range(200_000)]
    net = nn.Linear(2, 2)
    found = reachable(lambda t, y: net(y) + len(big), torch.Generator())
    assert {id(p) for p in net.parameters()} == {id(p) for p in found.tensors}
    assert found.modules == [net] and len(found.generators) == 1


@pytest.mark.parametrize("inside", ["direct", "checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1MB")], ids=str)
@pytest.mark.parametrize("outside", ["checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1MB")], ids=str)
def test_a_solve_inside_f_around_a_tensor_with_a_history(outside: Any, inside: Any) -> None:
    w, y0, ends = leaf(), torch.ones(3, requires_grad=True), []
    s = w.exp()
    for out, within in (("direct", "direct"), (outside, inside)):
        f = lambda t, y, a=within: odeint(lambda u, z: -s * z, y, [0.0, 0.3], steps=2, adjoint=a)[-1] - y
        ends.append(torch.autograd.grad(odeint(f, y0, [0.0, 1.0], steps=2, adjoint=out)[-1].sum(), [w, y0], retain_graph=True))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("adjoint", ["checkpoint", "reversible", "backsolve"])
def test_stale_results_that_f_could_read_but_does_not_are_left_alone(adjoint: str) -> None:
    w = leaf()
    stale = w.exp()
    stale.sum().backward()
    w.grad = None
    odeint(lambda t, y, unused=stale: -w * y, torch.ones(3), [0.0, 1.0], steps=3, adjoint=adjoint)[-1].sum().backward()
    assert w.grad is not None


rate = torch.tensor(2.0, requires_grad=True).exp()  # a global with the name of an attribute below


def test_an_attribute_is_not_taken_for_a_global_of_its_name() -> None:
    class Decay:
        rate = 0.5

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y

    assert not reachable(Decay()).tensors
    assert [id(tensor) for tensor in reachable(lambda t, y: -rate * y).tensors] == [id(rate)]
    assert [id(tensor) for tensor in reachable(lambda t, y: (lambda z: -rate * z)(y)).tensors] == [id(rate)]


def test_a_leaf_of_f_that_lies_in_a_reference_cycle_is_not_taken_for_a_lost_one() -> None:
    net = nn.Linear(3, 3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            point = y.detach().clone().requires_grad_()

            def energy(depth: int) -> Tensor:
                return torch.tanh(net(point)).sum() if depth == 0 else energy(depth - 1)

            return torch.autograd.grad(energy(1), point, create_graph=True)[0]

    ends = []
    for adjoint in ("direct", *CHECKPOINTS):
        ends.append(torch.autograd.grad(odeint(f, torch.ones(2, 3), [0.0, 1.0], steps=2, adjoint=adjoint)[-1].sum(), net.weight))
    assert agree(ends)


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "with a graph"])
@pytest.mark.parametrize("adjoint", ["checkpoint", "reversible"])
def test_a_buffer_that_requires_grad_gets_its_gradient(adjoint: str, leaf: bool) -> None:
    class Rate(nn.Module):
        def __init__(self, rate: Tensor) -> None:
            super().__init__()
            self.register_buffer("rate", rate, persistent=False)
            self.register_buffer("calls", torch.tensor(0))

        rate: Tensor
        calls: Tensor

        def forward(self, t: Any, y: Tensor) -> Tensor:
            self.calls += 1
            return -self.rate * y

    rate, gradients = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), []
    for mode in ("direct", adjoint):
        f = Rate(rate if leaf else rate * 1.0)
        end = odeint(f, torch.ones(3).double(), [0.0, 1.0], steps=3, adjoint=mode)[-1]
        gradients.append(torch.autograd.grad(end.sum(), rate)[0])
        assert f.calls == (12 if mode != "reversible" else 24)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3 if adjoint == "reversible" else 1e-13, atol=0)
