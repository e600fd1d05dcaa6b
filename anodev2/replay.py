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
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .held import Held, Track
from .problem import Problem, storage, versions
from .pytree import leaves_of, structure_of
from .reach import reach
from .side_effects import Meeting, SideEffects
from .solvers import Leaves

# A redone step runs the same kernels on the same numbers: what it computes agrees to the bit on most devices, to some units of
# round-off of the largest element on all.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
LOW_PRECISION_TOLERANCE = 2e-2
ACCELERATOR_TOLERANCE = 1e-3  # whose sums may be in another order each time
SAMPLE = 256  # about so many elements of a leaf are compared


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


class _Written:
    """Tensors that f may write to: the buffers of a module, or one that an operation was seen to write to.

    The version counters of all of a module's buffers speak for each: BatchNorm's kernel moves running_mean without counting,
    but num_batches_tracked beside it is counted. A tensor by itself (``counted`` False) is taken to move in every step.
    """

    def __init__(self, module: nn.Module | None, tensors: Sequence[Tensor] = ()) -> None:
        self.module, self.alone = module, list(tensors)
        self.seen: list[tuple[Tensor, int]] = []
        self.track: Track[list[tuple[Tensor, Tensor]]] = Track()  # each tensor and a copy of it

    def tensors(self) -> list[Tensor]:
        own = self.alone if self.module is None else self.module._buffers.values()
        return [b for b in own if b is not None and not b.requires_grad and not is_lazy(b)]

    def moved_since_mark(self) -> bool:
        if self.module is None:
            return True
        tensors, seen = self.tensors(), self.seen
        now = versions(tensors)
        return len(now) != len(seen) or any(a is not b or m != n for a, m, (b, n) in zip(tensors, now, seen, strict=True))

    def mark(self) -> None:
        """Note the values."""
        if self.track.values and not self.moved_since_mark():
            return self.track.append(self.track.values[-1])
        tensors = self.tensors()
        self.track.append([(tensor, tensor.detach().clone()) for tensor in tensors])
        self.seen = list(zip(tensors, versions(tensors), strict=True))

    def pop(self) -> None:
        self.track.pop()
        self.seen = [(tensor, -1) for tensor, _ in self.track.values[-1]]  # looks moved

    def stands(self) -> bool:
        """Whether nothing has ever moved."""
        return len(self.track.values) == 1 and not self.moved_since_mark()


class _Versions:
    """Tensors, as long as they live, and their versions."""

    def __init__(self, pairs: Iterable[tuple[Tensor, int]]) -> None:
        self.pairs = [(weakref.ref(tensor), version) for tensor, version in pairs]

    def moved(self) -> dict[int, Tensor]:
        """Those that have been modified in place since, by their storages."""
        now = ((ref(), version) for ref, version in self.pairs)
        return {storage(tensor): tensor for tensor, version in now if tensor is not None and tensor._version != version}


@torch.no_grad()
def _set(pairs: list[tuple[Tensor, Tensor]], counts: list[int] | None = None) -> None:
    """Values in place, uncounted (or counted as given), like BatchNorm's kernel, whose backward does not read it."""
    if pairs:
        tensors = [tensor for tensor, _ in pairs]
        counts = versions(tensors) if counts is None else counts
        torch._foreach_copy_([tensor.detach() for tensor in tensors], [v for _, v in pairs])  # pyright: ignore[reportPrivateImportUsage]
        torch._C._autograd._unsafe_set_version_counter(tuple(tensors), tuple(counts))  # pyright: ignore[reportAttributeAccessIssue]


