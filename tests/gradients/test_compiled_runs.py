"""Compiled runs that their own backward pass takes again: what is kept between the passes, draws and buffers, and what is not compiled."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from anodev2 import Compile, odeint, solve
from anodev2.torch_private import compile_errors


@torch.library.custom_op("anodev2_tests::noise", mutates_args=())
def noise(y: Tensor) -> Tensor:
    """Draws, and does not say so by a tag."""
    return torch.rand_like(y)


@noise.register_fake
def _(y: Tensor) -> Tensor:
    return torch.empty_like(y)


class Drawing(nn.Module):
    """Draws in each evaluation, and reads a buffer and a hidden tensor that it changes."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.hidden = [torch.zeros((), dtype=torch.float64)]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.count.add_(1)
        self.hidden[0].add_(1)
        scale = torch.sin(self.count) + torch.cos(2 * self.hidden[0])
        return self.drop(torch.tanh(y @ self.weight)) * scale * noise(y.detach())


@pytest.mark.slow
def test_a_run_is_taken_again_by_its_own_backward_pass() -> None:
    f, kept = Drawing(), dict[int, int]()
    y0 = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    how: dict[str, Any] = {"steps": 6, "method": "euler", "compile": Compile(steps=3)}

    def loss() -> Tensor:
        torch.manual_seed(0)
        f.count.zero_()
        f.hidden[0].zero_()
        return odeint(f, y0, [0.0, 1.0], **how)[-1].square().sum()

    with saved_tensors_hooks(lambda x: (kept.update({x.untyped_storage()._cdata: x.untyped_storage().nbytes()}), x)[1], lambda x: x):
        value = loss()
    state = 8 * y0.numel()
    assert sum(kept.values()) < 10.5 * state  # between two runs each, two in what is returned, six of noise; not what steps save
    gradient = torch.autograd.grad(value, [y0, f.weight])
    assert f.count == f.hidden[0] == 6  # moved once
    for tensor, own in zip((y0, f.weight), gradient, strict=True):
        v, ends = torch.randn_like(tensor), list[Tensor]()
        for h in (1e-6, -2e-6):
            with torch.no_grad():
                tensor.add_(v, alpha=h)
            ends.append(loss().detach())
        with torch.no_grad():
            tensor.add_(v, alpha=1e-6)
        assert math.isclose((own * v).sum(), (ends[0] - ends[1]) / 2e-6, rel_tol=1e-7)

    def steady(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y)

    solution = solve(steady, y0, [0.0, 1.0], **how)
    assert (solution.stats.recomputed, solution.stats.evaluations_backward) == (0, 0)
    solution.ys.sum().backward()
    assert (solution.stats.recomputed, solution.stats.evaluations_backward) == (6, 6)
    assert solution.stats.peak_bytes == 3 * state


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


@pytest.mark.parametrize("failing", [1, 2])
def test_where_a_run_is_not_compiled_the_solve_is_that_of_a_state_per_run(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers and random numbers are those of one solve, whichever run it is."""
    calls = []

    def compile(run: Any, **options: Any) -> Any:
        def called(*given: Any) -> Any:
            calls.append(run)
            if len(calls) >= failing:
                raise compile_errors()[0]("not this one")
            return run(*given)

        return called

    f, found = Normed(), []
    start = {name: value.clone() for name, value in f.state_dict().items()}
    y0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    each: tuple[dict[str, Any], ...] = {}, {"compile": Compile(steps=3)}
    for options in each:
        f.load_state_dict(start)
        torch.manual_seed(0)
        monkeypatch.setattr(torch, "compile", compile)
        with pytest.warns(UserWarning, match="not this one") if options else nullcontext():
            end = odeint(f, y0, [0.0, 1.0], steps=6, method="euler", **options)[-1]
        found.append([end, *torch.autograd.grad(end.square().sum(), [y0, *f.parameters()]), *f.buffers()])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
