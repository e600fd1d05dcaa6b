"""The continuous adjoint solved backwards in time, as in Chen et al. 2018: for comparison, not exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from ..integrate.comparison import Comparison, Samples, changed
from ..integrate.loop import Accepts, Loop, Take, Taken
from ..integrate.recording import Recording
from ..problem import Problem, Run, SolveError, Status, VectorField
from ..pytree import structure_of
from ..solvers import Leaves
from ..stepping import Adaptive, Control, Grid, Step, numbers
from .vjp import Captured, Grads, Kinds

PATIENCE = 1000  # a solve backwards that takes so many times the steps of the one forward has failed


@dataclass
class Backsolve:
    """One solve; backward, the state, its cotangent alpha and the gradients are one state that is solved from end to start."""

    problem: Problem
    recording: Recording
    captured: Captured
    rtol: float | None
    atol: float | None
    run: Run = field(init=False)

    def forward(self, y0: Leaves) -> tuple[Run, Leaves]:
        """The wanted states, all of which the way back starts again from."""
        problem = replace(self.problem, slopes=False)  # a dense solution redoes steps
        loop = Loop(problem, self.captured.args, self.recording, self._attempt, reuse="none")
        y, last = [leaf.detach() for leaf in y0], None
        for _, y_next in loop.steps(y):
            y, last = y_next, (self.take, y, y_next)
        self.last = None
        if last is not None:  # users may change what they get in place
            self.last = last[0], [leaf.clone() for leaf in last[1]], Samples(last[2]), self.kinds
        self.run = Run(loop.outputs(), loop.grid, loop.status, loop.rejected, read=loop.read())
        return self.run, [leaf.clone() for state in (*self.run.states, *self.run.read.values()) for leaf in state]

    def _attempt(self, take: Take, y: Leaves, first: Leaves | None, between: Callable[[], None], accepts: Accepts) -> Taken:
        taken, self.kinds, _ = self.captured.attempt(lambda start: take(start, None, between, accepts), y)
        self.take = take
        return taken

    def backward(self, kept: list[Tensor], cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: solved backwards from each output to the one before."""
        width, known = len(wants), self.captured.sources
        outputs, nodes = self._outputs(kept, cotangents, width), self.run.grid.nodes()
        alpha: Leaves = [torch.zeros_like(leaf) for leaf in kept[:width]]
        sums: Leaves = [torch.zeros_like(leaf) for leaf in known]
        if self.last is not None:
            self._compare(*self.last)
        with self.recording.replaying(0), self.captured.hidden:
            field = _Augmented(self.problem, self.captured.args, known, width)
            for (start, before, _, _), (time, done, y, arriving) in reversed(list(pairwise([(nodes[0], 0, [], []), *outputs]))):
                alpha = [a if c is None else a + c for a, c in zip(alpha, arriving, strict=True)]
                if time != start:
                    field.last = math.ceil(done) - 1
                    between = [node for number, node in enumerate(nodes) if before < number < done]
                    state = self._solved(field, (time, *reversed(between), start), [*y, *alpha, *sums])
                    alpha, sums = state[width : 2 * width], state[2 * width :]
        return [*alpha, *(total if place in field.used else None for place, total in enumerate(sums))]

    def _outputs(
        self, kept: list[Tensor], cotangents: Sequence[Tensor | None], width: int
    ) -> list[tuple[float, float, Leaves, Sequence[Tensor | None]]]:
        """In order: time, number of steps done (between two whole ones within a step), state and cotangents."""
        groups = [(kept[i : i + width], cotangents[i : i + width]) for i in range(0, len(kept), width)]
        places, nodes, grid = self.problem.outputs(self.run.grid), self.run.grid.nodes(), self.run.grid
        found = [(nodes[place], float(place), *group) for place, group in zip(places, groups, strict=False)]
        for (index, times), (states, arriving) in zip(((i, grid.within()[i]) for i in self.run.read), groups[len(places) :], strict=True):
            for row, time in enumerate(numbers(times)):
                own = [None if c is None else c[row] for c in arriving]
                found.append((time, index + (row + 1) / (len(times) + 1), [leaf[row] for leaf in states], own))
        return sorted(found, key=lambda output: output[1])

    def _compare(self, take: Take, y: Leaves, expected: Samples, kinds: Kinds) -> None:
        """Redo the last step, to see whether f is what it was."""
        captured = self.captured
        with self.recording.replaying(take.step.index), self.recording.watching(y):
            (end, _, _), again, _ = captured.attempt(take, y)
        if kinds != again:
            raise changed("led to another graph")
        Comparison(self.recording.low_precision).add(end, expected)

    def _solved(self, field: _Augmented, nodes: tuple[float, ...], state: Leaves) -> Leaves:
        """The state at the last of ``nodes``: on these, or adaptively with the tolerances given or those of the pass forward."""
        forward = self.problem.stepping
        stepping: Grid | Adaptive = Grid(nodes, (1,) * (len(nodes) - 1), jumps=forward.jumps)
        if isinstance(forward, Adaptive) or self.rtol is not None or self.atol is not None:
            width = len(self.run.states[0])
            of_states = (forward.rtol, forward.atol) if isinstance(forward, Adaptive) else ((1e-6,) * width, (1e-9,) * width)
            rtol, atol = (_for_all(own, given, len(state)) for own, given in zip((self.rtol, self.atol), of_states, strict=True))
            control = forward.control if isinstance(forward, Adaptive) else Control()
            breaks = () if forward.jumps is None else tuple(node for node in nodes[1:-1] if node in forward.jumps.values)
            stepping = Adaptive((nodes[0], nodes[-1]), rtol, atol, control, breaks=breaks, jumps=forward.jumps)
        problem = Problem(cast(VectorField, field), self.problem.method, stepping, "end")
        recording = Recording(None, state, ())
        recording.opaque = True
        loop = Loop(problem, (), recording)
        limit = PATIENCE * len(nodes)
        for step, after in loop.steps(state):
            state = after
            if step.index > limit:
                t = float(step.time(1.0))
                raise SolveError(
                    Status("max_steps", f"backwards in time, at t={t:.9g}: {limit} steps taken for {len(nodes) - 1} forward", t)
                )
        if loop.status is not None:
            raise SolveError(replace(loop.status, message=f"backwards in time, {loop.status.message}"))
        return state


