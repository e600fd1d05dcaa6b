"""Linear parts L of a vector field that steppers treat by themselves: solved for (IMEX) or exponentiated (ETD).

Steppers work in coordinates v = forward(u) in which L is simple, Fourier modes as a rule: there the transforms of a step are those
of its evaluations. A function of L is a ``Table``, tensors that are made once per solve and step size, and handed to the steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..fourier import as_given, as_numbers, field_of, modes_of, parts, settled, times
from ..stepping import Time
from ..tables import passing

Action = Callable[[Tensor], Tensor]
Table = Tensor | tuple[Tensor, ...]


class LinearOperator(ABC):
    """L of a split field du/dt = L u + rest(t, u), acting on the last axis of u: diagonal in coordinates v.

    An operator of your own has ``eigenvalues``, a tensor, and ``forward`` and ``inverse``, linear functions of u and v:
    L u = inverse(eigenvalues forward(u)).

    Args:
        eigenvalues: in the shape of the last axis of v, per unit of t, or a function that makes them when they are first needed.
        near: makes an operator nearer to all of f than this part, for the preconditioner.
    """

    def __init__(self, eigenvalues: Tensor | Callable[[], Tensor], near: Callable[[], LinearOperator] | None = None) -> None:
        self.made_of = eigenvalues
        self.near = near
        self._made: Tensor | None = None
        self._known: dict[Hashable, Any] = {}

    @staticmethod
    def of(matrix: Tensor | Callable[[], Tensor], near: Callable[[], LinearOperator] | None = None) -> LinearOperator:
        """L u = matrix u, the matrix (n, n) or one per field, (..., n, n); ``near`` as for ``FourierOperator``."""
        return DenseOperator(matrix, near)

    @property
    def eigenvalues(self) -> Tensor:
        """Those of L, one per coordinate."""
        if self._made is None:
            self._made = self.made_of if isinstance(self.made_of, Tensor) else self.made_of()
        return self._made

    @abstractmethod
    def forward(self, u: Tensor) -> Tensor:
        """The coordinates v of a field u."""

    @abstractmethod
    def inverse(self, v: Tensor) -> Tensor:
        """The field u of coordinates v."""

    def sample(self, u: Tensor) -> Tensor:
        """Coordinates of which only type and device matter, beside those of u; where fields without elements have some, of such a one."""
        with torch.no_grad():
            return self.forward(u)

    def __call__(self, u: Tensor) -> Tensor:
        """L u."""
        v = self.forward(u)
        return self.inverse(self.apply(self.kept("L", v, lambda: self.eigenvalues), v))

    def apply(self, table: Table, v: Tensor) -> Tensor:
        """A function of L, in coordinates."""
        assert isinstance(table, Tensor)
        return table.to(v) * v

    def added(self, total: Tensor, table: Table, v: Tensor) -> Tensor:
        """total + apply(table, v), in one pass where that is one product."""
        return total + self.apply(table, v)

    def settled(self, v: Tensor) -> Tensor:
        """forward(inverse(v)), which only rounds where every v has a field."""
        return v

    def parted(self, table: Any) -> Any:
        """Tables, a tree, for ``apply`` in compiled code."""
        return table

    def received(self, v: Tensor) -> Tensor:
        """Coordinates from outside, as a step keeps them; ``shown`` is the other way."""
        return v

    def shown(self, v: Tensor) -> Tensor:
        """Coordinates that a step has, as ``forward`` gives them to everyone."""
        return v

    def resolvent(self, scale: Time) -> Table:
        """(1 - scale L)^-1."""
        return 1 / (1 - scale * self.eigenvalues)

    def phi(self, scale: Time, count: int) -> list[Tensor]:
        """phi_j(scale L), j = 0 ... count: phi_0 = exp, phi_{j+1}(z) = (phi_j(z) - 1/j!) / z."""
        return phi_functions(scale * self.eigenvalues, count)

    def solve(self, scale: Time, u: Tensor) -> Tensor:
        """(1 - scale L)^-1 u."""
        return self.inverse(self.apply(self.resolvent(scale), self.forward(u)))

    def preconditioner(self, scale: float, transposed: bool = False) -> Action:
        """u -> about (1 - scale f')^-1 u, f' the Jacobian of all of f, or of its transpose: what implicit methods iterate with.

        By default ``solve``, and nothing for the transpose.
        """
        if self.near is not None:
            return self.near().preconditioner(scale, transposed)
        return (lambda u: u) if transposed else lambda u: self.solve(scale, u)

    def kept(self, key: Hashable, v: Tensor, make: Callable[[], Any]) -> Any:
        """make(), a tree of tensors, beside v; where nothing is trained, the last few are kept for the next solve."""
        own = self.eigenvalues
        if passing() or own.requires_grad or own.is_inference() or torch.is_inference_mode_enabled():
            return like(make(), v)  # what is kept must serve training too
        key = (key, own._version, v.dtype, v.device)
        if key not in self._known:
            self._known = {key: like(make(), v), **dict(list(self._known.items())[:3])}
        return self._known[key]


class FourierOperator(LinearOperator):
    """L u = F^-1 [symbol F u] for real fields u of shape (..., n) on a periodic axis, F the real Fourier transform.

    Args:
        symbol: complex, shape (n // 2 + 1,), the eigenvalue of each real Fourier mode, per unit of t; or a function that makes it.
        n: number of points.
        near: makes an operator nearer to all of f than this part, for the preconditioner.

    Raises:
        ValueError: symbol of another length.
    """

    def __init__(self, symbol: Tensor | Callable[[], Tensor], n: int, near: Callable[[], LinearOperator] | None = None) -> None:
        if isinstance(symbol, Tensor) and symbol.shape[-1:] != (n // 2 + 1,):
            raise ValueError(f"symbol of shape {tuple(symbol.shape)} must have {n // 2 + 1} entries, one per real mode of n={n} points")
        super().__init__(symbol, near)
        self.n = n

    def __repr__(self) -> str:
        return f"FourierOperator(n={self.n})"

    @property
    def symbol(self) -> Tensor:
        """The eigenvalue of each real Fourier mode."""
        return self.eigenvalues

    def sample(self, u: Tensor) -> Tensor:
        return self.forward(u.new_empty(0, *u.shape[-1:]))

    def forward(self, u: Tensor) -> Tensor:
        if u.is_complex():
            raise TypeError("FourierOperator acts on real fields, got a complex one; solve for real and imaginary parts")
        return modes_of(u)

    def inverse(self, v: Tensor) -> Tensor:
        return field_of(v, self.n)

    def apply(self, table: Table, v: Tensor) -> Tensor:
        return times(table, v)

    def added(self, total: Tensor, table: Table, v: Tensor) -> Tensor:
        if isinstance(table, Tensor) and v.is_complex():
            return torch.addcmul(total, table.to(v), v)
        return total + times(table, v)

    def settled(self, v: Tensor) -> Tensor:
        return settled(v, self.n)

    def parted(self, table: Any) -> Any:
        return parts(table) if isinstance(table, Tensor) else type(table)(map(self.parted, table))

    def received(self, v: Tensor) -> Tensor:
        return as_given(v)

    def shown(self, v: Tensor) -> Tensor:
        return as_numbers(v)

    def preconditioner(self, scale: float, transposed: bool = False) -> Action:
        if self.near is not None:
            return self.near().preconditioner(scale, transposed)

        def act(u: Tensor) -> Tensor:
            v = self.forward(u)
            made = lambda: 1 / (1 - scale * (self.symbol.conj() if transposed else self.symbol))  # noqa: E731
            return self.inverse(self.apply(self.kept(("resolvent", scale, transposed), v, made), v))

        return act


class DenseOperator(LinearOperator):
    """L u = matrix u for fields of shape (..., n): exponentials through ``torch.linalg.matrix_exp``, solves through LU.

    Args:
        matrix: shape (n, n), or (..., n, n) with axes that broadcast against those in front of n in u, a matrix per field; or a function
            that makes it.
        near: as for ``FourierOperator``.

    Raises:
        ValueError: a matrix that is not square.
    """

    def __init__(self, matrix: Tensor | Callable[[], Tensor], near: Callable[[], LinearOperator] | None = None) -> None:
        if isinstance(matrix, Tensor) and (matrix.ndim < 2 or matrix.shape[-2] != matrix.shape[-1]):
            raise ValueError(f"the linear part of split() must be a square matrix, got shape {tuple(matrix.shape)}")
        super().__init__(matrix, near)

    @property
    def matrix(self) -> Tensor:
        """That of L."""
        return self.eigenvalues

    def forward(self, u: Tensor) -> Tensor:
        return u

    def inverse(self, v: Tensor) -> Tensor:
        return v

    def apply(self, table: Table, v: Tensor) -> Tensor:
        """A matrix, or the LU factors of the inverse of one."""
        if isinstance(table, tuple):
            return self._solved(table, v)
        return v @ table.to(v).mT if table.ndim == 2 else (table.to(v) @ v[..., None])[..., 0]

    def resolvent(self, scale: Time) -> Table:
        matrix = self.matrix
        factors = torch.linalg.lu_factor(torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) - scale * matrix)
        return factors[0], factors[1]

    def phi(self, scale: Time, count: int) -> list[Tensor]:
        """The first block row of exp([[z, 1, 0], [0, 0, 1], [0, 0, 0]]) is phi_0(z), phi_1(z), phi_2(z) (Sidje 1998)."""
        n = self.matrix.shape[-1]
        blocks = self.matrix.new_zeros((count + 1) * n, (count + 1) * n)
        blocks = blocks + torch.diag(self.matrix.new_ones(count * n), n) if count else blocks
        top = torch.nn.functional.pad(scale * self.matrix, (0, count * n, 0, count * n))
        row = torch.linalg.matrix_exp(blocks + top)[..., :n, :]
        return [row[..., j * n : (j + 1) * n] for j in range(count + 1)]

    def preconditioner(self, scale: float, transposed: bool = False) -> Action:
        """By the factors of 1 - scale matrix, which are kept for the next step."""
        if self.near is not None:
            return self.near().preconditioner(scale, transposed)

        def act(u: Tensor) -> Tensor:
            with torch.no_grad():
                table = self.kept(("resolvent", scale), u, lambda: self.resolvent(scale))
                return self._solved(table, u, transposed)

        return act

    def _solved(self, factors: tuple[Tensor, ...], u: Tensor, transposed: bool = False) -> Tensor:
        lu, pivots = factors
        columns = u[..., None] if u.ndim == 1 or lu.ndim > 2 else u.reshape(-1, u.shape[-1]).mT
        found = torch.linalg.lu_solve(lu.to(u.dtype), pivots, columns, adjoint=transposed)
        return found[..., 0] if columns.ndim > u.ndim else found.mT.reshape(u.shape)


class SplitState:
    """A field u with its coordinates v = forward(u): the one that is not given is found when it is first asked for."""

    def __init__(self, linear: LinearOperator, *, field: Tensor | None = None, coordinates: Tensor | None = None) -> None:
        self.linear = linear
        self._field, self._coordinates = field, coordinates

    @property
    def field(self) -> Tensor:
        """u."""
        if self._field is None:
            assert self._coordinates is not None
            self._field = self.linear.inverse(self._coordinates)
        return self._field

    @property
    def coordinates(self) -> Tensor:
        """v, as ``linear.forward`` gives it; of a ``FourierOperator`` the real Fourier modes."""
        return self.linear.shown(self.held)

    @property
    def held(self) -> Tensor:
        """v as the step has it: of a ``FourierOperator`` pairs (..., 2) of real numbers while a compiler follows."""
        if self._coordinates is None:
            assert self._field is not None
            self._coordinates = self.linear.forward(self._field)
        return self._coordinates

    def known(self) -> list[Tensor]:
        """What is there by now."""
        return [tensor for tensor in (self._field, self._coordinates) if tensor is not None]


def like(table: Any, v: Tensor) -> Any:
    """Tensors of numbers in the precision of v, where it is."""
    if not isinstance(table, Tensor):
        return type(table)(like(part, v) for part in table)
    return table.to(v) if table.is_floating_point() or table.is_complex() else table.to(v.device)


def as_operator(linear: object) -> LinearOperator:
    """A ``LinearOperator``, or the one of a square matrix."""
    if isinstance(linear, Tensor):
        return DenseOperator(linear)
    if isinstance(linear, LinearOperator):
        return linear
    raise TypeError(f"the linear part of split() must be a LinearOperator or a square matrix, got {type(linear).__name__}")


def phi_functions(z: Tensor, count: int) -> list[Tensor]:
    """phi_0 ... phi_count at complex z: by the recurrence, and near 0, where that cancels, by the Taylor series."""
    near = z.abs() < 1
    small, large = torch.where(near, z, 0), torch.where(near, 1, z)
    values, recurred = [torch.exp(z)], torch.exp(large)
    for j in range(1, count + 1):
        recurred = (recurred - 1 / math.factorial(j - 1)) / large
        series = torch.zeros_like(z)
        for k in range(17, -1, -1):
            series = series * small + 1 / math.factorial(k + j)
        values.append(torch.where(near, series, recurred))
    return values
