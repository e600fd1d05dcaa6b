"""Reaction, sources, and the three together with diffusion and advection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .advection import Advection
from .coefficient import Coefficient, Diffusivity, as_coefficient, attach, evaluate, extremes, is_constant, is_zero
from .diffusion import Diffusion
from .equation import FieldEquation, Term
from .grid import Grid1D
from .numbers import as_tensor
from .stability import Profile


class Reaction(Term):
    """du/dt = rho u: growth for rho > 0, decay for rho < 0.

    Args:
        grid: the points.
        rate: rho, per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> rho.

    Raises:
        TypeError: a rate of another kind.
    """

    even = True
    name, coefficient = "Reaction", "rate"

    def __init__(self, grid: Grid1D, rate: Coefficient) -> None:
        super().__init__(grid)
        attach(self, "rate", rate, grid.n)

    @property
    def constant(self) -> bool:
        return is_constant(self.rate)

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        return evaluate(self.rate, t, lambda: self.grid.points(u), u) * u

    def symbol(self, k: Tensor) -> Tensor:
        self.need_constant("the symbol")
        k = as_tensor(k)
        return evaluate(self.rate, 0.0, lambda: k, k) * torch.complex(torch.ones_like(k), torch.zeros_like(k))

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        """Growth is left out: no step is too long or too short for what is to grow."""
        return sorted({min(rate, 0.0) for rate in extremes(self.rate, self.grid.points(self.like()), t)})

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return torch.full_like(k, value, dtype=torch.complex128)

    def on(self, grid: Grid1D, value: Profile) -> Term:
        decay = tuple(min(rate, 0.0) for rate in value) if isinstance(value, tuple) else min(value, 0.0)
        return Reaction(grid, as_coefficient(decay))


class Source(Term):
    """du/dt = f(t, x, u), any function of the field: never part of a linear split, and left out of ``max_stable_step``.

    Args:
        grid: the points.
        function: (t, x, u) -> tensor like u, x of shape (n,); a module is trained.

    Raises:
        TypeError: not callable.
    """

    linear = False
    name, coefficient = "Source", "function"

    def __init__(self, grid: Grid1D, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__(grid)
        if not callable(function):
            raise TypeError(f"source={function!r} must be a function of (t, x, u)")
        self.function = function

    @property
    def constant(self) -> bool:
        return False

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        return self.function(t, self.grid.points(u), u)

    def symbol(self, k: Tensor) -> Tensor:
        raise ValueError("the symbol of a source is not known; leave it out, or linearise it and give its slope as reaction")

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return [0.0]

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return torch.zeros_like(k, dtype=torch.complex128)


class AdvectionDiffusionReaction(FieldEquation):
    """du/dt = d/dx (D du/dx) - c du/dx + rho u + source(t, x, u).

    c > 0 moves the field towards +x; the weight dynamics of ANODEV2 writes + upsilon . grad w instead, upsilon = -c. Terms whose
    coefficient is the number 0 are left out.

    Args:
        grid: the points; with diffusion, walls need data at both ends.
        diffusivity: D >= 0, length^2 per time.
        speed: c, length per time.
        reaction: rho, per time.
        source: (t, x, u) -> tensor like u, or None.
        scheme: of the diffusion, see ``Diffusion``.
        advection_scheme: see ``Advection``.

    D, c and rho are numbers, tensors (Parameters are trained) or functions of (t, x).

    Raises:
        ValueError, TypeError: as ``Diffusion``, ``Advection``, ``Reaction``, ``Source``.

    Source: ANODEV2, arXiv 1906.04596.
    """

    def __init__(
        self,
        grid: Grid1D,
        diffusivity: Diffusivity = 0.0,
        speed: Coefficient = 0.0,
        reaction: Coefficient = 0.0,
        source: Callable[[Any, Tensor, Tensor], Tensor] | None = None,
        *,
        scheme: str = "central2",
        advection_scheme: str | None = None,
    ) -> None:
        super().__init__(grid)
        self.diffusion = None if is_zero(diffusivity) else Diffusion(grid, diffusivity, scheme)
        self.advection = None if is_zero(speed) else Advection(grid, speed, advection_scheme)
        self.reaction = None if is_zero(reaction) else Reaction(grid, reaction)
        self.source = None if source is None else Source(grid, source)

    def terms(self) -> tuple[Term, ...]:
        return tuple(term for term in (self.diffusion, self.advection, self.reaction, self.source) if term is not None)
