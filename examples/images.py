"""Small labelled images as tensors: loading, caching, and augmentation of whole batches on their device."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import re
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from image_classes import KNOWN
from runs import NotWritten, RunError, in_words, replacing, unharmed

MINI = Path(__file__).parent / "data" / "cifar10_mini.npz"
DOWNLOADED = {"cifar10": 10, "cifar100": 100, "fashion": 10}  # classes
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
NAMES = ("x_train", "y_train", "x_test", "y_test")
TRAINING = ("train", "training")  # names of folders, in any case
HELD_OUT = ("test", "val", "valid", "validation", "testing", "eval", "evaluation", "dev", "holdout")  # the first there is used
AROUND = r"(?:images?|imgs?|set|data|[\W_\d])*"  # what may stand around such a name: train2017, val_images
LIKE_A_PART = re.compile(f"{AROUND}({'|'.join(TRAINING + HELD_OUT)}){AROUND}", re.IGNORECASE)
PADDING = 4  # pixels an image is shifted at most
Arrays = dict[str, Any]


class DataError(RunError):
    """A data set that cannot be had, in one sentence for the user."""


@dataclass
class Images:
    """Labelled images on one device: x (n, height, width, 3) uint8, y (n,) int64; mean and std (3,) of the training images.

    ``x_valid``, ``y_valid``: those on which a choice is made, such as that of an epoch; often none.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    std: Tensor
    classes: int
    names: tuple[str, ...] = ()
    x_valid: Tensor = field(default_factory=lambda: torch.empty(0, 32, 32, 3, dtype=torch.uint8))
    y_valid: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        self.names = self.names or tuple(map(str, range(self.classes)))

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.x_train.shape[1]

    def normalised(self, x: Tensor) -> Tensor:
        """(n, 3, height, width) float32, the training images of mean 0 and deviation 1 per channel; channels last in memory."""
        return ((x.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def load_images(
    data: str, data_dir: Path, device: torch.device, subset: int | None = None, size: int = 32, validation: float = 0.0
) -> Images:
    """``data``: "mini" (in this repository), "cifar10", "cifar100", "fashion" (FashionMNIST), or a folder of images.

    FashionMNIST's 28x28 grey images come as 32x32 in three equal channels, a black border around them: from its idx files (.gz or not)
    where they lie in ``data_dir``, in torchvision's folder below it or in that of Debian's package dataset-fashion-mnist, else downloaded.

    The folder has one folder of images per class, or two such folders: train/ and test/ (or val/, valid/, validation/). Without the
    second, every fifth image is for testing. Each becomes ``size`` pixels high and wide: the shorter side resized, the longer cut at both
    ends; of the sets of 32x32 images 16 are means of 2x2. ``subset``: only so many training images, and at most so many test images, spread
    over the whole set. ``validation``: the share of the training images, of every class alike, that are kept aside as validation images.
    """
    names = KNOWN.get(data, ())
    if data == "mini":
        arrays = read_arrays(MINI, 10)
    elif data in DOWNLOADED:
        arrays = _known(data, data_dir)
    elif Path(data).is_dir():
        arrays, names = _folder(Path(data), size)
    else:
        raise DataError(f"--data {data!r} is neither mini, cifar10, cifar100, fashion nor a folder with one folder of images per class")
    if subset is not None:
        arrays = {name: array[np.linspace(0, len(array) - 1, min(subset, len(array))).astype(int)] for name, array in arrays.items()}
    if size == 16 and data in KNOWN:
        arrays |= {name: _halved(arrays[name]) for name in ("x_train", "x_test")}
    aside = _spread(arrays["y_train"], validation)
    arrays |= {f"{kind}_valid": arrays[f"{kind}_train"][aside] for kind in "xy"}
    arrays |= {f"{kind}_train": arrays[f"{kind}_train"][~aside] for kind in "xy"}
    mean, std = _statistics(arrays["x_train"])
    x_train, x_test, x_valid = (torch.from_numpy(arrays[f"x_{part}"]).to(device) for part in ("train", "test", "valid"))
    y_train, y_test, y_valid = (torch.from_numpy(arrays[f"y_{part}"]).to(device).long() for part in ("train", "test", "valid"))
    return Images(x_train, y_train, x_test, y_test, mean.to(device), std.to(device), len(names), names, x_valid, y_valid)


def _spread(labels: np.ndarray, share: float) -> np.ndarray:
    """Which images make up this share, as many of every class as its size asks for."""
    aside = np.zeros(len(labels), dtype=bool)
    count = round(share * len(labels))
    aside[np.argsort(labels, kind="stable")[np.linspace(0, len(labels) - 1, count + 2).astype(int)[1:-1]]] = True
    return aside


def _halved(x: np.ndarray) -> np.ndarray:
    """Images (n, 32, 32, 3) as (n, 16, 16, 3): means of 2x2 pixels, rounded."""
    sums = x.reshape(len(x), 16, 2, 16, 2, 3).sum((2, 4), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


def _statistics(x: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, from how often each of the 256 values occurs."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for part in np.array_split(x, max(1, len(x) // 1000)):  # bincount makes 8 bytes of every one
        counts += torch.from_numpy(np.stack([np.bincount(part[..., channel].ravel(), minlength=256) for channel in range(3)]))
    share, values = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.float64)
    mean = share @ values
    std = (share @ values**2 - mean**2).sqrt().clamp(min=1.0)
    return mean.float(), std.float()


def read_arrays(path: Path, classes: int) -> Arrays:
    """The four arrays of a file of images, all there, whole and of one length."""
    needed = f"arrays {', '.join(NAMES)}: uint8 images (n, 32, 32, 3), as many integer labels from 0 to {classes - 1}"
    cure = f"it needs {needed}; delete it to make it anew"
    try:
        unharmed(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NAMES}
    except Exception as error:  # what a damaged file raises has no end
        raise DataError(f"{path} is not a readable image file ({in_words(error)}); {cure}") from None
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        wrong = []
        if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or len(x) == 0:
            wrong.append(f"x_{part} has shape {x.shape} and type {x.dtype}")
        elif y.shape != (len(x),) or y.dtype.kind not in "iu":
            wrong.append(f"y_{part} has shape {y.shape} and type {y.dtype} for {len(x)} images")
        elif y.min() < 0 or y.max() >= classes:
            wrong.append(f"y_{part} has labels from {y.min()} to {y.max()}")
        if wrong:
            raise DataError(f"{path} cannot be used: {wrong[0]}; {cure}")
    return arrays


def _known(name: str, data_dir: Path) -> Arrays:
    """The decoded arrays from ``data_dir/NAME.npz`` or idx files, else downloaded by torchvision and kept there."""
    cache = data_dir / f"{name}.npz"
    if cache.exists():
        return read_arrays(cache, DOWNLOADED[name])
    places = [data_dir, data_dir / "FashionMNIST" / "raw", DEBIAN] if name == "fashion" else []
    for place in places:
        if any(place.glob("train-images-idx3-ubyte*")):
            return coloured(read_fashion(place))
    before = {path for path in (data_dir, *data_dir.parents, *data_dir.glob("*")) if path.exists()}
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"):  # one process downloads, the others wait for it
            if not cache.exists():
                arrays = _download(name, data_dir)
                with replacing(cache) as file:
                    np.savez(file, **arrays)
    except (DataError, NotWritten, OSError) as error:
        _remove_new(data_dir, before)
        if isinstance(error, RunError):
            raise
        raise DataError(f"--data-dir {data_dir} cannot be used ({in_words(error)})") from None
    return read_arrays(cache, DOWNLOADED[name])


def _remove_new(folder: Path, before: set[Path]) -> None:
    """What a failed download has left in a folder, and the folder itself and those it lies in, where they are new."""
    for path in {*folder.glob("*")} - before:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (folder, *folder.parents):
        if path not in before:
            with contextlib.suppress(OSError):
                path.rmdir()


def _download(name: str, data_dir: Path) -> Arrays:
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100, "fashion": FashionMNIST}[name]
    arrays: Arrays = {}
    print(f"downloading {name} to {data_dir} (once)")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # urllib's progress and torchvision's warnings end up in the sentence below
            for part, train in (("train", True), ("test", False)):
                dataset = kind(str(data_dir), train=train, download=True)
                arrays |= {f"x_{part}": np.asarray(dataset.data), f"y_{part}": np.asarray(dataset.targets, dtype=np.int64)}
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {data_dir / name}.npz and could not be downloaded ({error}); try --data mini, or copy the file there"
        ) from None
    return coloured(arrays) if name == "fashion" else arrays


def read_fashion(folder: Path) -> Arrays:
    """The four arrays of FashionMNIST's idx files, whole or as .gz: images (n, 28, 28) and labels (n,), uint8."""
    arrays: Arrays = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        x, y = read_idx(folder / f"{name}-images-idx3-ubyte"), read_idx(folder / f"{name}-labels-idx1-ubyte")
        if x.shape != (len(x), 28, 28) or y.shape != (len(x),) or y.max(initial=0) > 9 or not len(x):
            raise DataError(f"{folder}: {name} has images {x.shape} and labels {y.shape}, not (n, 28, 28) and (n,) of 0 to 9")
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    return arrays


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array from an idx file: two zeros, 8 for uint8, the number of axes, the length of each (4 bytes, the highest first), values.

    ``path`` is its name without .gz. Source: Yann LeCun's page of the MNIST database.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({in_words(error)})") from None
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis]) for axis in range(axes)]
    if not axes or len(content) != 4 + 4 * axes + math.prod(shape):
        raise DataError(f"{path} is no idx file of bytes, or is cut short ({len(content)} bytes for the shape {tuple(shape)})")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def coloured(arrays: Arrays) -> Arrays:
    """Grey images (n, 28, 28) as (n, 32, 32, 3), a black border around them; labels as they are."""
    padded = {name: np.pad(a, ((0, 0), (2, 2), (2, 2))) if name.startswith("x") else a for name, a in arrays.items()}
    return {name: np.repeat(a[..., None], 3, -1) if name.startswith("x") else a for name, a in padded.items()}


