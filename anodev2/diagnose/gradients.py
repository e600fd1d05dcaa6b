"""Which gradient each adjoint gives, against plain autograd through the discrete program, with finite differences as referee of that one.

Every number comes from one small experiment, repeated: set random generators and buffers as they were, run the program, differentiate.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

import torch
from torch import Tensor

from ..gradients.adjoint import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ReversibleAdjoint, as_adjoint
from ..stepping import as_count
from ..testing import SEED
from .program import Gradient, Program, Stored, program_of
from .table import table

NOISY = 0.1  # a group whose gradient round-off changes by more than this share is not judged
CERTAIN = 10  # times its uncertainty, a disagreement with finite differences counts
ROUND_OFF = 100  # units of the last place that two ways to the same number may differ by


@dataclass(frozen=True, repr=False)
class GradientReport:
    """What ``gradient_report`` found; ``print`` shows a table. Relative to the length of the exact gradient of their group are:

    sizes, lengths: by group, how many numbers it holds and the Euclidean length of the exact gradient.
    errors, angles, ratios: by adjoint and group: |g - exact| / |exact|, degrees between both, |g| / |exact|.
    round_off: by group, what round-off of ``dtype`` in the inputs changes in the exact gradient; near 1 where the gradient is zero but
        for round-off. Errors are judged where they are ten times larger.
    differences, uncertainty: by group, by how much the exact gradient and finite differences disagree, and by how much the latter may be
        wrong themselves; empty where they were not wanted.
    own_scheme: by adjoint that has a scheme of its own (the reversible), by how much its scheme's gradient differs from the method's,
        as the two solutions differ. Its ``errors`` are against the former.
    promised: the adjoints that ``ok`` is about: those that promise to be exact, and those of the blocks whatever they promise.
    skipped, failed: adjoints that do not apply, and those whose backward pass ended with an error, and why.
    """

    sizes: dict[str, int]
    lengths: dict[str, float]
    errors: dict[str, dict[str, float]]
    angles: dict[str, dict[str, float]]
    ratios: dict[str, dict[str, float]]
    round_off: dict[str, float]
    differences: dict[str, float]
    uncertainty: dict[str, float]
    own_scheme: dict[str, dict[str, float]]
    promised: tuple[str, ...]
    skipped: dict[str, str]
    failed: dict[str, str]
    dtype: torch.dtype
    tolerance: float

    @property
    def groups(self) -> tuple[str, ...]:
        """Input, arguments and parameters, as they are compared."""
        return tuple(self.sizes)

    @property
    def exact(self) -> tuple[str, ...]:
        """The adjoints whose errors round-off explains: at most 100 units of ``dtype``, or ten times ``round_off``, in every group."""
        return tuple(name for name in self.errors if not self._beyond(name, ROUND_OFF * torch.finfo(self.dtype).eps))

    @property
    def bad(self) -> tuple[str, ...]:
        """The adjoints not to train with: errors beyond ``tolerance`` (and ten times ``round_off``) in some group, or no gradient."""
        return (*(name for name in self.errors if self._beyond(name, self.tolerance)), *self.failed)

    @property
    def refuted(self) -> tuple[str, ...]:
        """The groups in which finite differences contradict the exact gradient: beyond ``tolerance`` and ten times their uncertainty."""
        sure = {group: self.differences[group] - CERTAIN * self.uncertainty[group] for group in self.differences}
        return tuple(group for group, gap in sure.items() if gap > self.tolerance and not self.round_off[group] > NOISY)

    @property
    def undecided(self) -> tuple[str, ...]:
        """The groups in which finite differences are less certain than ``tolerance`` themselves, so that they say nothing."""
        unsure = (group for group, doubt in self.uncertainty.items() if doubt > self.tolerance)
        return tuple(group for group in unsure if group not in self.refuted and not self._vanishes(group))

    @property
    def ok(self) -> bool:
        """Whether no adjoint that is ``promised`` is ``bad``, and nothing contradicts the exact gradient."""
        return not self.refuted and not set(self.bad) & set(self.promised)

    def _beyond(self, name: str, bound: float) -> bool:
        return any(error > max(bound, 10 * self.round_off[group]) for group, error in self.errors[name].items())

    def _vanishes(self, group: str) -> bool:
        return self.round_off[group] > NOISY or self.lengths[group] == 0

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.refuted:
            where = ", ".join(self.refuted)
            return f"not ok: finite differences contradict plain autograd in {where}: a custom autograd Function, a detach() or a jump"
        wrong, others = ([name for name in self.bad if (name in self.promised) is promised] for promised in (True, False))
        if wrong:
            return f"not ok: not the gradient of the loss: {', '.join(wrong)}"
        return "ok" + (f"; not exact, and does not promise it: {', '.join(others)}" if others else "")

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        schemes = [f"scheme of {name}" for name in self.own_scheme]
        columns = ["group", "numbers", "gradient", "round-off", *self.errors, *schemes, *(["differences"] if self.differences else [])]
        head = "relative error of the gradient under each adjoint (degrees where it is turned by more than a tenth)"
        told = (("left out", self.skipped), ("failed", self.failed))
        lines = [f"{name}: {what}: {why}" for what, found in told for name, why in found.items()]
        return "\n".join([head, table(columns, [self._row(group) for group in self.groups]), *lines, self.verdict])

    def _row(self, group: str) -> list[Any]:
        cells = [self._cell(name, group) for name in self.errors]
        schemes = [f"{gaps[group]:.2g}" for gaps in self.own_scheme.values()]
        referee = [f"{self.differences[group]:.1e} +- {self.uncertainty[group]:.0e}"] if self.differences else []
        return [group, self.sizes[group], self.lengths[group], f"{self.round_off[group]:.0e}", *cells, *schemes, *referee]

    def _cell(self, name: str, group: str) -> str:
        error, angle = self.errors[name][group], self.angles[name][group]
        turned = f" ({angle:.3g})" if angle > 0.1 and not self._vanishes(group) else ""
        return f"{error:.2g}{turned}"


def gradient_report(
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
    adjoints: Sequence[str | Adjoint] = ("checkpoint", "reversible", "backsolve"),
    loss: Callable[[Any], Tensor] | None = None,
    tolerance: float = 0.01,
    directions: int = 2,
    seed: int = 0,
) -> GradientReport:
    """Error and angle of the gradient under each adjoint, by group of parameters, with finite differences as referee.

    The exact gradient g is that of the discrete program, by plain autograd (``adjoint="direct"``). Finite differences judge it,
    (L(x + h v) - L(x - h v)) / (2 h) against g . v, at three h. How these disagree, what round-off can do, and how g changes when x is
    moved by round-off (it jumps where x is on a kink of ReLU) are their uncertainty. All is done in the precision of the model: of
    ``copy.deepcopy(model).double()`` differences know more digits.

    Args:
        block_or_func: an ``ODEBlock`` or ``CoupledODEBlock``; any module called as network(z0), which holds such blocks or calls
            ``odeint`` itself, where none of t, method ... args is given; or a function or module (t, z, *args), solved by ``odeint``.
        z0: initial state, or the batch that the network takes.
        t: start and end, default (0, 1); with method, steps, step_size, rtol, atol, args as for ``odeint``, only for functions.
        adjoints: names or objects, besides those that a network asks for. All its solves get each for the time being.
        loss: of the end state (the output of a network), a real number; default: a fixed random projection of it.
        tolerance: relative error e up to which a gradient is harmless for training, positive. It is turned by at most asin(e), 0.6
            degrees for the default, and a step along it descends at least 1 - e times as fast: less than what batches differ by.
        directions: along how many directions differences are taken in each group (the gradient's own, then random ones), each
            6 solves; 0 leaves the referee out.
        seed: of the projection and the directions. The program draws from the generators as they stand, the same in all runs.

    Groups are "z0", each of ``args`` that requires grad, and the parameters: by name, or by common prefix where that
    would make more than 12. Tensors that a function reaches by closure are one group, "closure". Error control: the steps are those of
    one solve, and constants.

    Random generators, buffers, gradients, training flags and adjoints are left as they were. Stores what plain autograd stores.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure; a program that ends elsewhere when it is run again, from
            the same state of torch's generators; a gradient that is not finite.

    Source: ANODE, arXiv 1902.10298; the projection onto random directions: Hutchinson 1989.
    """
    if not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise ValueError(f"tolerance={tolerance!r} must be positive")
    if directions != 0:
        as_count("directions", directions)
    chosen = {_name(adjoint): as_adjoint(adjoint) for adjoint in adjoints}
    options = {"method": method, "steps": steps, "step_size": step_size, "rtol": rtol, "atol": atol, "args": args}
    with torch.inference_mode(False):
        program = program_of(block_or_func, z0, t, options, loss, seed)
        _refuse_another_end(program)
        asked = program.asked if program.options is None else []
        chosen |= {_name(adjoint): adjoint for adjoint in asked if adjoint not in chosen.values()}
        own = asked or [CheckpointAdjoint()]  # what odeint does by default
        return _report(program, chosen, own, float(tolerance), directions)


def _report(program: Program, chosen: dict[str, Adjoint], own: list[Adjoint], tolerance: float, directions: int) -> GradientReport:
    exact = program.gradient(DirectAdjoint())
    if not _finite(exact):
        raise ValueError("the gradient under adjoint='direct' is not finite: take smaller steps or another z0, there is nothing to compare")
    noise, found = _distance(exact, program.shaken()), {}
    skipped, failed = {}, {}
    for name, adjoint in chosen.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of the reversible, of an error that the report tells
                found[name] = program.gradient(adjoint)
        except (RuntimeError, ValueError) as error:  # an adjoint that does not apply raises the latter
            (failed if adjoint in own or isinstance(error, RuntimeError) else skipped)[name] = str(error)
    failed |= {name: "its gradient is not finite" for name, gradient in found.items() if not _finite(gradient)}
    found = {name: gradient for name, gradient in found.items() if name not in failed}
    schemes = {name: program.gradient(Stored(a)) for name, a in chosen.items() if name in found and isinstance(a, ReversibleAdjoint)}
    right = dict.fromkeys(found, exact) | schemes
    differences, uncertainty = _referee(program, exact, noise, directions, tolerance) if directions else ({}, {})

    def shares(lengths: dict[str, float], of: Gradient) -> dict[str, float]:
        """Relative to the gradient, or to its noise where that is larger."""
        wholes = {group: max(of[group].norm().item(), noise[group]) for group in lengths}
        return {group: length / wholes[group] if wholes[group] else math.inf if length else 0.0 for group, length in lengths.items()}

    return GradientReport(
        sizes={group: part.numel() for group, part in exact.items()},
        lengths=_lengths(exact),
        errors={name: shares(_distance(found[name], right[name]), right[name]) for name in found},
        angles={name: {group: _angle(found[name][group], right[name][group]) for group in exact} for name in found},
        ratios={name: shares(_lengths(found[name]), right[name]) for name in found},
        round_off=shares(noise, exact),
        differences=differences,
        uncertainty=uncertainty,
        own_scheme={name: shares(_distance(scheme, exact), exact) for name, scheme in schemes.items()},
        promised=tuple(name for name, adjoint in chosen.items() if adjoint in own or not isinstance(adjoint, BacksolveAdjoint)),
        skipped=skipped,
        failed=failed,
        dtype=program.dtype,
        tolerance=tolerance,
    )


def _refuse_another_end(program: Program) -> None:
    first, second = program.end(), program.end()
    gap = (first - second).norm().item()
    if gap > ROUND_OFF * torch.finfo(program.dtype).eps * first.norm().item():
        raise ValueError(
            f"run twice from the same state of torch's generators, the program ends {gap:.2g} apart: it is no function of its inputs and "
            "has no gradient; draw random numbers from torch, not from random or numpy, and keep nothing that changes outside of buffers"
        )


def _finite(gradient: Gradient) -> bool:
    return all(bool(part.isfinite().all()) for part in gradient.values())


def _lengths(gradient: Gradient) -> dict[str, float]:
    return {group: part.norm().item() for group, part in gradient.items()}


def _distance(a: Gradient, b: Gradient) -> dict[str, float]:
    return _lengths({group: a[group] - b[group] for group in b})


def _angle(a: Tensor, b: Tensor) -> float:
    """In degrees, accurate near 0; 90 where one of them is zero."""
    if not (a.any() and b.any()):
        return 90.0 if a.any() or b.any() else 0.0
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def _referee(
    program: Program, exact: Gradient, noise: dict[str, float], directions: int, tolerance: float
) -> tuple[dict[str, float], dict[str, float]]:
    """By group, the relative disagreement of ``exact`` with central differences and their uncertainty."""
    generator = torch.Generator().manual_seed(SEED + program.seed)
    gaps, doubts = {}, {}
    for group, gradient in exact.items():
        length, found = gradient.norm().item(), []
        for number in range(directions):
            along, expected = torch.randn(gradient.shape, dtype=torch.float64, generator=generator), length
            if number == 0 and length:
                along, expected = gradient * (math.sqrt(gradient.numel()) / length), length * math.sqrt(gradient.numel())
            slope, doubt = program.slope(group, along)
            gap = abs(slope - torch.dot(gradient, along).item())
            whole = expected or gap or 1.0  # where autograd sees no dependence, the differences are the whole
            found.append((gap / whole, doubt / whole + noise[group] / (length or 1.0)))  # large noise: on a kink
        damning = [gap - CERTAIN * doubt for gap, doubt in found]  # the gradient's own direction tells a wrong factor best
        gaps[group], doubts[group] = found[0 if damning[0] > tolerance else damning.index(max(damning))]
    return gaps, doubts


def _name(adjoint: str | Adjoint) -> str:
    """As the user would write it."""
    if not isinstance(adjoint, Adjoint):
        return str(adjoint)
    known = getattr(adjoint, "__dataclass_fields__", {}).values()
    told = [f"{f.name}={value!r}" for f in known if (value := getattr(adjoint, f.name)) != f.default or f.default is MISSING]
    return f"{type(adjoint).__name__}({', '.join(told)})"
