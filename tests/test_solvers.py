"""The order of every method, measured."""

from __future__ import annotations

import math

import pytest
import torch
from problems import EXACT, Exact

from anodev2 import METHODS, odeint


def error(problem: Exact, method: str, steps: int) -> float:
    t = torch.tensor([problem.t0, problem.t1], dtype=torch.float64)
    start, end = problem.exact(t)
    return (odeint(problem.func, start, t, method=method, steps=steps, adjoint="direct")[-1] - end).abs().item()


@pytest.mark.parametrize("problem", EXACT, ids=lambda p: p.name)
@pytest.mark.parametrize("method", METHODS)
def test_observed_order_is_the_claimed_one(method: str, problem: Exact) -> None:
    steps = [32, 64, 128, 256]
    errors = [error(problem, method, n) for n in steps]
    assert min(errors) > 1e-13  # above round-off
    slope = math.log(errors[-2] / errors[-1]) / math.log(2)
    assert slope == pytest.approx(METHODS[method].order, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_by_hand(method: str) -> None:
    f = lambda t, y: -2 * t * y**2
    t, dt, y = 0.3, 0.2, 0.9
    k1 = f(t, y)
    k2 = f(t + dt / 2, y + dt / 2 * k1)
    k3 = f(t + dt / 2, y + dt / 2 * k2)
    k4 = f(t + dt, y + dt * k3)
    expected = {"euler": y + dt * k1, "midpoint": y + dt * k2, "rk4": y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)}
    got = odeint(f, torch.tensor(y, dtype=torch.float64), [t, t + dt], method=method, steps=1)[-1].item()
    assert got == pytest.approx(expected[method], rel=1e-14)
