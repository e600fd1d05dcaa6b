"""Callbacks, progress, limits, what is saved, and events."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from anodev2 import CheckpointAdjoint, Event, ReversibleAdjoint, Solution, SolveError, odeint, solve
from problems import MLP, Pendulum, pendulum_state, vector
from sampled import rows

ADJOINTS = {"direct": "direct", "checkpoint": "checkpoint", "slots": CheckpointAdjoint(slots=2)}
STEPPINGS: dict[str, dict[str, Any]] = {
    "grid": {"method": "rk4", "steps": 7},
    "adaptive": {"method": "dopri5", "rtol": 1e-9, "atol": 1e-11},
}


@pytest.mark.parametrize("stepping", STEPPINGS)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_the_callback_sees_every_accepted_step_in_order(adjoint: str, stepping: str) -> None:
    seen: list[tuple[float, Any]] = []
    state = pendulum_state()
    options: dict[str, Any] = {"adjoint": ADJOINTS[adjoint], **STEPPINGS[stepping]}
    found = solve(Pendulum(), state, [0.0, 0.4, 1.0], save="steps", callback=lambda t, y: seen.append((t, y)), **options)
    assert [type(t) for t, _ in seen] == [float] * found.stats.accepted
    assert [0.0, *(t for t, _ in seen)] == list(found.grid) == found.ts.tolist()
    for place, (_, y) in enumerate(seen):
        assert all(torch.equal(leaf, row[place + 1]) for leaf, row in zip(tree_leaves(y), tree_leaves(found.ys), strict=True))
        assert not any(leaf.requires_grad for leaf in tree_leaves(y))


@pytest.mark.parametrize("times", [[0.0, 1.0, 3.0], [3.0, 1.0, 0.0]])
def test_the_progress_bar_runs_to_its_end(times: list[float]) -> None:
    for options in STEPPINGS.values():
        screen = io.StringIO()
        with redirect_stderr(screen):
            solve(lambda t, y: -y, vector(1), times, progress=True, **options)
        assert "100%" in screen.getvalue() and "t=3/3" in screen.getvalue()
    screen = io.StringIO()
    with redirect_stderr(screen):
        solve(lambda t, y: -y, vector(1), times, steps=10, progress=True, max_steps=5, throw=False)
    assert "100%" not in screen.getvalue() and screen.getvalue()


@pytest.mark.parametrize("stepping", STEPPINGS)
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_max_steps_ends_the_solve_with_what_was_reached(adjoint: str, stepping: str) -> None:
    y0 = vector(1, 2).requires_grad_()
    options: dict[str, Any] = {"adjoint": ADJOINTS[adjoint], **STEPPINGS[stepping]}
    run = lambda **more: solve(lambda t, y: -y, y0, [0.0, 0.2, 5.0], **options, **more)
    found, whole = run(max_steps=9, throw=False, save="steps"), run(save="steps")
    assert found.status.reason == "max_steps" and not found.status.ok and "max_steps=9" in found.status.message
    assert found.stats.accepted == found.status.step == 9 and len(found.grid) == 10 == len(found.ts)
    assert torch.equal(found.ys, whole.ys[:10]) and found.grid == whole.grid[:10]
    assert found.status.t == found.grid[-1] and torch.equal(found.status.y, found.ys[-1])
    (gradient,) = torch.autograd.grad(found.ys[-1].sum(), y0)
    torch.testing.assert_close(gradient, torch.full((2,), math.exp(-found.grid[-1])).double(), rtol=1e-2, atol=0)
    assert run(max_steps=9, throw=False).ts.tolist() == [0.0, 0.2]
    with pytest.raises(SolveError, match="max_steps=9 were done") as caught:
        run(max_steps=9)
    assert caught.value.status.reason == "max_steps"
    assert run(max_steps=whole.stats.accepted).status.ok


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_state_that_is_not_finite_ends_a_solve_on_a_grid(adjoint: str) -> None:
    f = lambda t, y: {"a": (-y["a"][0], torch.sqrt(0.55 - t) * torch.tensor([0.0, 1.0]) + 0 * y["a"][1])}
    y0 = {"a": (torch.ones(3, requires_grad=True), torch.zeros(2))}
    run = lambda **more: solve(f, y0, [0.0, 0.5, 1.0], method="euler", steps=5, adjoint=ADJOINTS[adjoint], **more)
    found = run(throw=False)
    status = found.status
    assert (status.reason, status.step, status.leaf, status.element) == ("not finite", 6, "y0['a'][1]", (0,))
    assert status.t == found.grid[-1] == pytest.approx(0.6) and found.ts.tolist() == [0.0, 0.5]
    assert all(leaf.isfinite().all() and len(leaf) == 2 for leaf in tree_leaves(found.ys))
    assert "step 7, from t=0.6 to 0.7" in status.message and all(leaf.isfinite().all() for leaf in tree_leaves(status.y))
    with pytest.raises(SolveError, match=r"not finite in y0.'a'..1., element"):
        run()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("stepping", STEPPINGS)
def test_a_save_function_is_applied_at_the_times_with_its_gradient(stepping: str, adjoint: str) -> None:
    net, y0, times = MLP(), torch.randn(3, 4, dtype=torch.float64), [0.0, 0.3, 1.0]
    save = lambda t, y: {"mean": y.mean() * t, "first": (y[0] ** 2,)}
    options: dict[str, Any] = {"adjoint": ADJOINTS[adjoint], **STEPPINGS[stepping]}
    saved = solve(net, y0, times, save=save, **options).ys
    later = [save(t, y) for t, y in zip(vector(*times), odeint(net, y0, times, **options), strict=True)]
    assert saved["mean"].shape == (3,) and saved["first"][0].shape == (3, 4)
    for place, one in enumerate(later):
        assert torch.equal(saved["mean"][place], one["mean"]) and torch.equal(saved["first"][0][place], one["first"][0])
    weigh = lambda mean, first: mean.sin().sum() + first.cos().sum()
    found = torch.autograd.grad(weigh(saved["mean"], saved["first"][0]), list(net.parameters()))
    expected = torch.autograd.grad(
        weigh(*(torch.stack(x) for x in zip(*((one["mean"], one["first"][0]) for one in later), strict=True))), list(net.parameters())
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_what_is_saved_may_be_all_steps_or_the_end() -> None:
    y0, times = vector(1, 2), [0.0, 0.4, 1.0]
    run = lambda save: solve(lambda t, y: -y, y0, times, steps=3, save=save)
    assert run("steps").ts.tolist() == list(run("times").grid) and run("steps").ys.shape == (7, 2)
    assert torch.equal(run("steps").ys[[0, 3, 6]], run("times").ys)
    assert torch.equal(run("end").ys, run("times").ys[-1:]) and run("end").ts.tolist() == [1.0]
    with pytest.raises(ValueError, match="save='all' must be"):
        run("all")


def fall(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -9.81 + 0 * y[0]])


@pytest.mark.parametrize("stepping", STEPPINGS)
def test_a_ball_hits_the_ground_when_it_should(stepping: str) -> None:
    """Runge-Kutta methods are exact for a parabola, so the crossing is found to round-off."""
    found = solve(fall, vector(10, 0), [0.0, 0.5, 5.0], event=lambda t, y: y[0], **STEPPINGS[stepping])
    expected = math.sqrt(20 / 9.81)
    assert found.status.reason == "event" and found.status.ok and found.event_time is not None
    assert found.event_time.item() == pytest.approx(expected, abs=1e-10)
    assert found.ts.tolist() == [0.0, 0.5, found.event_time.item()] and found.grid[-1] == found.event_time.item()
    assert found.ys[-1, 0].item() == pytest.approx(0, abs=1e-10)
    assert found.ys[-1, 1].item() == pytest.approx(-9.81 * expected, abs=1e-9)
    again = solve(fall, vector(10, 0), [0.0, found.event_time.item()], grid=found.grid)
    torch.testing.assert_close(again.ys[-1], found.ys[-1], rtol=1e-13, atol=1e-13)


def test_a_ball_bounces_from_where_it_landed() -> None:
    """Starting on the event is no event; each flight lasts half as long as the one before."""
    t, y, hits = 0.0, vector(0, 9.81), []
    for _ in range(4):
        found = solve(fall, y, [t, t + 5.0], method="dopri5", rtol=1e-9, atol=1e-9, event=lambda t, y: y[0], save="end")
        assert found.event_time is not None and found.ys.shape == (1, 2)
        t, y = found.event_time.item(), torch.stack([vector(0)[0], -found.ys[-1, 1] / 2])
        hits.append(t)
    assert hits == pytest.approx([2.0, 3.0, 3.5, 3.75], abs=1e-9)


@pytest.mark.parametrize("times", [[0.0, 4.0], [4.0, 0.0]])
def test_an_oscillator_crosses_zero_at_a_known_time(times: list[float]) -> None:
    """y = cos(t - t0): a quarter turn after the start, whichever way time runs."""
    f = lambda t, y: torch.stack([y[1], -y[0]])
    for event in (lambda t, y: y[0], lambda t, y: (-y[0]).reshape(1, 1), lambda t, y: y[0] ** 3 + 0.3 * y[0]):
        found = solve(f, vector(1, 0), times, method="dopri8", rtol=1e-13, atol=1e-13, event=event)
        assert found.event_time is not None
        assert abs(found.event_time.item() - times[0]) == pytest.approx(math.pi / 2, abs=1e-10)


def test_an_event_of_time_alone_ends_the_solve_there() -> None:
    found = solve(lambda t, y: -y, vector(1), [0.0, 2.0], steps=3, event=lambda t, y: t - 0.7)
    assert found.event_time is not None and found.event_time.item() == pytest.approx(0.7, abs=1e-15)


@pytest.mark.parametrize("options", STEPPINGS.values(), ids=STEPPINGS)
def test_an_event_that_never_happens_changes_nothing(options: dict[str, Any]) -> None:
    plain = solve(Pendulum(), pendulum_state(), [0.0, 0.4, 1.0], hit="exact", **options)
    found = solve(Pendulum(), pendulum_state(), [0.0, 0.4, 1.0], event=lambda t, y: y["q"].square().sum() + 1, **options)
    assert found.status.reason == "done" and found.event_time is None and found.grid == plain.grid
    assert all(map(torch.equal, tree_leaves(found.ys), tree_leaves(plain.ys)))


@pytest.mark.parametrize("value", [lambda y: y, lambda y: y[0].item(), lambda y: 1j * y[0]], ids=["shape", "float", "complex"])
def test_an_event_must_return_one_real_element(value: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueError, match=r"event must return one real floating element.*got "):
        solve(fall, vector(1, 0), [0.0, 1.0], steps=3, event=lambda t, y: value(y))


def test_an_event_that_only_touches_zero_has_no_gradient() -> None:
    y0 = vector(-1).requires_grad_()
    with pytest.raises(ValueError, match="touches zero"):
        solve(lambda t, y: 0 * y + 1, y0, [0.0, 2.0], steps=2, method="euler", event=lambda t, y: -(y[0] ** 2))


class Swing(nn.Module):
    """A pendulum with a learned stiffness, and damping given as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor, damping: Tensor) -> Tensor:
        return torch.stack([y[1], -self.stiffness * torch.sin(y[0]) - damping * y[1] * (1 + 0.1 * t)])


