"""Wall data that move, in steps that treat the linear part by themselves: their order in time, against small explicit steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import Advection, AdvectionDiffusionReaction, Burgers, Diffusion, Dirichlet, Grid1D, Neumann, Source
from anodev2.testing import observed_order

WALLS: dict[str, Callable[[], Any]] = {
    "values": lambda: Dirichlet(lambda t: torch.sin(3 * t), lambda t: 1 + torch.cos(2 * t)),
    "slopes": lambda: Neumann(lambda t: torch.sin(3 * t), lambda t: torch.cos(2 * t)),
    "inflow": lambda: Dirichlet(lambda t: torch.cos(3 * t), None),
}
EQUATIONS: dict[str, Callable[[Grid1D], Any]] = {
    "diffusion": lambda grid: Diffusion(grid, 1.0),
    "central4": lambda grid: Diffusion(grid, 1.0, "central4"),
    "growth": lambda grid: Diffusion(grid, 1.0) + Source(grid, lambda t, x, u: u * (1 - u) * torch.cos(t)),
    "all three": lambda grid: AdvectionDiffusionReaction(grid, 1.0, 2.0, -1.0),
    "burgers": lambda grid: Burgers(grid, 1.0, "upwind3"),
    "advection": lambda grid: Advection(grid, 1.0),
}
CASES = [(w, e) for w, e in itertools.product(WALLS, EQUATIONS) if (w == "inflow") == (e == "advection")]


def right(equation: Callable[[Tensor, Tensor], Tensor], u: Tensor, end: float, steps: int = 400) -> Tensor:
    """The state at the end by the classical Runge-Kutta method."""
    h = end / steps
    for n in range(steps):
        t = torch.tensor(n * h, dtype=torch.float64)
        a = equation(t, u)
        b = equation(t + h / 2, u + h / 2 * a)
        c = equation(t + h / 2, u + h / 2 * b)
        u = u + h / 6 * (a + 2 * b + 2 * c + equation(t + h, u + h * c))
    return u


@pytest.mark.parametrize(("walls", "name"), CASES)
def test_imex_methods_keep_their_order_where_wall_data_move(walls: str, name: str) -> None:
    """What order reduction leaves between walls: imex2 has 2, imex3 from 2 to 3 (its stages are of order 1 in stiff modes)."""
    equation = EQUATIONS[name](Grid1D(12, 1.0, WALLS[walls]()))
    u0 = torch.cos(equation.grid.points(torch.empty(0, dtype=torch.float64)))
    least = {"imex1": 0.85, "imex2": 1.7, "imex3": 2.8 if name == "advection" else 1.7}
    with torch.no_grad():
        exact = right(equation, u0, 0.25, 250)
        for method, order in least.items():
            error = lambda n, method=method: (odeint(equation, u0, [0.0, 0.25], method=method, steps=n)[-1] - exact).abs().max().item()
            assert observed_order(error, (10, 20, 40)) > order, method


@pytest.mark.parametrize(("walls", "name"), CASES)
def test_the_three_parts_add_up_and_data_do_not_read_the_field(walls: str, name: str) -> None:
    equation = EQUATIONS[name](Grid1D(12, 1.0, WALLS[walls]()))
    linear, data, rest = equation.split()
    u, t = torch.randn(2, 3, 12, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(linear(u) + data(t, u) + rest(t, u), equation(t, u), rtol=0, atol=1e-9)
    assert data(t, u).shape == u.shape and torch.equal(data(t, u), data(t, 7 * u)) and data(t, u).abs().max() > 1
    assert not torch.equal(data(t, u), data(t + 0.1, u))


def test_data_of_a_field_of_ones_own_reach_every_method_that_splits() -> None:
    """u' = -200 (u - cos t) - sin t from 1 is cos t: with the data as part of its own, and in the rest."""

    class Own(torch.nn.Module):
        def __init__(self, parts: int) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, t: Tensor, u: Tensor) -> Tensor:
            return -200 * u + self.data(t, u)

        def data(self, t: Tensor, u: Tensor) -> Tensor:
            return (200 * torch.cos(t) - torch.sin(t)).expand_as(u)

        def split(self) -> Any:
            linear, zero = torch.tensor([[-200.0]], dtype=torch.float64), lambda t, u: torch.zeros_like(u)
            return (linear, self.data, zero) if self.parts == 3 else (linear, self.data)

    end = torch.cos(torch.tensor([1.0], dtype=torch.float64))
    off = {
        (method, parts): (odeint(Own(parts), torch.ones_like(end), [0.0, 1.0], method=method, steps=40)[-1] - end).abs().item()
        for method, parts in itertools.product(("exponential_euler", "etdrk4", "imex1", "imex2", "imex3"), (2, 3))
    }
    assert off["etdrk4", 2] == off["etdrk4", 3] < 1e-4 and off["exponential_euler", 2] == off["exponential_euler", 3]
    assert off["imex1", 3] < 1e-4 < 1e-3 < off["imex1", 2] and off["imex3", 3] < 1e-5 < 1e-4 < off["imex3", 2]
