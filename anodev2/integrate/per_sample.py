"""Error control for each sample of a batch by itself, as in torchode: a grid whose times differ from sample to sample.

The grid is found first, without a graph and without a trace; then the solve takes it as any given grid, so every exact
adjoint has the gradient of what was computed. A sample whose attempt was rejected, that waits for the others at an output
time, or that failed, takes a step of length zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..problem import Problem, Status
from ..solvers import Leaves, Method
from ..stepping import MORE, STRETCH, Adaptive, Control, Grid, Step, limited, wants_grad
from ..torch_private import BatchNorm
from .captured import reachable
from .loop import error_ratios
from .recording import untouched


class Watch(Protocol):
    """Is shown the steps of a search, and says which samples stop before one."""

    taken: Tensor  # steps of every sample, in the searches before too

    def begin(self, time: Tensor, y: Tensor, slope: Tensor) -> None:
        """A search begins there; ``slope`` is f."""
        ...

    def __call__(self, stop: Tensor, y: Tensor, accepted: Tensor) -> Tensor:
        """Which of the samples that may step to y at ``stop`` do not."""
        ...


def columns(adaptive: Adaptive, y: Tensor) -> list[Tensor]:
    """The output times of all samples, of shape (batch, 1, ..., 1)."""
    own = [time for time in adaptive.times if isinstance(time, Tensor) and time.ndim]
    lead = (len(y), *(1,) * (y.ndim - 1))
    return own or [torch.full(lead, float(time), dtype=torch.float64, device=y.device) for time in adaptive.times]


def find_grid(problem: Problem, y0: Leaves, args: tuple[Any, ...], max_steps: int | None, watch: Watch | None = None) -> Grid:
    """The steps of every sample from each output time or break to the next; times are tensors of shape (batch, 1, ..., 1).

    All wait for the last at an output time, which may be another for each sample, and nan for one that has no more. The grid's ``status``
    tells of samples that failed; output times that none reached are left out.
    """
    adaptive, method = problem.stepping, problem.method
    assert isinstance(adaptive, Adaptive)
    own = [time for time in adaptive.times if isinstance(time, Tensor)]
    ends = columns(adaptive, y0[0])
    with torch.no_grad(), untouched(problem, y0, args):
        search = _Search(problem, adaptive, method, y0[0], args, ends, math.inf if max_steps is None else max_steps, watch)
        wanted = [0, *(search.until(end) for end in ends[1:] if not search.failed.all())]
    if watch is not None:
        watch.taken = search.taken + search.stopped
    wanted = wanted[:-1] if search.failed.all() else wanted
    counts = (1,) * (len(search.nodes) - 1)
    return Grid(
        tuple(search.nodes),
        counts,
        tuple(wanted),
        status=search.status(),
        statuses=search.statuses(),
        asked=tuple(own),
        jumps=adaptive.jumps,
    )


def check_samples(problem: Problem, adaptive: Adaptive, y0: Leaves) -> None:
    """ValueError for what has no samples, or samples that feel each other."""
    if len(y0) != 1 or problem.field.structure.kind is not None or y0[0].ndim == 0:
        raise ValueError("per_sample=True needs a single tensor with a batch axis in front as y0")
    if y0[0].numel() == 0:
        raise ValueError(f"per_sample=True needs at least one sample with an element, got y0 of shape {tuple(y0[0].shape)}")
    if any(map(wants_grad, (*adaptive.times, *adaptive.breaks))):
        raise ValueError("per_sample=True gives no gradient with respect to times and breaks; detach them")
    for module in reachable(problem.field.func).modules:
        if isinstance(module, BatchNorm) and module.training:
            raise ValueError(
                "per_sample=True and BatchNorm in training mode contradict each other: a sample's steps would depend on the batch"
            )


@dataclass
class _Search:
    """The batch on its way: state, times, step sizes and the errors of the last two accepted steps of every sample."""

    problem: Problem
    adaptive: Adaptive
    method: Method
    y: Tensor
    args: tuple[Any, ...]
    ends: Sequence[Tensor]  # nan where a sample has no more
    max_steps: float
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self.field = self.problem.given(self.args)
        self.lead = (len(self.y), *(1,) * (self.y.ndim - 1))
        self.time = self.ends[0]
        self.nodes = [self.time]
        self.sign = -1.0 if (torch.stack(list(self.ends)) < self.ends[0]).any() else 1.0
        self.k = (self.method.embedded_order or 0) + 1
        self.errors = [self._column(1.0), self._column(1.0)]
        self.rejected = self.failed = self.stopped = self._column(0.0).bool()
        self.failures: list[Status] = []
        self.taken = self._column(0.0) if self.watch is None else self.watch.taken  # steps accepted
        self.least = self._least(torch.stack([end.double().nan_to_num(0.0, 0.0, 0.0).abs() for end in self.ends]).amax(0))
        jumps = self.adaptive.jumps
        self.breaks = None if jumps is None else torch.tensor(sorted(jumps.values), dtype=torch.float64, device=self.y.device)
        self.behind = self.failed  # which samples have come to a break, and go on from its other side
        stop = self.time
        for end in self.ends[1:]:  # the first output time that is not the start
            stop = torch.where(stop == self.time, self._stop(end), stop)
        self.first: Tensor | None = self._slope(stop)
        self.size = self._first_size(self.first, stop)
        if self.watch is not None:
            self.watch.begin(self.time, self.y, self.first)

    def _least(self, largest: Tensor) -> Tensor:
        """What no step is made shorter than, where times are so large."""
        unit = torch.nextafter(largest, torch.full_like(largest, math.inf)) - largest
        return (8 * unit).clamp_min(self.adaptive.control.min_step).expand(self.lead)

    def _column(self, value: float) -> Tensor:
        return torch.full(self.lead, value, dtype=torch.float64, device=self.y.device)

    def _slope(self, stop: Tensor) -> Tensor:
        """Where the samples are, on their way to ``stop``."""
        near = stop.where(stop.isfinite(), self.time + self.sign)
        return self.field(self._step(near), 0, 0.0, [self.y])[0]

    def _step(self, stop: Tensor) -> Step:
        return limited(Step(len(self.nodes) - 1, (self.time, stop), 0, 0, 1), self.adaptive.jumps)

    def _stop(self, end: Tensor) -> Tensor:
        """The next break on the way of each sample to ``end``, or that; where it has no more, its time."""
        end = end.where(~end.isnan(), self.time)
        if self.breaks is None:
            return end
        breaks = self.sign * self.breaks.view(-1, *[1] * self.time.ndim)
        ahead = (breaks > self.sign * self.time) & (breaks < self.sign * end)
        return torch.minimum(breaks.where(ahead, math.inf).amin(0), self.sign * end) * self.sign

    def _norm(self, error: Tensor, y_next: Tensor) -> Tensor:
        """Root mean square of the error ratios of each sample."""
        (ratio,) = error_ratios(self.adaptive, [error], [self.y], [y_next])
        return ratio.double().square().reshape(len(ratio), -1).mean(1).sqrt().view(self.lead)

    def _first_size(self, slope: Tensor, stop: Tensor) -> Tensor:
        """As for a whole batch (``loop``), sample by sample."""
        control = self.adaptive.control
        if control.first_step is not None:
            return self._column(control.first_step)
        zero = torch.zeros_like(self.y)
        d0, d1 = self._norm(self.y, zero), self._norm(slope, zero)
        usual = (d0 >= 1e-5) & (d1 >= 1e-5) & torch.isfinite(d1)
        span = torch.where(stop == self.time, 1.0, (stop - self.time).abs())
        h0 = torch.where(usual, 0.01 * d0 / d1, 1e-6).clamp_max(span)
        ahead = self.y + (self.sign * h0).to(self.y.real.dtype) * slope
        second = self.field(self._step(self.time + self.sign * h0), 0, 1.0, [ahead])[0]
        d2 = self._norm(second - slope, zero) / h0
        steepest = torch.maximum(d1, d2)
        h1 = torch.where(steepest <= 1e-15, torch.clamp_min(h0 * 1e-3, 1e-6), (0.01 / steepest) ** (1 / self.k))
        size = torch.where((h1 > 0) & torch.isfinite(h1), torch.minimum(100 * h0, h1), h0)
        return size.clamp(control.min_step, control.max_step)

    def until(self, end: Tensor) -> int:
        """Step until every sample has reached ``end`` or failed; the number of steps done then.

        This ends: an attempt that is rejected is followed by a shorter one, down to ``least``, and one that is accepted moves on by
        at least half of that, more than the times' rounding.
        """
        endless = self.watch is not None and bool(end.isinf().any())
        while bool((waiting := (self.time != end) & ~end.isnan() & ~self.failed & ~self.stopped).any()):
            to = self._stop(end)
            if self.breaks is not None and bool((crossing := self.behind & waiting).any()):
                self._begin(crossing, to)
            self.least = torch.maximum(self.least, self._least(self.time.abs())) if endless else self.least
            left, shortest = (to - self.time).abs(), self.size <= self.least  # what was asked for; the length taken is rounded
            size = torch.where(left < 2 * self.size, left / 2, self.size)
            near = left <= (self.size * STRETCH).clamp_max(self.least.clamp_min(self.adaptive.control.max_step) * (1 + 1e-9))
            stop = torch.where(waiting, torch.where(near, to, self.time + self.sign * size), self.time)
            step = self._step(stop)
            ends, slopes = self.method.attempt(self.field, step, [self.y], None if self.first is None else [self.first])
            error = self._norm(self.method.error(step.dt, slopes)[0], ends[0])
            accepted = waiting & (error <= 1)
            broken = ~torch.isfinite(slopes[0][0]).reshape(len(self.y), -1).all(1).view(self.lead)
            lost = waiting & torch.where(accepted, self.taken >= self.max_steps, broken | shortest)
            if bool(lost.any()):
                self._fail(lost, broken, error)
            accepted = accepted & ~self.failed
            if self.watch is not None:
                self.stopped = self.stopped | self.watch(stop, ends[0], accepted)
                accepted = accepted & ~self.stopped
            self._resize(error, (stop - self.time).abs(), accepted, waiting)
            self.size = self.size.clamp_min(self.least)
            self.time = torch.where(accepted, stop, self.time)
            self.y = torch.where(accepted, ends[0], self.y)
            self.taken = self.taken + accepted
            self.first = torch.where(accepted, slopes[-1][0], slopes[0][0]) if self.method.fsal else None
            if self.breaks is not None:
                self.behind = self.behind | (accepted & torch.isin(self.time, self.breaks))
            if bool(accepted.any()):
                self.nodes.append(self.time)
        return len(self.nodes) - 1

    def _begin(self, crossing: Tensor, stop: Tensor) -> None:
        """These samples go on from behind a break, knowing nothing of what comes."""
        self.first = self._slope(stop)
        self.size = torch.where(crossing, self._first_size(self.first, stop), self.size)
        self.errors = [torch.where(crossing, 1.0, error) for error in self.errors]
        self.rejected, self.behind = self.rejected & ~crossing, self.behind & ~crossing

    def _resize(self, error: Tensor, taken: Tensor, accepted: Tensor, waiting: Tensor) -> None:
        """``stepping.Control``'s rule, sample by sample."""
        control: Control = self.adaptive.control
        p, i, d = (coefficient / self.k for coefficient in control.pid)
        factor = control.safety * error.clamp_min(1e-10) ** -(p + i + d) * self.errors[0] ** (p + 2 * d) * self.errors[1] ** -d
        factor = torch.where(torch.isfinite(error), factor, control.shrink).clamp(control.shrink, control.grow)
        grown = torch.where(self.rejected, factor.clamp_max(1.0), factor) * taken
        cut = taken < self.size * (1 - 1e-6)  # short only to end at an output time
        shrunk = factor.clamp_max(min(control.safety, 0.9)) * taken
        size = torch.where(accepted, torch.where(cut, torch.maximum(self.size, grown), grown), shrunk)
        self.errors = [
            torch.where(accepted, error.clamp_min(1e-10), self.errors[0]),
            torch.where(accepted, self.errors[0], self.errors[1]),
        ]
        self.size = torch.where(waiting, size.clamp(control.min_step, control.max_step), self.size)
        self.rejected = waiting & ~accepted

    def _fail(self, lost: Tensor, broken: Tensor, error: Tensor) -> None:
        """Leave these samples where they are."""
        self.failed = self.failed | lost
        for sample in lost.reshape(-1).nonzero().reshape(-1).tolist():
            t, size, worst = (column.reshape(-1)[sample].item() for column in (self.time, self.size, error))
            reason, what = "step size", f"the step size fell to {size:.3g}, its error is {worst:.3g} times the tolerance"
            if worst <= 1:
                reason, what = "max_steps", f"max_steps={self.max_steps} were done, before the end; {MORE}"
            elif not math.isfinite(worst) or broken.reshape(-1)[sample]:
                reason, what = "not finite", "func is not finite"
            message = f"sample {sample} of the batch at t={t:.9g}: {what}"
            self.failures.append(Status(reason, message, t, len(self.nodes) - 1, "y0", (sample,), worst))

    def statuses(self) -> tuple[Status, ...]:
        """How each sample ended."""
        failed = {sample: failure for failure in self.failures for sample in failure.element or ()}
        return tuple(failed.get(sample, Status()) for sample in range(len(self.y)))

    def status(self) -> Status | None:
        """That of the first sample that failed, with the numbers of all and the last good states; None where all came to the end."""
        if not self.failures:
            return None
        rest = f"; and {len(self.failures) - 3} samples more" * (len(self.failures) > 3)
        message = "; ".join(failure.message for failure in self.failures[:3]) + rest
        samples = sorted(sample for failure in self.failures for sample in failure.element or ())
        return replace(self.failures[0], message=message, element=tuple(samples), y=self.y)
