"""Weights made by a small network of t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..stepping import as_count
from ..tables import kept
from .dynamics import Theta, parameter_key, refuse_another
from .expansion import Expansion


class Hyper(Expansion):
    """theta(t) = theta_0 + sum_j (h_j(s) - h_j(0)) T_j, s = t / length: a small network h of depth makes all weights of the block.

    h(s) = tanh(W e(s) + b) has ``width`` outputs, shared by all weights, e(s) = (cos pi k s, sin pi k s), k = 1 ... frequencies; each
    weight has its own linear layer T on them. T is zero at first: before training the weights stand still to the bit.

    Args:
        width: outputs of the small network.
        frequencies: of its Fourier features.
        length: end minus start of the block's t (negative where its t falls).

    Parameters beside theta_0: width * weights (``coefficients``), and width * (2 * frequencies + 1) for all (``inner``, ``bias``).
    Weights with two axes or more are accepted.

    Raises:
        ValueError: ``width`` or ``frequencies`` below 1, a ``length`` that is zero or not finite; times beyond ``length``.

    Source: Ha, Dai & Le, HyperNetworks, ICLR 2017 (arXiv 1609.09106); of continuous depth: Tong et al., Neural ODE Transformers,
    ICLR 2025 (arXiv 2503.01329).
    """

    inner: nn.Parameter
    bias: nn.Parameter

    def __init__(self, width: int, *, frequencies: int = 4, length: float = 1.0) -> None:
        super().__init__("linear", 1 + as_count("width", width), length)
        self.width = int(width)
        self.frequencies = as_count("frequencies", frequencies)
        self.coefficients = nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.coefficients)
        like = next(iter(theta.values()))
        self.inner = nn.Parameter(torch.empty(self.width, 2 * self.frequencies, dtype=like.dtype, device=like.device).normal_())
        self.bias = nn.Parameter(torch.empty(self.width, dtype=like.dtype, device=like.device).normal_())
        for name, weight in theta.items():
            self.coefficients[parameter_key(name)] = nn.Parameter(weight.new_zeros(self.width, *weight.shape))

    def rows(self, name: str, weight: Tensor) -> Tensor:
        return self.coefficients[parameter_key(name)]

    def take(self, name: str, rows: Tensor) -> None:
        self.coefficients[parameter_key(name)].data.copy_(rows)

    def functions(self, s: tuple[float, ...], like: Tensor) -> Tensor:
        waves = kept(_waves, (0.0, *s), self.frequencies, self.inner.dtype, self.inner.device)
        values = torch.tanh(waves @ self.inner.mT + self.bias)
        return (values[1:] - values[0]).to(like)

    def slopes(self, s: Tensor, like: Tensor) -> Tensor:
        features, slopes = (table.to(self.inner) for table in _features(s, self.frequencies))
        return ((1 - torch.tanh(features @ self.inner.mT + self.bias) ** 2) * (slopes @ self.inner.mT)).to(like)

    def fit(self, path: Theta, times: Sequence[float]) -> Theta:
        """The small network by L-BFGS, the best of four starts; the linear layers behind it always by least squares."""
        weights = torch.cat([values.flatten(1) for values in path.values()], 1)
        weights = weights / weights.norm()
        found = []
        for _ in range(4 if len(times) > self.width + 1 else 0):  # else nothing is left in any case
            optimizer = torch.optim.LBFGS(
                [self.inner, self.bias], max_iter=500, tolerance_grad=0, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
            )
            optimizer.step(partial(self._rest, weights, times))
            found.append((float(self._rest(weights, times)), self.inner.detach().clone(), self.bias.detach().clone()))
            self.inner.data.normal_()
            self.bias.data.normal_()
        if found:
            _, self.inner.data, self.bias.data = min(found, key=lambda one: one[0])
        return super().fit(path, times)

    @torch.enable_grad()
    def _rest(self, weights: Tensor, times: Sequence[float]) -> float:
        """What the best linear layers leave of the weights, squared; with its gradient in the network's parameters."""
        self.inner.grad = self.bias.grad = None
        phi = self.functions(self._depths(times), weights)
        basis = torch.linalg.qr(torch.cat([torch.ones_like(phi[:, :1]), phi], 1))[0]
        loss = (weights - basis @ (basis.mT @ weights)).square().sum()
        loss.backward()
        return float(loss.detach())

    def extra_repr(self) -> str:
        return f"width={self.width}, frequencies={self.frequencies}, length={self.length}"


def _waves(s: tuple[float, ...], frequencies: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _features(torch.tensor(s, dtype=torch.float64, device="cpu"), frequencies)[0].to(device, dtype)


def _features(s: Tensor, frequencies: int) -> tuple[Tensor, Tensor]:
    """e(s) and de/ds: (len(s), 2 * frequencies)."""
    k = math.pi * torch.arange(1, frequencies + 1, dtype=s.dtype, device=s.device)
    angle = s[:, None] * k
    return torch.cat([angle.cos(), angle.sin()], 1), torch.cat([-k * angle.sin(), k * angle.cos()], 1)
