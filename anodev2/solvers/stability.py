"""Stability functions: by which factor a method multiplies the solution of y' = lambda y in one step, z = lambda dt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..stepping import Step
from . import SDIRK, BackwardEuler, ImplicitMidpoint, Leapfrog, Leaves, Method, Rosenbrock, RungeKutta, as_method
from .jacobian import weighted
from .linear import LinearOperator
from .method import Split
from .tableau import Tableau

GROWTH = 1e-6  # |R| up to 1 + this counts as stable: round-off must not make a limit
RAYS = 128  # looked at for methods that treat the linear part by themselves
SCANS = (0.0, 8.0, 64.0)  # most methods are left before the first stop, none here goes beyond the last


@dataclass(frozen=True)
class StabilityFunction:
    """R(z) of a method: a step of y' = lambda y is y <- R(lambda dt) y.

    ``acts_on``: "whole" where z is about all of f; "rest" where a method treats the linear part of ``split()`` by itself:
    R(z, w) then belongs to y' = lambda y + mu y, w = mu dt, with mu an eigenvalue of that part and lambda one of the rest.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    acts_on: Literal["whole", "rest"] = "whole"
    coefficients: tuple[Fraction, ...] = field(default=(), repr=False)

    def __call__(self, z: Tensor | complex, w: Tensor | complex = 0.0) -> Tensor:
        """R(z) or R(z, w), complex128, in the shape of z."""
        z, w = (torch.as_tensor(x).to(torch.complex128) for x in (z, w))
        return self.function(*torch.broadcast_tensors(z, w))

    def limit(self, eigenvalues: Tensor, linear: Tensor | float = 0.0) -> float:
        """The largest h with |R(h lambda)| <= 1 + 1e-6 for every given lambda and every smaller h.

        0 where R leaves the unit disc at the origin (Euler on the imaginary axis, any method at a positive real part),
        infinite where nothing limits h. ``linear``: the eigenvalues mu of a linear part, one per lambda, for ``acts_on`` "rest".
        """
        rest, part = (x.detach().reshape(-1).to("cpu", torch.complex128) for x in (eigenvalues, torch.as_tensor(linear)))
        rest, part = torch.broadcast_tensors(rest, part)
        if self.acts_on == "whole":
            part = torch.zeros_like(part)
        size = rest.abs()
        there = size > 1e-12 * size.max() if len(size) else size > 0
        if not there.any():
            return math.inf
        there = there.nonzero().flatten()
        if self.acts_on == "rest" and len(there) > RAYS:  # an estimate anyway, and each ray takes many steps
            there = there[torch.linspace(0, len(there) - 1, RAYS).round().long()]
        size = size[there]
        rays = torch.view_as_real(torch.stack([_ray(rest[there] / size), _ray(part[there] / size)], -1)).flatten(1)
        rays, place = torch.unique((rays * 1e14).round() / 1e14, dim=0, return_inverse=True)  # of equal rays the longest counts
        size = torch.zeros(len(rays), dtype=size.dtype).scatter_reduce(0, place, size, "amax")
        return (self._reach(*torch.complex(rays[:, ::2], rays[:, 1::2]).unbind(1)) / size).min().item()

    def _reach(self, rest: Tensor, part: Tensor) -> Tensor:
        """How far from 0 R stays in the unit disc along each ray, scanned and then bisected; 0 where it leaves at once."""
        outside = lambda r: self(r * rest, r * part).abs() > 1 + GROWTH  # noqa: E731
        low, high = torch.full((len(rest),), math.inf, dtype=torch.float64), torch.full((len(rest),), math.inf, dtype=torch.float64)
        for start, stop in pairwise(SCANS):
            radii = torch.linspace(start, stop, int(20 * (stop - start)) + 1, dtype=torch.float64)
            found = outside(radii[:, None])
            first, new = found.int().argmax(0), found.any(0) & high.isinf()
            low, high = torch.where(new, radii[(first - 1).clamp_min(0)], low), torch.where(new, radii[first], high)
            if not high.isinf().any():
                break
        for _ in range(40):
            middle = (low + high) / 2
            out = outside(torch.where(middle.isinf(), 1.0, middle)) & ~middle.isinf()
            low, high = torch.where(out, low, middle), torch.where(out, middle, high)
        for i in (low < 1).nonzero().flatten().tolist():
            if self._leaves_at_once(complex(rest[i].item()), complex(part[i].item()), low[i].item() / 2):
                low[i] = 0.0
        return low

    def _leaves_at_once(self, rest: complex, part: complex, near: float) -> bool:
        """Whether |R|^2 - 1 begins with a positive power of the step along this ray (without coefficients: is positive near 0)."""
        if abs((rest + part).real) > 1e-12:
            return (rest + part).real > 0
        if not self.coefficients:
            return abs(self(near * rest, near * part).item()) > 1 + 1e-12
        terms = [float(c) * (rest + part) ** k for k, c in enumerate(self.coefficients)]
        for power in range(1, 2 * len(terms)):
            total = sum((terms[j] * terms[power - j].conjugate()).real for j in range(power + 1) if max(j, power - j) < len(terms))
            if abs(total) > 1e-12:
                return total > 0
        return False


