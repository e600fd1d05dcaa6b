"""What moving weights are worth: FashionMNIST at 14x14 or CIFAR-10 at 16x16, one body of five steps in many kinds, paired seeds.

    python -m benchmarks.depth                                  # all kinds, 16 channels, ten seeds: goes on where it was stopped
    python -m benchmarks.depth --sizes 8 32 --seeds 3
    python -m benchmarks.depth --data cifar10 --seeds 5
    python -m benchmarks.depth --report                         # table and picture of the runs that are there

Runs of one seed see the same images in the same order and start alike wherever shapes allow. They go seed by seed, so that what is
there when they are stopped is a table of pairs. A run of 16 channels takes about 25 seconds of one core; each is a row of depth.csv.
The images are read or downloaded as by train_cifar.py (examples/images.py). Writes depth.csv, depth.md and depth.png.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import scripts  # noqa: F401 (finds the examples)
from images import load_images
from options import DIFFERENT, Count, Rule, mistakes_told, parse

from .networks import KINDS, network
from .report import COLUMNS, KEY, read, report

BATCH = 128
RATE = 0.01  # the highest of Adam's; it rises for a fifth of the steps and falls to 0
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def pooled(name: str, data_dir: Path) -> Data:
    """x_train, y_train, x_test, y_test: means of 2x2 pixels (of FashionMNIST without margin), of mean 0 and deviation 1 in training."""
    data = load_images(name, data_dir, torch.device("cpu"))
    grey = name == "fashion"
    cut = (slice(None), slice(2, -2), slice(2, -2), slice(1)) if grey else ()
    parts = [F.avg_pool2d(x[cut].movedim(-1, 1).float(), 2) for x in (data.x_train, data.x_test)]
    std, mean = torch.std_mean(parts[0], (0, 2, 3), keepdim=True)
    train, test = ((part - mean) / std for part in parts)
    return train, data.y_train, test, data.y_test


def order(count: int, images: int, seed: int) -> Tensor:
    """Numbers of images, all of them again and again in another order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-images // count))])[:images]


def run(kind: str, channels: int, seed: int, images: int, data: Data) -> dict[str, str]:
    """Train one network and test it: a row of the table but for the name of its data."""
    x_train, y_train, x_test, y_test = data
    model = network(kind, channels, seed, x_train.shape[1])
    compiled = torch.compile(model)  # half the time; the code is that of the first network of its kind and size
    begin, steps = time.process_time(), images // BATCH
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    losses = []
    for batch in order(len(y_train), steps * BATCH, seed).split(BATCH):
        loss = F.cross_entropy(compiled(x_train[batch]), y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).sum().item() for x, y in zip(x_test.split(500), y_test.split(500), strict=True)]
    values = {
        "kind": kind,
        "channels": channels,
        "seed": seed,
        "images": steps * BATCH,
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": f"{100 * sum(right) / len(y_test):.2f}",
        "loss": f"{sum(losses[-50:]) / 50:.4f}",
        "cpu_seconds": f"{time.process_time() - begin:.0f}",
    }
    return {name: str(value) for name, value in values.items()}


KNOWN = Rule(f"some of {', '.join(KINDS)}", lambda kinds: {*kinds} <= {*KINDS})


@dataclass(frozen=True)
class Config:
    """What moving weights are worth, on small images."""

    data: Literal["fashion", "cifar10"] = "fashion"
    """FashionMNIST at 14x14 or CIFAR-10 at 16x16"""
    kinds: Annotated[tuple[str, ...], KNOWN] = tuple(KINDS)
    """of bodies"""
    sizes: Annotated[tuple[Count, ...], DIFFERENT] = (16,)
    """channels"""
    seeds: Count = 10
    """so many, from 0 on"""
    images: Count = 64_000
    """images that are seen in training"""
    threads: Count = 1
    """of PyTorch"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    out: Path = Path(__file__).parent.parent / "results"
    """folder of depth.csv, depth.md and depth.png"""
    report: bool = False
    """train nothing: table and picture of the runs that are there"""


def main(argv: list[str] | None = None) -> None:
    with mistakes_told():
        measure(parse(Config, argv)[0])


def measure(options: Config) -> None:
    torch.set_num_threads(options.threads)
    torch.compiler.config.recompile_limit = 1000
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "depth.csv"
    done = {tuple(row[name] for name in KEY) for row in read(path)}
    wanted = [(kind, size, seed) for seed in range(options.seeds) for size in options.sizes for kind in options.kinds]
    images = options.images // BATCH * BATCH
    wanted = [(k, c, s) for k, c, s in wanted if (options.data, str(images), k, str(c), str(s)) not in done and not options.report]
    data = pooled(options.data, options.data_dir) if wanted else None
    for kind, size, seed in wanted:
        assert data is not None
        row = {"data": options.data, **run(kind, size, seed, images, data)}
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    report(path)


if __name__ == "__main__":
    main()