class Recording:
    """One forward pass, for redoing any of its steps.

    ``mark()`` before each step and after the last; ``retreat()`` undoes what came after the last mark. Then, inside
    ``replaying(index)``, redo the step.
    """

    def __init__(self, func: Any, y0: Leaves, args: tuple[Any, ...]) -> None:
        rest = leaves_of(args, structure_of(args))
        found = reach(func, *(leaf for leaf in rest if not isinstance(leaf, Tensor)))
        devices = {leaf.device for leaf in (*y0, *rest, *found.tensors) if isinstance(leaf, Tensor)}
        modules = _replayable(found.modules)
        self.opaque = found.compiled  # something that cannot be looked into is at work
        reached = (leaf for leaf in (*rest, *found.tensors) if isinstance(leaf, Tensor) and not is_lazy(leaf) and not leaf.is_meta)
        self.reached = [leaf for leaf in reached if leaf.layout is torch.strided and not leaf.is_inference()]
        self.random = _Randomness(devices, found.generators)
        self.written = [_Written(module) for module in modules if module._buffers]
        self.held = Held(modules)
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
        for part in (self.random, *self.written, self.held):
            part.mark()

    @property
    def marks(self) -> int:
        """How many marks there are."""
        return self.random.track.count

    def moving(self) -> set[int]:
        """The storages of tensors that f may write to."""
        return {storage(tensor) for written in self.written for tensor in written.tensors()}

    def moved(self) -> bool:
        """Whether f drew random numbers or wrote to buffers since the last mark."""
        return self.random.moved_since_mark() or any(written.moved_since_mark() for written in self.written)

    def retreat(self, mark: int | None = None) -> None:
        """Undo what happened since the last mark, or since an earlier one, which is then the last."""
        while mark is not None and self.marks > mark + 1:
            self.unmark()
        self.random.write(self.random.track.values[-1])
        _set([pair for written in self.written if written.moved_since_mark() for pair in written.track.values[-1]])
        for written in self.written:
            written.seen = list(zip(tensors := written.tensors(), versions(tensors), strict=True))
        self.held.put(self.marks - 1)

    def unmark(self) -> None:
        """Forget the last mark, as if what happened since the one before were one step."""
        for part in (self.random, *self.written, self.held):
            part.pop()

    @contextmanager
    def observing(self, y: Leaves) -> Iterator[None]:
        """For the first step, marked: what it reads and writes beside its state, where modules do not tell."""
        reached, self.reached = self.reached, []
        if self.opaque:
            known = self.moving()
            plain = [tensor for tensor in reached if type(tensor) is Tensor and storage(tensor) not in known]
            before = [(tensor, tensor._version, sample(tensor)) for tensor in plain]
            yield
            for tensor, version, values in before:
                now = _spread(tensor)
                wrote = now.is_cpu and not torch.equal(now.nan_to_num(), values.nan_to_num())  # by .data; a device would wait
                if tensor._version != version or wrote:
                    raise _hidden(tensor, "in code that is compiled")
            return
        then = versions(reached)
        with SideEffects(y) as seen:
            self.outside = seen.outside.keys()
            yield
        known = {id(tensor) for written in self.written if written.moved_since_mark() for tensor in written.tensors()}
        for tensor, before, version in reversed(seen.written.values()):  # where parts overlap the first to be written is set back last
            if tensor._version != version and id(tensor) not in known:
                if tensor.requires_grad:
                    raise ValueError(
                        f"func changes a tensor of shape {tuple(tensor.shape)} that requires grad in place, which a redone step would do "
                        "again; write x = x + ... instead of x += ..., make it part of the state y, or solve with adjoint='direct'"
                    )
                alone, pairs = _Written(None, [tensor]), [(tensor, before)]
                for _ in range(self.marks):
                    alone.track.append(pairs)
                self.written.append(alone)
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
        with SideEffects(y) as seen:
            yield
        odd = [part for part in seen.written.values() if part[0]._version != part[2] and storage(part[0]) not in known]
        if odd:
            _set([(tensor, before) for tensor, before, _ in reversed(odd)])
            raise _hidden(odd[0][0], "in later steps only")

    @contextmanager
    def replaying(self, index: int) -> Iterator[None]:
        """All as it was before step ``index``; as it is now again at the end, whatever happens."""
        if moved := self.constants.moved():
            raise _modified(*moved.values())
        elsewhere = self.visible.moved()
        self._cast_anew()
        undo: list[Callable[[], Any]] = []
        try:
            if len(self.random.track.values) > 1:
                undo.append(partial(self.random.write, self.random.read()))
                self.random.write(self.random.track[index])
            moving = [written for written in self.written if not written.stands()]
            if moving:
                own = {id(tensor): tensor for written in moving for tensor in (*written.tensors(), *(t for t, _ in written.track[index]))}
                undo.append(partial(_set, [(tensor, tensor.detach().clone()) for tensor in own.values()], versions(list(own.values()))))
                _set([pair for written in moving for pair in written.track[index]])
            for leaf, wants in self.wants:
                if leaf.requires_grad != wants:
                    undo.append(partial(leaf.requires_grad_, leaf.requires_grad))
                    leaf.requires_grad_(wants)
            with self.held.replaying(index), ExitStack() as stack:
                if elsewhere and not self.opaque:
                    stack.enter_context(_reading_none_of(elsewhere))
                for cast in self.autocast:
                    if cast[2] or torch.is_autocast_enabled(cast[0]):
                        stack.enter_context(torch.autocast(*cast))
                yield
        finally:
            for action in reversed(undo):
                action()

    @contextmanager
    def no_autocast(self) -> Iterator[None]:
        """For derivatives, in the types that autocast chose."""
        with ExitStack() as stack:
            for kind, _, _ in self.autocast:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    def tolerance(self, leaf: Tensor) -> float:
        """How far a redone tensor may be off, relative to its largest element."""
        own = LOW_PRECISION_TOLERANCE if self.low_precision else TOLERANCE.get(leaf.dtype.to_real(), LOW_PRECISION_TOLERANCE)
        return own if leaf.device.type in ("cpu", "meta") else max(own, ACCELERATOR_TOLERANCE)


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


