"""Steps of train_cifar.py replayed from a graph are those taken one by one. The graph is a tape here, which does on a CPU what CUDA's does:

operations are written down with the places of what they read and write, and done again there without any Python of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import cuda_graph
from cuda_graph import WARM, Replayed
from tests.examples.test_train_cifar_steps import training
from training import Training, train_epoch


class Tape(TorchDispatchMode):
    """Operations in turn, and what lay in memory before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Any, Any]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors((args, kwargs)):
            place = storage(tensor)
            if place not in self.made:
                self.before.setdefault(place, (tensor.untyped_storage(), tensor.untyped_storage().clone()))
        found = func(*args, **(kwargs or {}))
        self.made |= {storage(tensor) for tensor in tensors(found)} - self.before.keys()
        self.operations.append(tree_map_only(Tensor, Tensor.detach, (func, args, kwargs or {}, found)))
        return found

    def undo(self) -> None:
        for there, copy in self.before.values():
            there.copy_(copy)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, found in self.operations:
            for old, new in zip(tensors(found), tensors(func(*args, **kwargs)), strict=True):
                if storage(old) != storage(new):
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def recorded(step: Callable[..., Any], given: dict[str, Tensor]) -> tuple[Callable[[], None], Any]:
    """Nothing is done by recording, nor is chance used up."""
    tape, chance = Tape(), torch.get_rng_state()
    with tape:
        found = step(**given)
    tape.undo()
    torch.set_rng_state(chance)
    return tape.replay, found


@pytest.fixture(autouse=True)
def a_tape_for_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "recorded", recorded)
    monkeypatch.setattr(cuda_graph, "aside", lambda step, given: step(**given))


def trained(row: str, *, replayed: bool) -> Training:
    made = training("--epochs", "4", "--batch-size", "4", "--seeds", "3", *ROWS[row].split())
    if "dropout" in row:
        made.model.add_module("dropout", nn.Dropout(0.5))
    if "scaled" in row:
        made.scaler = torch.amp.GradScaler("cpu", growth_interval=4)
    if replayed:
        made.step = Replayed(made.one_step, made.optimizer)
    for made.epoch in range(3):
        made.history.append(train_epoch(made))
    return made


ROWS = {  # what an option must go through in a step that Python does not run again
    "residual": "--block residual",
    "ode, adjoint direct": "--block ode --adjoint direct --steps 2 --norm shared",
    "coupled": "--lr 0.05",
    "coupled, few slots": "--slots 2 --steps 3 --dynamics chebyshev",
    "coupled, reversible": "--adjoint reversible --steps 2",
    "schedule, average, holes": "--schedule paper --ema 0.9 --cutout 8 --steps 2",
    "parts, scaled gradients": "--accumulate 2 --precision bfloat16 --steps 2 --label-smoothing 0.1",
    "dropout": "--block residual --momentum 0.5",
}


@pytest.mark.parametrize("row", ROWS)
def test_replayed_steps_are_those_taken(row: str) -> None:
    """Of three epochs of three steps, six are replayed: losses, weights, statistics and what a checkpoint holds are the same to the bit."""
    one, other = (trained(row, replayed=how) for how in (False, True))
    assert one.history == other.history and len({loss for loss, _ in one.history}) == 3
    first, second = (tree_leaves(made.checkpoint()) for made in (one, other))
    assert len(first) == len(second) > 20
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_steps_warm_up_before_they_are_replayed() -> None:
    """The first so many are taken as they are, one more runs its Python to be recorded, then none does."""
    taken: list[int] = []
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], 0.5, fused=True)

    def step(x: Tensor) -> tuple[Tensor]:
        taken.append(len(taken))
        (weight * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return (x + 1,)

    run = Replayed(step, optimizer)
    for number in range(1, 9):
        optimizer.param_groups[0]["lr"] = 0.5 if number < 8 else 2.0
        assert run(x=torch.full((2,), float(number)))[0].tolist() == [number + 1.0] * 2
        assert isinstance(optimizer.param_groups[0]["lr"], float)
    assert len(taken) == WARM + 1
    assert weight.tolist() == [-0.5 * sum(range(1, 8)) - 2.0 * 8] * 2
