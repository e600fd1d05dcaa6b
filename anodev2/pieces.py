"""A solve in pieces: from each event that changes the state another begins, with what is left of the grid or of the output times.

So does one where compiled runs of steps end early: step by step from the start of the run, it is told in which step and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .events import Event, Happened, Observer, event_value
from .gradients.adjoint import Adjoint
from .integrate.compiled import Compile, compiled
from .integrate.dense import Dense
from .integrate.runs import Runs
from .problem import Costs, Problem, Run, Status, VectorField
from .pytree import Structure, build, leaves_of, structure_of
from .solvers import Leaves
from .stepping import Adaptive, Between, Grid, Step, Time, numbers, wants_grad
from .torch_private import transformed

AT_ONCE = 1e-12  # the share of the time within which an event with an effect must not happen again


@dataclass
class Piece:
    """One run: what happened in it, of which an event that ended it is ``ending``; ``asked``: whether its start is an output time."""

    problem: Problem
    run: Run
    states: dict[int, Leaves]
    happened: list[Happened]
    ending: tuple[Tensor, Leaves] | None
    asked: bool
    read: dict[int, Leaves]
    by: int = 0  # which of several methods took the step to ``ending``

    def points(self, kind: Any) -> list[tuple[Tensor, Leaves]]:
        """The times and states to be saved of its steps, in order of time."""
        times, problem = self.run.grid.ends(), replace(self.problem, save=kind, also=set())
        places = [place for place in problem.outputs(self.run.grid) if place or self.asked or kind in ("steps", "end")]
        found: dict[float, list[tuple[Time, Leaves]]] = {place: [(times[place], self.states[place])] for place in places}
        for index, own in self.run.grid.within().items() if kind == "times" else ():
            rows = zip(*(leaf.unbind() for leaf in self.read[index]), strict=True)
            found[index + 0.5] = list(zip(own, map(list, rows), strict=True))
        return [(self.problem.field.time(time), state) for place in sorted(found) for time, state in found[place]]


def one_run(adjoint: Adjoint, problem: Problem, leaves: Leaves, args: tuple[Any, ...], how: Compile | None) -> Run:
    """One run; where it is compiled, its grid is that of the steps themselves."""
    grid = problem.stepping
    if how is None or not isinstance(grid, Grid) or torch.compiler.is_compiling() or transformed():
        return adjoint.solve(problem, leaves, args)
    run = adjoint.solve(compiled(problem, how), leaves, args)
    assert isinstance(run.grid, Runs)
    return replace(run, grid=grid if run.grid.stop is None else replace(grid, stop=run.grid.done))


def _in_runs(problem: Problem, leaves: Leaves, args: tuple[Any, ...], adjoint: Adjoint, watch: Observer, how: Compile) -> list[Piece]:
    """All in compiled runs of steps; where one would not be the whole of it, what is left step by step."""
    run = one_run(adjoint, problem, leaves, args, how)
    first = Piece(problem, run, dict(zip(problem.outputs(run.grid), run.states, strict=True)), [], None, True, run.read)
    if run.status is None or how.steps == 1 or not isinstance(problem.stepping, Grid):
        return [first]
    run.status, done = None, len(run.grid)
    watch.done = done
    problem = replace(problem, stepping=problem.stepping.after(done))
    watch.begin(problem, frozenset())
    rest = adjoint.solve(problem, first.states[done], args)
    states = dict(zip(problem.outputs(rest.grid), rest.states, strict=True))
    return [first, Piece(problem, rest, states, [], None, False, rest.read)]


def solved_in_pieces(
    problem: Problem, leaves: Leaves, args: tuple[Any, ...], adjoint: Adjoint, watch: Observer, how: Compile | None = None
) -> list[Piece]:
    """All pieces of the solve, of which the last has its end and status."""
    if how is not None:
        return _in_runs(problem, leaves, args, adjoint, watch, how)
    pieces: list[Piece] = []
    asked, last = True, dict[int, float]()  # when each event with an effect happened last
    while True:
        run = adjoint.solve(problem, leaves, args)
        states = dict(zip(problem.outputs(run.grid), run.states, strict=True))
        happened = watch.located(states, run.grid)
        ended = run.status is not None and run.status.reason == "event"
        read = run.read
        if problem.slopes:
            dense = Dense(problem, run.grid, states, run.read, args, None)
            read = {index: dense.within(index, times) for index, times in run.grid.within().items()}
        pieces.append(Piece(problem, run, states, happened, happened[-1][1:] if ended else None, asked, read, watch.by))
        if not ended:
            return pieces
        which, time, before = happened[-1]
        (number,), event = numbers((time,)), watch.events[which]
        if watch.counts[which] >= event.limit or event.effect is None:
            run.status = Status("event", f"event {which} ended the solve at t={number:.9g}", number, watch.done + len(run.grid))
            return pieces
        watch.done += len(run.grid)
        if abs(number - last.get(which, float("inf"))) <= AT_ONCE * max(abs(number), abs(last.get(which, 0.0))):
            message = (
                f"event {which} happened again at once after its effect at t={number:.9g}: its effects accumulate; end with terminal=n"
            )
            run.status = Status("accumulating events", message, number, watch.done, y=build(problem.field.structure, before))
            return pieces
        last[which] = number
        start: Time = time if time.requires_grad else number
        stepping, asked = _rest(problem.stepping, len(run.grid), start)
        leaves = changed(problem, event, start, before)
        if stepping is None:
            run.status = None
            pieces[-1] = replace(pieces[-1], ending=(time, leaves))
            return pieces
        here = [event_value(problem, event.fn, start, state).detach() for state in (before, leaves)]
        problem = replace(problem, stepping=stepping, also=set())
        watch.begin(problem, frozenset({which} if abs(here[1]) <= 2 * abs(here[0]) else ()))


def saved_points(pieces: list[Piece], kind: Any) -> list[tuple[Tensor, Leaves]]:
    """The times and states to be saved of all; where an event ended a piece, the state before its effect counts as a step's."""
    points: list[tuple[Tensor, Leaves]] = []
    for piece in pieces:
        last = piece is pieces[-1]
        points += piece.points(kind) if kind != "end" or (last and piece.ending is None) else []
        if piece.ending is not None and (last or kind == "steps"):
            points.append(piece.ending)
    return points


