"""Paths through values at times: against scipy's interpolants, sample by sample; padding is never looked at."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, interp1d
from torch import Tensor

from anodev2 import Path, odeint

DTYPE = torch.float64
TIMES = torch.tensor([[0.0, 0.4, 1.5, 1.7, 3.0], [-1.0, 0.0, 0.1, 2.0, 9.0]], dtype=DTYPE)
VALUES = torch.randn(2, 5, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
LENGTHS = (5, 4)


def theirs(kind: str, sample: int) -> Any:
    """scipy's function through the values that count, and its derivative."""
    t, x = (part[sample, : LENGTHS[sample]].numpy() for part in (TIMES, VALUES))
    if kind == "cubic":
        slopes = np.diff(x, axis=0) / np.diff(t)[:, None]
        spline = CubicHermiteSpline(t, x, np.concatenate([slopes[:1], slopes]))
        return spline, spline.derivative()
    name = {"linear": "linear", "hold": "previous"}[kind]
    line = interp1d(t, x, name, axis=0)
    return line, lambda s: (line(s + 1e-6) - line(s - 1e-6)) / 2e-6


@pytest.mark.parametrize("kind", ["linear", "cubic", "hold"])
def test_a_path_is_that_of_scipy_sample_by_sample(kind: Any) -> None:
    values = VALUES.clone()
    values[1, 4] = torch.nan  # padding
    path = Path(TIMES, values, kind, lengths=LENGTHS)
    for t in np.linspace(0.03, 1.97, 8):
        for sample in range(2):
            value, slope = theirs(kind, sample)
            np.testing.assert_allclose(path(float(t))[sample], value(t), rtol=0, atol=1e-13)
            np.testing.assert_allclose(path.derivative(torch.tensor([t, t]))[sample], slope(t), rtol=0, atol=1e-8)
    for sample, length in enumerate(LENGTHS):
        for n in range(length):
            assert torch.equal(path(TIMES[:, n] if n < 4 else TIMES[0, n])[sample], VALUES[sample, n])
        before, after = float(TIMES[sample, 0]) - 1, float(TIMES[sample, length - 1]) + 1
        assert torch.equal(path(before)[sample], VALUES[sample, 0]) and torch.equal(path(after)[sample], VALUES[sample, length - 1])
        assert not path.derivative(before)[sample].any() and not path.derivative(after)[sample].any()
    for fraction in (0.0, 0.25, 1.0):  # of all intervals together
        value, slope = path.within(fraction)
        for n in range(3):
            at = TIMES[:, n] + fraction * (TIMES[:, n + 1] - TIMES[:, n]) - (1e-12 if fraction == 1 else 0)
            torch.testing.assert_close(value[:, n], path(at), rtol=0, atol=1e-9)
            torch.testing.assert_close(slope[:, n], path.derivative(at), rtol=0, atol=1e-9)
        assert not slope[1, 3].any() and torch.equal(value[1, 3], VALUES[1, 3])
    assert path.breaks == tuple(sorted({float(TIMES[i, n]) for i, length in enumerate(LENGTHS) for n in range(length)}))


@pytest.mark.parametrize("kind", ["linear", "cubic", "hold"])
def test_gradients_reach_values_and_times(kind: Any) -> None:
    at = torch.tensor([0.7, 1.2], dtype=DTYPE)

    def ends(times: Tensor, values: Tensor) -> Tensor:
        path = Path(times, values, kind, lengths=LENGTHS)
        return torch.stack([path(at), path.derivative(at)])

    assert torch.autograd.gradcheck(ends, (TIMES.clone().requires_grad_(), VALUES.clone().requires_grad_()))


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_a_controlled_equation_knows_the_ends_of_its_path_alone(kind: Any) -> None:
    """y' = a y x'(t): y = exp(a (x(t) - x(0))), whatever x does between."""
    times = TIMES[0]
    path = Path(times, VALUES[:, :, :1], kind)
    grid = sorted({*times.tolist(), *(float(a + (b - a) * i / 16) for a, b in pairwise(times) for i in range(16))})

    def f(t: Tensor, y: Tensor, *, step: int) -> Tensor:
        middle = torch.full((), (grid[step] + grid[step + 1]) / 2, dtype=DTYPE)  # of the interval that the step lies in
        return 0.5 * y * path.derivative(t.clamp(middle - 1e-9, middle + 1e-9) if kind == "linear" else t)

    y = odeint(f, torch.ones(2, 1, dtype=DTYPE), times.tolist(), grid=grid, method="rk4")
    torch.testing.assert_close(y, (0.5 * (path.values - path.values[:, :1])).exp().transpose(0, 1), rtol=1e-4, atol=0)


def test_complex_integer_and_single_values_are_paths_too() -> None:
    torch.testing.assert_close(Path(None, VALUES)(1.5), (VALUES[:, 1] + VALUES[:, 2]) / 2)
    torch.testing.assert_close(Path([0, 2, 3, 4, 5], VALUES)(1), (VALUES[:, 0] + VALUES[:, 1]) / 2)
    assert torch.equal(Path(None, VALUES.float().to(torch.complex64))(1.5).real, Path(None, VALUES.float())(1.5))
    alone = Path([3.0], VALUES[:, :1])
    assert torch.equal(alone(7.0), VALUES[:, 0]) and not alone.derivative(3.0).any() and alone.breaks == (3.0,)
    both = Path(None, VALUES, lengths=[1, 3])
    assert torch.equal(both(2.5), torch.stack([VALUES[0, 0], VALUES[1, 2]])) and not both.derivative(0.5)[0].any()
    assert len(both) == 5 and "'linear', 2 samples, 5 knots" in repr(both)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((TIMES, VALUES.long()), "floating"),
        ((TIMES, VALUES[0, 0]), "batch, length"),
        ((TIMES[:, :3], VALUES), "times of shape"),
        ((TIMES.flip(1), VALUES), "strictly rising"),
        ((TIMES * torch.nan, VALUES), "finite"),
        ((TIMES, VALUES, "spline"), "kind"),
        (("now", VALUES), "times"),
        ((3, VALUES), "times"),
    ],
)
def test_mistakes_are_named(given: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Path(*given)
    for lengths in ([5, 6], [0, 1], [1], [1.5, 2.0]):
        with pytest.raises(ValueError, match="lengths"):
            Path(TIMES, VALUES, lengths=lengths)
    with pytest.raises(ValueError, match="one time"):
        Path(TIMES, VALUES)(torch.zeros(3))


@pytest.mark.parametrize("kind", ["linear", "cubic", "hold"])
@pytest.mark.parametrize("rising", [True, False])
def test_a_solve_beyond_the_knots_steps_at_all_of_them(kind: Any, rising: bool) -> None:
    """y' = x(t) through straight lines: Simpson's rule is exact between the knots and outside, where the path stands still."""
    path = Path([0.0, 1.0, 2.0], torch.tensor([[1.0, 2.0, 3.0]], dtype=DTYPE), kind)
    t = [-1.0, 3.0] if rising else [3.0, -1.0]
    y = odeint(lambda t, y: path(t), torch.zeros(1, dtype=DTYPE), t, method="rk4", steps=1, breaks=path.breaks)[-1]
    total = 1 + (1 + 2 if kind == "hold" else 1.5 + 2.5) + 3
    torch.testing.assert_close(y, torch.tensor([total if rising else -total], dtype=DTYPE), rtol=1e-14, atol=0)
