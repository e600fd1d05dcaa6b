"""Whether steps are stable: leading eigenvalues of df/dz along a solve, and of dq/dtheta, against the method's stability region.

Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), 6.2; Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..block import CoupledODEBlock
from ..integrate.recording import Recording
from ..problem import CountedCall, SolveError
from ..pytree import build, leaves_of, structure_of
from ..solve import integrate, odeint
from ..solvers import Method, as_method
from ..solvers.stability import StabilityFunction, stability_function
from ..stepping import as_count, uniform_grid
from ..torch_private import BatchNorm
from .jacobian import Jacobian, Search, arnoldi, falling, forward_mode
from .subject import Subject
from .table import axes, each, number, table

LOOSE = 0.05  # Ritz values with a larger residual, in units of the largest eigenvalue, do not count for the limit
MILD = 1.5  # growth over a whole solve that few would notice
COLOURS = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"))


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
    unknowns: int
    vectors: int
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


@dataclass(frozen=True, eq=False)
class StepLimit:
    """What the spectra of one equation, of z or of theta, mean for the steps of ``method``.

    - step: the longest step that is taken, None where error control finds it, or none is taken;
    - function: R of the method, None where it is not known or no steps are taken;
    - direction: 1, or -1 where t falls and -J decides;
    - whole: whether the spectra are those of all of f, and not of what a method leaves of it.
    """

    name: str
    method: str
    span: float
    direction: float
    step: float | None
    spectra: tuple[Spectrum, ...]
    function: StabilityFunction | None
    note: str = ""
    whole: bool = True

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

    def rows(self) -> list[list[Any]]:
        """Of the table: one per time; the residual is that of the limiting mode, or else of the largest."""
        rows = []
        for spectrum in self.spectra:
            modes, limiting = self.modes(spectrum), self.limiting(spectrum).tolist()
            settled = modes[spectrum.settled]
            named = [_complex(settled[0]), _complex(settled[settled.real.argmax()]), _complex(modes[limiting[0]]) if limiting else "-"]
            residual = (
                "complete" if spectrum.complete else f"{spectrum.residuals[(limiting or [0])[0]].item() / (spectrum.size or 1.0):.0e}"
            )
            counts = [len(self.growing(spectrum)), spectrum.unknowns, spectrum.vectors, residual]
            rows.append([self.name, number(spectrum.t), *named, number(self.limit_at(spectrum)), *counts])
        return rows

    def sentences(self) -> list[str]:
        """What the numbers mean."""
        what = "z" if self.name == "df/dz" else "theta"
        found = [f"{what}: {self.note}"] if self.note else []
        if not self.spectra:
            return found
        if self.function is not None and self.step is not None:
            found.append(f"{what}: {self._verdict(self.step)}")
        elif self.function is not None:
            found.append(f"{what}: {self._allowance()}")
        return [*found, *self._about_growth(what), *self._about_unseen(what), *self._about_residuals(what)]

    def _allowance(self) -> str:
        if self.limit == 0:
            return f"no step of {self.method} is stable: modes on the imaginary axis neither grow nor decay in the ODE, and grow with it"
        if math.isinf(self.limit):
            return f"nothing limits the step of {self.method}"
        return f"{self.method} is stable up to a step of {self.limit:.3g}, at least {self.steps_needed} steps over t"

    def _verdict(self, step: float) -> str:
        if self.inside:
            share = "" if math.isinf(self.limit) else f", {step / self.limit:.0%} of what is stable"
            return f"the step {step:.3g} of {self.method} is inside its stability region{share}"
        count, (factor, mode) = round(self.span / step), self.spurious()
        total = _power(factor, count)
        own, right = self._multiplied(mode, step)
        grows = f"a step multiplies {_complex(mode)} by {own:.3g} (the ODE by {right:.2g}), all {count} by {_power(own, count):.3g}"
        mild = ", which is little" if total < MILD else ""
        if self.limit == 0:
            return (
                f"no step of {self.method} is stable, because of modes on the imaginary axis, which the ODE lets neither grow nor decay; "
                f"{grows}{mild}; rk4 and ssprk3 hold a piece of that axis"
            )
        return (
            f"the step {step:.3g} of {self.method} is outside its stability region, which ends at {self.limit:.3g}; {grows}{mild}; "
            f"{self.steps_needed} steps instead of {count} are inside"
        )

    def _multiplied(self, mode: Tensor, step: float) -> tuple[float, float]:
        """By how much a step of the method makes a mode larger, and the ODE over the same time."""
        assert self.function is not None
        return self.function(step * mode).abs().item(), math.exp(min(step * mode.real.item(), 700))

    def _about_growth(self, what: str) -> Iterator[str]:
        if not self.whole:
            return
        fastest = [modes[0] for spectrum in self.spectra if len(modes := self.growing(spectrum))]
        if fastest:
            mode = max(fastest, key=lambda mode: mode.real.item())
            total = _power(math.e, mode.real.item() * self.span)
            yield f"{what}: some modes grow in the ODE itself, by {total:.3g} over t for {_complex(mode)}; they limit no step"
        factor, worst = self.spurious()
        if self.step is not None and self.inside and (total := _power(factor, self.span / self.step)) > MILD:
            yield f"{what}: of the growing mode {_complex(worst)} {self.method} makes {total:.3g} times more over t than the ODE"

    def _about_unseen(self, what: str) -> Iterator[str]:
        """Arnoldi sees the outside of a spectrum; where that surrounds the imaginary axis, modes on it are to be expected."""
        seen = [self.modes(spectrum)[spectrum.settled] for spectrum in self.spectra if not spectrum.complete]
        around = torch.cat([modes for modes in seen if (modes.real > 0).any() and (modes.real < 0).any()] or [torch.empty(0)])
        if self.function is None or not len(around) or self.function.limit(torch.tensor(1j)) > 0:
            return
        height = around.imag.abs().max().item() if around.is_complex() else 0.0
        if height > 0:
            grows = ""
            if self.step is not None:
                total = _power(self.function(1j * height * self.step).abs().item(), self.span / self.step)
                grows = f"; of +-{height:.3g}i, as high as any seen, it makes {total:.3g} times more over t than the ODE"
            unstable = f"of modes on the imaginary axis between them no step of {self.method} is stable"
            yield f"{what}: only outer eigenvalues were seen; {unstable}{grows}"

    def _about_residuals(self, what: str) -> Iterator[str]:
        worst = max((s.residuals[s.settled].max().item() / (s.size or 1.0) for s in self.spectra), default=0.0)
        if worst > LOOSE:
            yield f"{what}: the eigenvalues have not settled (residuals up to {worst:.0%} of the largest); more vectors make them better"


@dataclass(frozen=True, repr=False, eq=False)
class Stability:
    """Spectra, largest stable steps and a verdict; ``print`` reads it aloud, ``plot`` draws it.

    ``z``: of dz/dt = f. ``theta``: of dtheta/dt = q, None where the weights stand. ``notes``: what the spectra depend on besides.
    """

    z: StepLimit
    theta: StepLimit | None
    notes: tuple[str, ...] = ()

    @property
    def limits(self) -> tuple[StepLimit, ...]:
        return (self.z,) if self.theta is None else (self.z, self.theta)

    @property
    def inside(self) -> bool | None:
        """Whether all chosen steps are stable; None where there are none."""
        known = [found for limit in self.limits if (found := limit.inside) is not None]
        return all(known) if known else None

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = [row for limit in self.limits for row in limit.rows()]
        columns = ["", "t", "largest", "rightmost", "limits the step", "stable step", "growing", "unknowns", "vectors", "residual"]
        return "\n".join([table(columns, rows), *self.notes, *(line for limit in self.limits for line in limit.sentences())])

    def plot(self, ax: Any = None) -> Any:
        """Eigenvalues times the step (the largest stable one where none is chosen) over |R| <= 1; returns the axes.

        ``ax``: axes, or two of them for z and theta.
        """
        drawn = [limit for limit in self.limits if limit.spectra]
        ax = axes(ax, 1, len(drawn))
        for one, limit in zip(each(ax), drawn, strict=False):
            _draw(one, limit)
        return ax


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
    count: int = 6,
    vectors: int = 100,
    tolerance: float = 1e-4,
) -> Stability:
    """Spectra of df/dz, and of dq/dtheta of a coupled block, at the start, middle and end of t, and the steps that are stable there.

    The step h is stable where |R(h lambda)| <= 1 for every eigenvalue lambda, R the method's stability function. Modes with a positive
    real part grow in the ODE itself and are left out of the limit; those on the imaginary axis are not, and give Euler the limit 0.
    Of large states the outer eigenvalues are found, which limit methods such as rk4; modes near the imaginary axis between them, which
    would limit Euler more, are not, and the report says so.

    Stability of the linearisation at these three times is meant, and says nothing about accuracy; where J is far from normal,
    solutions may grow for a while although every mode decays.

    The state z is the whole batch: J of independent samples has the eigenvalues of all of them. z at the middle and end is solved with
    the given steps (with error control where there are none). Parameters, buffers and random generators stay as they were; BatchNorm in
    training mode normalises by this batch, which couples its samples, and dropout is held fixed.

    Args:
        block_or_func: an ``ODEBlock`` or ``CoupledODEBlock``, or a function or module called as ``func(t, z, *args)``.
        z0: the state at the start: a tensor (batch, ...) or a tree of tensors. Of complex ones J maps real and imaginary parts.
        t, method, steps, step_size, rtol, atol, args: as for ``odeint``, for functions only; t from 0 to 1 and rk4 where not given. With
            neither ``steps`` nor ``step_size`` the limit alone is told.
        count: so many of the largest, of the rightmost and of the step-limiting eigenvalues must have settled for Arnoldi to end.
        vectors: the most Arnoldi vectors, each a product J v, for more than 64 unknowns; fewer where they would take more than 512 MiB.
        tolerance: largest residual of these eigenvalues, in units of the largest.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure; an operation of func without forward mode.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2; Saad, Numerical Methods for Large Eigenvalue Problems, 6.2.
    """
    options = {"method": method, "steps": steps, "step_size": step_size, "rtol": rtol, "atol": atol, "args": args}
    subject = Subject(block_or_func, t, options)
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive: a residual in units of the largest eigenvalue, such as 1e-4")
    chosen = as_method(subject.options.setdefault("method", "rk4"))
    search = Search(as_count("count", count), as_count("vectors", vectors), tolerance)
    with torch.inference_mode(False), subject.untouched(z0) as recording, forward_mode():
        path, problem = _path(subject, z0)
        return Stability(
            _of_z(subject, chosen, path, search, recording, problem),
            _of_theta(subject.block, [time for time, _ in path], search, recording) if isinstance(subject.block, CoupledODEBlock) else None,
            tuple(_notes(recording)),
        )


def _path(subject: Subject, z0: Any) -> tuple[list[tuple[float, Any]], str]:
    """(time, z) at the start, middle and end, the middle on the grid; and what went wrong."""
    start, end = subject.t
    count = subject.steps or 2
    places = sorted({0, count // 2, count})
    times = [start + (end - start) * place / count for place in places]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a step of .* modes of it grow", category=UserWarning)  # the report says it
        try:
            path = _solved(subject, z0, times, places)
        except SolveError as error:
            return [(start, z0)], f"seen at the start alone: {error}"
    bad = [time for time, z in path if not all(leaf.isfinite().all() for leaf in leaves_of(z, structure_of(z)))]
    return [(time, z) for time, z in path if time not in bad], f"the solution is not finite at t = {bad[0]:.3g}" if bad else ""


def _solved(subject: Subject, z0: Any, times: list[float], places: list[int]) -> list[tuple[float, Any]]:
    structure, options = structure_of(z0), subject.options
    if subject.block is not None:
        leaves = leaves_of(subject.block.trajectory(z0), structure)
        states = [[leaf[place] for leaf in leaves] for place in places]
    elif subject.steps is not None:
        steps = integrate(subject.target, z0, subject.t, adjoint="direct", save="steps", **options)[0]
        states = [steps[place] for place in places]
    else:
        controlled = options.keys() & {"rtol", "atol"}
        found = odeint(subject.target, z0, times, adjoint="direct", **options | ({} if controlled else _CONTROL))
        states = list(zip(*leaves_of(found, structure), strict=True))
    return [(time, build(structure, state)) for time, state in zip(times, states, strict=True)]


_CONTROL = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-6}  # where nothing says how z is solved


def _of_z(subject: Subject, method: Method, path: list[tuple[float, Any]], search: Search, recording: Recording, note: str) -> StepLimit:
    start, end = subject.t
    span, direction = abs(end - start), math.copysign(1.0, end - start)
    function, missing = _known(method)
    fields = [(time, _rest(subject, time) if method.splits else subject.at(time), z) for time, z in path]
    spectra = tuple(_spectrum(time, field, z, function, direction, search, recording) for time, field, z in fields)
    apart = "df/dz is that of the rest of f, without its linear part, whose damping is not counted" if method.splits else ""
    step = span / subject.steps if subject.steps else None
    said = "; ".join(filter(None, (note, missing, apart)))
    return StepLimit("df/dz", method.name, span, direction, step, spectra, function, said, whole=not method.splits)


def _rest(subject: Subject, time: float) -> Callable[[Any], Any]:
    """f at one time without the linear part that the method treats by itself."""
    args = subject.options.get("args", ())
    rest = CountedCall(subject.call.func.split(*args)[1])  # pyright: ignore[reportFunctionMemberAccess]
    step = subject.step_of(time)
    return lambda z: rest(torch.tensor(time, dtype=z.real.dtype, device=z.device), z, *args, step=step, stage=0)


def _of_theta(block: CoupledODEBlock, times: list[float], search: Search, recording: Recording) -> StepLimit:
    """Of the state of the dynamics: theta, and what it carries along."""
    start, end = block.t
    span, direction = abs(end - start), math.copysign(1.0, end - start)
    theta0 = block.weights(start)
    closed = block.dynamics.flow(theta0, [0.0]) is not None
    function, note = _known(block.weight_method)
    if closed:
        step, function, note = None, None, "known in closed form, so no step limits it"
        path = [(time - start, block.dynamics.start(block.weights(time))) for time in times]
    else:
        step, path = _weight_step(block), _weight_path(block, theta0, times)
    try:
        slopes = [(time, lambda state, time=time: block.dynamics(_clock(time, state), state), state) for time, state in path]
        spectra = tuple(_spectrum(time, slope, state, function, direction, search, recording) for time, slope, state in slopes)
    except ValueError as error:  # a dynamics that is known by its flow alone
        spectra, note = (), f"{note}; dq/dtheta is not known: {error}"
    return StepLimit("dq/dtheta", "closed form" if closed else block.weight_method.name, span, direction, step, spectra, function, note)


def _weight_step(block: CoupledODEBlock) -> float:
    """The longest step of theta between the times at which z reads it."""
    start, end = block.t
    later = [time for time in block.reading_times if time != start]
    grid = uniform_grid([start, *later], step_size=abs(end - start) / block.weight_steps)
    return max(abs(float(step.dt)) for step in grid.steps())


def _weight_path(block: CoupledODEBlock, theta0: Any, times: list[float]) -> list[tuple[float, Any]]:
    state = block.dynamics.start(theta0)
    if len(times) == 1:
        return [(times[0], state)]
    structure, size = structure_of(state), abs(block.t[1] - block.t[0]) / block.weight_steps
    path = odeint(block.dynamics, state, times, method=block.weight_method, step_size=size, adjoint="direct")
    return [(time, build(structure, leaves)) for time, leaves in zip(times, zip(*leaves_of(path, structure), strict=True), strict=True)]


def _known(method: Method) -> tuple[StabilityFunction | None, str]:
    try:
        return stability_function(method), ""
    except ValueError as error:
        return None, str(error)


def _notes(recording: Recording) -> Iterator[str]:
    training = [module for module in recording.attributes.modules if module.training]
    if any(isinstance(module, BatchNorm) for module in training):
        yield "BatchNorm in training mode couples the samples: df/dz is that of this batch"
    if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in training):
        yield "dropout in training mode: df/dz is that of one draw"


def _spectrum(
    time: float,
    field: Callable[[Any], Any],
    y: Any,
    function: StabilityFunction | None,
    direction: float,
    search: Search,
    recording: Recording,
) -> Spectrum:
    """By Arnoldi on the Jacobian of ``field`` at y."""
    structure = structure_of(y)
    jacobian = Jacobian(lambda leaves: leaves_of(field(build(structure, leaves)), structure), leaves_of(y, structure), recording)
    part = StepLimit("", "", 1.0, direction, None, (), function)

    def limiting(values: Tensor, residuals: Tensor) -> Tensor:
        return part.limiting(Spectrum(time, values, residuals, jacobian.unknowns, 0, jacobian.round_off))

    values, residuals, vectors = arnoldi(jacobian, search, limiting)
    order = falling(values.abs())
    return Spectrum(time, values[order], residuals[order], jacobian.unknowns, vectors, jacobian.round_off)


def _clock(time: float, state: Any) -> Tensor:
    leaf = leaves_of(state, structure_of(state))[0]
    return torch.tensor(time, dtype=torch.promote_types(torch.float32, leaf.dtype), device=leaf.device)


def _power(factor: float, count: float) -> float:
    """factor^count, at most about 1e304."""
    return math.exp(min(count * math.log(factor), 700)) if factor > 0 else 0.0


def _complex(mode: Tensor) -> str:
    """With three digits, a conjugate pair as one."""
    value = complex(mode.item())
    if value.imag == 0:
        return f"{value.real:.3g}"
    return f"{value.real:.3g} +- {abs(value.imag):.3g}i" if value.real else f"+-{abs(value.imag):.3g}i"


def _draw(ax: Any, limit: StepLimit) -> None:
    h = 1.0 if limit.function is None else limit.step or limit.limit
    h = h if 0 < h < math.inf else 1 / max(spectrum.size or 1.0 for spectrum in limit.spectra)
    furthest = h * max(spectrum.size for spectrum in limit.spectra) or 1.0
    region = 0.0 if limit.function is None else 1.2 * limit.function.limit(torch.tensor(-1.0))
    radius = max(1.15 * furthest, min(region, 6 * furthest))
    if limit.function is not None:
        x = torch.linspace(-1.3 * radius, 0.7 * radius, 241, dtype=torch.float64)
        y = torch.linspace(-radius, radius, 241, dtype=torch.float64)
        R = limit.function(torch.complex(*torch.meshgrid(x, y, indexing="xy"))).abs()
        ax.contourf(x.numpy(), y.numpy(), R.numpy(), levels=[-1.0, 1.0], colors=["#DDDDDD"])
        ax.contour(x.numpy(), y.numpy(), R.numpy(), levels=[1.0], colors=["#555555"], linewidths=1.0)
    ax.axvline(0, color="#555555", linewidth=0.6)
    ax.axhline(0, color="#555555", linewidth=0.6)
    for spectrum, (colour, marker) in zip(limit.spectra, COLOURS, strict=False):
        modes = h * limit.direction * spectrum.eigenvalues[spectrum.settled]
        ax.plot(modes.real.numpy(), modes.imag.numpy(), marker, color=colour, fillstyle="none", label=f"t = {spectrum.t:.3g}")
    chosen = "the step h" if limit.step else "the largest stable step h" if h == limit.limit else "h"
    ax.set(xlim=(-1.3 * radius, (0.7 if limit.function is not None else 1.3) * radius), ylim=(-radius, radius), aspect="equal")
    ax.set(xlabel="Re hλ", ylabel="Im hλ", title=f"{limit.name}, {limit.method}, {chosen} = {h:.3g}")
    ax.legend(loc="upper left")
