"""States between the steps: exact at the nodes, accurate between them, differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from anodev2 import CheckpointAdjoint, solve
from problems import MLP, RUNGE_KUTTA, Pendulum, pendulum_state, vector

decay = lambda t, y: -2 * t * y**2
exact = lambda t: 1 / (1 + t**2)


@pytest.mark.parametrize("method", sorted({*RUNGE_KUTTA, "implicit_midpoint"}))
@pytest.mark.parametrize("times", [[0.0, 0.4, 1.0], [1.0, 0.4, 0.0]])
def test_values_at_nodes_are_the_states(method: str, times: list[float]) -> None:
    state = pendulum_state()
    every = solve(Pendulum(), state, times, method=method, steps=3, save="steps")
    found = solve(Pendulum(), state, times, method=method, steps=3, dense=True)
    assert len(found.grid) == 7 and len(found.ys["q"]) == 3
    assert all(map(torch.equal, tree_leaves(found(found.grid)), tree_leaves(every.ys)))
    assert all(map(torch.equal, tree_leaves(found(times)), tree_leaves(found.ys)))


def test_one_time_gives_a_state_and_several_stack_them() -> None:
    found = solve(Pendulum(), pendulum_state(False), [0.0, 1.0], steps=4, dense=True)
    one, many, tensor = found(0.3), found([0.3, 0.8]), found(torch.tensor([0.8, 0.3]))
    assert one["more"][1].shape == () and one["q"].shape == (5,) and many["q"].shape == (2, 5)
    assert torch.equal(one["q"], many["q"][0])
    torch.testing.assert_close(tensor["q"].flip(0), many["q"], rtol=1e-6, atol=1e-6)


# methods without interpolant have the cubic through states and slopes
@pytest.mark.parametrize(
    ("method", "order"),
    [
        *(("dopri5", 5), ("tsit5", 5), ("bosh3", 3), ("ssprk3", 3), ("rk4", 4), ("dopri8", 7), ("heun2", 2), ("euler", 1)),
        *(("rodas4", 4), ("rodas5p", 5), ("esdirk4", 4), ("kvaerno5", 5)),
    ],
)
@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
def test_the_error_between_nodes_falls_with_the_order(method: str, order: int, span: tuple[float, float]) -> None:
    between = torch.linspace(0.013, 1.987, 301, dtype=torch.float64)
    errors = []
    for steps in {"dopri8": (5, 10), "esdirk4": (20, 40)}.get(method, (40, 80) if method in RUNGE_KUTTA else (10, 20)):
        found = solve(decay, exact(torch.tensor(span[0]).double()), span, method=method, steps=steps, dense=True)
        errors.append((found(between) - exact(between)).abs().max().item())
    assert np.log2(errors[0] / errors[1]) > order - 0.25


def test_adaptive_dense_output_is_about_as_good_as_the_states() -> None:
    times = torch.linspace(0.1, 2.9, 57, dtype=torch.float64)
    for method in ("dopri5", "tsit5", "bosh3"):
        found = solve(decay, torch.tensor(1.0).double(), [0.0, 3.0], method=method, rtol=1e-6, atol=1e-6, dense=True)
        assert (found(times) - exact(times)).abs().max() < 2e-5


def differences(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Central ones, of each element."""
    shifts = 1e-5 * torch.eye(at.numel(), dtype=at.dtype).reshape(-1, *at.shape)
    with torch.no_grad():
        return torch.stack([(loss(at + shift) - loss(at - shift)) / 2e-5 for shift in shifts]).reshape(at.shape)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", CheckpointAdjoint(slots=2)])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "rodas4", pytest.param("kvaerno5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("times", [[0.0, 0.7, 1.5], [1.5, 0.7, 0.0]])
