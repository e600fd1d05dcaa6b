"""States between the steps of a solve."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem
from ..pytree import build
from ..solvers import Leaves, Method, stacked_slopes, states_between
from ..stepping import Grid, Step, Time, Times, limited
from .recording import untouched

HERMITE = ((1.0, -2.0, 1.0), (0.0, -1.0, 1.0), (0.0, 3.0, -2.0))  # weights of both slopes and of the secant


class Dense:
    """Called with a time or several, gives the states there; ``rate`` gives their rate of change.

    By the interpolant of the method that took the step, y(t + x dt) = y + dt sum_i b_i(x) k_i, from the slopes that the solve has taken;
    without one by the cubic with the states and slopes at both ends (Hermite), which is of order 3. What is missing is evaluated once, when
    it is first asked for, with random numbers of its own, and leaves no trace.
    """

    def __init__(
        self,
        problem: Problem,
        grid: Grid,
        states: dict[int, Leaves],
        slopes: dict[int, Leaves],
        args: tuple[Any, ...],
        event: tuple[Tensor, Leaves] | None,
        by: int = 0,
    ) -> None:
        self.problem, self.args, self.states = problem, args, dict(states)
        self.field = copy.copy(problem.field)  # counts its evaluations by itself
        self.slopes: dict[Any, Leaves] = dict(slopes)
        self.steps, self.nodes = grid.steps(), grid.nodes()
        if event is not None:  # a last step, up to the event, ``by`` one of several methods
            self.steps.append(limited(Step(len(self.steps), (grid.ends()[-1], event[0]), 0, 0, 1, by=by), grid.jumps))
            self.nodes += (event[0].item(),)
            self.states[len(self.steps)] = event[1]

    def __repr__(self) -> str:
        return f"Dense({len(self.steps)} steps from {self.nodes[0]:g} to {self.nodes[-1]:g})"

    def __call__(self, t: Any) -> Any:
        return self._asked(t, False)

    def rate(self, t: Any) -> Any:
        """dy/dt of what a call gives, at a time or several; at the end of a step that of the step before."""
        return self._asked(t, True)

    def _asked(self, t: Any, rate: bool) -> Any:
        low, high = min(self.nodes), max(self.nodes)
        try:
            if isinstance(t, (list, tuple)) and any(isinstance(time, Tensor) for time in t):
                t = torch.stack([torch.as_tensor(time, dtype=torch.float64) for time in t])
            given = torch.as_tensor(t, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            given = torch.zeros(0)
        if given.ndim > 1 or not given.numel() or not bool(((low <= given) & (given <= high)).all()):
            raise ValueError(f"t={t} must be a time between {low} and {high}, or a sequence of such times")
        values = given.reshape(-1).tolist()
        times: Times = tuple(given.reshape(-1)) if given.requires_grad else tuple(values)
        runs = [[*run] for _, run in groupby(range(len(times)), lambda place: self._where(values[place], given.requires_grad or rate))]
        found = [self._at(values[run[0]], tuple(times[place] for place in run), rate) for run in runs]
        leaves = [torch.cat(leaf) for leaf in zip(*found, strict=True)] if len(found) > 1 else found[0]
        return build(self.field.structure, leaves if given.ndim else [leaf[0] for leaf in leaves])

    def _where(self, time: float, within: bool) -> float:
        """The number of the step that holds the time, or where it is a node one half less; a node counts as part of a step ``within``."""
        rising = self.nodes[-1] > self.nodes[0]
        place = bisect.bisect_left(self.nodes, time if rising else -time, key=None if rising else lambda node: -node)
        return place - 0.5 if self.nodes[place] == time and not within else max(place - 1, 0)

    def _at(self, first: float, times: Times, rate: bool) -> Leaves:
        where = self._where(first, rate or isinstance(times[0], Tensor))
        if where % 1:
            return [leaf.expand(len(times), *leaf.shape) for leaf in self.states[int(where + 0.5)]]
        return self.within(int(where), times, rate)

    def within(self, index: int, times: Sequence[Time], rate: bool = False) -> Leaves:
        """The states at times within a step, stacked in front."""
        step, y = self.steps[index], self.states[index]
        method = self.problem.method.at(step)
        if method.interpolant is not None:
            slopes = self._kept(index, partial(self._redone, method, step, y))
            return states_between(method.interpolant, step, times, y, slopes, rate)
        end = self.states[index + 1]
        slopes = [self._kept((index, at), partial(self.field, self.args, step, 0, at, own)) for at, own in ((0.0, y), (1.0, end))]
        secant = [(b - a) / step.dt for a, b in zip(y, end, strict=True)]
        return states_between(HERMITE, step, times, y, stacked_slopes([*slopes, secant], y), rate)

    def _redone(self, method: Method, step: Step, y: Leaves) -> Leaves:
        """The slopes of a step that has not kept them."""
        given = replace(self.problem, field=self.field).given(self.args)
        end, slopes = method.attempt(given, step, y, None)
        return stacked_slopes(method.completed(given, step, y, end, slopes), y)

    def _kept(self, what: Any, evaluate: Callable[[], Leaves]) -> Leaves:
        """Of the solve, or of an earlier call (those without gradients apart)."""
        if what in self.slopes:
            return self.slopes[what]
        key = what, torch.is_grad_enabled()
        if key not in self.slopes:
            with untouched(self.problem, self.states[0], self.args):
                self.slopes[key] = evaluate()
        return self.slopes[key]
