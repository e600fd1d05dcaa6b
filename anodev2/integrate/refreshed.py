"""Grids that error control has found, taken by the solves that follow: ``Control(refresh=k)``.

A grid is kept for each func, as long as it lives, and in it for each method, times, tolerances and shapes of the state: a copy of a module
begins anew, nothing is in its state_dict. Threads that come together may each look for a grid, of which the last is kept.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from ..problem import Problem, SolveError
from ..solvers import Leaves
from ..stepping import Adaptive, Grid, Time, given_grid, numbers
from ..torch_private import transformed
from .compiled import owner
from .loop import Loop
from .recording import recorded

GRIDS = 16  # kept for one func; the oldest goes


@dataclass
class _Kept:
    """The grids of one func: nodes, which of several methods took each step, and how many calls may take them yet."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    grids: dict[Hashable, list[Any]] = field(default_factory=dict)

    def take(self, key: Hashable) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
        """The grid, where it serves this call too."""
        with self.lock:
            found = self.grids.get(key)
            if found is None or found[2] == 0:
                return None
            found[2] -= 1
            return found[0], found[1]

    def put(self, key: Hashable, nodes: tuple[float, ...], by: tuple[int, ...], calls: int, keeps: Any) -> None:
        with self.lock:
            self.grids.pop(key, None)
            self.grids[key] = [nodes, by, calls, keeps]
            while len(self.grids) > GRIDS:
                del self.grids[next(iter(self.grids))]


_KEPT: Any = WeakIdKeyDictionary()  # of _Kept, by what each func lasts as, equal to another or not
_GUARD = threading.Lock()


def refreshed(problem: Problem, y0: Leaves, args: tuple[Any, ...], max_steps: int | None) -> Grid | Adaptive:
    """The grid of an earlier call or one found now; what is to be found by the solve itself where that fails."""
    adaptive = problem.stepping
    assert isinstance(adaptive, Adaptive) and adaptive.control.refresh is not None
    if adaptive.jumps is not None:
        raise ValueError(
            "Control(refresh=...) is not for breaks, at which steps must end in every call: give grid=solution.grid and breaks"
        )
    if torch.compiler.is_compiling() or transformed():
        raise ValueError("Control(refresh=...) looks for steps now and then, which torch.compile and torch.func cannot follow: give grid=")
    holder, which = _holder(problem.field.func)
    try:
        with _GUARD:
            kept: _Kept = _KEPT.setdefault(holder, _Kept())
    except TypeError:
        name = type(holder).__name__
        raise TypeError(
            f"Control(refresh=...) cannot keep a grid for {name} objects, which take no weak references; where {name} is a class with "
            "__slots__, add '__weakref__' to them, or give a function"
        ) from None
    method = getattr(problem.method, "tableau", problem.method)  # made anew by its name, from the same tableau
    weights = tuple(tuple(one.reshape(-1).tolist()) if isinstance(one, Tensor) else one for one in (*adaptive.rtol, *adaptive.atol))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in y0)
    key = which, id(method), str(adaptive.control), numbers(adaptive.times), numbers(adaptive.ends), weights, shapes
    found = kept.take(key)
    if found is None:
        found = _search(problem, y0, args, max_steps)
        if found is None:
            return adaptive
        kept.put(key, *found, adaptive.control.refresh - 1, method)
    nodes, by = found
    times: tuple[Time, ...] = adaptive.times
    return replace(given_grid(times, nodes, adaptive.stops is not None), by=by)


def _holder(func: Any) -> tuple[Any, Hashable]:
    """What lasts from call to call, and which of its methods it is, or what it has captured."""
    if isinstance(func, types.MethodType):
        return func.__self__, ref(func.__func__)
    if not isinstance(func, types.FunctionType):
        return (func if isinstance(func, partial) else owner(func)), None
    given = [*(func.__closure__ or ()), *(func.__defaults__ or ()), *(func.__kwdefaults__ or {}).values()]
    return owner(func), tuple(map(_same, given))


def _same(value: Any) -> Hashable:
    """Equal for one number or one object, and never again for what tells nobody that it is gone."""
    if isinstance(value, types.CellType):
        try:
            return _same(value.cell_contents)
        except ValueError:  # nothing is in it yet
            return None
    if value is None or isinstance(value, (int, float, complex, str, bytes)):
        return type(value), value
    if isinstance(value, tuple):
        return tuple(map(_same, value))
    try:
        return WeakIdRef(value)
    except TypeError:
        return object()


def _search(problem: Problem, y0: Leaves, args: tuple[Any, ...], max_steps: int | None) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
    """The steps that error control takes, without a graph and without a trace."""
    recording = recorded(problem, y0, args)
    loop = Loop(replace(problem, save="end"), args, recording)
    with torch.no_grad():
        try:
            for step, _ in loop.steps([leaf.detach() for leaf in y0]):
                if max_steps is not None and step.index >= max_steps:
                    return None
        except SolveError:
            return None
        finally:
            recording.attributes.close()
            recording.retreat(0)
    return None if loop.status is not None else (loop.grid.nodes(), loop.grid.by)
