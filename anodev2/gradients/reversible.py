"""A scheme whose steps can be undone: states are found again in the backward pass instead of being kept.

With Psi_h(t, y) the increment of any one-step method, a step is two halves, each of which leaves one of y, z alone and is
therefore undone with the same evaluation:

    y' = c y + (1 - c) z + Psi_h(t, z)          z' = z - Psi_{-h}(t + h, y')

Source: McCallum & Foster, arXiv 2410.11648 (2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..integrate.attributes import Track
from ..integrate.comparison import Comparison, Samples, changed
from ..integrate.recording import Recording
from ..problem import Costs, Problem, Run, Status, bytes_of
from ..solvers import Leaves
from ..stepping import Grid, Step
from .vjp import Captured, Grads, Kinds

# By how much y0 may not be found again, relative to its size, or to this part of the end's where that is larger: round-off of the end.
ROUND_OFF = {torch.float64: (1e-6, 1e-5), torch.float32: (1e-5, 1.0)}
COARSE_ROUND_OFF = 1e-2, 1.0


Increment = Callable[[Step, bool, Leaves], list[Tensor]]  # y(t + dt) - y of one step of the method, or of one taken backwards


class Pairs:
    """The scheme forward: the pair after every step, the states that are wanted, and how it ended."""

    def __init__(
        self, problem: Problem, coupling: float, increment: Increment, recording: Recording | None = None, every: int | None = None
    ) -> None:
        assert isinstance(problem.stepping, Grid)
        self.problem, self.coupling, self.increment, self.recording, self.every = problem, coupling, increment, recording, every
        self.kept: dict[int, Leaves] = {}  # y and z after every so many steps
        self.grid: Grid = problem.stepping
        self.status: Status | None = None

    def run(self, y: Leaves) -> tuple[list[Leaves], Leaves, Leaves]:
        """The wanted states; y and z at the end."""
        z, states = y, {0: y}
        wanted = set(self.problem.outputs(self.grid))
        for step in self.grid.steps():
            self._mark()
            with nullcontext() if self.recording is None or step.index else self.recording.observing(y):
                y_next = _mixed(self.coupling, y, z, self.increment(step, False, z))
            self._mark()
            z_next = _sum(z, self.increment(step, True, y_next), -1.0)
            self.status = self.problem.watch(step, y, y_next) if self.problem.watch is not None else None
            if self.status is not None:
                self.grid = replace(self.grid, stop=step.index)
                if self.recording is not None:  # the step that ended the solve leaves no trace
                    self.recording.retreat(self.recording.marks - 2)
                break
            if step.index in self.problem.also:
                states[step.index] = y
            y, z = y_next, z_next
            if step.index + 1 in wanted:
                states[step.index + 1] = y
            if self.every is not None and (step.index + 1) % self.every == 0 and step.index + 1 < len(self.grid):
                self.kept[step.index + 1] = [*y, *z]
        else:
            self._mark()
        states[len(self.grid)] = y
        return [states[index] for index in self.problem.outputs(self.grid)], y, z

    def _mark(self) -> None:
        if self.recording is not None:
            self.recording.mark()


def increment(problem: Problem, step: Step, backwards: bool, y: Leaves, args: tuple[Any, ...]) -> list[Tensor]:
    """What one step of the method adds to y."""
    step = Step(step.index, (step.time(1.0), step.time(0.0)), 0, 0, 1, backwards=True, limits=step.limits) if backwards else step
    return _sum(problem.advance(step, y, args), y, -1.0)


def _mixed(coupling: float, y: Leaves, z: Leaves, increment: Leaves) -> Leaves:
    return [coupling * a + (1 - coupling) * b + c for a, b, c in zip(y, z, increment, strict=True)]


def _sum(a: Leaves, b: Leaves, scale: float) -> list[Tensor]:
    return [torch.add(x, y, alpha=scale) for x, y in zip(a, b, strict=True)]


@dataclass
class Undo:
    """One solve by the reversible scheme, forward without a graph and backward by undoing its steps."""

    problem: Problem
    recording: Recording
    captured: Captured
    coupling: float
    every: int | None = None
    costs: Costs = field(default_factory=Costs)
    kinds: Track[Kinds] = field(default_factory=Track)  # of nodes, two per step
    expected: dict[int, Samples] = field(default_factory=dict)  # samples of the last increments, by mark

    def forward(self, y0: Leaves) -> tuple[Run, Leaves]:
        """The wanted states; y and z at the end, which is all that the way back needs, and after ``every`` so many steps."""
        pairs = Pairs(self.captured.problem, self.coupling, self._increment, self.recording, self.every)
        states, y, z = pairs.run([leaf.detach() for leaf in y0])
        self.recording.attributes.close()
        self.grid, self.starts = pairs.grid, [leaf.detach() for leaf in y0]
        self.places = tuple(pairs.kept)
        self.costs.hold(2 * (1 + len(self.places)) * bytes_of(y))
        ends = [[*y, *z], *pairs.kept.values()]
        run = Run(states, self.grid.mapped(self.captured.original), pairs.status, costs=self.costs)
        return run, [leaf.clone() for pair in ends for leaf in pair]

    def _increment(self, step: Step, backwards: bool, y: Leaves) -> list[Tensor]:
        captured = self.captured
        end, kinds, _ = captured.forward(y, lambda start: increment(captured.problem, step, backwards, start, captured.args))
        self.kinds.append(kinds if not self.kinds.values or kinds != self.kinds.values[-1] else self.kinds.values[-1])
        mark = self.recording.marks - 1
        self.expected[mark] = Samples(end)
        self.expected.pop(mark - 4, None)
        return end

    def backward(self, kept: list[Tensor], cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: steps undone, last to first."""
        width = len(wants)
        back = _Undoing(self, kept[:width], kept[width : 2 * width])
        pairs = {place: kept[2 * width * i : 2 * width * (i + 1)] for i, place in enumerate(self.places, 1)}
        sizes, gaps = back.sizes(), list[list[Tensor]]()
        kept.clear()
        arriving = {index: cotangents[i * width : (i + 1) * width] for i, index in enumerate(self.problem.outputs(self.grid))}
        nothing: Grads = [None] * width
        for step in reversed(self.grid.steps()):
            back.y_bar = _plus(back.y_bar, arriving.get(step.index + 1, nothing))
            back.undo(step)
            self.costs.redone += 1
            if step.index in pairs:
                pair = pairs.pop(step.index)
                gaps.append(back.gaps(pair, sizes))
                back.y, back.z = pair[:width], pair[width:]
                sizes = back.sizes()
        gaps.append(back.gaps([*self.starts, *self.starts], sizes))
        for leaf, of_leaf in zip(self.starts, zip(*gaps, strict=True), strict=True):
            limit, _ = _round_off(leaf)
            back.comparison.judge([torch.stack(of_leaf).max().reshape(1)], partial(_warn_of, "kept states" if self.places else "y0", limit))
        y_bar = _plus(_plus(back.y_bar, back.z_bar), arriving.get(0, nothing))
        return [*y_bar, *back.totals]


