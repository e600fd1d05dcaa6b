"""Where the time grid comes from: output times cut into equal steps, counted in integers.

``Grid(times=(0.0, 1.0, 3.0), counts=(2, 4))`` has six steps; step 2 is the first of four between 1.0 and 3.0. No time
is ever found by adding step sizes, so output times are hit exactly and no step is lost or gained to rounding.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, SupportsFloat

import torch
from torch import Tensor

Time = float | Tensor
Times = tuple[float, ...] | Tensor


@dataclass(frozen=True)
class Step:
    """The ``part``-th of ``parts`` equal steps of one interval; ``index`` counts over the whole solve."""

    index: int
    times: Times
    interval: int
    part: int
    parts: int

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
    """Output times and the number of equal steps in each interval between them.

    ``times`` is a tensor only where gradients with respect to the times are wanted.
    """

    times: Times
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def steps(self) -> list[Step]:
        """All steps in order."""
        places = [(interval, part, parts) for interval, parts in enumerate(self.counts) for part in range(parts)]
        return [Step(index, self.times, *place) for index, place in enumerate(places)]

    def outputs(self) -> tuple[int, ...]:
        """The number of steps done at each output time, from 0 to ``len(self)``."""
        return tuple(sum(self.counts[:i]) for i in range(len(self.counts) + 1))


def as_times(t: Any) -> Times:
    """Check ``t``: at least two finite times, strictly rising or falling; floats unless they require grad."""
    if isinstance(t, Sequence) and any(isinstance(x, Tensor) and x.requires_grad for x in t):
        t = torch.stack([torch.as_tensor(x, dtype=torch.get_default_dtype()) if not isinstance(x, Tensor) else x for x in t])
    if isinstance(t, Tensor) and (t.ndim != 1 or t.is_complex() or t.dtype == torch.bool):
        raise ValueError(f"t must be one-dimensional and real, got shape {tuple(t.shape)} of {t.dtype}; write t=[0.0, 1.0]")
    try:
        values = [float(x) for x in (t.tolist() if isinstance(t, Tensor) else t)]
    except (TypeError, ValueError):
        raise TypeError(f"t must be a sequence of times such as [0.0, 1.0], got {type(t).__name__}") from None
    if len(values) < 2:
        raise ValueError(f"t must hold at least two times (start and end), got {values}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"t must be finite, got {values}")
    gaps = [later - earlier for earlier, later in pairwise(values)]
    if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        raise ValueError(f"t must be strictly rising or strictly falling, got {values}")
    return t if isinstance(t, Tensor) and t.requires_grad else tuple(values)


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
        raise ValueError(f"a fixed-step method needs either steps (per interval of t) or step_size, got {given}; e.g. steps=10")
    if steps is not None:
        return Grid(times, (as_count("steps", steps),) * (len(times) - 1))
    assert step_size is not None
    if not isinstance(step_size, SupportsFloat) or not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size={step_size!r} must be a positive finite number (t may fall, step_size never does)")
    values = times.tolist() if isinstance(times, Tensor) else times
    spans = [abs(later - earlier) for earlier, later in pairwise(values)]
    # A span that is a whole number of step sizes up to rounding must not gain a step: 1.1 / 0.1 = 11.000000000000002.
    return Grid(times, tuple(max(1, math.ceil(span / step_size * (1 - 1e-9))) for span in spans))
