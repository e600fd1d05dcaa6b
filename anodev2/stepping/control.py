"""Error control: tolerances, and the size of the next step from the errors of those before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ..pytree import Structure, leaves_of
from .grid import as_count
from .jumps import Jumps, apart, merged
from .times import Time, Times, numbers

RTOL, ATOL = 1e-7, 1e-9  # torchdiffeq's, so that a solve without tolerances means the same here
MAX_STEPS = 10_000  # of error control: what needs more is stiff, as a rule
MORE = (
    "allow more, or any number with max_steps=None, or larger errors; a stiff problem wants rodas5p, an implicit or an exponential method"
)
STRETCH = 1.01  # of a step that would leave less than that to an output time


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
        refresh: k: the steps are found without a graph, recorded, and taken as a grid by this call and the k - 1 that follow with the same
            func, method, times, tolerances and shapes of y0, whatever its values and those of args. So ``compile=True``, ``memory=`` and
            every adjoint for grids go with error control, whose errors are looked at in every k-th call. Gradients are those of the
            grid taken. Kept as long as func lives, not in a state_dict; a copy of a module begins anew. A function that each call makes
            anew is the same while it captures the same objects and equal numbers (one that captures a list, or another tensor each time,
            looks each time: hand that over in args); each method of an object and each ``functools.partial`` object is by itself.
            None: found in every call.

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
    refresh: int | None = None

    def __post_init__(self) -> None:
        numbers_given = (self.safety, self.shrink, self.grow, self.min_step, self.max_step, self.first_step or 1.0)
        if not isinstance(self.pid, Sequence) or not all(isinstance(x, (int, float)) for x in (*self.pid, *numbers_given)):
            raise TypeError(f"the fields of Control must be numbers, pid three of them, got {self}")
        if self.refresh is not None:
            object.__setattr__(self, "refresh", as_count("refresh", self.refresh))
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
    """Steps found by error control: the output times, and a relative and an absolute tolerance for each leaf.

    ``stops``: where steps must end, the first and the last time among them; None: at all output times. They end at ``breaks`` too, where f
    may jump; ``jumps``: all times where it may. ``every``: the outputs are the start, every so many steps, and the end.
    """

    times: Times
    rtol: tuple[Any, ...]
    atol: tuple[Any, ...]
    control: Control
    stops: Times | None = None
    breaks: Times = ()
    jumps: Jumps | None = None
    every: int | None = None

    def saved_every(self, steps: int) -> Adaptive:
        """The same with the states after every so many steps as outputs."""
        times = self.times if self.stops is None else (self.times[0], self.times[-1])
        return replace(self, every=steps, times=times)

    @property
    def ends(self) -> Times:
        """Where steps must end."""
        stops = self.times if self.stops is None else self.stops
        return merged(stops, self.breaks) if self.breaks else stops

    @property
    def apart(self) -> frozenset[int]:
        """Which of the output times are read from the step that ends at the break in their place."""
        at = dict(zip(numbers(self.breaks), self.breaks, strict=True))
        pairs = enumerate(zip(self.times, numbers(self.times), strict=True)) if at else ()
        return frozenset(place for place, (time, value) in pairs if value in at and apart(time, at[value]))

    def mapped(self, change: Callable[[Time], Time]) -> Adaptive:
        """The same with other times."""
        times, breaks = tuple(map(change, self.times)), tuple(map(change, self.breaks))
        return replace(self, times=times, breaks=breaks, stops=None if self.stops is None else tuple(map(change, self.stops)))


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
