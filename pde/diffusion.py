"""Diffusion of a field along one axis."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .coefficient import (
    Diffusivity,
    as_coefficient,
    attach,
    evaluate,
    extremes,
    is_constant,
    is_zero,
    need_at_least_0,
    positive,
    reads_field,
)
from .equation import Term
from .extrapolation import Reach
from .grid import Grid1D
from .numbers import as_tensor
from .stability import Profile
from .stencils import Derivative, Stencil, derivative, sealed, stencil_weights

NEXT = Reach(1, 1)
JUMP = 2  # D that changes by this factor over the points of an interpolation is not smooth there


class Diffusion(Term):
    """du/dt = d/dx (D du/dx), which flattens fields (..., n): the mode k decays by exp(-D k^2 t).

    A constant D multiplies the second derivative. One that varies stands between two first derivatives on staggered points, the
    flux D du/dx at the midpoints: the sum of u changes by what flows through the ends alone, to round-off, with both, whatever the
    scheme, if slopes are given (``Slope``), the ends are ``Closed`` or the grid is periodic. No mode grows for any D >= 0. At the
    midpoints "central2" takes the harmonic mean of D at its neighbours, 2 / (1/D + 1/D'), so that two materials have the slopes of their
    ratio; the other schemes take a function there, and interpolate a tensor of n values (to order 6 for "spectral"; the harmonic mean
    where it changes by a factor of 2). An explicit method needs dt D / h^2 below about 1/2 (Euler, central2); ``max_stable_step``
    tells for any scheme and method.

    A function (t, x, u), or (*args), makes D depend on the field: at the midpoints it gets the mean of the two neighbours ("central2") or u
    interpolated, so that fronts move on where D vanishes with u. This is not linear: no symbol and no flow, and all is in the explicit
    part of ``split()``, so IMEX and exponential methods have the limit of explicit ones; implicit ones (rodas5p, kvaerno5) have none.
    ``max_stable_step(method, u)`` takes D at u, without u it knows nothing of this term.

    A D that is learned and becomes negative counts as 0 and has no gradient there, as does a negative value of a function.

    Args:
        grid: the points; walls need data at both ends.
        diffusivity: D >= 0, length^2 per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> D or
            (t, x, u) -> D of the coordinates x and the field u there.
        scheme: "central2", "central4", "central6", or "spectral" (periodic grids). D that varies between walls: "central2".

    Raises:
        ValueError: a number or tensor D that is negative or not finite, an unknown scheme, no data at an end, or D varying between
            walls with another scheme.
        TypeError: a diffusivity of another kind.

    Source: LeVeque, Finite Difference Methods for Ordinary and Partial Differential Equations (2007), 2.15 and 9.
    """

    even = True
    name, coefficient = "Diffusion", "diffusivity"

    def __init__(self, grid: Grid1D, diffusivity: Diffusivity, scheme: str = "central2") -> None:
        super().__init__(grid)
        attach(self, "diffusivity", diffusivity, grid.n, of_field=True)
        need_at_least_0("diffusivity", diffusivity)
        self.scheme = scheme
        self.linear = not reads_field(diffusivity)
        self.second: Derivative = derivative(grid, 2, scheme)
        self.accuracy = 6 if scheme == "spectral" else int(scheme[-1])
        self.to_faces, self.back = _staggered(self.accuracy)
        self.boundary.validate("Diffusion", "diffusion")
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
            return self._constant(u) * self.second(u, self.grid, t)
        d = self._at_faces(t, u) if self.linear else self._of_field(t, self.grid.faces(u), self._field_at_faces(t, u))
        if not self.grid.periodic:
            padded = self.grid.boundary.pad(u, NEXT, self.grid.spacing, t)
            flux = sealed(d * ((padded[..., 1:] - padded[..., :-1]) / self.grid.spacing), self.grid.boundary.closed)
            return (flux[..., 1:] - flux[..., :-1]) / self.grid.spacing
        if self.scheme == "spectral":
            return _half_shifted(d * _half_shifted(u, self.grid, 1), self.grid, -1)
        return self.back(d * self.to_faces(u, self.grid), self.grid)

    def symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the symbol")
        k = as_tensor(k)
        return self._constant(k) * self.second.symbol(k, self.grid.spacing)

    def exact_symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the exact symbol")
        return evaluate(self.diffusivity, 0.0, lambda: k, k) * torch.complex(-(k**2), torch.zeros_like(k))

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        if self.linear:
            return sorted({max(value, 0.0) for value in extremes(self.diffusivity, self.grid.points(self.like()), t)})
        if u is None:
            return [0.0]
        return extremes(lambda t, _: self._of_field(t, self.grid.points(u), u), u, t)

    def frozen(self, value: float, k: Tensor) -> Tensor:
        if self.constant or self.scheme == "spectral":
            return value * self.second.symbol(k, self.grid.spacing)
        return value * self.to_faces.symbol(k, self.grid.spacing) * self.back.symbol(k, self.grid.spacing)

    def on(self, grid: Grid1D, value: Profile) -> Term:
        return Diffusion(grid, positive(as_coefficient(value)), self.scheme)

    def _constant(self, like: Tensor) -> Any:
        return positive(evaluate(self.diffusivity, 0.0, lambda: like, like))

    def _of_field(self, t: Any, x: Tensor, u: Tensor) -> Any:
        function: Any = self.diffusivity
        return positive(evaluate(lambda t, x: function(t, x, u), t, lambda: x, u))

    def _field_at_faces(self, t: Any, u: Tensor) -> Tensor:
        """u at the midpoints, walls included."""
        if not self.grid.periodic:
            padded = self.grid.boundary.pad(u, NEXT, self.grid.spacing, t)
            return (padded[..., 1:] + padded[..., :-1]) / 2
        if self.scheme == "spectral":
            return _half_shifted(u, self.grid, 1, order=0)
        return _to_faces(self.accuracy, 0)(u, self.grid)

    def _at_faces(self, t: Any, u: Tensor) -> Any:
        """D at the midpoints, walls included."""
        grid, tensor = self.grid, isinstance(self.diffusivity, Tensor)
        if not tensor and self.accuracy > 2:
            return positive(evaluate(self.diffusivity, t, lambda: grid.faces(u), u))
        stops = lambda: grid.points(u) if grid.periodic else _with_walls(grid, u)  # noqa: E731
        d = positive(evaluate(self.diffusivity, t, stops, u))
        if not isinstance(d, Tensor) or d.ndim == 0 or d.shape[-1] == 1:
            return d
        if grid.periodic:
            return _interpolated(d, grid, self.accuracy) if self.accuracy > 2 else _harmonic(d, d.roll(-1, -1))
        if not tensor:
            left, d, right = d[..., :1], d[..., 1:-1], d[..., -1:]
        else:
            left, right = _beyond(d[..., :1], d[..., 1:2]), _beyond(d[..., -1:], d[..., -2:-1])
        return torch.cat([left, _harmonic(d[..., :-1], d[..., 1:]), right], -1)


def _with_walls(grid: Grid1D, like: Tensor) -> Tensor:
    """The points, and the walls before and behind them: (n + 2,)."""
    walls = grid.faces(like)
    return torch.cat([walls[:1], grid.points(like), walls[-1:]])


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    """2 / (1/a + 1/b) for a, b >= 0."""
    total = a + b
    return 2 * a * (b / torch.where(total > 0, total, 1.0))


def _beyond(first: Tensor, second: Tensor) -> Tensor:
    """D at a wall from the two values next to it: on the line through both, at least half of the first."""
    return torch.maximum(1.5 * first - 0.5 * second, first / 2)


def _interpolated(d: Tensor, grid: Grid1D, accuracy: int) -> Tensor:
    """D at the midpoints of a periodic grid from its values at the points: positive where these are."""
    near = torch.stack([d.roll(-j, -1) for j in range(1 - accuracy // 2, accuracy // 2 + 1)])
    smooth = near.amax(0) < JUMP * near.amin(0)
    return torch.where(smooth, _to_faces(accuracy, 0)(d, grid), _harmonic(d, d.roll(-1, -1)))


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


def _half_shifted(u: Tensor, grid: Grid1D, side: int, order: int = 1) -> Tensor:
    """The spectral derivative (order 0: the field) half a cell to the right or left: F^-1 [(i k)^order exp(+-i k h/2) F u]."""
    k = grid.modes(u)
    factor = torch.polar(k if order else torch.ones_like(k), side * k * grid.spacing / 2 + order * torch.pi / 2)
    return torch.fft.irfft(factor * torch.fft.rfft(u), n=grid.n)
