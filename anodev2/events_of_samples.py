"""Events of samples that have steps of their own: each ends by itself, or goes on from there, while the others do as they do.

A piece takes every sample to its next event, or to the end. What was at its end stays there, in steps of length zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .events import Event, event_value, roots, started
from .gradients.adjoint import Adjoint
from .gradients.function import first_order_only
from .integrate.per_sample import columns, find_grid
from .integrate.recording import recorded, untouched
from .pieces import AT_ONCE, Piece, changed
from .problem import Problem, Status
from .pytree import build
from .solvers import Leaves
from .stepping import Adaptive, Step, Time, limited


@dataclass
class Surfaces:
    """Watches a search: before which step each sample stops, as there an event happens in it. Rows of tensors are events."""

    problem: Problem
    events: Sequence[Event]
    taken: Tensor
    on: Tensor  # who is on which surface
    longest: Tensor
    way: float
    before: Tensor = field(init=False)  # the event functions at the last state
    crossing: Tensor = field(init=False)
    high: Tensor = field(init=False)  # the end of the last step

    def begin(self, time: Tensor, y: Tensor, slope: Tensor) -> None:
        self.before = started(self.problem, self.events, self.on, time, [y], [slope], self.way, self.longest)
        self.crossing, self.high = torch.zeros_like(self.on), time

    def __call__(self, stop: Tensor, y: Tensor, accepted: Tensor) -> Tensor:
        now = torch.stack([event_value(self.problem, event.fn, stop, [y]).double() for event in self.events])
        able = accepted.reshape(-1)
        pairs = zip(self.events, self.before, now, strict=True)
        crossing = torch.stack([event.crosses(before, after) for event, before, after in pairs]) & able
        met = crossing.any(0)
        self.crossing = self.crossing | crossing
        self.high = torch.where(met.view_as(stop), stop, self.high)
        self.before = torch.where(able & ~met, now, self.before)
        return met.view_as(stop)


@dataclass
class Ended:
    """What has become of the samples: as ``Solution`` tells it."""

    pieces: list[Piece]
    points: list[tuple[Tensor, Leaves]]
    status: Status
    statuses: tuple[Status, ...]
    grid: tuple[Time, ...]
    event_time: Tensor | None
    happenings: tuple[tuple[Tensor, ...], tuple[Any, ...]]  # the times and the states of each event


class _Samples:
    """The batch on its way from piece to piece."""

    def __init__(
        self, problem: Problem, args: tuple[Any, ...], adjoint: Adjoint, events: Sequence[Event], max_steps: int | None, y: Tensor
    ) -> None:
        self.problem, self.args, self.adjoint, self.events, self.max_steps = problem, args, adjoint, events, max_steps
        assert isinstance(problem.stepping, Adaptive)
        self.adaptive, self.y = problem.stepping, y
        self.asked = columns(problem.stepping, y)
        together = torch.stack(self.asked)
        self.way = -1.0 if bool((together < together[0]).any()) else 1.0
        self.time, self.longest = self.asked[0], together.nan_to_num(0.0, 0.0, 0.0).abs().amax(0).reshape(-1)
        self.taken = torch.zeros_like(self.time)
        self.over = torch.zeros_like(self.time).bool()  # ended by an event, or failed
        self.on = torch.zeros(len(events), len(y), dtype=torch.bool, device=y.device)
        self.happened: list[tuple[Tensor, Tensor, Tensor]] = []  # of each piece: which events, when, and the state there
        self.statuses = [Status()] * len(y)
        missing = y.detach().new_full(y.shape, complex(math.nan, math.nan) if y.is_complex() else math.nan)
        self.reached = [(torch.full_like(self.time, math.nan), missing) for _ in self.asked]
        self.pieces: list[Piece] = []
        self.nodes: list[Tensor] = []  # the times of all steps, and the states where they are asked for
        self.steps: list[tuple[Tensor, Tensor]] = []

    def piece(self) -> bool:
        """Take every sample to its next event; whether one goes on from there."""
        surfaces = Surfaces(self.problem, self.events, self.taken, self.on, self.longest, self.way)
        here, over = self.time.detach(), self.over
        ahead = [torch.where(over | (self.way * (end - here) <= 0), here, end) for end in self.asked[1:]]
        adaptive = replace(self.adaptive, times=(here, *ahead))
        grid = find_grid(replace(self.problem, stepping=adaptive), [self.y], self.args, self.max_steps, surfaces)
        self.taken = surfaces.taken
        places = grid.outputs()
        nodes = [node for node in grid.times if isinstance(node, Tensor)]
        moved = tuple(torch.where(node == here, self.time, node) if self.time.requires_grad else node for node in nodes)
        grid = replace(grid, times=moved, wanted=tuple(sorted({0, *places, len(grid)})), asked=())
        self.taking = problem = replace(self.problem, stepping=grid)
        run = self.adjoint.solve(problem, [self.y], self.args)
        states = {place: state[0] for place, state in zip(problem.outputs(grid), run.states, strict=True)}
        times: list[Any] = grid.ends()
        self.steps += [(times[place], states[place]) for place in sorted(states) if place or not self.pieces]
        self.nodes += times[1:] if self.pieces else times
        self.pieces.append(Piece(problem, run, {}, [], None, False, {}))
        for column, place in enumerate(places):
            arrived = ~over & (self.way * (self.asked[column] - here) >= 0) & (times[place] == self.asked[column])
            was, old = self.reached[column]
            self.reached[column] = torch.where(arrived, times[place], was), torch.where(arrived, states[place], old)
        for sample, status in enumerate(grid.statuses):
            if not status.ok:
                self.statuses[sample], self.over.reshape(-1)[sample] = status, True
        self.time, self.y = times[-1], states[len(grid)]
        return bool(surfaces.crossing.any()) and self._event(surfaces)

    def _event(self, surfaces: Surfaces) -> bool:
        """Go on to the events, and have their effects; whether a sample is not over with that."""
        met = surfaces.crossing.any(0).view_as(self.time)
        times, happened = self._when(surfaces)
        time, y = self._at(torch.where(met, times, self.time.detach()), happened, met)
        time = torch.where(met, time, self.time)  # which has the gradient of an event before
        self.happened.append((happened, time, y))
        self.nodes.append(time)
        self.steps.append((time, y))
        counts = torch.stack([which for which, *_ in self.happened]).sum(0)
        limits = torch.tensor([event.limit for event in self.events], device=y.device)[:, None]
        ending = happened & (counts >= limits)
        for which, sample in ending.nonzero().tolist():
            if self.statuses[sample].ok and self.statuses[sample].reason != "event":
                number = time.reshape(-1)[sample].item()
                self.statuses[sample] = Status("event", f"event {which} ended the sample at t={number:.9g}", number)
        self._accumulated(happened & ~ending, time)
        self.over = self.over | ending.any(0).view_as(time)
        goes_on = met & ~self.over
        self.time, self.y, self.on = time, y, happened
        left = goes_on.reshape(-1)
        for which, event in enumerate(self.events):
            mine = happened[which] & left
            if event.effect is not None and bool(mine.any()):
                self._effect(which, event, mine)
                left = left & ~mine  # of several at one time the first
        return bool(goes_on.any())

    def _effect(self, which: int, event: Event, mine: Tensor) -> None:
        """That of an event on the samples to which it has just happened."""
        (after,) = changed(self.problem, event, self.time, [self.y])
        with torch.no_grad():
            before, now = (event_value(self.problem, event.fn, self.time, [y]).abs() for y in (self.y, after))
        on = torch.zeros_like(self.on)
        on[which] = now <= 2 * before
        self.on = torch.where(mine, on, self.on)
        self.y = torch.where(mine.view_as(self.time), after, self.y)

    def _accumulated(self, happened: Tensor, time: Tensor) -> None:
        """Samples to which an event with an effect has happened a moment before, too."""
        for which, sample in happened.nonzero().tolist():
            before = [one.reshape(-1)[sample].item() for mine, one, _ in self.happened[:-1] if mine[which, sample]]
            now = time.reshape(-1)[sample].item()
            if self.events[which].effect is not None and before and abs(now - before[-1]) <= AT_ONCE * max(abs(now), abs(before[-1])):
                words = f"sample {sample} of the batch: event {which} happened again at once after its effect at t={now:.9g}: its effects "
                status = Status("accumulating events", words + "accumulate; end with terminal=n", now, element=(sample,))
                self.statuses[sample], self.over.reshape(-1)[sample] = status, True

    def _step(self, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The state one step from the last, and the event functions there."""
        (y,) = self.taking.advance(limited(Step(0, (self.time, time), 0, 0, 1), self.adaptive.jumps), [self.y], self.args)
        return y, [event_value(self.problem, event.fn, time, [y]) for event in self.events]

    def _when(self, surfaces: Surfaces) -> tuple[Tensor, Tensor]:
        """When the first event of each sample happens, and which do then."""
        low, found = self.time.detach(), []
        with torch.no_grad(), untouched(self.problem, [self.y], self.args) as recording:
            for which, crossing in enumerate(surfaces.crossing):

                def value(time: Tensor, which: int = which) -> Tensor:
                    recording.retreat()
                    return self._step(time)[1][which].view_as(low).double()

                mine = crossing.view_as(low)
                if not bool(mine.any()):
                    found.append(torch.full_like(low, self.way * math.inf))
                    continue
                high = torch.where(mine, surfaces.high, low)
                after = value(high)
                if recording.random.moved_since_mark():
                    raise ValueError(
                        "per_sample=True locates events by steps that func must take as often as asked, and func draws random numbers: "
                        "solve sample by sample"
                    )
                root = roots(value, low, high, surfaces.before[which].view_as(low), after, mine)
                found.append(torch.where(mine, root, self.way * math.inf))
        together = torch.stack(found)
        first = together.amin(0) if self.way > 0 else together.amax(0)
        return first, (together == first).flatten(1) & surfaces.crossing.any(0)

    def _at(self, s: Tensor, happened: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
        """Times and states of the events at s, with the history of the state, as for a solve with one time (``events.Crossing``)."""
        recording = recorded(self.problem, [self.y], self.args)
        recording.mark()
        if not torch.is_grad_enabled():
            return s, torch.where(met, self._step(s)[0], self.y)
        which = happened.int().argmax(0)  # the first of several at one time
        chosen = lambda gs: torch.stack(gs).gather(0, which[None])[0].view_as(s).double()  # noqa: E731
        time = s.clone().requires_grad_()
        value = chosen(self._step(time)[1])
        slope = torch.autograd.grad(value.sum(), time)[0] if value.requires_grad else torch.zeros_like(s)
        flat = met & (slope == 0)
        if bool(flat.any()):
            place = int(flat.reshape(-1).nonzero()[0])
            at = f"at t={s.reshape(-1)[place]:.9g}"
            raise ValueError(f"the event function of sample {place} touches zero {at} without crossing it, so its time has no gradient")
        recording.retreat()
        move = -torch.where(met, chosen(self._step(s)[1]), 0.0) / torch.where(met, slope, 1.0)
        time = s + (move - move.detach())
        recording.retreat()
        time, y = first_order_only([time, self._step(time)[0]], "an event")
        return time, torch.where(met, y, self.y)


def solved_by_sample(
    problem: Problem, leaves: Leaves, args: tuple[Any, ...], adjoint: Adjoint, events: Sequence[Event], max_steps: int | None, kind: Any
) -> Ended:
    """All pieces of the solve of a batch, each sample of which has its own events."""
    samples = _Samples(replace(problem, save=kind if kind == "steps" else "times"), args, adjoint, events, max_steps, leaves[0])
    while samples.piece():
        pass
    ended = torch.tensor([status.reason == "event" for status in samples.statuses], device=samples.time.device).view_as(samples.time)
    held = lambda time, y: (torch.where(ended & time.isnan(), samples.time, time), torch.where(ended & time.isnan(), samples.y, y))  # noqa: E731
    rows = samples.steps if kind == "steps" else [held(*row) for row in samples.reached]
    if kind == "end":
        rows = [_last(rows)]
    return Ended(
        samples.pieces,
        [(time.reshape(-1), [y]) for time, y in rows],
        _together(samples.statuses, samples.y, problem),
        tuple(samples.statuses),
        tuple(time.detach() for time in samples.nodes),
        torch.where(ended, samples.time, math.nan).reshape(-1) if bool(ended.any()) else None,
        _happenings(samples),
    )


def _last(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of each sample the last row to which it came."""
    time, y = rows[0]
    for later, state in rows[1:]:
        time, y = torch.where(later.isnan(), time, later), torch.where(later.isnan(), y, state)
    return time, y


def _together(statuses: Sequence[Status], y: Tensor, problem: Problem) -> Status:
    """How the batch ended: the first that failed, with the numbers of all; or that events ended so many."""
    failed = [sample for sample, status in enumerate(statuses) if not status.ok]
    if failed:
        rest = f"; and {len(failed) - 3} samples more" * (len(failed) > 3)
        message = "; ".join(statuses[sample].message for sample in failed[:3]) + rest
        return replace(statuses[failed[0]], message=message, element=tuple(failed), y=build(problem.field.structure, [y.detach()]))
    count = sum(status.reason == "event" for status in statuses)
    return Status("event", f"events ended {count} of {len(statuses)} samples") if count else Status()


def _happenings(samples: _Samples) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Of each event the times (k, batch) and the states there; nan where a sample has had fewer than k."""
    times, states, y = [], [], samples.y
    for which in range(len(samples.events)):
        mine = torch.stack([happened[which] for happened, *_ in samples.happened]) if samples.happened else samples.on[:0]
        count = int(mine.sum(0).max()) if len(mine) else 0
        if not count:
            times.append(samples.time.detach().new_empty(0, len(y)))
            states.append(y.detach()[None][:0])
            continue
        order = (~mine).int().argsort(stable=True, dim=0)[:count]
        there = mine.gather(0, order)
        time = torch.stack([time.reshape(-1) for _, time, _ in samples.happened]).gather(0, order)
        shape = (count, len(y), *(1,) * (y.ndim - 1))
        state = torch.stack([y for *_, y in samples.happened]).gather(0, order.view(shape).expand(count, *y.shape))
        times.append(torch.where(there, time, math.nan))
        states.append(torch.where(there.view(shape), state, complex(math.nan, math.nan) if y.is_complex() else math.nan))
    return tuple(times), tuple(states)
