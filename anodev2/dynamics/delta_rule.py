"""Weights that correct what they recall."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dynamics import Theta
from .learning_rule import KeyedRule, Pairs, fitted, outer


class DeltaRule(KeyedRule):
    """dW/dt = rate (value - W key) key^T: the error of what W recalls for a key, Widrow and Hoff's rule.

    One Euler step per token is DeltaNet. For one key and value that stand still it is linear, with a matrix of rank one, and
    ``held`` is its exact flow: one such step per token is EFLA.

    Args:
        pairs: a module or function (t, z) -> (key, value), as for ``KeyedRule``. None: z is (key, value), as in ``FastWeights``.
        rate: as for ``KeyedRule``.

    Raises:
        ValueError: a z that is not (key, value), without pairs; as ``KeyedRule``.

    Source: Widrow, Hoff (1960); Yang et al., Parallelizing Linear Transformers with the Delta Rule, NeurIPS 2024 (arXiv 2406.06484);
    exact flow: arXiv 2512.12602.
    """

    def __init__(self, pairs: Pairs | None = None, rate: float = 1.0) -> None:
        super().__init__(rate, pairs)

    def pair(self, t: Tensor | float, z: Any) -> tuple[Tensor, Tensor]:
        key, value = super().pair(t, z)
        if value is None:
            raise ValueError("pairs is needed, a module or function (t, z) -> (key, value), as W key recalls itself without error")
        return key, value

    def change(self, w: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return outer(value - key @ w.mT, key)

    def held(self, t: Tensor | float, theta: Theta, z: Any, elapsed: Tensor | float) -> Theta:
        """theta after a time during which key and value stand still, one of each per sample, in closed form:

            W + (1 - exp(-rate |key|^2 elapsed)) / |key|^2 (value - W key) key^T

        Args:
            t, theta, z: as for ``forward``; key and value are read once.
            elapsed: a number, or one per sample, (batch,).

        Raises:
            ValueError: several rows of keys, which have no closed form of rank one.
        """
        key, value = self.pair(t, z)
        after: Theta = {}
        for name, w in theta.items():
            k, v = fitted(name, w, key, value)
            if k.shape[1] > 1:
                raise ValueError(f"{k.shape[1]} rows of keys have no closed form of rank one; give one key per sample, or take steps")
            span = torch.as_tensor(elapsed, dtype=w.dtype, device=w.device).reshape(-1, 1, 1)
            after[name] = w + span * _mean_decay(self.rate(name), k.square().sum(-1, keepdim=True), span) * self.change(w, k, v)
        return after


def _mean_decay(rate: Tensor, square: Tensor, span: Tensor) -> Tensor:
    """(1 - exp(-x)) / x * rate with x = rate * square * span; rate where x is 0."""
    x = rate * square * span
    nothing = x.abs() < 1e-8
    safe = torch.where(nothing, 1.0, x)
    return rate * torch.where(nothing, 1 - x / 2, -torch.expm1(-safe) / safe)
