"""Equations against their exact solutions, closed-form flows against fine stepping, splits, dtypes, batches, compilation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import FourierOperator, odeint
from anodev2.pde import Advection, AdvectionDiffusionReaction, Burgers, Diffusion, Dirichlet, Grid1D, Neumann, Wave
from anodev2.testing import observed_order
from problems import points

ZERO = torch.zeros((), dtype=torch.float64)
L = 2.0
TIMES = [0.0, 0.3, 0.8]


def smooth(x: Tensor) -> Tensor:
    """Periodic over L, band-limited to three modes."""
    return 0.2 + torch.sin(math.pi * x + 0.3) + 0.5 * torch.cos(2 * math.pi * x) + 0.2 * torch.sin(3 * math.pi * x)


def fine(equation: Any, u0: Any, times: list[float] = TIMES, steps: int = 60) -> Any:
    with torch.no_grad():
        return odeint(equation, u0, times, method="dopri8", steps=steps)


def close(found: Any, expected: Any, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


PERIODIC: dict[str, Callable[[Grid1D], Any]] = {
    **{
        f"advection {s} {c:+}": lambda g, s=s, c=c: Advection(g, c, s)
        for s in ("upwind1", "central2", "upwind3", "central4", "upwind5", "central6", "spectral")
        for c in (0.7, -0.7)
    },
    **{f"diffusion {s}": lambda g, s=s: Diffusion(g, 0.05, s) for s in ("central2", "central4", "central6", "spectral")},
    "all three": lambda g: AdvectionDiffusionReaction(g, 0.04, -0.6, 0.3),
    "conservative": lambda g: Advection(g, 0.7, "upwind3", conservative=True) + Diffusion(g, 0.02),
    "a sum": lambda g: Advection(g, 0.5, "spectral") + Diffusion(g, 0.03, "central4") + AdvectionDiffusionReaction(g, reaction=-0.4),
}


@pytest.mark.parametrize(("name", "n"), [*((name, 24) for name in PERIODIC), ("advection spectral +0.7", 25), ("all three", 25)])
def test_the_flow_is_the_semi_discrete_solution(name: str, n: int) -> None:
    equation = PERIODIC[name](Grid1D(n, L))
    u0 = torch.randn(2, n, dtype=torch.float64)
    flow = equation.flow(u0, TIMES)
    assert flow.shape == (3, 2, n) and torch.equal(flow[0], u0)
    close(flow, fine(equation, u0), 1e-10)
    assert (flow[-1] - u0).abs().max() > 0.05


@pytest.mark.parametrize("n", [24, 25])
@pytest.mark.parametrize("scheme", ["central2", "central6", "spectral"])
def test_the_flow_of_the_wave(scheme: str, n: int) -> None:
    """A pair in, a pair out, and a mean that moves at constant speed."""
    wave = Wave(Grid1D(n, L), 0.9, scheme)
    pair = (torch.randn(2, n, dtype=torch.float64), torch.randn(2, n, dtype=torch.float64))
    flow: Any = wave.flow(pair, TIMES)
    assert all(torch.equal(found[0], start) for found, start in zip(flow, pair, strict=True))
    for found, expected in zip(flow, fine(wave, pair, steps=100), strict=True):
        close(found, expected, 1e-10)
    close(flow[0][-1].mean(-1), pair[0].mean(-1) + 0.8 * pair[1].mean(-1), 1e-12)


WALLED: dict[str, Callable[[], Any]] = {
    "dirichlet": lambda: Diffusion(Grid1D(16, L, Dirichlet(0.4, -0.3)), 0.1, "central4"),
    "neumann": lambda: Diffusion(Grid1D(16, L, Neumann(0.4, -0.3)), 0.1),
    "inflow": lambda: Advection(Grid1D(16, L, Dirichlet(0.4, None)), 0.7, "upwind3"),
    "inflow from the right": lambda: Advection(Grid1D(16, L, Dirichlet(None, -0.4)), -0.7, "upwind5"),
    "all three": lambda: AdvectionDiffusionReaction(Grid1D(16, L, Dirichlet(0.4, -0.3)), 0.1, 0.5, 0.2),
}


@pytest.mark.parametrize("name", WALLED)
def test_the_flow_between_walls(name: str) -> None:
    equation = WALLED[name]()
    u0 = torch.randn(2, 16, dtype=torch.float64)
    flow = equation.flow(u0, TIMES)
    assert torch.equal(flow[0], u0)
    close(flow, fine(equation, u0), 1e-10)


@pytest.mark.parametrize("boundary", [Dirichlet(0.4, -0.3), Neumann(0.4, -0.3)])
def test_the_flow_of_the_wave_between_walls(boundary: Any) -> None:
    wave = Wave(Grid1D(16, L, boundary), 0.9)
    pair = (torch.randn(2, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64))
    flow: Any = wave.flow(pair, TIMES)
    for found, expected in zip(flow, fine(wave, pair, steps=100), strict=True):
        close(found, expected, 1e-10)


def test_there_is_no_flow_where_there_is_no_closed_form() -> None:
    grid, u = Grid1D(16, L), torch.ones(16, dtype=torch.float64)
    moving = Grid1D(16, L, Dirichlet(lambda t: t, 0.0))
    cases = [
        Advection(grid, 0.5, "weno5"),
        Advection(grid, lambda t, x: t + x),
        Diffusion(grid, torch.linspace(1, 2, 16).double()),
        Burgers(grid, 0.1),
        Diffusion(moving, 0.1),
        AdvectionDiffusionReaction(grid, 0.1, source=lambda t, x, u: u**2),
        Diffusion(grid, 0.1) + Burgers(grid, 0.1),
    ]
    for case in cases:
        assert case.flow(u, TIMES) is None
    assert Wave(grid, lambda t, x: 1 + x).flow((u, u), TIMES) is None


def test_flow_from_float_times_agrees_with_its_own_composition() -> None:
    equation = PERIODIC["a sum"](Grid1D(24, L))
    u0 = torch.randn(24, dtype=torch.float64)
    halfway = equation.flow(u0, [0.4])[-1]
    close(equation.flow(halfway, [0.4])[-1], equation.flow(u0, [0.8])[-1], 1e-13)


# exact solutions of the differential equations


def test_exact_advection_moves_the_field() -> None:
    grid = Grid1D(24, L)
    x = points(grid)
    for c in (0.7, -0.7):
        equation = Advection(grid, c, "upwind3")
        close(equation.exact(0.9, smooth(x)), smooth(x - c * 0.9), 1e-12)
        close(fine(Advection(grid, c), smooth(x), [0.0, 0.9])[-1], equation.exact(0.9, smooth(x)), 1e-10)


def test_exact_advection_takes_a_function() -> None:
    grid = Grid1D(24, L)
    close(Advection(grid, -0.7).exact(0.9, smooth), smooth(points(grid) + 0.63), 1e-12)


def test_exact_diffusion_damps_each_mode() -> None:
    grid = Grid1D(25, L)
    x = points(grid)
    equation = Diffusion(grid, 0.05)
    modes = [(k, lambda x, k=k: torch.sin(k * x + 0.3)) for k in (0.0, math.pi, 3 * math.pi)]
    u0 = sum(mode(x) for _, mode in modes)
    expected = sum(math.exp(-0.05 * k**2 * 0.8) * mode(x) for k, mode in modes)
    close(equation.exact(0.8, u0), expected, 1e-12)


def test_exact_reaction_diffusion_advection() -> None:
    grid = Grid1D(24, L)
    x = points(grid)
    equation = AdvectionDiffusionReaction(grid, 0.04, -0.6, 0.3)
    u0 = 1 + torch.sin(math.pi * x)
    expected = math.exp(0.3 * 0.8) * (1 + math.exp(-0.04 * math.pi**2 * 0.8) * torch.sin(math.pi * (x + 0.6 * 0.8)))
    close(equation.exact(0.8, u0), expected, 1e-12)


def test_exact_wave_is_dalemberts() -> None:
    grid = Grid1D(24, L)
    x = points(grid)
    u, v = Wave(grid, 0.9).exact(0.8, (smooth(x), torch.cos(math.pi * x)))
    forward, back = x + 0.72, x - 0.72
    moved = (smooth(forward) + smooth(back)) / 2 + (torch.sin(math.pi * forward) - torch.sin(math.pi * back)) / (2 * 0.9 * math.pi)
    close(u, moved, 1e-12)
    fine_u, fine_v = fine(Wave(grid, 0.9, "spectral"), (smooth(x), torch.cos(math.pi * x)), [0.0, 0.8])
    close(u, fine_u[-1], 1e-10)
    close(v, fine_v[-1], 1e-9)


@pytest.mark.parametrize("kind", ["dirichlet", "neumann"])
def test_exact_diffusion_between_walls(kind: str) -> None:
    """A straight line between the walls' values, or a constant, and two modes that fade."""
    k = math.pi / L
    if kind == "dirichlet":
        boundary, rest, mode = Dirichlet(0.4, -0.3), (lambda x: 0.4 - 0.7 * x / L), torch.sin
    else:
        boundary, rest, mode = Neumann(), (lambda x: 0.4 + 0 * x), torch.cos
    grid = Grid1D(20, L, boundary)
    x = points(grid)
    at = lambda t: rest(x) + sum(a * math.exp(-0.1 * (m * k) ** 2 * t) * mode(m * k * x) for m, a in ((1, 0.8), (4, 0.5)))
    close(Diffusion(grid, 0.1).exact(0.6, at(0.0)), at(0.6), 1e-12)


