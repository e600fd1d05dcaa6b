"""Explicit Runge-Kutta methods, all of them from their tableau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stepping import Step, Time
from .method import FlatField, Leaves, Method, SplitField, combine
from .tableau import Tableau


@dataclass(frozen=True)
class RungeKutta(Method):
    """The explicit Runge-Kutta method of a tableau: y(t + dt) = y + dt sum_i b_i k_i, k_i = f(t + c_i dt, y + dt sum_j a_ij k_j).

    A last stage that only estimates the error is left out of ``step``. Where it is the first stage of the next step
    (first same as last), ``attempt`` gets it from the step before.
    """

    tableau: Tableau

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.tableau.name)
        object.__setattr__(self, "order", self.tableau.order)
        object.__setattr__(self, "nodes", self.tableau.nodes[: self.tableau.advancing])
        object.__setattr__(self, "embedded_order", self.tableau.embedded_order)
        object.__setattr__(self, "fsal", self.tableau.fsal)
        object.__setattr__(self, "interpolant", self.tableau.dense_weights)

    def step(self, field: FlatField, step: Step, y: Leaves) -> list[Tensor]:
        return combine(y, step.dt, self.tableau.weights, self.slopes(field, step, y, self.tableau.advancing))

    def slopes(self, field: FlatField, step: Step, y: Leaves, stages: int, known: Sequence[Leaves] = ()) -> list[Leaves]:
        """k_1 ... k_stages, of which the first may be ``known``."""
        dt, slopes = step.dt, list(known)
        for stage in range(len(slopes), stages):
            at = combine(y, dt, self.tableau.stage_weights[stage], slopes)
            slopes.append(field(step, stage, self.tableau.nodes[stage], at))
        return slopes

    def attempt(
        self, field: SplitField, step: Step, y: Leaves, first: Leaves | None, between: Callable[[], None] = lambda: None
    ) -> tuple[list[Tensor], list[Leaves]]:
        """y after the step, and all slopes."""
        slopes = self.slopes(field, step, y, self.tableau.advancing, () if first is None else (first,))
        end = combine(y, step.dt, self.tableau.weights, slopes)
        between()
        return end, self._continued(field, step, y, end, slopes, self.tableau.stages)

    def completed(self, field: SplitField, step: Step, y: Leaves, end: Leaves, slopes: list[Leaves]) -> list[Leaves]:
        return self._continued(field, step, y, end, slopes, len(self.tableau.nodes))

    def _continued(self, field: FlatField, step: Step, y: Leaves, end: Leaves, slopes: list[Leaves], stages: int) -> list[Leaves]:
        slopes = list(slopes)
        for stage in range(len(slopes), stages):
            at = end if stage == self.tableau.ending else combine(y, step.dt, self.tableau.stage_weights[stage], slopes)
            slopes.append(field(step, stage, self.tableau.nodes[stage], at))
        return slopes

    def handed(self, slopes: Sequence[Leaves]) -> int | None:
        return self.tableau.ending if self.tableau.ending is not None and self.tableau.ending < len(slopes) else None

    def error(self, dt: Time, slopes: Sequence[Leaves]) -> list[Tensor]:
        """The estimated error of the step in each leaf: dt sum_i (b_i - b_hat_i) k_i."""
        assert self.tableau.error_weights is not None
        if isinstance(dt, Tensor):
            return [dt.to(leaf.real.dtype) * leaf for leaf in self.error(1.0, slopes)]
        terms = [(dt * weight, slope) for weight, slope in zip(self.tableau.error_weights, slopes, strict=False) if weight]
        total = [k.detach() * terms[0][0] for k in terms[0][1]]
        for scale, slope in terms[1:]:
            total = [torch.add(leaf, k.detach(), alpha=scale) for leaf, k in zip(total, slope, strict=True)]
        return total
