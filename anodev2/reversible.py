"""A scheme whose steps can be undone: states are found again in the backward pass instead of being kept.

With Psi_h(t, y) the increment of any one-step method, a step is two halves, each of which leaves one of y, z alone and is
therefore undone with the same evaluation:

    y' = c y + (1 - c) z + Psi_h(t, z)          z' = z - Psi_{-h}(t + h, y')

Source: McCallum & Foster, arXiv 2410.11648 (2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs, StandIns
from .problem import Costs, Problem, Status, bytes_of
from .pullback import Grads, StepGraph, Totals, hooks_silent
from .replay import Recording
from .solvers import Leaves
from .stepping import Grid, Step

ROUND_OFF = {torch.float64: 1e-6, torch.float32: 1e-5}  # of y0 found again, relative
COARSE_ROUND_OFF = 1e-2


class Pairs:
    """The scheme forward: the pair after every step, the states that are wanted, and how it ended."""

    def __init__(self, problem: Problem, coupling: float, args: tuple[Any, ...], recording: Recording | None = None) -> None:
        assert isinstance(problem.stepping, Grid)
        self.problem, self.coupling, self.args, self.recording = problem, coupling, args, recording
        self.grid: Grid = problem.stepping
        self.status: Status | None = None

    def run(self, y: Leaves) -> tuple[list[Leaves], Leaves, Leaves]:
        """The wanted states; y and z at the end."""
        z, states = y, {0: y}
        wanted = set(self.problem.outputs(self.grid))
        for step in self.grid.steps():
            self._mark()
            y_next = _mixed(self.coupling, y, z, _increment(self.problem, step, z, self.args))
            self._mark()
            z_next = _sum(z, _increment(self.problem, _backwards(step), y_next, self.args), -1.0)
            self.status = self.problem.watch(step, y, y_next) if self.problem.watch is not None else None
            if self.status is not None:
                self.grid = replace(self.grid, stop=step.index)
                self._undo_step()
                break
            y, z = y_next, z_next
            if step.index + 1 in wanted:
                states[step.index + 1] = y
        states[len(self.grid)] = y
        self._mark()
        return [states[index] for index in self.problem.outputs(self.grid)], y, z

    def _mark(self) -> None:
        if self.recording is not None:
            self.recording.mark()

    def _undo_step(self) -> None:
        """The step that ended the solve leaves no trace."""
        if self.recording is not None:
            self.recording.unmark()
            self.recording.retreat()


def _increment(problem: Problem, step: Step, y: Leaves, args: tuple[Any, ...]) -> Leaves:
    return _sum(problem.advance(step, y, args), y, -1.0)


def _backwards(step: Step) -> Step:
    return Step(step.index, (step.time(1.0), step.time(0.0)), 0, 0, 1, backwards=True)


def _mixed(coupling: float, y: Leaves, z: Leaves, increment: Leaves) -> Leaves:
    return [coupling * a + (1 - coupling) * b + c for a, b, c in zip(y, z, increment, strict=True)]


def _sum(a: Leaves, b: Leaves, scale: float) -> Leaves:
    return [torch.add(x, y, alpha=scale) for x, y in zip(a, b, strict=True)]


@dataclass
class Undo:
    """One solve by the reversible scheme, forward without a graph and backward by undoing its steps."""

    problem: Problem
    coupling: float
    inputs: Inputs
    recording: Recording
    grid: Grid = field(init=False)
    status: Status | None = None
    costs: Costs = field(default_factory=Costs)

    def forward(self, inputs: list[Tensor], args: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """The leaves of the wanted states; y and z at the end, which is all that the way back needs."""
        pairs = Pairs(self.problem, self.coupling, args, self.recording)
        with self.recording.making(), self.inputs.instead([tensor.detach() for tensor in self.inputs.inner]) as mode:
            outputs, y, z = pairs.run([leaf.detach() for leaf in inputs[: self.inputs.width]])
        self.inputs.narrow(mode)
        self.grid, self.status = pairs.grid, pairs.status
        self.costs.hold(2 * bytes_of(y))
        return [leaf for state in outputs for leaf in state], [leaf.clone() for leaf in (*y, *z)]

    def backward(self, inputs: Leaves, kept: list[Tensor], cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: steps undone, last to first."""
        width = self.inputs.width
        stand_ins = self.inputs.stand_ins(inputs, wants)
        back = _Undoing(self, stand_ins, kept[:width], kept[width:])
        sizes = [torch.maximum(*map(torch.linalg.vector_norm, pair)) for pair in zip(inputs, back.y, strict=False)]
        kept.clear()
        arriving = {index: cotangents[i * width : (i + 1) * width] for i, index in enumerate(self.problem.outputs(self.grid))}
        nothing: Grads = [None] * width
        with self.recording.replaying(), hooks_silent(self.inputs.leaves), self.inputs.instead(stand_ins.inner):
            for step in reversed(self.inputs.steps(self.grid, stand_ins)):
                back.y_bar = _plus(back.y_bar, arriving.get(step.index + 1, nothing))
                back.undo(step)
                self.costs.redone += 1
        self._warn(inputs[:width], sizes, back)
        y_bar = _plus(_plus(back.y_bar, back.z_bar), arriving.get(0, nothing))
        return [*y_bar, *back.totals.values]

    def _warn(self, y0: Leaves, sizes: Leaves, back: _Undoing) -> None:
        """Where y0 was not found again, relative to the larger of its size and that of the end."""
        for start, size, *found in zip(y0, sizes, back.y, back.z, strict=True):
            gap = max((torch.linalg.vector_norm(leaf - start) / size.clamp_min(1e-30)).item() for leaf in found)
            if not gap <= ROUND_OFF.get(start.real.dtype if start.is_complex() else start.dtype, COARSE_ROUND_OFF):
                warnings.warn(
                    f"ReversibleAdjoint found y0 again only to {gap:.1e} (relative): the steps cannot be undone to round-off, and the "
                    "gradient is off by that or more; take more steps, or adjoint='checkpoint'",
                    RuntimeWarning,
                    stacklevel=2,
                )


class _Undoing:
    """The pair on its way back, its cotangents, and the sums so far."""

    def __init__(self, undo: Undo, stand_ins: StandIns, y: Leaves, z: Leaves) -> None:
        self.problem, self.coupling, self.recording = undo.problem, undo.coupling, undo.recording
        self.args, self.places = undo.inputs.args(stand_ins), stand_ins.places
        self.y, self.z = y, z
        self.y_bar: Grads = [None] * len(y)
        self.z_bar: Grads = [None] * len(y)
        self.totals = Totals(len(stand_ins.places))

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
        if step.index == 0:
            self.recording.kept.refuse_gradients()

    def _pulled(self, mark: int, step: Step, at: Leaves, seeds: Grads) -> tuple[Leaves, Grads]:
        """The increment of one half of ``step`` from the state ``at``, and the cotangents pulled back through it."""
        self.recording.rewind(mark)
        at = [leaf.detach().requires_grad_() for leaf in at]
        with self.recording.surroundings(), torch.enable_grad():
            increment = _increment(self.problem, _backwards(step) if mark % 2 else step, at, self.args)
        values = [leaf.detach() for leaf in increment]
        graph = StepGraph.of(increment, seeds)
        del increment
        cotangents, gradients = graph.pull_back(at, self.places)
        self.totals.add(gradients)
        return values, cotangents


def _plus(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Grads:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def _scaled(a: Grads, scale: float) -> Grads:
    return [None if x is None else scale * x for x in a]
