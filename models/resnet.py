"""ResNets for 32x32 images, as in ANODE (arXiv 1902.10298, ResNet-18) and ANODEV2 (arXiv 1906.04596, ResNet-4 and ResNet-10).

A shape-preserving basic block is relu(z + f(z)) with f = BN conv relu BN conv. As an ODE block f is the same
branch and the final ReLU follows the solve, so that one Euler step is the residual block to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import BasicBranch, BlockMaker, GridPool, ResidualBlock, Stem
from .pretrained import pretrainable


class Downsample(nn.Module):
    """relu(BN conv1x1 z + BN conv3x3 relu BN conv3x3 z), halving height and width: a residual block in every network."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride=2, bias=False), nn.BatchNorm2d(outer))

    def forward(self, z: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(z)))))
        return torch.relu(self.shortcut(z) + branch)


def _stem(channels: int, parts: int = 1) -> list[nn.Module]:
    return [Stem(channels, 3, parts=parts), nn.BatchNorm2d(channels), nn.ReLU()]


def _head(cells: int, channels: int, num_classes: int) -> list[nn.Module]:
    return [GridPool(cells), nn.Flatten(), nn.Linear(cells**2 * channels, num_classes)]


@pretrainable
def resnet4(num_classes: int = 10, **block: Any) -> nn.Sequential:
    """ResNet-4: stem 3->16, one basic block, average pooling, linear; 7,706 parameters with 10 classes and block="residual".

    Args:
        num_classes: outputs.
        **block: ``block="residual" | "ode" | "coupled"`` (default "coupled"), ``steps=5``, ``method="euler"``,
            ``dynamics=None`` (a ``Dynamics``, copied into each block; None: reaction-diffusion-advection),
            ``weight_steps=None``, ``norm="per_step" | "shared"``, ``adjoint="checkpoint"``, ``time=False``,
            ``weight_method=None``, ``weights="along" | "final"``, ``compile=False``; see ``BlockMaker``. ``pretrained=True``: with
            the weights that come with the library, of a coupled block by default trained on 2,000 images of CIFAR-10, normalised by
            ``facts("resnet4")["mean"]`` and ``["std"]``; the last layer is new where there are other classes than ten.

    Maps (batch, 3, 32, 32) to (batch, num_classes); other heights and widths must be multiples of 4 (4x4 means are read).

    Raises:
        ValueError: images of another shape.
    """
    make = BlockMaker(**block)
    return nn.Sequential(*_stem(16, parts=4), make(BasicBranch, 16), nn.ReLU(), *_head(4, 16, num_classes))


@pretrainable
def resnet10(num_classes: int = 10, **block: Any) -> nn.Sequential:
    """ResNet-10: stem, two basic blocks of 16, a downsampling block, one basic block of 32, average pooling, linear.

    44,186 parameters with 10 classes and block="residual". Arguments and shapes as for ``resnet4``.
    """
    make = BlockMaker(**block)
    return nn.Sequential(
        *_stem(16, parts=4),
        make(BasicBranch, 16),
        nn.ReLU(),
        make(BasicBranch, 16),
        nn.ReLU(),
        Downsample(16, 32),
        make(BasicBranch, 32),
        nn.ReLU(),
        *_head(2, 32, num_classes),
    )


@pretrainable
def resnet18(num_classes: int = 10, **block: Any) -> nn.Sequential:
    """ResNet-18 with a 3x3 stem: stages of 64, 128, 256, 512 channels, two blocks each, average pooling, linear.

    The second block of each stage is the ODE; the first is a residual block in every network. 11,173,962 parameters with 10
    classes and block="residual", 6,270,720 of them in the ODE blocks. Arguments as for ``resnet4``.

    Maps (batch, 3, height, width), of any size, to (batch, num_classes).
    """
    make = BlockMaker(**block)
    return nn.Sequential(
        *_stem(64),
        ResidualBlock(BasicBranch(64)),
        nn.ReLU(),
        make(BasicBranch, 64),
        nn.ReLU(),
        Downsample(64, 128),
        make(BasicBranch, 128),
        nn.ReLU(),
        Downsample(128, 256),
        make(BasicBranch, 256),
        nn.ReLU(),
        Downsample(256, 512),
        make(BasicBranch, 512),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )
