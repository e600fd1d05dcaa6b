"""Threads that use one block, or blocks that share modules, get what a single thread gets, and leave the weights as they were."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, Dynamics, Galerkin, ODEBlock, ReactionDiffusionAdvection, unroll
from blocks import DYNAMICS, stirred


class Conv(nn.Module):
    def __init__(self, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.conv  # under two names

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.conv(z)))) - 0.1 * self.conv(z)


class Around(nn.Module):
    """A branch with a block inside, whose start the outer dynamics moves."""

    def __init__(self, dynamics: Callable[[], Dynamics], adjoint: str) -> None:
        super().__init__()
        self.block = CoupledODEBlock(Conv(), dynamics(), steps=2, adjoint=adjoint)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.block(z) - z


def two(kind: str, dynamics: Callable[[], Dynamics], adjoint: str) -> list[nn.Module]:
    """What the two threads call."""
    block = lambda f: CoupledODEBlock(f, dynamics(), evolve="*conv.weight", steps=3, adjoint=adjoint)
    f = Conv()
    if kind == "two blocks of one f":
        return [block(f), CoupledODEBlock(f, dynamics(), evolve="*conv.weight", steps=2, method="midpoint", adjoint=adjoint)]
    if kind == "two f of one module":
        return [block(f), block(Conv(f.conv))]
    if kind == "a block inside a block":
        outer = block(Around(dynamics, adjoint))
        return [outer, outer.f.block]  # pyright: ignore[reportReturnType]
    one = ODEBlock(f, steps=3, adjoint=adjoint) if kind == "plain" else unroll(block(f)) if kind == "unrolled" else block(f)
    return [one, one]


KINDS = ["coupled", "two blocks of one f", "two f of one module", "a block inside a block", "unrolled", "plain"]


@pytest.fixture(autouse=True)
def often_switched() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamics", ["layer", "stepped", "linear", "diffusion", "module"])
@pytest.mark.parametrize("task", ["inference", "direct", "checkpoint"])
def test_two_threads_get_what_one_gets(kind: str, dynamics: str, task: str) -> None:
    blocks = two(kind, DYNAMICS[dynamics], "checkpoint" if task == "inference" else task)
    both = stirred(nn.ModuleList(blocks).double())
    z = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 4, 4, 4)

    def outcome(block: nn.Module) -> list[Tensor]:
        if task == "inference":
            with torch.no_grad():
                return [block(z)]
        end = block(z)
        return [end, *torch.autograd.grad(end.square().sum(), list(block.parameters()))]

    before, types = copy.deepcopy(both.state_dict()), [(name, type(p), id(p)) for name, p in both.named_parameters()]
    expected = [outcome(block) for block in blocks]
    start = threading.Barrier(2)

    def work(i: int) -> list[list[Tensor]]:
        start.wait()
        return [outcome(blocks[i]) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    for own, outcomes in zip(expected, found, strict=True):
        for again in outcomes:
            torch.testing.assert_close(again, own, rtol=1e-12, atol=1e-12)
    assert [(name, type(p), id(p)) for name, p in both.named_parameters()] == types
    assert all(torch.equal(value, before[name]) for name, value in both.state_dict().items())


class Paused(Conv):
    """Stops in its first call, with weights swapped in, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.events = [threading.Event(), threading.Event()]

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        reached, go_on = self.events
        if not reached.is_set():
            reached.set()
            assert go_on.wait(60)
        return super().forward(t, z)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "events": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.events = [threading.Event(), threading.Event()]
        self.events[0].set()


def reloaded(block: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda block: pickle.loads(pickle.dumps(block)),
    "torch.save": reloaded,
    "unroll": unroll,
}


def another(block: CoupledODEBlock, z: Tensor, results: Any) -> None:
    results.put(block(z).tolist())


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_thread_inside_a_call_shows_its_weights_to_no_other() -> None:
    torch.manual_seed(0)
    block = CoupledODEBlock(Paused(), ReactionDiffusionAdvection(0.3, 0.2, 0.5), steps=2).double()
    z, f = torch.randn(1, 4, 4, 4, dtype=torch.float64), block.f
    assert isinstance(f, Paused)
    f.events[0].set()
    expected, end = ODEBlock(f, steps=2)(z), block(z)
    state, weights, own = copy.deepcopy(block.state_dict()), block.weights([0.0, 1.0]), list(block.parameters())
    types = {name: type(module._parameters) for name, module in block.named_modules()}
    f.events[0].clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(block, z)
        assert f.events[0].wait(60)
        try:
            assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())
            assert all(a is b and type(a) is nn.Parameter for a, b in zip(block.parameters(), own, strict=True))
            assert torch.equal(block.weights([0.0, 1.0])["conv.weight"], weights["conv.weight"])
            assert torch.equal(ODEBlock(f, steps=2)(z), expected)
            for name, copied in COPIES.items():
                assert torch.equal(copied(block)(z), end), name
            context = multiprocessing.get_context("fork")
            results = context.Queue()
            child = context.Process(target=another, args=(block, z, results))
            child.start()
            assert results.get(timeout=60) == end.tolist()  # who holds the lock is not in the child
            child.join(60)
        finally:
            f.events[1].set()
        assert torch.equal(running.result(60), end)
    assert {name: type(module._parameters) for name, module in block.named_modules()} == types


def test_a_parameter_that_f_makes_or_sets_in_a_call_stays() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            if "late" not in self._parameters:
                self.late = nn.Parameter(torch.zeros(2))
                self.scale = nn.Parameter(torch.full((), 2.0))
            assert dict(self.named_parameters())["weight"] is self.weight
            return self.scale * z @ self.weight + self.late

    block = CoupledODEBlock(Growing(), Galerkin("linear", 2), steps=3)
    with torch.no_grad():
        end = block(torch.ones(1, 2))
    assert [name for name, _ in block.f.named_parameters()] == ["weight", "scale", "late"] and block.f.scale == 2
    assert torch.equal(block(torch.ones(1, 2)), end)
