"""Coefficients, sources and data at walls that jump at known times: with breaks= every method keeps its order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import METHODS, odeint, solve
from anodev2.pde import Diffusion, Grid1D, Robin, Slope, Source, Value
from sampled import rows

BREAKS, END = (0.03, 0.11), 0.15
PIECES = ((0.0, 0.03), (0.03, 0.11), (0.11, END))


def stairs(a: float, b: float, c: float) -> Callable[[Any], Tensor]:
    """A datum that is a, b, c before, between and after the breaks."""
    return lambda t: torch.where(t < BREAKS[0], a, torch.where(t < BREAKS[1], b, c)).double()


WALLS = (Value(0.0), Slope(1.0))
EQUATIONS: dict[str, Callable[[], Any]] = {
    "source": lambda: (
        Diffusion(Grid1D(12, boundary=WALLS), 0.5)
        + Source(Grid1D(12, boundary=WALLS), lambda t, x, u: stairs(1.0, -4.0, 9.0)(t) * torch.cos(x))
    ),
    "value": lambda: Diffusion(Grid1D(12, boundary=(Value(stairs(1.0, 0.0, 2.0)), Value(0.0))), 0.5),
    "slope": lambda: Diffusion(Grid1D(12, boundary=(Slope(stairs(1.0, 0.0, 2.0)), Value(0.0))), 0.5),
    "robin": lambda: Diffusion(Grid1D(12, boundary=(Robin(1.0, -0.5, stairs(1.0, 0.0, 2.0)), Value(0.0))), 0.5),
    "coefficient": lambda: Diffusion(Grid1D(12, boundary=WALLS), lambda t, x: stairs(0.5, 0.1, 0.8)(t) * (1 + x)),
}


def start() -> Tensor:
    return torch.sin(2 * torch.linspace(0, 3, 12, dtype=torch.float64))


def exact(equation: Any) -> Tensor:
    """Between two breaks du/dt = A u + b with constant A and b, whose solution is a matrix exponential."""
    u = start()
    for begin, end in PIECES:
        t = torch.tensor((begin + end) / 2, dtype=torch.float64)
        b = equation(t, torch.zeros_like(u))
        A = torch.stack([equation(t, e) - b for e in torch.eye(12, dtype=torch.float64)], 1)
        whole = torch.zeros(13, 13, dtype=torch.float64)
        whole[:12, :12], whole[:12, 12] = A, b
        u = (torch.linalg.matrix_exp(whole * (end - begin)) @ torch.cat([u, torch.ones(1, dtype=torch.float64)]))[:12]
    return u


QUICK = [("source", "rk4"), ("value", "imex2")]


@pytest.mark.filterwarnings("ignore:a step of .* is beyond the largest stable one")  # of the larger coefficient, by little
@pytest.mark.parametrize(("kind", "method"), rows(EQUATIONS, ["rk4", "etdrk4", "imex2"], quick=QUICK))
def test_a_grid_keeps_the_order(kind: str, method: str) -> None:
    equation, order, errors = EQUATIONS[kind](), METHODS[method].order, []
    for steps in (24, 48):
        u = odeint(equation, start(), [0.0, END], method=method, steps=steps, breaks=BREAKS)[-1]
        errors.append(float((u - exact(equation)).abs().max()))
    assert errors[1] < 1e-11 or math.log2(errors[0] / errors[1]) > order - 0.3
    undeclared = odeint(equation, start(), [0.0, END], method=method, steps=144)[-1]
    assert (undeclared - exact(equation)).abs().max() > 5 * errors[1]


@pytest.mark.parametrize(("kind", "method"), rows(EQUATIONS, ["dopri5", "rodas5p"], quick=[("value", "dopri5")]))
def test_error_control_keeps_its_tolerance(kind: str, method: str) -> None:
    equation = EQUATIONS[kind]()
    found = solve(equation, start(), [0.0, END], method=method, rtol=1e-7, atol=1e-7, breaks=BREAKS)
    assert (found.ys[-1] - exact(equation)).abs().max() < 2e-6
    assert set(BREAKS) < set(found.grid) and found.stats.rejected <= 4
