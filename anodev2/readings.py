"""When the features read the weights."""

from __future__ import annotations

from .solvers import Method
from .stepping import Grid


class ReadingPlan:
    """When z reads theta: at the distinct times of all stages of all steps, rising along t; or at the end alone.

    For rk4 and two steps over (0, 1): times 0, 1/4, 1/2, 3/4, 1; the stages of step 1 read number 2, 3, 3, 4. ``both_ways``: also
    at the times of the stages of a step taken backwards, whose nodes are 1 - c. At a break of ``grid`` both sides read one theta.
    """

    def __init__(self, method: Method, grid: Grid, *, end_only: bool, both_ways: bool) -> None:
        steps = grid.steps()
        ways = [[1.0] * len(method.nodes)] * 2 if end_only else [list(method.nodes), [1 - node for node in method.nodes]]
        first, last = (len(steps) - 1, len(steps)) if end_only else (0, len(steps))
        read = [[[_place(step, node) for node in nodes] for step in range(first, last)] for nodes in ways[: 1 + both_ways]]
        places = sorted({place for way in read for step in way for place in step})
        number = {place: i for i, place in enumerate(places)}
        self.read = [[[number[place] for place in step] for step in way] for way in read]
        exact = {round(node, 12): node for way in reversed(ways) for node in way}
        self.times = [float(steps[step].time(exact.get(node, node)) if step < len(steps) else steps[-1].time(1.0)) for step, node in places]

    def number(self, step: int, stage: int, backwards: bool = False) -> int:
        """Which of them a stage reads, and so which copy of f it calls."""
        way = self.read[backwards]
        return way[step if len(way) > 1 else 0][stage]


def _place(step: int, node: float) -> tuple[int, float]:
    """A time of a grid: the step that it is in, or begins, and the place within, to 12 digits."""
    return (step, round(node, 12)) if node < 1 - 1e-12 else (step + 1, 0.0)
