"""A program to differentiate: its loss as a function of groups of leaves, run again and again from the same random numbers and buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..block import ODEBlock
from ..gradients.adjoint import Adjoint, DirectAdjoint, ReversibleAdjoint
from ..integrate.captured import reachable
from ..problem import Problem, Run, signature_of
from ..pytree import build, leaves_of, structure_of
from ..solve import odeint, problem_of, solve
from ..solvers import Leaves
from ..stepping import Adaptive
from ..testing import SEED
from .subject import Subject, uncompiled

MOST_GROUPS = 12
RATIO = 4.0  # between the three moves of a finite difference; the smallest is (round-off)^(1/3) of the size of what is moved
WIDE = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}

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
    grid: tuple[float, ...] | None = None  # of error control
    copied: bool = False  # in float64, which autocast leaves alone

    def __post_init__(self) -> None:
        around, found = reachable(self.func, self.args, self.loss), reachable(self.func, self.args)
        self.modules, self.generators = [m for m in around.modules if not isinstance(m, torch.jit.ScriptModule)], around.generators
        self.blocks = [module for module in self.modules if isinstance(module, ODEBlock)]
        self.groups, named = _groups(self.func, self.z0, self.args)
        unnamed = [leaf for leaf in found.tensors if leaf.is_leaf and leaf.requires_grad and id(leaf) not in named]
        if not self.groups and not unnamed:
            raise ValueError("nothing here has a gradient: z0 holds no floating tensor, and no parameter or argument requires grad")
        self.closure = list(self.used(unnamed)) if unnamed else []
        if self.closure:
            self.groups["closure"] = self.closure
        leaves = [leaf for leaf in _tensors((self.z0, list(self.groups.values()))) if _differentiable(leaf)]
        dtypes, device = [_real(leaf.dtype) for leaf in leaves], leaves[0].device.type
        if torch.is_autocast_enabled(device) and not self.copied:
            dtypes.append(torch.get_autocast_dtype(device))
        self.dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def adaptive(self) -> bool:
        """Whether error control found the steps."""
        return self.grid is not None

    def gradient(self, adjoint: Adjoint, frozen: bool = False) -> Gradient:
        """By group; ``frozen``: on the steps that error control found, else as the user's own solve would be."""
        leaves = [leaf for group in self.groups.values() for leaf in group]
        found = iter(zip(leaves, self._raw(leaves, adjoint, frozen), strict=True))
        pairs = {group: [next(found) for _ in members] for group, members in self.groups.items()}
        return {group: _flat([torch.zeros_like(leaf) if g is None else g for leaf, g in pairs[group]]) for group in pairs}

    def used(self, leaves: Leaves) -> Leaves:
        """Those that the loss depends on."""
        return [leaf for leaf, g in zip(leaves, self._raw(leaves, DirectAdjoint(), False), strict=True) if g is not None]

    def _raw(self, leaves: Leaves, adjoint: Adjoint, frozen: bool) -> tuple[Tensor | None, ...]:
        with self._as_at_first(adjoint), torch.enable_grad():
            loss = self._value(self._end(adjoint, frozen))
            if not loss.requires_grad:
                raise ValueError("the loss does not depend on z0 or any parameter through operations that autograd sees")
            return torch.autograd.grad(loss, leaves, allow_unused=True)

    def value(self) -> float:
        """The loss alone."""
        with self._as_at_first(DirectAdjoint()), torch.no_grad():
            return self._value(self._end(DirectAdjoint(), frozen=True)).item()

    def end(self) -> Tensor:
        """The end state, flat."""
        with self._as_at_first(DirectAdjoint()), torch.no_grad():
            return _flat([leaf for leaf in _tensors(self._end(DirectAdjoint(), frozen=True)) if _differentiable(leaf)])

    def shaken(self, dtype: torch.dtype) -> Gradient:
        """The exact gradient with all leaves changed at random by round-off of ``dtype``, relative to their size."""
        generator, eps = torch.Generator().manual_seed(SEED + self.seed), torch.finfo(dtype).eps
        leaves = [leaf for group in self.groups.values() for leaf in group]
        changes = [eps * _size([leaf]) * torch.randn(leaf.shape, dtype=torch.float64, generator=generator).to(leaf) for leaf in leaves]
        with _moved(leaves, changes):
            return self.gradient(DirectAdjoint(), frozen=True)

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
        shrinking = max(abs(slopes[0] - slopes[1]), abs(slopes[1] - slopes[2]) / RATIO)  # kinks passed make errors that shrink like h
        return slopes[0], shrinking + 10 * eps * largest / smallest

    def _value_at(self, leaves: Leaves, change: Tensor) -> float:
        sizes = [2 * leaf.numel() if leaf.is_complex() else leaf.numel() for leaf in leaves]
        changes = [_shaped(part, leaf) for part, leaf in zip(change.split(sizes), leaves, strict=True)]
        with _moved(leaves, changes):
            return self.value()

    def _end(self, adjoint: Adjoint, frozen: bool) -> Any:
        if self.options is None:
            return self.func(_mapped(self.z0, torch.clone))  # its first layer may work in place
        options: dict[str, Any] = self.options
        if frozen and self.adaptive:
            options = {"method": options.get("method", "rk4"), "grid": self.grid}
        states = odeint(self.func, self.z0, self.t, args=self.args, adjoint=adjoint, **options)
        structure = structure_of(states)
        return build(structure, [leaf[-1] for leaf in leaves_of(states, structure)])

    def _value(self, end: Any) -> Tensor:
        value = self.loss(end)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            given = f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss must return one real number as a tensor, got {given}; reduce it, for instance by .mean()")
        return value.reshape(())

    @contextmanager
    def _as_at_first(self, adjoint: Adjoint) -> Iterator[None]:
        """Blocks with ``adjoint``, generators seeded, buffers lent as copies; all as it was behind."""
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        own = [(block, block.adjoint, block.compiling) for block in self.blocks]
        buffers = [(module, dict(module._buffers)) for module in self.modules]
        states = [generator.get_state() for generator in self.generators]
        copies: dict[int, Tensor] = {}
        torch.clear_autocast_cache()  # of weights with other values
        with torch.random.fork_rng(devices):
            for generator in (torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)):
                generator.manual_seed(self.seed)
            try:
                for module, present in buffers:
                    lent = {name: b for name, b in present.items() if b is not None and not b.requires_grad}
                    module._buffers.update({name: copies.setdefault(id(b), b.clone()) for name, b in lent.items()})
                for block in self.blocks:
                    block.adjoint, block.compiling = adjoint, False
                yield
            finally:
                torch.clear_autocast_cache()
                for block, adjoint_before, compiling in own:
                    block.adjoint, block.compiling = adjoint_before, compiling
                for module, present in buffers:
                    module._buffers.clear()
                    module._buffers.update(present)
                for generator, state in zip(self.generators, states, strict=True):
                    generator.set_state(state)


