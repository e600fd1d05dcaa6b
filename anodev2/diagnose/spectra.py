"""Whether steps are stable: leading eigenvalues of df/dz along a solve against the method's stability region.

Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), 6.2; Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.adjoint import overseen
from ..integrate.recording import Recording
from ..signature import CountedCall
from ..solvers import Method, as_method
from ..solvers.stability import StabilityFunction, stability_function
from ..stepping import as_count
from ..torch_private import BatchNorm
from .jacobian import Jacobian, forward_mode
from .subject import Looking, Path, Subject
from .table import number, table

CONTROL = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-6}  # where nothing says how z is solved
LOOSE = 0.05  # Ritz values with a larger residual, in units of the largest eigenvalue, do not count for the limit


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a Jacobian at time t, largest first.

    - eigenvalues: complex128, all of them for up to 64 unknowns; else the Ritz values of ``vectors`` Arnoldi vectors, of which the outer
      ones come first to rest, each eigenvalue once however multiple it is;
    - residuals: |J v - lambda v| for |v| = 1; 0 (round-off apart) where the vectors span all that the Jacobian maps into itself.

    For a normal Jacobian (symmetric, a convolution) an eigenvalue is no further away than the residual; else the residual is the change
    of the Jacobian that would make lambda exact.
    """

    t: float
    eigenvalues: Tensor
    residuals: Tensor
    vectors: int
    unknowns: int
    round_off: float

    @property
    def size(self) -> float:
        """|lambda| of the largest."""
        return self.eigenvalues.abs().max().item()

    @property
    def complete(self) -> bool:
        """Whether every eigenvalue is there, be it once."""
        return self.vectors == self.unknowns or not self.residuals.any()

    @property
    def settled(self) -> Tensor:
        """Which eigenvalues count for a limit: those with a residual of at most 5 % of the largest; all where there is none."""
        good = self.residuals <= LOOSE * self.size
        return good if good.any() else torch.ones_like(good)


