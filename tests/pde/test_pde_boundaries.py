"""Walls: order of the solution near them, what passes through them, stability of the closed operators, mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import (
    Absorbing,
    Advection,
    AdvectionDiffusionReaction,
    Burgers,
    Diffusion,
    Dirichlet,
    Grid1D,
    Neumann,
    Periodic,
    Reaction,
    Robin,
    Slope,
    System,
    Value,
    Wave,
)
from anodev2.pde.stencils import derivative
from anodev2.testing import observed_order
from sampled import rows

UPWIND = ["upwind1", "upwind3", "upwind5"]
CENTRAL = ["central2", "central4", "central6"]
ZERO = torch.zeros((), dtype=torch.float64)
LENGTH = 1.5


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


def test_points_are_cell_centres() -> None:
    grid = Grid1D(6, length=3.0, boundary=Dirichlet())
    torch.testing.assert_close(points(grid), torch.arange(6).double() / 2 + 0.25)
    assert grid.spacing == 0.5


def walls(kind: str, u: Callable[[float], float], du: Callable[[float], float]) -> Dirichlet | Neumann:
    return Dirichlet(u(0.0), u(LENGTH)) if kind == "dirichlet" else Neumann(du(0.0), du(LENGTH))


def steady_error(equation: nn.Module, source: Tensor, exact: Tensor) -> float:
    """Of the solution of L u - u + source = 0, the equation's du/dt being L u with its boundary data; root mean square."""
    at_zero = equation(ZERO, torch.zeros_like(exact))
    eye = torch.eye(len(exact), dtype=torch.float64)
    matrix = (equation(ZERO, eye) - at_zero).mT
    found = torch.linalg.solve(eye - matrix, at_zero + source)
    return (found - exact).square().mean().sqrt().item()


def near(order: float) -> float:
    return 0.15 if order <= 2 else 0.3


@pytest.mark.parametrize("kind", ["dirichlet", "neumann"])
@pytest.mark.parametrize("scheme", CENTRAL)
def test_diffusion_between_walls_has_the_claimed_order(scheme: str, kind: str) -> None:
    wave, dwave = lambda x: math.sin(4 * x + 0.7), lambda x: 4 * math.cos(4 * x + 0.7)
    boundary = walls(kind, wave, dwave)

    def error(n: int) -> float:
        grid = Grid1D(n, LENGTH, boundary)
        u = torch.sin(4 * points(grid) + 0.7)
        return steady_error(Diffusion(grid, 0.3, scheme), u + 0.3 * 16 * u, u)

    claimed = derivative(Grid1D(16, LENGTH, boundary), 2, scheme).wall_order
    assert claimed >= 2
    assert observed_order(error, (24, 32, 48, 64, 96, 128), floor=1e-11) == pytest.approx(claimed, abs=near(claimed))


@pytest.mark.parametrize("given", ["function", "field"])
@pytest.mark.parametrize("kind", ["dirichlet", "neumann"])
def test_diffusion_with_a_varying_coefficient_is_of_order_two(kind: str, given: str) -> None:
    """d/dx((1 + x/2) du/dx), u = sin(4 x + 0.7)."""
    boundary = walls(kind, lambda x: math.sin(4 * x + 0.7), lambda x: 4 * math.cos(4 * x + 0.7))

    def error(n: int) -> float:
        grid = Grid1D(n, LENGTH, boundary)
        x = points(grid)
        u, du = torch.sin(4 * x + 0.7), 4 * torch.cos(4 * x + 0.7)
        source = u - (0.5 * du - (1 + x / 2) * 16 * u)
        return steady_error(Diffusion(grid, (lambda t, x: 1 + x / 2) if given == "function" else 1 + x / 2), source, u)

    assert observed_order(error, (24, 32, 48, 64), floor=1e-11) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("speed", [0.8, -0.8])
