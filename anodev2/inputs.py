"""What a solve depends on: what f is handed, and what it reaches by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .problem import Problem
from .pullback import Instead
from .pytree import Structure, build, leaves_of, structure_of
from .reach import reach
from .replay import Recording
from .solvers import Leaves
from .stepping import Grid, Step, wants_grad


def record(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> tuple[Recording, list[Tensor], list[Tensor]]:
    """A recording of all that f reaches; and the leaves and inner tensors that require grad among it."""
    rest = leaves_of(args, structure_of(args))
    found = reach(problem.field.func, *(leaf for leaf in rest if not isinstance(leaf, Tensor)))
    devices = {leaf.device for leaf in (*y0, *rest, *found.leaves) if isinstance(leaf, Tensor)}
    return Recording(replayable(found.modules), devices, found.generators), found.leaves, found.inner


def replayable(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """All but TorchScript's modules; one with buffers is refused."""
    scripted = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
    if any(True for module in scripted for _ in module.buffers()):
        raise ValueError("the buffers of a TorchScript module cannot be replayed; solve on a grid with adjoint='direct'")
    return [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]


def belongings(problem: Problem, args: tuple[Any, ...]) -> list[Tensor]:
    """All tensors of the surroundings: arguments, and what f reaches. A graph that reads them does not make them its own."""
    found = reach(problem.field.func, *leaves_of(args, structure_of(args)))
    return [*found.leaves, *found.inner, *found.constants]


@contextmanager
def untouched(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Iterator[Recording]:
    """f may be evaluated inside, and leaves random generators and buffers as they were."""
    recording = record(problem, y0, args)[0]
    recording.mark()
    try:
        yield recording
    finally:
        recording.retreat()


@dataclass
class StandIns:
    """Detached tensors in the place of times, arguments and inner tensors, whose gradients are collected.

    ``places``: by ``id``, the place of each of these and of the leaves that f reaches among the sweep's inputs behind
    the state.
    """

    times: Leaves
    arguments: Leaves
    inner: Leaves
    places: dict[int, int]


@dataclass
class Inputs:
    """What the result of a solve depends on, in this order: state, times, arguments; leaves and inner tensors f reaches.

    State, times and arguments are handed to f, so a recompute replaces them by detached stand-ins. Leaves that f
    reaches by itself are used as they are. Inner tensors that f reaches (results of earlier operations) have a history
    that the recompute must not enter: f gets stand-ins for those too, through a torch function mode, which is only
    there where such tensors are; those that f was not seen to use are left alone.
    """

    width: int
    timed: int
    structure: Structure
    rest: list[Any]
    wanted: list[int]
    leaves: list[Tensor]
    inner: list[Tensor]

    @classmethod
    def of(cls, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> tuple[Inputs, list[Tensor], Recording]:
        """With the tensors handed to f, which only the autograd graph is to keep, and a recording."""
        times = [time for time in problem.stepping.times if wants_grad(time)]
        structure = structure_of(args)
        rest = leaves_of(args, structure)
        wanted = [place for place, leaf in enumerate(rest) if isinstance(leaf, Tensor) and leaf.requires_grad]
        arguments = [rest[place] for place in wanted]
        recording, leaves, inner = record(problem, y0, args)
        for place in wanted:
            rest[place] = None  # a second reference would outlive the graph
        return cls(len(y0), len(times), structure, rest, wanted, leaves, inner), [*y0, *times, *arguments], recording

    @property
    def reached(self) -> list[Tensor]:
        """What f reaches by itself."""
        return [*self.leaves, *self.inner]

    def stand_ins(self, inputs: Leaves, wants: Sequence[bool]) -> StandIns:
        """For all of ``inputs``, which may be copies (a user's saved-tensor hooks make some); ``wants``: requires_grad of each."""
        handed = inputs[self.width : self.width + self.timed + len(self.wanted)]
        given = [tensor.detach().requires_grad_(want) for tensor, want in zip(handed, wants[self.width :], strict=False)]
        return self.placed(given, [tensor.detach().requires_grad_() for tensor in self.inner])

    def placed(self, given: Leaves, inner: Leaves) -> StandIns:
        """These stand-ins; leaves are recognised by their own identity."""
        places = {id(tensor): place for place, tensor in enumerate([*given, *self.leaves, *inner])}
        return StandIns(given[: self.timed], given[self.timed :], inner, places)

    def narrow(self, mode: Any) -> list[int]:
        """Forget the inner tensors that f was not seen to use (``mode`` is what ``instead`` gave); the places of the others."""
        used = [place for place, tensor in enumerate(self.inner) if id(tensor) in mode.met] if isinstance(mode, Instead) else []
        self.inner = [self.inner[place] for place in used]
        return used

    def steps(self, grid: Grid, stand_ins: StandIns) -> list[Step]:
        """The steps of ``grid``, with stand-ins for the times that require grad."""
        times = iter(stand_ins.times)
        return replace(grid, times=tuple(next(times) if wants_grad(time) else time for time in grid.times)).steps()

    def args(self, stand_ins: StandIns) -> tuple[Any, ...]:
        """The arguments of f, with stand-ins for the tensors that require grad."""
        leaves = list(self.rest)
        for place, stand_in in zip(self.wanted, stand_ins.arguments, strict=True):
            leaves[place] = stand_in
        return build(self.structure, leaves)

    def instead(self, stand_ins: Leaves) -> AbstractContextManager[Any]:
        """Hands f the stand-ins for inner tensors."""
        return Instead(self.inner, stand_ins) if self.inner else nullcontext()
