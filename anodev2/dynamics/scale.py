"""Weights whose output channels grow and shrink over depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .dynamics import Theta, parameter_key, refuse_another
from .expansion import Expansion


class Scale(Expansion):
    """theta(t) = exp(g(t)) theta_0, a gain for each output channel alone: the smallest thing that can differ from step to step.

    g(t) = sum_k a_k phi_k(t / length) in a basis of depth, by default free on each of ``size`` equal pieces but the first; the a_k are
    trained and zero at first, when the weights stand still to the bit. A norm right behind a layer takes its gain away.

    Args:
        size: coefficients of each channel, the gain 1 of the start among them: pieces, for the default basis.
        basis, length: as for ``Galerkin``.

    Parameters beside theta_0: (size - 1) * out for each weight, ``logarithms`` (size - 1, out). Weights with two axes or more are accepted.

    Raises:
        ValueError: as ``Galerkin``.

    Source: gains are what a norm per step adds to shared weights, as in TA-BN (Zheng et al., NeurIPS 2024).
    """

    def __init__(self, size: int, *, basis: str = "constant", length: float = 1.0) -> None:
        super().__init__(basis, size, length)
        self.logarithms = nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.logarithms)
        for name, weight in theta.items():
            self.logarithms[parameter_key(name)] = nn.Parameter(weight.new_zeros(self.size - 1, weight.shape[0]))

    def rows(self, name: str, weight: Tensor) -> Tensor:
        """a of the logarithms, in the shape of gains: (size - 1, out, 1, ...)."""
        return self.logarithms[parameter_key(name)].reshape(-1, weight.shape[0], *[1] * (weight.ndim - 1))

    def take(self, name: str, rows: Tensor) -> None:
        self.logarithms[parameter_key(name)].data.copy_(rows.flatten(1))

    @torch.no_grad()
    def fit(self, path: Theta, times: Sequence[float]) -> Theta:
        """The gains that bring the first weights nearest to each of the path, as far as these are positive."""
        for name, values in path.items():
            first, flat = values[0].flatten(1), values.flatten(2)
            gains = (flat * first).sum(2) / first.square().sum(1).clamp(min=1e-30)
            phi = self.functions(self._depths(times), values)
            self.take(name, torch.linalg.lstsq(phi, gains.clamp(min=1e-3).log(), driver="gelsd").solution)
        return {name: values[0] for name, values in path.items()}

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """dtheta/dt = dg/dt theta."""
        s = self._depth(t)
        return {name: self._gains(self.slopes(s, w) / self.length, name, w)[0] * w for name, w in theta.items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        s = self._depths(times)
        return {name: torch.exp(self._gains(self.functions(s, w), name, w)) * w for name, w in theta.items()}

    def _gains(self, values: Tensor, name: str, weight: Tensor) -> Tensor:
        return torch.tensordot(values, self.rows(name, weight), 1)
