"""SqueezeNext for 32x32 images, as in ANODE (arXiv 1902.10298); the block is that of SqueezeNext (arXiv 1803.10615).

A shape-preserving block is z + f(z), f five convolutions, each followed by BN and ReLU, that squeeze the channels and widen them again.
z and f are not negative, so no ReLU follows the sum. As an ODE block f is the same branch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .blocks import BlockMaker, BranchConv2d, NormKind, check_images, norm2d
from .pretrained import pretrainable


class ConvNormReLU(nn.Module):
    """relu(BN(conv z)), the conv biased; it may know the time and the norm the step."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        norm: NormKind = "shared",
        steps: int = 1,
        time: bool = False,
    ) -> None:
        super().__init__()
        self.conv = BranchConv2d(inner, outer, kernel, stride, time=time)
        self.norm = norm2d(outer, norm, steps)
        self.relu = nn.ReLU()

    def forward(self, z: Tensor, t: Any = 0.0, step: int = 0) -> Tensor:
        return self.relu(self.norm(self.conv(z, t), step))


class FirstConvNormReLU(ConvNormReLU):
    """That which images come to."""

    def forward(self, z: Tensor, t: Any = 0.0, step: int = 0) -> Tensor:
        check_images(z)
        return super().forward(z, t, step)


class SqueezeBranch(nn.Module):
    """f(t, z): 1x1 c->c/2, 1x1 c/2->c/4, (1,3) c/4->c/2, (3,1) c/2->c/2, 1x1 c/2->c; 2.25 c^2 + 8.25 c parameters with one norm each."""

    def __init__(self, channels: int, norm: NormKind = "shared", steps: int = 1, time: bool = False) -> None:
        super().__init__()
        known = (1, norm, steps, time)
        half, quarter = channels // 2, channels // 4
        self.squeeze1 = ConvNormReLU(channels, half, 1, *known)
        self.squeeze2 = ConvNormReLU(half, quarter, 1, *known)
        self.row = ConvNormReLU(quarter, half, (1, 3), *known)
        self.column = ConvNormReLU(half, half, (3, 1), *known)
        self.expand = ConvNormReLU(half, channels, 1, *known)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        z = self.squeeze2(self.squeeze1(z, t, step), t, step)
        return self.expand(self.column(self.row(z, t, step), t, step), t, step)


class Transition(nn.Module):
    """shortcut(z) + branch(z), to other channels and, with stride 2, half the height and width: a residual block in every network.

    Both are of convolutions, BN and ReLU. The branch goes 1x1 to r * inner channels, 1x1 to half of these, (1,3), (3,1), 1x1 to outer;
    r is 1 where the stride is 2, else 1/4.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        width = inner if stride == 2 else inner // 4
        self.shortcut = ConvNormReLU(inner, outer, 1, stride)
        self.branch = nn.Sequential(
            ConvNormReLU(inner, width, 1, stride),
            ConvNormReLU(width, width // 2, 1),
            ConvNormReLU(width // 2, width, (1, 3)),
            ConvNormReLU(width, width, (3, 1)),
            ConvNormReLU(width, outer, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.shortcut(z) + self.branch(z)


@pretrainable
def squeezenext(num_classes: int = 10, **block: Any) -> nn.Sequential:
    """SqueezeNext of width 1: stem 3->64, stages of 32, 64, 128, 256 channels, two blocks each, conv1x1 to 128, average pooling, linear.

    The second block of each stage is the ODE. 461,466 parameters with 10 classes and block="residual", 199,800 of them in the ODE
    blocks. The network is reconstructed: a 3x3 stem and strides 1, 2, 2, 2 of the stages meet ANODE's totals to the last digit (so would
    5x5 and 2, 1, 1, 2); stride 1 of the stem, which no total shows, is ours. Arguments as for ``resnet4``.

    Maps (batch, 3, height, width), of any size, to (batch, num_classes).
    """
    make = BlockMaker(**block)
    return nn.Sequential(
        FirstConvNormReLU(3, 64, 3),
        Transition(64, 32, stride=1),
        make(SqueezeBranch, 32),
        Transition(32, 64, stride=2),
        make(SqueezeBranch, 64),
        Transition(64, 128, stride=2),
        make(SqueezeBranch, 128),
        Transition(128, 256, stride=2),
        make(SqueezeBranch, 256),
        ConvNormReLU(256, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )
