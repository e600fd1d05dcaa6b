"""Runs train_cifar.py and kills it, as the operating system would, at a given moment: python killed.py MOMENT OPTIONS..."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples import runs, train_cifar


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, owner: Any, name: str, end: Any = die) -> None:
    """The ``number``-th call of ``owner.name`` becomes a call of ``end``."""
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (end if calls == number else original)(*args, **kwargs)

    setattr(owner, name, counted)


def half(path: Path, content: bytes) -> None:
    """Half of a file, then the end."""
    with runs.replacing(path) as file:
        file.write(content[: len(content) // 2])
        file.flush()
        die()


def half_a_checkpoint(path: Path, content: dict[str, Any]) -> None:
    at_call(1, runs, "write", half)
    runs.save_checkpoint(path, content)


def midway(training: Any, end: Any = die) -> Any:
    """A pass that ends in the middle."""
    at_call(3, train_cifar, "backward", end)
    return train_cifar.train_epoch(training)


def interrupt(*_: Any, **__: Any) -> None:
    """Ctrl-C, also where the process was started with interruptions ignored, as behind a shell's ``&``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


def scrap(file: Any, **_: Any) -> None:
    file.write(b"PK\x03\x04 cut short")
    file.flush()
    die()


class Downloaded:
    """Stands where torchvision's CIFAR10 stands, with the arrays of the file named by the environment."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        part = "train" if train else "test"
        with np.load(os.environ["DOWNLOAD"]) as arrays:
            self.data, self.targets = arrays[f"x_{part}"], arrays[f"y_{part}"].tolist()


if __name__ == "__main__":
    moment, arguments = sys.argv[1], sys.argv[2:]
    if moment == "first epoch":
        at_call(4, train_cifar, "backward")  # the first is the rehearsal
    elif moment == "second epoch":
        at_call(2, train_cifar, "train_epoch", midway)
    elif moment == "Ctrl-C":
        at_call(2, train_cifar, "train_epoch", lambda training: midway(training, interrupt))
    elif moment == "checkpoint half written":
        at_call(2, train_cifar, "save_checkpoint", half_a_checkpoint)
    elif moment == "weights written, checkpoint not":
        at_call(2, train_cifar, "save_checkpoint")
    elif moment == "checkpoint written, table not":
        at_call(3, train_cifar, "write_history")
    elif moment == "cache half written":
        import torchvision

        torchvision.datasets.CIFAR10 = Downloaded  # type: ignore[misc,assignment]
        at_call(1, np, "savez", scrap)
    train_cifar.main(arguments)
