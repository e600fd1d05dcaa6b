"""Tensors that f writes to (BatchNorm's statistics): their values at every mark of a forward pass, put back in place.

Copies are made for all of them together, as each launch costs more than these few numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..problem import versions
from ..torch_private import copy_together, set_versions
from .attributes import Track

Pair = tuple[Tensor, Tensor]  # a tensor and the values that it had or is to have


class Buffers:
    """The buffers of some modules, and tensors by themselves that operations were seen to write to.

    The version counters of all of a module's buffers speak for each: BatchNorm's kernel moves running_mean without counting,
    but num_batches_tracked beside it is counted. A tensor by itself is taken to move in every step.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = [module for module in modules if module._buffers]
        self.alone: list[Tensor] = []
        self.tracks: list[Track[list[Pair]]] = [Track() for _ in self.modules]
        self.seen: list[tuple[list[Tensor], list[int]]] = []  # by module, at the last mark

    def groups(self) -> list[list[Tensor]]:
        """What there is to write to, by module."""
        every = [module._buffers.values() for module in self.modules]
        own = [[b for b in buffers if b is not None and not b.requires_grad and not is_lazy(b)] for buffers in every]
        return own + [[tensor] for tensor in self.alone]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [tensor for group in self.groups() for tensor in group]

    def add(self, tensor: Tensor, before: Tensor, marks: int) -> None:
        """One more by itself, with the value that it had at so many marks."""
        self.alone.append(tensor)
        self.tracks.append(Track())
        pairs = [(tensor, before)]
        for _ in range(marks):
            self.tracks[-1].append(pairs)

    def moved(self, groups: Sequence[Sequence[Tensor]] | None = None) -> list[bool]:
        """Which ``groups``, those that there are, did since the last mark."""
        if not self.seen:
            return [True] * len(self.tracks)
        pairs = zip((groups or self.groups())[: len(self.modules)], self.seen, strict=False)
        own = [len(now) != len(then) or not all(map(is_, now, then)) or versions(now) != counts for now, (then, counts) in pairs]
        return own + [True] * len(self.alone)

    def mark(self) -> None:
        """Note the values where they moved."""
        groups = self.groups()
        moved = self.moved(groups)
        copies = iter(_copies([tensor for group in compress(groups, moved) for tensor in group]))
        for track, group, now in zip(self.tracks, groups, moved, strict=True):
            track.append([(tensor, next(copies)) for tensor in group] if now else track.values[-1])
        self._look(groups)

    def _look(self, groups: list[list[Tensor]]) -> None:
        """What there is now has the values of the last mark."""
        self.seen = [(group, versions(group)) for group in groups]

    def pop(self) -> None:
        """Forget the last mark."""
        for track in self.tracks:
            track.pop()
        self.seen = []

    def retreat(self) -> None:
        """Put back the values of the last mark."""
        put([pair for track in compress(self.tracks, self.moved()) for pair in track.values[-1]])
        self._look(self.groups())

    def last(self) -> dict[int, Tensor]:
        """The values at the last mark, by id."""
        return {id(tensor): value for track in self.tracks for tensor, value in track.values[-1]}

    def around(self, index: int) -> tuple[list[Pair], list[Pair]]:
        """The values at a mark and those of now; without what had its last values then, and has them now."""
        if not self.tracks:
            return [], []
        then, now, unknown = list[Pair](), dict[int, Pair](), dict[int, Tensor]()
        groups = self.groups()
        for track, group, moved in zip(self.tracks, groups, self.moved(groups), strict=True):
            own, last = track[index], track.values[-1]
            if moved or own is not last:
                then += own
                now |= {} if moved else {id(pair[0]): pair for pair in last}
                unknown |= {id(tensor): tensor for tensor in (*(group if moved else ()), *(tensor for tensor, _ in own))}
        rest = [tensor for key, tensor in unknown.items() if key not in now]
        return then, [*now.values(), *zip(rest, _copies(rest), strict=True)]


def put(pairs: list[Pair], counts: list[int] | None = None) -> None:
    """Values in place, uncounted (or counted as given), like BatchNorm's kernel, whose backward does not read it."""
    if pairs:
        tensors = [tensor for tensor, _ in pairs]
        counts = versions(tensors) if counts is None else counts
        _copy([(tensor.detach(), value) for tensor, value in pairs])
        set_versions(tensors, counts)


@torch.no_grad()
def _copy(pairs: Iterable[Pair]) -> None:
    """The second of each pair into the first; one launch for all of a kind."""
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for pair in pairs:
        into, value = pair if pair[0].is_cpu else map(words, pair)
        for tensor, group in zip((into, value), kinds.setdefault((into.device, into.dtype), ([], [])), strict=True):
            group.append(tensor)
    for into, values in kinds.values():
        copy_together(into, values)


def words(tensor: Tensor) -> Tensor:
    """The same memory as numbers of 4 bytes, so that statistics and what counts them are of one kind."""
    if tensor.dtype == torch.float32:
        return tensor.view(torch.int32)
    return tensor[None].view(torch.int32) if tensor.dtype == torch.int64 and tensor.ndim == 0 else tensor


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    copies = [torch.empty_like(tensor, requires_grad=False) for tensor in tensors]
    _copy(zip(copies, tensors, strict=True))
    return copies
