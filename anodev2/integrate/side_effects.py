"""What a step reads and writes beside its state, seen where it happens: by the schemas of the operations."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from ..problem import storage
from ..solvers import Leaves
from ..torch_private import TorchDispatchMode, tree_leaves

# their schemas do not tell that they move running_mean and running_var in training, nor do their kernels count it
BATCH_NORM = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}

TORCH_OWN = {"aten", "prims", "prim", "fsdp", "c10d", "_c10d_functional"}


class SideEffects(TorchDispatchMode):
    """Notes the tensors from outside that operations read or write, as their schemas say; ``values``: copies there are, by id."""

    def __init__(self, own: Leaves, values: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.made = {storage(tensor) for tensor in own}
        self.outside: dict[int, Tensor] = {}
        self.read: dict[int, tuple[Tensor, int]] = {}
        self.written: dict[
            tuple[Any, ...], tuple[Tensor, Tensor, int]
        ] = {}  # a tensor, its value before, its version then; -1: not counted

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        norm, custom, arguments = _told(func)
        silent = norm and bool(args[5])
        for place, (name, written) in enumerate(arguments):
            value = args[place] if place < len(args) else kwargs.get(name)
            if isinstance(value, (Tensor, list, tuple)):
                moves = silent and place in (3, 4)
                writes = moves or written
                for tensor in (value,) if isinstance(value, Tensor) else value:
                    if isinstance(tensor, Tensor):
                        self._note(tensor, writes, moves or custom)
        result = func(*args, **kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and (key := storage(tensor)) not in self.outside:
                self.made.add(key)
        return result

    def _note(self, tensor: Tensor, writes: bool, silent: bool) -> None:
        key = storage(tensor)
        if key in self.made or is_lazy(tensor):
            return
        self.outside[key] = tensor
        part = (key, tensor.storage_offset(), tensor.shape) if key != id(tensor) else (key,)  # tensor.data is another object each time
        if writes and (part not in self.written or silent):
            if part not in self.written:
                value = self.values[id(tensor)] if id(tensor) in self.values else tensor.detach().clone()
                self.written[part] = tensor, value, tensor._version
            self.written[part] = (*self.written[part][:2], -1 if silent else self.written[part][2])
        elif not writes and not tensor.is_inference():
            self.read.setdefault(id(tensor), (tensor, tensor._version))


@lru_cache(maxsize=4096)
def _told(func: Any) -> tuple[bool, bool, list[tuple[str, bool]]]:
    """Whether an operation moves statistics without a word; whether it counts what it writes to before it is called, as those do that
    are not PyTorch's own; the names of its arguments, and whether it writes to them."""
    written = [(argument.name, argument.alias_info is not None and argument.alias_info.is_write) for argument in func._schema.arguments]
    custom = func.namespace not in TORCH_OWN
    return func.overloadpacket.__name__ in BATCH_NORM, custom, written


class Meeting(TorchDispatchMode):
    """Which of some storages operations have ``met``; holds no tensor."""

    def __init__(self, storages: Set[int]) -> None:
        super().__init__()
        self.storages, self.met = storages, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.met |= self.storages & {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))
