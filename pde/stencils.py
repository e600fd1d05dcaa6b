"""Derivatives of fields on a grid: central and upwind differences, weno5, and the spectral derivative.

``derivative(grid, 1, "upwind3")(u, grid)`` is du/dx. Weights come from their order conditions (weights.py), none is typed in. For each
there is the order of its error where ghosts do not enter, and ``wall_order``, the order to which a smooth solution converges between
walls, by grid refinement:

    between walls           upwind1  upwind3  upwind5, weno5  central2  central4  central6
    first derivative           1        3           5            2         4         5       Dirichlet at the inflow, None at the outflow
    the same                   1        2           2            2         2         2       Neumann
    second derivative                                            2         4         6       Dirichlet
    second derivative                                            2         2         2       Neumann; full order if u is even about the wall
    first derivative       1        2           4            2         3         4       Robin; the second as Dirichlet
    the same and the second                                      2         2         2       Closed; upwind1 1

The mirror image that makes the ghosts beyond a Neumann wall keeps the sum of the field to round-off, and misses the third derivative
at the wall. That one is 0 for the heat equation with steady slopes (and for reaction-diffusion with zero slopes, and for waves), which
therefore converge with the full order.

Source: Fornberg, Math. Comp. 51 (1988) for weights by order conditions; Jiang, Shu, J. Comput. Phys. 126 (1996) for weno5.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from anodev2.fourier import Numbers, field_of, modes_of, paired, powers, times
from anodev2.tables import kept

from .boundary import Walls
from .conditions import Closed, Robin, Slope
from .dense import dense
from .extrapolation import Reach
from .grid import Grid1D, modes, wavenumbers
from .numbers import constant
from .weights import At, Average, values, weights

WIDTHS = {"central2": 1, "central4": 2, "central6": 3, "upwind1": 1, "upwind3": 2, "upwind5": 3, "weno5": 3}
SCHEMES: dict[int, tuple[str, ...]] = {1: ("central2", "central4", "central6", "upwind1", "upwind3", "upwind5", "weno5", "spectral")}
SCHEMES |= {order: ("central2", "central4", "central6", "spectral") for order in (2, 3, 4)}
# Degrees of the polynomials beyond a wall value: the highest for which the closed operators have no eigenvalue of positive real part,
# the first derivative also where values are given at both ends and next to any diffusion (central2, upwind3, central4: none higher has
# this, by computation at n = 12 ... 81); of the second derivative by central2 the one that keeps it symmetric.
DEGREES = {
    1: {"upwind1": 1, "upwind3": 2, "upwind5": 4, "weno5": 4, "central2": 1, "central4": 3, "central6": 4},
    2: {"central2": 1, "central4": 4, "central6": 6},
    **{order: {"central2": 1, "central4": 1, "central6": 1} for order in (3, 4)},  # periodic grids alone
}


@dataclass(frozen=True)
class Derivative(ABC):
    """A derivative as a formula; call it as ``D(u, grid)`` or ``D(u, grid, t)``.

    ``derivative`` is from 1 to 4; ``order`` that of its error in the spacing, ``wall_order`` that of a solution between walls (measured).
    ``reach`` tells the ghosts it needs. ``linear``: whether D(u + v) = D(u) + D(v).
    """

    scheme: str
    derivative: int
    order: float
    wall_order: float
    reach: Reach
    linear: bool = True

    def __call__(self, u: Tensor, grid: Grid1D, t: Tensor | float = 0.0, rate: Tensor | None = None) -> Tensor:
        """The derivative at the points of the grid, shape (..., n) like u, with the boundary data of time t.

        At ``Closed`` ends it is what flows through the faces of a cell, and nothing through the end. ``rate``: see ``Boundary.pad``.
        """
        grid.check(u)
        return self.apply(grid.boundary.pad(u, self.reach, grid.spacing, t, rate), grid)

    def apply(self, padded: Tensor, grid: Grid1D) -> Tensor:
        """The derivative of a field that has its ghosts already."""
        return self.between(padded, grid, grid.boundary.closed)

    @abstractmethod
    def between(self, padded: Tensor, grid: Grid1D, closed: tuple[bool, bool]) -> Tensor:
        """The same, as the difference of the values at the faces (times h), those of closed ends 0."""

    @abstractmethod
    def symbol(self, k: Tensor, spacing: float) -> Tensor:
        """Complex s with D exp(i k x) = s exp(i k x) on a grid of this spacing, in the shape of k."""

    def matrix(self, grid: Grid1D, like: Tensor | None = None) -> Tensor:
        """D as a dense (n, n) matrix, boundary data zero; float64 unless ``like`` says otherwise. ValueError for weno5.

        Robin's a and b of shape (..., 1) give (..., n, n).
        """
        if not self.linear:
            raise ValueError(f"scheme={self.scheme!r} is not linear and has no matrix; take 'upwind5', to which it tends on smooth fields")
        like = torch.empty(0, dtype=torch.float64) if like is None else like
        return dense(lambda u: self(u, grid, u.new_zeros(())), grid, like, grid.boundary.lead())


@dataclass(frozen=True)
class Stencil(Derivative):
    """D u_i = sum_j w_j u_{i + j} / h^m."""

    offsets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def between(self, padded: Tensor, grid: Grid1D, closed: tuple[bool, bool]) -> Tensor:
        n = padded.shape[-1] - self.reach.left - self.reach.right
        shifted = lambda j: padded[..., self.reach.left + j : self.reach.left + j + n]  # noqa: E731
        parity, total = self._parity(), None
        for j, w in zip(self.offsets, self.weights, strict=True):
            if parity and j < 0:
                continue  # comes with its mirror image
            term = torch.add(shifted(j), shifted(-j), alpha=parity) if parity and j > 0 else shifted(j)
            scale = w / grid.spacing**self.derivative
            total = term * scale if total is None else torch.add(total, term, alpha=scale)
        assert total is not None
        if not any(closed):
            return total
        faces = constant((tuple(itertools.accumulate(reversed(self.weights[1:])))[::-1],), padded)[0] / grid.spacing**self.derivative
        width = len(faces)  # the value at a face is sum_j (w_j + w_{j+1} + ...) u_{i+j}
        first = total[..., :1] + (padded[..., :width] * faces).sum(-1, keepdim=True) * closed[0]
        last = total[..., -1:] - (padded[..., -width:] * faces).sum(-1, keepdim=True) * closed[1]
        return torch.cat([first, total[..., 1:-1], last], -1)

    def symbol(self, k: Tensor, spacing: float) -> Tensor:
        """sum_j w_j (exp(i j k h) - 1) / h^m, without cancellation at long waves."""
        theta = k * spacing
        real, imaginary = torch.zeros_like(theta), torch.zeros_like(theta)
        for j, w in zip(self.offsets, self.weights, strict=True):
            real = real - 2 * w * torch.sin(j * theta / 2) ** 2
            imaginary = imaginary + w * torch.sin(j * theta)
        return torch.complex(real, imaginary) / spacing**self.derivative

    def _parity(self) -> int:
        """+1 or -1 where the weights are even or odd about the point, else 0."""
        if tuple(-j for j in reversed(self.offsets)) != self.offsets:
            return 0
        return 1 if self.weights[0] == self.weights[-1] else -1


@dataclass(frozen=True)
class Spectral(Derivative):
    """F^-1 [(i k)^m F u], exact for every mode below Nyquist; on even grids the first derivative of the Nyquist mode is 0."""

    def between(self, padded: Tensor, grid: Grid1D, closed: tuple[bool, bool]) -> Tensor:
        return field_of(self.spectrum(padded, grid), grid.n)

    def spectrum(self, u: Tensor, grid: Grid1D, scale: float = 1.0) -> Tensor:
        """scale (i k)^m F u."""
        factor = kept(_powers, self.derivative, grid.n, grid.length, u.dtype, u.device, scale, paired())
        return times(factor, modes_of(u))

    def symbol(self, k: Tensor, spacing: float) -> Tensor:
        if self.derivative % 2 == 0:
            return torch.complex(-(k**2) if self.derivative == 2 else k**4, torch.zeros_like(k))
        k = torch.where((k * spacing).abs() < math.pi * (1 - 1e-6), k, 0.0)
        return torch.complex(torch.zeros_like(k), k if self.derivative == 1 else -(k**3))


@dataclass(frozen=True)
class Weno5(Derivative):
    """(F_{i+1/2} - F_{i-1/2}) / h, F the upwind value at the face as a mean of three parabolas that avoids those with a jump.

    Its parabolas' weights are 1/10, 6/10, 3/10 where u is smooth and fall as 1 / (smoothness / s^2 + 1e-6)^2, s the distance between the
    largest and the smallest u: fields of all sizes are treated alike. The symbol is that of upwind5, its linear limit: an estimate.

    Source: Jiang, Shu, J. Comput. Phys. 126 (1996).
    """

    side: int = 1

    def between(self, padded: Tensor, grid: Grid1D, closed: tuple[bool, bool]) -> Tensor:
        faces = padded.shape[-1] - 4
        u = [padded[..., m : m + faces] for m in range(5)]
        spread = padded.amax(-1, keepdim=True) - padded.amin(-1, keepdim=True)
        flux = _weno_face(u if self.side > 0 else u[::-1], torch.where(spread > 0, spread, 1.0))
        flux = sealed(flux, closed)
        return (flux[..., 1:] - flux[..., :-1]) / grid.spacing

    def symbol(self, k: Tensor, spacing: float) -> Tensor:
        return _stencil("upwind5", 1, self.side, 5).symbol(k, spacing)


def _powers(order: int, n: int, length: float, dtype: torch.dtype, device: torch.device, scale: float, in_pairs: bool) -> Numbers:
    """scale (i k)^m of the real Fourier modes, m = ``order``."""
    like = torch.empty(0, dtype=dtype, device=device)
    return powers(order, wavenumbers(n, length, like) if order % 2 else modes(n, length, like), scale, in_pairs)


def derivative(grid: Grid1D, order: int, scheme: str, side: int = 1) -> Derivative:
    """The derivative of an ``order`` from 1 to 4 by a scheme, for fields on this grid; 3 and 4 on periodic grids.

    Args:
        grid: tells whether the scheme suits its ends, and ``wall_order``.
        order: 1 to 4.
        scheme: order 1: "central2", "central4", "central6", "upwind1", "upwind3", "upwind5", "weno5", "spectral" (periodic grids);
            others: the central ones and "spectral".
        side: of upwind schemes: +1 reads more points to the left (for transport towards +x), -1 to the right.

    Raises:
        ValueError: an unknown order, scheme or side, or "spectral" between walls.
    """
    if order not in SCHEMES:
        raise ValueError(f"order={order} must be 1, 2, 3 or 4")
    if scheme not in SCHEMES[order]:
        raise ValueError(f"scheme={scheme!r} is not known for the derivative of order {order}; take one of {', '.join(SCHEMES[order])}")
    if side not in (1, -1):
        raise ValueError(f"side={side} must be +1 or -1")
    if order > 2 and not grid.periodic:
        raise ValueError(f"a derivative of order={order} needs a periodic grid, this one has {type(grid.boundary).__name__} ends")
    if scheme == "spectral" and not grid.periodic:
        raise ValueError(f"scheme='spectral' needs a periodic grid, this one has {type(grid.boundary).__name__} ends; take 'central4'")
    return _make(scheme, order, side, _wall_order(grid, order, scheme))


def sealed(flux: Tensor, closed: tuple[bool, bool]) -> Tensor:
    """Values at the faces, (..., n + 1), those of closed ends 0."""
    if not any(closed):
        return flux
    return torch.cat([flux[..., :1] * (not closed[0]), flux[..., 1:-1], flux[..., -1:] * (not closed[1])], -1)


def upwinded(scheme: str) -> bool:
    """Whether the scheme takes a side."""
    return scheme.startswith(("upwind", "weno"))


def stencil_weights(offsets: Sequence[int], at: Fraction, order: int) -> tuple[float, ...]:
    """Weights of the derivative (0: interpolation) at a position from the values at integer offsets, for unit spacing."""
    return tuple(float(w) for w in weights(values(offsets), At(at, order)))


@lru_cache
def _make(scheme: str, order: int, side: int, wall_order: float) -> Derivative:
    if scheme == "spectral":
        return Spectral(scheme, order, math.inf, wall_order, Reach(0, 0))
    if scheme == "weno5":
        left, right = (3, 2) if side > 0 else (2, 3)
        reach = Reach(left, right, DEGREES[1]["weno5"], 5)
        return Weno5(scheme, order, 5, wall_order, reach, linear=False, side=side)
    return _stencil(scheme, order, side, wall_order)


@lru_cache
def _stencil(scheme: str, order: int, side: int, wall_order: float) -> Stencil:
    width, accuracy = WIDTHS[scheme] + (order > 2), int(scheme[-1])
    offsets = tuple(range(-width, width + (0 if upwinded(scheme) else 1)))
    found = stencil_weights(offsets, Fraction(0), order)
    if side < 0 and upwinded(scheme):
        offsets, found = tuple(-j for j in reversed(offsets)), tuple(-w for w in reversed(found))
    reach = Reach(-offsets[0], offsets[-1], DEGREES[order][scheme], min(accuracy, 5))
    return Stencil(scheme, order, accuracy, wall_order, reach, offsets=offsets, weights=found)


def _wall_order(grid: Grid1D, order: int, scheme: str) -> float:
    if scheme == "spectral":
        return math.inf
    accuracy = int(scheme[-1])
    if grid.periodic:
        return accuracy
    if isinstance(grid.boundary, Walls) and any(isinstance(end, Slope | Closed) for end in grid.boundary.conditions):
        return min(accuracy, 2)
    if order == 1 and isinstance(grid.boundary, Walls) and any(isinstance(end, Robin) for end in grid.boundary.conditions):
        return min(accuracy, max(DEGREES[1][scheme], 2))
    return 5 if (order, scheme) == (1, "central6") else accuracy


def _parabolas() -> tuple[list[tuple[float, ...]], list[float]]:
    """Face values of the three parabolas through the averages of cells -2 ... 2, and their shares in the quartic's."""
    face = At(Fraction(1, 2))
    cells = [Average(Fraction(j)) for j in range(-2, 3)]
    parts = [weights(cells[s : s + 3], face) for s in range(3)]
    whole = weights(cells, face)
    first, last = whole[0] / parts[0][0], whole[4] / parts[2][2]
    return [tuple(float(w) for w in part) for part in parts], [float(first), float(1 - first - last), float(last)]


PARABOLAS = _parabolas()


def _weno_face(u: Sequence[Tensor], spread: Tensor) -> Tensor:
    parts, shares = PARABOLAS
    curved = [u[s] - 2 * u[s + 1] + u[s + 2] for s in range(3)]
    sloped = [u[0] - 4 * u[1] + 3 * u[2], u[1] - u[3], 3 * u[2] - 4 * u[3] + u[4]]
    total = norm = None
    for s, (part, share) in enumerate(zip(parts, shares, strict=True)):
        smoothness = 13 / 12 * (curved[s] / spread) ** 2 + (sloped[s] / spread) ** 2 / 4
        alpha = share / (smoothness + 1e-6) ** 2
        value = alpha * torch.add(torch.add(part[0] * u[s], u[s + 1], alpha=part[1]), u[s + 2], alpha=part[2])
        total, norm = (value, alpha) if total is None or norm is None else (total + value, norm + alpha)
    assert total is not None and norm is not None
    return total / norm