def costs(pieces: list[Piece]) -> tuple[int, int, VectorField, list[Costs], tuple[Between, ...]]:
    """What ``Stats`` tells of the steps: accepted, rejected, what was kept and redone of them, and where f seems to jump."""
    runs = [piece.run for piece in pieces]
    rejections = [run.rejected for run in runs if run.rejected is not None]
    accepted, rejected = sum(len(run.grid) for run in runs), sum(one.count for one in rejections)
    jumps = tuple(between for one in rejections for between in one.jumps)
    return accepted, rejected, pieces[0].problem.field, [run.costs for run in runs if run.costs is not None], jumps


def nodes(pieces: list[Piece]) -> tuple[float, ...]:
    """The times of all steps."""
    times = list(pieces[0].run.grid.nodes()[:1])
    for piece in pieces:
        times += piece.run.grid.nodes()[1:]
        times += [] if piece.ending is None else numbers(piece.ending[:1])
    return tuple(times)


def methods_of(pieces: list[Piece]) -> tuple[str, ...]:
    """The names of the methods that took each step."""
    names: list[str] = []
    for piece in pieces:
        steps = piece.run.grid.steps()
        names += [piece.problem.method.at(step).name for step in steps]
        if piece.ending is not None:
            names.append(piece.problem.method.at(Step(len(steps), (), 0, 0, 1, by=piece.by)).name)
    return tuple(names)


def happenings(pieces: list[Piece], count: int, y0: Leaves, structure: Structure) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """The times and the states of each event, stacked."""
    times, states = [], []
    for which in range(count):
        found = [(time, y) for piece in pieces for other, time, y in piece.happened if other == which]
        times.append(torch.stack([time for time, _ in found]) if found else torch.empty(0, dtype=torch.float64, device=y0[0].device))
        rows = zip(*(y for _, y in found), strict=True)
        states.append(build(structure, list(map(torch.stack, rows)) if found else [leaf.detach()[None][:0] for leaf in y0]))
    return tuple(times), tuple(states)


