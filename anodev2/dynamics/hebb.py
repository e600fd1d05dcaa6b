"""Hebbian weights, and Oja's, which stay bounded."""

from __future__ import annotations

import math

from torch import Tensor

from .learning_rule import KeyedRule, Pairs, outer


class Hebb(KeyedRule):
    """dW/dt = rate (value key^T - decay W): what is active together is connected.

    With W key as the value it grows exponentially along the keys' largest principal component, unless ``decay`` exceeds the largest
    eigenvalue of the keys' second moment; with values of its own it is linear in W, the fast weights of linear attention.

    Args:
        rate, pairs: as for ``KeyedRule``.
        decay: of W, relative to the rate; at least 0.

    Raises:
        ValueError: a decay below 0 or not finite; as ``KeyedRule``.

    Source: Hebb, The Organization of Behavior (1949); Schlag, Irie, Schmidhuber, Linear Transformers Are Secretly Fast Weight
    Programmers, ICML 2021 (arXiv 2102.11174).
    """

    def __init__(self, rate: float = 1.0, pairs: Pairs | None = None, *, decay: float = 0.0) -> None:
        super().__init__(rate, pairs)
        if not (math.isfinite(decay) and decay >= 0):
            raise ValueError(f"decay={decay} must be finite and at least 0")
        self.decay = decay

    def change(self, w: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return outer(value, key) - self.decay * w if self.decay else outer(value, key)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, decay={self.decay}"


class Oja(KeyedRule):
    """dW/dt = rate (y key^T - y y^T W), y the value, by default W key: the rows of W become an orthonormal basis of principal components.

    With one row, W goes to plus or minus the unit eigenvector of the largest eigenvalue of the second moment C of the keys, at the rate
    of the gap between its two largest eigenvalues; W W^T goes to 1 in any case, at the rate 2 (smallest eigenvalue kept).

    Args:
        rate, pairs: as for ``KeyedRule``.

    Source: Oja, J. Math. Biology 15 (1982); Int. J. Neural Systems 1 (1989), for several rows.
    """

    def change(self, w: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return outer(value, key) - outer(value, value) @ w