@pytest.mark.parametrize("kind", ["dirichlet", "neumann"])
def test_exact_between_walls_is_what_fine_grids_tend_to(kind: str) -> None:
    boundary = Dirichlet(0.4, -0.3) if kind == "dirichlet" else Neumann()

    def error(n: int) -> float:
        grid = Grid1D(n, L, boundary)
        x = points(grid) / L
        u0 = 0.4 - 0.7 * x + x**2 * (1 - x) ** 2 * 16 if kind == "dirichlet" else x**2 * (3 - 2 * x)
        equation = Diffusion(grid, 0.1)
        flow: Any = equation.flow(u0, [0.6])
        return (equation.exact(0.6, u0) - flow[0]).abs().max().item()

    assert error(64) < 1e-3
    assert observed_order(error, (32, 64)) == pytest.approx(2, abs=0.15)


def test_exact_burgers_is_the_cole_hopf_solution() -> None:
    grid, nu = Grid1D(64, L), 0.05
    equation = Burgers(grid, nu, "spectral", "spectral")
    for mode in (1, 2):
        at = [equation.exact(t, 0.6, mode=mode) for t in (0.0, 0.5)]
        k, x = 2 * math.pi * mode / L, points(grid)
        phi = lambda t, x=x, k=k: 1 + 0.6 * math.exp(-nu * k**2 * t) * torch.cos(k * x)
        slope = lambda t, x=x, k=k: -0.6 * k * math.exp(-nu * k**2 * t) * torch.sin(k * x)
        close(at[0], -2 * nu * slope(0.0) / phi(0.0), 1e-13)
        close(fine(equation, -2 * nu * slope(0.0) / phi(0.0), [0.0, 0.5])[-1], -2 * nu * slope(0.5) / phi(0.5), 1e-8)
        close(at[1], -2 * nu * slope(0.5) / phi(0.5), 1e-13)


