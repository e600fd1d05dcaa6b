"""What must be as it was in the forward pass for a recomputed step to be the same step.

A ``Recording`` is made around the forward pass and asked to ``rewind`` to each step in the backward pass:

- random numbers: the states of the default generators of every device in use and of private generators f can reach,
  kept per step only where a step drew from them;
- buffers (BatchNorm statistics, the vectors of spectral norm): values at the start of each step that changed them,
  lent to the recompute as copies, so that the real ones move once per forward pass;
- training flags and autocast.

Python state that f changes by itself (a counter on a module, ``random``, numpy's generator) is not replayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

Buffers = dict[str, Tensor]


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


class _Buffers:
    """The buffers of one module, kept per step where they change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.versions: list[tuple[int, int]] = []
        self.values: list[Buffers] = []

    def _present(self) -> Buffers:
        return {name: buffer for name, buffer in self.module._buffers.items() if buffer is not None}

    def mark(self) -> None:
        """Note the values before the next step.

        The version counters of all of a module's buffers speak for each: BatchNorm's kernel moves running_mean
        without counting, but num_batches_tracked beside it is counted.
        """
        present = self._present()
        versions = [(id(buffer), buffer._version) for buffer in present.values()]
        if self.values and versions == self.versions:
            self.values.append(self.values[-1])
        else:
            self.values.append({name: buffer.clone() for name, buffer in present.items()})
            self.versions = versions

    def rewind(self, index: int) -> None:
        """Lend the module the values of step ``index``, as copies where the step is going to change them."""
        values = self.values[index]
        if values is not self.values[index + 1]:
            values = {name: value.clone() for name, value in values.items()}
        self.module._buffers.update(values)

    @contextmanager
    def lent(self) -> Iterator[None]:
        own = dict(self.module._buffers)
        try:
            yield
        finally:
            self.module._buffers.update(own)


class Recording:
    """One forward pass, for replaying any of its steps.

    Call ``mark()`` before every step and once after the last; then, inside ``replaying()``, ``rewind(index)``.
    """

    def __init__(self, modules: Iterable[nn.Module], devices: set[torch.device], generators: Iterable[torch.Generator]) -> None:
        self.random = _Randomness(devices, generators)
        modules = list(modules)
        self.training = [(module, module.training) for module in modules]
        self.buffers = [_Buffers(module) for module in modules if module._buffers]
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", *(device.type for device in devices)})
            if torch.amp.is_autocast_available(kind)
        ]
        self.autocast_cache = torch.is_autocast_cache_enabled()

    def mark(self) -> None:
        self.random.mark()
        for buffers in self.buffers:
            buffers.mark()

    def rewind(self, index: int) -> None:
        self.random.rewind(index)
        for buffers in self.buffers:
            buffers.rewind(index)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """The forward pass's surroundings; the present ones come back at the end, whatever happens."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, self.autocast_cache))
            for buffers in self.buffers:
                stack.enter_context(buffers.lent())
            if self.random.moved:
                stack.callback(self.random.write, self.random.read())
            for module, training in self.training:
                if module.training != training:
                    stack.callback(setattr, module, "training", module.training)
                    module.training = training
            yield
