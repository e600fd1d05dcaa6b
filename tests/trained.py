"""What tests of the training scripts share: few images, command lines, what a run leaves, and how it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import train_cifar
from settings import make_model

ROOT = Path(__file__).parent.parent
MINI = ROOT / "examples" / "data" / "cifar10_mini.npz"


def write_small(folder: Path) -> Path:
    """A cifar10.npz of 200 training and 100 test images that can be told apart."""
    with np.load(MINI) as mini:
        cut = {name: mini[name][: 200 if "train" in name else 100] for name in mini.files}
    np.savez(folder / "cifar10.npz", **cut)
    return folder


def options(data: Path, run: Path, *more: str) -> list[str]:
    fixed = ["--data", "cifar10", "--data-dir", str(data), "--out", str(run), *([] if "residual" in more else ["--steps", "2"])]
    return [*fixed, "--validation", "0.25", "--epochs", "3", "--batch-size", "25", "--lr", "0.03", "--device", "cpu", *more]


def mistake(main: Callable[[list[str]], Any], arguments: list[str]) -> str:
    """The sentence with which a script refuses a command line."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    message = str(caught.value)
    assert message.startswith("error: ") and "\n" not in message, message
    return message


def weights(run: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / name)


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def recounted(run: Path, data: Path, name: str = "last.safetensors", part: str = "test") -> float:
    """The accuracy in percent of a run's saved weights on test images, or on training images as they are."""
    config = train_cifar.settled(["--resume", str(run)])
    model = make_model(config, 10).eval()
    model.load_state_dict(weights(run, name))
    images = train_cifar.load_images("cifar10", data, torch.device("cpu"), config.subset, validation=config.validation)
    with torch.no_grad():
        said = model(images.normalised(getattr(images, f"x_{part}"))).argmax(1)
    return 100 * (said == getattr(images, f"y_{part}")).double().mean().item()
