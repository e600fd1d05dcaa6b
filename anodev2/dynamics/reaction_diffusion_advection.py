"""Kernels that react, diffuse and are carried along their spatial axes, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..solvers.stability import stability_function
from ..tables import kept
from ..torch_private import in_fake_mode
from .channel_mixing import ChannelMixing
from .dynamics import Dynamics, Theta, parameter_key, refuse_another
from .spectral import alike, began, convolved, expm1, growing, growth, moving, stacked


class ReactionDiffusionAdvection(Dynamics):
    """dw/dt = tau Lap w + upsilon . grad w + rho w over the spatial axes of convolution kernels.

    Spectral in space, periodic, unit spacing: the mode exp(i k . x) grows by exp((-tau |k|^2 + i k . upsilon + rho) t).
    On a 3x3 kernel |k|^2 is 0, 4.386 or 8.773; a 1x1 kernel has the reaction alone, and axes of length 1 or 2 no advection:
    parameters without effect are not made. A positive upsilon moves the pattern towards -x, w(x + upsilon t); the
    mean grows by exp(rho t). On even kernel sizes the Nyquist mode has no first derivative (advection leaves it
    standing), so real kernels stay real.

    Linear (no ``nonlinearity``), the flow is used in closed form, w(t) = w(0) + F^-1 [expm1(...) F w(0)]: all times in
    one batched product per kernel, and exactly w(0) at t = 0 or zero coefficients. With a nonlinearity sigma,
    dw/dt = sigma(tau Lap w + upsilon . grad w + rho w) is stepped; steps beyond ``max_stable_step`` warn.

    Args:
        tau: initial diffusivity, at least 0, in kernel cells squared per unit of t. What is learned is a number p, and
            tau = max(p, 0): non-negative, able to be exactly 0, and drawn towards it by weight decay (the softplus usual here
            turns decay into diffusion, and |p| reflects a step too long into strong diffusion). Its derivative is 1 at 0 and 0
            below: ``project`` sets what an optimizer has led below 0 to 0, from where it can rise again.
        upsilon: initial advection velocity in cells per unit of t: one number for all axes, or one per spatial axis.
        rho: initial reaction rate per unit of t.
        per: "layer": one set of coefficients for each kernel tensor; "channel": one for each entry of its first axis, the output
            channels of a convolution and the input channels of a transposed one.
        learnable: False keeps the coefficients as given.
        nonlinearity: sigma, an elementwise function such as ``torch.tanh``.
        mix: the kernels diffuse and are carried along the axes of their output and input channels too, periodic, with a tau and an
            upsilon of each axis that are zero at first; for ``per="layer"``. A channel axis of length 1 or 2 is not carried, 1 does not
            diffuse.

    Parameters beside theta_0: 1 + 1 + spatial axes for each weight, or for each of its output channels; ``mix`` adds 4.

    Raises:
        ValueError: tau negative, a coefficient that is not finite, an unknown ``per``, or ``mix`` with coefficients per channel.

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
        mix: bool = False,
    ) -> None:
        super().__init__()
        if not tau >= 0:
            raise ValueError(f"tau={tau} must be at least 0: negative diffusion grows without bound")
        for what, value in (("tau", tau), ("upsilon", upsilon), ("rho", rho)):
            if not torch.as_tensor(value, dtype=torch.float64, device="cpu").isfinite().all():
                raise ValueError(f"{what}={value} must be finite")
        if per not in ("layer", "channel"):
            raise ValueError(f"per={per!r} must be 'layer' or 'channel'")
        if mix and per != "layer":
            raise ValueError(f"mix=True carries kernels from channel to channel and needs per='layer', got per={per!r}")
        self.initial = (tau, upsilon, rho)
        self.per = per
        self.learnable = learnable
        self.nonlinearity = nonlinearity
        self.mix = mix
        self.channels = nn.ModuleList([ChannelMixing(axis, learnable) for axis in (0, 1)] if mix else [])
        self.spaces: dict[str, torch.Size] = {}
        self.signed_tau = nn.ParameterDict()
        self.upsilon = nn.ParameterDict()
        self.rho = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Convolution kernels (out, in, *space)."""
        return weight.is_floating_point() and weight.ndim >= 3

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.rho)
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
                self.signed_tau[parameter_key(name)] = nn.Parameter(weight.new_full(alone, tau), self.learnable)
            if moved:
                self.upsilon[parameter_key(name)] = nn.Parameter(velocity.expand(*lead, len(moved)).clone(), self.learnable)
            self.rho[parameter_key(name)] = nn.Parameter(weight.new_full(alone, rho), self.learnable)
        for mixing in self._mixings():
            mixing.bind(theta)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in [prefix + name for name, _ in self.named_parameters() if prefix + name in state_dict]:
            state_dict[name] = torch.atleast_1d(state_dict[name])  # saved when it had no axis; the dict is load_state_dict's own
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def coefficients(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """(tau, upsilon, rho) of the weight ``name``: shapes (), (axes,), () or with the channels in front; 0 for what has no effect."""
        key, place = parameter_key(name), 0 if self.per == "layer" else slice(None)
        rho = self.rho[key][place]
        signed = self.signed_tau[key][place] if key in self.signed_tau else torch.zeros_like(rho)
        columns = [torch.zeros_like(rho)] * len(self.spaces[name])
        for column, axis in enumerate(moving(self.spaces[name])):
            columns[axis] = self.upsilon[key][..., column]
        return torch.where(signed < 0, 0.0, signed), torch.stack(columns, -1), rho

    def project(self, *_: Any) -> None:
        """Set what an optimizer has led below 0 to 0, after its step: ``optimizer.register_step_post_hook(dynamics.project)``."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "signed_tau." in name:
                    parameter.clamp_(min=0)

    def max_stable_step(self, method: Any) -> float:
        """The largest step with which ``method`` amplifies no mode of any kernel by more than exp(t): an estimate.

        Its eigenvalues are those of the linear part, -tau |k|^2 + i k . upsilon + min(rho, 0), times the steepest slope of the
        nonlinearity on [-3, 3]; growth that is slower than exp(t) is left out. Infinite before ``bind`` and for fake and meta tensors.
        """
        if not len(self.rho) or in_fake_mode() or any(p.is_meta for p in self.parameters()):
            return math.inf
        slope, found = self._steepest(), []
        for name, space in self.spaces.items():
            tau, upsilon, rho = (c.detach().to("cpu", torch.float64) for c in self.coefficients(name))
            rows = torch.cat([torch.atleast_1d(rho.clamp(max=0))[:, None], torch.atleast_2d(upsilon)[:, moving(space)]], 1)
            rows = torch.cat([rows, torch.atleast_1d(tau)[:, None]], 1) if max(space) > 1 else rows
            modes = rows @ growth(tuple(space), (1.0,), torch.float64, torch.device("cpu"))
            rates = torch.view_as_complex(modes.unflatten(1, (-1, 2))).flatten()
            for mixing in self._mixings():
                rates = (rates[:, None] + mixing.modes(name)).flatten()
            found.append(rates)
        return stability_function(method).limit(slope * torch.cat(found) - 1)

    def _steepest(self) -> float:
        """The largest slope of the nonlinearity, by differences."""
        if self.nonlinearity is None:
            return 1.0
        parameter = next(self.parameters())
        with torch.no_grad():
            values = self.nonlinearity(torch.linspace(-3, 3, 1201, dtype=parameter.dtype, device=parameter.device))
        return values.diff().abs().max().item() / 0.005

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        slopes: Theta = {}
        for weights in alike(theta):
            start = stacked(weights)
            found = convolved(self._symbols(weights, (1.0,)), start)[0]
            for mixing in self._mixings():
                found = found + mixing.rates(weights, (1.0,), start[None])[0]
            slopes |= zip(weights, (found if self.nonlinearity is None else self.nonlinearity(found)).unbind(), strict=True)
        return {name: slopes[name] for name in theta}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        if self.nonlinearity is not None:
            return None
        path: Theta = {}
        for weights in alike(theta):
            start = stacked(weights)
            found = start + convolved(expm1(self._symbols(weights, tuple(times))), start)
            for mixing in self._mixings():  # the three commute
                found = found + mixing.rates(weights, tuple(times), found, flow=True)
            path |= zip(weights, found.unbind(1), strict=True)
        return {name: path[name] for name in theta}

    @torch.no_grad()
    def fit(self, path: Theta, times: Sequence[float]) -> Theta | None:
        """The coefficients by which the Fourier modes grow and turn from time to time, and the start nearest to all by these."""
        if self.nonlinearity is not None or not self.learnable or len(times) < 2:
            return None
        start: Theta = {}
        for name, values in path.items():
            parameters, table = self._columns(name, values)
            rows, axes = len(self.rho[parameter_key(name)]), tuple(range((1 if self.mix else 3) - values.ndim, 0))
            modes = torch.fft.fftn(values, dim=axes)
            flat = modes.reshape(len(times), rows, -1, table.shape[1])
            found = growing(flat, times, table).split([parameter.numel() // rows for parameter in parameters], 1)
            for parameter, part in zip(parameters, found, strict=True):
                parameter.copy_(part.reshape(parameter.shape))
            self.project()
            symbols = torch.tensordot(torch.cat([p.reshape(rows, -1) for p in parameters], 1).to(table), table, 1)
            start[name] = torch.fft.ifftn(began(flat, times, symbols).reshape(modes.shape[1:]), dim=axes).real
        return start

    def _columns(self, name: str, like: Tensor) -> tuple[list[nn.Parameter], Tensor]:
        """The parameters of a weight, and what a unit of each does to its modes: (columns, modes, 2), of the channel axes too in a mix."""
        key, kinds = parameter_key(name), (self.rho, self.upsilon, self.signed_tau)
        parameters = [parameters[key] for parameters in kinds if key in parameters]
        space = growth(tuple(self.spaces[name]), (1.0,), torch.float64, torch.device("cpu")).unflatten(1, (-1, 2))
        tables, sizes = [space[:, None, None]], [*like.shape[1:3], space.shape[1]] if self.mix else [1, 1, space.shape[1]]
        for mixing in self._mixings():
            for parameter, column in mixing.columns(name):
                parameters.append(parameter)
                tables.append(column.unflatten(1, [-1, 1, 1] if mixing.axis == 0 else [1, -1, 1]))
        table = torch.cat([part.expand(-1, *sizes, -1) for part in tables]).flatten(1, 3)
        return parameters, table.to(like.device, torch.promote_types(like.dtype, torch.float32))

    def _symbols(self, weights: Theta, times: tuple[float, ...]) -> Tensor:
        """(-tau |k|^2 + rho + i k . upsilon) t of kernels of one shape: (rows, times, modes, 2), a row for each set of coefficients."""
        keys, weight = [parameter_key(name) for name in weights], next(iter(weights.values()))
        columns = [torch.cat([self.rho[key] for key in keys])[:, None]]
        if keys[0] in self.upsilon:
            columns.append(torch.cat([torch.atleast_2d(self.upsilon[key]) for key in keys]))
        if keys[0] in self.signed_tau:
            signed = torch.cat([self.signed_tau[key] for key in keys])[:, None]
            columns.append(torch.where(signed < 0, 0.0, signed))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        table = kept(growth, tuple(weight.shape[2:]), times, dtype, weight.device)
        return (torch.cat(columns, 1).to(dtype) @ table).unflatten(1, (len(times), -1, 2))

    def _mixings(self) -> list[ChannelMixing]:
        return [part for part in self.channels if isinstance(part, ChannelMixing)]

    def extra_repr(self) -> str:
        tau, upsilon, rho = self.initial
        return f"tau={tau}, upsilon={upsilon}, rho={rho}, per={self.per!r}, learnable={self.learnable}{', mix=True' * self.mix}"
