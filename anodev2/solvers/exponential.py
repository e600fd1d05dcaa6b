"""Exponential integrators for du/dt = L u + N(t, u): the linear part exactly, the rest by Runge-Kutta."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stepping import Step
from .linear import LinearOperator
from .method import FlatField, Leaves, Method, SplitField, combine


def parts(field: SplitField) -> tuple[LinearOperator, FlatField]:
    """L and N, which has all that is not L u."""
    split = field.split()
    assert split is not None  # checked when the problem was made
    linear, data, rest = split
    if data is None:
        return linear, rest
    return linear, lambda step, stage, node, y: combine(rest(step, stage, node, y), 1.0, (1.0,), [data(step, stage, node, y)])


@dataclass(frozen=True)
class ExponentialEuler(Method):
    """ETD1: u(t + h) = exp(h L) u + h phi_1(h L) N(t, u), of order 1, exact where N is constant.

    Source: Hochbruck, Ostermann, Exponential integrators, Acta Numerica 19 (2010).
    """

    name: str = "exponential_euler"
    order: int = 1
    nodes: tuple[float, ...] = (0.0,)
    splits: bool = True

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        linear, rest = parts(field)
        exp, phi = linear.phi(step.dt, 1)
        return [exp(y[0]) + step.dt * phi(rest(step, 0, 0.0, y)[0])]


@dataclass(frozen=True)
class ETDRK4(Method):
    """ETDRK4: order 4, exact where N = 0; with L = 0 the classical rk4.

        a = e u + h/2 p N(u),    b = e u + h/2 p N(a),    c = e a + h/2 p (2 N(b) - N(u)),
        u(t + h) = exp(hL) u + h [(phi_1 - 3 phi_2 + 4 phi_3) N(u) + (2 phi_2 - 4 phi_3) (N(a) + N(b)) + (4 phi_3 - phi_2) N(c)]

    with e = exp(hL/2), p = phi_1(hL/2), and phi_j = phi_j(hL) found without cancellation.

    Source: Cox, Matthews, J. Comput. Phys. 176 (2002); Kassam, Trefethen, SIAM J. Sci. Comput. 26 (2005).
    """

    name: str = "etdrk4"
    order: int = 4
    nodes: tuple[float, ...] = (0.0, 0.5, 0.5, 1.0)
    splits: bool = True

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        linear, rest = parts(field)
        h = step.dt
        exp_half, phi_half = linear.phi(h / 2, 1)
        exp, phi_1, phi_2, phi_3 = linear.phi(h, 3)
        u = y[0]
        along = exp_half(u)
        n_u = rest(step, 0, 0.0, [u])[0]
        a = along + h / 2 * phi_half(n_u)
        n_a = rest(step, 1, 0.5, [a])[0]
        b = along + h / 2 * phi_half(n_a)
        n_b = rest(step, 2, 0.5, [b])[0]
        c = exp_half(a) + h / 2 * phi_half(2 * n_b - n_u)
        n_c = rest(step, 3, 1.0, [c])[0]
        middle = n_a + n_b
        return [exp(u) + h * (phi_1(n_u) + phi_2(2 * middle - 3 * n_u - n_c) + phi_3(4 * (n_u - middle + n_c)))]