def test_gradients_between_nodes_are_those_of_differences(times: list[float], method: str, adjoint: Any) -> None:
    """With respect to the state, args, the steps' times, and the time asked for, between nodes and at them."""
    net, weights = MLP(2), torch.randn(4, 2, dtype=torch.float64)
    y0, scale = torch.randn(2, dtype=torch.float64), torch.tensor([1.2, 0.7], dtype=torch.float64)
    f = lambda t, y, scale: scale * net(t, y)
    asked = torch.tensor([0.11, 0.7, 0.9, 1.5], dtype=torch.float64)

    def loss(y0: Tensor, scale: Tensor, nodes: Any, asked: Tensor) -> Tensor:
        found = solve(f, y0, nodes, method=method, steps=2, args=(scale,), adjoint=adjoint, dense=True)
        return (found(asked) * weights).sum()

    nodes = torch.tensor(times, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for x in (y0, scale, asked)]
    found = torch.autograd.grad(loss(inputs[0], inputs[1], times, inputs[2]), inputs)
    torch.testing.assert_close(found[0], differences(lambda x: loss(x, scale, times, asked), y0), rtol=0, atol=1e-8)
    torch.testing.assert_close(found[1], differences(lambda x: loss(y0, x, times, asked), scale), rtol=0, atol=1e-8)
    inside = asked[[0, 2]]  # at a node the interpolant has a kink
    slopes = differences(lambda x: loss(y0, scale, times, torch.stack([x[0], asked[1], x[1], asked[3]])), inside)
    torch.testing.assert_close(found[2][[0, 2]], slopes, rtol=0, atol=1e-7)
    assert found[2].all()
    weights = weights[[0, 2]]
    asked = inside
    moving = nodes.clone().requires_grad_()
    (of_times,) = torch.autograd.grad(loss(y0, scale, moving, asked), moving)
    torch.testing.assert_close(of_times, differences(lambda x: loss(y0, scale, x, asked), nodes), rtol=0, atol=1e-8)


def test_a_dense_solve_may_reach_parameters_by_itself() -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64)
    ends = []
    for adjoint in ("direct", "checkpoint"):
        found = solve(net, y0, [0.0, 1.0], method="tsit5", rtol=1e-3, atol=1e-3, dense=True, adjoint=adjoint)
        ends.append(torch.autograd.grad(found([0.2, 0.6]).square().sum(), list(net.parameters())))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-13)


def test_float32_and_complex_states_keep_their_dtype() -> None:
    for dtype in (torch.float32, torch.complex64):
        for method in ("rk4", "dopri5"):
            times = torch.tensor([0.0, 1.0], requires_grad=True)
            found = solve(lambda t, y: -y, torch.ones(2, dtype=dtype), times, method=method, steps=3, dense=True)
            asked = torch.tensor([0.2, 0.5], requires_grad=True)
            assert found(asked).dtype == found(0.5).dtype == dtype
            torch.testing.assert_close(found(0.5).real, torch.full((2,), 0.60653), rtol=1e-3, atol=0)


def test_asking_what_was_not_kept_or_not_solved_is_refused() -> None:
    with pytest.raises(ValueError, match="solve with dense=True"):
        solve(decay, torch.ones(1), [0.0, 1.0], steps=2)(0.5)
    found = solve(decay, torch.ones(1), [1.0, 0.0], steps=2, dense=True)
    for wrong in (-0.1, 1.1, [0.5, 2.0], [], [[0.5]], float("nan"), "now", torch.tensor([0.5, 1.5])):
        with pytest.raises(ValueError, match=r"must be a time between 0.0 and 1.0"):
            found(wrong)


def test_a_solve_that_ended_early_is_dense_up_to_there() -> None:
    found = solve(decay, torch.ones(1), [0.0, 1.0], steps=10, dense=True, max_steps=4, throw=False)
    assert found(0.4).shape == (1,) and found.grid[-1] == 0.4
    with pytest.raises(ValueError, match=r"between 0.0 and 0.4"):
        found(0.41)


def test_asking_between_the_steps_leaves_no_trace() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5)).double()
    found = solve(lambda t, y: net(y), torch.randn(4, 2).double(), [0.0, 1.0], steps=4, dense=True)
    before, random = [buffer.clone() for buffer in net.buffers()], torch.get_rng_state()
    found([0.3, 0.6])
    assert all(map(torch.equal, net.buffers(), before)) and torch.equal(random, torch.get_rng_state())


