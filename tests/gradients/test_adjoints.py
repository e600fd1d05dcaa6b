"""All exact adjoints, schedules and methods against plain autograd through the same scheme, on uniform and recorded grids."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, Leapfrog, ReversibleAdjoint, SolveError, odeint, plan, solve
from anodev2.gradients import backsolve
from compared import SYSTEMS, gradients
from faithful import StoredReversible
from problems import CONTROLLED, MLP, RUNGE_KUTTA, separable
from sampled import rows

SCHEDULES: dict[str, Adjoint] = {
    "per step": CheckpointAdjoint(),
    "1 slot": CheckpointAdjoint(slots=1),
    "3 slots": CheckpointAdjoint(slots=3),
    "all graphs": CheckpointAdjoint(memory="1GB"),
    "host": CheckpointAdjoint(offload="cpu"),
    "host slots": CheckpointAdjoint(slots=2, offload="cpu"),
}


BUDGETED = ["tight", "some graphs"]  # which depend on what is to be kept


def fitted(schedule: str, func: Any, y0: Any, t: Any, **options: Any) -> Adjoint:
    """The adjoint of that name; of budgets one for two slots, and one for all states and the graphs of three steps."""
    if schedule not in BUDGETED:
        return SCHEDULES[schedule]
    own = CheckpointAdjoint(slots=2) if schedule == "tight" else CheckpointAdjoint()
    found = plan(func, y0, t, **options, adjoint=own)
    return CheckpointAdjoint(memory=found.peak_bytes + 2 * (schedule == "some graphs") * found.graph_bytes)


def assert_exact(found: tuple[list[Tensor], list[Tensor]], exact: tuple[list[Tensor], list[Tensor]]) -> None:
    """To the bit, of the state and of parameters: sums are made in the order of the whole graph."""
    for a, b in zip(found, exact, strict=True):
        assert all(map(torch.equal, a, b)) and len(a) == len(b)


@pytest.mark.parametrize(("method", "schedule"), rows(RUNGE_KUTTA, [*SCHEDULES, *BUDGETED], quick=3))
def test_every_schedule_equals_store_all(method: str, schedule: str) -> None:
    for system in ("tensor", "coupled dict"):
        func, y0 = SYSTEMS[system]()
        for t, steps in (([0.0, 1.0], 10), ([1.0, 0.6, -0.5], 4)):
            exact = gradients(func, y0, t, method=method, steps=steps, adjoint="direct")
            adjoint = fitted(schedule, func, y0, t, method=method, steps=steps)
            assert_exact(gradients(func, y0, t, method=method, steps=steps, adjoint=adjoint), exact)


@pytest.mark.parametrize(("method", "schedule"), rows(CONTROLLED, [*SCHEDULES, *BUDGETED], quick=3))
def test_every_schedule_equals_store_all_on_a_recorded_grid(method: str, schedule: str) -> None:
    for system in ("tensor", "dict"):
        func, y0 = SYSTEMS[system]()
        t = [0.0, 0.7, 1.0]
        grid = solve(func, y0, t, method=method, rtol=1e-3, atol=1e-4, hit="exact").grid
        exact = gradients(func, y0, t, method=method, grid=grid, adjoint="direct")
        adjoint = fitted(schedule, func, y0, t, method=method, grid=grid)
        assert_exact(gradients(func, y0, t, method=method, grid=grid, adjoint=adjoint), exact)


@pytest.mark.parametrize(("method", "slots"), rows(CONTROLLED, [None, 1, 2, 5], quick=3))
def test_an_adaptive_solve_has_the_gradient_of_the_grid_it_found(method: str, slots: int | None) -> None:
    func, y0 = SYSTEMS["dict"]()
    coarse = 100 if slots == 1 else 1  # where n (n + 1) / 2 steps are redone
    t, options = [0.0, 0.7, 3.0], {"method": method, "rtol": coarse * 1e-4, "atol": coarse * 1e-6, "hit": "exact"}
    grid = solve(func, y0, t, **options).grid  # within steps a slope that is handed on has its gradients summed in another order
    exact = gradients(func, y0, t, method=method, grid=grid, adjoint="direct")
    assert len(grid) >= 5
    assert_exact(gradients(func, y0, t, **options, adjoint=CheckpointAdjoint(slots=slots)), exact)
    assert_exact(gradients(func, y0, t, **options, adjoint="direct"), exact)


@pytest.mark.parametrize("schedule", [*SCHEDULES, *BUDGETED])
def test_leapfrog_equals_store_all(schedule: str) -> None:
    stiffness = torch.tensor(1.3).double().requires_grad_()
    y0 = tuple(torch.randn(5).double().requires_grad_() for _ in range(2))
    for f in (lambda t, y: (y[1], stiffness * separable(t, y)[1]), lambda t, y: (stiffness * y[1], separable(t, y)[1])):
        ends = []
        for adjoint in ("direct", fitted(schedule, f, y0, [0.0, 1.0, 2.0], steps=6, method=Leapfrog())):
            ys = odeint(f, y0, [0.0, 1.0, 2.0], steps=6, method=Leapfrog(), adjoint=adjoint)
            ends.append(torch.autograd.grad(torch.cat(ys).square().sum(), [*y0, stiffness]))
        assert_exact((list(ends[1][:2]), [ends[1][2]]), (list(ends[0][:2]), [ends[0][2]]))


@pytest.mark.parametrize("options", [{"steps": 80}, {"method": "dopri5", "rtol": 1e-9, "atol": 1e-11}], ids=["grid", "adaptive"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_backsolve_converges_to_the_exact_gradient(system: str, options: dict[str, Any]) -> None:
    func, y0 = SYSTEMS[system]()
    exact = gradients(func, y0, [0.0, 0.4, 1.0], **options, adjoint="direct")
    found = gradients(func, y0, [0.0, 0.4, 1.0], **options, adjoint="backsolve")
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found[0][0], exact[0][0])


def test_backsolve_has_its_own_tolerances_and_counters_of_the_forward_steps() -> None:
    seen: list[int] = []

    def f(t: Tensor, y: Tensor, *, step: int) -> Tensor:
        seen.append(step)
        return -y

    y0 = torch.ones(3).double().requires_grad_()
    odeint(f, y0, [0.0, 1.0], method="euler", steps=4, adjoint=BacksolveAdjoint()).sum().backward()
    assert seen == [0, 1, 2, 3, 3, 3, 2, 1, 0]  # the last step is redone, to see whether f is what it was
    net, errors = MLP(), []
    exact = gradients(net, y := torch.randn(3, 4).double().requires_grad_(), [0.0, 1.0], method="dopri5", steps=20, adjoint="direct")
    for tolerance in (1e-3, 1e-9):
        found = gradients(net, y, [0.0, 1.0], method="dopri5", steps=20, adjoint=BacksolveAdjoint(tolerance, tolerance))
        errors.append((found[0][0] - exact[0][0]).norm().item())
    assert errors[1] < 1e-7 < errors[0]


@pytest.mark.parametrize("system", SYSTEMS)
def test_tolerances_of_elements_and_of_leaves_hold_on_the_way_back(system: str) -> None:
    func, y0 = SYSTEMS[system]()
    tolerance = tree_map(lambda leaf: torch.full_like(leaf, 1e-9, requires_grad=False), y0)
    options: dict[str, Any] = {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
    found, exact = (gradients(func, y0, [0.0, 1.0], **options, adjoint=adjoint) for adjoint in ("backsolve", "direct"))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)


def test_a_reverse_solve_that_does_not_come_to_its_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backsolve, "PATIENCE", 3)
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    end = odeint(lambda t, y: -y, y0, [0.0, 1.0], method="bosh3", steps=2, adjoint=BacksolveAdjoint(rtol=1e-10, atol=1e-10))[-1]
    with pytest.raises(SolveError, match=r"backwards in time, at t=0\.\d+: 9 steps taken for 2 forward"):
        end.sum().backward()


def test_backsolve_names_what_it_cannot_solve_with() -> None:
    y0 = torch.ones(2, requires_grad=True)
    for options, message in (
        ({"steps": 3, "adjoint": BacksolveAdjoint(rtol=1e-5)}, "error estimate, not rk4"),
        ({"steps": 3, "method": "leapfrog", "adjoint": "backsolve"}, "leapfrog cannot"),
    ):
        state = (y0, y0) if options.get("method") == "leapfrog" else y0
        with pytest.raises(ValueError, match=message):
            odeint(lambda t, y: (y[1], -y[0]) if isinstance(y, tuple) else -y, state, [0.0, 1.0], **options)
    with pytest.raises(ValueError, match="must be at least 0"):
        BacksolveAdjoint(rtol=-1.0)


def test_a_frozen_state_and_unused_parameters_under_every_adjoint() -> None:
    for adjoint in (*SCHEDULES.values(), ReversibleAdjoint(), BacksolveAdjoint()):
        net = MLP()
        net.unused = nn.Parameter(torch.ones(3))
        net.inner.weight.requires_grad_(False)
        odeint(net, torch.randn(3, 4).double(), [0.0, 1.0], steps=6, adjoint=adjoint)[-1].sum().backward()
        assert net.inner.weight.grad is None and net.unused.grad is None and net.outer.weight.grad is not None


@pytest.mark.parametrize("schedule", [*SCHEDULES, *BUDGETED])
def test_backward_twice(schedule: str) -> None:
    """States go as they are used up, unless the graph is retained."""
    net, y0 = MLP(), torch.randn(3, 4).double().requires_grad_()
    adjoint = fitted(schedule, net, y0, [0.0, 1.0], steps=9)
    loss = odeint(net, y0, [0.0, 1.0], steps=9, adjoint=adjoint).square().sum()
    inputs = [y0, *net.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


def inner(y: Tensor, net: nn.Module, adjoint: Any) -> tuple[Tensor, list[Tensor]]:
    """f reaches results of earlier operations, one of which it does not use."""
    w = y.detach().mean(0).requires_grad_()
    used, unused = w.exp(), w.sin()
    unused.sum().backward()
    holder = [used, unused]
    f = lambda t, y: net(t, y) * holder[0]
    return odeint(f, y, [0.0, 1.0], steps=7, adjoint=adjoint)[-1].square().sum(), [y, w, *net.parameters()]


def as_argument(y: Tensor, net: nn.Module, adjoint: Any) -> tuple[Tensor, list[Tensor]]:
    s = y.exp()
    return odeint(lambda t, y, s: net(t, y) * s, y, [0.0, 1.0], steps=7, args=(s,), adjoint=adjoint)[-1].sum(), [y, *net.parameters()]


@pytest.mark.parametrize("way", [inner, as_argument])
@pytest.mark.parametrize("schedule", [*SCHEDULES, *BUDGETED])
def test_tensors_with_a_history(schedule: str, way: Callable[..., Any]) -> None:
    net, y0, ends = MLP(), torch.randn(3, 4).double().requires_grad_(), []
    like: dict[str, Any] = {"func": lambda t, y, s: net(t, y) * s, "args": (y0.exp(),)}
    for adjoint in ("direct", fitted(schedule, y0=y0, t=[0.0, 1.0], steps=7, **like)):
        ends.append(torch.autograd.grad(*way(y0, net, adjoint)))
    assert all(map(torch.equal, *ends))


WHOLE = ["per step", "some graphs", "all graphs", "host"]


def test_the_budgets_of_the_schedules_are_of_three_kinds() -> None:
    func, y0 = SYSTEMS["tensor"]()
    options: dict[str, Any] = {"t": [0.0, 1.0], "steps": 10}
    found = {name: plan(func, y0, **options, adjoint=fitted(name, func, y0, **options)) for name in (*BUDGETED, "all graphs")}
    assert found["tight"].slots == 2 and found["some graphs"].graphs == 3 and found["all graphs"].graphs == 10


def second_derivatives(func: nn.Module, y0: Any, **options: Any) -> list[Tensor]:
    """First and second derivatives of a loss that reads every output time, and the third along one direction."""
    inputs = [*tree_leaves(y0), *func.parameters()]
    ys = odeint(func, y0, [0.0, 0.4, 1.0], **options)
    loss = torch.stack([(leaf.abs() ** 2).sum() + leaf.real[1:].sin().sum() for leaf in tree_leaves(ys)]).sum()
    ends = [*torch.autograd.grad(loss, inputs, create_graph=True)]
    for _ in range(2):
        square = torch.stack([(g * torch.linspace(0.5, 1, g.numel(), dtype=g.dtype).reshape(g.shape)).square().sum() for g in ends])
        ends += torch.autograd.grad(square.sum(), inputs, create_graph=True)
    return ends


@pytest.mark.parametrize(("system", "schedule"), rows(SYSTEMS, WHOLE, quick=2))
def test_second_and_third_derivatives_equal_those_of_store_all(system: str, schedule: str) -> None:
    func, y0 = SYSTEMS[system]()
    for method in ("euler", "dopri5"):
        adjoint = fitted(schedule, func, y0, [0.0, 0.4, 1.0], method=method, steps=3)
        exact, found = (second_derivatives(func, y0, method=method, steps=3, adjoint=a) for a in ("direct", adjoint))
        assert all(map(torch.equal, found, exact))


@pytest.mark.parametrize("adjoint", [CheckpointAdjoint(), CheckpointAdjoint(memory="1MB")], ids=str)
def test_second_derivatives_under_error_control(adjoint: Adjoint) -> None:
    func, y0 = SYSTEMS["dict"]()
    options: dict[str, Any] = {"method": "bosh3", "rtol": 1e-2, "atol": 1e-2, "hit": "exact"}
    grid = solve(func, y0, [0.0, 0.4, 1.0], **options).grid
    exact = second_derivatives(func, y0, method="bosh3", grid=grid, adjoint="direct")
    if adjoint == CheckpointAdjoint():
        assert all(map(torch.equal, second_derivatives(func, y0, **options, adjoint=adjoint), exact))
    assert all(map(torch.equal, second_derivatives(func, y0, method="bosh3", grid=grid, adjoint=adjoint), exact))


def test_gradgradcheck_of_state_parameters_args_and_times() -> None:
    net = MLP(2)
    names = list(dict(net.named_parameters()))

    def run(y0: Tensor, scale: Tensor, times: Tensor, *parameters: Tensor) -> Tensor:
        f = lambda t, y, s: s * torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (t, y))
        return odeint(f, y0, times, args=(scale,), method="midpoint", steps=2)

    y0, scale = torch.randn(1, 2).double().requires_grad_(), torch.tensor(0.7).double().requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradgradcheck(run, (y0, scale, torch.tensor([0.1, 0.5, 0.9]).double().requires_grad_(), *parameters))


@pytest.mark.parametrize("schedule", ["1 slot", "tight", "host slots", "reversible", "backsolve"])
def test_second_derivatives_are_refused_without_a_lasting_graph(schedule: str) -> None:
    func, y0 = SYSTEMS["tensor"]()
    adjoint = schedule if schedule in ("reversible", "backsolve") else fitted(schedule, func, y0, [0.0, 1.0], steps=10)
    loss = odeint(func, y0, [0.0, 1.0], steps=10, adjoint=adjoint).square().sum()
    (first,) = torch.autograd.grad(loss, y0, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative.*adjoint='direct'"):
        first.sum().backward()


# --- random combinations ----------------------------------------------------------------------------------------------


NESTINGS = ["tensor", "dict", "tuple"]


class Mixture(nn.Module):
    """A smooth f on any tree: every leaf is moved by itself, by t, and by the mean size of all leaves, without a kink at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64))

    def forward(self, t: Tensor, y: Any) -> Any:
        a, b, c = self.weight
        mean = sum((1 + leaf.abs().double() ** 2).sqrt().mean() for leaf in tree_leaves(y))
        return tree_map(lambda leaf: (torch.sin(a * leaf) + b * leaf * t + c * mean).to(leaf.dtype), y)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    def leaf() -> Tensor:
        shape = draw(st.lists(st.integers(1, 3), max_size=3))
        dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.complex128]))
        seed = draw(st.integers(0, 1000))
        return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()

    nesting = draw(st.sampled_from(NESTINGS))
    return {"tensor": leaf, "dict": lambda: {"a": leaf(), "b": [leaf()]}, "tuple": lambda: (leaf(), (leaf(), leaf()))}[nesting]()


