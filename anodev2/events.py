"""Looking at a solve while it runs: callbacks, a progress bar, limits, and events."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .gradients.function import first_order_only
from .integrate.loop import first_not_finite
from .integrate.recording import recorded, untouched
from .problem import Problem, Status
from .pytree import build, paths_of
from .solvers import Leaves
from .stepping import MORE, Grid, Step, Time, numbers

EventFunction = Callable[[Tensor, Any], Tensor]
Effect = Callable[[Tensor, Any], Any]
Happened = tuple[int, Tensor, Leaves]  # which event, its time and the state there


@dataclass(frozen=True)
class Event:
    """What happens where g(t, y) passes through zero, for ``solve(..., event=)``.

    Args:
        fn: g(t, y), one real floating element.
        direction: 1: only where g rises through zero on the way of the solve, -1: only where it falls, 0: both.
        terminal: True: the solve ends there. False: it goes on, and the event is recorded in ``t_events`` and ``y_events``. n: it ends
            at the n-th. None: True without an effect, False with one.
        effect: effect(t, y) returns the state with which the solve goes on from there, such as that of a ball after it has hit the
            ground; it may be an ``nn.Module``, and is differentiated. The n-th event of ``terminal=n`` has none any more.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    fn: EventFunction
    direction: int = 0
    terminal: bool | int | None = None
    effect: Effect | None = None

    def __post_init__(self) -> None:
        for name, function in (("event", self.fn), ("effect", self.effect)):
            if not (callable(function) or (name == "effect" and function is None)):
                raise TypeError(f"{name} must be callable as {name}(t, y), got {type(function).__name__}")
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise ValueError(f"direction={self.direction!r} must be 1 (g rises), -1 (g falls) or 0 (both)")
        if not (self.terminal is None or isinstance(self.terminal, int)) or (self.terminal is not False and self.limit < 1):
            raise ValueError(f"terminal={self.terminal!r} must be True, False or the number of the event that ends the solve, from 1")

    @property
    def limit(self) -> float:
        """Which one ends the solve: infinite where none does."""
        terminal = self.effect is None if self.terminal is None else self.terminal
        return math.inf if terminal is False else int(terminal)

    def crosses(self, before: Any, after: Any) -> Any:
        """Whether it happens in a step with these values at its start and end, numbers or tensors of each sample."""
        return ((before < 0) & (after >= 0) & (self.direction >= 0)) | ((before > 0) & (after <= 0) & (self.direction <= 0))


def as_events(event: Any) -> tuple[Event, ...]:
    """One or several, each an ``Event`` or a function; a function's own ``terminal`` and ``direction``, as scipy reads them, count."""
    if event is None:
        return ()
    given = tuple(event) if isinstance(event, (list, tuple)) else (event,)
    own = lambda one: {n: getattr(one, n) for n in ("direction", "terminal") if isinstance(one, types.FunctionType) and hasattr(one, n)}  # noqa: E731
    return tuple(one if isinstance(one, Event) else Event(one, **own(one)) for one in given)


def check_events(events: Sequence[Event], problem: Problem, max_steps: int | None, recorded: bool = False) -> None:
    """ValueError where the rest of the problem is not what they need; ``recorded``: its steps may be those of another start."""
    if events and recorded:
        raise ValueError("Control(refresh=...) takes steps that know nothing of this call's events; leave refresh out")
    if "step" in problem.field.call.names and any(event.effect is not None for event in events):
        raise ValueError("func takes the number of the step, which begins anew after the effect of an event; let it take t instead")
    endless = any(torch.as_tensor(time, device="cpu").isinf().any() for time in problem.stepping.times[-1:])
    if endless and (max_steps is None or all(math.isinf(event.limit) for event in events)):
        raise ValueError("t must be finite, unless there is an event that ends the solve, and max_steps for where it does not come")


