"""Diffusion of a field along one axis."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .boundary import Reach
from .coefficient import Coefficient, attach, evaluate, extremes, is_constant, is_zero
from .equation import Term
from .grid import Grid1D
from .numbers import as_tensor
from .stencils import Derivative, Stencil, derivative, stencil_weights

NEXT = Reach(1, 1)


class Diffusion(Term):
    """du/dt = d/dx (D du/dx), which flattens fields (..., n): the mode k decays by exp(-D k^2 t).

    A constant D multiplies the second derivative. One that varies stands between two first derivatives on staggered points (the
    flux D du/dx lives at the midpoints; a tensor D of n values is interpolated to them): the sum of u changes by what flows through the
    ends alone, to round-off, with both, whatever the scheme, if slopes are given (``Neumann``) or the grid is periodic. An explicit
    method needs dt D / h^2 below about 1/2 (Euler, central2); ``max_stable_step`` tells for any scheme and method.

    Args:
        grid: the points; walls need data at both ends.
        diffusivity: D >= 0, length^2 per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> D.
        scheme: "central2", "central4", "central6", or "spectral" (periodic grids). D that varies between walls: "central2".

    Raises:
        ValueError: a negative number D, an unknown scheme, no data at an end, or D varying between walls with another scheme.
        TypeError: a diffusivity of another kind.

    Source: LeVeque, Finite Difference Methods for Ordinary and Partial Differential Equations (2007), 2.15 and 9.
    """

    even = True
    name, coefficient = "Diffusion", "diffusivity"

    def __init__(self, grid: Grid1D, diffusivity: Coefficient, scheme: str = "central2") -> None:
        super().__init__(grid)
        attach(self, "diffusivity", diffusivity, grid.n)
        if isinstance(diffusivity, int | float) and diffusivity < 0:
            raise ValueError(f"diffusivity={diffusivity} must be at least 0: negative diffusion grows without bound")
        self.scheme = scheme
        self.second: Derivative = derivative(grid, 2, scheme)
        accuracy = 6 if scheme == "spectral" else int(scheme[-1])
        self.to_faces, self.back = _staggered(accuracy)
        self.between = _to_faces(accuracy, 0)
        need_both_ends(grid, "Diffusion")
        if not (is_constant(diffusivity) or grid.periodic or scheme == "central2"):
            raise ValueError(f"scheme={scheme!r} has no form for a diffusivity that varies between walls; take 'central2'")

    @property
    def constant(self) -> bool:
        return is_constant(self.diffusivity)

    @property
    def diffusive(self) -> bool:
        return not is_zero(self.diffusivity)

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        if self.constant:
            return evaluate(self.diffusivity, t, lambda: u, u) * self.second(u, self.grid, t)
        d = self._at_faces(t, u)
        if not self.grid.periodic:
            padded = self.grid.boundary.pad(u, NEXT, self.grid.spacing, t)
            flux = d * ((padded[..., 1:] - padded[..., :-1]) / self.grid.spacing)
            return (flux[..., 1:] - flux[..., :-1]) / self.grid.spacing
        if self.scheme == "spectral":
            return _half_shifted(d * _half_shifted(u, self.grid, 1), self.grid, -1)
        return self.back(d * self.to_faces(u, self.grid), self.grid)

    def symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the symbol")
        k = as_tensor(k)
        return evaluate(self.diffusivity, 0.0, lambda: k, k) * self.second.symbol(k, self.grid.spacing)

    def exact_symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the exact symbol")
        return evaluate(self.diffusivity, 0.0, lambda: k, k) * torch.complex(-(k**2), torch.zeros_like(k))

    def extremes(self, u: Tensor | None) -> list[float]:
        return extremes(self.diffusivity, self.grid.points(self.like()))

    def frozen(self, value: float, k: Tensor) -> Tensor:
        if self.constant or self.scheme == "spectral":
            return value * self.second.symbol(k, self.grid.spacing)
        return value * self.to_faces.symbol(k, self.grid.spacing) * self.back.symbol(k, self.grid.spacing)

    def _at_faces(self, t: Any, u: Tensor) -> Any:
        d = evaluate(self.diffusivity, t, lambda: self.grid.faces(u), u)
        if not isinstance(self.diffusivity, Tensor):
            return d
        if not self.grid.periodic:
            padded = self.grid.boundary.without_data().pad(d, NEXT, self.grid.spacing)
            return (padded[..., 1:] + padded[..., :-1]) / 2
        return self.between(d, self.grid)


def need_both_ends(grid: Grid1D, name: str) -> None:
    """ValueError where an end of a grid with walls has no data."""
    if not grid.periodic and None in grid.boundary.data():
        kind, end = type(grid.boundary).__name__, ("left", "right")[[d is None for d in grid.boundary.data()].index(True)]
        raise ValueError(f"{name} needs data at both ends, {end}=None has none; give {kind}({end}=...)")


@lru_cache
def _to_faces(accuracy: int, order: int) -> Stencil:
    """From points to the midpoint right of each: interpolation (order 0) or derivative (order 1)."""
    offsets = tuple(range(1 - accuracy // 2, accuracy // 2 + 1))
    found = stencil_weights(offsets, Fraction(1, 2), order)
    return Stencil("staggered", order, accuracy, accuracy, Reach(-offsets[0], offsets[-1]), offsets=offsets, weights=found)


@lru_cache
def _staggered(accuracy: int) -> tuple[Stencil, Stencil]:
    """The derivative from points to midpoints and the one back."""
    there = _to_faces(accuracy, 1)
    offsets = tuple(j - 1 for j in there.offsets)
    reach = Reach(-offsets[0], offsets[-1])
    return there, Stencil("staggered", 1, accuracy, accuracy, reach, offsets=offsets, weights=there.weights)


def _half_shifted(u: Tensor, grid: Grid1D, side: int) -> Tensor:
    """The spectral derivative half a cell to the right or left: F^-1 [i k exp(+-i k h/2) F u]."""
    k = grid.modes(u)
    factor = torch.polar(k, side * k * grid.spacing / 2 + torch.pi / 2)
    return torch.fft.irfft(factor * torch.fft.rfft(u), n=grid.n)