INVISCID = {"upwind1": 1, "central2": 2, "upwind3": 3, "central4": 4, "upwind5": 5, "central6": 6, "weno5": 5}


@pytest.mark.parametrize("shift", [1.5, -1.5])
@pytest.mark.parametrize("scheme", INVISCID)
def test_the_flux_of_burgers_has_the_order_of_its_scheme(scheme: str, shift: float) -> None:
    """-d(u^2/2)/dx = -u du/dx of a field that keeps its sign."""

    def error(n: int) -> float:
        x = math.pi * points(Grid1D(n, L))
        u, slope = shift + torch.sin(x), math.pi * torch.cos(x)
        return (Burgers(Grid1D(n, L), 0.0, scheme)(ZERO, u) + u * slope).abs().mean().item()

    order = INVISCID[scheme]
    assert observed_order(error, (64, 128)) == pytest.approx(order, abs=0.15)


def test_burgers_converges_to_the_cole_hopf_solution() -> None:
    nu, k = 0.05, 2 * math.pi / L
    field = lambda x, t: 2 * nu * k * (a := 0.6 * math.exp(-nu * k**2 * t)) * torch.sin(k * x) / (1 + a * torch.cos(k * x))

    def error(n: int) -> float:
        grid = Grid1D(n, L)
        x = points(grid)
        return (odeint(Burgers(grid, nu), field(x, 0.0), [0.0, 0.5], steps=80)[-1] - field(x, 0.5)).abs().max().item()

    assert error(64) < 1e-3
    assert observed_order(error, (32, 64)) > 1.7


