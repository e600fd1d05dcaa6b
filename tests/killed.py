"""Ends train_cifar.py at a given moment: python killed.py MOMENT OPTIONS... kills it as the operating system would.

Where nothing is being written, what is left is the same if an exception ends it that nobody catches: this is quicker, and needs no
process (``arrange`` with another ``end``).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import runs
import train_cifar
import training

Patch = Callable[[Any, str, Any], None]


class Killed(BaseException):
    """Ends a run from within."""


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(*_: Any, **__: Any) -> NoReturn:
    raise Killed


def interrupt(*_: Any, **__: Any) -> NoReturn:
    """What Python makes of Ctrl-C."""
    raise KeyboardInterrupt


def at_call(number: int, owner: Any, name: str, end: Callable[..., Any], patch: Patch) -> None:
    """The ``number``-th call of ``owner.name`` becomes a call of ``end``."""
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (end if calls == number else original)(*args, **kwargs)

    patch(owner, name, counted)


def half(path: Path, content: bytes) -> None:
    """Half of a file, then the end."""
    with runs.replacing(path) as file:
        file.write(content[: len(content) // 2])
        file.flush()
        die()


def half_a_checkpoint(path: Path, content: dict[str, Any]) -> None:
    at_call(1, runs, "write", half, setattr)
    runs.save_checkpoint(path, content)


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


def arrange(moment: str, end: Callable[..., Any] = die, patch: Patch = setattr) -> None:
    """The next run in this process ends then, if it comes so far. What is "half written" needs a process that is killed."""
    at = partial(at_call, end=end, patch=patch)
    if moment == "first epoch":
        at(4, training, "backward")  # the first is the rehearsal
    elif moment == "second epoch":
        train_epoch = training.train_epoch

        def midway(run: Any) -> Any:
            at(3, training, "backward")
            return train_epoch(run)

        at_call(2, training, "train_epoch", midway, patch)
    elif moment == "weights written, checkpoint not":
        at(2, training, "save_checkpoint")
    elif moment == "checkpoint written, table not":
        at(3, training, "write_history")
    elif moment == "checkpoint half written":
        at_call(2, training, "save_checkpoint", half_a_checkpoint, patch)
    elif moment == "cache half written":
        import torchvision

        patch(torchvision.datasets, "CIFAR10", Downloaded)
        at_call(1, np, "savez", scrap, patch)
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    arrange(sys.argv[1])
    train_cifar.main(sys.argv[2:])
