"""Kernels that move by a linear law of their Fourier modes, periodic in space: all of one shape, and all times, in a few products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tables import kept

LARGE = 64  # places of a kernel whose circulant matrices are not made by a product: the table for it has twice their cube


def moving(space: Sequence[int]) -> list[int]:
    """The axes along which a kernel can be carried: those with a mode between the mean and Nyquist."""
    return [axis for axis, size in enumerate(space) if size > 2]


def alike(theta: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Weights in groups that can be moved together: of one shape, dtype and device."""
    groups: dict[Any, dict[str, Tensor]] = {}
    for name, weight in theta.items():
        groups.setdefault((weight.shape, weight.dtype, weight.device), {})[name] = weight
    return list(groups.values())


def stacked(weights: dict[str, Tensor]) -> Tensor:
    """Kernels of one shape stacked in front, laid out in memory like the first of them."""
    first = next(iter(weights.values()))
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    together = torch.stack([weight.permute(order) for weight in weights.values()])
    return together.permute(0, *(1 + order.index(axis) for axis in range(first.ndim)))


def growth(space: tuple[int, ...], times: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What reaction, advection and diffusion do to the modes exp(i k . x) of a kernel until ``times``, per unit of each: a table of
    rows 1, i k and -|k|^2 times t, of ``(times, modes, 2)`` flat. Rows without effect are left out: those of axes that carry nothing,
    and -|k|^2 of a single place."""
    whole, sizes = _places(space)
    k = 2 * math.pi * torch.where(2 * whole < sizes, whole, whole - sizes).double() / sizes  # -pi is that of Nyquist, which stands still
    slopes = torch.where(2 * whole == sizes, 0.0, k).mT[moving(space)]
    real = torch.cat([torch.ones_like(k[:, 0])[None], torch.zeros_like(slopes), -(k**2).sum(-1)[None][: len(whole) > 1]])
    imaginary = torch.zeros_like(real)
    imaginary[1 : 1 + len(slopes)] = slopes
    elapsed = torch.tensor(times, dtype=torch.float64, device="cpu")[:, None, None]
    return (elapsed * torch.stack([real, imaginary], -1)[:, None]).flatten(1).to(device, dtype)


def expm1(symbols: Tensor) -> Tensor:
    """exp - 1 of complex numbers (..., 2), exactly 0 where they are."""
    if not torch.compiler.is_compiling():
        return torch.view_as_real(torch.expm1(torch.view_as_complex(symbols)))
    grown, turned = symbols.unbind(-1)  # compilers know no complex numbers
    real = torch.expm1(grown) * torch.cos(turned) - 2 * torch.sin(turned / 2) ** 2
    return torch.stack([real, torch.exp(grown) * torch.sin(turned)], -1)


def convolved(symbols: Tensor, weights: Tensor) -> Tensor:
    """F^-1 [symbol F weight] over the spatial axes, as a product with a small real circulant matrix per symbol.

    ``symbols``: (rows, times, modes, 2), even and odd in k; ``weights``: (kernels, out, in, *space), a row for each kernel, or for each
    output channel of each; result: (times, *weights.shape).
    """
    kernels, _, inner, *space = weights.shape
    rows, times, places = *symbols.shape[:2], math.prod(space)
    if places == 1:  # the mean alone
        factors = symbols.reshape(kernels, -1, times, 2)[..., 0].movedim(2, 0).to(weights.dtype)
        return factors.reshape(*factors.shape, *(1,) * (weights.ndim - 2)) * weights
    where = (tuple(space), symbols.dtype, weights.device)
    if places <= LARGE:
        matrices = symbols.flatten(2) @ kept(_circulants, *where)
    else:
        matrices = (symbols.flatten(2) @ kept(_waves, *where))[..., kept(_differences, *where)]
    fields = weights.reshape(rows, -1, places)
    moved = matrices.reshape(rows, times * places, places).to(weights.dtype) @ fields.mT  # all times at once: few long rows
    return moved.reshape(kernels, rows // kernels, times, places, -1, inner).permute(2, 0, 1, 4, 5, 3).reshape(times, *weights.shape)


def growing(modes: Tensor, times: Sequence[float], table: Tensor) -> Tensor:
    """Coefficients c, (rows, columns), with which ``modes`` grow by exp(t c table): exact where they do.

    Sizes grow by the real part of the table, phases by the imaginary, at most half a turn from time to time: least squares in logarithms,
    weighted by the size of what grows. ``modes``: (times, rows, kernels, modes), complex; ``table``: (columns, modes, 2).
    """
    step = torch.tensor(times, dtype=table.dtype, device=table.device).diff()[:, None, None]
    power = modes.abs().square().sum(2).clamp(min=torch.finfo(table.dtype).tiny)
    common = (modes[:-1].conj() * modes[1:]).sum(2)
    weights = (power[1:] * power[:-1]).sqrt(), common.abs()
    logarithms = (power[1:] / power[:-1]).log() / 2, common.angle()
    normal, right = table.new_zeros(()), table.new_zeros(())
    for weight, grown, part in zip(weights, logarithms, table.unbind(-1), strict=True):
        normal = normal + ((weight * step**2).sum(0)[:, None] * part) @ part.mT
        right = right + (weight * step * grown).sum(0) @ part.mT
    return (torch.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0]


def began(modes: Tensor, times: Sequence[float], symbols: Tensor) -> Tensor:
    """The start, (rows, kernels, modes), whose growth by exp(t symbol) passes nearest to ``modes``; ``symbols``: (rows, modes, 2)."""
    t = torch.tensor(times, dtype=symbols.dtype, device=symbols.device)[:, None, None, None]
    grown = torch.view_as_complex(t * symbols).exp()[:, :, None]
    return (grown.conj() * modes).sum(0) / grown.abs().square().sum(0)


def _places(space: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The places of a kernel in rows, which are the numbers of its modes too, and the sizes of its axes."""
    whole = torch.cartesian_prod(*(torch.arange(size, device="cpu") for size in space)).reshape(-1, len(space))
    return whole, torch.tensor(space, device="cpu")


def _waves(space: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The real part of z exp(i k . x) over the number of modes, for z = 1 and i: (2 modes, places)."""
    whole, sizes = _places(space)
    phase = 2 * math.pi * (whole[:, None] * whole / sizes.double()).sum(-1)
    return (torch.stack([torch.cos(phase), -torch.sin(phase)], 1) / len(whole)).flatten(0, 1).to(device, dtype)


def _differences(space: tuple[int, ...], _: torch.dtype, device: torch.device) -> Tensor:
    """The number of the place x - x' for all places x, x', flat."""
    whole, sizes = _places(space)
    steps = torch.tensor([math.prod(space[axis + 1 :]) for axis in range(len(space))], device="cpu")
    return ((whole[:, None] - whole) % sizes * steps).sum(-1).flatten().to(device)


def _circulants(space: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``_waves`` of all differences of places: (2 modes, places * places), circulant matrices."""
    return _waves(space, dtype, device)[:, _differences(space, dtype, device)]
