"""Checkpointed gradients are the exact gradients of the discrete program."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, odeint, solve
from anodev2.testing import taylor_test
from compared import CHECKPOINTS, SYSTEMS, agree, gradients
from problems import MLP, RUNGE_KUTTA, Pendulum, pendulum_state
from sampled import rows


@pytest.mark.parametrize(("method", "steps", "system"), rows(RUNGE_KUTTA, [1, 2, 5, 17], SYSTEMS, quick=5))
def test_equals_store_all_autograd(method: str, steps: int, system: str) -> None:
    func, y0 = SYSTEMS[system]()
    for t in ([0.0, 1.0], [1.0, 0.6, -0.5]):
        exact = gradients(func, y0, t, method=method, steps=steps, adjoint="direct")
        found = gradients(func, y0, t, method=method, steps=steps, adjoint="checkpoint")
        for a, b in zip(found, exact, strict=True):  # of the state, of parameters
            assert len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_equals_autograd_through_a_plain_loop(adjoint: str) -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y, states = y0, [y0]
    for k in range(6):
        y = torch.add(y, net(torch.tensor(k / 6, dtype=torch.float64), y), alpha=1 / 6)
        states.append(y)
    expected = torch.autograd.grad(torch.stack(states).square().sum(), [y0, *net.parameters()])
    ys = odeint(net, y0, [k / 6 for k in range(7)], steps=1, method="euler", adjoint=adjoint)
    found = torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


CHECKED = [("euler", "checkpoint"), ("heun2", "direct"), ("bosh3", "checkpoint"), ("rk4", "direct"), ("dopri5", "direct")]


@pytest.mark.parametrize(("method", "adjoint"), rows(RUNGE_KUTTA, ["direct", "checkpoint"], quick=CHECKED))
def test_gradcheck_of_state_parameters_args_and_times(method: str, adjoint: str) -> None:
    net = MLP(2)
    names = list(dict(net.named_parameters()))

    def solve(y0: Tensor, scale: Tensor, times: Tensor, *parameters: Tensor) -> Tensor:
        f = lambda t, y, s: s["x"] * torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (t, y))
        return odeint(f, y0, times, args=({"x": scale},), method=method, steps=3, adjoint=adjoint)

    y0 = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(2, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(solve, (y0, scale, times, *parameters))


def test_gradcheck_of_a_complex_state() -> None:
    w = torch.tensor(0.3 + 1.1j, dtype=torch.complex128, requires_grad=True)
    z0 = torch.randn(2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, w: odeint(lambda t, z, w: w * z * z.abs(), z, [0.0, 1.0], steps=3, args=(w,)), (z0, w))


def test_taylor_remainder_is_of_second_order() -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64)
    assert taylor_test(lambda y: odeint(net, y, [0.0, 1.0], steps=5).square().sum(), y0) == pytest.approx(2, abs=0.1)


def test_closed_form_where_a_reverse_solve_fails() -> None:
    """x' = -l x, y' = w x, (1, 0): dy(1)/dw = (1 - exp(-l)) / l; integrating l = 20 backwards is off by a factor 13."""
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    f = lambda t, y: torch.stack([-20 * y[0], w * y[0]])
    y = odeint(f, torch.tensor([1.0, 0.0], dtype=torch.float64), [0.0, 1.0], steps=400)
    y[-1, 1].backward()
    assert w.grad is not None
    expected = (1 - torch.exp(torch.tensor(-20.0, dtype=torch.float64))) / 20
    assert abs(w.grad / expected - 1) < 1e-6


def test_frozen_and_unused_parameters_are_fine() -> None:
    net = MLP()
    net.unused = nn.Parameter(torch.ones(3))
    net.inner.weight.requires_grad_(False)
    odeint(net, torch.randn(3, 4, dtype=torch.float64), [0.0, 1.0], steps=3)[-1].sum().backward()
    assert net.inner.weight.grad is None and net.unused.grad is None
    assert net.outer.weight.grad is not None and net.inner.bias.grad is not None


def test_only_parameters_may_want_a_gradient_or_only_the_state() -> None:
    net, y0, ends = MLP(), torch.randn(3, 4, dtype=torch.float64), []
    for adjoint in ("direct", *CHECKPOINTS):
        net.requires_grad_(True).zero_grad()
        odeint(net, y0, [0.0, 1.0], steps=3, adjoint=adjoint).sum().backward()
        own = [p.grad for p in net.parameters()]
        net.requires_grad_(False)
        start = y0.clone().requires_grad_()
        odeint(net, start, [0.0, 1.0], steps=3, adjoint=adjoint).sum().backward()
        ends.append([*own, start.grad])
    assert agree(ends)


@pytest.mark.parametrize("adjoint", CHECKPOINTS, ids=str)
def test_one_gradient_leaves_per_parameter_and_solve(adjoint: CheckpointAdjoint) -> None:
    net, arrivals = MLP(), []
    for parameter in net.parameters():
        parameter.register_hook(lambda g: arrivals.append(tuple(g.shape)))
    odeint(net, torch.randn(3, 4, dtype=torch.float64), [0.0, 0.5, 1.0], steps=4, method="rk4", adjoint=adjoint).sum().backward()
    assert sorted(arrivals) == sorted(tuple(p.shape) for p in net.parameters())


def test_a_hook_that_changes_a_gradient_acts_once() -> None:
    ends = []
    for adjoint in ("direct", *CHECKPOINTS):
        torch.manual_seed(0)
        net = MLP()
        net.outer.weight.register_hook(lambda g: 3 * g)
        for _ in range(2):  # and is still there the second time
            odeint(net, torch.ones(3, 4, dtype=torch.float64), [0.0, 1.0], steps=4, adjoint=adjoint).sum().backward()
        ends.append([p.grad for p in net.parameters()])
    assert agree(ends)


def test_gradients_that_share_memory_are_summed_apart() -> None:
    """f = b: autograd hands the cotangent of the state itself to b; adding to it in place would spoil the state's."""
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y0 = torch.randn(3, dtype=torch.float64, requires_grad=True)
    for adjoint in CHECKPOINTS:
        ys = odeint(lambda t, y: b + 0 * y, y0, [0.0, 1.0, 2.0, 3.0], steps=1, method="euler", adjoint=adjoint)
        of_state, of_b = torch.autograd.grad(ys.sum(), [y0, b])
        assert of_state.tolist() == [4.0] * 3 and of_b.tolist() == [6.0] * 3