@pytest.mark.parametrize("scheme", ["upwind1", "upwind3", "upwind5", "weno5", "central2", "central4", "central6", "spectral"])
def test_burgers_keeps_mass_and_has_no_preferred_direction(scheme: str) -> None:
    grid = Grid1D(40, L)
    u = torch.randn(3, 40, dtype=torch.float64)
    du = Burgers(grid, 0.02, scheme)(ZERO, u)
    assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-14
    torch.testing.assert_close(Burgers(grid, 0.02, scheme)(ZERO, -u.flip(-1)).flip(-1), -du, rtol=1e-11, atol=1e-9)


def test_a_shock_of_burgers_travels_at_the_mean_of_its_sides() -> None:
    """u = 1 to the left, 0 to the right: speed 1/2 (Rankine, Hugoniot); a fan keeps the mass of the other edge."""
    grid = Grid1D(80, 4.0)
    x = points(grid)
    u0 = ((x > 0.5) & (x < 2.0)).double()
    u = odeint(Burgers(grid, 0.0, "weno5"), u0, [0.0, 1.0], method="ssprk3", steps=100)[-1]
    front = x[(u > 0.5).nonzero().max()] + grid.spacing / 2
    assert abs(front.item() - 2.5) < 1.5 * grid.spacing
    fan = (x > 0.7) & (x < 1.3)
    assert (u[fan] - (x[fan] - 0.5)).abs().max() < 0.05


# symbols, matrices, splits


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("name", PERIODIC)
def test_symbols_are_the_eigenvalues_of_the_matrix(name: str, n: int) -> None:
    grid = Grid1D(n, L)
    equation = PERIODIC[name](grid)
    k = torch.fft.rfftfreq(n, d=grid.spacing, dtype=torch.float64) * 2 * math.pi
    waves = torch.exp(1j * k[:, None] * points(grid))
    torch.testing.assert_close(waves @ equation.matrix().to(waves.dtype).mT, equation.symbol(k)[:, None] * waves, rtol=1e-11, atol=1e-10)
    u = torch.randn(2, n, dtype=torch.float64)
    close(u @ equation.matrix().mT, equation(ZERO, u), 1e-10)


def test_exact_symbols() -> None:
    grid, k = Grid1D(16, L), torch.tensor([0.0, 1.0, -2.5]).double()
    all_three = AdvectionDiffusionReaction(grid, 0.04, -0.6, 0.3)
    torch.testing.assert_close(all_three.exact_symbol(k), torch.complex(0.3 - 0.04 * k**2, 0.6 * k))
    torch.testing.assert_close(all_three.symbol(0.01 * k), all_three.exact_symbol(0.01 * k), rtol=1e-3, atol=1e-6)
    pair = Wave(grid, 0.9).exact_symbol(k)
    assert pair.shape == (2, 3)
    torch.testing.assert_close(pair.imag.sort(0).values, torch.stack([-0.9 * k.abs(), 0.9 * k.abs()]))
    assert pair.real.abs().max() == 0


