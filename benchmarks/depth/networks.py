"""One network in many kinds: a body whose weights stand still, move by a dynamics, or are others at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anodev2 import (
    BSpline,
    CoupledODEBlock,
    Dynamics,
    Galerkin,
    Hyper,
    LowRank,
    ODEBlock,
    ReactionDiffusionAdvection,
    Scale,
    SkewFlow,
    Templates,
)
from anodev2.models.blocks import norm2d

STEPS = 5

# "one": a single step; "shared": every step with the same weights; "stack": a block of its own for every step
DYNAMICS: dict[str, Callable[[], Dynamics]] = {
    "reaction-diffusion-advection": ReactionDiffusionAdvection,
    "reaction-diffusion-advection, mix": lambda: ReactionDiffusionAdvection(mix=True),
    "skew flow": SkewFlow,
    "low rank 2": lambda: LowRank(2),
    "low rank 4": lambda: LowRank(4),
    "Galerkin chebyshev 2": lambda: Galerkin("chebyshev", 2),
    "B-spline 3, degree 2": lambda: BSpline(3, 2),
    "Galerkin constant 5": lambda: Galerkin("constant", STEPS),
    "templates 1": lambda: Templates(1, STEPS),
    "hyper 2": lambda: Hyper(2),
    "scale": lambda: Scale(STEPS),
}
KINDS = ("one", "shared", *DYNAMICS, "stack")


class Branch(nn.Module):
    """f(t, z) = conv(relu(BN(conv(relu(BN z))))), a norm for each step."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.norm1 = norm2d(channels, "per_step", steps)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm2d(channels, "per_step", steps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, t: Tensor, z: Tensor, *, step: int) -> Tensor:
        z = self.conv1(torch.relu(self.norm1(z, step)))
        return self.conv2(torch.relu(self.norm2(z, step)))


def network(kind: str, channels: int, seed: int, colors: int = 1) -> nn.Sequential:
    """(batch, colors, height, width) to (batch, 10). What two kinds have in common starts alike: stem, head and the body's first weights.

    Every kind but "one" takes five Euler steps of z <- z + f(z) / 5, with a norm for each, so all do the same work on the features.
    """
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(colors, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    f = Branch(channels, 1 if kind in ("one", "stack") else STEPS)
    if kind == "one":
        body: nn.Module = ODEBlock(f, steps=1, adjoint="direct")
    elif kind == "shared":
        body = ODEBlock(f, steps=STEPS, adjoint="direct")
    elif kind == "stack":
        branches = [f, *(Branch(channels, 1) for _ in range(STEPS - 1))]
        times = [step / STEPS for step in range(STEPS + 1)]
        body = nn.Sequential(
            *(ODEBlock(branch, steps=1, t=times[step : step + 2], adjoint="direct") for step, branch in enumerate(branches))
        )
    else:
        body = CoupledODEBlock(f, copy.deepcopy(DYNAMICS[kind]()), evolve="conv*.weight", steps=STEPS, adjoint="direct")
    return nn.Sequential(stem, body, head)
