"""Waves: max_stable_step of leapfrog and of Runge-Kutta methods from both sides, and their energy over many steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_pde_stability import GRID, STEPS, ZERO, R
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import Diffusion, Dirichlet, Grid1D, Neumann, Wave
from problems import points


@pytest.mark.parametrize(("scheme", "largest"), [("central2", 4), ("central4", 16 / 3), ("central6", 272 / 45), ("spectral", math.pi**2)])
def test_leapfrog_on_the_wave_is_stable_up_to_two_over_its_frequency(scheme: str, largest: float) -> None:
    wave = Wave(GRID, 0.8, scheme)
    h = wave.max_stable_step("leapfrog")
    assert h == pytest.approx(2 * GRID.spacing / (0.8 * math.sqrt(largest)), rel=1e-3)
    u0 = (torch.randn(16).double(), torch.zeros(16).double())
    u = odeint(wave, u0, [0.0, 0.98 * h * STEPS], method="leapfrog", steps=STEPS)[0][-1]
    assert u.norm() < 10 * u0[0].norm()
    with pytest.warns(UserWarning, match="stable"):
        u = odeint(wave, u0, [0.0, 1.05 * h * 200], method="leapfrog", steps=200)[0][-1]
    assert u.norm() > 1e6 * u0[0].norm()


def test_a_wave_of_varying_speed_is_limited_where_it_is_fastest() -> None:
    """Of either sign; leapfrog stays bounded there."""
    speed = torch.linspace(-1.2, 0.4, 16, dtype=torch.float64)
    h = Wave(GRID, speed).max_stable_step("leapfrog")
    assert h == pytest.approx(GRID.spacing / 1.2, rel=1e-3)
    u0 = (torch.randn(16).double(), torch.zeros(16).double())
    assert odeint(Wave(GRID, speed), u0, [0.0, 0.98 * h * 400], method="leapfrog", steps=400)[0][-1].norm() < 20 * u0[0].norm()


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_the_wave_has_a_limit_with_runge_kutta_methods_too(method: str) -> None:
    wave = Wave(GRID, 0.8)
    h = wave.max_stable_step(method)
    eigenvalues = torch.linalg.eigvals(wave.matrix())
    eigenvalues = 1j * eigenvalues.imag
    assert R(method, 0.98 * h * eigenvalues).abs().max() < 1 + 2e-6
    assert R(method, 1.02 * h * eigenvalues).abs().max() > 1 + 1e-6
    assert wave.max_stable_step("euler") == 0


def energy_slope(values: Tensor, steps_between: int) -> float:
    """Of a straight line through the energies, per step, relative to the first."""
    at = torch.arange(len(values), dtype=torch.float64)
    at = at - at.mean()
    return ((at * values).sum() / at.square().sum() / steps_between / values[0]).item()


@pytest.mark.parametrize("speed", [0.8, lambda t, x: 0.8 + 0.3 * torch.sin(math.pi * x)], ids=["constant", "varying"])
def test_leapfrog_conserves_a_neighbouring_energy_to_round_off(speed: Any) -> None:
    """h/2 sum(v^2/c^2 + dt^2/4 v D2 v - u D2 u), position Verlet's own invariant, over 2000 steps; rk4 loses energy."""
    wave = Wave(GRID, speed)
    x = points(GRID)
    dt = 0.3 * wave.max_stable_step("leapfrog")
    times = torch.linspace(0, STEPS * dt, 201, dtype=torch.float64)
    start = (torch.exp(-8 * (x - 1) ** 2), 0.2 * torch.sin(math.pi * x))
    u, v = odeint(wave, start, times, method="leapfrog", steps=10)
    second = Diffusion(GRID, 1.0)
    shadow = wave.energy((u, v)) + GRID.spacing * dt**2 / 8 * (v * second(ZERO, v)).sum(-1)
    torch.testing.assert_close(shadow, shadow[0].expand_as(shadow), rtol=1e-12, atol=0)
    energy = wave.energy((u, v))
    assert 1e-4 < (energy / energy[0] - 1).abs().max() < 0.1
    assert abs(energy_slope(shadow, 10)) < 1e-15
    decaying = wave.energy(odeint(wave, start, times, method="rk4", steps=10))
    assert abs(energy_slope(decaying, 10)) > 1e-8


