"""Runs of steps as compiled graphs: a method whose step is several steps of another, on a grid of such runs.

Nothing else knows: schedules keep the states between runs and redo runs, and autograd meets one node per run, whose backward
pass is compiled too. The times of the steps are a tensor, so that one graph serves every run of its length; only where f
takes the number of the step has each run a graph of its own. What is compiled for a func is kept as long as func lives.

Without gradients a run is a loop: one graph of one step, which goes round as often as there are steps.
"""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from ..problem import Costs, Given, Problem, VectorField, refuse_changed, versions
from ..solvers import Leaves, Method, RungeKutta
from ..solvers.linear import FourierOperator, SplitState
from ..solvers.method import Split, SplitMethod
from ..solvers.tableau import Tableau
from ..stepping import Grid, Step, as_count
from ..torch_private import compile_errors, compilers_own_warnings_ignored, keeps_what_is_read, options_of_mode
from .runs import Runs, SeveralSteps, limits_of, times_of

Steps = Callable[..., list[Tensor]]
LONGEST = 1024  # steps of a loop that is one graph
METHODS = 16  # whose graphs are kept for one func; those of the oldest go


@dataclass(frozen=True)
class Compile:
    """How ``compile=`` compiles: with torch.compile, ``steps`` steps at a time, once per shape.

    One graph forward and one backward for up to ``steps`` steps, used by every run of so many steps of every solve with the same
    func. More steps per graph are a little faster and take longer to compile (half a second per evaluation of a small f); torch caches
    graphs on disk across processes. ``CheckpointAdjoint`` then keeps states between runs and holds the graph of one run.

    Under ``torch.no_grad`` on the CPU one step is compiled, in a loop that takes up to 1,024 of them in one call, whatever ``steps`` from
    2 on; not where func takes the number of the ``step``, nor where steps of methods that split func differ in length.

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
class CompiledSteps(Method):
    """``inner``, several steps at a time."""

    traced = True
    inner: Method
    options: Compile
    graphs: Graphs = field(compare=False)
    looped: bool = False
    costs: Costs | None = None  # of backward passes, where that of each graph begins with its run

    def __post_init__(self) -> None:
        for name in ("name", "order", "nodes", "splits"):
            object.__setattr__(self, name, getattr(self.inner, name))

    def step(self, field: Any, step: Step, y: Leaves) -> list[Tensor]:
        assert isinstance(step, SeveralSteps) and isinstance(field, Given)
        if self.graphs.complex_coordinates(self, field, y):
            return _eagerly(self.inner, field, step, y)
        if self.looped:
            if (end := self._loop(field, step, y)) is not None:
                return end
            for start in range(0, len(step.inner), self.options.steps):
                y = self._unrolled(field, replace(step, inner=step.inner[start : start + self.options.steps]), y)
            return list(y)
        return self._unrolled(field, step, y)

    def _loop(self, field: Given, step: SeveralSteps, y: Leaves) -> list[Tensor] | None:
        """Without gradients: all steps in one call; None where the compiler has no loop for them."""
        if self.graphs.unrolled:
            return None
        vector, count = field.field, len(step.inner)
        times, limits = times_of(step.inner, vector, LONGEST), limits_of(step.inner, vector, LONGEST)
        own, tables = field.args, [None]
        if self.splits:
            own, tables = self._prepared(field, step)
            if tables[0] is None or any(table is not tables[0] for table in tables):
                return None
        case = (vector.structure, vector.time_dtype, limits is None)
        first_time, run = self.graphs.of(self.inner, self.options, case, _loop)
        before, counted = versions(y), vector.evaluations
        try:
            vector.evaluations += count * len(self.nodes)
            leaves = [leaf.contiguous() for leaf in y]
            end = _quietly(first_time, run, vector, self.inner, own, tables[0], torch.tensor(count), times, limits, *leaves)
        except compile_errors():
            vector.evaluations, self.graphs.unrolled = counted, True
            return None
        refuse_changed(before, y)
        return end

    def _unrolled(self, field: Given, step: SeveralSteps, y: Leaves) -> list[Tensor]:
        """The steps one after the other in one graph, with its backward pass."""
        if self.graphs.refused:
            return _eagerly(self.inner, field, step, y)
        vector = field.field
        count, first = len(step.inner), step.inner[0].number if "step" in vector.call.names else 0
        times, limits = times_of(step.inner, vector), limits_of(step.inner, vector)
        own, tables = self._prepared(field, step)
        before, y = versions(y), [leaf.view_as(leaf) if leaf.is_leaf and leaf.requires_grad else leaf for leaf in y]  # as in later runs
        kinds = (limits is None, times.is_leaf, *(tensor.requires_grad for tensor in (times, *y)))
        case = (vector.structure, vector.time_dtype, count, first, torch.is_grad_enabled(), kinds)
        first_time, run = self.graphs.of(self.inner, self.options, case, _run, vector.device.type, self.costs is not None)
        counted = vector.evaluations
        vector.evaluations += count * len(self.nodes)  # a redone run may end as soon as all is there
        try:
            end = _quietly(first_time, run, vector, self.inner, own, tables, first, count, times, limits, *y)
        except compile_errors() as error:
            vector.evaluations = counted
            if self.costs is not None:
                self.graphs.not_again = True
                raise NotCompiled from error
            end = _eagerly(self.inner, field, step, y)  # which has words for what func must not do
            self.graphs.refuse(error)
            return end
        refuse_changed(before, y)
        ends = [leaf for leaf in end if leaf.requires_grad]
        if self.costs is not None and ends:
            register_multi_grad_hook(ends, partial(_redone, self.costs, vector, count, count * len(self.nodes)), mode="any")
        return end

    def _prepared(self, field: Given, step: SeveralSteps) -> tuple[tuple[Any, ...], list[Any]]:
        """The arguments, with nothing in the place of what has been prepared, and that for each step as compiled code has it."""
        vector, args = field.field, field.args
        if vector.parts is None or vector.lengths is None:
            return args, [None] * step.count
        made = [vector.parts.linear.parted(table) for table in args[-1]]
        places = [None if isinstance(one.dt, Tensor) else vector.lengths.get(one.dt) for one in step.inner]
        return (*args[:-1], None), [None if place is None else made[place] for place in places]


class NotCompiled(Exception):
    """A run whose backward pass was to begin with it."""


class Graphs:
    """What has been compiled for one func."""

    def __init__(self) -> None:
        self.by: dict[int, tuple[Method | Tableau, dict[Hashable, Steps]]] = {}
        self.refused = self.unrolled = self.not_again = False  # not compiled, not as a loop, not for a backward pass that begins with it
        self.complex: bool | None = None

    def complex_coordinates(self, method: CompiledSteps, field: Given, y: Leaves) -> bool:
        """Whether steps are taken in complex numbers: inductor would call each operation, more slowly than here."""
        if not method.splits or method.options.backend != "inductor":
            return False
        if self.complex is None:
            split = field.split()
            assert split is not None  # checked when the problem was made
            self.complex = not isinstance(split.linear, FourierOperator) and split.linear.sample(y[0]).is_complex()
            if self.complex:
                warnings.warn(
                    f"compile=True has no effect with {method.name} here, the solve goes on without: its steps are taken in complex "
                    "numbers, for which torch has no compiled code; a FourierOperator has it",
                    UserWarning,
                    stacklevel=2,
                )
        return self.complex

    def of(
        self, method: Method, options: Compile, case: tuple[Hashable, ...], steps: Steps, device: str = "cpu", recompute: bool = False
    ) -> tuple[bool, Steps]:
        """Whether it is new, and the compiled function ``steps`` of a case; torch tells shapes, types and the state of func apart."""
        plain = type(method) is RungeKutta  # found by its name it is made anew each time, from the same tableau
        lasting = method.tableau if plain else method  # pyright: ignore[reportAttributeAccessIssue]
        runs = self.by.setdefault(id(lasting), (lasting, {}))[1]  # a tableau takes long to hash; kept, its id stays its own
        while len(self.by) > METHODS:  # those that are made anew for each call
            del self.by[next(iter(self.by))]
        key = steps, options, case, device, recompute
        new = key not in runs
        if new:
            own = types.FunctionType(steps.__code__.replace(), globals())  # pyright: ignore[reportFunctionMemberAccess]  # torch counts what it compiles per code object
            inner: dict[str, Any] = options_of_mode(options.mode) if options.mode else {}
            if options.backend == "inductor":
                inner["cpp_wrapper"] = device == "cpu"  # nothing between its operations is Python
                inner |= {} if steps is _loop else keeps_what_is_read(recompute)
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
    looped = options.steps > 1 and not graphs.unrolled and _loops(problem)
    longest = LONGEST if looped else options.steps
    runs = Runs(grid.times, grid.counts, grid.wanted, jumps=grid.jumps, before=grid.before, every=grid.every, longest=longest)
    watch = None if problem.watch is None else partial(_watched, problem.watch)
    return replace(problem, method=CompiledSteps(problem.method, options, graphs, looped), stepping=runs, watch=watch)


def _loops(problem: Problem) -> bool:
    """Whether one graph may loop over its steps: there is nothing to differentiate, they are alike, and no device waits for a condition."""
    field = problem.field
    alike = (isinstance(problem.method, SplitMethod) or not problem.method.splits) and "step" not in field.call.names
    return alike and field.device.type == "cpu" and not torch.is_grad_enabled()


def _watched(watch: Callable[..., Any], run: SeveralSteps, y: Leaves, y_next: Leaves) -> Any:
    """What is seen of a run: its last step, from the start of its first."""
    return watch(replace(run, index=run.inner[-1].index), y, y_next)


def owner(func: Any) -> Any:
    """What stays the same from call to call: a module, or the code of a function that may be made anew for each."""
    func = getattr(func, "owner", func)
    while isinstance(func, partial):
        func = func.func
    return getattr(getattr(func, "__func__", func), "__code__", func)


def _redone(costs: Costs, vector: VectorField, steps: int, evaluations: int, _: Tensor) -> None:
    costs.redone += steps
    vector.evaluations += evaluations


def _eagerly(method: Method, field: Given, step: SeveralSteps, y: Leaves) -> list[Tensor]:
    end = list(y)
    for one in step.inner:
        end = method.step(field, one, end)
    return end


def _quietly(first_time: bool, run: Steps, *given: Any) -> list[Tensor]:
    """A graph is made at the first call, and once more where f is in another state: there a warning that is an error ends the compiler."""
    if not first_time:
        with suppress(*compile_errors()):
            return run(*given)
    with compilers_own_warnings_ignored():
        return run(*given)


def _run(
    field: VectorField,
    method: Method,
    args: tuple[Any, ...],
    tables: list[Any],
    first: int,
    count: int,
    times: Tensor,
    limits: Tensor | None,
    *y: Tensor,
) -> list[Tensor]:
    advance, state = _advancing(field, method, args, y)
    for i in range(count):
        step = Step(first + i, (times[i], times[i + 1]), 0, 0, 1, limits=None if limits is None else (limits[i, 0], limits[i, 1]))
        state = advance(step, tables[i], state)
    return _fields(field, method, args, state)


def _loop(
    field: VectorField, method: Method, args: tuple[Any, ...], table: Any, count: Tensor, times: Tensor, limits: Tensor | None, *y: Tensor
) -> list[Tensor]:
    advance, state = _advancing(field, method, args, y)

    def more(done: Tensor, *_: Tensor) -> Tensor:
        return done < count

    def body(done: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        ends = times.index_select(0, torch.stack([done, done + 1]))
        held = None if limits is None else limits.index_select(0, done.reshape(1))[0]
        step = Step(0, (ends[0], ends[1]), 0, 0, 1, limits=None if held is None else (held[0], held[1]))
        return done + 1, *(leaf.contiguous() for leaf in advance(step, table, list(y)))

    found = torch.while_loop(more, body, (torch.zeros((), dtype=torch.int64), *(leaf.contiguous() for leaf in state)))
    return _fields(field, method, args, list(found[1:]))


def _advancing(
    field: VectorField, method: Method, args: tuple[Any, ...], y: Leaves
) -> tuple[Callable[[Step, Any, Leaves], list[Tensor]], list[Tensor]]:
    """What takes a step, from what a state is between steps, and this of y: coordinates where the method has them."""
    if not isinstance(method, SplitMethod):
        return lambda step, _, state: method.step(Given(field, args), step, state), list(y)
    split = Split.of(Given(field, args))

    def advance(step: Step, table: Any, state: Leaves) -> list[Tensor]:
        ready = replace(split, prepared=lambda h: table)
        end = method.moved(ready, step, SplitState(split.linear, coordinates=state[0]), y[0])
        return [split.linear.settled(end.held)]

    return advance, [split.at(y[0]).held]


def _fields(field: VectorField, method: Method, args: tuple[Any, ...], state: list[Tensor]) -> list[Tensor]:
    """The leaves of a state between steps."""
    if not isinstance(method, SplitMethod):
        return state
    return [Split.of(Given(field, args)).linear.inverse(state[0])]
