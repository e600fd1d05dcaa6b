"""Initial value problems with their exact solutions beside them, and small vector fields for gradient tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import METHODS, FourierOperator, Method, Tableau
from anodev2.pde import Grid1D


@dataclass(frozen=True)
class Exact:
    """y' = func(t, y), y(t0) = exact(t0), for t from t0 to t1."""

    name: str
    func: Callable[[Tensor, Any], Any]
    exact: Callable[[Tensor], Tensor]
    t0: float
    t1: float


def vector(*values: float) -> Tensor:
    """In double precision."""
    return torch.tensor(values, dtype=torch.float64)


def points(grid: Grid1D) -> Tensor:
    """Of a grid, in double precision."""
    return grid.points(torch.empty(0, dtype=torch.float64))


def rotation(t: Tensor, y: Tensor) -> Tensor:
    """y' = i (1 + t) y (1 + (|y|^2 - 1) / 10), which stays on the unit circle."""
    return 1j * (1 + t) * y * (1 + 0.1 * (y.abs() ** 2 - 1))


EXACT = [
    # entire in t, so that methods of high order are in their asymptotic range well above round-off
    Exact("nonlinear, non-autonomous", rotation, lambda t: torch.exp(1j * (t + t**2 / 2)), 0.0, 1.5),
    Exact("falling t", lambda t, y: rotation(1.5 - t, y) * -1, lambda t: torch.exp(1j * (1.5 - t + (1.5 - t) ** 2 / 2)), 1.5, 0.0),
]


def separable(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For leapfrog: q' = v, v' = -sin(q) + t q / 2."""
    return y[1], 0.5 * t * y[0] - torch.sin(y[0])


RUNGE_KUTTA = [name for name, method in METHODS.items() if isinstance(method, Tableau)]
CONTROLLED = [name for name, method in METHODS.items() if isinstance(method, Tableau) and method.embedded_order is not None]


class MLP(nn.Module):
    """A smooth autonomous f(t, z) with a time-dependent term, in float64."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 8)
        self.outer = nn.Linear(8, width)
        self.double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(z) + t))


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])


class Convolutions(nn.Module):
    """f(t, z) on images of three channels, with a norm that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv2(torch.tanh(self.norm(self.conv1(z))))


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    """Two for ``Convolutions``."""
    return torch.randn(2, 3, 5, 5, dtype=dtype)


class Rates(nn.Module):
    """q(t, theta) with a learned rate, stirred by t."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: Tensor, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: -self.rate * torch.sin(w + t) for name, w in theta.items()}


class Pendulum(nn.Module):
    """A dict state with leaves of different shapes, and a parameter: {"q": (n,), "more": (p (n,), work ())}."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        q, (p, work) = y["q"], y["more"]
        return {"more": (-self.stiffness * torch.sin(q) - 0.1 * t * p, p.square().sum() - 0.3 * work), "q": p}


def pendulum_state(requires_grad: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    q, p = torch.randn(2, 5, dtype=torch.float64, generator=generator).unbind()
    leaves = [q.clone(), p.clone(), torch.tensor(0.5, dtype=torch.float64)]
    q, p, work = (leaf.requires_grad_(requires_grad) for leaf in leaves)
    return {"q": q, "more": (p, work)}


class Reacting(nn.Module):
    """u' = nu u_xx + u - u^3 + cos(t) / 10 on a periodic axis of length 2 pi, spectral: stiff, with its linear part told apart."""

    def __init__(self, n: int = 32, viscosity: float = 0.1, dense: bool = False) -> None:
        super().__init__()
        self.n, self.dense = n, dense
        self.viscosity = nn.Parameter(torch.tensor(viscosity, dtype=torch.float64))
        self.squares = torch.arange(n // 2 + 1, dtype=torch.float64) ** 2

    def linear(self) -> FourierOperator:
        return FourierOperator((-self.viscosity * self.squares).to(torch.complex128), self.n)

    def rest(self, t: Tensor, u: Tensor) -> Tensor:
        return u - u**3 + 0.1 * torch.cos(t)

    def split(self) -> tuple[Any, Any]:
        if self.dense:
            return self.linear()(torch.eye(self.n, dtype=torch.float64)).mT, self.rest
        return self.linear(), self.rest

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.linear()(u) + self.rest(t, u)

    def start(self) -> Tensor:
        x = torch.arange(self.n, dtype=torch.float64) * (2 * math.pi / self.n)
        return 0.8 * torch.sin(x) + 0.3 * torch.cos(2 * x)


SPLITTING = [name for name, method in METHODS.items() if isinstance(method, Method) and method.splits]
IMPLICIT = ["backward_euler", "implicit_midpoint"]
STIFF = [name for name, method in METHODS.items() if isinstance(method, Method) and method.jacobian and method.embedded_order is not None]
STIFF.remove("auto")  # which has no grid


def robertson(t: Tensor, y: Tensor) -> Tensor:
    """Rates from 0.04 to 3e7; the middle concentration is 1e-5 of the others."""
    a, b, c = y.unbind(-1)
    first, second = 0.04 * a - 1e4 * b * c, 3e7 * b**2
    return torch.stack([-first, first - second, second], -1)


def hires(t: Tensor, y: Tensor) -> Tensor:
    a, b, c, d, e, f, g, h = y.unbind(-1)
    binding = 280 * f * h - 1.81 * g
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -binding - 1.81 * g + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            binding,
            -binding,
        ],
        -1,
    )


def oregonator(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)], -1)


@dataclass(frozen=True)
class Stiff:
    """A problem of the stiff test set, its end by scipy's Radau at rtol = 1e-12, atol = 1e-14; ``atol`` in units of rtol."""

    name: str
    func: Callable[[Tensor, Tensor], Tensor]
    y0: tuple[float, ...]
    t1: float
    end: tuple[float, ...]
    atol: float = 1e-3

    def __str__(self) -> str:
        return self.name


# Hairer, Wanner II, IV.1 and IV.10; Mazzia, Magherini, Test Set for Initial Value Problem Solvers
STIFF_PROBLEMS = [
    Stiff(
        "van der Pol",
        lambda t, y: torch.stack([y[..., 1], 1e3 * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1),
        (2.0, 0.0),
        2000.0,
        (1.70616773217, -0.000892809701025),
        atol=1.0,
    ),
    Stiff("Robertson", robertson, (1.0, 0.0, 0.0), 1e5, (0.0178659211422, 7.27475146846e-08, 0.98213400611)),
    Stiff(
        "HIRES",
        hires,
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057),
        321.8122,
        (
            *(0.000737131257333, 0.000144248572632, 5.88872974097e-05, 0.00117565134328),
            *(0.00238635619883, 0.00623896825274, 0.00284999839518, 0.00285000160482),
        ),
    ),
    Stiff("Oregonator", oregonator, (1.0, 2.0, 3.0), 360.0, (1.00081487032, 1228.17852155, 132.055494285)),
]