@pytest.mark.parametrize(
    ("stepping", "adjoint", "times"), rows(["grid", "recorded", "adaptive"], ADJOINTS, [[0.0, 0.6, 4.0], [4.0, 3.4, 0.0]], quick=3)
)
def test_gradients_of_an_event_are_those_of_differences(stepping: str, adjoint: str, times: list[float]) -> None:
    """Of its time and state, with respect to y0, a parameter, an argument, the event's level and the start.

    The differences solve again on the grid: that of an adaptive solve ends with the step that holds the event.
    """
    sign = 1 if times[0] < times[-1] else -1
    values = [vector(1.1, 0.2 * sign), torch.tensor(1.3), torch.tensor(0.2 * sign), torch.tensor(-0.4), torch.tensor(times[0])]
    values = [value.double() for value in values]
    whole = solve(Swing(), values[0], times, method="dopri5", rtol=1e-5, atol=1e-5, args=(values[2],), hit="exact").grid
    options: dict[str, Any] = {"grid": {"steps": 9}, "recorded": {"grid": whole}, "adaptive": {"rtol": 1e-5, "atol": 1e-5}}[stepping]

    def run(y0: Tensor, stiffness: Tensor, damping: Tensor, level: Tensor, start: Tensor, options: dict[str, Any]) -> Solution:
        swing = Swing()
        swing.stiffness = nn.Parameter(stiffness.detach(), stiffness.requires_grad)
        if stiffness.requires_grad:
            parameters.append(swing.stiffness)
        t: Any = torch.stack([start, *vector(*times[1:])])
        if "grid" in options:
            options = {"grid": torch.stack([start, *vector(*options["grid"][1:])])}
        event = lambda t, y: (y[0] - level) * (1 + 0.1 * t)
        return solve(swing, y0, t, method="dopri5", args=(damping,), event=event, adjoint=ADJOINTS[adjoint], **options)

    def loss(found: Solution) -> Tensor:
        assert found.event_time is not None and found.status.reason == "event"
        return found.event_time.sin() + found.ys[-1] @ vector(0.3, 1.2) + found.ys[1, 0]

    parameters: list[nn.Parameter] = []
    inputs = [value.clone().requires_grad_() for value in values]
    found = run(*inputs, options=options)
    assert found.event_time is not None and 0.9 < abs(found.event_time.item() - times[0]) < 3.5
    gradients = list(torch.autograd.grad(loss(found), [inputs[0], *parameters, *inputs[2:]]))
    frozen = {"grid": whole} if stepping == "adaptive" else options
    for place, gradient in enumerate(gradients):
        for element in range(values[place].numel()):
            ends = []
            for shift in (1e-5, -1e-5):
                moved = [value.clone() for value in values]
                moved[place].view(-1)[element] += shift
                ends.append(loss(run(*moved, options=frozen)).item())
            assert gradient.reshape(-1)[element].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-8)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("stepping", STEPPINGS)
