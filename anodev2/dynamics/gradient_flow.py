"""Weights that learn while they are used: the gradient flow of an inner loss, test-time training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad, vmap

from ..signature import signature_of
from .dynamics import Theta
from .learning_rule import LearningRule


class GradientFlow(LearningRule):
    """dtheta/dt = -rate dloss(theta, z)/dtheta, for each sample its own; one Euler step of size 1 is a step of gradient descent.

    The gradient inside is by ``torch.func.grad``, and what a block learns is differentiated through it exactly. ``torch.func.grad``
    refuses saved-tensor hooks, so that ``adjoint="checkpoint"`` keeps states in slots here, with the same gradients.

    Args:
        loss: called as loss(theta, z) for one sample, theta a dict from parameter name to tensor of the shapes in f, z without the batch;
            returns one number. Its parameters, if it is a module, are trained with the block's.
        rate: of learning, per unit of t, at the start of training; trained, one per weight.

    Weights of any shape are accepted.

    Raises:
        TypeError: a loss that cannot be called so.

    Source: Sun et al., Learning to (Learn at Test Time), ICML 2025 (arXiv 2407.04620).
    """

    def __init__(self, loss: Callable[[Theta, Any], Tensor], rate: float = 1.0) -> None:
        super().__init__(rate)
        signature = signature_of(loss) if callable(loss) else None
        try:
            if signature is not None:
                signature.bind("theta", "z")
        except TypeError as error:
            raise TypeError(f"loss must be callable as loss(theta, z), got loss{signature}: {error}") from None
        if not callable(loss):
            raise TypeError(f"loss must be callable as loss(theta, z), got {type(loss).__name__}")
        self.loss = loss

    def accepts(self, name: str, weight: Tensor) -> bool:
        """All floating weights."""
        return weight.is_floating_point()

    def changes(self, t: Tensor | float, theta: Theta, z: Any) -> Theta:
        slopes = vmap(grad(self.loss), in_dims=(0, 0), randomness="different")(theta, z)
        return {name: -slope for name, slope in slopes.items()}
