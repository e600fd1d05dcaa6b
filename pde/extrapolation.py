"""Values beyond the ends of an axis (ghosts) by polynomials, as weighted sums of the nearest points.

Beyond a wall with a given value lies the polynomial through that value and the nearest points; beyond an end without data, the one
through the nearest points alone; beyond one where a u + b du/dx = c, the one through the nearest points that has this at the wall.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .numbers import Rows, constant
from .weights import At, values, weights

HALF = Fraction(1, 2)


class Table(NamedTuple):
    """(points read, ghosts) weights, and the share of the wall value in each ghost; all from left to right."""

    matrix: Rows
    share: tuple[float, ...]


class Bent(NamedTuple):
    """Q, the polynomial through the nearest points, and W, the next higher one, 0 at these, each in columns: its value and its slope
    (in +x, per spacing) at the wall, and its ghosts. Q in a row per point."""

    through: Rows
    zero_at: tuple[float, ...]


@dataclass(frozen=True)
class Reach:
    """How many ghosts a formula reads on each side, and the degrees of the polynomials that make them.

    ``degree`` is that through a wall value, ``free_degree`` that at an end without data. ``tables`` has the weights of both
    (a wall value or none, left or right) and ``bent`` those of a polynomial with a condition at the wall, made here once and for all.
    """

    left: int
    right: int
    degree: int = 1
    free_degree: int = 1
    tables: dict[tuple[bool, bool], Table] = field(init=False, compare=False, repr=False)
    bent: dict[bool, Bent] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        tables, bent = {}, {}
        for mirrored, count in ((False, self.left), (True, self.right)):
            tables[True, mirrored] = _extrapolation(count, self.degree, True, mirrored)
            tables[False, mirrored] = _extrapolation(count, self.free_degree, False, mirrored)
            bent[mirrored] = _bent(count, self.degree, mirrored)
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "bent", bent)


@dataclass(frozen=True)
class Side:
    """One end of an axis as a condition sees it: what a formula reads there, the spacing, and du/dt over the speed of a wave (..., n)."""

    end: str
    reach: Reach
    spacing: float
    rate: Tensor | None = None

    @property
    def mirrored(self) -> bool:
        """Whether it is the right end."""
        return self.end == "right"

    @property
    def count(self) -> int:
        """Ghosts."""
        return self.reach.right if self.mirrored else self.reach.left

    def nearest(self, u: Tensor, count: int) -> Tensor:
        """So many points next to the end, from left to right; ValueError where there are fewer."""
        n = u.shape[-1]
        if n < count:
            raise ValueError(
                f"n={n} points are too few between walls for this scheme, which reads {count}; take more points or a lower order"
            )
        return u[..., n - count :] if self.mirrored else u[..., :count]

    def at_wall(self, u: Tensor, known: tuple[float, ...] = (1.5, -0.5)) -> Tensor:
        """u at the wall, (..., 1), by weights of the points from the wall inwards."""
        near = self.nearest(u, len(known))
        return (near * constant((known[::-1] if self.mirrored else known,), u)[0]).sum(-1, keepdim=True)


def extrapolated(u: Tensor, side: Side, datum: Any = None) -> Tensor:
    """The polynomial through the wall value, if there is one, and the nearest points.

    Not a matrix product: autocast would lower its precision.
    """
    matrix, share = side.reach.tables[datum is not None, side.mirrored]
    ghosts = (side.nearest(u, len(matrix))[..., None] * constant(matrix, u)).sum(-2)
    if datum is None or (isinstance(datum, int | float) and datum == 0):
        return ghosts
    return ghosts + datum * constant((share,), u)[0]


def bent_to(u: Tensor, side: Side, a: Any, b: Any, c: Any) -> Tensor:
    """The polynomial with a u + b du/dx = c at the wall: Q + (c - a Q - b Q') / (a W + b W') W."""
    matrix, bump = side.reach.bent[side.mirrored]
    through = (side.nearest(u, len(matrix))[..., None] * constant(matrix, u)).sum(-2)
    w, b = constant((bump,), u)[0], b / side.spacing
    missed = (c - a * through[..., :1] - b * through[..., 1:2]) / (a * w[:1] + b * w[1:2])
    return through[..., 2:] + missed * w[2:]


def mirror_image(u: Tensor, side: Side, slope: Any) -> Tensor:
    """u(-x) = u(x) - 2 x slope: for even central differences the flux into the wall cell is the slope itself."""
    image, rises = side.nearest(u, side.count).flip(-1), tuple((2 * j + 1) * side.spacing for j in range(side.count))
    if isinstance(slope, int | float) and slope == 0:
        return image
    return image + slope * constant((rises if side.mirrored else tuple(-rise for rise in reversed(rises)),), u)[0]


def leaving(ghosts: Tensor, near: Tensor, next_: Tensor, sign: int) -> Tensor:
    """Extrapolated ghosts, from the wall outwards, of a field that leaves: beside a shock they neither overshoot nor flow in more.

    A ghost lies between the nearest value and twice as far as the line through the nearest two; ``near`` and ``next_`` are these, times
    ``sign``, which makes what leaves positive.
    """
    steps = constant((tuple(2.0 * j for j in range(1, ghosts.shape[-1] + 1)),), ghosts)[0] * (near - next_)
    change = torch.minimum(torch.maximum(sign * ghosts - near, steps.clamp(max=0)), steps.clamp(min=0))
    return sign * torch.maximum(near + change, near.clamp(max=0))


def entering(ghosts: Tensor, wall: Tensor, near: Tensor) -> Tensor:
    """Ghosts beyond a wall value, from the wall outwards, of a field that enters: a jump between it and the third point is not carried on.

    A ghost lies between the wall value and twice as far as a line of the least of the slopes to and between the three points, ``near``.
    """
    rises = torch.cat([2 * (wall - near[..., :1]), -near.diff(dim=-1)], -1)
    least, most = rises.amin(-1, keepdim=True).clamp(min=0), rises.amax(-1, keepdim=True).clamp(max=0)
    far = constant((tuple(2.0 * j + 1 for j in range(ghosts.shape[-1])),), ghosts)[0]  # twice half a spacing and more
    return wall + torch.minimum(torch.maximum(ghosts - wall, far * most), far * least)


def _extrapolation(count: int, degree: int, wall: bool, mirrored: bool) -> Table:
    known = [At(Fraction(0))] * wall + values([i + HALF for i in range(degree + 1 - wall)])
    ghosts = [[float(w) for w in weights(known, At(-j - HALF))] for j in range(count)]
    share = [row[0] if wall else 0.0 for row in ghosts]
    rows = [[row[i] for row in ghosts] for i in range(int(wall), degree + 1)]
    if mirrored:
        return Table(tuple(tuple(row) for row in reversed(rows)), tuple(share))
    return Table(tuple(tuple(reversed(row)) for row in rows), tuple(reversed(share)))


def _bent(count: int, degree: int, mirrored: bool) -> Bent:
    places = [i + HALF for i in range(degree)]
    order = list(range(count)) if mirrored else list(reversed(range(count)))
    wanted = [At(Fraction(0)), At(Fraction(0), 1), *(At(-j - HALF) for j in order)]
    columns = [[float(w) for w in weights(values(places), each)] for each in wanted]
    slope = sum((prod((-p for p in places if p != q), start=Fraction(1)) for q in places), Fraction(0))
    bump = [
        prod((-p for p in places), start=Fraction(1)),
        slope,
        *(prod((-j - HALF - p for p in places), start=Fraction(1)) for j in order),
    ]
    if mirrored:  # the slope is that towards +x, and points stand from left to right
        columns[1], bump[1] = [-w for w in columns[1]], -bump[1]
        columns = [list(reversed(column)) for column in columns]
    return Bent(tuple(zip(*columns, strict=True)), tuple(float(w) for w in bump))
