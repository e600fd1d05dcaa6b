"""Checks of one's own methods, fields and gradients, for tests: the order of an error, and Taylor's remainder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["observed_order", "taylor_test"]

SEED = 71993  # unlike any that a user would make an input with


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
    """The power p of |J(x + e d) - J(x) - e dJ/dx . d| ~ e^p along a direction d: 2 if autograd's gradient is right, 1 if not.

    Args:
        loss: J, called as ``loss(*inputs)``, a real scalar; smooth near the inputs.
        inputs: x, float64 or complex128 tensors, differentiated together.
        h: the largest e; it is halved six times, as far as the remainders are above round-off.
        seed: of the random half of d; the other half is along the gradient.

    Returns:
        the smallest p between neighbouring e, or infinity where all remainders are round-off: J is linear along d, and its gradient right.

    Raises:
        ValueError: no inputs, inputs of lower precision, a loss that is no real scalar, does not depend on the inputs through autograd, or
            hardly changes over h.

    Source: Farrell, Ham, Funke, Rognes, SIAM J. Sci. Comput. 35 (2013), on verifying adjoints.
    """
    if not inputs or any(x.dtype not in (torch.float64, torch.complex128) for x in inputs):
        raise ValueError(f"inputs must be float64 or complex128 tensors, got {[str(x.dtype) for x in inputs]}; use x.double()")
    value, gradients = _gradients(loss, inputs)
    directions, slope = _directions(gradients, seed)
    sizes = [h / 2**k for k in range(7)]
    with torch.no_grad():
        changes = [loss(*(x + e * d for x, d in zip(inputs, directions, strict=True))).item() - value for e in sizes]
    round_off = 1e-13 * max(abs(value), *(abs(value + change) for change in changes))
    if max(abs(changes[0]), abs(h * slope)) <= 1e3 * round_off:
        raise ValueError(
            f"loss changes by {changes[0]:.1g} over h={h}, too little beside its value {value:.3g} to tell; subtract a constant"
        )
    remainders = [abs(change - e * slope) for change, e in zip(changes, sizes, strict=True)]
    told = [r for r in remainders if r > 1e3 * round_off]
    if not told:
        return math.inf
    if len(told) == 1:
        return math.log2(told[0] / max(remainders[1], round_off))
    return min(math.log2(a / b) for a, b in pairwise(told))


def _gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """J and dJ/dx."""
    starts = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        value = loss(*starts)
    if value.numel() != 1 or value.is_complex():
        raise ValueError(f"loss must return a real scalar, got {value.dtype} of shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise ValueError("loss does not depend on its inputs through operations that autograd sees")
    gradients = torch.autograd.grad(value, starts, allow_unused=True)
    return value.item(), [torch.zeros_like(x) if g is None else g for x, g in zip(starts, gradients, strict=True)]


def _directions(gradients: Sequence[Tensor], seed: int) -> tuple[list[Tensor], float]:
    """d, half of it random and half along the gradient, so that a wrong length shows too; and dJ/dx . d."""
    generator = torch.Generator().manual_seed(SEED + seed)
    directions = [torch.randn(g.shape, dtype=g.dtype, generator=generator).to(g.device) for g in gradients]
    dot = lambda a, b: sum((x.conj() * y).real.sum().item() for x, y in zip(a, b, strict=True))  # noqa: E731
    length = dot(gradients, gradients)
    if length:
        share = math.copysign(math.sqrt(dot(directions, directions) / length), dot(gradients, directions))
        directions = [d + share * g for d, g in zip(directions, gradients, strict=True)]
    return directions, dot(gradients, directions)
