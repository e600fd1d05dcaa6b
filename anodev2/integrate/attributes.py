"""What modules hold beside the values of their tensors: attributes, and which tensors are their parameters and buffers."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from operator import is_
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from .captured import MODULE_FIELDS
from .functional_call import overlaid

T = TypeVar("T")
PLAIN = (Tensor, bool, int, float, complex, str, type(None))  # attributes that are put back
FIXED = MODULE_FIELDS - {"training"}


class Track(Generic[T]):
    """A value per mark, kept where it changes."""

    def __init__(self) -> None:
        self.count = 0
        self.starts: list[int] = []
        self.values: list[T] = []

    def append(self, value: T) -> None:
        if not self.values or value is not self.values[-1]:
            self.starts.append(self.count)
            self.values.append(value)
        self.count += 1

    def pop(self) -> None:
        self.count -= 1
        if self.starts[-1] == self.count:
            self.starts.pop()
            self.values.pop()

    def __getitem__(self, index: int) -> T:
        return self.values[bisect_right(self.starts, index) - 1]


class _Past:
    """A tensor with a history that a module held: itself while it lives, else its value."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.value = weakref.ref(tensor), tensor.detach()  # a reference to the graph of a step would outlive it

    def now(self) -> Tensor:
        tensor = self.tensor()
        return self.value.detach().requires_grad_() if tensor is None else tensor


Own = dict[str, Any]


class Attributes:
    """What some modules hold, marked before every step of a pass forward.

    Attributes are put back where they are tensors, numbers, flags or strings, parameters for the calling thread alone. What is not in
    a module's own hands is left alone: weights that hooks of ``torch.nn.utils`` set in every call, and the parameters of
    ``fully_shard``, which puts shards and whole parameters in each other's place by itself.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        hooked = lambda module: any(type(hook).__module__.startswith("torch.nn.utils") for hook in module._forward_pre_hooks.values())  # noqa: E731
        self.plain = [not hooked(module) for module in modules]
        self.sharded = [any(type(p).__name__ == "DTensor" for p in module._parameters.values()) for module in modules]
        self.seen: list[Any] = []
        self.track: Track[list[tuple[Own, Own, Own]]] = Track()
        self.first: list[int] = []  # what is held at first, by id
        self.settled = False  # whether that never changed

    def _now(self) -> list[Any]:
        parts = [part.values() for own in map(vars, self.modules) for part in (own, own["_buffers"], own["_parameters"])]
        return list(chain.from_iterable(parts))

    def mark(self) -> None:
        now = self._now()
        if self.track.values and len(now) == len(self.seen) and all(map(is_, now, self.seen)):
            return self.track.append(self.track.values[-1])
        self.first = self.first or list(map(id, now))
        self.track.append([self._snapshot(*pair) for pair in zip(self.modules, self.plain, strict=True)])
        self.seen = now

    def _snapshot(self, module: nn.Module, plain: bool) -> tuple[Own, Own, Own]:
        attributes, buffers, parameters = _parts(module)
        attributes = {n: x for n, x in attributes.items() if n == "training" or (plain and isinstance(x, PLAIN))}
        return {n: _Past(x) if isinstance(x, Tensor) and x.grad_fn is not None else x for n, x in attributes.items()}, buffers, parameters

    def pop(self) -> None:
        self.track.pop()
        self.seen = []

    def close(self) -> None:
        """What is held now is no longer held here: it may have a history that leads back."""
        self.seen = []
        past = any(isinstance(value, _Past) for attributes, _, _ in self.track.values[0] for value in attributes.values())
        self.settled = len(self.track.values) == 1 and not past

    def put(self, index: int) -> list[tuple[nn.Module, Own]]:
        """Attributes and buffers as they were at a mark; the modules that had other parameters then, and these."""
        others = []
        for module, plain, sharded, (attributes, buffers, parameters) in zip(
            self.modules, self.plain, self.sharded, self.track[index], strict=True
        ):
            own = vars(module)
            for name, value in attributes.items():
                value = value.now() if isinstance(value, _Past) else value
                if own.get(name, PLAIN) is not value:
                    own[name] = value
            for name in [n for n, x in own.items() if plain and n not in FIXED and n not in attributes and isinstance(x, PLAIN)]:
                del own[name]
            _become(module._buffers, buffers)
            if not sharded and not _same(dict(module._parameters.items()), parameters):
                others.append((module, parameters))
        return others

    def replay(self, index: int, undo: ExitStack) -> None:
        """As at a mark, until ``undo`` is over; then as before."""
        now, before = self._now(), [(vars(module).copy(), module._buffers.copy()) for module in self.modules]
        undo.callback(self._restore, now, before)
        if not self.settled or list(map(id, now)) != self.first:
            others = self.put(index)
            if others:
                undo.enter_context(overlaid(others))

    def _restore(self, now: list[Any], before: list[tuple[Own, Own]]) -> None:
        again = self._now()
        if len(now) == len(again) and all(map(is_, now, again)):
            return
        for module, (was, buffers) in zip(self.modules, before, strict=True):
            own = vars(module)
            if not _same(own, was):
                attributes = {name: value for name, value in was.items() if name not in FIXED}
                for name in [name for name in own if name not in FIXED and name not in attributes]:
                    del own[name]
                own.update(attributes)
            _become(module._buffers, buffers)


def _parts(module: nn.Module) -> tuple[Own, Own, Own]:
    """Attributes, buffers and parameters; the last as the calling thread sees them."""
    attributes = {name: value for name, value in vars(module).items() if name not in FIXED}
    return attributes, module._buffers.copy(), dict(module._parameters.items())


def _same(a: Own, b: Own) -> bool:
    return len(a) == len(b) and all(map(is_, a.values(), b.values()))


def _become(now: Own, then: Own) -> None:
    if not _same(now, then):
        now.clear()
        now.update(then)
