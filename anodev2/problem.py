"""What one solve is about, on flat lists of leaves: the user's f, a method, a grid, the initial state and f's arguments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from dataclasses import field as made
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .pytree import LEAF, Structure, build, leaves_of
from .signature import CountedCall
from .solvers import Leaves, Method, StepFailed, stacked_slopes, states_between
from .solvers.linear import SplitState, as_operator
from .solvers.method import Split, add
from .stepping import Adaptive, Grid, Rejections, Step, Time, Times, numbers
from .torch_private import saving_hooks

Taken = tuple[list[Tensor], list[Leaves], list[Tensor]]  # the next state, all slopes, what is read
Accepts = Callable[[Leaves, Sequence[Leaves]], bool]  # whether an attempt that led to this state with these slopes is a step
LENGTHS = 4  # of steps, for which a solve keeps functions of its linear part
LATEST = 16  # times that are kept as tensors, so that a redone step need not make them again


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was modified in place; tensors of inference mode do not count."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def refuse_changed(before: list[int], y: Leaves) -> None:
    """A state that f has written to."""
    if before != versions(y):
        raise ValueError("func modifies its state y in place; work on y.clone(), or use operations that are not in place")


def storage(tensor: Tensor) -> int:
    """What tells which tensors share memory."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse
        return id(tensor)


def storages(tensors: Sequence[Tensor]) -> list[int]:
    """The same of each."""
    try:
        return [tensor.untyped_storage()._cdata for tensor in tensors]
    except (NotImplementedError, RuntimeError):
        return list(map(storage, tensors))


def saved_apart() -> AbstractContextManager[object]:
    """What is saved inside for a backward pass is not given to the hooks of a solve around this one."""
    if saving_hooks() is None:
        return nullcontext()
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)  # a result that holds itself is never freed


