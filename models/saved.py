"""Networks from plain values, as a file can hold them, and from the files that a training run leaves."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

import anodev2
from anodev2 import Adjoint, Dynamics

from . import NETWORKS
from .files import facts, weights_file


def made_from(network: Mapping[str, Any]) -> nn.Module:
    """The network that plain values describe: ``{"model": "resnet4", "num_classes": 10, "block": "ode", "steps": 5, ...}``.

    Args:
        network: the network's name and its arguments. A dynamics or an adjoint is its class and the arguments of that:
            ``{"class": "Galerkin", "basis": "fourier", "size": 3}``.

    Raises:
        ValueError: an unknown network, argument or class, with the nearest known one.
    """
    options = dict(network)
    name = options.pop("model", None)
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}{_nearest(name, NETWORKS)}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](**{key: _object(value) if isinstance(value, Mapping) else value for key, value in options.items()})


def load(run: str | Path) -> nn.Module:
    """The network of a training run, in evaluation mode, with its weights of the best epoch.

    Args:
        run: the folder of a run of examples/train_cifar.py, or one of its files best.safetensors and last.safetensors; or "resnet4" or
            "resnet10", whose weights come with the library.

    Raises:
        ValueError: what is there holds no weights of a network.
        ImportError: safetensors is not installed.
    """
    from safetensors.torch import load_file

    network = made_from(facts(run)["network"])
    weights = load_file(str(weights_file(run)))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{weights_file(run)} does not hold the weights of the network that it describes: {error}") from None
    return network.eval()


def _object(described: Mapping[str, Any]) -> Any:
    arguments = dict(described)
    name = arguments.pop("class", None)
    kind = getattr(anodev2, name, None) if name in anodev2.__all__ else None
    if not isinstance(kind, type) or not issubclass(kind, Dynamics | Adjoint):
        raise ValueError(f"there is no dynamics or adjoint {name!r}{_nearest(name, anodev2.__all__)}")
    return kind(**arguments)


def _nearest(name: Any, known: Any) -> str:
    near = get_close_matches(str(name), list(known), 1)
    return f", did you mean {near[0]!r}" if near else ""