def _round_off(leaf: Tensor) -> tuple[float, float]:
    return ROUND_OFF.get(leaf.dtype.to_real(), COARSE_ROUND_OFF)


def _warn_of(what: str, limit: float, gap: Tensor) -> None:
    if not gap.item() <= limit:
        warnings.warn(
            f"ReversibleAdjoint found {what} again only to {gap.item():.1e} (relative): the steps cannot be undone to round-off, and the "
            "gradient is off by that or more; keep states with every=, take more steps, or adjoint='checkpoint'",
            RuntimeWarning,
            stacklevel=4,
        )


class _Undoing:
    """The pair on its way back, its cotangents, and the sums so far."""

    def __init__(self, undo: Undo, y: Leaves, z: Leaves) -> None:
        self.undone, self.coupling, self.captured, self.recording = undo, undo.coupling, undo.captured, undo.recording
        self.comparison = Comparison(undo.recording.low_precision)
        self.y, self.z = y, z
        self.y_bar: Grads = [None] * len(y)
        self.z_bar: Grads = [None] * len(y)
        self.totals: Grads = [None] * len(undo.captured.sources)

    def sizes(self) -> list[Tensor]:
        """Of the leaves of y."""
        return [torch.linalg.vector_norm(leaf) for leaf in self.y]

    def gaps(self, pair: Leaves, sizes: Leaves) -> list[Tensor]:
        """By how much each leaf of a pair was not found again, relative to its size, or to a part of that of what was undone from."""
        norm, both = torch.linalg.vector_norm, zip(self.y, self.z, pair[: len(sizes)], pair[len(sizes) :], sizes, strict=True)
        return [
            torch.maximum(norm(y - a), norm(z - b)) / torch.maximum(norm(a), _round_off(y)[1] * size).clamp_min(1e-30)
            for y, z, a, b, size in both
        ]

    def undo(self, step: Step) -> None:
        """Both halves of the step, last first."""
        c = self.coupling
        increment, y_bar = self._pulled(2 * step.index + 1, step, self.y, _scaled(self.z_bar, -1.0))
        self.z = _sum(self.z, increment, 1.0)
        self.y_bar = _plus(self.y_bar, y_bar)
        increment, z_bar = self._pulled(2 * step.index, step, self.z, self.y_bar)
        self.y = [(a - (1 - c) * b - d) / c for a, b, d in zip(self.y, self.z, increment, strict=True)]
        self.z_bar = _plus(_plus(self.z_bar, _scaled(self.y_bar, 1 - c)), z_bar)
        self.y_bar = _scaled(self.y_bar, c)

    def _pulled(self, mark: int, step: Step, at: Leaves, seeds: Grads) -> tuple[Leaves, Grads]:
        """The increment of one half of ``step`` from the state ``at``, and the cotangents pulled back through it."""
        captured = self.captured
        first = mark == self.recording.marks - 2  # from the states of the pass forward themselves
        with self.recording.replaying(mark):
            with self.recording.watching(at) if first else nullcontext():
                graph = captured.graph(at, lambda start: increment(captured.problem, step, mark % 2 == 1, start, captured.args))
            if graph.kinds != self.undone.kinds[mark]:
                raise changed("led to another graph")
            values = [leaf.detach() for leaf in graph.end]
            if first:
                self.comparison.add(values, self.undone.expected[mark])
            return values, captured.pull_back(graph, seeds, [None] * len(at), self.totals, [True] * len(at))


def _plus(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Grads:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def _scaled(a: Grads, scale: float) -> Grads:
    return [None if x is None else scale * x for x in a]
