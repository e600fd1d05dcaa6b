"""What the tests of compile= share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import (
    CheckpointAdjoint,
    Compile,
    odeint,
)

FAST = Compile(steps=3, backend="aot_eager")  # the same tracing, guards and autograd nodes; no code is generated


TRACED = Compile(steps=3, backend="eager")  # the graph run as it is: values to the bit


class Field(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 3)).double()

    def forward(self, t: Any, y: Tensor) -> Tensor:
        return self.net(y) * torch.cos(t)


def gradients(f: nn.Module, y0: Tensor, **options: Any) -> list[Tensor]:
    y0 = y0.clone().requires_grad_()
    states = odeint(f, y0, [0.0, 0.5, 2.0], **options)
    return [states.detach(), *torch.autograd.grad(states.square().sum(), [y0, *f.parameters()])]


ADJOINTS = ["direct", "checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="64KiB")]
