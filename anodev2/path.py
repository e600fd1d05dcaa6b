"""Inputs that are sequences: a path x(t) through values at times, irregular and of lengths that differ from sample to sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["linear", "cubic", "hold"]


class Path:
    """x(t) of each sample, through ``values`` at ``times``.

    Between two knots, with c from 0 to 1 on the way from x_n to x_{n+1}, h the time between and D = x_{n+1} - x_n:

        hold      x_n                                           jumps at the knots
        linear    x_n + c D                                     its derivative jumps there
        cubic     x_n + c s + c^2 (2 D - 2 s) + c^3 (s - D)     smooth: s = h (x_n - x_{n-1}) / (t_n - t_{n-1}), the slope from before

    ("cubic": in the first interval s = D, a straight line.) Values depend on no later knot than the next. Before its first and behind its
    last time a path stands still.

    Args:
        times: (length,) for all samples, or (batch, length); strictly rising, any unit. None: 0, 1, 2 ...
        values: (batch, length, *shape), floating or complex.
        kind: "linear", "cubic" or "hold".
        lengths: how many values each sample has, (batch,), at least 1; what follows them is padding and never looked at. None: all.

    Gradients go to values and times.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.

    Source: Morrill et al., Neural Controlled Differential Equations for Online Prediction Tasks (arXiv 2106.11028), for "cubic".
    """

    def __init__(self, times: Any, values: Tensor, kind: Kind = "linear", *, lengths: Any = None) -> None:
        if not isinstance(values, Tensor) or not (values.is_floating_point() or values.is_complex()):
            given = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"values must be a floating or complex tensor, got {given}")
        if values.ndim < 2 or 0 in values.shape[:2]:
            raise ValueError(f"values must be (batch, length, ...) with one value at least, got {tuple(values.shape)}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, get_args(Kind)))}")
        self.kind: Kind = kind
        self.regular = times is None and lengths is None  # a unit of time between all knots
        self.lengths = _lengths(lengths, values)
        times = _times(times, values)
        if self.lengths is not None:  # beyond its end a sample stays where it is, in no time
            last = torch.arange(values.shape[1], device=values.device).minimum(self.lengths[:, None] - 1)
            rows = torch.arange(values.shape[0], device=values.device)[:, None]
            times, values = times.expand(values.shape[0], -1).gather(1, last), values[rows, last]
        self.times, self.values = times, values
        if not (self.regular or torch.compiler.is_compiling()):  # values would be looked at
            _check_order(self.times.detach(), self.lengths)

    def __len__(self) -> int:
        """How many knots the longest sample may have."""
        return self.values.shape[1]

    @property
    def gaps(self) -> Tensor:
        """The time between neighbouring knots, (batch or 1, length - 1), 0 in padding."""
        return self.times.diff(dim=1)

    @property
    def breaks(self) -> tuple[float, ...]:
        """All times at which some sample has a knot, rising: where steps should end. Those at its ends or outside cost nothing."""
        return tuple(self.times.detach().unique().tolist())

    def __call__(self, t: Any) -> Tensor:
        """x(t), (batch, *shape); at a knot of "hold" the new value.

        Args:
            t: a time for all samples, or one for each, (batch,) or (batch, 1, ..., 1).
        """
        return self._at(t, _value, self.values)

    def derivative(self, t: Any) -> Tensor:
        """dx/dt, (batch, *shape); at a knot from the right, at the last from the left; zero outside and for "hold"."""
        return self._at(t, _rate, torch.zeros_like(self.values))

    def within(self, fraction: float) -> tuple[Tensor, Tensor]:
        """x and dx/dt at a fraction of every interval between two knots, (batch, length - 1, *shape) both."""
        values, times = self.values, self.times
        x0, t0 = (torch.cat([knots[:, :1], knots[:, :-2]], 1) for knots in (values, times))
        first = torch.arange(len(self) - 1, device=times.device)[None] == 0
        pieces = _pieces(first, x0, t0, values[:, :-1], times[:, :-1], values[:, 1:], times[:, 1:])
        c = times.new_tensor(fraction).reshape(1, 1)
        return _value(self.kind, _like(c, values), *pieces), _rate(self.kind, _like(c, values), *pieces)

    def _at(self, t: Any, what: Callable[..., Tensor], alone: Tensor) -> Tensor:
        batch, last = len(self.values), len(self) - 2
        if last < 0:
            return alone[:, 0]
        t = torch.as_tensor(t, dtype=self.times.dtype, device=self.times.device)
        if t.numel() not in (1, batch):
            raise ValueError(f"t of shape {tuple(t.shape)} must be one time, or one for each of {batch} samples")
        t, times = t.reshape(-1, 1).expand(batch, 1), self.times.expand(batch, -1)
        place = (torch.searchsorted(times.detach().contiguous(), t.detach().contiguous(), right=True) - 1).clamp(0, last)
        if self.lengths is not None:
            place = place.minimum((self.lengths[:, None] - 2).clamp_min(0))
        rows = torch.arange(batch, device=place.device)[:, None]
        (x0, t0), (x1, t1), (x2, t2) = ((self.values[rows, at], times.gather(1, at)) for at in ((place - 1).clamp_min(0), place, place + 1))
        c, end = ((t - t1) / _safe(t2 - t1)).clamp(0, 1), times[:, -1:]
        pieces = _pieces(place == 0, x0, t0, x1, t1, x2, t2)
        found = what(self.kind, _like(c, self.values), *pieces)
        if what is _rate:
            return torch.where(_like((times[:, :1] <= t) & (t <= end), found), found, 0)[:, 0]
        return torch.where(_like(t >= end, found), self.values[:, -1:], found)[:, 0]

    def __repr__(self) -> str:
        batch, length, *shape = self.values.shape
        return f"Path({self.kind!r}, {batch} samples, {length} knots, values of shape {tuple(shape)})"


def _pieces(first: Tensor, x0: Tensor, t0: Tensor, x1: Tensor, t1: Tensor, x2: Tensor, t2: Tensor) -> tuple[Tensor, ...]:
    """Of intervals from x1 to x2, x0 the knot before: x_n, D, s, and how long they are in units that divide."""
    after, gap = x2 - x1, t2 - t1
    before = (x1 - x0) * _like(gap, x1) / _like(_safe(t1 - t0), x1)
    return x1, after, torch.where(_like(first, x1), after, before), _like(_safe(gap), x1)


def _value(kind: str, c: Tensor, value: Tensor, after: Tensor, step: Tensor, span: Tensor) -> Tensor:
    if kind == "hold":
        return value
    if kind == "linear":
        return value + c * after
    return value + c * (step + c * (2 * (after - step) + c * (step - after)))


def _rate(kind: str, c: Tensor, value: Tensor, after: Tensor, step: Tensor, span: Tensor) -> Tensor:
    if kind == "hold":
        return torch.zeros_like(value)
    if kind == "linear":
        return after / span
    return (step + c * (4 * (after - step) + 3 * c * (step - after))) / span


def _like(numbers: Tensor, values: Tensor) -> Tensor:
    """(batch, m) beside (batch, m, *shape), in its precision."""
    dtype = values.real.dtype if values.is_complex() else values.dtype
    shaped = numbers.reshape(*numbers.shape, *[1] * (values.ndim - numbers.ndim))
    return shaped if numbers.dtype == torch.bool else shaped.to(dtype)


def _safe(gaps: Tensor) -> Tensor:
    """To divide by: 1 in padding."""
    return torch.where(gaps == 0, 1.0, gaps)


def _check_order(times: Tensor, lengths: Tensor | None) -> None:
    padding = times.new_zeros(1, times.shape[1] - 1, dtype=torch.bool)
    if lengths is not None:
        padding = torch.arange(1, times.shape[1], device=times.device) >= lengths[:, None]
    if not times.isfinite().all() or not ((times.diff(dim=1) > 0) | padding).all():
        raise ValueError("times must be finite and strictly rising along each sample; give lengths for samples that are padded")


def _lengths(lengths: Any, values: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    found = torch.as_tensor(lengths, device=values.device)
    whole = found.dtype not in (torch.bool,) and not found.is_floating_point() and not found.is_complex()
    known = torch.compiler.is_compiling()
    if found.shape != values.shape[:1] or not whole or not (known or ((found >= 1) & (found <= values.shape[1])).all()):
        raise ValueError(f"lengths must be {len(values)} whole numbers from 1 to {values.shape[1]}, one per sample, got {lengths}")
    return found.long()


def _times(times: Any, values: Tensor) -> Tensor:
    """(batch or 1, length), in the precision of values or better."""
    batch, length = values.shape[:2]
    real = values.real.dtype if values.is_complex() else values.dtype
    dtype = torch.promote_types(real, torch.float32)
    if times is None:
        return torch.arange(length, dtype=dtype, device=values.device)[None]
    if (isinstance(times, Sequence) and not isinstance(times, str)) or (isinstance(times, Tensor) and not times.is_floating_point()):
        times = torch.as_tensor(times, dtype=dtype)
    if not isinstance(times, Tensor):
        raise TypeError(f"times must be a sequence or tensor, got {type(times).__name__}")
    if times.ndim not in (1, 2) or times.shape[-1] != length or (times.ndim == 2 and times.shape[0] != batch):
        raise ValueError(
            f"times of shape {tuple(times.shape)} must be ({length},) or ({batch}, {length}), as values are {tuple(values.shape)}"
        )
    return torch.atleast_2d(times).to(values.device)
