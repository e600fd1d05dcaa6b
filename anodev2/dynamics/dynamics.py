"""Weight dynamics q: how the weights theta of a block move, dtheta/dt = q(t, theta; p).

A dynamics is a module that maps ``(t, theta)`` to dtheta, both dicts from parameter name to tensor. It may also know
its ``flow`` in closed form, which is then used instead of stepping.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..system import check_call

Theta = dict[str, Tensor]


class Dynamics(nn.Module, ABC):
    """Abstract weight dynamics; subclass it, or wrap a module in ``NeuralDynamics``."""

    def accepts(self, name: str, weight: Tensor) -> bool:
        """Whether this dynamics can evolve a parameter of this name and shape."""
        return weight.is_floating_point()

    def bind(self, theta: Theta) -> None:
        """Make the learnable parameters that depend on which weights evolve; called once by the block."""
        return

    @abstractmethod
    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        """dtheta/dt at time t."""

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        """theta at ``times`` (elapsed since theta), stacked in front, or None where there is no closed form."""
        return None

    def start(self, theta: Theta) -> Any:
        """The state at the start that ``forward`` moves: theta, and whatever else a dynamics carries along."""
        return theta

    def weights(self, state: Any) -> Theta:
        """theta in such a state."""
        return state


class Static(Dynamics):
    """dtheta/dt = 0: the weights of a neural ODE, theta(t) = theta(0) to the bit."""

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        return {name: torch.zeros_like(weight) for name, weight in theta.items()}

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta:
        return {name: weight.expand(len(times), *weight.shape) for name, weight in theta.items()}


class NeuralDynamics(Dynamics):
    """dtheta/dt = module(t, theta): a user's own module (or function), theta a dict from parameter name to tensor.

    Args:
        module: returns a dict with the names and shapes of theta; its parameters are trained with the block's.
    """

    def __init__(self, module: Callable[[Any, Theta], Theta]) -> None:
        super().__init__()
        if not callable(module):
            raise TypeError(f"module must be callable as module(t, theta), got {type(module).__name__}")
        check_call("module", module, "t", "theta")
        self.module = module

    def forward(self, t: Tensor | float, theta: Theta) -> Theta:
        return self.module(t, theta)


def parameter_key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict key may not contain a dot


def refuse_another(dynamics: Dynamics, parameters: nn.ParameterDict) -> None:
    """A dynamics whose parameters are made already belongs to a block."""
    if len(parameters):
        raise ValueError(f"this {type(dynamics).__name__} already evolves another block's weights; give each block a copy.deepcopy of it")
