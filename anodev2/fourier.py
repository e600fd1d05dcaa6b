"""Real Fourier modes of the last axis: complex numbers, and while a compiler follows, pairs of real ones (..., 2).

torch's inductor has no code for complex numbers and would call one operation after the other; what is done to pairs it fuses. Sums, and
multiples by numbers, are written alike for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

Numbers = Tensor | tuple[Tensor, ...]  # (real, imaginary), or (real,)


def modes_of(u: Tensor) -> Tensor:
    """The modes m = 0 ... n // 2 of a real field (..., n)."""
    if paired():
        return torch.view_as_real(torch.fft.rfft(u)) if u.numel() else u.new_empty(*u.shape[:-1], u.shape[-1] // 2 + 1, 2)
    return torch.fft.rfft(u) if u.numel() else torch.complex(u, u)[..., : u.shape[-1] // 2 + 1]  # which torch.fft refuses


def field_of(v: Tensor, n: int) -> Tensor:
    """The field of n points that has these modes."""
    if not v.is_complex():
        v = torch.view_as_complex(v.contiguous())
    return torch.fft.irfft(v, n=n) if v.numel() else v.real.new_empty(*v.shape[:-1], n)


def paired() -> bool:
    """Whether modes and tables made here are pairs."""
    return torch.compiler.is_compiling()


def powers(order: int, k: Tensor, scale: Tensor | float, paired: bool) -> Numbers:
    """scale (i k)^m: complex numbers, as products go faster then, or their parts."""
    size = scale * k**order * (1 if order % 4 < 2 else -1)
    if paired:
        return (torch.zeros_like(size), size) if order % 2 else (size,)
    return torch.complex(torch.zeros_like(size), size) if order % 2 else torch.complex(size, torch.zeros_like(size))


def real_type(dtype: torch.dtype) -> torch.dtype:
    """Of the parts of such numbers."""
    return dtype.to_real() if dtype.is_complex else dtype  # a compiler does not know it, and asks for real ones


def times(table: Numbers, v: Tensor) -> Tensor:
    """A number for each mode times these."""
    if v.is_complex():
        if not isinstance(table, Tensor):  # compiled code that torch was told not to compile
            own, *imaginary = table
            table = torch.complex(own, imaginary[0]) if imaginary else own
        return table.to(v.dtype if table.is_complex() else real_type(v.dtype)) * v
    known, x, y = [part.to(v) for part in parts(table)], v[..., 0], v[..., 1]
    if len(known) == 1:
        return torch.stack([known[0] * x, known[0] * y], -1)
    a, b = known
    return torch.stack([a * x - b * y, a * y + b * x], -1)


def parts(table: Numbers) -> tuple[Tensor, ...]:
    """(real, imaginary) of complex numbers, (real,) of real ones."""
    if not isinstance(table, Tensor):
        return table
    return (table.real.contiguous(), table.imag.contiguous()) if table.is_complex() else (table,)


def settled(v: Tensor, n: int) -> Tensor:
    """Modes as those of a field: a mode that is its own mirror image is real. ``modes_of(field_of(v, n))`` is this."""
    if v.is_complex():
        return torch.where(_own_mirror(n, v), v.real, v)
    return torch.stack([v[..., 0], torch.where(_own_mirror(n, v), 0.0, v[..., 1])], -1)


def as_given(v: Tensor) -> Tensor:
    """Modes, as pairs while a compiler follows."""
    return torch.view_as_real(v) if v.is_complex() and paired() else v


def as_numbers(v: Tensor) -> Tensor:
    """Modes as complex numbers."""
    return v if v.is_complex() else torch.view_as_complex(v.contiguous())


def _own_mirror(n: int, like: Tensor) -> Tensor:
    """Which of the modes are: the mean, and on an even number of points the last."""
    m = torch.arange(n // 2 + 1, device=like.device)
    return (m == 0) | (2 * m == n)
