"""Implicit-explicit Runge-Kutta methods for du/dt = L u + b(t) + N(t, u): L and b implicit, N explicit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..stepping import Step, Time
from .linear import LinearOperator, SplitState, Table
from .method import Split, SplitMethod, combine

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class IMEX(SplitMethod):
    """A pair of tableaus of which the last stage is the end of the step.

        u_i = u + h sum_{j<i} e_ij N(t + c_j h, u_j) + h sum_{0<j<=i} m_ij (L u_j + b(t + c_j h)),    u_0 = u,    u(t + h) = u_s

    ``explicit`` and ``implicit`` hold the rows i = 1 ... s of e (over j = 0 ... i - 1) and m (over j = 1 ... i): one solve with
    1 - h m_ii L per stage. L-stable in L. b, the data of walls as a rule, is of the size of L: explicit it would cost the order.

    Source: Ascher, Ruuth, Spiteri, Applied Numerical Mathematics 25 (1997).
    """

    name: str
    order: int
    explicit: Rows
    implicit: Rows

    @property
    def nodes(self) -> tuple[float, ...]:  # type: ignore[override]
        """c_0 ... c_{s-1}: where N is evaluated."""
        return (0.0, *(sum(row) for row in self.explicit[:-1]))

    @property
    def _diagonals(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(row[-1] for row in self.implicit))

    def prepare(self, linear: LinearOperator, h: Time) -> list[Table]:
        return [linear.resolvent(diagonal * h) for diagonal in self._diagonals]

    def moved(self, split: Split, step: Step, start: SplitState, shaped: Tensor) -> SplitState:
        h, nodes, linear, state = step.dt, (*self.nodes, 1.0), split.linear, start
        held = [start.held]
        resolvents = dict(zip(self._diagonals, split.tables(self, h), strict=True))
        slopes, linears = [], []
        for stage, (explicit, (*lower, diagonal)) in enumerate(zip(self.explicit, self.implicit, strict=True)):
            slopes.append([split.transformed(step, stage, nodes[stage], state)])
            known = combine(combine(held, h, explicit, slopes), h, lower, linears)
            data = split.pushed(step, stage + 1, nodes[stage + 1], shaped)
            pushed = known if data is None else combine(known, h, (diagonal,), [[data]])
            v = linear.apply(resolvents[diagonal], pushed[0])
            linears.append([(v - known[0]) / (diagonal * h)])
            state = SplitState(linear, coordinates=v)
        return state


_GAMMA = 1 - 1 / math.sqrt(2)
_DELTA = 1 - 1 / (2 * _GAMMA)
IMEX1 = IMEX("imex1", 1, ((1.0,),), ((1.0,),))  # forward-backward Euler
IMEX2 = IMEX("imex2", 2, ((_GAMMA,), (_DELTA, 1 - _DELTA)), ((_GAMMA,), (1 - _GAMMA, _GAMMA)))  # ARS(2,2,2)
IMEX3 = IMEX(  # ARS(4,4,3)
    "imex3",
    3,
    ((1 / 2,), (11 / 18, 1 / 18), (5 / 6, -5 / 6, 1 / 2), (1 / 4, 7 / 4, 3 / 4, -7 / 4)),
    ((1 / 2,), (1 / 6, 1 / 2), (-1 / 2, 1 / 2, 1 / 2), (3 / 2, -3 / 2, 1 / 2, 1 / 2)),
)
