"""A solve with error control tells where f seems to jump, and of smooth problems, fast and stiff ones among them, nothing."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import CheckpointAdjoint, Control, Event, Solution, SolveError, solve
from tests.problems import vector

TIMES, END = (0.4, 1.1), 1.5
NAMES = ("tsit5", "bosh3", "dopri8", "rodas5p", "kvaerno5")
CASES = [
    pytest.param(method, tol, marks=[] if tol == 1e-6 and method in ("tsit5", "rodas5p") else pytest.mark.slow)
    for method in NAMES
    for tol in (1e-4, 1e-6, 1e-9)
    if (method, tol) not in (("bosh3", 1e-9), ("kvaerno5", 1e-9))
]


class Jumping:
    """A rotation, damped and driven by what jumps at times that f alone knows."""

    def __init__(self, times: tuple[float, ...] = TIMES, sign: int = 1) -> None:
        self.times, self.sign = times, sign

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        since = t if self.sign > 0 else END - t
        drive = torch.sin(3 * since) + sum((-1) ** i * (2 + i) * (since >= time) for i, time in enumerate(self.times))
        return self.sign * (torch.stack([2 * y[1] - y[0], -2 * y[0] - 0.5 * y[1]]) + drive)


def run(f: Any, tol: float, t: Any = (0.0, END), y0: Tensor | None = None, **options: Any) -> Solution:
    return solve(f, vector(1, -0.3) if y0 is None else y0, list(t), rtol=tol, atol=tol, **options)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("method", "tol"), CASES)
def test_every_jump_is_told_to_within_a_step_and_no_other(method: str, tol: float, sign: int) -> None:
    found = run(Jumping(sign=sign), tol, (0.0, END) if sign > 0 else (END, 0.0), method=method)
    told = found.stats.suspected_jumps
    times = TIMES if sign > 0 else tuple(END - time for time in TIMES)
    assert len(told) == len(times)
    for (start, end), time in zip(told, times, strict=True):
        place = found.grid.index(start)
        assert found.grid[place + 1] == end and min(start, end) <= time <= max(start, end)


@pytest.mark.parametrize(("method", "tol"), CASES)
def test_given_to_breaks_they_cost_no_rejections(method: str, tol: float) -> None:
    """The jumps themselves, or both ends of what is told."""
    plain = run(Jumping(), tol, method=method).stats
    assert plain.rejected >= 10
    for breaks in (TIMES, [time for between in plain.suspected_jumps for time in between]):
        declared = run(Jumping(), tol, method=method, breaks=breaks).stats
        assert declared.rejected <= plain.rejected / 5 and declared.suspected_jumps == ()
        assert declared.evaluations_forward < plain.evaluations_forward


def van_der_pol(mu: float) -> Any:
    return lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


SMOOTH = {
    "oscillator": (lambda t, y: torch.stack([y[1], -y[0]]), vector(1, 0), 20.0),
    "lorenz": (lambda t, y: torch.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]), vector(1, 1, 1), 5.0),
    "van der pol": (van_der_pol(5.0), vector(2, 0), 12.0),
    "brusselator": (lambda t, y: torch.stack([1 + y[0] ** 2 * y[1] - 4 * y[0], 3 * y[0] - y[0] ** 2 * y[1]]), vector(1.5, 3), 15.0),
    "pulse": (lambda t, y: 30 * torch.exp(-(((t - 0.77) / 1e-3) ** 2)) - y, vector(1, 0.5), 2.0),
}


@pytest.mark.parametrize("first_step", [None, 1.0])
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(
    ("method", "tol"),
    [("tsit5", 1e-4), *(pytest.param(*one, marks=pytest.mark.slow) for one in [("bosh3", 1e-6), *product(NAMES[2:], (1e-3, 1e-5))])],
)
def test_of_smooth_problems_nothing_is_told(method: str, tol: float, name: str, first_step: float | None) -> None:
    """Nor of a first step that is much too long."""
    f, y0, end = SMOOTH[name]
    assert run(f, tol, (0.0, end), y0, method=method, control=Control(first_step=first_step)).stats.suspected_jumps == ()


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-4, 1e-6])
def test_fast_changes_of_a_stiff_problem_are_no_jumps(tol: float) -> None:
    """Steps shrink from 300 to 1e-3 in some twenty rejections in a row, broken by accepted steps, and have to stay short."""
    stats = run(van_der_pol(1000.0), tol, (0.0, 2000.0), vector(2, 0), method="rodas5p").stats
    assert stats.rejected > 80 and stats.suspected_jumps == ()


@pytest.mark.parametrize(
    "options", [{"adjoint": "direct"}, {"adjoint": CheckpointAdjoint(slots=3)}, {"adjoint": "backsolve"}, {"dense": True}]
)
def test_whatever_takes_the_steps(options: Any) -> None:
    plain = run(Jumping(), 1e-6, method="tsit5").stats
    found = run(Jumping(), 1e-6, method="tsit5", **options).stats
    assert found.suspected_jumps == plain.suspected_jumps != () and found.rejected == plain.rejected


def test_in_all_pieces_between_effects_and_none_on_a_grid_or_per_sample() -> None:
    effect = Event(lambda t, y: t - 0.8, effect=lambda t, y: y)
    found = run(Jumping(), 1e-6, method="tsit5", event=effect)
    assert [start <= time <= end for (start, end), time in zip(found.stats.suspected_jumps, TIMES, strict=True)] == [True, True]
    again = solve(Jumping(), vector(1, -0.3), [0.0, END], method="tsit5", grid=found.grid)
    assert again.stats.suspected_jumps == () and again.stats.rejected == 0
    many = run(lambda t, y: -y + (t >= 0.4), 1e-6, y0=torch.ones(2, 1).double(), method="tsit5", per_sample=True)
    assert many.stats.suspected_jumps == ()


def test_where_steps_run_out_the_message_names_them() -> None:
    wave = Jumping(tuple(0.1 * (i + 1) for i in range(14)))
    with pytest.raises(SolveError, match="give them as breaks=") as found:
        run(wave, 1e-6, method="tsit5", max_steps=60)
    named = re.search(r"func seems to jump at 4 times \(near ([\d., ]+)\)", str(found.value))
    assert named is not None and [float(one) for one in named[1].split(", ")] == pytest.approx([0.1, 0.2, 0.3], abs=1e-4)
    with pytest.raises(SolveError) as smooth:
        run(SMOOTH["lorenz"][0], 1e-6, (0.0, 5.0), vector(1, 1, 1), method="tsit5", max_steps=60)
    assert "jump" not in str(smooth.value)


def test_they_are_shown() -> None:
    stats = run(Jumping(), 1e-4, method="rodas5p").stats
    assert "func seems to jump within 2 steps" in str(stats) and "suspected_jumps=((0." in repr(stats)
