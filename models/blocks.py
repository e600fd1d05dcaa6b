"""What the networks are built of: convolutions that may know the time, norms that know the step, branches f, and the three
ways to put a branch in a block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from anodev2 import Adjoint, Compile, CoupledODEBlock, Dynamics, Method, ODEBlock, ReactionDiffusionAdvection, Tableau

BlockKind = Literal["residual", "ode", "coupled"]
NormKind = Literal["per_step", "shared"]


class BranchConv2d(nn.Conv2d):
    """conv(z), padded by half the kernel; where ``time``, conv([z, t]): t is one more input channel, constant and behind those of z."""

    def __init__(
        self, inner: int, outer: int, kernel: int | tuple[int, int], stride: int = 1, *, bias: bool = True, time: bool = False
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(inner + time, outer, kernel, stride, padding=(height // 2, width // 2), bias=bias)
        self.time = time

    def forward(self, input: Tensor, t: Any = 0.0) -> Tensor:
        if self.time:
            input = torch.cat([input, torch.ones_like(input[:, :1]) * t], 1)
        return super().forward(input)


class Stem(nn.Conv2d):
    """The first convolution of a network; it says which images the network takes.

    ``side``: their height and width must be so many pixels. ``parts``: or a multiple of it.
    """

    def __init__(self, channels: int, kernel: int, *, bias: bool = False, side: int | None = None, parts: int = 1) -> None:
        super().__init__(3, channels, kernel, padding=kernel // 2, bias=bias)
        self.side, self.parts = side, parts

    def forward(self, input: Tensor) -> Tensor:
        check_images(input, self.side, self.parts)
        return super().forward(input)


def check_images(input: Tensor, side: int | None = None, parts: int = 1) -> None:
    """ValueError where they are not (batch, 3, height, width) with ``side`` pixels, or a multiple of ``parts``, as height and width."""
    if isinstance(input, Proxy):
        return
    shape = tuple(input.shape)
    if input.ndim != 4 or shape[1] != 3:
        cure = "; make grey images x.expand(-1, 3, -1, -1)" if input.ndim == 4 and shape[1] == 1 else ""
        raise ValueError(f"this network maps images (batch, 3, height, width), got {shape}{cure}")
    if any(length != side if side else length % parts or not length for length in shape[2:]):
        sides = f"{side}x{side} pixels" if side else f"a multiple of {parts} pixels high and wide"
        cure = "resize them with torch.nn.functional.interpolate, or take resnet18 or squeezenext, which read any size"
        raise ValueError(f"this network maps images of {sides}, got {shape}; {cure}")


class GridPool(nn.Module):
    """Means over ``cells`` x ``cells`` windows of equal size: a linear layer behind it has as many inputs for every size of image."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, (input.shape[2] // self.cells, input.shape[3] // self.cells))

    def extra_repr(self) -> str:
        return f"cells={self.cells}"


class SharedNorm2d(nn.BatchNorm2d):
    """BatchNorm2d, the same at every step; ``step`` is taken and ignored."""

    def forward(self, input: Any, step: int = 0) -> Any:
        if isinstance(input, Proxy):  # torch.fx takes down torch's own norms as they are, and would read into this one
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
        return super().forward(input)


class PerStepNorm2d(nn.ModuleList):
    """One BatchNorm2d for each step of a fixed grid, chosen by the integer step; the stages of a step share it.

    One set of statistics for all times would be wrong at each of them (TA-BN, NeurIPS 2024). The state of a single BatchNorm2d loads
    too, and is copied to every step: so the weights of a residual network load into its ODE.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__(nn.BatchNorm2d(channels) for _ in range(steps))

    def forward(self, input: Tensor, step: int) -> Tensor:
        if step >= len(self):
            raise ValueError(f"this norm was made for {len(self)} steps, the solver took step number {step + 1}; use norm='shared'")
        return self._modules[str(step)](input)  # pyright: ignore[reportOptionalCall] (cheaper than self[step])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        plain = [name for name in self[0].state_dict() if prefix + name in state_dict]
        if plain and not any(key.startswith(f"{prefix}{step}.") for key in state_dict for step in range(len(self))):
            for name in plain:  # state_dict is load_state_dict's own dict of this module's entries
                value = state_dict.pop(prefix + name)
                state_dict.update({f"{prefix}{step}.{name}": value for step in range(len(self))})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def norm2d(channels: int, kind: NormKind, steps: int) -> SharedNorm2d | PerStepNorm2d:
    """The norm of a branch; a single step has the plain BatchNorm's parameter names either way."""
    return PerStepNorm2d(channels, steps) if kind == "per_step" and steps > 1 else SharedNorm2d(channels)


