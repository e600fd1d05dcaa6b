"""Symplectic stepping of second-order equations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stepping import Step
from .method import FlatField, Leaves, Method, add


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
        q_half = [add(a, half, b) for a, b in zip(q, v, strict=True)]  # right where q' = v
        slope_q, slope_v = halves(field(step, 0, 0.5, [*q_half, *v]))
        plain = all(a is b for a, b in zip(slope_q, v, strict=True))
        if not plain:  # q' depends on v alone, so it is right already
            q_half = [add(a, half, b) for a, b in zip(q, slope_q, strict=True)]
            slope_v = halves(field(step, 0, 0.5, [*q_half, *v]))[1]
        v = [add(a, dt, b) for a, b in zip(v, slope_v, strict=True)]
        speed = v if plain else halves(field(step, 0, 0.5, [*q_half, *v]))[0]
        return [*(add(a, half, b) for a, b in zip(q_half, speed, strict=True)), *v]


def halves(y: Leaves) -> tuple[Leaves, Leaves]:
    """The leaves of q and of v."""
    return y[: len(y) // 2], y[len(y) // 2 :]
