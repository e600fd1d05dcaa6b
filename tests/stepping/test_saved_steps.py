"""States saved after every so many steps, and at a list of times."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import BacksolveAdjoint, CheckpointAdjoint, Compile, Control, Event, ReversibleAdjoint, SolveError, odeint, solve
from anodev2.stepping import uniform_grid
from problems import MLP, vector

CONTROLLED: dict[str, Any] = {"method": "bosh3", "rtol": 1e-4, "atol": 1e-4}
GRIDS: dict[str, dict[str, Any]] = {
    "equal": {"method": "midpoint", "steps": 5},
    "given": {"method": "bosh3", "grid": [0.0, 0.1, 0.25, 0.5, 0.6, 0.9, 1.0]},
    "breaks": {"steps": 2, "method": "midpoint", "breaks": [0.4]},
    "event": {"steps": 5, "method": "midpoint", "event": lambda t, y: t - 0.77},
}
FOUND: dict[str, dict[str, Any]] = {
    "controlled": CONTROLLED,
    "exact": {**CONTROLLED, "hit": "exact"},
    "dense": {**CONTROLLED, "dense": True},
    "recorded": {**CONTROLLED, "control": Control(refresh=2)},
    "controlled with breaks": {**CONTROLLED, "breaks": [0.4]},
    "controlled with an event": {**CONTROLLED, "event": lambda t, y: t - 0.77},
    "samples": {**CONTROLLED, "per_sample": True},
    "samples with an event": {**CONTROLLED, "per_sample": True, "event": lambda t, y: t.reshape(-1) - 0.77},
}
TIMES = [0.0, 0.25, 1.0]


@pytest.mark.parametrize("every", [1, 3, 99])
@pytest.mark.parametrize("stepping", [*GRIDS, *FOUND])
def test_every_so_manieth_of_all_steps_is_saved_and_the_end(stepping: str, every: int) -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        whole, found = (solve(net, y0, TIMES, save=save, **(GRIDS | FOUND)[stepping]) for save in ("steps", every))
    rows = [*range(0, len(whole.ts) - 1, every), len(whole.ts) - 1]
    assert len(whole.ts) > 4 and torch.equal(found.ts, whole.ts[rows]) and torch.equal(found.ys, whole.ys[rows])
    assert len(found.grid) == len(whole.grid)


ADJOINTS: dict[str, Any] = {
    "checkpoint": "checkpoint",
    "slots": CheckpointAdjoint(slots=2),
    "reversible": ReversibleAdjoint(every=3),
}
CASES = [(stepping, adjoint) for stepping in [*GRIDS, *FOUND] for adjoint in ADJOINTS if adjoint != "reversible" or stepping in GRIDS]


@pytest.mark.parametrize(("stepping", "adjoint"), [*CASES, ("breaks", "compiled")])
def test_gradients_of_saved_steps_are_those_of_all_steps_stored(stepping: str, adjoint: str) -> None:
    """Rows of the steps of "direct"; of the reversible scheme, which takes other steps, of all of them."""
    options, compiled = (GRIDS | FOUND)[stepping], adjoint == "compiled"
    own: dict[str, Any] = {"compile": Compile(2, backend="eager")} if compiled else {"adjoint": ADJOINTS[adjoint]}
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    whole = solve(net, y0, TIMES, save="steps", adjoint=own["adjoint"] if adjoint == "reversible" else "direct", **options)
    found = solve(net, y0, TIMES, save=2, **own, **options)
    kept = whole.ys[[*range(0, len(whole.ts) - 1, 2), len(whole.ts) - 1]]
    assert torch.equal(found.ys, kept) or (compiled and torch.allclose(found.ys, kept, rtol=1e-14, atol=1e-15))
    for one, other in zip(*(torch.autograd.grad(ys.sin().sum(), [y0, *net.parameters()]) for ys in (found.ys, kept)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_backsolve_reads_the_saved_steps() -> None:
    """y' = a y: the sum of exp(a t) over the saved times t has the derivative of its closed form."""
    a = torch.tensor(-0.8, dtype=torch.float64, requires_grad=True)
    found = solve(lambda t, y: a * y, vector(1), [0.0, 2.0], save=2, steps=40, adjoint=BacksolveAdjoint())
    times = torch.linspace(0, 2, 21, dtype=torch.float64)
    torch.testing.assert_close(found.ts, times)
    (slope,) = torch.autograd.grad(found.ys.sum(), a)
    torch.testing.assert_close(slope, (times * (a * times).exp()).sum().detach(), rtol=1e-6, atol=0)


def test_counts_begin_anew_after_an_effect() -> None:
    """Euler's polygon of y' = 1 jumps by 10 in its fourth step: y is t, and t + 10 behind."""
    jump = Event(lambda t, y: t - 0.35, effect=lambda t, y: y + 10)
    found = solve(lambda t, y: torch.ones_like(y), vector(0), [0.0, 1.0], method="euler", steps=10, save=2, event=jump)
    torch.testing.assert_close(found.ts, vector(0, 0.2, 0.5, 0.7, 0.9, 1))  # of the steps left one ends at 0.4
    torch.testing.assert_close(found.ys[:, 0], vector(0, 0.2, 10.5, 10.7, 10.9, 11))


