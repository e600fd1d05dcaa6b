"""benchmarks/depth: pairs start alike and see the same images, a table that was stopped goes on, intervals are Student's."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_1samp

from benchmarks.depth import __main__ as depth
from benchmarks.depth.networks import KINDS, network
from benchmarks.depth.report import differences, grouped, interval, read, verdict
from images import Images


@pytest.mark.parametrize("data", ["fashion", "cifar10"])
def test_images_are_halved_and_normalised_by_those_of_training(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colors = 1 if data == "fashion" else 3
    image = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    image[0, 2:4, 2:4] = torch.tensor([200, 60, 20], dtype=torch.uint8)  # one pixel of the halved image, behind the margin
    given = Images(image, torch.tensor([3, 7]), image[:1], torch.tensor([3]), torch.zeros(3), torch.ones(3), 10)
    monkeypatch.setattr(depth, "load_images", lambda *_: given)
    train, y_train, test, y_test = depth.pooled(data, tmp_path)
    side = 14 if data == "fashion" else 16
    assert train.shape == (2, colors, side, side) and y_train.tolist() == [3, 7] and torch.equal(test, train[:1]) and y_test.tolist() == [3]
    torch.testing.assert_close(torch.std_mean(train, (0, 2, 3)), (torch.ones(colors), torch.zeros(colors)), atol=1e-6, rtol=0)
    place = 0 if data == "fashion" else 1
    assert (train[0] == train[0, :, place, place, None, None]).sum() == colors


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_start_alike_and_do_the_same_work(kind: str) -> None:
    shared, other = network("shared", 8, 3), network(kind, 8, 3)
    for part in (0, 2):
        ours, theirs = shared[part].state_dict(), other[part].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    first = dict(other[1].named_parameters())
    for name in ("conv1.weight", "conv2.weight"):
        (found,) = [p for key, p in first.items() if key in (f"f.{name}", f"0.f.{name}")]
        assert torch.equal(found, shared[1].get_parameter(f"f.{name}"))
    calls = []
    for module in other[1].modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    assert other(torch.randn(2, 1, 14, 14)).shape == (2, 10) and len(calls) == (2 if kind == "one" else 10)
    with torch.no_grad():
        other[1].get_parameter("f.conv1.weight" if kind != "stack" else "0.f.conv1.weight").add_(1.0)
    assert torch.equal(network(kind, 8, 3).state_dict()["0.0.weight"], other.state_dict()["0.0.weight"])


def test_a_table_that_was_stopped_goes_on_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(600, 1, 14, 14), torch.arange(600) % 10
    monkeypatch.setattr(depth, "pooled", lambda *_: (x, y, x[:500], y[:500]))
    monkeypatch.setattr(torch, "compile", lambda model: model)
    kinds = ["shared", "reaction-diffusion-advection", "one"]
    command = ["--sizes", "8", "--images", "300", "--out", str(tmp_path), "--kinds", *kinds, "--seeds"]
    ran, whole = [], depth.run

    def stops(kind: str, channels: int, seed: int, *rest: object) -> dict[str, str]:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append((kind, seed))
        return whole(kind, channels, seed, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(depth, "run", stops)
    with pytest.raises(SystemExit):
        depth.main([*command, "2"])
    monkeypatch.setattr(depth, "run", whole)
    depth.main([*command, "2"])
    path = tmp_path / "depth.csv"
    rows = read(path)
    assert [(row["kind"], row["seed"]) for row in rows] == [(kind, str(seed)) for seed in range(2) for kind in kinds]
    assert {row["images"] for row in rows} == {"256"} and (tmp_path / "depth.png").stat().st_size > 1000
    fresh = depth.run("shared", 8, 0, 256, depth.pooled("fashion", tmp_path))
    assert {"data": "fashion", **fresh, "cpu_seconds": ""} == {**rows[0], "cpu_seconds": ""}  # a run depends on its seed alone
    table = (tmp_path / "depth.md").read_text()
    assert "## FashionMNIST at 14x14, 8 channels, 256 images" in table and "| 2 |" in table and "| shared |" in table


def test_differences_are_within_pairs_and_intervals_are_those_of_the_t_test(tmp_path: Path) -> None:
    accuracies = {"shared": {0: 84.0, 1: 80.0, 2: 82.0, 3: 83.0}, "other": {3: 83.5, 1: 80.4, 0: 84.6, 7: 99.0}}
    with (tmp_path / "depth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "kind", "channels", "seed", "images", "parameters", "accuracy", "loss", "cpu_seconds"])
        writer.writerows(["fashion", k, 16, seed, 64, 9, value, 1, 1] for k, values in accuracies.items() for seed, value in values.items())
    runs = grouped(read(tmp_path / "depth.csv"))["fashion", "16", "64"]
    found = differences(runs, "other")
    assert found == pytest.approx([0.6, 0.4, 0.5])
    for level in (0.95, 0.99):
        expected, (mean, half) = ttest_1samp(found, 0.0).confidence_interval(level), interval(found, level)
        assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
    assert interval([1.0], 0.95) == (1.0, math.inf)
    assert verdict(found, 1) == "better" and verdict([-d for d in found], 1) == "worse" and verdict([1.0, -0.9], 1) == ""
    assert verdict(found, 10) == ""  # many kinds, and one of them will look better by chance
