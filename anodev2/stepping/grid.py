"""Where the time grid comes from: output times cut into equal steps, a given or recorded grid, or error control.

``Grid(times=(0.0, 1.0, 3.0), counts=(2, 4))`` has six steps; step 2 is the first of four between 1.0 and 3.0. No time
is ever found by adding step sizes, so output times are hit exactly and no step is lost or gained to rounding. A given
grid has one step per interval and says which of its times are outputs. An adaptive solve leaves the times of its steps
behind, which are a given grid again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ..torch_private import has_tangent
from .jumps import Jumps, apart, merged
from .times import Limits, Time, Times, as_times, numbers


@dataclass(frozen=True)
class Step:
    """The ``part``-th of ``parts`` equal steps of one interval; ``index`` counts over the whole solve.

    ``backwards``: the step goes from the end of that step to its start, its times being in this order. ``by``: which of several
    methods takes it. ``limits``: within which f is asked where it may jump at an end of the step (``Jumps``). ``before``: steps of the
    solve that another grid has taken.
    """

    index: int
    times: Times
    interval: int
    part: int
    parts: int
    backwards: bool = False
    by: int = 0
    limits: Limits | None = None
    before: int = 0

    @property
    def count(self) -> int:
        """Of how many steps of the method it is made."""
        return 1

    @property
    def number(self) -> int:
        """What f is told: counted over the whole solve."""
        return self.before + self.index

    @property
    def dt(self) -> Time:
        """The signed length of the step."""
        return (self.times[self.interval + 1] - self.times[self.interval]) / self.parts

    def time(self, node: float) -> Time:
        """The time at ``node`` (0 start, 1 end) of this step; the ends of the interval are returned untouched."""
        start, end = self.times[self.interval], self.times[self.interval + 1]
        where = self.part + node
        if where == 0:
            return start
        if where == self.parts:
            return end
        return start + (end - start) * (where / self.parts)

    def seen(self, node: float) -> Time:
        """The same as f is told it: within the ``limits``, with the gradient of the time itself, or of the end that it is held at."""
        time = self.time(node)
        if self.limits is None:
            return time
        low, high = self.limits
        if not isinstance(time, Tensor):
            return min(max(time, low), high)
        held = time.detach().clamp(low, high)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if not 0 <= node <= 1 and bool((held != time).any()):
            time = torch.as_tensor(self.time(float(node > 1)))
        return held + (time - time.detach())


def limited(step: Step, jumps: Jumps | None) -> Step:
    """The step with the limits at jumps."""
    return step if jumps is None else replace(step, limits=jumps.limits(step.time(0.0), step.time(1.0)))


@dataclass(frozen=True)
class Grid:
    """Times and the number of equal steps in each interval between them.

    ``wanted`` lists which of the times are outputs; None: all. ``inside``: numbers of steps, rising, with times within them that are
    outputs too, read from the method's interpolant. ``stop`` ends the grid early, after so many steps.
    ``by``: which of several methods takes each step; (): the only one.
    ``status`` tells which samples of a search per sample did not come to the end, a ``Status``; None: all came. ``statuses``: of each.
    ``asked``: output times that differ from sample to sample, nan where one has no more. ``jumps``: where f may jump, between steps.
    ``before``: steps that another grid has taken before this one. ``every``: the outputs are the start, every so many steps, and the end.
    """

    times: Times
    counts: tuple[int, ...]
    wanted: tuple[int, ...] | None = None
    stop: int | None = None
    status: Any = None
    inside: tuple[tuple[int, Times], ...] = ()
    by: tuple[int, ...] = ()
    statuses: tuple[Any, ...] = ()
    asked: Times = ()
    jumps: Jumps | None = None
    before: int = 0
    every: int | None = None

    def __len__(self) -> int:
        return sum(self.counts) if self.stop is None else self.stop

    def steps(self) -> list[Step]:
        """All steps in order."""
        places = [(interval, part, parts) for interval, parts in enumerate(self.counts) for part in range(parts)]
        by = self.by or (0,) * len(places)
        steps = [Step(index, self.times, *place, by=by[index], before=self.before) for index, place in enumerate(places[: self.stop])]
        return steps if self.jumps is None else [limited(step, self.jumps) for step in steps]

    def outputs(self) -> tuple[int, ...]:
        """The number of steps done at each output time, from 0 to ``len(self)``."""
        done = (0, *accumulate(self.counts))
        wanted = tuple(done[place] for place in self.wanted or range(len(done)) if done[place] <= len(self))
        if self.every is None:
            return wanted
        return tuple(
            sorted({0, *range(-self.before % self.every, len(self) + 1, self.every), *(wanted[-1:] if done[-1] in wanted else ())})
        )

    def within(self) -> dict[int, Times]:
        """The output times within steps, by the numbers of these."""
        return {index: times for index, times in self.inside if index < len(self)}

    def mapped(self, change: Callable[[Time], Time]) -> Grid:
        """The same grid with other times."""
        inside = tuple((index, tuple(map(change, times))) for index, times in self.inside)
        return replace(self, times=tuple(map(change, self.times)), inside=inside)

    def after(self, done: int) -> Grid:
        """What is left after so many steps, one in each interval; outputs within steps are not kept."""
        times, wanted = self.ends(), [place - done for place in self.outputs() if place > done]
        left = (1,) * (len(self) - done)
        before = self.before + done
        return Grid(tuple(times[done:]), left, (0, *wanted), by=self.by[done:], jumps=self.jumps, before=before, every=self.every)

    def saved_every(self, steps: int) -> Grid:
        """The same with the states after every so many steps as outputs."""
        return replace(self, every=steps, inside=())

    def ends(self) -> list[Time]:
        """The times before the first step and after each."""
        return [self.times[0], *(step.time(1.0) for step in self.steps())]

    def nodes(self) -> tuple[float, ...]:
        """The times between the steps, as numbers: what ``grid=`` takes."""
        if any(isinstance(time, Tensor) and time.numel() > 1 for time in self.times):
            raise ValueError(
                "per_sample=True gives every sample times of its own, where common times are needed: leave it out, or take another adjoint"
            )
        return numbers(tuple(replace(self, times=numbers(self.times)).ends()))


def as_count(name: str, value: Any) -> int:
    """``value`` as a positive integer, or an error that names the argument."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer")
    return count


