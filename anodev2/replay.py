"""What must be as it was in the forward pass for a recomputed step to be the same step.

A ``Recording`` is made around the forward pass and asked to ``rewind`` to each step in the backward pass:

- random numbers: the states of the default generators of every device in use and of private generators f can reach,
  kept per step only where a step drew from them;
- buffers (BatchNorm statistics, the vectors of spectral norm): values at the start of each step that changed them,
  lent to the recompute as copies, so that the real ones move once per forward pass;
- which tensors stand for the parameters (``torch.func.functional_call`` may be around), whether they want gradients,
  training flags, autocast, and the choice of kernels that depends on grad mode.

Tensors that f keeps as attributes of a module are set back for the first step, to see whether they want a gradient.
Python state that f changes by itself (a counter on a module, ``random``, numpy's generator) is not replayed. A step that
comes out differently because of it, or of anything else that changed since, is refused by ``Comparison``. Backward passes
through one module with buffers must not run in two threads at once: they would take each other's copies for its own.
"""

from __future__ import annotations

import atexit
import math
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from .problem import versions
from .reach import MODULE_FIELDS

Buffers = dict[str, Tensor | None]

# Kernels may depend on whether a graph is recorded, so a recomputed state need not agree to the last bit; accelerators
# also round float32 products to fewer bits (TF32). Tolerances are relative to what the step changed, and to the state by
# so many units of round-off.
ROUND_OFF = 64
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 5e-2
ACCELERATOR_TOLERANCE = 1e-2
SAMPLE = 1024  # about so many elements of a leaf are compared