class DensePieces:
    """Called with a time or several, gives the states there; where an event changed the state, that after it."""

    def __init__(self, pieces: list[Piece], args: tuple[Any, ...]) -> None:
        self.parts = [
            Dense(piece.problem, piece.run.grid, piece.states, piece.run.read if piece.problem.slopes else {}, args, piece.ending, piece.by)
            for piece in pieces
        ]
        self.structure = pieces[0].problem.field.structure

    def __repr__(self) -> str:
        return f"DensePieces({', '.join(map(repr, self.parts))})"

    def __call__(self, t: Any) -> Any:
        return self._asked(t, False)

    def rate(self, t: Any) -> Any:
        """The rate of change there."""
        return self._asked(t, True)

    def _asked(self, t: Any, rate: bool) -> Any:
        if isinstance(t, (list, tuple)) or (isinstance(t, Tensor) and t.ndim == 1):
            states = [leaves_of(self._at(time, rate), self.structure) for time in t]
            return build(self.structure, [torch.stack(leaf) for leaf in zip(*states, strict=True)])
        return self._at(t, rate)

    def _at(self, t: Any, rate: bool) -> Any:
        ends = self.parts[0].nodes[0], self.parts[-1].nodes[-1]
        sign = 1 if ends[0] < ends[1] else -1
        (number,) = numbers((t,))
        if not min(ends) <= number <= max(ends):
            raise ValueError(f"t={t} must be a time between {min(ends)} and {max(ends)}, or a sequence of such times")
        part = [part for part in self.parts if sign * part.nodes[0] <= sign * number][-1]
        return part.rate(t) if rate else part(t)


def densely(pieces: list[Piece], args: tuple[Any, ...]) -> Dense | DensePieces:
    """What gives states between the steps."""
    whole = DensePieces(pieces, args)
    return whole.parts[0] if len(pieces) == 1 else whole


def met(grid: Grid, points: list[tuple[Tensor, Leaves]], kind: Any) -> list[tuple[Tensor, Leaves]]:
    """The times at which samples meet, or their own, with nan for those that do not come to them: there is one that comes farthest."""
    asked = list(map(torch.as_tensor, grid.asked))
    if not asked:
        times = grid.ends()
        farthest = torch.as_tensor(times[-1] - times[0]).abs().argmax()
        asked = [own.reshape(-1)[farthest] for own, _ in points]
    elif kind == "end":
        last = asked[0]
        for time in asked[1:]:
            last = last.where(time.isnan(), time)
        asked = [last]
    return [_reached(own, time, state) for (own, state), time in zip(points, asked, strict=False)]


def _reached(own: Tensor, time: Tensor, state: Leaves) -> tuple[Tensor, Leaves]:
    """The time, one or of each sample, and the states of those that have come to it."""
    there = own == time
    return time if time.ndim == 0 else time.where(there, math.nan).reshape(-1), [
        leaf.where(there, complex(math.nan, math.nan) if leaf.is_complex() else math.nan) for leaf in state
    ]


def saved_tree(
    points: list[tuple[Tensor, Leaves]], structure: Structure, save: Callable[[Tensor, Any], Any] | None, count: int
) -> tuple[Tensor, Any]:
    """The first ``count`` times, and the states or what ``save`` makes of them, stacked in front."""
    results = [build(structure, state) for _, state in points]
    if save is not None:
        times = [time.reshape(-1, *[1] * (state[0].ndim - 1)) if time.ndim else time for time, state in points]  # as func gets them
        results = [save(time, y) for time, y in zip(times, results, strict=True)]
    shape = structure_of(results[0])
    for leaf in leaves_of(results[0], shape):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"save must return tensors, alone or in tuples, lists and dicts, got {type(leaf).__name__}")
    ts = torch.stack([time.reshape(-1) if time.ndim else time for time, _ in points])
    ys = [torch.stack(leaf) for leaf in zip(*(leaves_of(result, shape) for result in results), strict=True)]
    return ts[:count], build(shape, [leaf[:count] for leaf in ys])


