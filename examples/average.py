"""An average of a network's weights over its training, beside it on its device."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """``module``: the weights and buffers averaged over all steps, the average of before counting ``decay``; a copy at first.

    What is counted in integers is copied. As ``torch.optim.swa_utils.AveragedModel``, its state_dict too, in a few launches and without
    making a GPU wait for the number of steps.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), decay
        self.register_buffer("n_averaged", torch.tensor(0))

    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's present weights into the average, and count them."""
        self.move(model)
        self.n_averaged += 1

    @torch.no_grad()
    def move(self, model: nn.Module) -> None:
        """Take them in uncounted: what a CUDA graph can do, the count lies on the host."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        share = 1.0 if self.n_averaged == 0 else 1 - self.decay
        means, present = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        torch._foreach_lerp_(means, present, share)  # pyright: ignore[reportPrivateImportUsage]
        counts, present = _columns([pair for pair in pairs if not pair[0].is_floating_point()])
        if counts:
            torch._foreach_copy_(counts, present)  # pyright: ignore[reportPrivateImportUsage]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [own for own, _ in pairs], [new for _, new in pairs]
