"""Tables of known numbers: made once, for compiled code too."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import polynomial
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anodev2.tables import kept


def powers(bases: tuple[float, ...], size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([[base**power for power in range(size)] for base in bases], dtype=dtype, device=device)


def values(x: Tensor, *bases: float) -> Tensor:
    """Of the polynomial with these coefficients, at the bases and at 2."""
    kind = (x.shape[-1], x.dtype, x.device)
    return torch.cat([kept(powers, bases, *kind) @ x, kept(powers, (2.0,), *kind) @ x])


WAYS: dict[str, Callable[..., Tensor]] = {
    "plain": values,
    "transformed": lambda x, *b: torch.func.vmap(torch.func.grad(lambda y: values(y, *b).square().sum() / 2))(torch.stack([x, x]))[1],
}


@pytest.mark.parametrize("way", ["plain", pytest.param("transformed", marks=pytest.mark.slow)])
def test_tables_serve_whatever_is_made_of_them(way: str) -> None:
    """Compiled whole and not, whoever comes first, in two types; of numbers that vary, too, which a compiler takes for symbols then."""
    torch._dynamo.reset()
    eager, compiled = WAYS[way], torch.compile(WAYS[way], backend="eager", fullgraph=True)
    kinds = [(torch.float64, 3, (0.5, 3.0)), (torch.float32, 4, (0.25, 3.0))]
    with torch.inference_mode():
        compiled(torch.ones(3), 0.5, 3.0)
    for call, (dtype, size, bases) in itertools.product((compiled, eager, compiled), kinds):
        x = torch.arange(1, size + 1, dtype=dtype, requires_grad=True)
        rows = polynomial.polyvander(np.array([*bases, 2.0]), size - 1)
        expected = rows @ x.detach().numpy()
        slopes = rows[-1]
        if way == "transformed":
            expected, slopes = rows.T @ expected, (rows.T @ rows)[-1]
        found = call(x, *bases)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(torch.autograd.grad(found[-1], x)[0].numpy(), slopes, rtol=1e-6)
        assert found.dtype == dtype


def test_compiled_code_takes_the_table_that_is_there() -> None:
    """As an input; it is made neither in the graph nor in a call."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        assert [inputs[1].tolist(), inputs[2].tolist()] == [[[1.0, 7.0]], [[1.0, 2.0]]]
        return graph.forward

    torch.compile(values, backend=backend, fullgraph=True)(torch.ones(2), 7.0)
    assert [node.op for node in graphs[0].graph.nodes] == ["placeholder"] * 3 + ["call_function"] * 3 + ["output"]


def test_fake_tensors_meet_no_table_that_is_real() -> None:
    torch._dynamo.reset()
    values(torch.ones(3), 4.0)
    with FakeTensorMode() as mode:
        for call in (values, torch.compile(values, backend="aot_eager", fullgraph=True)):
            found = call(torch.ones(3), 4.0)
            assert found.shape == (2,) and found.fake_mode is mode  # pyright: ignore[reportAttributeAccessIssue]
    exported = torch.export.export(Values(), (torch.ones(3),))
    assert exported.module()(torch.ones(3)).tolist() == [21.0, 7.0]


class Values(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return values(x, 4.0)
