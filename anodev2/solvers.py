"""One step y0 -> y1 of each method: pure, no loop over time, no storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .stepping import Step, Time
from .tableau import Tableau

Leaves = Sequence[Tensor]
FlatField = Callable[[Step, int, float, Leaves], list[Tensor]]


def runge_kutta_step(field: FlatField, tableau: Tableau, step: Step, y: Leaves) -> list[Tensor]:
    """y(t + dt) = y + dt sum_i b_i k_i with k_i = f(t + c_i dt, y + dt sum_j a_ij k_j).

    ``field(step, stage, node, y)`` evaluates f at the stage's time. Every leaf keeps its dtype.
    """
    dt = step.dt
    slopes: list[list[Tensor]] = []
    for stage, (row, node) in enumerate(zip(tableau.stage_weights, tableau.nodes, strict=True)):
        slopes.append(field(step, stage, node, _combine(y, dt, row, slopes)))
    return _combine(y, dt, tableau.weights, slopes)


def _combine(y: Leaves, dt: Time, weights: Sequence[float], slopes: Sequence[Leaves]) -> list[Tensor]:
    """Per leaf: y + dt sum_i w_i k_i, one fused multiply-add per nonzero weight."""
    total = list(y)
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0:
            total = [_add(leaf, weight * dt, k) for leaf, k in zip(total, slope, strict=True)]
    return total


def _add(leaf: Tensor, scale: Time, k: Tensor) -> Tensor:
    if k.dtype != leaf.dtype:
        k = k.to(leaf.dtype)
    if isinstance(scale, Tensor):
        return leaf + scale.to(k.real.dtype if k.is_complex() else k.dtype) * k
    return torch.add(leaf, k, alpha=scale)
