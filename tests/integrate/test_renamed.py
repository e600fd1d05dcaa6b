"""What renames weights of f (prune, weight norm, parametrizations, adapters) works before the block is made, and is told after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from anodev2 import CoupledODEBlock
from blocks import DYNAMICS, Branch, block_of, stirred
from sampled import rows


class Adapter(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((4, 1), 0.1)), nn.Parameter(torch.full((1, 36), 0.1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.a @ self.b).view_as(weight)


def wrapped(f: Any) -> None:
    f.conv1 = Adapter(f.conv1)


RENAMED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "prune": (lambda f: prune.l1_unstructured(f.conv1, "weight", amount=0.5), "conv1.weight_orig"),
    "weight norm, old": (lambda f: weight_norm(f.conv1), "conv1.weight_v"),
    "spectral norm, old": (lambda f: spectral_norm(f.conv1).eval(), "conv1.weight_orig"),
    "weight norm": (lambda f: parametrizations.weight_norm(f.conv1), "conv1.parametrizations.weight.original1"),
    "spectral norm": (lambda f: parametrizations.spectral_norm(f.conv1).eval(), "conv1.parametrizations.weight.original"),
    "low rank": (lambda f: parametrize.register_parametrization(f.conv1, "weight", LowRank()), "conv1.parametrizations.weight.original"),
    "adapter": (wrapped, "conv1.base.weight"),
}


def image() -> Tensor:
    return torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 4, 4, 4)


def by_hand(block: CoupledODEBlock, z: Tensor) -> Tensor:
    """Two Euler steps."""
    for t in (0.0, 0.5):
        z = z + 0.5 * torch.func.functional_call(block.f, block.weights(t), (torch.tensor(t, dtype=z.dtype), z))
    return z


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(("adjoint", "change", "dynamics"), rows(["direct", "checkpoint"], RENAMED, DYNAMICS, quick=3))
def test_weights_renamed_before_the_block_is_made_evolve(change: str, dynamics: str, adjoint: str) -> None:
    f = Branch()
    rename, name = RENAMED[change]
    rename(f)
    block = block_of(dynamics, adjoint, f, evolve=[name, "conv2.weight"])
    stirred(block.double())
    assert isinstance(block, CoupledODEBlock) and set(block.evolving) == {name, "conv2.weight"}
    parameters = list(block.parameters())
    ends = [block(image()), by_hand(block, image())]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(end.square().sum(), parameters) for end in ends), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("change", RENAMED)
def test_weights_renamed_later_are_told(change: str, dynamics: str) -> None:
    block = block_of(dynamics)
    rename, name = RENAMED[change]
    rename(block.f)
    assert isinstance(block, CoupledODEBlock)
    for call in (lambda: block(image().float()), lambda: block.weights(0.5), lambda: block.trajectory(image().float())):
        with pytest.raises(ValueError, match=rf"^conv1\.weight of f=Branch .*CoupledODEBlock.*{name}.*prune, parametrize or wrap f first"):
            call()
