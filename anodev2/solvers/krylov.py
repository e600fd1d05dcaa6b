"""Linear systems by products alone: GMRES."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
RESTART, CYCLES = 60, 20  # vectors kept, and how often it starts again


def gmres(product: Linear, b: Tensor, unit: Tensor, tolerance: float, precondition: Linear) -> Tensor:
    """x with |b - x + product(x)| <= tolerance |b|, all in ``unit``, or the best found: restarted, preconditioned from the right.

    Source: Saad, Schultz, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    operator, inside = lambda v: v - product(unit * v) / unit, lambda v: precondition(unit * v) / unit
    x, r = torch.zeros_like(b), b / unit
    target = tolerance * float(torch.linalg.vector_norm(r))
    for _ in range(CYCLES):
        correction, left = _cycle(operator, inside, r, target)
        x = x + correction
        if not target < left < math.inf:
            break
        r = b / unit - operator(x)
    return unit * x


def _cycle(operator: Linear, inside: Linear, r: Tensor, target: float) -> tuple[Tensor, float]:
    """The correction of least residual in the Krylov space of r, and that residual."""
    restart = min(RESTART, len(r))
    left = beta = float(torch.linalg.vector_norm(r))
    basis, hessenberg = [r / beta], r.new_zeros(restart + 1, restart)
    right = r.new_zeros(restart + 1, 1)
    right[0] = beta
    y = r.new_zeros(0, 1)
    for j in range(restart):
        v, stacked = operator(inside(basis[j])), torch.stack(basis)
        for _ in range(2):  # twice is enough to stay orthogonal
            overlap = stacked @ v
            hessenberg[: j + 1, j] += overlap
            v = v - overlap @ stacked
        length = torch.linalg.vector_norm(v)
        hessenberg[j + 1, j] = length
        q, upper = torch.linalg.qr(hessenberg[: j + 2, : j + 1])
        y = torch.linalg.solve_triangular(upper, q.mT @ right[: j + 2], upper=True)
        left = float(torch.linalg.vector_norm(hessenberg[: j + 2, : j + 1] @ y - right[: j + 2]))
        if left <= target or not float(length) > 1e-14 * beta:
            break
        basis.append(v / length)
    return inside(y[:, 0] @ torch.stack(basis[: len(y)])), left
