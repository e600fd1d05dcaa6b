"""A diffusivity that depends on the field, D(t, x, u), against solutions that nobody here found; and grids that start elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import Advection, Closed, Diffusion, Dirichlet, Grid1D, Neumann, Source, Wave

DOUBLE = torch.empty(0, dtype=torch.float64)


def barenblatt(t: float, x: Tensor, m: int) -> Tensor:
    """u of du/dt = d2(u^m)/dx2 spread from a point (Barenblatt 1952), m >= 2; its front lies where it becomes 0."""
    a = 1 / (m + 1)
    return t**-a * (0.2 - a * (m - 1) / (2 * m) * (x / t**a) ** 2).clamp(min=0) ** (1 / (m - 1))


def porous(n: int, m: int, ends: Any = None) -> Diffusion:
    grid = Grid1D(n, 4.0, start=-2.0) if ends is None else Grid1D(n, 4.0, ends, start=-2.0)
    return Diffusion(grid, lambda t, x, u: m * u.clamp(min=0) ** (m - 1))


@pytest.mark.parametrize(
    ("m", "ends"),
    [(2, None), (3, None), (2, (Closed(), Closed())), (3, Dirichlet(0.0, 0.0))],
    ids=["m=2", "m=3", "m=2 closed", "m=3 values"],
)
def test_porous_media_spread_as_barenblatt_found(m: int, ends: Any) -> None:
    """The mean error falls as the corner of the front lets it, the sum stays, no value is below 0, the front is within a cell."""
    errors = []
    for n in (24, 48):
        equation = porous(n, m, ends)
        x = equation.grid.points(DOUBLE)
        u0, right = barenblatt(0.3, x, m), barenblatt(1.0, x, m)
        steps = math.ceil(0.7 / equation.max_stable_step("ssprk3", u0))
        u = odeint(equation, u0, [0.3, 1.0], method="ssprk3", steps=steps)[-1]
        errors.append((u - right).abs().mean().item())
        assert u.min() > -1e-12 and abs(u.sum() - u0.sum()) < 1e-12
        front = x[u > 0.02].max() - x[right > 0.02].max()
        assert abs(front) <= 1.01 * equation.grid.spacing
    assert errors[1] < 0.004 and math.log2(errors[0] / errors[1]) > 0.7


def steepening(t: Any, x: Tensor) -> Tensor:
    """A field of period 2 pi that moves and is far from 0."""
    return 2 + torch.sin(x - 0.5 * t)


def forced(grid: Grid1D, scheme: str) -> Any:
    """Diffusion with D = u^2 / 4 + x-dependent part, and the source that makes ``steepening`` its solution."""

    def source(t: Any, x: Tensor, u: Tensor) -> Tensor:
        value, slope = steepening(t, x), torch.cos(x - 0.5 * t)
        d, in_x, in_u = value**2 / 4 + 0.3 * torch.sin(x) + 0.5, 0.3 * torch.cos(x), value / 2
        return -0.5 * slope - (in_x + in_u * slope) * slope + d * torch.sin(x - 0.5 * t)

    return Diffusion(grid, lambda t, x, u: u**2 / 4 + 0.3 * torch.sin(x) + 0.5, scheme) + Source(grid, source)


@pytest.mark.parametrize(("scheme", "order"), [("central2", 2), ("central4", 4), ("central6", 6), ("spectral", None)])
def test_the_order_of_every_scheme_where_D_depends_on_time_place_and_field(scheme: str, order: int | None) -> None:
    errors = []
    for n in (16, 32):
        grid = Grid1D(n, 2 * math.pi, start=-1.0)
        x, t = grid.points(DOUBLE), torch.tensor(0.7, dtype=torch.float64)
        rate = -0.5 * torch.cos(x - 0.5 * t)
        errors.append((forced(grid, scheme)(t, steepening(t, x)) - rate).abs().max().item())
    assert errors[1] < 1e-10 if order is None else math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_between_walls_the_order_is_2_and_the_implicit_methods_take_any_step() -> None:
    """D = u between the values 1 and 2: the steady field is sqrt(1 + 3 x), as u du/dx does not depend on x."""
    off: dict[str, list[float]] = {"rodas5p": [], "kvaerno5": []}
    for n in (10, 20):
        equation = Diffusion(Grid1D(n, 1.0, Dirichlet(1.0, 2.0), start=3.0), lambda t, x, u: u)
        x = equation.grid.points(DOUBLE) - 3
        start = 1 + x
        for method in ("rk4", "imex2", "etdrk4"):
            assert 0.2 / n**2 < equation.max_stable_step(method, start) < 1.5 / n**2, method
        assert equation.max_stable_step("rk4") == math.inf  # nothing is known of D without u
        for method, errors in off.items():
            assert equation.max_stable_step(method, start) > 1, method
            end = odeint(equation, start, [0.0, 3.0], method=method, steps=10)[-1]
            errors.append((end - torch.sqrt(1 + 3 * x)).abs().max().item())
    for method, errors in off.items():
        assert errors[1] < 1e-3 and math.log2(errors[0] / errors[1]) > 1.5, (method, errors)


class Learned(nn.Module):
    """D = a + softplus(b u)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: Any, x: Tensor, u: Tensor) -> Tensor:
        return self.a + nn.functional.softplus(self.b * u)