def test_a_second_derivative_is_exact_or_refused_with_the_alternative() -> None:
    net, y0, ends = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True), []
    for adjoint in ("direct", "checkpoint", CheckpointAdjoint(memory="1MB"), CheckpointAdjoint(offload="cpu")):
        loss = odeint(net, y0, [0.0, 1.0], steps=3, adjoint=adjoint).square().sum()
        (gradient,) = torch.autograd.grad(loss, y0, create_graph=True)
        ends.append(torch.autograd.grad(gradient.square().sum(), [y0, *net.parameters()], materialize_grads=True, allow_unused=True))
    assert agree(ends)
    loss = odeint(net, y0, [0.0, 1.0], steps=3, adjoint=CheckpointAdjoint(slots=1)).square().sum()
    (gradient,) = torch.autograd.grad(loss, y0, create_graph=True)
    with pytest.raises(RuntimeError, match="adjoint='direct'"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_low_precision_complex_and_empty_leaves(dtype: torch.dtype) -> None:
    f = lambda t, y: (-y[0] * y[2], y[1], -y[2])
    ends = []
    for adjoint in ("direct", *CHECKPOINTS):
        state = tuple(torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((70, 100), (0, 3), ()))
        ys = odeint(f, state, [0.0, 1.0], steps=4, adjoint=adjoint)
        ends.append(torch.autograd.grad(torch.stack([y[-1].abs().sum().float() for y in ys]).sum(), state))
    assert agree(ends)


def test_only_a_tensor_in_the_closure_may_want_a_gradient() -> None:
    calls, w, ends = [], torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True), []
    s = w.exp()

    def f(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return s * y

    for adjoint, redone in (("direct", 0), ("checkpoint", 2), (CheckpointAdjoint(slots=1), 2)):
        calls.clear()
        end = odeint(f, torch.ones(3).double(), [0.0, 1.0], steps=2, method="euler", adjoint=adjoint)[-1].sum()
        ends.append(torch.autograd.grad(end, w, retain_graph=True))
        assert len(calls) == 2 + redone
    assert agree(ends)


def test_sparse_and_dense_gradients_of_one_table_add_up() -> None:
    table = nn.Embedding(5, 3, sparse=True).double()
    ends = []
    for adjoint in ("direct", *CHECKPOINTS):
        table.zero_grad()
        f = lambda t, y: torch.tanh(table(torch.tensor([0, 1])) * y if t < 0.5 else table.weight[:2] * y)
        odeint(f, torch.ones(2, 3).double(), [0.0, 1.0], steps=4, method="euler", adjoint=adjoint)[-1].sum().backward()
        assert table.weight.grad is not None
        ends.append(table.weight.grad.to_dense().clone())
        table.weight.grad = None
    assert agree(ends)


@pytest.mark.parametrize("adjoint", CHECKPOINTS, ids=str)
def test_nothing_is_kept_alive_by_a_finished_solve(adjoint: CheckpointAdjoint) -> None:
    import gc
    import weakref

    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    start = y0 * 2
    seen = weakref.ref(start)
    loss = odeint(net, start, [0.0, 1.0], steps=3, adjoint=adjoint).sum()
    del start
    loss.backward()
    gc.disable()
    assert seen() is None  # freed with the graph's saved tensors, not with the loss
    gc.enable()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")  # torch's own decompositions
def test_transforms_and_forward_mode_are_exact() -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64)
    end = lambda y, adjoint: odeint(net, y, [0.0, 1.0], steps=3, adjoint=adjoint)[-1]
    loss = lambda y, adjoint: end(y, adjoint).square().sum()
    runs = {
        "grad": lambda adjoint: torch.func.grad(loss)(y0, adjoint),
        "grad of grad": lambda adjoint: torch.func.grad(lambda y: torch.func.grad(loss)(y, adjoint).square().sum())(y0),
        "jvp": lambda adjoint: torch.func.jvp(lambda y: end(y, adjoint), (y0,), (torch.ones_like(y0),))[1],
        "vmap": lambda adjoint: torch.func.vmap(lambda y: end(y, adjoint))(y0),
        "jacrev": lambda adjoint: torch.func.jacrev(lambda y: end(y, adjoint))(y0[:1]),
    }
    for run in runs.values():
        assert agree([run(adjoint) for adjoint in ("direct", *CHECKPOINTS)])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y0, torch.ones_like(y0))
        tangent = torch.autograd.forward_ad.unpack_dual(end(dual, "checkpoint")).tangent
    torch.testing.assert_close(tangent, runs["jvp"]("direct"))


