"""Blocks and what is written out of them under torch's tracers; modules without shapes yet; batches of nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, ODEBlock
from blocks import DYNAMICS, Branch, block_of, stirred

pytestmark = [
    pytest.mark.usefixtures("nothing_kept"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def image(batch: int = 2) -> Tensor:
    return torch.linspace(-1, 1, 64 * batch).view(batch, 4, 4, 4)


def made(dynamics: str | None, how: str, **options: Any) -> Any:
    block = stirred(block_of(dynamics, "direct", **options)).eval()
    return block.unroll() if how == "unrolled" else block


@pytest.mark.parametrize("dynamics", [None, *DYNAMICS])
@pytest.mark.parametrize("how", ["direct", pytest.param("unrolled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("grad", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_jit_trace(dynamics: str | None, how: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(made(dynamics, how), image())
        for z in (image(), 2 * image(), image(3)):
            torch.testing.assert_close(traced(z), made(dynamics, how)(z))  # pyright: ignore[reportCallIssue]


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # weights swapped in and out again
@pytest.mark.parametrize(
    "dynamics", ["layer", *(pytest.param(other, marks=pytest.mark.slow) for other in [None, *DYNAMICS] if other != "layer")]
)
@pytest.mark.parametrize("how", ["direct", pytest.param("unrolled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strict", [True, False])
def test_export_with_any_batch(dynamics: str | None, how: str, strict: bool) -> None:
    module = made(dynamics, how)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    exported = torch.export.export(module, (image(),), dynamic_shapes=shapes, strict=strict).module()
    for batch in (2, 5):
        torch.testing.assert_close(exported(image(batch)), module(image(batch)))
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before


class Lazy(Branch):
    """A branch whose norm, and ``conv`` too, learn their sizes in the first call."""

    def __init__(self, conv: bool = False) -> None:
        super().__init__()
        self.norm: nn.Module = nn.LazyBatchNorm2d()
        if conv:
            self.conv1 = nn.LazyConv2d(4, 3, padding=1)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("dynamics", [None, *DYNAMICS])
@pytest.mark.parametrize("grad", [True, False])
def test_lazy_modules(dynamics: str | None, grad: bool) -> None:
    block = block_of(dynamics, "direct", Lazy())
    with torch.set_grad_enabled(grad):
        end = block(image())
    assert type(block.f.get_submodule("norm")) is nn.BatchNorm2d and torch.equal(block.f.norm.num_batches_tracked, torch.tensor(2))  # pyright: ignore
    if grad:
        end.square().sum().backward()
        assert all(parameter.grad is not None for parameter in block.f.parameters())
    if dynamics is not None:
        for evolve in ("conv1.weight", None):
            with pytest.raises(ValueError, match=r"(conv1|norm)\.weight of f has no shape yet.*call f once before the block is made"):
                block_of(dynamics, "direct", Lazy(conv=True), evolve=evolve)


@pytest.mark.parametrize("dynamics", [None, *DYNAMICS])
@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4)], ids=["group", "batch"])
def test_a_batch_of_nothing(dynamics: str | None, adjoint: str, norm: nn.Module) -> None:
    f = Branch()
    f.norm = norm  # pyright: ignore[reportAttributeAccessIssue]
    block, z = block_of(dynamics, adjoint, f, method="midpoint"), image(0).requires_grad_()
    end = block(z)
    end.square().sum().backward()
    assert end.shape == z.shape and z.grad is not None and z.grad.shape == z.shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in block.f.parameters())
    assert block.trajectory(z).shape == (3, 0, 4, 4, 4) and block.unroll()(z).shape == z.shape
    assert isinstance(block, CoupledODEBlock if dynamics else ODEBlock)