@pytest.mark.parametrize("scheme", [*UPWIND, *CENTRAL])
def test_advection_through_walls_has_the_claimed_order(scheme: str, speed: float) -> None:
    value = math.sin(4 * (0 if speed > 0 else LENGTH) + 0.7)
    boundary = Dirichlet(value, None) if speed > 0 else Dirichlet(None, value)

    def error(n: int) -> float:
        grid = Grid1D(n, LENGTH, boundary)
        u, du = torch.sin(4 * points(grid) + 0.7), 4 * torch.cos(4 * points(grid) + 0.7)
        return steady_error(Advection(grid, speed, scheme), u + speed * du, u)

    side = 1 if speed > 0 else -1
    claimed = derivative(Grid1D(16, LENGTH, boundary), 1, scheme, side=side).wall_order
    assert claimed >= min(2, int(scheme[-1]))
    assert observed_order(error, (32, 48, 64, 96, 128), floor=1e-11) == pytest.approx(claimed, abs=near(claimed))


@pytest.mark.parametrize("kind", ["dirichlet", "neumann"])
def test_a_transient_with_moving_boundary_data_is_of_order_two(kind: str) -> None:
    """u = exp(-16 D t) sin(4 x + 0.7), its values or slopes at the walls functions of t."""
    D = 0.02
    decay = lambda t: torch.exp(-16 * D * t)
    if kind == "dirichlet":
        boundary = Dirichlet(*(lambda t, x=x: decay(t) * math.sin(4 * x + 0.7) for x in (0.0, LENGTH)))
    else:
        boundary = Neumann(*(lambda t, x=x: decay(t) * 4 * math.cos(4 * x + 0.7) for x in (0.0, LENGTH)))

    def error(n: int) -> float:
        grid = Grid1D(n, LENGTH, boundary)
        u0 = torch.sin(4 * points(grid) + 0.7)
        u = odeint(Diffusion(grid, D), u0, [0.0, 1.0], method="rk4", steps=200)[-1]
        return (u - math.exp(-16 * D) * u0).square().mean().sqrt().item()

    assert observed_order(error, (24, 32, 48, 64), floor=1e-11) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("scheme", ["upwind3", "weno5"])
@pytest.mark.parametrize("speed", [1.0, -1.0])
def test_a_wave_enters_at_the_inflow_end_and_leaves_at_the_other(scheme: str, speed: float) -> None:
    """u(t, x) = sin(3 (x - c t)): what was there at first has left by t = 2."""
    inflow = lambda t: torch.sin(3 * ((0.0 if speed > 0 else LENGTH) - speed * t))
    boundary = Dirichlet(inflow, None) if speed > 0 else Dirichlet(None, inflow)
    grid = Grid1D(60, LENGTH, boundary)
    u = odeint(Advection(grid, speed, scheme), torch.zeros(60).double(), [0.0, 2.5], method="ssprk3", steps=250)[-1]
    assert (u - torch.sin(3 * (points(grid) - speed * 2.5))).abs().max() < (5e-3 if scheme == "upwind3" else 2e-2)


ENDS: dict[str, Callable[[], Any]] = {
    "dirichlet": Dirichlet,
    "neumann": Neumann,
    "in at the left": lambda: Dirichlet(0.0, None),
    "in at the right": lambda: Dirichlet(None, 0.0),
}
CLOSED = [(f"diffusion {s} {e}", lambda g, s=s: Diffusion(g, 1.0, s), e) for s in CENTRAL for e in ("dirichlet", "neumann")]
CLOSED += [(f"advection {s} to the right", lambda g, s=s: Advection(g, 1.0, s), "in at the left") for s in (*UPWIND, *CENTRAL)]
CLOSED += [(f"advection {s} to the left", lambda g, s=s: Advection(g, -1.0, s), "in at the right") for s in (*UPWIND, *CENTRAL)]


