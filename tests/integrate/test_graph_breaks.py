"""An f that the compiler of a whole network cannot follow: the same numbers, gradients and statistics as without it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, CoupledODEBlock, Galerkin, ODEBlock, ReversibleAdjoint
from sampled import rows


class Breaking(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.linear, self.how = nn.BatchNorm1d(3), nn.Linear(3, 3), how

    def forward(self, t: Any, y: Tensor) -> Tensor:
        y = self.linear(self.norm(y))
        if self.how == "graph_break":
            torch._dynamo.graph_break()
        elif (self.how == "number" and y.detach().mean().item() > 100) or (self.how == "branch" and (y.detach() > 100).any()):
            return y
        return torch.tanh(y)


ADJOINTS = ["direct", "checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1KiB"), ReversibleAdjoint()]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    ("how", "kind", "adjoint"),
    rows(
        ["graph_break", "number", "branch"],
        ["ode", "coupled"],
        ADJOINTS,
        quick=[("graph_break", "ode", ADJOINTS[1]), ("number", "coupled", ADJOINTS[2])],
    ),
    ids=str,
)
def test_nothing_changes_where_f_breaks_the_graph(how: str, kind: str, adjoint: Any) -> None:
    def block() -> nn.Module:
        f, options = Breaking(how).double(), {"steps": 3, "method": "euler", "adjoint": adjoint}
        return ODEBlock(f, **options) if kind == "ode" else CoupledODEBlock(f, Galerkin("chebyshev", 2), **options)

    network = nn.Sequential(nn.Linear(3, 3).double(), block(), block())
    plain, y = copy.deepcopy(network), torch.randn(4, 3, dtype=torch.float64)
    compiled = torch.compile(network, backend="eager")
    for _ in range(2):
        results = []
        for called, own in ((plain, plain), (compiled, network)):
            own.zero_grad()
            out = called(y)
            out.square().sum().backward()
            results.append([out.detach(), *(p.grad for p in own.parameters()), *(b.clone() for b in own.buffers())])
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)
