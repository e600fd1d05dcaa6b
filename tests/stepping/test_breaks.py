"""Times at which f jumps: each side reads its own limit, whatever the method, the adjoint, the way f is written and its precision."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from anodev2 import METHODS, BacksolveAdjoint, CheckpointAdjoint, Compile, Control, Event, ReversibleAdjoint, odeint, solve
from tests.problems import vector

BREAKS, END = (0.4, 1.1), 1.5  # float32 has none of the first two
MATRIX = torch.tensor([[-1.0, 2.0], [-2.0, -0.5]], dtype=torch.float64)
START = vector(1.0, -0.3)


def drives(t: Any, of: Any) -> list[tuple[Any, Any]]:
    """What drives the system before, between and after the breaks."""
    return [(of.sin(3 * t), t**2), (2 + t, -of.cos(t)), (-1 - t**2, of.exp(-t))]


def by_where(before: Callable[[int], Tensor], pieces: list[Tensor]) -> Tensor:
    return torch.where(before(0), pieces[0], torch.where(before(1), pieces[1], pieces[2]))


def by_if(before: Callable[[int], Tensor], pieces: list[Tensor]) -> Tensor:
    return pieces[0] if before(0) else pieces[1] if before(1) else pieces[2]


class Driven:
    """y' = A y + drive(t) - |y|^2 y / 10, jumping at the breaks; or the same run backwards from END. Its linear part is known."""

    def __init__(
        self,
        breaks: Sequence[Any] = BREAKS,
        rising: bool = True,
        choose: Callable[..., Tensor] = by_where,
        before: Callable[[Any, Any], Any] = operator.lt,
    ) -> None:
        self.sign, self.breaks = (1 if rising else -1), breaks
        self.choose, self.before = choose, before

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix(y.dtype).mT + self.rest(t, y)

    def rest(self, t: Tensor, y: Tensor) -> Tensor:
        since = t if self.sign > 0 else END - t
        before = lambda which: self.before(self.sign * t, self.sign * self.breaks[which])
        pieces = [torch.stack(torch.broadcast_tensors(*drive)).to(y.dtype) for drive in drives(since, torch)]
        return self.sign * (self.choose(before, pieces) - 0.1 * y * (y * y).sum())

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.sign * MATRIX.to(dtype)

    def split(self) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        return self.matrix(), self.rest


def smooth(which: int) -> Callable[[float, Any], Any]:
    """One of the three pieces as scipy calls it."""
    return lambda t, y: MATRIX.numpy() @ y + np.array(drives(t, np)[which]) - 0.1 * y * (y * y).sum()


