"""Implicit methods: each step solves its equation by Newton-Krylov, and is differentiated by the implicit function theorem.

Newton's linear systems are solved by GMRES on differences of f (Knoll, Keyes, J. Comput. Phys. 193 (2004)), preconditioned
with the linear part of ``func.split()`` where there is one. The graph of a step is that of one evaluation of f at its
solution; a hook turns the gradient that comes in into that of the solution, by GMRES with the transposed Jacobian. Known
inefficiency: the whole state, batch and all, is one vector for GMRES.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from ..stepping import Step, Time
from .method import Leaves, Method, SplitField, StepFailed, add

Linear = Callable[[Tensor], Tensor]
RESTART, CYCLES = 60, 20  # of GMRES: vectors kept, and how often it starts again


@dataclass(frozen=True)
class Implicit(Method):
    """y(t + dt) from the equation w = y + s dt f(t + c dt, w) for the stage w.

    ``tolerance``: relative residual of w, at least 100 units of round-off, and of the solves for gradients. A step that does not
    get there within ``iterations`` of Newton's ends the solve; a gradient that cannot be solved for is a RuntimeError. First
    derivatives only; no torch.func transforms, no compilation.
    """

    tolerance: float = 1e-10
    iterations: int = 20

    @abstractmethod
    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]: ...

    def solved(self, field: SplitField, step: Step, node: float, y: Leaves) -> list[Tensor]:
        """w = y + node dt f(t + node dt, w), with its gradient."""
        if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
            raise ValueError(
                f"{self.name} iterates until it has converged, which torch.compile and torch.func cannot follow: take an explicit method"
            )
        scale, state = node * step.dt, _Flat(y)

        def residual(w: Leaves, start: Leaves) -> list[Tensor]:
            return [b - add(a, scale, k) for a, b, k in zip(start, w, field(step, 0, node, w), strict=True)]

        with torch.no_grad():
            solution = self._newton(lambda w: state.join(residual(state.split(w), y)), state.join(y), _preconditioner(field, scale, state))
        found = [leaf.clone() for leaf in state.split(solution)]
        if not torch.is_grad_enabled():
            return found
        defect = state.join(residual(found, y))
        if not defect.requires_grad:
            return found
        variable = solution.clone().requires_grad_()
        around = state.join(residual(state.split(variable), [leaf.detach() for leaf in y]))

        def solved_for(g: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise ValueError(f"{self.name} has first derivatives only; take an explicit method for a second one")
            if not around.requires_grad:
                return g
            transposed = lambda v: torch.autograd.grad(around, variable, v, retain_graph=True)[0]  # noqa: E731
            v, left = gmres(transposed, g, self._bound(g.dtype))
            if not left <= 10 * self._bound(g.dtype):
                raise RuntimeError(
                    f"the gradient of a step of {self.name} could not be solved for: GMRES stopped at a residual of {left:.3g} (relative); "
                    "take smaller steps, or a method for func.split() such as imex2"
                )
            return v

        defect.register_hook(solved_for)
        return state.split(solution - (defect - defect.detach()))

    def _bound(self, dtype: torch.dtype) -> float:
        return max(self.tolerance, 100 * torch.finfo(dtype).eps)

    def _newton(self, residual: Linear, w: Tensor, preconditioner: Linear | None) -> Tensor:
        bound, root = self._bound(w.dtype), torch.finfo(w.dtype).eps ** 0.5
        r = residual(w)
        size = float(torch.linalg.vector_norm(w)) or float(torch.linalg.vector_norm(r))
        for _ in range(self.iterations):
            norm = float(torch.linalg.vector_norm(r))
            if norm <= bound * max(size, float(torch.linalg.vector_norm(w))):
                return w
            if not norm < float("inf"):
                break

            def slope(v: Tensor, w: Tensor = w, r: Tensor = r) -> Tensor:
                step = root * (1 + float(torch.linalg.vector_norm(w))) / float(torch.linalg.vector_norm(v))
                return (residual(w + step * v) - r) / step

            w = w - gmres(slope, r, 1e-3, preconditioner)[0]
            r = residual(w)
        raise StepFailed(
            f"Newton's iteration of {self.name} stopped at a residual of {float(torch.linalg.vector_norm(r)):.3g}; take smaller steps"
        )


@dataclass(frozen=True)
class BackwardEuler(Implicit):
    """y(t + dt) = y + dt f(t + dt, y(t + dt)): order 1, L-stable.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.3.
    """

    name: str = "backward_euler"
    order: int = 1
    nodes: tuple[float, ...] = (1.0,)

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return self.solved(field, step, 1.0, y)


@dataclass(frozen=True)
class ImplicitMidpoint(Implicit):
    """y(t + dt) = 2 w - y with w = y + dt/2 f(t + dt/2, w): order 2, A-stable, symplectic, keeps quadratic invariants.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, II.1.
    """

    name: str = "implicit_midpoint"
    order: int = 2
    nodes: tuple[float, ...] = (0.5,)

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return [2 * w - leaf for w, leaf in zip(self.solved(field, step, 0.5, y), y, strict=True)]


def gmres(operator: Linear, b: Tensor, tolerance: float, preconditioner: Linear | None = None) -> tuple[Tensor, float]:
    """x with |b - operator(x)| <= tolerance |b|, or the best found, and |b - operator(x)| / |b|: restarted, preconditioned from the right.

    Source: Saad, Schultz, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    x, r = torch.zeros_like(b), b
    size = beta = float(torch.linalg.vector_norm(b))
    target = tolerance * size
    for _ in range(CYCLES):
        if not target < beta < float("inf"):
            break
        x = x + _cycle(operator, r, beta, target, preconditioner or (lambda v: v), min(RESTART, len(b)))
        r = b - operator(x)
        beta = float(torch.linalg.vector_norm(r))
    return x, beta / size if size else 0.0


