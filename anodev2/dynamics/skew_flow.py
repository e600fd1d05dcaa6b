"""Weights that turn: what is orthogonal stays so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tables import kept
from .dynamics import Dynamics, Theta, parameter_key, refuse_another


class SkewFlow(Dynamics):
    """dW/dt = A W, A skew-symmetric, W = (out, in * space) of a weight (out, in, *space): its output channels turn among themselves.

    In closed form W(t) = exp(t A) W(0). exp(t A) is orthogonal, so singular values and W^T W stand still up to round-off, and columns that
    are orthonormal stay so. A is trained and zero at first, when the weights stand still to the bit.

    Parameters beside theta_0: out * (out - 1) / 2 for each weight, ``angles``: A below its diagonal, by rows, in radians per unit of t.
    Weights with two axes or more, the first longer than 1, are accepted. On a GPU the exponential waits for the device.

    Source: Choromanski et al., An Ode to an ODE, NeurIPS 2020 (arXiv 2006.11421).
    """

    def __init__(self) -> None:
        super().__init__()
        self.angles = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Kernels and matrices with two rows or more."""
        return weight.is_floating_point() and weight.ndim >= 2 and weight.shape[0] > 1

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.angles)
        for name, weight in theta.items():
            out = weight.shape[0]
            self.angles[parameter_key(name)] = nn.Parameter(weight.new_zeros(out * (out - 1) // 2))

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        return {name: (self.generator(name, w).to(w) @ w.flatten(1)).view_as(w) for name, w in theta.items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        path: Theta = {}
        for name, weight in theta.items():
            generator = self.generator(name, weight)
            elapsed = kept(_times, tuple(times), generator.dtype, generator.device)
            turned = torch.linalg.matrix_exp(elapsed * generator).to(weight.dtype)
            path[name] = (turned @ weight.flatten(1)).unflatten(2, weight.shape[1:])
        return path

    @torch.no_grad()
    def fit(self, path: Theta, times: Sequence[float]) -> Theta | None:
        """The rotation nearest to all steps of the path that are as long as most are, and the mean of all weights turned back."""
        steps = torch.tensor(times, dtype=torch.float64, device="cpu").diff()
        step = steps.median()
        alike = ((steps - step).abs() < 1e-6 * step.abs()).nonzero()[:, 0].tolist()
        for name, values in path.items():
            flat, out = values.flatten(2), values.shape[1]
            u, _, v = torch.linalg.svd((flat[1:][alike] @ flat[:-1][alike].mT).sum(0))
            u[:, -1] *= torch.linalg.det(u @ v).sign()
            generator = _logarithm(u @ v) / float(step)
            self.angles[parameter_key(name)].data.copy_(generator.flatten()[_below(out, generator.device)])
        return {name: self._turned_back(name, values, times) for name, values in path.items()}

    def _turned_back(self, name: str, values: Tensor, times: Sequence[float]) -> Tensor:
        generator = self.generator(name, values[0])
        turns = torch.linalg.matrix_exp(-_times(tuple(times), generator.dtype, generator.device) * generator).to(values.dtype)
        return (turns @ values.flatten(2)).mean(0).view(values.shape[1:])

    def generator(self, name: str, weight: Tensor) -> Tensor:
        """A of a weight (out, out), in single precision at least."""
        out, angles = weight.shape[0], self.angles[parameter_key(name)]
        angles = angles.to(torch.promote_types(angles.dtype, torch.float32))
        below = angles.new_zeros(out * out).scatter(0, kept(_below, out, angles.device), angles).view(out, out)
        return below - below.mT


def _below(size: int, device: torch.device) -> Tensor:
    """The places below the diagonal of a matrix, in a row."""
    rows, columns = torch.tril_indices(size, size, -1, device="cpu")
    return (rows * size + columns).to(device)


def _times(times: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(times, dtype=torch.float64, device="cpu")[:, None, None].to(device, dtype)


def _logarithm(rotation: Tensor) -> Tensor:
    """The skew A with exp(A) a rotation. Its symmetric part and i times its skew part commute and have cosines and sines of the angles."""
    even, odd = (rotation + rotation.mT) / 2, (rotation - rotation.mT) / 2
    vectors = torch.linalg.eigh(even + 0.7 * 1j * odd)[1]
    cosines = (vectors.conj() * (even.to(vectors) @ vectors)).sum(0).real
    sines = (vectors.conj() * (1j * odd @ vectors)).sum(0).real
    angles = torch.atan2(sines, cosines)
    return ((vectors * (-1j * angles)) @ vectors.mH).real
