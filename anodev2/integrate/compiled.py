"""Runs of steps as compiled graphs: a method whose step is several steps of another, on a grid of such runs.

Nothing else knows: schedules keep the states between runs and redo runs, and autograd meets one node per run, whose backward
pass is compiled too. The times of the steps are a tensor, so that one graph serves every run of its length; only where f
takes the number of the step has each run a graph of its own. What is compiled for a func is kept as long as func lives.
"""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..problem import Given, Problem, VectorField, compilers_own_warnings_ignored, refuse_changed, versions
from ..solvers import Leaves, Method, RungeKutta
from ..solvers.tableau import Tableau
from ..stepping import Grid, Step, Time, as_count
from ..tables import kept
from ..torch_private import compile_errors, options_of_mode

METHODS = 16  # whose graphs are kept for one func; those of the oldest go


@dataclass(frozen=True)
class Compile:
    """How ``compile=`` compiles: with torch.compile, ``steps`` steps at a time, once per shape.

    One graph forward and one backward for up to ``steps`` steps, used by every run of so many steps of every solve with the same
    func. More steps per graph are a little faster and take longer to compile (half a second per evaluation of a small f); torch caches
    graphs on disk across processes. ``CheckpointAdjoint`` then keeps states between runs and holds the graph of one run.

    What cannot be compiled (see the warning) runs as it is. With ``slots=``, tensors with a history go into args: by closure they are
    refused.

    Graphs are kept as long as func lives (a function that is made anew for each call is found by its code, which lives as long as
    the function around it), of the last 16 methods, and hold neither func nor what it captures; torch keeps as many shapes as its
    ``recompile_limit``, 8, allows. ``torch.compiler.reset()`` forgets all.

    Args:
        steps: the most steps in one graph; where func takes the number of the ``step``, every run is a graph of its own.
        mode: that of torch.compile; "reduce-overhead" captures CUDA graphs.
        backend: that of torch.compile; "aot_eager" compiles in no time and saves little.

    Raises:
        ValueError: ``steps`` below 1.
    """

    steps: int = 10
    mode: str | None = None
    backend: str = "inductor"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", as_count("steps", self.steps))


def as_compile(compile: bool | Compile) -> Compile | None:
    """The options, None for False; TypeError for anything else."""
    if isinstance(compile, Compile):
        return compile
    if not isinstance(compile, bool):
        raise TypeError(f"compile={compile!r} must be True, False or a Compile object such as Compile(steps=5)")
    return Compile() if compile else None


@dataclass(frozen=True)
class SeveralSteps(Step):
    """Neighbouring steps taken as one; ``index`` counts these."""

    inner: tuple[Step, ...] = ()

    @property
    def count(self) -> int:
        return len(self.inner)

    @property
    def dt(self) -> Time:
        return self.time(1.0) - self.time(0.0)

    def time(self, node: float) -> Time:
        start, end = self.inner[0].time(0.0), self.inner[-1].time(1.0)
        return start if node == 0 else end if node == 1 else start + (end - start) * node


