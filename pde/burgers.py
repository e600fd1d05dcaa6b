"""Burgers' equation: a field that carries itself, steepens into shocks, and diffuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anodev2 import SplitState

from .coefficient import Diffusivity, is_constant, is_zero, positive
from .diffusion import Diffusion
from .equation import FieldEquation, Term
from .grid import Grid1D
from .stencils import Derivative, Spectral, derivative, upwinded


class SelfAdvection(Term):
    """du/dt = -d(u^2 / 2)/dx; upwind schemes as D-(max(u, 0)^2 / 2) + D+(min(u, 0)^2 / 2) (Engquist-Osher).

    Args:
        grid: the points.
        scheme: as for ``Advection``.
        viscous: data hold at both walls; else where u flows in, by its value, and it is extrapolated where it leaves.
    """

    linear = False
    name, coefficient = "Burgers transport", "scheme"

    def __init__(self, grid: Grid1D, scheme: str = "weno5", viscous: bool = False) -> None:
        super().__init__(grid)
        self.boundary.validate(self.name, "flux")
        self.scheme = scheme
        self.viscous = viscous
        self.forward_side: Derivative = derivative(grid, 1, scheme, 1)
        self.backward_side: Derivative = derivative(grid, 1, scheme, -1)
        one = self.forward_side.reach
        most = max(one.left, one.right)
        self.reach = replace(one, left=most, right=most) if upwinded(scheme) else one  # of both sides

    @property
    def constant(self) -> bool:
        return False

    def tendency(self, t: Any, u: Tensor) -> Tensor:
        pad = self.boundary.pad if self.viscous else self.boundary.pad_self_carried
        padded = pad(u, self.reach, self.grid.spacing, t)
        if not upwinded(self.scheme):
            return -self._transported(self.forward_side, padded**2 / 2)
        right = self._transported(self.forward_side, padded.clamp(min=0) ** 2 / 2)
        return -(right + self._transported(self.backward_side, padded.clamp(max=0) ** 2 / 2))

    def spectrum(self, t: Any, state: SplitState) -> Tensor | None:
        side = self.forward_side
        return side.spectrum(state.field.square(), self.grid, -0.5) if isinstance(side, Spectral) else None

    def _transported(self, side: Derivative, flux: Tensor) -> Tensor:
        first, last = self.reach.left - side.reach.left, self.reach.right - side.reach.right
        return side.apply(flux[..., first : flux.shape[-1] - last], self.grid)

    def symbol(self, k: Tensor) -> Tensor:
        raise ValueError("Burgers transport is not linear and has no symbol; take matrix(u), or Advection at a speed of interest")

    def exact_symbol(self, k: Tensor) -> Tensor:
        return self.symbol(k)

    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        return [0.0 if u is None else u.abs().max().item()]

    def frozen(self, value: float, k: Tensor) -> Tensor:
        return -value * self.forward_side.symbol(k, self.grid.spacing)


class Burgers(FieldEquation):
    """du/dt = -d(u^2 / 2)/dx + nu d2u/dx2, u a velocity towards +x.

    Conservative: on periodic grids the sum of u stays, to round-off. Without viscosity smooth fields break into shocks at the time
    1 / max(-du/dx), which upwind schemes capture ("weno5" without wiggles) and central ones do not. ``max_stable_step(method, u)`` takes
    the transport at max |u| into account, without u the diffusion alone limits. Beside shocks Newton's iteration of implicit methods may
    not converge with "weno5", nor with "upwind3" where a viscous field meets a wall value far from it: take "upwind1"
    there, or an explicit method, "ssprk3".

    Args:
        grid: the points; with viscosity, walls need data at both ends, without it at those where u flows in.
        viscosity: nu >= 0, length^2 per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> nu.
        scheme: of the transport: "weno5", "upwind1", "upwind3", "upwind5", "central2", "central4", "central6", "spectral".
        diffusion_scheme: see ``Diffusion``.

    Raises:
        ValueError, TypeError: as ``Advection`` and ``Diffusion``.

    Source: Engquist, Osher, Math. Comp. 36 (1981); Jiang, Shu, J. Comput. Phys. 126 (1996); Cole, Quart. Appl. Math. 9 (1951).
    """

    def __init__(self, grid: Grid1D, viscosity: Diffusivity = 0.0, scheme: str = "weno5", diffusion_scheme: str = "central2") -> None:
        super().__init__(grid)
        self.transport = SelfAdvection(grid, scheme, viscous=not is_zero(viscosity))
        self.diffusion = None if is_zero(viscosity) else Diffusion(grid, viscosity, diffusion_scheme)

    def terms(self) -> tuple[Term, ...]:
        return (self.transport,) if self.diffusion is None else (self.transport, self.diffusion)

    def exact(self, t: float | Tensor, u0: Any = None, **given: Any) -> Tensor:
        """A periodic solution by the Cole-Hopf transformation; times (T,) give (T, n).

            u = -2 nu phi_x / phi,    phi = 1 + A exp(-nu k^2 t) cos(k x),    k = 2 pi mode / length

        Args:
            t: time.
            u0: A, the amplitude of phi at t = 0, |A| < 1; also as ``amplitude=``.
            mode: waves per length, by default 1.

        Raises:
            ValueError: walls, no constant viscosity > 0, a field as u0, or |A| >= 1.
        """
        a, mode = given.get("amplitude", u0), given.get("mode", 1)
        if not set(given) <= {"amplitude", "mode"}:
            raise TypeError(f"exact of Burgers takes t, amplitude and mode, got {', '.join(given)}")
        if self.diffusion is None or not is_constant(self.diffusion.diffusivity) or not self.grid.periodic:
            raise ValueError("the exact solution of Burgers is known for a constant viscosity > 0 on a periodic grid; give these")
        if not isinstance(a, int | float) or not abs(a) < 1:
            raise ValueError(f"amplitude={a!r} must be a number between -1 and 1, that of phi at t = 0: no other solution is known")
        like = self.like()
        nu = torch.as_tensor(positive(self.diffusion.diffusivity), dtype=like.dtype, device=like.device)
        k = 2 * math.pi * mode / self.grid.length
        x, t = self.grid.points(like), torch.as_tensor(t, dtype=like.dtype, device=like.device)[..., None]
        decayed = a * torch.exp(-nu * k**2 * t)
        return 2 * nu * k * decayed * torch.sin(k * x) / (1 + decayed * torch.cos(k * x))
