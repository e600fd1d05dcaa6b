"""How gradients of a solve are computed: the only file with an autograd Function.

Both modes give the exact gradient of the discrete program (discretize-then-optimize; Gholami, Keutzer, Biros 2019,
arXiv 1902.10298): ``DirectAdjoint`` lets autograd store every operation, ``CheckpointAdjoint`` stores one state per
step and redoes each step once in the backward pass, with everything as it was (see ``replay``).

Known inefficiency: the graph of each recomputed step is walked in Python to make sure that no gradient is lost, and its
result compared with the first; about a tenth of a step of a very small network together, little beside a convolution.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from .problem import Problem
from .pytree import Structure, build, leaves_of, structure_of
from .reach import reach
from .replay import Recording, sample
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
    by closure get their gradients too. A step that comes out differently when it is redone is an error.

    Refused here, use ``DirectAdjoint``: a second derivative through the result, and gradients through tensors that f
    keeps as attributes of a module (an auxiliary loss, a cached weight); those kept elsewhere carry no graph. Inside
    ``torch.func`` transforms and forward-mode differentiation the solve is that of ``DirectAdjoint``, memory included.

    Source: Griewank & Walther 2000 (checkpointing); ANODE, arXiv 1902.10298 (for neural ODEs).
    """

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> list[Leaves]:
        if torch.is_grad_enabled() and not _transformed():
            if parametrize._cache_enabled:
                raise ValueError("CheckpointAdjoint cannot see through parametrize.cached(): solve outside it, or with adjoint='direct'")
            inputs, sweep = _gather(problem, y0, args)
            if any(tensor.requires_grad for tensor in (*inputs, *sweep.leaves, *sweep.inner)):
                return sweep.forward(inputs, y0, args)
        return DirectAdjoint().solve(problem, y0, args)


def _transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is at work, which an autograd Function would not see."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


ADJOINTS: dict[str, type[Adjoint]] = {"direct": DirectAdjoint, "checkpoint": CheckpointAdjoint}


def as_adjoint(adjoint: str | Adjoint) -> Adjoint:
    """The gradient mode of that name, or the given object; ValueError names those there are."""
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str) or adjoint not in ADJOINTS:
        raise ValueError(f"adjoint={adjoint!r} is unknown; choose one of {', '.join(map(repr, ADJOINTS))} or pass an Adjoint object")
    return ADJOINTS[adjoint]()


