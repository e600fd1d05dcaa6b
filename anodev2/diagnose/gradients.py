"""Which gradient each adjoint gives, against the exact discrete one, with finite differences as referee of that one.

Every number comes from one small experiment, repeated: set random generators and buffers as they were, run the program, differentiate.
The program is run as it is given, under each adjoint, and as a copy in float64, which is differentiated by plain autograd (the exact
gradient) and by moving its inputs (the referee).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..gradients.adjoint import Adjoint, DirectAdjoint, ReversibleAdjoint, as_adjoint
from ..stepping import as_count
from ..testing import SEED
from .program import Gradient, Program, Stored, dtype_name, program_of, widened
from .table import axes, table

NOISY = 0.1  # a group whose gradient round-off changes by more than this share is not judged
CERTAIN = 10  # times its uncertainty, a disagreement with finite differences counts


@dataclass(frozen=True, repr=False)
class GradientReport:
    """What ``gradient_report`` found. Relative quantities are fractions of the length of the exact gradient of their group.

    sizes, lengths: by group, how many numbers it holds and the Euclidean length of the exact gradient.
    errors, angles, ratios: by adjoint and group: |g - exact| / |exact|, degrees between both, |g| / |exact|.
    round_off: by group, what round-off of ``dtype`` in the inputs changes in the exact gradient, or in plain autograd; near 1 where the
        gradient is zero but for round-off. Errors are judged where they are ten times larger.
    differences, uncertainty: by group, by how much the exact gradient and finite differences disagree, and by how much the latter may be
        wrong themselves; empty where they were not wanted.
    own_scheme: by adjoint that has a scheme of its own (the reversible), by how much its scheme's gradient differs from the method's. Its
        ``errors`` are against the former.
    skipped, failed: adjoints that do not apply, and those whose backward pass ended with an error, and why.
    notes: what else is to be known.
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
    skipped: dict[str, str]
    failed: dict[str, str]
    notes: tuple[str, ...]
    dtype: torch.dtype
    tolerance: float

    @property
    def groups(self) -> tuple[str, ...]:
        """Input, arguments and parameters, as they are compared."""
        return tuple(self.sizes)

    @property
    def exact(self) -> tuple[str, ...]:
        """The adjoints whose errors round-off explains: at most 100 units of ``dtype``, or ten times ``round_off``, in every group."""
        bound = {group: max(100 * torch.finfo(self.dtype).eps, 10 * share) for group, share in self.round_off.items()}
        return tuple(name for name in self.harmless if all(error <= bound[group] for group, error in self.errors[name].items()))

    @property
    def harmless(self) -> tuple[str, ...]:
        """The adjoints to train with, exact or not: errors of at most ``tolerance`` (or ten times ``round_off``) in every group."""
        return tuple(name for name in self.errors if not self._wrong(name))

    @property
    def bad(self) -> tuple[str, ...]:
        """All others: the adjoints whose error is larger in some group, and those that failed."""
        return (*(name for name in self.errors if self._wrong(name)), *self.failed)

    @property
    def astray(self) -> tuple[str, ...]:
        """The adjoints whose own scheme has left the method's solution: a gradient differs by more than it is long, right or not."""
        return tuple(name for name in self.own_scheme if self._apart(name) > 1)

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
        """Whether all adjoints are harmless, none is astray, and nothing contradicts the exact gradient."""
        return not self.bad and not self.astray and not self.refuted

    def _apart(self, name: str) -> float:
        return max((gap for group, gap in self.own_scheme[name].items() if not self._vanishes(group)), default=0.0)

    def _vanishes(self, group: str) -> bool:
        return self.round_off[group] > NOISY or self.lengths[group] == 0

    def _wrong(self, name: str) -> list[str]:
        """Groups, the worst first."""
        errors = self.errors[name]
        wrong = [group for group in self.groups if errors[group] > max(self.tolerance, 10 * self.round_off[group])]
        return sorted(wrong, key=lambda group: -errors[group])

    def _worst(self, name: str) -> tuple[str, float]:
        judged = {g: e for g, e in self.errors[name].items() if not self._vanishes(g)} or self.errors[name]
        return max(judged.items(), key=lambda pair: pair[1])

    @property
    def verdict(self) -> str:
        """In plain words, a line for each thing to know."""
        exact = self.exact
        lines = [f"{', '.join(exact)}: exact to round-off of {dtype_name(self.dtype)}{self._moving()}"] if exact else []
        lines += [self._said_of(name) for name in self.errors if name not in exact]
        for name in self.own_scheme:
            lines.append(
                f"{name} solves by a scheme of its own, with whose exact gradient it is compared; that gradient differs from the method's "
                f"by up to {self._apart(name):.2g}, as the two solutions differ{': take more steps' if name in self.astray else ''}"
            )
        lines += [f"{name}: failed: {why}" for name, why in self.failed.items()]
        lines += [f"{name}: left out: {why}" for name, why in self.skipped.items()]
        vanishing = [group for group in self.groups if self._vanishes(group) and group not in self.refuted]
        if vanishing:
            lines.append(f"{_listed(vanishing)}: not judged, the gradient is zero, or round-off of the inputs changes it by more than 10 %")
        return "\n".join([*lines, *self._refereed(), *self.notes, self._summary()])

    def _moving(self) -> str:
        """What round-off does where it does much."""
        moved = max((share for group, share in self.round_off.items() if not self._vanishes(group)), default=0.0)
        return f", which moves these gradients by up to {moved:.1g}" if moved > 1e3 * torch.finfo(self.dtype).eps else ""

    def _said_of(self, name: str) -> str:
        wrong = self._wrong(name)
        group, error = (wrong[0], self.errors[name][wrong[0]]) if wrong else self._worst(name)
        if not wrong:
            return f"{name}: off by up to {error:.2g} (in {group}): not exact, harmless for training (up to {self.tolerance:g})"
        others = f"; also wrong in {_listed(wrong[1:])}" if wrong[1:] else ""
        cures = {"direct": "see below", "checkpoint": "use adjoint='direct', and report this"}
        cure = next((cure for start, cure in cures.items() if name.lower().startswith(start)), "use adjoint='checkpoint'")
        return (
            f"{name}: wrong by {_times(error)} in {group}, where it is {self.ratios[name][group]:.3g} times as long as the exact "
            f"gradient and turned by {self.angles[name][group]:.3g} degrees{others}; {cure}"
        )

    def _refereed(self) -> list[str]:
        lines = []
        for group in self.refuted:
            gap, doubt = _times(self.differences[group]), self.uncertainty[group]
            lines.append(f"finite differences contradict the exact gradient in {group}: by {gap}, and they are certain to {doubt:.1g}")
        if self.refuted:
            lines.append(
                "something that f or loss uses has a wrong derivative, or detaches, or there is a jump, and every adjoint inherits it: "
                "look at custom autograd Functions first"
            )
        judged = [g for g in self.differences if g not in (*self.refuted, *self.undecided) and not self._vanishes(g)]
        if judged:
            gap, doubt = max(self.differences[g] for g in judged), max(self.uncertainty[g] for g in judged)
            where = "" if len(judged) == len(self.groups) else f" in {_listed(judged)}"
            lines.append(f"finite differences confirm the exact gradient to {gap:.1g}{where} (they are certain to {doubt:.1g})")
        if self.undecided:
            doubt = max(self.uncertainty[g] for g in self.undecided)
            lines.append(
                f"finite differences are uncertain by up to {doubt:.1g} in {_listed(self.undecided)} and say nothing there: kinks such as "
                "ReLU's close by, or a loss that round-off moves"
            )
        return lines

    def _summary(self) -> str:
        if self.refuted:
            return f"The derivative of {_listed(self.refuted)} is wrong before any adjoint comes in."
        if self.bad:
            return f"Do not train with {_listed(self.bad)}: what it gives is not the gradient of the loss."
        if self.astray:
            return f"Nothing wrong with the gradients, but {_listed(self.astray)} has left the method's solution: it trains another model."
        if not self.errors:
            return "No adjoint was compared."
        largest = max((self._worst(name)[1] for name in self.errors), default=0.0)
        share = f"{largest:.1g}" if largest > torch.finfo(self.dtype).eps else "round-off"
        return f"All adjoints looked at agree with the exact gradient to {share}: nothing wrong."

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        columns = ["group", "numbers", "gradient", "round-off", *self.errors, *(["differences"] if self.differences else [])]
        rows = [self._row(group) for group in self.groups]
        head = "relative error of the gradient under each adjoint (degrees where it is turned by more than a tenth)"
        return f"{head}\n{table(columns, rows)}\n{self.verdict}"

    def _row(self, group: str) -> list[Any]:
        cells = [self._cell(name, group) for name in self.errors]
        referee = [f"{self.differences[group]:.1e} +- {self.uncertainty[group]:.0e}"] if self.differences else []
        return [group, self.sizes[group], self.lengths[group], f"{self.round_off[group]:.0e}", *cells, *referee]

    def _cell(self, name: str, group: str) -> str:
        error, angle = self.errors[name][group], self.angles[name][group]
        turned = f" ({angle:.3g})" if angle > 0.1 and not self._vanishes(group) else ""
        return f"{error:.2g}{turned}"

    def plot(self, ax: Any = None) -> Any:
        """Draw the errors by group and adjoint on a log scale, with the tolerance; returns the axes."""
        ax = axes(ax, size=(7.0, 1.6 + 0.32 * len(self.groups)))
        lowest = torch.finfo(self.dtype).eps / 20
        places = range(len(self.groups))
        for number, (name, errors) in enumerate(self.errors.items()):
            colour, marker = STYLES[number % len(STYLES)]
            shown = [min(max(errors[group], lowest), 1e6) for group in self.groups]
            shift = 0.12 * (number - (len(self.errors) - 1) / 2)
            ax.plot(shown, [place + shift for place in places], marker, color=colour, label=name, linestyle="none", clip_on=False)
        if self.differences:
            shown = [max(self.differences[group], lowest) for group in self.groups]
            ax.plot(shown, list(places), "|", color="#555555", markersize=11, label="exact against differences", linestyle="none")
        ax.axvline(self.tolerance, color="#999999", linestyle="--", linewidth=1, label=f"tolerance {self.tolerance:g}")
        ax.set_yticks(list(places), list(self.groups))
        ax.set(xscale="log", xlabel="relative error of the gradient (0 stands at the left edge)", ylim=(len(self.groups) - 0.5, -0.5))
        ax.set_xlim(left=lowest)
        ax.grid(axis="x", alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
        return ax


STYLES = (("#0072B2", "o"), ("#009E73", "s"), ("#E69F00", "^"), ("#D55E00", "X"), ("#CC79A7", "D"), ("#56B4E9", "v"))


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
    adjoints: Sequence[str | Adjoint] = ("direct", "checkpoint", "reversible", "backsolve"),
    loss: Callable[[Any], Tensor] | None = None,
    tolerance: float = 0.01,
    directions: int = 2,
    seed: int = 0,
) -> GradientReport:
    """Error and angle of the gradient under each adjoint, by group of parameters, with finite differences as referee.

    The exact gradient g is that of the discrete program, by plain autograd in float64 on the same steps. Finite differences judge it,
    (L(x + h v) - L(x - h v)) / (2 h) against g . v, at three h. How these disagree, what round-off can do, and how g changes when x is
    moved by round-off (it jumps where x is on a kink of ReLU) are their uncertainty.

    Args:
        block_or_func: an ``ODEBlock`` or ``CoupledODEBlock``; a network, that is a module called as network(z0) that holds such
            blocks, whose adjoint is exchanged for the time being; or a function or module (t, z, *args), solved by ``odeint``.
        z0: initial state, or the batch that the network takes.
        t: start and end, default (0, 1); with method, steps, step_size, rtol, atol, args as for ``odeint``, only for functions.
        adjoints: names or objects.
        loss: of the end state (the output of a network), a real number; default: a fixed random projection of it.
        tolerance: relative error e up to which a gradient is harmless for training, positive. It is turned by at most asin(e), 0.6
            degrees for the default, and a step along it descends at least 1 - e times as fast: less than what batches differ by.
        directions: along how many directions differences are taken in each group (the gradient's own, then random ones), each
            6 solves in float64; 0 leaves the referee out.
        seed: of the projection, the directions and every random draw of the program, the same in all runs.

    Groups are "z0", each of ``args`` that requires grad, and the parameters: by name, or by common prefix where that
    would make more than 12. Tensors that a function reaches by closure are one group, "closure"; for these there is no copy in float64, and
    all is done in their own precision. Error control: the steps are those of one solve, and constants.

    Random generators, buffers, gradients, training flags and adjoints are left as they were; Python attributes that f changes are not.
    Stores what plain autograd stores, in float64.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure; a gradient that is not finite.

    Source: ANODE, arXiv 1902.10298; the projection onto random directions: Hutchinson 1989.
    """
    chosen = {_name(adjoint): as_adjoint(adjoint) for adjoint in adjoints}
    if not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise ValueError(f"tolerance={tolerance!r} must be positive")
    if directions != 0:
        as_count("directions", directions)
    options = {"method": method, "steps": steps, "step_size": step_size, "rtol": rtol, "atol": atol, "args": args}
    with torch.inference_mode(False):
        program = program_of(block_or_func, z0, t, options, loss, seed)
        return _report(program, chosen, float(tolerance), directions)