def program_of(
    target: Callable[..., Any], z0: Any, t: Sequence[float] | None, options: dict[str, Any], loss: Callable[[Any], Tensor] | None, seed: int
) -> Program:
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be callable as loss(end), got {type(loss).__name__}")
    target = uncompiled(target)
    network = _is_network(target, t, options)
    subject = Subject(target, t, {} if network else options)
    args = options["args"]
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(x,) for a single argument")
    z0 = _mapped(z0, lambda leaf: leaf.detach().clone().requires_grad_())
    args = _mapped(args, lambda leaf: leaf.detach().clone().requires_grad_() if leaf.requires_grad else leaf)
    solving = None if network else {name: value for name, value in subject.options.items() if name != "args"}
    program = Program(target, z0, args, subject.t, solving, loss or _Projection(seed), seed)
    if solving is not None:
        program.grid = _grid(program, solving)
    return program


def _grid(program: Program, options: dict[str, Any]) -> tuple[float, ...] | None:
    """The steps of error control, where there is any."""
    given: dict[str, Any] = {"method": "rk4", **options}
    with program._as_at_first(DirectAdjoint()), torch.no_grad():
        problem, _ = problem_of(program.func, program.z0, program.t, args=program.args, **given)
        if not isinstance(problem.stepping, Adaptive):
            return None
        return solve(program.func, program.z0, program.t, args=program.args, adjoint="direct", **given).grid


