"""An explicit method that gives way to a stiff one where stability, not accuracy, limits its steps, and comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

import torch
from torch import Tensor

from ..stepping import Step
from .jacobian import DENSE
from .method import Chooser, Leaves, Method, SplitField, combine
from .rosenbrock import RODAS4, RODAS5P, Rosenbrock
from .runge_kutta import RungeKutta
from .sdirk import ESDIRK4, KVAERNO5, SDIRK
from .tableau import METHODS, Tableau

SHARE = 0.7  # of the largest stable step: where error control settles at the limit, h rho is 0.78 of it for tsit5
TO_STIFF, TO_EXPLICIT, FORGET = 10, 3, 6  # steps in favour of a change, and those that clear the first count

STIFF = (RODAS5P, RODAS4, KVAERNO5, ESDIRK4)


@dataclass(frozen=True)
class Auto(Method):
    """Error control that starts with an explicit method, goes over to a stiff one where stability limits the step, and comes back.

    With rho an estimate of the dominant eigenvalue of df/dy and l the largest stable step of the explicit method on y' = -y: after 10
    explicit steps with h rho > 0.7 l, not interrupted by 6 others, the stiff method takes over; after 3 of its steps with h rho <= 0.7 l
    the explicit one does. rho = |k_s - k_{s-1}| / |y_s - y_{s-1}| of the two explicit stages at the end of a step; in a stiff step one more
    evaluation, a difference of f along the direction of the last (a power iteration). ``Solution.methods`` tells which took each step.

    Times within a step are read from the interpolant of the method that took it. The choice is a constant for the gradient, which is that
    of the steps taken.

    Args:
        explicit: "tsit5", "dopri5", or a tableau with error control whose last two stages lie at the end of the step.
        stiff: "rodas5p", "rodas4", "kvaerno5", "esdirk4" or such a method; None: rodas5p, for more than 128 elements kvaerno5.

    Raises:
        ValueError: a method that is none of these; a grid, ``per_sample``.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2 (2.27); Shampine, ACM TOMS 17 (1991).
    """

    explicit: str | Tableau = "tsit5"
    stiff: str | Method | None = None
    name = "auto"
    order = 5
    nodes = ()
    jacobian = True

    def __post_init__(self) -> None:
        tableau = METHODS.get(self.explicit) if isinstance(self.explicit, str) else self.explicit
        if not isinstance(tableau, Tableau) or not tableau.fsal or tableau.advancing < 2 or tableau.nodes[tableau.advancing - 1] != 1:
            raise ValueError(f"explicit={self.explicit!r} must be 'tsit5', 'dopri5' or a tableau whose last two stages end the step")
        stiff = {one.name: one for one in STIFF}.get(self.stiff) if isinstance(self.stiff, str) else self.stiff or RODAS5P
        if not isinstance(stiff, (Rosenbrock, SDIRK)):
            raise ValueError(f"stiff={self.stiff!r} must be one of {', '.join(one.name for one in STIFF)}, or such a method")
        first = RungeKutta(tableau)
        object.__setattr__(self, "both", (first, stiff))
        object.__setattr__(self, "embedded_order", min(first.embedded_order or 0, stiff.embedded_order or 0))
        object.__setattr__(self, "interpolant", first.interpolant and stiff.interpolant)  # that there is one: each step has its own
        object.__setattr__(self, "ends", stiff.ends)

    def at(self, step: Step) -> Method:
        return self.both[step.by]  # pyright: ignore[reportAttributeAccessIssue]

    def for_state(self, leaves: Leaves) -> Method:
        size = sum(leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in leaves)
        return self._for_many if self.stiff is None and size > DENSE else self

    @cached_property
    def _for_many(self) -> Auto:
        return Auto(self.explicit, KVAERNO5)

    @cached_property
    def _limit(self) -> float:
        return SHARE * reach(self.both[0].tableau)  # pyright: ignore[reportAttributeAccessIssue]

    def chooser(self) -> Stiffness:
        return Stiffness(self.both[0].tableau, self._limit)  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return self.at(step).step(field, step, y)

    def attempt(
        self, field: SplitField, step: Step, y: Leaves, first: Leaves | None, between: Callable[[], None] = lambda: None
    ) -> tuple[list[Tensor], list[Leaves]]:
        return self.at(step).attempt(field, step, y, first, between)

    def completed(self, field: SplitField, step: Step, y: Leaves, end: Leaves, slopes: list[Leaves]) -> list[Leaves]:
        return self.at(step).completed(field, step, y, end, slopes)


@dataclass
class Stiffness(Chooser):
    """Which of both methods takes the next step of one solve."""

    tableau: Tableau
    limit: float  # of h rho
    by: int = 0
    votes: int = 0  # steps in favour of a change
    against: int = 0
    direction: list[Tensor] = field(default_factory=list)  # of the dominant eigenvector, of length one
    last: tuple[Step, list[Tensor], list[Tensor]] | None = None  # a stiff step not judged yet: with the state and slope at its start

    def saw(self, step: Step, y: Leaves, slopes: Sequence[Leaves]) -> None:
        with torch.no_grad():
            if step.by:
                self.last = step, [leaf.detach() for leaf in y], [k.detach() for k in slopes[0]]
                return
            tableau = self.tableau
            end, before = tableau.ending or 0, tableau.advancing - 1
            weights = [b - a for a, b in zip_longest(tableau.stage_weights[before], tableau.weights, fillvalue=0.0)]
            apart = combine([torch.zeros_like(leaf) for leaf in y], step.dt, weights, slopes)
            self.direction = [b - a for a, b in zip(slopes[before], slopes[end], strict=True)]
            self._judge(step, _length(self.direction), _length(apart))

    def next(self, field: SplitField) -> int:
        if self.last is not None:
            (step, y, slope), self.last = self.last, None
            with torch.no_grad():
                self._look(field, step, y, slope)
        return self.by

    def _look(self, field: SplitField, step: Step, y: Leaves, slope: Leaves) -> None:
        """One step of the power iteration at the start of a stiff step."""
        size, eps = _length(self.direction), max(torch.finfo(leaf.dtype).eps for leaf in y)
        if not 0 < size < math.inf:
            self.direction, size = [torch.ones_like(leaf) for leaf in y], _length(y) or 1.0
        scale = math.sqrt(eps) * max(_length(y), math.sqrt(eps)) / size
        moved = [torch.add(leaf, v.to(leaf.dtype), alpha=scale) for leaf, v in zip(y, self.direction, strict=True)]
        apart = [b - a for a, b in zip(y, moved, strict=True)]
        start = step.time(0.0)
        found = field(Step(step.index, (start, start), 0, 0, 1, limits=step.limits), 0, 0.0, moved)
        self.direction = [b - a for a, b in zip(slope, found, strict=True)]
        self._judge(step, _length(self.direction), _length(apart))

    def _judge(self, step: Step, change: float, apart: float) -> None:
        moved = abs(float(step.dt)) * change  # h rho, times the distance
        limited = not moved <= self.limit * apart  # what is not finite is
        if limited is bool(self.by):
            self.against += 1
            if self.by or self.against >= FORGET:
                self.votes = 0
            return
        self.votes, self.against = self.votes + 1, 0
        if self.votes >= (TO_EXPLICIT if self.by else TO_STIFF):
            self.by, self.votes = 1 - self.by, 0


def reach(tableau: Tableau) -> float:
    """The largest step of y' = -y, to 0.01, up to which |R(-h)| <= 1."""
    h = 0.0
    while h < 100:
        slopes: list[float] = []
        for row in tableau.stage_weights[: tableau.stages]:
            slopes.append(-1 - (h + 0.01) * sum(a * k for a, k in zip(row, slopes, strict=True)))
        if abs(1 + (h + 0.01) * sum(b * k for b, k in zip(tableau.weights, slopes, strict=True))) > 1:
            break
        h += 0.01
    return h


def _length(leaves: Leaves) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(leaf.double() if not leaf.is_complex() else leaf)) for leaf in leaves))