def _report(program: Program, chosen: dict[str, Adjoint], tolerance: float, directions: int) -> GradientReport:
    plain = program.gradient(DirectAdjoint())
    if not all(bool(part.isfinite().all()) for part in plain.values()):
        raise ValueError("the gradient under adjoint='direct' is not finite: take smaller steps or another z0, there is nothing to compare")
    wide, notes = widened(program)
    exact = wide.gradient(DirectAdjoint(), frozen=True)
    noise = _distance(exact, wide.shaken(program.dtype))
    runs, own_scheme = _Runs(), {}
    for name, adjoint in chosen.items():
        found, right = plain if isinstance(adjoint, DirectAdjoint) else runs.attempt(name, program, adjoint), exact
        if found is not None and isinstance(adjoint, ReversibleAdjoint):
            right = wide.gradient(Stored(adjoint), frozen=True)
            own_scheme[name] = {group: _share(gap, exact[group], noise[group]) for group, gap in _distance(right, exact).items()}
        runs.compare(name, found, right, noise)
    round_off, unexplained = _round_off(plain, exact, noise, program.dtype)
    differences, uncertainty = _referee(wide, exact, directions, tolerance) if directions else ({}, {})
    return GradientReport(
        sizes={group: part.numel() for group, part in exact.items()},
        lengths={group: part.norm().item() for group, part in exact.items()},
        errors=runs.errors,
        angles=runs.angles,
        ratios=runs.ratios,
        round_off=round_off,
        differences=differences,
        uncertainty=uncertainty,
        own_scheme=own_scheme,
        skipped=runs.skipped,
        failed=runs.failed,
        notes=(*notes, *unexplained, *runs.notes),
        dtype=program.dtype,
        tolerance=tolerance,
    )


