"""What holds at the ends of the axis: it closes on itself, or a condition stands at each end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from .conditions import Absorbing, Condition, Datum, Free, Need, Slope, Value
from .extrapolation import Reach, Side, entering, leaving

ENDS = ("left", "right")


class _Zero(float):
    """The datum 0 that nobody gave."""


NOT_GIVEN = _Zero()


class Boundary(nn.Module, ABC):
    """Abstract: ``Periodic``, or ``Walls``, of which ``Dirichlet`` and ``Neumann`` are. Two with the same data are equal."""

    periodic: bool = False
    closed: tuple[bool, bool] = (False, False)
    reads_field: bool = False
    absorbs: bool = False

    @abstractmethod
    def pad(self, u: Tensor, reach: Reach, spacing: float, t: Any = 0.0, rate: Tensor | None = None) -> Tensor:
        """u of shape (..., n) with its ghosts: (..., reach.left + n + reach.right); ``rate`` is du/dt over the speed, of a wave."""

    def pad_self_carried(self, u: Tensor, reach: Reach, spacing: float, t: Any = 0.0) -> Tensor:
        """The same for a field that carries itself: data count where u flows in, elsewhere it is extrapolated."""
        return self.pad(u, reach, spacing, t)

    def data(self) -> tuple[Datum | None, Datum | None]:
        """What is given at the left and at the right end; None for nothing."""
        return None, None

    def validate(self, name: str, need: Need) -> None:
        """ValueError where an end does not suit an equation; see ``Condition.validate``."""
        return

    def check_flow(self, end: str, speed: float, inwards: float, missing_only: bool) -> None:
        """ValueError where data do not suit a field carried in or out; see ``Condition.check_flow``."""
        return

    def without_data(self) -> Boundary:
        """The same ends for a field of which nothing is known there."""
        return self

    def homogeneous(self) -> Boundary:
        """The same ends with the data 0."""
        return self

    def steady(self) -> bool:
        """Whether the data are the same at all times, whatever the field."""
        return all(isinstance(datum, Tensor) or not callable(datum) for datum in self.data())

    def lead(self) -> tuple[int, ...]:
        """The axes in front of the last one of what multiplies the field at an end, Robin's a and b."""
        return ()


class Periodic(Boundary):
    """The axis closes on itself: u(x + length) = u(x)."""

    periodic = True

    def pad(self, u: Tensor, reach: Reach, spacing: float, t: Any = 0.0, rate: Tensor | None = None) -> Tensor:
        if reach.left == reach.right == 0:
            return u
        n = u.shape[-1]
        return torch.cat([u[..., n - reach.left :], u, u[..., : reach.right]], -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Periodic)

    def __hash__(self) -> int:
        return hash("Periodic")


