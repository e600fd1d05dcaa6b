"""Looking at a solve while it runs: callbacks, a progress bar, limits, and events that end it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .gradients.function import first_order_only
from .integrate.loop import first_not_finite
from .integrate.recording import recorded
from .problem import Problem, Status
from .pytree import build, paths_of
from .solvers import Leaves
from .stepping import MORE, Step, numbers

EventFunction = Callable[[Tensor, Any], Tensor]


class Observer:
    """Is shown every accepted step, and ends the solve where there is a reason to; ``crossing`` is then the step of an event."""

    def __init__(
        self,
        problem: Problem,
        event: EventFunction | None,
        callback: Callable[[float, Any], Any] | None,
        progress: bool,
        max_steps: int | None,
    ) -> None:
        self.problem, self.event, self.callback, self.progress, self.max_steps = problem, event, callback, progress, max_steps
        self.crossing: Crossing | None = None
        self._bar: Any = None
        self._before: float | None = None  # the event function at the last state

    def __enter__(self) -> Self:
        if self.progress:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ValueError("progress=True needs tqdm: pip install tqdm") from None
            times = numbers(self.problem.stepping.times)
            self._bar = tqdm(total=abs(times[-1] - times[0]), bar_format="{l_bar}{bar}| t={n:.4g}/{total:.4g} [{elapsed}<{remaining}]")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def limit(self, step: Step, y: Leaves, _: Leaves) -> Status | None:
        """The end where all steps allowed have been done."""
        if self.max_steps is None or step.index < self.max_steps:
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
            message = (
                f"step {step.index + 1}, from t={start:.9g} to {end:.9g}, led to a state that is not finite in {path}, element {broken[1]}"
            )
            return self._ended("not finite", message, step, start, y, path, broken[1])
        if self.event is not None and self._crosses(start, y, end, y_next):
            self.crossing = Crossing(step, self.event)
            return Status("event", f"the event happened between t={start:.9g} and {end:.9g}", start, step.index)
        if self.callback is not None:
            self.callback(end, self._tree(y_next))
        if self._bar is not None:
            self._bar.update(abs(end - start))
        return None

    def _tree(self, y: Leaves) -> Any:
        return build(self.problem.field.structure, [leaf.detach() for leaf in y])

    def _ended(self, reason: str, message: str, step: Step, t: float, y: Leaves, leaf: str | None = None, element: Any = None) -> Status:
        return Status(reason, message, t, step.index, leaf, element, y=self._tree(y))

    def _crosses(self, start: float, y: Leaves, end: float, y_next: Leaves) -> bool:
        assert self.event is not None
        with torch.no_grad():
            before = event_value(self.problem, self.event, start, y).item() if self._before is None else self._before
            self._before = event_value(self.problem, self.event, end, y_next).item()
        return (before < 0 <= self._before) or (before > 0 >= self._before)


def event_value(problem: Problem, event: EventFunction, t: float | Tensor, y: Leaves) -> Tensor:
    """g(t, y), checked to be one real number."""
    value = event(problem.field.time(t, problem.field.time_dtype), build(problem.field.structure, y))
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"event must return one real floating element, whose change of sign ends the solve, got {got}")
    return value.reshape(())


@dataclass
class Crossing:
    """The step in which an event function changes its sign."""

    step: Step
    event: EventFunction

    def located(self, problem: Problem, y: Leaves, args: tuple[Any, ...]) -> tuple[Tensor, Leaves]:
        """Time and state of the event; y is the state before the step, with its history.

        The state at time s is one step of the method from the step's start t to s, so the event solves G(s, y) = 0 with
        G(s, y) = g(s, step(t, s, y)). Its gradient is that of one Newton step from the solution, s - G / (dG/ds).
        """
        step, start = self.step, self.step.time(0.0)
        recording = recorded(problem, y, args)
        recording.mark()

        def ends_at(s: float | Tensor) -> Leaves:
            recording.retreat()  # every time with the same random numbers; the last time moves buffers
            return problem.advance(Step(step.index, (start, s), 0, 0, 1), y, args)

        with torch.no_grad():
            low, high = numbers((start, step.time(1.0)))
            s = _root(lambda s: event_value(problem, self.event, s, ends_at(s) if s != low else y).item(), low, high)
        if not torch.is_grad_enabled():
            return problem.field.time(s), ends_at(s)
        time = problem.field.time(s).requires_grad_()
        value = event_value(problem, self.event, time, ends_at(time))
        (slope,) = torch.autograd.grad(value, time, retain_graph=True) if value.requires_grad else (torch.zeros(()),)
        if slope == 0:
            raise ValueError(f"the event function touches zero at t={s:.9g} without crossing it, so its time has no gradient")
        time = s - value.to(time.dtype) / slope
        time = time + (s - time).detach()  # the value found, the gradient of the Newton step
        time, *end = first_order_only([time, *ends_at(time)], "an event")  # whose second derivative is another
        return time, end


def _root(g: Callable[[float], float], low: float, high: float) -> float:
    """Where g changes sign between low and high, to round-off: regula falsi, Illinois variant, bisecting where that is slow."""
    g_low, g_high = g(low), g(high)
    for count in range(200):
        if g_high == 0 or abs(high - low) <= 2 * math.ulp(max(abs(low), abs(high))):
            break
        middle = high - g_high * (high - low) / (g_high - g_low) if count % 3 < 2 else (low + high) / 2
        if not min(low, high) < middle < max(low, high):
            middle = (low + high) / 2
        g_middle = g(middle)
        if g_middle * g_high <= 0:
            low, g_low = high, g_high
        else:
            g_low /= 2
        high, g_high = middle, g_middle
    return high
