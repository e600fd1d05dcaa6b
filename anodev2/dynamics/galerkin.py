"""Weights expanded over depth in given functions of t."""

from __future__ import annotations

from torch import Tensor, nn

from .dynamics import Theta, parameter_key, refuse_another
from .expansion import Expansion


class Galerkin(Expansion):
    """Weights expanded in a basis of depth, theta(t) = theta_0 + sum_k a_k phi_k(t / length), the a_k trained and zero at first.

    Every phi_k is zero at the start: theta(0) = theta_0 always, and before training the block is the ODE with standing weights, both
    to the bit. With s = t / length in [0, 1], theta_0 and the ``size`` - 1 functions phi_k span together, per element of a weight:

    - "constant": all functions constant on each of ``size`` equal pieces; at a jump the later piece holds, at s = 1 the last;
    - "linear": all continuous functions linear between ``size`` equally spaced nodes from 0 to 1; the phi_k are hats;
    - "fourier": trigonometric polynomials of period ``length`` and degree (size - 1) / 2; the phi_k are cos(2 pi k s) - 1, sin(2 pi k s);
    - "chebyshev": polynomials of degree ``size`` - 1; the phi_k are T_k(2 s - 1) - T_k(-1).

    Weights with two axes or more, kernels and matrices, are accepted; biases and the weights of norms stay constant. The block uses the
    flow, one product per weight; the derivative serves a ``CoupledSystem`` solved from t = 0, except for "constant", which has none.

    Args:
        basis: "constant", "linear", "fourier" or "chebyshev".
        size: number of coefficients of each element of a weight, theta_0 among them: at least 2, and odd for "fourier".
        length: end minus start of the block's t (negative where its t falls).

    ``coefficients`` holds a for each weight, of shape (size - 1, *weight.shape); k as in the list, cosines before sines.

    Raises:
        ValueError: an unknown ``basis``, a ``size`` too small or even, a ``length`` that is zero or not finite; times beyond ``length``.

    Source: Massaroli et al., Dissecting Neural ODEs, NeurIPS 2020 (arXiv 2002.08071); bases of piecewise constants and hats: Queiruga
    et al., Stateful ODE-Nets using Basis Function Expansions, NeurIPS 2021 (arXiv 2106.10820).
    """

    def __init__(self, basis: str, size: int, *, length: float = 1.0) -> None:
        super().__init__(basis, size, length)
        self.coefficients = nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.coefficients)
        for name, weight in theta.items():
            self.coefficients[parameter_key(name)] = nn.Parameter(weight.new_zeros(self.size - 1, *weight.shape))

    def rows(self, name: str, weight: Tensor) -> Tensor:
        return self.coefficients[parameter_key(name)]

    def take(self, name: str, rows: Tensor) -> None:
        self.coefficients[parameter_key(name)].data.copy_(rows)
