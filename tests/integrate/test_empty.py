"""A batch without samples, as the last of a filtered data set may be: what a plain loop makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import odeint, solve
from problems import CONTROLLED, IMPLICIT, RUNGE_KUTTA, SPLITTING, Reacting

SHAPES = [(0,), (0, 3), (2, 0)]


def check(f: Any, y0: Tensor, weight: Tensor, **options: Any) -> None:
    """Shapes of the solution and of gradients, which are zero for the weight."""
    y0 = y0.requires_grad_()
    y = odeint(f, y0, [0.0, 0.5, 1.0], adjoint="direct", **options)
    assert y.shape == (3, *y0.shape) and y.dtype == y0.dtype
    gradients = torch.autograd.grad(y.sum(), (y0, weight), allow_unused=True)
    assert gradients[0].shape == y0.shape and (gradients[1] is None or not gradients[1].any())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", RUNGE_KUTTA + IMPLICIT)
def test_states_without_elements(method: str, shape: tuple[int, ...]) -> None:
    weight = torch.ones((), requires_grad=True)
    check(lambda t, y: -weight * y, torch.zeros(shape), weight, method=method, steps=2)
    beside = {"a": torch.zeros(shape), "b": torch.ones(2)}
    ends = odeint(lambda t, y: {"a": -y["a"], "b": -y["b"]}, beside, [0.0, 1.0], method=method, steps=4, adjoint="direct")
    alone = odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0], method=method, steps=4, adjoint="direct")
    assert ends["a"].shape == (2, *shape) and torch.equal(ends["b"], alone)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", CONTROLLED)
def test_error_control_without_errors(method: str, shape: tuple[int, ...]) -> None:
    weight = torch.ones((), requires_grad=True)
    check(lambda t, y: -weight * y, torch.zeros(shape), weight, method=method)
    found = solve(lambda t, y: -y, torch.zeros(shape), [0.0, 1.0], method=method, adjoint="direct", dense=True, save="steps")
    assert found.status.ok and found.ys.shape == (len(found.grid), *shape) and found(0.3).shape == shape
    with pytest.raises(ValueError, match="at least one sample with an element, got y0 of shape"):
        solve(lambda t, y: -y, torch.zeros(shape), [0.0, 1.0], method=method, per_sample=True)


@pytest.mark.parametrize("dense", [False, True], ids=["Fourier", "dense"])
@pytest.mark.parametrize("method", SPLITTING + IMPLICIT)
def test_fields_with_a_linear_part(method: str, dense: bool) -> None:
    equation = Reacting(16, dense=dense)
    check(equation, torch.zeros(0, 16, dtype=torch.float64), equation.viscosity, method=method, steps=2)


def test_leapfrog_on_nothing() -> None:
    nothing = (torch.zeros(0, 2), torch.zeros(0, 2))
    q, v = odeint(lambda t, y: (y[1], -y[0]), nothing, [0.0, 1.0], method="leapfrog", steps=2, adjoint="direct")
    assert q.shape == v.shape == (2, 0, 2)
