"""Functions of depth, 0 at its start: phi_k(s), 1 <= k < size, s in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ROUND_OFF = 1e-9  # in units of the length: times that differ by less are the same


def _counts(s: Tensor, stop: int) -> Tensor:
    return torch.arange(1, stop, dtype=s.dtype, device=s.device)


def _pieces(s: Tensor, size: int) -> Tensor:
    """1 where s lies in the pieces 1 ... size - 1 of equal length, else 0: shape (len(s), size - 1)."""
    piece = torch.floor(s * size + ROUND_OFF).clamp(max=size - 1)
    return (piece[:, None] == _counts(s, size)).to(s)


def _hats(s: Tensor, size: int) -> Tensor:
    """The hat functions at the nodes 1 ... size - 1 of size nodes from 0 to 1."""
    return (1 - (s[:, None] * (size - 1) - _counts(s, size)).abs()).clamp(min=0)


def _hat_slopes(s: Tensor, size: int) -> Tensor:
    piece = torch.floor(s[:, None] * (size - 1) + ROUND_OFF).clamp(max=size - 2)
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
BASES: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor] | None]] = {
    "constant": (_pieces, None),
    "linear": (_hats, _hat_slopes),
    "fourier": (_waves, _wave_slopes),
    "chebyshev": (_chebyshev, _chebyshev_slopes),
}


def knots(size: int, degree: int) -> list[float]:
    """Equally spaced from 0 to 1, the ends ``degree`` + 1 times: those of ``size`` B-splines."""
    pieces = size - degree
    return [0.0] * degree + [piece / pieces for piece in range(pieces + 1)] + [1.0] * degree


def b_splines(s: Tensor, size: int, degree: int) -> Tensor:
    """All B-splines of these knots, by the recursion of Cox and de Boor: (len(s), size). At s = 1 the last is 1."""
    at = knots(size, degree)
    piece = torch.floor(s * (size - degree) + ROUND_OFF).clamp(max=size - degree - 1) + degree
    values = [(piece == number).to(s) for number in range(len(at) - 1)]
    for order in range(1, degree + 1):
        rising = [_share(s - at[k], at[k + order] - at[k]) * value for k, value in enumerate(values)]
        falling = [_share(at[k + order] - s, at[k + order] - at[k]) * value for k, value in enumerate(values[1:], start=1)]
        values = [up + down for up, down in zip(rising, falling, strict=False)]
    return torch.stack(values, 1)


def b_spline_slopes(s: Tensor, size: int, degree: int) -> Tensor:
    """Their derivatives, differences of the splines of one degree less; at a knot those behind it."""
    at = knots(size, degree)
    lower = b_splines(s, size - 1, degree - 1)  # on the same knots without the first and the last
    gaps = [degree / (at[k + degree] - at[k]) for k in range(1, size)]
    scaled = [lower[:, k] * gap for k, gap in enumerate(gaps)]
    zero = torch.zeros_like(s)
    return torch.stack([before - after for before, after in zip([zero, *scaled], [*scaled, zero], strict=True)], 1)


def _share(part: Tensor, whole: float) -> Tensor:
    return part / whole if whole > 0 else torch.zeros_like(part)