def test_other_states_are_not_kept() -> None:
    states: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        states.append(weakref.ref(y))
        alive.append(sum(state() is not None for state in states))
        return -y

    with torch.no_grad():
        for options in ({"method": "euler", "steps": 60}, {**CONTROLLED, "control": Control(max_step=0.02)}):
            states.clear()
            alive.clear()
            found = solve(f, vector(1), [0.0, 1.0], save=20, **options)
            assert len(found.ts) < 6 and len(states) >= 60 and max(alive) < 10


def test_steps_are_counted_over_those_that_another_grid_has_taken() -> None:
    """Steps 3, 6 and 9 of ten, and the tenth, from the fifth on."""
    assert uniform_grid([0.0, 1.0], 10).saved_every(3).after(4).outputs() == (0, 2, 5, 6)


def test_where_a_solve_ends_early_what_was_reached_is_saved() -> None:
    run = lambda save, **options: solve(lambda t, y: y**2, vector(1), [0.0, 2.0], throw=False, save=save, **options)
    most = run(4, method="euler", steps=20, max_steps=10)
    assert most.status.reason == "max_steps" and most.ts.tolist() == pytest.approx([0, 0.4, 0.8])
    blown = run([0.3, 0.5, 1.5], **CONTROLLED)  # y = 1 / (1 - t)
    assert not blown.status.ok and blown.ts.tolist() == [0.3, 0.5]
    torch.testing.assert_close(blown.ys[:, 0], vector(1 / 0.7, 1 / 0.5), rtol=1e-3, atol=0)
    none = run([1.5, 1.7], **CONTROLLED)
    assert none.ts.shape == (0,) and none.ys.shape == (0, 1)
    with pytest.raises(SolveError):
        solve(lambda t, y: y**2, vector(1), [0.0, 2.0], save=[1.5], **CONTROLLED)


@pytest.mark.parametrize("options", [CONTROLLED, {**CONTROLLED, "hit": "exact"}, {"steps": 4}, {"step_size": 0.07, "method": "heun2"}])
@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=2), "direct"])
def test_a_list_of_times_is_saved_alone_with_its_gradients(options: dict[str, Any], adjoint: Any) -> None:
    net, y0 = MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    times = vector(0.2, 0.7, 0.9).requires_grad_()
    found = solve(net, y0, [0.0, 0.5, 1.0], save=times, adjoint=adjoint, **options)
    whole: Any = [0.0, times[0], 0.5, times[1], times[2], 1.0]
    every = odeint(net, y0, whole, adjoint="direct", **options)[[1, 3, 4]]
    assert torch.equal(found.ts, times) and torch.equal(found.ys, every)
    for one, other in zip(*(torch.autograd.grad(ys.sin().sum(), [y0, times, *net.parameters()]) for ys in (found.ys, every)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_times_saved_of_falling_time_at_both_ends_and_up_to_an_event() -> None:
    run = lambda t, save, **options: solve(lambda t, y: -y, vector(1), t, save=save, **CONTROLLED, **options)
    assert run([1.0, 0.5, 0.0], (1.0, 0.2, 0.0)).ts.tolist() == [1.0, 0.2, 0.0]
    assert run([0.0, 1.0], [0.5]).ts.tolist() == [0.5] and run([0.5], [0.5]).ts.tolist() == [0.5]
    ended = run([0.0, float("inf")], [0.25, 0.5, 3.0], event=lambda t, y: t - 1.5)
    assert ended.ts.tolist() == pytest.approx([0.25, 0.5, 1.5])


@pytest.mark.parametrize(
    ("save", "t", "message"),
    [
        (0, [0.0, 1.0], "save=0 must be a positive integer"),
        (True, [0.0, 1.0], "save=True must be a positive integer"),
        (2.5, [0.0, 1.0], "save=2.5 must be a positive integer"),
        ("all", [0.0, 1.0], "save='all' must be 'times', 'steps', 'end', a number of steps, times, or a function"),
        (None, [0.0, 1.0], "save=None must be 'times'"),
        ([0.5, 2.0], [0.0, 1.0], r"save=\[0.5, 2.0\] must lie between the first and the last time of t, 0.0 and 1.0"),
        ([0.5, 0.2], [0.0, 1.0], "and go their way"),
        ([0.5, 0.5], [0.0, 1.0], "save must be strictly rising or strictly falling"),
        ([], [0.0, 1.0], "save must hold at least one time, got"),
        ([0.5], torch.tensor([0.0, 0.5, 1.0], requires_grad=True), "is one of t that requires grad: give both as the same tensor"),
    ],
)
def test_what_cannot_be_saved_is_refused(save: Any, t: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        solve(lambda t, y: -y, vector(1), t, steps=2, save=save)


def test_steps_counted_anew_after_effects_are_refused_for_samples() -> None:
    bounce = Event(lambda t, y: y[:, 0], direction=-1, terminal=2, effect=lambda t, y: torch.stack([y[:, 0], -0.5 * y[:, 1]], -1))
    with pytest.raises(ValueError, match="save=2 counts anew after an event's effect"):
        solve(lambda t, y: y.flip(-1), vector(2, 2), [0.0, 5.0], per_sample=True, save=2, event=bounce, **CONTROLLED)


def test_samples_take_their_times_as_t() -> None:
    with pytest.raises(ValueError, match="per_sample=True takes times to be saved as t"):
        solve(lambda t, y: -y, vector(1, 2), [0.0, 1.0], save=[0.5], per_sample=True, **CONTROLLED)
