from __future__ import annotations

import errno
import gzip
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import images as images_module
import make_mini
import train_cifar
from images import MINI, DataError, augment, drawn, load_images
from runs import RunError

CPU = torch.device("cpu")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_the_shipped_subset_is_balanced_and_small() -> None:
    mini = arrays(MINI)
    assert mini["x_train"].shape == (2000, 32, 32, 3) and mini["x_test"].shape == (500, 32, 32, 3)
    assert mini["x_train"].dtype == np.uint8
    assert np.bincount(mini["y_train"]).tolist() == [200] * 10 and np.bincount(mini["y_test"]).tolist() == [50] * 10
    assert MINI.stat().st_size <= 9e6


def test_it_is_made_by_the_script(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    full: dict[str, Any] = {
        "y_train": random.permutation(np.repeat(np.arange(10), 210)),
        "y_test": random.permutation(np.repeat(np.arange(10), 60)),
    }
    for part in ("train", "test"):
        labels = full[f"y_{part}"]
        x = full[f"x_{part}"] = np.zeros((len(labels), 32, 32, 3), dtype=np.uint8)
        x[:, 0, 0] = np.stack((*np.divmod(np.arange(len(labels)), 256), labels), 1)  # its number and label
    np.savez(tmp_path / "full.npz", **full)
    make_mini.main(tmp_path / "full.npz", tmp_path / "deep" / "mini.npz")
    mini = arrays(tmp_path / "deep" / "mini.npz")
    assert np.bincount(mini["y_train"]).tolist() == [200] * 10 and np.bincount(mini["y_test"]).tolist() == [50] * 10
    high, low, label = mini["x_train"][:, 0, 0].astype(int).T
    assert (np.diff(256 * high + low) > 0).all() and (label == mini["y_train"]).all()


def test_validation_images_are_training_images_kept_aside_of_every_class_alike() -> None:
    data, whole = (load_images("mini", Path("unused"), CPU, validation=share) for share in (0.1, 0.0))
    assert torch.bincount(data.y_valid).tolist() == [20] * 10 and torch.bincount(data.y_train).tolist() == [180] * 10
    parts = torch.cat([data.x_train, data.x_valid]).flatten(1)
    assert torch.equal(parts.unique(dim=0), whole.x_train.flatten(1).unique(dim=0)) and len(whole.y_valid) == 0
    assert torch.equal(data.x_test, whole.x_test)


def test_images_are_normalised_by_the_training_images() -> None:
    data = load_images("mini", Path("unused"), CPU)
    x = data.normalised(data.x_train)
    assert data.x_train.dtype == torch.uint8 and data.x_test.shape == (500, 32, 32, 3) and data.classes == 10
    assert x.shape == (2000, 3, 32, 32) and x.is_contiguous(memory_format=torch.channels_last)
    assert x.mean((0, 2, 3)).abs().max() < 1e-4 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert data.y_train.dtype == torch.int64


def test_a_subset_is_spread_over_the_whole_set() -> None:
    data, whole = (load_images("mini", Path("unused"), CPU, subset) for subset in (100, None))
    assert len(data.y_train) == 100 and len(data.y_test) == 100
    assert torch.equal(data.x_train[-1], whole.x_train[-1]) and torch.equal(data.x_train[0], whole.x_train[0])
    assert torch.bincount(data.y_train).min() > 0
    assert len(load_images("mini", Path("unused"), CPU, 10_000).y_train) == 2000


def test_images_of_half_the_size_are_means_of_four_pixels() -> None:
    whole, half = (load_images("mini", Path(), torch.device("cpu"), 20, size, validation=0.2) for size in (32, 16))
    for name in ("x_train", "x_test", "x_valid"):
        large, small = (getattr(images, name).permute(0, 3, 1, 2).double() for images in (whole, half))
        assert small.shape[2:] == (16, 16) and (small - torch.nn.functional.avg_pool2d(large, 2)).abs().max() <= 0.5
    assert half.size == 16 and torch.equal(whole.y_train, half.y_train)
    normal = half.normalised(half.x_train)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    with pytest.raises(SystemExit, match=r"--size has no effect here, only with a folder as --data, or --size 16"):
        train_cifar.main(["--size", "64"])


def test_crops_are_shifts_and_flips_are_mirrors() -> None:
    x = torch.rand(64, 3, 32, 32)
    draws = drawn(64, torch.Generator().manual_seed(0), CPU)
    out = augment(x, draws)
    padded = torch.nn.functional.pad(x, (4,) * 4)
    kinds = set()
    for image, big in zip(out, padded, strict=True):
        matches = [
            (i, j, flip)
            for i in range(9)
            for j in range(9)
            for flip in (False, True)
            if torch.equal(image, (big[:, i : i + 32, j : j + 32].flip(-1) if flip else big[:, i : i + 32, j : j + 32]))
        ]
        assert len(matches) == 1
        kinds.add(matches[0])
    assert len(kinds) > 40 and {flip for _, _, flip in kinds} == {False, True}
    assert torch.equal(augment(x[8:16], draws[8:16]), out[8:16])  # an image's share of chance goes with it


@pytest.mark.parametrize("side", [1, 7, 8])
def test_cutout_blanks_a_square_that_may_stick_out(side: int) -> None:
    draws = drawn(500, torch.Generator().manual_seed(0), CPU, cutout=True)
    blank = (augment(torch.ones(500, 3, 32, 32), draws, side) == 0) & (augment(torch.ones(500, 3, 32, 32), replace(draws, hole=None)) == 1)
    assert (blank[:, :1] == blank).all()
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(blank[:, 0].sum((1, 2)), rows * columns)  # nothing but the square
    assert rows.max() == columns.max() == side
    full = ((rows == side) & (columns == side)).float().mean()
    assert full > 0.4 and (side == 1 or full < 0.95)


class FakeCifar:
    """Stands where torchvision's data set stands: decoded images and labels as torchvision keeps them."""

    calls = 0

    def __init__(self, root: str, train: bool, download: bool) -> None:
        type(self).calls += 1
        assert download
        count = 20 if train else 10
        self.data = np.full((count, 32, 32, 3), 7, dtype=np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
        self.targets = [i % 10 for i in range(count)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_download_is_cached_decoded_and_not_repeated(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", FakeCifar)
    FakeCifar.calls = 0
    first = load_images(name, tmp_path, CPU)
    cached = arrays(tmp_path / f"{name}.npz")
    assert cached["x_train"].shape == (20, 32, 32, 3) and cached["y_test"].dtype == np.int64 and FakeCifar.calls == 2
    assert torch.equal(load_images(name, tmp_path, CPU).x_train, first.x_train) and FakeCifar.calls == 2
    assert {p.name for p in tmp_path.iterdir()} <= {f"{name}.npz", f".{name}.lock"}


def write_idx(folder: Path, packed: bool, count: int = 7) -> dict[str, np.ndarray]:
    """FashionMNIST's four files of a few images, byte by byte as the format says."""
    folder.mkdir(parents=True, exist_ok=True)
    random, written = np.random.default_rng(0), {}
    for part, n in (("train", count), ("t10k", 3)):
        x, y = random.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
            written[name] = array
    return written


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw", "debian"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_idx_files_where_they_lie(
    packed: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "DEBIAN", tmp_path / "debian")
    written = write_idx(tmp_path / place, packed, 300)  # a length of two bytes
    data = load_images("fashion", tmp_path, CPU)
    for part, x, y in (("train", data.x_train, data.y_train), ("t10k", data.x_test, data.y_test)):
        grey = written[f"{part}-images-idx3-ubyte"]
        assert x.shape == (len(grey), 32, 32, 3) and y.tolist() == written[f"{part}-labels-idx1-ubyte"].tolist()
        assert all(np.array_equal(x[:, 2:-2, 2:-2, channel], grey) for channel in range(3)) and x.sum() == 3 * grey.sum(dtype=int)
    assert data.classes == 10


def test_fashion_mnist_is_downloaded_where_no_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data, self.targets = torch.full((4, 28, 28), 9, dtype=torch.uint8), torch.arange(4)

    monkeypatch.setattr(images_module, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", Fake)
    first, again = (load_images("fashion", tmp_path, CPU) for _ in range(2))
    assert (tmp_path / "fashion.npz").exists() and first.x_test.shape == (4, 32, 32, 3) and torch.equal(first.x_train, again.x_train)
    assert first.x_train[:, 2:-2, 2:-2].eq(9).all() and first.y_train.tolist() == [0, 1, 2, 3]


def test_idx_files_that_are_damaged_are_one_sentence(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    good, good_labels = images.read_bytes(), labels.read_bytes()
    for content in (b"", b"PK", good[:-1], good + b"1", good[:3], b"\0\0\x0d" + good[3:]):
        images.write_bytes(content)
        assert f"{images} is no idx file of bytes, or is cut short" in message("fashion", tmp_path)
    images.write_bytes(good)
    for content in (good_labels[:7] + b"\x06" + good_labels[8:-1], good_labels[:-1] + b"\x0a"):  # one label fewer, a label of 10
        labels.write_bytes(content)
        assert "train has images (7, 28, 28) and labels" in message("fashion", tmp_path)
    labels.unlink()
    assert "No such file or directory" in message("fashion", tmp_path)
    write_idx(tmp_path, packed=True)
    packed = tmp_path / "t10k-images-idx3-ubyte.gz"
    for content in (packed.read_bytes()[:100], b"no gzip"):
        packed.write_bytes(content)
        assert "t10k-images-idx3-ubyte cannot be read" in message("fashion", tmp_path)


def message(data: str | Path, place: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_images(str(data), place, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def full_disk(file: Any, **_: Any) -> None:
    file.write(b"PK")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Unreachable:
    """Begins to write, then fails as torchvision does without a network."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"half")
        (Path(root) / "batches").mkdir()
        (Path(root) / "batches" / "1").touch()
        raise OSError("no route to host")


@pytest.mark.parametrize("place", ["new", "deep/new", "there"])
def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Unreachable)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    assert "cifar10.npz and could not be downloaded (no route to host)" in message("cifar10", tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "there"]
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(RunError, match=r"cifar10\.npz cannot be written \(No space left on device\)"):
        load_images("cifar10", tmp_path / place, CPU)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "there"]


X, Y = np.zeros((20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10
WRONG: dict[str, dict[str, Any]] = {
    "channels first": {"x_train": X.transpose(0, 3, 1, 2)},
    "floats": {"x_test": X.astype(np.float32)},
    "flat": {"x_train": X.reshape(20, -1)},
    "other size": {"x_train": X[:, :28, :28]},
    "grey": {"x_test": X[..., :1]},
    "no training images": {"x_train": X[:0], "y_train": Y[:0]},
    "no test images": {"x_test": X[:0], "y_test": Y[:0]},
    "fewer labels": {"y_train": Y[:19]},
    "more labels": {"y_test": np.arange(21) % 10},
    "labels of floats": {"y_train": Y / 1},
    "one-hot labels": {"y_train": np.eye(10, dtype=int)[Y]},
    "labels from 1": {"y_test": Y + 1},
    "negative labels": {"y_train": Y - 1},
    "pickled labels": {"y_train": Y.astype(object)},
    "no labels": {"y_test": None},
}


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_are_no_images_with_labels_are_refused_in_one_sentence(what: str, tmp_path: Path) -> None:
    right: dict[str, Any] = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}
    np.savez(tmp_path / "cifar10.npz", **right)
    assert len(load_images("cifar10", tmp_path, CPU).y_train) == 20
    np.savez(tmp_path / "cifar10.npz", **{name: value for name, value in (right | WRONG[what]).items() if value is not None})
    found = message("cifar10", tmp_path)
    assert str(tmp_path / "cifar10.npz") in found and next(iter(WRONG[what])) in found
    assert "x_train, y_train, x_test, y_test: uint8 images (n, 32, 32, 3), as many integer labels from 0 to 9" in found


def test_a_file_that_is_cut_or_has_changed_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file, random = tmp_path / "cifar10.npz", np.random.default_rng(0)
    images = random.integers(0, 256, X.shape, dtype=np.uint8)
    np.savez(file, x_train=images, y_train=Y, x_test=images, y_test=Y)
    good, want = file.read_bytes(), load_images("cifar10", tmp_path, CPU)
    for content in [b"", b"PK\x03\x04 cut short", *(good[:length] for length in random.integers(1, len(good), 20))]:
        file.write_bytes(content)
        assert f"{file} is not a readable image file" in message("cifar10", tmp_path)
    ends = [*random.integers(0, 400, 40), *random.integers(len(good) - 600, len(good), 60)]  # where the names and headers are
    for place in [*ends, *random.integers(0, len(good), 100)]:
        file.write_bytes(good[:place] + bytes([good[place] ^ 1 << random.integers(8)]) + good[place + 1 :])
        try:
            found = load_images("cifar10", tmp_path, CPU)
        except DataError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:  # nothing that is read has changed
            assert all(torch.equal(getattr(found, name), getattr(want, name)) for name in images_module.NAMES), place
    np.save(tmp_path / "one.npy", images)
    (tmp_path / "one.npy").rename(file)
    assert f"{file} is not a readable image file" in message("cifar10", tmp_path)


def draw(folder: Path, classes: str, count: int) -> None:
    for value, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (value * 80, i * 10, 0)).save(folder / name / f"{i}.png")


HELD_OUT = ["test", "val", "valid", "validation", "Valid", "TEST", "val2017", "test_images"]


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_a_folder_of_two_parts_is_trained_on_one_and_tested_on_the_other(held_out: str, tmp_path: Path) -> None:
    draw(tmp_path / "train", "abc", 4)
    draw(tmp_path / held_out, "abc", 2)
    data = load_images(str(tmp_path), tmp_path, CPU)
    assert len(data.y_train) == 12 and data.y_test.tolist() == [0, 0, 1, 1, 2, 2] and data.classes == 3
    shutil.rmtree(tmp_path / held_out / "c")
    assert "different class folders" in message(tmp_path, tmp_path)


def test_without_a_part_for_it_every_fifth_image_is_for_testing_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "whole", "ab", 10)
    draw(tmp_path / "lone" / "train", "ab", 10)
    (tmp_path / "lone" / "notes").mkdir()
    for folder, part in (("whole", "whole"), ("lone", "lone/train")):
        data, again = (load_images(str(tmp_path / folder), tmp_path, CPU) for _ in range(2))
        assert data.x_train.shape == (16, 32, 32, 3) and data.y_test.tolist() == [0, 0, 1, 1] and data.classes == 2
        assert torch.equal(data.x_test, again.x_test)
        assert f"{tmp_path / part}: every fifth image is for testing" in capsys.readouterr().out
    draw(tmp_path / "three" / "train", "ab", 3)
    draw(tmp_path / "three" / "valid", "ab", 2)
    draw(tmp_path / "three" / "test", "ab", 1)
    assert len(load_images(str(tmp_path / "three"), tmp_path, CPU).y_test) == 2
    assert "tested on test, without valid" in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout",
    [
        ["train"],
        ["test", "valid"],
        ["train", "valid"],
        ["train", "Training", "test"],
        ["a/train", "a/test", "b/train", "b/test"],
        ["train/train", "train/valid"],
        ["data/train", "data/valid"],
        ["a"],
        ["train/a", "test/a"],
        ["train/a", "train/b", "test/a"],
        ["validation/a", "validation/b"],
    ],
    ids=" ".join,
)
def test_parts_are_never_classes_and_one_class_is_not_enough(layout: list[str], tmp_path: Path) -> None:
    """Folders with images right in them, at every depth at which they may lie."""
    for folder in layout:
        draw(tmp_path / folder, ".", 6)
    assert str(tmp_path) in message(tmp_path, tmp_path)


def test_folders_without_images_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in "ab":
        (tmp_path / "classes" / name).mkdir(parents=True)
    draw(tmp_path / "few", "ab", 2)
    draw(tmp_path / "damaged", "ab", 3)
    (tmp_path / "damaged" / "b" / "1.png").write_bytes(b"no image")
    draw(tmp_path / "cut", "ab", 3)
    whole = (tmp_path / "cut" / "a" / "2.png").read_bytes()
    (tmp_path / "cut" / "a" / "2.png").write_bytes(whole[: len(whole) // 2])
    cases = {"empty": "holds no images", "classes": "holds no images", "few": "4 images, too few", "damaged": "b/1.png", "cut": "a/2.png"}
    for name, words in cases.items():
        assert words in message(tmp_path / name, tmp_path)
    assert "neither mini, cifar10, cifar100, fashion nor a folder" in message("imagenet", tmp_path)
