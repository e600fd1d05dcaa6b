"""What the networks are built of: norms that know the step, branches f, and the three ways to put a branch in a block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anodev2 import Adjoint, CoupledODEBlock, Dynamics, ODEBlock, ReactionDiffusionAdvection, Tableau

BlockKind = Literal["residual", "ode", "coupled"]
NormKind = Literal["per_step", "shared"]


class SharedNorm2d(nn.BatchNorm2d):
    """BatchNorm2d, the same at every step; ``step`` is taken and ignored."""

    def forward(self, input: Tensor, step: int = 0) -> Tensor:
        return super().forward(input)


class PerStepNorm2d(nn.ModuleList):
    """One BatchNorm2d for each step of a fixed grid, chosen by the integer step; the stages of a step share it.

    One set of statistics for all times would be wrong at each of them (TA-BN, NeurIPS 2024).
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__(nn.BatchNorm2d(channels) for _ in range(steps))

    def forward(self, input: Tensor, step: int) -> Tensor:
        if step >= len(self):
            raise ValueError(f"this norm was made for {len(self)} steps, the solver took step number {step + 1}; use norm='shared'")
        return self[step](input)


def norm2d(channels: int, kind: NormKind, steps: int) -> SharedNorm2d | PerStepNorm2d:
    """The norm of a branch; a single step has the plain BatchNorm's parameter names either way."""
    return PerStepNorm2d(channels, steps) if kind == "per_step" and steps > 1 else SharedNorm2d(channels)


class BasicBranch(nn.Module):
    """f(z) = BN(conv3x3(relu(BN(conv3x3 z)))), shape-preserving: the branch of a ResNet's basic block."""

    def __init__(self, channels: int, norm: NormKind, steps: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = norm2d(channels, norm, steps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm2d(channels, norm, steps)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        z = torch.relu(self.norm1(self.conv1(z), step))
        return self.norm2(self.conv2(z), step)


class WideBranch(nn.Module):
    """f(z) = BN(conv5x5 z) with bias, shape-preserving: the branch of AlexNet's second layer."""

    def __init__(self, channels: int, norm: NormKind, steps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 5, padding=2)
        self.norm = norm2d(channels, norm, steps)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        return self.norm(self.conv(z), step)


class ResidualBlock(nn.Module):
    """z + f(0, z): one Euler step of dz/dt = f over (0, 1)."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, z: Tensor) -> Tensor:
        return z + self.f(0.0, z, step=0)


@dataclass(frozen=True)
class BlockMaker:
    """Turns branches into blocks of one kind; the arguments are those of the networks.

    Raises:
        ValueError: an unknown ``block`` or ``norm``, or dynamics for a block without any.
    """

    block: BlockKind = "coupled"
    steps: int = 5
    method: str | Tableau = "euler"
    dynamics: Dynamics | None = None
    weight_steps: int | None = None
    norm: NormKind = "per_step"
    adjoint: str | Adjoint = "checkpoint"

    def __post_init__(self) -> None:
        if self.block not in ("residual", "ode", "coupled"):
            raise ValueError(f"block={self.block!r} must be 'residual', 'ode' or 'coupled'")
        if self.norm not in ("per_step", "shared"):
            raise ValueError(f"norm={self.norm!r} must be 'per_step' or 'shared'")
        if self.dynamics is not None and self.block != "coupled":
            raise ValueError(f"dynamics only act with block='coupled', got block={self.block!r}")

    def __call__(self, branch: Callable[[int, NormKind, int], nn.Module], channels: int) -> nn.Module:
        """A block around ``branch(channels, norm, steps)``; each block has its own copy of the dynamics."""
        if self.block == "residual":
            return ResidualBlock(branch(channels, self.norm, 1))
        f = branch(channels, self.norm, self.steps)
        if self.block == "ode":
            return ODEBlock(f, steps=self.steps, method=self.method, adjoint=self.adjoint)
        dynamics = copy.deepcopy(self.dynamics) if self.dynamics is not None else ReactionDiffusionAdvection()
        return CoupledODEBlock(
            f,
            dynamics,
            steps=self.steps,
            weight_steps=self.weight_steps,
            method=self.method,
            adjoint=self.adjoint,
        )
