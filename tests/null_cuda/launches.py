"""How many launches a training step makes; rows are networks, blocks and adjoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from anodev2 import Adjoint, CheckpointAdjoint
from anodev2.models import MODELS
from tests.null_cuda.told import steady

ADJOINTS: dict[str, str | Adjoint] = {
    "direct": "direct",
    "checkpoint": "checkpoint",
    "slots=2": CheckpointAdjoint(slots=2),
    "memory": CheckpointAdjoint(memory="1GiB"),
    "offload": CheckpointAdjoint(offload="cpu"),
    "reversible": "reversible",
    "backsolve": "backsolve",
}
MEASURED = "2.14"  # the release of torch whose launches these are
LAUNCHES = {  # at most so many in a training step at batch 256, 5 steps, a norm per step; a change that makes fewer lowers them
    "resnet4 residual": 43,
    "resnet4 ode direct": 125,
    "resnet4 ode checkpoint": 188,
    "resnet4 ode slots=2": 215,
    "resnet4 coupled direct": 149,
    "resnet4 coupled checkpoint": 212,
    "resnet4 coupled slots=2": 239,
    "resnet10 residual": 103,
    "resnet10 ode direct": 349,
    "resnet10 ode checkpoint": 538,
    "resnet10 ode slots=2": 619,
    "resnet10 coupled direct": 421,
    "resnet10 coupled checkpoint": 610,
    "resnet10 coupled slots=2": 691,
    "resnet18 residual": 187,
    "resnet18 ode direct": 515,
    "resnet18 ode checkpoint": 767,
    "resnet18 ode slots=2": 875,
    "resnet18 coupled direct": 611,
    "resnet18 coupled checkpoint": 863,
    "resnet18 coupled slots=2": 971,
}


def network(name: str, block: str, adjoint: str | None = None, **options: Any) -> nn.Module:
    """A network on the device, its kernels channels_last."""
    given = options if adjoint is None else {"adjoint": ADJOINTS[adjoint], **options}
    made: Any = MODELS[name](10, block=block, **given).cuda()
    return made.to(memory_format=torch.channels_last)


def training_step(model: nn.Module, batch: int = 256) -> Callable[[], None]:
    """One step of SGD with momentum on images of 32x32."""
    x = torch.zeros(batch, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.long, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def answer(row: str) -> int:
    return steady(training_step(network(*row.split())), 2).launches  # the first has no momentum yet
