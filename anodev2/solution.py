"""What a solve found and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .problem import Costs, Status, VectorField
from .pytree import build, leaves_of, structure_of
from .stepping import Between


@dataclass(repr=False)
class Stats:
    """What a solve cost, measured; backward passes add to it when they run.

    evaluations_forward, evaluations_backward: of func. accepted, rejected: steps and attempts that were too inaccurate.
    recomputed: steps redone. peak_bytes: the most bytes of states (with ``memory=`` of step graphs too) that a
    ``CheckpointAdjoint`` or ``ReversibleAdjoint`` held at once; 0 where nothing is held but autograd's own graph.
    suspected_jumps: (start, end) of each accepted step within which f seems to jump: it is 8 times shorter than the attempt first
    rejected there, and soon steps are as long again. Give the times of the jumps, or both ends, to ``breaks=``. Empty on grids and
    with ``per_sample``.
    """

    evaluations_forward: int
    accepted: int
    rejected: int
    field: VectorField
    costs: Sequence[Costs]
    suspected_jumps: tuple[Between, ...] = ()

    @property
    def evaluations_backward(self) -> int:
        return self.field.evaluations - self.evaluations_forward

    @property
    def recomputed(self) -> int:
        return sum(cost.redone for cost in self.costs)

    @property
    def peak_bytes(self) -> int:
        return sum(cost.peak_bytes for cost in self.costs)

    def __repr__(self) -> str:
        names = ("evaluations_forward", "evaluations_backward", "accepted", "rejected", "recomputed", "peak_bytes", "suspected_jumps")
        return f"Stats({', '.join(f'{name}={getattr(self, name)}' for name in names)})"

    def __str__(self) -> str:
        jumps = f"; func seems to jump within {len(self.suspected_jumps)} steps" if self.suspected_jumps else ""
        return (
            f"{self.accepted} steps accepted, {self.rejected} rejected; func evaluated {self.evaluations_forward} times forward, "
            f"{self.evaluations_backward} backward; {self.recomputed} steps redone; {self.peak_bytes} bytes of states held at most{jumps}"
        )


@dataclass(repr=False)
class Solution:
    """What ``solve`` found.

    ts: the output times reached, shape (k,), the event's time last where there was one. ys: a tree like y0 with the
    states at ts (or what ``save`` made of them) stacked in front. grid: the times of all steps done, to be passed back as
    ``grid=`` (with ``per_sample`` tensors, which cannot be). event_time: of the event that ended the solve, zero-dimensional,
    with its gradient; None where none did. t_events, y_events: for each event its times, shape (k,), and the states there, before
    any effect, stacked in front. methods: the name of the method that took each step. statuses: with ``per_sample``
    the status of each sample; with times of their own, or with an event, ts is of shape (k, batch): where an event ended a sample it
    stays, at the event's time, in the rows left; then event_time is (batch,), t_events (k, batch), nan where a sample has none. Called
    with times, gives the states there, and ``rate`` their derivative (``dense=True``).
    """

    ts: Tensor
    ys: Any
    stats: Stats
    status: Status
    grid: tuple[Any, ...]
    event_time: Tensor | None = None
    dense: Any = None
    t_events: tuple[Tensor, ...] = ()
    y_events: tuple[Any, ...] = ()
    methods: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()

    def __repr__(self) -> str:
        structure = structure_of(self.ys)
        shapes = build(structure, [f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}" for leaf in leaves_of(self.ys, structure)])
        ends = self.ts.detach()
        times = (
            f"{len(ends)} times from {float(ends[0].nan_to_num().max()):g} to {float(ends[-1].nan_to_num().max()):g}"
            if len(ends)
            else "no times"
        )
        return f"Solution({times}, ys={shapes}, {len(self.grid) - 1} steps, status={self.status.reason!r},\n    {self.stats!r})"

    def __call__(self, t: Any) -> Any:
        """The state at time t, or at several times stacked in front.

        By the method's own interpolant and the slopes that the solve has taken, else by the cubic through both ends of the step; the
        result has gradients with respect to all that the states have, and to t.
        """
        return self._dense()(t)

    def rate(self, t: Any) -> Any:
        """dy/dt at time t, or at several times stacked in front: the derivative of what a call gives, at the end of a step that of the
        step before. Close to func(t, y), and exact for the interpolant."""
        return self._dense().rate(t)

    def _dense(self) -> Any:
        if self.dense is None:
            raise ValueError("this solution has no dense output; solve with dense=True")
        return self.dense
