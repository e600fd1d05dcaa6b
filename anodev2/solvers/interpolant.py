"""States between the ends of a step: polynomials in time, from the slopes that the step has taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..stepping import Step, Time
from ..tables import kept
from .method import Leaves, Weights


def between(weights: Weights, step: Step, times: Sequence[Time], y: Leaves, slopes: Leaves, rate: bool = False) -> list[Tensor]:
    """Per leaf and for all ``times`` of the step, in front: y + dt sum_i b_i(x) k_i, or its rate of change sum_i b_i'(x) k_i.

    ``slopes`` has the k_i of each leaf stacked in front.
    """
    device = y[0].device
    start, dt = step.time(0.0), step.dt
    x = (_together(times, device) - start) / dt
    table = kept(_table, weights, rate, device)
    powers = torch.arange(0 if rate else 1, len(table) + (0 if rate else 1), device=device)
    factors = x.unsqueeze(-1) ** powers @ table
    if rate:
        return [torch.tensordot(factors.to(k.dtype), k, 1) for k in slopes]
    return [leaf + torch.tensordot((dt * factors).to(k.dtype), k, 1) for leaf, k in zip(y, slopes, strict=True)]


def stacked_slopes(slopes: Sequence[Leaves], y: Leaves) -> list[Tensor]:
    """The slopes of each leaf stacked in front, in its dtype."""
    return [torch.stack([k.to(leaf.dtype) for k in own]) for leaf, own in zip(y, zip(*slopes, strict=True), strict=True)]


def _together(times: Sequence[Time], device: torch.device) -> Tensor:
    if any(isinstance(time, Tensor) for time in times):
        return torch.stack([torch.as_tensor(time, dtype=torch.float64, device=device) for time in times])
    return torch.tensor(times, dtype=torch.float64, device=device)


def _table(weights: Weights, rate: bool, device: torch.device) -> Tensor:
    rows = [[(power + 1 if rate else 1) * p for power, p in enumerate(row)] for row in weights]
    return torch.tensor(rows, dtype=torch.float64, device=device).mT.contiguous()
