"""Weight dynamics q: how the weights theta of a block move, dtheta/dt = q(t, theta; p).

A dynamics is a module that maps ``(t, theta)`` to dtheta, both dicts from parameter name to tensor. It may also know
its ``flow`` in closed form, which is then used instead of stepping. One that reads the features maps ``(t, theta, z)``, theta
with the batch in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from ..signature import signature_of
from ..system import check_call, takes_z

Theta = dict[str, Tensor]


class Dynamics(nn.Module, ABC):
    """Abstract weight dynamics; subclass it, or wrap a module in ``NeuralDynamics``.

    With ``reads_features = True`` it is called as (t, theta, z): each sample has weights of its own, theta is a dict of tensors
    (batch, *weight.shape), z is what f gets, and both are solved jointly; there is no ``flow`` then.
    """

    reads_features: bool = False

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

    def fit(self, path: Theta, times: Sequence[float]) -> Theta | None:
        """Set the parameters so that theta passes near ``path``, theta at ``times`` stacked in front, and return theta at the start.

        A good guess is enough; None: no better one than the parameters as they are and the first of the path. Called by ``convert``.
        """
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
    """dtheta/dt = module(t, theta) or module(t, theta, z): a user's own module (or function), theta a dict from parameter name to tensor.

    Args:
        module: returns a dict with the names and shapes of theta; its parameters are trained with the block's. One that reads the
            features z gets theta of each sample, (batch, *weight.shape), and returns its slope in that shape; arguments that are
            named the other way round, (t, z, theta), are handed over as they are named.
        reads_z: whether module takes z. None reads it off its signature (a third positional parameter without default).

    Raises:
        TypeError: module takes neither (t, theta) nor (t, theta, z), or its names leave open which is which and there is no ``reads_z``.
    """

    def __init__(self, module: Callable[..., Theta], *, reads_z: bool | None = None) -> None:
        super().__init__()
        if not callable(module):
            raise TypeError(f"module must be callable as module(t, theta), got {type(module).__name__}")
        self.reads_features = _takes_z(module) if reads_z is None else reads_z
        z_first = check_call("module", module, "t", "theta", *["z"] * self.reads_features)
        if self.reads_features and z_first is None and reads_z is None:
            raise TypeError(
                f"module{signature_of(module)} does not tell which of its arguments is z: name them theta and z, or pass reads_z=True to "
                "have it called as module(t, theta, z)"
            )
        self._z_first = self.reads_features and z_first is True
        self.module = module

    def forward(self, t: Tensor | float, theta: Theta, *z: Any) -> Theta:
        return self.module(t, *z, theta) if self._z_first else self.module(t, theta, *z)


def _takes_z(module: Callable[..., Any]) -> bool:
    signature = signature_of(module)
    kinds = [] if signature is None else [(p.kind, p.default is p.empty) for p in signature.parameters.values()]
    positional = [required for kind, required in kinds if kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3 and takes_z(module)


def parameter_key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict key may not contain a dot


def refuse_another(dynamics: Dynamics, parameters: nn.ParameterDict) -> None:
    """A dynamics whose parameters are made already belongs to a block."""
    if len(parameters):
        raise ValueError(f"this {type(dynamics).__name__} already evolves another block's weights; give each block a copy.deepcopy of it")
