"""A term times a number."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anodev2 import SplitState

from .advection import Advection
from .burgers import SelfAdvection
from .coefficient import extremes
from .diffusion import Diffusion
from .equation import Term
from .grid import Grid1D
from .higher import Hyperdiffusion
from .reaction import Reaction
from .stability import Profile
from .stencils import upwinded


class Scaled(Term):
    """du/dt = factor times a term: all that is linear in it follows.

    Raises:
        ValueError: a factor below 0 of diffusion, which would grow without bound, or of transport that takes a side.
    """

    coefficient = "inner"

    def __init__(self, term: Term, factor: float) -> None:
        if isinstance(term, Scaled):
            term, factor = term.term, factor * term.factor
        if factor < 0 and isinstance(term, Diffusion | Hyperdiffusion):
            raise ValueError(
                f"{factor:g} times {term.name} grows without bound; give DerivativeTerm where something else damps short waves"
            )
        if factor < 0 and isinstance(term, Advection | SelfAdvection) and (upwinded(term.scheme) or not term.grid.periodic):
            raise ValueError(f"{factor:g} times {term.name} by {term.scheme} reads the side to which the field moves; give the other speed")
        super().__init__(term.grid)
        self.term, self.factor = term, factor
        self.name = f"{factor:g} {term.name}"
        self.even, self.grows = term.even, term.grows or factor < 0

    @property
    def inner(self) -> Any:
        """The coefficient of the term."""
        return getattr(self.term, self.term.coefficient)

    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.term.linear

    @property
    def constant(self) -> bool:
        return self.term.constant

    @property
    def diffusive(self) -> bool:
        return self.term.diffusive

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        return self.factor * self.term.tendency(t, u)

    def spectrum(self, t: Any, state: SplitState) -> Tensor | None:
        known = self.term.spectrum(t, state)
        return None if known is None else self.factor * known

    def symbol(self, k: Tensor) -> Tensor:
        return self.factor * self.term.symbol(k)

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.factor * self.term.exact_symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        """Of a reaction what decays then."""
        if self.factor < 0 and isinstance(self.term, Reaction):
            return sorted({max(rate, 0.0) for rate in extremes(self.term.rate, self.grid.points(self.like()), t)})
        return self.term.extremes(u, t)

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return self.factor * self.term.frozen(value, k)

    def on(self, grid: Grid1D, value: Profile) -> Term | None:
        made = self.term.on(grid, value)
        return None if made is None else Scaled(made, self.factor)

    def check_inflow(self, t: Any, u: Tensor) -> None:
        self.term.check_inflow(t, u)

    def need_exact_symbol(self) -> None:
        self.term.need_exact_symbol()
