"""Events of samples with steps of their own: as closed forms and the samples solved one by one have them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import CheckpointAdjoint, Event, ReversibleAdjoint, SolveError, odeint, solve

NAN, INF = math.nan, math.inf
OPTIONS: dict[str, Any] = {"method": "tsit5", "rtol": 1e-7, "atol": 1e-9, "per_sample": True}
G = 9.81


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def falling(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -G)], -1)


ground = Event(lambda t, y: y[:, 0], direction=-1)
bounce = Event(lambda t, y: y[:, 0], direction=-1, terminal=3, effect=lambda t, y: torch.stack([y[:, 0], -0.8 * y[:, 1]], -1))


@pytest.mark.parametrize("adjoint", ["checkpoint", "direct", *(pytest.param(a, marks=pytest.mark.slow) for a in ("slots", "reversible"))])
@pytest.mark.parametrize("times", [[0.0, INF], [0.0, 0.5, 1.0, INF], [0.0, 4.0]], ids=str)
def test_balls_from_different_heights_land_when_they_should(times: list[float], adjoint: Any) -> None:
    """T = sqrt(2 h / g), v = -sqrt(2 g h): bodies that have landed stay there, at the times t too."""
    how = {"slots": CheckpointAdjoint(slots=2), "reversible": ReversibleAdjoint()}.get(adjoint, adjoint)
    h = tensor([1.0, 4.0, 0.2]).requires_grad_()
    found = solve(falling, torch.stack([h, 0 * h], -1), times, event=ground, adjoint=how, **OPTIONS)
    landing, speed = torch.sqrt(2 * h / G), -torch.sqrt(2 * G * h)
    assert found.event_time is not None and found.status.reason == "event" and [one.reason for one in found.statuses] == ["event"] * 3
    asked = torch.minimum(tensor(times)[:, None], landing)
    torch.testing.assert_close(found.ts, asked, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.ys[..., 0], h - G / 2 * asked**2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.y_events[0][0, :, 1], speed, rtol=1e-12, atol=0)
    assert torch.equal(found.t_events[0][0], found.event_time) and torch.equal(found.ys[-1], found.y_events[0][0])
    weights = torch.linspace(1, 2, 3).double()
    for value, exact in ((found.event_time, landing), (found.ys[..., 1], -G * asked), (found.ys[..., 0], h - G / 2 * asked**2)):
        gradients = [torch.autograd.grad((weights * one).sum(), h, retain_graph=True)[0] for one in (value, exact)]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["tsit5", pytest.param("rodas5p", marks=pytest.mark.slow)])
@pytest.mark.parametrize("end", [3.0, INF])
def test_balls_land_when_they_should_though_gravity_jumps(end: float, method: str) -> None:
    """The pull is 2 until 0.3, -1 until 0.7, then 3: heights, landing before, between and behind the breaks, by closed form."""

    def pull(t: Tensor, y: Tensor) -> Tensor:
        g = torch.where(t < 0.3, 2.0, torch.where(t < 0.7, -1.0, 3.0)).to(y.dtype)
        return torch.stack([y[:, 1], -g.reshape(-1).expand(len(y))], -1)

    h = tensor([0.05, 0.1, 0.2, 1.0]).requires_grad_()
    options = {**OPTIONS, "method": method, "breaks": [0.3, 0.7]}
    found = solve(pull, torch.stack([h, 0 * h], -1), [0.0, end], event=ground, **options)
    first = torch.sqrt(h)
    height, speed = h - 0.09, -0.6  # at 0.3
    second = 0.3 + (0.6 - torch.sqrt((0.36 - 2 * height).clamp_min(1e-30)))
    height, speed = height + 0.4 * speed + 0.08, speed + 0.4  # at 0.7
    third = 0.7 + (speed + torch.sqrt(speed**2 + 6 * height.clamp_min(0))) / 3
    exact = torch.where(first < 0.3, first, torch.where((2 * (h - 0.09) < 0.36) & (second < 0.7), second, third))
    assert found.event_time is not None and exact[0] < 0.3 < exact[1] < exact[2] < 0.7 < exact[3]
    torch.testing.assert_close(found.event_time, exact, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(time.sum(), h)[0] for time in (found.event_time, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=0)


@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_oscillators_of_different_frequency_pass_zero_when_they_should(dtype: torch.dtype, falls: bool) -> None:
    """q = cos(w t) passes zero at pi / 2w; a last one never does, and comes to the end."""
    w = torch.tensor([1.0, 3.0, 0.1, 7.0], dtype=dtype, requires_grad=True)
    sign, close = -1.0 if falls else 1.0, 2e-5 if dtype == torch.float32 else 1e-8
    y0 = torch.stack([torch.ones_like(w), torch.zeros_like(w)], -1)
    f = lambda t, y: torch.stack([w * y[:, 1], -w * y[:, 0]], -1)
    found = solve(f, y0, [0.0, 2.0 * sign], event=lambda t, y: y[:, 0], **{**OPTIONS, "rtol": close / 10, "atol": close / 10})
    assert [one.reason for one in found.statuses] == ["event", "event", "done", "event"]
    exact = sign * math.pi / (2 * w.detach().double())
    assert found.event_time is not None and found.event_time.isnan().tolist() == [False, False, True, False]
    here = ~found.event_time.isnan()
    torch.testing.assert_close(found.event_time[here], exact[here], rtol=close, atol=0)
    (gradient,) = torch.autograd.grad(found.event_time[here].sum(), w, retain_graph=True)
    torch.testing.assert_close(gradient.double(), torch.where(here, -exact / w.detach(), 0.0), rtol=100 * close, atol=0)
    assert found.ys[-1, 2, 0].item() == pytest.approx(math.cos(0.2), rel=close)
    assert found.ys[-1, here, 0].abs().max() < close and found.ts[-1, 2].item() == 2.0 * sign


@pytest.mark.parametrize("adjoint", ["checkpoint", "direct", *(pytest.param(a, marks=pytest.mark.slow) for a in ("slots", "reversible"))])
def test_a_batch_of_bouncing_balls_has_the_closed_form_and_its_gradients(adjoint: Any) -> None:
    """The n-th bounce of a ball dropped from h is at T (1 + 2 a + ... + 2 a^(n-1)), T = sqrt(2 h / g), a = 0.8."""
    how = {"slots": CheckpointAdjoint(slots=2), "reversible": ReversibleAdjoint()}.get(adjoint, adjoint)
    h = tensor([1.0, 4.0, 0.2]).requires_grad_()
    found = solve(falling, torch.stack([h, 0 * h], -1), [0.0, 1.0, INF], event=bounce, adjoint=how, **OPTIONS)
    landing = torch.sqrt(2 * h / G)
    exact = torch.stack([landing, landing * (1 + 2 * 0.8), landing * (1 + 2 * 0.8 + 2 * 0.64)])
    speeds = torch.stack([-(0.8**n) * torch.sqrt(2 * G * h) for n in range(3)])
    torch.testing.assert_close(found.t_events[0], exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.y_events[0][..., 1], speeds, rtol=1e-11, atol=0)
    # at t = 1 the first rises after one bounce, the second has landed 0.097 before, the third has come to its end
    n = torch.tensor([1, 1, 3])
    damped = tensor(0.8) ** n
    after = 1.0 - exact[n - 1, torch.arange(3)]
    high = damped * torch.sqrt(2 * G * h) * after - G / 2 * after**2
    torch.testing.assert_close(found.ys[1, :2, 0], high[:2], rtol=1e-10, atol=1e-12)
    assert found.ts[1, 2] == found.t_events[0][2, 2] and abs(found.ys[1, 2, 0]) < 1e-12
    weights = torch.linspace(1, 2, 9).double().reshape(3, 3)
    pairs = ((found.t_events[0], exact), (found.y_events[0][..., 1], speeds), (found.ys[1, :2, 0], high[:2]))
    for value, closed in pairs:
        w = weights[: len(value), : value.shape[-1]] if value.ndim == 2 else weights[0, :2]
        gradients = [torch.autograd.grad((w * one).sum(), h, retain_graph=True)[0] for one in (value, closed)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


ENDS = [("checkpoint", [], "times"), ("slots", [0.5], "steps"), ("direct", [0.5], "times")]
ENDS += [
    pytest.param(a, b, save, marks=pytest.mark.slow) for a in ("checkpoint", "reversible") for b in ([], [0.5]) for save in ("steps", "end")
]


@pytest.mark.parametrize(("adjoint", "breaks", "save"), ENDS)
def test_samples_that_end_while_others_go_on_keep_the_gradient_of_their_time(adjoint: Any, breaks: list[float], save: Any) -> None:
    """Rates r, 2 r behind the break; y_1 begins anew at 1, and a sample ends where y_0 has come as far as it shall."""
    how = {"slots": CheckpointAdjoint(slots=2), "reversible": ReversibleAdjoint()}.get(adjoint, adjoint)
    r, far = tensor(1.3).requires_grad_(), tensor([0.4, 3.2, 1.7, 0.9]).requires_grad_()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return r * torch.where(t < 0.5, 1.0, 2.0 if breaks else 1.0).to(y.dtype) * torch.ones_like(y)

    again = Event(lambda t, y: y[:, 1] - 1.0, effect=lambda t, y: torch.stack([y[:, 0], 0 * y[:, 1]], -1))
    options = {**OPTIONS, "method": "bosh3", "breaks": breaks or None, "adjoint": how, "save": save}
    found = solve(f, torch.zeros(4, 2, dtype=torch.float64), [0.0, 1.0, INF], event=[Event(lambda t, y: y[:, 0] - far), again], **options)
    exact = torch.where((far > 0.5 * r) & bool(breaks), 0.5 + (far - 0.5 * r) / (2 * r), far / r)
    assert [one.reason for one in found.statuses] == ["event"] * 4 and found.t_events[1].shape == (3, 4)
    for value in (found.event_time, found.t_events[0][0], found.ts[-1]):
        assert value is not None
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=0)
        for sample in range(4):
            pairs = zip(*(torch.autograd.grad(one[sample], [r, far], retain_graph=True) for one in (value, exact)), strict=True)
            for gradient, closed in pairs:
                torch.testing.assert_close(gradient, closed, rtol=1e-11, atol=1e-12)


RATES = tensor([[1.0], [2.3], [0.4], [3.1]])
STARTS = tensor([[1.0, 0.0], [-0.5, 2.0], [0.3, -1.0], [0.0, 1.5]])


def pendulum(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    q, v = y[:, :1], y[:, 1:]
    return torch.cat([v, -(w**2) * torch.sin(q) - 0.1 * v + 0.2 * torch.cos(t)], 1)


KINDS: dict[str, Any] = {
    "one": lambda: Event(lambda t, y: y[:, 0]),
    "falls": lambda: Event(lambda t, y: y[:, 0] - 0.1, direction=-1),
    "second": lambda: Event(lambda t, y: y[:, 1], terminal=2),
    "effect": lambda: Event(lambda t, y: y[:, 0], direction=-1, effect=lambda t, y: torch.stack([y[:, 0], -0.7 * y[:, 1]], -1)),
    "recorded": lambda: Event(lambda t, y: y[:, 1], terminal=False),
    "of time": lambda: Event(lambda t, y: (t - 1.7)[:, 0]),
    "two": lambda: [Event(lambda t, y: y[:, 0] - 0.2, terminal=2), Event(lambda t, y: y[:, 1] + 0.4, direction=1)],
}
SWEEP = [
    ("two", "tsit5", True, False),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in [
            ("one", "kvaerno5", False, True),
            ("falls", "dopri8", False, False),
            ("second", "tsit5", True, True),
            ("effect", "tsit5", False, True),
            ("effect", "rodas5p", True, False),
            ("recorded", "tsit5", True, False),
            ("of time", "bosh3", False, False),
        ]
    ),
]


@pytest.mark.parametrize(("kind", "method", "falls", "own"), SWEEP)
def test_samples_have_the_events_that_they_have_alone(kind: str, method: str, falls: bool, own: bool) -> None:
    """Times, states, output times (of each its ``own``) and gradients; recorded events end steps here, at other digits."""
    sign, close = -1 if falls else 1, 1e-4 if kind in ("recorded", "second", "two") else 1e-8
    t = sign * (tensor([[0.0, 1.0, 2.5], [0.0, 0.8, NAN], [0.2, 1.5, 2.0], [-1.0, 0.5, 2.0]]) if own else tensor([0.0, 1.0, 2.5]))
    y0, w = STARTS.clone().requires_grad_(), RATES.clone().requires_grad_()
    options: dict[str, Any] = {**OPTIONS, "method": method, "rtol": 1e-6, "atol": 1e-8}
    found = solve(pendulum, y0, t, event=KINDS[kind](), args=(w,), **options)
    happened = lambda sample, ts, ys: [(time[:, sample][~time[:, sample].isnan()], y[:, sample]) for time, y in zip(ts, ys, strict=True)]
    del options["per_sample"]
    for sample in range(4):
        row = t[sample][~t[sample].isnan()].tolist() if own else t.tolist()
        y, rate = STARTS[sample : sample + 1].clone().requires_grad_(), RATES[sample : sample + 1].clone().requires_grad_()
        alone = solve(pendulum, y, row, event=[alone_of(e) for e in events_of(KINDS[kind]())], args=(rate,), **options)
        values, expected = [], []
        for which, (times, states) in enumerate(happened(sample, found.t_events, found.y_events)):
            assert len(times) == len(alone.t_events[which]), (sample, which)
            values += [times, states[: len(times)]]
            expected += [alone.t_events[which], alone.y_events[which][:, 0]]
        reached = len(alone.ts)
        ended = alone.event_time is not None
        assert found.statuses[sample].reason == alone.status.reason == ("event" if ended else "done")
        assert not found.ys[: len(row), sample].isnan().any()
        if ended:  # frozen there, at all output times left
            assert found.event_time is not None
            values += [found.ys[reached - 1 : len(row), sample], found.ts[reached - 1 : len(row), sample]]
            count = len(row) - reached + 1
            expected += [alone.ys[-1].expand(count, 2), alone.ts[-1].expand(count)]
        values.append(found.ys[: reached - ended, sample])
        expected.append(alone.ys[: reached - ended, 0])
        losses = []
        for one in (values, expected):
            parts = [torch.linspace(1, 2, value.numel()).double().view_as(value) * value for value in one]
            losses.append(sum(part.sum() for part in parts))
        for value, other in zip(values, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=close, atol=close)
        mine = torch.autograd.grad(losses[0], [y0, w], retain_graph=True)
        his = torch.autograd.grad(losses[1], [y, rate])
        for whole, part in zip(mine, his, strict=True):
            torch.testing.assert_close(whole[sample], part[0], rtol=100 * close, atol=100 * close)
            assert not whole[[other for other in range(4) if other != sample]].any()


def events_of(kind: Any) -> list[Event]:
    return kind if isinstance(kind, list) else [kind]


def alone_of(event: Event) -> Event:
    """The same for a sample alone, whose time has no axes."""
    return Event(lambda t, y: event.fn(t.view(1, 1), y)[0], event.direction, event.terminal, event.effect)


def test_a_sample_that_fails_or_never_comes_is_told_beside_those_that_end() -> None:
    """y' = y^2 from y0 has its pole at 1 / y0; a decaying one never comes to 3, and has no steps left."""
    kind = tensor([[1.0], [1.0], [0.0]])
    f = lambda t, y: torch.where(kind == 1, y**2, -torch.cos(30 * t) * y)
    y0 = tensor([[1.0], [0.5], [1.0]]).requires_grad_()
    event = lambda t, y: torch.where(tensor([1.0, 0.0, 1.0]) == 1, y[:, 0] - 3.0, 1.0)
    with pytest.raises(SolveError, match=r"sample 1 of the batch at t=.*; sample 2 of the batch at t=.*max_steps=500 were done"):
        solve(f, y0, [0.0, INF], event=event, **OPTIONS, max_steps=500)
    found = solve(f, y0, [0.0, 0.1, INF], event=event, **OPTIONS, max_steps=500, throw=False)
    assert [one.reason for one in found.statuses] == ["event", "step size", "max_steps"] and found.status.element == (1, 2)
    assert found.event_time is not None and found.event_time.isnan().tolist() == [False, True, True]
    assert found.event_time[0].item() == pytest.approx(2 / 3, rel=1e-6) and found.statuses[1].t == pytest.approx(2.0, rel=1e-6)
    assert found.ys.isnan()[..., 0].tolist() == [[False] * 3, [False] * 3, [False, True, True]]
    (gradient,) = torch.autograd.grad(found.event_time[0], y0)  # T = 1 / y0 - 1 / 3
    torch.testing.assert_close(gradient.flatten(), tensor([-1.0, 0.0, 0.0]), rtol=1e-6, atol=0)