class Observer:
    """Is shown every accepted step, and ends the run where there is a reason to; ``crossings`` are the steps of events.

    A solve may be several runs, one after the other: ``begin`` each. States before the step of an event are kept (``problem.also``).
    """

    def __init__(
        self,
        problem: Problem,
        args: tuple[Any, ...],
        events: Sequence[Event],
        callback: Callable[[float, Any], Any] | None,
        progress: bool,
        max_steps: int | None,
    ) -> None:
        self.args, self.events, self.callback, self.progress, self.max_steps = args, events, callback, progress, max_steps
        self._bar: Any = None
        self.counts = [0] * len(events)  # that have happened in the runs before
        self.done = 0  # steps of these
        self.begin(problem, frozenset())

    def begin(self, problem: Problem, surfaces: frozenset[int]) -> None:
        """A run of ``problem``, at whose start the events ``surfaces`` have just happened."""
        self.problem, self.surfaces = problem, surfaces
        self.crossings: list[Crossing] = []
        self._before: list[float] = []  # the event functions at the last state

    def __enter__(self) -> Self:
        if self.progress:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ValueError("progress=True needs tqdm: pip install tqdm") from None
            times = numbers(self.problem.stepping.times)
            total, shown = abs(times[-1] - times[0]), "{l_bar}{bar}| t={n:.4g}/{total:.4g} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=total, bar_format=shown) if total < math.inf else tqdm(bar_format="t={n:.4g} [{elapsed}]")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def limit(self, step: Step, y: Leaves, _: Leaves) -> Status | None:
        """The end where all steps allowed have been done."""
        if self.max_steps is None or self.done + step.index < self.max_steps:
            return None
        (t,) = numbers((step.time(0.0),))
        return self._ended("max_steps", f"max_steps={self.max_steps} were done at t={t:.9g}, before the end; {MORE}", step, t, y)

    def __call__(self, step: Step, y: Leaves, y_next: Leaves) -> Status | None:
        ended = self.limit(step, y, y_next)
        if ended is not None:
            return ended
        start, end = numbers((step.time(0.0), step.time(1.0)))
        broken = first_not_finite(y_next)
        if broken is not None:
            path = paths_of(self.problem.field.structure)[broken[0]]
            place = f"step {self.done + step.index + 1}, from t={start:.9g} to {end:.9g}"
            message = f"{place}, led to a state that is not finite in {path}, element {broken[1]}"
            return self._ended("not finite", message, step, start, y, path, broken[1])
        if self.events and self._happens(step, y, end, y_next):
            return Status("event", f"an event happened between t={start:.9g} and {end:.9g}", start, self.done + step.index)
        if self.callback is not None:
            self.callback(end, self._tree(y_next))
        if self._bar is not None:
            self._bar.update(abs(end - start))
        return None

    def _tree(self, y: Leaves) -> Any:
        return build(self.problem.field.structure, [leaf.detach() for leaf in y])

    def _ended(self, reason: str, message: str, step: Step, t: float, y: Leaves, leaf: str | None = None, element: Any = None) -> Status:
        return Status(reason, message, t, self.done + step.index, leaf, element, y=self._tree(y))

    def _happens(self, step: Step, y: Leaves, end: float, y_next: Leaves) -> bool:
        """Whether an event ends the run in this step; those that happen in it are noted."""
        if step.index == 0:  # maybe once more, where a first run had to be given up
            self.begin(self.problem, self.surfaces)
            self.problem.also.clear()
            self._before = sides(self.problem, self.events, self.surfaces, step, y, self.args)
        with torch.no_grad():
            now = [event_value(self.problem, event.fn, end, y_next).item() for event in self.events]
        pairs = enumerate(zip(self.events, self._before, now, strict=True))
        found = [
            Crossing(step, step.time(0.0), which, event, before) for which, (event, before, after) in pairs if event.crosses(before, after)
        ]
        self._before = now
        if found:
            self.problem.also.add(step.index)
            self.crossings += found
        return any(self._ends(one.which, sum(one.which == other.which for other in self.crossings)) for one in found)

    def _ends(self, which: int, count: int) -> bool:
        """Whether the run ends with an event that happens for the ``count``-th time in it: the solve does, or its state changes."""
        return self.events[which].effect is not None or self.counts[which] + count >= self.events[which].limit

    @property
    def by(self) -> int:
        """Which of several methods took the step in which an event happened last."""
        return self.crossings[-1].step.by if self.crossings else 0

    def located(self, states: dict[int, Leaves], grid: Grid) -> list[Happened]:
        """The events of the run on ``grid``, in order, from the states before their steps; the last ends it, where one does."""
        found: list[Happened] = []
        times = grid.ends()  # those of steps may stand for these while a run is looked at
        for place in sorted({crossing.step.index for crossing in self.crossings}):
            y, here = states[place], [replace(one, start=times[place]) for one in self.crossings if one.step.index == place]
            zeros = [crossing.time(self.problem, y, self.args, place == len(grid)) for crossing in here]
            (start,) = numbers((times[place],))
            for s, crossing in sorted(zip(zeros, here, strict=True), key=lambda pair: abs(pair[0] - start)):
                last = self._ends(crossing.which, 1 + sum(crossing.which == other for other, _, _ in found))
                found.append((crossing.which, *crossing.state(self.problem, y, self.args, s, last)))
                if last:
                    break
        for which, _, _ in found:
            self.counts[which] += 1
        return found


