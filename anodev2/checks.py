"""What is refused before a solve begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .pytree import LEAF, Structure
from .solvers import Method


def check_state(leaves: list[Any]) -> None:
    """TypeError or ValueError for what cannot be a state."""
    if not leaves:
        raise ValueError("y0 holds no tensor; give a tensor or a (nested) tuple, list or dict of tensors")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            cure = "write dict(y0)" if isinstance(leaf, dict) else "write torch.tensor(...)"
            raise TypeError(f"y0 must be made of tensors, got {type(leaf).__name__}; {cure}")
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(f"y0 must be floating or complex, got a leaf of {leaf.dtype}; write y0.float()")


def check_splits(func: Callable[..., Any], method: Method, structure: Structure) -> None:
    """ValueError where a method that treats a linear part by itself is not given one."""
    if not callable(getattr(func, "split", None)):
        raise ValueError(
            f"{method.name} needs func.split() -> (linear, rest) or (linear, data, rest), linear a LinearOperator or a square matrix, "
            f"data(t, y) and rest(t, y); {type(func).__name__} has none: add it, or use an explicit or implicit method"
        )
    if structure is not LEAF:
        raise ValueError(f"{method.name} needs a single tensor as y0, got {structure}")
