"""CIFAR classifiers whose shape-preserving blocks are residual, ODEs or coupled ODEs."""

from collections.abc import Callable

from torch import nn

from .alexnet import alexnet
from .resnet import resnet4, resnet10, resnet18
from .squeezenext import squeezenext

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet4": resnet4,
    "resnet10": resnet10,
    "alexnet": alexnet,
    "resnet18": resnet18,
    "squeezenext": squeezenext,
}

__all__ = ["MODELS", "alexnet", "resnet4", "resnet10", "resnet18", "squeezenext"]