def event_value(problem: Problem, event: EventFunction, t: float | Tensor, y: Leaves) -> Tensor:
    """g(t, y), checked to be one real number, or where each sample has a time of its own one of each."""
    value = event(problem.field.time(t, problem.field.time_dtype), build(problem.field.structure, y))
    shape = (len(t),) if isinstance(t, Tensor) and t.ndim else ()
    if not isinstance(value, Tensor) or value.numel() != math.prod(shape) or not value.is_floating_point():
        got = f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        beside = f"y is {tuple(y[0].shape)}, t {tuple(torch.as_tensor(t).shape)}"
        own = f" for each of the {shape[0]} samples ({beside})" if shape else ""
        raise ValueError(f"event must return one real floating element{own}, whose change of sign is the event, got {got}")
    return value.reshape(shape)


def sides(problem: Problem, events: Sequence[Event], surfaces: frozenset[int], step: Step, y: Leaves, args: tuple[Any, ...]) -> list[float]:
    """The event functions at the start, as ``started`` gives them, of a solve with one time."""
    lasts = [abs(time) for time in numbers((problem.stepping.times[0], step.time(1.0), problem.stepping.times[-1]))]
    longest = torch.as_tensor(max(time for time in lasts if time < math.inf))
    way = math.copysign(1.0, numbers((step.dt,))[0])
    with untouched(problem, y, args), torch.no_grad():
        slopes = problem.field(args, step, 0, 0.0, [leaf.detach() for leaf in y])
        on = torch.tensor([which in surfaces for which in range(len(events))])
        return started(problem, events, on, problem.field.time(step.time(0.0)), y, slopes, way, longest).tolist()


def started(
    problem: Problem, events: Sequence[Event], on: Tensor, time: Tensor, y: Leaves, slopes: Leaves, way: float, longest: Tensor
) -> Tensor:
    """The event functions at the start, of each sample where it has a time of its own; of one that is zero there to round-off, or is
    known to be ``on`` its surface, what it is about to be: its change on the way.

    Round-off is that of y, and of times as long as the solve: a start that was itself found as an event lies on its surface.
    """
    found, eps = [], torch.finfo(problem.field.time_dtype).eps
    total = lambda x: x.reshape(*time.shape[:1], -1).sum(-1).double()  # noqa: E731
    with torch.enable_grad():
        t, leaves = time.detach().clone().requires_grad_(), [leaf.detach().requires_grad_() for leaf in y]
        for event, surface in zip(events, on.to(time.device), strict=True):
            value = event_value(problem, event.fn, t, leaves)
            of_t, *of_y = torch.autograd.grad(value.sum(), [t, *leaves], allow_unused=True) if value.requires_grad else [None]
            value = value.detach()
            pairs = [(g, leaf.detach(), k) for g, leaf, k in zip(of_y, leaves, slopes, strict=False) if g is not None]
            pace = sum((total((g.conj() * k).real) for g, _, k in pairs), torch.zeros_like(value.double()) if of_t is None else total(of_t))
            doubt = eps * (8 * sum(total((g * leaf).abs()) for g, leaf, _ in pairs) + 100 * pace.abs() * longest)
            found.append(torch.where(surface | (value.abs() <= doubt), way * pace, value.double()))
    return torch.stack(found)


