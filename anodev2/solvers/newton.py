"""Implicit methods: each step solves its equation by Newton-Krylov, and is differentiated by the implicit function theorem.

Newton's linear systems are solved by GMRES (Knoll, Keyes, J. Comput. Phys. 193 (2004)), with products of the Jacobian from
autograd, preconditioned by ``func.preconditioner``, else by the linear part of ``func.split()``, where there is one. Newton stops where
each element's own equation holds (componentwise backward error: Oettli, Prager, Numer. Math. 6 (1964)). The graph of a step is that of
one evaluation of f at its solution; a hook turns the gradient that comes in into that of the solution, by the same iteration with the
transposed Jacobian. Known inefficiency: the whole state, batch and all, is one vector for GMRES.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stepping import Step
from ..torch_private import in_transform
from .flat import Flat
from .krylov import Linear, gmres
from .method import Leaves, Method, SplitField, StepFailed, add

ROUNDINGS = 8  # of the largest term of an element's equation: what it may be missed by


@dataclass(frozen=True)
class Implicit(Method):
    """y(t + dt) from the equation w = y + s dt f(t + c dt, w) for the stage w.

    ``tolerance``: by how much the equation of each element, and that of its gradient, may be missed, relative to the largest of
    its terms, at least 8 units of round-off. A step that does not get there within ``iterations`` of Newton's ends the solve; a
    gradient that does not is a RuntimeError. First derivatives only; no torch.func transforms, no compilation.
    ``func.preconditioner(t, y, scale, *args)``, where there is one, returns a linear function v -> about (1 - scale df/dy)^-1 v for GMRES.
    """

    tolerance: float = 1e-12
    iterations: int = 40
    jacobian = True

    @abstractmethod
    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]: ...

    def solved(self, field: SplitField, step: Step, node: float, y: Leaves, stage: int = 0, share: float | None = None) -> list[Tensor]:
        """w = y + share dt f(t + node dt, w), with its gradient; ``share`` None: the node."""
        if torch.compiler.is_compiling() or in_transform():
            raise ValueError(
                f"{self.name} iterates until it has converged, which torch.compile and torch.func cannot follow: take an explicit method"
            )
        scale, state = (node if share is None else share) * step.dt, Flat(y)
        number = float(scale.detach()) if isinstance(scale, Tensor) else scale
        slope = lambda w: number * state.join(field(step, stage, node, state.split(w)))  # noqa: E731
        bound = torch.clamp_min(ROUNDINGS * state.eps, self.tolerance)
        with torch.no_grad():
            start, inside = state.join(y), _preconditioner(field, step, node, number, state)
            w, off = _change(lambda w: _linearised(slope, w), start, bound, state.entries, self.iterations, inside)
        if not off <= 1:
            where = f"stopped at {off:.3g} times the error allowed" if math.isfinite(off) else "met values that are not finite"
            raise StepFailed(f"Newton's iteration of {self.name} {where}; take smaller steps")
        found = state.split(w)
        if not torch.is_grad_enabled():
            return found
        defect = state.join([b - add(a, scale, k) for a, b, k in zip(y, found, field(step, stage, node, found), strict=True)])
        if not defect.requires_grad:
            return found
        variable = w.clone().requires_grad_()
        around = slope(variable)

        def solved_for(g: Tensor | None) -> Tensor | None:
            if g is None or not around.requires_grad:
                return g
            if torch.is_grad_enabled():
                raise ValueError(f"{self.name} has first derivatives only; take an explicit method for a second one")
            transposed = lambda v: torch.autograd.grad(around, variable, v, retain_graph=True, materialize_grads=True)[0]  # noqa: E731
            inside = _preconditioner(field, step, node, number, state, transposed=True)
            v, off = _change(lambda v: (transposed(v), transposed), g, bound, state.entries, self.iterations, inside)
            if not off <= 1:
                raise RuntimeError(
                    f"the gradient of a step of {self.name} could not be solved for: it stopped at {off:.3g} times the error allowed; "
                    "take smaller steps, or a method for func.split() such as imex2"
                )
            return v

        defect.register_hook(solved_for)
        return state.split(w - (defect - defect.detach()))


def _change(
    at: Callable[[Tensor], tuple[Tensor, Linear]], y: Tensor, bound: Tensor, entries: Linear, iterations: int, precondition: Linear
) -> tuple[Tensor, float]:
    """w = y + k(w), and its largest error in units of the one allowed; ``at(w)`` gives k(w) and products with k'(w).

    Newton's iteration for the change z = w - y, in two parts of which the second holds what rounding takes from the first. The
    equation of an element may be missed by ``bound`` times its terms, |z|, |k| and |k'| |w|, the last of which is seen through products
    with w turned by random phases. Where the error stands still within 32 times that, the rounding of f has been reached.
    """
    angle = 2 * math.pi * torch.rand(len(y), generator=torch.Generator(y.device).manual_seed(0), dtype=y.dtype, device=y.device)
    z, low, before, pool = torch.zeros_like(y), torch.zeros_like(y), math.inf, None
    for left in range(iterations if len(y) else -1, -1, -1):
        w = y + z + low
        k, product = at(w)
        r, terms = k - z - low, torch.maximum(z.abs(), k.abs())
        if bool((r.abs() <= bound * terms).all()):
            return w, 0.0
        terms = torch.maximum(terms, torch.hypot(product(angle.cos() * w), product(angle.sin() * w)))
        pool = pool or _pool(entries, terms, lambda v, product=product: product(angle.cos() * v).abs())
        unit = pool(terms).clamp_min(torch.finfo(y.dtype).tiny ** 0.75)
        off = float((r.abs() / (bound * unit)).max())
        if off <= 1 or (off > before / 2 and bool((r.abs() <= 32 * bound * torch.maximum(unit, w.abs())).all())):
            return w, 0.0
        if not left or not math.isfinite(off):
            return w, off
        d = gmres(product, r, unit, max(1e-3, 0.1 / off), precondition)
        z, low, before = z + d, low + (d - (z + d - z)), off
    return y, 0.0


def _pool(entries: Linear, terms: Tensor, seen: Linear) -> Linear:
    """The finest units, of each element, of ``entries`` or one for all, in which the Jacobian is not much larger than in equal ones.

    In finer ones an element far smaller than those that feed it, such as the tail of a pulse that diffuses, would hold up all.
    """
    limit = 100 * max(1.0, float(seen(torch.ones_like(terms)).max()))
    for pool in (lambda v: v, entries):
        if bool((seen(pool(terms)) <= limit * pool(terms)).all()):
            return pool
    return lambda v: v.max().expand_as(v)


def _linearised(slope: Linear, w: Tensor) -> tuple[Tensor, Linear]:
    """k = slope(w) and v -> k'(w) v, by differentiating v -> k'(w)^T v, or by differences where autograd cannot."""
    back: list[Tensor] = []  # k'(w)^T seed, once it is needed
    try:
        with _own_graph():
            w = w.clone().requires_grad_()
            k, seed = slope(w), torch.zeros_like(w, requires_grad=True)
    except RuntimeError:  # such as parameters made in inference mode
        k = seed = slope(w)
    base = k.detach()

    def product(v: Tensor) -> Tensor:
        try:
            if not back:
                with _own_graph():
                    back[:] = torch.autograd.grad(k, w, seed, create_graph=True)
            return torch.autograd.grad(back, seed, v, retain_graph=True)[0]
        except (RuntimeError, ValueError):  # a second derivative that is not there
            h = torch.finfo(v.dtype).eps ** 0.5 * (1 + float(w.detach().norm())) / (float(v.norm()) or 1.0)
            with torch.no_grad():
                return (slope(w + h * v) - base) / h

    return base, product


@contextmanager
def _own_graph() -> Iterator[None]:
    """For a graph that lives within a step: those who watch what a step saves are not shown it."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
        yield


def _preconditioner(field: SplitField, step: Step, node: float, scale: float, state: Flat, transposed: bool = False) -> Linear:
    """About (1 - scale f')^-1 or its transpose, as func knows it, or by the linear part of a single tensor, else nothing."""
    own = field.preconditioner(step, node, state.leaves, scale)
    if own is not None:
        act = lambda v: state.join(own(state.split(v)))  # noqa: E731
        return _transposed(act) if transposed else act
    split = field.split()
    if split is None or len(state.leaves) > 1:
        return lambda v: v
    inverse = split.linear.preconditioner(scale, transposed)
    return lambda v: state.join([inverse(leaf) for leaf in state.split(v)])


def _transposed(act: Linear) -> Linear:
    """Of a linear function, by autograd."""

    def transposed(v: Tensor) -> Tensor:
        with _own_graph():
            at = torch.zeros_like(v, requires_grad=True)
            found = act(at)
        if not found.requires_grad:
            raise ValueError(
                "what func.preconditioner returns must be made of operations that autograd knows: a gradient needs its transpose; "
                "or take torch.no_grad()"
            )
        return torch.autograd.grad(found, at, v)[0]

    return transposed
