"""Features and weights that read them: one state (z, theta), theta with the batch in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .dynamics import Dynamics, Theta
from .gradients.adjoint import Adjoint, CheckpointAdjoint, DirectAdjoint
from .integrate.functional_call import call_with
from .integrate.sample_weights import call_apart, call_together
from .pytree import build, leaves_of, structure_of
from .signature import CountedCall


class BothWays:
    """dz/dt = f(t, z; theta) and dtheta/dt = q(t, theta, z), with theta of each sample.

    Args:
        f: called as f(theta, t, z), as ``Swapped`` is, or an nn.Module.
        dynamics: q.
        owner: the module whose weights theta are.
        together: whether all samples go through f at once, see ``goes_together``.
    """

    def __init__(self, f: Callable[..., Any], dynamics: Dynamics, owner: nn.Module, together: bool) -> None:
        self.f, self.dynamics, self.owner, self.together = f, dynamics, owner, together
        self.call = call_together if together else call_apart
        self.counters = CountedCall(owner).counters
        self.counters_wanted = CountedCall(owner).names

    def __call__(self, t: Tensor, y: tuple[Any, Any], *, step: int = 0, stage: int = 0) -> tuple[Any, Any]:
        z, state = y
        slope = self.call(self.f, self.dynamics.weights(state), t, z, **self.counters(step, stage))
        with in_own_precision(t.device):
            return slope, self.dynamics(t, state, z)


class WrittenBothWays(nn.Module):
    """The same as a plain module, theta being parameters of its own copy of f at the start: what ``unroll`` writes out."""

    def __init__(self, f: nn.Module, dynamics: Dynamics) -> None:
        super().__init__()
        self.f, self.dynamics, self.together = f, dynamics, False
        self.counters_wanted = CountedCall(f).names

    def forward(self, t: Tensor, y: tuple[Any, Any], *, step: int = 0, stage: int = 0) -> tuple[Any, Any]:
        return BothWays(self._with, self.dynamics, self.f, self.together)(t, y, step=step, stage=stage)

    def _with(self, theta: Theta, *args: Any, **kwargs: Any) -> Any:
        return call_with(self.f, theta, *args, **kwargs)


def in_own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Weights move in their own precision whatever autocast says."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def samples_of(z0: Any) -> int:
    """How many samples z0 has in front of every leaf."""
    sizes = [leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves_of(z0, structure_of(z0))]
    first = sizes[0] if sizes else None
    if first is None or any(size != first for size in sizes):  # numbers, or an exported program's symbols
        raise ValueError(f"weights that read the features are those of each sample: z0 needs the batch in front of every leaf, got {sizes}")
    return first


def start_of(z0: Any, theta: Theta, initial: Callable[[Any], Theta] | None) -> Theta:
    """theta(t0) of each sample: shared, or for some weights by ``initial(z0)``."""
    batch = samples_of(z0)
    theta = {name: weight.unsqueeze(0) for name, weight in theta.items()}
    start = {name: weight.repeat(batch, *[1] * (weight.ndim - 1)) for name, weight in theta.items()}
    for name, weight in ({} if initial is None else initial(z0)).items():
        if name not in start:
            raise ValueError(f"initial(z0) gives {name!r}, which does not evolve: {', '.join(start)} do")
        if weight.shape != start[name].shape:
            raise ValueError(f"initial(z0) gives {name} of shape {tuple(weight.shape)}; per sample it is {tuple(start[name].shape)}")
        start[name] = weight.to(start[name].dtype)
    return start


def adjoint_of(func: Any, adjoint: Adjoint) -> Adjoint:
    """That of a block: what takes all samples together, the compiler of a whole network does not recompute, and stores."""
    stored = torch.compiler.is_dynamo_compiling() and isinstance(func, BothWays) and func.together
    return DirectAdjoint() if stored and isinstance(adjoint, CheckpointAdjoint) else adjoint


def features(states: Sequence[Any], z0: Any) -> tuple[list[Any], Any]:
    """Of states (z, theta) on flat leaves those of z, and its structure."""
    structure = structure_of(z0)
    count = len(leaves_of(z0, structure))
    return [state[:count] for state in states], structure


def weights_of(states: Sequence[Any], y0: tuple[Any, Any], dynamics: Dynamics) -> list[Theta]:
    """Of states (z, theta) on flat leaves the weights."""
    structure = structure_of(y0)
    return [dynamics.weights(build(structure, state)[1]) for state in states]


def check_ways(reads: bool, given: list[str], initial: Any) -> None:
    """What belongs to weights that move by themselves, and what to those that read the features."""
    if reads and given:
        raise ValueError(
            f"{', '.join(given)} is about weights that move by themselves; these read the features, and both are stepped jointly"
        )
    if initial is not None and not reads:
        raise ValueError("initial= is theta(t0) of each sample, for a dynamics that reads the features; this one moves one theta for all")
    if initial is not None and not callable(initial):
        raise TypeError(f"initial must be callable as initial(z0), got {type(initial).__name__}")