def _cycle(operator: Linear, r: Tensor, beta: float, target: float, preconditioner: Linear, restart: int) -> Tensor:
    """The correction of least residual in the Krylov space of r."""
    basis, hessenberg = [r / beta], r.new_zeros(restart + 1, restart)
    right = r.new_zeros(restart + 1, 1)
    right[0] = beta
    y = r.new_zeros(0, 1)
    for j in range(restart):
        v, stacked = operator(preconditioner(basis[j])), torch.stack(basis)
        for _ in range(2):  # twice is enough to stay orthogonal
            overlap = stacked @ v
            hessenberg[: j + 1, j] += overlap
            v = v - overlap @ stacked
        length = torch.linalg.vector_norm(v)
        hessenberg[j + 1, j] = length
        y = torch.linalg.lstsq(hessenberg[: j + 2, : j + 1], right[: j + 2]).solution
        left = float(torch.linalg.vector_norm(hessenberg[: j + 2, : j + 1] @ y - right[: j + 2]))
        if left <= target or not float(length) > 1e-14 * beta:
            break
        basis.append(v / length)
    return preconditioner(y[:, 0] @ torch.stack(basis[: len(y)]))


def _preconditioner(field: SplitField, scale: Time, state: _Flat) -> Linear | None:
    """(1 - scale L)^-1 where f has a linear part."""
    split = field.split()
    if split is None:
        return None
    return lambda v: state.join([split[0].solve(scale, leaf) for leaf in state.split(v)])


class _Flat:
    """Leaves as one real vector, and back."""

    def __init__(self, leaves: Leaves) -> None:
        self.leaves = [leaf.detach() for leaf in leaves]
        self.dtype = leaves[0].real.dtype if leaves[0].is_complex() else leaves[0].dtype
        for leaf in leaves:
            self.dtype = torch.promote_types(self.dtype, leaf.real.dtype if leaf.is_complex() else leaf.dtype)

    def join(self, leaves: Leaves) -> Tensor:
        real = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in leaves]
        return torch.cat([leaf.reshape(-1).to(self.dtype) for leaf in real])

    def split(self, vector: Tensor) -> list[Tensor]:
        sizes = [leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in self.leaves]
        return [_shaped(part, leaf) for part, leaf in zip(vector.split(sizes), self.leaves, strict=True)]


def _shaped(part: Tensor, leaf: Tensor) -> Tensor:
    if leaf.is_complex():
        return torch.view_as_complex(part.reshape(*leaf.shape, 2)).to(leaf.dtype)
    return part.reshape(leaf.shape).to(leaf.dtype)
