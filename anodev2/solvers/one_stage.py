"""Implicit methods of one stage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stepping import Step
from .method import Leaves, SplitField
from .newton import Implicit


@dataclass(frozen=True)
class BackwardEuler(Implicit):
    """y(t + dt) = y + dt f(t + dt, y(t + dt)): order 1, L-stable.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.3.
    """

    name: str = "backward_euler"
    order: int = 1
    nodes: tuple[float, ...] = (1.0,)

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return self.solved(field, step, 1.0, y)


@dataclass(frozen=True)
class ImplicitMidpoint(Implicit):
    """y(t + dt) = 2 w - y with w = y + dt/2 f(t + dt/2, w): order 2, A-stable, symplectic, keeps quadratic invariants.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, II.1.
    """

    name: str = "implicit_midpoint"
    order: int = 2
    nodes: tuple[float, ...] = (0.5,)

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return [2 * w - leaf for w, leaf in zip(self.solved(field, step, 0.5, y), y, strict=True)]
