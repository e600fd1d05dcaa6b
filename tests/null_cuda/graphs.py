"""Launches of a training step of examples/train_cifar.py that is replayed from a graph; rows are options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import train_cifar
from cuda_graph import WARM
from images import Images, load_images
from ranks import Ranks
from stacked import Stacked
from tests.null_cuda.told import Told, told
from training import Training, train_epoch

BATCH = 4
MORE = 10  # batches by which one epoch is longer than the other


def answer(row: str) -> dict[str, float]:
    """Per step, what an epoch launches more and waits longer for so many batches more; and launches of an epoch as a whole."""
    device = torch.device("cuda")
    config = train_cifar.settled(["--device", "cuda", "--batch-size", f"{BATCH}", "--epochs", "9", "--lr", "1e-3", *row.split()])
    images = load_images("mini", Path(), device, 4 * BATCH * (MORE + 1))
    runs = [Training(dataclasses.replace(config, seeds=(seed,)), Path(), Ranks(device), images) for seed in config.seeds]
    train = Stacked(runs).train_epoch if config.stack else partial(train_epoch, runs[0])
    epoch(train, runs, images, WARM + 1)
    short, long = (epoch(train, runs, images, count) for count in (2, 2 + MORE))
    return {
        "launches": (long.launches - short.launches) / MORE,
        "waits": (len(long.waits) - len(short.waits)) / MORE,
        "graphs": (long.launched["launch graph"] - short.launched["launch graph"]) / MORE,
        "of an epoch": short.launches - 2 * (long.launches - short.launches) / MORE,
    }


def epoch(train: Callable[[], object], runs: list[Training], images: Images, batches: int) -> Told:
    count = BATCH * batches
    for run in runs:
        run.images = dataclasses.replace(images, x_train=images.x_train[:count], y_train=images.y_train[:count])
    with told() as seen:
        train()
    return seen
