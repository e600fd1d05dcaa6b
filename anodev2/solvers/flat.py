"""A state as one vector, for linear algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from .method import Leaves


class Flat:
    """Leaves as one real vector, and back."""

    def __init__(self, leaves: Leaves) -> None:
        self.leaves = [leaf.detach() for leaf in leaves]
        self.sizes = [leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in leaves]
        self.dtype = torch.float32
        for leaf in leaves:
            self.dtype = torch.promote_types(self.dtype, leaf.real.dtype)
        self.alone = len(leaves) == 1 and leaves[0].dtype == self.dtype  # nothing to convert

    @property
    def eps(self) -> Tensor:
        """The unit of round-off of each element."""
        return self.join(
            [torch.full_like(leaf, torch.finfo(leaf.dtype).eps * (1 + 1j if leaf.is_complex() else 1)) for leaf in self.leaves]
        )

    def entries(self, vector: Tensor) -> Tensor:
        """The largest of each entry of a leaf along its first axis, of the leaf if it has no other, at all of its places."""
        pairs = zip(vector.split(self.sizes), self.leaves, strict=True)
        rows = [part.reshape(len(leaf) if leaf.ndim > 1 else 1, -1) for part, leaf in pairs if len(part)]
        return torch.cat([row.amax(1, keepdim=True).expand_as(row).reshape(-1) for row in rows])

    def join(self, leaves: Leaves) -> Tensor:
        if self.alone:
            return leaves[0].to(self.dtype).reshape(-1)
        real = [torch.stack([leaf.real, leaf.imag], -1) if leaf.is_complex() else leaf for leaf in leaves]
        return torch.cat([leaf.reshape(-1).to(self.dtype) for leaf in real])

    def split(self, vector: Tensor) -> list[Tensor]:
        if self.alone:
            return [vector.reshape(self.leaves[0].shape)]
        return [_shaped(part, leaf) for part, leaf in zip(vector.split(self.sizes), self.leaves, strict=True)]


def _shaped(part: Tensor, leaf: Tensor) -> Tensor:
    if leaf.is_complex():
        return torch.complex(*part.reshape(*leaf.shape, 2).unbind(-1)).to(leaf.dtype)  # not a view, which may not begin at an odd place
    return part.reshape(leaf.shape).to(leaf.dtype)
