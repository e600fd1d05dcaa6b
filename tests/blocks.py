"""A branch and every kind of weight dynamics for it, for sweeps over blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import (
    CoupledODEBlock,
    Dynamics,
    FieldDynamics,
    Galerkin,
    Hyper,
    LowRank,
    NeuralDynamics,
    ODEBlock,
    ReactionDiffusionAdvection,
    SkewFlow,
    Static,
)
from anodev2.pde import Advection, Diffusion, Dirichlet, Grid1D, Neumann, Wave

CHANNELS = "o i h w -> (o h w) i"


class Branch(nn.Module):
    """f(t, z) on images of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv2(torch.tanh(self.norm(self.conv1(z)))) + t


class Rate(nn.Module):
    """q(t, theta) with a learned rate."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, t: Tensor, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: -self.rate * torch.sin(w + t) for name, w in theta.items()}


DYNAMICS: dict[str, Callable[[], Dynamics]] = {
    "static": Static,
    "layer": lambda: ReactionDiffusionAdvection(0.3, 0.2, 0.1),
    "channel": lambda: ReactionDiffusionAdvection(0.3, 0.2, 0.1, per="channel"),
    "stepped": lambda: ReactionDiffusionAdvection(0.3, 0.2, 0.1, nonlinearity=torch.tanh),
    "mixed": lambda: ReactionDiffusionAdvection(0.3, 0.2, 0.1, mix=True),
    "linear": lambda: Galerkin("linear", 3),
    "low rank": lambda: LowRank(2),
    "hyper": lambda: Hyper(2),
    "skew": SkewFlow,
    "diffusion": lambda: FieldDynamics(Diffusion(Grid1D(4), 0.01), CHANNELS),
    "walls": lambda: FieldDynamics(Diffusion(Grid1D(4, boundary=Dirichlet(0.5, 1.0)), 0.01), CHANNELS),
    "advection": lambda: FieldDynamics(Advection(Grid1D(4, boundary=Neumann(0.5, None)), lambda t, x: 0.1 * x), CHANNELS),
    "wave": lambda: FieldDynamics(Wave(Grid1D(4), 0.1), CHANNELS),
    "module": lambda: NeuralDynamics(Rate()),
}


def block_of(dynamics: str | None, adjoint: str = "checkpoint", f: nn.Module | None = None, **options: Any) -> ODEBlock:
    """A block of two steps; None: the weights stand still."""
    f = Branch() if f is None else f
    if dynamics is None:
        return ODEBlock(f, steps=2, adjoint=adjoint, **options)
    return CoupledODEBlock(f, DYNAMICS[dynamics](), **{"evolve": "*conv*weight", "steps": 2, "adjoint": adjoint, **options})


def stirred(module: Any) -> Any:
    """With parameters none of which is special, the same each time."""
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            values = torch.arange(parameter.numel(), dtype=parameter.dtype, device=parameter.device) + place
            parameter.copy_(0.15 + 0.1 * torch.sin(values).view(parameter.shape))
    return module