def stacked(states: list[Leaves], structure: Structure) -> Any:
    """One tree whose leaves have the states' leaves stacked in front."""
    return build(structure, [torch.stack(leaf) for leaf in zip(*states, strict=True)])


def changed(problem: Problem, event: Event, t: Time, y: Leaves) -> Leaves:
    """The state after the event's effect, checked to be one like that before it."""
    assert event.effect is not None
    structure = problem.field.structure
    result = event.effect(problem.field.time(t, problem.field.time_dtype), build(structure, [leaf.clone() for leaf in y]))
    if result is None:
        raise TypeError("effect returned None; it must return the state after the event, in the structure of y0")
    try:
        leaves = leaves_of(result, structure)
    except ValueError as error:
        raise ValueError(f"effect must return the state after the event in the structure of y0: {error}") from None
    for leaf, like in zip(leaves, y, strict=True):
        if not isinstance(leaf, Tensor) or leaf.shape != like.shape or leaf.dtype != like.dtype:
            got = f"{tuple(leaf.shape)} of {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(f"effect must return leaves like those of y0, got {got} for {tuple(like.shape)} of {like.dtype}")
    return leaves


def _rest(stepping: Grid | Adaptive, done: int, start: Time) -> tuple[Grid | Adaptive | None, bool]:
    """What is left after ``start``, which lies in the step after those done, and whether it is an output time itself."""
    (number,), ends = numbers((start,)), numbers(stepping.times)
    more = stepping.breaks if isinstance(stepping, Adaptive) else (time for _, own in stepping.inside for time in own)
    if any(wants_grad(time) and float(time.detach()) == number for time in (*stepping.times[1:], *more)):
        raise ValueError(
            f"an event with an effect happened at t={number:.9g}, at a time of t or breaks that requires grad: there is no derivative "
            "where the two change places; detach that time (if event and time move together, the event's has the gradient)"
        )
    sign = 1 if ends[-1] > ends[0] else -1
    beyond = lambda times: [place for place, time in enumerate(numbers(tuple(times))) if sign * time > sign * number]  # noqa: E731
    if isinstance(stepping, Adaptive):
        later = [stepping.times[place] for place in beyond(stepping.times)]
        breaks = tuple(stepping.breaks[place] for place in beyond(stepping.breaks))
        return (replace(stepping, times=(start, *later), breaks=breaks) if later else None), number in ends
    full = replace(stepping, stop=None)
    times, wanted = full.ends(), full.outputs()
    left = [place for place in beyond(times) if place > done]
    kept = (0, *(1 + left.index(place) for place in wanted if place in left))
    inside = tuple((index - done, own) for index, own in full.inside if index >= done)
    grid = Grid((start, *(times[place] for place in left)), (1,) * len(left), kept, inside=inside, jumps=full.jumps, every=full.every)
    return (grid if left else None), number in numbers(tuple(times[place] for place in wanted))


def joined(run: Run, problem: Problem) -> Any:
    """One tree of the states at the output times, stacked in front."""
    structure, places = problem.field.structure, problem.outputs(run.grid)
    if run.grid.asked:
        times = run.grid.ends()
        points = [(torch.as_tensor(times[place]), state) for place, state in zip(places, run.states, strict=True)]
        return stacked([state for _, state in met(run.grid, points, problem.save)], structure)
    if not run.read:
        return stacked(run.states, structure)
    parts: dict[float, Leaves] = {place: [leaf.unsqueeze(0) for leaf in state] for place, state in zip(places, run.states, strict=True)}
    parts |= {index + 0.5: leaves for index, leaves in run.read.items()}
    return build(structure, [torch.cat(leaf) for leaf in zip(*(parts[place] for place in sorted(parts)), strict=True)])
