"""The order of every method, measured, and single steps by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from anodev2 import METHODS, odeint, solve
from anodev2.testing import observed_order
from problems import EXACT, RUNGE_KUTTA, STIFF, Exact, separable

STEPS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@pytest.mark.parametrize("problem", EXACT, ids=lambda p: p.name)
@pytest.mark.parametrize("method", RUNGE_KUTTA + STIFF)
def test_observed_order_is_the_claimed_one(method: str, problem: Exact) -> None:
    t = torch.tensor([problem.t0, problem.t1], dtype=torch.float64)
    start, end = problem.exact(t)
    error = lambda n: (odeint(problem.func, start, t, method=method, steps=n, adjoint="direct")[-1] - end).abs().item()
    assert observed_order(error, STEPS[:9] if method in STIFF else STEPS) == pytest.approx(METHODS[method].order, abs=0.15)


def reference(T: float) -> Tensor:
    f = lambda t, y: [y[1], 0.5 * t * y[0] - math.sin(y[0])]
    return torch.tensor(solve_ivp(f, (0, T), [1.0, 0.3], method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1])


@pytest.mark.parametrize("form", ["q' = v", "q' = g(v)"])
def test_leapfrog_is_of_order_two(form: str) -> None:
    f = separable if form == "q' = v" else lambda t, y: (1.0 * y[1], separable(t, y)[1])
    y0, end = (torch.tensor(1.0).double(), torch.tensor(0.3).double()), reference(2.0)
    error = lambda n: (torch.stack(odeint(f, y0, [0.0, 2.0], method="leapfrog", steps=n))[:, -1] - end).norm().item()
    assert observed_order(error, STEPS) == pytest.approx(2, abs=0.15)


def test_leapfrog_is_reversible_and_evaluates_once_per_step() -> None:
    y0 = (torch.randn(5).double(), torch.randn(5).double())
    there = solve(separable, y0, [0.0, 3.0], method="leapfrog", steps=30)
    assert there.stats.evaluations_forward == 30
    end = tuple(leaf[-1] for leaf in there.ys)
    back = odeint(separable, end, [3.0, 0.0], method="leapfrog", steps=30)
    for found, start in zip(back, y0, strict=True):
        torch.testing.assert_close(found[-1], start, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (lambda t, y: (y[1], -y[0] - 0.1 * y[1]), "v' to depend on t and q alone, and here it depends on v"),
        (lambda t, y: (y[1] + y[0], -y[0]), "q' to depend on v alone, and here it depends on q"),
    ],
)
def test_leapfrog_refuses_what_is_not_separable(func: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        odeint(func, (torch.ones(2), torch.ones(2)), [0.0, 1.0], method="leapfrog", steps=2)


@pytest.mark.parametrize("y0", [torch.ones(4), (torch.ones(2), torch.ones(3)), (torch.ones(2),) * 4], ids=["tensor", "shapes", "four"])
def test_leapfrog_needs_two_equal_halves(y0: Any) -> None:
    with pytest.raises(ValueError, match="two equal halves"):
        odeint(lambda t, y: y, y0, [0.0, 1.0], method="leapfrog", steps=2)


def test_the_look_at_separability_leaves_no_trace() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.5)

        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return y[1], -self.dropout(self.norm(y[0]))

    force = Force()
    random = torch.get_rng_state()
    odeint(force, (torch.randn(4, 3), torch.randn(4, 3)), [0.0, 1.0], method="leapfrog", steps=5)
    assert force.norm.num_batches_tracked == 5
    drawn = torch.get_rng_state()
    torch.set_rng_state(random)
    _ = torch.randn(4, 3), torch.randn(4, 3), [nn.functional.dropout(torch.ones(4, 3)) for _ in range(5)]
    assert torch.equal(drawn, torch.get_rng_state())


def test_one_step_by_hand() -> None:
    f = lambda t, y: -2 * t * y**2
    t, dt, y = 0.3, 0.2, 0.9
    k1 = f(t, y)
    k2 = f(t + dt / 2, y + dt / 2 * k1)
    k3 = f(t + dt / 2, y + dt / 2 * k2)
    k4 = f(t + dt, y + dt * k3)
    expected = {"euler": y + dt * k1, "midpoint": y + dt * k2, "rk4": y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)}
    expected["heun2"] = y + dt / 2 * (k1 + f(t + dt, y + dt * k1))
    for method, value in expected.items():
        got = odeint(f, torch.tensor(y, dtype=torch.float64), [t, t + dt], method=method, steps=1)[-1].item()
        assert got == pytest.approx(value, rel=1e-14), method
