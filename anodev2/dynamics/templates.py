"""Weights that are mixtures of a bank of templates, others at every depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..stepping import as_count
from .dynamics import Theta, parameter_key, refuse_another
from .expansion import Expansion


class Templates(Expansion):
    """theta(t) = theta_0 + sum_j alpha_j(t) T_j: a bank of templates T_j for each weight, and coefficients that move over depth.

    alpha_j(t) = sum_k phi_k(t / length) A_kj in a basis of depth: by default piecewise constant, free on each of ``size`` equal pieces
    but the first, which is theta_0. With a piece per step a stack of layers that share softly. A is zero at first, T random like theta_0:
    before training the weights stand still to the bit.

    Args:
        count: templates of each weight, beside theta_0.
        size: coefficients of each alpha_j, the 0 of the start among them: pieces, for the default basis.
        basis, length: as for ``Galerkin``.

    Parameters beside theta_0: count * (weights + size - 1) for each weight: ``bank`` (count, *weight.shape), ``mixture``
    (size - 1, count). Weights with two axes or more are accepted.

    Raises:
        ValueError: ``count`` below 1; and as ``Galerkin``.

    Source: Savarese & Maire, Learning Implicitly Recurrent CNNs Through Parameter Sharing, ICLR 2019 (arXiv 1902.09701).
    """

    def __init__(self, count: int, size: int, *, basis: str = "constant", length: float = 1.0) -> None:
        super().__init__(basis, size, length)
        self.count = as_count("count", count)
        self.bank = nn.ParameterDict()
        self.mixture = nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.bank)
        for name, weight in theta.items():
            spread = weight.detach().square().mean().sqrt()
            bank = torch.empty(self.count, *weight.shape, dtype=weight.dtype, device=weight.device).normal_() * spread
            self.bank[parameter_key(name)] = nn.Parameter(bank)
            self.mixture[parameter_key(name)] = nn.Parameter(weight.new_zeros(self.size - 1, self.count))

    def rows(self, name: str, weight: Tensor) -> Tensor:
        key = parameter_key(name)
        return (self.mixture[key] @ self.bank[key].flatten(1)).unflatten(1, weight.shape)

    def take(self, name: str, rows: Tensor) -> None:
        """By the largest singular values of all that depth adds, in ``mixture``; templates keep the size with which they were drawn."""
        key = parameter_key(name)
        u, s, v = torch.linalg.svd(rows.flatten(1), full_matrices=False)
        count, size = min(self.count, len(s)), self.bank[key].flatten(1).norm(dim=1).mean()
        self.mixture[key].data.zero_()[:, :count] = u[:, :count] * s[:count] / size
        self.bank[key].data[:count] = (size * v[:count]).unflatten(1, rows.shape[1:])

    def extra_repr(self) -> str:
        return f"count={self.count}, {super().extra_repr()}"