def exact_adjoints(steps: int) -> st.SearchStrategy[Adjoint]:
    return st.one_of(
        st.builds(CheckpointAdjoint, slots=st.one_of(st.none(), st.integers(1, steps + 2))),
        st.builds(CheckpointAdjoint, memory=st.integers(200_000, 300_000)),
        st.builds(CheckpointAdjoint, slots=st.integers(1, 4), offload=st.just("cpu")),
        st.builds(ReversibleAdjoint, coupling=st.floats(0.9, 0.999)),
    )


def check_gradients(y0: Any, method: str, steps: int, t: list[float], adjoint: Adjoint) -> None:
    """Against store-all of the same scheme, and along one direction against central differences."""
    net = Mixture()
    reference = StoredReversible() if isinstance(adjoint, ReversibleAdjoint) else "direct"
    if isinstance(adjoint, ReversibleAdjoint):
        reference = StoredReversible(adjoint.coupling)
    found, exact = (gradients(net, y0, t, method=method, steps=steps, adjoint=a) for a in (adjoint, reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-9)
    if isinstance(adjoint, CheckpointAdjoint):
        assert_exact(found, exact)
    leaves, spec = tree_flatten(y0)
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def loss(h: float) -> float:
        moved = tree_unflatten([leaf.detach() + h * d for leaf, d in zip(leaves, directions, strict=True)], spec)
        ys = odeint(net, moved, t, method=method, steps=steps, adjoint=reference)
        return sum(((leaf.abs() ** 2).sum() + leaf.real[1:].sin().sum()).item() for leaf in tree_leaves(ys))

    slope = sum((g.conj() * d).real.sum().item() for g, d in zip(found[0], directions, strict=True))
    assert (loss(1e-6) - loss(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-6)


@st.composite
def cases(draw: st.DrawFn) -> Any:
    steps = draw(st.integers(1, 6))
    t = draw(st.sampled_from([[0.0, 0.5], [0.5, 0.0], [0.0, 0.3, 0.5], [0.4, 0.1, -0.2]]))
    return draw(trees()), draw(st.sampled_from(RUNGE_KUTTA)), steps, t, draw(exact_adjoints(steps))


@given(cases())
@settings(max_examples=40)
def test_random_combinations_have_exact_gradients(case: Any) -> None:
    check_gradients(*case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=1000)
def test_a_thousand_random_combinations_have_exact_gradients(case: Any) -> None:
    check_gradients(*case)


@pytest.mark.slow
def test_every_pair_of_method_adjoint_nesting_and_direction() -> None:
    leaf = lambda: torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    states = {"tensor": leaf, "dict": lambda: {"a": leaf(), "b": [leaf()]}, "tuple": lambda: (leaf(), (leaf(), leaf()))}
    adjoints = [*SCHEDULES.values(), ReversibleAdjoint()]
    for method, adjoint, nesting, t in itertools.product(RUNGE_KUTTA, adjoints, states, ([0.0, 0.5], [0.5, 0.0])):
        check_gradients(states[nesting](), method, 3, t, adjoint)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("adjoint", [*SCHEDULES, "reversible"])
def test_a_start_that_is_a_view_of_a_parameter(adjoint: str, trained: bool) -> None:
    """Such as one parameter for a whole batch; f saves it."""
    start, rate = nn.Parameter(torch.tensor([[0.5], [1.0]], dtype=torch.float64), trained), nn.Parameter(torch.ones(3, dtype=torch.float64))
    wanted = [rate, start] if trained else [rate]
    chosen, exact = SCHEDULES.get(adjoint, ReversibleAdjoint()), StoredReversible() if adjoint == "reversible" else "direct"
    for view in (lambda: start, lambda: start.expand(2, 3), lambda: start.view(2), lambda: start[:1], lambda: start.t()):

        def gradient(how: Any, view: Any = view) -> tuple[Tensor, ...]:
            y0 = view()
            end = odeint(lambda t, y: y.sin() * rate[: y.shape[-1]], y0, [0.0, 1.0], steps=3, method="heun2", adjoint=how)[-1]
            return torch.autograd.grad(end.sum(), wanted)

        for own, other in zip(gradient(chosen), gradient(exact), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
