"""Solutions of linear equations with constant coefficients: through Fourier modes, matrix exponentials, sine and cosine series."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .boundary import Dirichlet, Neumann
from .grid import Grid1D
from .numbers import constant


def elapsed(t: float | Tensor | Sequence[float], symbol: Tensor, u: Tensor) -> Tensor:
    """symbol t in double precision, with the axes of t in front of those that the symbol (..., modes) and the field (..., n) share.

    In single precision the phase k t of a long time would have no digit left.
    """
    if not isinstance(t, Tensor):
        times = constant((tuple(t) if isinstance(t, Sequence) else (t,),), u.new_empty(0, dtype=torch.float64))[0]
        t = times if isinstance(t, Sequence) else times[0]
    t = t.to(u.device, torch.float64)
    return t.reshape(*t.shape, *(1,) * max(symbol.ndim, u.ndim)) * symbol


def fourier_flow(symbol: Tensor, u: Tensor, times: Sequence[float]) -> Tensor:
    """u + F^-1 [(exp(symbol t) - 1) F u]: u to the bit at t = 0."""
    spectrum = torch.fft.rfft(u)
    return u + torch.fft.irfft(torch.expm1(elapsed(times, symbol, u)).to(spectrum.dtype) * spectrum, n=u.shape[-1])


def dense_flow(matrix: Tensor, pushed: Tensor, u: Tensor, times: Sequence[float]) -> Tensor:
    """The solution of du/dt = matrix u + pushed at ``times``: the exponential of [[matrix, pushed], [0, 0]]."""
    n = u.shape[-1]
    lead = torch.broadcast_shapes(matrix.shape[:-2], pushed.shape[:-1])
    top = torch.cat([matrix.expand(*lead, n, n), pushed.expand(*lead, n)[..., None]], -1)
    whole = torch.cat([top, torch.zeros_like(top[..., :1, :])], -2)
    t = torch.as_tensor(times, dtype=u.dtype, device=u.device)
    exponential = torch.linalg.matrix_exp(t.reshape(-1, *(1,) * whole.ndim) * whole)
    fields = torch.einsum("t...ij,...j->t...i", exponential[..., :n, :n], u)
    shift = exponential[..., :n, n]
    return fields + shift.reshape(len(t), *(1,) * (fields.ndim - shift.ndim), *shift.shape[1:])


def line_between(grid: Grid1D, u: Tensor) -> Tensor | None:
    """The straight line that has the steady boundary data, where it exists; None where these are 0.

    Raises:
        ValueError: data that change in time, are missing at an end, or are two different slopes.
    """
    boundary = grid.boundary
    if not isinstance(boundary, Dirichlet | Neumann):
        raise ValueError(f"the exact solution is known between two values or two slopes, not between {boundary}; compare with small steps")
    left, right = boundary.data()
    if left is None or right is None or not boundary.steady():
        raise ValueError(f"the exact solution needs steady data at both ends, got {boundary}; give numbers, or compare with small steps")
    a, b = (torch.as_tensor(datum, dtype=u.dtype, device=u.device) for datum in (left, right))
    if not (a.any() or b.any()):
        return None
    x = grid.points(u) - grid.start
    if isinstance(boundary, Dirichlet):
        return a + (b - a) * x / grid.length
    if not torch.equal(a, b):
        raise ValueError(f"no steady line has the slopes of {boundary}; give the same slope at both ends")
    return a * x


def wall_series(grid: Grid1D, u: Tensor) -> tuple[Tensor, Tensor]:
    """(basis, k): the orthonormal sines (zero wall values) or cosines (zero slopes) at the cell centres, one per row; k is float64."""
    sines = isinstance(grid.boundary, Dirichlet)
    m = torch.arange(grid.n, dtype=torch.float64, device=u.device) + (1 if sines else 0)
    k = math.pi * m / grid.length
    angles = k[:, None] * (grid.points(k) - grid.start)
    basis = torch.sin(angles) if sines else torch.cos(angles)
    return (basis / basis.norm(dim=-1, keepdim=True)).to(u.dtype), k
