"""Transport of a field along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from .boundary import Boundary
from .coefficient import Coefficient, as_coefficient, attach, evaluate, extremes, is_constant
from .equation import Term
from .extrapolation import Reach
from .grid import Grid1D
from .numbers import Seen, as_tensor, readable
from .stability import Profile
from .stencils import Derivative, Spectral, derivative, upwinded

_checked: WeakKeyDictionary[Advection, tuple[ref[Tensor], Seen]] = WeakKeyDictionary()  # speeds that suit their ends


class Advection(Term):
    """du/dt = -c du/dx, so that a constant c > 0 moves the field towards +x: u(t, x) = u(0, x - c t).

    With ``conservative``: du/dt = -d(c u)/dx, which keeps the sum of u on periodic grids, to round-off. Fields are (..., n). Upwind
    schemes take their side by the sign of the speed: c+ D- u + c- D+ u, c+- = (c +- |c|) / 2; with ``conservative`` and a speed that varies
    by Lax and Friedrichs' splitting, D-(c+ u) + D+(c- u) with c+- = (c +- a) / 2, a the largest |c|: a flux without a kink where c is 0.
    The mode k has the symbol -c D(k), D(k) = i k for "spectral" below Nyquist: rk4 is stable there for dt |c| pi n / length < 2.83,
    Euler for no step; ``max_stable_step`` tells for any scheme and method.

    Between walls, data belong to the ends where the field flows in, and to these alone (c > 0: ``Dirichlet(left=..., right=None)``):
    none there is refused when the equation is made, data where it flows out at the first call, for a diffusive term added to this one
    needs them. Neither is checked where tensors cannot be read (while compiling, under torch.func).

    Args:
        grid: the points.
        speed: c, length per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> c.
        scheme: "spectral" (periodic grids, and the default there), "upwind3" (the default between walls), "upwind1", "upwind5", "weno5",
            "central2", "central4", "central6".
        conservative: whether the speed stands inside the derivative.

    Raises:
        ValueError: an unknown scheme, "spectral" between walls, or data that do not suit the direction.
        TypeError: a speed of another kind.

    Source: LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 4, 9 and 12.5.
    """

    name, coefficient = "Advection", "speed"

    def __init__(self, grid: Grid1D, speed: Coefficient, scheme: str | None = None, conservative: bool = False) -> None:
        super().__init__(grid)
        attach(self, "speed", speed, grid.n)
        self.scheme = scheme or ("spectral" if grid.periodic else "upwind3")
        self.conservative = conservative
        self.forward_side: Derivative = derivative(grid, 1, self.scheme, 1)  # for c > 0
        self.backward_side: Derivative = derivative(grid, 1, self.scheme, -1)
        self.boundary.validate("Advection", "flux" if conservative or is_constant(speed) else "transport")
        if not grid.periodic and is_constant(speed) and readable(grid.points()):
            check_ends(self.boundary, *self._end_speeds(0.0, grid.points()), missing_only=True)

    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.forward_side.linear

    @property
    def constant(self) -> bool:
        return self.linear and is_constant(self.speed)

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        c = evaluate(self.speed, t, lambda: self.grid.points(u), u)
        if not upwinded(self.scheme) or isinstance(c, int | float):
            return self._one_sided(c, t, u)
        if not self.conservative or is_constant(self.speed):
            positive, negative = (c + c.abs()) / 2, (c - c.abs()) / 2
            return -(positive * self.forward_side(u, self.grid, t) + negative * self.backward_side(u, self.grid, t))
        fastest = c.abs().amax(-1, keepdim=True) if c.ndim else c.abs()
        left = transported(self.forward_side, lambda v, c: v * (c + fastest) / 2, self.grid, t, u, c)
        return -(left + transported(self.backward_side, lambda v, c: v * (c - fastest) / 2, self.grid, t, u, c))

    def symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the symbol")
        k = as_tensor(k)
        return self._symbol(evaluate(self.speed, 0.0, lambda: k, k), k)

    def exact_symbol(self, k: Tensor) -> Tensor:
        self.need_exact_symbol()
        k = as_tensor(k)
        return -evaluate(self.speed, 0.0, lambda: k, k) * torch.complex(torch.zeros_like(k), k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return extremes(self.speed, self.grid.points(self.like()), t)

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return self._symbol(value, k)

    def on(self, grid: Grid1D, value: Profile) -> Term:
        scheme = "upwind5" if self.scheme == "weno5" else self.scheme
        return Advection(grid, as_coefficient(value), scheme, self.conservative)

    def exact(self, t: float | Tensor, u0: Any, **given: Any) -> Tensor:
        """As for every equation; u0 may also be a function of x, then the result is u0(x - c t) for a constant speed.

        On periodic grids its argument is brought back to the axis; between walls it is not, and the inflow data must be its own.
        """
        if isinstance(u0, Tensor) or not callable(u0) or given:
            return super().exact(t, u0, **given)
        return self._carried(t, u0)

    def need_exact_symbol(self) -> None:
        """Whatever the scheme."""
        if not is_constant(self.speed):
            self.need_constant("the exact solution")

    def check_inflow(self, t: Any, u: Tensor) -> None:
        """A speed that is a tensor is read once, until it changes."""
        if not readable(u):
            return
        speed = self.speed if isinstance(self.speed, Tensor) and not self.speed.is_inference() else None
        if speed is not None and (known := _checked.get(self)) and known[0]() is speed and known[1] == Seen(speed):
            return
        check_ends(self.boundary, *self._end_speeds(t, self.grid.points(u)), missing_only=False)
        if speed is not None:
            _checked[self] = ref(speed), Seen(speed)

    def _carried(self, t: float | Tensor, profile: Callable[..., Any]) -> Tensor:
        """profile(x - c t)."""
        self.need_exact_symbol()
        like = self.like()
        x, t = self.grid.points(like), torch.as_tensor(t, dtype=like.dtype, device=like.device)
        origin = x - evaluate(self.speed, 0.0, lambda: x, x) * t[..., None]
        if not self.grid.periodic:
            return profile(origin)
        start = self.grid.start
        return profile((origin - start).remainder(self.grid.length) + start if start else origin.remainder(self.grid.length))

    def _one_sided(self, c: Any, t: Any, u: Tensor) -> Tensor:
        side = self.backward_side if isinstance(c, int | float) and c < 0 else self.forward_side
        if not self.conservative or is_constant(self.speed):
            return -c * side(u, self.grid, t)
        return -transported(side, lambda v, c: v * c, self.grid, t, u, c)

    def _symbol(self, c: Any, k: Tensor) -> Tensor:
        h = self.grid.spacing
        if not upwinded(self.scheme) or isinstance(c, int | float):
            side = self.backward_side if isinstance(c, int | float) and c < 0 else self.forward_side
            return -c * side.symbol(k, h)
        return -((c + c.abs()) / 2 * self.forward_side.symbol(k, h) + (c - c.abs()) / 2 * self.backward_side.symbol(k, h))

    def _end_speeds(self, t: Any, x: Tensor) -> tuple[float, float, float, float]:
        """Smallest and largest speed at the left wall, and at the right (at the points next to them where it is a tensor)."""
        if isinstance(self.speed, int | float):
            return self.speed, self.speed, self.speed, self.speed
        ends = self.grid.faces(x)[:: self.grid.n]
        with torch.no_grad():
            c = torch.as_tensor(evaluate(self.speed, t, lambda: ends, x), dtype=x.dtype, device=x.device)
            left, right = (c, c) if c.ndim == 0 else (c[..., 0], c[..., -1])
            return left.min().item(), left.max().item(), right.min().item(), right.max().item()


def check_ends(
    boundary: Boundary, left_low: float, left_high: float, right_low: float, right_high: float, missing_only: bool = False
) -> None:
    """ValueError unless data stand exactly at the ends where a field of these speeds (smallest and largest at each end) flows in."""
    for end, inwards, speed in sorted((("left", left_high, left_high), ("right", -right_low, right_low)), key=lambda row: -row[1]):
        boundary.check_flow(end, speed, inwards, missing_only)


def transported(side: Derivative, flux: Callable[..., Tensor], grid: Grid1D, t: Any, u: Tensor, c: Any) -> Tensor:
    """D flux(u, c) with the boundary data those of u; c is continued beyond walls as at ends without data."""
    padded = grid.boundary.pad(u, side.reach, grid.spacing, t)
    if not isinstance(c, Tensor) or c.ndim == 0 or c.shape[-1] == 1 or isinstance(side, Spectral):
        return side.apply(flux(padded, c), grid)
    return side.apply(flux(padded, continued(c, side.reach, grid)), grid)


def continued(c: Tensor, reach: Reach, grid: Grid1D) -> Tensor:
    """A coefficient at the points and ghosts."""
    return grid.boundary.without_data().pad(c, reach, grid.spacing)
