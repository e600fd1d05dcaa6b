"""A trained stack of residual blocks made one coupled block: how much accuracy is left, and what fine-tuning brings back.

    python examples/convert.py                                   # 2,000 images of CIFAR-10, some minutes on one core
    python examples/convert.py --data fashion --seeds 0 1 2      # FashionMNIST

A stack of five residual blocks of 16 channels is trained; ``anodev2.convert`` makes one block of it whose weights follow a dynamics, for
several dynamics; each is then trained on for some epochs, beside a network of the same kind that has been trained from the start for as
many epochs as both together. Norms and statistics stay each step's own. Printed: parameters of the body, the mean error of a layer's
weights, and test accuracy in %, mean (min/max) of the seeds.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from anodev2 import Dynamics, Galerkin, LowRank, ReactionDiffusionAdvection, Templates, convert
from anodev2.models.blocks import BasicBranch, ResidualBlock
from images import Images, load_images
from options import AUTO, Count, Positive, Seeds, mistakes_told, parse
from ranks import choose_device

LAYERS, CHANNELS, BATCH = 5, 16, 64
DYNAMICS: dict[str, Callable[[], Dynamics]] = {
    'Galerkin("constant", 5)': lambda: Galerkin("constant", LAYERS, length=LAYERS),  # a piece per layer: nothing is lost
    "Templates(2, 5)": lambda: Templates(2, LAYERS, length=LAYERS),
    'Galerkin("chebyshev", 2)': lambda: Galerkin("chebyshev", 2, length=LAYERS),
    "LowRank(4)": lambda: LowRank(4, length=LAYERS),
    "ReactionDiffusionAdvection()": ReactionDiffusionAdvection,
}


@dataclass(frozen=True)
class Config:
    """Train a stack of residual blocks, convert it to coupled blocks, and train on."""

    data: str = "mini"
    """as for train_cifar.py"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    subset: Count | None = None
    """use only so many training images, and at most so many test images"""
    epochs: Count = 6
    """of the stack"""
    tuning: Count = 2
    """epochs behind the conversion"""
    lr: Positive = 0.01
    """largest learning rate of Adam; a third of it behind the conversion"""
    seeds: Seeds = (0,)
    """of initial weights and the order of images"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""


@dataclass(frozen=True)
class Result:
    """Of one dynamics and seed; accuracies in %."""

    parameters: int
    error: float
    stack: float
    converted: float
    tuned: float
    from_scratch: float


def network(body: nn.Module) -> nn.Sequential:
    """Images of half the size through a stem, the body and a linear layer on means of 8x8."""
    stem = [nn.AvgPool2d(2), nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    return nn.Sequential(*stem, body, nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4 * CHANNELS, 10))


def stack() -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(BasicBranch(CHANNELS)) for _ in range(LAYERS)))


def train(model: nn.Module, data: Images, epochs: int, lr: float, seed: int) -> None:
    """Adam, one cycle of its rate; each epoch in another order."""
    generator = torch.Generator().manual_seed(seed)
    steps = len(data.y_train) // BATCH
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.y_train), generator=generator)[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(model(data.normalised(data.x_train[batch])), data.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    model.eval()
    right = [model(data.normalised(x)).argmax(1) == y for x, y in zip(data.x_test.split(500), data.y_test.split(500), strict=True)]
    return 100 * torch.cat(right).double().mean().item()


def converted(model: nn.Sequential, dynamics: Dynamics) -> tuple[nn.Sequential, float]:
    """A copy with one coupled block for the stack, and the mean error of a layer's weights."""
    found = convert([*model[4].children()], dynamics)
    layers: list[nn.Module] = [copy.deepcopy(layer) for layer in model]
    layers[4] = found.block
    return nn.Sequential(*layers), torch.stack([*found.errors.values()]).mean().item()


def run(config: Config, data: Images, seed: int) -> dict[str, Result]:
    """For each dynamics, all from one trained stack."""
    torch.manual_seed(seed)
    start = network(stack()).to(data.y_train.device)
    model, alike = copy.deepcopy(start), copy.deepcopy(start)
    alike[4] = nn.Sequential(*(copy.deepcopy(start[4].get_submodule("0")) for _ in range(LAYERS)))  # what the fresh dynamics would be
    train(model, data, config.epochs, config.lr, seed)
    trained, results = accuracy(model, data), {}
    for name, make in DYNAMICS.items():
        coupled, error = converted(model, make())
        before = accuracy(coupled, data)
        train(coupled, data, config.tuning, config.lr / 3, seed + 1)
        scratch, _ = converted(alike, make())
        train(scratch, data, config.epochs + config.tuning, config.lr, seed)
        count = sum(p.numel() for p in coupled[4].parameters())
        results[name] = Result(count, error, trained, before, accuracy(coupled, data), accuracy(scratch, data))
    return results


def told(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ({min(values):.2f}/{max(values):.2f})" if len(values) > 1 else "")


def main(argv: list[str] | None = None) -> dict[int, dict[str, Result]]:
    with mistakes_told():
        config, _ = parse(Config, argv)
        data = load_images(config.data, config.data_dir, choose_device(config.device), config.subset)
        found = {seed: run(config, data, seed) for seed in config.seeds}
    whole = sum(p.numel() for p in stack().parameters())
    first = [next(iter(results.values())).stack for results in found.values()]
    print(f"the stack: {whole:,} parameters, {told(first)} % after {config.epochs} epochs; seeds {', '.join(map(str, config.seeds))}\n")
    print("| dynamics | parameters | error of weights | converted | tuned | from scratch |\n|---|---:|---:|---:|---:|---:|")
    for name in DYNAMICS:
        rows = [results[name] for results in found.values()]
        cells = [told([getattr(row, what) for row in rows]) for what in ("error", "converted", "tuned", "from_scratch")]
        print(f"| {name} | {rows[0].parameters:,} | {' | '.join(cells)} |")
    return found


if __name__ == "__main__":
    main()
