"""Grids of one space dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .boundary import Boundary, Periodic

PERIODIC = Periodic()  # without data: one serves all grids


@dataclass(frozen=True)
class Grid1D:
    """n equally spaced points on an axis from 0 to length, spacing h = length / n.

    Periodic: x_i = i h, i = 0 ... n - 1; x = length is x = 0 and not stored. With walls (``Dirichlet``, ``Neumann``): the cell
    centres x_i = (i + 1/2) h; the walls at 0 and length are not stored.

    Args:
        n: number of points, at least 3.
        length: of the axis (the period), in the unit of x.
        boundary: what holds at its ends.

    Raises:
        ValueError: naming the argument.
        TypeError: a boundary that is none.
    """

    n: int
    length: float = 1.0
    boundary: Boundary = field(default_factory=lambda: PERIODIC)

    def __post_init__(self) -> None:
        if self.n < 3:
            raise ValueError(f"n={self.n} points are too few for a grid; give at least 3")
        if not (math.isfinite(self.length) and self.length > 0):
            raise ValueError(f"length={self.length} must be positive and finite")
        if not isinstance(self.boundary, Boundary):
            raise TypeError(f"boundary={self.boundary!r} must be Periodic(), Dirichlet(left, right) or Neumann(left, right)")

    @property
    def periodic(self) -> bool:
        """Whether x = length is x = 0."""
        return self.boundary.periodic

    @property
    def spacing(self) -> float:
        """h = length / n."""
        return self.length / self.n

    def points(self, like: Tensor | None = None) -> Tensor:
        """The coordinates x_i, shape (n,), with the dtype and device of ``like``."""
        return self._steps(self.n, 0.0 if self.periodic else 0.5, like)

    def faces(self, like: Tensor | None = None) -> Tensor:
        """The midpoints between neighbours: x_i + h/2, shape (n,); with walls, these included: i h, i = 0 ... n, shape (n + 1,)."""
        return self._steps(self.n, 0.5, like) if self.periodic else self._steps(self.n + 1, 0.0, like)

    def modes(self, like: Tensor) -> Tensor:
        """k = 2 pi m / length of the real Fourier modes m = 0 ... n // 2."""
        return torch.arange(self.n // 2 + 1, dtype=like.dtype, device=like.device) * (2 * math.pi / self.length)

    def wavenumbers(self, like: Tensor) -> Tensor:
        """k = 2 pi m / length of the real Fourier modes m = 0 ... n // 2; that of an even grid's last mode is 0.

        The last mode of an even grid (Nyquist) has no first derivative that is real and odd in k.
        """
        k = self.modes(like)
        if self.n % 2 == 0:
            k[-1].zero_()
        return k

    def check(self, u: Tensor) -> None:
        """ValueError for a field of another number of points, TypeError for a complex one."""
        if u.shape[-1:] != (self.n,):
            given = u.shape[-1] if u.ndim else "no axis of"
            raise ValueError(f"the field has {given} points in its last axis, the grid {self.n}")
        if u.is_complex():
            raise TypeError(f"fields are real, got {u.dtype}; stack real and imaginary part in front: torch.stack([u.real, u.imag])")

    def _steps(self, count: int, start: float, like: Tensor | None) -> Tensor:
        dtype, device = (torch.get_default_dtype(), None) if like is None else (like.dtype, like.device)
        i = torch.arange(count, dtype=dtype, device=device)
        return (i + start if start else i) * self.spacing
