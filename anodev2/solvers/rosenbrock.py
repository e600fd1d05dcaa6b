"""Rosenbrock methods for stiff problems: linear systems with one matrix per step, no iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as made
from itertools import pairwise
from operator import add, sub

import torch
from torch import Tensor

from ..stepping import Step, Time
from ..tables import kept
from .flat import Flat
from .jacobian import DENSE, Inverse, Linearised, blocks, linearise, refuse_transforms
from .method import Leaves, Method, SplitField

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rosenbrock(Method):
    """A stiffly accurate Rosenbrock method of s stages, with J = df/dy and f_t = df/dt at the start (t, y) of the step:

        (1 - g h J) u_i = g h f(t + c_i h, y + sum_{j<i} a_ij u_j) + g sum_{j<i} C_ij u_j + g d_i h^2 f_t,
        y(t + h) = y + sum_j a_sj u_j + u_s,    the error of an embedded solution of one order less estimated as u_s.

    Its gradient is that of these formulas, second derivatives of f included. f must be differentiable in t by autograd.

    Args:
        name, order: as for a ``Tableau``.
        gamma: g.
        a, C: rows i = 2 ... s, of i - 1 entries.
        c, d: s entries each.
        dense: rows H_k of s entries each, k = 1, 2, ..., for the states within a step, at t + x h:
            y + x (y(t + h) - y) + x (1 - x) sum_k x^(k - 1) sum_j H_kj u_j; none: steps end at output times.
        independent: samples, along the first axis of a single tensor, do not feel each other: one small Jacobian for each.

    Raises:
        ValueError: under torch.compile and torch.func; a state, or a sample, of more than 128 elements.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.7 (7.25).
    """

    name: str
    order: int
    gamma: float
    a: Rows
    C: Rows
    c: tuple[float, ...]
    d: tuple[float, ...]
    dense: Rows = made(default=(), repr=False)
    independent: bool = False
    jacobian = True
    ends = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", self.c)
        object.__setattr__(self, "embedded_order", self.order - 1)
        if any(len(row) != len(self.c) for row in self.dense):
            raise ValueError(f"dense of {self.name} must have rows of {len(self.c)} entries, one for each stage")
        pairs = pairwise(((*self.a[-1], 1.0), *self.dense, (0.0,) * len(self.c)))
        powers = [(0.0, *map(sub, b, a)) if place else (0.0, *map(add, a, b)) for place, (a, b) in enumerate(pairs)]
        # of f at the start, and all u / h
        object.__setattr__(self, "interpolant", tuple(zip(*powers, strict=True)) if self.dense else None)

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return self._taken(field, step, y)[0]

    def attempt(
        self, field: SplitField, step: Step, y: Leaves, first: Leaves | None, between: Callable[[], None] = lambda: None
    ) -> tuple[list[Tensor], list[Leaves]]:
        """y after the step, and f at its start with the last u; ``first`` is made anew unless it has its derivatives."""
        end, at, found = self._taken(field, step, y, first.at if isinstance(first, _Start) and not torch.is_grad_enabled() else None)
        between()
        flat = Flat(y)
        return end, [_Start(flat.split(at.slope), at, found), flat.split(found[-1])]

    def completed(self, field: SplitField, step: Step, y: Leaves, end: Leaves, slopes: list[Leaves]) -> list[Leaves]:
        (start, _), flat = slopes, Flat(y)
        assert isinstance(start, _Start)
        return [start, *([leaf / step.dt for leaf in flat.split(u)] for u in start.found)]

    def error(self, dt: Time, slopes: Sequence[Leaves]) -> list[Tensor]:
        """The last u."""
        return [leaf.detach() for leaf in slopes[-1]]

    def _taken(
        self, field: SplitField, step: Step, y: Leaves, at: Linearised | None = None
    ) -> tuple[list[Tensor], Linearised, list[Tensor]]:
        """y after the step, f at its start, where it may be known, all u."""
        refuse_transforms(self.name)
        flat, parts = Flat(y), blocks(step, y, self.independent)
        start, h = flat.join(y), step.dt
        if len(start) > DENSE * parts:
            raise ValueError(
                f"{self.name} makes a matrix of the state's {len(start)} elements, and this is for at most {DENSE}; take 'kvaerno5', which "
                "iterates, or, for a func with split(), 'imex3'"
            )
        at = at or linearise(field, step, flat, start, parts, graph=_needed(field, step, y))
        scale = self.gamma * h
        inverse = Inverse(at.matrix, scale)
        scale, h = (_each(time, start) for time in (scale, h))
        drift = None if at.drift is None else scale * h * at.drift.reshape(-1)
        here, slope, u, waiting, found = start, at.slope, start, start, list[Tensor]()  # u and what waits for it: before there are any
        weights = kept(_later, self, start.dtype, start.device).unbind()
        for stage, node in enumerate(self.c):
            if stage:
                waiting = torch.outer(weights[0], u) if stage == 1 else torch.addr(waiting, weights[stage - 1], u)
                here = start + waiting[2 * stage - 2]
                slope = flat.join(field(step, stage, node, flat.split(here)))
            right = scale * slope
            if stage:
                right = right + waiting[2 * stage - 1]
            if drift is not None and self.d[stage]:
                right = torch.add(right, drift, alpha=self.d[stage])
            u = inverse(right)
            found.append(u)
        return flat.split(here + u), at, found


class _Start(list[Tensor]):
    """f at the start of an attempt, with its derivatives for the next from there, and all u."""

    def __init__(self, slope: Leaves, at: Linearised, found: list[Tensor]) -> None:
        super().__init__(slope)
        self.at, self.found = at, found


def _later(method: Rosenbrock, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row j: the weights of u_j in every stage after the first, a, g C, a, g C, ...; in those before it zero."""
    pairs = list(zip(method.a, method.C, strict=True))
    entries = lambda j: [x for a, c in pairs for x in ((a[j], method.gamma * c[j]) if j < len(a) else (0.0, 0.0))]  # noqa: E731
    return torch.tensor([entries(j) for j in range(len(pairs))], dtype=dtype, device=device)