@dataclass
class Crossing:
    """A step in which an event happens: its start, which event, and its value there."""

    step: Step
    start: Time
    which: int
    event: Event
    before: float

    def time(self, problem: Problem, y: Leaves, args: tuple[Any, ...], as_it_was: bool) -> float:
        """When; y is the state before the step. The state at time s is one step of the method from the step's start to s.

        ``as_it_was``: random generators are as before the step.
        """
        low, high = numbers((self.start, self.step.time(1.0)))
        with torch.no_grad(), untouched(problem, y, args) as recording:

            def value(s: float) -> float:
                recording.retreat()  # every time with the same random numbers
                return event_value(problem, self.event.fn, s, self._end(problem, y, args, s)).item()

            after = value(high)
            if not as_it_was and recording.random.moved_since_mark():
                raise ValueError(f"event {self.which} cannot be recorded where func draws random numbers: give it terminal=True")
            one = lambda number: torch.tensor([number], dtype=torch.float64)  # noqa: E731
            ends = (one(low), one(high), one(self.before), one(after))
            return roots(lambda s: one(value(s.item())), *ends, torch.ones(1, dtype=torch.bool)).item()

    def state(self, problem: Problem, y: Leaves, args: tuple[Any, ...], s: float, leave: bool) -> tuple[Tensor, Leaves]:
        """Time and state of the event at s, with the history of y; ``leave``: random numbers and buffers as after the step to it.

        The event solves G(s, y) = 0 with G(s, y) = g(s, step(t, s, y)). Its gradient is that of one Newton step from the solution,
        s - G / (dG/ds).
        """
        recording = recorded(problem, y, args)
        recording.mark()
        try:
            if not torch.is_grad_enabled():
                return problem.field.time(s), self._end(problem, y, args, s)
            time = problem.field.time(s).clone().requires_grad_()
            value = event_value(problem, self.event.fn, time, self._end(problem, y, args, time))
            (slope,) = torch.autograd.grad(value, time) if value.requires_grad else (torch.zeros(()),)
            if slope == 0:
                raise ValueError(f"the event function touches zero at t={s:.9g} without crossing it, so its time has no gradient")
            recording.retreat()
            time = s - event_value(problem, self.event.fn, s, self._end(problem, y, args, s)).double() / slope
            time = time + (s - time).detach()  # the value found, the gradient of the Newton step
            recording.retreat()
            time, *end = first_order_only([time, *self._end(problem, y, args, time)], "an event")  # whose second derivative is another
            return time, end
        finally:
            if not leave:
                recording.retreat()

    def _end(self, problem: Problem, y: Leaves, args: tuple[Any, ...], s: float | Tensor) -> Leaves:
        return problem.advance(Step(self.step.index, (self.start, s), 0, 0, 1, limits=self.step.limits, by=self.step.by), y, args)


def roots(g: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, g_low: Tensor, g_high: Tensor, active: Tensor) -> Tensor:
    """Where g of each element changes sign between low and high, to round-off.

    Source: Chandrupatla, Adv. Eng. Softw. 28 (1997): inverse quadratic interpolation where it is safe, else bisection.
    """
    a, b, ga, gb = high, low, g_high, g_low
    c, gc, share = b, gb, torch.full_like(a, 0.5)
    for _ in range(200):
        best = torch.where(ga.abs() < gb.abs(), a, b)
        unit = torch.nextafter(best.abs(), torch.full_like(best, math.inf)) - best.abs()
        least = 2 * unit / (b - a).abs().clamp_min(unit)
        active = active & (ga != 0) & (gb != 0) & (least < 0.5)
        if not bool(active.any()):
            break
        x = torch.where(active, a + share.clamp(least, 1 - least) * (b - a), a)
        gx = torch.where(active, g(x), ga)
        same = gx.sign() == ga.sign()
        c, gc = torch.where(same, a, b), torch.where(same, ga, gb)
        b, gb = torch.where(active & ~same, a, b), torch.where(active & ~same, ga, gb)
        a, ga = x, gx
        xi, phi = (a - b) / (c - b), (ga - gb) / (gc - gb)
        safe = (1 - (1 - xi).sqrt() < phi) & (phi < xi.sqrt())
        quadratic = ga / (gb - ga) * gc / (gb - gc) + (c - a) / (b - a) * ga / (gc - ga) * gb / (gc - gb)
        share = torch.where(safe & quadratic.isfinite(), quadratic, 0.5)
    return torch.where(ga.abs() < gb.abs(), a, b)