@dataclass(frozen=True, repr=False, eq=False)
class Stability:
    """Spectra of df/dz and what they mean for the steps of ``method``; ``print`` shows a table.

    - span: how long the solve is in t; direction: 1, or -1 where t falls and -J decides;
    - step: the longest step that is taken, None where error control finds it, or none is taken;
    - function: R of the method, None where it is not known;
    - notes: what the spectra depend on besides, or what went wrong.
    """

    method: str
    span: float
    direction: float
    step: float | None
    spectra: tuple[Spectrum, ...]
    function: StabilityFunction | None
    notes: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """The largest stable step, |R(h lambda)| <= 1 for all modes that do not grow by themselves: inf where nothing limits it."""
        return min((self.limit_at(spectrum) for spectrum in self.spectra), default=math.inf)

    @property
    def inside(self) -> bool | None:
        """Whether the chosen step is stable; None where there is none."""
        return None if self.step is None or self.function is None else self.step <= self.limit * (1 + 1e-9)

    @property
    def steps_needed(self) -> int | None:
        """The fewest equal steps over t that are stable; None where no number is."""
        if self.limit == 0 or self.function is None:
            return None
        return max(1, math.ceil(self.span / self.limit * (1 - 1e-9)))

    def modes(self, spectrum: Spectrum) -> Tensor:
        """The eigenvalues along the solve, their parts 0 where they could be round-off."""
        values, small = self.direction * spectrum.eigenvalues, spectrum.round_off * spectrum.size
        real, imag = (torch.where(part.abs() <= small, 0.0, part) for part in (values.real, values.imag))
        return torch.complex(real, imag)

    def judged(self, spectrum: Spectrum) -> Tensor:
        """Which modes the limit is about: those that have settled and do not grow in the ODE itself."""
        real = self.modes(spectrum).real
        return spectrum.settled & ((real == 0) if self.method == "leapfrog" else (real <= 0))  # leapfrog's -a comes with a growing a

    def limit_at(self, spectrum: Spectrum) -> float:
        """The largest stable step at one time."""
        return math.inf if self.function is None else self.function.limit(self.modes(spectrum)[self.judged(spectrum)])

    def limiting(self, spectrum: Spectrum) -> Tensor:
        """Places of the judged modes, those first that leave the stability region first as steps grow; empty where none does."""
        places, limit = self.judged(spectrum).nonzero().flatten(), self.limit_at(spectrum)
        if self.function is None or math.isinf(limit):
            return places[:0]
        h = 1.001 * limit if limit > 0 else 0.1 / spectrum.size
        return places[falling(self.function(h * self.modes(spectrum)[places]).abs())]

    def growing(self, spectrum: Spectrum) -> Tensor:
        """The settled modes that grow in the ODE itself, fastest first; no step is to blame for them."""
        modes = self.modes(spectrum)[spectrum.settled]
        modes = modes[modes.real > 0]
        return modes[falling(modes.real)]

    def spurious(self) -> tuple[float, Tensor]:
        """By how much more one step lets a mode grow than the ODE does, |R(h lambda)| / max(1, |exp(h lambda)|), and the worst mode."""
        modes = torch.cat([self.modes(spectrum)[spectrum.settled] for spectrum in self.spectra])
        if self.step is None or self.function is None or not len(modes):
            return 1.0, torch.zeros((), dtype=torch.complex128)
        growth = self.function(self.step * modes).abs() / torch.exp(self.step * modes.real).clamp_min(1)
        return growth.max().item(), modes[growth.argmax()]

    @property
    def unseen(self) -> bool:
        """Whether modes that Arnoldi does not see may grow: those on the imaginary axis, where outer ones surround it and R bears none."""
        seen = [self.modes(spectrum)[spectrum.settled] for spectrum in self.spectra if not spectrum.complete]
        around = any((modes.real > 0).any() and (modes.real < 0).any() and modes.imag.any() for modes in seen)
        return around and self.function is not None and self.function.limit(torch.tensor(1j)) == 0

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.function is None:
            return f"no stability function of {self.method} is known"
        stable = f"{self.method} is stable up to a step of {self.limit:.3g}" if self.limit else f"no step of {self.method} is stable"
        needed = "" if self.steps_needed is None else f" ({self.steps_needed} over t)"
        taken = "" if self.step is None else f"; the step {self.step:.3g} is {'inside' if self.inside else 'outside'}"
        unseen = "; modes on the imaginary axis, between the outer ones that were seen, may grow" if self.unseen else ""
        return f"{stable}{needed}{taken}{unseen}"

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        columns = ["t", "largest", "rightmost", "limits the step", "stable step", "growing", "unknowns", "vectors", "residual"]
        return "\n".join([table(columns, [self._row(spectrum) for spectrum in self.spectra]), *self.notes, self.verdict])

    def _row(self, spectrum: Spectrum) -> list[Any]:
        """The residual is that of the limiting mode, or else of the largest."""
        modes, limiting = self.modes(spectrum), self.limiting(spectrum).tolist()
        settled = modes[spectrum.settled]
        named = [_complex(settled[0]), _complex(settled[settled.real.argmax()]), _complex(modes[limiting[0]]) if limiting else "-"]
        residual = spectrum.residuals[(limiting or [0])[0]].item() / (spectrum.size or 1.0)
        counts = [len(self.growing(spectrum)), spectrum.unknowns, spectrum.vectors]
        found = "complete" if spectrum.complete else f"{residual:.0e}"
        return [number(spectrum.t), *named, number(self.limit_at(spectrum)), *counts, found]


