"""Where the time grid comes from: output times cut into equal steps, a given or recorded grid, or error control.

``Grid(times=(0.0, 1.0, 3.0), counts=(2, 4))`` has six steps; step 2 is the first of four between 1.0 and 3.0. No time
is ever found by adding step sizes, so output times are hit exactly and no step is lost or gained to rounding. A given
grid has one step per interval and says which of its times are outputs. An adaptive solve leaves the times of its steps
behind, which are a given grid again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, SupportsFloat, TypeGuard

import torch
from torch import Tensor

from ..pytree import Structure, leaves_of

RTOL, ATOL = 1e-7, 1e-9  # torchdiffeq's, so that a solve without tolerances means the same here
MAX_STEPS = 10_000  # of error control: what needs more is stiff, as a rule
MORE = "allow more, or any number with max_steps=None, or larger errors; a stiff problem wants an implicit or exponential method"
STRETCH = 1.01  # of a step that would leave less than that to an output time

Time = float | Tensor
Times = tuple[Time, ...]  # tensors where they require grad (zero-dimensional) or differ from sample to sample (batch, 1, ...)


@dataclass(frozen=True)
class Step:
    """The ``part``-th of ``parts`` equal steps of one interval; ``index`` counts over the whole solve.

    ``backwards``: the step goes from the end of that step to its start, its times being in this order.
    """

    index: int
    times: Times
    interval: int
    part: int
    parts: int
    backwards: bool = False

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


@dataclass(frozen=True)
class Grid:
    """Times and the number of equal steps in each interval between them.

    ``wanted`` lists which of the times are outputs; None: all. ``stop`` ends the grid early, after so many steps.
    ``status`` tells which samples of a search per sample did not come to the end, a ``Status``; None: all came.
    """

    times: Times
    counts: tuple[int, ...]
    wanted: tuple[int, ...] | None = None
    stop: int | None = None
    status: Any = None

    def __len__(self) -> int:
        return sum(self.counts) if self.stop is None else self.stop

    def steps(self) -> list[Step]:
        """All steps in order."""
        places = [(interval, part, parts) for interval, parts in enumerate(self.counts) for part in range(parts)]
        return [Step(index, self.times, *place) for index, place in enumerate(places[: self.stop])]

    def outputs(self) -> tuple[int, ...]:
        """The number of steps done at each output time, from 0 to ``len(self)``."""
        done = (0, *accumulate(self.counts))
        return tuple(done[place] for place in self.wanted or range(len(done)) if done[place] <= len(self))

    def ends(self) -> list[Time]:
        """The times before the first step and after each."""
        return [self.times[0], *(step.time(1.0) for step in self.steps())]

    def nodes(self) -> tuple[float, ...]:
        """The times between the steps, as numbers: what ``grid=`` takes."""
        if any(isinstance(time, Tensor) and time.numel() > 1 for time in self.times):
            raise ValueError("per_sample=True gives every sample times of its own; this needs common times")
        return numbers(tuple(replace(self, times=numbers(self.times)).ends()))

    def reversed(self) -> Grid:
        """The same steps from the end to the start."""
        wanted = None if self.wanted is None else tuple(len(self.counts) - place for place in reversed(self.wanted))
        return Grid(self.times[::-1], self.counts[::-1], wanted)


def as_times(t: Any, name: str = "t") -> Times:
    """Check ``t``: at least two finite times, strictly rising or falling; floats but for those that require grad."""
    if isinstance(t, Tensor) and (t.ndim != 1 or t.is_complex() or t.dtype == torch.bool):
        raise ValueError(f"{name} must be one-dimensional and real, got shape {tuple(t.shape)} of {t.dtype}; write {name}=[0.0, 1.0]")
    if isinstance(t, str):
        raise TypeError(f"{name} must be a sequence of times such as [0.0, 1.0], got str")
    try:
        times: Times = tuple(t.unbind() if isinstance(t, Tensor) and t.requires_grad else t.tolist() if isinstance(t, Tensor) else t)
        values = numbers(times)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a sequence of times such as [0.0, 1.0], got {type(t).__name__}") from None
    if len(values) < 2:
        raise ValueError(f"{name} must hold at least two times (start and end), got {values}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be finite, got {values}")
    gaps = [later - earlier for earlier, later in pairwise(values)]
    if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        raise ValueError(f"{name} must be strictly rising or strictly falling, got {values}")
    return tuple(time if wants_grad(time) else value for time, value in zip(times, values, strict=True))


def wants_grad(time: Time) -> TypeGuard[Tensor]:
    """Whether a gradient with respect to this time is wanted."""
    return isinstance(time, Tensor) and time.requires_grad


def numbers(times: Times) -> tuple[float, ...]:
    """The times as Python numbers."""
    return tuple(float(time.detach() if isinstance(time, Tensor) else time) for time in times)


def as_count(name: str, value: Any) -> int:
    """``value`` as a positive integer, or an error that names the argument."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer")
    return count


