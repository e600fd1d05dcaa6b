"""Peak memory of a training step: a bound on live bytes, and its growth with the number of steps."""

from __future__ import annotations

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor, nn

from anodev2 import ODEBlock

MIB = 2**20


class ConvField(nn.Module):
    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(z)))


def peak(adjoint: str, steps: int) -> float:
    torch.manual_seed(0)
    block = ODEBlock(ConvField(), steps=steps, adjoint=adjoint)
    z = torch.randn(4, 64, 16, 16, requires_grad=True)
    with LiveBytes() as live:
        block(z).square().mean().backward()
    return live.peak / MIB


def test_peak_of_64_checkpointed_steps_is_64_states_and_little_more() -> None:
    assert peak("checkpoint", 64) <= 18.5  # 64 states of 0.25 MiB are 16


def test_storing_everything_takes_twice_that() -> None:
    assert peak("direct", 64) > 33  # the counter sees what it should see


def test_each_further_step_costs_one_state() -> None:
    state = 4 * 64 * 16 * 16 * 4 / MIB
    assert peak("checkpoint", 48) - peak("checkpoint", 32) == pytest.approx(16 * state, rel=1e-3)
