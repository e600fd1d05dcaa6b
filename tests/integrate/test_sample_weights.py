"""Weights that read the features, unrolled, exported and compiled, and what f may do with them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from anodev2 import (
    CoupledODEBlock,
    Dynamics,
    NeuralDynamics,
    ODEBlock,
    odeint,
)
from reading_features import CASES, Rule, features, leaves, made, one_by_one


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("case", CASES)
def test_unrolled_blocks_are_the_blocks_to_the_bit(case: str, method: str) -> None:
    block, z, _ = made(case, method=method)
    written = block.eval().unroll()
    for _ in range(2):
        for own, other in zip(leaves(block(z)), leaves(written(z)), strict=True):
            assert torch.equal(own, other)
    assert not any(isinstance(module, ODEBlock) for module in written.modules()) and not written.training
    assert len(list(written.parameters())) == len(list(block.parameters()))


@pytest.mark.parametrize("case", ["vectors", *(pytest.param(case, marks=pytest.mark.slow) for case in ("einsum", "tree"))])
def test_exported_blocks_are_the_blocks_to_the_bit(case: str) -> None:
    block, z, _ = made(case, steps=2)
    ends = leaves(block(z))
    batch = torch.export.Dim("batch")
    shapes = {key: {0: batch} for key in z} if isinstance(z, dict) else {0: batch}
    exported = torch.export.export(block.unroll(), (z,), dynamic_shapes=(shapes,)).module()
    for own, other in zip(ends, leaves(exported(z)), strict=True):
        assert torch.equal(own, other)
    more = {key: torch.cat([x, x + 1]) for key, x in z.items()} if isinstance(z, dict) else torch.cat([z, z + 1])
    for own, other in zip(leaves(block(more)), leaves(exported(more)), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-14)


class Normed(nn.Module):
    """Vectors, with a norm over the batch, the compiler's graph broken or not."""

    def __init__(self, norm: nn.Module, broken: bool = False) -> None:
        super().__init__()
        self.a, self.norm, self.broken = nn.Linear(4, 4), norm, broken

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if self.broken:
            torch._dynamo.graph_break()
        return torch.tanh(self.norm(self.a(z)))


@pytest.mark.slow
@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("make", [lambda: Normed(nn.BatchNorm1d(4)), lambda: Normed(nn.Identity())], ids=["batch", "each"])
def test_torch_compile_of_a_network_changes_no_gradient_and_no_statistics(make: Callable[[], nn.Module], called: bool) -> None:
    torch.manual_seed(0)
    z, compiled = features(4), CoupledODEBlock(make().double(), NeuralDynamics(Rule()).double(), evolve="a.*", steps=2)
    if called:
        compiled(z)
    plain = deepcopy(compiled)
    ends = [call(z).sin().sum() for call in (plain, torch.compile(compiled, backend="aot_eager", fullgraph=True))]
    for end in ends:
        end.backward()
    pairs = [(ends[0].detach(), ends[1].detach()), *zip(plain.buffers(), compiled.buffers(), strict=True)]
    pairs += [(a.grad, b.grad) for a, b in zip(plain.parameters(), compiled.parameters(), strict=True)]  # type: ignore[misc]
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=0, atol=1e-13)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("dynamics", [lambda: NeuralDynamics(Rule()), lambda: NeuralDynamics(lambda t, theta: theta)])
def test_a_graph_that_breaks_inside_f_is_continued(dynamics: Callable[[], Dynamics]) -> None:
    z, block = features(4), CoupledODEBlock(Normed(nn.Identity(), broken=True).double(), dynamics().double(), steps=2)
    torch.testing.assert_close(torch.compile(block, backend="aot_eager")(z), deepcopy(block)(z), rtol=0, atol=1e-13)


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("case", ["rows", "einsum", "images"])
def test_of_no_samples_come_no_samples(case: str, called: bool) -> None:
    block, z, _ = made(case)
    if called:
        block(z)
    end = block(z[:0])
    end.sum().backward()
    assert end.shape == block.unroll()(z[:0]).shape == z[:0].shape
    assert all(p.grad is not None and not p.grad.any() for p in block.f.parameters())


class Offset(nn.Module):
    """A learned row goes through the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.a = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 4)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.a(z) * self.a(self.row)


@pytest.mark.parametrize("evolve", [None, "a.*"])
def test_a_weight_may_be_what_a_layer_is_given(evolve: str | None) -> None:
    torch.manual_seed(0)
    block, z = CoupledODEBlock(Offset().double(), NeuralDynamics(Rule()).double(), evolve=evolve, steps=3), features(4)
    system, start = one_by_one(block, z)
    end = odeint(system, (z, start), [0.0, 1.0], method="euler", steps=3)[0][-1]
    torch.testing.assert_close(block(z), end, rtol=1e-12, atol=1e-12)


def test_what_f_keeps_does_not_change_how_it_is_called() -> None:
    class Keeping(Normed):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.kept = [super().forward(t, z)]
            return self.kept[0]

    block, z = CoupledODEBlock(Keeping(nn.Identity()).double(), NeuralDynamics(Rule()).double(), steps=2), features(4)
    block(z)
    block.eval()(z)
    assert list(block._together.found.values()) == [True, True]


def test_a_function_that_knows_the_number_of_samples_is_told_what_to_do() -> None:
    class Driven(Normed):
        by = features(4)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return super().forward(t, torch.cat([z, self.by], 1)[:, :4])

    with pytest.raises(RuntimeError) as caught:
        CoupledODEBlock(Driven(nn.Identity()).double(), NeuralDynamics(Rule()).double())(features(4))
    assert "must come in by z" in str(caught.value.__notes__)


def test_a_block_that_has_never_been_called_is_unrolled_too() -> None:
    block, z, _ = made("images")
    assert torch.equal(block.unroll()(z), block(z))
