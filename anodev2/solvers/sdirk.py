"""Singly diagonally implicit Runge-Kutta methods for stiff problems, their first stage explicit, their last the end of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as made
from fractions import Fraction

import torch
from torch import Tensor

from ..stepping import Step, Time
from .flat import Flat
from .jacobian import DENSE, Inverse, blocks, column, linearise, own_graph, refuse_transforms, rows_of, weighted
from .method import Leaves, SplitField, StepFailed, add, combine
from .newton import Implicit

Rows = tuple[tuple[Fraction, ...], ...]
KAPPA = 3e-3  # of the error allowed: what Newton's iteration may leave of it
ROUNDED = 32  # units of the largest element: what stands still within these is at rounding
ATTEMPTS = 10  # iterations under error control, where a shorter step is the better cure


@dataclass(frozen=True, kw_only=True)
class SDIRK(Implicit):
    """A stiffly accurate ESDIRK method of s stages with one diagonal entry g:

        k_1 = f(t, y),    w_i = y + h sum_{j<i} a_ij k_j + h g f(t + c_i h, w_i),    k_i = (w_i - y - h sum_{j<i} a_ij k_j) / (h g),
        y(t + h) = w_s,    the error taken for c h sum_i (a_si - b_hat_i) k_i.

    As the stages are of order 2 alone, y(t + h) is not much nearer than the solution embedded: half the estimate off, to one side, in the
    median step of a relaxation oscillation, whose jumps are late or early by the sum; hence the c.

    Newton's iteration with the Jacobian at the start of the step (made anew where it converges slowly) goes on until its update, of
    each element, is below 3e-3 of the error allowed; on a grid until it is below ``tolerance`` of the element's terms, or stands still at
    the rounding of the largest. Its gradient is that of the implicit function theorem at the w found. States, or samples, of more than 128
    elements are solved for by GMRES, with ``func.preconditioner(t, y, scale, *args)`` where there is one.

    Args:
        name, order: as for a ``Tableau``.
        a: rows of the tableau, the diagonal included.
        b_hat: weights of the embedded solution, of one order less.
        dense: row i has the coefficients of x, x^2, ... in the weights b_i(x) of k_i, b_i(1) = a_si, for y + h sum_i b_i(x) k_i at
            t + x h; none: steps end at output times. Those here are of order 4 and an affine sum of y and the w_i, so that no stiffness
            makes them large; for esdirk4 that leaves one choice, for kvaerno5 how much of w_7 - w_6 is in it.
        caution: c, at least 1.
        independent: samples, along the first axis of a single tensor, do not feel each other: one small Jacobian for each.
        tolerance, iterations: on grids and for GMRES, as for ``BackwardEuler``.

    Source: Kvaerno, BIT 44 (2004); Hairer, Wanner, Solving Ordinary Differential Equations II, IV.8.
    """

    name: str
    order: int
    a: Rows
    b_hat: tuple[Fraction, ...]
    dense: Rows = made(default=(), repr=False)
    independent: bool = False
    caution: float = 10.0

    def __post_init__(self) -> None:
        if not self.caution >= 1:
            raise ValueError(f"caution={self.caution} must be at least 1: what the estimated error is multiplied by")
        if self.dense and (
            len(self.dense) != len(self.a) or max(abs(sum(b) - a) for a, b in zip(self.a[-1], self.dense, strict=True)) > 1e-13
        ):
            raise ValueError(f"dense of {self.name} must have one row for each stage, which ends in its weight: b_i(1) = a_si")
        nodes = tuple(float(sum(row)) for row in self.a)
        weights = tuple(tuple(map(float, row)) for row in self.a)
        error = tuple(self.caution * float(x - y) for x, y in zip(self.a[-1], self.b_hat, strict=True))
        object.__setattr__(self, "ends", self.b_hat[-1] == 0)  # both solutions are stages, which lie on what y follows
        for name, value in (("nodes", nodes), ("embedded_order", self.order - 1), ("weights", weights), ("error_weights", error)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "interpolant", tuple(tuple(map(float, row)) for row in self.dense) or None)
        object.__setattr__(self, "ahead", tuple(_line(nodes[:i], nodes[i]) for i in range(len(nodes))))

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        return self._taken(field, step, y, None)[0]

    def attempt(
        self, field: SplitField, step: Step, y: Leaves, first: Leaves | None, between: Callable[[], None] = lambda: None
    ) -> tuple[list[Tensor], list[Leaves]]:
        """y after the step, and all k, of which the first is f at its start, with the error."""
        end, slopes = self._taken(field, step, y, first)
        between()
        error = combine([torch.zeros_like(leaf) for leaf in y], step.dt, self.error_weights, [[k.detach() for k in s] for s in slopes])  # pyright: ignore[reportAttributeAccessIssue]
        return end, [*slopes, error]

    def completed(self, field: SplitField, step: Step, y: Leaves, end: Leaves, slopes: list[Leaves]) -> list[Leaves]:
        """All k."""
        return slopes[:-1]

    def error(self, dt: Time, slopes: Sequence[Leaves]) -> list[Tensor]:
        """As ``attempt`` found it."""
        return [leaf.detach() for leaf in slopes[-1]]

    def _taken(self, field: SplitField, step: Step, y: Leaves, first: Leaves | None) -> tuple[list[Tensor], list[Leaves]]:
        refuse_transforms(self.name)
        flat, slopes, end = Flat(y), [first or field(step, 0, 0.0, y)], list(y)
        parts = blocks(step, y, self.independent)
        dense = _Dense(self, field, step, flat, parts, y) if sum(flat.sizes) <= DENSE * parts else None
        for stage in range(1, len(self.a)):
            weights = self.weights[stage]  # pyright: ignore[reportAttributeAccessIssue]
            known, scale = combine(y, step.dt, weights[:-1], slopes), weights[-1] * step.dt
            end = self._iterated(field, step, stage, known) if dense is None else dense.solved(stage, known, scale, slopes)
            slopes.append([(w - b) / _beside(scale, w) for w, b in zip(end, known, strict=True)])
        return end, slopes

    def _iterated(self, field: SplitField, step: Step, stage: int, known: Leaves) -> list[Tensor]:
        """A stage by GMRES; where it is not found under error control, values that are not finite, so that the step becomes shorter."""
        try:
            return self.solved(field, step, self.nodes[stage], known, stage, self.weights[stage][-1])  # pyright: ignore[reportAttributeAccessIssue]
        except StepFailed:
            if field.allowed(known) is None:
                raise
            return [torch.full_like(leaf, torch.nan) for leaf in known]


class _Dense:
    """The stages of one step, by Newton's iteration with inverted matrices."""

    def __init__(self, method: SDIRK, field: SplitField, step: Step, flat: Flat, parts: int, y: Leaves) -> None:
        self.method, self.field, self.step, self.flat, self.parts = method, field, step, flat, parts
        dt = step.dt.detach() if isinstance(step.dt, Tensor) else step.dt
        start = flat.join([leaf.detach() for leaf in y])
        self.scale = method.weights[-1][-1] * dt  # pyright: ignore[reportAttributeAccessIssue]
        self.beside = column(self.scale.to(flat.dtype) if isinstance(self.scale, Tensor) else self.scale)
        with torch.no_grad():
            matrix = linearise(field, step, flat, start, parts, graph=False).matrix
            self.inverse, self.controlled = Inverse(matrix, self.scale), field.allowed(y) is not None
            self.start, self.coupling = start.abs().reshape(parts, -1), matrix.abs()
            self.bound = torch.clamp_min(8 * flat.eps.reshape(parts, -1), method.tolerance)

    def _terms(self, w: Tensor) -> Tensor:
        """The error allowed of each element, by its size at the start or at w, whichever is larger: a wave at rest has velocities as soon
        as it moves. Where there is no error control that size, with those that feed it."""
        size = torch.maximum(self.start, w.abs())
        allowed = self.field.allowed(self.flat.split(size.reshape(-1)))
        if allowed is not None:
            both = [torch.complex(a, a) if leaf.is_complex() else a for a, leaf in zip(allowed, self.flat.leaves, strict=True)]
            return self.flat.join(both).reshape(size.shape)
        coupled = ((abs(self.beside) * size)[:, None] * self.coupling).sum(-1)
        return (size + coupled).clamp_min(torch.finfo(size.dtype).tiny ** 0.75)

    def solved(self, stage: int, known: Leaves, scale: Time, slopes: Sequence[Leaves]) -> list[Tensor]:
        """w = known + scale f(w), with its gradient."""
        method, flat = self.method, self.flat
        node, parts = method.nodes[stage], self.parts
        slope = lambda w: flat.join(self.field(self.step, stage, node, flat.split(w)))  # noqa: E731
        with torch.no_grad():
            near = weighted(method.ahead[stage], [flat.join(k) for k in slopes])  # pyright: ignore[reportAttributeAccessIssue]
            w = self._newton(slope, flat.join(known).reshape(parts, -1), near.reshape(parts, -1)).reshape(-1)
        found = flat.split(w)
        if not torch.is_grad_enabled():
            return found
        ends = [add(b, scale, k) for b, k in zip(known, self.field(self.step, stage, node, found), strict=True)]
        defect = flat.join([end - leaf for end, leaf in zip(ends, found, strict=True)])
        if not defect.requires_grad:
            return found
        variable = w.clone().requires_grad_()
        around = slope(variable)

        def solved_for(g: Tensor | None) -> Tensor | None:
            if g is None:
                return g
            if torch.is_grad_enabled():
                raise ValueError(f"{method.name} has first derivatives only; take an explicit or a Rosenbrock method for a second one")
            matrix = rows_of(around, variable, parts)
            return g if matrix is None else Inverse(matrix, self.scale)(g, transposed=True)

        defect.register_hook(solved_for)
        return flat.split(w + (defect - defect.detach()))

    def _newton(self, slope: Callable[[Tensor], Tensor], known: Tensor, near: Tensor) -> Tensor:
        """The stage (blocks, n) from the slope near which it is expected; where it is not found, values that are not finite."""
        w, before, method = known + self.beside * near, torch.inf, self.method
        offs, terms, unit = torch.ones_like(known[:, 0]), w, w  # the last two known after the first iteration
        slow, limit = (0.5, ATTEMPTS) if self.controlled else (0.1, method.iterations)
        for _ in range(limit):
            change = self.inverse(known + self.beside * slope(w.reshape(-1)).reshape(known.shape) - w)
            w = w + change
            if before == torch.inf:
                terms = self._terms(w)
                unit = (KAPPA if self.controlled else self.bound) * terms
            offs = torch.nan_to_num((change.abs() / unit).amax(1), nan=0.0, posinf=0.0)
            off = float(offs.max())
            rate = off / before if before < torch.inf else 1.0  # not known
            still = not self.controlled and rate > 0.5 and before < torch.inf  # where it is the rounding of larger elements
            rounded = still and bool((change.abs() <= ROUNDED * self.bound * terms.amax(1, keepdim=True)).all())
            if off <= 1 or (rate < 1 and rate / (1 - rate) * off <= 1) or rounded:
                if self.controlled or bool(torch.isfinite(w).all()):
                    return w
                break
            if rate > slow and before < torch.inf:
                self._again(slope, w)
            before = max(off, 1e-300)
        if not self.controlled:
            raise StepFailed(f"Newton's iteration of {method.name} did not converge; take smaller steps")
        return torch.where(offs[:, None] <= 1, w, torch.nan)

    def _again(self, slope: Callable[[Tensor], Tensor], w: Tensor) -> None:
        """An inverse with the Jacobian here, for what is left of the step."""
        with own_graph():
            variable = w.reshape(-1).clone().requires_grad_()
            matrix = rows_of(slope(variable), variable, self.parts)
        if matrix is not None:
            self.inverse = Inverse(matrix, self.scale)