@pytest.mark.parametrize("n", [10, 31, 64])
@pytest.mark.parametrize(("name", "make", "ends"), CLOSED, ids=[row[0] for row in CLOSED])
def test_closed_operators_have_no_growing_mode(name: str, make: Callable[[Grid1D], Any], ends: str, n: int) -> None:
    matrix = make(Grid1D(n, boundary=ENDS[ends]())).matrix()
    growth = torch.linalg.eigvals(matrix).real.max() / torch.linalg.matrix_norm(matrix, 2)
    assert growth < 1e-10


@pytest.mark.parametrize("scheme", CENTRAL)
def test_mass_changes_by_the_fluxes_through_neumann_walls(scheme: str) -> None:
    u = torch.rand(3, 20, dtype=torch.float64)
    closed = Grid1D(20, 2.0, Neumann())
    du = Diffusion(closed, 0.7, scheme)(ZERO, u)
    assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-14
    open_ = Grid1D(20, 2.0, Neumann(-0.4, lambda t: 1.3 + t))
    change = Diffusion(open_, 0.7, scheme)(ZERO + 0.5, u).sum(-1) * open_.spacing
    torch.testing.assert_close(change, torch.full((3,), 0.7 * (1.8 + 0.4), dtype=torch.float64), rtol=0, atol=1e-12)


