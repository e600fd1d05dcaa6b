"""Runs of steps: a grid whose steps are several of another, neighbouring ones, taken as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..problem import VectorField
from ..stepping import Grid, Step, Time
from ..tables import kept


@dataclass(frozen=True)
class SeveralSteps(Step):
    """Neighbouring steps taken as one; ``index`` counts these."""

    inner: tuple[Step, ...] = ()

    @property
    def count(self) -> int:
        return len(self.inner)

    @property
    def dt(self) -> Time:
        return self.time(1.0) - self.time(0.0)

    def time(self, node: float) -> Time:
        start, end = self.inner[0].time(0.0), self.inner[-1].time(1.0)
        return start if node == 0 else end if node == 1 else start + (end - start) * node


@dataclass(frozen=True)
class Runs(Grid):
    """The steps of a grid, up to ``longest`` at a time; between two outputs the runs differ in length by at most one."""

    longest: int = 1

    @cached_property
    def _single(self) -> Grid:
        return Grid(self.times, self.counts, self.wanted, jumps=self.jumps, before=self.before, every=self.every)

    @property
    def done(self) -> int:
        """How many steps the runs have, to where they stop."""
        return len(self._single) if self.stop is None else self._bounds[self.stop - 1][1] if self.stop else 0

    @cached_property
    def _bounds(self) -> list[tuple[int, int]]:
        bounds: list[tuple[int, int]] = []
        for start, end in pairwise(self._single.outputs()):
            runs = _pieces(end - start, self.longest)
            bounds += pairwise(start + (end - start) * i // runs for i in range(runs + 1))
        return bounds

    def __len__(self) -> int:
        return len(self._bounds) if self.stop is None else self.stop

    def steps(self) -> list[Step]:
        single = self._single.steps()
        own = [tuple(single[start:end]) for start, end in self._bounds[: self.stop]]
        return [SeveralSteps(i, self.times, s[0].interval, s[0].part, s[0].parts, inner=s) for i, s in enumerate(own)]

    def outputs(self) -> tuple[int, ...]:
        done = {end: number + 1 for number, (_, end) in enumerate(self._bounds[: self.stop])}
        return (0, *(done[place] for place in self._single.outputs()[1:] if place in done))


def _pieces(count: int, longest: int) -> int:
    """Into how many runs to cut so many steps: equal ones where they need not be shorter than half the longest, a graph for all of them."""
    if count <= longest:
        return 1
    even = [length for length in range((longest + 1) // 2, longest + 1) if count % length == 0]
    return count // even[-1] if even else -(-count // longest)


def times_of(steps: Sequence[Step], field: VectorField, length: int = 0) -> Tensor:
    """Between the steps, the last one repeated for a loop of such a ``length``."""
    times = [steps[0].time(0.0), *(one.time(1.0) for one in steps)]
    if any(isinstance(time, Tensor) for time in times):
        times += times[-1:] * (length - len(steps))
        return torch.stack(torch.broadcast_tensors(*(field.time(time) for time in times)))
    return kept(_numbers, tuple(map(float, times)), length + 1, field.device)


def limits_of(steps: Sequence[Step], field: VectorField, length: int = 0) -> Tensor | None:
    """Within which f is asked in each step."""
    if steps[0].limits is None:
        return None
    return kept(_numbers, tuple(one.limits for one in steps), length, field.device)


def _numbers(numbers: tuple[Any, ...], length: int, device: torch.device) -> Tensor:
    """The last one repeated."""
    return torch.tensor(numbers + numbers[-1:] * (length - len(numbers)), dtype=torch.float64, device=device)
