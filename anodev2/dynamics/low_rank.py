"""Weights to which depth adds matrices of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..stepping import as_count
from .dynamics import Theta, parameter_key, refuse_another
from .expansion import Expansion


class LowRank(Expansion):
    """theta(t) = theta_0 + sum_k phi_k(t / length) B_k C_k, a matrix of rank ``rank`` for each function phi_k of depth.

    A weight (out, in, *space) is a matrix (out, in * space) here. B is zero at first, C random: before training the weights stand still
    to the bit, as in LoRA. The default is one term that grows linearly, theta(t) = theta_0 + 2 (t / length) B C.

    Args:
        rank: of each term; at most the smaller side of the matrix acts.
        basis, size, length: the functions phi_k, as for ``Galerkin``.

    Parameters beside theta_0: (size - 1) * rank * (out + in * space) for each weight: ``left`` (size - 1, out, rank) and ``right``
    (size - 1, rank, in * space). Weights with two axes or more are accepted.

    Raises:
        ValueError: ``rank`` below 1; and as ``Galerkin``.

    Source: Hu et al., LoRA, ICLR 2022 (arXiv 2106.09685); over depth: Bae et al., Relaxed Recursive Transformers, ICLR 2025
    (arXiv 2410.20672).
    """

    def __init__(self, rank: int, *, basis: str = "chebyshev", size: int = 2, length: float = 1.0) -> None:
        super().__init__(basis, size, length)
        self.rank = as_count("rank", rank)
        self.left = nn.ParameterDict()
        self.right = nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.left)
        for name, weight in theta.items():
            out, inner = weight.shape[0], math.prod(weight.shape[1:])
            right = torch.empty(self.size - 1, self.rank, inner, dtype=weight.dtype, device=weight.device).normal_(std=inner**-0.5)
            self.left[parameter_key(name)] = nn.Parameter(weight.new_zeros(self.size - 1, out, self.rank))
            self.right[parameter_key(name)] = nn.Parameter(right)

    def rows(self, name: str, weight: Tensor) -> Tensor:
        key = parameter_key(name)
        return (self.left[key] @ self.right[key]).unflatten(2, weight.shape[1:])

    def take(self, name: str, rows: Tensor) -> None:
        """By the largest singular values of each, all in ``left``: where they are 0, its gradient is not."""
        key = parameter_key(name)
        u, s, v = torch.linalg.svd(rows.flatten(2), full_matrices=False)
        count = min(self.rank, s.shape[1])
        self.left[key].data.zero_()[..., :count] = u[..., :count] * s[:, None, :count]
        self.right[key].data[:, :count] = v[:, :count]

    def extra_repr(self) -> str:
        return f"rank={self.rank}, {super().extra_repr()}"
