"""2 * a, -a and a - b of equations: everything that is linear in a follows, with walls, data and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import (
    Advection,
    Burgers,
    Closed,
    DerivativeTerm,
    Diffusion,
    Dirichlet,
    Dispersion,
    Grid1D,
    Hyperdiffusion,
    Neumann,
    Reaction,
    Slope,
    Source,
    Value,
)

ZERO = torch.zeros((), dtype=torch.float64)
RING, BOX = Grid1D(16, 2.0), Grid1D(16, 2.0, (Value(0.3), Slope(lambda t: 1 + t)))
TERMS: dict[str, Callable[[], Any]] = {
    "advection": lambda: Advection(RING, 0.7),
    "upwind": lambda: Advection(RING, 0.7, "upwind3"),
    "weno5": lambda: Advection(RING, lambda t, x: 1 + 0.2 * torch.sin(math.pi * x), "weno5", conservative=True),
    "diffusion": lambda: Diffusion(RING, 0.2),
    "varying": lambda: Diffusion(BOX, lambda t, x: 0.2 + 0.1 * x),
    "walls": lambda: Diffusion(BOX, 0.2) + Reaction(BOX, -0.4),
    "inflow": lambda: Advection(Grid1D(16, 2.0, Dirichlet(0.4, None)), 0.7),
    "closed": lambda: Diffusion(Grid1D(16, 2.0, (Closed(), Closed())), 0.2),
    "reaction": lambda: Reaction(RING, torch.tensor([[0.3], [-0.5]], dtype=torch.float64)),
    "dispersion": lambda: Dispersion(RING, 0.01) + Hyperdiffusion(RING, 0.001),
    "source": lambda: Source(RING, lambda t, x, u: u - u**3),
    "burgers": lambda: Burgers(RING, 0.1),
}
LINEAR = [name for name in TERMS if name not in ("weno5", "source", "burgers")]


@pytest.mark.parametrize("name", TERMS)
def test_a_multiple_is_the_multiple_of_the_right_hand_side(name: str) -> None:
    a = TERMS[name]()
    u, t = torch.randn(2, 16, dtype=torch.float64), ZERO + 0.3
    for equation, factor in ((2 * a, 2.0), (a * 0.5, 0.5), (3 * (2 * a), 6.0), (a + 2 * a, 3.0), (0 * a, 0.0)):
        torch.testing.assert_close(equation(t, u), factor * a(t, u), rtol=1e-12, atol=1e-12)
    assert (2 * a).max_stable_step("rk4") == pytest.approx(a.max_stable_step("rk4") / 2, rel=1e-6)
    parts = (2 * a).split()
    linear = parts[0](u) if callable(parts[0]) else u @ parts[0].mT
    torch.testing.assert_close(sum((part(t, u) for part in parts[1:]), linear), 2 * a(t, u), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_known_of_a_linear_equation_is_known_of_its_multiples(name: str) -> None:
    a = TERMS[name]()
    u = torch.rand(2, 16, dtype=torch.float64)
    torch.testing.assert_close((2 * a).matrix(), 2 * a.matrix(), rtol=1e-12, atol=1e-12)
    flow, fast = a.flow(u, [0.0, 0.4]), (2 * a).flow(u, [0.0, 0.2])
    assert (flow is None) == (fast is None) == (name in ("varying", "walls"))
    if flow is not None and fast is not None:
        torch.testing.assert_close(fast, flow, rtol=0, atol=1e-11)  # twice as fast is half as long
    if a.grid.periodic:
        k = torch.linspace(0, 5, 6, dtype=torch.float64).expand(2, 6)
        torch.testing.assert_close((2 * a).exact_symbol(k), 2 * a.exact_symbol(k))
        torch.testing.assert_close((2 * a).symbol(k), 2 * a.symbol(k))


def test_differences() -> None:
    a, b = Diffusion(RING, 0.2), Reaction(RING, 0.5)
    u = torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close((a - b)(ZERO, u), a(ZERO, u) - 0.5 * u)
    torch.testing.assert_close((-Advection(RING, 0.7))(ZERO, u), Advection(RING, -0.7)(ZERO, u))
    assert (b - b)(ZERO, u).abs().max() == 0
    assert (-b).max_stable_step("euler") == pytest.approx(4.0, rel=1e-5) and (-Reaction(RING, -0.5)).max_stable_step("euler") == math.inf
    decay = odeint(-b, u, [0.0, 1.0], method="etdrk4", steps=1)[-1]
    torch.testing.assert_close(decay, math.exp(-0.5) * u, rtol=1e-12, atol=1e-12)


def test_a_multiple_trains_the_parameter_of_its_term() -> None:
    D = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    equation = 3 * Diffusion(RING, D)
    assert [p is D for p in equation.parameters()] == [True]
    u = torch.rand(16, dtype=torch.float64)

    def loss() -> Tensor:
        return odeint(equation, u, [0.0, 0.1], method="etdrk4", steps=2)[-1].square().sum()

    (g,) = torch.autograd.grad(loss(), D)
    with torch.no_grad():
        D += 1e-6
        more = loss()
        D -= 2e-6
        less = loss()
    assert g.item() == pytest.approx((more - less).item() / 2e-6, rel=1e-6) and g.abs() > 1e-3


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "diffusion backwards": (lambda: -Diffusion(RING, 0.1), "grows without bound.*DerivativeTerm"),
    "diffusion taken away": (lambda: Reaction(RING, 1.0) - 2 * Hyperdiffusion(RING, 0.1), "grows without bound"),
    "downwind": (lambda: -Advection(RING, 1.0, "upwind3"), "upwind3.*other speed"),
    "against its inflow": (lambda: -1.0 * Advection(Grid1D(16, 1.0, Dirichlet(0.0, None)), 1.0, "central2"), "other speed"),
    "Burgers backwards": (lambda: -Burgers(RING), "weno5"),
    "a tensor": (lambda: Diffusion(RING, 0.1) * torch.ones(16), r"tensor of shape \(16,\)"),
    "not finite": (lambda: math.inf * Diffusion(RING, 0.1), "factor inf"),
    "a word": (lambda: Diffusion(RING, 0.1) * "two", "multiply sequence|unsupported operand"),
    "another grid": (lambda: DerivativeTerm(RING, 2, 1.0) - Reaction(Grid1D(8, 1.0, Neumann()), 1.0), "different grids"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