def _folder(folder: Path, size: int) -> tuple[Arrays, tuple[str, ...]]:
    train, test = splits(folder)
    x, y, classes = _decode(train, size)
    if test is not None:
        x_test, y_test, others = _decode(test, size)
        if classes != others:
            raise DataError(f"{train} and {test} have different class folders: {classes} and {others}")
        return dict(zip(NAMES, (x, y, x_test, y_test), strict=True)), classes
    if len(y) < 5:
        raise DataError(f"{train} holds {len(y)} images, too few to train and test")
    held_out = np.arange(len(y)) % 5 == 4
    return dict(zip(NAMES, (x[~held_out], y[~held_out], x[held_out], y[held_out]), strict=True)), classes


def splits(folder: Path) -> tuple[Path, Path | None]:
    """The folder of class folders to train on and the one to test on, or None where every fifth image is for that, which it says.

    A folder named as a part of a data set is never a class, at whatever depth.
    """
    parts = [(part_of_a_set(path), path) for path in sorted(folder.glob("*")) if path.is_dir()]
    training, held_out = ([path for name in names for part, path in parts if part == name] for names in (TRAINING, HELD_OUT))
    if len(training) > 1 or (held_out and not training):
        there = ", ".join(path.name for path in (*training, *held_out))
        raise DataError(f"{folder} holds {there}; one train/ is needed, and test/ (or val/, valid/, validation/) beside it")
    train = training[0] if training else folder
    for part in (train, *held_out[:1]):
        inside = next((path for path in (*part.glob("*"), *part.glob("*/*")) if part_of_a_set(path) and path.is_dir()), None)
        if inside is not None:
            raise DataError(f"{inside} is no class; give --data the folder in which train/ and test/ lie, and class folders in these")
        classes = sorted(path.name for path in part.glob("*") if path.is_dir())
        if len(classes) < 2:
            raise DataError(f"{part} holds no images in class folders, of which two or more are needed, but {classes}")
    if not held_out:
        print(f"{train}: every fifth image is for testing")
    elif len(held_out) > 1:
        print(f"{folder}: tested on {held_out[0].name}, without {', '.join(path.name for path in held_out[1:])}")
    return train, held_out[0] if held_out else None