def _is_network(target: Any, t: Any, options: dict[str, Any]) -> bool:
    """Whether ``target`` is called as target(z0) and solves by its own blocks, rather than being a right-hand side itself."""
    if isinstance(target, ODEBlock):
        Subject(target, t, options)  # which refuses options
        return True
    if not isinstance(target, nn.Module):
        return False
    name, count = type(target).__name__, len(options["args"]) if isinstance(options["args"], tuple) else 0
    alone, field = _takes(target, 1), _takes(target, 2 + count)
    if not any(isinstance(module, ODEBlock) for module in target.modules()):
        if not field:
            raise TypeError(
                f"{name} holds no ODEBlock whose adjoint could be exchanged, and it cannot be called as f(t, z"
                f"{', *args' if count else ''}) to be solved here; give one of both"
            )
        return False
    given = [option for option, value in {"t": t, **options}.items() if value is not None and value != ()]
    if alone and given and field:
        raise ValueError(
            f"{name} holds blocks and can be called both as network(z) and as f(t, z): leave out {', '.join(given)} for the network, or "
            "wrap the right-hand side in a module with forward(self, t, z)"
        )
    if alone and given:
        raise ValueError(f"{name} is solved by its own blocks, with their methods and steps; leave out {', '.join(given)}")
    if not alone and not field:
        raise TypeError(f"{name} can be called neither as network(z0) nor as f(t, z); wrap it in a module that can")
    return alone


def _takes(module: nn.Module, count: int) -> bool:
    """Whether it can be called with so many arguments, and with ``step`` and ``stage`` where it asks for these."""
    signature = signature_of(module)
    if signature is None:
        return True
    counters = {p.name: 0 for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name in ("step", "stage")}
    try:
        signature.bind(*range(count), **(counters if count > 1 else {}))
    except TypeError:
        return False
    return True


def widened(program: Program) -> tuple[Program, list[str]]:
    """A copy in float64, and what to know: the program itself where it is in float64, or no such copy does the same."""
    cure = "hand over a module, or the tensors in args, to see what func reaches by closure"
    if program.dtype == torch.float64:
        return program, [f"{cure} by name"] if program.closure else []
    own = f"the exact gradient and finite differences are in {dtype_name(program.dtype)}"
    if program.closure:
        return program, [f"{own}: {cure} by name and in float64"]
    try:
        func, z0, args, loss = deepcopy((program.func, program.z0, program.args, program.loss))
        for module in [part for part in (_owner(func), loss, *_leaves(args)) if isinstance(part, nn.Module)]:
            module._apply(_wide)
        z0, args = _mapped(z0, _wide_leaf), _mapped(args, _wide_leaf)
        wide = Program(func, z0, args, program.t, program.options, loss, program.seed, program.grid, copied=True)
        gap = _relative(program.end(), wide.end())
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return program, [f"{own}: a copy in float64 does not run ({reason})"]
    if not gap <= math.sqrt(torch.finfo(program.dtype).eps):
        return program, [f"{own}: a copy in float64 ends elsewhere, by {gap:.1g} (other random draws, or a solve that amplifies round-off)"]
    return wide, []


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(WIDE.get(tensor.dtype, tensor.dtype))


def _wide_leaf(leaf: Tensor) -> Tensor:
    return _wide(leaf.detach()).requires_grad_(leaf.requires_grad)


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()


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


def _groups(func: Any, z0: Any, args: tuple[Any, ...]) -> tuple[dict[str, list[Tensor]], set[int]]:
    """Leaves by name of their group, and their ids."""
    groups: dict[str, list[Tensor]] = {}
    inputs = [leaf for leaf in _tensors(z0) if leaf.requires_grad]
    if inputs:
        groups["z0"] = inputs
    parameters: dict[str, Tensor] = {}
    for name, part in [("", _owner(func)), *((f"args[{i}]", leaf) for i, arg in enumerate(args) for leaf in _leaves(arg))]:
        if isinstance(part, nn.Module):
            own = {f"{name}.{key}".lstrip("."): p for key, p in part.named_parameters() if p.requires_grad}
            parameters |= {key: p for key, p in own.items() if not any(p is other for other in parameters.values())}
        elif isinstance(part, Tensor) and part.requires_grad:
            groups.setdefault(name, []).append(part)
    for key, members in _by_prefix(parameters).items():
        groups[key if key not in groups else f"self.{key}"] = members
    return groups, {id(leaf) for members in groups.values() for leaf in members}


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


def _owner(func: Any) -> Any:
    """The module whose method ``func`` is, or func."""
    owner = getattr(func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else func


@contextmanager
def _moved(leaves: Leaves, changes: Leaves) -> Iterator[None]:
    """Leaves with other values, and with their own memory again behind: no graph that holds them notices."""
    before = [leaf.data for leaf in leaves]
    try:
        for leaf, change in zip(leaves, changes, strict=True):
            leaf.data = leaf.data + change
        yield
    finally:
        for leaf, data in zip(leaves, before, strict=True):
            leaf.data = data


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


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.empty((), dtype=dtype).real.dtype if dtype.is_complex else dtype


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


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
