"""Whether a solve can be undone: solved forwards and then backwards, and how errors may grow on the way back.

The spectra behind it need no Jacobian: products J v come from forward mode, J^T u from one recorded evaluation, and Arnoldi's iteration
turns them into the largest singular value of J = df/dz and the largest eigenvalue of -(J + J^T)/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ..problem import Status
from ..pytree import leaves_of
from ..solvers import Leaves
from ..stepping import as_count
from .jacobian import Jacobian, forward_mode
from .subject import Path, Subject
from .table import table

# The largest error along the way back, and what it means for the gradient of BacksolveAdjoint, as measured over random blocks: below the
# first that is right to a few percent (kinks of f are another matter), above the second off by more than 10 %.
SAFE, FAILS = 1e-3, 0.1
VECTORS = 32  # of Arnoldi's iteration: the largest eigenvalue of a symmetric map to about 1e-3
PATIENCE = 100  # a solve backwards that takes so many times the steps of the one forwards has failed


@dataclass(frozen=True, repr=False)
class Reversibility:
    """How well a solve backwards from z(t1) finds the way of z again. ``print`` shows a table.

    One entry for each of ``times``, from the start t0 to the end t1:

    - errors: |z~ - z| / |z| (where z is 0, relative to the largest |z|), z solved forwards, z~ backwards from z(t1); inf where the
      solve backwards did not come;
    - norms: |z|;
    - lipschitz: the largest singular value of J = df/dz, by which nearby solutions separate or meet per unit of t at most;
    - expansion: mu, the largest eigenvalue of -(J + J^T)/2, by which they separate backwards: d|e|/ds <= mu |e|, s = t1 - t.

    J is that of the forward path, so expansion is about small errors. Both are nan where f has an operation without forward mode.
    ``status``: how the solve backwards ended.
    """

    times: tuple[float, ...]
    errors: tuple[float, ...]
    norms: tuple[float, ...]
    lipschitz: tuple[float, ...]
    expansion: tuple[float, ...]
    method: str
    status: Status

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
        what = f"error: |z~ - z| / |z|, z~ solved backwards with {self.method} from z({self.times[-1]:g})"
        return "\n".join([table(["t", "error", "|z|", "Lipschitz", "mu backwards"], rows), what, self.verdict])

    @property
    def verdict(self) -> str:
        """One sentence on the largest error, and what it means for ``BacksolveAdjoint``."""
        said = f"the way back is off by {self.worst:.2g} at most" if self.status.ok else f"no way back: {self.status.message}"
        meant = (
            "will fail" if self.worst > FAILS else "is off by a percent to a third" if self.worst > SAFE else "is off by its steps alone"
        )
        growth = "" if math.isnan(self.exponent) else f"; small errors grow by up to exp({self.exponent:.3g})"
        return f"{said}: the gradient of BacksolveAdjoint {meant}{growth}"


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
    undo. A field that takes ``step`` is given the number of the step that is undone, the last one first. Of a coupled block the way of
    z is looked at; ``BacksolveAdjoint`` solves theta backwards too where it has no closed form, which ``reversibility(block.dynamics,
    block.weights(0.0), ...)`` is about. Where the weights read the features, (z, theta) is looked at jointly.

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
    subject, z0 = Subject.of(block_or_func, t, given, z0)
    if as_count("times", times) < 2:
        raise ValueError(f"times={times} must be at least 2, the start and the end")
    with torch.inference_mode(False), torch.no_grad():
        path = Path(subject, z0, times, {"method": "rk4", **subject.options})
        forwards, solution = path.solve()
        backwards, back = path.solve(forwards[-1], max_steps=PATIENCE * solution.stats.accepted, throw=False)
        lipschitz, expansion = zip(*(_spectrum(subject, *pair) for pair in zip(path.times, forwards, strict=True)), strict=True)
    structure = path.problem.field.structure
    there, found = ([leaves_of(state, structure) for state in states] for states in (forwards, backwards[::-1]))
    norms = [_norm(state) for state in there]
    gaps = [_norm([a - b for a, b in zip(*pair, strict=True)]) for pair in zip(found, there[-len(found) :], strict=True)]
    gaps = [math.inf] * (len(norms) - len(gaps)) + gaps
    errors = [gap / size if gap else 0.0 for gap, size in zip(gaps, _sizes(norms), strict=True)]
    return Reversibility(path.times, tuple(errors), tuple(norms), lipschitz, expansion, path.problem.method.name, back.status)


def _spectrum(subject: Subject, time: float, state: Any) -> tuple[float, float]:
    """The largest singular value of J = df/dz and the largest eigenvalue of -(J + J^T)/2 along t."""
    direction = math.copysign(1.0, subject.t[1] - subject.t[0])
    with subject.untouched(state) as recording, forward_mode():
        J = Jacobian(subject.at(time), state, recording)
        try:
            squares, _, _ = J.eigenvalues(VECTORS, lambda v: J.pulled(J.pushed(v)))
            rates, _, _ = J.eigenvalues(VECTORS, lambda v: -direction / 2 * (J.pushed(v) + J.pulled(v)))
        except ValueError:  # no forward mode, or a derivative that is not finite
            return math.nan, math.nan
    return math.sqrt(max(0.0, squares.real.max().item())), rates.real.max().item()


def _sizes(norms: Sequence[float]) -> list[float]:
    """What errors are relative to: |z|, or where z passes through 0 the largest |z|."""
    largest = max(norms) or 1.0
    return [norm if norm > 1e-12 * largest else largest for norm in norms]


def _norm(leaves: Leaves) -> float:
    """Over all leaves, in float64."""
    return math.hypot(*(torch.linalg.vector_norm(leaf.to(torch.promote_types(leaf.dtype, torch.float64))).item() for leaf in leaves))