def part_of_a_set(path: Path) -> str:
    """The name in ``TRAINING`` or ``HELD_OUT`` that a folder's name says, such as train of Train2017 or val of val_images, or nothing."""
    said = LIKE_A_PART.fullmatch(path.name)
    return said[1].lower() if said else ""


def _decode(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    from torchvision.datasets import ImageFolder

    try:
        dataset = ImageFolder(str(folder), transform=lambda image: fitted(image, size), loader=readable)
    except OSError as error:
        raise DataError(f"{folder} holds no images in class folders: {in_words(error)}") from None
    images = np.stack([dataset[number][0] for number in range(len(dataset))])
    return images, np.array(dataset.targets, dtype=np.int64), tuple(dataset.classes)


def fitted(image: Any, size: int) -> np.ndarray:
    """A PIL image as (size, size, 3) uint8: the shorter side resized to ``size``, the longer cut at both ends."""
    from PIL import ImageOps

    return np.asarray(ImageOps.fit(image, (size, size), ImageOps.Image.Resampling.BICUBIC))


def readable(path: str) -> Any:
    """The image in a file, or a DataError that names it."""
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    except Exception as error:  # what a damaged file raises has no end
        raise DataError(f"{path} is not a readable image ({in_words(error)})") from None


@dataclass
class Draws:
    """What chance decides about n images: shift (2, n) in pixels, mirror (n,) bool, the centre (2, n) of a hole in [0, 1)."""

    shift: Tensor
    mirror: Tensor
    hole: Tensor | None = None

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
