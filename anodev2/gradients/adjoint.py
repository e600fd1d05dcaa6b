"""How gradients of a solve are computed: the modes that users choose from.

``DirectAdjoint`` and ``CheckpointAdjoint`` give the exact gradient of the discrete program (discretize-then-optimize;
Gholami, Keutzer, Biros 2019, arXiv 1902.10298): the first lets autograd store every operation, the second keeps some
states and redoes steps in the backward pass (``per_step``, ``slots``), with everything as it was (``recording``).
``ReversibleAdjoint`` is exact for a scheme of its own, whose steps can be undone. ``BacksolveAdjoint`` is not exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from ..integrate.loop import Loop
from ..integrate.recording import recorded
from ..problem import Problem, Run, bytes_of
from ..solvers import Leapfrog, Leaves, Map
from ..solvers.tableau import nearest
from ..stepping import Adaptive, Grid, as_count, wants_grad
from ..torch_private import transformed
from .backsolve import Backsolve
from .compiled_runs import solved_in_runs
from .function import attached
from .offload import Offload
from .per_step import PerStep, TooLarge
from .reversible import Pairs, Undo, increment
from .schedule import Schedule, most_slots, positions
from .slots import Slots
from .vjp import Captured

T = TypeVar("T")


class Adjoint(ABC):
    """A gradient mode: runs a problem so that its outputs can be differentiated.

    ``both_ways``: steps are taken backwards too, from their end to their start.
    """

    both_ways: ClassVar[bool] = False

    @abstractmethod
    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        """The wanted states of ``problem``, and how the solve went."""


@dataclass(frozen=True)
class DirectAdjoint(Adjoint):
    """Plain autograd through every operation of the solve.

    Exact; memory grows with the number of steps times what one step stores. On a grid everything else that PyTorch can do
    works: double backward, forward mode, ``torch.func`` transforms, ``torch.compile(fullgraph=True)``.
    """

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        grid, within = problem.stepping, problem.within()
        followed = torch.compiler.is_compiling() or transformed()
        if isinstance(grid, Grid) and problem.watch is None and (followed or not within):
            outputs = problem.outputs(grid)
            wanted, states = set(outputs), {0: y0}
            y = y0
            read: dict[int, Leaves] = {}
            for step in grid.steps():
                if step.index in within:
                    y, _, read[step.index] = problem.taken(step, y, args, within[step.index])
                else:
                    y = problem.advance(step, y, args)
                if step.index + 1 in wanted:
                    states[step.index + 1] = y
            return Run([states[index] for index in outputs], grid, read=read)
        _refuse_data_dependent_steps(grid)
        loop = Loop(problem, args, recorded(problem, y0, args))
        for _ in loop.steps(y0):
            pass
        return Run(loop.outputs(), loop.grid, loop.status, loop.rejected, read=loop.read())


@dataclass(frozen=True)
class CheckpointAdjoint(Adjoint):
    """Keep some states, redo the steps between them in the backward pass.

    Exact: the same numbers as ``DirectAdjoint``. Random draws, buffers, attributes, autocast and training flags are those of the
    forward pass; buffers move once. What cannot be redone as it was is an error.

    For N steps of a method with s stages: N s evaluations of f forward and at most N s backward at least, with what one step saves at a
    time. What is kept meanwhile:

    - by default one state per step, and the nodes of the graph: whatever f does with tensors, second derivatives too, is
      differentiated as without checkpoints;
    - ``slots=s``: s states and the one before the last step, no graph, redoing r N - C(s + r, r - 1) + 1 steps with the least r
      such that C(s + r, s) >= N, the fewest that any schedule with s slots can. Adaptive solves, which do not know N, keep every
      2^k-th state, k as small as the slots allow;
    - ``memory="512MiB"`` (or bytes): all states and what the last steps saved, as far as that fits; else slots. It does not count
      parameters, their gradients, nodes, the states at the output times, and what f holds only while it runs.

    Where f draws random numbers or moves buffers, each step's generator state (5 KB on the CPU) and buffers are kept besides.

    ``offload="cpu"`` keeps the states in host memory (pinned). Copies run beside the computation; on the way back each state is sent
    for one restore ahead, so one more of them is on the device.

    With slots, refused: a second derivative, and tensors with a history that f keeps (an auxiliary loss, a cached weight). Inside
    ``torch.func`` transforms and forward-mode differentiation the solve is that of ``DirectAdjoint``, memory included;
    while ``torch.compile`` traces, each step is recomputed by the compiler, whatever ``slots`` and ``memory`` say.

    Raises:
        ValueError: ``slots`` below 1, ``slots`` and ``memory`` together, or a budget below the smallest schedule.

    Source: Griewank & Walther 2000 (binomial checkpointing); ANODE, arXiv 1902.10298 (for neural ODEs).
    """

    slots: int | None = None
    memory: str | int | None = None
    offload: str | None = None

    def __post_init__(self) -> None:
        if self.slots is not None:
            object.__setattr__(self, "slots", as_count("slots", self.slots))
        if self.slots is not None and self.memory is not None:
            raise ValueError("give slots or memory, not both: memory chooses the slots")
        if self.memory is not None:
            as_bytes(self.memory)
        if self.offload not in (None, "cpu"):
            raise ValueError(f"offload={self.offload!r} must be None or 'cpu'")

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return _compiled(self, problem, y0, args)
        if not torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing() or transformed():  # pyright: ignore[reportPrivateImportUsage]
            return DirectAdjoint().solve(problem, y0, args)
        grid = problem.stepping if isinstance(problem.stepping, Grid) else None
        if self.memory is not None and grid is None:
            raise ValueError("memory= needs the number of steps beforehand: give slots= to an adaptive solve, or pass grid=solution.grid")
        budget = None if self.memory is None else as_bytes(self.memory)
        whole = self.slots is None or (grid is not None and self.slots >= len(grid))
        if whole and budget is None and self.offload is None and (run := solved_in_runs(problem, y0, args)) is not None:
            return run
        offload, counted, graph = Offload(y0) if self.offload is not None else None, problem.field.evaluations, 0
        while True:
            recording = recorded(problem, y0, args)
            try:
                if whole:
                    return PerStep(problem, recording, args, budget, offload).run(y0)
                slots = self.slots if budget is None or grid is None else self.schedule(len(grid), bytes_of(y0), graph).slots
                captured = Captured(problem, recording, args)
                return attached(Slots(problem, recording, captured, slots, None if budget is None else graph, offload), y0)
            except TooLarge as error:
                graph = error.graph_bytes
            except RuntimeError as error:  # torch.func.grad, vjp and jacrev inside f refuse hooks
                if not whole or "saved tensor hooks" not in str(error):
                    raise
            whole = False
            recording.retreat(0)
            problem.field.evaluations = counted

    def schedule(self, steps: int, state: int, graph: int) -> Schedule:
        """What is kept of so many steps with states and step graphs of so many bytes."""
        if self.memory is None:
            return Schedule(steps, positions(steps, self.slots), self.slots)
        budget = as_bytes(self.memory)
        left = budget - (steps + 1) * state
        if left >= graph:
            return Schedule(steps, tuple(range(steps)), None, min(steps, left // graph) if graph else steps)
        slots = most_slots(steps, budget, state, graph)
        if slots < 1:
            least = Schedule(steps, positions(steps, 1), 1).peak(state, graph)
            raise ValueError(
                f"memory={self.memory!r} is below the smallest schedule for {steps} steps, {mebibytes(least)}: states of "
                f"{mebibytes(state)} and a step's graph of {mebibytes(graph)}; give it that, or let f store less"
            )
        return Schedule(steps, positions(steps, slots), slots)


@dataclass(frozen=True)
class ReversibleAdjoint(Adjoint):
    """Exact gradients from the end state alone: a scheme whose steps are undone in the backward pass.

    The solve carries a pair y, z, both y0 at the start; with Psi_h(t, y) the increment of the method's step,

        y_{n+1} = c y_n + (1 - c) z_n + Psi_h(t_n, z_n),        z_{n+1} = z_n - Psi_{-h}(t_{n+1}, y_{n+1}).

    The order is that of the method; twice its evaluations forward and as many backward; memory of one state pair and one
    step's graph for any number of steps. The solution is that of this scheme, not of the method alone, and its stability
    region is smaller: keep |h lambda| well below what the method bears. Steps that shrink states by a factor are undone by
    growing round-off by that factor and by 1/c per step. Where the state so found at t0 is off by more than 1e-6 of y0 in
    float64 and 1e-11 of the end (1e-5 of both in float32, 1e-2 below), a warning says by how much, in norms of leaves: an element that is
    small beside its neighbours can be off unseen. A gradient that is itself small, as decay makes it, can be off by more than the
    state: use float64, or another adjoint, for what decays by orders of magnitude.

    Args:
        coupling: c, in (0, 1).
        every: keep the pair after every so many steps, 2 + 2 N / every states of N steps in all, from which undoing goes on: what
            cannot be undone far is exact again, and the solution is the same. None: at the end alone.

    On grids only. Raises ValueError for an adaptive solve, a coupling out of range, and where ``CheckpointAdjoint`` does.

    Source: McCallum & Foster, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv 2410.11648 (2024).
    """

    both_ways = True
    coupling: float = 0.999
    every: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.coupling < 1:
            raise ValueError(f"coupling={self.coupling} must lie between 0 and 1")
        if self.every is not None:
            object.__setattr__(self, "every", as_count("every", self.every))

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        if not isinstance(problem.stepping, Grid):
            raise ValueError("ReversibleAdjoint solves on grids: record one adaptively first and pass grid=solution.grid")
        if problem.within() and not problem.slopes:
            raise ValueError(
                "the scheme of ReversibleAdjoint has no interpolant: give a grid that holds all times t, from hit='exact'; "
                "a time of t at a break must be the same tensor there"
            )
        _refuse_one_way(problem, "ReversibleAdjoint takes steps backwards")
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transformed():
            recording = recorded(problem, y0, args)
            return attached(Undo(problem, recording, Captured(problem, recording, args), self.coupling, self.every), y0)
        return self.stored(problem, y0, args)

    def stored(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        """The same scheme by plain autograd."""
        pairs = Pairs(problem, self.coupling, lambda step, backwards, y: increment(problem, step, backwards, y, args))
        states, _, _ = pairs.run(y0)
        return Run(states, pairs.grid, pairs.status)


@dataclass(frozen=True)
class BacksolveAdjoint(Adjoint):
    """Optimize-then-discretize, for comparison: the continuous adjoint equations solved backwards in time. Not exact.

        dalpha/dt = -(df/dy)^T alpha,    dJ/dp = int (df/dp)^T alpha dt,    y solved backwards beside them

    Memory of one state. The gradient is off by the discretisation error, and by any factor where y cannot be solved
    backwards: for y' = -l y noise grows by exp(l). Dropout and buffers are not replayed. f is evaluated with a graph, so
    its parameters, args and what it reaches by closure get (inexact) gradients; times do not.

    Args:
        rtol, atol: tolerances of the backward solve; None: on the same grid as forward where there is one, else those of
            y0, leaf by leaf, of which the gradients of parameters get the smallest.

    Raises:
        SolveError: in the backward pass, where error control cannot go on, or has taken 1000 times the steps forward.

    Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations, arXiv 1806.07366 (2018).
    """

    both_ways = True
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value} of BacksolveAdjoint must be at least 0")

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        if torch.compiler.is_compiling() or transformed():
            raise ValueError("BacksolveAdjoint does not work under torch.func transforms or torch.compile; solve with adjoint='direct'")
        if not torch.is_grad_enabled():
            return DirectAdjoint().solve(problem, y0, args)
        own = self.rtol is not None or self.atol is not None
        if own and problem.method.embedded_order is None:
            raise ValueError(
                f"BacksolveAdjoint with tolerances needs a method with an error estimate, not {problem.method.name}: take dopri5"
            )
        _refuse_one_way(problem, "BacksolveAdjoint solves backwards")
        if isinstance(problem.method, Leapfrog):
            raise ValueError(
                "leapfrog cannot solve the adjoint equations of BacksolveAdjoint, whose state is no (q, v); take another method"
            )
        if isinstance(problem.stepping, Grid):
            problem.stepping.nodes()  # which refuses times that differ from sample to sample
        breaks = problem.stepping.breaks if isinstance(problem.stepping, Adaptive) else ()
        if any(map(wants_grad, (*problem.stepping.times, *breaks))):
            raise ValueError(
                "BacksolveAdjoint gives no gradient with respect to times and breaks, nor to that of an event that it goes on from; "
                "detach t, or use adjoint='checkpoint'"
            )
        recording = recorded(problem, y0, args)
        return attached(Backsolve(problem, recording, Captured(problem, recording, args), self.rtol, self.atol), y0)


def _refuse_one_way(problem: Problem, reason: str) -> None:
    if problem.method.splits or problem.method.jacobian or isinstance(problem.method, Map):
        raise ValueError(f"{reason}, for which {problem.method.name} is not made: use adjoint='checkpoint'")


ADJOINTS: dict[str, type[Adjoint]] = {
    "direct": DirectAdjoint,
    "checkpoint": CheckpointAdjoint,
    "reversible": ReversibleAdjoint,
    "backsolve": BacksolveAdjoint,
}


def as_adjoint(adjoint: str | Adjoint) -> Adjoint:
    """The gradient mode of that name, or the given object; ValueError names those there are."""
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str) or adjoint not in ADJOINTS:
        if isinstance(adjoint, type) and issubclass(adjoint, Adjoint):
            raise ValueError(f"adjoint={adjoint.__name__} is a class; pass an Adjoint object, {adjoint.__name__}()")
        known = ", ".join(map(repr, ADJOINTS))
        raise ValueError(f"adjoint={adjoint!r} is unknown{nearest(adjoint, ADJOINTS)}; choose one of {known} or pass an Adjoint object")
    return ADJOINTS[adjoint]()


class Overseen:
    """Solves while ``diagnose`` looks on: all by ``adjoint`` instead of their own, uncompiled; ``asked`` holds theirs."""

    def __init__(self, adjoint: Adjoint) -> None:
        self.adjoint = adjoint
        self.asked: list[Adjoint] = []


_OVERSEERS: list[Overseen] = []  # seen by the threads of the backward pass too


@contextmanager
def overseen(adjoint: Adjoint) -> Iterator[Overseen]:
    """Every solve inside is by ``adjoint``, whatever it asks for."""
    _OVERSEERS.append(Overseen(adjoint))
    try:
        yield _OVERSEERS[-1]
    finally:
        _OVERSEERS.pop()


def by(own: Adjoint) -> Adjoint:
    """By which adjoint a solve goes that would go by this one."""
    return _OVERSEERS[-1].adjoint if _OVERSEERS else own


def in_force(asked: str | Adjoint, compiling: T) -> tuple[Adjoint, T | None]:
    """By which adjoint a solve goes that asks for this one, and how it is compiled; who looks on is told."""
    own = as_adjoint(asked)
    if not _OVERSEERS:
        return own, compiling
    _OVERSEERS[-1].asked.append(own)
    return by(own), None


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def as_bytes(memory: str | int) -> int:
    """A number of bytes, or text such as "512MiB" or "1.5 GB"."""
    text = str(memory).strip().upper()
    number = text.rstrip("KMGIB ")
    unit = text[len(number) :].strip() or "B"
    try:
        count = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        raise ValueError(f"memory={memory!r} must be a number of bytes or text such as '512MiB' or '2GB'") from None
    if not (count > 0 and math.isfinite(count)):
        raise ValueError(f"memory={memory!r} must be positive and finite")
    return int(count)


def mebibytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**16 else f"{count / 2**10:.2f} KiB" if count >= 2**10 else f"{count:.0f} B"


def _refuse_data_dependent_steps(stepping: Grid | Adaptive) -> None:
    if isinstance(stepping, Adaptive) and (torch.compiler.is_compiling() or transformed()):
        raise ValueError(
            "an adaptive solve reads errors as numbers, which torch.func transforms, forward mode and torch.compile do not allow; "
            "solve once outside and pass grid=solution.grid"
        )


def _compiled(adjoint: Adjoint, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
    """One state per step by the compiler's own means: what it traces as recomputed, it recomputes exactly, buffers untouched."""
    if not torch.compiler.is_compiling():  # f breaks the graph: what has a loop is then left to Python
        solve: Any = torch.compiler.disable(adjoint.solve)
        return solve(problem, y0, args)
    grid = problem.stepping
    _refuse_data_dependent_steps(grid)
    assert isinstance(grid, Grid)
    states, within = [y0], problem.within()
    read: dict[int, Leaves] = {}
    for step in grid.steps():
        if step.index in within:
            end, _, own = checkpoint(problem.taken, step, states[-1], args, within[step.index], use_reentrant=False)  # pyright: ignore
            read[step.index] = own
        else:
            end = checkpoint(problem.advance, step, states[-1], args, use_reentrant=False)
        states.append(end)  # pyright: ignore[reportArgumentType]
    return Run([states[index] for index in problem.outputs(grid)], grid, read=read)
