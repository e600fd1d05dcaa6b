"""method="auto": an explicit method that gives way to a stiff one and comes back."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from anodev2 import METHODS, Adjoint, Auto, CheckpointAdjoint, Event, Solution, Tableau, odeint, solve, stability_function
from anodev2.solvers.auto import reach
from problems import STIFF_PROBLEMS, Stiff

VAN_DER_POL, ROBERTSON, HIRES, OREGONATOR = STIFF_PROBLEMS


def radau(problem: Stiff, times: list[float], **more: Any) -> Any:
    """scipy's solution at 1e-11."""
    f = lambda t, y: problem.func(torch.tensor(t), torch.tensor(y)).numpy()
    return solve_ivp(f, (0.0, times[-1]), problem.y0, method="Radau", rtol=1e-11, atol=1e-13, t_eval=times, **more)


CASES = [
    pytest.param(problem, tolerance, marks=() if (problem, tolerance) == (ROBERTSON, 1e-4) else pytest.mark.slow)
    for problem in (VAN_DER_POL, ROBERTSON, OREGONATOR)
    for tolerance in (1e-4, 1e-6)
]


@pytest.mark.parametrize(("problem", "tolerance"), CASES, ids=str)
def test_stiff_problems_within_some_tolerances_by_both_methods(problem: Stiff, tolerance: float) -> None:
    """Relaxation oscillations change sides at every jump; no more evaluations than a third above those of the stiff method alone."""
    atol = problem.atol * tolerance
    y0, end = torch.tensor(problem.y0, dtype=torch.float64), torch.tensor(problem.end, dtype=torch.float64)
    with torch.no_grad():
        found, stiff = (
            solve(problem.func, y0, [0.0, problem.t1], method=method, rtol=tolerance, atol=atol) for method in ("auto", "rodas5p")
        )
    assert ((found.ys[-1] - end).abs() / (atol + tolerance * end.abs())).max() < 10
    assert len(found.methods) == found.stats.accepted and found.methods[0] == "tsit5" and set(found.methods) == {"tsit5", "rodas5p"}
    changes = sum(a != b for a, b in pairwise(found.methods))
    assert changes == 1 if problem is ROBERTSON else 4 < changes < 12
    assert found.stats.evaluations_forward < 1.34 * stiff.stats.evaluations_forward


CALM = {
    "circle": (lambda t, y: torch.stack([y[1], -y[0]]), [1.0, 0.0], 20.0),
    "logistic": (lambda t, y: y * (1 - y), [0.01], 12.0),
    "Lorenz": (
        lambda t, y: torch.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]),
        [1.0, 1.0, 1.0],
        5.0,
    ),
    "restricted three bodies": (lambda t, y: _arenstorf(y), [0.994, 0.0, 0.0, -2.00158510637908], 6.0),
}


def _arenstorf(y: Tensor) -> Tensor:
    mu, (a, b, c, d) = 0.012277471, y.unbind()
    near, far = ((a + mu) ** 2 + b**2) ** 1.5, ((a - 1 + mu) ** 2 + b**2) ** 1.5
    return torch.stack(
        [
            *(c, d, a + 2 * d - (1 - mu) * (a + mu) / near - mu * (a - 1 + mu) / far),
            b - 2 * c - (1 - mu) * b / near - mu * b / far,
        ]
    )


@pytest.mark.parametrize("name", CALM)
def test_a_problem_that_is_not_stiff_is_left_to_the_explicit_method(name: str) -> None:
    """Its very steps, and not one evaluation more."""
    f, start, end = CALM[name]
    y0 = torch.tensor(start, dtype=torch.float64)
    found, alone = (solve(f, y0, [0.0, end], method=method, rtol=1e-6, atol=1e-6) for method in ("auto", "tsit5"))
    assert set(found.methods) == set(alone.methods) == {"tsit5"}
    assert found.grid == alone.grid and torch.equal(found.ys, alone.ys)
    assert found.stats.evaluations_forward == alone.stats.evaluations_forward


