"""Times that are given more than once, and one time alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import CheckpointAdjoint, odeint, solve

A = torch.tensor([[-0.3, 1.0], [-1.0, -0.1]], dtype=torch.float64)
ADJOINTS: list[Any] = ["direct", "checkpoint", CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MiB"), "reversible", "backsolve"]
WAYS: dict[str, dict[str, Any]] = {
    "grid": {"method": "rk4", "steps": 4},
    "step size": {"method": "midpoint", "step_size": 0.1},
    "between": {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8},
    "exact": {"method": "tsit5", "rtol": 1e-6, "atol": 1e-8, "hit": "exact"},
    "per sample": {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8, "per_sample": True},
}


def field(t: Tensor, y: Tensor) -> Tensor:
    return y @ A.T * (1 + t / 5)


def start() -> Tensor:
    return torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_time_that_is_repeated_is_a_copy(way: str, adjoint: Any) -> None:
    if "rtol" in WAYS[way] and (adjoint == "reversible" or "memory='1" in str(adjoint)) and way != "per sample":
        pytest.skip("it wants to know the steps beforehand")
    if way == "per sample" and adjoint == "backsolve":
        pytest.skip("it wants times that samples share")
    y0, again = start(), start()
    ys = odeint(field, y0, [0.5, 0.5, 0.7, 1.0, 1.0, 1.0], adjoint=adjoint, **WAYS[way])
    once = odeint(field, again, torch.tensor([0.5, 0.7, 1.0], dtype=torch.float64), adjoint=adjoint, **WAYS[way])
    assert torch.equal(ys, once[[0, 0, 1, 2, 2, 2]])
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None, None]
    (weights * ys).sum().backward()
    (torch.tensor([3.0, 3.0, 15.0], dtype=torch.float64)[:, None, None] * once).sum().backward()
    assert y0.grad is not None
    torch.testing.assert_close(y0.grad, again.grad, rtol=1e-12, atol=1e-12)
    found = solve(field, y0, [0.5, 0.5, 0.7, 1.0, 1.0, 1.0], adjoint=adjoint, **WAYS[way])
    assert torch.equal(found.ys, ys) and found.ts.tolist() == [0.5, 0.5, 0.7, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("times", [[0.5], (0.5, 0.5), torch.full((3,), 0.5)], ids=["one", "two", "three"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_at_one_time_alone_y_is_y0(way: str, adjoint: Any, times: Any) -> None:
    y0 = start()
    ys = odeint(field, y0, times, adjoint=adjoint, **WAYS[way])
    assert torch.equal(ys, y0.expand(len(times), 2, 2))
    ys.sum().backward()
    assert y0.grad is not None and torch.equal(y0.grad, torch.full_like(y0, len(times)))
    found = solve(field, y0, times, adjoint=adjoint, **WAYS[way])
    assert torch.equal(found.ys, ys) and found.status.ok and found.stats.evaluations_forward == 0 and "0 steps" in repr(found)


def test_what_surrounds_one_time() -> None:
    """Trees, dense output, events that do not come, steps that were saved, and compiled runs."""
    y0 = start()
    tree = odeint(lambda t, y: {"a": y["b"], "b": -y["a"]}, {"a": y0, "b": 2 * y0}, [1.0], steps=3)
    assert torch.equal(tree["b"], 2 * y0[None])
    found = solve(field, y0, [0.5], method="dopri5", dense=True, event=lambda t, y: y.sum() - 9)
    assert torch.equal(found(0.5), y0) and found.event_time is None
    assert torch.equal(solve(field, y0, [0.5, 0.5], steps=2, save="steps").ys, y0[None])
    assert torch.equal(odeint(field, y0, [0.5], steps=2, compile=True), y0[None])
    back = odeint(field, y0, [1.0, 0.5, 0.5], steps=3)
    assert torch.equal(back, odeint(field, y0, [1.0, 0.5], steps=3)[[0, 1, 1]])


def test_a_copy_that_would_have_a_derivative_of_its_own_is_refused() -> None:
    end: Any = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"t repeats a time that requires grad, \(0.0, 1.0, 1.0\): give it once, and index"):
        odeint(field, start(), [0.0, end, end], steps=2)
    with pytest.raises(ValueError, match="strictly rising"):
        odeint(field, start(), [0.0, 1.0, 0.0], steps=2)
    with pytest.raises(ValueError, match="at least one time"):
        odeint(field, start(), [], steps=2)
