"""Small labelled images as tensors: loading, caching, and augmentation of whole batches on their device."""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from examples.runs import replacing

MINI = Path(__file__).parent / "data" / "cifar10_mini.npz"
NAMES = ("x_train", "y_train", "x_test", "y_test")
PADDING = 4  # pixels an image is shifted at most
Arrays = dict[str, Any]


class DataError(Exception):
    """A data set that cannot be had, in one sentence for the user."""


@dataclass
class Images:
    """Labelled images on one device: x (n, height, width, 3) uint8, y (n,) int64; mean and std (3,) of the training images."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    std: Tensor
    classes: int

    def normalised(self, x: Tensor) -> Tensor:
        """(n, 3, height, width) float32, the training images of mean 0 and deviation 1 per channel; channels last in memory."""
        return ((x.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def load_images(data: str, data_dir: Path, device: torch.device, subset: int | None = None) -> Images:
    """``data``: "mini" (in this repository), "cifar10", "cifar100", or a folder with one folder of images per class.

    ``subset``: only so many training images, and at most so many test images, spread over the whole set.
    """
    if data == "mini":
        arrays = _read(MINI)
    elif data in ("cifar10", "cifar100"):
        arrays = _cifar(data, data_dir)
    elif Path(data).is_dir():
        arrays = _folder(Path(data))
    else:
        raise DataError(f"--data {data!r} is neither mini, cifar10, cifar100 nor a folder with one folder of images per class")
    classes = int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1
    if subset is not None:
        arrays = {name: array[np.linspace(0, len(array) - 1, min(subset, len(array))).astype(int)] for name, array in arrays.items()}
    mean, std = _statistics(arrays["x_train"])
    x_train, x_test = (torch.from_numpy(arrays[name]).to(device) for name in ("x_train", "x_test"))
    y_train, y_test = (torch.from_numpy(arrays[name]).to(device).long() for name in ("y_train", "y_test"))
    return Images(x_train, y_train, x_test, y_test, mean.to(device), std.to(device), classes)


def _statistics(x: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, from how often each of the 256 values occurs."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for part in np.array_split(x, max(1, len(x) // 1000)):  # bincount makes 8 bytes of every one
        counts += torch.from_numpy(np.stack([np.bincount(part[..., channel].ravel(), minlength=256) for channel in range(3)]))
    share, values = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.float64)
    mean = share @ values
    std = (share @ values**2 - mean**2).sqrt().clamp(min=1.0)
    return mean.float(), std.float()


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
    if not cache.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"):  # one process downloads, the others wait for it
            if not cache.exists():
                arrays = _download(name, data_dir)
                with replacing(cache) as file:
                    np.savez(file, **arrays)
    return _read(cache)


def _download(name: str, data_dir: Path) -> Arrays:
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
            f"{name} is not in {data_dir / name}.npz and could not be downloaded ({error}); try --data mini, or copy the file there"
        ) from None
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


@dataclass
class Draws:
    """What chance decides about n images: shift (2, n) in pixels, mirror (n,) bool, the centre (2, n) of a hole in [0, 1)."""

    shift: Tensor
    mirror: Tensor
    hole: Tensor | None

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.shift[:, part], self.mirror[part], None if self.hole is None else self.hole[:, part])


def drawn(count: int, generator: torch.Generator, device: torch.device, *, cutout: bool = False) -> Draws:
    """Drawn on the CPU, so that every device sees the same images, and moved as a whole, so that none waits for the next batch."""
    shift = torch.randint(-PADDING, PADDING + 1, (2, count), generator=generator)
    mirror = torch.rand(count, generator=generator) < 0.5
    hole = torch.rand(2, count, generator=generator).to(device) if cutout else None
    return Draws(shift.to(device), mirror.to(device), hole)


def augment(x: Tensor, draws: Draws, cutout: int = 0) -> Tensor:
    """Each image (n, 3, height, width) shifted by up to ``PADDING`` pixels, mirrored or not, a square of side ``cutout`` blank.

    Blank is 0, the mean colour, as is what comes in from outside.
    """
    count, _, height, width = x.shape
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    mirrored = torch.where(draws.mirror[:, None], columns.flip(0), columns)
    y, z = PADDING + draws.shift[0, :, None] + rows, PADDING + draws.shift[1, :, None] + mirrored
    padded = F.pad(x, (PADDING,) * 4).permute(0, 2, 3, 1)
    out = padded[torch.arange(count, device=x.device)[:, None, None], y[:, :, None], z[:, None, :]].permute(0, 3, 1, 2)
    if draws.hole is None:
        return out
    low, high = cutout // 2, cutout - cutout // 2
    top, left = ((draws.hole[axis, :, None] * size).floor() for axis, size in enumerate((height, width)))
    down, across = (rows >= top - low) & (rows < top + high), (columns >= left - low) & (columns < left + high)
    return out.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)
