"""Weights that are theta_0 and a sum of given functions of depth, whatever their coefficients are made of."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..stepping import as_count
from ..tables import kept
from .bases import BASES, ROUND_OFF
from .dynamics import Dynamics, Theta


class Expansion(Dynamics):
    """theta(t) = theta_0 + sum_k a_k phi_k(s), s = t / length in [0, 1] and phi_k(0) = 0: abstract in the a_k.

    Weights with two axes or more, kernels and matrices, are accepted; biases and the weights of norms stay constant. The block uses the
    flow, one product per weight; the derivative serves a ``CoupledSystem`` solved from t = 0.

    Args:
        basis: a name in ``BASES``.
        size: number of coefficients of each element of a weight, theta_0 among them.
        length: end minus start of the block's t (negative where its t falls).
    """

    def __init__(self, basis: str, size: int, length: float) -> None:
        super().__init__()
        if basis not in BASES:
            raise ValueError(f"basis={basis!r} must be one of {', '.join(map(repr, BASES))}")
        if as_count("size", size) < 2:
            raise ValueError(f"size={size} leaves theta_0 alone; give at least 2, or use Static()")
        if basis == "fourier" and size % 2 == 0:
            raise ValueError(f"size={size} must be odd for 'fourier', 1 + 2 * degree; give {size + 1}")
        if not math.isfinite(length) or length == 0:
            raise ValueError(f"length={length} must be finite and not zero: end minus start of the block's t")
        self.basis = basis
        self.size = int(size)
        self.length = float(length)

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Kernels and matrices: weights with two axes or more."""
        return weight.is_floating_point() and weight.ndim >= 2

    @abstractmethod
    def rows(self, name: str, weight: Tensor) -> Tensor:
        """a of a weight: (functions, *weight.shape)."""

    @abstractmethod
    def take(self, name: str, rows: Tensor) -> None:
        """Set the parameters so that a of a weight is near ``rows``."""

    def functions(self, s: tuple[float, ...], like: Tensor) -> Tensor:
        """phi_k at every s: (len(s), functions), in the dtype and on the device of ``like``."""
        return kept(_tabulated, self.basis, self.size, s, like.dtype, like.device)

    def slopes(self, s: Tensor, like: Tensor) -> Tensor:
        """dphi_k/ds at every s."""
        slope = BASES[self.basis][1]
        if slope is None:
            name = f"{type(self).__name__}({self.basis!r})"
            raise ValueError(f"{name} jumps and has no dtheta/dt to step; use its flow, as a CoupledODEBlock does")
        return slope(s, self.size).to(like)

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """dtheta/dt, t counted from the start; at a node of "linear" the slope behind it."""
        s = self._depth(t)
        return {name: self._sum(self.slopes(s, weight) / self.length, name, weight)[0] for name, weight in theta.items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        s = self._depths(times)
        return {name: weight + self._sum(self.functions(s, weight), name, weight) for name, weight in theta.items()}

    @torch.no_grad()
    def fit(self, path: Theta, times: Sequence[float]) -> Theta:
        """The least squares in theta_0 and a, the shortest of all where there are several."""
        start: Theta = {}
        for name, values in path.items():
            phi = self.functions(self._depths(times), values)
            design = torch.cat([torch.ones_like(phi[:, :1]), phi], 1)
            first, *rows = torch.linalg.lstsq(design, values.flatten(1), driver="gelsd").solution.unflatten(1, values.shape[1:])
            start[name] = first
            self.take(name, torch.stack(rows))
        return start

    def _sum(self, values: Tensor, name: str, weight: Tensor) -> Tensor:
        return (values @ self.rows(name, weight).flatten(1)).unflatten(1, weight.shape)

    def _depth(self, t: Tensor | float) -> Tensor:
        return (t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")).reshape(1) / self.length

    def _depths(self, times: Sequence[float]) -> tuple[float, ...]:
        for time in times:
            if not -ROUND_OFF <= time / self.length <= 1 + ROUND_OFF:
                raise ValueError(
                    f"length={self.length} of this {type(self).__name__} does not reach the time {time} after the start: give it the "
                    "length of the block's t=(t0, t1), length=t1 - t0"
                )
        return tuple(min(max(time / self.length, 0.0), 1.0) for time in times)

    def extra_repr(self) -> str:
        return f"basis={self.basis!r}, size={self.size}, length={self.length}"


def _tabulated(basis: str, size: int, s: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return BASES[basis][0](torch.tensor(s, dtype=torch.float64, device="cpu"), size).to(device, dtype)