@pytest.mark.parametrize("ends", [None, Neumann(0.0, 0.0)], ids=["periodic", "slopes"])
def test_a_learned_D_of_the_field_has_the_gradient_of_differences(ends: Any) -> None:
    grid = Grid1D(12) if ends is None else Grid1D(12, 1.0, ends)
    equation = 2 * Diffusion(grid, Learned())
    u0 = torch.sin(2 * math.pi * grid.points(DOUBLE))
    parameters = list(equation.parameters())
    assert len(parameters) == 2

    def loss(*values: Tensor) -> Tensor:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)
        return odeint(equation, u0, [0.0, 0.02], method="rk4", steps=20)[-1].square().sum()

    values = [parameter.detach().clone() for parameter in parameters]
    found = torch.autograd.grad(loss(*values), parameters)
    for place, gradient in enumerate(found):
        moved = [[v + s * 1e-5 * (i == place) for i, v in enumerate(values)] for s in (1, -1)]
        with torch.no_grad():
            difference = (loss(*moved[0]) - loss(*moved[1])) / 2e-5
        assert gradient == pytest.approx(difference.item(), rel=1e-7)


def test_what_is_not_linear_has_no_symbol_flow_or_exact_solution() -> None:
    equation = Diffusion(Grid1D(8), lambda t, x, u: u**2)
    u = torch.ones(8, dtype=torch.float64)
    assert equation.flow(u, [1.0]) is None and not equation.linear
    assert Diffusion(Grid1D(8), lambda t, x, eps=1.0: eps * (1 + x)).linear  # an argument with a default is not the field
    for ask in (lambda: equation.symbol(torch.ones(1)), lambda: equation.exact(1.0, u)):
        with pytest.raises(ValueError, match="of Diffusion is known for a linear scheme and a constant diffusivity only"):
            ask()
    with pytest.raises(ValueError, match="not linear; give the field"):
        equation.matrix()
    assert equation.matrix(u).sum(0).abs().max() < 1e-12  # what leaves a point enters the next


@pytest.mark.parametrize("ends", [None, Dirichlet(0.0, 0.0)], ids=["periodic", "walls"])
def test_a_grid_that_starts_elsewhere_has_the_same_solutions_moved(ends: Any) -> None:
    """Coefficients that are functions, closed forms, and the wave, against the grid from 0 with the functions moved along."""
    a, b = ((Grid1D(16, 2.0, start=s) if ends is None else Grid1D(16, 2.0, ends, start=s)) for s in (0.0, -0.75))
    assert torch.allclose(a.points(DOUBLE) - 0.75, b.points(DOUBLE), atol=1e-15) and torch.allclose(
        a.faces(DOUBLE) - 0.75, b.faces(DOUBLE), atol=1e-15
    )
    u = torch.exp(-((a.points(DOUBLE) - 0.8) ** 2))
    here, there = (Diffusion(grid, lambda t, x, s=grid.start: 1 + (x - s) ** 2) for grid in (a, b))
    assert torch.allclose(here(0.0, u), there(0.0, u), atol=1e-12)
    if ends is None:
        bump = lambda x: torch.exp(torch.cos(math.pi * x))
        moving = Advection(b, 0.3)
        exact = moving.exact(torch.tensor([0.0, 9.0], dtype=torch.float64), bump)
        assert torch.allclose(exact, torch.stack([bump(b.points(DOUBLE) - 0.3 * t) for t in (0.0, 9.0)]), atol=1e-12)
        within = []
        moving.exact(9.0, lambda x: within.append(x) or bump(x))
        assert within[0].min() >= -0.75 and within[0].max() < 1.25
    assert a != b
    with pytest.raises(ValueError, match="different grids do not add"):
        _ = here + there
    with pytest.raises(ValueError, match="start=inf must be finite"):
        Grid1D(8, start=math.inf)


@pytest.mark.parametrize("ends", [Dirichlet(1.0, 3.0), Neumann(2.0, 2.0), Dirichlet(), Neumann()], ids=str)
def test_the_series_between_walls_that_stand_elsewhere(ends: Any) -> None:
    """exact against small steps of the equation, and the same field from 0."""
    here, there = (Diffusion(Grid1D(24, 2.0, ends, start=s), 0.5) for s in (0.0, 5.0))
    u = 1 + here.grid.points(DOUBLE) + torch.cos(math.pi * here.grid.points(DOUBLE))
    assert torch.allclose(here.exact(0.1, u), there.exact(0.1, u), atol=1e-12)
    flows_in = Wave(Grid1D(24, 2.0, ends, start=5.0), lambda t, x: 1 + (x - 5) ** 2)
    assert torch.allclose(flows_in(0.0, (u, u))[1], Wave(here.grid, lambda t, x: 1 + x**2)(0.0, (u, u))[1], atol=1e-10)
