"""A condition per end: closed boxes, what absorbing ends reflect, decay rates, stability of every pair, gradients, mistakes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import (
    Absorbing,
    Advection,
    Burgers,
    Closed,
    Diffusion,
    Dirichlet,
    Free,
    Grid1D,
    Neumann,
    Periodic,
    Robin,
    Slope,
    Source,
    Value,
    Walls,
    Wave,
)

CENTRAL = ("central2", "central4", "central6")
ZERO = torch.zeros((), dtype=torch.float64)
DIFFUSIVE: dict[str, Callable[[str], Any]] = {  # homogeneous, at the left or the right end
    "value": lambda end: Value(),
    "slope": lambda end: Slope(),
    "robin": lambda end: Robin(1.0, -0.3 if end == "left" else 0.3),
    "weak robin": lambda end: Robin(1.0, -20.0 if end == "left" else 20.0),
    "closed": lambda end: Closed(),
}
PAIRS = list(itertools.combinations_with_replacement(DIFFUSIVE, 2))


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


def pair(left: str, right: str) -> Any:
    return DIFFUSIVE[left]("left"), DIFFUSIVE[right]("right")


@pytest.mark.parametrize("scheme", CENTRAL)
@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_no_pair_of_conditions_makes_a_field_grow(left: str, right: str, scheme: str) -> None:
    for n, turned in itertools.product((10, 31, 64), (False, True)):
        matrix = Diffusion(Grid1D(n, 1.0, pair(right, left) if turned else pair(left, right)), 1.0, scheme).matrix()
        assert torch.linalg.eigvals(matrix).real.max() < 1e-10 * torch.linalg.matrix_norm(matrix, 2)


@pytest.mark.parametrize("scheme", CENTRAL)
@pytest.mark.parametrize("b", [0.05, 1.0, 10.0])
def test_the_slowest_mode_between_robin_walls_decays_as_it_should(b: float, scheme: str) -> None:
    """cos(k (x - 1/2)) with 1 = b k tan(k / 2), by scipy."""
    k: Any = brentq(lambda k: b * k * math.sin(k / 2) - math.cos(k / 2), 1e-6, math.pi)
    matrix = Diffusion(Grid1D(64, 1.0, (Robin(1.0, -b), Robin(1.0, b))), 1.0, scheme).matrix()
    rate = torch.linalg.eigvals(matrix).real.max().item()
    assert rate == pytest.approx(-(k**2), rel=2e-3 if scheme == "central2" else 1e-5)


@pytest.mark.parametrize("scheme", ["upwind1", "upwind3", "upwind5", "weno5", "central2", "central4"])
@pytest.mark.parametrize("where", ["both", "left", "right"])
def test_drift_and_diffusion_between_closed_walls_keep_their_mass(where: str, scheme: str) -> None:
    """Fokker and Planck's equation of a particle in a valley: the mass stays, the density becomes exp(-(1 - x)^2 / 2D)."""
    other = {"both": Closed(), "left": Slope(-1.0), "right": Slope(-1.0)}[where]
    grid = Grid1D(60, 2.0, (other, Closed()) if where == "right" else (Closed(), other))
    equation = Advection(grid, lambda t, x: 1 - x, scheme, conservative=True) + Diffusion(grid, 0.1)
    x, u = points(grid), torch.rand(3, 60, dtype=torch.float64)
    change = equation(ZERO, u).sum(-1) / equation(ZERO, u).abs().sum(-1)
    if where != "both":
        assert change.abs().min() > 1e-7
        return
    assert change.abs().max() < 1e-13
    if scheme == "weno5":
        return
    unit = torch.cat([torch.zeros_like(x), x.new_tensor([60.0])])
    steady = torch.linalg.lstsq(torch.cat([equation.matrix(), x.new_ones(1, 60)]), unit[:, None]).solution[:, 0]
    exact = torch.exp(-((1 - x) ** 2) / 0.2)
    assert (steady - exact * 60 / exact.sum()).abs().max() < (0.3 if scheme == "upwind1" else 0.01)


