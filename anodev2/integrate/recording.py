"""What must be as it was in the forward pass for a redone step to be the same step, and what redoing it leaves as it is.

A ``Recording`` is marked before every step. ``replaying(index)`` puts back, for as long as a step is redone, what it was before
that step:

- random numbers: the states of the default generators of every device in use and of private generators that f reaches;
- tensors that f writes to (BatchNorm statistics, the vectors of spectral norm): buffers of the modules that f reaches, and what
  the first step was seen to write to, wherever it is; their values are set in place, and set back afterwards;
- what modules hold: parameters (``torch.func.functional_call`` may be around), buffers, training flags, and attributes that are
  tensors, numbers, flags or strings; and whether parameters want gradients;
- autocast.

Each is kept per step only where it changes. Constants that the first step was seen to read must not have been modified in place
since. Other Python state that f changes by itself (a list, ``random``, numpy's generator) is not put back. Backward passes through
one module that writes to tensors must not run in two threads at once.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..problem import Problem, storage, versions
from ..pytree import leaves_of, structure_of
from ..solvers import Leaves
from .attributes import Attributes, Track
from .buffers import Buffers, alone, put, written
from .captured import reachable
from .comparison import Samples
from .side_effects import Meeting, SideEffects


class _Randomness:
    """The states of some random generators."""

    def __init__(self, devices: Iterable[torch.device], generators: Iterable[torch.Generator]) -> None:
        self.devices = [device for device in devices if device.type not in {"cpu", "meta"}]
        self.generators = [torch.default_generator, *generators]
        self.track: Track[list[Tensor]] = Track()
        self.last: list[bytes] = []

    def read(self) -> list[Tensor]:
        own = [generator.get_state() for generator in self.generators]
        return own + [torch.get_device_module(device).get_rng_state(device) for device in self.devices]

    def write(self, states: list[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=False):
            generator.set_state(state)
        for device, state in zip(self.devices, states[len(self.generators) :], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)

    def mark(self) -> None:
        states = self.read()
        now = _bytes(states)
        self.track.append(self.track.values[-1] if now == self.last else states)
        self.last = now

    def pop(self) -> None:
        self.track.pop()
        self.last = _bytes(self.track.values[-1])

    def moved_since_mark(self) -> bool:
        return _bytes(self.read()) != self.last


def _bytes(states: list[Tensor]) -> list[bytes]:
    return [ctypes.string_at(state.data_ptr(), state.numel()) for state in states]  # no operation, which a mode would see


class _Versions:
    """Tensors, as long as they live, and their versions."""

    def __init__(self, pairs: Iterable[tuple[Tensor, int]]) -> None:
        self.pairs = [(weakref.ref(tensor), version) for tensor, version in pairs]

    def moved(self) -> dict[int, Tensor]:
        """Those that have been modified in place since, by their storages."""
        now = ((ref(), version) for ref, version in self.pairs)
        return {storage(tensor): tensor for tensor, version in now if tensor is not None and tensor._version != version}


class Recording:
    """One forward pass, for redoing any of its steps.

    ``mark()`` before each step and after the last; ``retreat()`` undoes what came after the last mark. Then, inside
    ``replaying(index)``, redo the step.
    """

    def __init__(self, func: Any, y0: Leaves, args: tuple[Any, ...]) -> None:
        rest = leaves_of(args, structure_of(args))
        found = reachable(func, *(leaf for leaf in rest if not isinstance(leaf, Tensor)))
        devices = {leaf.device for leaf in (*y0, *rest, *found.tensors) if isinstance(leaf, Tensor)}
        modules = _replayable(found.modules)
        self.opaque = found.compiled  # something that cannot be looked into is at work
        reached = (leaf for leaf in (*rest, *found.tensors) if isinstance(leaf, Tensor) and not is_lazy(leaf) and not leaf.is_meta)
        self.reached = [leaf for leaf in reached if leaf.layout is torch.strided and not leaf.is_inference()]
        self.random = _Randomness(devices, found.generators)
        self.buffers = Buffers(modules)
        self.attributes = Attributes(modules)
        leaves = {id(p): p for module in modules for p in module._parameters.values() if p is not None and p.is_leaf}
        self.wants = [(leaf, leaf.requires_grad) for leaf in leaves.values()]
        self.constants = self.visible = _Versions(())  # of what the first step read; of what else f reaches
        self.outside: Set[int] = set()  # storages of what f did not make
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))  # the arguments of torch.autocast
            for kind in sorted({"cpu", *(device.type for device in devices)})
            if torch.amp.is_autocast_available(kind)
        ]
        self.low_precision = any(enabled for _, _, enabled in self.autocast)

    def _cast_anew(self) -> None:
        if self.low_precision:
            torch.clear_autocast_cache()  # so that each step casts weights itself, and their gradients are summed in full precision

    def mark(self) -> None:
        self._cast_anew()
        for part in (self.random, self.buffers, self.attributes):
            part.mark()

    @property
    def marks(self) -> int:
        """How many marks there are."""
        return self.random.track.count

    def moving(self) -> set[int]:
        """The storages of tensors that f may write to."""
        return self.buffers.storages()

    def moved(self) -> bool:
        """Whether f drew random numbers or wrote to buffers since the last mark."""
        return self.random.moved_since_mark() or any(self.buffers.moved())

    def retreat(self, mark: int | None = None) -> None:
        """Undo what happened since the last mark, or since an earlier one, which is then the last."""
        while mark is not None and self.marks > mark + 1:
            self.unmark()
        self.random.write(self.random.track.values[-1])
        self.buffers.retreat()
        self.attributes.put(self.marks - 1)

    def unmark(self) -> None:
        """Forget the last mark, as if what happened since the one before were one step."""
        for part in (self.random, self.buffers, self.attributes):
            part.pop()

    @contextmanager
    def observing(self, y: Leaves) -> Iterator[None]:
        """For the first step, marked: what it reads and writes beside its state, where modules do not tell."""
        reached, self.reached = self.reached, []
        if self.opaque:
            known = self.moving()
            plain = [tensor for tensor in reached if type(tensor) is Tensor and storage(tensor) not in known]
            before = [(tensor, tensor._version, Samples([tensor])) for tensor in plain]
            yield
            for tensor, version, was in before:
                rows = zip(was.of([tensor]).values(), was.rows.values(), strict=True)
                wrote = any(now.is_cpu and not torch.equal(now.nan_to_num(), old.nan_to_num()) for now, old in rows)  # a device would wait
                if tensor._version != version or wrote:
                    raise _hidden(tensor, "in code that is compiled")
            return
        then = versions(reached)
        with SideEffects(y, self.buffers.last()) as seen:
            self.outside = seen.outside.keys()
            yield
        known = {id(tensor) for group in compress(self.buffers.groups(), self.buffers.moved()) for tensor in group.tensors}
        for tensor, before, version in reversed(seen.written.values()):  # where parts overlap the first to be written is set back last
            if tensor._version != version and id(tensor) not in known:
                if tensor.requires_grad:
                    raise ValueError(
                        f"func changes a tensor of shape {tuple(tensor.shape)} that requires grad in place, which a redone step would do "
                        "again; write x = x + ... instead of x += ..., make it part of the state y, or solve with adjoint='direct'"
                    )
                self.buffers.add(tensor, before, self.marks)
        moving = self.moving()
        self.outside = set(seen.outside)
        self.constants = _Versions((tensor, version) for tensor, version in seen.read.values() if storage(tensor) not in moving)
        self.visible = _Versions(pair for pair in zip(reached, then, strict=True) if storage(pair[0]) not in moving | self.outside)

    @contextmanager
    def watching(self, y: Leaves) -> Iterator[None]:
        """For the last step, redone: what it writes to must be known by then."""
        if self.opaque:
            yield
            return
        known = self.moving()
        with SideEffects(y, self.buffers.last()) as seen:  # of what is known, which does not matter
            yield
        odd = [part for part in seen.written.values() if part[0]._version != part[2] and storage(part[0]) not in known]
        if odd:
            put([alone(tensor, before) for tensor, before, _ in reversed(odd)])
            raise _hidden(odd[0][0], "in later steps only")

    @contextmanager
    def replaying(self, index: int) -> Iterator[None]:
        """All as it was before step ``index``; as it is now again at the end, whatever happens."""
        if moved := self.constants.moved():
            raise _modified(*moved.values())
        elsewhere = self.visible.moved()
        self._cast_anew()
        with ExitStack() as undo:
            if len(self.random.track.values) > 1:
                undo.callback(self.random.write, self.random.read())
                self.random.write(self.random.track[index])
            then, now = self.buffers.around(index)
            if now:
                undo.callback(put, now, versions(written(now)))
                put(then)
            for leaf, wants in self.wants:
                if leaf.requires_grad != wants:
                    undo.callback(leaf.requires_grad_, leaf.requires_grad)
                    leaf.requires_grad_(wants)
            self.attributes.replay(index, undo)
            if elsewhere and not self.opaque:
                undo.enter_context(_reading_none_of(elsewhere))
            for cast in self.autocast:
                if cast[2] or torch.is_autocast_enabled(cast[0]):
                    undo.enter_context(torch.autocast(*cast))
            yield

    @contextmanager
    def no_autocast(self) -> Iterator[None]:
        """For derivatives, in the types that autocast chose."""
        with ExitStack() as stack:
            for kind, _, _ in self.autocast:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield


def _replayable(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """All but TorchScript's modules; one with buffers is refused."""
    scripted = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
    if any(True for module in scripted for _ in module.buffers()):
        raise ValueError("the buffers of a TorchScript module cannot be replayed; solve on a grid with adjoint='direct'")
    return [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]


