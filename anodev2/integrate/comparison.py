"""Whether a step that is redone is the same step: its values against samples of the first ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..torch_private import after_backward

# A redone step runs the same kernels on the same numbers: what it computes agrees to the bit on most devices, to some units of
# round-off of the largest element on all.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
LOW_PRECISION_TOLERANCE = 2e-2
ACCELERATOR_TOLERANCE = 1e-3  # whose sums may be in another order each time
Kind = tuple[torch.device, torch.dtype]


class Samples:
    """Copies of at most about ``SIZE`` elements of each leaf, spread over it in the order in which it lies in memory: a row per kind."""

    SIZE = 256

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self.orders = [None if leaf.is_contiguous() else sorted(range(leaf.ndim), key=leaf.stride, reverse=True) for leaf in leaves]
        parts = self._parts(leaves)
        self.sizes = {kind: [part.numel() for part in own] for kind, own in parts.items()}
        self.rows = {kind: torch.cat(own) for kind, own in parts.items()}

    def of(self, leaves: Sequence[Tensor]) -> dict[Kind, Tensor]:
        """The same elements of other leaves; an odd stride does not run along one column."""
        return {kind: torch.cat(own) for kind, own in self._parts(leaves).items()}

    def _parts(self, leaves: Sequence[Tensor]) -> dict[Kind, list[Tensor]]:
        parts: dict[Kind, list[Tensor]] = {}
        for leaf, order in zip(leaves, self.orders, strict=True):
            flat = (leaf.detach() if order is None else leaf.detach().permute(order)).reshape(-1)
            count = flat.numel()
            if type(flat) is Tensor:  # else it has no values, or is of many devices
                part = flat if count <= self.SIZE else flat[:: count // self.SIZE | 1]
                parts.setdefault((leaf.device, leaf.dtype), []).append(part)
        return parts


class Comparison:
    """Redone values against samples of the first ones; on a device, which has to be waited for, at the end of the backward pass."""

    def __init__(self, low_precision: bool) -> None:
        self.low_precision = low_precision
        self.waiting: list[tuple[Sequence[Tensor], Callable[..., None]]] = []

    def add(self, found: Sequence[Tensor], samples: Samples) -> None:
        """Refuse what differs. What has become NaN passes, the gradient will tell."""
        for kind, again in samples.of(found).items():
            self.judge([again, samples.rows[kind]], partial(_refuse, self._tolerance(*kind), samples.sizes[kind]))

    def judge(self, values: Sequence[Tensor], call: Callable[..., None]) -> None:
        """Call with these numbers (rows of them), as soon as the host can see them."""
        if values[0].is_cpu:
            return call(*values)
        if values[0].is_meta or (values[0].is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        if not self.waiting:
            after_backward(self._judge_all)
        self.waiting.append((values, call))

    def _judge_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        kinds: dict[Any, list[Tensor]] = {}
        for values, _ in waiting:
            for row in values:
                kinds.setdefault((row.device, row.dtype), []).append(row)
        homes = {kind: _sent_home(torch.cat(rows)) for kind, rows in kinds.items()}
        for device in {device for device, _ in kinds}:  # the one time that a backward pass waits for it
            arrived = torch.Event(device)
            arrived.record()
            arrived.synchronize()
        parts = {kind: iter(home.split([len(row) for row in kinds[kind]])) for kind, home in homes.items()}
        for values, call in waiting:
            call(*(next(parts[row.device, row.dtype]) for row in values))

    def _tolerance(self, device: torch.device, dtype: torch.dtype) -> float:
        own = LOW_PRECISION_TOLERANCE if self.low_precision else TOLERANCE.get(dtype.to_real(), LOW_PRECISION_TOLERANCE)
        return own if device.type in ("cpu", "meta") else max(own, ACCELERATOR_TOLERANCE)


def _sent_home(values: Tensor) -> Tensor:
    home = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
    return home.copy_(values, non_blocking=True)


def _refuse(tolerance: float, sizes: list[int], again: Tensor, expected: Tensor) -> None:
    """Parts that are farther from those expected than the tolerance times the largest number of the part."""
    if torch.equal(again, expected):
        return
    for new, old in zip(again.split(sizes), expected.split(sizes), strict=True):
        if not torch.equal(new, old) and not _near(tolerance, new, old):
            raise changed("came out differently")


def _near(tolerance: float, again: Tensor, expected: Tensor) -> bool:
    if not (again.is_floating_point() or again.is_complex()):
        return False
    gap = torch.linalg.vector_norm((again - expected).nan_to_num_(0.0), math.inf)  # inf - inf too
    return bool(gap <= tolerance * torch.linalg.vector_norm(expected.nan_to_num(0.0, 0.0, 0.0), math.inf))


def changed(how: str) -> ValueError:
    """A step redone was not the same step."""
    return ValueError(
        f"a step redone in a backward pass {how} than in the forward pass, so its gradient would be wrong: func reads something that "
        "changed since (a variable, a container, a cache that it filled, a random number from elsewhere than torch generators it holds); "
        "pass what varies in args=(...), or solve with adjoint='direct'"
    )