def _round_off(plain: Gradient, exact: Gradient, noise: dict[str, float], dtype: torch.dtype) -> tuple[dict[str, float], list[str]]:
    """By group what round-off changes, and a note on each where ``plain`` differs by more than rounding and kinks could make it."""
    shares, notes = {}, []
    little = 1e3 * torch.finfo(dtype).eps * max(part.norm().item() for part in exact.values())  # what sums of large terms may leave
    for group, gap in _distance(plain, exact).items():
        shaken, unlike = _share(noise[group], exact[group], noise[group]), _share(gap, exact[group], noise[group])
        unexplained = unlike > NOISY >= shaken and gap > little
        shares[group] = shaken if unexplained else max(shaken, unlike)
        if unexplained:
            notes.append(
                f"plain autograd in {dtype_name(dtype)} and in a copy in float64 differ by {unlike:.2g} in {group}, more than round-off "
                "explains: a hook on a parameter, random numbers from elsewhere than torch, or an operation that is wrong in one of them"
            )
    return shares, notes


class _Runs:
    """The program's gradients under one adjoint after the other, compared."""

    def __init__(self) -> None:
        self.errors: dict[str, dict[str, float]] = {}
        self.angles: dict[str, dict[str, float]] = {}
        self.ratios: dict[str, dict[str, float]] = {}
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []

    def attempt(self, name: str, program: Program, adjoint: Adjoint) -> Gradient | None:
        """The gradient; None, and why, where there is none. A warning becomes a note."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = program.gradient(adjoint)
            except ValueError as error:  # an adjoint that does not apply says so in this way
                self.skipped[name] = str(error)
                return None
            except RuntimeError as error:
                self.failed[name] = str(error)
                return None
        self.notes += [f"{name} warns: {message}" for message in dict.fromkeys(str(warning.message) for warning in caught)]
        return found

    def compare(self, name: str, found: Gradient | None, right: Gradient, noise: dict[str, float]) -> None:
        if found is None:
            return
        if not all(bool(part.isfinite().all()) for part in found.values()):
            self.failed[name] = "its gradient is not finite"
            return
        self.errors[name] = {group: _share(gap, right[group], noise[group]) for group, gap in _distance(found, right).items()}
        self.angles[name] = {group: _angle(found[group], right[group]) for group in right}
        self.ratios[name] = {group: _share(found[group].norm().item(), right[group], noise[group]) for group in right}


def _distance(a: Gradient, b: Gradient) -> dict[str, float]:
    return {group: (a[group] - b[group]).norm().item() for group in b}


def _share(length: float, of: Tensor, noise: float) -> float:
    """Relative to the gradient, or to its noise where that is larger."""
    whole = max(of.norm().item(), noise)
    return length / whole if whole else (math.inf if length else 0.0)


def _angle(a: Tensor, b: Tensor) -> float:
    """In degrees, accurate near 0; 90 where one of them is zero."""
    if not (a.any() and b.any()):
        return 90.0 if a.any() or b.any() else 0.0
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def _referee(program: Program, exact: Gradient, directions: int, tolerance: float) -> tuple[dict[str, float], dict[str, float]]:
    """By group, the relative disagreement of ``exact`` with central differences and their uncertainty."""
    generator = torch.Generator().manual_seed(SEED + program.seed)
    undetermined = _distance(exact, program.shaken(program.dtype))  # on a kink
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
            found.append((gap / whole, doubt / whole + undetermined[group] / (length or 1.0)))
        damning = [gap - CERTAIN * doubt for gap, doubt in found]  # the gradient's own direction tells a wrong factor best
        gaps[group], doubts[group] = found[0 if damning[0] > tolerance else damning.index(max(damning))]
    return gaps, doubts


def _name(adjoint: str | Adjoint) -> str:
    """As the user would write it."""
    if not isinstance(adjoint, Adjoint):
        return str(adjoint)
    told = [f"{f.name}={value!r}" for f in _fields(adjoint) if (value := getattr(adjoint, f.name)) != f.default or f.default is MISSING]
    return f"{type(adjoint).__name__}({', '.join(told)})"


def _fields(adjoint: Any) -> Sequence[Any]:
    return fields(adjoint) if hasattr(adjoint, "__dataclass_fields__") else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _times(error: float) -> str:
    return f"{error:.3g} times its own length" if error >= 1 else f"{100 * error:.2g} %"
