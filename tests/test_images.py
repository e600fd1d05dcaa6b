from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples import images, make_mini
from examples.images import MINI, DataError, augment, drawn, load_images

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
        full[f"x_{part}"] = np.arange(len(full[f"y_{part}"]))
    np.savez(tmp_path / "full.npz", **full)
    make_mini.main(tmp_path / "full.npz", tmp_path / "deep" / "mini.npz")
    mini = arrays(tmp_path / "deep" / "mini.npz")
    assert np.bincount(mini["y_train"]).tolist() == [200] * 10 and np.bincount(mini["y_test"]).tolist() == [50] * 10
    assert (np.diff(mini["x_train"]) > 0).all() and (full["y_train"][mini["x_train"]] == mini["y_train"]).all()


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


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(DataError, match=r"cifar10\.npz and could not be downloaded \(no route to host\)") as caught:
        load_images("cifar10", tmp_path, CPU)
    assert "\n" not in str(caught.value)


def test_a_broken_cache_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cifar10.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="delete it"):
        load_images("cifar10", tmp_path, CPU)
    np.savez(tmp_path / "cifar10.npz", x_train=np.zeros(3))
    with pytest.raises(DataError, match="x_train, y_train, x_test, y_test"):
        load_images("cifar10", tmp_path, CPU)


def draw(folder: Path, classes: str, count: int) -> None:
    for value, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (value * 80, i * 10, 0)).save(folder / name / f"{i}.png")


def test_folders_of_class_folders(tmp_path: Path) -> None:
    draw(tmp_path / "whole", "ab", 10)
    data = load_images(str(tmp_path / "whole"), tmp_path, CPU)
    assert data.x_train.shape == (16, 32, 32, 3) and data.y_test.tolist() == [0, 0, 1, 1]
    draw(tmp_path / "split" / "train", "abc", 4)
    draw(tmp_path / "split" / "val", "abc", 2)
    data = load_images(str(tmp_path / "split"), tmp_path, CPU)
    assert len(data.y_train) == 12 and len(data.y_test) == 6 and data.classes == 3
    shutil.rmtree(tmp_path / "split" / "val" / "c")
    with pytest.raises(DataError, match="different class folders"):
        load_images(str(tmp_path / "split"), tmp_path, CPU)


def test_folders_without_images_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes" / "a").mkdir(parents=True)
    draw(tmp_path / "few", "a", 2)
    for name, message in (("empty", "holds no images"), ("classes", "holds no images"), ("few", "2 images, too few")):
        with pytest.raises(DataError, match=message) as caught:
            load_images(str(tmp_path / name), tmp_path, CPU)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="neither mini, cifar10, cifar100 nor a folder"):
        load_images("imagenet", tmp_path, CPU)
    assert images.NAMES == ("x_train", "y_train", "x_test", "y_test")
