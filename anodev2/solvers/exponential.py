"""Exponential integrators for du/dt = L u + N(t, u): the linear part exactly, the rest by Runge-Kutta."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..stepping import Step, Time
from .linear import LinearOperator, SplitState
from .method import Split, SplitMethod


@dataclass(frozen=True)
class ExponentialEuler(SplitMethod):
    """ETD1: u(t + h) = exp(h L) u + h phi_1(h L) N(t, u), of order 1, exact where N is constant.

    Source: Hochbruck, Ostermann, Exponential integrators, Acta Numerica 19 (2010).
    """

    name: str = "exponential_euler"
    order: int = 1
    nodes: tuple[float, ...] = (0.0,)

    def prepare(self, linear: LinearOperator, h: Time) -> list[Tensor]:
        exp, phi = linear.phi(h, 1)
        return [exp, h * phi]

    def moved(self, split: Split, step: Step, start: SplitState, shaped: Tensor) -> SplitState:
        linear, (exp, phi) = split.linear, split.tables(self, step.dt)
        along = linear.apply(exp, start.held)
        return SplitState(linear, coordinates=linear.added(along, phi, split.besides(step, 0, 0.0, start, shaped)))


@dataclass(frozen=True)
class ETDRK4(SplitMethod):
    """ETDRK4: order 4, exact where N = 0; with L = 0 the classical rk4.

        a = e u + h/2 p N(u),    b = e u + h/2 p N(a),    c = e a + h/2 p (2 N(b) - N(u)),
        u(t + h) = exp(hL) u + h [(phi_1 - 3 phi_2 + 4 phi_3) N(u) + (2 phi_2 - 4 phi_3) (N(a) + N(b)) + (4 phi_3 - phi_2) N(c)]

    with e = exp(hL/2), p = phi_1(hL/2), and phi_j = phi_j(hL) found without cancellation. On a periodic axis all in Fourier modes.

    Source: Cox, Matthews, J. Comput. Phys. 176 (2002); Kassam, Trefethen, SIAM J. Sci. Comput. 26 (2005).
    """

    name: str = "etdrk4"
    order: int = 4
    nodes: tuple[float, ...] = (0.0, 0.5, 0.5, 1.0)

    def prepare(self, linear: LinearOperator, h: Time) -> list[Tensor]:
        exp_half, phi_half = linear.phi(h / 2, 1)
        exp, phi_1, phi_2, phi_3 = linear.phi(h, 3)
        first, middle, last = phi_1 - 3 * phi_2 + 4 * phi_3, 2 * phi_2 - 4 * phi_3, 4 * phi_3 - phi_2
        return [exp_half, h / 2 * phi_half, h * phi_half, exp, h * first, h * middle, h * last]

    def moved(self, split: Split, step: Step, start: SplitState, shaped: Tensor) -> SplitState:
        act, added, rest, u = split.linear.apply, split.linear.added, split.besides, start.held
        exp_half, phi_half, twice, exp, first, middle, last = split.tables(self, step.dt)
        along = act(exp_half, u)
        n_u = rest(step, 0, 0.0, start, shaped)
        a = added(along, phi_half, n_u)
        n_a = rest(step, 1, 0.5, a, shaped)
        n_b = rest(step, 2, 0.5, added(along, phi_half, n_a), shaped)
        n_c = rest(step, 3, 1.0, added(act(exp_half, a), twice, torch.sub(n_b, n_u, alpha=0.5)), shaped)
        end = added(added(act(exp, u), first, n_u), middle, n_a + n_b)
        return SplitState(split.linear, coordinates=added(end, last, n_c))