class Comparison:
    """Redone values against samples of the first ones; on a device that would have to be waited for, at the end of the backward pass."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.worst: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(self, found: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
        """Refuse what differs. What has become NaN passes, the gradient will tell."""
        for tensor, expected in zip(found, samples, strict=True):
            if expected.is_meta or not expected.numel() or type(expected) is not Tensor:  # no values
                continue
            again = _spread(tensor)
            if again.is_cpu and torch.equal(again, expected):
                continue
            if not (again.is_floating_point() or again.is_complex()):
                raise changed("came out differently")
            gap = torch.linalg.vector_norm((again - expected).nan_to_num_(0.0), math.inf)  # inf - inf too
            size = torch.linalg.vector_norm(expected.nan_to_num(0.0, 0.0, 0.0), math.inf)
            excess = torch.sub(gap, size, alpha=self.recording.tolerance(tensor)).detach()
            if excess.is_cpu:
                _refuse(excess)
            elif not (excess.is_cuda and torch.cuda.is_current_stream_capturing()):
                kind = (excess.device, excess.dtype)
                if not self.worst:
                    torch.autograd.Variable._execution_engine.queue_callback(self.verify)  # pyright: ignore[reportAttributeAccessIssue]
                self.worst[kind] = torch.fmax(self.worst[kind], excess) if kind in self.worst else excess

    def verify(self) -> None:
        worst, self.worst = self.worst, {}
        for excess in worst.values():
            _refuse(excess)


def _refuse(excess: Tensor) -> None:
    if bool(excess > 0):
        raise changed("came out differently")


def changed(how: str) -> ValueError:
    """A step redone was not the same step."""
    return ValueError(
        f"a step redone in a backward pass {how} than in the forward pass, so its gradient would be wrong: func reads something that "
        "changed since (a variable, a container, a cache that it filled, a random number from elsewhere than torch generators it holds); "
        "pass what varies in args=(...), or solve with adjoint='direct'"
    )


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


def sample(leaf: Tensor) -> Tensor:
    """A copy of at most about ``SAMPLE`` elements, spread over the leaf."""
    return _spread(leaf).clone()


def _spread(leaf: Tensor) -> Tensor:
    """An odd stride does not run along one column."""
    flat = leaf.detach().reshape(-1)
    return flat if flat.numel() <= SAMPLE else flat[:: flat.numel() // SAMPLE | 1]