class Walls(Boundary):
    """A condition at each end, x = 0 and x = length, half a cell from the nearest points.

    Args:
        left, right: ``Value``, ``Slope``, ``Robin``, ``Free``, ``Closed`` or ``Absorbing``; ``Dirichlet(a)`` and ``Neumann(a)`` at one end
            are ``Value(a)`` and ``Slope(a)`` there. ``Grid1D(boundary=(left, right))`` is short for it, ``Dirichlet`` for two values and
            ``Neumann`` for two slopes.

    Raises:
        TypeError: something else.
    """

    def __init__(self, left: Condition | Short, right: Condition | Short) -> None:
        super().__init__()
        self.left, self.right = (_at_end(end, given) for end, given in zip(ENDS, (left, right), strict=True))

    @property
    def conditions(self) -> tuple[Condition, Condition]:
        """Those at the left and the right end."""
        return self.left, self.right

    @property
    def closed(self) -> tuple[bool, bool]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.left.closed, self.right.closed

    @property
    def reads_field(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.left.reads_field or self.right.reads_field

    @property
    def absorbs(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(isinstance(condition, Absorbing) for condition in self.conditions)

    def data(self) -> tuple[Datum | None, Datum | None]:
        return self.left.given, self.right.given

    def validate(self, name: str, need: Need) -> None:
        for end, condition in zip(ENDS, self.conditions, strict=True):
            condition.validate(end, name, need)

    def check_flow(self, end: str, speed: float, inwards: float, missing_only: bool) -> None:
        self.conditions[ENDS.index(end)].check_flow(end, speed, inwards, missing_only)

    def lead(self) -> tuple[int, ...]:
        values = [getattr(condition, name) for condition in self.conditions for name in condition.names[:-1]]
        return tuple(torch.broadcast_shapes((), *(value.shape[:-1] for value in values if isinstance(value, Tensor))))

    def pad(self, u: Tensor, reach: Reach, spacing: float, t: Any = 0.0, rate: Tensor | None = None) -> Tensor:
        ghosts = []
        for condition, side in zip(self.conditions, _sides(reach, spacing, rate), strict=True):
            ghosts.append(condition.ghosts(u, t, side) if side.count else u[..., :0])
        parts = [ghosts[0], u, ghosts[1]]
        if any(part.ndim != u.ndim or part.shape[:-1] != u.shape[:-1] for part in ghosts):  # data that differ between fields
            lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
            parts = [part.expand(*lead, part.shape[-1]) for part in parts]
        return torch.cat(parts, -1)

    def pad_self_carried(self, u: Tensor, reach: Reach, spacing: float, t: Any = 0.0) -> Tensor:
        """Told by value and per field: the mean of the wall's value, where there is one, and the nearest is the speed (of a jump there)."""
        bound, free, n = self.pad(u, reach, spacing, t), self.without_data().pad(u, reach, spacing), u.shape[-1]
        left, middle, right = bound.tensor_split([reach.left, reach.left + n], -1)
        leaves = [
            leaving(free[..., : reach.left].flip(-1), -u[..., :1], -u[..., 1:2], -1),
            leaving(free[..., reach.left + n :], u[..., -1:], u[..., -2:-1], 1),
        ]
        outwards, near = (left.flip(-1), right), (u[..., :3], u[..., -3:].flip(-1))
        ends = []
        for condition, side, inwards, *there in zip(self.conditions, _sides(reach, spacing), (1, -1), outwards, near, leaves, strict=True):
            ghosts, nearest, free_end = there
            if condition.names:
                wall = condition.meeting(u, t, side)
                if isinstance(condition, Value):
                    ghosts = entering(ghosts, 2 * wall - nearest[..., :1], nearest)
                free_end = torch.where(inwards * wall > 0, ghosts, free_end)
            ends.append(free_end)
        return torch.cat([ends[0].flip(-1), middle, ends[1]], -1)

    def without_data(self) -> Walls:
        return WITHOUT

    def homogeneous(self) -> Walls:
        return Walls(self.left.homogeneous(), self.right.homogeneous())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Walls) and self.conditions == other.conditions

    def __hash__(self) -> int:
        return hash(self.conditions)


class Short(Walls):
    """Abstract: two conditions of one kind, or none, by their data."""

    kind: type[Value | Slope]

    def __init__(self, left: Datum | None = NOT_GIVEN, right: Datum | None = NOT_GIVEN) -> None:
        super().__init__(*(_short(self.kind, end, datum) for end, datum in zip(ENDS, (left, right), strict=True)))
        self.told = tuple(end for end, datum in zip(ENDS, (left, right), strict=True) if datum is not NOT_GIVEN)

    def homogeneous(self) -> Walls:
        return type(self)(*(None if datum is None else 0.0 for datum in self.data()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{end}={value}' for end, value in zip(ENDS, self.data(), strict=True))})"


class Dirichlet(Short):
    """u is given at the walls x = 0 and x = length: short for ``Walls(Value(left), Value(right))``.

    Args:
        left, right: as for ``Value``, or None: no data at this end (where a wave leaves), the field is extrapolated (``Free``).

    Raises:
        TypeError: data of another kind.
        ValueError: a tensor of another shape, also from a function when it is called.
    """

    kind = Value


class Neumann(Short):
    """The slope du/dx, in the direction of +x at both ends, is given at the walls x = 0 and x = length: two ``Slope``.

    Args:
        left, right: as for ``Dirichlet``, in units of u per length.

    Raises:
        TypeError, ValueError: as for ``Dirichlet``.
    """

    kind = Slope


def between(left: Condition | Short, right: Condition | Short) -> Walls:
    """The walls with these conditions, as the short form where there is one."""
    left, right = (_at_end(end, given) for end, given in zip(ENDS, (left, right), strict=True))
    for short in (Dirichlet, Neumann):
        if type(left) is type(right) is short.kind:
            return short(left.given, right.given)
    return Walls(left, right)


def _at_end(end: str, given: Any) -> Condition:
    """A condition as it is, of a short form what it tells: of this end, or of the one that it tells of alone."""
    if isinstance(given, Condition):
        return given
    if not isinstance(given, Short):
        raise TypeError(f"the {end} end, {given!r}, must be a condition; give Value, Slope, Robin, Free, Closed or Absorbing")
    return getattr(given, given.told[0] if len(given.told) == 1 else end)


def _short(kind: type[Value | Slope], end: str, datum: Datum | None) -> Condition:
    """Value or Slope, its mistakes told by the name of the end."""
    try:
        return Free() if datum is None else kind(0.0 if datum is NOT_GIVEN else datum)
    except (TypeError, ValueError) as error:
        name = kind.names[0]
        raise type(error)(
            str(error).replace(f"{name}=", f"{end}=").replace(f"{name} of", f"{end} of").replace(f"{name}[", f"{end}[")
        ) from None


def _sides(reach: Reach, spacing: float, rate: Tensor | None = None) -> tuple[Side, Side]:
    return Side("left", reach, spacing, rate), Side("right", reach, spacing, rate)


WITHOUT = Dirichlet(None, None)
