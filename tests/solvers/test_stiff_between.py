"""States between the steps of stiff methods: what they cost, and how accurate they are for any stiffness."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.integrate import solve_ivp

from anodev2 import METHODS, Auto, Control, odeint, solve
from problems import STIFF, STIFF_PROBLEMS, Stiff
from sampled import rows

EVERY = [*STIFF, "auto"]
WORST = {"rodas4": 2.0, "rodas5p": 10.0, "esdirk4": 3.0, "kvaerno5": 25.0, "auto": 7.0}  # HIRES, but for esdirk4 at 1e-6
NAMES = {problem.name: problem for problem in STIFF_PROBLEMS}


def start(problem: Stiff) -> torch.Tensor:
    return torch.tensor(problem.y0, dtype=torch.float64)


@pytest.mark.parametrize(("method", "name"), rows(EVERY, NAMES, quick=[("rodas5p", "Robertson"), ("auto", "HIRES")]))
def test_output_times_do_not_end_steps(method: str, name: str) -> None:
    """The very steps and evaluations of two times for a thousand."""
    problem = NAMES[name]
    options = {"method": method, "rtol": 1e-3, "atol": 1e-3 * problem.atol, "hit": "between"}
    with torch.no_grad():
        few, many = (solve(problem.func, start(problem), torch.linspace(0, 40, n).tolist(), **options) for n in (2, 1000))
    assert few.grid == many.grid and torch.equal(few.ys[-1], many.ys[-1]) and len(few.grid) < 150
    assert few.stats.evaluations_forward == many.stats.evaluations_forward


CASES = [(name, tolerance) for name in NAMES for tolerance in (1e-4, 1e-6) if tolerance > 1e-5 or name in ("Robertson", "HIRES")]


@pytest.mark.parametrize(("method", "case"), rows(EVERY, CASES, quick=[("rodas5p", ("Robertson", 1e-4))]), ids=str)
def test_states_between_steps_keep_the_tolerance(method: str, case: tuple[str, float]) -> None:
    """In the norm of error control, against scipy's Radau from the state before each of forty steps; half of them within one tolerance."""
    (name, tolerance), worst = case, list[float]()
    problem = NAMES[name]
    atol = tolerance * problem.atol
    with torch.no_grad():
        found = solve(problem.func, start(problem), [0.0, problem.t1], method=method, rtol=tolerance, atol=atol, dense=True)
    f = lambda t, y: problem.func(torch.tensor(t), torch.tensor(y)).numpy()
    steps = list(pairwise(found.grid))
    for a, b in steps[1 :: max(len(steps) // 40, 1)]:
        inside = [a + x * (b - a) for x in (0.2, 0.5, 0.8)]
        y = found(a)
        exact = torch.tensor(solve_ivp(f, (a, b), y.numpy(), "Radau", rtol=tolerance * 1e-3, atol=atol * 1e-3, t_eval=inside).y.T)
        off = (found(inside) - exact) / (atol + tolerance * torch.maximum(exact.abs(), y.abs()))
        worst.append(float(off.square().mean(-1).sqrt().max()))
    assert max(worst) < WORST[method] and sorted(worst)[len(worst) // 2] < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("method", EVERY)
def test_no_stiffness_makes_states_between_steps_large(method: str, dtype: torch.dtype) -> None:
    """y' = -rate (y - cos t) - sin t, which is cos t behind a transient, whatever the rate; in 32 bits to their rounding. What follows it
    limits no step, so steps are kept short."""
    tolerance, off = (1e-6, 2e-5) if dtype == torch.float64 else (1e-4, 1e-4)
    times, control = torch.linspace(0, 1, 41).double(), Control(max_step=0.1)
    for rate in (10.0, 1e4, 1e9):
        y0 = torch.tensor([2.0 if rate > 10 else 1.0], dtype=dtype)
        f = lambda t, y, rate=rate: -rate * (y - torch.cos(t)) - torch.sin(t)
        ys = odeint(f, y0, times, method=method, rtol=tolerance, atol=tolerance, control=control, hit="between")
        assert (ys[1:, 0].double() - times[1:].cos()).abs().max() < off


@pytest.mark.parametrize("method", EVERY)
def test_where_nothing_is_said_output_times_keep_the_tolerance(method: str) -> None:
    """Of the same, with steps as they come: those that pass with any length end there."""
    times = torch.linspace(0, 10, 101).double()
    for rate in (10.0, 1e3, 1e6, 1e8):
        f = lambda t, y, rate=rate: -rate * (y - torch.cos(t)) - torch.sin(t)
        ys = odeint(f, torch.ones(1).double(), times, method=method, rtol=1e-5, atol=1e-5)
        assert (ys[:, 0] - times.cos()).abs().max() < 1e-4
    found = solve(f, torch.ones(1).double(), times[[0, 5, -1]], method=method, rtol=1e-5)
    assert (0.5 in found.grid) == (method != "esdirk4")
    if method not in ("esdirk4", "auto"):  # which has no grid
        with pytest.raises(ValueError, match=r"is not in it; .* with hit='between'"):
            odeint(f, torch.ones(1).double(), times, method=method, grid=[0.0, 5.0, 10.0])


def test_a_method_of_ones_own_without_them_ends_steps_at_output_times() -> None:
    for name in ("rodas5p", "kvaerno5"):
        bare = replace(METHODS[name], dense=())  # pyright: ignore[reportArgumentType]
        for method in (bare, Auto(stiff=bare)):
            found = solve(lambda t, y: -y, torch.ones(1).double(), [0.0, 0.3, 1.0], method=method, rtol=1e-3, hit="between")
            assert 0.3 in found.grid and found.ys[1].item() == pytest.approx(math.exp(-0.3), rel=1e-3)