def uniform_grid(t: Any, steps: int | None = None, step_size: float | None = None, breaks: Times = (), jumps: Jumps | None = None) -> Grid:
    """Equal steps: ``steps`` per interval between times of t and breaks, or as many as keep every step at most ``step_size`` long."""
    times = as_times(t)
    if (steps is None) == (step_size is None):
        given = "neither" if steps is None else "both"
        raise ValueError(
            f"a fixed-step method needs either steps (per interval of t) or step_size, got {given}; e.g. steps=10, or method='dopri5' "
            "without either, which finds its steps"
        )
    knots = merged(times, breaks) if breaks else times
    if steps is not None:
        return _cut(times, knots, (as_count("steps", steps),) * (len(knots) - 1), jumps)
    assert step_size is not None
    if isinstance(step_size, Tensor) and (step_size.requires_grad or has_tangent(step_size)):
        raise ValueError(
            "step_size has no gradient, it only chooses the number of equal steps; give step_size.detach(), or the times of all steps as "
            "grid=, which have theirs"
        )
    if not isinstance(step_size, SupportsFloat) or not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size={step_size!r} must be a positive finite number (t may fall, step_size never does)")
    spans = [abs(later - earlier) for earlier, later in pairwise(numbers(knots))]
    # A span that is a whole number of step sizes up to rounding must not gain a step: 1.1 / 0.1 = 11.000000000000002.
    return _cut(times, knots, tuple(max(1, math.ceil(span / step_size * (1 - 1e-9))) for span in spans), jumps)


def _cut(times: Times, knots: Times, counts: tuple[int, ...], jumps: Jumps | None) -> Grid:
    """The grid of ``knots`` with ``times`` as outputs; one that may move apart from the break at its place is read from the step before."""
    if knots is times:
        return Grid(times, counts, jumps=jumps)
    places, done = {value: place for place, value in enumerate(numbers(knots))}, (0, *accumulate(counts))
    found = [(places[value], time) for value, time in zip(numbers(times), times, strict=True)]
    wanted = tuple(place for place, time in found if not apart(time, knots[place]))
    inside = tuple((done[place] - 1, (time,)) for place, time in found if apart(time, knots[place]))
    return Grid(knots, counts, wanted, inside=inside, jumps=jumps)


def unit_grid(t: Any) -> Grid:
    """A step for each unit of t, whose times are whole numbers."""
    times = as_times(t)
    spans = [abs(later - earlier) for earlier, later in pairwise(numbers(times))]
    if any(value != round(value) for value in numbers(times)):
        raise ValueError(f"a pass of method='map' is a unit of t, so times must be whole numbers, got {numbers(times)}; or give steps")
    return Grid(times, tuple(map(round, spans)))


def given_grid(t: Any, nodes: Any, interpolates: bool = False, breaks: Times = (), jumps: Jumps | None = None) -> Grid:
    """One step between neighbouring ``nodes``; gradients go to those that require one.

    The times t must be among them, or within a step where the method ``interpolates``; all breaks must.
    """
    times = as_times(t)
    grid = as_times(nodes, "grid")
    values, places = numbers(grid), {value: place for place, value in enumerate(numbers(grid))}
    ends = numbers((times[0], times[-1]))
    if ends != (values[0], values[-1]):
        raise ValueError(f"grid must start at t[0] and end at t[-1], it runs from {values[0]} to {values[-1]}")
    missing = [value for value in numbers(times) if value not in places]
    if missing and not interpolates:
        raise ValueError(
            f"grid must hold every time of t, to the last digit; {missing[0]} is not in it; states within steps are read by methods "
            "with an interpolant alone, without an event (rodas4, rodas5p, kvaerno5: with hit='between')"
        )
    joined, sign = list(grid), 1 if ends[1] > ends[0] else -1
    at = dict(zip(numbers(breaks), breaks, strict=True))
    if lost := [value for value in at if value not in places]:
        raise ValueError(f"grid must hold every time of breaks, to the last digit; {lost[0]} is not in it")
    for value, knot in at.items():
        joined[places[value]] = knot if isinstance(knot, Tensor) else joined[places[value]]
    wanted: list[int] = []
    inside: dict[int, list[Time]] = {}
    step = 0
    for value, time in zip(numbers(times), times, strict=True):
        if value in at and apart(time, at[value]):
            inside.setdefault(places[value] - 1, []).append(time)
        elif value in places:
            wanted.append(places[value])
            joined[wanted[-1]] = time if isinstance(time, Tensor) else joined[wanted[-1]]
        else:
            while sign * values[step + 1] < sign * value:
                step += 1
            inside.setdefault(step, []).append(time)
    within = tuple((index, tuple(own)) for index, own in inside.items())
    return Grid(tuple(joined), (1,) * (len(values) - 1), tuple(wanted), inside=within, jumps=jumps)