def test_leapfrog_has_no_drift_of_energy_over_two_thousand_steps() -> None:
    """One mode with 40 steps per period: means over whole periods lie on a level line."""
    wave = Wave(GRID, 0.8, "spectral")
    k = 2 * math.pi / GRID.length
    dt = 2 * math.sin(math.pi / 40) / (0.8 * k)  # cos(2 pi / 40) = 1 - (0.8 k dt)^2 / 2
    start = (torch.sin(k * points(GRID)), 0.5 * torch.cos(k * points(GRID)))
    u, v = odeint(wave, start, dt * torch.arange(STEPS + 1, dtype=torch.float64), method="leapfrog", steps=1)
    means = wave.energy((u, v))[:-1].reshape(-1, 40).mean(-1)
    assert len(means) == 50 and abs(energy_slope(means, 40)) < 1e-14
    torch.testing.assert_close(u[40 * 50], start[0], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_leapfrog_has_no_drift_of_energy_over_a_hundred_thousand_steps() -> None:
    wave = Wave(GRID, 0.8)
    dt = 0.2 * wave.max_stable_step("leapfrog")
    times = torch.linspace(0, 1e5 * dt, 10001, dtype=torch.float64)
    start = (torch.exp(-8 * (points(GRID) - 1) ** 2), torch.zeros(16, dtype=torch.float64))
    with torch.no_grad():
        energy = wave.energy(odeint(wave, start, times, method="leapfrog", steps=10))
    assert abs(energy_slope(energy, 10)) < 1e-10


@pytest.mark.parametrize("boundary", [None, Dirichlet(), Neumann()], ids=["periodic", "dirichlet", "neumann"])
def test_leapfrog_takes_a_wave_back_to_where_it_started(boundary: Any) -> None:
    grid = Grid1D(24, 2.0) if boundary is None else Grid1D(24, 2.0, boundary)
    wave = Wave(grid, lambda t, x: 1 + 0.3 * torch.sin(math.pi * x), "central4")
    start = (torch.randn(3, 24).double(), torch.randn(3, 24).double())
    end = tuple(leaf[-1] for leaf in odeint(wave, start, [0.0, 5.0], method="leapfrog", steps=400))
    assert (end[0] - start[0]).abs().max() > 0.5
    back = odeint(wave, end, [5.0, 0.0], method="leapfrog", steps=400)
    for found, expected in zip(back, start, strict=True):
        torch.testing.assert_close(found[-1], expected, rtol=0, atol=1e-11)


def test_the_energy_is_that_of_the_wave() -> None:
    """1/2 int v^2/c^2 + (du/dx)^2 of u = sin(k x), v = cos(k x) / 2: length / 4 (1 / (4 c^2) + k^2)."""
    k = 2 * math.pi / GRID.length
    pair = (torch.sin(k * points(GRID)), torch.cos(k * points(GRID)) / 2)
    expected = GRID.length / 4 * (1 / (4 * 0.8**2) + k**2)
    assert Wave(GRID, -0.8, "spectral").energy(pair).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("boundary", [None, Dirichlet(), Neumann()], ids=["periodic", "dirichlet", "neumann"])
def test_the_wave_itself_conserves_its_energy(boundary: Any) -> None:
    """dE/dt = grad E . (u', v') is zero for any pair: closed walls reflect."""
    grid = Grid1D(24, 2.0) if boundary is None else Grid1D(24, 2.0, boundary)
    wave = Wave(grid, lambda t, x: 1 + 0.3 * torch.sin(math.pi * x))
    pair = (torch.randn(24).double().requires_grad_(), torch.randn(24).double().requires_grad_())
    energy = wave.energy(pair)
    gradient = torch.autograd.grad(energy, pair)
    rates = [a * b for a, b in zip(gradient, wave(ZERO, pair), strict=True)]
    assert abs((rates[0] + rates[1]).sum().item()) < 1e-13 * (rates[0].abs() + rates[1].abs()).sum().item()
    assert energy.item() > 0
