"""Weights expanded over depth in given functions of t."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..stepping import as_count
from ..tables import kept
from .dynamics import Dynamics, Theta, parameter_key

_ROUND_OFF = 1e-9  # in units of the length: times that differ by less are the same


class Galerkin(Dynamics):
    """Weights expanded in a basis of depth, theta(t) = theta_0 + sum_k a_k phi_k(t / length), the a_k trained and zero at first.

    Every phi_k is zero at the start: theta(0) = theta_0 always, and before training the block is the ODE with standing weights, both
    to the bit. With s = t / length in [0, 1], theta_0 and the ``size`` - 1 functions phi_k span together, per element of a weight:

    - "constant": all functions constant on each of ``size`` equal pieces; at a jump the later piece holds, at s = 1 the last;
    - "linear": all continuous functions linear between ``size`` equally spaced nodes from 0 to 1; the phi_k are hats;
    - "fourier": trigonometric polynomials of period ``length`` and degree (size - 1) / 2; the phi_k are cos(2 pi k s) - 1, sin(2 pi k s);
    - "chebyshev": polynomials of degree ``size`` - 1; the phi_k are T_k(2 s - 1) - T_k(-1).

    Weights with two axes or more, kernels and matrices, are accepted; biases and the weights of norms stay constant. The block uses the
    flow, one product per weight; the derivative serves a ``CoupledSystem`` solved from t = 0, except for "constant", which has none.

    Args:
        basis: "constant", "linear", "fourier" or "chebyshev".
        size: number of coefficients of each element of a weight, theta_0 among them: at least 2, and odd for "fourier".
        length: end minus start of the block's t (negative where its t falls).

    ``coefficients`` holds a for each weight, of shape (size - 1, *weight.shape); k as in the list, cosines before sines.

    Raises:
        ValueError: an unknown ``basis``, a ``size`` too small or even, a ``length`` that is zero or not finite; times beyond ``length``.

    Source: Massaroli et al., Dissecting Neural ODEs, NeurIPS 2020 (arXiv 2002.08071); bases of piecewise constants and hats: Queiruga
    et al., Stateful ODE-Nets using Basis Function Expansions, NeurIPS 2021 (arXiv 2106.10820).
    """

    def __init__(self, basis: str, size: int, *, length: float = 1.0) -> None:
        super().__init__()
        if basis not in _BASES:
            raise ValueError(f"basis={basis!r} must be one of {', '.join(map(repr, _BASES))}")
        if as_count("size", size) < 2:
            raise ValueError(f"size={size} leaves theta_0 alone; give at least 2, or use Static()")
        if basis == "fourier" and size % 2 == 0:
            raise ValueError(f"size={size} must be odd for 'fourier', 1 + 2 * degree; give {size + 1}")
        if not math.isfinite(length) or length == 0:
            raise ValueError(f"length={length} must be finite and not zero: end minus start of the block's t")
        self.basis = basis
        self.size = int(size)
        self.length = float(length)
        self.coefficients = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Kernels and matrices: weights with two axes or more."""
        return weight.is_floating_point() and weight.ndim >= 2

    def bind(self, theta: Theta) -> None:
        if len(self.coefficients):
            raise ValueError("this Galerkin already evolves another block's weights; give each block a copy.deepcopy of it")
        for name, weight in theta.items():
            self.coefficients[parameter_key(name)] = nn.Parameter(weight.new_zeros(self.size - 1, *weight.shape))

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """dtheta/dt, t counted from the start; at a node of "linear" the slope behind it."""
        slope = _BASES[self.basis][1]
        if slope is None:
            raise ValueError(f"Galerkin({self.basis!r}) jumps and has no dtheta/dt to step; use its flow, as a CoupledODEBlock does")
        s = (t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")).reshape(1) / self.length
        values = slope(s, self.size) / self.length
        return {name: part[0] for name, part in self._sums(values.to, theta).items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        for time in times:
            if not -_ROUND_OFF <= time / self.length <= 1 + _ROUND_OFF:
                raise ValueError(
                    f"length={self.length} of this Galerkin does not reach the time {time} after the start: give it the length of the "
                    "block's t=(t0, t1), length=t1 - t0"
                )
        s = tuple(min(max(time / self.length, 0.0), 1.0) for time in times)
        sums = self._sums(lambda like: kept(_basis, self.basis, self.size, s, like.dtype, like.device), theta)
        return {name: weight + sums[name] for name, weight in theta.items()}

    def _sums(self, values: Callable[[Tensor], Tensor], theta: Theta) -> Theta:
        """sum_k values[i, k] a_k for every weight, i in front; ``values`` like a given weight."""
        found: Theta = {}
        for name, weight in theta.items():
            a = self.coefficients[parameter_key(name)]
            found[name] = (values(weight) @ a.flatten(1)).unflatten(1, weight.shape)
        return found

    def extra_repr(self) -> str:
        return f"{self.basis!r}, size={self.size}, length={self.length}"


def _counts(s: Tensor, stop: int) -> Tensor:
    return torch.arange(1, stop, dtype=s.dtype, device=s.device)


def _pieces(s: Tensor, size: int) -> Tensor:
    """1 where s lies in the pieces 1 ... size - 1 of equal length, else 0: shape (len(s), size - 1)."""
    piece = torch.floor(s * size + _ROUND_OFF).clamp(max=size - 1)
    return (piece[:, None] == _counts(s, size)).to(s)


def _hats(s: Tensor, size: int) -> Tensor:
    """The hat functions at the nodes 1 ... size - 1 of size nodes from 0 to 1."""
    return (1 - (s[:, None] * (size - 1) - _counts(s, size)).abs()).clamp(min=0)


def _hat_slopes(s: Tensor, size: int) -> Tensor:
    piece = torch.floor(s[:, None] * (size - 1) + _ROUND_OFF).clamp(max=size - 2)
    nodes = _counts(s, size)
    return (size - 1) * ((piece + 1 == nodes).to(s) - (piece == nodes).to(s))


def _waves(s: Tensor, size: int) -> Tensor:
    angle = 2 * math.pi * s[:, None] * _counts(s, (size + 1) // 2)
    return torch.cat([torch.cos(angle) - 1, torch.sin(angle)], 1)


def _wave_slopes(s: Tensor, size: int) -> Tensor:
    k = 2 * math.pi * _counts(s, (size + 1) // 2)
    return torch.cat([-k * torch.sin(k * s[:, None]), k * torch.cos(k * s[:, None])], 1)


def _chebyshev(s: Tensor, size: int) -> Tensor:
    """T_k(x) - T_k(-1), x = 2 s - 1, k = 1 ... size - 1, by T_{k+1} = 2 x T_k - T_{k-1}."""
    x = 2 * s - 1
    values = [torch.ones_like(x), x]
    while len(values) < size:
        values.append(2 * x * values[-1] - values[-2])
    return torch.stack([value - (-1) ** k for k, value in enumerate(values)][1:], 1)


def _chebyshev_slopes(s: Tensor, size: int) -> Tensor:
    """d/ds T_k(2 s - 1) = 2 k U_{k-1}(2 s - 1), by U_{k+1} = 2 x U_k - U_{k-1}."""
    x = 2 * s - 1
    values = [torch.ones_like(x), 2 * x]
    while len(values) < size - 1:
        values.append(2 * x * values[-1] - values[-2])
    return torch.stack([2 * k * value for k, value in enumerate(values[: size - 1], start=1)], 1)


# (phi, dphi/ds) at every s and 1 <= k < size, phi_k(0) = 0
_BASES: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor] | None]] = {
    "constant": (_pieces, None),
    "linear": (_hats, _hat_slopes),
    "fourier": (_waves, _wave_slopes),
    "chebyshev": (_chebyshev, _chebyshev_slopes),
}


def _basis(basis: str, size: int, s: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """phi_k at every s: (len(s), size - 1)."""
    return _BASES[basis][0](torch.tensor(s, dtype=torch.float64, device="cpu"), size).to(device, dtype)
