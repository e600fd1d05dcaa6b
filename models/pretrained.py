"""``pretrained=True``: weights that come with the library, trained on the 2,000 images in examples/data (models/trained/README.md)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from typing import Any

from torch import nn

from anodev2 import ReactionDiffusionAdvection

from .blocks import BlockMaker
from .files import TRAINED, facts

SAME = ("block", "steps", "norm", "time", "weights")  # what weights must have been trained with to be of use


def pretrainable(make: Callable[..., nn.Sequential]) -> Callable[..., nn.Sequential]:
    """The function of a network with ``pretrained`` as one more argument, and others than it has refused with the one meant."""
    own = [name for name, parameter in inspect.signature(make).parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    known = [*own, "pretrained", *(field.name for field in fields(BlockMaker))]

    @wraps(make)
    def network(num_classes: int = 10, *, pretrained: bool = False, **options: Any) -> nn.Sequential:
        for name in options:
            if name not in known:
                near = get_close_matches(name, known, 1)
                meant = f", did you mean {near[0]!r}" if near else ""
                raise TypeError(f"{make.__name__} has no argument {name!r}{meant}; it has {', '.join(known)}")
        made = make(num_classes, **options)
        if pretrained:
            _give_weights(made, make.__name__, num_classes, options)
        return made

    return network


def _give_weights(made: nn.Sequential, name: str, num_classes: int, options: dict[str, Any]) -> None:
    """Those of the library, but of the last layer where it has other classes."""
    if name not in TRAINED:
        raise ValueError(f"there are no weights of {name}, only of {', '.join(TRAINED)}; train your own")
    from safetensors.torch import load_file

    told = facts(name)["network"]
    asked = {field.name: field.default for field in fields(BlockMaker)} | options
    wanted = {key: asked[key] for key in SAME} | {"method": getattr(asked["method"], "name", asked["method"])}
    other = [f"{key}={told[key]!r}, not {value!r}" for key, value in wanted.items() if value != told[key]]
    if not isinstance(asked["dynamics"], ReactionDiffusionAdvection | None):
        other.append(f"dynamics=None, not {asked['dynamics']}")
    if other:
        raise ValueError(f"the weights of {name} were trained with {'; '.join(other)}: leave that out, or train your own")
    weights, head = load_file(str(TRAINED[name])), f"{len(made) - 1}."
    if num_classes != told["num_classes"]:
        weights |= {head + key: value for key, value in made[-1].state_dict().items()}
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights of {name} are of another network ({error}); train your own") from None
