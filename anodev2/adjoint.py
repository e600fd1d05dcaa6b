"""How gradients of a solve are computed: the only file with an autograd Function.

Both modes give the exact gradient of the discrete program (discretize-then-optimize; Gholami, Keutzer, Biros 2019,
arXiv 1902.10298): ``DirectAdjoint`` lets autograd store every operation, ``CheckpointAdjoint`` stores one state per
step and redoes each step once in the backward pass, with everything as it was (see ``replay``).

Known inefficiency: the graph of each recomputed step is walked in Python to make sure that no gradient is lost, a few
per cent of a step of a very small network, nothing beside a convolution.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .problem import Problem
from .pytree import Structure, build, leaves_of, structure_of
from .reach import reach
from .replay import Recording
from .solvers import Leaves
from .stepping import Step

Grads = list[Tensor | None]


class Adjoint(ABC):
    """A gradient mode: runs a problem so that its outputs can be differentiated."""

    @abstractmethod
    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> list[Leaves]:
        """The leaves of the state at each of ``problem.outputs``."""


@dataclass(frozen=True)
class DirectAdjoint(Adjoint):
    """Plain autograd through every operation of the solve.

    Exact; memory grows with the number of steps times what one step stores. Double backward and everything else that
    autograd can do work.
    """

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> list[Leaves]:
        y = y0
        states = {0: y}
        for step in problem.grid.steps():
            y = problem.advance(step, y, args)
            if step.index + 1 in problem.outputs:
                states[step.index + 1] = y
        return [states[index] for index in problem.outputs]


@dataclass(frozen=True)
class CheckpointAdjoint(Adjoint):
    """Store one state per step, redo each step once in the backward pass.

    Exact: the same numbers as ``DirectAdjoint``. For N steps of a method with s stages: N s evaluations of f forward
    and N s backward, N stored states plus the graph of a single step. Random draws, buffers, autocast and training
    flags are those of the forward pass; buffers move once; one gradient leaves per parameter. Tensors that f reaches
    by closure get their gradients too.

    A second derivative through the result is refused: use ``DirectAdjoint``.

    Source: Griewank & Walther 2000 (checkpointing); ANODE, arXiv 1902.10298 (for neural ODEs).
    """

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> list[Leaves]:
        if torch.is_grad_enabled():
            inputs, sweep = _gather(problem, y0, args)
            if any(tensor.requires_grad for tensor in inputs):
                return sweep.forward(inputs, y0, args)
        return DirectAdjoint().solve(problem, y0, args)


ADJOINTS: dict[str, type[Adjoint]] = {"direct": DirectAdjoint, "checkpoint": CheckpointAdjoint}


def as_adjoint(adjoint: str | Adjoint) -> Adjoint:
    """The gradient mode of that name, or the given object; ValueError names those there are."""
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str) or adjoint not in ADJOINTS:
        raise ValueError(f"adjoint={adjoint!r} is unknown; choose one of {', '.join(map(repr, ADJOINTS))} or pass an Adjoint")
    return ADJOINTS[adjoint]()


def _gather(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> tuple[list[Tensor], _Sweep]:
    """Every tensor the solve may depend on (state, times, arguments, leaves f can reach), and the sweep over them."""
    times = [problem.grid.times] if isinstance(problem.grid.times, Tensor) else []
    structure = structure_of(args)
    rest = leaves_of(args, structure)
    wanted = [place for place, leaf in enumerate(rest) if isinstance(leaf, Tensor) and leaf.requires_grad]
    arguments = [rest[place] for place in wanted]
    found = reach(problem.field.func, *(leaf for leaf in rest if not isinstance(leaf, Tensor)))
    devices = {leaf.device for leaf in (*y0, *rest, *found.leaves) if isinstance(leaf, Tensor)}
    recording = Recording(found.modules, devices, found.generators)
    for place in wanted:
        rest[place] = None  # the autograd graph keeps them; a second reference would outlive it
    sweep = _Sweep(problem, structure, rest, wanted, len(y0), len(times), recording, found.inner)
    return [*y0, *times, *arguments, *found.leaves], sweep


@dataclass
class _Sweep:
    """One pass forward without a graph, and the pass backward that redoes it step by step.

    State, times and arguments are handed to f, so the recompute replaces them by detached stand-ins. Leaves that f
    reaches by itself are used as they are. Inner tensors that f reaches (results of earlier operations) have a history
    that the recompute must not enter: f gets stand-ins for those too, through a torch function mode, which is only
    there where such tensors are; those that f was not seen to use are left alone.
    """

    problem: Problem
    args_structure: Structure
    args_rest: list[Any]
    args_wanted: list[int]
    width: int
    timed: int
    recording: Recording
    inner: list[Tensor]

    def forward(self, inputs: list[Tensor], y0: Leaves, args: tuple[Any, ...]) -> list[Leaves]:
        """Run the steps, keep the state before each, and attach the outputs to the autograd graph."""
        y: Leaves = [leaf.detach() for leaf in y0]
        states = [y]
        with torch.no_grad(), self._instead_of_inner([tensor.detach() for tensor in self.inner]) as mode:
            for step in self.problem.grid.steps():
                self.recording.mark()
                y = self.problem.advance(step, y, args)
                states.append(y)
            self.recording.mark()
        if isinstance(mode, _StandIns):
            self.inner = [tensor for tensor in self.inner if id(tensor) in mode.met]
        outputs = [leaf.detach() for index in self.problem.outputs for leaf in states[index]]
        stored = [leaf.detach() for state in states[:-1] for leaf in state]
        flat = _Checkpointed.apply(self, outputs, stored, *inputs, *self.inner)
        return [flat[i : i + self.width] for i in range(0, len(flat), self.width)]

    def backward(self, inputs: Leaves, stored: Leaves, cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: each step redone once, last to first."""
        ends = [self.width, self.width + self.timed, self.width + self.timed + len(self.args_wanted)]
        reached = inputs[ends[2] :]
        leaves, inner = reached[: len(reached) - len(self.inner)], reached[len(reached) - len(self.inner) :]
        given = [
            tensor.detach().requires_grad_(want) for tensor, want in zip(inputs[ends[0] : ends[2]], wants[ends[0] : ends[2]], strict=True)
        ]
        inner = [tensor.detach().requires_grad_() for tensor in inner]
        known = [*given, *leaves, *inner]
        places = {id(tensor): place for place, tensor in enumerate(known)}
        totals = _Totals(len(known))
        args = self._args(given[self.timed :])
        arriving = {index: list(cotangents[i * self.width : (i + 1) * self.width]) for i, index in enumerate(self.problem.outputs)}
        nothing: Grads = [None] * self.width
        steps = self.problem.grid.steps()
        y_bar = arriving.get(len(steps), nothing)
        with self.recording.replaying(), _hooks_silent(leaves), self._instead_of_inner(inner):
            for step in reversed(steps):
                self.recording.rewind(step.index)
                if self.timed:
                    step = replace(step, times=given[0])
                y = stored[step.index * self.width : (step.index + 1) * self.width]
                wanted = wants[: self.width] if step.index == 0 else [True] * self.width
                y_bar, gradients = self._pull_back(step, y, wanted, args, places, y_bar, arriving.get(step.index, nothing))
                totals.add(gradients)
        return [*y_bar, *totals.values]

    def _pull_back(
        self,
        step: Step,
        y: Leaves,
        wanted: Sequence[bool],
        args: tuple[Any, ...],
        places: dict[int, int],
        after: Grads,
        here: Grads,
    ) -> tuple[Grads, list[tuple[int, Tensor]]]:
        """Redo ``step``; from the cotangents after it and those arriving before it, those of y and, with their places, of the rest."""
        y = [leaf.detach().requires_grad_(want) for leaf, want in zip(y, wanted, strict=True)]
        with torch.enable_grad():
            y_next: Leaves = self.problem.advance(step, y, args)
        ends = zip([*y_next, *y], [*after, *here], strict=True)
        seeds = [(get_gradient_edge(end), seed) for end, seed in ends if seed is not None and end.requires_grad]
        del y_next, ends  # from here on only its graph is needed
        mine = {id(leaf) for leaf in y}
        leaves = _leaves_below(edge.node for edge, _ in seeds)
        others = [leaf for leaf in leaves if id(leaf) in places]
        strangers = [weakref.ref(leaf) for leaf in leaves if id(leaf) not in places and id(leaf) not in mine]
        sources = [leaf for leaf in y if leaf.requires_grad] + others
        if not (seeds and sources):
            return [None] * self.width, []
        found = torch.autograd.grad([edge for edge, _ in seeds], sources, [seed for _, seed in seeds], allow_unused=True)
        gradients = dict(zip(map(id, sources), found, strict=True))
        del seeds, leaves
        _refuse_lost(strangers)
        return [gradients.get(id(leaf)) for leaf in y], [(places[id(leaf)], g) for leaf in others if (g := gradients[id(leaf)]) is not None]

    def _args(self, stand_ins: Leaves) -> tuple[Any, ...]:
        leaves = list(self.args_rest)
        for place, stand_in in zip(self.args_wanted, stand_ins, strict=True):
            leaves[place] = stand_in
        return build(self.args_structure, leaves)

    def _instead_of_inner(self, stand_ins: Leaves) -> AbstractContextManager[Any]:
        return _StandIns(self.inner, stand_ins) if self.inner else nullcontext()


