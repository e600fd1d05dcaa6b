"""What a step of an equation costs, counted: Fourier transforms, factorisations, numbers read by the host."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import Advection, Burgers, Diffusion, Dirichlet, Grid1D, KuramotoSivashinsky
from counting import counted
from sampled import rows

N = 16
TRANSFORMS = {"exponential_euler": 3, "imex1": 3, "imex2": 5, "imex3": 9, "etdrk4": 9}  # of a step: two per stage, and one there


def sine(shape: tuple[int, ...] = (N,)) -> Tensor:
    return torch.sin(2 * math.pi * torch.arange(N, dtype=torch.float64) / N).expand(shape)


def per_step(equation: Any, u: Tensor, method: str, *names: str) -> float:
    """So many operations of these names each step of a solve adds; what an equation keeps it has made before."""
    seen = []
    for steps in (4, 14):
        run = lambda steps=steps: odeint(equation, u, [0.0, 0.01], method=method, steps=steps)
        run()
        seen.append(counted(run).of(*names))
    return (seen[1] - seen[0]) / 10


@pytest.mark.parametrize(("trained", "shape"), rows([False, True], [(N,), (3, N)], quick=[(False, (N,)), (True, (3, N))]))
@pytest.mark.parametrize("method", TRANSFORMS)
def test_transforms_of_a_step_on_a_circle(method: str, trained: bool, shape: tuple[int, ...]) -> None:
    D: Any = nn.Parameter(torch.tensor(0.05, dtype=torch.float64)) if trained else 0.05
    grid = Grid1D(N)
    spectral = Burgers(grid, D, "spectral", "spectral")
    assert per_step(spectral, sine(shape), method, "fft") == TRANSFORMS[method]
    assert per_step(spectral, sine(shape), method, "exp", "reciprocal") == 0  # phi functions and resolvents: once per solve
    differences = Burgers(grid, D, "upwind3") + Advection(grid, 0.5, "weno5")
    assert per_step(differences, sine(shape), method, "fft") == TRANSFORMS[method]
    linear = Diffusion(grid, D) + Advection(grid, 0.5)
    assert per_step(linear, sine(shape), method, "r2c") == 1


def test_a_speed_that_is_a_number_is_not_read_from_a_tensor() -> None:
    equation = Advection(Grid1D(N, 1.0, Dirichlet(0.2, None)), 0.5)
    assert per_step(equation, sine(), "rk4", "local_scalar") == 0


def test_a_speed_that_is_a_tensor_is_read_once_until_it_changes() -> None:
    speed = torch.full((N,), 0.5, dtype=torch.float64)
    equation = Advection(Grid1D(N, 1.0, Dirichlet(0.2, None)), nn.Parameter(speed))
    assert per_step(equation, sine(), "rk4", "local_scalar") == 0
    with torch.no_grad():
        equation.speed.neg_()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"-0\.5.*flows"):
        equation(torch.zeros(()), sine())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("method", TRANSFORMS)
def test_transforms_of_a_nonlinearity_without_aliasing(method: str, trained: bool) -> None:
    """Two per evaluation, from the modes and to them: those of the state are never asked for as a field, but at the end."""
    evaluations = {"exponential_euler": 1, "imex1": 1, "imex2": 2, "imex3": 4, "etdrk4": 4}[method]
    grid = Grid1D(N, 2 * math.pi)
    equation: Any = KuramotoSivashinsky(grid)
    if trained:
        equation = equation + Diffusion(grid, nn.Parameter(torch.tensor(0.05, dtype=torch.float64)), "spectral")
    assert per_step(equation, sine(), method, "fft") == 2 + 2 * evaluations


def test_transforms_of_a_step_that_is_differentiated() -> None:
    """One transposed for each; a step redone stops at the last that saves something."""
    equation, u0 = KuramotoSivashinsky(Grid1D(N, 2 * math.pi)), sine().clone().requires_grad_()
    for adjoint, expected in (("direct", 10 + 10), ("checkpoint", 10 + 9 + 10)):
        seen = []
        for steps in (4, 14):
            u = lambda: odeint(equation, u0, [0.0, 0.01], method="etdrk4", steps=steps, adjoint=adjoint)[-1]  # noqa: B023
            u()
            seen.append(counted(lambda: u().sum().backward()).of("fft"))  # noqa: B023
        assert (seen[1] - seen[0]) / 10 == expected


def test_transforms_of_a_multiple() -> None:
    grid = Grid1D(N, 2 * math.pi)
    assert per_step(0.5 * Burgers(grid, 0.05, "spectral", "spectral"), sine(), "etdrk4", "fft") == 9


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("method", TRANSFORMS)
def test_between_walls_a_step_factorises_nothing_and_makes_no_matrix(method: str, trained: bool) -> None:
    D: Any = nn.Parameter(torch.tensor(0.05, dtype=torch.float64)) if trained else 0.05
    equation = Burgers(Grid1D(N, 1.0, Dirichlet(0.0, 0.0)), D, "upwind3")
    assert per_step(equation, sine(), method, "matrix_exp", "lu_factor", "solve_ex", "inv_ex", "eye") == 0


@pytest.mark.parametrize("method", ["etdrk4", "imex2"])
@pytest.mark.parametrize("grid", [Grid1D(N), Grid1D(N, 1.0, Dirichlet(0.1, -0.2))], ids=["circle", "walls"])
def test_prepared_steps_are_those_made_one_by_one(grid: Grid1D, method: str) -> None:
    """Times that require grad have steps that are not prepared."""
    D = nn.Parameter(torch.tensor(0.05, dtype=torch.float64))
    equation = Burgers(grid, D, "upwind3") if not grid.periodic else Burgers(grid, D, "spectral", "spectral")
    found = []
    for live in (False, True):
        u0, t = sine((2, N)).clone().requires_grad_(), torch.tensor([0.0, 0.05, 0.2], dtype=torch.float64, requires_grad=live)
        u = odeint(equation, u0, t, method=method, steps=5)
        found.append((u.detach(), *torch.autograd.grad(u.square().sum(), (u0, D))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
