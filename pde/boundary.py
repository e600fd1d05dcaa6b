"""What holds at the ends of the axis, and the values beyond them (ghosts) that a difference formula reads.

Beyond a wall with a given value lies the polynomial through that value and the nearest points; beyond an end without data, the
one through the nearest points alone. Beyond a wall with a given slope g lies the mirror image, u(-x) = u(x) - 2 x g: for even
central differences the flux into the wall cell is then g itself, and the sum of a field changes by what flows through the walls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .numbers import Rows, constant, keep
from .weights import At, values, weights

Table = tuple[Rows, tuple[float, ...]]  # (points read, ghosts) weights, and the share of the wall value in each ghost
Datum = float | Tensor | Callable[[Any], Any] | None
ENDS = ("left", "right")


@dataclass(frozen=True)
class Reach:
    """How many ghosts a formula reads on each side, and the degrees of the polynomials that make them.

    ``degree`` is that through a wall value, ``free_degree`` that at an end without data. ``tables`` has the weights of both
    (a wall value or none, left or right), made here once and for all.
    """

    left: int
    right: int
    degree: int = 1
    free_degree: int = 1
    tables: dict[tuple[bool, bool], Table] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        tables = {}
        for mirrored, count in ((False, self.left), (True, self.right)):
            tables[True, mirrored] = _extrapolation(count, self.degree, True, mirrored)
            tables[False, mirrored] = _extrapolation(count, self.free_degree, False, mirrored)
        object.__setattr__(self, "tables", tables)


class Boundary(nn.Module, ABC):
    """Abstract: ``Periodic``, ``Dirichlet`` or ``Neumann``. Two of a kind with the same data are equal."""

    periodic: bool = False

    @abstractmethod
    def pad(self, u: Tensor, reach: Reach, spacing: float, t: Tensor | float = 0.0) -> Tensor:
        """u of shape (..., n) with its ghosts: (..., reach.left + n + reach.right)."""

    def pad_self_carried(self, u: Tensor, reach: Reach, spacing: float, t: Tensor | float = 0.0) -> Tensor:
        """The same for a field that carries itself: data count where u flows in, elsewhere it is extrapolated."""
        return self.pad(u, reach, spacing, t)

    @abstractmethod
    def data(self) -> tuple[Datum, Datum]:
        """What is given at the left and at the right end; None for nothing."""

    def without_data(self) -> Boundary:
        """The same ends for a field of which nothing is known there."""
        return self

    def homogeneous(self) -> Boundary:
        """The same ends with the data 0."""
        return self

    def steady(self) -> bool:
        """Whether the data are the same at all times."""
        return all(isinstance(datum, Tensor) or not callable(datum) for datum in self.data())

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Boundary):
            return False
        return all(_same(a, b) for a, b in zip(self.data(), other.data(), strict=True))

    def __hash__(self) -> int:
        return hash(type(self).__name__)


class Periodic(Boundary):
    """The axis closes on itself: u(x + length) = u(x)."""

    periodic = True

    def pad(self, u: Tensor, reach: Reach, spacing: float, t: Tensor | float = 0.0) -> Tensor:
        if reach.left == reach.right == 0:
            return u
        n = u.shape[-1]
        return torch.cat([u[..., n - reach.left :], u, u[..., : reach.right]], -1)

    def data(self) -> tuple[Datum, Datum]:
        return None, None


class Walls(Boundary):
    """Abstract: walls at x = 0 and x = length, half a cell from the nearest points."""

    def __init__(self, left: Datum = 0.0, right: Datum = 0.0) -> None:
        super().__init__()
        for name, value in zip(ENDS, (left, right), strict=True):
            if not (value is None or isinstance(value, int | float | Tensor) or callable(value)):
                raise TypeError(f"{name}={value!r} must be a number, a tensor, a function of t, or None for an end without data")
            keep(self, name, _per_field(name, value) if isinstance(value, Tensor) else value)

    def data(self) -> tuple[Datum, Datum]:
        return self.left, self.right  # pyright: ignore[reportReturnType]

    def pad(self, u: Tensor, reach: Reach, spacing: float, t: Tensor | float = 0.0) -> Tensor:
        ghosts = []
        for count, datum, mirrored, end in zip((reach.left, reach.right), self.data(), (False, True), ENDS, strict=True):
            if count == 0:
                ghosts.append(u[..., :0])
            elif datum is None:
                ghosts.append(_extrapolated(u, reach.tables[False, mirrored], mirrored, None))
            else:
                ghosts.append(self.beyond(u, reach, mirrored, _per_field(end, _at(datum, t)), spacing))
        parts = [ghosts[0], u, ghosts[1]]
        if any(part.ndim != u.ndim or part.shape[:-1] != u.shape[:-1] for part in ghosts):  # data that differ between fields
            lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
            parts = [part.expand(*lead, part.shape[-1]) for part in parts]
        return torch.cat(parts, -1)

    def pad_self_carried(self, u: Tensor, reach: Reach, spacing: float, t: Tensor | float = 0.0) -> Tensor:
        """Told by value and per field: the mean of the wall's value, where there is one, and the nearest is the speed (of a jump there)."""
        bound, free, n = self.pad(u, reach, spacing, t), self.without_data().pad(u, reach, spacing), u.shape[-1]
        left, middle, right = bound.tensor_split([reach.left, reach.left + n], -1)
        without = [
            _leaving(free[..., : reach.left].flip(-1), -u[..., :1], -u[..., 1:2], -1).flip(-1),
            _leaving(free[..., reach.left + n :], u[..., -1:], u[..., -2:-1], 1),
        ]
        ends = []
        for datum, near, inwards, given, free_end in zip(
            self.data(), (u[..., :1], u[..., -1:]), (1, -1), (left, right), without, strict=True
        ):
            enters = inwards * self.meeting(near, _at(datum, t)) > 0 if datum is not None else None
            ends.append(free_end if enters is None else torch.where(enters, given, free_end))
        return torch.cat([ends[0], middle, ends[1]], -1)

    def meeting(self, nearest: Tensor, datum: Any) -> Tensor:
        """u at a wall with this datum, between it and the nearest point."""
        return nearest

    def without_data(self) -> Walls:
        """The same walls for a field of which nothing is known there."""
        return Dirichlet(None, None)

    def homogeneous(self) -> Walls:
        """The same kind of walls with the data 0, where there are some."""
        return type(self)(*(None if datum is None else 0.0 for datum in self.data()))

    @abstractmethod
    def beyond(self, u: Tensor, reach: Reach, mirrored: bool, datum: Any, spacing: float) -> Tensor:
        """The ghosts beyond the left wall, or the right one if ``mirrored``, from left to right."""

    def extra_repr(self) -> str:
        return ", ".join(f"{end}={value}" for end, value in zip(ENDS, self.data(), strict=True))