def bytes_of(leaves: Leaves) -> int:
    """Of all leaves together."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


class VectorField:
    """f on flat leaves, its answer checked against the state.

    Calls ``func(t, y, *args)`` with t a real zero-dimensional tensor; ``step`` (counted over the whole solve) and
    ``stage`` are passed where func has keyword-only parameters of these names. ``parts``: those of func, found once per solve.
    ``lengths``: where steps of each length find what has been prepared for them in the last of the arguments, which is there if there
    are any.
    """

    parts: Split | None = None
    lengths: Mapping[float, int] | None = None

    def __init__(self, func: Callable[..., Any], structure: Structure, y0: Leaves) -> None:
        self.func = func
        self.call = CountedCall(func)
        self.structure = structure
        self.device = y0[0].device
        self.evaluations = 0
        self.latest: dict[tuple[float, torch.dtype], Tensor] = {}
        self.time_dtype = torch.float32
        for leaf in y0:
            self.time_dtype = torch.promote_types(self.time_dtype, leaf.real.dtype if leaf.is_complex() else leaf.dtype)

    def time(self, time: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """A time as a zero-dimensional tensor beside the state."""
        if isinstance(time, Tensor):
            return time.to(self.device, dtype)
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return torch.scalar_tensor(time, dtype=dtype, device=self.device)
        found = self.latest.get((time, dtype))
        if found is None or found._version or found.requires_grad:  # func may change what it is given
            if len(self.latest) == LATEST:
                self.latest.clear()
            found = self.latest[time, dtype] = torch.scalar_tensor(time, dtype=dtype, device=self.device)
        return found

    def at(self, step: Step, node: float) -> Tensor:
        """The time of a stage as f sees it."""
        return self.time(step.seen(node), self.time_dtype)

    def __call__(
        self, args: tuple[Any, ...], step: Step, stage: int, node: float, y: Leaves, call: CountedCall | None = None
    ) -> list[Tensor]:
        """f, or ``call`` in its place, at the stage's time."""
        t = self.at(step, node)
        if not torch.compiler.is_compiling():  # a side effect that its recompute would not allow
            self.evaluations += 1
        before = None if torch.compiler.is_compiling() else versions(y)
        call, own = call or self.call, self.own(args)
        slope = call(t, build(self.structure, y), *own, step=step.number, stage=stage, backwards=step.backwards)
        if before is not None:
            refuse_changed(before, y)
        return self._checked(slope, y)

    def inside(self, args: tuple[Any, ...], call: CountedCall, step: Step, stage: int, node: float, state: SplitState) -> Tensor:
        """What ``call`` makes of a state and its coordinates at the stage's time."""
        t = self.at(step, node)
        if torch.compiler.is_compiling():
            return call(t, state, *self.own(args), step=step.number, stage=stage, backwards=step.backwards)
        self.evaluations += 1
        known = state.known()
        before = versions(known)
        found = call(t, state, *self.own(args), step=step.number, stage=stage, backwards=step.backwards)
        refuse_changed(before, known)
        return found

    def own(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Those of f: without what has been prepared."""
        return args if self.lengths is None else args[:-1]

    def table(self, args: tuple[Any, ...], h: Time) -> Any | None:
        """What has been prepared for steps of length h."""
        place = None if self.lengths is None or isinstance(h, Tensor) else self.lengths.get(h)
        return None if place is None else args[-1][place]

    def _checked(self, slope: Any, y: Leaves) -> list[Tensor]:
        if self.structure is LEAF and isinstance(slope, Tensor) and slope.shape == y[0].shape and slope.dtype == y[0].dtype:
            return [slope]
        if slope is None:
            raise TypeError("func returned None; it must return the time derivative, in the structure of y0")
        try:
            slopes = [slope] if self.structure is LEAF and isinstance(slope, Tensor) else leaves_of(slope, self.structure)
        except ValueError as error:
            raise ValueError(f"func must return the time derivative in the structure of y0: {error}") from None
        for k, leaf in zip(slopes, y, strict=True):
            if not isinstance(k, Tensor):
                raise TypeError(f"func must return tensors like y0, got {type(k).__name__} for a leaf of shape {tuple(leaf.shape)}")
            if k.shape != leaf.shape:
                raise ValueError(
                    f"func returned a derivative of shape {tuple(k.shape)} for a leaf of y0 of shape {tuple(leaf.shape)}; make them equal"
                )
            if k.dtype != leaf.dtype and not torch.can_cast(k.dtype, leaf.dtype):
                raise TypeError(
                    f"func returned {k.dtype} for a leaf of y0 of {leaf.dtype}, which cannot hold it; "
                    f"make y0 {k.dtype} or return {leaf.dtype}"
                )
        return slopes


@dataclass(frozen=True, eq=False)
class Given:
    """f with its arguments, as a method's step sees it; ``table``: what is prepared for this very step."""

    field: VectorField
    args: tuple[Any, ...]
    control: Adaptive | None = None
    table: Any = None

    def __call__(self, step: Step, stage: int, node: float, y: Leaves) -> list[Tensor]:
        return self.field(self.args, step, stage, node, y)

    def split(self) -> Split | None:
        """``func.split(*args)``, if func has it: (linear, rest) or (linear, data, rest). A rest may have a method ``transformed``, which
        gives ``linear.forward`` of it at a ``SplitState``."""
        own, known = self.field.own(self.args), self.field.parts
        if known is None or own or torch.compiler.is_compiling():
            known = self._parts(own)
        prepared = lambda h: self.table if self.table is not None else self.field.table(self.args, h)  # noqa: E731
        return known if known is None else replace(known, prepared=prepared)

    def _parts(self, own: tuple[Any, ...]) -> Split | None:
        split: Any = getattr(self.field.func, "split", None)
        if not callable(split):
            return None
        linear, *data, rest = split(*own)  # pyright: ignore[reportGeneralTypeIssues]
        inside = getattr(rest, "transformed", None)
        flat = lambda part: partial(self.field, self.args, call=CountedCall(part))  # noqa: E731
        within = None if inside is None else partial(self.field.inside, self.args, CountedCall(inside))
        return Split(as_operator(linear), flat(rest), flat(data[0]) if data else None, within)

    def preconditioner(self, step: Step, node: float, y: Leaves, scale: float) -> Callable[[Leaves], list[Tensor]] | None:
        """``func.preconditioner(t, y, scale, *args)``, if func has it, on leaves."""
        make, structure = getattr(self.field.func, "preconditioner", None), self.field.structure
        if not callable(make):
            return None
        act: Any = make(self.field.at(step, node), build(structure, y), scale, *self.field.own(self.args))
        if not callable(act):
            raise TypeError(f"func.preconditioner(t, y, scale) must return a function of a vector like y0, got {type(act).__name__}")

        def applied(v: Leaves) -> list[Tensor]:
            try:
                found = leaves_of(act(build(structure, v)), structure)
            except ValueError as error:
                raise ValueError(f"what func.preconditioner returns must give a vector in the structure of y0: {error}") from None
            for one, leaf in zip(found, v, strict=True):
                if not isinstance(one, Tensor) or one.shape != leaf.shape:
                    what = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
                    raise ValueError(f"what func.preconditioner returns gave {what} for a leaf of {tuple(leaf.shape)}, and must keep it")
            return found

        return applied

    def allowed(self, y: Leaves) -> list[Tensor] | None:
        """atol + rtol |y| of each leaf; None on a grid."""
        if self.control is None:
            return None
        return [atol + rtol * leaf.detach().abs() for leaf, rtol, atol in zip(y, self.control.rtol, self.control.atol, strict=True)]


@dataclass(frozen=True)
class Problem:
    """What stays the same whatever the state and the arguments: f, method, steps, and which states are wanted.

    ``save``: the states at the output times, after every step, at the end, at the output times and the end ("reached"), or
    after every step and at the output times ("all"). ``slopes``: those of every step too, for its interpolant.
    ``watch(step, y, y_next)`` is shown each accepted step with the states before and after it; by returning a status it
    ends the solve before that step. ``also``: after how many steps the state is wanted besides; ``watch`` may add that before its step.
    """

    field: VectorField
    method: Method
    stepping: Grid | Adaptive
    save: Literal["times", "steps", "end", "reached", "all"] = "times"
    slopes: bool = False
    watch: Callable[[Step, Leaves, Leaves], Status | None] | None = None
    also: set[int] = made(default_factory=set, compare=False)

    @property
    def reads(self) -> bool:
        """Whether states within steps are wanted."""
        return self.slopes or self.save in ("times", "reached", "all")

    def within(self) -> dict[int, Times]:
        """The times within steps of a grid at which states are wanted."""
        return self.stepping.within() if isinstance(self.stepping, Grid) and self.reads else {}

    def taken(self, step: Step, y: Leaves, args: tuple[Any, ...], inside: Times, accepts: Accepts | None = None, *known: Any) -> Taken:
        """The state after ``step``, all its slopes, and what is read of it, if it is accepted: its states at the times ``inside``, or its
        slopes, stacked."""
        method, given = self.method.at(step), self.given(args)
        rest: Any = known or (None,)
        if method.embedded_order is None:
            end, slopes = self.advance(step, y, args), list[Leaves]()
            for between in known[1:]:
                between()
        else:
            end, slopes = method.attempt(given, step, y, *rest)
        if (accepts is not None and not accepts(end, slopes)) or not (self.slopes or inside):
            return end, slopes, []
        if method.interpolant is None:  # all are at the end, where a break may move apart from them
            last = given(step, len(method.nodes) - 1, 1.0, end)
            moves = torch.stack([torch.as_tensor(time - step.time(1.0), device=end[0].device) for time in inside])
            return end, slopes, [add(leaf, moves.view(-1, *[1] * leaf.ndim), k) for leaf, k in zip(end, last, strict=True)]
        slopes = method.completed(given, step, y, end, slopes)
        together = stacked_slopes(slopes, y)
        return end, slopes, together if self.slopes else states_between(method.interpolant, step, inside, y, together)

    def advance(self, step: Step, y: Leaves, args: tuple[Any, ...]) -> list[Tensor]:
        """The state after ``step``; SolveError where the method's equations could not be solved."""
        try:
            return self.method.at(step).step(self.given(args), step, y)
        except StepFailed as error:
            t, good = float(torch.as_tensor(step.time(0.0)).detach().max()), build(self.field.structure, [leaf.detach() for leaf in y])
            message = f"at t={t:.9g}, step {step.index + 1}: {error}"
            raise SolveError(Status("not solved", message, t, step.index, y=good)) from None

    def given(self, args: tuple[Any, ...]) -> Given:
        """f with these arguments."""
        return Given(self.field, args, self.stepping if isinstance(self.stepping, Adaptive) else None)

    def prepared(self, y0: Leaves, args: tuple[Any, ...]) -> tuple[Problem, tuple[Any, ...]]:
        """Where the method treats a linear part by itself: what it makes of that once, as one more argument.

        For lengths of steps that occur more than once; those that differ by no more than the times are rounded are one.
        """
        grid, split = self.stepping, self.given(args).split() if self.method.splits else None
        if split is None or not isinstance(grid, Grid):
            return self, args
        lengths, first = repeated(grid)
        linear, v = split.linear, split.linear.sample(y0[0])
        tables = [linear.kept((self.method, h), v, partial(self.method.prepare, linear, h)) for h in first]
        field = copy(self.field)
        field.parts, field.lengths = split, lengths or None
        return replace(self, field=field), (*args, tables) if tables else args

    def outputs(self, grid: Grid) -> tuple[int, ...]:
        """After how many steps of ``grid`` the state is wanted, rising."""
        times, end = grid.outputs(), len(grid)
        reached = times if times[-1] == end else (*times, end)
        every = tuple(range(end + 1))
        found = {"times": times, "reached": reached, "steps": every, "all": every, "end": (end,)}[self.save]
        return tuple(sorted({*found, *self.also})) if self.also else found


def repeated(grid: Grid) -> tuple[dict[float, int], list[float]]:
    """The lengths of steps that occur more than once, each with its place among those that differ, and these: the most frequent."""
    found = Counter(step.dt for step in grid.steps() if not isinstance(step.dt, Tensor))
    rounding = 4 * math.ulp(max(map(abs, numbers(grid.times))))
    groups: list[list[float]] = []
    for h in sorted(found):
        if groups and h - groups[-1][0] <= rounding:
            groups[-1].append(h)
        else:
            groups.append([h])
    counts = {place: sum(found[h] for h in group) for place, group in enumerate(groups)}
    kept = [place for place in sorted(counts, key=lambda place: -counts[place])[:LENGTHS] if counts[place] > 1]
    return {h: new for new, place in enumerate(kept) for h in groups[place]}, [groups[place][0] for place in kept]


@dataclass(frozen=True)
class Status:
    """How a solve ended.

    ``reason``: "done", "event", "not finite", "step size" (underflow), "not solved" (an implicit step) or "max_steps"; ``message``
    is one sentence. Where it failed: ``t`` and ``step`` of the last good state ``y`` (a tree), the place in y0 and the element
    where it went wrong, and the largest error component in units of the tolerance.
    """

    reason: str = "done"
    message: str = "reached the end"
    t: float | None = None
    step: int | None = None
    leaf: str | None = None
    element: tuple[int, ...] | None = None
    error: float | None = None
    y: Any = None

    @property
    def ok(self) -> bool:
        """Whether the solve reached its end or an event."""
        return self.reason in ("done", "event")


class SolveError(RuntimeError):
    """A solve that could not go on; ``status`` tells where and why."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass
class Costs:
    """What a backward pass adds to, measured: steps redone, and the most bytes of states and weighed graphs held at once."""

    redone: int = 0
    peak_bytes: int = 0

    def hold(self, count: int) -> None:
        """So many bytes are held now."""
        self.peak_bytes = max(self.peak_bytes, count)


@dataclass
class Run:
    """What a solve leaves: the wanted states, the grid it took (to the point where it stopped), and how it ended.

    ``status`` None: the end was reached; ``costs`` None: nothing is held or redone beyond what autograd keeps. ``read``: by the numbers
    of steps, what was read of them, stacked in front.
    """

    states: list[Leaves]
    grid: Grid
    status: Status | None = None
    rejected: Rejections | None = None
    costs: Costs | None = None
    read: dict[int, Leaves] = made(default_factory=dict)
