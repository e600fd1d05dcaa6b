"""Diffusion and advection of weights along an axis of their channels, a part of ``ReactionDiffusionAdvection``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..tables import kept
from .dynamics import Theta, parameter_key
from .spectral import convolved, expm1, growth, moving


class ChannelMixing(nn.Module):
    """tau d2w/dc2 + upsilon dw/dc along the output (axis 0) or input channels (axis 1) c of kernels, periodic, unit spacing."""

    def __init__(self, axis: int, learnable: bool) -> None:
        super().__init__()
        self.axis = axis
        self.learnable = learnable
        self.sizes: dict[str, int] = {}
        self.signed_tau = nn.ParameterDict()
        self.upsilon = nn.ParameterDict()

    def bind(self, theta: Theta) -> None:
        for name, weight in theta.items():
            size = self.sizes[name] = weight.shape[self.axis]
            if size > 1:
                self.signed_tau[parameter_key(name)] = nn.Parameter(weight.new_zeros(1), self.learnable)
            if moving([size]):
                self.upsilon[parameter_key(name)] = nn.Parameter(weight.new_zeros(1), self.learnable)

    def rates(self, weights: Theta, times: tuple[float, ...], fields: Tensor, flow: bool = False) -> Tensor:
        """Of kernels of one shape, (times, kernels, out, in, *space): the operator times t, or exp of that minus 1, on each."""
        size = fields.shape[2 + self.axis]
        if size == 1:
            return torch.zeros_like(fields)
        dtype = torch.promote_types(fields.dtype, torch.float32)
        table = kept(growth, (size,), times, dtype, fields.device)
        symbols = (self._coefficients([*weights]).to(dtype) @ table).unflatten(1, (len(times), -1, 2))
        places = torch.eye(size, dtype=dtype, device=fields.device).view(1, size, 1, size).expand(len(weights), -1, -1, -1)
        matrices = convolved(expm1(symbols) if flow else symbols, places).squeeze(3).to(fields.dtype)  # (times, kernels, from, to)
        moved = fields.movedim(2 + self.axis, -1)
        return (moved.flatten(2, -2) @ matrices).view(moved.shape).movedim(-1, 2 + self.axis)

    def columns(self, name: str) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters of a weight, each with what a unit of it does to the modes of the axis: (1, modes, 2) on the CPU."""
        key = parameter_key(name)
        table = growth((self.sizes[name],), (1.0,), torch.float64, torch.device("cpu")).unflatten(1, (-1, 2))[1:]
        found = [parameters[key] for parameters in (self.upsilon, self.signed_tau) if key in parameters]
        return [*zip(found, table.split(1), strict=True)] if found else []

    def modes(self, name: str) -> Tensor:
        """The eigenvalues for one weight, (size,) complex128 on the CPU."""
        if self.sizes[name] == 1:
            return torch.zeros(1, dtype=torch.complex128, device="cpu")
        table = growth((self.sizes[name],), (1.0,), torch.float64, torch.device("cpu"))
        return torch.view_as_complex((self._coefficients([name]).detach().to("cpu", torch.float64) @ table).view(-1, 2))

    def _coefficients(self, names: list[str]) -> Tensor:
        """What ``growth`` has rows for: none of the reaction, upsilon where there is one, tau; a row for each weight."""
        keys = [parameter_key(name) for name in names]
        signed = torch.cat([self.signed_tau[key] for key in keys])[:, None]
        velocity = [torch.cat([self.upsilon[key] for key in keys])[:, None]] if keys[0] in self.upsilon else []
        return torch.cat([torch.zeros_like(signed), *velocity, torch.where(signed < 0, 0.0, signed)], 1)
