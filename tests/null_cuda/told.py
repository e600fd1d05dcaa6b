"""What the null device was told to do, seen from the process that runs on it."""

from __future__ import annotations

import ctypes
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROOMS = tuple(str(ROOT / room) for room in ("anodev2", "pde", "models", "examples"))
LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)


@dataclass
class Told:
    """``launched``: kernels, copies and fills of memory by name; ``waits`` and ``refused``: what, and where in this project."""

    launched: Counter[str] = field(default_factory=Counter[str])
    waits: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return self.launched.total()


def present() -> bool:
    """Whether this process runs on the null device."""
    try:
        return hasattr(ctypes.CDLL("libcuda.so.1"), "null_listen")
    except OSError:  # no driver
        return False


@contextmanager
def told() -> Iterator[Told]:
    """Everything that the device is told within."""
    seen = Told()

    def listen(kind: bytes, what: bytes) -> None:
        name = what.decode()
        if kind == b"wait":
            seen.waits.append(f"{name} at {line_in(traceback.extract_stack())}")
        elif kind == b"refused":
            seen.refused.append(f"{name} at {line_in(traceback.extract_stack())}")
        else:
            seen.launched[f"{kind.decode()} {name}"] += 1

    listener, device = LISTENER(listen), ctypes.CDLL("libcuda.so.1")
    device.null_listen(listener)
    try:
        yield seen
    finally:
        device.null_listen(None)


def line_in(stack: traceback.StackSummary) -> str:
    """The last line of this project in a stack, but for those that only pass an operation on."""
    lines = [line for line in stack if line.filename.startswith(ROOMS) and line.name != "__torch_dispatch__"]
    return f"{Path(lines[-1].filename).relative_to(ROOT)}:{lines[-1].lineno}" if lines else "a line outside of this project"


def steady(run: Callable[[], object], first: int = 1) -> Told:
    """What a call tells when what is made once has been made, by the ``first`` calls."""
    for _ in range(first):
        run()
    with told() as seen:
        run()
    return seen
