"""A program to differentiate: its loss as a function of groups of leaves, run again and again from the same random numbers and buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.adjoint import Adjoint, DirectAdjoint, Overseen, ReversibleAdjoint, overseen
from ..integrate.captured import reachable
from ..integrate.recording import Recording
from ..problem import Problem, Run
from ..pytree import build, leaves_of, structure_of
from ..signature import uncompiled
from ..solve import odeint, solve
from ..solvers import Leaves
from ..testing import SEED
from .subject import Subject

MOST_GROUPS = 12
RATIO = 4.0  # between the three moves of a finite difference; the smallest is (round-off)^(1/3) of the size of what is moved

Gradient = dict[str, Tensor]  # by group, flat, real, in float64 on the CPU


@dataclass(frozen=True)
class Stored(Adjoint):
    """The reversible scheme by plain autograd: the exact gradient of that scheme."""

    both_ways = True
    scheme: ReversibleAdjoint

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        return self.scheme.stored(problem, y0, args)


@dataclass
class Program:
    """A loss as a function of ``groups`` of leaves: func(z0) of a network, or func solved from z0 with ``options`` (else None)."""

    func: Callable[..., Any]
    z0: Any
    args: tuple[Any, ...]
    t: tuple[float, ...]
    options: dict[str, Any] | None
    loss: Callable[[Any], Tensor]
    seed: int

    def __post_init__(self) -> None:
        self.recording = Recording(self.func, _tensors(self.z0), (*self.args, self.loss))
        self.recording.mark()
        found = reachable(self.func, self.args)
        self.groups = _groups(self.func, self.z0, self.args)
        named = {id(leaf) for members in self.groups.values() for leaf in members}
        unnamed = [leaf for leaf in found.tensors if leaf.is_leaf and leaf.requires_grad and id(leaf) not in named]
        if not self.groups and not unnamed:
            raise ValueError("nothing here has a gradient: z0 holds no floating tensor, and no parameter or argument requires grad")
        if unnamed:
            raw = self._raw(unnamed, DirectAdjoint())
            self.groups["closure"] = [leaf for leaf, g in zip(unnamed, raw, strict=True) if g is not None]
        self.groups = {name: members for name, members in self.groups.items() if members}
        leaves = [leaf for leaf in _tensors((self.z0, list(self.groups.values()))) if _differentiable(leaf)]
        dtypes, device = [leaf.real.dtype for leaf in leaves], leaves[0].device.type
        if torch.is_autocast_enabled(device):
            dtypes.append(torch.get_autocast_dtype(device))
        self.dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        self.grid: tuple[float, ...] | None = None  # of the solve
        if self.options is not None:
            with self._as_at_first(DirectAdjoint()), torch.no_grad():
                given: dict[str, Any] = {"method": "rk4", **self.options}
                self.grid = solve(self.func, self.z0, self.t, args=self.args, adjoint="direct", **given).grid

    def gradient(self, adjoint: Adjoint) -> Gradient:
        """By group."""
        leaves = [leaf for group in self.groups.values() for leaf in group]
        found = iter(zip(leaves, self._raw(leaves, adjoint), strict=True))
        pairs = {group: [next(found) for _ in members] for group, members in self.groups.items()}
        return {group: _flat([torch.zeros_like(leaf) if g is None else g for leaf, g in pairs[group]]) for group in pairs}

    def _raw(self, leaves: Leaves, adjoint: Adjoint) -> tuple[Tensor | None, ...]:
        with self._as_at_first(adjoint), torch.enable_grad():
            loss = self._value(self._end(adjoint))
            if not loss.requires_grad:
                raise ValueError("the loss does not depend on z0 or any parameter through operations that autograd sees")
            return torch.autograd.grad(loss, leaves, allow_unused=True)

    def end(self) -> Tensor:
        """The end state, flat; ``asked``: by which adjoints it would be solved."""
        with self._as_at_first(DirectAdjoint()) as solves, torch.no_grad():
            end = self._end(DirectAdjoint())
            self.asked = solves.asked
            return _flat([leaf for leaf in _tensors(end) if _differentiable(leaf)])

    def shaken(self) -> Gradient:
        """The gradient with all leaves changed at random by round-off, relative to their size."""
        generator, eps = torch.Generator().manual_seed(SEED + self.seed), torch.finfo(self.dtype).eps
        leaves = [leaf for group in self.groups.values() for leaf in group]
        changes = [eps * _size([leaf]) * torch.randn(leaf.shape, dtype=torch.float64, generator=generator).to(leaf) for leaf in leaves]
        with self._moved(leaves, changes):
            return self.gradient(DirectAdjoint())

    def slope(self, group: str, along: Tensor) -> tuple[float, float]:
        """d loss / d h along a direction by central differences, and its uncertainty."""
        leaves, eps = self.groups[group], torch.finfo(self.dtype).eps
        smallest = eps ** (1 / 3) * _size(leaves)
        slopes, largest = [], 0.0
        for number in range(3):
            h = RATIO**number * smallest
            after, before = (self._value_at(leaves, sign * h * along) for sign in (1, -1))
            slopes.append((after - before) / (2 * h))
            largest = max(largest, abs(after), abs(before))
        spread = max(slopes) - min(slopes)  # kinks passed, curvature: more than what is left of these at the smallest h
        return slopes[0], spread + 10 * eps * largest / smallest

    def _value_at(self, leaves: Leaves, change: Tensor) -> float:
        sizes = [2 * leaf.numel() if leaf.is_complex() else leaf.numel() for leaf in leaves]
        changes = [_shaped(part, leaf) for part, leaf in zip(change.split(sizes), leaves, strict=True)]
        with self._moved(leaves, changes), self._as_at_first(DirectAdjoint()), torch.no_grad():
            return self._value(self._end(DirectAdjoint())).item()

    @contextmanager
    def _moved(self, leaves: Leaves, changes: Leaves) -> Iterator[None]:
        """Leaves with other values, on the steps that the solve took; with their own memory again behind, so that no graph notices."""
        options, before = self.options, [leaf.data for leaf in leaves]
        try:
            if options is not None:
                self.options = {"method": options.get("method", "rk4"), "grid": self.grid}
            for leaf, change in zip(leaves, changes, strict=True):
                leaf.data = leaf.data + change
            yield
        finally:
            self.options = options
            for leaf, data in zip(leaves, before, strict=True):
                leaf.data = data

    def _end(self, adjoint: Adjoint) -> Any:
        if self.options is None:
            return self.func(_mapped(self.z0, torch.clone))  # its first layer may work in place
        states = odeint(self.func, self.z0, self.t, args=self.args, adjoint=adjoint, **self.options)
        structure = structure_of(states)
        return build(structure, [leaf[-1] for leaf in leaves_of(states, structure)])

    def _value(self, end: Any) -> Tensor:
        value = self.loss(end)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            given = f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss must return one real number as a tensor, got {given}; reduce it, for instance by .mean()")
        return value.reshape(())

    @contextmanager
    def _as_at_first(self, adjoint: Adjoint) -> Iterator[Overseen]:
        """All solves by ``adjoint``; random numbers, buffers and attributes as they were at first, inside and behind."""
        self.recording.retreat()
        torch.clear_autocast_cache()  # of weights with other values
        try:
            with overseen(adjoint) as solves:
                yield solves
        finally:
            torch.clear_autocast_cache()
            self.recording.retreat()


def program_of(
    target: Callable[..., Any], z0: Any, t: Sequence[float] | None, options: dict[str, Any], loss: Callable[[Any], Tensor] | None, seed: int
) -> Program:
    """Of a function with t and options, of a block, or of a network."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be callable as loss(end), got {type(loss).__name__}")
    args = options["args"]
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(x,) for a single argument")
    target = uncompiled(target)
    subject = Subject(target, t, options)
    network = subject.block is not None or subject.network
    z0 = _mapped(z0, lambda leaf: leaf.detach().clone().requires_grad_())
    args = _mapped(args, lambda leaf: leaf.detach().clone().requires_grad_() if leaf.requires_grad else leaf)
    solving = None if network else {name: value for name, value in subject.options.items() if name != "args"}
    return Program(target, z0, args, subject.t, solving, loss or _Projection(seed), seed)


