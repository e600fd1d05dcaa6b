"""The pass forward: accepted steps one after the other, on a grid or as error control finds them.

An attempt that is rejected leaves no trace, nor does a stage that only estimates the error, nor a step that ended the
solve: random generators and buffers are set back, so that what is accepted is what a solve on the recorded grid would
have done. A last slope is handed on as the next step's first (first same as last) unless f drew random numbers or moved
buffers, when two evaluations are not interchangeable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ..problem import Accepts, Problem, SolveError, Status, Taken, saved_apart
from ..pytree import build, paths_of
from ..solvers import Leaves, Method
from ..stepping import Adaptive, Grid, Rejections, Step, StepSizes, Times, limited, numbers
from .recording import Recording

Slope = tuple[Step, int, float]  # which evaluation of f: step, stage, node


def _nothing() -> None: ...


def _always(end: Leaves, slopes: Sequence[Leaves]) -> bool:
    return True


@dataclass(frozen=True)
class Take:
    """One step, or an attempt at one, that can be taken again: from y to the next state, all slopes where they count, and what is read.

    ``known`` is the evaluation that gave the step's first slope, where an earlier step did it; ``inside`` are the output times within.
    """

    problem: Problem
    args: tuple[Any, ...]
    step: Step
    known: Slope | None = None
    inside: Times = ()

    def __call__(self, y: Leaves, first: Leaves | None = None, between: Callable[[], None] = _nothing, accepts: Accepts = _always) -> Taken:
        problem = self.problem
        if isinstance(problem.stepping, Grid) and not (self.inside or problem.slopes):
            return problem.advance(self.step, y, self.args), [], []
        if first is None and self.known is not None:
            with saved_apart():  # its graph is that of the step that did it first
                found = problem.field(self.args, *self.known, y)
            first = [k.detach().requires_grad_(k.requires_grad) for k in found]
        return problem.taken(self.step, y, self.args, self.inside, accepts, first, between)


Attempt = Callable[[Take, Leaves, "Leaves | None", Callable[[], None], Accepts], Taken]


class Loop:
    """One pass through a problem; afterwards ``grid``, ``status`` and ``rejected`` tell what it was.

    ``recording`` is marked before every step and after the last, and observes the first. ``attempt`` takes each step. ``reuse``:
    which slopes may be the first of the next attempt, those of rejected ones too, or of accepted ones.
    """

    def __init__(
        self,
        problem: Problem,
        args: tuple[Any, ...],
        recording: Recording | None = None,
        attempt: Attempt | None = None,
        reuse: Literal["all", "accepted", "none"] = "all",
    ) -> None:
        self.problem = problem
        self.args = args
        self.recording = recording
        self.attempt: Attempt = attempt or (lambda take, y, *rest: take(y, *rest))
        self.reuse = reuse
        self.first: Leaves | None = None  # the first slope of the next step, where it is known
        self.status: Status | None = None
        self._nodes, self._wanted = [problem.stepping.times[0]], [0]  # of an adaptive solve, so far
        self._inside: dict[int, Times] = {}
        self._by: list[int] = []  # which of several methods took each step
        stepping = problem.stepping
        self.rejected = Rejections(stepping.control.grow) if isinstance(stepping, Adaptive) else None
        self._values: Sequence[float] = numbers(stepping.times) if isinstance(stepping, Adaptive) else ()  # the output times
        self._passed = 1  # how many of them are behind
        self._apart = stepping.apart if isinstance(stepping, Adaptive) else frozenset[int]()
        self._places = set(stepping.outputs()) if isinstance(stepping, Grid) else set()
        self._states: dict[int, Leaves] = {}
        self._read: dict[int, Leaves] = {}
        self._stop: int | None = None

    @property
    def grid(self) -> Grid:
        """The steps done."""
        stepping = self.problem.stepping
        found = isinstance(stepping, Adaptive)
        if not found:
            return stepping if self._stop is None else replace(stepping, stop=self._stop)
        inside, count = tuple(self._inside.items()), len(self._nodes) - 1
        by = tuple(self._by) if any(self._by) else ()
        grid = Grid(tuple(self._nodes), (1,) * count, tuple(self._wanted), inside=inside, by=by, jumps=stepping.jumps, every=stepping.every)
        return grid if self._stop is None else replace(grid, stop=self._stop)

    def steps(self, y: Leaves) -> Iterator[tuple[Step, Leaves]]:
        """The accepted steps in order, each with the state after it."""
        stepping = self.problem.stepping
        self._keep(0, y)
        for step, y_next in self._on_grid(stepping, y) if isinstance(stepping, Grid) else self._controlled(stepping, y):
            status = self.problem.watch(step, y, y_next) if self.problem.watch is not None else None
            if status is not None:  # the step just seen does not count
                self.status, self._stop = self._suspecting(status), step.index
                if self.recording is not None:
                    self.recording.retreat()
                break
            self._keep(step.index + 1, y_next)
            yield step, y_next
            y = y_next
        if self.recording is not None:
            self.recording.mark()
            self.recording.attributes.close()

    def _suspecting(self, status: Status) -> Status:
        """The same, which names the first of the jumps that cost the steps, where there are any."""
        jumps = self.rejected.jumps if status.reason == "max_steps" and self.rejected is not None else []
        if not jumps:
            return status
        near = ", ".join(f"{start:.9g}" for start, _ in jumps[:3])
        return replace(status, message=f"{status.message}; func seems to jump at {len(jumps)} times (near {near}): give them as breaks=")

    def outputs(self) -> list[Leaves]:
        """The states that the problem wants; no others are kept on the way."""
        return [self._states[index] for index in self.problem.outputs(self.grid)]

    def read(self) -> dict[int, Leaves]:
        """What was read of the steps done, by their numbers."""
        return {index: leaves for index, leaves in self._read.items() if index < len(self.grid)}

    def _keep(self, index: int, y: Leaves) -> None:
        """Keep the state after ``index`` steps, the latest in any case, and the one before only where it is an output."""
        if not self.wants(index - 1):
            self._states.pop(index - 1, None)
        self._states[index] = y

    def wants(self, index: int) -> bool:
        """Whether the state after so many steps is an output."""
        if self.problem.save in ("steps", "all", "end") or index in self.problem.also:
            return self.problem.save != "end" or index in self.problem.also
        stepping = self.problem.stepping
        if stepping.every is not None and index % stepping.every == 0:
            return True
        return index in (self._wanted[-2:] if isinstance(stepping, Adaptive) else self._places)

    def _on_grid(self, grid: Grid, y: Leaves) -> Iterator[tuple[Step, Leaves]]:
        within = self.problem.within()
        for step in grid.steps():
            if self.recording is not None:
                self.recording.mark()
            take = Take(self.problem, self.args, step, inside=within.get(step.index, ()))
            try:
                with nullcontext() if self.recording is None or step.index else self.recording.observing(y):
                    y_next, _ = self._attempted(take, y)
            except SolveError as error:
                self.status, self._stop = error.status, step.index
                if self.recording is not None:
                    self.recording.retreat()
                return
            yield step, y_next
            y = y_next

    def _attempted(self, take: Take, y: Leaves, accepts: Accepts = _always) -> tuple[list[Tensor], list[Leaves]]:
        """The next state and the slopes; stages that do not advance leave no trace."""
        recording = self.recording
        marks = 0 if recording is None else recording.marks
        between = _nothing if recording is None else lambda: recording.mark() if recording.moved() else None
        y_next, slopes, read = self.attempt(take, y, self.first, between, accepts)
        if recording is not None and recording.marks > marks:
            recording.retreat()
            recording.unmark()
        if read:
            self._read[take.step.index] = read
        return y_next, slopes

    def _within(self, adaptive: Adaptive, stop: float, end: float) -> Times:
        """The output times from the last step to ``stop``, without it where steps must ``end`` there."""
        first = last = self._passed
        values, falls = self._values, self._values[-1] < self._values[0]
        while (last < len(values) and (stop < values[last] if falls else values[last] < stop)) or (
            values[last] == stop and (stop != end or last in self._apart)
        ):
            last += 1
        return adaptive.times[first:last]

    def _pass(self, step: Step, inside: Times, ends: bool) -> None:
        """An accepted step has these output times within it, and may end at one."""
        if inside:
            self._inside[step.index] = inside
        self._passed += len(inside)
        if ends and self._values[self._passed] == numbers(step.times)[1]:
            self._wanted.append(step.index + 1)
            self._passed += 1

    def _controlled(self, adaptive: Adaptive, y: Leaves) -> Iterator[tuple[Step, Leaves]]:
        recording, chooser, by = self.recording, self.problem.method.chooser(), 0
        rejected = self.rejected
        assert recording is not None and rejected is not None
        ends, nodes = numbers(adaptive.ends), self._nodes
        recording.mark()
        with recording.observing(y):
            self.first, sizes = self._start(adaptive, self.problem.method, y)
        if recording.moved() or self.reuse == "none":
            recording.retreat()
            self.first = None
        stops, jumps = adaptive.ends, adaptive.jumps
        known: Slope = (limited(Step(0, stops, 0, 0, 1), jumps), 0, 0.0)
        for interval, (start, end) in enumerate(pairwise(ends)):
            if interval and jumps is not None and start in jumps.values:  # nothing is known of what comes
                if recording.marks < len(nodes):
                    recording.mark()
                with torch.no_grad():
                    _, sizes = self._start(adaptive, self.problem.method, y, interval)
                recording.retreat()
                self.first = None
                rejected.forget()
            while start != end:
                if recording.marks < len(nodes):
                    recording.mark()
                    if chooser is not None and self._by:
                        by = chooser.next(self.problem.given(self.args))
                        recording.retreat()
                stop = sizes.next_end(start, end)
                step = limited(Step(len(nodes) - 1, (nodes[-1], stops[interval + 1] if stop == end else stop), 0, 0, 1, by=by), jumps)
                method, inside = self.problem.method.at(step), self._within(adaptive, stop, end)
                take = Take(self.problem, self.args, step, None if self.first is None else known, inside if self.problem.reads else ())
                verdict = _Verdict(adaptive, method, sizes, stop - start, y)
                y_next, slopes = self._attempted(take, y, verdict)
                moved = recording.moved()
                rejected.saw(start, stop, verdict.error, verdict.accepted, max(1.0, *method.nodes))
                if not verdict.accepted:
                    given = self.first is not None or not any(k.requires_grad for k in slopes[0])  # else its graph is this attempt's
                    again = self.reuse == "all" or (self.reuse == "accepted" and given)
                    self.first = slopes[0] if again and not moved else None
                    recording.retreat()
                    broken = first_not_finite(slopes[0])
                    if broken is not None or abs(stop - start) <= sizes.least(start) + math.ulp(start):
                        self.status = self._stuck(step.index, start, abs(stop - start), verdict.ratios, y, broken)
                        return
                    continue
                after = method.handed(slopes)
                self.first = slopes[after] if after is not None and not moved and self.reuse != "none" else None
                known = (step, after or 0, 1.0)
                nodes.append(step.times[1])
                self._by.append(by)
                if chooser is not None:
                    chooser.saw(step, y, slopes)
                self._pass(step, inside, stop == end)
                del slopes, verdict
                yield step, y_next
                y, start = y_next, stop

    def _start(self, adaptive: Adaptive, method: Method, y: Leaves, interval: int = 0) -> tuple[Leaves, StepSizes]:
        """The first slope and the first step size of an interval (Hairer, Norsett, Wanner, Solving ODEs I, II.4)."""
        recording, control = self.recording, adaptive.control
        embedded = method.embedded_order
        assert recording is not None and embedded is not None
        whole = adaptive.ends[interval : interval + 2]
        times, index = numbers(whole), len(self._nodes) - 1
        field = partial(self.problem.field, self.args)
        first = field(limited(Step(index, whole, 0, 0, 1), adaptive.jumps), 0, 0.0, y)
        size = control.first_step
        if size is None:
            with torch.no_grad():
                allowed = self.problem.given(self.args).allowed(y)
                assert allowed is not None
                scaled = lambda leaves: root_mean_square([leaf / most for leaf, most in zip(leaves, allowed, strict=True)])  # noqa: E731
                d0, d1 = scaled(y), scaled(first)
                h0 = 0.01 * d0 / d1 if d0 >= 1e-5 and 1e-5 <= d1 < math.inf else 1e-6
                h0 = min(h0, abs(times[1] - times[0]))
                ahead = limited(Step(index, (times[0], times[0] + math.copysign(h0, times[1] - times[0])), 0, 0, 1), adaptive.jumps)
                moved = [torch.add(leaf, k.to(leaf.dtype), alpha=float(ahead.dt)) for leaf, k in zip(y, first, strict=True)]
                second = field(ahead, 0, 1.0, moved)
                d2 = scaled([b - a for a, b in zip(first, second, strict=True)]) / h0
                h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** (1 / (embedded + 1))
                size = min(100 * h0, h1) if 0 < h1 < math.inf else h0
        size = min(max(size, control.min_step), control.max_step)
        return first, StepSizes(control, embedded + 1, size)

    def _stuck(
        self, index: int, t: float, size: float, ratios: Sequence[Tensor], y: Leaves, broken: tuple[int, tuple[int, ...]] | None
    ) -> Status:
        """Why the attempt cannot be made small enough: func is ``broken`` at its start, or its largest error component."""
        place, element, error = (*broken, math.nan) if broken is not None else _largest(ratios)
        path = paths_of(self.problem.field.structure)[place]
        reason = "step size" if math.isfinite(error) else "not finite"
        what = f"its error is {error:.3g} times the tolerance" if math.isfinite(error) else "it is not finite"
        message = f"at t={t:.9g}, step {index + 1}, the step size fell to {size:.3g}: {what} in {path}, element {element}"
        if broken is not None:
            message = f"at t={t:.9g}, step {index + 1}, func is not finite in {path}, element {element}"
        good = build(self.problem.field.structure, [leaf.detach() for leaf in y])
        return Status(reason, message, t, index, path, element, error, good)


@dataclass
class _Verdict:
    """Whether an attempt of length ``dt`` from y is accepted, decided once."""

    adaptive: Adaptive
    method: Method
    sizes: StepSizes
    dt: float
    y: Leaves
    ratios: Sequence[Tensor] = ()
    error: float = math.nan
    accepted: bool = False

    def __call__(self, end: Leaves, slopes: Sequence[Leaves]) -> bool:
        if not self.ratios:  # an attempt may be made again, to look into it
            self.ratios = error_ratios(self.adaptive, self.method.error(self.dt, slopes), self.y, end)
            self.error = root_mean_square(self.ratios)
            self.accepted = self.sizes.judge(self.error, abs(self.dt))
        return self.accepted


def error_ratios(adaptive: Adaptive, error: Sequence[Tensor], y: Leaves, y_next: Leaves) -> list[Tensor]:
    """|error| / (atol + rtol max(|y|, |y_next|)) for every element of every leaf."""
    with torch.no_grad():
        size = [torch.maximum(a.abs(), b.abs()) for a, b in zip(y, y_next, strict=True)]
        return [e.abs() / (atol + rtol * s) for e, s, rtol, atol in zip(error, size, adaptive.rtol, adaptive.atol, strict=True)]


def root_mean_square(leaves: Sequence[Tensor]) -> float:
    """Over all elements of all leaves."""
    count = sum(leaf.numel() for leaf in leaves)
    norms = [torch.linalg.vector_norm(leaf.float() if leaf.dtype.itemsize < 4 else leaf) for leaf in leaves]
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))
    return total.item() / math.sqrt(max(count, 1))


def first_not_finite(leaves: Sequence[Tensor]) -> tuple[int, tuple[int, ...]] | None:
    """Which leaf and element is NaN or infinite; None where all are finite."""
    for place, leaf in enumerate(leaves):
        bad = ~torch.isfinite(leaf)
        if bad.any():
            return place, tuple(int(i) for i in bad.nonzero()[0])
    return None


def _largest(ratios: Sequence[Tensor]) -> tuple[int, tuple[int, ...], float]:
    broken = first_not_finite(ratios)
    if broken is not None:
        return *broken, math.nan
    place = max((place for place, leaf in enumerate(ratios) if leaf.numel()), key=lambda place: ratios[place].max().item())
    where = int(ratios[place].argmax())
    return place, tuple(int(i) for i in torch.unravel_index(torch.tensor(where), ratios[place].shape)), ratios[place].max().item()
