"""Fields on a plane: the terms of one axis along each of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import LinearOperator, stability_function
from anodev2.signature import signature_of

from .blocks import Blocks
from .closed_form import elapsed
from .coefficient import leaves, reads_field
from .equation import FieldEquation
from .grid import Grid1D
from .stability import some_modes
from .system import System, check_reaction


class Plane(nn.Module):
    """du/dt = A_x u + A_y u + f(t, x, y, u): A_x acts along the last axis, A_y along the one before it, of fields (..., n_y, n_x).

    ``Plane(Diffusion(x, 0.1), Diffusion(y, 0.1))`` is diffusion, x and y grids of one axis each. Of several fields A_x and A_y are
    systems of the same names, and the state is a tensor (..., components, n_y, n_x) or a tuple of the fields. Any terms and conditions
    serve explicit and implicit methods; coefficients are numbers, vary along the axis of their term, or over the plane (``over_plane``),
    and data at walls may vary along these, (n_y, 1) at the ends of x, (n_x, 1) at those of y. Where both axes are periodic and all of
    A_x and A_y is linear with constant coefficients, there are ``symbol``, ``flow``, ``exact`` and, for exponential and IMEX methods,
    ``split``. ``Plane(Schroedinger(x), Schroedinger(y))`` has a complex state (..., n_y, n_x), or the tuple of its two parts.

    Args:
        along_x, along_y: equations of one field, or systems.
        reaction: f, (t, x, y, u_1, ...) -> a tensor, of several fields (of a complex one its two parts) a tuple of tensors or numbers; x of
            shape (n_x,), y of (n_y, 1).

    Raises:
        TypeError: an equation and a system, or something else.
        ValueError: systems of different fields, or a coefficient of more than one axis that is none of ``over_plane``.

    Source: LeVeque, Finite Difference Methods for Ordinary and Partial Differential Equations (2007), 3.
    """

    def __init__(
        self, along_x: FieldEquation | System, along_y: FieldEquation | System, reaction: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        kinds = {
            System if isinstance(part, System) else FieldEquation for part in (along_x, along_y) if isinstance(part, System | FieldEquation)
        }
        if len(kinds) != 1 or not all(isinstance(part, System | FieldEquation) for part in (along_x, along_y)):
            names = f"{type(along_x).__name__} and {type(along_y).__name__}"
            raise TypeError(f"along_x and along_y must be two equations of one field or two systems, got {names}")
        self.names = along_x.names if isinstance(along_x, System) else ("u",)
        if isinstance(along_y, System) and along_y.names != self.names:
            raise ValueError(f"along_x and along_y must be systems of the same fields, got {self.names} and {along_y.names}")
        self.packed = getattr(along_x, "packed", False)
        if self.packed != getattr(along_y, "packed", False):
            raise ValueError(
                f"along_x and along_y must both be of a complex field, or none, got {type(along_x).__name__} and {type(along_y).__name__}"
            )
        if reaction is not None and not callable(reaction):
            raise TypeError(f"reaction={reaction!r} must be a function of (t, x, y, {', '.join(self.names)})")
        for axis, part in (("along_x", along_x), ("along_y", along_y)):
            _need_one_axis(axis, part)
        self.along_x, self.along_y, self.reaction = along_x, along_y, reaction
        self.several = isinstance(along_x, System)
        self.shape = (along_y.grid.n, along_x.grid.n)

    def forward(self, t: Any, state: Any) -> Any:
        """The time derivative, in the form of the state."""
        fields = self.fields(state)
        turned = tuple(field.mT for field in fields)
        if self.several:
            slopes = [a + b.mT for a, b in zip(self.along_x(t, fields), self.along_y(t, turned), strict=True)]
        else:
            slopes = [self.along_x(t, fields[0]) + self.along_y(t, turned[0]).mT]
        return self._formed([a if b is None else a + b for a, b in zip(slopes, self._reacted(t, fields), strict=True)], state)

    def fields(self, state: Any) -> tuple[Tensor, ...]:
        """The fields of a state, (..., n_y, n_x) each; ValueError or TypeError for a state of another form."""
        count = len(self.names)
        found: Any = state
        if self.packed and isinstance(state, Tensor):
            if not state.is_complex():
                raise TypeError(f"the state is a complex field (..., {self.shape[0]}, {self.shape[1]}), or a tuple of its two parts")
            found = state.real, state.imag
        elif isinstance(state, Tensor):
            if self.several and state.shape[-3:-2] != (count,):
                raise ValueError(f"the state has shape {tuple(state.shape)}, wanted (..., {count}, {self.shape[0]}, {self.shape[1]})")
            found = state.unbind(-3) if self.several else (state,)
        elif not (self.several and isinstance(state, tuple | list) and len(state) == count):
            raise TypeError(f"the state is a tensor, or a tuple of {count} of several fields, got {type(state).__name__}")
        for field in found:
            if field.shape[-2:] != self.shape:
                raise ValueError(f"a field has shape {tuple(field.shape)}, the plane (..., {self.shape[0]}, {self.shape[1]})")
        return tuple(found)

    def symbol(self) -> Tensor:
        """The eigenvalue of each Fourier mode of torch.fft.rfft2, (n_y, n_x // 2 + 1); of several fields a matrix per mode.

        Raises:
            ValueError: walls, or a part that is not linear with constant coefficients.
        """
        return self._symbol("symbol")

    def exact(self, t: float | Tensor, state: Any) -> Any:
        """The solution of the differential equation at time t, exact where the state has no mode at Nyquist; times (T,) give (T, ...).

        Raises:
            ValueError: as for ``symbol``, or a reaction.
        """
        if self.reaction is not None:
            raise ValueError("with a reaction no exact solution is known; compare with small steps")
        return self._moved(t, state, self._symbol("exact_symbol"), False)

    def flow(self, u: Any, times: Sequence[float]) -> Any | None:
        """The semi-discrete solution at ``times``, stacked in front, u to the bit at t = 0; None where there is no closed form."""
        if self.reaction is not None or not self._known():
            return None
        return self._moved(tuple(times), u, self.symbol(), True)

    @property
    def split(self) -> Callable[[], tuple[LinearOperator, Callable[[Any, Any], Any]]]:
        """split() -> (linear, rest): A_x and A_y, and the reaction. It is there where ``symbol`` is, else AttributeError."""
        if not self._known():
            raise AttributeError("split is there on a periodic plane of linear terms with constant coefficients")
        return self._parts

    def _parts(self) -> tuple[LinearOperator, Callable[[Any, Any], Any]]:
        def rest(t: Any, state: Tensor) -> Any:
            fields = self.fields(state)
            slopes = [torch.zeros_like(u) if f is None else f.expand_as(u) for f, u in zip(self._reacted(t, fields), fields, strict=True)]
            return self._formed(slopes, state)

        return PlaneBlocks(self.symbol, self.shape, self.packed) if self.several else PlaneModes(self.symbol, self.shape), rest

    def max_stable_step(self, method: Any, *, t: float = 0.0) -> float:
        """The largest step with which ``method`` amplifies no mode that the equation itself does not let grow; the reaction is left out.

        Where coefficients vary or there are walls an estimate, 1 / (1 / h_x + 1 / h_y) of the limits along both axes; infinite, not
        known, for such systems.
        """
        stability = stability_function(method)
        if not self._known():
            limits = [math.inf if self.several else part.max_stable_step(method, t=t) for part in (self.along_x, self.along_y)]
            return 0.0 if 0 in limits else 1 / found if (found := sum(1 / limit for limit in limits)) else math.inf
        if stability.acts_on != "whole":
            return math.inf
        with torch.no_grad():
            x, y = (part.symbol(some_modes(part.grid)[:: max(1, part.grid.n // 128)]) for part in (self.along_x, self.along_y))
            total = torch.cat([x[None] + y[:, None], x[None] + y.conj()[:, None]])
            values = torch.linalg.eigvals(total) if self.several else total
            return stability.limit(torch.complex(values.real.clamp(max=0), values.imag))

    def _known(self) -> bool:
        parts = (self.along_x, self.along_y)
        equations = [equation for part in parts for equation in (part.equations if isinstance(part, System) else (part,))]
        calm = not any(isinstance(part, System) and part.reactions for part in parts)
        return calm and all(part.grid.periodic for part in parts) and all(term.constant for one in equations for term in one.terms())  # pyright: ignore

    def _need_known(self) -> None:
        if not self._known():
            raise ValueError(
                "a linear part in closed form is known on a periodic plane, of along_x and along_y that are linear with constant "
                "coefficients alone; move the rest into reaction, or take an explicit or implicit method"
            )

    def _symbol(self, name: str) -> Tensor:
        self._need_known()
        like = self.along_x.like()
        x, y = (getattr(part, name)(part.grid.modes(like)) for part in (self.along_x, self.along_y))
        first = -3 if self.several else -1
        behind = y.narrow(first, 1, (self.shape[0] - 1) // 2).flip(first).conj()  # of negative wavenumbers
        return x.unsqueeze(first - 1) + torch.cat([y, behind], first).unsqueeze(first)

    def _moved(self, t: Any, state: Any, symbol: Tensor, less: bool) -> Any:
        u = torch.stack(self.fields(state), -3)
        v = torch.fft.rfft2(u).movedim(-3, -1)[..., None]
        symbol = symbol if self.several else symbol[..., None, None]
        turn = elapsed(t, symbol, v)
        exponential = torch.linalg.matrix_exp(turn) if self.several else torch.exp(turn)
        if less:
            exponential = (
                exponential - torch.eye(symbol.shape[-1], dtype=turn.dtype, device=u.device) if self.several else torch.expm1(turn)
            )
        moved = torch.fft.irfft2((exponential.to(v.dtype) @ v)[..., 0].movedim(-1, -3), s=self.shape)
        return self._formed(list((u + moved if less else moved).unbind(-3)), state)

    def _reacted(self, t: Any, fields: tuple[Tensor, ...]) -> list[Any]:
        if self.reaction is None:
            return [None] * len(fields)
        x, y = self.along_x.grid.points(fields[0]), self.along_y.grid.points(fields[0])[:, None]
        found = self.reaction(t, x, y, *fields)
        found = found if self.several else (found,)
        check_reaction(found, self.names)
        return [torch.as_tensor(f, dtype=u.dtype, device=u.device) for f, u in zip(found, fields, strict=True)]

    def _formed(self, fields: Sequence[Tensor], state: Any) -> Any:
        if not isinstance(state, Tensor):
            return tuple(fields)
        if self.packed:
            return torch.complex(*fields)
        return torch.stack(tuple(fields), -3) if self.several else fields[0]


class OverPlane(nn.Module):
    """A function of (t, x, y) as a coefficient of (t, points along one axis), in the fields of that axis: turned along y."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Any], other: Grid1D, turned: bool) -> None:
        super().__init__()
        self.function, self.other, self.turned = function, other, turned

    def forward(self, t: Any, along: Tensor) -> Tensor:
        across = self.other.points(along)
        x, y = (across, along[:, None]) if self.turned else (along, across[:, None])
        found = torch.as_tensor(self.function(t, x, y), dtype=along.dtype, device=along.device).expand(len(y), len(x))
        return found.mT if self.turned else found


def over_plane(x: Grid1D, y: Grid1D, function: Callable[[Any, Tensor, Tensor], Any]) -> tuple[OverPlane, OverPlane]:
    """A coefficient that varies over the plane, for the terms along x and for those along y.

    ``along_x, along_y = over_plane(x, y, D)`` and ``Plane(Diffusion(x, along_x), Diffusion(y, along_y))`` are
    d/dx(D du/dx) + d/dy(D du/dy).

    Args:
        x, y: the axes.
        function: (t, x, y) -> a number or a tensor that broadcasts to (n_y, n_x), x of shape (n_x,), y of (n_y, 1), also between the
            points of its axis; a module is trained.

    Raises:
        TypeError: axes that are no grids, or no function of three arguments.
    """
    for name, grid in (("x", x), ("y", y)):
        if not isinstance(grid, Grid1D):
            raise TypeError(f"{name}={grid!r} must be a Grid1D")
    signature = signature_of(function) if callable(function) else None
    try:
        if signature is not None:
            signature.bind(0, 1, 2)
        elif not callable(function):
            raise TypeError
    except TypeError:
        raise TypeError(f"function={function!r} must be a function of (t, x, y)") from None
    return OverPlane(function, y, False), OverPlane(function, x, True)


def _need_one_axis(axis: str, part: FieldEquation | System) -> None:
    """ValueError for coefficients of more axes than that of their term: which axis of the plane the others are is not known."""
    for equation in part.equations if isinstance(part, System) else (part,):
        for term in equation.terms():  # pyright: ignore[reportCallIssue]
            for name, value in leaves(term.coefficient, getattr(term, term.coefficient)):
                if isinstance(value, OverPlane) and value.turned is not (axis == "along_y"):
                    raise ValueError(f"{name} of {term.name} {axis} is that of the other axis: along_x, along_y = over_plane(x, y, f)")
                if isinstance(value, Tensor):
                    shape = value.shape
                elif reads_field(value):
                    _need_no_y(f"{name} of {term.name} {axis}", value)
                    continue
                elif not term.linear or isinstance(value, OverPlane) or not callable(value):
                    continue
                else:
                    x = term.grid.points(term.like())
                    with torch.no_grad():
                        shape = getattr(value(torch.zeros_like(x[0]), x), "shape", ())
                if len(shape) > 1:
                    raise ValueError(
                        f"{name} of {term.name} {axis} has shape {tuple(shape)}; on a plane a coefficient is one number, one per point of "
                        "its axis, or one of over_plane(x, y, f), which varies over both: solve fields with others one by one"
                    )


def _need_no_y(name: str, function: Any) -> None:
    """ValueError for a function (t, x, y), which would get the field as y."""
    signature = signature_of(function)
    if signature is not None and [*signature.parameters][2:3] == ["y"]:
        raise ValueError(f"{name} is a function of {signature}, the third of which is the field: call it u, or give over_plane(x, y, f)")


class PlaneModes(LinearOperator):
    """L u = F^-1 [symbol F u], F the real Fourier transform of a plane."""

    def __init__(self, symbol: Callable[[], Tensor], shape: tuple[int, int]) -> None:
        super().__init__(symbol)
        self.shape = shape

    def sample(self, u: Tensor) -> Tensor:
        return self.forward(u.new_empty(0, *u.shape[-1:]))

    def forward(self, u: Tensor) -> Tensor:
        return torch.fft.rfft2(u) if u.numel() else torch.complex(u, u)

    def inverse(self, v: Tensor) -> Tensor:
        return torch.fft.irfft2(v, s=self.shape)


class PlaneBlocks(Blocks):
    """The same of several fields, the symbol a matrix per mode."""

    def __init__(self, symbol: Callable[[], Tensor], shape: tuple[int, int], packed: bool) -> None:
        super().__init__(symbol, shape, None, packed)
        self.modes = PlaneModes(symbol, shape)

    def forward(self, u: Tensor) -> Tensor:
        if not u.numel():
            return u if u.is_complex() else torch.complex(u, u)
        return self.modes.forward(torch.stack([u.real, u.imag], -3) if self.packed else u).movedim(-3, -1)

    def inverse(self, v: Tensor) -> Tensor:
        found = self.modes.inverse(v.movedim(-1, -3))
        return torch.complex(*found.unbind(-3)) if self.packed else found
