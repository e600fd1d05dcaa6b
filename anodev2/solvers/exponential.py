"""Exponential integrators for du/dt = L u + N(t, u): the linear part exactly, the rest by Runge-Kutta."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stepping import Step, Time
from .linear import LinearOperator
from .method import Leaves, Method, Split, SplitField


@dataclass(frozen=True)
class ExponentialEuler(Method):
    """ETD1: u(t + h) = exp(h L) u + h phi_1(h L) N(t, u), of order 1, exact where N is constant.

    Source: Hochbruck, Ostermann, Exponential integrators, Acta Numerica 19 (2010).
    """

    name: str = "exponential_euler"
    order: int = 1
    nodes: tuple[float, ...] = (0.0,)
    splits: bool = True

    def prepare(self, linear: LinearOperator, h: Time) -> list[Tensor]:
        exp, phi = linear.phi(h, 1)
        return [exp, h * phi]

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        split, u = Split.of(field), y[0]
        act, (exp, phi) = split.linear.apply, split.tables(self, step.dt)
        return [split.linear.inverse(act(exp, split.linear.forward(u)) + act(phi, split.besides(step, 0, 0.0, u)))]


@dataclass(frozen=True)
class ETDRK4(Method):
    """ETDRK4: order 4, exact where N = 0; with L = 0 the classical rk4.

        a = e u + h/2 p N(u),    b = e u + h/2 p N(a),    c = e a + h/2 p (2 N(b) - N(u)),
        u(t + h) = exp(hL) u + h [(phi_1 - 3 phi_2 + 4 phi_3) N(u) + (2 phi_2 - 4 phi_3) (N(a) + N(b)) + (4 phi_3 - phi_2) N(c)]

    with e = exp(hL/2), p = phi_1(hL/2), and phi_j = phi_j(hL) found without cancellation. On a periodic axis all in Fourier modes.

    Source: Cox, Matthews, J. Comput. Phys. 176 (2002); Kassam, Trefethen, SIAM J. Sci. Comput. 26 (2005).
    """

    name: str = "etdrk4"
    order: int = 4
    nodes: tuple[float, ...] = (0.0, 0.5, 0.5, 1.0)
    splits: bool = True

    def prepare(self, linear: LinearOperator, h: Time) -> list[Tensor]:
        exp_half, phi_half = linear.phi(h / 2, 1)
        exp, phi_1, phi_2, phi_3 = linear.phi(h, 3)
        first, middle, last = phi_1 - 3 * phi_2 + 4 * phi_3, 2 * phi_2 - 4 * phi_3, 4 * phi_3 - phi_2
        return [exp_half, h / 2 * phi_half, exp, h * first, h * middle, h * last]

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        split = Split.of(field)
        act, inverse = split.linear.apply, split.linear.inverse
        exp_half, phi_half, exp, first, middle, last = split.tables(self, step.dt)
        u = split.linear.forward(y[0])
        along = act(exp_half, u)
        n_u = split.besides(step, 0, 0.0, y[0])
        a = along + act(phi_half, n_u)
        n_a = split.besides(step, 1, 0.5, inverse(a))
        b = along + act(phi_half, n_a)
        n_b = split.besides(step, 2, 0.5, inverse(b))
        c = act(exp_half, a) + act(phi_half, 2 * n_b - n_u)
        n_c = split.besides(step, 3, 1.0, inverse(c))
        return [inverse(act(exp, u) + act(first, n_u) + act(middle, n_a + n_b) + act(last, n_c))]
