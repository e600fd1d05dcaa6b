"""Each network against its forward pass written out here, from the names of its weights and the text of its paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anodev2 import BacksolveAdjoint, CheckpointAdjoint, CoupledODEBlock, DirectAdjoint, ODEBlock, ReversibleAdjoint
from anodev2.models import MODELS

State = dict[str, Tensor]


def conv(state: State, name: str, z: Tensor, stride: int = 1) -> Tensor:
    """Padded by half the kernel."""
    kernel = state[f"{name}.weight"]
    return F.conv2d(z, kernel, state.get(f"{name}.bias"), stride, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))


def norm(state: State, name: str, z: Tensor) -> Tensor:
    """BatchNorm as in evaluation."""
    mean, variance, weight, bias = (state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias"))
    return (z - mean) / (variance + 1e-5).sqrt() * weight + bias


def linear(state: State, name: str, z: Tensor) -> Tensor:
    return z @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def basic(state: State, name: str, z: Tensor) -> Tensor:
    """A residual block of two 3x3 convolutions and the ReLU behind it."""
    inside = norm(state, f"{name}.f.norm1", conv(state, f"{name}.f.conv1", z)).clamp(min=0)
    return (z + norm(state, f"{name}.f.norm2", conv(state, f"{name}.f.conv2", inside))).clamp(min=0)


def down(state: State, name: str, z: Tensor) -> Tensor:
    """A residual block to more channels and half the size."""
    inside = norm(state, f"{name}.norm1", conv(state, f"{name}.conv1", z, 2)).clamp(min=0)
    branch = norm(state, f"{name}.norm2", conv(state, f"{name}.conv2", inside))
    return (norm(state, f"{name}.shortcut.1", conv(state, f"{name}.shortcut.0", z, 2)) + branch).clamp(min=0)


def resnet(state: State, x: Tensor, *layers: tuple[Callable[[State, str, Tensor], Tensor], str]) -> Tensor:
    z = norm(state, "1", conv(state, "0", x)).clamp(min=0)
    for layer, name in layers:
        z = layer(state, name, z)
    return z


def resnet4(state: State, x: Tensor) -> Tensor:
    z = resnet(state, x, (basic, "3"))
    return linear(state, "7", z.unfold(2, 8, 8).unfold(3, 8, 8).mean((-2, -1)).flatten(1))


def resnet10(state: State, x: Tensor) -> Tensor:
    z = resnet(state, x, (basic, "3"), (basic, "5"), (down, "7"), (basic, "8"))
    return linear(state, "12", z.unfold(2, 8, 8).unfold(3, 8, 8).mean((-2, -1)).flatten(1))


def resnet18(state: State, x: Tensor) -> Tensor:
    later = [(basic, "8"), (down, "10"), (basic, "11"), (down, "13"), (basic, "14")]
    return linear(state, "18", resnet(state, x, (basic, "3"), (basic, "5"), (down, "7"), *later).mean((2, 3)))


def alexnet(state: State, x: Tensor) -> Tensor:
    z = pooled(norm(state, "1", conv(state, "0", x)).clamp(min=0))
    z = pooled((z + norm(state, "4.f.norm", conv(state, "4.f.conv", z))).clamp(min=0)).flatten(1)
    return linear(state, "12", linear(state, "10", linear(state, "8", z).clamp(min=0)).clamp(min=0))


def pooled(z: Tensor) -> Tensor:
    """The largest of each 3x3 neighbourhood around every second pixel; beyond the edge there is nothing."""
    return F.pad(z, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))


def squeezenext(state: State, x: Tensor) -> Tensor:
    def layer(name: str, z: Tensor, stride: int = 1) -> Tensor:
        return norm(state, f"{name}.norm", conv(state, f"{name}.conv", z, stride)).clamp(min=0)

    z = layer("0", x)
    for place, stride in (("1", 1), ("3", 2), ("5", 2), ("7", 2)):
        short, z = layer(f"{place}.shortcut", z, stride), layer(f"{place}.branch.0", z, stride)
        for i in range(1, 5):
            z = layer(f"{place}.branch.{i}", z)
        z = branch = short + z
        for part in ("squeeze1", "squeeze2", "row", "column", "expand"):
            branch = layer(f"{int(place) + 1}.f.{part}", branch)
        z = z + branch
    return linear(state, "12", layer("9", z).mean((2, 3)))


BY_HAND: dict[str, Callable[[State, Tensor], Tensor]] = {
    **{"resnet4": resnet4, "resnet10": resnet10, "resnet18": resnet18, "alexnet": alexnet, "squeezenext": squeezenext}
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_is_the_one_written_out(name: str) -> None:
    """In evaluation, with norms of which no number is special."""
    model = MODELS[name](block="residual").double().eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.dtype == torch.float64 and value.ndim == 1:
            value.uniform_(-0.5, 0.5) if key.endswith(("bias", "running_mean")) else value.uniform_(0.5, 1.5)
    state, x = model.state_dict(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = model(x)
    assert (found[0] - found[1]).abs().max() > 1e-4
    torch.testing.assert_close(found, BY_HAND[name](state, x), rtol=1e-10, atol=1e-10)


ADJOINTS: dict[Any, type] = {
    **{"direct": DirectAdjoint, "checkpoint": CheckpointAdjoint, "reversible": ReversibleAdjoint, "backsolve": BacksolveAdjoint}
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("block", ["ode", "coupled"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet18"])
def test_every_block_has_the_adjoint_asked_for(name: str, block: str, adjoint: str) -> None:
    blocks = [module for module in MODELS[name](block=block, adjoint=adjoint).modules() if isinstance(module, ODEBlock)]
    assert {type(part.adjoint) for part in blocks} == {ADJOINTS[adjoint]}
    assert {type(part) for part in blocks} == {CoupledODEBlock if block == "coupled" else ODEBlock}
    given = CheckpointAdjoint(slots=2)
    blocks = [module for module in MODELS[name](block=block, adjoint=given).modules() if isinstance(module, ODEBlock)]
    assert all(part.adjoint == given for part in blocks)
