"""Exponential, IMEX and implicit methods: orders, exact gradients, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import METHODS, Adjoint, BackwardEuler, CheckpointAdjoint, DirectAdjoint, FourierOperator, SolveError, odeint, solve
from anodev2.pde import Burgers, Grid1D
from anodev2.solvers.linear import DenseOperator, phi_functions
from anodev2.testing import observed_order
from problems import IMPLICIT, MLP, SPLITTING, STIFF, Reacting
from sampled import rows

EXACT_ADJOINTS = [CheckpointAdjoint(), CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="64MiB")]


@pytest.mark.parametrize("method", SPLITTING + IMPLICIT)
def test_temporal_order_at_fixed_n(method: str) -> None:
    equation = Reacting(n=32)
    exact = odeint(equation, equation.start(), [0.0, 1.0], method="dopri8", rtol=1e-13, atol=1e-14, adjoint="direct")[-1].detach()
    steps = (8, 16) if METHODS[method].order > 2 else (64, 128)
    with torch.no_grad():
        error = lambda n: (odeint(equation, equation.start(), [0.0, 1.0], method=method, steps=n)[-1] - exact).norm().item()
        order = observed_order(error, steps)
    assert order == pytest.approx(METHODS[method].order, abs=0.15)


@pytest.mark.parametrize("dense", [False, True], ids=["Fourier", "dense"])
@pytest.mark.parametrize("method", SPLITTING + IMPLICIT + STIFF)
def test_checkpointed_gradients_equal_those_of_store_all(method: str, dense: bool) -> None:
    equation = Reacting(n=16, dense=dense)

    def gradients(adjoint: Adjoint) -> tuple[Tensor, Tensor, Tensor]:
        equation.zero_grad()
        u0 = equation.start().requires_grad_()
        u = odeint(equation, u0, [0.0, 0.3, 0.5], method=method, steps=4, adjoint=adjoint)
        (u[1:] * torch.linspace(-1, 1, 16, dtype=torch.float64)).square().sum().backward()
        assert u0.grad is not None and equation.viscosity.grad is not None
        return u.detach(), u0.grad, equation.viscosity.grad

    stored = gradients(DirectAdjoint())
    for adjoint in EXACT_ADJOINTS:
        found = gradients(adjoint)
        assert torch.equal(found[0], stored[0])
        torch.testing.assert_close(found[1:], stored[1:], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("adjoint", [DirectAdjoint(), CheckpointAdjoint(slots=2)], ids=["direct", "slots"])
@pytest.mark.parametrize("method", [*SPLITTING, BackwardEuler(tolerance=1e-12), *IMPLICIT, *STIFF])
def test_gradients_in_state_coefficient_and_times_are_those_of_the_program(method: Any, adjoint: Adjoint) -> None:
    equation, weight = Reacting(n=16), torch.linspace(-1, 1, 16, dtype=torch.float64)

    def loss(viscosity: Tensor, u0: Tensor, end: Tensor) -> Tensor:
        run = lambda t, u: torch.func.functional_call(equation, {"viscosity": viscosity}, (t, u))
        split = lambda: (FourierOperator((-viscosity * equation.squares).to(torch.complex128), 16), equation.rest)
        run.split = split  # pyright: ignore[reportFunctionMemberAccess]
        times = torch.stack([torch.zeros_like(end), end])
        return (odeint(run, u0, times, method=method, steps=3, adjoint=adjoint)[-1] * weight).square().sum()

    inputs = [torch.tensor(0.1, dtype=torch.float64), equation.start(), torch.tensor(0.5, dtype=torch.float64)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    for place, gradient in enumerate(gradients):
        direction, moved = torch.ones_like(gradient), lambda h, place=place: [x + h * (i == place) for i, x in enumerate(inputs)]
        slope = (loss(*moved(1e-5)) - loss(*moved(-1e-5))) / 2e-5
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=2e-8, abs=2e-8)


def test_etdrk4_needs_twenty_times_fewer_steps_than_rk4_on_a_stiff_field() -> None:
    equation = Reacting(n=256)
    with torch.no_grad():
        run = lambda method, steps: odeint(equation, equation.start(), [0.0, 1.0], method=method, steps=steps)[-1]
        exact = run("etdrk4", 400)
        assert (run("rk4", 700) - exact).abs().max() < 1e-6
        enough = next(n for n in (10, 15, 20, 25, 30) if (run("etdrk4", n) - exact).abs().max() < 1e-6)
        for steps in (20 * enough - 1, 25 * enough):  # rk4 is unstable there: 256 points, nu k^2 dt > 2.785
            error = (run("rk4", steps) - exact).abs().max()
            assert steps > 580 or not error < 1e-6
    assert 20 * enough <= 580


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_matrix_and_its_symbol_act_alike(shape: tuple[int, ...]) -> None:
    fourier = Reacting(n=9).linear()
    fourier = FourierOperator(fourier.symbol.detach() + 0.3j * torch.arange(5), 9)
    dense = DenseOperator(fourier(torch.eye(9, dtype=torch.float64)).mT)
    u = torch.randn(*shape, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense(u), fourier(u))
    torch.testing.assert_close(dense.solve(0.7, u), fourier.solve(0.7, u))
    for a, b in zip(dense.phi(0.7, 3), fourier.phi(0.7, 3), strict=True):
        torch.testing.assert_close(dense.apply(a, u), fourier.inverse(fourier.apply(b, fourier.forward(u))))
    torch.testing.assert_close(fourier.solve(0.7, u) - 0.7 * fourier(fourier.solve(0.7, u)), u)


def test_an_equation_may_be_solved_with_other_steps_afterwards() -> None:
    """What it keeps of one size of step does not serve another."""
    equation, start = Burgers(Grid1D(16), 0.05), torch.sin(2 * math.pi * torch.arange(16, dtype=torch.float64) / 16)
    with torch.no_grad():
        exact = odeint(equation, start, [0.0, 0.2], method="dopri8", steps=30)[-1]
        run = lambda steps: odeint(equation, start, [0.0, 0.2], method="etdrk4", steps=steps)[-1]
        errors = [(run(steps) - exact).abs().max().item() for steps in (20, 80)]
    assert 0 < errors[1] < errors[0] / 100


@pytest.mark.parametrize("z", [0.0, 1e-9, 0.3j, -0.99, 1.01j, -1.01, -30.0, 2 + 5j])
def test_phi_functions_are_integrals_of_exponentials(z: complex) -> None:
    s, w = torch.linspace(0, 1, 4001, dtype=torch.float64), torch.tensor(z, dtype=torch.complex128)
    found = phi_functions(w, 3)
    for j in (1, 2, 3):  # phi_j(z) = int_0^1 exp((1 - s) z) s^(j-1) / (j-1)! ds, by Simpson
        values = torch.exp((1 - s) * w) * s ** (j - 1) / math.factorial(j - 1)
        simpson = (values[:-1:2] + 4 * values[1::2] + values[2::2]).sum() / (3 * 4000)
        torch.testing.assert_close(found[j], simpson, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0], torch.exp(w))


def test_phi_functions_are_differentiable_at_zero() -> None:
    z = torch.tensor([0.0, 0.5j, -2.0], dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: tuple(phi_functions(z, 3)), z)


def test_implicit_midpoint_keeps_quadratic_invariants_and_takes_trees() -> None:
    def top(t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        a, (b, c) = y["a"], y["bc"]
        return {"a": b * c, "bc": (-2 * a * c, a * b)}  # a^2 + b^2 + c^2 stays

    y0 = {"a": torch.tensor([0.6]).double(), "bc": (torch.tensor([0.5]).double(), torch.tensor([-0.4]).double())}
    y = odeint(top, y0, [0.0, 20.0], method="implicit_midpoint", steps=50)
    square = y["a"] ** 2 + y["bc"][0] ** 2 + y["bc"][1] ** 2
    torch.testing.assert_close(square[-1], square[0], rtol=1e-9, atol=0)


def test_implicit_steps_of_complex_and_of_single_precision() -> None:
    y = odeint(lambda t, y: 1j * y, torch.ones(2, dtype=torch.complex128), [0.0, 1.0], method="implicit_midpoint", steps=10)[-1]
    torch.testing.assert_close(y, torch.full_like(y, ((1 + 0.05j) / (1 - 0.05j)) ** 10))
    y = odeint(lambda t, y: -1e3 * y, torch.ones(3), [0.0, 1.0], method="backward_euler", steps=10)[-1]
    assert y.dtype == torch.float32 and y.abs().max() < 1e-15


def test_a_network_is_stepped_implicitly_in_few_evaluations() -> None:
    f = MLP()
    z = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = solve(f, z, [0.0, 1.0], method="backward_euler", steps=4)
    assert run.stats.evaluations_forward < 4 * 40
    torch.testing.assert_close(run.ys[-1], odeint(f, z, [0.0, 1.0], method="backward_euler", steps=4, adjoint="direct")[-1])


def test_a_step_that_cannot_be_solved_says_so() -> None:
    f = lambda t, y: 1 + y**2  # blows up at pi/2
    with pytest.raises(SolveError, match=r"at t=0\.75, step 4: Newton's iteration of backward_euler"):
        odeint(f, torch.zeros(2).double(), [0.0, 2.0], method="backward_euler", steps=8)
    run = solve(f, torch.zeros(2).double(), [0.0, 2.0], method="backward_euler", steps=8, throw=False, save="steps")
    assert run.status.reason == "not solved" and run.status.step == len(run.ys) - 1


def test_what_they_refuse() -> None:
    u = torch.ones(16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"etdrk4 needs func\.split\(\)"):
        odeint(lambda t, u: -u, u, [0.0, 1.0], method="etdrk4", steps=2)
    with pytest.raises(ValueError, match="single tensor as y0"):
        odeint(Reacting(16), (u, u), [0.0, 1.0], method="imex2", steps=2)
    for adjoint in ("reversible", "backsolve"):
        for method in ("etdrk4", "imex1", "backward_euler", "rodas4"):
            with pytest.raises(ValueError, match=f"{method} is not made"):
                odeint(Reacting(16), u.clone().requires_grad_(), [0.0, 1.0], method=method, steps=2, adjoint=adjoint)
    with pytest.raises(ValueError, match="first derivatives only"):
        y0 = u.clone().requires_grad_()
        end = odeint(Reacting(16), y0, [0.0, 1.0], method="backward_euler", steps=2, adjoint="direct")[-1]
        torch.autograd.grad(end.square().sum(), y0, create_graph=True)
    with pytest.raises(ValueError, match="iterates"):
        torch.func.grad(lambda y: odeint(Reacting(16), y, [0.0, 1.0], method="backward_euler", steps=2, adjoint="direct")[-1].sum())(u)
    with pytest.raises(ValueError, match="9 entries"):
        FourierOperator(torch.zeros(8), 16)
    with pytest.raises(ValueError, match="square matrix"):
        DenseOperator(torch.zeros(3, 4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own forward mode uses it
@pytest.mark.parametrize("method", ["etdrk4", "imex2"])
def test_whole_solves_compile_and_vectorise(method: str) -> None:
    equation = Burgers(Grid1D(16), 0.1)
    u = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = lambda u: odeint(equation, u, [0.0, 0.1], method=method, steps=2, adjoint="direct")[-1]
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(u), run(u))
    torch.testing.assert_close(torch.vmap(run)(u), run(u))
    moved = torch.func.jvp(run, (u,), (torch.ones_like(u),))[1]
    torch.testing.assert_close(moved, (run(u + 1e-6) - run(u - 1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)


def test_a_gradient_that_cannot_be_solved_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    y0 = torch.linspace(0.1, 1, 40, dtype=torch.float64).requires_grad_()
    rates = -torch.logspace(0, 6, 40, dtype=torch.float64)
    end = odeint(lambda t, y: rates * y, y0, [0.0, 1.0], method="backward_euler", steps=1, adjoint="direct")[-1]
    monkeypatch.setattr("anodev2.solvers.krylov.RESTART", 3)
    monkeypatch.setattr("anodev2.solvers.krylov.CYCLES", 2)
    with pytest.raises(RuntimeError, match="could not be solved for"):
        end.sum().backward()


def test_what_an_operator_keeps_follows_its_symbol_and_serves_training() -> None:
    symbol = -torch.arange(9, dtype=torch.float64).to(torch.complex128)
    operator, u = FourierOperator(symbol, 16), torch.randn(16, dtype=torch.float64, requires_grad=True)

    def flow(own: FourierOperator) -> Tensor:
        f = lambda t, u: own(u)
        f.split = lambda: (own, lambda t, u: torch.zeros_like(u))  # pyright: ignore[reportFunctionMemberAccess]
        return odeint(f, u, [0.0, 0.2], method="etdrk4", steps=2)[-1]

    with torch.inference_mode():
        flow(operator)
    before = flow(operator)
    before.sum().backward()
    symbol.mul_(2)
    assert torch.equal(flow(operator), flow(FourierOperator(symbol.clone(), 16)))
    assert not torch.equal(flow(operator), before)


def test_a_table_is_moved_to_a_device_once_and_again_when_it_has_changed() -> None:
    symbol, v = torch.ones(9, dtype=torch.complex128), torch.ones(9, dtype=torch.complex64, device="meta")
    operator = FourierOperator(symbol, 16)
    beside = lambda: operator.kept("L", v, lambda: operator.symbol)
    first = beside()
    assert first.is_meta and first.dtype == v.dtype and beside() is first
    symbol.mul_(2)
    assert beside() is not first
    learned = FourierOperator(symbol.clone().requires_grad_(), 16)
    assert learned.kept("L", symbol, lambda: learned.symbol) is learned.symbol


STARTS = {"nothing": (), "one at rest": (8,), "an end at rest": (0,), "two at rest": (3, 12), "moved, at rest": (20,)}


@pytest.mark.parametrize(
    ("method", "dtype", "start"),
    rows(["esdirk4", "kvaerno5"], [torch.float64, torch.float32], STARTS, quick=[("esdirk4", torch.float64, "one at rest")]),
)
def test_a_wave_at_rest_begins_to_move(method: str, dtype: torch.dtype, start: str) -> None:
    """u'' = u_xx from fields that are zero nearly everywhere, on a grid and with error control, as the exponential of the matrix has it."""
    n = 16
    laplacian = torch.roll(torch.eye(n), 1, 0) + torch.roll(torch.eye(n), -1, 0) - 2 * torch.eye(n)
    matrix = torch.cat([torch.cat([torch.zeros(n, n), torch.eye(n)], 1), torch.cat([laplacian, torch.zeros(n, n)], 1)]).to(dtype)
    y0, weights = torch.zeros(2 * n, dtype=dtype), torch.linspace(1, 2, 2 * n, dtype=dtype)
    for place in STARTS[start]:
        y0[place] = 1.0
    y0.requires_grad_()
    exact = torch.matrix_exp(2 * matrix)
    ways: list[dict[str, Any]] = [{"steps": 20}, {"rtol": 1e-6, "atol": 1e-7}]
    for options in ways:
        y = odeint(lambda t, y: matrix @ y, y0, [0.0, 2.0], method=method, **options)[-1]
        assert (y - exact @ y0).abs().max() < 3e-5
        if start != "nothing" or "steps" in options:  # else a single step is accurate enough
            assert (torch.autograd.grad((weights * y).sum(), y0)[0] - exact.T @ weights).abs().max() < 3e-4