class Fast(nn.Module):
    """y follows a slow oscillation, at a rate that is high between t = 0.5 and 1.2."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(400.0).double())
        self.mix = nn.Linear(2, 2, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([[0.1, 1.0], [-1.0, 0.2]]))
            self.mix.bias.copy_(torch.tensor([0.1, -0.3]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        window = torch.sigmoid(60 * (t - 0.5)) * torch.sigmoid(60 * (1.2 - t))
        fast = torch.stack([torch.zeros_like(y[..., 0]), torch.cos(3 * t) - y[..., 1]], -1)
        return self.mix(y) + self.rate * window * fast


def outcome(adjoint: str | Adjoint, falling: bool = False, **options: Any) -> tuple[Solution, list[Tensor]]:
    """A solve that changes to the stiff method and back, and gradients of start, times and parameters."""
    f, y0 = Fast(), torch.tensor([[0.5, 1.0], [1.0, -0.4]], dtype=torch.float64).requires_grad_()
    field = (lambda t, y: -f(2 - t, y)) if falling else f
    times = torch.tensor([2.0, 1.1, 0.0] if falling else [0.0, 0.9, 2.0], dtype=torch.float64, requires_grad=True)
    found = solve(field, y0, times, method="auto", rtol=1e-4, atol=1e-5, adjoint=adjoint, **options)
    weights = torch.arange(1.0, 13.0).double().reshape(3, 2, 2)
    return found, list(torch.autograd.grad((weights * found.ys).sum(), [y0, times, *f.parameters()]))


@pytest.mark.parametrize("falling", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_adjoint_has_the_gradient_of_store_all_across_changes(falling: bool) -> None:
    stored, expected = outcome("direct", falling)
    assert [a for a, b in pairwise(stored.methods) if a != b] == ["tsit5", "rodas5p"]
    for adjoint in (CheckpointAdjoint(), CheckpointAdjoint(slots=7), CheckpointAdjoint(offload="cpu")):
        found, gradients = outcome(adjoint, falling)
        assert torch.equal(found.ys, stored.ys) and found.methods == stored.methods
        assert torch.equal(gradients[0], expected[0])
        for one, other in zip(gradients[1:], expected[1:], strict=True):
            assert (one - other).abs().max() <= 1e-13 * other.abs().max()


@pytest.mark.slow
def test_its_steps_are_those_of_the_named_methods_and_so_is_its_gradient() -> None:
    """A loop written by hand over the grid, each step by the method that took it: states, gradients, central differences."""
    found, gradients = outcome("checkpoint", hit="exact")
    f, start = Fast(), torch.tensor([[0.5, 1.0], [1.0, -0.4]], dtype=torch.float64)

    def loop(y: Tensor, rate: float) -> Tensor:
        with torch.no_grad():
            f.rate.fill_(rate)
        kept = [y]
        for (a, b), method in zip(pairwise(found.grid), found.methods, strict=True):
            y = odeint(f, y, [a, b], method=method, steps=1, adjoint="direct")[-1]
            kept += [y] if b in (0.9, 2.0) else []
        return (torch.arange(1.0, 13.0).double().reshape(3, 2, 2) * torch.stack(kept)).sum()

    y0 = start.clone().requires_grad_()
    expected = torch.autograd.grad(loop(y0, 400.0), [y0, *f.parameters()])
    for one, other in zip([gradients[0], *gradients[2:]], expected, strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()
    with torch.no_grad():
        slope = (loop(start, 400.01) - loop(start, 399.99)).item() / 0.02
    assert gradients[2].item() == pytest.approx(slope, rel=1e-6)


def test_looking_for_stiffness_leaves_no_trace() -> None:
    """A buffer counts the evaluations of accepted steps alone: six of tsit5, eight of rodas5p."""
    f = Fast()
    with torch.no_grad():
        found = solve(f, torch.tensor([[0.5, 1.0]]).double(), [0.0, 2.0], method="auto", rtol=1e-4, atol=1e-6)
    stiff = found.methods.count("rodas5p")
    assert 0 < stiff < len(found.methods)
    assert f.calls.item() == 6 * (len(found.methods) - stiff) + 8 * stiff


@pytest.mark.slow
def test_events_and_what_is_between_steps() -> None:
    """On both sides of the change, against scipy; and the gradient of an event's time by the closed form of -dy/dp / f."""
    y0 = torch.tensor(ROBERTSON.y0, dtype=torch.float64)
    event = Event(lambda t, y: y[0] - 0.8, terminal=True)
    options: dict[str, Any] = {"method": "auto", "rtol": 1e-7, "atol": 1e-10}
    found = solve(ROBERTSON.func, y0, [0.0, 0.3, math.inf], event=event, dense=True, **options)

    def surface(t: float, y: Any) -> float:
        return y[0] - 0.8

    surface.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    right = radau(ROBERTSON, [0.0, 0.001, 0.3, 3.0, 30.0], events=surface)
    assert found.methods[0] == "tsit5" and found.methods[-1] == "rodas5p"
    assert found.event_time is not None and found.event_time.item() == pytest.approx(right.t_events[0][0], rel=1e-6)
    inside = [0.001, 0.3, 3.0]
    torch.testing.assert_close(found(inside), torch.tensor(right.y.T[1:4]), rtol=2e-6, atol=2e-10)
    assert torch.equal(found(found.grid[-1]), found.ys[-1])
    times = solve(ROBERTSON.func, y0, [0.0, *inside], **options)
    torch.testing.assert_close(times.ys[1:], torch.tensor(right.y.T[1:4]), rtol=1e-6, atol=1e-10)

    def when(rate: Tensor) -> Tensor:
        late = solve(lambda t, y: rate * ROBERTSON.func(t, y), y0, [0.0, 40.0], event=event, **options).event_time
        assert late is not None
        return late

    rate = torch.ones((), dtype=torch.float64, requires_grad=True)
    time = when(rate)
    (slope,) = torch.autograd.grad(time, rate)
    assert slope.item() == pytest.approx(-time.item(), rel=1e-5)  # t = T / rate


