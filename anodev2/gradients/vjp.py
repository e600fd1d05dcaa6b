"""Vector-Jacobian products of one step whose graph is dropped at once: what the step uses is observed, not searched for.

The graph of a step ends in the state before it, in leaves (parameters, arguments), and in stand-ins for tensors with an older
history, which torch functions are handed in their place. A graph that goes further back would be differentiated twice, and is
refused; so is a step of which f keeps something with a history, because its graph does not last.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from ..integrate.comparison import changed
from ..integrate.loop import Taken
from ..integrate.recording import Recording
from ..problem import Problem, saved_apart, storage
from ..pytree import build, leaves_of, structure_of
from ..solvers import Leaves
from ..stepping import Time
from ..torch_private import next_node, no_torch_functions

Grads = list[Tensor | None]
SEEN_AS_THEY_ARE = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "_version"}  # the same of a tensor and of its stand-in
Kinds = tuple[tuple[str, ...], tuple[int, ...]]  # of nodes: their names and edges


class Captured(TorchFunctionMode):
    """What a solve depends on beside its state: leaves, and inner tensors (those with a history), each with its stand-in.

    ``problem`` and ``args`` have stand-ins for times and arguments. As a mode, it hands torch functions those for what f reaches by
    itself: in the first step, and in all others where there is something of the kind; not where steps are compiled.
    """

    def __init__(self, problem: Problem, recording: Recording, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.recording = recording
        self.born = self.since = next_node()
        self.closed = False  # nothing new is captured once the pass forward is over
        self.looking, self.found = True, False  # tensors with a history that f reaches by itself
        self.leaves: dict[int, Tensor] = {}
        self.older: dict[int, tuple[Tensor, Tensor]] = {}
        structure = structure_of(args)
        leaves = leaves_of(args, structure)
        swapped = [self._swap(leaf) for leaf in leaves]
        self.args = args if all(map(is_, leaves, swapped)) else build(structure, swapped)  # f may write to containers among them
        self.problem = replace(problem, stepping=problem.stepping.mapped(self._swap))

    @property
    def hidden(self) -> AbstractContextManager[Any]:
        """The mode, where steps can be looked into and there is something to find."""
        return self if self.looking and not self.recording.opaque else nullcontext()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(getattr(func, "__self__", None), "__name__", None) in SEEN_AS_THEY_ARE:
            return func(*args)
        with no_torch_functions():  # the mode of a solve around this one would show its own stand-ins
            args, kwargs = self._swap(args), {name: self._swap(value) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def _swap(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            if id(item) in self.older:
                return self.older[id(item)][1]
            old = not self.closed and item.grad_fn is not None and item.grad_fn._sequence_nr() < self.since
            return self._stand_in(item) if old else item
        if type(item) in (tuple, list):
            return type(item)(map(self._swap, item))
        return item

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if tensor.grad_fn._sequence_nr() >= self.born:  # pyright: ignore[reportOptionalMemberAccess]
            raise _kept()
        self.older[id(tensor)] = tensor, tensor.detach().requires_grad_()
        return self.older[id(tensor)][1]

    @property
    def inputs(self) -> list[Tensor]:
        """All that there are gradients for beside the state, once steps have been taken."""
        return [*self.leaves.values(), *(tensor.view_as(tensor) for tensor, _ in self.older.values())]  # a solve around sees an operation

    @property
    def sources(self) -> list[Tensor]:
        """The same as steps see them."""
        return [*self.leaves.values(), *(stand_in for _, stand_in in self.older.values())]

    def graph(self, y: Leaves, take: Callable[[list[Tensor]], list[Tensor]]) -> StepGraph:
        """The graph of what ``take`` makes of y."""
        self.since = next_node()
        with torch.enable_grad(), saved_apart(), self.hidden:
            start = [leaf.detach().requires_grad_() for leaf in y]
            seen = list(_Probe.apply(*start))
            return StepGraph(self, start, seen, take(list(seen)))

    def forward(
        self, y: Leaves, take: Callable[[list[Tensor]], list[Tensor]], weigh: bool = False
    ) -> tuple[list[Tensor], Kinds, tuple[int, int]]:
        """What ``take`` makes of y, the kinds of nodes in its graph, and (where asked) bytes and number of the tensors that these saved."""
        marks, hidden, counted = self.recording.marks, len(self.older), self.problem.field.evaluations
        try:
            graph = self.graph(y, take)
        except _FurtherBack:
            if self.looking or self.closed or self.recording.opaque:
                raise
            self.looking = True
            self.recording.retreat(marks - 1)
            self.problem.field.evaluations = counted
            graph = self.graph(y, take)
        self.looking = self.found = self.found or len(self.older) > hidden
        end, kinds = [leaf.detach() for leaf in graph.end], graph.kinds
        saved = graph.saved() if weigh else (0, 0)
        found = graph.dropped()
        if found and self.closed:
            raise changed("reached another tensor that requires grad")
        self.leaves.update({id(leaf): leaf for leaf in found})
        return end, kinds, saved

    def attempt(self, take: Callable[[list[Tensor]], Taken], y: Leaves, weigh: bool = False) -> tuple[Taken, Kinds, tuple[int, int]]:
        """The same for what yields slopes too, and what is read of the step."""
        slopes: list[Leaves] = []

        def taken(start: list[Tensor]) -> list[Tensor]:
            end, found, read = take(start)
            slopes[:] = [[k.detach() for k in slope] for slope in found]
            return [*end, *read]

        end, kinds, saved = self.forward(y, taken, weigh)
        return (end[: len(y)], slopes, end[len(y) :]), kinds, saved

    def end(self, y: Leaves, take: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
        """What ``take`` makes of y, by the kernels of a pass with a graph; nothing is differentiated, so nothing stands in."""
        with torch.enable_grad(), saved_apart():
            return [leaf.detach() for leaf in take([leaf.detach().requires_grad_() for leaf in y])]

    def original(self, time: Time) -> Time:
        """What a time of ``problem`` stands for."""
        return next((tensor for tensor, stand_in in self.older.values() if stand_in is time), time)

    def pull_back(
        self, graph: StepGraph, seeds: Sequence[Tensor | None], here: Sequence[Tensor | None], totals: Grads, wants: Sequence[bool]
    ) -> Grads:
        """Cotangents of the step's start from those of its end and, of other origin, of its start; drops the graph.

        ``totals``, the gradients of ``sources`` so far, go in as seeds, so that sums are made in the order of one whole graph.
        """
        start, sources = graph.start, self.sources
        ends = [(leaf, g) for leaf, g in zip([*graph.end, *graph.seen, *sources], [*seeds, *here, *totals], strict=True) if g is not None]
        ends = [(get_gradient_edge(leaf), seed) for leaf, seed in ends if leaf.requires_grad]
        graph.end = graph.seen = []  # from here on only the nodes are needed
        wanted = [*(leaf for leaf, wants_it in zip(start, wants, strict=True) if wants_it), *sources]
        with self.recording.no_autocast():
            found = torch.autograd.grad([e for e, _ in ends], wanted, [s for _, s in ends], allow_unused=True) if ends and wanted else ()
        gradients = dict(zip(map(id, wanted), found, strict=False))
        ends.clear()
        if graph.dropped():
            raise changed("reached another tensor that requires grad")
        totals[:] = [gradients.get(id(source)) for source in sources]
        return [gradients.get(id(leaf)) for leaf in start]


class StepGraph:
    """The graph of one step: ``start``, leaves; the same as the step has ``seen`` them; its ``end``; the ``kinds`` of its nodes."""

    def __init__(self, captured: Captured, start: list[Tensor], seen: list[Tensor], end: list[Tensor]) -> None:
        self.captured, self.start, self.seen, self.end = captured, start, seen, end
        self.probe = weakref.ref(seen[0].grad_fn)  # pyright: ignore[reportArgumentType]
        known = {*captured.leaves, *map(id, start), *(id(stand_in) for _, stand_in in captured.older.values())}
        self.leaves: list[weakref.ref[Tensor]] = []
        nodes, edges = _nodes_below(end)
        for node in nodes:
            variable = getattr(node, "variable", None)
            if variable is not None:
                if id(variable) not in known:
                    self.leaves.append(weakref.ref(variable))
            elif node._sequence_nr() < captured.since:
                raise _FurtherBack(
                    f"a tensor that requires grad (a result of {node.name()}) reaches func by a path that cannot be followed; pass it in "
                    "args=(...), or solve with adjoint='direct' or 'checkpoint' with a state per step"
                )
        names = (node.name() for node in nodes)  # a mode that watches makes a view of what is else an alias
        self.kinds: Kinds = tuple(name.replace("ReshapeAlias", "View") for name in names), tuple(edges)

    def dropped(self) -> list[Tensor]:
        """Let go of the graph; the leaves that it has shown and that are not f's own."""
        self.end = self.seen = self.start = []
        if self.probe() is not None or (self.captured.closed and any(leaf() is not None for leaf in self.leaves)):
            gc.collect()  # what f made may be in a cycle
        if self.probe() is not None:
            raise _kept()
        return [leaf for leaf in (ref() for ref in self.leaves) if leaf is not None]

    def saved(self) -> tuple[int, int]:
        """Bytes, apart from states and tensors of the surroundings, and number of the tensors that the nodes keep."""
        tensors = [tensor for node in _nodes_below(self.end)[0] for tensor in _saved(node)]
        sizes = {storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        found = [leaf for leaf in (ref() for ref in self.leaves) if leaf is not None]
        around = {storage(tensor) for tensor in (*self.start, *self.end, *self.captured.sources, *found)} | self.captured.recording.outside
        own = {storage(tensor) for tensor in (*self.captured.sources, *found)}
        count = sum(storage(tensor) not in own for tensor in tensors)
        return sum(size for key, size in sizes.items() if key not in around), count


class _Probe(torch.autograd.Function):
    """The identity, whose node lives as long as anything that was computed from it."""

    @staticmethod
    def forward(ctx: Any, *y: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(leaf.view_as(leaf) for leaf in y)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return cotangents


class _FurtherBack(ValueError):
    """The graph of a step goes further back than the step."""


def _kept() -> ValueError:
    return ValueError(
        "func, or something that tracks its modules such as FlopCounterMode, keeps a tensor with a history (an attribute, a cache, an "
        "auxiliary loss), which only a whole graph can follow; keep "
        "tensor.detach(), make it part of the state y, or solve with adjoint='checkpoint' with a state per step, or with 'direct'"
    )


@contextmanager
def hooks_silent(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Keep tensor hooks of ``leaves`` for the one gradient that leaves a solve, away from those of its steps."""
    silenced = [(hooks, dict(hooks)) for leaf in leaves if (hooks := leaf._backward_hooks)]
    for hooks, _ in silenced:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in silenced:
            hooks.update(own)


def _nodes_below(ends: Iterable[Tensor]) -> tuple[list[Node], list[int]]:
    """All nodes of the graph of these tensors, each once; and for each which ones come next, -1 where nothing does."""
    nodes: list[Node] = [leaf.grad_fn for leaf in ends if leaf.grad_fn is not None]
    places: dict[Node | None, int] = {None: -1} | {node: place for place, node in enumerate(nodes)}
    edges: list[int] = []
    for node in nodes:  # grows while it is walked
        for child, _ in node.next_functions:
            if child not in places:
                places[child] = len(nodes)
                nodes.append(child)  # pyright: ignore[reportArgumentType]
            edges.append(places[child])
    return nodes, edges


def _saved(node: Node) -> Iterator[Tensor]:
    """The tensors that a node keeps for its backward pass."""
    for name in _saved_names(type(node)):
        value = getattr(node, name)
        yield from (tensor for tensor in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(tensor, Tensor))


@lru_cache(maxsize=1024)
def _saved_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name == "saved_tensors" or name.startswith("_saved_"))