def _line(nodes: Sequence[float], node: float) -> tuple[float, ...]:
    """Weights of the slopes at ``nodes`` that give the one at ``node`` by the straight line of least squares."""
    if len(nodes) < 2:
        return (1.0,) * len(nodes)
    mean = sum(nodes) / len(nodes)
    spread = sum((c - mean) ** 2 for c in nodes)
    return tuple(1 / len(nodes) + (node - mean) * (c - mean) / spread for c in nodes)


def _beside(scale: Time, leaf: Tensor) -> Time:
    """What divides a change of the state; a sample that waits for others takes a step of length zero, and its change is zero."""
    return torch.where(scale == 0, 1.0, scale).to(leaf.real.dtype) if isinstance(scale, Tensor) else scale


def _rows(drawing: str) -> Rows:
    return tuple(tuple(map(Fraction, line.split())) for line in drawing.strip().splitlines())


ESDIRK4 = SDIRK(  # Kennedy, Carpenter, Appl. Numer. Math. 44 (2003): the implicit half of ARK4(3)6L[2]SA, L-stable
    name="esdirk4",
    order=4,
    a=_rows("""
    0
    1/4 1/4
    8611/62500 -1743/31250 1/4
    5012029/34652500 -654441/2922500 174375/388108 1/4
    15267082809/155376265600 -71443401/120774400 730878875/902184768 2285395/8070912 1/4
    82889/524892 0 15625/83664 69875/102672 -2260/8211 1/4
    """),
    b_hat=_rows("4586570599/29645900160 0 178811875/945068544 814220225/1159782912 -3700637/11593932 61727/225920")[0],
    dense=_rows("""
    2730611/1312230 -303504119/29218988 1661475152/109571205 -1468075291/219142410
    1700/189 -218347/3507 1026182/10521 -1397323/31563
    -409375/53784 38609375/665328 -242271875/2619729 2656240625/62873496
    744925/462024 -27907375/1905136 87388925/3214917 -1038976925/77158008
    -60568/8211 23827180/457079 -114128192/1371237 52384088/1371237
    33/10 -15273/668 29916/835 -26743/1670
    """),
    caution=20.0,
)
KVAERNO5 = SDIRK(  # Kvaerno, BIT 44 (2004), 5(4) of seven stages: L-stable, its embedded solution too
    name="kvaerno5",
    order=5,
    a=_rows("""
    0
    0.26 0.26
    0.13 0.84033320996790809 0.26
    0.22371961478320505 0.47675532319799699 -0.06470895363112615 0.26
    0.16648564323248321 0.10450018841591720 0.03631482272098715 -0.13090704451073998 0.26
    0.13855640231268224 0 -0.04245337201752043 0.02446657898003141 0.61943039072480676 0.26
    0.13659751177640291 0 -0.05496908796538376 -0.04118626728321046 0.62993304899016403 0.06962479448202728 0.26
    """),
    b_hat=_rows("0.13855640231268224 0 -0.04245337201752043 0.02446657898003141 0.61943039072480676 0.26 0")[0],
    dense=_rows("""
    0.9899315606309914 -2.0804792428995125 1.7378552187864749 -0.5107100247415507
    0 0 0 0
    -0.06432913164210925 0.7887890210258969 -1.6025415042257913 0.82311252687662
    -0.3374469832601354 -0.9495104655984493 2.7567172497311154 -1.5109460681557412
    0.0539822802753522 3.3021890301208874 -4.24820849868646 1.5219702372803852
    0.3578622739959009 -1.0609883426488218 1.3561775343946612 -0.583426671259713
    0 0 0 0.26
    """),
)
