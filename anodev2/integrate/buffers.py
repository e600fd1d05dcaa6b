"""Tensors that f writes to (BatchNorm's statistics): their values at every mark of a forward pass, put back in place.

They are copied together, as memory of one kind: each launch, and each view, costs more than these few numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, compress, islice
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..problem import storages, versions
from ..torch_private import copy_together, set_versions
from .attributes import Track
from .comparison import changed

Kind = tuple[torch.device, torch.dtype, bool]  # of memory; the last: whether it is a row


class Group:
    """Tensors that move together, and their memory: a list of rows of each kind, and whose they are."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self._find()

    def _find(self) -> None:
        self.places = storages(self.tensors)
        self.memory: dict[Kind, list[Tensor]] = {}
        self.owners: dict[Kind, list[Tensor]] = {}
        for tensor in self.tensors:
            word = words(tensor.detach())
            kind = (word.device, word.dtype, word.ndim == 1 and type(word) is Tensor and word.layout is torch.strided)
            self.memory.setdefault(kind, []).append(word)
            self.owners.setdefault(kind, []).append(tensor)

    def current(self) -> dict[Kind, list[Tensor]]:
        """The memory where it lies now: ``.data`` and ``set_`` give a tensor another."""
        if self.places != storages(self.tensors):
            sizes = [[len(row) for row in rows] for rows in self.memory.values()]
            self._find()
            if sizes != [[len(row) for row in rows] for rows in self.memory.values()]:
                raise changed("finds buffers of another size or kind")
        return self.memory

    def of(self, tensors: list[Tensor]) -> bool:
        """Whether it is of these."""
        return len(self.tensors) == len(tensors) and all(map(is_, self.tensors, tensors))


Values = tuple[Group, dict[Kind, list[Tensor]]]  # that the memory of a group had or is to have


class _Look(NamedTuple):
    """The groups there are, which of the numbers after them are each one's, and what tells when they move: how often each tensor was
    modified, and where it lies."""

    groups: list[Group]
    spans: list[slice]
    counts: list[int]
    places: list[int]