def test_mass_and_fluxes_with_a_varying_coefficient() -> None:
    u = torch.rand(3, 20, dtype=torch.float64)
    D = lambda t, x: 0.5 + x**2
    du = Diffusion(Grid1D(20, 2.0, Neumann()), D)(ZERO, u)
    assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-14
    grid = Grid1D(20, 2.0, Neumann(-0.4, 1.3))
    change = Diffusion(grid, D)(ZERO, u).sum(-1) * grid.spacing
    torch.testing.assert_close(change, torch.full((3,), 4.5 * 1.3 + 0.5 * 0.4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", CENTRAL)
def test_mass_stays_while_a_closed_box_is_stepped(scheme: str) -> None:
    grid = Grid1D(24, boundary=Neumann())
    u0 = torch.rand(24, dtype=torch.float64)
    path = odeint(Diffusion(grid, 0.1, scheme), u0, [0.0, 0.5], method="rk4", steps=200)
    torch.testing.assert_close(path[-1].sum(), u0.sum(), rtol=1e-13, atol=0)
    assert path[-1].std() < 0.3 * u0.std()


@pytest.mark.parametrize("orders", [2, 4, 6])
def test_mass_stays_under_variable_diffusivity_on_periodic_grids(orders: int) -> None:
    grid = Grid1D(24)
    D = lambda t, x: 1 + 0.5 * torch.sin(2 * math.pi * x)
    equation = Diffusion(grid, D, f"central{orders}")
    du = equation(ZERO, torch.rand(3, 24, dtype=torch.float64))
    assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-14

    def error(n: int) -> float:
        grid = Grid1D(n)
        x = 2 * math.pi * points(grid)
        u, k = torch.sin(x), 2 * math.pi
        exact = k**2 * (0.5 * torch.cos(x) ** 2 - (1 + 0.5 * torch.sin(x)) * torch.sin(x))
        return (Diffusion(grid, D, f"central{orders}")(ZERO, u) - exact).abs().mean().item()

    assert observed_order(error, (32, 48, 64, 96), floor=1e-11) == pytest.approx(orders, abs=0.15)


def test_the_spectral_flux_of_a_varying_diffusivity_is_exact() -> None:
    """d/dx((1 + sin(x)/2) d/dx sin(x)) on a periodic grid, even and odd; the sum stays."""
    for n in (16, 17):
        grid = Grid1D(n, 2 * math.pi)
        x = points(grid)
        equation = Diffusion(grid, lambda t, x: 1 + 0.5 * torch.sin(x), "spectral")
        exact = 0.5 * torch.cos(x) ** 2 - (1 + 0.5 * torch.sin(x)) * torch.sin(x)
        torch.testing.assert_close(equation(ZERO, torch.sin(x)), exact, rtol=0, atol=1e-12)
        du = equation(ZERO, torch.rand(n, dtype=torch.float64))
        assert abs((du.sum() / du.abs().sum()).item()) < 1e-14


@pytest.mark.parametrize("scheme", CENTRAL)
@pytest.mark.parametrize(("make", "shape"), [(Dirichlet, lambda x: 0.3 + 0.7 * x), (Neumann, lambda x: 0.3 + 0.7 * x)])
def test_straight_lines_are_steady(make: Callable[..., Any], shape: Callable[[Any], Any], scheme: str) -> None:
    """With the wall's data where it belongs: the value at the wall itself, the slope in the direction of +x at both."""
    data = (shape(0.0), shape(2.0)) if make is Dirichlet else (0.7, 0.7)
    grid = Grid1D(12, 2.0, make(*data))
    torch.testing.assert_close(Diffusion(grid, 1.0, scheme)(ZERO, shape(points(grid))), torch.zeros(12).double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("ends", [Dirichlet(), Neumann()])
def test_a_matrix_between_walls_is_what_the_equation_does(ends: Any) -> None:
    grid = Grid1D(14, boundary=ends)
    equations = [Diffusion(grid, 0.4, scheme) for scheme in CENTRAL]
    equations += [Diffusion(grid, 0.3) + Advection(grid, 0.8, "upwind3"), AdvectionDiffusionReaction(grid, 0.2, -0.5, 0.3)]
    u = torch.randn(2, 14, dtype=torch.float64)
    for equation in equations:
        torch.testing.assert_close(u @ equation.matrix().mT, equation(ZERO, u), rtol=1e-12, atol=1e-10)


def test_boundary_parameters_are_those_of_the_equation() -> None:
    value = nn.Parameter(torch.tensor(0.3).double())
    rate = nn.Linear(1, 1).double()
    boundary = Dirichlet(value, lambda t: t)
    assert any(p is value for p in Diffusion(Grid1D(8, boundary=boundary), 1.0).parameters())
    moving = nn.Sequential(nn.Unflatten(0, (1, 1)), rate, nn.Flatten(0))

    class Inflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = moving

        def forward(self, t: Tensor) -> Tensor:
            return self.rate(t.reshape(1)).squeeze()

    grid = Grid1D(8, boundary=Dirichlet(Inflow(), 0.0))
    equation = Diffusion(grid, 1.0) + Diffusion(grid, 1.0)
    assert {id(p) for p in rate.parameters()} <= {id(p) for p in equation.parameters()}


G = Grid1D(16)
WALLED = Grid1D(16, boundary=Dirichlet())
ONES = torch.ones(16, dtype=torch.float64)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "few points": (lambda: Grid1D(2), "n=2"),
    "length": (lambda: Grid1D(8, length=-1.0), r"length=-1\.0"),
    "two ends as length": (lambda: Grid1D(8, length=(-1.0, 1.0)), r"length=\(-1\.0, 1\.0\).*length=2\.0, start=-1\.0"),  # pyright: ignore
    "boundary": (lambda: Grid1D(8, boundary=0.0), "boundary"),  # pyright: ignore[reportArgumentType]
    "a misspelt scheme": (lambda: Advection(G, 1.0, "upwnd3"), r"scheme.*upwnd3.*upwind3"),
    "a misspelt scheme of diffusion": (lambda: Diffusion(G, 1.0, "centra4"), r"scheme.*centra4.*central4"),
    "a misspelt scheme of the wave": (lambda: Wave(G, 1.0, "cental2"), r"scheme.*cental2.*central2"),
    "a misspelt scheme of Burgers": (lambda: Burgers(G, 0.1, "weno"), r"scheme.*weno.*weno5"),
    "diffusion upwind": (lambda: Diffusion(G, 1.0, "upwind3"), "scheme.*upwind3"),
    "spectral with walls": (lambda: Advection(Grid1D(16, boundary=Dirichlet(0.0, None)), 1.0, "spectral"), "(?i)spectral.*periodic"),
    "spectral diffusion with walls": (lambda: Diffusion(WALLED, 1.0, "spectral"), "(?i)spectral.*periodic"),
    "data at an outflow end": (lambda: Advection(WALLED, 1.0)(ZERO, ONES), "speed 1.*right"),
    "data at the other outflow end": (lambda: Advection(WALLED, -1.0)(ZERO, ONES), "speed -1.*left"),
    "no data at an inflow end": (lambda: Advection(Grid1D(16, boundary=Dirichlet(None, None)), 1.0), "speed 1.*left"),
    "no data at the other inflow end": (lambda: Advection(Grid1D(16, boundary=Dirichlet(0.0, None)), -1.0), "speed -1.*right"),
    "diffusion without data": (lambda: Diffusion(Grid1D(16, boundary=Dirichlet(0.0, None)), 1.0), "right"),
    "diffusion without data at the left": (lambda: Diffusion(Grid1D(16, boundary=Neumann(None, 0.0)), 1.0), "left"),
    "negative diffusivity": (lambda: Diffusion(G, -0.1), r"diffusivity.*-0\.1"),
    "negative diffusivity in the sum of three": (lambda: AdvectionDiffusionReaction(G, diffusivity=-0.1), r"diffusivity.*-0\.1"),
    "negative viscosity": (lambda: Burgers(G, viscosity=-0.1), r"viscosity.*-0\.1|diffusivity.*-0\.1"),
    "wall data without an axis for the points": (lambda: Dirichlet(torch.ones(2)), r"left of shape \(2,\).*left\[\.\.\., None\].*\(2, 1\)"),
    "slopes without it": (lambda: Neumann(0.0, torch.ones(2, 3)), r"right of shape \(2, 3\).*\(2, 3, 1\)"),
    "wall data of a function without it": (
        lambda: Diffusion(Grid1D(16, boundary=Dirichlet(lambda t: torch.ones(2), 0.0)), 1.0)(ZERO, ONES.expand(2, -1)),
        r"left of shape \(2,\).*\(2, 1\)",
    ),
    "a diffusivity that is not a number": (lambda: Diffusion(G, torch.tensor(math.nan)), "diffusivity.*finite"),
    "an infinite speed somewhere": (lambda: Advection(G, torch.full((16,), math.inf)), "speed.*finite"),
    "a diffusivity that is negative somewhere": (lambda: Diffusion(G, ONES - 1.1), r"diffusivity=-0\.1"),
    "a complex field": (lambda: Diffusion(G, 1.0, "spectral")(ZERO, ONES + 1j), r"real, got torch\.complex128; stack"),
    "a complex wave": (lambda: Wave(G, 1.0)(ZERO, (ONES + 1j, ONES)), r"real, got torch\.complex128; stack"),
    "another grid": (lambda: Advection(G, 1.0) + Diffusion(Grid1D(17), 1.0), "grid"),
    "another length": (lambda: Advection(G, 1.0) + Diffusion(Grid1D(16, length=2.0), 1.0), "grid"),
    "another boundary": (lambda: Diffusion(WALLED, 1.0) + Diffusion(Grid1D(16, boundary=Neumann()), 1.0), "grid"),
    "varying diffusivity of order 4 at walls": (lambda: Diffusion(WALLED, lambda t, x: 1 + x, "central4"), "central4"),
    "a short field": (lambda: Diffusion(G, 1.0)(ZERO, torch.ones(5)), "5 points.*grid 16"),
    "a short field in a sum": (lambda: (Diffusion(G, 1.0) + Advection(G, 1.0))(ZERO, torch.ones(5)), "5 points.*grid 16"),
    "a short field of Burgers": (lambda: Burgers(G, 0.1)(ZERO, torch.ones(5)), "5 points.*grid 16"),
    "a short field of the wave": (lambda: Wave(G, 1.0)(ZERO, (torch.ones(5), torch.ones(5))), "5 points.*grid 16"),
    "a speed of another length": (lambda: Advection(G, torch.ones(5).double())(ZERO, ONES), "speed"),
    "a symbol of a varying speed": (lambda: Advection(G, lambda t, x: x).symbol(torch.ones(1).double()), "speed"),
    "a symbol of Burgers": (lambda: Burgers(G, 0.1).symbol(torch.ones(1).double()), "(?i)burgers|nonlinear"),
    "a matrix of Burgers at no field": (lambda: Burgers(G, 0.1).matrix(), r"matrix\(u\)|u="),
    "exact of a varying speed": (lambda: Advection(G, lambda t, x: x).exact(1.0, ONES), "speed"),
    "exact between walls with a slope": (
        lambda: Diffusion(Grid1D(16, boundary=Neumann(1.0, 0.0)), 1.0).exact(1.0, ONES),
        "(?i)slope|neumann|flow",
    ),
    "exact with moving data": (
        lambda: Diffusion(Grid1D(16, boundary=Dirichlet(lambda t: t, 0.0)), 1.0).exact(1.0, ONES),
        "(?i)boundary|left|data",
    ),
    "exact of Burgers without viscosity": (lambda: Burgers(G).exact(1.0, 0.5), "viscosity"),
    "exact of Burgers at an amplitude of a pole": (lambda: Burgers(G, 0.1).exact(1.0, 1.5), "amplitude"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_an_inflow_end_that_a_varying_speed_makes_is_checked_at_each_call() -> None:
    equation = Advection(Grid1D(16, boundary=Dirichlet(0.0, None)), lambda t, x: 1.0 - t + 0 * x)
    u = torch.ones(16, dtype=torch.float64)
    equation(ZERO, u)
    with pytest.raises(ValueError, match=r"speed -1.*(left|right)"):
        equation(ZERO + 2, u)


METHODS_BETWEEN_WALLS = ["imex2", "imex3", "etdrk4", "backward_euler"]


WAYS: dict[str, Callable[[Tensor], Any]] = {  # in which a datum of each field is given
    "tensor": lambda rows: rows,
    "function": lambda rows: lambda t: rows,
    "moving": lambda rows: lambda t: rows * torch.cos(t),
    "of the field": lambda rows: lambda t, u: rows * torch.cos(u),
}
AT_THE_LEFT: dict[str, Callable[[Any, Any], Any]] = {
    "Value": lambda datum, rows: Value(datum),
    "Slope": lambda datum, rows: Slope(datum),
    "Robin": lambda datum, rows: Robin(1.0, -0.4, datum),
    "Robin of each": lambda datum, rows: Robin(rows, -0.4, datum),
}
FIELDS: dict[str, Callable[[Any, Any], Any]] = {
    "diffusion": lambda grid, rows: Diffusion(grid, 0.2),
    "diffusion of each": lambda grid, rows: Diffusion(grid, rows / 10) + Reaction(grid, -rows),
    "D varies": lambda grid, rows: Diffusion(grid, lambda t, x: 0.1 + 0.1 * x) + Advection(grid, rows, "upwind3"),
    "system": lambda grid, rows: System(
        {"u": {"u": Diffusion(grid, 0.2), "v": Reaction(grid, 1.0)}, "v": {"u": Reaction(grid, -rows), "v": Diffusion(grid, rows / 10)}}
    ),
}
ROWS = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)


QUICK = [("function", "Slope", "imex3"), ("moving", "Robin of each", "backward_euler")]


@pytest.mark.parametrize(("way", "left", "method"), rows(WAYS, AT_THE_LEFT, METHODS_BETWEEN_WALLS, quick=QUICK))
def test_coefficients_and_data_per_field_between_walls(way: str, left: str, method: str) -> None:
    """A batch is its fields one by one, whatever the method, the datum and how it is given."""

    def equation(name: str, rows: Tensor) -> Any:
        return FIELDS[name](Grid1D(10, 1.0, (AT_THE_LEFT[left](WAYS[way](rows), rows), Value(0.2))), rows)

    run = lambda equation, u: odeint(equation, u, [0.0, 0.02], method=method, steps=2)[-1]
    for name in FIELDS:
        u0 = torch.rand(3, 2, 10, dtype=torch.float64) if name == "system" else torch.rand(3, 10, dtype=torch.float64)
        alone = [run(equation(name, ROWS[i]), u0[i]) for i in range(3)]
        torch.testing.assert_close(run(equation(name, ROWS), u0), torch.stack(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("way", "left"), rows(WAYS, AT_THE_LEFT, quick=4))
def test_matrices_and_closed_forms_of_fields_with_data_of_their_own(way: str, left: str) -> None:
    """They are those of each field alone; data that differ make no matrices that do not."""
    waves: dict[str, Callable[[Any, Any], Any]] = {
        "wave": lambda grid, rows: Wave(grid, 1.0),
        "waves of each": lambda grid, rows: Wave(Grid1D(10, 1.0, (grid.boundary.left, Absorbing())), rows),
    }

    def equation(name: str, rows: Tensor) -> Any:
        grid = Grid1D(10, 1.0, (AT_THE_LEFT[left](WAYS[way](rows), rows), Value(0.2)))
        return (FIELDS | waves)[name](grid, rows)

    for name in [*FIELDS, *waves]:
        together, alone = equation(name, ROWS), [equation(name, ROWS[i]) for i in range(3)]
        matrix, each = together.matrix(), torch.stack([one.matrix() for one in alone])
        assert matrix.ndim == (3 if "each" in name + left or name in ("system", "D varies") else 2)
        torch.testing.assert_close(matrix.expand_as(each), each, rtol=1e-12, atol=1e-9)
        assert together.max_stable_step("rk4") == pytest.approx(min(one.max_stable_step("rk4") for one in alone), rel=1e-3)
        if way == "tensor" and name != "D varies":
            u = torch.rand(3, 2, 10, dtype=torch.float64)
            state = u.unbind(1) if "wave" in name else u if name == "system" else u[:, 0]
            found = together.flow(state, [0.1])
            for i, one in enumerate(alone):
                wanted = one.flow(tuple(v[i] for v in state) if "wave" in name else state[i], [0.1])
                mine = tuple(v[0, i] for v in found) if "wave" in name else found[0, i]
                torch.testing.assert_close(mine, tuple(v[0] for v in wanted) if "wave" in name else wanted[0], rtol=1e-10, atol=1e-10)


def test_equal_grids_add_and_a_sum_flattens() -> None:
    first, second = (Diffusion(Grid1D(16), D) for D in (0.1, 0.2))
    total = sum([first, second, Advection(Grid1D(16, 1.0, Periodic()), 0.5)])
    u = torch.randn(16, dtype=torch.float64)
    assert isinstance(total, nn.Module)
    expected = first(ZERO, u) + second(ZERO, u) + Advection(Grid1D(16), 0.5)(ZERO, u)
    torch.testing.assert_close(total(ZERO, u), expected, rtol=1e-13, atol=1e-12)
    nested = (first + second) + (first + second)
    assert sum(isinstance(m, Diffusion) for m in nested.modules()) in (2, 4)  # each term once, shared modules are the same
    assert not any(type(m) is type(nested) for m in nested.modules() if m is not nested)


LEAVING = [("upwind1", "leftwards"), ("weno5", "rightwards")]


@pytest.mark.parametrize(("scheme", "way"), rows(["upwind1", "upwind3", "weno5"], ["rightwards", "leftwards"], quick=LEAVING))
def test_a_shock_of_burgers_leaves_and_the_field_behind_it_stays(scheme: str, way: str) -> None:
    """From 2 to 0 at x = 0.2, speed 1: it is gone at t = 0.8, whether the end where it leaves has data or none."""
    turned = way == "leftwards"
    for beyond in (None, 0.7):
        grid = Grid1D(50, 1.0, Dirichlet(None if beyond is None else -beyond, -2.0) if turned else Dirichlet(2.0, beyond))
        x = points(grid)
        u0 = torch.where(x > 0.8, -2.0, 0.0) if turned else torch.where(x < 0.2, 2.0, 0.0)
        u = odeint(Burgers(grid, 0.0, scheme), u0.double(), [0.0, 0.5, 1.5], method="ssprk3", steps=120)
        at = 1 - x if turned else x
        front = at[(u[1].abs() > 1).nonzero()].max().item()
        assert front == pytest.approx(0.7, abs=1.5 / 50)
        torch.testing.assert_close(u[2].abs(), torch.full_like(x, 2.0), rtol=0, atol=1e-6)


ENTERING = [("ssprk3", "weno5"), ("backward_euler", "upwind3"), ("ssprk3", "upwind3"), ("backward_euler", "upwind1")]


@pytest.mark.parametrize(("method", "scheme"), ENTERING)
def test_a_shock_of_burgers_enters_from_a_wall(method: str, scheme: str) -> None:
    """From a wall at 2 into a field of 0: speed 1, and 2^2 / 2 flows in per time. weno5 has no new extrema."""
    n, steps = (20, 20) if method == "ssprk3" else (10, 4)
    grid = Grid1D(n, 1.0, Dirichlet(2.0, None))
    u = odeint(Burgers(grid, 0.0, scheme), torch.zeros(n).double(), [0.0, 0.3], method=method, steps=steps, adjoint="direct")[-1]
    assert u.mean().item() == pytest.approx(0.6, rel=0.05 if n == 20 else 0.2)
    if scheme != "upwind3":
        assert u.max() < 2.01 and u.min() > -0.01


TAKEN = [("none", "upwind3"), ("unused", "central2"), ("one of two", "upwind3"), ("moving", "weno5")]


@pytest.mark.parametrize(
    ("data", "scheme"), rows(["none", "unused", "one of two", "moving"], ["upwind3", "weno5", "central2"], quick=TAKEN)
)
def test_burgers_takes_data_where_the_field_flows_in_and_no_other(scheme: str, data: str) -> None:
    """u = (x - 1/2) / (1 + t) leaves at both ends, -(x - 1/2) / (1 - t) enters there: straight lines, exact for every scheme."""
    entering = data == "moving"
    line = lambda t, x: -(x - 0.5) / (1 - t) if entering else (x - 0.5) / (1 + t)
    ends = {
        "none": Dirichlet(None, None),
        "unused": Dirichlet(0.3, -0.2),
        "one of two": Dirichlet(None, -0.2),
        "moving": Dirichlet(lambda t: line(t, 0.0), lambda t: line(t, 1.0)),
    }[data]
    grid = Grid1D(32, 1.0, ends)
    x = points(grid)
    u = odeint(Burgers(grid, 0.0, scheme), line(0.0, x), [0.0, 0.4], method="rk4", steps=100)[-1]
    middle = (x - 0.5).abs() < 0.1  # where both fluxes have their kink
    assert ((u - line(0.4, x)).abs() * ~middle).max() < 2e-4


def test_each_field_of_burgers_is_told_its_own_inflow() -> None:
    grid = Grid1D(16, 1.0, Dirichlet(torch.tensor([[1.0], [0.5]]).double(), 0.2))
    u = torch.stack([torch.ones(16), -torch.ones(16)]).double()
    du = Burgers(grid, 0.0, "upwind1")(ZERO, u)
    torch.testing.assert_close(du[0], torch.zeros(16).double())  # in at the left with 1, out at the right
    assert du[1, :-1].abs().max() == 0 and du[1, -1] > 0  # out at the left; at the right -1 against 0.2: it flows in