class _Checkpointed(torch.autograd.Function):
    """Ties the outputs of a sweep, computed without a graph, to everything they depend on."""

    @staticmethod
    def forward(ctx: Any, sweep: _Sweep, outputs: list[Tensor], stored: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.sweep = sweep
        ctx.inputs = len(inputs)
        ctx.save_for_backward(*inputs, *stored)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, stored = saved[: ctx.inputs], saved[ctx.inputs :]
        with torch.no_grad():
            gradients = ctx.sweep.backward(inputs, stored, cotangents, ctx.needs_input_grad[3:])
        if torch.is_grad_enabled():  # create_graph=True
            gradients = _FirstOrderOnly.apply(gradients, *inputs, *cotangents)
        return (None, None, None, *gradients)


class _FirstOrderOnly(torch.autograd.Function):
    """Gradients as they are, with a clear refusal where a second derivative would need their history."""

    @staticmethod
    def forward(ctx: Any, gradients: Grads, *origins: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        raise RuntimeError("a second derivative through CheckpointAdjoint is not available; solve with adjoint='direct' for that")


class _StandIns(TorchFunctionMode):
    """Hand torch functions a stand-in for some tensors, found by identity, and remember which were met."""

    def __init__(self, originals: Leaves, stand_ins: Leaves) -> None:
        super().__init__()
        self.stand_in = {id(original): stand_in for original, stand_in in zip(originals, stand_ins, strict=True)}
        self.met: set[int] = set()

    def _swap(self, item: Any) -> Any:
        if isinstance(item, Tensor) and id(item) in self.stand_in:
            self.met.add(id(item))
            return self.stand_in[id(item)]
        if type(item) in (tuple, list):
            return type(item)(map(self._swap, item))
        return item

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*self._swap(args), **{name: self._swap(value) for name, value in (kwargs or {}).items()})


class _Totals:
    """Running sums of gradients.

    The first gradient may share memory with another (autograd hands one tensor to both terms of a sum), so only sums
    made here are added to in place.
    """

    def __init__(self, count: int) -> None:
        self.values: Grads = [None] * count
        self.owned = [False] * count

    def add(self, gradients: list[tuple[int, Tensor]]) -> None:
        for place, gradient in gradients:
            total = self.values[place]
            if total is None:
                self.values[place] = gradient
            elif self.owned[place]:
                total += gradient
            else:
                self.values[place], self.owned[place] = total + gradient, True


@contextmanager
def _hooks_silent(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Keep tensor hooks of ``leaves`` for the one gradient that leaves the sweep, away from those of its steps."""
    silenced = [(hooks, dict(hooks)) for leaf in leaves if (hooks := leaf._backward_hooks)]
    for hooks, _ in silenced:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in silenced:
            hooks.update(own)


def _leaves_below(roots: Iterable[Node]) -> list[Tensor]:
    """The leaf tensors that the graph below ``roots`` ends in, each once."""
    leaves: dict[int, Tensor] = {}
    nodes: list[Node] = list(roots)
    seen = set(nodes)
    for node in nodes:  # grows while it is walked
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = variable
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                nodes.append(child)
    return list(leaves.values())


def _refuse_lost(strangers: list[weakref.ref[Tensor]]) -> None:
    """Leaves that f made itself died with the step's graph; one still alive came from outside and would lose its gradient."""
    for stranger in strangers:
        tensor = stranger()
        if tensor is not None:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} that requires grad reaches func by a path that cannot be followed, so its "
                "gradient would be lost; pass it in args=(...), make it a Parameter of func, or solve with adjoint='direct'"
            )