def test_a_list_of_times_may_hold_one_that_wants_a_gradient() -> None:
    s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = solve(lambda t, y: torch.cos(t) * y, torch.ones(1).double(), [0.0, 1.0], method="dopri5", steps=4, dense=True)
    (slope,) = torch.autograd.grad(found([s, 0.7])[0, 0], s)
    exact = torch.cos(s) * torch.exp(torch.sin(s))
    assert slope.item() == pytest.approx(exact.item(), rel=1e-3)


def test_a_dense_solution_evaluates_nothing_anew() -> None:
    """With error control and on a grid; without an interpolant both ends of a step, once for all times asked in all calls."""
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return decay(t, y)

    times = torch.linspace(0, 2, 300, dtype=torch.float64)
    cases: list[tuple[str, dict[str, Any]]] = [("dopri5", {}), ("dopri8", {}), ("tsit5", {"steps": 8}), ("rk4", {"steps": 8})]
    cases += [(method, {"rtol": 1e-3}) for method in ("rodas5p", "kvaerno5", "auto")]
    for method, options in cases:
        found = solve(f, exact(torch.tensor(0.0).double()), [0.0, 2.0], method=method, dense=True, **options)
        calls = 0
        for asked in (times, times[100:], 0.7):
            found(asked), found.rate(asked)  # pyright: ignore[reportUnusedExpression]
        assert calls == (16 if method == "rk4" else 0)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "heun2", "rk4", "implicit_midpoint", "rodas5p", "esdirk4"])
def test_the_rate_is_the_derivative_of_what_is_between(method: str) -> None:
    """Against differences of the solution, and close to f; it has a gradient as the states have."""
    y0, scale = vector(1.0, 2.0).requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    f = lambda t, y, scale: -scale * t * y
    found = solve(f, y0, [0.0, 1.0], method=method, steps=5, dense=True, args=(scale,))
    asked = vector(0.11, 0.33, 0.35, 0.97)
    rate = found.rate(asked)
    torch.testing.assert_close(rate, (found(asked + 1e-6) - found(asked - 1e-6)) / 2e-6, rtol=0, atol=1e-8)
    torch.testing.assert_close(rate, f(asked[:, None], found(asked), scale), rtol=0.1, atol=0.02)
    assert found.rate(0.35).shape == (2,) and torch.equal(found.rate(0.35), rate[2])

    def loss(y0: Tensor, scale: Tensor, asked: Tensor) -> Tensor:
        return solve(f, y0, [0.0, 1.0], method=method, steps=5, dense=True, args=(scale,)).rate(asked).square().sum()

    inputs = (y0, scale, asked.requires_grad_())
    slopes = torch.autograd.grad(loss(*inputs), inputs)
    for place, slope in enumerate(slopes):
        moved = lambda x, place=place: loss(*(x if i == place else other.detach() for i, other in enumerate(inputs)))
        torch.testing.assert_close(slope, differences(moved, inputs[place].detach()), rtol=0, atol=1e-7)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", CheckpointAdjoint(slots=3)])
def test_a_delay_equation_by_the_method_of_steps(adjoint: Any) -> None:
    """y' = -a y(t - 1), y = 1 before 0: 1 - a, then 1 - 2 a + a^2 / 2 ...; each piece costs its own steps alone."""
    a, calls = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), []
    past, y = (lambda t: torch.ones(1, dtype=torch.float64)), torch.ones(1, dtype=torch.float64)
    for k in range(4):
        count = 0

        def f(t: Tensor, y: Tensor, past: Any = past) -> Tensor:
            nonlocal count
            count += 1
            return -a * past(t - 1.0)

        past = solve(f, y, [float(k), k + 1.0], method="dopri5", rtol=1e-6, atol=1e-8, dense=True, adjoint=adjoint)
        y = past.ys[-1]
        calls.append(count)
    assert y.item() == pytest.approx(5 / 24, abs=1e-7) and max(calls) < 40  # 7 to the power of the pieces before
    if adjoint in ("direct", "checkpoint"):
        (slope,) = torch.autograd.grad(y, a)  # y(4) = 1 - 4 a + 9/2 a^2 - 4/3 a^3 + 1/24 a^4
        assert slope.item() == pytest.approx(-4 + 9 - 4 + 1 / 6, abs=1e-6)