def stability_function(method: str | Tableau | Method) -> StabilityFunction:
    """R(z) of a method: one step of y' = lambda y, z = lambda dt, is y <- R(z) y.

    Explicit Runge-Kutta methods: the polynomial R(z) = 1 + z sum_i b_i k_i, k_i = 1 + z sum_j a_ij k_j, its coefficients in
    ``coefficients``. Implicit ones: 1 / (1 - z), (1 + z/2) / (1 - z/2), and rational functions. Exponential and IMEX methods: R(z, w), see
    ``StabilityFunction``. Leapfrog, for q'' = lambda^2 q: the larger root of R^2 - (2 + z^2) R + 1.

    Raises:
        ValueError: an unknown method, or a class of your own that is none of these families.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2.
    """
    chosen = as_method(method)
    if isinstance(chosen, RungeKutta):
        if id(chosen.tableau) not in _POLYNOMIALS:
            _POLYNOMIALS[id(chosen.tableau)] = (chosen.tableau, _polynomial(chosen.tableau))
        coefficients = _POLYNOMIALS[id(chosen.tableau)][1]
        return StabilityFunction(chosen.name, lambda z, _: _horner(coefficients, z), coefficients=coefficients)
    if chosen.splits:
        return StabilityFunction(chosen.name, _stepped(chosen), "rest")
    if isinstance(chosen, BackwardEuler):
        return StabilityFunction(chosen.name, lambda z, _: 1 / (1 - z))
    if isinstance(chosen, ImplicitMidpoint):
        return StabilityFunction(chosen.name, lambda z, _: (1 + z / 2) / (1 - z / 2))
    if isinstance(chosen, Rosenbrock):
        return StabilityFunction(chosen.name, lambda z, _: _rosenbrock(chosen, z))
    if isinstance(chosen, SDIRK):
        return StabilityFunction(chosen.name, lambda z, _: _sdirk(chosen, z))
    if isinstance(chosen, Leapfrog):
        return StabilityFunction(chosen.name, _leapfrog)
    raise ValueError(f"the stability function of {chosen.name} is not known: it is none of the families of METHODS")


def _ray(direction: Tensor) -> Tensor:
    """On the imaginary axis where it is so but for round-off."""
    real = torch.where(direction.real.abs() < 1e-13, 0.0, direction.real)
    return torch.complex(real, direction.imag)


def _stepped(method: Method) -> Callable[[Tensor, Tensor], Tensor]:
    """R by taking the step itself, with a linear part beside the rest."""
    return lambda z, w: method.step(_Modes(z, w), Step(0, (0.0, 1.0), 0, 0, 1), [torch.ones_like(z)])[0]


@dataclass(frozen=True)
class _Modes:
    """y' = z y + w y, a mode per element, as a field that knows its linear part."""

    z: Tensor
    w: Tensor

    def __call__(self, step: Step, stage: int, node: float, y: Leaves) -> list[Tensor]:
        return [self.z * y[0]]

    def split(self) -> Split:
        return Split(_Diagonal(self.w), self)

    def allowed(self, y: Leaves) -> None:
        return None

    def preconditioner(self, step: Step, node: float, y: Leaves, scale: float) -> None:
        return None


class _Diagonal(LinearOperator):
    def forward(self, u: Tensor) -> Tensor:
        return u

    def inverse(self, v: Tensor) -> Tensor:
        return v


def _polynomial(tableau: Tableau) -> tuple[Fraction, ...]:
    """The coefficients of R: powers of A summed with the weights b."""
    row, coefficients = [Fraction(1)] * tableau.stages, [Fraction(1)]
    for _ in range(tableau.stages):
        coefficients.append(sum((b * x for b, x in zip(tableau.b, row, strict=True)), Fraction(0)))
        row = [sum((a * x for a, x in zip(line, row, strict=False)), Fraction(0)) for line in tableau.a]
    while coefficients[-1] == 0:
        coefficients.pop()
    return tuple(coefficients)


_POLYNOMIALS: dict[int, tuple[Tableau, tuple[Fraction, ...]]] = {}  # hashing a tableau's fractions would take longer than the sums


def _horner(coefficients: tuple[Fraction, ...], z: Tensor) -> Tensor:
    total = torch.full_like(z, float(coefficients[-1]))
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + float(coefficient)
    return total


def _rosenbrock(method: Rosenbrock, z: Tensor) -> Tensor:
    us: list[Tensor] = []
    here = torch.ones_like(z)
    for stage in range(len(method.c)):
        right = method.gamma * z
        if stage:
            here = weighted(method.a[stage - 1], us, torch.ones_like(z))
            right = method.gamma * weighted(method.C[stage - 1], us, z * here)
        us.append(right / (1 - method.gamma * z))
    return here + us[-1]


def _sdirk(method: SDIRK, z: Tensor) -> Tensor:
    stages = [torch.ones_like(z)]
    for row in method.a[1:]:
        known = weighted([float(x) for x in row[:-1]], [z * w for w in stages], torch.ones_like(z))
        stages.append(known / (1 - float(row[-1]) * z))
    return stages[-1]


def _leapfrog(z: Tensor, _: Tensor) -> Tensor:
    half = 1 + z * z / 2
    root = torch.sqrt(half * half - 1)
    return torch.where((half + root).abs() >= (half - root).abs(), half + root, half - root)
