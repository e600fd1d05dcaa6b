"""Difference operators: stencils by hand, symbols against dense matrices, orders by refinement, conservation, total variation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import Advection, Diffusion, Grid1D, Periodic
from anodev2.pde.stencils import derivative
from anodev2.testing import observed_order

FIRST = {"upwind1": 1, "central2": 2, "upwind3": 3, "central4": 4, "upwind5": 5, "central6": 6, "weno5": 5}
SECOND = {"central2": 2, "central4": 4, "central6": 6}
LINEAR = [name for name in FIRST if name != "weno5"]
OPERATORS = [(1, scheme) for scheme in FIRST] + [(2, scheme) for scheme in SECOND]
ZERO = torch.zeros((), dtype=torch.float64)

# weights at the offsets -3 ... 3 of side +1 (information from the left), times the denominator: textbook values
BY_HAND = {
    (1, "upwind1"): (1, [0, 0, -1, 1, 0, 0, 0]),
    (1, "central2"): (2, [0, 0, -1, 0, 1, 0, 0]),
    (1, "upwind3"): (6, [0, 1, -6, 3, 2, 0, 0]),
    (1, "central4"): (12, [0, 1, -8, 0, 8, -1, 0]),
    (1, "upwind5"): (60, [-2, 15, -60, 20, 30, -3, 0]),
    (1, "central6"): (60, [-1, 9, -45, 0, 45, -9, 1]),
    (2, "central2"): (1, [0, 0, 1, -2, 1, 0, 0]),
    (2, "central4"): (12, [0, -1, 16, -30, 16, -1, 0]),
    (2, "central6"): (180, [2, -27, 270, -490, 270, -27, 2]),
}


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


def modes(grid: Grid1D) -> Tensor:
    """All wavenumbers of a grid, both signs, shape (n,)."""
    return torch.fft.fftfreq(grid.n, d=grid.spacing, dtype=torch.float64) * (2 * math.pi)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("which", "scheme"), BY_HAND)
def test_weights_are_the_textbook_ones(which: int, scheme: str, side: int) -> None:
    grid = Grid1D(16, length=16.0)
    below, weights = BY_HAND[which, scheme]
    row = torch.zeros(16, dtype=torch.float64)
    for offset, weight in zip(range(-3, 4), weights, strict=True):
        row[(8 + side * offset) % 16] = side**which * weight / below
    operator = derivative(grid, which, scheme, side=side)
    torch.testing.assert_close(operator.matrix(grid)[8].double(), row, rtol=1e-14, atol=1e-14)
    assert operator.derivative == which


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("which", "scheme"), [*BY_HAND, (1, "spectral"), (2, "spectral")])
def test_symbols_are_the_eigenvalues_on_fourier_modes(which: int, scheme: str, side: int, n: int) -> None:
    grid = Grid1D(n, length=2.5)
    operator = derivative(grid, which, scheme, side=side)
    matrix = operator.matrix(grid).to(torch.complex128)
    torch.testing.assert_close(operator(torch.eye(n, dtype=torch.float64), grid).mT.to(torch.complex128), matrix, rtol=1e-13, atol=1e-11)
    for k in modes(grid):
        wave = torch.exp(1j * k * points(grid))
        expected = operator.symbol(k.abs(), grid.spacing).to(torch.complex128)
        torch.testing.assert_close(matrix @ wave, (expected if k >= 0 else expected.conj()) * wave, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("which", [1, 2])
def test_the_spectral_derivative_is_exact(which: int, n: int) -> None:
    grid = Grid1D(n, length=2 * math.pi)
    x = points(grid)
    for k in range(8):
        exact = k * torch.cos(k * x + 0.4) if which == 1 else -(k**2) * torch.sin(k * x + 0.4)
        found = derivative(grid, which, "spectral")(torch.sin(k * x + 0.4), grid)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", [1, 2])
def test_the_spectral_derivative_at_nyquist(which: int) -> None:
    """cos(pi x / h), sampled at its extremes: slope 0 there, curvature -(pi / h)^2."""
    grid = Grid1D(16, length=2 * math.pi)
    nyquist = torch.cos(8 * points(grid))
    found = derivative(grid, which, "spectral")(nyquist, grid)
    torch.testing.assert_close(found, torch.zeros_like(nyquist) if which == 1 else -64 * nyquist, rtol=0, atol=1e-11)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("which", "scheme"), OPERATORS)
def test_the_order_is_the_claimed_one(which: int, scheme: str, side: int) -> None:
    k = 2 * math.pi

    def error(n: int) -> float:
        grid = Grid1D(n)
        x = points(grid)
        if scheme == "weno5":  # whose weights are those of order 5 up to powers of h on a sine
            u, exact = torch.sin(k * x), k * torch.cos(k * x)
        else:
            u = torch.exp(torch.sin(k * x))
            exact = k * torch.cos(k * x) * u if which == 1 else k**2 * (torch.cos(k * x) ** 2 - torch.sin(k * x)) * u
        return (derivative(grid, which, scheme, side=side)(u, grid) - exact).abs().mean().item()

    claimed = (FIRST if which == 1 else SECOND)[scheme]
    assert derivative(Grid1D(16), which, scheme, side=side).order == claimed
    assert observed_order(error, (64, 96, 128, 192, 256), floor=1e-11) == pytest.approx(claimed, abs=0.15)


@pytest.mark.parametrize("scheme", FIRST)
def test_both_sides_are_mirror_images(scheme: str) -> None:
    grid = Grid1D(24)
    u = torch.randn(3, 24, dtype=torch.float64)
    right = derivative(grid, 1, scheme, side=1)(u, grid)
    left = derivative(grid, 1, scheme, side=-1)(u.flip(-1), grid).flip(-1)
    torch.testing.assert_close(right, -left, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("scheme", ["upwind1", "upwind3", "upwind5"])
def test_upwind_schemes_damp_and_never_amplify(scheme: str) -> None:
    grid = Grid1D(16)
    k = modes(grid)[1:9].abs()
    for c in (0.7, -0.7):
        growth = Advection(grid, c, scheme).symbol(k).real
        assert (growth < 0).all()
    assert Advection(grid, 0.7, "central4").symbol(k).real.abs().max() < 1e-12


@pytest.mark.parametrize("speed", [1.0, -1.0])
@pytest.mark.parametrize("scheme", [*FIRST, "spectral"])
def test_a_square_step_is_seen_from_upwind(scheme: str, speed: float) -> None:
    """The scheme may look further towards where the field comes from, never further towards where it goes."""
    grid = Grid1D(24)
    reach = {"upwind1": (1, 0), "upwind3": (2, 1), "upwind5": (3, 2), "weno5": (3, 2)}.get(scheme)
    u = torch.zeros(24, dtype=torch.float64)
    u[12] = 1.0
    du = Advection(grid, speed, scheme)(ZERO, u)
    if reach is None:
        torch.testing.assert_close(du[13:], -du[1:12].flip(0), rtol=1e-12, atol=1e-10)
        return
    touched = du.ne(0).nonzero().flatten() - 12
    low, high = (-reach[1], reach[0]) if speed > 0 else (-reach[0], reach[1])
    assert touched.min() == low and touched.max() == high


@pytest.mark.parametrize("speed", [1.0, -1.0])
@pytest.mark.parametrize("scheme", [*FIRST, "spectral"])
def test_conservative_and_not_are_the_same_for_a_constant_speed(scheme: str, speed: float) -> None:
    grid = Grid1D(24, length=3.0)
    u = torch.randn(2, 24, dtype=torch.float64)
    plain, conservative = (Advection(grid, speed, scheme, conservative=flag)(ZERO, u) for flag in (False, True))
    torch.testing.assert_close(plain, conservative, rtol=1e-12, atol=1e-11)
    field = Advection(grid, lambda t, x: speed + 0 * x, scheme, conservative=True)(ZERO, u)
    torch.testing.assert_close(field, conservative, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("scheme", [*LINEAR, "weno5", "spectral"])
def test_a_varying_speed_takes_each_points_own_upwind_side(scheme: str) -> None:
    """Against c+ D- u + c- D+ u, with the operators by themselves; fluxes are tested by their solutions, in test_pde_manufactured.py."""
    grid = Grid1D(32)
    x = points(grid)
    c = torch.sin(2 * math.pi * x) + 0.2
    u = torch.exp(torch.sin(2 * math.pi * x + 1))
    minus, plus = (derivative(grid, 1, scheme, side=side) for side in (1, -1))
    up, down = c.clamp_min(0), c.clamp_max(0)
    expected = -(up * minus(u, grid) + down * plus(u, grid))
    speeds = {"field": c, "function": lambda t, x: torch.sin(2 * math.pi * x) + 0.2}
    for speed in speeds.values():
        torch.testing.assert_close(Advection(grid, speed, scheme)(ZERO, u), expected, rtol=1e-11, atol=1e-10)


def square(grid: Grid1D) -> Tensor:
    return ((points(grid) - 0.5).abs() < 0.25).double()


def variation(u: Tensor) -> Tensor:
    return (u - u.roll(1, -1)).abs().sum(-1)


def revolutions(scheme: str, method: str, speed: float) -> Tensor:
    """Total variation of a square wave at the start and after each of ten revolutions, CFL number 0.4."""
    grid = Grid1D(128)
    with torch.no_grad():
        u = odeint(Advection(grid, speed, scheme), square(grid), [float(i) for i in range(11)], method=method, steps=320)
    return variation(u)


def test_weno5_keeps_the_total_variation_of_a_square_wave() -> None:
    tv = revolutions("weno5", "ssprk3", 1.0)
    assert tv[0] == 2
    assert (tv - 2).abs().max() < 0.02


@pytest.mark.parametrize(("height", "base"), [(1.0, 0.0), (1e-2, 0.0), (1e-8, 0.0), (1e6, 0.0), (1e-30, 0.0), (1e-3, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weno5_limits_fields_of_any_size(dtype: torch.dtype, height: float, base: float) -> None:
    grid = Grid1D(128)
    u0 = (base + height * square(grid)).to(dtype)
    with torch.no_grad():
        u = odeint(Advection(grid, 1.0, "weno5"), u0, [0.0, 0.5], method="ssprk3", steps=160, adjoint="direct")[-1].double()
    round_off = 200 * torch.finfo(dtype).eps * (base + height)
    assert u.max() - base < 1.001 * height + round_off and u.min() - base > -0.001 * height - round_off


def test_central_differences_do_not() -> None:
    assert (revolutions("central2", "rk4", 1.0)[1:] > 2.5).all()


@pytest.mark.slow
def test_weno5_keeps_it_in_the_other_direction() -> None:
    assert (revolutions("weno5", "ssprk3", -1.0) - 2).abs().max() < 0.02


@pytest.mark.parametrize("conservative", [False, True])
@pytest.mark.parametrize("scheme", [*FIRST, "spectral"])
def test_mass_is_kept_to_round_off_by_conservative_advection(scheme: str, conservative: bool) -> None:
    """The sum of du/dt over the points, with a speed that varies in t and x and changes its sign."""
    grid = Grid1D(40)
    equation = Advection(grid, lambda t, x: torch.sin(2 * math.pi * x) + 0.3 * torch.cos(t), scheme, conservative=conservative)
    u = torch.rand(3, 40, dtype=torch.float64)
    du = equation(torch.tensor(0.7, dtype=torch.float64), u)
    drift = (du.sum(-1) / du.abs().sum(-1)).abs()
    assert (drift < 1e-14).all() if conservative else (drift > 1e-3).all()
    if conservative:
        path = odeint(equation, u, [0.0, 0.5], method="ssprk3", steps=100)
        torch.testing.assert_close(path.sum(-1)[-1], path.sum(-1)[0], rtol=1e-13, atol=0)
        assert (path[-1] - path[0]).abs().max() > 0.1


def test_periodic_is_the_default_boundary_and_points_start_at_zero() -> None:
    grid = Grid1D(10, length=5.0)
    assert isinstance(grid.boundary, Periodic)
    assert grid.spacing == 0.5
    torch.testing.assert_close(points(grid), torch.arange(10).double() / 2)


@pytest.mark.parametrize("n", [8, 9])
def test_wavenumbers_of_real_modes_leave_nyquist_out(n: int) -> None:
    k = Grid1D(n, length=math.pi).wavenumbers(torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(k, torch.tensor([0.0, 2, 4, 6, 0 if n == 8 else 8], dtype=torch.float64))


def test_the_second_derivative_spreads_evenly() -> None:
    grid = Grid1D(24)
    u = torch.zeros(24, dtype=torch.float64)
    u[12] = 1.0
    for scheme in (*SECOND, "spectral"):
        du = Diffusion(grid, 0.1, scheme)(ZERO, u)
        assert du[12] < 0 < du[11]
        torch.testing.assert_close(du[1:], du[1:].flip(0), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("speed", [0.7, -0.7])
@pytest.mark.parametrize("scheme", ["upwind1", "upwind3", "weno5"])
def test_a_speed_per_field_is_upwinded_as_the_same_number_is(scheme: str, speed: float) -> None:
    grid, fields = Grid1D(24), torch.randn(3, 24, dtype=torch.float64)
    each = torch.tensor([[speed], [-2.0], [3.0]], dtype=torch.float64)
    found, expected = Advection(grid, each, scheme)(0.0, fields), Advection(grid, speed, scheme)(0.0, fields)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