@pytest.mark.parametrize("boundary", [None, Dirichlet(), Neumann()])
def test_the_matrix_and_symbol_of_the_wave(boundary: Any) -> None:
    grid = Grid1D(12, L) if boundary is None else Grid1D(12, L, boundary)
    wave = Wave(grid, 0.9, "central4")
    u, v = torch.randn(2, 12, dtype=torch.float64)
    close(wave.matrix() @ torch.cat([u, v]), torch.cat(wave(ZERO, (u, v))), 1e-11)
    if boundary is None:
        k = torch.fft.fftfreq(12, d=grid.spacing, dtype=torch.float64) * 2 * math.pi
        squares = torch.linalg.eigvals(wave.matrix()).square().real.sort().values
        close(wave.symbol(k).square().real.flatten().sort().values, squares, 1e-6)


def test_the_matrix_of_burgers_is_its_jacobian() -> None:
    for grid, scheme in ((Grid1D(14, L), "upwind3"), (Grid1D(14, L), "central4"), (Grid1D(14, L, Dirichlet(0.3, -0.2)), "upwind3")):
        equation = Burgers(grid, 0.1, scheme)
        u = torch.rand(14, dtype=torch.float64) + 0.2
        jacobian = torch.autograd.functional.jacobian(lambda u, e=equation: e(ZERO, u), u)
        close(equation.matrix(u), jacobian, 1e-10)


SPLIT: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: PERIODIC[name](Grid1D(16, L)) for name in ("advection upwind3 -0.7", "advection spectral +0.7", "a sum")},
    **WALLED,
    "burgers": lambda: Burgers(Grid1D(16, L), 0.1),
    "burgers between walls": lambda: Burgers(Grid1D(16, L, Dirichlet(0.3, -0.2)), 0.1, "upwind3"),
    "weno5": lambda: Advection(Grid1D(16, L), 0.8, "weno5") + Diffusion(Grid1D(16, L), 0.1),
    "varying": lambda: Diffusion(Grid1D(16, L), lambda t, x: 0.1 + t + 0.1 * x**2) + Advection(Grid1D(16, L), 0.3),
    "source": lambda: AdvectionDiffusionReaction(Grid1D(16, L), 0.1, 0.3, -0.2, lambda t, x, u: t + x * u**2),
    "moving data": lambda: Diffusion(Grid1D(16, L, Neumann(lambda t: t, 0.2)), 0.1),
}


@pytest.mark.parametrize("name", SPLIT)
def test_the_parts_of_a_split_add_up(name: str) -> None:
    equation = SPLIT[name]()
    linear, *data, rest = equation.split()
    u, t = torch.randn(2, 16, dtype=torch.float64), ZERO + 0.4
    periodic = equation.grid.boundary.__class__.__name__ == "Periodic"
    assert isinstance(linear, FourierOperator) == periodic
    part = linear(u)
    assert len(data) == (0 if periodic else 1)
    close(sum((given(t, u) for given in data), part + rest(t, u)), equation(t, u), 1e-10)
    others = {"burgers", "burgers between walls", "weno5", "varying", "source"}
    if name not in others and periodic:
        assert rest(t, u).abs().max() == 0
    assert part.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["advection upwind3 -0.7", "a sum", "dirichlet", "inflow"])
def test_one_step_of_exponential_euler_is_the_flow(name: str) -> None:
    """Boundary data are constant in time, so they too are taken exactly."""
    equation, u0 = SPLIT[name](), torch.randn(2, 16, dtype=torch.float64)
    close(odeint(equation, u0, [0.0, 0.7], method="exponential_euler", steps=1)[-1], equation.flow(u0, [0.7])[0], 1e-11)


@pytest.mark.parametrize("name", ["burgers", "source", "moving data", "varying"])
def test_etdrk4_agrees_with_fine_stepping(name: str) -> None:
    equation = SPLIT[name]()
    u0 = 0.5 + 0.3 * torch.sin(math.pi * points(equation.grid))
    found = odeint(equation, u0, [0.0, 0.2], method="etdrk4", steps=100)[-1]
    close(found, fine(equation, u0, [0.0, 0.2])[-1], 1e-8)