@dataclass(frozen=True)
class Runs(Grid):
    """The steps of a grid, up to ``longest`` at a time; between two outputs the runs differ in length by at most one."""

    longest: int = 1

    @cached_property
    def _single(self) -> Grid:
        return Grid(self.times, self.counts, self.wanted, jumps=self.jumps, before=self.before)

    @property
    def done(self) -> int:
        """How many steps the runs have, to where they stop."""
        return len(self._single) if self.stop is None else self._bounds[self.stop - 1][1] if self.stop else 0

    @cached_property
    def _bounds(self) -> list[tuple[int, int]]:
        bounds: list[tuple[int, int]] = []
        for start, end in pairwise(self._single.outputs()):
            runs = _pieces(end - start, self.longest)
            bounds += pairwise(start + (end - start) * i // runs for i in range(runs + 1))
        return bounds

    def __len__(self) -> int:
        return len(self._bounds) if self.stop is None else self.stop

    def steps(self) -> list[Step]:
        single = self._single.steps()
        own = [tuple(single[start:end]) for start, end in self._bounds[: self.stop]]
        return [SeveralSteps(i, self.times, s[0].interval, s[0].part, s[0].parts, inner=s) for i, s in enumerate(own)]

    def outputs(self) -> tuple[int, ...]:
        done = {end: number + 1 for number, (_, end) in enumerate(self._bounds[: self.stop])}
        return (0, *(done[place] for place in self._single.outputs()[1:] if place in done))


def _pieces(count: int, longest: int) -> int:
    """Into how many runs to cut so many steps: equal ones where they need not be shorter than half the longest, a graph for all of them."""
    even = [length for length in range((longest + 1) // 2, longest + 1) if count % length == 0]
    return count // even[-1] if even else -(-count // longest)


@dataclass(frozen=True)
class CompiledSteps(Method):
    """``inner``, several steps at a time."""

    traced = True
    inner: Method
    options: Compile
    graphs: Graphs = field(compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "order", "nodes", "splits"):
            object.__setattr__(self, name, getattr(self.inner, name))

    def step(self, field: Any, step: Step, y: Leaves) -> list[Tensor]:
        assert isinstance(step, SeveralSteps) and isinstance(field, Given)
        vector, args = field.field, field.args
        if self.graphs.refused or self.graphs.complex_coordinates(self, field, y):
            return _eagerly(self.inner, field, step, y)
        count, first = len(step.inner), step.inner[0].number if "step" in vector.call.names else 0
        times = _tensor_of([step.inner[0].time(0.0), *(one.time(1.0) for one in step.inner)], vector)
        tables = [vector.table(args, one.dt) for one in step.inner]
        limits = None
        if step.inner[0].limits is not None:
            limits = kept(_times, tuple(one.limits for one in step.inner), vector.device)
        kinds = (limits is None, *((tensor.requires_grad, tensor.is_leaf) for tensor in (times, *y)))
        case = (vector.structure, vector.time_dtype, count, first, torch.is_grad_enabled(), kinds)
        first_time, run = self.graphs.of(self.inner, self.options, case)
        before = versions(y)
        own = args if vector.lengths is None else (*vector.own(args), tables)
        counted = vector.evaluations
        vector.evaluations += count * len(self.nodes)  # a redone run may end as soon as all is there
        try:
            with compilers_own_warnings_ignored() if first_time else nullcontext():
                end = run(vector, self.inner, own, first, count, times, limits, *y)
        except compile_errors() as error:
            vector.evaluations = counted
            end = _eagerly(self.inner, field, step, y)  # which has words for what func must not do
            self.graphs.refuse(error)
            return end
        refuse_changed(before, y)
        return end


class Graphs:
    """What has been compiled for one func."""

    def __init__(self) -> None:
        self.by: dict[int, tuple[Method | Tableau, dict[Hashable, Callable[..., list[Tensor]]]]] = {}
        self.refused = False
        self.complex: bool | None = None

    def complex_coordinates(self, method: CompiledSteps, field: Given, y: Leaves) -> bool:
        """Whether steps are taken in Fourier modes, for which inductor has no code: it would call each operation, more slowly than here."""
        if not method.splits or method.options.backend != "inductor":
            return False
        if self.complex is None:
            split = field.split()
            assert split is not None  # checked when the problem was made
            self.complex = split.linear.sample(y[0]).is_complex()
            if self.complex:
                warnings.warn(
                    f"compile=True has no effect with {method.name} here, the solve goes on without: its steps are taken in Fourier modes, "
                    "complex numbers, for which torch has no compiled code",
                    UserWarning,
                    stacklevel=2,
                )
        return self.complex

    def of(self, method: Method, options: Compile, case: tuple[Hashable, ...]) -> tuple[bool, Callable[..., list[Tensor]]]:
        """Whether it is new, and the compiled run of a case; torch tells shapes, types and the state of func apart."""
        plain = type(method) is RungeKutta  # found by its name it is made anew each time, from the same tableau
        lasting = method.tableau if plain else method  # pyright: ignore[reportAttributeAccessIssue]
        runs = self.by.setdefault(id(lasting), (lasting, {}))[1]  # a tableau takes long to hash; kept, its id stays its own
        while len(self.by) > METHODS:  # those that are made anew for each call
            del self.by[next(iter(self.by))]
        key = options, case
        new = key not in runs
        if new:
            own = types.FunctionType(_run.__code__.replace(), globals())  # torch counts what it compiles per code object
            inner: dict[str, Any] = options_of_mode(options.mode) if options.mode else {}
            if plain:  # a tableau does not change
                inner["guard_filter_fn"] = _worth_guarding
            runs[key] = torch.compile(own, fullgraph=True, dynamic=False, backend=options.backend, options=inner)
        return new, runs[key]

    def refuse(self, error: Exception) -> None:
        """Say once why func is not compiled."""
        self.refused = True
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        warnings.warn(
            f"compile=True has no effect here, the solve goes on without: {type(error).__name__}: {lines[0] if lines else ''}",
            UserWarning,
            stacklevel=2,
        )


def _worth_guarding(entries: Sequence[Any]) -> list[bool]:
    """All guards but those on what the case stands for, half a millisecond of them at every call: a tableau, the structure of y."""
    return [_OWN.match(entry.name) is None for entry in entries]


_OWN = re.compile(
    r"""(L\[')?(method|field)('\])?$|(L\[')?method('\])?\.tableau|(L\[')?field('\])?\.(structure|time_dtype|device|call$|call\.names)"""
)
_GRAPHS: WeakKeyDictionary[Any, Graphs] = WeakKeyDictionary()


def compiled(problem: Problem, options: Compile) -> Problem:
    """The same problem in compiled runs of steps."""
    grid = problem.stepping
    assert isinstance(grid, Grid)
    func = owner(problem.field.func)
    try:
        graphs = _GRAPHS.setdefault(func, Graphs())
    except TypeError:
        name = type(func).__name__
        raise TypeError(f"compile=True needs a func that can be found again, a function, method or nn.Module, got a {name}") from None
    runs = Runs(grid.times, grid.counts, grid.wanted, jumps=grid.jumps, before=grid.before, longest=options.steps)
    watch = None if problem.watch is None else partial(_watched, problem.watch)
    return replace(problem, method=CompiledSteps(problem.method, options, graphs), stepping=runs, watch=watch)


def _watched(watch: Callable[..., Any], run: SeveralSteps, y: Leaves, y_next: Leaves) -> Any:
    """What is seen of a run: its last step, from the start of its first."""
    return watch(replace(run, index=run.inner[-1].index), y, y_next)


def owner(func: Any) -> Any:
    """What stays the same from call to call: a module, or the code of a function that may be made anew for each."""
    func = getattr(func, "owner", func)
    while isinstance(func, partial):
        func = func.func
    return getattr(getattr(func, "__func__", func), "__code__", func)


def _eagerly(method: Method, field: Given, step: SeveralSteps, y: Leaves) -> list[Tensor]:
    end = list(y)
    for one in step.inner:
        end = method.step(field, one, end)
    return end


def _run(
    field: VectorField, method: Method, args: tuple[Any, ...], first: int, count: int, times: Tensor, limits: Tensor | None, *y: Tensor
) -> list[Tensor]:
    end, tables = list(y), [None] * count if field.lengths is None else args[-1]
    for i in range(count):
        step = Step(first + i, (times[i], times[i + 1]), 0, 0, 1, limits=None if limits is None else (limits[i, 0], limits[i, 1]))
        end = method.step(Given(field, args, tables[i]), step, end)
    return end


def _tensor_of(times: list[Time], field: VectorField) -> Tensor:
    if any(isinstance(time, Tensor) for time in times):
        return torch.stack(torch.broadcast_tensors(*(field.time(time) for time in times)))
    return kept(_times, tuple(map(float, times)), field.device)


def _times(times: tuple[Any, ...], device: torch.device) -> Tensor:
    return torch.tensor(times, dtype=torch.float64, device=device)