@lru_cache
def reference(first: float = BREAKS[0], second: float = BREAKS[1], until: float = END) -> Tensor:
    """By scipy, piece by piece."""
    y = START.numpy()
    for which, (start, end) in enumerate(pairwise((0.0, first, second, END))):
        if start < until:
            y = solve_ivp(smooth(which), (start, min(end, until)), y, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return torch.tensor(y)


def mostly_slow(*quick: str, of: Sequence[str] = ()) -> list[Any]:
    """All methods, of which some are tried quickly."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in of or ONE_FIELD]


STEPS = {1: 16, 2: 8, 3: 8, 4: 6, 5: 4, 8: 2}
ONE_FIELD = [name for name in METHODS if name not in ("map", "leapfrog", "kvaerno5", "auto")]
CONTROLLED = [name for name, known in METHODS.items() if known.embedded_order is not None]
WAYS = [(choose, before) for choose in (by_where, by_if) for before in (operator.lt, operator.le)]


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("method", mostly_slow("midpoint", "rk4", "dopri5", "imex2", "etdrk4", "rodas4"))
def test_a_grid_keeps_the_order(method: str, rising: bool) -> None:
    order = METHODS[method].order
    t, breaks = ([0.0, END], BREAKS) if rising else ([END, 0.0], tuple(END - b for b in BREAKS))
    errors = []
    for steps in (STEPS[order], 2 * STEPS[order]):
        y = odeint(Driven(breaks, rising), START, t, method=method, steps=steps, breaks=breaks)
        errors.append(float((y[-1] - reference()).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.25


def test_leapfrog_keeps_its_order() -> None:
    """q'' = -w^2 q, whose w jumps: a rotation on each side."""

    def exact(w: float, t: float, q: float, v: float) -> tuple[float, float]:
        return q * math.cos(w * t) + v / w * math.sin(w * t), v * math.cos(w * t) - w * q * math.sin(w * t)

    field = lambda t, y: (y[1], -torch.where(t < 0.4, 1.0, 9.0) * y[0])
    q, v = exact(3.0, 0.6, *exact(1.0, 0.4, 1.0, 0.5))
    errors = []
    for steps in (8, 16):
        found = odeint(field, (vector(1.0), vector(0.5)), [0.0, 1.0], method="leapfrog", steps=steps, breaks=[0.4])
        errors.append(abs(found[0][-1].item() - q) + abs(found[1][-1].item() - v))
    assert math.log2(errors[0] / errors[1]) > 1.8


@pytest.mark.parametrize("hit", ["between", "exact"])
@pytest.mark.parametrize("method", mostly_slow("dopri5", "bosh3", "rodas4", "auto", of=CONTROLLED))
def test_error_control_keeps_its_tolerance(method: str, hit: Any) -> None:
    tolerance = 1e-6 if METHODS[method].order > 2 else 1e-4
    t = [0.0, BREAKS[0], 0.77, END]
    found = solve(Driven(choose=by_if), START, t, method=method, rtol=tolerance, atol=tolerance, hit=hit, breaks=BREAKS)
    for y, time in zip(found.ys, t, strict=True):
        assert (y - reference(until=time)).abs().max() < 10 * tolerance
    assert set(BREAKS) < set(found.grid)
    again = (
        odeint(Driven(), START, t, method=method, grid=found.grid, breaks=BREAKS)
        if method not in ("kvaerno5", "auto") and hit == "exact"
        else None
    )
    assert again is None or (again - found.ys).abs().max() < 1e-8


def test_a_declared_jump_costs_little() -> None:
    plain, declared = (solve(Driven(), START, [0.0, END], method="dopri5", rtol=1e-8, atol=1e-8, breaks=given) for given in (None, BREAKS))
    assert declared.stats.evaluations_forward < 0.6 * plain.stats.evaluations_forward
    assert declared.stats.rejected <= 3 < plain.stats.rejected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("choose", "before"), WAYS)
@pytest.mark.parametrize("breaks", [BREAKS, (0.3, 0.7), (0.5, 1.0)])
def test_however_f_asks_on_which_side_it_is(choose: Any, before: Any, breaks: tuple[float, float], dtype: torch.dtype) -> None:
    """0.7 is above its number in float32, 0.3 and 0.4 below, 0.5 and 1 on it."""
    y = odeint(Driven(breaks, choose=choose, before=before), START.to(dtype), [0.0, END], steps=10, breaks=breaks)[-1]
    assert (y - reference(*breaks)).abs().max() < 3e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rising", [True, False])
def test_a_staircase(rising: bool, dtype: torch.dtype) -> None:
    """Each stair is seen whole, though i / n is rounded, and n t again."""
    for n in (3, 6, 10, 11, 12, 25, 29, 49, 60):
        stairs = lambda t, y, n=n: torch.floor(n * t).to(y.dtype) + 0 * y
        t, breaks = ([0.0, 1.0] if rising else [1.0, 0.0]), [i / n for i in range(n + 1)]
        y = odeint(stairs, torch.zeros(1, dtype=dtype), t, method="rk4", steps=1, breaks=breaks)[-1]
        assert abs(y.item() - (n - 1) / 2 * (1 if rising else -1)) < n * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_break_at_zero(dtype: torch.dtype) -> None:
    """It has no neighbours of its own size, and a GPU none at all."""
    rate = lambda t, y: torch.where(t < 0, 1.0, 3.0).to(y.dtype) + 0 * y
    asked: list[float] = []
    y = odeint(lambda t, y: (asked.append(float(t)), rate(t, y))[1], torch.zeros(1, dtype=dtype), [-0.5, 0.25], steps=1, breaks=[0.0])
    torch.testing.assert_close(y[-1], torch.full((1,), 1.25, dtype=dtype))
    assert min(map(abs, asked)) > 1e-18


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), [("aot_eager", torch.float64), ("aot_eager", torch.float32)])
def test_compiled(backend: str, dtype: torch.dtype) -> None:
    first = torch.tensor(BREAKS[0], requires_grad=True, dtype=torch.float64)
    func, breaks = Driven((first.detach(), BREAKS[1])), [first, BREAKS[1]]

    def solved(y0: Tensor, **options: Any) -> Tensor:
        return odeint(func, y0, [0.0, END], steps=2, breaks=breaks, **options)[-1]

    plain, runs = (solved(START.to(dtype), **options) for options in ({}, {"compile": Compile(steps=4, backend=backend)}))
    torch.testing.assert_close(runs, plain, rtol=1e-6, atol=1e-6)
    (expected,), (got,) = (torch.autograd.grad(y.sum(), first) for y in (plain, runs))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    breaks = list(BREAKS)
    whole = torch.compile(solved, fullgraph=True, backend=backend)(START.to(dtype))
    torch.testing.assert_close(whole, plain.detach(), rtol=1e-6, atol=1e-6)


def total(method: str, at: Any, how: str, adjoint: Any = "direct", y0: Tensor = START, **options: Any) -> Tensor:
    """A sum over the states at the first break and at the end; the break and the output time are one tensor, or two that are equal."""
    output = at if how == "one" else at * 1 if isinstance(at, Tensor) else at
    func = Driven((at.item() if isinstance(at, Tensor) else at, BREAKS[1]))
    times: list[Any] = [0.0, output, END]
    y = odeint(func, y0, times, method=method, breaks=[at, BREAKS[1]], adjoint=adjoint, **options)
    return (y[1] * vector(0.7, 1.3)).sum() + (y[2] * vector(1.0, -2.0)).sum()


@pytest.mark.parametrize("how", ["one", "two"])
@pytest.mark.parametrize("method", mostly_slow("rk4", "dopri5", "imex2"))
def test_the_gradient_of_a_break_that_is_an_output_time(method: str, how: str) -> None:
    """Against differences of the discrete program."""
    steps, h = STEPS[METHODS[method].order], 1e-5
    at = torch.tensor(BREAKS[0], requires_grad=True, dtype=torch.float64)
    total(method, at, how, steps=steps).backward()
    wanted = (total(method, BREAKS[0] + h, how, steps=steps) - total(method, BREAKS[0] - h, how, steps=steps)) / (2 * h)
    assert at.grad is not None
    torch.testing.assert_close(at.grad, wanted, rtol=1e-7, atol=1e-7)


def test_gradients_of_an_output_time_and_of_the_break_beside_it() -> None:
    """The output's own is f's limit from before, which the end does not feel; and the end feels the jump."""
    choices: list[dict[str, Any]] = [{"method": "rk4", "steps": 20}, {"method": "dopri5", "rtol": 1e-9}, {"method": "etdrk4", "steps": 20}]
    for options in choices:
        output, first, second = (torch.tensor(x, requires_grad=True, dtype=torch.float64) for x in (BREAKS[0], *BREAKS))
        times: list[Any] = [0.0, output, END]
        y = odeint(Driven(), START, times, breaks=[second, first], **options)
        (of_output,) = torch.autograd.grad(y[1, 0], output, retain_graph=True)
        assert abs(of_output - smooth(0)(BREAKS[0], reference(until=BREAKS[0]).numpy())[0]) < 1e-5
        ends = torch.autograd.grad(y[2, 0], [output, first, second])
        h = 1e-5
        wanted = [
            (reference(BREAKS[0] + k * h, BREAKS[1] + (1 - k) * h) - reference(BREAKS[0] - k * h, BREAKS[1] - (1 - k) * h))[0] / (2 * h)
            for k in (1, 0)
        ]
        torch.testing.assert_close(torch.stack(ends), torch.stack([torch.zeros_like(wanted[0]), *wanted]), rtol=1e-4, atol=1e-4)


EXACT = [CheckpointAdjoint(), CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MiB"), CheckpointAdjoint(offload="cpu")]


@pytest.mark.parametrize(
    "method", mostly_slow("rk4", "dopri5", of=["rk4", "dopri5", "dopri8", "etdrk4", "imex2", "implicit_midpoint", "rodas4", "esdirk4"])
)
@pytest.mark.parametrize("how", ["one", "two"])
def test_every_adjoint_has_the_gradient_of_direct(method: str, how: str) -> None:
    def gradients(adjoint: Any, **options: Any) -> tuple[Tensor, Tensor]:
        at, y0 = torch.tensor(BREAKS[0], requires_grad=True, dtype=torch.float64), START.clone().requires_grad_()
        value = total(method, at, how, adjoint, y0, **options)
        return value, torch.stack([part.sum() for part in torch.autograd.grad(value, [at, y0])])

    ways = [{"steps": 3}, *([{"rtol": 1e-5, "atol": 1e-5}] if METHODS[method].embedded_order else [])]
    for options in ways:
        expected = gradients("direct", **options)
        for adjoint in EXACT if "steps" in options else (EXACT[0], EXACT[1], EXACT[3]):
            value, found = gradients(adjoint, **options)
            assert torch.equal(value, expected[0])
            torch.testing.assert_close(found, expected[1], rtol=1e-13, atol=1e-13)


def test_steps_undone_and_solved_backwards() -> None:
    at, h = torch.tensor(BREAKS[0], requires_grad=True, dtype=torch.float64), 1e-5
    options: dict[str, Any] = {"how": "one", "adjoint": ReversibleAdjoint(), "steps": 8}
    total("rk4", at, **options).backward()
    wanted = (total("rk4", BREAKS[0] + h, **options) - total("rk4", BREAKS[0] - h, **options)) / (2 * h)
    torch.testing.assert_close(at.grad, wanted, rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match="same tensor"):
        total("rk4", at, "two", ReversibleAdjoint(), steps=8)
    with pytest.raises(ValueError, match="no gradient with respect to times and breaks"):
        total("dopri5", at, "one", BacksolveAdjoint())
    choices: list[dict[str, Any]] = [{"method": "rk4", "steps": 50}, {"method": "dopri5", "rtol": 1e-9}]
    for choice in choices:
        found = []
        for adjoint in ("direct", "backsolve"):
            y0 = START.clone().requires_grad_()
            odeint(Driven(choose=by_if), y0, [0.0, END], breaks=BREAKS, adjoint=adjoint, **choice)[-1].sum().backward()
            found.append(y0.grad)
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", mostly_slow("dopri5", "rk4", of=["dopri5", "rk4", "esdirk4"]))
def test_dense_output_has_both_sides(method: str) -> None:
    options: dict[str, Any] = {"steps": 30} if method == "rk4" else {"rtol": 1e-7, "atol": 1e-7}
    found = solve(Driven(), START, [0.0, END], method=method, breaks=BREAKS, dense=True, **options)
    for time in torch.linspace(0, END, 38).tolist():
        assert (found(time) - reference(until=time)).abs().max() < 1e-5
    for which, time in enumerate(BREAKS):
        before, after = (smooth(side)(time, reference(until=time).numpy())[0] for side in (which, which + 1))
        assert abs(found.rate(time)[0] - before) < 1e-3
        assert abs(found.rate(time + 1e-9)[0] - after) < 1e-3


@pytest.mark.parametrize("method", ["rk4", "euler", "dopri5", "rodas5p", "auto"])
@pytest.mark.parametrize("adjoint", ["checkpoint", "direct"])
def test_dense_output_changes_nothing_of_a_moving_break_at_an_output_time(method: str, adjoint: str) -> None:
    """y' = -y, and 2 more from b on: dy(1)/db = -2 exp(b - 1), and none of the output before."""
    options: dict[str, Any] = {"steps": 60} if method in ("rk4", "euler") else {"rtol": 1e-9, "atol": 1e-9}
    found = []
    for dense in (False, True):
        at = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        rate = lambda t, y: torch.where(t < 0.5, 1.0, 3.0) - y
        run = solve(rate, vector(0.0), [0.0, 0.5, 1.0], breaks=[at], method=method, adjoint=adjoint, dense=dense, **options)
        found.append((run.ys.detach(), *torch.autograd.grad(run.ys[1], at, retain_graph=True), *torch.autograd.grad(run.ys[2], at)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    tolerance = 2e-2 if method == "euler" else 1e-6
    assert abs(found[1][1]) < tolerance and abs(found[1][2] + 2 * math.exp(-0.5)) < tolerance


@pytest.mark.parametrize("options", [{"method": "rk4", "steps": 200}, {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10}])
def test_a_ball_whose_gravity_jumps(options: dict[str, Any]) -> None:
    """Dropped from 1 under g = 2, it lands at 1 with speed 2; gravity is 4 from t = 1.5 on, between two bounces."""
    break_at = torch.tensor(1.5, requires_grad=True, dtype=torch.float64)
    fall = lambda t, y: torch.stack([y[1], -torch.where(t < 1.5, 2.0, 4.0).double() + 0 * y[1]])
    bounce = Event(lambda t, y: y[0], direction=-1, effect=lambda t, y: torch.stack([y[0], -0.5 * y[1]]))
    found = solve(fall, vector(1.0, 0.0), [0.0, 2.2], event=bounce, breaks=[break_at], **options)
    # up with speed 1: at 1.5 it is at 1/4 and still; from there 0.25 = 2 s^2
    torch.testing.assert_close(found.t_events[0], vector(1.0, 1.5 + math.sqrt(0.125)), rtol=1e-8, atol=1e-8)
    h = 1e-6
    landed = lambda b: b + ((2 - 2 * b + 1) + math.sqrt((3 - 2 * b) ** 2 + 8 * ((b - 1) - (b - 1) ** 2))) / 4
    (got,) = torch.autograd.grad(found.t_events[0][1], break_at)
    assert abs(got - (landed(1.5 + h) - landed(1.5 - h)) / (2 * h)) < 1e-6


ON_THE_WAY: list[dict[str, Any]] = [
    {"method": "rk4", "steps": 5},
    {"method": "dopri5"},
    {"method": "dopri5", "hit": "exact"},
    {"method": "rk4", "grid": [0.0, 0.2, 0.5, 1.0]},
]


@pytest.mark.parametrize("options", ON_THE_WAY, ids=str)
def test_an_effect_at_a_break_or_an_output_time_with_a_gradient(options: dict[str, Any]) -> None:
    """There is a derivative only where both move together, y(1) = b + 1 + 3 (1 - b): that of the event's time. Else it is refused."""
    both = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    rate = lambda t, y: torch.where(t < 0.5, 1.0, 3.0) + 0 * y
    event = Event(lambda t, y: t - both, effect=lambda t, y: y + 1)
    run = lambda t, breaks: solve(rate, torch.zeros(1, dtype=torch.float64), t, event=event, breaks=breaks, **options).ys[-1].sum()
    (gradient,) = torch.autograd.grad(run([0.0, 1.0], [both.detach()]), both)
    torch.testing.assert_close(gradient, torch.tensor(-2.0, dtype=torch.float64), rtol=1e-12, atol=0)
    for t, breaks in (([0.0, 1.0], [both]), ([0.0, both, 1.0], None), ([0.0, both, 1.0], [0.5])):
        with pytest.raises(ValueError, match="detach that time"):
            run(t, breaks)


RATES = vector(0.5, 2.0, 20.0)[:, None]


class Pushed(torch.nn.Module):
    """y' = r (g(t) - y), g = 1, 3, -1 before, between and behind the breaks, r another one for each sample; whichever way it runs."""

    def __init__(self, rising: bool = True) -> None:
        super().__init__()
        self.rates, self.sign = torch.nn.Parameter(RATES.clone()), 1 if rising else -1

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        since = t if self.sign > 0 else -t
        goal = torch.where(since < BREAKS[0], 1.0, torch.where(since <= BREAKS[1], 3.0, -1.0))
        return (self.sign * self.rates * (goal - y)).to(y.dtype)

    def exact(self, until: Tensor) -> Tensor:
        """From 0 at time 0 to a time of each sample."""
        y = torch.zeros_like(RATES)
        for goal, (start, end) in zip((1.0, 3.0, -1.0), pairwise((0.0, *BREAKS, END)), strict=True):
            y = goal + (y - goal) * torch.exp(-RATES * (until.clamp(start, end) - start))
        return y


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("method", mostly_slow("dopri5", of=[name for name in CONTROLLED if name != "auto"]))
def test_each_sample_stops_at_the_breaks(method: str, rising: bool) -> None:
    """With steps of its own, for common times and for times of its own, one of which is at a break."""
    sign, tolerance = (1 if rising else -1), 1e-4 if METHODS[method].order == 2 else 1e-6
    field, y0 = Pushed(rising), torch.zeros_like(RATES)
    options: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance, "per_sample": True}
    own = torch.tensor([[0.0, 0.2, 0.4, END], [0.0, 0.5, 1.3, math.nan], [0.0, BREAKS[1], 1.2, 1.4]], dtype=torch.float64)
    common = torch.tensor([[0.0, 0.4, 0.77, END]], dtype=torch.float64).expand(3, -1)
    for times in (common, own):
        t = sign * (times[0] if times is common else times)
        found = solve(field, y0, t, breaks=[sign * b for b in BREAKS], **options)
        expected = torch.stack([field.exact(column[:, None]) for column in times.unbind(1)])
        torch.testing.assert_close(found.ys.detach(), expected, rtol=10 * tolerance, atol=10 * tolerance, equal_nan=True)
        nodes = torch.stack(found.grid)[..., 0]
        for which in BREAKS:
            assert ((nodes == sign * which).any(0) | (nodes.abs().amax(0) < which)).all()
        undeclared = solve(field, y0, t, **options)
        assert len(undeclared.grid) > len(found.grid)


def test_each_sample_stops_at_the_breaks_with_exact_gradients() -> None:
    def gradients(adjoint: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        field, y0 = Pushed(), torch.zeros(3, 1, dtype=dtype, requires_grad=True)
        y = odeint(field, y0, [0.0, END], method="dopri5", rtol=1e-6, atol=1e-6, per_sample=True, breaks=BREAKS, adjoint=adjoint)[-1]
        return [y, *torch.autograd.grad(y.sum(), [y0, field.rates])]

    expected = gradients("direct")
    for adjoint in EXACT:
        y, *rest = gradients(adjoint)
        assert torch.equal(y, expected[0])
        torch.testing.assert_close(rest, expected[1:], rtol=1e-13, atol=1e-13)
    until, h = torch.full_like(RATES, END), 1e-6
    torch.testing.assert_close(expected[1], torch.exp(-RATES * END), rtol=1e-5, atol=1e-5)
    near = [Pushed().exact(until)]
    for sign in (1, -1):
        RATES.add_(sign * h)
        near.append(Pushed().exact(until))
        RATES.sub_(sign * h)
    torch.testing.assert_close(expected[2], (near[1] - near[2]) / (2 * h), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients("checkpoint", torch.float32)[0].double(), near[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("breaks", "options", "words"),
    [
        ([0.4, math.nan], {"steps": 2}, "breaks must be finite"),
        (0.4, {"steps": 2}, "breaks must be a sequence"),
        ([0.4, 0.4 + 1e-16], {"steps": 2}, "one time for func"),
        ([torch.tensor(0.4, requires_grad=True), torch.tensor(0.4)], {"steps": 2}, "one time for func"),
        ([0.4], {"grid": [0.0, 0.5, 1.5]}, "grid must hold every time of breaks"),
        ([0.4], {"method": "map"}, "no times between its passes"),
        ([0.4], {"method": "kvaerno5", "steps": 3}, "beyond the end of a step"),
        ([torch.tensor(0.4, requires_grad=True)], {"method": "dopri5", "per_sample": True}, "no gradient with respect to times and breaks"),
        (torch.tensor([[0.4], [0.5]]), {"method": "dopri5", "per_sample": True}, "breaks must be one-dimensional"),
        ([0.4], {"method": "dopri5", "control": Control(refresh=3)}, "is not for breaks"),
    ],
)
def test_mistakes(breaks: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        odeint(Driven(), START, [0.0, 2.0 if "method" in options else END], breaks=breaks, **options)


def test_breaks_outside_do_nothing_and_those_at_the_ends_are_read_from_within() -> None:
    func = lambda t, y: torch.where((t > 0) & (t < 1), 1.0, 100.0).to(y.dtype) + 0 * y
    y0 = torch.zeros(1, dtype=torch.float64)
    choices: list[dict[str, Any]] = [{"method": "rk4", "steps": 1}, {"method": "dopri5"}]
    for t in ([0.0, 1.0], [1.0, 0.0]):
        for options in choices:
            y = odeint(func, y0, t, breaks=torch.tensor([1.0, -3.0, 7.0, 0.0, 1.0]), **options)
            torch.testing.assert_close(y[-1], vector(t[1] - t[0]))
