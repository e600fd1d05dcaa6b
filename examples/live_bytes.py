"""The peak of live tensor bytes while some code runs, counted exactly, storage by storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._alive:
                continue
            self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._free(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._see((args, kwargs))
        result = func(*args, **kwargs)
        self._see(result)
        return result