class _Projection:
    """The end state projected onto a fixed random direction, which no symmetry of the problem knows of."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, end: Any) -> Tensor:
        leaves = [leaf for leaf in _tensors(end) if _differentiable(leaf)]
        if not leaves:
            raise TypeError(f"the network returned {type(end).__name__} without floating tensors; give loss, of what it returns")
        generator, total = torch.Generator().manual_seed(SEED + self.seed), torch.zeros((), device=leaves[0].device)
        for leaf in leaves:
            numbers = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            along = torch.randn(numbers.shape, dtype=torch.float64, generator=generator).to(numbers)
            total = total + (numbers * along).sum() / math.sqrt(max(numbers.numel(), 1))
        return total


def _groups(func: Any, z0: Any, args: tuple[Any, ...]) -> dict[str, list[Tensor]]:
    """Leaves by name of their group."""
    groups: dict[str, list[Tensor]] = {"z0": [leaf for leaf in _tensors(z0) if leaf.requires_grad]}
    parameters: dict[str, Tensor] = {}
    owner = getattr(func, "__self__", None)  # the module whose method func is
    parts = [("", owner if isinstance(owner, nn.Module) else func)]
    for name, part in [*parts, *((f"args[{i}]", leaf) for i, arg in enumerate(args) for leaf in _leaves(arg))]:
        if isinstance(part, nn.Module):
            own = {f"{name}.{key}".lstrip("."): p for key, p in part.named_parameters() if p.requires_grad}
            parameters |= {key: p for key, p in own.items() if not any(p is other for other in parameters.values())}
        elif isinstance(part, Tensor) and part.requires_grad:
            groups.setdefault(name, []).append(part)
    for key, members in _by_prefix(parameters).items():
        groups[key if key not in groups else f"self.{key}"] = members
    return groups


def _by_prefix(parameters: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Under full names, or the longest prefixes that make no more than ``MOST_GROUPS``."""
    depths = max((name.count(".") for name in parameters), default=0) + 1
    groups: dict[str, list[Tensor]] = {}
    for depth in range(depths, 0, -1):
        groups = {}
        for name, parameter in parameters.items():
            groups.setdefault(".".join(name.split(".")[:depth]), []).append(parameter)
        if len(groups) <= MOST_GROUPS:
            break
    return groups if len(groups) <= 4 * MOST_GROUPS else {"parameters": list(parameters.values())}


def _leaves(tree: Any) -> list[Any]:
    return leaves_of(tree, structure_of(tree))


def _tensors(tree: Any) -> Leaves:
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor)]


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``tree`` with its differentiable tensors changed."""
    structure = structure_of(tree)
    return build(structure, [change(x) if isinstance(x, Tensor) and _differentiable(x) else x for x in leaves_of(tree, structure)])


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _flat(tensors: Leaves) -> Tensor:
    parts = [torch.view_as_real(x) if x.is_complex() else x for x in (tensor.detach().resolve_conj().cpu() for tensor in tensors)]
    return torch.cat([part.reshape(-1).double() for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)


def _size(tensors: Leaves) -> float:
    """Root mean square; 1 where that is 0."""
    return math.sqrt(_flat(tensors).square().mean().item()) or 1.0


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        flat = torch.view_as_complex(flat.reshape(*like.shape, 2))
    return flat.reshape(like.shape).to(like)
