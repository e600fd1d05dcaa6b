"""Systems of several fields with a name."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn

from .coefficient import Coefficient, attach, evaluate, formula, need_positive, need_uniform
from .diffusion import Diffusion
from .grid import Grid1D
from .higher import DerivativeTerm
from .reaction import Reaction
from .second_order import SecondOrder, Spreading
from .system import System
from .wave import Wave


class KleinGordon(SecondOrder):
    """d2u/dt2 = c^2 d2u/dx2 - m^2 u: waves of the frequency sqrt(c^2 k^2 + m^2), none below m; the state is u and v = du/dt.

    Args:
        grid: as for ``Wave``, no absorbing ends.
        speed: c, as for ``Wave``.
        mass: m, per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> m.
        scheme: as for ``Wave``.

    Raises:
        ValueError, TypeError: as for ``Wave``; absorbing ends, which let waves of one speed alone out.

    Source: Klein, Z. Phys. 37 (1926); Gordon, Z. Phys. 40 (1926).
    """

    def __init__(self, grid: Grid1D, speed: Coefficient, mass: Coefficient, scheme: str = "central2") -> None:
        if grid.boundary.absorbs:
            raise ValueError("an Absorbing() end lets waves of one speed out, those of KleinGordon have many; take other ends")
        super().__init__(Spreading(grid, speed, scheme) + Reaction(grid, formula(grid.n, _minus_square, mass=mass)))


class DampedWave(SecondOrder):
    """d2u/dt2 = c^2 d2u/dx2 - gamma du/dt: a string in air, the telegraph equation; the state is u and v = du/dt.

    The mode k has the eigenvalues -gamma/2 +- sqrt(gamma^2/4 - c^2 k^2). ``DampedWave + Source(grid, f)`` is driven too.

    Args:
        grid, speed, scheme: as for ``Wave``.
        damping: gamma, per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> gamma.

    Raises:
        ValueError, TypeError: as for ``Wave``.

    Source: Strauss, Partial Differential Equations: An Introduction (2008), 4.1.
    """

    def __init__(self, grid: Grid1D, speed: Coefficient, damping: Coefficient, scheme: str = "central2") -> None:
        wave = Wave(grid, speed, scheme).system()._each()
        drag = Reaction(grid, formula(grid.n, operator.neg, damping=damping))
        super().__init__(wave[1, 0], wave[1, 1] + drag if (1, 1) in wave else drag)  # pyright: ignore[reportArgumentType]


class Maxwell(System):
    """epsilon dE/dt = -dH/dx, mu dH/dt = -dE/dx: light along one axis, of the speed 1 / sqrt(epsilon mu); the fields are E and H.

    The sum of epsilon E^2 + mu H^2 stays. Between walls E = 0 is a mirror, ``Dirichlet()`` for E and ``Neumann()`` for H.

    Args:
        grid: that of E.
        permittivity: epsilon > 0: a number, a tensor (a Parameter is trained), or a function (t, x) -> epsilon.
        permeability: mu > 0, likewise.
        scheme: "spectral" (periodic grids, and the default there), "central2" (the default between walls), "central4", "central6".
        magnetic: the grid of H, None for the same; it must have the same points.

    Raises:
        ValueError, TypeError: as for ``System`` and ``DerivativeTerm``; a number or tensor that is not positive.

    Source: LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 2.14.
    """

    def __init__(
        self,
        grid: Grid1D,
        permittivity: Coefficient = 1.0,
        permeability: Coefficient = 1.0,
        scheme: str | None = None,
        magnetic: Grid1D | None = None,
    ) -> None:
        across, scheme = magnetic or grid, scheme or ("spectral" if grid.periodic else "central2")
        need_positive("permittivity", permittivity)
        need_positive("permeability", permeability)
        of_h = DerivativeTerm(across, 1, formula(grid.n, _minus_inverse, permittivity=permittivity), scheme)
        of_e = DerivativeTerm(grid, 1, formula(grid.n, _minus_inverse, permeability=permeability), scheme)
        super().__init__({"E": {"H": of_h}, "H": {"E": of_e}})


class ShallowWater(System):
    """dh/dt = -d(D v)/dx, dv/dt = -g dh/dx: long waves of small height h over water of depth D, of the speed sqrt(g D); fields h and v.

    Linear, D the same everywhere. The sum of g h^2 + D v^2 stays. Between walls v = 0: ``Dirichlet()`` for v and ``Neumann()`` for h.

    Args:
        grid: that of h.
        depth: D > 0, length: a number or a tensor of shape () or (..., 1) (a Parameter is trained).
        gravity: g > 0, likewise.
        scheme: as for ``Maxwell``.
        flow: the grid of v, None for the same.

    Raises:
        ValueError, TypeError: as for ``System`` and ``DerivativeTerm``; a depth or gravity that is not positive, or varies.

    Source: LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 13.1.
    """

    def __init__(
        self,
        grid: Grid1D,
        depth: float | Tensor = 1.0,
        gravity: float | Tensor = 1.0,
        scheme: str | None = None,
        flow: Grid1D | None = None,
    ) -> None:
        along, scheme = flow or grid, scheme or ("spectral" if grid.periodic else "central2")
        for name, value in (("depth", depth), ("gravity", gravity)):
            need_uniform(name, value, grid.n)
            need_positive(name, value)
        of_v = DerivativeTerm(along, 1, formula(1, operator.neg, depth=depth), scheme)
        of_h = DerivativeTerm(grid, 1, formula(1, operator.neg, gravity=gravity), scheme)
        super().__init__({"h": {"v": of_v}, "v": {"h": of_h}})


class GrayScott(System):
    """du/dt = D_u d2u/dx2 - u v^2 + F (1 - u), dv/dt = D_v d2v/dx2 + u v^2 - (F + k) v: v eats u, spots divide; fields u and v.

    Args:
        grid: the points; walls of any kind that ``Diffusion`` takes.
        feed, kill: F and k, per time: numbers, tensors (Parameters are trained), or functions (t, x).
        diffusivities: (D_u, D_v), each as for ``Diffusion``.
        scheme: of the diffusion.

    Raises:
        ValueError, TypeError: as for ``Diffusion``.

    Source: Gray, Scott, Chem. Eng. Sci. 39 (1984); Pearson, Science 261 (1993).
    """

    def __init__(
        self,
        grid: Grid1D,
        feed: Coefficient = 0.04,
        kill: Coefficient = 0.06,
        diffusivities: tuple[Coefficient, Coefficient] = (2e-5, 1e-5),
        scheme: str = "central2",
    ) -> None:
        if not isinstance(diffusivities, tuple | list) or len(diffusivities) != 2:
            raise ValueError(f"diffusivities={diffusivities!r} must be a pair (D_u, D_v), one for each field")
        reaction = Reacting(grid, _eat, feed=feed, kill=kill)
        super().__init__({name: Diffusion(grid, D, scheme) for name, D in zip("uv", diffusivities, strict=True)}, reaction)


class FitzHughNagumo(System):
    """du/dt = D d2u/dx2 + u - u^3 / 3 - v + I, dv/dt = epsilon (u + a - b v): pulses along a nerve; the fields are u and v.

    Args:
        grid: the points; walls of any kind that ``Diffusion`` takes.
        diffusivity: D, as for ``Diffusion``.
        epsilon, a, b, current: numbers, tensors (Parameters are trained), or functions (t, x).
        scheme: of the diffusion.

    Raises:
        ValueError, TypeError: as for ``Diffusion``.

    Source: FitzHugh, Biophys. J. 1 (1961); Nagumo, Arimoto, Yoshizawa, Proc. IRE 50 (1962).
    """

    def __init__(
        self,
        grid: Grid1D,
        diffusivity: Coefficient = 1.0,
        epsilon: Coefficient = 0.08,
        a: Coefficient = 0.7,
        b: Coefficient = 0.8,
        current: Coefficient = 0.0,
        scheme: str = "central2",
    ) -> None:
        reaction = Reacting(grid, _fire, epsilon=epsilon, a=a, b=b, current=current)
        super().__init__({"u": Diffusion(grid, diffusivity, scheme), "v": None}, reaction)


class Schroedinger(System):
    """i dpsi/dt = -1/2 d2psi/dx2 + V psi + g |psi|^2 psi: the state is one complex field (..., n), or the tuple of its two parts.

    Units in which the mass and Planck's constant over 2 pi are 1. The sum of |psi|^2 stays; a free wave exp(i (k x - k^2 t / 2)).
    g = -1 has solitons a / cosh(a (x - c t)) exp(i (c x + (a^2 - c^2) t / 2)).

    Args:
        grid: the points; between walls psi = 0, ``Dirichlet()``, as a rule.
        potential: V: a number, a tensor (a Parameter is trained), or a function (t, x) -> V.
        nonlinearity: g, likewise.
        scheme: "spectral" (periodic grids, and the default there), "central2" (the default between walls), "central4", "central6".

    Raises:
        ValueError, TypeError: as for ``DerivativeTerm``.

    Source: Schroedinger, Ann. Phys. 384 (1926); Zakharov, Shabat, Sov. Phys. JETP 34 (1972).
    """

    packed = True

    def __init__(self, grid: Grid1D, potential: Coefficient = 0.0, nonlinearity: Coefficient = 0.0, scheme: str | None = None) -> None:
        scheme = scheme or ("spectral" if grid.periodic else "central2")
        free = isinstance(potential, int | float) and isinstance(nonlinearity, int | float) and potential == nonlinearity == 0

        reaction = None if free else Reacting(grid, _turn, potential=potential, nonlinearity=nonlinearity)
        rows = {"real": {"imaginary": DerivativeTerm(grid, 2, -0.5, scheme)}, "imaginary": {"real": DerivativeTerm(grid, 2, 0.5, scheme)}}
        super().__init__(rows, reaction)


def _minus_square(m: Any) -> Any:
    return -(m**2)


def _minus_inverse(e: Any) -> Any:
    return -1 / e


def _eat(F: Any, k: Any, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    eaten = u * v**2
    return F * (1 - u) - eaten, eaten - (F + k) * v


def _fire(epsilon: Any, a: Any, b: Any, current: Any, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return u - u**3 / 3 - v + current, epsilon * (u + a - b * v)


def _turn(V: Any, g: Any, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    energy = V + g * (u**2 + v**2)
    return energy * v, -energy * u


class Reacting(nn.Module):
    """A function of coefficients, which it keeps, and of the fields."""

    def __init__(self, grid: Grid1D, function: Any, **given: Coefficient) -> None:
        super().__init__()
        for name, value in given.items():
            attach(self, name, value, grid.n)
        self.function, self.given = function, tuple(given)

    def forward(self, t: Any, x: Tensor, *fields: Tensor) -> Any:
        return self.function(*(evaluate(getattr(self, name), t, lambda: x, fields[0]) for name in self.given), *fields)