@pytest.mark.parametrize("make", [lambda g: Burgers(g, 0.01), lambda g: Burgers(g, 0.0), lambda g: Advection(g, 0.7, "upwind3")])
def test_what_runs_into_a_closed_end_stays_there(make: Callable[[Grid1D], Any]) -> None:
    grid = Grid1D(64, 1.0, (Closed(), Closed()))
    equation = make(grid)
    u0 = torch.exp(-(((points(grid) - 0.5) / 0.1) ** 2))
    du = equation(ZERO, u0)
    assert abs(du.sum().item()) < 1e-13 * du.abs().sum().item()
    u = odeint(equation, u0, [0.0, 0.6], method="ssprk3", steps=80)[-1]
    assert u.sum().item() == pytest.approx(u0.sum().item(), rel=1e-12) and u[32:].sum() > 0.7 * u0.sum()


@pytest.mark.parametrize("scheme", CENTRAL)
@pytest.mark.parametrize("ends", ["both", "left", "right"])
def test_a_pulse_leaves_through_an_absorbing_end(ends: str, scheme: str) -> None:
    """Less than 1 % of its height comes back, less still on a finer grid; no mode grows."""
    made = {"both": (Absorbing(), Absorbing()), "left": (Absorbing(), Slope()), "right": (Value(), Absorbing())}[ends]
    remains = []
    for n in (64, 128):
        grid = Grid1D(n, 1.0, made)
        wave, x = Wave(grid, 1.3, scheme), points(grid)
        eigenvalues = torch.linalg.eigvals(wave.matrix())
        assert eigenvalues.real.max() < 1e-10 * eigenvalues.abs().max()
        u, direction = torch.exp(-(((x - 0.5) / 0.06) ** 2)), 1 if ends == "left" else -1
        v = direction * 1.3 * (-2 * (x - 0.5) / 0.06**2 * u)
        steps = math.ceil(1 / 1.3 / wave.max_stable_step("rk4") / 0.6)
        with torch.no_grad():
            remains.append(odeint(wave, (u, v), [0.0, 1 / 1.3], method="rk4", steps=steps)[0][-1].abs().max().item())
    assert remains[0] < 1.1e-2 and remains[1] < 2e-3


def test_the_flow_of_a_wave_with_an_absorbing_end_is_that_of_fine_steps() -> None:
    speed = torch.tensor([[0.9], [1.4]], dtype=torch.float64)
    wave = Wave(Grid1D(16, 1.0, (Value(0.3), Absorbing())), speed)
    state = (torch.rand(2, 16, dtype=torch.float64), torch.rand(2, 16, dtype=torch.float64))
    flow = wave.flow(state, [0.0, 0.3])
    stepped = odeint(wave, state, [0.0, 0.3], method="rk4", steps=400)
    assert flow is not None
    for ours, fine in zip(flow, stepped, strict=True):
        torch.testing.assert_close(ours, fine, rtol=0, atol=5e-6)
    with pytest.raises(ValueError, match="leapfrog"):
        odeint(wave, state, [0.0, 0.1], method="leapfrog", steps=10)


MADE: dict[str, Callable[[Tensor], Any]] = {  # by three numbers
    "values": lambda p: (Value(p[0]), Value(p[1])),
    "value, slope": lambda p: (Value(p[0]), Slope(p[1])),
    "robin": lambda p: (Robin(1.0 + p[0] ** 2, -1.0, p[1]), Robin(0.7, 1.0 + p[2] ** 2, p[0])),
    "of t": lambda p: (Value(lambda t: p[0] * torch.cos(t)), Slope(lambda t: p[1] + t * p[2])),
    "of u": lambda p: (Slope(lambda t, u: p[0] * u**2), Robin(1.0, 0.5, lambda t, u: p[1] * torch.sin(u) + p[2])),
    "closed": lambda p: (Closed(), Slope(p[0])),
}


