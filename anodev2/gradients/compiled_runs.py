"""Compiled runs whose backward pass takes them again: autograd keeps the states between runs, as it keeps any input of a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..integrate.compiled import CompiledSteps, NotCompiled
from ..integrate.loop import Loop
from ..integrate.recording import recorded
from ..problem import Costs, Problem, Run, bytes_of
from ..solvers import Leaves


def solved_in_runs(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run | None:
    """The solve with a state per run; None where not all of it can be so, with everything as it was."""
    method = problem.method
    if not isinstance(method, CompiledSteps) or method.options.backend != "inductor":  # others have no say in what a graph keeps
        return None
    if method.splits or method.graphs.refused or method.graphs.not_again:
        return None
    costs, counted, recording = Costs(), problem.field.evaluations, recorded(problem, y0, args)
    looking = problem.watch is not None  # and may end the solve before a run
    if not looking:
        recording.mark()
    runs = replace(problem, method=replace(method, costs=costs))
    loop = Loop(runs, args, recording if looking else None)
    try:
        for step, y in loop.steps(y0):
            costs.hold((step.index + 2) * bytes_of(y))
    except NotCompiled:
        recording.retreat(0)
        problem.field.evaluations = counted
        return None
    return Run(loop.outputs(), loop.grid, loop.status, loop.rejected, costs, loop.read())
