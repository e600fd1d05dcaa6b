"""Gradients through one redone step: its graph, the tensors it may start from, and the sums that they end in.

The graph of a step must end in tensors that are known: the state before it, stand-ins for what f was handed, and leaves
that f reaches by itself. A graph that ends in anything else would lose a gradient, and is refused.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .solvers import Leaves

Grads = list[Tensor | None]


@dataclass
class StepGraph:
    """The autograd graph of one redone step, with the cotangents that arrive at its ends."""

    ends: list[GradientEdge]
    seeds: list[Tensor]

    @classmethod
    def of(cls, tensors: Leaves, cotangents: Sequence[Tensor | None]) -> StepGraph:
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


class Instead(TorchFunctionMode):
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


class Totals:
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
def hooks_silent(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Keep tensor hooks of ``leaves`` for the one gradient that leaves the sweep, away from those of its steps."""
    silenced = [(hooks, dict(hooks)) for leaf in leaves if (hooks := leaf._backward_hooks)]
    for hooks, _ in silenced:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in silenced:
            hooks.update(own)


def _nodes_below(roots: Iterable[Node]) -> list[Node]:
    """All nodes of the graph below ``roots``, each once."""
    nodes: list[Node] = list(roots)
    seen: set[Node | None] = {None, *nodes}
    for node in nodes:  # grows while it is walked
        for child, _ in node.next_functions:
            if child not in seen:
                seen.add(child)
                nodes.append(child)  # pyright: ignore[reportArgumentType]
    return nodes


def _leaves_below(roots: Iterable[Node]) -> list[Tensor]:
    """The leaf tensors that the graph below ``roots`` ends in, each once."""
    variables = (getattr(node, "variable", None) for node in _nodes_below(roots))
    return list({id(variable): variable for variable in variables if variable is not None}.values())


def saved_below(roots: Iterable[Node]) -> list[Tensor]:
    """The tensors that the graph below ``roots`` keeps for its backward pass."""
    found: list[Any] = []
    for node in _nodes_below(roots):
        names = [name for name in dir(node) if name == "saved_tensors" or name.startswith("_saved_")]
        for value in (getattr(node, name) for name in names):
            found.extend(value if isinstance(value, (tuple, list)) else (value,))
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def _refuse_lost(strangers: list[weakref.ref[Tensor]]) -> None:
    """Leaves that f made itself died with the step's graph; one still alive came from outside and would lose its gradient."""
    if any(stranger() is not None for stranger in strangers):
        gc.collect()  # what f made may be in a cycle
    for stranger in strangers:
        tensor = stranger()
        if tensor is not None:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} that requires grad reaches func by a path that cannot be followed, so its "
                "gradient would be lost; pass it in args=(...), make it a Parameter of func, or solve with adjoint='direct'"
            )
