"""Blocks whose f, and whose weights' own dynamics, jump at known times."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import (
    CheckpointAdjoint,
    CoupledODEBlock,
    Dynamics,
    NeuralDynamics,
    ODEBlock,
    ReversibleAdjoint,
    odeint,
    plan,
)
from anodev2.diagnose import reversibility, stability

BREAK = 0.4  # no number of float32
Z0 = torch.tensor([[0.3], [-1.1]], dtype=torch.float64)
Theta = dict[str, Tensor]


class Jumping(nn.Module):
    """f = theta s(t), s = 1 before the break and 3 behind."""

    def __init__(self, trained: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.at = nn.Parameter(torch.full((1,), BREAK, dtype=torch.float64)) if trained else BREAK

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.w * torch.where(t < self.at, 1.0, 3.0).to(z.dtype) + 0 * z


class Decay(Dynamics):
    """theta' = -theta, in closed form."""

    def forward(self, t: Any, theta: Theta) -> Theta:
        return {name: -w for name, w in theta.items()}

    def flow(self, theta: Theta, times: Any) -> Theta:
        return {name: torch.stack([math.exp(-time) * w for time in times]) for name, w in theta.items()}


class Slower(nn.Module):
    """theta' = -theta before the break, -2 theta behind."""

    def __init__(self, at: Any) -> None:
        super().__init__()
        self.at = at

    def forward(self, t: Tensor, theta: Theta) -> Theta:
        return {name: -torch.where(t < self.at, 1.0, 2.0).to(w.dtype) * w for name, w in theta.items()}


class SlowerOfEach(Slower):
    """The same, of each sample."""

    def forward(self, t: Tensor, theta: Theta, z: Tensor) -> Theta:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(t, theta)


DYNAMICS: dict[str, Any] = {
    "none": lambda at: None,
    "flow": lambda at: Decay(),
    "stepped": lambda at: NeuralDynamics(Slower(at)),
    "jointly": lambda at: NeuralDynamics(SlowerOfEach(at)),
}
b, gone = BREAK, math.exp(-BREAK)
MOVED = {  # from z(0) to z(1)
    "none": b + 3 * (1 - b),
    "flow": (1 - gone) + 3 * (gone - math.exp(-1)),
    "stepped": (1 - gone) + 1.5 * (gone - math.exp(b - 2)),
}
MOVED["jointly"] = MOVED["stepped"]
BY_BREAK = {"none": -2.0, "jointly": -0.5 * gone - 1.5 * math.exp(b - 2)}


def block_of(kind: str, **options: Any) -> Any:
    trained = options.pop("trained", False)
    f = Jumping(trained)
    dynamics = DYNAMICS[kind](f.at)
    options = {"steps": 4, "method": "rk4", "breaks": f.at if trained else [BREAK], **options}
    return ODEBlock(f, **options) if dynamics is None else CoupledODEBlock(f, dynamics, evolve="w", **options)


@pytest.mark.parametrize("kind", DYNAMICS)
def test_blocks_keep_the_order(kind: str) -> None:
    errors = []
    for steps in (2, 4):
        block = block_of(kind, steps=steps)
        moved = (block(Z0) - Z0).detach()
        errors.append(float((moved - MOVED[kind]).abs().max()))
        path = block.trajectory(Z0)
        assert path.shape == (2 * steps + 1, *Z0.shape) and torch.equal(path[-1], block(Z0))
    assert errors[1] < 1e-13 or math.log2(errors[0] / errors[1]) > 3.7
    assert errors[1] < 5e-5