def recorded(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Recording:
    """Of a solve, about to begin."""
    recording = Recording(problem.field.func, y0, args)
    recording.opaque = recording.opaque or problem.method.traced
    return recording


@contextmanager
def untouched(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Iterator[Recording]:
    """f may be evaluated inside, and leaves random generators, buffers and attributes as they were."""
    recording = recorded(problem, y0, args)
    recording.mark()
    try:
        yield recording
    finally:
        recording.retreat()


MODIFIED = "one of the variables needed for gradient computation has been modified by an inplace operation"


def _modified(tensor: Tensor, *_: Tensor) -> Exception:
    what = f"a tensor of shape {tuple(tensor.shape)} that func reads was modified in place between the forward and the backward pass"
    if tensor.requires_grad:
        return RuntimeError(f"{MODIFIED}: {what}")
    return ValueError(f"{what}, so a step cannot be redone; modify a copy, or solve with adjoint='direct'")


@contextmanager
def _reading_none_of(modified: dict[int, Tensor]) -> Iterator[None]:
    """A step that has nothing to do with these storages."""
    with Meeting(modified.keys()) as seen:
        yield
    if seen.met:
        raise _modified(*(modified[key] for key in seen.met))


def _hidden(tensor: Tensor, where: str) -> ValueError:
    """f writes to what is not known beforehand."""
    return ValueError(
        f"func writes to a hidden tensor of shape {tuple(tensor.shape)} {where}, so that a redone step cannot put it back; make it a "
        "buffer of a module that func reaches, or solve with adjoint='direct'"
    )
