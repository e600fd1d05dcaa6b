"""Gradients in coefficients, fields and boundary data: gradcheck, Taylor slopes, Parameters, closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledSystem, odeint
from anodev2.pde import Advection, AdvectionDiffusionReaction, Burgers, Diffusion, Dirichlet, Grid1D, Neumann, Wave
from problems import points

T = torch.tensor(0.3, dtype=torch.float64)
N = 12
FIRST = ["upwind1", "upwind3", "upwind5", "central2", "central4", "central6", "weno5", "spectral"]
GRID = Grid1D(N, 2.0)


def walled(kind: Callable[..., Any], left: Any, right: Any) -> Grid1D:
    return Grid1D(N, 2.0, kind(left, right))


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def field(low: float, high: float) -> list[Tensor]:
    return [torch.linspace(low, high, N, dtype=torch.float64)]


Case = tuple[Callable[..., Any], list[Tensor]]
CASES: dict[str, Case] = {
    **{f"speed, {s}": (lambda c, s=s: Advection(GRID, c, s), numbers(0.7)) for s in FIRST},
    **{f"negative speed, {s}": (lambda c, s=s: Advection(GRID, c, s), numbers(-0.7)) for s in ("upwind3", "weno5")},
    **{f"speed field, {s}": (lambda c, s=s: Advection(GRID, c, s), field(-0.55, 0.8)) for s in ("upwind3", "weno5", "spectral")},
    **{
        f"speed field of a flux, {s}": (lambda c, s=s: Advection(GRID, c, s, conservative=True), field(-0.55, 0.8))
        for s in ("upwind3", "weno5", "central4")
    },
    "speed function": (lambda a, b: Advection(GRID, lambda t, x: a * torch.sin(x + b * t), "upwind3"), numbers(0.7, 0.4)),
    "diffusivity": (lambda D: Diffusion(GRID, D, "central4"), numbers(0.2)),
    "diffusivity, spectral": (lambda D: Diffusion(GRID, D, "spectral"), numbers(0.2)),
    "diffusivity field": (lambda D: Diffusion(GRID, D), field(0.1, 0.5)),
    "diffusivity field between walls": (lambda D: Diffusion(walled(Neumann, 0.2, -0.1), D), field(0.1, 0.5)),
    "wall values": (lambda a, b: Diffusion(walled(Dirichlet, a, b), 0.2, "central4"), numbers(0.4, -0.3)),
    "wall slopes": (lambda a, b: Diffusion(walled(Neumann, a, b), 0.2), numbers(0.4, -0.3)),
    "inflow": (lambda a, c: Advection(walled(Dirichlet, a, None), c), numbers(0.4, 0.7)),
    "moving wall value": (lambda a: Diffusion(walled(Dirichlet, lambda t: a * t, 0.1), 0.2), numbers(0.4)),
    "moving inflow, weno5": (lambda a: Advection(walled(Dirichlet, lambda t: torch.sin(a * t), None), 0.7, "weno5"), numbers(0.4)),
    "all three": (lambda D, c, r: AdvectionDiffusionReaction(GRID, D, c, r), numbers(0.1, -0.5, 0.3)),
    "source": (lambda s: AdvectionDiffusionReaction(GRID, 0.1, source=lambda t, x, u: s * u.square() + x), numbers(0.6)),
    "viscosity": (lambda nu: Burgers(GRID, nu), numbers(0.1)),
    "viscosity, upwind3": (lambda nu: Burgers(GRID, nu, "upwind3"), numbers(0.1)),
    "sum": (lambda D, c: Diffusion(GRID, D) + Advection(GRID, c, "upwind3"), numbers(0.1, 0.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_in_coefficients_and_field(name: str) -> None:
    make, coefficients = CASES[name]
    u = torch.sin(3 * points(GRID)) + 0.3 * torch.cos(7 * points(GRID)) + 0.15
    inputs = [x.clone().requires_grad_() for x in (u, *coefficients)]
    assert torch.autograd.gradcheck(lambda u, *c: make(*c)(T, u), inputs)


@pytest.mark.parametrize("speed", [numbers(0.9), field(0.5, 1.2)], ids=["number", "field"])
def test_gradcheck_of_the_wave(speed: list[Tensor]) -> None:
    inputs = [x.clone().requires_grad_() for x in (torch.sin(3 * points(GRID)), torch.cos(points(GRID)), *speed)]
    assert torch.autograd.gradcheck(lambda u, v, c: Wave(GRID, c)(T, (u, v)), inputs)


def objective(equation: Any, u0: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, N, dtype=torch.float64)
    return (odeint(equation, u0, [0.0, 0.1], steps=8)[-1].square() * weight).sum()


@pytest.mark.filterwarnings("ignore:no step of")  # central differences of a speed that changes its sign
@pytest.mark.parametrize("name", CASES)
def test_taylor_remainders_of_a_solve_fall_with_slope_two(name: str) -> None:
    make, start = CASES[name]
    u0 = torch.sin(math.pi * points(GRID)) + 0.15
    start = [x.clone().requires_grad_() for x in start]
    gradient = torch.autograd.grad(objective(make(*start), u0), start)
    direction = [0.5 * torch.ones_like(x) if x.ndim == 0 else torch.sin(torch.arange(N).double()) / 2 for x in start]
    expected = torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum()
    with torch.no_grad():
        base = objective(make(*start), u0)
        moved = [objective(make(*(x + e * d for x, d in zip(start, direction, strict=True))), u0) for e in (2e-3, 1e-3)]
    remainders = [abs((J - base - e * expected).item()) for J, e in zip(moved, (2e-3, 1e-3), strict=True)]
    size = max(abs(base.item()), abs(expected.item()))
    if remainders[0] < 1e-10 * size:  # an objective linear in the coefficient
        assert abs((moved[0] - base).item()) > 1e-6 * size
    else:
        assert math.log2(remainders[0] / remainders[1]) == pytest.approx(2, abs=0.1)


PARAMETERS: dict[str, Callable[[Any], Any]] = {
    "speed": lambda p: Advection(GRID, p, "upwind3"),
    "speed of weno5": lambda p: Advection(GRID, p, "weno5"),
    "diffusivity": lambda p: Diffusion(GRID, p),
    "wall value": lambda p: Diffusion(walled(Dirichlet, p, 0.1), 0.2),
    "wall slope": lambda p: Diffusion(walled(Neumann, 0.1, p), 0.2),
    "inflow": lambda p: Advection(walled(Dirichlet, p, None), 0.7),
    "reaction": lambda p: AdvectionDiffusionReaction(GRID, 0.1, 0.2, p),
    "viscosity": lambda p: Burgers(GRID, p),
}


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_gets_the_gradient_of_the_solve(name: str, adjoint: Any) -> None:
    p = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    u0 = torch.sin(math.pi * points(GRID))
    equation = PARAMETERS[name](p)
    loss = lambda e: odeint(e, u0, [0.0, 0.1], steps=8, adjoint=adjoint)[-1].square().mul(points(GRID)).sum()
    loss(equation).backward()
    with torch.no_grad():
        above, below = (loss(PARAMETERS[name](p.item() + e)) for e in (1e-5, -1e-5))
    assert p.grad is not None
    assert p.grad.item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-6)
    assert p.grad.abs() > 1e-4


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_of_another_precision_gets_its_gradient(name: str) -> None:
    u0 = torch.sin(math.pi * points(GRID))
    gradients = []
    for parameter, field in ((torch.float64, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.float64)):
        p = nn.Parameter(torch.tensor(0.4, dtype=parameter))
        du = PARAMETERS[name](p)(T.to(field), u0.to(field))
        assert du.dtype == field
        (du.square() * points(GRID).to(field)).sum().backward()
        assert p.grad is not None and p.grad.dtype == parameter
        gradients.append(p.grad.item())
    assert gradients[1:] == pytest.approx([gradients[0]] * 2, rel=1e-4)


def test_a_learned_boundary_that_moves() -> None:
    class Inflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

        def forward(self, t: Tensor) -> Tensor:
            return torch.sin(self.rate * t)

    inflow: Any = Inflow()
    equation = Advection(walled(Dirichlet, inflow, None), 0.9)
    loss = lambda: odeint(equation, torch.zeros(N).double(), [0.0, 1.0], steps=30)[-1].sum()
    loss().backward()
    with torch.no_grad():
        inflow.rate += 1e-5
        above = loss()
        inflow.rate -= 2e-5
        below = loss()
    assert inflow.rate.grad is not None
    assert inflow.rate.grad.item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-7)


@pytest.mark.parametrize("kind", ["periodic", "dirichlet", "neumann"])
def test_gradcheck_of_flows(kind: str) -> None:
    u = torch.sin(3 * points(GRID)) + 0.15
    if kind == "periodic":
        flow: Any = lambda u, D, c, r: AdvectionDiffusionReaction(GRID, D, c, r).flow(u, [0.0, 0.4])
        coefficients = numbers(0.1, -0.5, 0.3)
    else:
        wall = Dirichlet if kind == "dirichlet" else Neumann
        flow = lambda u, D, a, b: Diffusion(walled(wall, a, b), D).flow(u, [0.2, 0.4])
        coefficients = numbers(0.1, -0.5, 0.3)
    assert torch.autograd.gradcheck(flow, [x.clone().requires_grad_() for x in (u, *coefficients)])


@pytest.mark.parametrize("boundary", [None, Dirichlet(0.1, -0.2)], ids=["periodic", "walls"])
def test_gradcheck_of_the_waves_flow(boundary: Any) -> None:
    """Through the standing mode too, where sin(w t) / w is t."""
    grid = GRID if boundary is None else Grid1D(N, 2.0, boundary)
    inputs = [x.clone().requires_grad_() for x in (torch.sin(3 * points(GRID)) + 0.2, torch.cos(points(GRID)), *numbers(0.9))]
    flow: Any = lambda u, v, c: Wave(grid, c).flow((u, v), [0.4])
    assert torch.autograd.gradcheck(flow, inputs)


def test_gradcheck_of_symbols() -> None:
    k = torch.linspace(-3, 3, 7, dtype=torch.float64)
    symbol = lambda D, c, r: AdvectionDiffusionReaction(GRID, D, c, r).symbol(k)
    assert torch.autograd.gradcheck(lambda *p: torch.view_as_real(symbol(*p)), [x.requires_grad_() for x in numbers(0.1, -0.5, 0.3)])


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_a_speed_that_follows_its_own_equation(adjoint: Any) -> None:
    """z_t + c(t) z_x = 0, c' = -p c: z(1) = z0(x - c0 (1 - exp(-p)) / p), both gradients in closed form."""
    grid = Grid1D(24, 2.0)
    x = points(grid)
    z0 = lambda x: torch.sin(math.pi * x + 0.4) + 0.3 * torch.cos(2 * math.pi * x)
    weight = torch.exp(torch.sin(math.pi * x))
    c0, p = (v.requires_grad_() for v in numbers(0.9, 1.3))
    system = CoupledSystem(lambda t, z, c: Advection(grid, c)(t, z), lambda t, c: -p * c)
    J = (odeint(system, (z0(x), c0), [0.0, 1.0], method="rk4", steps=500, adjoint=adjoint)[0][-1].square() * weight).sum()
    found = torch.autograd.grad(J, (c0, p))
    exact = (z0(x - c0 * (1 - torch.exp(-p)) / p).square() * weight).sum()
    torch.testing.assert_close(J, exact, rtol=1e-8, atol=0)
    for ours, closed in zip(found, torch.autograd.grad(exact, (c0, p)), strict=True):
        torch.testing.assert_close(ours, closed, rtol=1e-8, atol=0)


def test_second_derivatives_in_a_coefficient() -> None:
    """d2J/dc2 through the spectral flow: J = sum w u0(x - c t)^2 in closed form."""
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z0 = lambda x: torch.sin(math.pi * x + 0.4)
    w = torch.cos(2 * math.pi * points(GRID) + 0.3)
    J = (odeint(Advection(GRID, c), z0(points(GRID)), [0.0, 1.0], method="dopri8", steps=40, adjoint="direct")[-1].square() * w).sum()
    exact = (z0(points(GRID) - c).square() * w).sum()
    second = [torch.autograd.grad(torch.autograd.grad(j, c, create_graph=True)[0], c)[0] for j in (J, exact)]
    torch.testing.assert_close(second[0], second[1], rtol=1e-8, atol=0)
