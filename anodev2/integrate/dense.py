"""States between the steps of a solve."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem
from ..pytree import build
from ..solvers import Leaves, RungeKutta
from ..stepping import Grid, Step, Time, numbers
from .recording import untouched


class Dense:
    """Called with a time or several, gives the states there from those after every step, redoing the step that holds the time.

    By the interpolant of the method's tableau, y(t + x dt) = y + dt sum_i b_i(x) k_i; without one by the cubic with the
    states and slopes at both ends (Hermite), which is of order 3. f is evaluated anew, with random numbers of its own, and leaves
    no trace.
    """

    def __init__(
        self, problem: Problem, grid: Grid, states: dict[int, Leaves], args: tuple[Any, ...], event: tuple[Tensor, Leaves] | None
    ) -> None:
        self.problem, self.method, self.args, self.states = problem, problem.method, args, dict(states)
        self.field = copy.copy(problem.field)  # counts its evaluations by itself
        self.steps, self.nodes = grid.steps(), grid.nodes()
        if event is not None:  # a last step, up to the event
            self.steps.append(Step(len(self.steps), (grid.ends()[-1], event[0]), 0, 0, 1))
            self.nodes += (event[0].item(),)
            self.states[len(self.steps)] = event[1]

    def __repr__(self) -> str:
        return f"Dense({len(self.steps)} steps from {self.nodes[0]:g} to {self.nodes[-1]:g})"

    def __call__(self, t: Any) -> Any:
        low, high = min(self.nodes), max(self.nodes)
        try:
            if isinstance(t, (list, tuple)) and any(isinstance(time, Tensor) for time in t):
                t = torch.stack([torch.as_tensor(time, dtype=torch.float64) for time in t])
            given = torch.as_tensor(t, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            given = torch.zeros(0)
        if given.ndim > 1 or not given.numel() or not bool(((low <= given) & (given <= high)).all()):
            raise ValueError(f"t={t} must be a time between {low} and {high}, or a sequence of such times")
        with untouched(self.problem, self.states[0], self.args):
            states = [self._at(time if given.requires_grad else time.item()) for time in given.reshape(-1)]
        leaves = [torch.stack(leaf) for leaf in zip(*states, strict=True)] if given.ndim else states[0]
        return build(self.field.structure, leaves)

    def _at(self, t: Time) -> Leaves:
        (number,), rising = numbers((t,)), self.nodes[-1] > self.nodes[0]
        place = bisect.bisect_left(self.nodes, number if rising else -number, key=None if rising else lambda node: -node)
        step = self.steps[max(place - 1, 0)]
        x = (t - step.time(0.0)) / step.dt
        if self.nodes[place] == number and not isinstance(x, Tensor):  # a tensor has a history, even there
            return self.states[place]
        y, field = self.states[step.index], partial(self.field, self.args)
        if isinstance(self.method, RungeKutta) and self.method.tableau.interpolant is not None:
            rows = [[float(p) for p in row] for row in self.method.tableau.interpolant]
            weights = [sum(p * x ** (power + 1) for power, p in enumerate(row)) for row in rows]
            return _moved(y, step, weights, self.method.slopes(field, step, y, len(rows)))
        end = self.states[step.index + 1]
        first, last = field(step, 0, 0.0, y), field(step, 0, 1.0, end)
        toward = 3 * x**2 - 2 * x**3
        between = [a + toward * (b - a) for a, b in zip(y, end, strict=True)]
        return _moved(between, step, (x * (1 - x) ** 2, -(x**2) * (1 - x)), (first, last))


def _moved(y: Leaves, step: Step, weights: Sequence[Time], slopes: Sequence[Leaves]) -> list[Tensor]:
    dt = step.dt
    for weight, slope in zip(weights, slopes, strict=True):
        y = [leaf + (weight * dt) * k.to(leaf.dtype) for leaf, k in zip(y, slope, strict=True)]
    return list(y)