def _gather(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> tuple[list[Tensor], _Sweep]:
    """The tensors handed to f that the solve depends on (state, times, arguments), and the sweep, which knows the rest."""
    times = [problem.grid.times] if isinstance(problem.grid.times, Tensor) else []
    structure = structure_of(args)
    rest = leaves_of(args, structure)
    wanted = [place for place, leaf in enumerate(rest) if isinstance(leaf, Tensor) and leaf.requires_grad]
    arguments = [rest[place] for place in wanted]
    found = reach(problem.field.func, *(leaf for leaf in rest if not isinstance(leaf, Tensor)))
    devices = {leaf.device for leaf in (*y0, *rest, *found.leaves) if isinstance(leaf, Tensor)}
    if any(isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.buffers()) for module in found.modules):
        raise ValueError("CheckpointAdjoint cannot replay the buffers of a TorchScript module; solve with adjoint='direct'")
    modules = [module for module in found.modules if not isinstance(module, torch.jit.ScriptModule)]
    recording = Recording(modules, devices, found.generators)
    for place in wanted:
        rest[place] = None  # the autograd graph keeps them; a second reference would outlive it
    sweep = _Sweep(problem, structure, rest, wanted, len(y0), len(times), recording, found.leaves, found.inner)
    return [*y0, *times, *arguments], sweep


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
    leaves: list[Tensor]
    inner: list[Tensor]
    end: list[Tensor] = field(default_factory=list)

    def forward(self, inputs: list[Tensor], y0: Leaves, args: tuple[Any, ...]) -> list[Leaves]:
        """Run the steps, keep the state before each, and attach the outputs to the autograd graph."""
        y: Leaves = [leaf.detach() for leaf in y0]
        states = [y]
        with self.recording.making(), self._instead_of_inner([tensor.detach() for tensor in self.inner]) as mode:
            for step in self.problem.grid.steps():
                self.recording.mark()
                versions = [leaf._version for leaf in y]
                y_next = self.problem.advance(step, y, args)
                if versions != [leaf._version for leaf in y]:
                    raise ValueError("func modifies its state y in place; work on y.clone(), or use operations that are not in place")
                states.append(y := y_next)
            self.recording.mark()
        if isinstance(mode, _StandIns):
            self.inner = [tensor for tensor in self.inner if id(tensor) in mode.met]
        self.end = [sample(leaf) for leaf in y]
        outputs = [leaf.detach() for index in self.problem.outputs for leaf in states[index]]
        stored = [leaf.detach() for state in states[:-1] for leaf in state]
        flat = _Checkpointed.apply(self, outputs, stored, *inputs, *self.leaves, *self.inner)
        return [flat[i : i + self.width] for i in range(0, len(flat), self.width)]

    def backward(self, inputs: Leaves, stored: Leaves, cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: each step redone once, last to first.

        ``inputs`` may be copies (a user's saved-tensor hooks make some); leaves are recognised by their own identity.
        """
        handed = len(inputs) - len(self.leaves) - len(self.inner)
        given = [
            tensor.detach().requires_grad_(want) for tensor, want in zip(inputs[self.width : handed], wants[self.width :], strict=False)
        ]
        inner = [tensor.detach().requires_grad_() for tensor in self.inner]
        known = [*given, *self.leaves, *inner]
        places = {id(tensor): place for place, tensor in enumerate(known)}
        totals = _Totals(len(known))
        comparison = self.recording.comparison()
        args = self._args(given[self.timed :])
        state_at = lambda index: stored[index * self.width : (index + 1) * self.width]  # noqa: E731
        nothing: Grads = [None] * self.width
        arriving = {index: list(cotangents[i * self.width : (i + 1) * self.width]) for i, index in enumerate(self.problem.outputs)}
        steps = self.problem.grid.steps()
        y_bar, expected = arriving.get(len(steps), nothing), self.end
        with self.recording.replaying(), _hooks_silent(self.leaves), self._instead_of_inner(inner):
            for step in reversed(steps):
                here = arriving.get(step.index, nothing)
                y = [leaf.detach().requires_grad_(step.index > 0 or want) for leaf, want in zip(state_at(step.index), wants, strict=False)]
                if any(seed is not None for seed in y_bar):
                    self.recording.rewind(step.index)
                    y_next = self._redo(replace(step, times=given[0]) if self.timed else step, y, args)
                    comparison.add(y_next, expected)
                    graph = _StepGraph.of([*y_next, *y], [*y_bar, *here])
                    del y_next  # from here on only its graph is needed
                    y_bar, gradients = graph.pull_back(y, places)
                    totals.add(gradients)
                    del gradients
                else:  # no later state was asked for
                    y_bar = here
                expected = [sample(leaf) for leaf in y]
        comparison.verify()
        return [*y_bar, *totals.values]

    def _redo(self, step: Step, y: Leaves, args: tuple[Any, ...]) -> Leaves:
        with self.recording.surroundings(), torch.enable_grad():
            y_next = self.problem.advance(step, y, args)
        if step.index == 0:
            self.recording.kept.refuse_gradients()
        return y_next

    def _args(self, stand_ins: Leaves) -> tuple[Any, ...]:
        leaves = list(self.args_rest)
        for place, stand_in in zip(self.args_wanted, stand_ins, strict=True):
            leaves[place] = stand_in
        return build(self.args_structure, leaves)

    def _instead_of_inner(self, stand_ins: Leaves) -> AbstractContextManager[Any]:
        return _StandIns(self.inner, stand_ins) if self.inner else nullcontext()


@dataclass
class _StepGraph:
    """The autograd graph of one redone step, with the cotangents that arrive at its ends."""

    ends: list[GradientEdge]
    seeds: list[Tensor]

    @classmethod
    def of(cls, tensors: Leaves, cotangents: Grads) -> _StepGraph:
        """Of those ``tensors`` that have a cotangent and a graph."""
        pairs = [(get_gradient_edge(t), seed) for t, seed in zip(tensors, cotangents, strict=True) if seed is not None and t.requires_grad]
        return cls([end for end, _ in pairs], [seed for _, seed in pairs])

    def pull_back(self, y: Leaves, places: dict[int, int]) -> tuple[Grads, list[tuple[int, Tensor]]]:
        """Cotangents of y, and those of the known leaves (by ``id`` in ``places``) that the step used, with their places."""
        leaves = _leaves_below(end.node for end in self.ends)
        others = [leaf for leaf in leaves if id(leaf) in places]
        mine = set(map(id, y))
        strangers = [weakref.ref(leaf) for leaf in leaves if id(leaf) not in places and id(leaf) not in mine]
        sources = [leaf for leaf in y if leaf.requires_grad] + others
        found = torch.autograd.grad(self.ends, sources, self.seeds, allow_unused=True) if self.ends and sources else [None] * len(sources)
        gradients = dict(zip(map(id, sources), found, strict=True))
        self.ends.clear()
        self.seeds.clear()
        del leaves
        _refuse_lost(strangers)
        return [gradients.get(id(leaf)) for leaf in y], [(places[id(leaf)], g) for leaf in others if (g := gradients[id(leaf)]) is not None]


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
            elif total.is_sparse:
                self.values[place] = gradient + total  # in this order a dense gradient may follow a sparse one
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
