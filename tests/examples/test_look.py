"""look.py draws what the run's own test says, and each step of a run's life prints the command of the next, which runs as printed."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_predict import COLOURS, own  # noqa: F401 (a fixture)

import look
import train_cifar
from images import load_images
from trained import mistake, options, write_small


@pytest.mark.slow
def test_the_confusion_matrix_is_that_of_the_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train_cifar.main(options(write_small(tmp_path), run, "--tensorboard"))
    found = look.main([str(run), "--device", "cpu"])
    assert found["accuracy"] == pytest.approx(json.loads((run / "result.json").read_text())["best"]["test_accuracy"])  # chosen on others
    saved = json.loads((run / "config.json").read_text())
    images = load_images(saved["data"], Path(saved["data_dir"]), torch.device("cpu"), saved["subset"])
    assert found["confusion"].sum(1).tolist() == [int((images.y_test == label).sum()) for label in range(images.classes)]
    with Image.open(run / "look.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["look"] and len(events.Scalars("test_accuracy")) == saved["epochs"]  # none purged by the picture
    capsys.readouterr()
    look.main([str(run), "--out", "none", "--device", "cpu"])
    assert "picture" not in capsys.readouterr().out
    for arguments, what in (
        ([str(tmp_path / "nowhere")], "is no folder of a finished epoch"),
        ([str(run), "--out", str(tmp_path / "look.jpg")], "must have a name that ends in .png"),
        ([str(run), "--out", str(tmp_path / "a" / "look.png")], "cannot be written"),
    ):
        assert what in mistake(look.main, arguments)


def test_classes_are_rows_and_what_is_seen_columns() -> None:
    images = load_images("mini", Path(), torch.device("cpu"), 50)

    class Airplanes(torch.nn.Module):
        """Sees class 0 in everything but what is of class 3, which it knows by the order of the images."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.where(images.y_test == 3, 3, 0), 10).float()

    confusion = look.confused(Airplanes(), images)
    counts = torch.bincount(images.y_test, minlength=10)
    assert confusion[3, 3] == counts[3] and confusion[:, 0].sum() == len(images.y_test) - counts[3]
    assert look.mistaken(confusion)[0][1] == 0 and all(i not in (0, 3) for i, _, _ in look.mistaken(confusion))


@pytest.mark.slow
def test_each_step_prints_the_command_of_the_next(
    own: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder of own images: train, look, predict, export, continue, compare three seeds; IMAGE... alone is filled in."""
    monkeypatch.chdir(tmp_path)
    command = ["examples/train_cifar.py", "--data", str(own), "--epochs", "1", "--batch-size", "8", "--steps", "2", "--device", "cpu"]
    passed, said = [], ""
    for _ in range(7):
        script, *arguments = command
        passed.append((Path(script).stem, next((word for word in arguments if word in ("--onnx", "--resume", "--seeds")), "")))
        importlib.import_module(Path(script).stem).main(arguments)
        said = capsys.readouterr().out
        following = re.findall(r"^next: +python (.*)$", said, re.MULTILINE)
        if passed[-1][1] == "--seeds":
            break
        command = [word for part in shlex.split(following[-1]) for word in ([str(own / "red" / "3.png")] if part == "IMAGE..." else [part])]
    steps = [
        ("train_cifar", ""),
        ("look", ""),
        ("predict", ""),
        ("predict", "--onnx"),
        ("train_cifar", "--resume"),
        ("train_cifar", "--seeds"),
    ]
    assert passed == steps and "3 seeds:" in said and set(COLOURS) <= {path.name for path in own.iterdir()}
