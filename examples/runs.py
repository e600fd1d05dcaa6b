"""Run folders: files that are whole or not there, the table and picture of a run's epochs, checkpoints without pickled code."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from anodev2.models.files import HEADER


class RunError(Exception):
    """Something the user can mend, in one sentence."""


class NotWritten(RunError):
    """A file that cannot be written, such as on a full disk."""


def in_words(error: BaseException) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if any("Traceback" in line for line in lines) else 0]  # of what a process that loads images raised, the last


def writable(path: Path, what: str, suffix: str = "") -> None:
    """Refuse a file that cannot be there, or has another suffix, before the work whose result it is to hold."""
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{path.absolute().parent} is no folder that can be written to"
        raise NotWritten(f"{what} {path} cannot be written: {reason}")
    if not path.name.endswith(suffix):
        raise RunError(f"{what} {path} must have a name that ends in {suffix}")


RUN_FILES = ("config.json", "last.pt", "result.json", "metrics.csv", "best.safetensors", "last.safetensors", "seed-*")


def refuse_taken(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder} is no folder; choose another name")
    taken = [path.name for name in RUN_FILES for path in folder.glob(name)]
    if taken:
        raise RunError(f"--out {folder} already holds a run ({taken[0]}); continue it with --resume {folder}, or choose another folder")


def new_folder(out: Path | None, default: Path, settings: dict[str, Any]) -> Path:
    """``out``, or a folder of a name that is not taken, with these settings as its config.json; or neither."""
    candidates = chain([default], (default.with_name(f"{default.name}-{i}") for i in count(2)))
    run = out or next(path for path in candidates if not path.exists())
    made = [path for path in (run, *run.parents) if not path.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "config.json", settings)
    except (OSError, NotWritten) as error:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise RunError(f"--out {run} cannot be used ({in_words(error)}); choose another folder") from None
    return run


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of ``path`` when it is complete: a kill or a full disk leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise NotWritten(f"{path} cannot be written ({error.strerror or error})") from None
        raise


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write(path, json.dumps(content, indent=2, default=str).encode())


def read_json(path: Path, what: str, *names: str) -> dict[str, Any]:
    """The settings or figures of a file, these names among them."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{what}: {path.name} cannot be read ({in_words(error)})") from None
    if not isinstance(content, dict) or not content.keys() >= {*names}:
        raise RunError(f"{what}: {path.name} lacks {', '.join(names) or 'settings by name'}")
    return content


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    whole = io.BytesIO()  # torch.save does not tell of a full disk as other writers do
    torch.save(_cut_out(content), whole)
    write(path, whole.getvalue())


def _cut_out(content: Any) -> Any:
    """The same with tensors that are part of a larger one alone, as torch.save writes the whole of it."""
    if isinstance(content, dict):
        return {name: _cut_out(part) for name, part in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_cut_out, content))
    part = isinstance(content, Tensor) and content.untyped_storage().nbytes() > content.nbytes
    return content.clone() if part else content


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values only: a file from elsewhere cannot run code. Its checksums are compared, which torch.load does not."""
    try:
        unharmed(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises has no end
        raise RunError(f"{path} is not a readable checkpoint ({in_words(error)}); delete it to start anew") from None


def unharmed(path: Path) -> None:
    """Raises where a file of PyTorch's or NumPy's is no zip archive, or one whose contents have changed."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def save_weights(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """A ``state_dict`` as safetensors, with facts about it in the header as JSON."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write(path, safetensors.torch.save(plain, {HEADER: json.dumps(facts)}))


@cache
def revision() -> str | None:
    """The commit of the checkout that this file lies in, if it is one, and + where files differ from it."""
    call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


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


def write_tensorboard(folder: Path, epoch: int, figures: dict[str, float], pictures: Mapping[str, Any] = MappingProxyType({})) -> None:
    """The epoch's figures; after a resumption they take the place of what a killed run had written."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=epoch if figures else None) as writer:
        for name, value in figures.items():
            if name != "epoch":
                writer.add_scalar(name, value, epoch)
        for name, picture in pictures.items():
            writer.add_figure(name, picture, epoch)
