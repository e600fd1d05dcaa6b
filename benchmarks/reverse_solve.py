"""How wrong the gradients of the reverse solve are, in networks as trained here: python benchmarks/reverse_solve.py [RUN ...]

For each run folder of train_cifar.py with ODE blocks (none: an untrained ResNet-4), on one batch of its training images: the relative error
and the cosine of adjoint="backsolve" against the exact gradient, of the block's parameters and of the layers below it, and how far from
the block's input the reverse solve ends. The weights are those after training; the number of steps is varied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

import scripts  # noqa: F401 # isort: split
from anodev2 import ODEBlock
from anodev2.models import NETWORKS
from images import Images, load_images
from options import AUTO, script
from ranks import choose_device
from runs import load_checkpoint, read_json
from settings import Config


def gradients(model: nn.Module, images: Images) -> list[tuple[str, Tensor]]:
    x, y = images.normalised(images.x_train[:128]).double(), images.y_train[:128]
    model.double().train().zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    return [(name, p.grad.flatten()) for name, p in model.named_parameters() if p.grad is not None]


def first_block(model: nn.Module) -> int:
    return next(i for i, part in enumerate(model.children()) if isinstance(part, ODEBlock))


@torch.no_grad()
def missed(model: nn.Module, images: Images) -> float:
    """|z - z(0)| / |z(1) - z(0)| of the first block, z found by stepping Euler back from z(1), in training mode as in the pass backward."""
    layers = list(model.children())
    block = layers[first_block(model)]
    assert isinstance(block, ODEBlock)
    z0 = nn.Sequential(*layers[: first_block(model)])(images.normalised(images.x_train[:128]).double())
    z = end = block(z0)
    for step in reversed(range(block.steps)):
        z = z - block.f(1.0, z, step=step) / block.steps
    return ((z - z0).norm() / (end - z0).norm()).item()


def compare(config: Config, weights: dict[str, Tensor] | None, steps: int, images: Images) -> str:
    torch.manual_seed(0)
    exact = NETWORKS[config.model](images.classes, block="ode", steps=steps, norm=config.norm)
    reverse = NETWORKS[config.model](images.classes, block="ode", steps=steps, norm=config.norm, adjoint="backsolve")
    for model in (exact, reverse):
        model.load_state_dict(exact.state_dict() if weights is None else weights)
        model.to(images.y_train.device)
    place, found, words = first_block(exact), [gradients(model, images) for model in (exact, reverse)], []
    for parts in ({place}, set(range(place))):
        a, b = (torch.cat([g for name, g in grads if int(name.split(".")[0]) in parts]) for grads in found)
        words += [(b - a).norm() / a.norm(), a @ b / a.norm() / b.norm()]
    return " | ".join(f"{word:.3f}" for word in [*words, missed(exact, images)])


@dataclass(frozen=True)
class Runs:
    """The runs to look at."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders of train_cifar.py with ODE blocks; none: an untrained ResNet-4"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""


def main(runs: tuple[Path, ...], device: str = "cpu") -> None:
    where = choose_device(device)
    print("| weights | norm | steps | block: relative error | cosine | below: relative error | cosine | z missed by |")
    print("|---|---|---|---|---|---|---|---|")
    for run in runs or (None,):
        name = "untrained" if run is None else run.name
        config, weights, steps = Config(block="ode"), None, (1, 2, 5, 10, 20)
        if run is not None:
            saved = read_json(run / "config.json", str(run))
            config = Config(**{name: saved[name] for name in ("data", "model", "steps", "norm")}, data_dir=Path(saved["data_dir"]))
            weights = load_checkpoint(run / "last.pt")["model"]
            steps = (config.steps,)
        images = load_images(config.data, config.data_dir, where, 1000)
        for n in steps:
            print(f"| {name} | {config.norm} | {n} | {compare(config, weights, n, images)} |", flush=True)


if __name__ == "__main__":
    script(main, __doc__, Runs)
