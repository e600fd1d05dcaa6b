"""Weights that are splines of depth."""

from __future__ import annotations

import torch
from torch import Tensor

from ..stepping import as_count
from ..tables import kept
from .bases import b_spline_slopes, b_splines
from .galerkin import Galerkin


class BSpline(Galerkin):
    """Weights that are a spline of depth, theta(t) = theta_0 + sum_k a_k B_k(t / length), the a_k trained and zero at first.

    B_1 ... B_{size - 1} are the B-splines of ``degree`` on equally spaced knots, those at the ends repeated; with theta_0 they span all
    piecewise polynomials of that degree with degree - 1 continuous derivatives. A coefficient acts on degree + 1 neighbouring pieces
    alone. Degree 1 is ``Galerkin("linear", size)``, size = degree + 1 are all polynomials. Weights with two axes or more are accepted.

    Args:
        size: number of coefficients of each element of a weight, theta_0 among them: at least degree + 1.
        degree: of the pieces, at least 1.
        length: end minus start of the block's t (negative where its t falls).

    Parameters beside theta_0: (size - 1) * weights. ``coefficients`` is as in ``Galerkin``.

    Raises:
        ValueError: ``degree`` below 1, ``size`` too small for it, a ``length`` that is zero or not finite; times beyond ``length``.

    Source: C. de Boor, A Practical Guide to Splines, 1978; in depth: Gunther, Pazner & Qi, Spline parameterization of neural network
    controls for deep learning, 2021 (arXiv 2103.00301).
    """

    def __init__(self, size: int, degree: int = 3, *, length: float = 1.0) -> None:
        if as_count("size", size) <= as_count("degree", degree):
            raise ValueError(f"size={size} must be at least degree + 1 = {degree + 1}: so many splines overlap everywhere")
        super().__init__("linear", size, length=length)
        self.basis = "b-spline"
        self.degree = int(degree)

    def functions(self, s: tuple[float, ...], like: Tensor) -> Tensor:
        return kept(_tabulated, self.size, self.degree, s, like.dtype, like.device)

    def slopes(self, s: Tensor, like: Tensor) -> Tensor:
        return b_spline_slopes(s, self.size, self.degree)[:, 1:].to(like)

    def extra_repr(self) -> str:
        return f"size={self.size}, degree={self.degree}, length={self.length}"


def _tabulated(size: int, degree: int, s: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return b_splines(torch.tensor(s, dtype=torch.float64, device="cpu"), size, degree)[:, 1:].to(device, dtype)