def test_gradients_of_an_event_in_closed_form(stepping: str, adjoint: str) -> None:
    """From height h with speed v: T = (v + sqrt(v^2 + 2 g h)) / g, and the speed at T is -sqrt(v^2 + 2 g h)."""
    y0, g = vector(10, 3).requires_grad_(), torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    f = lambda t, y, g: torch.stack([y[1], -g + 0 * y[0]])
    found = solve(f, y0, [0.0, 5.0], args=(g,), event=lambda t, y: y[0], adjoint=ADJOINTS[adjoint], **STEPPINGS[stepping])
    speed = (y0[1] ** 2 + 2 * g * y0[0]).sqrt()
    assert found.event_time is not None
    for result, exact in ((found.event_time, (y0[1] + speed) / g), (found.ys[-1, 1], -speed)):
        assert result.item() == pytest.approx(exact.item(), abs=1e-10)
        expected = torch.autograd.grad(exact, [y0, g], retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(result, [y0, g], retain_graph=True), expected, rtol=1e-9, atol=1e-10)
    assert torch.autograd.grad(found.ys[-1, 0], y0)[0].abs().max() < 1e-9  # the height at the event is 0 whatever y0


def test_a_limit_or_an_event_leaves_generators_and_buffers_as_the_steps_before_did() -> None:
    ends = []
    cases: list[dict[str, Any]] = [{"max_steps": 3}, {"event": lambda t, y: 0.35 - t}, {}]
    for options in cases:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
        y0 = torch.randn(5, 4, dtype=torch.float64)
        t = [0.0, 1.0] if options else [0.0, 0.1, 0.2, 0.3]
        steps = 10 if options else 1
        found = solve(lambda t, y, net=net: net(y), y0, t, steps=steps, method="midpoint", throw=False, save="steps", **options)
        ends.append((found.ys[:4], [b.clone() for b in net.buffers()], torch.get_rng_state()))
    for place in (0, 1):
        torch.testing.assert_close(ends[place][0], ends[2][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends[0][1], ends[2][1], rtol=1e-12, atol=1e-12)
    assert torch.equal(ends[0][2], ends[2][2])
    assert ends[1][1][-1].item() == ends[2][1][-1].item() + 2  # midpoint's two evaluations of the part of a step to the event


def test_dense_output_and_events_go_together() -> None:
    found = solve(fall, vector(10, 0), [0.0, 5.0], steps=20, event=lambda t, y: y[0], dense=True)
    assert found.ts.shape == (2,) and found.ys.shape == (2, 2)
    assert found(0.6)[0].item() == pytest.approx(10 - 9.81 / 2 * 0.36, abs=1e-12)
    with pytest.raises(ValueError, match=r"must be a time between 0.0 and"):
        found(2.0)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_a_second_derivative_through_an_event_is_refused(adjoint: str) -> None:
    w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    found = solve(lambda t, y: -w * y, vector(1), [0.0, 1.0], steps=20, event=lambda t, y: y[0] - 0.5, adjoint=adjoint)
    assert found.event_time is not None
    for result in (found.event_time, found.ys[-1, 0] + 2 * found.event_time):
        (first,) = torch.autograd.grad(result, w, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative through"):
            torch.autograd.grad(first, w)


EXACT = ADJOINTS | {
    "memory": CheckpointAdjoint(memory="20KB"),
    "offload": CheckpointAdjoint(offload="cpu"),
    "reversible": ReversibleAdjoint(),
}
FLIGHTS: dict[str, dict[str, Any]] = STEPPINGS | {"a step longer than flights": {"method": "midpoint", "step_size": 0.9}}


def bouncing(restitution: Tensor, **options: Any) -> Event:
    return Event(lambda t, y: y[0], effect=lambda t, y: torch.stack([y[0], -restitution * y[1]]), **options)


def flights(v: Tensor, g: Tensor, r: Tensor, t: float, count: int) -> tuple[Tensor, Tensor]:
    """A ball thrown up with speed v from the ground: T_n = (2 v / g)(1 + r + ... + r^(n - 1)), and the state at t after these bounces."""
    hits = torch.stack([2 * v / g * sum(r**k for k in range(n + 1)) for n in range(count)])
    speed, since = v * r**count, t - hits[-1]
    return hits, torch.stack([speed * since - g * since**2 / 2, speed - g * since])


@pytest.mark.parametrize(
    ("flight", "adjoint"), [(a, b) for a in FLIGHTS for b in EXACT if a != "adaptive" or b not in ("memory", "reversible")]
)
def test_a_ball_that_bounces_in_one_call_has_the_gradients_of_the_closed_form(flight: str, adjoint: str) -> None:
    """Through five bounces, of all their times, the states at them, at an output time and at the end."""
    y0, g, r = (value.requires_grad_() for value in (vector(0, 5), vector(10)[0].clone(), vector(0.8)[0].clone()))
    f = lambda t, y, g: torch.stack([y[1], -g + 0 * y[0]])
    event = bouncing(r, direction=-1)
    found = solve(f, y0, [0.0, 0.5, 2.0, 3.5], args=(g,), event=event, adjoint=EXACT[adjoint], **FLIGHTS[flight])
    assert found.status.reason == "done" and found.event_time is None and found.ts.tolist() == [0.0, 0.5, 2.0, 3.5]
    hits, end = flights(y0[1], g, r, 3.5, 5)
    two = flights(y0[1], g, r, 2.0, 2)[1]
    assert found.t_events[0].tolist() == pytest.approx(hits.tolist(), abs=1e-12)
    mine = (found.t_events[0] * vector(*range(5))).sum() + found.y_events[0][:, 1].sum() + found.ys[2:].cos().sum()
    speeds = -y0[1] * sum(r**k for k in range(5))
    exact = (hits * vector(*range(5))).sum() + speeds + torch.stack([two, end]).cos().sum()
    assert mine.item() == pytest.approx(exact.item(), abs=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(mine, [g, r], retain_graph=True), torch.autograd.grad(exact, [g, r], retain_graph=True), rtol=1e-9, atol=1e-9
    )
    assert torch.autograd.grad(mine, y0)[0][1].item() == pytest.approx(torch.autograd.grad(exact, y0)[0][1].item(), abs=1e-9)


def test_every_way_to_save_sees_both_sides_of_a_bounce() -> None:
    run = lambda **more: solve(fall, vector(10, 0), [0.0, 1.0, 4.0], method="dopri5", event=bouncing(vector(0.5)[0]), **more)
    hits = [math.sqrt(20 / 9.81) * factor for factor in (1.0, 2.0, 2.5, 2.75)]
    steps, end, dense = run(save="steps"), run(save="end"), run(dense=True)
    assert steps.t_events[0].tolist() == pytest.approx(hits, abs=1e-12) and sorted(set(steps.ts.tolist())) == list(steps.grid)
    twice = [place for place, (a, b) in enumerate(zip(steps.ts.tolist(), steps.ts.tolist()[1:], strict=False)) if a == b]
    assert len(twice) == 4 and all(torch.equal(steps.ys[place + 1, 1], -0.5 * steps.ys[place, 1]) for place in twice)
    assert torch.equal(end.ys[-1], steps.ys[-1]) and torch.equal(end.ys[-1], run().ys[-1]) and end.ys.shape == (1, 2)
    heights = [(0.7, 10 - 9.81 / 2 * 0.49), (hits[0] + 0.3, 9.81 / 2 * (hits[0] * 0.3 - 0.09)), (0.0, 10.0)]
    assert dense([t for t, _ in heights])[:, 0].tolist() == pytest.approx([y for _, y in heights], abs=1e-9)
    assert dense(dense.t_events[0][0].item())[1].item() == pytest.approx(9.81 / 2 * hits[0]) and "DensePieces(Dense(" in repr(dense.dense)
    with pytest.raises(ValueError, match=r"must be a time between 0.0 and 4.0"):
        dense(4.1)


@pytest.mark.parametrize("options", STEPPINGS.values(), ids=STEPPINGS)
@pytest.mark.parametrize("start", [0.0, -1e-17, 1e-17])
def test_a_start_on_the_surface_is_no_event(start: float, options: dict[str, Any]) -> None:
    """torchdiffeq's issue 285: each flight solved by itself, from where the one before has landed."""
    t, y, hits = 0.0, vector(start, 5), []
    for _ in range(3):
        found = solve(lambda t, y: torch.stack([y[1], -10 + 0 * y[0]]), y, [t, t + 3], event=lambda t, y: y[0], **options)
        assert found.event_time is not None
        t, y = found.event_time.item(), torch.stack([found.ys[-1, 0], -0.8 * found.ys[-1, 1]])
        hits.append(t)
    assert hits == pytest.approx([1.0, 1.8, 2.44], abs=1e-9)


@pytest.mark.parametrize("times", [[0.0, 10.0], [10.0, 0.0]])
@pytest.mark.parametrize(("direction", "expected"), [(0, [1, 2, 3]), (1, [2]), (-1, [1, 3])])
def test_directions_are_those_of_the_way(times: list[float], direction: int, expected: list[int]) -> None:
    """y = sin(t - t0) starts on the surface; the period of an oscillator is that of rising crossings."""
    sign = 1 if times[1] > times[0] else -1
    f, event = lambda t, y: sign * torch.stack([y[1], -y[0]]), lambda t, y: y[0]
    options: dict[str, Any] = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}
    found = solve(f, vector(0, 1), times, event=Event(event, direction, terminal=False), **options)
    plain = solve(f, vector(0, 1), times, **options)
    assert ((found.t_events[0] - times[0]).abs() / math.pi).tolist() == pytest.approx(expected, abs=1e-11)
    assert found.y_events[0].abs()[:, 1].tolist() == pytest.approx([1.0] * len(expected)) and found.status.reason == "done"
    assert torch.equal(found.ys, plain.ys) and found.grid == plain.grid and found.event_time is None
    if direction:
        event.direction, event.terminal = direction, True  # pyright: ignore[reportFunctionMemberAccess]
        own = solve(f, vector(0, 1), times, event=event, **options).event_time
        assert own is not None and torch.equal(own, found.t_events[0][0])


@pytest.mark.parametrize("adjoint", EXACT)
def test_several_events_are_told_apart_and_in_order(adjoint: str) -> None:
    """y = (cos t, -sin t): recorded, ending at the second, and never; two of them in one step, with gradients of all."""
    omega = vector(1.0)[0].clone().requires_grad_()
    f = lambda t, y: omega * torch.stack([y[1], -y[0]])
    events = [
        Event(lambda t, y: y[0], terminal=False),
        Event(lambda t, y: y[1], terminal=2),
        lambda t, y: y[0] - 2,
        Event(lambda t, y: y[0] + 0.01, terminal=False),
    ]
    found = solve(f, vector(1, 0), [0.0, 9.0], steps=60, event=events, adjoint=EXACT[adjoint])
    angles = [[0.5, 1.5], [1.0, 2.0], [], [0.5 + 0.01 / math.pi, 1.5 - 0.01 / math.pi]]
    assert found.status.reason == "event" and "event 1 ended" in found.status.message and found.event_time is not None
    assert torch.equal(found.event_time, found.t_events[1][-1]) and torch.equal(found.ys[-1], found.y_events[1][-1])
    for times, states, expected in zip(found.t_events, found.y_events, angles, strict=True):
        assert (times / math.pi).tolist() == pytest.approx(expected, abs=1e-4) and states.shape == (len(expected), 2)
    weighted = torch.stack([(times * vector(2, 3)[: len(times)]).sum() for times in found.t_events]).sum()  # t = angle / omega
    assert torch.autograd.grad(weighted, omega)[0].item() == pytest.approx(-weighted.item(), rel=1e-3)


def test_an_infinite_end_is_fine_where_an_event_must_come() -> None:
    run = lambda t, event, **more: solve(lambda t, y: -y, vector(1), [0.0, 1.0, t], method="dopri5", event=event, **more)
    for end in (math.inf, 50.0):
        found = run(end, lambda t, y: y[0] - math.exp(-7))
        assert found.ts.tolist() == pytest.approx([0.0, 1.0, 7.0], abs=1e-5)
    with pytest.raises(SolveError, match=r"max_steps=100 were done"):
        run(math.inf, lambda t, y: y[0] + 1, max_steps=100)
    for refused in (
        lambda: run(math.inf, None),
        lambda: run(math.inf, Event(lambda t, y: y[0], terminal=False)),
        lambda: run(math.inf, lambda t, y: y[0], max_steps=None),
        lambda: odeint(lambda t, y: -y, vector(1), [0.0, math.inf], method="dopri5"),
        lambda: solve(lambda t, y: -y, vector(1), [0.0, math.inf], steps=3, event=lambda t, y: y[0]),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            refused()


@pytest.mark.parametrize("options", STEPPINGS.values(), ids=STEPPINGS)
def test_a_switch_may_be_left_through_the_surface(options: dict[str, Any]) -> None:
    """A heater turned on at 18 and off at 20 degrees: T' = 25 m - T, m the heater's mode, a leaf of the state."""
    f = lambda t, y: {"T": 25 * y["m"] - y["T"], "m": 0 * y["m"]}
    to = lambda value: lambda t, y: {"T": y["T"], "m": torch.full_like(y["m"], value)}
    events = [Event(lambda t, y: y["T"] - 18, direction=-1, effect=to(1.0)), Event(lambda t, y: y["T"] - 20, direction=1, effect=to(0.0))]
    found = solve(f, {"T": vector(21)[0], "m": vector(0)[0]}, [0.0, 2.0], event=events, **options)
    first, warm, cool = math.log(21 / 18), math.log(7 / 5), math.log(20 / 18)
    on = [first + k * (warm + cool) for k in range(5) if first + k * (warm + cool) < 2]
    off = [time + warm for time in on if time + warm < 2]
    precise = 1e-3 if "steps" in options else 1e-8
    assert found.t_events[0].tolist() == pytest.approx(on, abs=precise) and found.t_events[1].tolist() == pytest.approx(off, abs=precise)
    assert len(on) > 2 and found.y_events[0]["T"].tolist() == pytest.approx([18.0] * len(on))


@pytest.mark.parametrize("options", STEPPINGS.values(), ids=STEPPINGS)
def test_bounces_without_number_are_told(options: dict[str, Any]) -> None:
    """They come to an end at t = 2 v / (g (1 - r)) = 2, and the ball would fall through the ground."""
    f = lambda t, y: torch.stack([y[1], -10 + 0 * y[0]])
    run = lambda **more: solve(f, vector(0, 5), [0.0, 3.0], event=bouncing(vector(0.5)[0], direction=-1, **more), **options)
    with pytest.raises(SolveError, match=r"event 0 happened again at once after its effect at t=2: its effects accumulate") as caught:
        run()
    assert caught.value.status.t == pytest.approx(2.0, abs=1e-9) and not caught.value.status.ok
    assert run(terminal=4).t_events[0].tolist() == pytest.approx([1.0, 1.5, 1.75, 1.875]) and run(terminal=4).status.reason == "event"


def test_an_effect_at_an_output_time_and_at_the_end_is_seen_there() -> None:
    for end in (2.0, 1.0):
        event = Event(lambda t, y: t - 1, effect=lambda t, y: y + 1)
        cases: list[dict[str, Any]] = [{"steps": 2}, {"method": "dopri5"}]
        for options in cases:
            found = solve(lambda t, y: 0 * y, vector(5), [0.0, 1.0] if end == 1 else [0.0, 1.0, 2.0], event=event, **options)
            assert found.ys[:, 0].tolist() == [5.0, 6.0, 6.0][: len(found.ts)] and found.status.reason == "done" and found.grid[-1] == end


def test_max_steps_counts_all_pieces() -> None:
    with pytest.raises(SolveError, match="max_steps=12 were done") as caught:
        solve(fall, vector(10, 0), [0.0, 4.0], method="dopri5", event=bouncing(vector(0.5)[0]), max_steps=12)
    assert caught.value.status.step == 12


def test_mistakes_with_events_are_told() -> None:
    y, surface = vector(1, -1), lambda t, y: y[0]
    drawing = lambda t, y: torch.rand(2, dtype=torch.float64) - 3
    run = lambda event, func=fall: solve(func, y, [0.0, 1.0], steps=3, event=event)
    for error, match, refused in (
        (ValueError, "direction=True must be 1", lambda: Event(surface, direction=True)),
        (ValueError, "direction=2 must be 1", lambda: Event(surface, direction=2)),
        (ValueError, "terminal=0 must be True", lambda: Event(surface, terminal=0)),
        (TypeError, "event must be callable", lambda: Event("height")),  # pyright: ignore[reportArgumentType]
        (TypeError, "effect must be callable", lambda: Event(surface, effect=1)),  # pyright: ignore[reportArgumentType]
        (TypeError, "effect returned None", lambda: run(Event(surface, effect=lambda t, y: None))),
        (ValueError, "effect must return the state", lambda: run(Event(surface, effect=lambda t, y: (y, y)))),
        (ValueError, "effect must return leaves like", lambda: run(Event(surface, effect=lambda t, y: y.float()))),
        (ValueError, "func takes the number of the step", lambda: run(bouncing(y[0]), lambda t, y, *, step: -y)),
        (
            ValueError,
            "event 0 cannot be recorded where func draws",
            lambda: run(Event(surface, terminal=False), drawing),
        ),
    ):
        with pytest.raises(error, match=match):
            refused()
