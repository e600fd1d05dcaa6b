"""The matrix of what is affine in a field, from its values on the unit fields."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .conditions import without_field_data
from .grid import Grid1D


def dense(act: Callable[[Tensor], Tensor], grid: Grid1D, like: Tensor, lead: tuple[int, ...]) -> Tensor:
    """act(u) - act(0) as a matrix, (*lead, n, n), with the dtype and device of ``like``.

    ``lead`` are the axes of coefficients (..., 1) and of Robin's a and b. Data that differ between fields, also those that a function
    returns, add to act(0) alone: the matrix has none of their axes.
    """
    zero = torch.zeros(grid.n, dtype=like.dtype, device=like.device)
    with without_field_data(grid.boundary):
        pushed = act(zero)
        front = (1,) * max(pushed.ndim - 1, len(lead))
        columns = act(torch.eye(grid.n, dtype=like.dtype, device=like.device).reshape(grid.n, *front, grid.n)) - pushed
    more = len(front) - len(lead)
    for axis, size in enumerate((*front[:more], *lead), 1):
        columns = columns.narrow(axis, 0, 1) if size == 1 else columns
    return columns.squeeze(tuple(range(1, more + 1))).expand(grid.n, *lead, grid.n).movedim(0, -1)
