"""Blocks written out: a straight sequence of calls of f with fixed weights, for export and fast inference.

Each evaluation of f by the solver becomes one call of a copy of f that holds the weights of its time as ordinary parameters;
between them stand the method's sums alone. Copies share what does not evolve, the very tensors and modules: BatchNorm
statistics move as they do in the block, and a change of dtype or device reaches all copies. A ``state_dict`` names shared
tensors once per copy; ``torch.save`` stores each once.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .both_ways import WrittenBothWays, start_of
from .gradients.adjoint import Adjoint, ReversibleAdjoint
from .integrate.sample_weights import Together
from .problem import Problem, VectorField
from .pytree import LEAF, Structure, build, leaves_of, structure_of
from .readings import ReadingPlan
from .signature import CountedCall, Counters
from .solvers import Leaves, Method, RungeKutta
from .solvers.tableau import Tableau
from .stepping import Grid, Step, limited


class Unrollable(nn.Module, ABC):
    """A module with a solve inside, of a fixed number of steps."""

    def unroll(self) -> nn.Module:
        """The same outputs without a solver, see ``anodev2.unroll``."""
        return unroll(self)

    @abstractmethod
    def written_out(self) -> nn.Module:
        """The solve as a module of fixed weights, which shares with this one what does not evolve."""


def unroll(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in which every ``ODEBlock`` and ``CoupledODEBlock`` is written out: plain layers of fixed weights.

    Euler: z <- z + dt f_n(t_n, z), n = 0 ... steps - 1, f_n a copy of f with the weights theta(t_n) as its own parameters; other
    methods likewise, a copy for each time at which the method reads theta, one copy where the weights stand still. Same
    outputs, in training too, and to the bit (on a CPU whose matrix products depend on the alignment of memory, up to round-off where
    evolving matrices have odd sizes); shapes, dtypes, devices, training flags, hooks and ``requires_grad`` are kept. Nothing is
    shared with ``network``, and nothing leads back to the weight dynamics. Compiled modules come back uncompiled.

    Args:
        network: a module that holds blocks, at any depth, or a block itself.

    Raises:
        TypeError: ``network`` is no module.
        ValueError: it holds no block, or a block with a ``forward`` of its own.

    Warns:
        UserWarning: a module that calls ``odeint`` itself stays as it is.

    Source: ANODEV2, arXiv 1906.04596 (Euler on a common grid: an ordinary network whose layers' weights obey an ODE).
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be an nn.Module, got {type(network).__name__}; pass the module that holds the blocks")
    if not any(isinstance(module, Unrollable) for module in network.modules()):
        if own := _solving(network):
            raise ValueError(
                f"network={type(network).__name__} holds no ODEBlock or CoupledODEBlock to unroll; {', '.join(own)} by itself, which is "
                "not written out: make it a block, or export it as it is, solver and all"
            )
        raise ValueError(
            f"network={type(network).__name__} holds no ODEBlock or CoupledODEBlock to unroll; it is plain already, use it as it is"
        )
    if own := _solving(network):
        words = f"{', '.join(own)} by itself, which is not written out: blocks are, and this is left as it is, solver and all"
        warnings.warn(words, UserWarning, stacklevel=2)
    with torch.inference_mode(False), torch.no_grad():
        return _plain(deepcopy(network), {})


def _solving(network: nn.Module) -> list[str]:
    """The modules whose own code calls ``odeint`` or ``solve``, as told."""
    found = []
    for name, module in network.named_modules():
        kinds = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
        code = [value for kind in kinds for value in vars(kind).values() if isinstance(value, FunctionType)]
        if not isinstance(module, Unrollable) and any(_calls_a_solver(function) for function in code):
            found.append(f"{f'{name} ({type(module).__name__})' if name else type(module).__name__} solves")
    return found


def _calls_a_solver(function: FunctionType) -> bool:
    known = [function.__globals__.get(name) for name in function.__code__.co_names]
    here = [value for value in known if isinstance(value, ModuleType) and value.__name__ == __package__]
    known += [getattr(module, name, None) for module in here for name in function.__code__.co_names]
    return any(getattr(value, "__module__", None) == f"{__package__}.solve" and isinstance(value, FunctionType) for value in known)


def _plain(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """``module`` with its blocks written out in place, outer ones first: their weights may be what an inner one starts from."""
    if module in done:
        return done[module]
    inside = getattr(module, "_orig_mod", None)  # torch.compile(module) would go on calling what it was made of
    plain = inside if isinstance(inside, nn.Module) else module
    plain = plain.written_out() if isinstance(plain, Unrollable) else plain
    done[module] = plain
    for name, child in plain._modules.items():
        if child is not None:
            plain._modules[name] = _plain(child, done)
    return plain


def with_weights(f: nn.Module, weights: Mapping[Tensor, Tensor]) -> nn.Module:
    """A copy of f in which ``weights`` stand for its parameters; what depends on none of these is f's own."""
    new = {id(old): nn.Parameter(weight.detach().clone(), old.requires_grad) for old, weight in weights.items()}
    memo: dict[int, Any] = {id(parameter): new.get(id(parameter), parameter) for parameter in f.parameters()}
    for module in f.modules():
        memo[id(module._buffers)] = module._buffers  # the dict, so that buffers stay shared when they are moved or replaced
        if not any(id(parameter) in new for parameter in module.parameters()):
            memo[id(module)] = module
    return deepcopy(f, memo)