def _each(time: Time, state: Tensor) -> Time:
    """A time, or one per sample, as what multiplies a flat state."""
    if not isinstance(time, Tensor):
        return time
    return time.to(state.dtype).reshape(-1, 1).expand(-1, len(state) // time.numel()).reshape(-1)


def _needed(field: SplitField, step: Step, y: Leaves) -> bool:
    """Whether the step has a gradient: of the state, the times, or what f reaches."""
    if not torch.is_grad_enabled():
        return False
    dt = step.dt
    return any(leaf.requires_grad for leaf in (*y, *([dt] if isinstance(dt, Tensor) else []))) or any(
        k.requires_grad for k in field(step, 0, 0.0, y)
    )


RODAS4 = Rosenbrock(  # Hairer, Wanner 1996, RODAS: L-stable
    "rodas4",
    4,
    0.25,
    (
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895, 1.0),
    ),
    (
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.7089089320616),
        (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054),
    ),
    (0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
    (0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
    (
        (10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823, 1.025137723295662, 0.0),
        (-0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386, -6.594389125716872, 0.0),
    ),
)
_LAST = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)
RODAS5P = Rosenbrock(  # Steinebach, BIT 63, 27 (2023): L-stable, keeps its order on stiff parabolic problems
    "rodas5p",
    5,
    0.21193756319429014,
    (
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _LAST,
        (*_LAST, 1.0),
        (*_LAST, 1.0, 1.0),
    ),
    (
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623, -28.087943162872662),
        (
            *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002),
            *(-54.66780262877968, -9.48861652309627),
        ),
    ),
    (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    (0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069, 0.0, 0.0, 0.0),
    (
        (
            *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204, 0.524948541321073),
            *(1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        ),
        (
            *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796, 20.176138334709044),
            *(15.98066361424651, -6.789040303419874, -6.710236069923372),
        ),
        (
            *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643, -52.072871366152654),
            *(-59.78993625266729, -0.15582684282751913, 4.883087185713722),
        ),
    ),
)
