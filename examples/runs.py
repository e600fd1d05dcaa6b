"""Run folders: files that are whole or not there, the table and picture of a run's epochs, checkpoints without pickled code."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor


class RunError(Exception):
    """Something the user can mend, in one sentence."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of ``path`` when it is complete: a kill leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write(path, json.dumps(content, indent=2, default=str).encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{what}: {path.name} cannot be read ({error})") from None


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        torch.save(content, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values only: a file from elsewhere cannot run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{path} is not a readable checkpoint ({str(error).splitlines()[0]}); delete it to start anew") from None


def save_weights(path: Path, weights: dict[str, Tensor], **facts: Any) -> None:
    """A ``state_dict`` as safetensors, with facts about it in the header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write(path, safetensors.torch.save(plain, {name: str(fact) for name, fact in facts.items()}))


def write_history(run: Path, history: list[dict[str, float]]) -> None:
    """metrics.csv and curves.png, whole each time."""
    if not history:
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write(run / "metrics.csv", table.getvalue().encode())
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], "o-")
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(epochs, [row["train_accuracy"] for row in history], "o-", label="training (augmented)")
    right.plot(epochs, [row["test_accuracy"] for row in history], "o-", label="test")
    right.set(xlabel="epoch", ylabel="accuracy in %")
    right.legend()
    with replacing(run / "curves.png") as file:
        figure.savefig(file, dpi=120, format="png")
