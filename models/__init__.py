"""CIFAR classifiers whose shape-preserving blocks are residual, ODEs or coupled ODEs."""

if __name__ == "models":  # the folder in a checkout: the same modules as anodev2.models, not copies of them
    import sys
    from importlib import import_module

    import_module("anodev2.models")
    sys.modules |= {name.removeprefix("anodev2."): module for name, module in sys.modules.items() if name.startswith("anodev2.models")}

from collections.abc import Callable

from torch import nn

from .alexnet import alexnet
from .resnet import resnet4, resnet10, resnet18
from .squeezenext import squeezenext
from .tiny import tiny
from .vit import vit

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet4": resnet4,
    "resnet10": resnet10,
    "alexnet": alexnet,
    "resnet18": resnet18,
    "squeezenext": squeezenext,
}  # of the papers
NETWORKS: dict[str, Callable[..., nn.Module]] = {**MODELS, "tiny": tiny, "vit": vit}

from .saved import facts, load, made_from

__all__ = ["MODELS", "NETWORKS", "alexnet", "facts", "load", "made_from", "resnet4", "resnet10", "resnet18", "squeezenext", "tiny", "vit"]
