"""Derivatives of any order from 1 to 4, and nonlinear terms without aliasing, on periodic grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anodev2 import SplitState
from anodev2.fourier import Numbers, field_of, modes_of, paired, powers, real_type, times
from anodev2.tables import kept

from .coefficient import Coefficient, as_coefficient, attach, evaluate, extremes, is_constant, need_at_least_0, positive
from .conditions import Need
from .equation import Term
from .grid import Grid1D, modes, wavenumbers
from .numbers import as_tensor
from .stability import Profile
from .stencils import Derivative, derivative


class DerivativeTerm(Term):
    """du/dt = a d^m u/dx^m, a of any sign: the mode k has the symbol a (i k)^m.

    Even orders let modes grow if a (i k)^m > 0 (a < 0 for m = 2): something else must damp the short ones.

    Args:
        grid: the points, periodic for m = 3 and 4.
        order: m, from 1 to 4.
        factor: a, length^m per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> a.
        scheme: "spectral", "central2", "central4" or "central6".

    Raises:
        ValueError: an unknown order or scheme, one that does not suit the grid, or a factor that is not finite.
        TypeError: a factor of another kind.

    Source: Kassam, Trefethen, SIAM J. Sci. Comput. 26 (2005).
    """

    name, coefficient = "DerivativeTerm", "factor"
    sign, grows = 1.0, True
    need: Need | None = None  # of an end, None as the order says

    def __init__(self, grid: Grid1D, order: int, factor: Coefficient, scheme: str = "spectral") -> None:
        super().__init__(grid)
        if order > 2 and not grid.periodic:
            raise ValueError(f"{self.name} has a derivative of order {order}, for which no walls are known; take a periodic grid")
        attach(self, self.coefficient, factor, grid.n)
        self.order, self.scheme = order, scheme
        self.difference: Derivative = derivative(grid, order, scheme)
        self.boundary.validate(self.name, self.need or ("diffusion" if order > 1 else "flux"))

    @property
    def constant(self) -> bool:
        return is_constant(getattr(self, self.coefficient))

    @property
    def diffusive(self) -> bool:
        return self.order > 1

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        return self._factor(t, u) * self.difference(u, self.grid, t)

    def symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the symbol")
        k = as_tensor(k)
        return self._factor(0.0, k) * self.difference.symbol(k, self.grid.spacing)

    def exact_symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the exact symbol")
        k = as_tensor(k)
        return self._factor(0.0, k) * torch.complex(torch.zeros_like(k), k) ** self.order

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return extremes(getattr(self, self.coefficient), self.grid.points(self.like()), t)

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return self.sign * value * self.difference.symbol(k, self.grid.spacing)

    def on(self, grid: Grid1D, value: Profile) -> Term:
        return DerivativeTerm(grid, self.order, self.sign * as_coefficient(value), self.scheme)

    def _factor(self, t: Any, like: Tensor) -> Any:
        return self.sign * evaluate(getattr(self, self.coefficient), t, lambda: self.grid.points(like), like)


class Dispersion(DerivativeTerm):
    """du/dt = -beta d3u/dx3: the mode k moves with the speed -beta k^2 (towards -x for beta > 0), and keeps its size.

    Args:
        grid: the points, periodic.
        beta: length^3 per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> beta.
        scheme: as for ``DerivativeTerm``.

    Raises:
        ValueError, TypeError: as for ``DerivativeTerm``.
    """

    name, coefficient, sign, grows = "Dispersion", "beta", -1.0, False

    def __init__(self, grid: Grid1D, beta: Coefficient, scheme: str = "spectral") -> None:
        super().__init__(grid, 3, beta, scheme)


class Hyperdiffusion(DerivativeTerm):
    """du/dt = -nu d4u/dx4: the mode k decays by exp(-nu k^4 t), short ones by far the fastest.

    Args:
        grid: the points, periodic.
        nu: at least 0, length^4 per time: a number, or a tensor that is the same at all points. A Parameter is trained; below 0 it
            counts as 0, as for ``Diffusion``.
        scheme: as for ``DerivativeTerm``.

    Raises:
        ValueError: nu < 0 or varying in x; otherwise as for ``DerivativeTerm``.
    """

    name, coefficient, sign, grows = "Hyperdiffusion", "nu", -1.0, False

    def __init__(self, grid: Grid1D, nu: float | Tensor, scheme: str = "spectral") -> None:
        super().__init__(grid, 4, nu, scheme)
        if not is_constant(nu):
            raise ValueError("nu of Hyperdiffusion must be a number or a tensor of shape (..., 1), the same at all points")
        need_at_least_0("nu", nu)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return sorted({max(value, 0.0) for value in super().extremes(u, t)})

    def _factor(self, t: Any, like: Tensor) -> Any:
        return self.sign * positive(evaluate(self.nu, t, lambda: like, like))


class Nonlinearity(Term):
    """du/dt = d^m/dx^m g(u), g a polynomial, spectral and without aliasing: P d^m/dx^m g(P u).

    P keeps the modes below n / (degree + 1) (Orszag's 2/3 rule for a square, 1/2 for a cube): products of these reach beyond Nyquist, and
    come back as modes that P takes out.

    Args:
        grid: the points, periodic.
        function: g, u -> tensor like u, at each point; a module is trained.
        degree: of g.
        order: m, 0 to 4.

    Raises:
        ValueError: walls, a degree below 2, or another order.
        TypeError: a function that is none.

    Source: Orszag, J. Atmos. Sci. 28 (1971).
    """

    linear = False
    name, coefficient = "Nonlinearity", "function"

    def __init__(self, grid: Grid1D, function: Callable[[Tensor], Tensor], degree: int, order: int = 0) -> None:
        super().__init__(grid)
        if not callable(function):
            raise TypeError(f"function={function!r} must be a function of u")
        if not grid.periodic:
            raise ValueError(f"Nonlinearity needs a periodic grid, this one has {self.boundary}; take a Source")
        if degree < 2 or order not in range(5):
            raise ValueError(f"degree={degree} must be at least 2 and order={order} from 0 to 4")
        self.function, self.degree, self.order = function, degree, order

    @property
    def constant(self) -> bool:
        return False

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        self.grid.check(u)
        return field_of(self._of_modes(modes_of(u)), self.grid.n)

    def spectrum(self, t: Any, state: SplitState) -> Tensor:
        return self._of_modes(state.held)

    def _of_modes(self, v: Tensor) -> Tensor:
        case = self.grid.n, self.grid.length, self.degree, real_type(v.dtype), v.device, paired()
        smooth = field_of(times(kept(_kept_powers, 0, *case), v), self.grid.n)
        return times(kept(_kept_powers, self.order, *case), modes_of(self.function(smooth)))

    def symbol(self, k: Tensor) -> Tensor:
        raise ValueError("a Nonlinearity is not linear and has no symbol; take matrix(u), its Jacobian")

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        """Left out, as sources are."""
        return [0.0]

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return torch.zeros_like(k, dtype=torch.complex128)


def _kept_powers(order: int, n: int, length: float, degree: int, dtype: torch.dtype, device: torch.device, in_pairs: bool) -> Numbers:
    """(i k)^m of the real Fourier modes that a polynomial of this degree may have, of others 0."""
    like = torch.empty(0, dtype=dtype, device=device)
    k = wavenumbers(n, length, like) if order % 2 else modes(n, length, like)
    inside = torch.arange(len(k), device=device) * (degree + 1) < n
    return powers(order, k, inside.to(dtype), in_pairs)
