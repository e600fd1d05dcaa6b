"""Equations of second order in time: a field and its velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .coefficient import Coefficient, as_coefficient, attach, evaluate, extremes, formula, is_constant, over_speed
from .conditions import without_field_data
from .equation import FieldEquation, Term
from .grid import Grid1D
from .higher import DerivativeTerm
from .numbers import as_tensor
from .reaction import Reaction
from .stability import Profile
from .stencils import Derivative, derivative
from .system import System


def square(c: Any) -> Any:
    return c**2


class Itself(Reaction):
    """The field itself, the same tensor."""

    def __init__(self, grid: Grid1D) -> None:
        super().__init__(grid, 1.0)

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        return u


class Spreading(DerivativeTerm):
    """c^2 d2u/dx2, what drives a wave of speed c."""

    name, need = "Wave", "wave"

    def __init__(self, grid: Grid1D, speed: Coefficient, scheme: str) -> None:
        super().__init__(grid, 2, formula(grid.n, square, speed=speed), scheme)

    def on(self, grid: Grid1D, value: Profile) -> Term:
        root = as_coefficient(value)
        return Spreading(grid, root.sqrt() if isinstance(root, Tensor) else root**0.5, self.scheme)


class SecondOrder(System):
    """d2u/dt2 = force(u) + drag(du/dt), as the system du/dt = v, dv/dt = force(u) + drag(v) of the fields u and v.

    ``Wave + a`` makes it, and so does ``+ a`` again: an equation a of one field is added to the force. Without a drag "leapfrog" takes it,
    with the state a pair (u, v).

    Args:
        force: an equation of u, a sum of terms.
        drag: an equation of v, such as ``Reaction(grid, -0.1)``.

    Raises:
        ValueError, TypeError: as for ``System``.
    """

    def __init__(self, force: FieldEquation, drag: FieldEquation | None = None) -> None:
        for name, given in (("force", force), ("drag", drag)):
            if not (isinstance(given, FieldEquation) or (name == "drag" and given is None)):
                raise TypeError(f"{name} must be an equation of one field, got {type(given).__name__}")
        moved = {"u": force} if drag is None else {"u": force, "v": drag}
        super().__init__({"u": {"v": Itself(force.grid)}, "v": moved})

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, FieldEquation):
            return super().__add__(other)
        return super().__add__(System({"u": None, "v": {"u": other}}))

    def __radd__(self, other: Any) -> Any:
        return self + other if isinstance(other, FieldEquation) else super().__radd__(other)

    def _made(self, pairs: Any, reactions: Any) -> System:
        """Of second order as long as du/dt is v alone."""
        moves = pairs.get((0, 1))
        if not isinstance(moves, Itself) or (0, 0) in pairs or reactions:
            return super()._made(pairs, reactions)
        return SecondOrder(pairs[1, 0], pairs.get((1, 1)))


class Absorbed(Term):
    """What absorbing ends take from dv/dt of a wave of speed c, as a term of its velocity v: the ghosts of u follow v there."""

    name, coefficient = "Absorbed", "speed"

    def __init__(self, grid: Grid1D, speed: Coefficient, scheme: str) -> None:
        super().__init__(grid)
        attach(self, "speed", speed, grid.n)
        self.scheme = scheme
        self.second: Derivative = derivative(grid, 2, scheme)

    @property
    def constant(self) -> bool:
        return is_constant(self.speed)

    @property
    def diffusive(self) -> bool:
        return True

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        c = evaluate(self.speed, t, lambda: self.grid.points(u), u)
        still = torch.zeros_like(u)
        with without_field_data(self.boundary):
            return c**2 * (self.second(still, self.grid, t, over_speed(u, c)) - self.second(still, self.grid, t))

    def symbol(self, k: Tensor) -> Tensor:
        k = as_tensor(k)
        return torch.zeros_like(k, dtype=torch.complex128)

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return extremes(self.speed, self.grid.points(self.like()), t)

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return torch.zeros_like(k, dtype=torch.complex128)

    def on(self, grid: Grid1D, value: Profile) -> Term:
        return Absorbed(grid, as_coefficient(value), self.scheme)
