"""The main job: it learns, survives a kill at any moment to the bit, and says what is wrong in one sentence."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from examples import train_cifar

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "examples" / "train_cifar.py")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cifar10.npz of 200 training and 100 test images that can be told apart."""
    import numpy as np

    folder = tmp_path_factory.mktemp("data")
    with np.load(ROOT / "examples" / "data" / "cifar10_mini.npz") as mini:
        cut = {name: mini[name][: 200 if "train" in name else 100] for name in mini.files}
    np.savez(folder / "cifar10.npz", **cut)
    return folder


def options(small: Path, run: Path, *more: str) -> list[str]:
    fixed = [
        "--data",
        "cifar10",
        "--data-dir",
        str(small),
        "--out",
        str(run),
        "--steps",
        "2",
        "--epochs",
        "3",
        "--batch-size",
        "25",
        "--lr",
        "0.03",
        "--device",
        "cpu",
    ]
    return [*fixed, *more]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return torch.load(run / name, weights_only=True)["model"]


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs without interruption."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train_cifar.main(options(small, run))
    return run


def test_a_run_leaves_its_files_and_the_weights_moved(whole: Path) -> None:
    names = {"config.json", "metrics.csv", "curves.png", "last.pt", "best.pt", "result.json"}
    assert {p.name for p in whole.iterdir()} == names
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and float(rows[2]["loss"]) < float(rows[0]["loss"])
    result = json.loads((whole / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 100 and result["test_accuracy"] == float(rows[2]["test_accuracy"])
    assert set(result["weights"]) == {"3.f.conv1.weight", "3.f.conv2.weight"}
    for layer in result["weights"].values():
        assert layer["relative_change"] > 1e-3
        assert layer["tau"]["start"] == pytest.approx(0.02) and layer["tau"]["end"] != layer["tau"]["start"]
        assert layer["upsilon"]["start"] == [0, 0] and all(abs(v) > 1e-6 for v in layer["upsilon"]["end"])
        assert layer["rho"]["end"] != 0
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    best = torch.load(whole / "best.pt", weights_only=True)
    assert best["test_accuracy"] == result["best_test_accuracy"] and best["test_accuracy"] == max(float(r["test_accuracy"]) for r in rows)


def test_killed_and_resumed_it_ends_with_the_same_weights(small: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    kills = 0
    process = start(*options(small, run))
    while process.poll() is None and kills < 2:
        progress = len((run / "metrics.csv").read_text().splitlines()) - 1 if (run / "metrics.csv").exists() else 0
        if (run / "config.json").exists() and progress >= kills:  # once before the first epoch is over, once after it
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            process = start("--resume", str(run))
        time.sleep(0.01)
    out, err = process.communicate()
    assert process.returncode == 0 and kills == 2, err
    assert "test accuracy" in out
    for name in ("last.pt", "best.pt"):
        expected, found = weights(whole, name), weights(run, name)
        assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    without_seconds = [[row[:4] for row in csv.reader((r / "metrics.csv").read_text().splitlines())] for r in (run, whole)]
    assert without_seconds[0] == without_seconds[1]
    results = [json.loads((r / "result.json").read_text()) for r in (run, whole)]
    assert results[0]["weights"] == results[1]["weights"]


def test_ctrl_c_ends_with_a_word_and_a_resumable_run(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    process = start(*options(small, run))
    while not (run / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and f"--resume {run}" in out and "Traceback" not in err
    train_cifar.main(["--resume", str(run)])
    assert (run / "result.json").exists()


@pytest.mark.parametrize("block", ["residual", "ode"])
def test_other_blocks_and_the_paper_schedule(block: str, small: Path, tmp_path: Path) -> None:
    train_cifar.main(options(small, tmp_path / "run", "--block", block, "--schedule", "paper", "--lr", "0.02", "--epochs", "1"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["weights"] == {} and result["epochs"] == 1


def test_seeds_decide_and_runs_get_folders_of_their_own(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "cifar10", "--data-dir", str(small), "--epochs", "1", "--block", "residual", "--device", "cpu"]
    for seed in ("1", "1", "2"):
        train_cifar.main([*arguments, "--seed", seed])
    first, again, other = (weights(Path("runs") / f"resnet4-residual-cifar10-{name}") for name in ("1", "1-2", "2"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
        (["--batch-size", "-3"], "--batch-size -3"),
        (["--lr", "0"], "--lr 0.0 must be positive"),
        (["--tau", "-1"], "tau=-1.0 must be at least 0"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--data", "nowhere"], "nowhere' is neither mini"),
        (["--lr", "1e30"], "the loss became"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], sentence: str, small: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main([*options(small, tmp_path / "run"), *arguments])
    message = str(caught.value)
    assert message.startswith("error: ") and sentence in message and "\n" not in message


def test_an_unknown_model_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main(["--model", "resnet9"])
    shown = capsys.readouterr()
    assert caught.value.code == 2 and "resnet9" in shown.out + shown.err and "resnet10" in shown.out + shown.err


def test_mistakes_about_runs_get_one_sentence(small: Path, whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((whole / "config.json").read_text())
    (broken / "last.pt").write_bytes((whole / "last.pt").read_bytes()[:1000])
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (["--resume", str(broken)], "is not a readable checkpoint"),
        (["--resume", str(empty)], "no run folder with a readable config.json"),
        (["--resume", str(whole), "--epochs", "9"], "drop the other options"),
        (options(small, whole), "already holds a run"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(SystemExit) as caught:
            train_cifar.main(arguments)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_cifar.write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_cifar.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and all(
        word in text for word in ("--tau", "diffusivity", "--resume", "one-cycle", "{residual,ode,coupled}")
    )
