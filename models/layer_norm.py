"""LayerNorms that know the step, for branches on tokens or, over the channels, on images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .blocks import NormKind, PerStepNorm2d


class SharedLayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, the same at every step; ``step`` is taken and ignored."""

    def forward(self, input: Tensor, step: int = 0) -> Tensor:
        return super().forward(input)


class PerStepLayerNorm(PerStepNorm2d):
    """One LayerNorm for each step of a fixed grid; the state of a single one loads too, as in ``PerStepNorm2d``."""

    def __init__(self, features: int, steps: int) -> None:
        nn.ModuleList.__init__(self, (nn.LayerNorm(features) for _ in range(steps)))


def layer_norm(features: int, kind: NormKind, steps: int) -> Any:
    """The norm of a branch, called as norm(z, step)."""
    return PerStepLayerNorm(features, steps) if kind == "per_step" and steps > 1 else SharedLayerNorm(features)
