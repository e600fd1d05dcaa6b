"""Recursion: a step is a call of f, no ODE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stepping import Step
from .method import FlatField, Leaves, Method


@dataclass(frozen=True)
class Map(Method):
    """The recursion y_{n+1} = f(n, y_n), so that recursive and looped networks have the checkpoints, budgets and compiled runs of a solve.

    Times are whole numbers, and a step is taken for each unit: t=[0, N] makes N passes, f(0, y) the first. With ``steps``, ``step_size``
    or ``grid`` f gets the time at the start of each step instead. f returns the next state, in the structure and shapes of y0, which
    keeps its dtypes; a keyword-only parameter ``step`` of f is the number of the pass as an integer. There is nothing between two
    passes: no dense output, no events; nor can they be undone.
    """

    name: str = "map"
    order: int = 0
    nodes: tuple[float, ...] = (0.0,)

    def step(self, field: FlatField, step: Step, y: Leaves) -> list[Tensor]:
        return [new.to(leaf.dtype) for new, leaf in zip(field(step, 0, 0.0, y), y, strict=True)]