@pytest.mark.parametrize("adjoint", CHECKPOINTS, ids=str)
def test_backward_twice_with_retain_graph_gives_the_same(adjoint: CheckpointAdjoint) -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss = odeint(net, y0, [0.0, 1.0], steps=3, adjoint=adjoint).square().sum()
    inputs = [y0, *net.parameters()]
    assert agree([torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(3)])


@pytest.mark.parametrize("adjoint", ["direct", *CHECKPOINTS, "reversible"], ids=str)
@pytest.mark.parametrize("what", ["weight", "view", "y0", "argument"])
def test_what_a_gradient_needs_must_not_be_modified_before_it(what: str, adjoint: Any) -> None:
    """By an amount that no comparison of values would notice."""
    tensors = {name: torch.randn(3, 3, dtype=torch.float64) for name in ("weight", "y0", "argument")}
    net = nn.Linear(3, 3).double()
    tensors["weight"] = tensors["view"] = net.weight
    y0, argument = tensors["y0"].requires_grad_(), tensors["argument"].requires_grad_()
    own = (lambda y: y @ net.weight.T) if what == "view" else net
    loss = odeint(lambda t, y, a: torch.sin(own(y) * a), y0, [0.0, 1.0], steps=3, method="euler", args=(argument,), adjoint=adjoint).sum()
    with torch.no_grad():
        tensors[what].mul_(1 + 1e-12)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("adjoint", ["direct", *CHECKPOINTS], ids=str)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_states_that_a_callback_was_shown_must_not_be_modified(place: int, adjoint: Any) -> None:
    net, y0, shown = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True), list[Tensor]()
    shown.append(y0.detach())
    loss = solve(net, y0, [0.0, 1.0], steps=4, callback=lambda t, y: shown.append(y), adjoint=adjoint).ys[-1].sum()
    shown[place].mul_(1 + 1e-12)
    held = adjoint != CHECKPOINTS[1] or place in (0, 3)  # the one slot, and the state before the last step
    with pytest.raises(RuntimeError, match="modified by an inplace operation") if held else nullcontext():
        loss.backward()


def test_a_state_leaf_or_output_without_a_gradient_is_fine() -> None:
    state = pendulum_state()
    net, ends = Pendulum(), []
    for adjoint in ("direct", *CHECKPOINTS):
        ys = odeint(net, state, [0.0, 0.5, 1.0], steps=3, adjoint=adjoint)
        ends.append(torch.autograd.grad(ys["more"][0][1].sum(), [state["q"], state["more"][0]]))
    assert agree(ends)


def test_threads_of_backward_meet_no_stale_state() -> None:
    """Two solves in one graph, the second starting where the first ended."""
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    losses = []
    for adjoint in ("direct", CheckpointAdjoint()):
        middle = odeint(net, y0, [0.0, 0.5], steps=3, adjoint=adjoint)[-1]
        losses.append(odeint(net, middle + y0, [0.5, 1.0], steps=2, adjoint=adjoint)[-1].square().sum())
    inputs = [y0, *net.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(loss, inputs) for loss in losses), rtol=1e-13, atol=1e-14)


def test_a_state_that_is_a_parameter() -> None:
    y0, ends = nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), []
    net = MLP()
    for adjoint in ("direct", *CHECKPOINTS):
        loss = odeint(lambda t, y: net(t, y) * torch.sin(y), y0, [0.0, 1.0], steps=3, adjoint=adjoint).square().sum()
        ends.append(torch.autograd.grad(loss, [y0, *net.parameters()]))
    assert agree(ends)
