"""Weight dynamics q: how the weights theta of a block move, dtheta/dt = q(t, theta; p).

A dynamics is a module that maps ``(t, theta)`` to dtheta, both dicts from parameter name to tensor. It may also know
its ``flow`` in closed form, which is then used instead of stepping.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .spectral import alike, convolved, expm1, growth, moving, stacked
from .stepping import as_count
from .system import check_call
from .tables import kept

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

    def start(self, theta: Theta) -> Any:
        """The state at the start that ``forward`` moves: theta, and whatever else a dynamics carries along."""
        return theta

    def weights(self, state: Any) -> Theta:
        """theta in such a state."""
        return state


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
        check_call("module", module, "t", "theta")
        self.module = module

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        return self.module(t, theta)


class ReactionDiffusionAdvection(Dynamics):
    """dw/dt = tau Lap w + upsilon . grad w + rho w over the spatial axes of convolution kernels.

    Spectral in space, periodic, unit spacing: the mode exp(i k . x) grows by exp((-tau |k|^2 + i k . upsilon + rho) t).
    On a 3x3 kernel |k|^2 is 0, 4.386 or 8.773; a 1x1 kernel has the reaction alone, and axes of length 1 or 2 no advection:
    parameters without effect are not made. A positive upsilon moves the pattern towards -x, w(x + upsilon t); the
    mean grows by exp(rho t). On even kernel sizes the Nyquist mode has no first derivative (advection leaves it
    standing), so real kernels stay real.

    Linear (no ``nonlinearity``), the flow is used in closed form, w(t) = w(0) + F^-1 [expm1(...) F w(0)]: all times in
    one batched product per kernel, and exactly w(0) at t = 0 or zero coefficients. With a nonlinearity sigma,
    dw/dt = sigma(tau Lap w + upsilon . grad w + rho w) is stepped.

    Args:
        tau: initial diffusivity, at least 0, in kernel cells squared per unit of t. What is learned is a number p, and
            tau = max(p, 0) with the gradient that it has at 0 where p < 0: non-negative, able to be exactly 0 and to leave
            it again, and weight decay draws it towards 0 (the softplus usual here turns decay into diffusion, and |p|
            reflects a step too long into strong diffusion).
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
        self.spaces: dict[str, torch.Size] = {}
        self.signed_tau = nn.ParameterDict()
        self.upsilon = nn.ParameterDict()
        self.rho = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Convolution kernels (out, in, *space)."""
        return weight.is_floating_point() and weight.ndim >= 3

    def bind(self, theta: Theta) -> None:
        if len(self.rho):
            raise ValueError(
                "this ReactionDiffusionAdvection already evolves another block's weights; give each block a copy.deepcopy of it"
            )
        tau, upsilon, rho = self.initial
        for name, weight in theta.items():
            axes, moved = weight.ndim - 2, moving(weight.shape[2:])
            self.spaces[name] = weight.shape[2:]
            velocity = torch.as_tensor(upsilon, dtype=weight.dtype, device=weight.device)
            if velocity.ndim > 1 or (velocity.ndim == 1 and len(velocity) != axes):
                raise ValueError(f"upsilon={upsilon} must be one number or one per spatial axis; {name} has {axes} spatial axes")
            velocity = velocity.expand(axes)[moved]
            lead = () if self.per == "layer" else (weight.shape[0],)
            alone = lead or (1,)  # never 0-dimensional: fully_shard refuses that
            if max(weight.shape[2:]) > 1:
                self.signed_tau[_key(name)] = nn.Parameter(weight.new_full(alone, tau), self.learnable)
            if moved:
                self.upsilon[_key(name)] = nn.Parameter(velocity.expand(*lead, len(moved)).clone(), self.learnable)
            self.rho[_key(name)] = nn.Parameter(weight.new_full(alone, rho), self.learnable)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in [prefix + name for name, _ in self.named_parameters() if prefix + name in state_dict]:
            state_dict[name] = torch.atleast_1d(state_dict[name])  # saved when it had no axis; the dict is load_state_dict's own
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def coefficients(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """(tau, upsilon, rho) of the weight ``name``: shapes (), (axes,), () or with the channels in front; 0 for what has no effect."""
        key, place = _key(name), 0 if self.per == "layer" else slice(None)
        rho = self.rho[key][place]
        signed = self.signed_tau[key][place] if key in self.signed_tau else torch.zeros_like(rho)
        columns = [torch.zeros_like(rho)] * len(self.spaces[name])
        for column, axis in enumerate(moving(self.spaces[name])):
            columns[axis] = self.upsilon[key][..., column]
        return signed - signed.detach().clamp(max=0), torch.stack(columns, -1), rho

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        slopes: Theta = {}
        for weights in alike(theta):
            found = convolved(self._symbols(weights, (1.0,)), stacked(weights))[0]
            slopes |= zip(weights, (found if self.nonlinearity is None else self.nonlinearity(found)).unbind(), strict=True)
        return {name: slopes[name] for name in theta}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        if self.nonlinearity is not None:
            return None
        path: Theta = {}
        for weights in alike(theta):
            start = stacked(weights)
            found = start + convolved(expm1(self._symbols(weights, tuple(times))), start)
            path |= zip(weights, found.unbind(1), strict=True)
        return {name: path[name] for name in theta}

    def _symbols(self, weights: Theta, times: tuple[float, ...]) -> Tensor:
        """(-tau |k|^2 + rho + i k . upsilon) t of kernels of one shape: (rows, times, modes, 2), a row for each set of coefficients."""
        keys, weight = [_key(name) for name in weights], next(iter(weights.values()))
        columns = [torch.cat([self.rho[key] for key in keys])[:, None]]
        if keys[0] in self.upsilon:
            columns.append(torch.cat([torch.atleast_2d(self.upsilon[key]) for key in keys]))
        if keys[0] in self.signed_tau:
            signed = torch.cat([self.signed_tau[key] for key in keys])[:, None]
            columns.append(signed * (2.0 * (signed.detach() >= 0) - 1.0))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        table = kept(growth, tuple(weight.shape[2:]), times, dtype, weight.device)
        return (torch.cat(columns, 1).to(dtype) @ table).unflatten(1, (len(times), -1, 2))

    def extra_repr(self) -> str:
        tau, upsilon, rho = self.initial
        return f"tau={tau}, upsilon={upsilon}, rho={rho}, per={self.per!r}, learnable={self.learnable}"


class Galerkin(Dynamics):
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
        super().__init__()
        if basis not in _BASES:
            raise ValueError(f"basis={basis!r} must be one of {', '.join(map(repr, _BASES))}")
        if as_count("size", size) < 2:
            raise ValueError(f"size={size} leaves theta_0 alone; give at least 2, or use Static()")
        if basis == "fourier" and size % 2 == 0:
            raise ValueError(f"size={size} must be odd for 'fourier', 1 + 2 * degree; give {size + 1}")
        if not math.isfinite(length) or length == 0:
            raise ValueError(f"length={length} must be finite and not zero: end minus start of the block's t")
        self.basis = basis
        self.size = int(size)
        self.length = float(length)
        self.coefficients = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Kernels and matrices: weights with two axes or more."""
        return weight.is_floating_point() and weight.ndim >= 2

    def bind(self, theta: Theta) -> None:
        if len(self.coefficients):
            raise ValueError("this Galerkin already evolves another block's weights; give each block a copy.deepcopy of it")
        for name, weight in theta.items():
            self.coefficients[_key(name)] = nn.Parameter(weight.new_zeros(self.size - 1, *weight.shape))

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """dtheta/dt, t counted from the start; at a node of "linear" the slope behind it."""
        slope = _BASES[self.basis][1]
        if slope is None:
            raise ValueError(f"Galerkin({self.basis!r}) jumps and has no dtheta/dt to step; use its flow, as a CoupledODEBlock does")
        s = (t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")).reshape(1) / self.length
        values = slope(s, self.size) / self.length
        return {name: part[0] for name, part in self._sums(values.to, theta).items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        for time in times:
            if not -_ROUND_OFF <= time / self.length <= 1 + _ROUND_OFF:
                raise ValueError(
                    f"length={self.length} of this Galerkin does not reach the time {time} after the start: give it the length of the "
                    "block's t=(t0, t1), length=t1 - t0"
                )
        s = tuple(min(max(time / self.length, 0.0), 1.0) for time in times)
        sums = self._sums(lambda like: kept(_basis, self.basis, self.size, s, like.dtype, like.device), theta)
        return {name: weight + sums[name] for name, weight in theta.items()}

    def _sums(self, values: Callable[[Tensor], Tensor], theta: Theta) -> Theta:
        """sum_k values[i, k] a_k for every weight, i in front; ``values`` like a given weight."""
        found: Theta = {}
        for name, weight in theta.items():
            a = self.coefficients[_key(name)]
            found[name] = (values(weight) @ a.flatten(1)).unflatten(1, weight.shape)
        return found

    def extra_repr(self) -> str:
        return f"{self.basis!r}, size={self.size}, length={self.length}"


class FieldDynamics(Dynamics):
    """Weights that evolve as fields along one of their axes: dw/dt = equation(t, w), by shape alone any equation called as (t, u).

    ``FieldDynamics(Diffusion(Grid1D(16), 0.1), "o i h w -> (o h w) i")`` lets every kernel of 16 input channels diffuse along
    these. Where the equation has ``flow(u, times)`` and that is not None, the closed form is used instead of steps.

    An equation of ``components`` 2, called as (t, (u, v)) such as a wave, moves the weights u and a velocity v, of which v(0) is
    a parameter per weight, ``velocity``, zero at first. Its state is the pair (theta, velocities), as leapfrog needs it.

    Args:
        equation: module (or function) on fields (..., n); its parameters are trained with the block's.
        pattern: einops pattern from the axes of the weight to fields, the evolving axis last and alone.

    Weights with as many axes as the pattern and ``equation.grid.n`` points (if it has a grid) along the last are accepted.

    Raises:
        ValueError: a pattern without "->", or whose last axis is no single axis of the weight.

    Source: ANODEV2, arXiv 1906.04596, whose kernels evolve along their spatial axes.
    """

    def __init__(self, equation: Callable[[Any, Any], Any], pattern: str) -> None:
        super().__init__()
        if not callable(equation):
            raise TypeError(f"equation must be callable as equation(t, u), got {type(equation).__name__}")
        check_call("equation", equation, "t", "u")
        left, arrow, right = (part.strip() for part in pattern.partition("->"))
        self.axes = left.split()
        if not arrow or right.split()[-1:] != [axis for axis in self.axes if axis == right.split()[-1]]:
            raise ValueError(f"pattern={pattern!r} must read like 'o i h w -> (o h w) i', an axis of the weight last and alone")
        self.equation = equation
        self.pattern = f"{left} -> {right}"
        self.backwards = f"... {right} -> ... {left}"
        self.paired = getattr(equation, "components", 1) == 2
        self.velocity = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        n = getattr(getattr(self.equation, "grid", None), "n", None)
        if not weight.is_floating_point() or weight.ndim != len(self.axes):
            return False
        return n is None or weight.shape[self.axes.index(self.pattern.split()[-1])] == n

    def bind(self, theta: Theta) -> None:
        if len(self.velocity):
            raise ValueError("this FieldDynamics already evolves another block's weights; give each block a copy.deepcopy of it")
        if self.paired:
            for name, weight in theta.items():
                self.velocity[_key(name)] = nn.Parameter(torch.zeros_like(weight))

    def start(self, theta: Theta) -> Any:
        return (theta, self._velocities(theta)) if self.paired else theta

    def weights(self, state: Any) -> Theta:
        return state[0] if self.paired else state

    def forward(self, t: Tensor | float, theta: Any) -> Any:
        """dtheta/dt; for a pair (theta, velocities) the pair of their slopes."""
        if not self.paired:
            return {name: self._weight(self.equation(t, self._field(w)), w) for name, w in theta.items()}
        slopes: tuple[Theta, Theta] = ({}, {})
        for name, w in theta[0].items():
            v = theta[1][name]
            field = self._field(v)
            du, dv = self.equation(t, (self._field(w), field))
            slopes[0][name] = v if du is field else self._weight(du, w)
            slopes[1][name] = self._weight(dv, w)
        return slopes

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        flow = getattr(self.equation, "flow", None)
        if flow is None:
            return None
        velocities, path = self._velocities(theta), {}
        for name, w in theta.items():
            field = self._field(w)
            values = flow((field, self._field(velocities[name])) if self.paired else field, times)
            if values is None:
                return None
            path[name] = self._weight(values[0] if self.paired else values, w)
        return path

    def max_stable_step(self, method: Any) -> float:
        """That of the equation; infinite where it tells none."""
        limit = getattr(self.equation, "max_stable_step", None)
        return math.inf if limit is None else limit(method)

    def _velocities(self, theta: Theta) -> Theta:
        return {name: self.velocity[_key(name)] for name in theta} if self.paired else {}

    def _field(self, weight: Tensor) -> Tensor:
        return rearrange(weight, self.pattern)

    def _weight(self, field: Tensor, like: Tensor) -> Tensor:
        return rearrange(field, self.backwards, **dict(zip(self.axes, like.shape, strict=True)))

    def extra_repr(self) -> str:
        return repr(self.pattern)


_ROUND_OFF = 1e-9  # in units of the length: times that differ by less are the same


def _counts(s: Tensor, stop: int) -> Tensor:
    return torch.arange(1, stop, dtype=s.dtype, device=s.device)


def _pieces(s: Tensor, size: int) -> Tensor:
    """1 where s lies in the pieces 1 ... size - 1 of equal length, else 0: shape (len(s), size - 1)."""
    piece = torch.floor(s * size + _ROUND_OFF).clamp(max=size - 1)
    return (piece[:, None] == _counts(s, size)).to(s)


def _hats(s: Tensor, size: int) -> Tensor:
    """The hat functions at the nodes 1 ... size - 1 of size nodes from 0 to 1."""
    return (1 - (s[:, None] * (size - 1) - _counts(s, size)).abs()).clamp(min=0)


def _hat_slopes(s: Tensor, size: int) -> Tensor:
    piece = torch.floor(s[:, None] * (size - 1) + _ROUND_OFF).clamp(max=size - 2)
    nodes = _counts(s, size)
    return (size - 1) * ((piece + 1 == nodes).to(s) - (piece == nodes).to(s))


def _waves(s: Tensor, size: int) -> Tensor:
    angle = 2 * math.pi * s[:, None] * _counts(s, (size + 1) // 2)
    return torch.cat([torch.cos(angle) - 1, torch.sin(angle)], 1)


def _wave_slopes(s: Tensor, size: int) -> Tensor:
    k = 2 * math.pi * _counts(s, (size + 1) // 2)
    return torch.cat([-k * torch.sin(k * s[:, None]), k * torch.cos(k * s[:, None])], 1)


def _chebyshev(s: Tensor, size: int) -> Tensor:
    """T_k(x) - T_k(-1), x = 2 s - 1, k = 1 ... size - 1, by T_{k+1} = 2 x T_k - T_{k-1}."""
    x = 2 * s - 1
    values = [torch.ones_like(x), x]
    while len(values) < size:
        values.append(2 * x * values[-1] - values[-2])
    return torch.stack([value - (-1) ** k for k, value in enumerate(values)][1:], 1)


def _chebyshev_slopes(s: Tensor, size: int) -> Tensor:
    """d/ds T_k(2 s - 1) = 2 k U_{k-1}(2 s - 1), by U_{k+1} = 2 x U_k - U_{k-1}."""
    x = 2 * s - 1
    values = [torch.ones_like(x), 2 * x]
    while len(values) < size - 1:
        values.append(2 * x * values[-1] - values[-2])
    return torch.stack([2 * k * value for k, value in enumerate(values[: size - 1], start=1)], 1)


# (phi, dphi/ds) at every s and 1 <= k < size, phi_k(0) = 0
_BASES: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor] | None]] = {
    "constant": (_pieces, None),
    "linear": (_hats, _hat_slopes),
    "fourier": (_waves, _wave_slopes),
    "chebyshev": (_chebyshev, _chebyshev_slopes),
}


def _basis(basis: str, size: int, s: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """phi_k at every s: (len(s), size - 1)."""
    return _BASES[basis][0](torch.tensor(s, dtype=torch.float64, device="cpu"), size).to(device, dtype)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict key may not contain a dot
