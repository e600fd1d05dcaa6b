"""A trained run at a glance: images with what the network sees in them, which classes it takes for which, its curves, its moving weights.

    python examples/look.py runs/resnet4-coupled-mini-0

RUN is the folder of a run of train_cifar.py. The images are those of its test set; the network is that of its best epoch, where one was
chosen, else of its last. Rows of the confusion matrix are the classes of the images, in percent of them; weights are drawn as
|theta(t)| / |theta(0)|.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, diagnose
from anodev2.models import load
from images import Images, load_images
from options import AUTO, Drawing, Seed, drawable, mistakes_told, parse
from ranks import choose_device
from runs import RunError, read_json

SHOWN = 15


@dataclass(frozen=True)
class Config:
    """Draw what a trained network sees in its test images, its curves and its weights."""

    run: tyro.conf.Positional[Path]
    """folder of a run; of several seeds one seed-N in it"""
    out: Drawing = Path("RUN/look.png")
    """where to draw; none: no picture, the numbers alone"""
    seed: Seed = 0
    """of the choice of images"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    with mistakes_told():
        config, given = parse(Config, argv)
        named = drawable(config.out) if "out" in given else None
        network = load(config.run).to(choose_device(config.device))
        picture = named if "out" in given else drawable(config.run / "look.png")
        images, rows = images_of(config.run, choose_device(config.device)), history(config.run)
        confusion = confused(network, images)
        accuracy = 100 * (confusion.diagonal().sum() / confusion.sum()).item()
        print(f"{confusion.sum()} test images, {accuracy:.2f} % right")
        for true, seen, count in mistaken(confusion)[:3]:
            print(f"  {images.names[true]} taken for {images.names[seen]}: {count} of {confusion[true].sum()}")
        if picture is not None:
            figure(network, images, confusion, rows, config.seed).savefig(picture, dpi=100)
            print(f"picture: {picture}")
        print(f"next:    python examples/predict.py {config.run} IMAGE...")
        return {"accuracy": accuracy, "confusion": confusion}


def images_of(run: Path, device: torch.device) -> Images:
    """The images that the run was trained on and tested with."""
    saved = read_json(run / "config.json", f"{run} is no run folder", "data", "data_dir", "subset", "size", "validation")
    return load_images(saved["data"], Path(saved["data_dir"]), device, saved["subset"], saved["size"], saved["validation"])


def history(run: Path) -> list[dict[str, float]]:
    try:
        text = (run / "metrics.csv").read_text()
    except OSError:
        raise RunError(f"{run} has no metrics.csv: no epoch of the run is over") from None
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(text.splitlines())]


@torch.no_grad()
def seen_in(network: nn.Module, images: Images, x: Tensor) -> Tensor:
    """(number of images, number of classes) probabilities."""
    network.eval()
    return torch.cat([network(images.normalised(part)).softmax(1) for part in x.split(500)])


def confused(network: nn.Module, images: Images) -> Tensor:
    """How many test images of class i are taken for class j, (classes, classes)."""
    pairs = images.y_test * images.classes + seen_in(network, images, images.x_test).argmax(1)
    return torch.bincount(pairs.cpu(), minlength=images.classes**2).view(images.classes, images.classes)


def mistaken(confusion: Tensor) -> list[tuple[int, int, int]]:
    """(class, what it is taken for, how often), the most frequent first."""
    found = [(i, j, int(confusion[i, j])) for i in range(len(confusion)) for j in range(len(confusion)) if i != j and confusion[i, j]]
    return sorted(found, key=lambda triple: -triple[2])


def figure(network: nn.Module, images: Images, confusion: Tensor, rows: list[dict[str, float]], seed: int = 0) -> Any:
    """Sample images, confusion matrix, curves, and weights over depth where there are any that move."""
    from matplotlib.figure import Figure

    whole: Any = Figure(figsize=(12, 10), layout="constrained")
    above, below = whole.subfigures(2, 1, height_ratios=[1, 1.1])
    draw_images(above, network, images, seed)
    matrix, right = below.subfigures(1, 2)
    draw_confusion(matrix.subplots(), confusion, images.names)
    curves, weights = right.subplots(2, 1)
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        if name in rows[0]:
            curves.plot([row["epoch"] for row in rows], [row[name] for row in rows], ".-", label=name.removesuffix("_accuracy"))
    curves.set(xlabel="epoch", ylabel="accuracy in %")
    curves.legend()
    draw_weights(weights, network)
    return whole


def draw_images(place: Any, network: nn.Module, images: Images, seed: int) -> None:
    chosen = torch.randperm(len(images.y_test), generator=torch.Generator().manual_seed(seed))[:SHOWN]
    best = seen_in(network, images, images.x_test[chosen.to(images.y_test.device)]).cpu().max(1)
    grid = place.subplots(3, SHOWN // 3)
    for axis in grid.flat:
        axis.axis("off")
    for axis, number, value, seen in zip(grid.flat, chosen.tolist(), best.values.tolist(), best.indices.tolist(), strict=False):
        true = int(images.y_test[number])
        axis.imshow(images.x_test[number].cpu().numpy())
        words = f"{images.names[seen]} {value:.0%}" + ("" if seen == true else f"\n({images.names[true]})")
        axis.set_title(words, fontsize=8, color="#0072B2" if seen == true else "#D55E00")


def draw_confusion(ax: Any, confusion: Tensor, names: tuple[str, ...]) -> None:
    share = 100 * confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    ax.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    ax.set(xlabel="seen", ylabel="class", title="% of each class")
    if len(names) <= 20:
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
    if len(names) <= 12:
        for i, row in enumerate(share.tolist()):
            for j, value in enumerate(row):
                ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 50 else "#222222")


def draw_weights(ax: Any, network: nn.Module) -> None:
    moving = {name: block for name, block in network.named_modules() if isinstance(block, CoupledODEBlock) and block.evolving}
    for name, block in moving.items():
        path = diagnose.weight_path(block, 21)
        for weight, norms in path.norms.items():
            ax.plot(path.times, (norms / norms[0]).numpy(), ".-", label=f"{name}.{weight}")
    ax.set(xlabel="t", ylabel="|θ(t)| / |θ(0)|", title="weights over depth" if moving else "no weights that move")
    if moving:
        ax.legend(fontsize=7)


if __name__ == "__main__":
    main()
