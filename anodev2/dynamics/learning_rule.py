"""What learning rules share: matrices of each sample that change by a key and a value read from the features."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..system import check_call
from .dynamics import Dynamics, Theta, parameter_key

Pairs = Callable[[Any, Any], tuple[Tensor, Tensor]]


class LearningRule(Dynamics):
    """dtheta/dt = rate * changes(t, theta, z), abstract, for weights of each sample; the rate is trained, one per weight.

    Args:
        rate: of learning, per unit of t, at the start of training.

    ``rates`` holds the rate of each weight, of shape (1,).

    Raises:
        ValueError: a rate that is not finite.
    """

    reads_features = True

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(rate):
            raise ValueError(f"rate={rate} must be finite")
        self.initial, self.rates = float(rate), nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        if len(self.rates):
            raise ValueError(f"this {type(self).__name__} already evolves another block's weights; give each block a copy.deepcopy of it")
        for name, weight in theta.items():
            self.rates[parameter_key(name)] = nn.Parameter(weight.new_full((1,), self.initial))

    def rate(self, name: str) -> Tensor:
        """That of a weight, (1,)."""
        return self.rates[parameter_key(name)]

    def forward(self, t: Tensor | float, theta: Theta, z: Any) -> Theta:  # pyright: ignore[reportIncompatibleMethodOverride]
        """dtheta/dt of each sample, (batch, *weight.shape)."""
        return {name: self.rate(name) * change for name, change in self.changes(t, theta, z).items()}

    @abstractmethod
    def changes(self, t: Tensor | float, theta: Theta, z: Any) -> Theta:
        """dtheta/dt at the rate 1."""

    def extra_repr(self) -> str:
        return f"rate={self.initial}"


class KeyedRule(LearningRule):
    """dW/dt = rate * change(W, key, value), abstract, for matrices W (out, in) of each sample.

    Args:
        rate: as for ``LearningRule``.
        pairs: a module or function (t, z) -> (key, value) of shapes (batch, in) and (batch, out), or with rows between, over which
            changes are averaged. None: they are z = (key, value), or the key is z and the value W key, the response of the layer.

    Raises:
        ValueError: keys or values that do not fit a matrix.
        TypeError: ``pairs`` that cannot be called so.
    """

    def __init__(self, rate: float = 1.0, pairs: Pairs | None = None) -> None:
        super().__init__(rate)
        if pairs is not None:
            if not callable(pairs):
                raise TypeError(f"pairs must be callable as pairs(t, z), got {type(pairs).__name__}")
            check_call("pairs", pairs, "t", "z")
        self.pairs = pairs

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Matrices."""
        return weight.is_floating_point() and weight.ndim == 2

    def changes(self, t: Tensor | float, theta: Theta, z: Any) -> Theta:
        key, value = self.pair(t, z)
        return {name: self.change(w, *fitted(name, w, key, value)) for name, w in theta.items()}

    def pair(self, t: Tensor | float, z: Any) -> tuple[Tensor, Tensor | None]:
        """Key and value, None where it is the response of the layer."""
        if self.pairs is not None:
            return self.pairs(t, z)
        return (z[0], z[1]) if isinstance(z, tuple) and len(z) == 2 else (z, None)  # pyright: ignore[reportReturnType]

    @abstractmethod
    def change(self, w: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """dW/dt at the rate 1: W (batch, out, in), key (batch, rows, in), value (batch, rows, out)."""


def fitted(name: str, w: Tensor, key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Key and value with an axis of rows; the value W key where there is none."""
    batch, out, inside = w.shape
    for what, given, size in (("key", key, inside), ("value", value, out)):
        if given is None:
            continue
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        if not isinstance(given, Tensor) or given.ndim not in (2, 3) or given.shape[0] != batch or given.shape[-1] != size:
            raise ValueError(
                f"the {what} for {name} is {shape}, and must be ({batch}, {size}) or ({batch}, rows, {size}): give pairs(t, z)"
            )
    key = key.unsqueeze(1) if key.ndim == 2 else key
    if value is None:
        return key, key @ w.mT
    return key, value.unsqueeze(1) if value.ndim == 2 else value


def outer(value: Tensor, key: Tensor) -> Tensor:
    """The mean over rows of value key^T, (batch, out, in)."""
    return value.mT @ key / key.shape[1] if key.shape[1] > 1 else value.mT * key
