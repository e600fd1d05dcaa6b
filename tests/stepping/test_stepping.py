from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anodev2 import odeint
from anodev2.stepping import Grid, as_count, as_times, numbers, uniform_grid

times = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=5, unique=True).map(sorted).filter(lambda t: min(map(abs, gaps(t))) > 1e-6)


def gaps(t: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(t)]


@given(times, st.integers(1, 7), st.booleans())
def test_every_interval_has_its_steps_and_ends_exactly(t: list[float], steps: int, falling: bool) -> None:
    t = t[::-1] if falling else t
    grid = uniform_grid(t, steps)
    assert len(grid) == len(grid.steps()) == steps * (len(t) - 1)
    assert [step.index for step in grid.steps()] == list(range(len(grid)))
    for number, (start, end) in enumerate(pairwise(t)):
        inside = grid.steps()[number * steps : (number + 1) * steps]
        assert inside[0].time(0.0) == start and inside[-1].time(1.0) == end
        assert all(step.dt == (end - start) / steps for step in inside)


@given(st.integers(1, 2000), st.floats(1e-4, 1e4))
def test_a_whole_number_of_step_sizes_is_that_many_steps(count: int, size: float) -> None:
    assert len(uniform_grid([0.0, count * size], step_size=size)) == count
    assert len(uniform_grid([1.1 * size, (1.1 + count) * size], step_size=size)) == count


@given(st.floats(1e-3, 10), st.floats(0.01, 10))
def test_step_size_is_an_upper_bound(span: float, size: float) -> None:
    grid = uniform_grid([span, 0.0], step_size=size)
    assert abs(grid.steps()[0].dt) <= size * (1 + 1e-8)
    assert len(grid) == 1 or span / (len(grid) - 1) > size * (1 - 1e-8)


def test_outputs_are_counted_in_steps() -> None:
    assert Grid((0.0, 1.0, 3.0), (2, 4)).outputs() == (0, 2, 6)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        ([0.0], ValueError, "at least two"),
        (1.0, TypeError, "sequence of times"),
        ([0.0, 0.0], ValueError, "strictly"),
        ([0.0, 1.0, 0.5], ValueError, "strictly"),
        ([0.0, math.nan], ValueError, "finite"),
        ([0.0, math.inf], ValueError, "finite"),
        (torch.zeros(2, 2), ValueError, "one-dimensional"),
        (torch.zeros(2, dtype=torch.complex64), ValueError, "real"),
        ([None, 1.0], TypeError, "sequence of times"),
    ],
)
def test_times_that_make_no_grid_are_refused(t: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_times(t)


def test_times_stay_tensors_only_for_gradients() -> None:
    assert as_times(torch.tensor([0, 2])) == (0.0, 2.0)
    t = torch.tensor([0.0, 2.0], requires_grad=True)
    for times, wants in ((as_times(t), (True, True)), (as_times([0.0, t[1]]), (False, True))):
        assert tuple(isinstance(time, torch.Tensor) and time.requires_grad for time in times) == wants
        assert numbers(times) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither"),
        ({"steps": 3, "step_size": 0.1}, "both"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"steps": True}, "steps=True"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"step_size": -0.1}, "never does"),
        ({"step_size": math.inf}, "finite"),
        ({"step_size": "0.1"}, "step_size='0.1'"),
    ],
)
def test_step_counts_that_make_no_grid_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uniform_grid([0.0, 1.0], **given)


def test_counts_may_be_any_integer_type() -> None:
    import numpy as np

    assert as_count("steps", np.int64(3)) == 3
    assert len(uniform_grid([0.0, 1.0], step_size=np.float64(0.1))) == 10  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("derivative", [torch.func.grad, torch.func.jacrev], ids=lambda one: one.__name__)
def test_a_step_size_has_no_gradient_and_says_so(derivative: Any) -> None:
    """It only chooses how many steps there are; the times of given steps have theirs."""
    y0, size = torch.ones(1, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
    ends = lambda size: odeint(lambda t, y: -y, y0, [0.0, 1.0], method="euler", step_size=size)[-1].sum()
    with pytest.raises(ValueError, match=r"step_size has no gradient.*step_size\.detach\(\), or .* as grid="):
        derivative(ends)(size)
    with pytest.raises(ValueError, match="step_size has no gradient"):
        ends(size.clone().requires_grad_())
    assert ends(size).item() == pytest.approx(0.75**4)
    grid = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)  # (1 - t)(1 - (1 - t)) = t - t^2
    (slope,) = torch.autograd.grad(odeint(lambda t, y: -y, y0, [0.0, 1.0], method="euler", grid=grid)[-1].sum(), grid)
    assert slope[1].item() == pytest.approx(0.4)