def stability(
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
    vectors: int = 100,
) -> Stability:
    """Spectra of df/dz at the start, middle and end of t, and the steps that are stable there.

    The step h is stable where |R(h lambda)| <= 1 for every eigenvalue lambda, R the method's stability function. Modes with a positive
    real part grow in the ODE itself and are left out of the limit; those on the imaginary axis are not, and give Euler the limit 0.
    Of large states the outer eigenvalues are found, which limit methods such as rk4; modes near the imaginary axis between them, which
    would limit Euler more, are not, and the report says so.

    Stability of the linearisation at these three times is meant, and says nothing about accuracy; where J is far from normal,
    solutions may grow for a while although every mode decays. Of a coupled block the equation of z is looked at, theta being that of the
    time; that of theta by ``stability(block.dynamics, block.weights(0.0), method=block.weight_method, steps=block.weight_steps)``.
    Where the weights read the features, the joint equation of (z, theta) is looked at.

    The state z is the whole batch: J of independent samples has the eigenvalues of all of them. z at the middle and end is solved with
    the given steps (with error control where there are none). Parameters, buffers and random generators stay as they were; BatchNorm in
    training mode normalises by this batch, which couples its samples, and dropout is held fixed.

    Args:
        block_or_func: an ``ODEBlock`` or ``CoupledODEBlock``, a function or module called as ``func(t, z, *args)``, or any module called as
            network(z0), of whose solves the least stable is told, with a line on each other.
        z0: the state at the start, or what the network takes: (batch, ...) or a tree. Of complex ones J maps real and imaginary parts.
        t, method, steps, step_size, rtol, atol, args: as for ``odeint``, for functions only; t from 0 to 1 and rk4 where not given. With
            neither ``steps`` nor ``step_size`` the limit alone is told.
        vectors: of Arnoldi's iteration, each a product J v, for more than 64 unknowns; fewer where they would take more than 512 MiB.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure; an operation of func without forward mode.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2; Saad, Numerical Methods for Large Eigenvalue Problems, 6.2.
    """
    options = {"method": method, "steps": steps, "step_size": step_size, "rtol": rtol, "atol": atol, "args": args}
    subject = Subject(block_or_func, t, options)
    if subject.network:
        return _least_stable(subject, z0, vectors)
    subject, z0 = Subject.of(block_or_func, t, options, z0)
    chosen = as_method(subject.options.setdefault("method", "rk4"))
    vectors = as_count("vectors", vectors)
    given = subject.options if subject.grid or subject.options.keys() & {"rtol", "atol"} else subject.options | CONTROL
    with torch.inference_mode(False), subject.untouched(z0) as recording, forward_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* step of .* modes of it grow", category=UserWarning)  # the report says it
        path = Path(subject, z0, 3, given)
        states, solution = path.solve(throw=False)
        fields = [_rest(subject, time) if chosen.splits else subject.at(time) for time in path.times[: len(states)]]
        at = zip(path.times, (Jacobian(*pair, recording) for pair in zip(fields, states, strict=True)), strict=False)
        spectra = tuple(Spectrum(time, *J.eigenvalues(vectors), J.unknowns, J.round_off) for time, J in at)
        notes = (*_notes(chosen, recording), *([] if solution.status.ok else [solution.status.message]))
    start, end = subject.t
    span, direction = abs(end - start), math.copysign(1.0, end - start)
    step = max(abs(float(step.dt)) for step in subject.grid.steps()) if subject.grid else None
    return Stability(chosen.name, span, direction, step, spectra, _known(chosen), notes)


def _least_stable(network: Subject, z0: Any, vectors: int) -> Stability:
    """Of all solves in a pass of a network that one whose steps are the longest against those that are stable."""
    looking = Looking()
    with torch.inference_mode(False), torch.no_grad(), network.untouched(z0), overseen(looking):
        network.call.func(z0)
    if not looking.solves:
        raise ValueError(f"{type(network.target).__name__} solves nothing when it is called with z0; give a block, or a function with t")
    reports = [stability(func, start, t, vectors=vectors, **options) for func, start, t, options in looking.solves]
    longest = [options.get("step_size") for *_, options in looking.solves]
    reports = [report if step is None else replace(report, step=step) for report, step in zip(reports, longest, strict=True)]
    margins = [math.inf if report.step is None else report.limit / report.step for report in reports]
    worst = margins.index(min(margins))
    names = [type(getattr(func, "owner", getattr(func, "__self__", func))).__name__ for func, *_ in looking.solves]
    others = [f"solve {i + 1}, of {names[i]}: {report.verdict}" for i, report in enumerate(reports) if i != worst]
    told = [f"this is solve {worst + 1} of {len(reports)}, of {names[worst]}", *others] if others else []
    return replace(reports[worst], notes=(*reports[worst].notes, *told))


def _rest(subject: Subject, time: float) -> Callable[[Any], Any]:
    """f at one time without the linear part that the method treats by itself."""
    args = subject.options.get("args", ())
    rest = CountedCall(subject.call.func.split(*args)[-1])  # pyright: ignore[reportFunctionMemberAccess]
    step = subject.step_of(time)
    return lambda z: rest(torch.tensor(time, dtype=z.real.dtype, device=z.device), z, *args, step=step, stage=0)


def _known(method: Method) -> StabilityFunction | None:
    try:
        return stability_function(method)
    except ValueError:
        return None


def _notes(method: Method, recording: Recording) -> Iterator[str]:
    training = [module for module in recording.attributes.modules if module.training]
    if method.splits:
        yield "df/dz is that of the rest of f, without its linear part, whose damping is not counted"
    if any(isinstance(module, BatchNorm) for module in training):
        yield "BatchNorm in training mode couples the samples: df/dz is that of this batch"
    if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in training):
        yield "dropout in training mode: df/dz is that of one draw"


def falling(values: Tensor) -> Tensor:
    """Places of the values, the largest first."""
    return values.argsort(descending=True)


def _complex(mode: Tensor) -> str:
    """With three digits, a conjugate pair as one."""
    value = complex(mode.item())
    if value.imag == 0:
        return f"{value.real:.3g}"
    return f"{value.real:.3g} +- {abs(value.imag):.3g}i" if value.real else f"+-{abs(value.imag):.3g}i"
