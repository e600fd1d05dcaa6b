"""Small labelled images as tensors: loading, caching, and augmentation of whole batches."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MINI = Path(__file__).parent / "data" / "cifar10_mini.npz"
NAMES = ("x_train", "y_train", "x_test", "y_test")
Arrays = dict[str, Any]


class DataError(Exception):
    """A data set that cannot be had, in one sentence for the user."""


@dataclass
class Images:
    """Training and test images on a device, normalised per channel: x (n, 3, 32, 32) float32, y (n,) int64."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def load_images(data: str, data_dir: Path, device: torch.device) -> Images:
    """``data``: "mini" (in this repository), "cifar10", "cifar100", or a folder with one folder of images per class."""
    if data == "mini":
        arrays = _read(MINI)
    elif data in ("cifar10", "cifar100"):
        arrays = _cifar(data, data_dir)
    elif Path(data).is_dir():
        arrays = _folder(Path(data))
    else:
        raise DataError(f"--data {data!r} is neither mini, cifar10, cifar100 nor a folder with one folder of images per class")
    x_train, x_test = (torch.from_numpy(arrays[name]).to(device).permute(0, 3, 1, 2).float() for name in ("x_train", "x_test"))
    y_train, y_test = (torch.from_numpy(arrays[name]).to(device).long() for name in ("y_train", "y_test"))
    mean, std = x_train.mean((0, 2, 3), keepdim=True), x_train.std((0, 2, 3), keepdim=True)
    return Images((x_train - mean) / std, y_train, (x_test - mean) / std, y_test)


def _read(path: Path) -> Arrays:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in NAMES}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not a readable image file with arrays {', '.join(NAMES)}; delete it to make it anew ({error})"
        ) from None


def _cifar(name: str, data_dir: Path) -> Arrays:
    """The decoded arrays from ``data_dir/NAME.npz``, else downloaded by torchvision and kept there."""
    cache = data_dir / f"{name}.npz"
    if cache.exists():
        return _read(cache)
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    arrays: Arrays = {}
    print(f"downloading {name} to {data_dir} (once)")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # urllib's progress and torchvision's warnings end up in the sentence below
            for part, train in (("train", True), ("test", False)):
                dataset = kind(str(data_dir), train=train, download=True)
                arrays |= {f"x_{part}": dataset.data, f"y_{part}": np.asarray(dataset.targets, dtype=np.int64)}
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {cache} and could not be downloaded ({error}); try --data mini, or copy the file there"
        ) from None
    partial = cache.with_suffix(f".{os.getpid()}.npz")
    np.savez(partial, **arrays)
    os.replace(partial, cache)
    return arrays


def _folder(folder: Path) -> Arrays:
    """FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val); without these, every fifth image of FOLDER/CLASS/* is for testing."""
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test is not None:
        (x_train, y_train, classes), (x_test, y_test, others) = _decode(folder / "train"), _decode(test)
        if classes != others:
            raise DataError(f"{folder / 'train'} and {test} have different class folders: {classes} and {others}")
        return dict(zip(NAMES, (x_train, y_train, x_test, y_test), strict=True))
    x, y, _ = _decode(folder)
    if len(y) < 5:
        raise DataError(f"{folder} holds {len(y)} images, too few to train and test")
    held_out = np.arange(len(y)) % 5 == 4
    return dict(zip(NAMES, (x[~held_out], y[~held_out], x[held_out], y[held_out]), strict=True))


def _decode(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        dataset = ImageFolder(str(folder), transform=lambda image: np.asarray(image.resize((32, 32))))
        pairs = [dataset[i] for i in range(len(dataset))]
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{folder} holds no images in class folders: {str(error).splitlines()[0]}") from None
    return np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs], dtype=np.int64), dataset.classes


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image of the batch shifted by up to ``padding`` pixels (zeros come in) and mirrored with probability 1/2."""
    count, _, height, width = x.shape
    shift = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator).to(x.device)
    mirror = (torch.rand(count, 1, generator=generator) < 0.5).to(x.device)
    rows = shift[0] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    columns = shift[1] + torch.where(mirror, columns.flip(0), columns)
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    batch = torch.arange(count, device=x.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
