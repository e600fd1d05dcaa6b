"""Equations with a name, as sums of terms; spectral on periodic grids, with nonlinear terms free of aliasing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .coefficient import Diffusivity
from .diffusion import Diffusion
from .equation import FieldEquation, Term
from .grid import Grid1D
from .higher import DerivativeTerm, Dispersion, Hyperdiffusion, Nonlinearity
from .reaction import Reaction, Source


class Named(FieldEquation):
    """Abstract: the sum of ``parts``, in the order in which they are given."""

    def __init__(self, grid: Grid1D, *parts: FieldEquation) -> None:
        super().__init__(grid)
        self.parts = nn.ModuleList(parts)

    def terms(self) -> tuple[Term, ...]:
        return tuple(term for part in self.parts for term in part.terms())  # pyright: ignore[reportCallIssue]


class KortewegDeVries(Named):
    """du/dt = -d(3 u^2)/dx - d3u/dx3: shallow water; the soliton c/2 / cosh^2(sqrt(c) (x - c t) / 2) of any speed c > 0.

    Args:
        grid: the points, periodic.

    Raises:
        ValueError: a grid with walls.

    Source: Korteweg, de Vries, Phil. Mag. 39 (1895).
    """

    def __init__(self, grid: Grid1D) -> None:
        super().__init__(grid, Dispersion(grid, 1.0), Nonlinearity(grid, lambda u: -3 * u**2, 2, 1))


class KuramotoSivashinsky(Named):
    """du/dt = -d(u^2 / 2)/dx - d2u/dx2 - d4u/dx4: flame fronts; chaotic where the axis is longer than about 22.

    Args:
        grid: the points, periodic; the longest mode that grows has k = 1, the fastest k = 1 / sqrt(2).

    Raises:
        ValueError: a grid with walls.

    Source: Kassam, Trefethen, SIAM J. Sci. Comput. 26 (2005).
    """

    def __init__(self, grid: Grid1D) -> None:
        parts = (DerivativeTerm(grid, 2, -1.0), Hyperdiffusion(grid, 1.0), Nonlinearity(grid, lambda u: -(u**2) / 2, 2, 1))
        super().__init__(grid, *parts)


class CahnHilliard(Named):
    """du/dt = d2/dx2 (u^3 - u - gamma d2u/dx2): two phases, u = 1 and -1, part; the sum of u stays.

    Between them stand fronts tanh(x / sqrt(2 gamma)).

    Args:
        grid: the points, periodic.
        gamma: at least 0, length^2; the time is that of unit mobility. A Parameter is trained.

    Raises:
        ValueError: a grid with walls, or gamma < 0.

    Source: Cahn, Hilliard, J. Chem. Phys. 28 (1958).
    """

    def __init__(self, grid: Grid1D, gamma: float | Tensor) -> None:
        super().__init__(grid, DerivativeTerm(grid, 2, -1.0), Hyperdiffusion(grid, gamma), Nonlinearity(grid, lambda u: u**3, 3, 2))


class SwiftHohenberg(Named):
    """du/dt = r u - (1 + d2/dx2)^2 u - u^3: rolls of wavenumber 1, of the amplitude 2 sqrt(r / 3) for small r > 0.

    Args:
        grid: the points, periodic.
        r: growth of the mode k = 1, per time: a number or a tensor (a Parameter is trained).

    Raises:
        ValueError: a grid with walls.

    Source: Swift, Hohenberg, Phys. Rev. A 15 (1977).
    """

    def __init__(self, grid: Grid1D, r: float | Tensor) -> None:
        parts = (Reaction(grid, r), Reaction(grid, -1.0), DerivativeTerm(grid, 2, -2.0), Hyperdiffusion(grid, 1.0))
        super().__init__(grid, *parts, Nonlinearity(grid, lambda u: -(u**3), 3))


class AllenCahn(Named):
    """du/dt = D d2u/dx2 + u - u^3: two phases, u = 1 and -1, and fronts tanh(x / sqrt(2 D)) between them that stand.

    The phase 1 invades 0 as 1 / (1 + exp((x - c t) / sqrt(2 D))), c = 3 sqrt(D / 2).

    Args:
        grid: the points; walls of any kind that ``Diffusion`` takes.
        diffusivity: D, as for ``Diffusion``.
        scheme: of the diffusion; with "spectral" the cube is free of aliasing.

    Raises:
        ValueError, TypeError: as ``Diffusion``.

    Source: Allen, Cahn, Acta Metall. 27 (1979).
    """

    def __init__(self, grid: Grid1D, diffusivity: Diffusivity, scheme: str = "central2") -> None:
        cube = Nonlinearity(grid, lambda u: -(u**3), 3) if scheme == "spectral" else Source(grid, lambda t, x, u: -(u**3))
        super().__init__(grid, Diffusion(grid, diffusivity, scheme), Reaction(grid, 1.0), cube)


class FisherKPP(Named):
    """du/dt = D d2u/dx2 + r u (1 - u): a population that spreads and grows to 1.

    Fronts move at 2 sqrt(r D) or faster; 1 / (1 + exp((x - c t) / l))^2 with l = sqrt(6 D / r), c = 5 sqrt(r D / 6) is exact.

    Args:
        grid: the points; walls of any kind that ``Diffusion`` takes.
        diffusivity: D, as for ``Diffusion``.
        rate: r, per time: a number or a tensor of shape () or (..., 1) (a Parameter is trained).
        scheme: of the diffusion; with "spectral" the square is free of aliasing.

    Raises:
        ValueError, TypeError: as ``Diffusion`` and ``Reaction``.

    Source: Fisher, Ann. Eugenics 7 (1937); Ablowitz, Zeppetella, Bull. Math. Biol. 41 (1979).
    """

    def __init__(self, grid: Grid1D, diffusivity: Diffusivity, rate: float | Tensor = 1.0, scheme: str = "central2") -> None:
        growth = Reaction(grid, rate)

        def square(u: Tensor) -> Tensor:
            r: Any = growth.rate  # which may have moved to another device
            return -r * u**2

        loss = Nonlinearity(grid, square, 2) if scheme == "spectral" else Source(grid, lambda t, x, u: square(u))
        super().__init__(grid, Diffusion(grid, diffusivity, scheme), growth, loss)