class BasicBranch(nn.Module):
    """f(t, z) = BN(conv3x3(relu(BN(conv3x3 z)))), shape-preserving: the branch of a ResNet's basic block."""

    def __init__(self, channels: int, norm: NormKind = "shared", steps: int = 1, time: bool = False) -> None:
        super().__init__()
        self.conv1 = BranchConv2d(channels, channels, 3, bias=False, time=time)
        self.norm1 = norm2d(channels, norm, steps)
        self.conv2 = BranchConv2d(channels, channels, 3, bias=False, time=time)
        self.norm2 = norm2d(channels, norm, steps)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        return self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(z, t), step)), t), step)


class WideBranch(nn.Module):
    """f(t, z) = BN(conv5x5 z) with bias, shape-preserving: the branch of AlexNet's second layer."""

    def __init__(self, channels: int, norm: NormKind = "shared", steps: int = 1, time: bool = False) -> None:
        super().__init__()
        self.conv = BranchConv2d(channels, channels, 5, time=time)
        self.norm = norm2d(channels, norm, steps)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        return self.norm(self.conv(z, t), step)


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

    Args:
        block: "residual": z + f(0, z); "ode": dz/dt = f(t, z); "coupled": the weights of f move by ``dynamics``.
        steps, method, adjoint, compile: as for ``ODEBlock``; of no effect on residual blocks.
        dynamics: a ``Dynamics``, copied into each block, which evolves all that it accepts; None: reaction-diffusion-advection.
        weight_steps, weight_method, weights: as for ``CoupledODEBlock``; of no effect on other blocks.
        norm: a BatchNorm for each step, or one shared by all.
        time: t is one more input channel of every convolution of f.

    Raises:
        ValueError: an unknown ``block`` or ``norm``, dynamics for a block without any, or time for a residual block.
    """

    block: BlockKind = "coupled"
    steps: int = 5
    method: str | Tableau | Method = "euler"
    dynamics: Dynamics | None = None
    weight_steps: int | None = None
    norm: NormKind = "per_step"
    adjoint: str | Adjoint = "checkpoint"
    time: bool = False
    weight_method: str | Tableau | Method | None = None
    weights: Literal["along", "final"] = "along"
    compile: bool | Compile = False

    def __post_init__(self) -> None:
        if self.block not in ("residual", "ode", "coupled"):
            raise ValueError(f"block={self.block!r} must be 'residual', 'ode' or 'coupled'")
        if self.norm not in ("per_step", "shared"):
            raise ValueError(f"norm={self.norm!r} must be 'per_step' or 'shared'")
        if self.dynamics is not None and self.block != "coupled":
            raise ValueError(f"dynamics only act with block='coupled', got block={self.block!r}")
        if self.time and self.block == "residual":
            raise ValueError("time=True needs block='ode' or 'coupled', got block='residual', which reads t = 0 alone")

    def __call__(self, branch: Callable[[int, NormKind, int, bool], nn.Module], channels: int) -> nn.Module:
        """A block around ``branch(channels, norm, steps, time)``; each block has its own copy of the dynamics."""
        if self.block == "residual":
            return ResidualBlock(branch(channels, self.norm, 1, False))
        f = branch(channels, self.norm, self.steps, self.time)
        if self.block == "ode":
            return ODEBlock(f, steps=self.steps, method=self.method, adjoint=self.adjoint, compile=self.compile)
        dynamics = copy.deepcopy(self.dynamics) if self.dynamics is not None else ReactionDiffusionAdvection()
        return CoupledODEBlock(
            f,
            dynamics,
            steps=self.steps,
            weight_steps=self.weight_steps,
            method=self.method,
            weight_method=self.weight_method,
            weights=self.weights,
            adjoint=self.adjoint,
            compile=self.compile,
        )
