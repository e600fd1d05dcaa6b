"""Weight dynamics q: how the weights theta of a block move, dtheta/dt = q(t, theta; p).

A dynamics is a module that maps ``(t, theta)`` to dtheta, both dicts from parameter name to tensor. It may also know
its ``flow`` in closed form, which is then used instead of stepping.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

Theta = dict[str, Tensor]


class Dynamics(nn.Module, ABC):
    """Abstract weight dynamics; subclass it, or wrap a module in ``NeuralDynamics``."""

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Whether this dynamics can evolve a parameter of this name and shape."""
        return weight.is_floating_point()

    def bind(self, theta: Theta) -> None:
        """Make the learnable parameters that depend on which weights evolve; called once by the block."""
        return

    @abstractmethod
    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """dtheta/dt at time t."""

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        """theta at ``times`` (elapsed since theta), stacked in front, or None where there is no closed form."""
        return None


class Static(Dynamics):
    """dtheta/dt = 0: the weights of a neural ODE, theta(t) = theta(0) to the bit."""

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        return {name: torch.zeros_like(weight) for name, weight in theta.items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        return {name: weight.expand(len(times), *weight.shape) for name, weight in theta.items()}


class NeuralDynamics(Dynamics):
    """dtheta/dt = module(t, theta): a user's own module (or function), theta a dict from parameter name to tensor.

    Args:
        module: returns a dict with the names and shapes of theta; its parameters are trained with the block's.
    """

    def __init__(self, module: Callable[[Any, Theta], Theta]) -> None:
        super().__init__()
        if not callable(module):
            raise TypeError(f"module must be callable as module(t, theta), got {type(module).__name__}")
        self.module = module

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        return self.module(t, theta)


class ReactionDiffusionAdvection(Dynamics):
    """dw/dt = tau Lap w + upsilon . grad w + rho w over the spatial axes of convolution kernels.

    Spectral in space, periodic, unit spacing: the mode exp(i k . x) grows by exp((-tau |k|^2 + i k . upsilon + rho) t).
    On a 3x3 kernel |k|^2 is 0, 4.386 or 8.773. A positive upsilon moves the pattern towards -x, w(x + upsilon t); the
    mean grows by exp(rho t). On even kernel sizes the Nyquist mode has no first derivative (advection leaves it
    standing), so real kernels stay real.

    Linear (no ``nonlinearity``), the flow is used in closed form, w(t) = w(0) + F^-1 [expm1(...) F w(0)]: all times in
    one batched product per kernel, and exactly w(0) at t = 0 or zero coefficients. With a nonlinearity sigma,
    dw/dt = sigma(tau Lap w + upsilon . grad w + rho w) is stepped.

    Args:
        tau: initial diffusivity, at least 0, in kernel cells squared per unit of t. What is learned is a number whose
            magnitude is tau, with slope +1 at 0: non-negative, able to be exactly 0 and to leave it again, and weight
            decay draws it towards 0 (the softplus usual here turns decay into diffusion).
        upsilon: initial advection velocity in cells per unit of t: one number for all axes, or one per spatial axis.
        rho: initial reaction rate per unit of t.
        per: "layer": one set of coefficients for each kernel tensor; "channel": one for each of its output channels.
        learnable: False keeps the coefficients as given.
        nonlinearity: sigma, an elementwise function such as ``torch.tanh``.

    Raises:
        ValueError: tau negative, or an unknown ``per``.

    Source: ANODEV2, arXiv 1906.04596.
    """

    def __init__(
        self,
        tau: float = 0.02,
        upsilon: float | Sequence[float] = 0.0,
        rho: float = 0.0,
        *,
        per: str = "layer",
        learnable: bool = True,
        nonlinearity: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not tau >= 0:
            raise ValueError(f"tau={tau} must be at least 0: negative diffusion grows without bound")
        if per not in ("layer", "channel"):
            raise ValueError(f"per={per!r} must be 'layer' or 'channel'")
        self.initial = (tau, upsilon, rho)
        self.per = per
        self.learnable = learnable
        self.nonlinearity = nonlinearity
        self.signed_tau = nn.ParameterDict()
        self.upsilon = nn.ParameterDict()
        self.rho = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Convolution kernels (out, in, *space) with a spatial axis longer than 1."""
        return weight.is_floating_point() and weight.ndim >= 3 and max(weight.shape[2:]) > 1

    def bind(self, theta: Theta) -> None:
        if len(self.rho):
            raise ValueError(
                "this ReactionDiffusionAdvection already evolves another block's weights; give each block a copy.deepcopy of it"
            )
        tau, upsilon, rho = self.initial
        for name, weight in theta.items():
            axes = weight.ndim - 2
            velocity = torch.as_tensor(upsilon, dtype=weight.dtype, device=weight.device)
            if velocity.ndim > 1 or (velocity.ndim == 1 and len(velocity) != axes):
                raise ValueError(f"upsilon={upsilon} must be one number or one per spatial axis; {name} has {axes} spatial axes")
            velocity = velocity.expand(axes)
            lead = () if self.per == "layer" else (weight.shape[0],)
            self.signed_tau[_key(name)] = nn.Parameter(weight.new_full(lead, tau), self.learnable)
            self.upsilon[_key(name)] = nn.Parameter(velocity.expand(*lead, axes).clone(), self.learnable)
            self.rho[_key(name)] = nn.Parameter(weight.new_full(lead, rho), self.learnable)

    def coefficients(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """(tau, upsilon, rho) of the weight ``name``: shapes (), (axes,), () or with the channels in front."""
        signed = self.signed_tau[_key(name)]
        return torch.where(signed >= 0, signed, -signed), self.upsilon[_key(name)], self.rho[_key(name)]

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        slopes = {name: _convolve(self._symbol(name, weight), weight) for name, weight in theta.items()}
        if self.nonlinearity is None:
            return slopes
        return {name: self.nonlinearity(slope) for name, slope in slopes.items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        if self.nonlinearity is not None:
            return None
        path: Theta = {}
        for name, weight in theta.items():
            symbol = self._symbol(name, weight)
            elapsed = torch.tensor(times, dtype=weight.dtype).to(weight.device).view(-1, *(1,) * symbol.ndim)
            path[name] = weight + _convolve(torch.expm1(symbol * elapsed), weight)
        return path

    def _symbol(self, name: str, weight: Tensor) -> Tensor:
        """-tau |k|^2 + i k . upsilon + rho at every wavenumber k of the kernel: shape (channels or 1, *space)."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        tau, upsilon, rho = (coefficient.to(dtype) for coefficient in self.coefficients(name))
        space = weight.shape[2:]
        lift = (slice(None), *(None,) * len(space))
        real, imaginary = rho.reshape(-1)[lift], torch.zeros_like(rho).reshape(-1)[lift]
        for axis, size in enumerate(space):
            k = 2 * math.pi * torch.fft.fftfreq(size, dtype=dtype, device=weight.device)
            k = k.view(-1, *(1,) * (len(space) - axis - 1))
            slope = torch.where(k.abs() < math.pi * (1 - 1e-6), k, 0.0)  # the Nyquist mode has none
            real = real - tau.reshape(-1)[lift] * k**2
            imaginary = imaginary + upsilon[..., axis].reshape(-1)[lift] * slope
        return torch.complex(real.expand(-1, *space), imaginary.expand(-1, *space))

    def extra_repr(self) -> str:
        tau, upsilon, rho = self.initial
        return f"tau={tau}, upsilon={upsilon}, rho={rho}, per={self.per!r}, learnable={self.learnable}"


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict key may not contain a dot


def _convolve(symbol: Tensor, weight: Tensor) -> Tensor:
    """F^-1 [symbol F weight] over the spatial axes, as a product with a small real circulant matrix per symbol.

    ``symbol``: ([times,] channels or 1, *space); ``weight``: (out, in, *space); result: ([times,] out, in, *space).
    """
    space = weight.shape[2:]
    kernel = torch.fft.ifftn(symbol, dim=tuple(range(-len(space), 0))).real
    lead = kernel.shape[: kernel.ndim - len(space)]
    table = _differences.__wrapped__ if torch.compiler.is_compiling() else _differences  # the compiler folds it itself
    matrix = kernel.reshape(*lead, -1)[..., table(tuple(space), weight.device)].to(weight.dtype)
    rows = weight.reshape(lead[-1], -1, math.prod(space))
    return (rows @ matrix.mT).reshape(*lead[:-1], *weight.shape)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training too, whoever comes first
def _differences(space: tuple[int, ...], device: torch.device) -> Tensor:
    """For every pair of grid points the flat index of their difference, modulo the size of each axis."""
    points = torch.cartesian_prod(*(torch.arange(size) for size in space)).view(-1, len(space))
    gaps = (points[:, None] - points[None]) % torch.tensor(space)
    flat = gaps[..., 0]
    for axis, size in enumerate(space[1:], start=1):
        flat = flat * size + gaps[..., axis]
    return flat.to(device)
