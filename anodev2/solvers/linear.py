"""Linear parts L of a vector field that steppers treat by themselves: solved for (IMEX) or exponentiated (ETD)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..stepping import Time
from ..torch_private import in_tracing_mode, no_dispatch_modes

Action = Callable[[Tensor], Tensor]
Copies = dict[tuple[torch.device, int], Tensor]  # by where they are, and which version of the tensor they are of


class LinearOperator(ABC):
    """L of a split field du/dt = L u + rest(t, u), acting on the last axis of u."""

    @staticmethod
    def of(matrix: Tensor, near: Callable[[], LinearOperator] | None = None) -> LinearOperator:
        """L u = matrix u, the matrix (n, n) or one per field, (..., n, n); ``near`` as for ``FourierOperator``."""
        return DenseOperator(matrix, near)

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """L u."""

    @abstractmethod
    def solve(self, scale: Time, u: Tensor) -> Tensor:
        """(1 - scale L)^-1 u."""

    def preconditioner(self, scale: float, transposed: bool = False) -> Action:
        """u -> about (1 - scale f')^-1 u, f' the Jacobian of all of f, or of its transpose: what implicit methods iterate with.

        By default ``solve``, and nothing for the transpose.
        """
        return (lambda u: u) if transposed else lambda u: self.solve(scale, u)

    @abstractmethod
    def phi(self, scale: Time, count: int) -> list[Action]:
        """u -> phi_j(scale L) u for j = 0 ... count: phi_0 = exp, phi_{j+1}(z) = (phi_j(z) - 1/j!) / z."""


class FourierOperator(LinearOperator):
    """L u = F^-1 [symbol F u] for real fields u of shape (..., n) on a periodic axis, F the real Fourier transform.

    Args:
        symbol: complex, shape (n // 2 + 1,), the eigenvalue of each real Fourier mode, per unit of t.
        n: number of points.
        near: makes an operator nearer to all of f than this part, for the preconditioner.

    Raises:
        ValueError: symbol of another length.
    """

    def __init__(self, symbol: Tensor, n: int, near: Callable[[], LinearOperator] | None = None) -> None:
        if symbol.shape[-1:] != (n // 2 + 1,):
            raise ValueError(f"symbol of shape {tuple(symbol.shape)} must have {n // 2 + 1} entries, one per real mode of n={n} points")
        self.symbol = symbol
        self.n = n
        self.near = near
        self._known: dict[tuple[Time, int, int], list[Action]] = {}
        self._moved: Copies = {}

    def __repr__(self) -> str:
        return f"FourierOperator(n={self.n})"

    def __call__(self, u: Tensor) -> Tensor:
        return self._times(self.symbol, self._moved)(u)

    def solve(self, scale: Time, u: Tensor) -> Tensor:
        return self._times(1 / (1 - scale * beside(u, self.symbol, self._moved)), {})(u)

    def preconditioner(self, scale: float, transposed: bool = False) -> Action:
        if self.near is not None:
            return self.near().preconditioner(scale, transposed)
        return self._times(1 / (1 - scale * (self.symbol.conj() if transposed else self.symbol)), {})

    def phi(self, scale: Time, count: int) -> list[Action]:
        if isinstance(scale, Tensor) or not lasts(self.symbol):
            return [self._times(values, {}) for values in phi_functions(scale * self.symbol, count)]
        key = (scale, count, self.symbol._version)
        if key in self._known:
            return self._known[key]
        actions = [self._times(values, {}) for values in phi_functions(scale * self.symbol, count)]
        self._known = {key: actions, **dict(list(self._known.items())[:3])}
        return actions

    def _times(self, factor: Tensor, moved: Copies) -> Action:
        def act(u: Tensor) -> Tensor:
            if u.is_complex():
                raise TypeError("FourierOperator acts on real fields, got a complex one; solve for real and imaginary parts")
            if not u.numel():
                return u  # which torch.fft refuses
            spectrum = torch.fft.rfft(u)
            return torch.fft.irfft(beside(u, factor, moved).to(spectrum) * spectrum, n=self.n)

        return act


class DenseOperator(LinearOperator):
    """L u = matrix u for fields of shape (..., n): exponentials through ``torch.linalg.matrix_exp``, solves through LU.

    Args:
        matrix: shape (n, n), or (..., n, n) with axes that broadcast against those in front of n in u, a matrix per field.
        near: as for ``FourierOperator``.

    Raises:
        ValueError: a matrix that is not square.
    """

    def __init__(self, matrix: Tensor, near: Callable[[], LinearOperator] | None = None) -> None:
        if matrix.ndim < 2 or matrix.shape[-2] != matrix.shape[-1]:
            raise ValueError(f"the linear part of split() must be a square matrix, got shape {tuple(matrix.shape)}")
        self.matrix = matrix
        self.near = near
        self._factors: dict[tuple[float, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, u: Tensor) -> Tensor:
        return self._times(self.matrix)(u)

    def solve(self, scale: Time, u: Tensor) -> Tensor:
        matrix = self._shifted(scale)
        if u.ndim == 1 or matrix.ndim > 2:
            return torch.linalg.solve(matrix.to(u.dtype), u[..., None])[..., 0]
        return torch.linalg.solve(matrix.to(u.dtype), u.reshape(-1, u.shape[-1]).mT).mT.reshape(u.shape)

    def preconditioner(self, scale: float, transposed: bool = False) -> Action:
        """By the factors of 1 - scale matrix, which are kept for the next step."""
        if self.near is not None:
            return self.near().preconditioner(scale, transposed)

        def act(u: Tensor) -> Tensor:
            key = (scale, u.dtype)
            if key not in self._factors:
                self._factors = {key: torch.linalg.lu_factor(self._shifted(scale).detach().to(u.dtype))}
            columns = u[..., None] if u.ndim == 1 or self.matrix.ndim > 2 else u.reshape(-1, u.shape[-1]).mT
            found = torch.linalg.lu_solve(*self._factors[key], columns, adjoint=transposed)
            return found[..., 0] if columns.ndim > u.ndim else found.mT.reshape(u.shape)

        return act

    def phi(self, scale: Time, count: int) -> list[Action]:
        """The first block row of exp([[z, 1, 0], [0, 0, 1], [0, 0, 0]]) is phi_0(z), phi_1(z), phi_2(z) (Sidje 1998)."""
        n = self.matrix.shape[-1]
        blocks = self.matrix.new_zeros((count + 1) * n, (count + 1) * n)
        blocks = blocks + torch.diag(self.matrix.new_ones(count * n), n) if count else blocks
        top = torch.nn.functional.pad(scale * self.matrix, (0, count * n, 0, count * n))
        row = torch.linalg.matrix_exp(blocks + top)[..., :n, :]
        return [self._times(row[..., j * n : (j + 1) * n]) for j in range(count + 1)]

    def _shifted(self, scale: Time) -> Tensor:
        """1 - scale matrix."""
        return torch.eye(self.matrix.shape[-1], dtype=self.matrix.dtype, device=self.matrix.device) - scale * self.matrix

    def _times(self, matrix: Tensor) -> Action:
        if matrix.ndim == 2:
            return lambda u: u @ matrix.to(u.dtype).mT
        return lambda u: (matrix.to(u.dtype) @ u[..., None])[..., 0]


def lasts(tensor: Tensor) -> bool:
    """Whether what is made of a tensor now serves later calls, be they of training: it is a number, and no tracer's or compiler's."""
    passing = torch.compiler.is_compiling() or in_tracing_mode() or torch.is_inference_mode_enabled()
    return not (passing or tensor.requires_grad or tensor.is_inference())


def beside(u: Tensor, factor: Tensor, moved: Copies) -> Tensor:
    """The factor where u lies: a copy, for which a GPU waits, is kept in ``moved`` if it lasts."""
    if factor.device == u.device or not lasts(factor):
        return factor
    key = (u.device, factor._version)
    if key not in moved:
        moved.clear()
        with no_dispatch_modes():
            moved[key] = factor.to(u.device)
    return moved[key]


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
