"""Conservation laws with any flux: shocks at the right speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from anodev2 import odeint

from .boundary import Boundary, Walls
from .conditions import Free, Slope
from .equation import Term
from .grid import Grid1D
from .stencils import Derivative, derivative, upwinded

SAMPLES = 33  # of the range of a field, at which its speed is looked at


class ConservationLaw(Term):
    """du/dt = -d f(u)/dx, by Lax and Friedrichs' splitting: -D-(f + a u)/2 - D+(f - a u)/2, a the largest |f'| between min u and max u.

    The sum of u changes by what flows through the ends alone, to round-off, so that shocks have the speed (f(u+) - f(u-)) / (u+ - u-). Take
    "weno5" with "ssprk3", and steps of at most 0.4 h / a, which ``steps`` finds: a changes with the field. Between walls data belong to the
    ends where the field flows in; at a ``Free`` one the last value continues.

    Args:
        grid: the points.
        flux: f, u -> tensor like u, at each point; a module is trained.
        max_speed: u -> |f'(u)| at each point, of any sign.
        scheme: "weno5", "upwind1", "upwind3" or "upwind5".

    Raises:
        TypeError: a flux or speed that is no function.
        ValueError: another scheme, or ends that do not suit.

    Source: LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 12; Jiang, Shu, J. Comput. Phys. 126 (1996).
    """

    linear = False
    name, coefficient = "ConservationLaw", "flux"

    def __init__(
        self,
        grid: Grid1D,
        flux: Callable[[Tensor], Tensor],
        max_speed: Callable[[Tensor], Tensor],
        scheme: str = "weno5",
    ) -> None:
        super().__init__(grid)
        for what, given in (("flux", flux), ("max_speed", max_speed)):
            if not callable(given):
                raise TypeError(f"{what}={given!r} must be a function of u")
        if not upwinded(scheme):
            raise ValueError(f"scheme={scheme!r} lets shocks swing; take 'weno5', 'upwind1', 'upwind3' or 'upwind5'")
        self.boundary.validate(self.name, "flux")
        self.flux, self.max_speed, self.scheme = flux, max_speed, scheme
        self.ends = _continued(grid.boundary)
        self.forward_side: Derivative = derivative(grid, 1, scheme, 1)
        self.backward_side: Derivative = derivative(grid, 1, scheme, -1)

    @property
    def constant(self) -> bool:
        return False

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        a = self.fastest(u)
        return -(self._carried(self.forward_side, a, t, u) + self._carried(self.backward_side, -a, t, u)) / 2

    def fastest(self, u: Tensor) -> Tensor:
        """The largest |f'| between the smallest and the largest value of each field, (..., 1): a shock takes up all values between."""
        low, high = u.amin(-1, keepdim=True), u.amax(-1, keepdim=True)
        between = low + (high - low) * torch.linspace(0, 1, SAMPLES, dtype=u.dtype, device=u.device)
        return self.max_speed(between).abs().amax(-1, keepdim=True)

    def steps(self, u0: Tensor, t: Sequence[float], cfl: float = 0.4, method: Any = "ssprk3") -> list[float]:
        """Times from the first to the last of t, for ``odeint(..., grid=times)``: steps of cfl h / a, a that of the field at each.

        Args:
            u0: the field(s) at t[0]; of a batch the fastest one counts.
            t: rising times, each of which is met.
            cfl: cells that the fastest wave may cross in a step, above 0.
            method: with which the field is taken along, without gradients.

        Raises:
            ValueError: cfl not above 0, or times that do not rise.
        """
        if not cfl > 0:
            raise ValueError(f"cfl={cfl} must be above 0")
        if any(b <= a for a, b in pairwise(t)):
            raise ValueError(f"t={list(t)} must rise")
        times, u = [float(t[0])], u0.detach()
        with torch.no_grad():
            for end in map(float, t[1:]):
                while times[-1] < end:
                    a = self.fastest(u).max().item()
                    longest = cfl * self.grid.spacing / a if a > 0 else math.inf
                    count = max(1, math.ceil((end - times[-1]) / longest - 1e-9))
                    times.append(end if count == 1 else times[-1] + (end - times[-1]) / count)
                    u = odeint(self, u, times[-2:], method=method, steps=1, adjoint="direct")[-1]
        return times

    def symbol(self, k: Tensor) -> Tensor:
        raise ValueError("a ConservationLaw is not linear and has no symbol; take matrix(u), or Advection at a speed of interest")

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return [0.0 if u is None else self.fastest(u).max().item()]

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return -value * self.forward_side.symbol(k, self.grid.spacing)

    def _carried(self, side: Derivative, a: Tensor, t: Any, u: Tensor) -> Tensor:
        padded = self.ends.pad(u, side.reach, self.grid.spacing, t)
        return side.apply(self.flux(padded) + a * padded, self.grid)


def _continued(boundary: Boundary) -> Boundary:
    """The same ends, the free ones with slope 0: polynomials through a shock would swing."""
    if not isinstance(boundary, Walls):
        return boundary
    return Walls(*(Slope() if isinstance(end, Free) else end for end in boundary.conditions))
