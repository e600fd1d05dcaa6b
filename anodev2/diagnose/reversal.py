"""Whether a solve can be undone: solved forwards and then backwards, and how errors may grow on the way back.

The spectra behind it need no Jacobian: products J v come from forward mode, J^T u from one recorded evaluation, and Lanczos turns
them into the largest singular value of J = df/dz and the largest eigenvalue of -(J + J^T)/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..block import CoupledODEBlock
from ..problem import CountedCall, Status
from ..pytree import build, leaves_of
from ..solve import problem_of, solve
from ..solvers import Leaves
from ..stepping import Grid, Step, as_count
from .jacobian import Jacobian, NoForwardMode, forward_mode, largest_eigenvalue, norm_of
from .subject import Subject
from .table import axes, table

# The largest error along the way back, and what it means for the gradient of BacksolveAdjoint, as measured over random blocks: below the
# first that is right to a few percent (kinks of f are another matter), above the second off by more than 10 %.
SAFE, FAILS = 1e-3, 0.1
CAUTION = math.log(1e4)  # a growth worth telling even where this solve came through it
PATIENCE = 100  # a solve backwards that takes so many times the steps of the one forwards has failed


@dataclass(frozen=True, repr=False)
class Reversibility:
    """How well a solve backwards from z(t1) finds the way of z again. ``print`` reads it aloud, ``plot`` draws it.

    One entry for each of ``times``, from the start t0 to the end t1:

    - errors: |z~ - z| / |z| (where z is 0, relative to the largest |z|), z solved forwards, z~ backwards from z(t1); inf where the
      solve backwards did not come;
    - norms: |z|;
    - lipschitz: the largest singular value of J = df/dz, by which nearby solutions separate or meet per unit of t at most;
    - expansion: mu, the largest eigenvalue of -(J + J^T)/2, by which they separate backwards: d|e|/ds <= mu |e|, s = t1 - t.

    J is that of the forward path, so expansion is about small errors. Both are nan where f has an operation without forward mode.
    ``status``: how the solve backwards ended; ``note``: what was not looked at.
    """

    times: tuple[float, ...]
    errors: tuple[float, ...]
    norms: tuple[float, ...]
    lipschitz: tuple[float, ...]
    expansion: tuple[float, ...]
    method: str
    status: Status
    note: str = ""

    @property
    def error(self) -> float:
        """|z~ - z| / |z| at the start: how well z(t0) is found again."""
        return self.errors[0]

    @property
    def worst(self) -> float:
        """The largest error on the way: a reverse solve evaluates f and its derivatives all along it."""
        return max(self.errors)

    @property
    def growth(self) -> float:
        """|z~ - z| at the start over that at the first of ``times`` on the way back: by which errors really grew."""
        sizes = _sizes(self.norms)
        start, first = (self.errors[i] * sizes[i] for i in (0, -2))
        return math.inf if math.isinf(start) else start / first if first else 1.0 if start == 0 else math.inf

    @property
    def exponent(self) -> float:
        """int mu |dt| by the trapezoidal rule: a small error of z(t1) grows by at most exp(exponent) on the way back to t0."""
        return sum(abs(b - a) * (m + n) / 2 for (a, b), (m, n) in zip(pairwise(self.times), pairwise(self.expansion), strict=True))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = list(zip(self.times, self.errors, self.norms, self.lipschitz, self.expansion, strict=True))
        lines = [table(["t", "error", "|z|", "Lipschitz", "mu backwards"], rows)]
        lines.append(f"error: |z~ - z| / |z|, z~ solved backwards with {self.method} from z({self.times[-1]:g})")
        return "\n".join([*lines, self.verdict, *([self.note] if self.note else [])])

    @property
    def verdict(self) -> str:
        """One sentence."""
        start, worst = f"z({self.times[0]:g})", self.worst
        growth = "" if math.isnan(self.exponent) else f"; errors may grow by exp({self.exponent:.3g})" if self.exponent > 0.05 else ""
        if not self.status.ok:
            return f"solving backwards does not come back to {start} ({self.status.message}): BacksolveAdjoint will fail{growth}"
        if worst > FAILS:
            return f"solving backwards misses {start} by {_share(self.error)}{self._elsewhere}: BacksolveAdjoint will fail{growth}"
        found = f"solving backwards finds {start} again to {self.error:.1g}{self._elsewhere}"
        if worst > SAFE:
            return f"{found}: the gradient of BacksolveAdjoint will be off, by a percent to a third{growth}"
        caution = growth if self.exponent > CAUTION else ""
        return f"{found}: the way back is that of z, and the gradient of a reverse solve off by its discretisation alone{caution}"

    @property
    def _elsewhere(self) -> str:
        """Where the way back is much worse than its end."""
        if self.worst <= 2 * self.error:
            return ""
        return f" (the way by {_share(self.worst)} at t = {self.times[self.errors.index(self.worst)]:g})"

    def plot(self, ax: Any = None) -> Any:
        """The errors along t on a log scale, to be read from the end to the start, and what ``expansion`` allows; returns the axes."""
        ax = axes(ax)
        finite = [(t, error) for t, error in zip(self.times, self.errors, strict=True) if 0 < error < math.inf]
        if finite:
            ax.semilogy(*zip(*finite, strict=True), "o-", color="#0072B2", label="error of the solve backwards")
        allowed = self._allowed()
        if allowed:
            ax.semilogy(*zip(*allowed, strict=True), "--", color="#D55E00", label="as fast as expansion allows")
        ax.axhline(FAILS, color="#555555", linestyle=":", label=f"{_share(FAILS)}: BacksolveAdjoint fails")
        ax.set(
            xlabel="t  (solved backwards, from the right to the left)", ylabel="|z~ - z| / |z|", title=f"error of {self.method}, backwards"
        )
        ax.grid(alpha=0.3)
        ax.legend()
        return ax

    def _allowed(self) -> list[tuple[float, float]]:
        """The first error on the way back, grown by exp(int mu); ends where it would leave the picture."""
        gap = self.errors[-2] * self.norms[-2]
        if not (0 < gap < math.inf) or math.isnan(self.exponent):
            return []
        points, power = [(self.times[-2], self.errors[-2])], math.log(gap)
        for i in range(len(self.times) - 3, -1, -1):
            power += abs(self.times[i + 1] - self.times[i]) * (self.expansion[i] + self.expansion[i + 1]) / 2
            relative = power - math.log(self.norms[i]) if self.norms[i] else math.inf
            if relative > math.log(1e12):
                break
            points.append((self.times[i], math.exp(relative)))
        return points


def reversibility(
    block_or_func: Callable[..., Any],
    z0: Any,
    t: Sequence[float] | None = None,
    *,
    method: Any = None,
    steps: int | None = None,
    step_size: float | None = None,
    rtol: Any = None,
    atol: Any = None,
    args: tuple[Any, ...] = (),
    times: int = 9,
) -> Reversibility:
    """Solve dz/dt = f(t, z) from z0 to z(t1) and back, by the same steps or tolerances, and compare the two paths.

    This is what ``BacksolveAdjoint`` does to the state: where z~ is not z, neither f nor its derivatives are those of the forward
    pass, and the gradient is wrong. An error e of z(t1) grows backwards by |e(t0)| <= exp(int mu(-df/dz) dt) |e(t1)|, mu the
    logarithmic norm of the 2-norm; for dz/dt = -lambda^2 z that is exp(lambda^2).

    The model stays as it is: random generators, buffers and cached tensors are set back after each solve, which therefore starts
    with the same random numbers, as ``BacksolveAdjoint`` does; the draws within a solve backwards are not those of the steps they
    undo. A field that takes ``step`` is given the number of the step that is undone, the last one first.

    Args:
        block_or_func: an ``ODEBlock`` or ``CoupledODEBlock``, solved by its own method and steps, or a function (t, z, *args).
        z0: the input: a tensor, or a tree of tensors.
        t: start and end, for a function; (0, 1) by default.
        method, steps, step_size, rtol, atol, args: of ``odeint``, for a function.
        times: at how many times to compare, at least 2: spread over the nodes of the steps (all, where these are fewer). Error
            control ends a step at each of them.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.
        SolveError: the solve forwards did not come to its end. One backwards that does not is a result: its error is inf.

    Source: ANODE, arXiv 1902.10298, section 3; logarithmic norms: Hairer, Norsett, Wanner, Solving ODEs I, I.10.
    """
    given = {"method": method, "steps": steps, "step_size": step_size, "rtol": rtol, "atol": atol, "args": args}
    subject = Subject(block_or_func, t, given)
    if as_count("times", times) < 2:
        raise ValueError(f"times={times} must be at least 2, the start and the end")
    with torch.inference_mode(False), torch.no_grad():
        run = _Run(subject, z0, times)
        forwards, taken = run.forwards()
        backwards, status = run.backwards(forwards[-1], PATIENCE * taken)
        lipschitz, expansion = zip(*(run.spectrum(i, state) for i, state in enumerate(forwards)), strict=True)
    norms = [norm_of(state) for state in forwards]
    gaps = [
        norm_of([a - b for a, b in zip(*pair, strict=True)]) for pair in zip(reversed(backwards), forwards[-len(backwards) :], strict=True)
    ]
    gaps = [math.inf] * (len(norms) - len(gaps)) + gaps
    errors = [gap / size if gap else 0.0 for gap, size in zip(gaps, _sizes(norms), strict=True)]
    return Reversibility(
        run.times, tuple(errors), tuple(norms), lipschitz, expansion, run.problem.method.name, status, _about_theta(subject)
    )


def _about_theta(subject: Subject) -> str:
    """What a reverse solve does besides."""
    block = subject.block
    if not isinstance(block, CoupledODEBlock) or block.dynamics.flow(block.weights(block.t[0]), [0.0]) is not None:
        return ""
    return (
        "the way of z alone is looked at: BacksolveAdjoint also solves theta backwards, which may fail by itself (reversibility of q tells)"
    )


class _Run:
    """The solve of a subject, both ways, and its field at the ``times`` where these are compared."""

    def __init__(self, subject: Subject, z0: Any, times: int) -> None:
        self.subject, options = subject, {"method": "rk4", **subject.options}
        self.func = subject.field if isinstance(subject.block, CoupledODEBlock) else subject.call.func
        self.names = subject.call.names  # of the counters that it takes
        self.args = options.get("args", ())
        self.z0 = z0
        self.problem, self.leaves = problem_of(self.func, z0, subject.t, **options)
        stepping = self.problem.stepping
        if isinstance(stepping, Grid):
            self.nodes = stepping.nodes()
            last = len(self.nodes) - 1
            self.places = sorted({round(i * last / (times - 1)) for i in range(times)})
            self.times = tuple(self.nodes[place] for place in self.places)
            self.options: dict[str, Any] = {}
        else:
            (start, end), self.nodes, self.places = subject.t, (), [0] * times
            self.times = (*(start + (end - start) * (i / (times - 1)) for i in range(times - 1)), end)
            self.options = {name: options[name] for name in ("rtol", "atol") if name in options}
        self.options |= {"method": options["method"], "args": self.args, "adjoint": "direct"}

    def forwards(self) -> tuple[list[Leaves], int]:
        """The states at ``times``, and how many steps were taken."""
        with self.subject.untouched(self.z0):
            solution = solve(self.func, self.z0, self.times, **self._grid(self.nodes), **self.options)
        return self._states(solution.ys, len(solution.ts)), solution.stats.accepted

    def backwards(self, end: Leaves, limit: int) -> tuple[list[Leaves], Status]:
        """The states that were reached, from the last of ``times`` on, and how the solve ended."""
        func = _LastFirst(self.func, len(self.nodes) - 2) if "step" in self.names else self.func
        state, back = build(self.problem.field.structure, end), self._grid(self.nodes[::-1])
        with self.subject.untouched(self.z0):
            solution = solve(func, state, self.times[::-1], **back, **self.options, max_steps=limit, throw=False)
        return self._states(solution.ys, len(solution.ts)), solution.status

    def spectrum(self, place: int, state: Leaves) -> tuple[float, float]:
        """The largest singular value of J = df/dz and the largest eigenvalue of -(J + J^T)/2 along t, at one of ``times``."""
        direction = math.copysign(1.0, self.times[-1] - self.times[0])
        step = Step(min(self.places[place], max(0, len(self.nodes) - 2)), (self.times[place],) * 2, 0, 0, 1)
        with self.subject.untouched(self.z0) as recording, forward_mode():
            jacobian = Jacobian(lambda y: self.problem.field(self.args, step, 0, 0.0, y), state, recording)
            try:
                square = largest_eigenvalue(lambda v: jacobian.pulled(jacobian.pushed(v)), state)
                return math.sqrt(max(0.0, square)), largest_eigenvalue(lambda v: jacobian.symmetric(v, -direction), state)
            except NoForwardMode:
                return math.nan, math.nan

    def _grid(self, nodes: tuple[float, ...]) -> dict[str, Any]:
        return {"grid": nodes} if nodes else {}

    def _states(self, ys: Any, count: int) -> list[Leaves]:
        leaves = leaves_of(ys, self.problem.field.structure)
        return [[leaf[i] for leaf in leaves] for i in range(count)]


def _sizes(norms: Sequence[float]) -> list[float]:
    """What errors are relative to: |z|, or where z passes through 0 the largest |z|."""
    largest = max(norms) or 1.0
    return [norm if norm > 1e-12 * largest else largest for norm in norms]


class _LastFirst:
    """A field on the way back: told the number of the step that it undoes, the first of which is ``last``."""

    def __init__(self, func: Callable[..., Any], last: int) -> None:
        self.call, self.last = CountedCall(func), last

    def __call__(self, t: Tensor, z: Any, *args: Any, step: int, stage: int) -> Any:
        return self.call(t, z, *args, step=self.last - step, stage=stage)


def _share(value: float) -> str:
    """0.8 as 80 %."""
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.0f} %" if value < 100 else f"a factor {value:.2g}"