class Buffers:
    """The buffers of some modules, and tensors by themselves that operations were seen to write to.

    The version counters of all of a module's buffers speak for each: BatchNorm's kernel moves running_mean without counting,
    but num_batches_tracked beside it is counted. A tensor by itself is taken to move in every step.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = [module for module in modules if module._buffers]
        self.latest = [Group([])] * len(self.modules)  # by module, as found last
        self.held: list[Tensor] = []  # by all of them
        self.spans: list[slice] = [slice(0)] * len(self.modules)  # and which of these each has
        self.sharing: list[set[int]] = []  # modules that hold memory of each other
        self.alone: list[Group] = []
        self.tracks: list[Track[Values]] = [Track() for _ in self.modules]
        self.seen: _Look | None = None  # at the last mark

    def groups(self) -> list[Group]:
        """What there is to write to, by module."""
        found = self._found(self.modules)
        if len(found) != len(self.held) or not all(map(is_, found, self.held)):
            own = [self._found([module]) for module in self.modules]
            self.latest = [group if group.of(one) else Group(one) for group, one in zip(self.latest, own, strict=True)]
            ends = [0, *accumulate(map(len, own))]
            self.held, self.spans = found, list(map(slice, ends, ends[1:]))
            self.sharing = _sharing(self.latest)
        return self.latest + self.alone

    def _found(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        return [
            buffer
            for module in modules
            for buffer in module._buffers.values()
            if buffer is not None and not buffer.requires_grad and (type(buffer) is Tensor or not is_lazy(buffer))
        ]

    def storages(self) -> set[int]:
        """Of all of them."""
        self.groups()
        return set(storages([*self.held, *(tensor for group in self.alone for tensor in group.tensors)]))

    def add(self, tensor: Tensor, before: Tensor, marks: int) -> None:
        """One more by itself, with the value that it had at so many marks."""
        value = alone(tensor, before)
        self.alone.append(value[0])
        self.tracks.append(Track())
        for _ in range(marks):
            self.tracks[-1].append(value)

    def moved(self) -> list[bool]:
        """Which groups did since the last mark."""
        return self._moved(self._look())

    def _look(self) -> _Look:
        groups = self.groups()
        return _Look(groups, self.spans, versions(self.held), storages(self.held))

    def _moved(self, now: _Look) -> list[bool]:
        then = self.seen
        if then is None:
            return [True] * len(self.tracks)
        rows = zip(now.groups, then.groups, now.spans, then.spans, strict=False)
        moved = [
            group is not was or now.counts[own] != then.counts[past] or now.places[own] != then.places[past]
            for group, was, own, past in islice(rows, len(self.modules))
        ]
        for places in self.sharing:
            if any(moved[place] for place in places):
                moved = [one or place in places for place, one in enumerate(moved)]
        return moved + [True] * len(self.alone)

    def mark(self) -> None:
        """Note the values where they moved."""
        found = self._look()
        moved = self._moved(found)
        copies = iter(_copies(list(compress(found.groups, moved))))
        for track, now in zip(self.tracks, moved, strict=True):
            track.append(next(copies) if now else track.values[-1])
        self.seen = found

    def pop(self) -> None:
        """Forget the last mark."""
        for track in self.tracks:
            track.pop()
        self.seen = None

    def retreat(self) -> None:
        """Put back the values of the last mark."""
        put([track.values[-1] for track in compress(self.tracks, self.moved())])
        self.seen = self._look()

    def last(self) -> dict[int, Tensor]:
        """The values at the last mark, by id, as words."""
        last = (track.values[-1] for track in self.tracks)
        pairs = ((group.owners[kind], rows) for group, values in last for kind, rows in values.items())
        return {id(tensor): row for owners, rows in pairs for tensor, row in zip(owners, rows, strict=True)}

    def around(self, index: int) -> tuple[list[Values], list[Values]]:
        """The values at a mark and those of now; without what had its last values then, and has them now."""
        then, now, unknown = list[Values](), list[Values](), dict[int, Group]()
        found = self._look()
        for track, group, moved in zip(self.tracks, found.groups, self._moved(found), strict=True):
            own, last = track[index], track.values[-1]
            if moved or own is not last:
                then.append(own)
                now += [] if moved else [last]
                unknown |= {id(one): one for one in (group, own[0]) if moved or one is not last[0]}
        return then, _copies(list(unknown.values())) + now


def _sharing(groups: Sequence[Group]) -> list[set[int]]:
    """The places of groups that have memory in common: what tells that one moved speaks for the others."""
    owners: dict[int, set[int]] = {}
    for place, group in enumerate(groups):
        places = {place}.union(*(owners.get(memory, ()) for memory in group.places))
        owners |= dict.fromkeys(group.places, places)
        if len(places) > 1:
            owners = {memory: places if own & places else own for memory, own in owners.items()}
    return list({id(places): places for places in owners.values() if len(places) > 1}.values())


def put(values: Sequence[Values], counts: list[int] | None = None) -> None:
    """Values in place, uncounted (or counted as given), like BatchNorm's kernel, whose backward does not read it."""
    if values:
        tensors = written(values)
        counts = versions(tensors) if counts is None else counts
        with torch.no_grad():
            kinds: dict[Kind, tuple[list[Tensor], list[Tensor]]] = {}
            for group, own in values:
                for kind, rows in own.items():
                    into, given = kinds.setdefault(kind, ([], []))
                    into += group.current()[kind]
                    given += rows
            for into, given in kinds.values():
                copy_together(into, given)
        set_versions(tensors, counts)


def alone(tensor: Tensor, before: Tensor) -> Values:
    """The value, as it is or as a row, of one tensor by itself."""
    group = Group([tensor])
    [kind] = group.memory
    return group, {kind: [words(before.contiguous()) if kind[-1] else before]}


def written(values: Sequence[Values]) -> list[Tensor]:
    """What is written to where these are put."""
    return [tensor for group, _ in values for tensor in group.tensors]


def _copies(groups: Sequence[Group]) -> list[Values]:
    """The values that they have."""
    kinds: dict[Kind, list[Tensor]] = {}
    for group in groups:
        for kind, rows in group.current().items():
            kinds.setdefault(kind, []).extend(rows)
    copies = {kind: iter(_apart(rows) if kind[-1] else _alike(rows)) for kind, rows in kinds.items()}
    return [(group, {kind: list(islice(copies[kind], len(rows))) for kind, rows in group.memory.items()}) for group in groups]


def _apart(rows: list[Tensor]) -> Iterable[Tensor]:
    """Copies of rows, in one launch."""
    return torch.cat(rows).split_with_sizes([row.numel() for row in rows])


def _alike(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of what is no row."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    copy_together(copies, tensors)
    return copies


def words(tensor: Tensor) -> Tensor:
    """The same memory as a row of numbers; those of 4 bytes are of one kind, so that statistics and what counts them are."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided:
        return tensor
    tensor = tensor.conj() if tensor.is_conj() else tensor
    if 0 in tensor.stride():  # an expanded one, of which one element is the memory of many
        tensor = tensor[tuple(slice(None) if stride else slice(1) for stride in tensor.stride())]
    if not tensor.is_contiguous():
        return tensor
    row = tensor if tensor.ndim == 1 else tensor.view(-1)
    return row.view(torch.int32) if tensor.dtype in (torch.float32, torch.int64) else row
