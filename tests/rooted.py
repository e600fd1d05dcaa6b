"""Rooted trees, which order conditions of one-step methods belong to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

Tree = tuple[Any, ...]  # the tuple of the trees at its root's children; () is one node


@cache
def nodes(tree: Tree) -> int:
    return 1 + sum(map(nodes, tree))


@cache
def density(tree: Tree) -> int:
    return nodes(tree) * prod(map(density, tree))


@cache
def trees(n: int) -> tuple[Tree, ...]:
    """All rooted trees of n nodes, each once."""
    return tuple(forests(n - 1, tuple(t for size in range(1, n) for t in trees(size))))


def forests(n: int, choice: tuple[Tree, ...]) -> Iterator[Tree]:
    """All multisets of trees of ``choice`` with n nodes together."""
    if n == 0:
        yield ()
    for i, tree in enumerate(choice):
        if nodes(tree) <= n:
            yield from ((tree, *rest) for rest in forests(n - nodes(tree), choice[i:]))
