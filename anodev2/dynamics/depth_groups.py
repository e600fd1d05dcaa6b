"""Depth in groups, each of which moves the weights in its own way."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .dynamics import Dynamics, Theta


class DepthGroups(Dynamics):
    """Depth in groups, each with coefficients of its own: dtheta/dt = q_j(t - e_j, theta) for e_j <= t < e_{j+1}, e_0 = 0.

    theta is continuous: a group starts where the one before it ends, and each sees the time since its own start (a ``length`` of the
    dynamics is that of a group, then). With all coefficients zero the weights stand still, as those of the dynamics do.

    Args:
        dynamics: that of the first group; each other gets a copy, which then learns by itself. It has its weights in closed form.
        ends: e_1 < e_2 < ..., times since the block's start at which the next group begins; one by default, half of depth.

    Parameters beside theta_0: those of ``dynamics``, once per group. It accepts the weights that ``dynamics`` accepts.

    Raises:
        TypeError: dynamics is none, or reads the features; ends are no sequence of times.
        ValueError: ends are not above 0, finite and increasing; or, once it is asked for weights, ``dynamics`` has none in closed form.
    """

    def __init__(self, dynamics: Dynamics, ends: Sequence[float] | Tensor = (0.5,)) -> None:
        super().__init__()
        if not isinstance(dynamics, Dynamics) or dynamics.reads_features:
            raise TypeError(f"dynamics must be a Dynamics that does not read the features, got {type(dynamics).__name__}")
        try:
            self.starts = (0.0, *map(float, ends))
        except (TypeError, ValueError):
            raise TypeError(f"ends must be a sequence of times, such as (0.5,), got {ends!r}") from None
        if len(self.starts) == 1 or not all(a < b < math.inf for a, b in pairwise(self.starts)):
            raise ValueError(f"ends must be increasing times above 0, such as (0.5,), got {ends!r}")
        self.groups = nn.ModuleList([dynamics, *(copy.deepcopy(dynamics) for _ in self.starts[1:])])

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Those that the dynamics of the groups accepts."""
        return self._dynamics()[0].accepts(name, weight)

    def bind(self, theta: Theta) -> None:
        for group in self._dynamics():
            group.bind(theta)

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """The slope of the group that t lies in; at an end, that of the group which begins there."""
        place = self._place(float(t))
        return self._dynamics()[place](t - self.starts[place], theta)

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        found: dict[float, Theta] = {}
        for place in range(self._place(max(times)) + 1):
            asked = [time for time in times if self._place(time) == place]
            path = self._of_group(place, theta, [*asked, *self.starts[place + 1 : place + 2]])
            found |= {time: {name: values[i] for name, values in path.items()} for i, time in enumerate(asked)}
            theta = {name: values[-1] for name, values in path.items()}
        return {name: torch.stack([found[time][name] for time in times]) for name in theta}

    @torch.no_grad()
    def fit(self, path: Theta, times: Sequence[float]) -> Theta | None:
        """Group by group, those that hold most of the path first: they tell the others of weights at ends where the path has none."""
        known = {time: {name: values[i] for name, values in path.items()} for i, time in enumerate(times)}
        first = known[times[0]]
        held = [sum(self._place(time) == place for time in times) for place in range(len(self.starts))]
        for place in sorted(range(len(held)), key=lambda place: -held[place]):
            begin, end = self.starts[place], (*self.starts, math.inf)[place + 1]
            at = sorted(time for time in known if begin <= time <= end)
            if len(at) < 2:
                continue
            own = {name: torch.stack([known[time][name] for time in at]) for name in path}
            found = self._dynamics()[place].fit(own, [time - begin for time in at])
            if found is None:
                return None
            first = first if place else found
            known.setdefault(begin, found)
            if end < math.inf:
                known.setdefault(end, {name: values[-1] for name, values in self._of_group(place, found, [end]).items()})
        return first

    def _of_group(self, place: int, theta: Theta, times: Sequence[float]) -> Theta:
        group = self._dynamics()[place]
        path = group.flow(theta, [time - self.starts[place] for time in times])
        if path is None:
            raise ValueError(f"{type(group).__name__} has no weights in closed form, which DepthGroups needs; give it a dynamics that has")
        return path

    def _dynamics(self) -> list[Dynamics]:
        return cast(list[Dynamics], list(self.groups))

    def _place(self, time: float) -> int:
        return sum(start <= time for start in self.starts[1:])
