"""Families of fields to start from, drawn from a seed: the same functions of x on every grid of the same axis, however fine."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .grid import Grid1D


def random_fourier(
    grid: Grid1D, shape: Sequence[int] = (), *, modes: int = 5, decay: float = 0.0, seed: int = 0, like: Tensor | None = None
) -> Tensor:
    """sum_{m=1..modes} m^-decay (a_m cos(k_m x) + b_m sin(k_m x)), k_m = 2 pi m / length, a and b standard normal: (*shape, n), mean 0.

    Args:
        grid: the points; the series has its length as period, between walls too.
        shape: of the axes in front, one field each.
        modes: how many, at least 1 and below n / 2.
        decay: of the amplitudes with the mode; 1 makes fields with about one corner, 2 smooth ones.
        seed: of the draws.
        like: dtype and device; by default the default dtype, on the CPU.

    Raises:
        ValueError: modes that the grid does not hold.
        TypeError: a shape that is no tuple, or modes that are no whole number.
    """
    shape, modes = _lead(shape), _count("modes", modes)
    if not 1 <= modes < grid.n / 2:
        raise ValueError(f"modes={modes} must be at least 1 and below n / 2 = {grid.n / 2:g}: the grid does not hold more")
    m = torch.arange(1, modes + 1, dtype=torch.float64)
    weights = torch.randn(*shape, 2, modes, dtype=torch.float64, generator=_seeded(seed)) * m**-decay
    angles = 2 * math.pi / grid.length * m[:, None] * _distance(grid, 0.0)
    return _like(weights[..., 0, :] @ torch.cos(angles) + weights[..., 1, :] @ torch.sin(angles), like)


def random_fronts(
    grid: Grid1D, shape: Sequence[int] = (), *, fronts: int = 2, width: float = 0.02, seed: int = 0, like: Tensor | None = None
) -> Tensor:
    """Plateaus at heights drawn evenly from [-1, 1], with steps (1 + tanh(d / w)) / 2 at places drawn evenly between them: (*shape, n).

    Args:
        grid: the points; on a periodic one the last plateau is the first, so fronts must be at least 2.
        shape: as for ``random_fourier``.
        fronts: how many, at least 1.
        width: w over the length; 0 makes jumps.
        seed, like: as for ``random_fourier``.

    Raises:
        ValueError: fewer fronts, or width < 0.
        TypeError: as for ``random_fourier``.
    """
    shape, fronts = _lead(shape), _count("fronts", fronts)
    least = 2 if grid.periodic else 1
    if fronts < least or not 0 <= width < math.inf:
        raise ValueError(f"fronts={fronts} must be at least {least} on this grid, and width={width} at least 0")
    draws = torch.rand(*shape, 2, fronts + 1, dtype=torch.float64, generator=_seeded(seed))
    places, heights = draws[..., 0, :fronts].sort(-1).values * grid.length, 2 * draws[..., 1, :] - 1
    if grid.periodic:
        heights[..., -1] = heights[..., 0]
    images = (-1, 0, 1) if grid.periodic else (0,)
    x, scale = _distance(grid, 0.0), max(width * grid.length, 1e-300)
    far = [(1 + torch.tanh((x - places[..., None] - image * grid.length) / scale)) / 2 for image in images]
    risen = torch.stack(far).sum(0) - images.index(0)  # those of the images to the left have passed
    return _like(heights[..., :1] + (heights.diff(dim=-1)[..., None] * risen).sum(-2), like)


def random_pulses(
    grid: Grid1D, shape: Sequence[int] = (), *, pulses: int = 3, width: float = 0.04, seed: int = 0, like: Tensor | None = None
) -> Tensor:
    """sum of a exp(-(d / w)^2), heights a drawn evenly from [-1, 1] and places evenly from the axis, d the distance: (*shape, n).

    Args:
        grid: the points; on a periodic one pulses go on beyond its end.
        shape: as for ``random_fourier``.
        pulses: how many, at least 1.
        width: w over the length, positive.
        seed, like: as for ``random_fourier``.

    Raises:
        ValueError: no pulse, or a width that is not positive.
        TypeError: as for ``random_fourier``.
    """
    shape, pulses = _lead(shape), _count("pulses", pulses)
    if pulses < 1 or not 0 < width < math.inf:
        raise ValueError(f"pulses={pulses} must be at least 1, and width={width} positive")
    draws = torch.rand(*shape, 2, pulses, dtype=torch.float64, generator=_seeded(seed))
    distance = _distance(grid, draws[..., 0, :, None] * grid.length)
    images = (-1, 0, 1) if grid.periodic else (0,)
    bumps = torch.stack([torch.exp(-(((distance - image * grid.length) / (width * grid.length)) ** 2)) for image in images])
    return _like(((2 * draws[..., 1, :, None] - 1) * bumps.sum(0)).sum(-2), like)


def _lead(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int):
        raise TypeError(f"shape={shape} must be a tuple, ({shape},) say")
    return tuple(shape)


def _count(name: str, value: int) -> int:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r} must be a whole number")
    return operator.index(value)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _distance(grid: Grid1D, place: Tensor | float) -> Tensor:
    """x - start - place."""
    return grid.points(torch.empty(0, dtype=torch.float64, device="cpu")) - grid.start - place


def _like(u: Tensor, like: Tensor | None) -> Tensor:
    return u.to(torch.get_default_dtype()) if like is None else u.to(like)
