"""Grids of one space dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid1D:
    """n equally spaced points x_i = i length / n, i = 0 ... n - 1, on a periodic axis: x = length is x = 0 and not stored.

    Args:
        n: number of points, at least 3.
        length: period, in the unit of x.

    Raises:
        ValueError: naming the argument.
    """

    n: int
    length: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 3:
            raise ValueError(f"n={self.n} points are too few for a grid; give at least 3")
        if not (math.isfinite(self.length) and self.length > 0):
            raise ValueError(f"length={self.length} must be positive and finite")

    def points(self, like: Tensor | None = None) -> Tensor:
        """The coordinates x_i, shape (n,), with the dtype and device of ``like``."""
        dtype, device = (torch.get_default_dtype(), None) if like is None else (like.dtype, like.device)
        return torch.arange(self.n, dtype=dtype, device=device) * (self.length / self.n)

    def wavenumbers(self, like: Tensor) -> Tensor:
        """k = 2 pi m / length of the real Fourier modes m = 0 ... n // 2; that of an even grid's last mode is 0.

        The last mode of an even grid (Nyquist) has no first derivative that is real and odd in k.
        """
        modes = torch.arange(self.n // 2 + 1, dtype=like.dtype, device=like.device)
        if self.n % 2 == 0:
            modes[-1] = 0
        return modes * (2 * math.pi / self.length)
