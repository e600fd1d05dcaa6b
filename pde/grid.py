"""Grids of one space dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .boundary import Boundary, Periodic, Short, between
from .conditions import Condition

PERIODIC = Periodic()  # without data: one serves all grids


@dataclass(frozen=True, init=False)
class Grid1D:
    """n equally spaced points on an axis from start to start + length, spacing h = length / n.

    Periodic: x_i = start + i h, i = 0 ... n - 1; x = start + length is x = start and not stored. With walls: the cell
    centres x_i = start + (i + 1/2) h; the walls at start and start + length are not stored.

    Args:
        n: number of points, at least 3.
        length: of the axis (the period), in the unit of x.
        boundary: what holds at its ends: ``Periodic()``, or a pair of conditions, ``(Value(1.0), Slope(0.0))``, or one of the short
            forms ``Dirichlet(left, right)`` and ``Neumann(left, right)``; in a pair ``Dirichlet(a)`` is ``Value(a)``.
        start: x of the left end, in the unit of x.

    Raises:
        ValueError: naming the argument.
        TypeError: a boundary that is none, or n that is no whole number.
    """

    n: int
    length: float
    boundary: Boundary
    start: float

    def __init__(
        self, n: int, length: float = 1.0, boundary: Boundary | tuple[Condition | Short, Condition | Short] = PERIODIC, start: float = 0.0
    ) -> None:
        if not hasattr(n, "__index__"):
            raise TypeError(f"n={n!r} must be a whole number of points")
        if n < 3:
            raise ValueError(f"n={n} points are too few for a grid; give at least 3")
        for name, value in (("length", length), ("start", start)):
            if not hasattr(value, "__float__"):
                raise TypeError(f"{name}={value!r} must be a number; an axis from -1 to 1 is Grid1D({n}, length=2.0, start=-1.0)")
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"length={length} must be positive and finite")
        if not math.isfinite(start):
            raise ValueError(f"start={start} must be finite, the place of the left end")
        ends = between(*boundary) if isinstance(boundary, tuple) and len(boundary) == 2 else boundary
        if not isinstance(ends, Boundary):
            raise TypeError(f"boundary={ends!r} must be Periodic(), a pair of conditions, Dirichlet(left, right) or Neumann(left, right)")
        for name, value in (("n", n), ("length", length), ("boundary", ends), ("start", start)):
            object.__setattr__(self, name, value)

    @property
    def periodic(self) -> bool:
        """Whether both ends are one point."""
        return self.boundary.periodic

    @property
    def spacing(self) -> float:
        """h = length / n."""
        return self.length / self.n

    def points(self, like: Tensor | None = None) -> Tensor:
        """The coordinates x_i, shape (n,), with the dtype and device of ``like``."""
        return self._steps(self.n, 0.0 if self.periodic else 0.5, like)

    def faces(self, like: Tensor | None = None) -> Tensor:
        """The midpoints between neighbours: x_i + h/2, shape (n,); with walls, these included: start + i h, i = 0 ... n, (n + 1,)."""
        return self._steps(self.n, 0.5, like) if self.periodic else self._steps(self.n + 1, 0.0, like)

    def modes(self, like: Tensor) -> Tensor:
        """k = 2 pi m / length of the real Fourier modes m = 0 ... n // 2."""
        return modes(self.n, self.length, like)

    def wavenumbers(self, like: Tensor) -> Tensor:
        """k = 2 pi m / length of the real Fourier modes m = 0 ... n // 2; that of an even grid's last mode is 0.

        The last mode of an even grid (Nyquist) has no first derivative that is real and odd in k.
        """
        return wavenumbers(self.n, self.length, like)

    def check(self, u: Tensor) -> None:
        """ValueError for a field of another number of points, TypeError for a complex one."""
        if u.shape[-1:] != (self.n,):
            given = u.shape[-1] if u.ndim else "no axis of"
            raise ValueError(f"the field has {given} points in its last axis, the grid {self.n}")
        if u.is_complex():
            raise TypeError(f"fields are real, got {u.dtype}; stack real and imaginary part in front: torch.stack([u.real, u.imag])")

    def _steps(self, count: int, first: float, like: Tensor | None) -> Tensor:
        dtype, device = (torch.get_default_dtype(), None) if like is None else (like.dtype, like.device)
        i = torch.arange(count, dtype=dtype, device=device)
        x = (i + first if first else i) * self.spacing
        return x + self.start if self.start else x


def modes(n: int, length: float, like: Tensor) -> Tensor:
    """``Grid1D.modes``, for a function that a compiler goes through: it makes no grid."""
    return torch.arange(n // 2 + 1, dtype=like.dtype, device=like.device) * (2 * math.pi / length)


def wavenumbers(n: int, length: float, like: Tensor) -> Tensor:
    """``Grid1D.wavenumbers``, likewise."""
    k = modes(n, length, like)
    if n % 2 == 0:
        k[-1].zero_()
    return k
