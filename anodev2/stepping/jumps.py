"""Times at which f may jump: a step ends there, and each side of it reads f's limit from its own side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .times import Limits, Time, Times, as_sequence, numbers, wants_grad

ASIDE = 3  # where b = i / n, the roundings of b and of n t move floor(n t) by two; two breaks are more than twice that apart


@dataclass(frozen=True)
class Jumps:
    """The times as numbers; ``bits``: of the numbers that f is told as times.

    f's limit at a jump is its value ``ASIDE`` units of round-off within the step, so that ``t < b``, ``t <= b``, ``torch.where`` and
    ``floor`` all tell on which side of b they are asked.
    """

    values: frozenset[float]
    bits: int

    def limits(self, start: Time, end: Time) -> Limits:
        """Between which times f is asked in a step, numbers or (of samples with times of their own) tensors like these."""
        if isinstance(start, Tensor) and start.ndim:
            return self._of_samples(start.detach(), torch.as_tensor(end).detach())
        start, end = numbers((start, end))
        low, high = (self._within(start, end), self._within(end, start))
        return (low or -math.inf, high or math.inf) if start < end else (high or -math.inf, low or math.inf)

    def _of_samples(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        way, here = (end - start).sign(), torch.tensor(sorted(self.values), dtype=torch.float64, device=start.device)
        exponent = torch.maximum(start.frexp()[1], end.frexp()[1]) - self.bits
        unit = torch.ldexp(torch.ones_like(start), exponent)
        first, last = (((time / unit).round() + side * ASIDE) * unit for time, side in ((start, way), (end, -way)))
        from_first, to_last = (torch.isin(time, here) & (way != 0) for time in (start, end))
        low = torch.where(way > 0, first.where(from_first, -math.inf), last.where(to_last, -math.inf))
        return low, torch.where(way > 0, last.where(to_last, math.inf), first.where(from_first, math.inf))

    def told(self, dtype: torch.dtype) -> Jumps:
        """The same for f that is told times in another precision."""
        return Jumps(self.values, _bits(dtype))

    def _within(self, time: float, other: float) -> float | None:
        """The number beside a jump towards the other end of the step, in units of the larger of both; None where there is no jump."""
        if time not in self.values or time == other:
            return None
        unit = math.ldexp(1.0, max(math.frexp(time)[1], math.frexp(other)[1]) - self.bits)
        return (round(time / unit) + (ASIDE if other > time else -ASIDE)) * unit


def as_breaks(breaks: Any, times: Times, dtype: torch.dtype) -> tuple[Times, Jumps | None]:
    """Those between the first and the last of ``times``, in their order; those at these too are ``Jumps``."""
    if breaks is None:
        return (), None
    given, values = as_sequence("breaks", breaks)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"breaks must be finite, got {values}")
    start, end = _span(times)
    falls, bits = end < start, _bits(dtype)
    pairs = sorted(zip(values, given, strict=True), key=lambda pair: -pair[0] if falls else pair[0])
    kept: list[tuple[float, Time]] = []
    for value, time in pairs:
        if not min(start, end) <= value <= max(start, end):
            continue
        if kept and abs(value - kept[-1][0]) <= math.ldexp(max(abs(value), abs(kept[-1][0])), 4 - bits):
            if kept[-1][0] == value and not (wants_grad(time) or wants_grad(kept[-1][1])):
                continue
            raise ValueError(f"breaks {kept[-1][0]} and {value} are one time for func in {dtype}, or nearly; give it once")
        kept.append((value, time))
    inner = tuple(time if wants_grad(time) else value for value, time in kept if value not in (start, end))
    return inner, Jumps(frozenset(value for value, _ in kept), bits) if kept else None


def _span(times: Times) -> tuple[float, float]:
    """The first and the last time, of all samples."""
    if not (isinstance(times[0], Tensor) and times[0].ndim):
        start, *_, end = numbers(times)
        return start, end
    columns = torch.stack([torch.as_tensor(time) for time in times])
    known = columns[~columns.isnan()]
    low, high = known.min().item(), known.max().item()
    return (high, low) if (columns < columns[0]).any() else (low, high)


def _bits(dtype: torch.dtype) -> int:
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def apart(time: Time, knot: Time) -> bool:
    """Whether an output time and the break at the same time may move apart: one of them has a gradient, and they are not one tensor."""
    return time is not knot and (wants_grad(time) or wants_grad(knot))


def merged(times: Sequence[Time], breaks: Times) -> Times:
    """All times in order; a break takes the place of an equal time."""
    values, at = numbers(tuple(times)), dict(zip(numbers(breaks), breaks, strict=True))
    found = dict(zip(values, times, strict=True)) | at
    return tuple(found[value] for value in sorted(found, reverse=values[-1] < values[0]))