def uniform_grid(t: Any, steps: int | None = None, step_size: float | None = None) -> Grid:
    """Equal steps: ``steps`` per interval of t, or as many as keep every step at most ``step_size`` long."""
    times = as_times(t)
    if (steps is None) == (step_size is None):
        given = "neither" if steps is None else "both"
        raise ValueError(
            f"a fixed-step method needs either steps (per interval of t) or step_size, got {given}; e.g. steps=10, or method='dopri5' "
            "without either, which finds its steps"
        )
    if steps is not None:
        return Grid(times, (as_count("steps", steps),) * (len(times) - 1))
    assert step_size is not None
    if not isinstance(step_size, SupportsFloat) or not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size={step_size!r} must be a positive finite number (t may fall, step_size never does)")
    spans = [abs(later - earlier) for earlier, later in pairwise(numbers(times))]
    # A span that is a whole number of step sizes up to rounding must not gain a step: 1.1 / 0.1 = 11.000000000000002.
    return Grid(times, tuple(max(1, math.ceil(span / step_size * (1 - 1e-9))) for span in spans))


def given_grid(t: Any, nodes: Any) -> Grid:
    """One step between neighbouring ``nodes``, among which the times t must be; gradients go to those that require one."""
    times = as_times(t)
    grid = as_times(nodes, "grid")
    values, places = numbers(grid), {value: place for place, value in enumerate(numbers(grid))}
    missing = [value for value in numbers(times) if value not in places]
    if missing:
        raise ValueError(f"grid must hold every time of t, to the last digit; {missing[0]} is not in it")
    wanted = tuple(places[value] for value in numbers(times))
    if (wanted[0], wanted[-1]) != (0, len(values) - 1):
        raise ValueError(f"grid must start at t[0] and end at t[-1], it runs from {values[0]} to {values[-1]}")
    merged = list(grid)
    for place, time in zip(wanted, times, strict=True):
        merged[place] = time if isinstance(time, Tensor) else merged[place]
    return Grid(tuple(merged), (1,) * (len(values) - 1), wanted)


@dataclass(frozen=True)
class Control:
    """How an adaptive solve chooses its next step from the estimated errors of the last ones.

    With e_n the error of step n in units of the tolerance, k = (order of the embedded solution) + 1 and pid = (P, I, D),

        h_{n+1} = safety h_n (1 / e_n)^((P + I + D) / k) (1 / e_{n-1})^(-(P + 2 D) / k) (1 / e_{n-2})^(D / k)

    between ``shrink`` and ``grow`` times h_n. A step is accepted where e_n <= 1, e_n the root mean square of
    error / (atol + rtol max(|y_n|, |y_{n+1}|)) over all elements. pid = (0, 1, 0) is the classical controller,
    (0.4, 0.3, 0) a PI controller that rejects fewer steps of stiff problems.

    Args:
        pid: the three coefficients.
        safety, shrink, grow: factors, 0 < shrink < safety <= 1 < grow.
        first_step: in the unit of t; None estimates it from f and one more evaluation.
        min_step, max_step: bounds of the step; an error too large at ``min_step`` ends the solve. A step that ends at an
            output time, and the one before it, may be shorter.

    Raises:
        ValueError: naming the argument.

    Source: Hairer, Norsett, Wanner, Solving ODEs I, II.4; Soderlind, ACM TOMS 29 (2003).
    """

    pid: tuple[float, float, float] = (0.0, 1.0, 0.0)
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf

    def __post_init__(self) -> None:
        numbers_given = (self.safety, self.shrink, self.grow, self.min_step, self.max_step, self.first_step or 1.0)
        if not isinstance(self.pid, Sequence) or not all(isinstance(x, (int, float)) for x in (*self.pid, *numbers_given)):
            raise TypeError(f"the fields of Control must be numbers, pid three of them, got {self}")
        if len(self.pid) != 3 or self.pid[0] + self.pid[1] + self.pid[2] <= 0:
            raise ValueError(f"pid={self.pid} must be three numbers with a positive sum, such as (0.4, 0.3, 0)")
        if not 0 < self.shrink < self.safety <= 1 < self.grow:
            raise ValueError(f"need 0 < shrink < safety <= 1 < grow, got {self.shrink}, {self.safety}, {self.grow}")
        if self.first_step is not None and not self.first_step > 0:
            raise ValueError(f"first_step={self.first_step} must be positive (t may fall, steps never do)")
        if not 0 <= self.min_step < self.max_step:
            raise ValueError(f"need 0 <= min_step < max_step, got {self.min_step} and {self.max_step}")


