"""The peak of live tensor bytes while some code runs, counted exactly, storage by storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operation reads or makes, from then until it is freed; ``peak`` is in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count what was there before."""
        self._see(list(tensors))
        self.now = self.peak = 0

    def _see(self, tree: Any) -> None:
        if isinstance(tree, torch.Tensor):
            storage = tree.untyped_storage()
            key = storage._cdata
            if key not in self._alive:
                size = storage.nbytes()
                self._alive[key] = weakref.ref(storage, lambda _: self._free(key, size))
                self.now += size
                self.peak = max(self.peak, self.now)
        elif isinstance(tree, tuple | list):  # all that operations take and return beside tensors, as torch's pytrees are slow
            for part in tree:
                self._see(part)

    def _free(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see(args)
        self._see([*(kwargs or {}).values()])
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result