class _Randomness:
    """The states of some random generators, kept per step where they move."""

    def __init__(self, devices: Iterable[torch.device], generators: Iterable[torch.Generator]) -> None:
        self.devices = [device for device in devices if device.type not in {"cpu", "meta"}]
        self.generators = [torch.default_generator, *generators]
        self.states: list[list[Tensor]] = []
        self.moved = False

    def read(self) -> list[Tensor]:
        own = [generator.get_state() for generator in self.generators]
        return own + [torch.get_device_module(device).get_rng_state(device) for device in self.devices]

    def write(self, states: list[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=False):
            generator.set_state(state)
        for device, state in zip(self.devices, states[len(self.generators) :], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)

    def mark(self) -> None:
        """Note the state before the next step."""
        states = self.read()
        if self.states and all(map(torch.equal, states, self.states[-1])):
            states = self.states[-1]
        self.moved = self.moved or bool(self.states and states is not self.states[-1])
        self.states.append(states)

    def rewind(self, index: int) -> None:
        if self.moved:
            self.write(self.states[index])

    def moved_since_mark(self) -> bool:
        return not all(map(torch.equal, self.read(), self.states[-1]))


class _Buffers:
    """The buffers of one module, kept per step where they change; those that require grad are inputs instead, never replaced."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs = {name for name, b in module._buffers.items() if b is not None and b.requires_grad}
        self.seen: list[list[tuple[str, Tensor, int]]] = []
        self.values: list[Buffers] = []

    def mark(self, copies: dict[int, Tensor]) -> None:
        """Note the values before the next step; ``copies`` keeps buffers that modules share shared.

        The version counters of all of a module's buffers speak for each: BatchNorm's kernel moves running_mean
        without counting, but num_batches_tracked beside it is counted.
        """
        if self.values and not self.moved_since_mark():
            self.values.append(self.values[-1])
            self.seen.append(self.seen[-1])
        else:
            present = {name: b for name, b in self.module._buffers.items() if name not in self.inputs}
            self.values.append({name: None if b is None else copies.setdefault(id(b), b.clone()) for name, b in present.items()})
            self.seen.append(self._now())

    def unmark(self) -> None:
        self.values.pop()
        self.seen.pop()

    def _now(self) -> list[tuple[str, Tensor, int]]:
        present = [(name, buffer) for name, buffer in self.module._buffers.items() if buffer is not None and name not in self.inputs]
        return [(name, buffer, version) for (name, buffer), version in zip(present, versions([b for _, b in present]), strict=True)]

    def moved_since_mark(self) -> bool:
        now, seen = self._now(), self.seen[-1]
        return len(now) != len(seen) or any(a is not b or m != n for (_, a, m), (_, b, n) in zip(now, seen, strict=True))

    @torch.no_grad()
    def retreat(self) -> None:
        """The real buffers get the values of the last mark back."""
        self.module._buffers.update({name: None for name in self.values[-1]})
        for name, buffer, _ in self.seen[-1]:
            with _unsafe_preserve_version_counter(buffer):  # like BatchNorm's kernel, whose backward does not read it
                self.module._buffers[name] = buffer.copy_(self.values[-1][name])  # pyright: ignore[reportArgumentType]
        self.seen[-1] = self._now()

    def rewind(self, index: int, copies: dict[int, Tensor]) -> None:
        """Lend the module the values of step ``index``, as copies where the step is going to change them."""
        values = self.values[index]
        if values is not self.values[index + 1]:
            values = {name: None if v is None else copies.setdefault(id(v), v.clone()) for name, v in values.items()}
        self.module._buffers.update(values)


class _Kept:
    """Tensors that f came to keep as plain attributes of modules during a forward pass: a cache, a running sum."""

    MISSING = object()

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = [module for module in modules if not any(map(_sets_weight, module._forward_pre_hooks.values()))]
        self.before = [self._plain(module) for module in self.modules]
        self.changed: list[tuple[nn.Module, str, object]] = []
        self.inputs = [weakref.ref(b) for module in modules for b in module._buffers.values() if b is not None and b.requires_grad]

    def _plain(self, module: nn.Module) -> dict[str, object]:
        return {name: value for name, value in vars(module).items() if name not in MODULE_FIELDS}

    def finish(self) -> None:
        for module, before in zip(self.modules, self.before, strict=True):
            for name, value in self._plain(module).items():
                if isinstance(value, Tensor) and value is not (old := before.get(name, self.MISSING)):
                    self.changed.append((module, name, old))
        self.before.clear()

    def rewind(self) -> None:
        """As before the first step, so that f fills them again, now with a graph."""
        for module, name, old in self.changed:
            vars(module).pop(name, None)
            if old is not self.MISSING:
                vars(module)[name] = old

    def refuse_gradients(self) -> None:
        """After the first step was redone: what wants a gradient now had no graph in the forward pass and would lose it."""
        attributes = [(module, name, vars(module).get(name)) for module, name, _ in self.changed]
        buffers = [(module, name, buffer) for module in self.modules for name, buffer in module._buffers.items()]
        for module, name, value in attributes + buffers:
            if isinstance(value, Tensor) and value.requires_grad and not any(value is given() for given in self.inputs):
                raise ValueError(
                    f"func keeps a tensor that requires grad as {type(module).__name__}.{name}, where CheckpointAdjoint would lose its "
                    "gradient; keep value.detach(), make it part of the state y, or solve with adjoint='direct'"
                )


def _sets_weight(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")  # weight_norm and spectral_norm set a fresh weight in every call


class Recording:
    """One forward pass, for replaying any of its steps.

    Run the steps inside ``making()`` with a ``mark()`` before each and one after the last; ``retreat()`` undoes what came
    after the last mark. Then, inside ``replaying()``, ``rewind(index)`` and redo the step inside ``surroundings()``.
    """

    def __init__(self, modules: Iterable[nn.Module], devices: set[torch.device], generators: Iterable[torch.Generator]) -> None:
        modules = list(modules)
        self.random = _Randomness(devices, generators)
        self.buffers = [_Buffers(module) for module in modules if module._buffers]
        self.kept = _Kept(modules)
        self.training = [(module, module.training) for module in modules]
        self.parameters = [(module, dict(module._parameters)) for module in modules if module._parameters]
        leaves = [p for _, own in self.parameters for p in own.values() if p is not None and p.is_leaf]
        self.wants = [(leaf, leaf.requires_grad) for leaf in leaves]
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", *(device.type for device in devices)})
            if torch.amp.is_autocast_available(kind)
        ]

    @contextmanager
    def making(self) -> Iterator[None]:
        """For the pass forward: no graph, and afterwards it is known what f keeps."""
        with without_graph():
            yield
        self.kept.finish()

    def mark(self) -> None:
        self.random.mark()
        copies: dict[int, Tensor] = {}
        for buffers in self.buffers:
            buffers.mark(copies)

    @property
    def marks(self) -> int:
        """How many marks there are."""
        return len(self.random.states)

    def moved(self) -> bool:
        """Whether f drew random numbers or moved buffers since the last mark."""
        return self.random.moved_since_mark() or any(buffers.moved_since_mark() for buffers in self.buffers)

    def retreat(self) -> None:
        """Undo what happened to generators and buffers since the last mark."""
        self.random.write(self.random.states[-1])
        for buffers in self.buffers:
            if buffers.moved_since_mark():
                buffers.retreat()

    def unmark(self) -> None:
        """Forget the last mark, as if what happened since the one before were one step."""
        self.random.states.pop()
        for buffers in self.buffers:
            buffers.unmark()

    def rewind(self, index: int) -> None:
        self.random.rewind(index)
        copies: dict[int, Tensor] = {}
        for buffers in self.buffers:
            buffers.rewind(index, copies)
        if index == 0:
            self.kept.rewind()

    def surroundings(self) -> AbstractContextManager[object]:
        """Autocast of the forward pass, for redoing a step; derivatives are taken outside it, in the types that it chose."""
        stack = ExitStack()
        for kind, dtype, enabled in self.autocast:
            if enabled:
                stack.enter_context(torch.autocast(kind, dtype))
        return stack

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """The forward pass's modules and generators; the present ones come back at the end, whatever happens."""
        with ExitStack() as stack:
            for kind, _, _ in self.autocast:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if self.random.moved:
                stack.callback(self.random.write, self.random.read())
            for buffers in self.buffers:
                stack.callback(buffers.module._buffers.update, dict(buffers.module._buffers))
            for module, name, _ in self.kept.changed:
                stack.callback(vars(module).update, {name: vars(module).get(name)})
            for module, parameters in self.parameters:
                if any(module._parameters.get(name) is not parameter for name, parameter in parameters.items()):
                    stack.callback(module._parameters.update, dict(module._parameters))
                    module._parameters.update(parameters)  # pyright: ignore[reportArgumentType]
            for module, training in self.training:
                if module.training != training:
                    stack.callback(setattr, module, "training", module.training)
                    module.training = training
            for leaf, wants in self.wants:
                if leaf.requires_grad != wants:
                    stack.callback(leaf.requires_grad_, leaf.requires_grad)
                    leaf.requires_grad_(wants)
            yield

    def comparison(self) -> Comparison:
        """For the states that steps of this recording lead to."""
        return Comparison(low_precision=any(enabled for _, _, enabled in self.autocast))


@contextmanager
def without_graph() -> Iterator[None]:
    """No graph is recorded, but the kernels are those of a pass that records one."""
    with _no_fast_path, torch.no_grad():
        yield


class _NoFastPath:
    """Switches the fast path of attention, a flag of the whole process, off while any thread is inside."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                torch.backends.mha.set_fastpath_enabled(self.before)


_no_fast_path = _NoFastPath()


class Underway:
    """Results of comparisons on their way from a device, each with an event that tells when it is there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[tuple[Tensor, Any]] = []

    def add(self, excess: Tensor, event: Any) -> None:
        with self.lock:
            self.waiting.append((excess, event))

    def arrived(self) -> list[Tensor]:
        """Those that are there, each handed out once."""
        with self.lock:
            there = [event.query() for _, event in self.waiting]
            found = [excess for (excess, _), arrived in zip(self.waiting, there, strict=True) if arrived]
            self.waiting = [pair for pair, arrived in zip(self.waiting, there, strict=True) if not arrived]
        return found


underway = Underway()
atexit.register(lambda: Comparison(low_precision=False).verify())


class Comparison:
    """Collects how far redone states are from the first ones; looked at once, so that a GPU is not kept waiting."""

    def __init__(self, low_precision: bool) -> None:
        self.low_precision = low_precision
        self.worst: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(self, found: Sequence[Tensor], samples: Sequence[Tensor], starts: Sequence[Tensor]) -> None:
        """Compare leaves after a step with samples of what they should be, and of the state before: positive is too far.

        NaN and inf pass, the loss will tell.
        """
        for leaf, expected, start in zip(found, samples, starts, strict=True):
            again = sample(leaf)
            if expected.numel() and not (leaf.is_cpu and torch.equal(again, expected)):  # no need to look closer; a GPU would have to wait
                gap = torch.linalg.vector_norm(again - expected, math.inf)
                excess = torch.sub(gap, torch.linalg.vector_norm(expected - start, math.inf), alpha=self._tolerance(leaf))
                excess = torch.sub(excess, torch.linalg.vector_norm(expected, math.inf), alpha=ROUND_OFF * torch.finfo(leaf.dtype).eps)
                kind = (excess.device, excess.dtype)
                self.worst[kind] = torch.fmax(self.worst[kind], excess) if kind in self.worst else excess

    def _tolerance(self, leaf: Tensor) -> float:
        """Relative to the largest change."""
        own = LOW_PRECISION_TOLERANCE if self.low_precision else TOLERANCE.get(leaf.dtype.to_real(), LOW_PRECISION_TOLERANCE)
        return own if leaf.device.type == "cpu" else max(own, ACCELERATOR_TOLERANCE)

    def verify(self) -> None:
        """Refuse a replay that was not one; on CUDA, whose results arrive later, so do a later backward pass and the end of the program."""
        here = [excess for excess in self.worst.values() if not excess.is_cuda]
        for excess in self.worst.values():
            if excess.is_cuda and not torch.cuda.is_current_stream_capturing():
                home = torch.empty_like(excess, device="cpu", pin_memory=True).copy_(excess, non_blocking=True)
                underway.add(home, torch.cuda.current_stream(excess.device).record_event())
        if any(bool(excess > 0) for excess in [*here, *underway.arrived()]):
            raise RuntimeError(
                "a step redone in a backward pass came out differently than in the forward pass, so its gradient is wrong: "
                "func reads something that changed since (a variable, an attribute, a tensor modified in place, a random number "
                "from elsewhere than torch generators it holds); pass what varies in args=(...), or solve with adjoint='direct'"
            )


def sample(leaf: Tensor) -> Tensor:
    """At most about ``SAMPLE`` elements, spread over the leaf; an odd stride does not run along one column."""
    flat = leaf.detach().reshape(-1)
    return flat if len(flat) <= SAMPLE else flat[:: len(flat) // SAMPLE | 1].clone()
