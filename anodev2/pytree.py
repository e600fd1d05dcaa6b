"""States and arguments as trees: a leaf, or a (nested) tuple, list, dict or namedtuple of leaves.

One instance read aloud: ``{"q": a, "v": (b, c)}`` has the structure ``dict(q, v: tuple(0, 1))`` and the leaves ``[a, b, c]``.
A tree is taken apart once per solve and put together once per evaluation of f, so the two directions are plain
recursion without a registry; a single tensor, the common case, passes straight through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Structure:
    """The shape of a tree without its leaves: container type, keys and one child per key; a leaf has no type."""

    kind: type | None = None
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()

    def __str__(self) -> str:
        if self.kind is None:
            return "leaf"
        inside = ", ".join(str(k) if c is LEAF else f"{k}: {c}" for k, c in zip(self.keys, self.children, strict=True))
        return f"{self.kind.__name__}({inside})"


LEAF = Structure()


def _items(tree: Any) -> tuple[tuple[Any, ...], list[Any]] | None:
    """Keys and children; None for a leaf, such as a subclass of dict, which could not be built again from these."""
    if type(tree) is dict:
        return tuple(tree.keys()), list(tree.values())
    if type(tree) in (tuple, list) or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        return tuple(range(len(tree))), list(tree)
    return None


def structure_of(tree: Any) -> Structure:
    """The structure of ``tree``; everything that is no tuple, namedtuple, list or plain dict is a leaf."""
    items = _items(tree)
    if items is None:
        return LEAF
    return Structure(type(tree), items[0], tuple(structure_of(child) for child in items[1]))


def leaves_of(tree: Any, structure: Structure) -> list[Any]:
    """The leaves of ``tree`` in the order of ``structure`` (dicts are matched by key, not by order).

    Raises ValueError where ``tree`` is built otherwise; a list may stand for a tuple.
    """
    if structure.kind is None:
        if _items(tree) is not None:
            raise ValueError(f"expected a single leaf, got {structure_of(tree)}")
        return [tree]
    items = _items(tree)
    if items is None or isinstance(tree, dict) != (structure.kind is dict):
        raise ValueError(f"expected {structure}, got {structure_of(tree)}")
    if set(items[0]) != set(structure.keys):
        raise ValueError(f"expected {structure}, got {structure_of(tree)}")
    child_of = dict(zip(*items, strict=True))
    return [leaf for key, child in zip(structure.keys, structure.children, strict=True) for leaf in leaves_of(child_of[key], child)]


def build(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The tree of this ``structure`` with these ``leaves``: the inverse of ``leaves_of``."""
    if structure.kind is None:
        return leaves[0]
    return _build(structure, iter(leaves))


def _build(structure: Structure, leaves: Any) -> Any:
    if structure.kind is None:
        return next(leaves)
    children = [_build(child, leaves) for child in structure.children]
    if structure.kind is dict:
        return dict(zip(structure.keys, children, strict=True))
    if hasattr(structure.kind, "_fields"):
        return structure.kind(*children)
    return structure.kind(children)


def paths_of(structure: Structure, path: str = "y0") -> list[str]:
    """How Python reaches each leaf: ``y0['more'][0]``."""
    if structure.kind is None:
        return [path]
    return [leaf for key, child in zip(structure.keys, structure.children, strict=True) for leaf in paths_of(child, f"{path}[{key!r}]")]
