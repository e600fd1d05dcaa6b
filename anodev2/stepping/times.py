"""Times: numbers, but for those that require grad."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..torch_private import has_tangent

Time = float | Tensor
Times = tuple[Time, ...]  # tensors where they require grad (zero-dimensional) or differ from sample to sample (batch, 1, ...)
Limits = tuple[Time, Time]  # the least and the largest time, numbers or (compiled) tensors, at which f is asked in a step


def as_times(t: Any, name: str = "t", endless: bool = False, single: bool = False) -> Times:
    """Check ``t``: at least two finite times, strictly rising or falling; floats but for those that require grad.

    ``endless``: the last may be infinite. ``single``: there may be one alone.
    """
    times, values = as_sequence(name, t)
    if len(values) < 2 - single:
        least = "one time" if single else "two times (start and end)"
        raise ValueError(f"{name} must hold at least {least}, got {values}")
    if not all(map(math.isfinite, values[:-1] if endless else values)) or math.isnan(values[-1]):
        raise ValueError(f"{name} must be finite, got {values}")
    gaps = [later - earlier for earlier, later in pairwise(values)]
    if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        raise ValueError(f"{name} must be strictly rising or strictly falling, got {values}")
    return tuple(time if wants_grad(time) else value for time, value in zip(times, values, strict=True))


def as_sequence(name: str, t: Any) -> tuple[Times, tuple[float, ...]]:
    """The entries as they are, and as numbers; an error that names the argument for what is no sequence of real times."""
    if isinstance(t, Tensor) and (t.ndim != 1 or t.is_complex() or t.dtype == torch.bool):
        raise ValueError(f"{name} must be one-dimensional and real, got shape {tuple(t.shape)} of {t.dtype}; write {name}=[0.0, 1.0]")
    if isinstance(t, str):
        raise TypeError(f"{name} must be a sequence of times such as [0.0, 1.0], got str")
    if not torch.compiler.is_compiling() and any(
        isinstance(time, Tensor) and has_tangent(time) for time in (t if isinstance(t, (list, tuple)) else (t,))
    ):
        raise ValueError(f"{name} has no derivative in forward mode (jvp, jacfwd, dual tensors): take reverse mode (jacrev), or detach it")
    try:
        times: Times = tuple(t.unbind() if isinstance(t, Tensor) and t.requires_grad else t.tolist() if isinstance(t, Tensor) else t)
        return times, numbers(times)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a sequence of times such as [0.0, 1.0], got {type(t).__name__}") from None


def without_repeats(t: Any) -> tuple[Any, list[int] | None]:
    """t with each of its times once, and the place there of every time of t; None where none is repeated.

    Raises:
        ValueError: a repeated time that requires grad, of which there are as many derivatives as copies.
    """
    if (isinstance(t, Tensor) and t.ndim != 1) or isinstance(t, str):
        return t, None
    try:
        times, values = as_sequence("t", t)
    except (TypeError, ValueError):
        return t, None  # what is wrong with it is said where it is used
    places = [0, *accumulate(int(a != b) for a, b in pairwise(values))]
    if places[-1] + 1 >= len(values):
        return (times if values else t), None  # numbers, so that nobody waits for a device again
    if any(a == b and (wants_grad(times[i]) or wants_grad(times[i + 1])) for i, (a, b) in enumerate(pairwise(values))):
        raise ValueError(f"t repeats a time that requires grad, {values}: give it once, and index what comes out")
    return tuple(times[places.index(place)] for place in range(places[-1] + 1)), places


def times_of_samples(t: Any, y: Tensor, endless: bool = False) -> Times | None:
    """The columns (batch, 1, ...) of output times of shape (batch, T) for the samples of y; None where t has another number of axes.

    Each sample's times rise or fall strictly, all in one direction, and may end early with nan; the last may be infinite if ``endless``.
    """
    rows = isinstance(t, (list, tuple)) and t and all(isinstance(row, (list, tuple)) or getattr(row, "ndim", 0) == 1 for row in t)
    if not (rows or getattr(t, "ndim", 0) == 2):
        return None
    try:
        given = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            "the rows of t must be numbers, as many in each: end the shorter with nan, or give "
            "torch.nn.utils.rnn.pad_sequence(rows, True, float('nan')) of tensors"
        ) from None
    if given.ndim != 2 or y.ndim == 0:
        return None
    if given.requires_grad or given.is_complex() or given.dtype == torch.bool:
        raise ValueError("per_sample=True gives no gradient with respect to times; detach t" if given.requires_grad else "t must be real")
    if len(given) != len(y) or not given.shape[1]:
        raise ValueError(f"t of shape {tuple(given.shape)} must have a row of output times for each of the {len(y)} samples of y0")
    times = given.to("cpu", torch.float64)
    missing, infinite = times.isnan(), times.isinf()
    if missing[:, 0].any() or (missing[:, :-1] & ~missing[:, 1:]).any() or (infinite[:, 0] if endless else infinite).any():
        raise ValueError("each row of t must be finite and may end with nan, after the last time of its sample")
    gaps = times.diff(dim=1)
    gaps = gaps[~gaps.isnan()]
    if not ((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError("the rows of t must all be strictly rising, or all strictly falling")
    lead = (len(y), *(1,) * (y.ndim - 1))
    return tuple(column.reshape(lead).to(y.device) for column in times.unbind(1))


def wants_grad(time: Time) -> TypeGuard[Tensor]:
    """Whether a gradient with respect to this time is wanted."""
    return isinstance(time, Tensor) and time.requires_grad


def numbers(times: Times) -> tuple[float, ...]:
    """The times as Python numbers."""
    return tuple(float(time.detach() if isinstance(time, Tensor) else time) for time in times)