def test_every_way_to_save_has_the_end_of_each_sample() -> None:
    h = tensor([1.0, 4.0])
    run = lambda save, t=(0.0, 0.7, 0.7, INF): solve(falling, torch.stack([h, 0 * h], -1), t, event=ground, save=save, **OPTIONS)
    times, end, steps, saved = map(run, ("times", "end", "steps", lambda t, y: y[:, 0] * t[:, 0]))
    assert times.ys.shape == (4, 2, 2) and torch.equal(times.ts[1], times.ts[2]) and times.ts[1].tolist()[1] == 0.7
    assert torch.equal(end.ys[0], times.ys[-1]) and torch.equal(end.ts[0], times.ts[-1])
    assert torch.equal(steps.ys[-1], times.ys[-1]) and torch.equal(steps.ts, torch.stack(steps.grid).reshape(-1, 2))
    torch.testing.assert_close(saved.ys, times.ys[..., 0] * times.ts, rtol=1e-13, atol=0)
    none = solve(falling, torch.stack([h, 0 * h], -1), [0.0, 0.1], event=ground, **OPTIONS)
    assert none.event_time is None and none.status.reason == "done" and none.t_events[0].shape == (0, 2)
    assert none.y_events[0].shape == (0, 2, 2)


def test_mistakes_with_events_of_samples_are_told() -> None:
    y0, options = torch.ones(3, 2, dtype=torch.float64), {**OPTIONS, "t": [0.0, 2.0]}
    solved = lambda f=falling, **changes: solve(f, y0, **{**options, **changes})
    with pytest.raises(ValueError, match=r"for each of the 3 samples \(y is \(3, 2\), t \(3, 1\)\).*got shape \(3, 3\)"):
        solved(event=lambda t, y: y[:, 0] - t)
    with pytest.raises(ValueError, match="func draws random numbers: solve sample by sample"):
        solved(lambda t, y: falling(t, y) + 0 * torch.rand(1), event=ground)
    with pytest.raises(ValueError, match="t must be finite, unless there is an event that ends the solve"):
        solved(event=Event(ground.fn, terminal=False), t=[0.0, INF])
    endless: list[Any] = [[0.0, INF], [[0.0, INF]] * 3]
    for t in endless:
        with pytest.raises(ValueError, match="must be finite"):
            odeint(falling, y0, t, **OPTIONS)
    with pytest.raises(ValueError, match="of sample 0 touches zero at t=1 without crossing it"):
        solved(event=lambda t, y: (t[:, 0] - 1.0) ** 3, t=[0.0, 2.0])
    with pytest.raises(SolveError, match="event 0 happened again at once"):
        solved(event=Event(ground.fn, direction=-1, effect=lambda t, y: torch.stack([y[:, 0], -0.2 * y[:, 1]], -1)))
