"""One step y0 -> y1 of each method: pure, no loop over time, no storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .stepping import Step, Time
from .tableau import METHODS as TABLEAUS
from .tableau import Tableau, nearest

Leaves = Sequence[Tensor]
FlatField = Callable[[Step, int, float, Leaves], list[Tensor]]


class Method(ABC):
    """A one-step method.

    ``nodes`` are the stage times, in units of the step, at which a step evaluates f; ``order`` is that of its global error.
    """

    name: str
    order: int
    nodes: tuple[float, ...]

    @abstractmethod
    def step(self, field: FlatField, step: Step, y: Leaves) -> list[Tensor]:
        """y after the step; ``field(step, stage, node, y)`` evaluates f at the stage's time. Leaves keep their dtype."""


@dataclass(frozen=True)
class RungeKutta(Method):
    """The explicit Runge-Kutta method of a tableau: y(t + dt) = y + dt sum_i b_i k_i, k_i = f(t + c_i dt, y + dt sum_j a_ij k_j).

    A last stage that only estimates the error is left out of ``step``. Where it is the first stage of the next step
    (first same as last), ``attempt`` gets it from the step before.
    """

    tableau: Tableau

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.tableau.name)
        object.__setattr__(self, "order", self.tableau.order)
        object.__setattr__(self, "nodes", self.tableau.nodes[: self.tableau.advancing])

    def step(self, field: FlatField, step: Step, y: Leaves) -> list[Tensor]:
        return _combine(y, step.dt, self.tableau.weights, self.slopes(field, step, y, self.tableau.advancing))

    def slopes(self, field: FlatField, step: Step, y: Leaves, stages: int, known: Sequence[Leaves] = ()) -> list[Leaves]:
        """k_1 ... k_stages, of which the first may be ``known``."""
        dt, slopes = step.dt, list(known)
        for stage in range(len(slopes), stages):
            at = _combine(y, dt, self.tableau.stage_weights[stage], slopes)
            slopes.append(field(step, stage, self.tableau.nodes[stage], at))
        return slopes

    def attempt(
        self, field: FlatField, step: Step, y: Leaves, first: Leaves | None, between: Callable[[], None] = lambda: None
    ) -> tuple[list[Tensor], list[Leaves]]:
        """y after the step, and all slopes; ``first`` is k_1 where it is known, ``between`` is called once y has been found."""
        slopes = self.slopes(field, step, y, self.tableau.advancing, () if first is None else (first,))
        end = _combine(y, step.dt, self.tableau.weights, slopes)
        between()
        for stage in range(len(slopes), self.tableau.stages):
            at = end if self.tableau.fsal else _combine(y, step.dt, self.tableau.stage_weights[stage], slopes)
            slopes.append(field(step, stage, self.tableau.nodes[stage], at))
        return end, slopes

    def error(self, dt: float, slopes: Sequence[Leaves]) -> list[Tensor]:
        """The estimated error of the step in each leaf: dt sum_i (b_i - b_hat_i) k_i."""
        assert self.tableau.error_weights is not None
        terms = [(dt * weight, slope) for weight, slope in zip(self.tableau.error_weights, slopes, strict=True) if weight]
        total = [k.detach() * terms[0][0] for k in terms[0][1]]
        for scale, slope in terms[1:]:
            total = [torch.add(leaf, k.detach(), alpha=scale) for leaf, k in zip(total, slope, strict=True)]
        return total


@dataclass(frozen=True)
class Leapfrog(Method):
    """Leapfrog (position Verlet) for y = (q, v) with q' = g(v), v' = a(t, q): symplectic, time-reversible, of order 2.

        q_half = q + dt/2 g(v),    v(t + dt) = v + dt a(t + dt/2, q_half),    q(t + dt) = q_half + dt/2 g(v(t + dt))

    ``func(t, (q, v))`` returns (q', v'), q' a function of v alone and v' of t and q alone; anything else is an error.
    Where func returns v itself as q', a step is one evaluation of func; else three. One more at the start of a solve, which is
    not counted, looks in its graph whether q' and v' depend on what they may.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, I.1.4.
    """

    name: str = "leapfrog"
    order: int = 2
    nodes: tuple[float, ...] = (0.5,)

    def step(self, field: FlatField, step: Step, y: Leaves) -> list[Tensor]:
        q, v = halves(y)
        dt, half = step.dt, step.dt / 2
        q_half = [_add(a, half, b) for a, b in zip(q, v, strict=True)]  # right where q' = v
        slope_q, slope_v = halves(field(step, 0, 0.5, [*q_half, *v]))
        plain = all(a is b for a, b in zip(slope_q, v, strict=True))
        if not plain:  # q' depends on v alone, so it is right already
            q_half = [_add(a, half, b) for a, b in zip(q, slope_q, strict=True)]
            slope_v = halves(field(step, 0, 0.5, [*q_half, *v]))[1]
        v = [_add(a, dt, b) for a, b in zip(v, slope_v, strict=True)]
        speed = v if plain else halves(field(step, 0, 0.5, [*q_half, *v]))[0]
        return [*(_add(a, half, b) for a, b in zip(q_half, speed, strict=True)), *v]


def halves(y: Leaves) -> tuple[Leaves, Leaves]:
    """The leaves of q and of v."""
    return y[: len(y) // 2], y[len(y) // 2 :]


METHODS: dict[str, Tableau | Method] = {**TABLEAUS, "leapfrog": Leapfrog()}


def as_method(method: str | Tableau | Method) -> Method:
    """The method of that name, of that tableau, or the given one; ValueError names the nearest match and all there are."""
    if isinstance(method, str) and method in METHODS:
        method = METHODS[method]
    if isinstance(method, Tableau):
        return RungeKutta(method)
    if isinstance(method, Method):
        return method
    raise ValueError(f"method={method!r} is unknown{nearest(method, METHODS)}; choose one of {', '.join(METHODS)} or pass a Tableau")


def _combine(y: Leaves, dt: Time, weights: Sequence[float], slopes: Sequence[Leaves]) -> list[Tensor]:
    """Per leaf: y + dt sum_i w_i k_i, one fused multiply-add per nonzero weight; weights beyond the slopes are zero."""
    total = list(y)
    for weight, slope in zip(weights, slopes, strict=False):
        if weight != 0:
            total = [_add(leaf, weight * dt, k) for leaf, k in zip(total, slope, strict=True)]
    return total


def _add(leaf: Tensor, scale: Time, k: Tensor) -> Tensor:
    if k.dtype != leaf.dtype:
        k = k.to(leaf.dtype)
    if isinstance(scale, Tensor):
        return leaf + scale.to(k.real.dtype if k.is_complex() else k.dtype) * k
    return torch.add(leaf, k, alpha=scale)