def test_states_of_every_kind() -> None:
    """A tree with a complex leaf, and float32, as scipy's implicit method has them."""
    f = lambda t, y: {"z": (-300 + 20j) * (y["z"] - torch.exp(1j * t)), "x": -y["x"] + y["z"].real}
    y0 = {"z": torch.tensor([2.0 + 0j], dtype=torch.complex64), "x": torch.tensor([0.5])}
    found = solve(f, y0, [0.0, 3.0], method="auto", rtol=1e-4, atol=1e-5)
    g = lambda t, y: [(-300 + 20j) * (y[0] - math.e ** (1j * t)), -y[1] + y[0].real]
    right = solve_ivp(g, (0, 3), [2 + 0j, 0.5 + 0j], method="BDF", rtol=1e-8, atol=1e-10).y[:, -1]
    assert set(found.methods) == {"tsit5", "rodas5p"} and found.ys["x"].dtype == torch.float32
    assert abs(found.ys["z"][-1].item() - right[0]) < 1e-3 > abs(found.ys["x"][-1].item() - right[1])


@pytest.mark.slow
def test_a_large_state_goes_over_to_a_method_that_needs_no_matrix() -> None:
    """Heat on 140 points, whose sine decays by the eigenvalue of the second difference."""
    n = 140
    x = torch.arange(1, n + 1).double() / (n + 1)
    padded = lambda u: nn.functional.pad(u[None], (1, 1))[0]
    f = lambda t, u: padded(u).diff(n=2) * (n + 1) ** 2
    u0 = torch.sin(math.pi * x)
    found = solve(f, u0, [0.0, 0.02], method="auto", rtol=1e-3, atol=1e-4)
    decay = math.exp(-4 * (n + 1) ** 2 * math.sin(math.pi / 2 / (n + 1)) ** 2 * 0.02)
    assert set(found.methods) == {"tsit5", "kvaerno5"}
    assert (found.ys[-1] - decay * u0).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "bosh3"])
def test_where_an_explicit_method_stops_being_stable(name: str) -> None:
    tableau = METHODS[name]
    assert isinstance(tableau, Tableau)
    assert reach(tableau) == pytest.approx(stability_function(name).limit(torch.tensor([-1.0 + 0j])), abs=0.011)


def test_methods_of_ones_own() -> None:
    found = solve(ROBERTSON.func, torch.tensor(ROBERTSON.y0).double(), [0.0, 5.0], method=Auto("dopri5", "esdirk4"), rtol=1e-4, atol=1e-7)
    assert set(found.methods) == {"dopri5", "esdirk4"}
    right = torch.tensor(radau(ROBERTSON, [0.0, 5.0]).y[:, -1])
    assert ((found.ys[-1] - right).abs() <= 10 * (1e-4 * right.abs() + 1e-7)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4}, "error control goes on, which is not for a grid: name one"),
        ({"grid": [0.0, 0.5, 1.0]}, "not for a grid: name one"),
        ({"per_sample": True}, "per_sample=True, whose samples share one"),
        ({"adjoint": "reversible"}, "ReversibleAdjoint"),
        ({"adjoint": "backsolve"}, "BacksolveAdjoint .* for which auto is not made: use adjoint='checkpoint'"),
    ],
)
def test_what_needs_one_method_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        odeint(lambda t, y: -y, torch.ones(2, 1, requires_grad=True), [0.0, 1.0], method="auto", **options)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [(("rk4",), "explicit='rk4' must be 'tsit5', 'dopri5' or"), (("tsit5", "euler"), "stiff='euler' must be one of rodas5p")],
)
def test_methods_that_cannot_change_are_refused(chosen: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Auto(*chosen)
