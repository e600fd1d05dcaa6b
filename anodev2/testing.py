"""Checks of one's own methods, fields and gradients, for tests: the order of an error, and Taylor's remainder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def observed_order(error: Callable[[int], float], sizes: Sequence[int] = (4, 8, 16, 32, 64, 128, 256), floor: float = 1e-12) -> float:
    """The power p of error(n) ~ n^-p: log(error(m) / error(n)) / log(n / m) at the two finest sizes above round-off.

    Args:
        error: of a computation with n steps, or on n points.
        sizes: rising; tried one after the other until an error is below ``floor``.
        floor: errors below are round-off.

    Raises:
        ValueError: fewer than two errors are above the floor, or one of them is not finite.
    """
    found: list[tuple[int, float]] = []
    for size in sizes:
        value = float(error(size))
        if not math.isfinite(value):
            raise ValueError(f"error({size}) is {value}; begin with finer sizes")
        if value <= floor:
            break
        found.append((size, value))
    if len(found) < 2:
        raise ValueError(f"of the errors at sizes={tuple(sizes)} fewer than two are above floor={floor}: begin with coarser sizes")
    (coarse, large), (fine, small) = found[-2:]
    return math.log(large / small) / math.log(fine / coarse)


def taylor_test(loss: Callable[..., Tensor], *inputs: Tensor, h: float = 1e-2, seed: int = 0) -> float:
    """The power p of |J(x + h d) - J(x) - h dJ/dx . d| ~ h^p along a random direction d: 2 if autograd's gradient is right, 1 if not.

    Args:
        loss: J, called as ``loss(*inputs)``, a real scalar; smooth near the inputs.
        inputs: x, float64 or complex128 tensors, differentiated together.
        h: the remainders at h and h / 2 are compared.
        seed: of the direction.

    Returns:
        p, or infinity where both remainders are round-off: J is linear along d, and its gradient right.

    Raises:
        ValueError: no inputs, inputs of lower precision, or a loss that is no real scalar.

    Source: Farrell, Ham, Funke, Rognes, SIAM J. Sci. Comput. 35 (2013), on verifying adjoints.
    """
    if not inputs or any(x.dtype not in (torch.float64, torch.complex128) for x in inputs):
        raise ValueError(f"inputs must be float64 or complex128 tensors, got {[str(x.dtype) for x in inputs]}; use x.double()")
    starts = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*starts)
    if value.numel() != 1 or value.is_complex():
        raise ValueError(f"loss must return a real scalar, got {value.dtype} of shape {tuple(value.shape)}")
    gradients = torch.autograd.grad(value, starts, allow_unused=True)
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device) for x in inputs]
    slope = sum((g.conj() * d).real.sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
    with torch.no_grad():
        moved = [loss(*(x + e * d for x, d in zip(inputs, directions, strict=True))).item() for e in (h, h / 2)]
    remainders = [abs(J - value.item() - e * slope) for J, e in zip(moved, (h, h / 2), strict=True)]
    round_off = 1e-13 * max(abs(value.item()), *map(abs, moved))
    if remainders[0] <= 1e3 * round_off:
        return math.inf
    return math.log2(remainders[0] / max(remainders[1], round_off))