@pytest.mark.parametrize("method", ["rk4", "imex2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("etdrk4", "backward_euler"))])
@pytest.mark.parametrize("name", MADE)
def test_gradients_in_the_data_of_every_condition(name: str, method: str) -> None:
    """Against central differences."""
    u0 = torch.rand(2, 8, dtype=torch.float64)

    def loss(p: Tensor) -> Tensor:
        end = odeint(Diffusion(Grid1D(8, 1.0, MADE[name](p)), 0.4), u0, [0.0, 0.05], method=method, steps=12, adjoint="direct")[-1]
        return (end.square() * torch.linspace(-1, 2, 8, dtype=torch.float64)).sum()

    p = torch.tensor([0.4, -0.3, 0.6], dtype=torch.float64, requires_grad=True)
    g = torch.autograd.grad(loss(p), p)[0]
    for i in range(3):
        unit = 1e-5 * torch.eye(3, dtype=torch.float64)[i]
        assert g[i].item() == pytest.approx((loss(p + unit) - loss(p - unit)).item() / 2e-5, abs=2e-8)
    assert g.abs().max() > 1e-4


@pytest.mark.parametrize("name", MADE)
def test_the_parts_of_a_split_add_up_whatever_the_conditions(name: str) -> None:
    grid = Grid1D(9, 1.0, MADE[name](torch.tensor([0.4, -0.3, 0.6], dtype=torch.float64)))
    equation: Any = Diffusion(grid, 0.4) + Source(grid, lambda t, x, u: -(u**3))
    linear, data, rest = equation.split()
    u, t = torch.randn(2, 9, dtype=torch.float64), ZERO + 0.4
    torch.testing.assert_close(linear(u) + data(t, u) + rest(t, u), equation(t, u), rtol=0, atol=1e-10)
    assert torch.equal(data(t, u), data(t, 3 * u))


def test_a_wall_that_cools_by_radiation_takes_all_methods_to_the_same_field() -> None:
    """du/dx = -u^4 at the right: a condition of the field, in the rest of a split; implicit methods solve for it."""
    equation = Diffusion(Grid1D(12, 1.0, (Value(1.0), Slope(lambda t, u: -(u**4)))), 0.5)
    u0 = torch.ones(12, dtype=torch.float64)
    right = odeint(equation, u0, [0.0, 0.4], method="rk4", steps=400, adjoint="direct")[-1]
    for method in ("imex2", "etdrk4", "implicit_midpoint"):
        torch.testing.assert_close(odeint(equation, u0, [0.0, 0.4], method=method, steps=40)[-1], right, rtol=0, atol=5e-4)
    assert equation.flow(u0, [0.1]) is None
    steady = odeint(equation, u0, [0.0, 20.0], method="backward_euler", steps=12)[-1]
    a: Any = brentq(lambda a: a - (1 - a) ** 4, 0.0, 1.0)  # the line 1 - a x
    torch.testing.assert_close(steady, 1 - a * points(equation.grid), rtol=0, atol=3e-4)


def test_data_per_field_are_those_of_each_alone() -> None:
    a, b, c = (torch.tensor(rows, dtype=torch.float64)[:, None] for rows in ([1.0, 0.5], [-0.3, -1.0], [0.2, 0.7]))
    u = torch.rand(2, 10, dtype=torch.float64)
    together = Diffusion(Grid1D(10, 1.0, (Robin(a, b, c), Slope(c))), 0.3)
    for i in range(2):
        alone = Diffusion(Grid1D(10, 1.0, (Robin(a[i].item(), b[i].item(), c[i].item()), Slope(c[i].item()))), 0.3)
        torch.testing.assert_close(together(ZERO, u)[i], alone(ZERO, u[i]), rtol=1e-13, atol=1e-12)
        torch.testing.assert_close(together.matrix()[i], alone.matrix(), rtol=1e-13, atol=1e-12)


def test_pairs_are_their_short_forms_and_parameters_are_found() -> None:
    assert Grid1D(8, 1.0, (Value(1.0), Value(2.0))) == Grid1D(8, 1.0, Dirichlet(1.0, 2.0))
    assert Grid1D(8, 1.0, (Slope(), Slope(0.5))).boundary == Neumann(0.0, 0.5) != Dirichlet(0.0, 0.5)
    assert Walls(Value(1.0), Free()) == Dirichlet(1.0, None) and Walls(Value(), Closed()) != Walls(Closed(), Value())
    mixed = Grid1D(8, 1.0, (Value(1.0), Slope(0.5)))
    for left, right in ((Dirichlet(1.0), Neumann(0.5)), (Dirichlet(1.0), Neumann(right=0.5)), (Dirichlet(1.0, 3.0), Neumann(2.0, 0.5))):
        assert Grid1D(8, 1.0, (left, right)) == mixed
    assert Grid1D(8, 1.0, (Dirichlet(), Neumann())) == Grid1D(8, 1.0, (Value(), Slope()))
    assert Grid1D(8, 1.0, (Dirichlet(1.0), Dirichlet(2.0))).boundary == Dirichlet(1.0, 2.0)
    assert Grid1D(8, 1.0, (Value(2.0), Dirichlet(None))).boundary == Dirichlet(2.0, None)
    assert Walls(Closed(), Neumann(2.0)) == Walls(Closed(), Slope(2.0)) and repr(Dirichlet()) == "Dirichlet(left=0.0, right=0.0)"
    assert Grid1D(8, 1.0, (Value(), Robin(1.0, 2.0))) != Grid1D(8, 1.0, (Value(), Robin(1.0, 3.0))) and Periodic() != Dirichlet()
    a, slope = nn.Parameter(torch.tensor(1.0)), nn.Linear(1, 1)
    found = list(Diffusion(Grid1D(8, 1.0, (Robin(a, -1.0), Slope(slope))), 1.0).parameters())
    assert {id(p) for p in found} == {id(p) for p in (a, *slope.parameters())}
    assert Diffusion(Grid1D(8, 1.0, (Value(0.0), Slope(0.0))), 1.0, "central4").second.wall_order == 2


def grid(left: Any, right: Any) -> Grid1D:
    return Grid1D(16, 1.0, (left, right))


ONES = torch.ones(16, dtype=torch.float64)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a number as an end": (lambda: grid(1.0, Neumann(0.0)), r"left end, 1\.0.*Value"),  # pyright: ignore[reportArgumentType]
    "a circle as an end": (lambda: grid(Value(), Periodic()), r"right end.*Value"),  # pyright: ignore[reportArgumentType]
    "a number in a pair": (lambda: grid(Value(), 0.0), "right end.*must be a condition"),
    "a pair of three": (lambda: Grid1D(8, 1.0, (Value(), Value(), Value())), "boundary=.*pair"),  # pyright: ignore[reportArgumentType]
    "nothing given": (lambda: Robin(0.0, 0.0, 1.0), "a=0.0 and b=0.0"),
    "a function as a": (lambda: Robin(lambda t: t, 1.0), "a=.*a number or a tensor"),  # pyright: ignore[reportArgumentType]
    "a word": (lambda: Slope("steep"), "slope='steep'"),  # pyright: ignore[reportArgumentType]
    "not finite": (lambda: Value(math.nan), "value=nan must be finite"),
    "not finite at the left": (lambda: Dirichlet(math.inf, 0.0), "left=inf must be finite"),
    "one per field without an axis": (lambda: Robin(1.0, 2.0, torch.ones(3)), r"c of shape \(3,\)"),
    "diffusion through nothing": (lambda: Diffusion(grid(Value(), Free()), 1.0), "Diffusion needs data at both ends, right"),
    "a wave through nothing": (lambda: Wave(grid(Free(), Value()), 1.0), "Wave needs data at both ends, left"),
    "a closed wave": (lambda: Wave(grid(Closed(), Value()), 1.0), r"Closed\(\).*left.*Slope\(\)"),
    "absorbed heat": (lambda: Diffusion(grid(Value(), Absorbing()), 1.0), "Absorbing.*right.*Wave"),
    "absorbed drift": (lambda: Advection(grid(Value(), Absorbing()), 1.0), "Absorbing.*right.*Free"),
    "absorbed Burgers": (lambda: Burgers(grid(Value(), Absorbing())), "Absorbing.*right.*Free"),
    "drift without a flux": (lambda: Advection(grid(Closed(), Closed()), lambda t, x: x), "Closed.*left.*conservative=True"),
    "no inflow": (lambda: Advection(grid(Free(), Free()), 1.0), "flows in at the left end.*Value"),
    "a slope where it leaves": (lambda: Advection(grid(Value(), Robin(1.0, 1.0)), 1.0)(ZERO, ONES), "flows out at the right end.*Free"),
    "a series of Robin": (lambda: Diffusion(grid(Value(), Robin(1.0, 1.0)), 1.0).exact(1.0, ONES), "between two values or two slopes"),
    "a series of a wave that leaves": (lambda: Wave(grid(Value(), Absorbing()), 1.0).exact(1.0, (ONES, ONES)), "two values or two slopes"),
    "few points": (lambda: Diffusion(Grid1D(3, 1.0, (Robin(1.0, 1.0), Value())), 1.0, "central6")(ZERO, ONES[:3]), "too few between walls"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
