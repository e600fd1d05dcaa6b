"""Linear parts of several fields that feel each other: a small matrix per Fourier mode, or one of all points between walls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from anodev2 import LinearOperator

Pair = tuple[int, int]


class Blocks(LinearOperator):
    """Abstract: acts on states (..., components, n), or, ``packed``, on complex ones (..., n) of which these are the two parts.

    ``dense`` is what it is in its coordinates, where its eigenvalues are a matrix.
    """

    def __init__(
        self, matrix: Callable[[], Tensor], shape: tuple[int, int], near: Callable[[], LinearOperator] | None, packed: bool
    ) -> None:
        self.dense = LinearOperator.of(matrix)
        super().__init__(lambda: self.dense.eigenvalues, near)
        self.shape, self.packed = shape, packed

    def sample(self, u: Tensor) -> Tensor:
        return self.forward(u.new_empty(0, *u.shape[-1:]))

    def apply(self, table: Any, v: Tensor) -> Tensor:
        return self.dense.apply(table, v)

    def resolvent(self, scale: Any) -> Any:
        return self.dense.resolvent(scale)

    def phi(self, scale: Any, count: int) -> list[Tensor]:
        return self.dense.phi(scale, count)

    def preconditioner(self, scale: float, transposed: bool = False) -> Callable[[Tensor], Tensor]:
        if self.near is not None:
            return self.near().preconditioner(scale, transposed)
        act = self.dense.preconditioner(scale, transposed)
        return lambda u: self.inverse(act(self.forward(u)))

    def stacked(self, u: Tensor) -> Tensor:
        return torch.stack([u.real, u.imag], -2) if self.packed else u

    def like_state(self, u: Tensor) -> Tensor:
        return torch.complex(*u.unbind(-2)) if self.packed else u


class ModeBlocks(Blocks):
    """matrix: (..., n // 2 + 1, components, components), that of each real Fourier mode."""

    def forward(self, u: Tensor) -> Tensor:
        u = self.stacked(u)
        return torch.fft.rfft(u).mT if u.numel() else torch.complex(u, u)[..., : self.shape[1] // 2 + 1].mT

    def inverse(self, v: Tensor) -> Tensor:
        return self.like_state(torch.fft.irfft(v.mT, n=self.shape[1]) if v.numel() else v.real.mT.new_empty(*v.shape[:-2], *self.shape))


class PointBlocks(Blocks):
    """matrix: (..., components n, components n), on the fields one after the other."""

    def forward(self, u: Tensor) -> Tensor:
        u = self.stacked(u)
        return u.flatten(-2) if u.numel() else u

    def inverse(self, v: Tensor) -> Tensor:
        return self.like_state(v.unflatten(-1, self.shape))


def matrix_of(values: Mapping[Pair, Tensor], count: int, per_mode: bool) -> Tensor:
    """One matrix of what couples each pair (to, from): symbols (..., modes) or matrices (..., n, n); 0 where nothing does."""
    known = dict(zip(values, torch.broadcast_tensors(*values.values()), strict=True))
    zero = torch.zeros_like(next(iter(known.values())))
    rows = [[known.get((i, j), zero) for j in range(count)] for i in range(count)]
    if per_mode:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)
    return torch.cat([torch.cat(row, -1) for row in rows], -2)


def along_fields(values: Mapping[Pair, Tensor], count: int, per_mode: bool) -> Tensor:
    """The same where no field feels another: what is on the diagonal, (..., components, modes) or (..., components, n, n)."""
    known = dict(zip(values, torch.broadcast_tensors(*values.values()), strict=True))
    zero = torch.zeros_like(next(iter(known.values())))
    return torch.stack([known.get((i, i), zero) for i in range(count)], -2 if per_mode else -3)
