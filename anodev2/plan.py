"""What a solve will cost, told beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .gradients.adjoint import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ReversibleAdjoint, as_adjoint, mebibytes
from .gradients.schedule import Schedule
from .gradients.vjp import Captured
from .integrate.recording import untouched
from .problem import bytes_of
from .solve import problem_of
from .solvers import Method
from .solvers.tableau import Tableau
from .stepping import Grid

DRAWN = 100  # the most steps whose schedule is shown unasked
FRAME, NODE, PLACE = 3000, 840, 300  # bytes per step, node and saved tensor, measured on Linux (tests/test_plan.py)


@dataclass(frozen=True)
class Plan:
    """Predicted costs of a solve on a grid: ``print(plan)`` reads them aloud.

    ``state_bytes`` and ``graph_bytes``: one state; what autograd stores in one step besides. ``peak_bytes``: the most held
    at once, forward or backward, of states and step graphs (the one being redone included). Evaluations count calls of
    func. ``recomputed`` counts steps redone; ``slots`` and ``graphs``: states, and graphs of the last steps, kept forward.
    ``node_bytes``: what the nodes of the graph take beside (host memory, estimated from their number; none with slots).
    ``samples``: of how many the states are, told of blocks whose weights read the features.
    """

    adjoint: Adjoint
    method: str
    steps: int
    state_bytes: int
    graph_bytes: int
    peak_bytes: int
    evaluations_forward: int
    evaluations_backward: int
    recomputed: int
    slots: int | None = None
    graphs: int = 0
    schedule: Schedule | None = field(default=None, repr=False)
    node_bytes: int = 0
    samples: int | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps of {self.method}, {self.adjoint}",
            f"a state: {mebibytes(self.state_bytes)}, the graph of a step: {mebibytes(self.graph_bytes)}, "
            f"at most held at once: {mebibytes(self.peak_bytes)}"
            + (f", nodes of the graph: {mebibytes(self.node_bytes)}" if self.node_bytes else ""),
            f"func evaluated {self.evaluations_forward} times forward, {self.evaluations_backward} times backward; "
            f"{self.recomputed} steps redone ({self.recomputed / self.steps:.2f} per step)",
        ]
        if self.samples:
            state, graph = (mebibytes(count / self.samples) for count in (self.state_bytes, self.graph_bytes))
            lines.append(f"per sample, its own weights included: a state {state}, the graph of a step {graph}")
        if self.schedule is not None:
            kept = f"{len(self.schedule.kept)} states" + (f" and {self.graphs} graphs" if self.graphs else "")
            drawn = self.steps <= DRAWN
            lines += [
                f"{kept} kept" + (" (o state, = graph, - step without graph, < step reversed):" if drawn else "; see schedule.draw()")
            ]
            lines += [self.schedule.draw()] if drawn else []
        return "\n".join(lines)


def plan(
    func: Callable[..., Any],
    y0: Any,
    t: Sequence[float] | Tensor = (0.0, 1.0),
    *,
    method: str | Tableau | Method = "rk4",
    steps: int | None = None,
    step_size: float | None = None,
    grid: Sequence[float] | Tensor | None = None,
    breaks: Sequence[float | Tensor] | Tensor | None = None,
    args: tuple[Any, ...] = (),
    adjoint: str | Adjoint = "checkpoint",
) -> Plan:
    """What ``odeint`` with these arguments will cost, from one step that is done now to weigh its graph.

    Takes the arguments of ``odeint`` for a solve on a grid. Random generators and buffers are left as they were.

    Raises:
        ValueError, TypeError: as ``odeint``; an adaptive solve has no plan, its grid can be passed once it is known; nor has
            ``BacksolveAdjoint`` with tolerances.
    """
    given = {"method": method, "steps": steps, "step_size": step_size, "grid": grid, "breaks": breaks}
    problem, args, leaves = problem_of(func, y0, t, args=args, **given)
    if not isinstance(problem.stepping, Grid):
        raise ValueError("an adaptive solve does not know its steps beforehand; give steps, or grid=solution.grid of an earlier one")
    count, chosen = len(problem.stepping), as_adjoint(adjoint)
    if isinstance(chosen, BacksolveAdjoint) and (chosen.rtol is not None or chosen.atol is not None):
        raise ValueError("BacksolveAdjoint with its own tolerances does not know its steps backward; leave rtol and atol out for a plan")
    before, first = problem.field.evaluations, problem.stepping.steps()[0]
    with untouched(problem, leaves, args) as recording:
        captured = Captured(problem, recording, args)
        with recording.observing(leaves):
            _, kinds, (graph, saved) = captured.forward(leaves, lambda y: captured.problem.advance(first, y, captured.args), weigh=True)
    once, state = problem.field.evaluations - before, bytes_of(leaves)
    fixed = (chosen, problem.method.name, count, state, graph)
    if isinstance(chosen, CheckpointAdjoint):
        schedule = chosen.schedule(count, state, graph)
        peak, redone = int(schedule.peak(state, graph)), schedule.redone
        nodes = (
            count * (FRAME + NODE * (len(kinds[0]) - len(captured.leaves) - len(leaves) - 1) + PLACE * saved)
            if schedule.slots is None
            else 0
        )
        return Plan(*fixed, peak, count * once, redone * once, redone, schedule.slots, schedule.graphs, schedule, nodes)
    if isinstance(chosen, ReversibleAdjoint):
        pairs = 0 if chosen.every is None else (count - 1) // chosen.every
        return Plan(*fixed, (4 + 2 * pairs) * state + graph, 2 * count * once, 2 * count * once, count)
    if isinstance(chosen, BacksolveAdjoint):
        return Plan(*fixed, len(problem.stepping.outputs()) * state + 2 * state + graph, count * once, (count + 1) * once, count)
    assert isinstance(chosen, DirectAdjoint)
    return Plan(*fixed, (count + 1) * state + count * graph, count * once, 0, 0)
