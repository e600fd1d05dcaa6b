"""What is refused before a solve begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .problem import Problem, versions
from .pytree import LEAF, Structure
from .signature import takes
from .solvers import Leaves, Method
from .stepping import Adaptive, Grid, numbers
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


def check_runs(problem: Problem, adjoint: Any, looking: str | None = None) -> None:
    """ValueError where there are no steps to compile, or something is ``looking`` into each of them."""
    stepping = problem.stepping
    if isinstance(stepping, Adaptive) and stepping.control.refresh is None:  # else its search has failed, and the solve says why
        raise ValueError("compile=True needs to know the steps: give steps, or grid=solution.grid of an earlier solve with error control")
    if problem.within():
        raise ValueError("compile=True needs a grid that holds every time of t, such as that of an earlier solve with hit='exact'")
    if adjoint.both_ways:
        raise ValueError(f"compile=True is for adjoint='checkpoint' or 'direct', not {type(adjoint).__name__}, which has steps of its own")
    if looking is not None:
        raise ValueError(f"compile=True takes several steps at a time, and {looking} looks into each of them: leave one of the two out")


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


@dataclass
class _Asked:
    """What a module said of its largest stable step, and the tensors that it said it of, so often changed."""

    limit: float
    tensors: list[ref[Tensor]]
    versions: list[int]
    patience: int


_ASKED: WeakKeyDictionary[nn.Module, dict[Method, _Asked]] = WeakKeyDictionary()  # of what is solved on a GPU


def warn_of_instability(func: Callable[..., Any], method: Method, grid: Grid, y: Leaves) -> None:
    """Where func knows the largest stable step of a method: only here the steps are known too (those of ``grid=`` are trusted).

    On a GPU the host would wait for the coefficients in every solve: a module is asked anew where its parameters or buffers have changed,
    and while they are trained after 1, 2, 4, 8, ... changes, and not judged meanwhile.
    """
    if not callable(getattr(func, "max_stable_step", None)) or torch.compiler.is_compiling() or transformed():
        return
    if torch.get_default_device().type == "meta":  # what it computes would have no values
        return
    times = numbers(grid.times)
    steady = getattr(func, "steady", None)
    ends = times[:1] if callable(steady) and steady() else (times[0], times[-1])
    limit = _limit_on_gpu(func, method, ends) if y[0].is_cuda and isinstance(func, nn.Module) else _limit(func, method, ends)
    if limit is None:
        return
    longest = max(abs(b - a) / count for (a, b), count in zip(pairwise(times), grid.counts, strict=True))
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


def _limit(func: Any, method: Method, times: Sequence[float]) -> float:
    """The smallest of those at these times, where func tells them of a time."""
    with torch.no_grad():
        if not takes(func.max_stable_step, "t"):
            return float(func.max_stable_step(method))
        return min(float(func.max_stable_step(method, t=t)) for t in times)


def _limit_on_gpu(func: nn.Module, method: Method, times: Sequence[float]) -> float | None:
    """The largest stable step; None where it is not known by now."""
    tensors = [*func.parameters(), *func.buffers()]
    now, known = versions(tensors), _ASKED.setdefault(func, {})
    asked, patience = known.get(method), 1
    if (
        asked is not None
        and len(asked.tensors) == len(tensors)
        and all(was() is one for was, one in zip(asked.tensors, tensors, strict=True))
    ):
        if now == asked.versions:
            return asked.limit
        if torch.is_grad_enabled() and sum(now) - sum(asked.versions) < asked.patience:
            return None
        patience = 2 * asked.patience
    if torch.cuda.is_current_stream_capturing():
        return None
    known[method] = _Asked(_limit(func, method, times), [ref(tensor) for tensor in tensors], now, patience)
    return known[method].limit
