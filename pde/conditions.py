"""What holds at one end of an axis: an object per end, which makes the values beyond it and says which equations it suits."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

from torch import Tensor, nn

from .extrapolation import Side, bent_to, extrapolated, mirror_image
from .numbers import keep

Datum = float | Tensor | Callable[..., Any]
Need = Literal["diffusion", "wave", "transport", "flux"]
ENTERING = (15 / 8, -10 / 8, 3 / 8)  # at the wall, of order 3
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def without_field_data(boundary: Any) -> AbstractContextManager[None]:
    """Data of ``boundary`` that are functions of the field count as 0 inside: what is left is affine in the field."""
    return _quietly() if boundary.reads_field else nullcontext()


@contextmanager
def _quietly() -> Iterator[None]:
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)


class Condition(nn.Module, ABC):
    """Abstract: what holds at one end, ``Value``, ``Slope``, ``Robin``, ``Free``, ``Closed`` or ``Absorbing``.

    ``closed``: nothing flows through this end. ``reads_field``: whether its datum is a function of u. ``names``: of its data. Two of a
    kind with the same data are equal.
    """

    closed = False
    reads_field = False
    names: tuple[str, ...] = ()

    @abstractmethod
    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        """The values beyond this end that a formula reads, (..., side.count), from left to right, of fields u (..., n) at time t."""

    @abstractmethod
    def validate(self, end: str, name: str, need: Need) -> None:
        """ValueError where the condition does not suit an equation called ``name``: what it needs of an end is ``need``."""

    def check_flow(self, end: str, speed: float, inwards: float, missing_only: bool) -> None:
        """ValueError where data are missing for a field carried in (``inwards`` > 0), or given (unless ``missing_only``) as it leaves."""
        if inwards < 0 and not missing_only:
            raise ValueError(
                f"at speed {speed:g} the field flows out at the {end} end, which has data; give None there (Free()), or add a Diffusion"
            )

    def meeting(self, u: Tensor, t: Any, side: Side) -> Tensor:
        """u at the wall, between this condition and the nearest point, (..., 1)."""
        return side.nearest(u, 1)

    def homogeneous(self) -> Condition:
        """The same with the data 0."""
        return self

    @property
    def given(self) -> Datum | None:
        """The datum, None where there is none."""
        return getattr(self, self.names[-1]) if self.names else None

    def datum(self, u: Tensor, t: Any, side: Side) -> Any:
        """The datum at time t, for the field u."""
        value = self.given
        if not isinstance(value, Tensor) and callable(value):
            if self.reads_field:
                return 0.0 if _quiet.get() else per_field(side.end, value(t, side.at_wall(u)))
            value = value(t)
        return per_field(side.end, value)

    def keep(self, name: str, value: Any, what: str = "a number, a tensor, a function of t or of (t, u)") -> None:
        """Make a datum an attribute."""
        if not (isinstance(value, int | float | Tensor) or (callable(value) and "function" in what)):
            raise TypeError(f"{name}={value!r} must be {what}")
        if isinstance(value, int | float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be finite")
        keep(self, name, per_field(name, value))
        self.reads_field = _of_field(value)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Condition):
            return False
        return all(_same(getattr(self, name), getattr(other, name)) for name in self.names)

    def __hash__(self) -> int:
        return hash(type(self).__name__)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.names if not isinstance(getattr(self, name), nn.Module))


class Given(Condition):
    """Abstract: an end with a datum, which suits all equations."""

    def validate(self, end: str, name: str, need: Need) -> None:
        return


class Value(Given):
    """u = value.

    Args:
        value: a number, a tensor (0-dim, or (..., 1) to differ between fields; a Parameter is trained), a function t -> value, or
            (t, u) -> value of the field u at the wall, (..., 1) (a module is trained).

    Raises:
        TypeError: a value of another kind.
        ValueError: not finite, or a tensor of another shape, also from a function when it is called.
    """

    names = ("value",)

    def __init__(self, value: Datum = 0.0) -> None:
        super().__init__()
        self.keep("value", value)

    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        return extrapolated(u, side, self.datum(u, t, side))

    def meeting(self, u: Tensor, t: Any, side: Side) -> Tensor:
        return (side.nearest(u, 1) + self.datum(u, t, side)) / 2

    def homogeneous(self) -> Condition:
        return Value()


class Slope(Given):
    """du/dx = slope, in the direction of +x at both ends.

    The sum of a field that diffuses changes by what flows through the walls, to round-off.

    Args:
        slope: as for ``Value``, in units of u per length.

    Raises:
        TypeError, ValueError: as for ``Value``.
    """

    names = ("slope",)

    def __init__(self, slope: Datum = 0.0) -> None:
        super().__init__()
        self.keep("slope", slope)

    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        return mirror_image(u, side, self.datum(u, t, side))

    def homogeneous(self) -> Condition:
        return Slope()


class Robin(Given):
    """a u + b du/dx = c, the slope in the direction of +x at both ends.

    A wall that takes up what hits it has b / a < 0 at the left end and > 0 at the right: with the other sign the field grows there.

    Args:
        a, b: numbers or tensors as for ``Value``, not both 0. a is per unit of u, b is a length times that.
        c: as the datum of ``Value``.

    Raises:
        TypeError, ValueError: as for ``Value``; both a and b 0.

    Source: Strauss, Partial Differential Equations: An Introduction (2008), 4.3.
    """

    names = ("a", "b", "c")

    def __init__(self, a: float | Tensor, b: float | Tensor, c: Datum = 0.0) -> None:
        super().__init__()
        if isinstance(a, int | float) and isinstance(b, int | float) and a == b == 0:
            raise ValueError(f"a={a} and b={b} must not both be 0: nothing is given then; take Free()")
        for name, value in (("a", a), ("b", b)):
            self.keep(name, value, "a number or a tensor")
        self.keep("c", c)

    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        a, b = (value.to(u.dtype) if isinstance(value, Tensor) else value for value in (self.a, self.b))
        return bent_to(u, side, a, b, self.datum(u, t, side))

    def homogeneous(self) -> Condition:
        return Robin(*(value.detach() if isinstance(value, Tensor) else value for value in (self.a, self.b)))  # pyright: ignore[reportArgumentType]


class Free(Condition):
    """Nothing is given, the field is extrapolated: where a field leaves."""

    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        return extrapolated(u, side)

    def validate(self, end: str, name: str, need: Need) -> None:
        if need in ("diffusion", "wave"):
            raise ValueError(f"{name} needs data at both ends, {end}=None has none; give {end}=0.0, or one of Value, Slope, Robin there")

    def check_flow(self, end: str, speed: float, inwards: float, missing_only: bool) -> None:
        if inwards > 0:
            raise ValueError(
                f"at speed {speed:g} the field flows in at the {end} end, which has no data; give Dirichlet({end}=...), a Value"
            )


class Closed(Condition):
    """Nothing flows through: the total flux c u - D du/dx of an equation is 0 there, and the sum of the field stays, to round-off.

    For ``Diffusion``, and for transport in its conservative form (``Advection(..., conservative=True)``, Burgers).
    """

    closed = True

    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        return extrapolated(u, side)

    def validate(self, end: str, name: str, need: Need) -> None:
        if need == "wave":
            raise ValueError(
                f"{name} has no flux that Closed() could stop at the {end} end; give Slope() for a free end, Value() for a fixed one"
            )
        if need == "transport":
            raise ValueError(f"{name} at a Closed() {end} end must be in its conservative form; give conservative=True")

    def check_flow(self, end: str, speed: float, inwards: float, missing_only: bool) -> None:
        return


class Absorbing(Condition):
    """du/dt = -c du/dx at the right end, +c du/dx at the left: a ``Wave`` leaves, and is not reflected.

    Of what arrives some (k h)^3 comes back: of a pulse exp(-(x / w)^2) 0.9 % of its height with w = 4 h, 0.15 % with w = 8 h.

    Source: Engquist, Majda, Math. Comp. 31 (1977).
    """

    def ghosts(self, u: Tensor, t: Any, side: Side) -> Tensor:
        if side.rate is None:
            return mirror_image(u, side, 0.0)
        rate = side.at_wall(side.rate, ENTERING)
        return mirror_image(u, side, -rate if side.mirrored else rate)

    def validate(self, end: str, name: str, need: Need) -> None:
        if need != "wave":
            raise ValueError(f"Absorbing() at the {end} end is for Wave, {name} is none; give Free() where a field leaves")


def per_field(name: str, datum: Any) -> Any:
    """A wall's datum as it is, ValueError unless it is one number for all fields or (..., 1), one for each."""
    if isinstance(datum, Tensor) and datum.ndim and datum.shape[-1] != 1:
        raise ValueError(
            f"{name} of shape {tuple(datum.shape)} must be one number, or one per field in a last axis of 1: {name}[..., None], "
            f"of shape {(*datum.shape, 1)}"
        )
    return datum


def _of_field(datum: Datum | None) -> bool:
    """Whether it is a function that must have a second argument."""
    if isinstance(datum, Tensor) or not callable(datum):
        return False
    try:
        parameters = inspect.signature(datum.forward if isinstance(datum, nn.Module) else datum).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) > 1


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, int | float) and isinstance(b, int | float) and a == b)