def _for_all(own: float | None, given: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """A tolerance for y, alpha and the sums: ``own``, or what the leaves of y were given, of which the sums get the smallest."""
    if own is not None:
        return (own,) * count
    least = min(float(torch.as_tensor(tolerance).min()) for tolerance in given)
    return (*given, *given, *(least,) * (count - 2 * len(given)))


class _Augmented:
    """d/dt of (y, alpha, sums) = (f, -(df/dy)^T alpha, -(df/dp)^T alpha), as a field on flat leaves."""

    def __init__(self, problem: Problem, args: tuple[Any, ...], known: Leaves, width: int) -> None:
        self.problem, self.args, self.known, self.width = problem, args, known, width
        self.structure = structure_of(("y", "alpha", *range(2 * width - 2 + len(known))))
        self.last = 0  # the forward step that the first step backwards undoes
        self.used: set[int] = set()

    def __call__(self, args: tuple[Any, ...], step: Step, stage: int, node: float, state: Leaves) -> list[Tensor]:
        y = [leaf.detach().requires_grad_() for leaf in state[: self.width]]
        step = replace(step, index=max(0, self.last - step.index), backwards=True)
        with torch.enable_grad():
            slopes = self.problem.field(self.args, step, stage, node, y)
        pairs = [(k, -a) for k, a in zip(slopes, state[self.width : 2 * self.width], strict=True) if k.requires_grad]
        sources = [*y, *(leaf for leaf in self.known if leaf.requires_grad)]
        ends, seeds = [k for k, _ in pairs], [seed.to(k.dtype) for k, seed in pairs]
        found = torch.autograd.grad(ends, sources, seeds, allow_unused=True) if ends else (None,) * len(sources)
        gradients = dict(zip(map(id, sources), found, strict=True))
        of_known = [gradients.get(id(leaf)) for leaf in self.known]
        self.used |= {place for place, gradient in enumerate(of_known) if gradient is not None}
        changes = [*(gradients[id(leaf)] for leaf in y), *of_known]
        like = [*y, *self.known]
        return [*(k.detach() for k in slopes), *(torch.zeros_like(x) if g is None else g for x, g in zip(like, changes, strict=True))]
