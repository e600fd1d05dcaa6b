"""A small AlexNet for 32x32 images, as in ANODEV2 (arXiv 1906.04596).

The second convolution is relu(z + f(z)) with f = BN conv5x5, then pooling; as an ODE block f is the same branch.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .blocks import BlockMaker, Stem, WideBranch
from .pretrained import pretrainable


@pretrainable
def alexnet(num_classes: int = 10, **block: Any) -> nn.Sequential:
    """AlexNet: conv5x5 3->64, block of conv5x5 64->64, three linear layers.

    1,756,682 parameters with 10 classes and block="residual". Arguments and shapes as for ``resnet4``.
    """
    make = BlockMaker(**block)
    return nn.Sequential(
        Stem(64, 5, bias=True, side=32),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        make(WideBranch, 64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(4096, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, num_classes),
    )