@dataclass
class StepSizes:
    """The size of the next attempt, from the errors of those before; ``k`` as in ``Control``."""

    control: Control
    k: int
    size: float
    errors: list[float] = field(default_factory=lambda: [1.0, 1.0])  # of the two accepted steps before, last first
    rejected: bool = False

    def judge(self, error: float, taken: float) -> bool:
        """Whether a step of size ``taken`` with this error is accepted; the next size follows from it."""
        accepted = error <= 1  # not for NaN
        factor = self._factor(error)
        if accepted:
            if self.rejected:
                factor = min(factor, 1.0)  # Hairer, Norsett, Wanner, II.4: no growth right after a rejection
            self.errors = [max(error, 1e-10), self.errors[0]]
            # a step cut short to end at an output time says little about the one after it
            cut = taken < self.size * (1 - 1e-6)  # by more than rounding
            self.size = max(self.size, factor * taken) if cut else factor * taken
        else:
            self.size = min(factor, self.control.safety, 0.9) * taken  # shorter whatever the safety, or the solve might never end
        self.size = min(max(self.size, self.control.min_step), self.control.max_step)
        self.rejected = not accepted
        return accepted

    def _factor(self, error: float) -> float:
        control = self.control
        if not math.isfinite(error):
            return control.shrink
        p, i, d = (coefficient / self.k for coefficient in control.pid)
        before, earlier = self.errors
        factor = control.safety * max(error, 1e-10) ** -(p + i + d) * before ** (p + 2 * d) * earlier**-d
        return min(max(factor, control.shrink), control.grow)

    def next_end(self, start: float, end: float) -> float:
        """Where the next attempt ends on the way from ``start`` to ``end``, which is hit exactly and never by a tiny step."""
        left, least = abs(end - start), max(self.control.min_step, 8 * math.ulp(start))
        size = max(self.size, least)
        if left <= min(size * STRETCH, max(self.control.max_step, least) * (1 + 1e-9)):
            return end
        size = left / 2 if left < 2 * size else size
        return start + math.copysign(size, end - start)

    def least(self, start: float) -> float:
        """What no attempt from ``start`` is made shorter than: shorter steps would be lost in the rounding of times."""
        return max(self.control.min_step, 8 * math.ulp(start)) * STRETCH


@dataclass(frozen=True)
class Adaptive:
    """Steps found by error control: the output times, and a relative and an absolute tolerance for each leaf."""

    times: Times
    rtol: tuple[Any, ...]
    atol: tuple[Any, ...]
    control: Control


def tolerances(rtol: Any, atol: Any, structure: Structure, leaves: list[Tensor]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """rtol and atol for every leaf."""
    both = []
    for name, value, default in (("rtol", rtol, RTOL), ("atol", atol, ATOL)):
        value = default if value is None else value
        if isinstance(value, SupportsFloat) and not isinstance(value, Tensor):
            values = [float(value)] * len(leaves)
        else:
            try:
                values = leaves_of(value, structure)
            except ValueError as error:
                raise ValueError(f"{name} must be a number or a tree like y0: {error}") from None
        for one, leaf in zip(values, leaves, strict=True):
            if not isinstance(one, (Tensor, SupportsFloat)) or not bool(torch.all(torch.as_tensor(one) >= 0)):
                raise ValueError(f"{name}={value!r} must be made of numbers or tensors that are at least 0")
            if isinstance(one, Tensor) and not _broadcasts(one, leaf):
                raise ValueError(f"{name} of shape {tuple(one.shape)} does not broadcast to its leaf of y0 of shape {tuple(leaf.shape)}")
        both.append(tuple(one.detach() if isinstance(one, Tensor) else float(one) for one in values))
    if not all(bool(torch.all(torch.as_tensor(a) + torch.as_tensor(b) > 0)) for a, b in zip(*both, strict=True)):
        raise ValueError("rtol and atol cannot both be 0")
    return both[0], both[1]


def _broadcasts(tensor: Tensor, to: Tensor) -> bool:
    pairs = zip(reversed(tensor.shape), reversed(to.shape), strict=False)
    return tensor.ndim <= to.ndim and all(a in (1, b) for a, b in pairs)
