"""Recursion, y_{n+1} = f(n, y_n), against loops written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, Compile, DirectAdjoint, ODEBlock, ReversibleAdjoint, odeint, plan, solve
from problems import vector

ADJOINTS: dict[str, Adjoint] = {
    "direct": DirectAdjoint(),
    "a state per pass": CheckpointAdjoint(),
    "slots": CheckpointAdjoint(slots=2),
    "budget": CheckpointAdjoint(memory="40KB"),
    "offload": CheckpointAdjoint(offload="cpu"),
}


class Recursive(nn.Module):
    """A network whose passes read the input, which the state carries along, the number of the pass and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.read, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.2)
        self.double()

    def forward(self, n: Tensor, y: dict[str, Tensor], *, step: int) -> dict[str, Tensor]:
        assert n.item() == step
        z = self.drop(torch.tanh(self.mix(y["z"]) + self.norm(self.read(y["x"])) + 0.1 * n))
        return {"z": z, "x": y["x"]}


class Logistic(nn.Module):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return 3.2 * y * (1 - y)


def by_hand(net: Recursive, y: dict[str, Tensor], passes: int) -> dict[str, Tensor]:
    for n in range(passes):
        y = net(vector(n)[0], y, step=n)
    return y


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_recursion_is_the_loop_written_by_hand(adjoint: str) -> None:
    """State, gradients, dropout and BatchNorm's statistics."""
    outcomes = []
    for run in (by_hand, lambda net, y, n: {k: v[-1] for k, v in odeint(net, y, [0, n], method="map", adjoint=ADJOINTS[adjoint]).items()}):
        net, z, x = Recursive(), torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
        y = {"z": z.requires_grad_(), "x": x.requires_grad_()}
        end = run(net, y, 9)
        gradients = torch.autograd.grad(end["z"].sin().sum(), [z, x, *net.parameters()])
        outcomes.append((end["z"], *gradients[:2], *net.buffers(), list(gradients[2:]), torch.get_rng_state()))
    *states, of_parameters, generator = zip(*outcomes, strict=True)
    assert all(torch.equal(*pair) for pair in states) and torch.equal(*generator)
    torch.testing.assert_close(*of_parameters, rtol=1e-13, atol=1e-15)


def test_a_compiled_recursion_is_the_loop_written_by_hand() -> None:
    layer = nn.Linear(4, 4).double()
    f, y = lambda n, y: torch.tanh(layer(y) * (1 + n)), torch.randn(2, 4, dtype=torch.float64)
    end = odeint(f, y, [0, 6], method="map", compile=Compile(backend="aot_eager"))[-1]
    expected = y
    for n in range(6):
        expected = f(n, expected)
    torch.testing.assert_close(end, expected, rtol=1e-12, atol=1e-14)
    found, exact = (torch.autograd.grad(one.sum(), list(layer.parameters())) for one in (end, expected))
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-13)


def test_passes_are_counted_by_the_times() -> None:
    """Collatz's numbers, from which the dtype is kept too; the logistic map through an ODEBlock."""
    halves = lambda n, y: torch.where(y % 2 == 0, y / 2, 3 * y + 1).double()
    assert odeint(halves, torch.tensor([6.0]), [0, 1, 2, 8], method="map")[:, 0].tolist() == [6, 3, 10, 1]
    every = solve(halves, torch.tensor([6.0]), [0, 8], method="map", save="steps")
    assert every.ys[:, 0].tolist() == [6, 3, 10, 5, 16, 8, 4, 2, 1] and every.ys.dtype == torch.float32
    assert every.stats.evaluations_forward == 8 and odeint(lambda n, y: y + n, vector(0), [5, 2], method="map")[-1].item() == 5 + 4 + 3
    assert odeint(lambda t, y: y + t, vector(0), [0.0, 1.0], method="map", steps=4)[-1].item() == 0.25 + 0.5 + 0.75
    assert ODEBlock(Logistic(), steps=100, method="map")(vector(0.3)).item() in (
        pytest.approx(0.513045, abs=1e-6),
        pytest.approx(0.799455, abs=1e-6),
    )


def test_depth_costs_no_memory_with_slots() -> None:
    f = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
    peak = lambda passes, adjoint: plan(lambda n, y: f(y), torch.zeros(4, 8), [0, passes], method="map", adjoint=adjoint).peak_bytes
    assert peak(1000, CheckpointAdjoint(slots=8)) == peak(20, CheckpointAdjoint(slots=8)) < peak(1000, DirectAdjoint()) / 100


MISTAKES: dict[str, tuple[str, Callable[..., Any]]] = {
    "parts of a pass": ("times must be whole numbers", lambda f, y: odeint(f, y, [0.0, 1.5], method="map")),
    "error control": ("map has no error estimate", lambda f, y: odeint(f, y, [0, 3], method="map", rtol=1e-3)),
    "reversible": ("map is not made", lambda f, y: odeint(f, y, [0, 3], method="map", adjoint=ReversibleAdjoint())),
    "backsolve": ("map is not made", lambda f, y: odeint(f, y, [0, 3], method="map", adjoint=BacksolveAdjoint())),
    "dense": ("no times between its passes", lambda f, y: solve(f, y, [0, 3], method="map", dense=True)),
    "event": ("no times between its passes", lambda f, y: solve(f, y, [0, 3], method="map", event=lambda n, y: y[0])),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_recursion_has_not_is_refused(mistake: str) -> None:
    match, run = MISTAKES[mistake]
    with pytest.raises(ValueError, match=match):
        run(lambda n, y: y / 2, vector(1).requires_grad_())


def test_leaves_that_pass_through_are_outputs_at_all_times() -> None:
    y0 = (vector(1, 2).requires_grad_(), vector(3, 4).requires_grad_())
    for adjoint in ADJOINTS.values():
        z, x = odeint(lambda n, y: (y[0] * y[1], y[1]), y0, [0, 1, 2, 3], method="map", adjoint=adjoint)
        assert torch.equal(z, torch.stack([y0[0] * y0[1] ** n for n in range(4)])) and torch.equal(x, y0[1].expand(4, 2))
        found = torch.autograd.grad(z.sum() + x[2].sum(), tree_leaves(y0))
        assert found[1].tolist() == [1 + 1 + 2 * 3 + 3 * 9, 2 * (1 + 2 * 4 + 3 * 16) + 1] and found[0].tolist() == [40.0, 85.0]