class Dirichlet(Walls):
    """u is given at the walls x = 0 and x = length.

    Args:
        left, right: a number, a tensor (0-dim, or (..., 1) to differ between fields; a Parameter is trained), a function t -> value
            (a module is trained), or None: no data at this end (where a wave leaves), the field is extrapolated.

    Raises:
        TypeError: data of another kind.
        ValueError: a tensor of another shape, also from a function when it is called.
    """

    def beyond(self, u: Tensor, reach: Reach, mirrored: bool, datum: Any, spacing: float) -> Tensor:
        return _extrapolated(u, reach.tables[True, mirrored], mirrored, datum)

    def meeting(self, nearest: Tensor, datum: Any) -> Tensor:
        return (nearest + datum) / 2


class Neumann(Walls):
    """The slope du/dx, in the direction of +x at both ends, is given at the walls x = 0 and x = length.

    Args:
        left, right: as for ``Dirichlet``, in units of u per length.

    Raises:
        TypeError, ValueError: as for ``Dirichlet``.
    """

    def beyond(self, u: Tensor, reach: Reach, mirrored: bool, datum: Any, spacing: float) -> Tensor:
        n, count = u.shape[-1], reach.right if mirrored else reach.left
        if n < count:
            raise _too_few(n, count)
        image = (u[..., n - count :] if mirrored else u[..., :count]).flip(-1)
        if isinstance(datum, int | float) and datum == 0:
            return image
        rises = tuple((2 * j + 1) * spacing for j in range(count))
        return image + datum * constant((rises if mirrored else tuple(-rise for rise in reversed(rises)),), u)[0]


def _at(datum: Datum, t: Tensor | float) -> Any:
    return datum(t) if callable(datum) and not isinstance(datum, Tensor) else datum


def _leaving(ghosts: Tensor, near: Tensor, next_: Tensor, sign: int) -> Tensor:
    """Extrapolated ghosts, from the wall outwards, of a field that leaves: beside a shock they neither overshoot nor flow in more.

    A ghost lies between the nearest value and twice as far as the line through the nearest two; ``near`` and ``next_`` are these, times
    ``sign``, which makes what leaves positive.
    """
    steps = 2 * torch.arange(1, ghosts.shape[-1] + 1, dtype=ghosts.dtype, device=ghosts.device) * (near - next_)
    change = torch.minimum(torch.maximum(sign * ghosts - near, steps.clamp(max=0)), steps.clamp(min=0))
    return sign * torch.maximum(near + change, near.clamp(max=0))


def _per_field(name: str, datum: Any) -> Any:
    """A wall's datum as it is, ValueError unless it is one number for all fields or (..., 1), one for each."""
    if isinstance(datum, Tensor) and datum.ndim and datum.shape[-1] != 1:
        raise ValueError(
            f"{name} of shape {tuple(datum.shape)} must be one number, or one per field in a last axis of 1: {name}[..., None], "
            f"of shape {(*datum.shape, 1)}"
        )
    return datum


def _same(a: Datum, b: Datum) -> bool:
    return a is b or (isinstance(a, int | float) and isinstance(b, int | float) and a == b)


def _too_few(n: int, needed: int) -> ValueError:
    return ValueError(f"n={n} points are too few between walls for this scheme, which reads {needed}; take more points or a lower order")


def _extrapolated(u: Tensor, table: Table, mirrored: bool, datum: Any) -> Tensor:
    """The polynomial through the wall value, if there is one, and the nearest points, as a weighted sum of these.

    Not a matrix product: autocast would lower its precision.
    """
    matrix, share = table
    n, reads = u.shape[-1], len(matrix)
    if n < reads:
        raise _too_few(n, reads)
    near = u[..., n - reads :] if mirrored else u[..., :reads]
    ghosts = (near[..., None] * constant(matrix, u)).sum(-2)
    if datum is None or (isinstance(datum, int | float) and datum == 0):
        return ghosts
    return ghosts + datum * constant((share,), u)[0]


def _extrapolation(count: int, degree: int, wall: bool, mirrored: bool) -> Table:
    """All from left to right."""
    half = Fraction(1, 2)
    known = [At(Fraction(0))] * wall + values([i + half for i in range(degree + 1 - wall)])
    ghosts = [[float(w) for w in weights(known, At(-j - half))] for j in range(count)]
    share = [row[0] if wall else 0.0 for row in ghosts]
    rows = [[row[i] for row in ghosts] for i in range(int(wall), degree + 1)]
    if mirrored:
        return tuple(tuple(row) for row in reversed(rows)), tuple(share)
    return tuple(tuple(reversed(row)) for row in rows), tuple(reversed(share))
