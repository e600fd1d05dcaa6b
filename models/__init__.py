"""CIFAR classifiers; every shape-preserving block is residual, an ODE or a coupled ODE."""

from collections.abc import Callable

from torch import nn

from .alexnet import alexnet
from .resnet import resnet4, resnet10

MODELS: dict[str, Callable[..., nn.Module]] = {"resnet4": resnet4, "resnet10": resnet10, "alexnet": alexnet}

__all__ = ["MODELS", "alexnet", "resnet4", "resnet10"]
