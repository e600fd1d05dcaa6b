"""What is looked at: a block with its own steps, or a function with those given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..block import CoupledODEBlock, ODEBlock
from ..dynamics import Theta
from ..gradients.adjoint import Adjoint, DirectAdjoint
from ..integrate.functional_call import call_with
from ..integrate.recording import Recording
from ..problem import Problem, Run
from ..pytree import build, leaves_of, structure_of
from ..signature import CountedCall, Counters, signature_of, uncompiled
from ..solution import Solution
from ..solve import problem_of, solve
from ..solvers import Leaves
from ..stepping import Grid, as_breaks, numbers, uniform_grid


class Subject:
    """dz/dt = field(t, z) over t, and the options of ``odeint`` by which it is solved.

    Args:
        target: an ``ODEBlock`` or ``CoupledODEBlock``, which brings t and options, or a function or module (t, z, *args).
        t: start and end; only for functions.
        options: of ``odeint``: method, steps, step_size, rtol, atol, args; only for functions. None counts as not given.
    """

    def __init__(self, target: Callable[..., Any], t: Sequence[float] | None, options: dict[str, Any]) -> None:
        target = uncompiled(target)
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        if isinstance(target, ODEBlock):
            if given or t is not None:
                names = [*given, *(["t"] if t is not None else [])]
                raise ValueError(f"a block is solved by its own method and steps; leave out {', '.join(names)}, or give block.f instead")
            self.block: ODEBlock | None = target
            self.t: tuple[float, ...] = target.t
            self.options: dict[str, Any] = {"method": target.method, "steps": target.steps, "breaks": target.breaks}
            self.call = CountedCall(target.f)
        else:
            if not callable(target):
                raise TypeError(f"block_or_func must be an ODEBlock or callable as func(t, z), got {type(target).__name__}")
            self.block = None
            self.t = numbers(tuple(t) if t is not None else (0.0, 1.0))
            if len(self.t) != 2:
                raise ValueError(f"t={t!r} must be two numbers, start and end")
            self.options = given
            self.call = CountedCall(target)
        self.target = target
        self.network = self.block is None and isinstance(target, nn.Module) and t is None and not given and _is_network(target)

    @classmethod
    def of(cls, target: Callable[..., Any], t: Sequence[float] | None, options: dict[str, Any], z0: Any) -> tuple[Subject, Any]:
        """The subject and its state at the start: the joint (z, theta) of a block whose weights read the features."""
        subject = cls(target, t, options)
        block = subject.block
        if not (isinstance(block, CoupledODEBlock) and block.dynamics.reads_features):
            return subject, z0
        with torch.no_grad():
            func, y0 = block.joint(z0)
        return cls(func, block.t, subject.options), y0

    @property
    def grid(self) -> Grid | None:
        """The steps, where they are known beforehand."""
        steps, size, breaks = (self.options.get(name) for name in ("steps", "step_size", "breaks"))
        return uniform_grid(self.t, steps, size, *as_breaks(breaks, self.t, torch.float64)) if steps or size else None

    def field(self, t: Tensor, z: Any, *args: Any, step: int = 0, stage: int = 0) -> Any:
        """dz/dt; theta(t) of a coupled block is that of the time t, whatever the grid."""
        time = min(max(float(t), min(self.t)), max(self.t))  # an end of t may have been rounded to float32
        return self._call(self._theta(time), t, z, args, self.call.counters(step, stage))

    @contextmanager
    def untouched(self, z: Any = ()) -> Iterator[Recording]:
        """The target may be evaluated inside, at states like z; buffers, generators and what modules keep are set back afterwards."""
        recording = Recording(self.target, leaves_of(z, structure_of(z)), self.options.get("args", ()))
        recording.mark()
        try:
            yield recording
        finally:
            recording.retreat()

    def step_of(self, time: float) -> int:
        """The number of the step that begins at this time or has it inside, the last one at the end; 0 where steps are not known."""
        span = self.t[1] - self.t[0]
        begun = [node for node in (self.grid.nodes()[1:-1] if self.grid else ()) if (node - time) / span <= 1e-9]
        return len(begun)

    def at(self, time: float) -> Callable[[Any], Any]:
        """z -> dz/dt at one time, by the step of the grid (if it is known) that the time belongs to; theta is found once."""
        theta, args, counters = self._theta(time), self.options.get("args", ()), self.call.counters(self.step_of(time), 0)

        def field(z: Any) -> Any:
            leaf = leaves_of(z, structure_of(z))[0]
            dtype = torch.promote_types(torch.float32, leaf.real.dtype if leaf.is_complex() else leaf.dtype)  # as a solve hands t
            return self._call(theta, torch.tensor(time, dtype=dtype, device=leaf.device), z, args, counters)

        return field

    def _theta(self, time: float) -> Theta | None:
        """The weights that z reads at this time; None where they stand."""
        if not isinstance(self.block, CoupledODEBlock):
            return None
        return self.block.weights(self.t[1] if self.block.which_weights == "final" else time)

    def _call(self, theta: Theta | None, t: Tensor, z: Any, args: tuple[Any, ...], counters: Counters) -> Any:
        if self.block is None or theta is None:
            return self.call.func(t, z, *args, **counters)
        return call_with(self.block.f, theta, t, z, **counters)


def _is_network(target: nn.Module) -> bool:
    """Whether it holds blocks, or takes one argument, so that it cannot be called as (t, z)."""
    signature = signature_of(target)
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY] if signature else []
    return any(isinstance(module, ODEBlock) for module in target.modules()) or len(needed) == 1


@dataclass(frozen=True)
class Looking(Adjoint):
    """Plain autograd, and every solve is kept: func, z0, t and options of ``odeint``, equal steps where a grid has others."""

    solves: list[tuple[Callable[..., Any], Any, tuple[float, ...], dict[str, Any]]] = field(default_factory=list)

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        structure, stepping = problem.field.structure, problem.stepping
        times = numbers(stepping.times)
        options: dict[str, Any] = {"method": problem.method, "args": problem.field.own(args)}
        if isinstance(stepping, Grid):
            lengths = [abs(float(step.dt)) for step in stepping.steps()]
            even = max(lengths) - min(lengths) <= 1e-9 * max(lengths)
            options |= {"steps": len(stepping)} if even else {"step_size": max(lengths)}
        else:
            options |= {name: build(structure, list(getattr(stepping, name))) for name in ("rtol", "atol")}
        z0 = build(structure, [leaf.detach() for leaf in y0])
        self.solves.append((problem.field.func, z0, (times[0], times[-1]), options))
        return DirectAdjoint().solve(problem, y0, args)


class Path:
    """A solve of a subject, seen at some ``times``: spread over the nodes of its steps, or over t where error control ends a step there.

    Args:
        z0: where it starts.
        count: of times; all nodes where these are fewer.
        options: of ``odeint``, instead of the subject's.
    """

    def __init__(self, subject: Subject, z0: Any, count: int, options: dict[str, Any]) -> None:
        self.subject, self.z0 = subject, z0
        self.func: Callable[..., Any] = subject.field if isinstance(subject.block, CoupledODEBlock) else subject.call.func
        self.problem = problem_of(self.func, z0, subject.t, **options)[0]
        (start, end), last = subject.t, count - 1
        self.nodes = self.problem.stepping.nodes() if isinstance(self.problem.stepping, Grid) else ()
        if self.nodes:
            places = sorted({round(i * (len(self.nodes) - 1) / last) for i in range(count)})
            self.times = tuple(self.nodes[place] for place in places)
        else:
            self.times = (*(start + (end - start) * (i / last) for i in range(last)), end)
        kept = ("method", "args", "breaks") if self.nodes else ("method", "args", "rtol", "atol")
        self.options = {"adjoint": "direct", **{name: options[name] for name in kept if name in options}}

    def solve(self, back_from: Any = None, **limits: Any) -> tuple[list[Any], Solution]:
        """The states at ``times``, as far as they were reached; from ``back_from`` at the last of them, the last one first."""
        func, back = self.func, back_from is not None
        start, way = (back_from, -1) if back else (self.z0, 1)
        if back and "step" in self.subject.call.names:
            call, last = CountedCall(func), len(self.nodes) - 2

            def func(t: Tensor, z: Any, *args: Any, step: int, stage: int) -> Any:
                return call(t, z, *args, step=last - step, stage=stage)  # the number of the step that is undone

        grid = {"grid": self.nodes[::way]} if self.nodes else {}
        with self.subject.untouched(self.z0):
            solution = solve(func, start, self.times[::way], **grid, **self.options, **limits)
        structure = structure_of(self.z0)
        leaves = leaves_of(solution.ys, structure)
        return [build(structure, [leaf[i] for leaf in leaves]) for i in range(len(solution.ts))], solution
