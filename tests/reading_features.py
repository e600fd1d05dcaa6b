"""Blocks whose weights read the features, of every kind, and each sample of them by itself."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import (
    CoupledODEBlock,
    CoupledSystem,
    Dynamics,
    NeuralDynamics,
)

BATCH = 3


class Layers(nn.Module):
    """Linear layers alone, on vectors or on rows of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, t: Tensor, z: Tensor, *, step: int) -> Tensor:
        return self.b(torch.tanh(self.a(z))) * (1 + t) + 0.1 * step


class Product(nn.Module):
    """The weight itself, in an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("...i,ji->...j", z, self.w)) * torch.cos(t)


class Turned(nn.Module):
    """The batch is not in front of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.a(z.transpose(0, 1)).transpose(0, 1).cumsum(1)


class Images(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(4, 6, 3, padding=1, groups=2), norm(), nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.a(z))))


class Pair(nn.Module):
    """A tree of features, and a weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = self.a

    def forward(self, t: Tensor, z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"q": self.a(z["p"]), "p": -self.b(torch.sin(z["q"]))}


class Rule(nn.Module):
    """Every weight is drawn to a multiple of a nonlinear mean of its sample's features."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7))

    def forward(self, t: Tensor, theta: dict[str, Tensor], z: Any) -> dict[str, Tensor]:
        first = z["q"] if isinstance(z, dict) else z
        mean = torch.tanh(first.flatten(1).square().mean(1) + t)
        return {name: self.rate * mean.view(-1, *[1] * (w.ndim - 1)) * torch.cos(w) - 0.3 * w for name, w in theta.items()}


class Momentum(Dynamics):
    """theta' = v, v' = z's mean - theta: a state of its own beside the weights."""

    reads_features = True

    def start(self, theta: dict[str, Tensor]) -> Any:
        return theta, {name: torch.zeros_like(w) for name, w in theta.items()}

    def weights(self, state: Any) -> dict[str, Tensor]:
        return state[0]

    def forward(self, t: Any, theta: Any, z: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        pull = z.flatten(1).mean(1)
        return theta[1], {name: pull.view(-1, *[1] * (w.ndim - 1)) - w for name, w in theta[0].items()}


def features(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, dtype=torch.float64)


# f, dynamics, z, whether the samples go through f together
CASES: dict[str, Callable[[], tuple[nn.Module, Dynamics, Any, bool]]] = {
    "vectors": lambda: (Layers(), NeuralDynamics(Rule()), features(4), True),
    "rows": lambda: (Layers(), NeuralDynamics(Rule()), features(5, 2, 4), True),
    "einsum": lambda: (Product(), NeuralDynamics(Rule()), features(4), False),
    "turned": lambda: (Turned(), NeuralDynamics(Rule()), features(BATCH, 4), False),
    "images": lambda: (Images(nn.Identity), NeuralDynamics(Rule()), features(4, 5, 5), True),
    "tree": lambda: (Pair(), NeuralDynamics(Rule()), {"q": features(4), "p": features(4)}, True),
    "momentum": lambda: (Product(), Momentum(), features(4), False),
}


def made(case: str, **options: Any) -> tuple[CoupledODEBlock, Any, bool]:
    torch.manual_seed(0)
    f, dynamics, z, together = CASES[case]()
    return CoupledODEBlock(f.double(), dynamics.double(), **{"steps": 4, **options}), z, together


def called(f: nn.Module, weights: dict[str, Tensor], *args: Any) -> Any:
    """A copy of f that holds the weights as plain attributes."""
    copy = deepcopy(f)
    for name, weight in weights.items():
        owner, _, key = name.rpartition(".")
        del copy.get_submodule(owner)._parameters[key]
        setattr(copy.get_submodule(owner), key, weight)
    return copy(*args[:2], **args[2])


def leaves(z: Any) -> list[Tensor]:
    return list(z.values()) if isinstance(z, dict) else [z]


def one_by_one(block: CoupledODEBlock, z: Any) -> tuple[CoupledSystem, Any]:
    """f of each sample by itself with its weights, as f(t, z, theta), and q; by a loop."""
    dynamics = block.dynamics

    def sample(z: Any, i: int) -> Any:
        return {key: leaf[i : i + 1] for key, leaf in z.items()} if isinstance(z, dict) else z[i : i + 1]

    def f(t: Tensor, z: Any, theta: Any, *, step: int) -> Any:
        own = dynamics.weights(theta)
        counters = {"step": step} if isinstance(block.f, Layers) else {}
        slopes = [called(block.f, {n: w[i] for n, w in own.items()}, t, sample(z, i), counters) for i in range(BATCH)]
        return {key: torch.cat([slope[key] for slope in slopes]) for key in z} if isinstance(z, dict) else torch.cat(slopes)

    def q(t: Tensor, theta: Any, z: Any) -> Any:
        return dynamics(t, theta, z)

    own: dict[str, Tensor] = dict(block.f.named_parameters())
    return CoupledSystem(f, q), dynamics.start({name: torch.stack([own[name]] * BATCH) for name in block.evolving})