def test_a_split_follows_a_learned_coefficient() -> None:
    """What is cached must not outlive an optimizer's step."""
    D = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    equation: Any = Diffusion(Grid1D(16, L), D)
    u = torch.randn(16, dtype=torch.float64)
    for value in (0.1, 0.3):
        with torch.no_grad():
            D.fill_(value)
            close(equation.split()[0](u), Diffusion(Grid1D(16, L), value)(ZERO, u), 1e-12)
    equation.split()[0](u).square().sum().backward()
    assert D.grad is not None and D.grad != 0
    D.requires_grad_(False)
    for value in (0.2, 0.5):
        D.fill_(value)
        close(equation.split()[0](u), Diffusion(Grid1D(16, L), value)(ZERO, u), 1e-12)


@pytest.mark.parametrize("boundary", [Dirichlet(), None], ids=["walls", "periodic"])
@pytest.mark.parametrize("shape", [(), (16,)], ids=["number", "field"])
def test_a_diffusivity_that_is_learned_below_zero_counts_as_zero(shape: tuple[int, ...], boundary: Any) -> None:
    """Nothing grows, closed forms and symbols agree, and it has no gradient; set to 0, it has that from which it may rise."""
    grid = Grid1D(16, L) if boundary is None else Grid1D(16, L, boundary)
    D = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    equation, u = Diffusion(grid, D), torch.randn(16, dtype=torch.float64)
    loss = lambda: (odeint(equation, u, [0.0, 0.1], steps=4)[-1] * torch.linspace(0, 1, 16, dtype=torch.float64)).sum()
    (at_zero,) = torch.autograd.grad(loss(), D)
    with torch.no_grad():
        D.sub_(0.2)
    (below,) = torch.autograd.grad(loss(), D)
    assert torch.equal(below, torch.zeros_like(below)) and (bool(at_zero.abs().sum() > 0) or bool(shape))
    assert torch.equal(equation(ZERO, u), torch.zeros_like(u)) and equation.max_stable_step("rk4") == math.inf
    if not shape:
        assert torch.equal(equation.flow(u, [0.5])[0], u)  # pyright: ignore[reportOptionalSubscript]
        if boundary is None:
            assert equation.symbol(torch.ones(1).double()) == 0


def test_functions_that_return_a_negative_diffusivity_count_as_zero() -> None:
    u, x = torch.randn(16, dtype=torch.float64), points(Grid1D(16, L))
    found = Diffusion(Grid1D(16, L), lambda t, x: torch.where(x < 1, -1.0, 1.0).to(x))(ZERO, u)
    close(found, Diffusion(Grid1D(16, L), torch.where(x < 1, 0.0, 1.0).double())(ZERO, u), 1e-12)


# dtypes, batches, compilation

KINDS: dict[str, Callable[[], Any]] = {
    **{f"advection {s}": lambda s=s: Advection(Grid1D(16), 0.7, s) for s in ("upwind3", "weno5", "spectral")},
    "advection by a field": lambda: Advection(Grid1D(16), torch.linspace(-1, 1, 16), "upwind5", conservative=True),
    "advection by a function": lambda: Advection(Grid1D(16), lambda t, x: t - x, "weno5"),
    "advection by a parameter": lambda: Advection(Grid1D(16), nn.Parameter(torch.tensor(0.4)), "upwind3"),
    "inflow": lambda: Advection(Grid1D(16, 1.0, Dirichlet(0.3, None)), 0.7),
    "diffusion": lambda: Diffusion(Grid1D(16), 0.3, "central4"),
    "diffusion between walls": lambda: Diffusion(Grid1D(16, 1.0, Neumann(0.1, lambda t: t)), lambda t, x: 1 + x),
    "all three": lambda: AdvectionDiffusionReaction(Grid1D(16), 0.1, 0.2, 0.3, lambda t, x, u: x * u.square()),
    "burgers": lambda: Burgers(Grid1D(16), 0.1),
    "a sum": lambda: Advection(Grid1D(16), 0.3) + Burgers(Grid1D(16), 0.1),
}


