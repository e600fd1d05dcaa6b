"""What tests of gradients compare: systems of every kind of state, the checkpointing adjoints, and when two outcomes agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from anodev2 import CheckpointAdjoint, CoupledSystem, odeint
from problems import MLP, Pendulum, Rates, pendulum_state


def coupled_tensor() -> tuple[nn.Module, Any]:
    f = lambda t, z, theta: torch.tanh(z @ theta["w"] + theta["b"])
    theta = {"w": torch.randn(4, 4, dtype=torch.float64, requires_grad=True), "b": torch.randn(4, dtype=torch.float64, requires_grad=True)}
    return CoupledSystem(f, Rates()), (torch.randn(3, 4, dtype=torch.float64, requires_grad=True), theta)


def coupled_dict() -> tuple[nn.Module, Any]:
    def f(t: Tensor, z: dict[str, Tensor], theta: Tensor) -> dict[str, Tensor]:
        return {"p": -theta * z["q"], "q": z["p"]}

    def q(t: Tensor, theta: Tensor, z: dict[str, Tensor]) -> Tensor:
        return -(z["q"] ** 2).mean() * theta

    z0 = {name: torch.randn(5, dtype=torch.float64, requires_grad=True) for name in "qp"}
    return CoupledSystem(f, q), (z0, torch.tensor(2.0, dtype=torch.float64, requires_grad=True))


SYSTEMS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "tensor": lambda: (MLP(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)),
    "dict": lambda: (Pendulum(), pendulum_state()),
    "coupled tensor": coupled_tensor,
    "coupled dict": coupled_dict,
}


CHECKPOINTS = (CheckpointAdjoint(), CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1MB"))  # a graph that lasts, none, all of it


def agree(ends: list[Any]) -> bool:
    """Whether all are the first, to the bit."""
    leaves = [tree_leaves(end) for end in ends]
    return all(len(own) == len(leaves[0]) and all(map(torch.equal, own, leaves[0])) for own in leaves)


def gradients(func: Any, y0: Any, t: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Of a loss that reads every output time: with respect to the state and to the parameters."""
    ys = odeint(func, y0, t, **options)
    loss = torch.stack([(leaf.abs() ** 2).sum() + leaf.real[1:].sin().sum() for leaf in tree_leaves(ys)]).sum()
    state, parameters = tree_leaves(y0), list(func.parameters())
    found = torch.autograd.grad(loss, [*state, *parameters])
    return list(found[: len(state)]), list(found[len(state) :])
