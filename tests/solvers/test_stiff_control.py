"""Stiff methods with error control: order conditions, the stiff test set, gradients."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import prod

import pytest
import torch
from numpy import array, eye, ndarray, ones
from numpy.linalg import inv
from scipy.linalg import solve_triangular
from torch import Tensor

from anodev2 import METHODS, Adjoint, CheckpointAdjoint, DirectAdjoint, Method, odeint, solve
from anodev2.solvers import SDIRK, Rosenbrock
from problems import MLP, STIFF, STIFF_PROBLEMS, Stiff
from rooted import Tree, density, trees

ROSENBROCK = {name: method for name, method in METHODS.items() if isinstance(method, Rosenbrock)}
SDIRKS = {name: method for name, method in METHODS.items() if isinstance(method, SDIRK)}


def untransformed(method: Rosenbrock) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """alpha, Gamma, b and the embedded b of the literature, from a = alpha Gamma^-1, C = 1/g - Gamma^-1 (Hairer, Wanner II, IV.7)."""
    stages = len(method.c)
    a, c = (array([[0.0] * stages, *([*row, *[0.0] * (stages - len(row))] for row in rows)]) for rows in (method.a, method.C))
    gamma = inv(eye(stages) / method.gamma - c)
    embedded = a[-1]
    return a @ gamma, gamma, (embedded + eye(stages)[-1]) @ gamma, embedded @ gamma


@pytest.mark.parametrize("name", ROSENBROCK)
def test_order_conditions_of_rosenbrock_methods(name: str) -> None:
    """Those of all rooted trees, where a vertex with one child is reached through alpha + Gamma, with several through alpha."""
    method = ROSENBROCK[name]
    alpha, gamma, weights, embedded = untransformed(method)

    @cache
    def values(tree: Tree) -> ndarray:
        matrix = alpha + gamma if len(tree) == 1 else alpha
        return prod((matrix @ values(child) for child in tree), start=ones(len(alpha)))

    off = lambda b, n: max(abs(b @ values(tree) - 1 / density(tree)) for tree in trees(n))
    assert max(off(weights, n) for n in range(1, method.order + 1)) < 1e-13 < 1e-6 < off(weights, method.order + 1)
    assert max(off(embedded, n) for n in range(1, method.order)) < 1e-13 < 1e-6 < off(embedded, method.order)
    assert abs(alpha.sum(1) - array(method.c)).max() < 1e-13 and abs(gamma.sum(1) - array(method.d)).max() < 1e-13


DENSE = {"rodas4": 3, "rodas5p": 4, "esdirk4": 4, "kvaerno5": 4}  # orders of the interpolants


def between(method: Method, x: float) -> ndarray:
    """The weights of the interpolant at x."""
    assert method.interpolant is not None
    return array([sum(p * x ** (j + 1) for j, p in enumerate(row)) for row in method.interpolant])


@pytest.mark.parametrize("name", DENSE)
def test_order_conditions_between_steps(name: str) -> None:
    """Through all rooted trees, and no more; the end is that of the step. A step of any stiffness is an affine sum of its stages."""
    method, order = METHODS[name], DENSE[name]
    if isinstance(method, Rosenbrock):
        alpha, gamma, weights, _ = untransformed(method)
        beta, found = alpha + gamma, lambda x: between(method, x)[1:] @ gamma
    else:
        assert isinstance(method, SDIRK)
        alpha = beta = array([[*map(float, row), *[0.0] * (len(method.a) - len(row))] for row in method.a])
        weights, found = alpha[-1], lambda x: between(method, x)
        stages = solve_triangular(alpha[1:, 1:].T, array([found(x)[1:] for x in (0.3, 0.8)]).T)
        assert abs(stages.T @ alpha[1:, 0] - array([found(x)[0] for x in (0.3, 0.8)])).max() < 1e-13

    @cache
    def values(tree: Tree) -> ndarray:
        return prod(((beta if len(tree) == 1 else alpha) @ values(child) for child in tree), start=ones(len(alpha)))

    off = lambda x, n: max(abs(found(x) @ values(tree) - x**n / density(tree)) for tree in trees(n))
    assert max(off(x, n) for x in (0.2, 0.5, 0.9) for n in range(1, order + 1)) < 1e-13
    assert off(0.5, order + 1) > 1e-6 and abs(found(1.0) - weights).max() < 1e-13


@pytest.mark.parametrize("name", SDIRKS)
def test_order_conditions_of_diagonally_implicit_methods(name: str) -> None:
    """In fractions: exact for esdirk4, whose coefficients are, and to their sixteen digits for kvaerno5."""
    method = SDIRKS[name]
    a = [[*row, *[Fraction(0)] * (len(method.a) - len(row))] for row in method.a]

    @cache
    def values(tree: Tree) -> list[Fraction]:
        factors = [[sum((x * v for x, v in zip(row, values(child), strict=True)), Fraction(0)) for row in a] for child in tree]
        return [prod(column, start=Fraction(1)) for column in zip(*factors, strict=True)] if tree else [Fraction(1)] * len(a)

    off = lambda b, n: max(abs(sum(x * v for x, v in zip(b, values(tree), strict=True)) - Fraction(1, density(tree))) for tree in trees(n))
    limit = 0 if name == "esdirk4" else 1e-13
    for weights, order in ((a[-1], method.order), ([*method.b_hat, *[Fraction(0)] * (len(a) - len(method.b_hat))], method.order - 1)):
        assert max(off(weights, n) for n in range(1, order + 1)) <= limit < 1e-6 < off(weights, order + 1)
    assert {row[-1] for row in method.a[1:]} == {method.a[-1][-1]}, "one diagonal entry"


def steps_of(problem: Stiff, method: str, tolerance: float) -> tuple[float, int]:
    """The largest error in units of the tolerance, and the steps."""
    y0, end = torch.tensor(problem.y0, dtype=torch.float64), torch.tensor(problem.end, dtype=torch.float64)
    atol = problem.atol * tolerance
    with torch.no_grad():
        found = solve(problem.func, y0, [0.0, problem.t1], method=method, rtol=tolerance, atol=atol)
    return float(((found.ys[-1] - end).abs() / (atol + tolerance * end.abs())).max()), found.stats.accepted


RADAU = {  # steps of scipy 1.17's Radau at 1e-4, 1e-6, 1e-8
    "van der Pol": (218, 616, 1853),
    "Robertson": (62, 176, 532),
    "HIRES": (67, 183, 570),
    "Oregonator": (366, 1059, 3273),
}
TOLERANCES = (1e-4, 1e-6, 1e-8)
CASES = [
    pytest.param(method, tolerance, problem, marks=() if tolerance > 1e-5 and problem.name != "Oregonator" else pytest.mark.slow)
    for method in STIFF
    for tolerance in TOLERANCES[: 3 if METHODS[method].order >= 5 else 2]
    for problem in STIFF_PROBLEMS
]


@pytest.mark.parametrize(("method", "tolerance", "problem"), CASES, ids=str)
def test_the_stiff_set_within_some_tolerances_and_twice_the_steps_of_radau(method: str, tolerance: float, problem: Stiff) -> None:
    off, steps = steps_of(problem, method, tolerance)
    assert off < 10
    assert steps <= 2 * RADAU[problem.name][TOLERANCES.index(tolerance)]


def test_an_estimate_is_not_made_smaller_and_interpolants_end_in_the_step() -> None:
    with pytest.raises(ValueError, match=r"caution=0\.5 must be at least 1"):
        replace(SDIRKS["kvaerno5"], caution=0.5)
    for dense in (SDIRKS["kvaerno5"].dense[1:], SDIRKS["kvaerno5"].dense[::-1]):
        with pytest.raises(ValueError, match="dense of kvaerno5 must have one row for each stage, which ends in its weight"):
            replace(SDIRKS["kvaerno5"], dense=dense)
    with pytest.raises(ValueError, match="dense of rodas4 must have rows of 6 entries"):
        replace(ROSENBROCK["rodas4"], dense=((1.0,),))


def test_a_rejected_step_leaves_its_jacobian_to_the_next() -> None:
    """One evaluation less than a step has stages, and the states of the accepted steps alone."""
    problem, name, stages = STIFF_PROBLEMS[0], "rodas5p", len(METHODS["rodas5p"].nodes)
    y0, times = torch.tensor(problem.y0, dtype=torch.float64), [0.0, 812.0]
    with torch.no_grad():
        found = solve(problem.func, y0, times, method=name, rtol=1e-4, atol=1e-4)
        again = odeint(problem.func, y0, times, method=name, grid=found.grid)
    stats = found.stats
    assert stats.rejected > 10 and stats.evaluations_forward == 2 + stages * stats.accepted + (stages - 1) * stats.rejected
    assert torch.equal(found.ys[-1], again[-1])


SHORT = {"van der Pol": 500.0, "Robertson": 40.0, "HIRES": 1.0, "Oregonator": 4.0}  # jumps move by more than a step when the start does


@pytest.mark.parametrize("problem", STIFF_PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", STIFF)
def test_gradients_of_stiff_solves_are_central_differences(method: str, problem: Stiff) -> None:
    """In the start and in a rate for each element, along one direction, the steps as they were found."""
    y0, times = torch.tensor(problem.y0, dtype=torch.float64), [0.0, SHORT[problem.name]]
    func, rates = lambda t, y, rates: rates * problem.func(t, y), torch.ones_like(y0)
    start, rate = y0.clone().requires_grad_(), rates.clone().requires_grad_()
    found = solve(func, start, times, method=method, rtol=1e-5, atol=1e-5 * problem.atol, args=(rate,))
    weights = torch.linspace(1, 2, len(y0), dtype=torch.float64) / (found.ys[-1].detach().abs() + 1e-8)
    gradients = torch.autograd.grad((weights * found.ys[-1]).sum(), (start, rate))
    directions = torch.linspace(0.5, 1, len(y0), dtype=torch.float64) * (y0.abs() + 1e-6), torch.linspace(1, -0.5, len(y0)).double()
    for place, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
        ends = []
        for h in (1e-5, -1e-5):
            moved = [x + h * direction * (i == place) for i, x in enumerate((y0, rates))]
            with torch.no_grad():
                end = odeint(func, moved[0], times, method=method, grid=found.grid, args=(moved[1],))[-1]
            ends.append((weights * end).sum())
        slope = (ends[0] - ends[1]).item() / 2e-5
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def curve(adjoint: Adjoint, method: str, **steps: object) -> tuple[Tensor, ...]:
    """States at three times, and gradients of the start, the end time and the parameters."""
    torch.manual_seed(0)
    net = MLP()
    y0 = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    end = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    f = lambda t, y: 5 * net(t, y) - y**3
    ys = odeint(f, y0, torch.stack([torch.zeros_like(end), end / 2, end]), method=method, adjoint=adjoint, **steps)  # pyright: ignore[reportArgumentType]
    return ys.detach(), *torch.autograd.grad(ys[1:].square().sum(), (y0, end, *net.parameters()))


@pytest.mark.parametrize("steps", [{"steps": 3}, {"rtol": 1e-5, "atol": 1e-6}], ids=["grid", "control"])
@pytest.mark.parametrize("method", STIFF)
def test_every_adjoint_has_the_gradient_of_store_all(method: str, steps: dict[str, float]) -> None:
    stored = curve(DirectAdjoint(), method, **steps)
    for adjoint in (CheckpointAdjoint(), CheckpointAdjoint(slots=2), *([CheckpointAdjoint(memory="64MiB")] * ("steps" in steps))):
        found = curve(adjoint, method, **steps)
        assert torch.equal(found[0], stored[0])
        for one, other in zip(found[1:], stored[1:], strict=True):
            assert (one - other).abs().max() <= 1e-13 * other.abs().max()


@pytest.mark.parametrize("method", STIFF)
def test_samples_take_steps_of_their_own(method: str) -> None:
    """As each alone, gradients included, under every adjoint; and those told to be independent as one large system.

    On the steps found for each, equations are solved to round-off, under error control to 3e-3 of the error allowed.
    """
    f = lambda t, y: torch.stack([y[..., 1], 20 * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)
    y0 = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-2.0, 0.5]], dtype=torch.float64).requires_grad_()

    def run(y: Tensor, adjoint: Adjoint, **more: bool) -> tuple[Tensor, Tensor]:
        end = odeint(f, y, [0.0, 0.3], method=method, rtol=1e-4, atol=1e-5, adjoint=adjoint, **more)[-1]  # pyright: ignore[reportArgumentType]
        return end.detach(), torch.autograd.grad(end.square().sum(), y0)[0]

    alone = [run(y0[i : i + 1], DirectAdjoint()) for i in range(3)]
    ends, gradients = torch.cat([end for end, _ in alone]), sum(gradient for _, gradient in alone)
    for adjoint in (DirectAdjoint(), CheckpointAdjoint(), CheckpointAdjoint(slots=6)):
        found = run(y0, adjoint, per_sample=True)
        torch.testing.assert_close(
            found, (ends, gradients), rtol=1e-5 if method in SDIRKS else 1e-9, atol=1e-6 if method in SDIRKS else 1e-11
        )
    moved = lambda t, y: torch.cos(3 * t) * f(t, y) + torch.sin(t)
    whole, blocks = (
        odeint(moved, y0, [0.0, 0.3], method=chosen, steps=10)
        for chosen in (METHODS[method], replace(METHODS[method], independent=True))  # pyright: ignore[reportArgumentType]
    )
    torch.testing.assert_close(blocks, whole, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(*(torch.autograd.grad(y[-1].square().sum(), y0)[0] for y in (blocks, whole)), rtol=1e-10, atol=1e-12)