ADJOINTS = [CheckpointAdjoint(), CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MiB"), ReversibleAdjoint()]


@pytest.mark.parametrize("kind", ["none", "jointly"])
def test_breaks_are_trained(kind: str) -> None:
    """The gradient of a break is the jump of f there, in closed form; every exact adjoint has that of direct."""

    def gradients(adjoint: Any) -> list[Tensor]:
        block = block_of(kind, trained=True, adjoint=adjoint, steps=16)
        assert "breaks" in dict(block.named_parameters(remove_duplicate=False))
        return list(torch.autograd.grad(block(Z0).sum(), [block.f.at, block.f.w]))

    expected = gradients("direct")
    torch.testing.assert_close(expected[0], torch.full_like(expected[0], len(Z0) * BY_BREAK[kind]), rtol=1e-5, atol=0)
    for adjoint in ADJOINTS:
        tolerance = 1e-13 if isinstance(adjoint, CheckpointAdjoint) else 1e-5
        torch.testing.assert_close(gradients(adjoint), expected, rtol=tolerance, atol=tolerance)
    block = block_of("none", trained=True, steps=16)
    torch.optim.SGD([block.f.at], lr=0.05).step(lambda: (block(Z0) - Z0 - 1).square().sum().backward())  # pyright: ignore[reportArgumentType]
    assert block.f.at > BREAK and torch.equal(block.breaks, block.f.at)
    torch.testing.assert_close(block(Z0) - Z0, torch.full_like(Z0, 3 - 2 * block.f.at.item()))


def test_weights_that_move_by_themselves_are_read_at_times_that_stand() -> None:
    for kind in ("flow", "stepped"):
        block = block_of(kind)
        block.breaks = nn.Parameter(torch.full((1,), BREAK, dtype=torch.float64))
        with pytest.raises(ValueError, match="solve both jointly"):
            block(Z0)
        with torch.no_grad():
            torch.testing.assert_close(block(Z0), block_of(kind)(Z0), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("adjoint", ["checkpoint", "reversible"])
@pytest.mark.parametrize("kind", DYNAMICS)
def test_written_out_in_every_precision(kind: str, adjoint: str) -> None:
    """To the bit in the block's own; where it is moved to another, each call stays on its side of the break."""
    block = block_of(kind, adjoint=adjoint, method="heun2", steps=3)
    plain = block.unroll()
    assert torch.equal(plain(Z0), block(Z0))
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(plain.to(dtype)(Z0.to(dtype)), block(Z0).to(dtype), rtol=1e-6, atol=1e-6)
    other = copy.deepcopy(block).float().unroll()
    torch.testing.assert_close(other(Z0.float()), block(Z0).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "jointly"])
def test_costs_are_told(kind: str) -> None:
    block, asked = block_of(kind, adjoint=CheckpointAdjoint(slots=2)), 0

    def count(*_: Any) -> None:
        nonlocal asked
        asked += 1

    told = block.plan(Z0)
    if kind == "none":
        block.f.register_forward_hook(count)
        block(Z0.clone().requires_grad_()).sum().backward()
        assert asked == told.evaluations_forward + told.evaluations_backward
    assert told.steps == 8 == plan(Jumping(), Z0, steps=4, breaks=[BREAK, 7.0]).steps


def test_a_falling_block_and_its_reports() -> None:
    """From 1 down to 0 z moves by the negative, and the steps of the report are those of the block."""
    block = block_of("none", t=(1.0, 0.0))
    torch.testing.assert_close(block(Z0) - Z0, torch.full_like(Z0, -MOVED["none"]))
    assert "breaks=(0.4,)" in repr(block)
    report = reversibility(block, Z0)
    assert report.worst < 1e-12 and 0.4 in report.times
    assert stability(block_of("none"), Z0).step == pytest.approx(0.15)


def test_user_mistakes_are_named() -> None:
    for breaks, words in (
        ([0.4, math.nan], "breaks must be finite"),
        (0.4, "breaks must be a sequence"),
        ([torch.tensor(0.4, requires_grad=True)], "one nn.Parameter"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            ODEBlock(Jumping(), breaks=breaks)  # pyright: ignore[reportArgumentType]


def test_a_block_is_odeint_with_the_same_breaks() -> None:
    block = block_of("none")
    assert torch.equal(block(Z0), odeint(block.f, Z0, [0.0, 1.0], steps=4, breaks=[BREAK])[-1])