Terms = tuple[tuple[int, float], ...]  # which slope, times which number


class Call(NamedTuple):
    """One evaluation of f: by which copy, at which of the times, and of the state plus which slopes of the step."""

    copy: int
    time: int
    counters: Counters
    terms: Terms


class Unrolled(nn.Module):
    """A solve written out: calls of ``f``, or of its copies ``f[0], f[1], ...``, and the sums of the method.

    ``t`` holds the times of all calls as constants beside the state; they are rounded from numbers whenever the module
    changes its dtype, as the solver rounds them, each on its side of a break. ``calls``: for each step of an explicit Runge-Kutta
    method, on a single tensor, its evaluations of f and the multiples of their slopes that end it; other methods and trees go
    through ``Method.step``.
    """

    t: Tensor

    def __init__(self, copies: list[nn.Module], plan: ReadingPlan, method: Method, grid: Grid, adjoint: Adjoint) -> None:
        super().__init__()
        self.f = copies[0] if len(copies) == 1 else nn.ModuleList(copies)
        self.count = len(copies)
        self.plan = plan
        self.method = method
        like = next((p for p in copies[0].parameters() if p.is_floating_point() or p.is_complex()), torch.zeros(()))
        self.grid = grid if grid.jumps is None else replace(grid, jumps=grid.jumps.told(_time_dtype([like])))
        self.steps = self.grid.steps()
        self.scheme = adjoint if isinstance(adjoint, ReversibleAdjoint) else None  # which steps otherwise than the method alone
        self.counted = frozenset(CountedCall(copies[0]).names)
        asked = {float(step.seen(node)): (step, node) for step in self.steps for node in method.nodes}
        self.times = tuple(sorted(asked))
        self.asked = [asked[time] for time in self.times]
        self.register_buffer("t", self._constants(like), persistent=False)
        self.calls: list[tuple[list[Call], Terms]] | None = None
        if isinstance(method, RungeKutta) and self.scheme is None:
            self.calls = [self._calls(step, method.tableau) for step in self.steps]

    def forward(self, z0: Any) -> Any:
        """z(t1), in the structure, shapes and dtypes of z0."""
        if self.calls is not None and isinstance(z0, Proxy):  # torch.fx takes it down, for a single tensor
            return self._straight(z0)
        structure = structure_of(z0)
        y = leaves_of(z0, structure)
        for leaf in y:
            if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
                given = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"z0 must be made of floating or complex tensors, got {given}; write z0.float()")
        if self.calls is not None and structure is LEAF:
            return self._straight(y[0])
        problem = Problem(_Field(self, structure, y), self.method, self.grid, "end")
        if self.scheme is not None:
            return build(structure, self.scheme.stored(problem, y, ()).states[0])
        for step in self.steps:
            y = problem.advance(step, y, ())
        return build(structure, y)

    def constants(self, y: Leaves) -> Sequence[Tensor]:
        """``times`` as zero-dimensional tensors beside the state y."""
        if self.t.dtype == _time_dtype(y) and self.t.device == y[0].device:
            return self.t.unbind()
        return self._constants(y[0], _time_dtype(y)).unbind()

    def copies(self) -> list[nn.Module]:
        """f for each time at which the weights are read."""
        return list(self.f) if self.count > 1 and isinstance(self.f, nn.ModuleList) else [self.f]

    def counters(self, step: int, stage: int) -> Counters:
        """The keyword arguments that f wants."""
        return {name: value for name, value in (("step", step), ("stage", stage)) if name in self.counted}

    def _straight(self, z: Any) -> Any:
        times, copies = self.t.unbind() if isinstance(z, Proxy) else self.constants([z]), self.copies()
        for calls, end in self.calls or ():
            slopes: list[Any] = []
            for copy, time, counters, terms in calls:
                slopes.append(copies[copy](times[time], _sum(z, terms, slopes), **counters))
            z = _sum(z, end, slopes)
        return z

    def _calls(self, step: Step, tableau: Tableau) -> tuple[list[Call], Terms]:
        def terms(weights: Sequence[float]) -> Terms:
            return tuple((place, weight * float(step.dt)) for place, weight in enumerate(weights) if weight != 0)

        calls = []
        for stage in range(tableau.advancing):
            when = self.times.index(float(step.seen(tableau.nodes[stage])))
            number, counters = self.plan.number(step.index, stage), self.counters(step.index, stage)
            calls.append(Call(number, when, counters, terms(tableau.stage_weights[stage])))
        return calls, terms(tableau.weights)

    def _apply(self, fn: Any, recurse: bool = True) -> Unrolled:
        super()._apply(fn, recurse)
        self.t = self._constants(self.t)
        return self

    def _constants(self, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype, jumps = dtype or _time_dtype([like]), self.grid.jumps
        sides = None if jumps is None else jumps.told(dtype)
        times = [float(limited(step, sides).seen(node)) for step, node in self.asked]
        return torch.tensor(times, dtype=dtype, device=like.device)

    def extra_repr(self) -> str:
        return f"steps={len(self.steps)}, method={self.method.name!r}"


def _sum(z: Any, terms: Terms, slopes: list[Any]) -> Any:
    for place, scale in terms:
        k = slopes[place]
        z = torch.add(z, k if not isinstance(z, Proxy) and k.dtype == z.dtype else k.to(z.dtype), alpha=scale)
    return z


def _time_dtype(y: Leaves) -> torch.dtype:
    """That in which the solver hands times to f."""
    dtype = torch.float32
    for leaf in y:
        real = leaf.real.dtype if leaf.is_complex() else leaf.dtype
        dtype = dtype if real == dtype else torch.promote_types(dtype, real)
    return dtype


class Jointly(nn.Module):
    """Features and the weights of each sample, both updates of every step written out: z(t1) of (z, theta) from (z0, theta(t0))."""

    def __init__(self, solve: Unrolled, evolving: tuple[str, ...], initial: Any, together: Together) -> None:
        super().__init__()
        self.solve, self.evolving, self.initial, self.together = solve, evolving, initial, together

    def forward(self, z0: Any) -> Any:
        """z(t1), in the structure, shapes and dtypes of z0."""
        system = self.solve.copies()[0]
        assert isinstance(system, WrittenBothWays)
        system.together = self.together(system.f, self.evolving, z0)
        present = dict(system.f.named_parameters(remove_duplicate=False))
        theta = start_of(z0, {name: present[name] for name in self.evolving}, self.initial)
        return self.solve((z0, system.dynamics.start(theta)))[0]


class _Field(VectorField):
    """The calls of f as the vector field of a step; without the solver's checks of f, which the block has been through."""

    def __init__(self, module: Unrolled, structure: Structure, y0: Leaves) -> None:
        self.module = module
        self.func = module.f  # its split(), if it has one
        self.structure = structure
        self.device = y0[0].device
        self.time_dtype = _time_dtype(y0)
        self.latest = {}
        self.copies = module.copies()
        self.constants = dict(zip(module.times, module.constants(y0), strict=True))

    def __call__(
        self, args: tuple[Any, ...], step: Step, stage: int, node: float, y: Leaves, call: CountedCall | None = None
    ) -> list[Tensor]:
        time = float(step.seen(node))
        t = self.constants[time] if time in self.constants else self.time(time, self.time_dtype)
        z = build(self.structure, y)
        if call is not None:
            return leaves_of(call(t, z, step=step.index, stage=stage), self.structure)
        f = self.copies[self.module.plan.number(step.index, stage, step.backwards)]
        return leaves_of(f(t, z, **self.module.counters(step.index, stage)), self.structure)
