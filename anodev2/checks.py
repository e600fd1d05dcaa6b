"""What is refused before a solve begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .pytree import LEAF, Structure
from .solvers import Leaves, Method
from .stepping import Grid, numbers
from .torch_private import transformed


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
        fields = structure.kind in (tuple, list) and all(child is LEAF for child in structure.children)
        cure = "; stack its fields, torch.stack(y0, -2) for a System on a line" if fields else ""
        raise ValueError(f"{method.name} needs a single tensor as y0, got {structure}{cure}")


def check_one_method(method: Method, controlled: bool, per_sample: bool) -> None:
    """ValueError where a method that changes between several has no errors to go by, or samples that need not agree."""
    if method.chooser() is not None and (per_sample or not controlled):
        what = "per_sample=True, whose samples share one" if per_sample else "a grid"
        raise ValueError(
            f"method={method.name!r} changes its method as error control goes on, which is not for {what}: name one, 'tsit5' where the "
            "problem is not stiff, 'rodas5p' where it is"
        )


_limits: WeakKeyDictionary[nn.Module, dict[Method, float]] = WeakKeyDictionary()  # of what is solved on a GPU


def warn_of_instability(func: Callable[..., Any], method: Method, grid: Grid, y: Leaves) -> None:
    """Where func knows the largest stable step of a method: only here the steps are known too (those of ``grid=`` are trusted).

    On a GPU a module is asked once: it reads its coefficients, for which the host would wait in every solve while they are trained.
    """
    if not callable(getattr(func, "max_stable_step", None)) or torch.compiler.is_compiling() or transformed():
        return
    if torch.get_default_device().type == "meta":  # what it computes would have no values
        return
    known = _limits.setdefault(func, {}) if y[0].is_cuda and isinstance(func, nn.Module) else {}
    if method not in known:
        if y[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return
        with torch.no_grad():
            known[method] = float(func.max_stable_step(method))  # pyright: ignore[reportCallIssue, reportFunctionMemberAccess]
    limit = known[method]
    longest = max(abs(b - a) / count for (a, b), count in zip(pairwise(numbers(grid.times)), grid.counts, strict=True))
    if longest > limit * (1 + 1e-9):
        name = type(func).__name__
        if limit == 0:
            words = f"no step of {method.name} is stable for {name}: modes of it grow, whatever the step; take another scheme or method"
        else:
            words = (
                f"a step of {longest:.4g} with {method.name} is beyond the largest stable one, {limit:.4g}, for {name}: modes of it grow; "
                "take more steps, or a method that is stable there"
            )
        warnings.warn(words, UserWarning, stacklevel=4)