@pytest.mark.parametrize("name", KINDS)
def test_dtypes_stay_and_batches_are_rows(name: str) -> None:
    equation = KINDS[name]()
    u = torch.randn(3, 2, 16, dtype=torch.float64)
    du = equation(ZERO + 0.3, u)
    assert du.dtype == torch.float64 and du.shape == u.shape
    close(du[1, 1], equation(ZERO + 0.3, u[1, 1]), 1e-12)
    single = equation(torch.tensor(0.3), u.float())
    assert single.dtype == torch.float32 and single.shape == u.shape
    torch.testing.assert_close(single.double(), du, rtol=2e-4, atol=2e-2 if "all" in name or "diffusion" in name else 2e-3)
    path = odeint(equation, u.float(), [0.0, 1e-3], steps=2)
    assert path.dtype == torch.float32


def test_the_wave_keeps_dtypes_and_returns_the_velocity_itself() -> None:
    wave = Wave(Grid1D(16), lambda t, x: 1 + x)
    u, v = torch.randn(2, 3, 16)
    du, dv = wave(torch.tensor(0.0), (u, v))
    assert du is v and dv.dtype == torch.float32 and dv.shape == u.shape
    assert wave.energy((u, v)).shape == (3,)


def fields(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


@pytest.mark.parametrize("what", ["flow", "exact"])
def test_long_times_in_single_precision(what: str) -> None:
    """A wave carried a million times round, and one that swings as often, are where double precision has them."""
    u, grid = smooth(points(Grid1D(16, L))), Grid1D(16, L)
    for t in (1e6, 1e6 + 0.25):
        for equation in (Advection(grid, 0.7), Wave(grid, 0.7, "spectral"), Wave(Grid1D(16, L, Neumann()), 0.7)):
            if what == "flow" and not equation.grid.periodic:
                continue
            start = (u, 0 * u) if isinstance(equation, Wave) else u
            at: Any = lambda s, e=equation, t=t: e.exact(t, s) if what == "exact" else e.flow(s, [t])
            single = at((u.float(), 0 * u.float()) if isinstance(equation, Wave) else u.float())
            for found, wanted in zip(fields(single), fields(at(start)), strict=True):
                assert found.dtype == torch.float32
                close(found.double(), wanted, 1e-4)


def test_flows_stay_float32() -> None:
    u = torch.randn(3, 16)
    for equation in (PERIODIC["all three"](Grid1D(16, L)), WALLED["dirichlet"]()):
        flow = equation.flow(u, TIMES)
        assert flow.dtype == torch.float32
        torch.testing.assert_close(flow.double(), equation.flow(u.double(), TIMES), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["advection by a function", "inflow", "diffusion between walls", "all three", "burgers"])
def test_equations_compile_whole(name: str) -> None:
    equation = KINDS[name]()
    u, t = torch.randn(2, 16, dtype=torch.float64), ZERO + 0.3
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(equation, fullgraph=True, backend="aot_eager")(t, u), equation(t, u))


def test_coefficients_are_found() -> None:
    """Parameters and modules are parameters of the equation, other tensors move with it."""
    grid = Grid1D(16)
    p = nn.Parameter(torch.tensor(0.3))
    field = nn.Sequential(nn.Linear(1, 1))

    class Speed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = field

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.layer(x[:, None].to(torch.float32)).squeeze(-1).to(x.dtype)

    learned = [Advection(grid, p), Diffusion(grid, p), Wave(grid, p), Burgers(grid, p), AdvectionDiffusionReaction(grid, reaction=p)]
    for equation in learned:
        assert [q is p for q in equation.parameters()] == [True]
    assert {id(q) for q in Advection(grid, Speed()).parameters()} == {id(q) for q in field.parameters()}
    total = Advection(grid, Speed()) + Diffusion(grid, p)
    assert {id(q) for q in total.parameters()} == {id(p), *(id(q) for q in field.parameters())}
    assert not list(Advection(grid, 0.5).parameters())
