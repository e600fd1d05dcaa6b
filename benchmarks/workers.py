"""Peers in processes of their own, which read orders and answer as lines of JSON, and where times were taken."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "JAX_PLATFORMS": "cpu"}


class Worker:
    """A process that answers each order, a line of JSON, with a line "=>" and JSON; what else it prints is passed over."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        self.name = Path(command[-1]).stem
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen([*map(str, command)], text=True, env=None if environment is None else dict(environment), **pipes)

    def ask(self, order: Any) -> Any:
        """The answer to an order; RuntimeError with the last line of what went wrong."""
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith("=>"):
                return json.loads(line[2:])
        raise RuntimeError(f"{self.name}: {self.process.stderr.read().strip().splitlines()[-1:]}")

    def close(self) -> None:
        """It ends where there are no more orders."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def without_ours() -> dict[str, str]:
    """The environment, in which no folder of ours is another's pde."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
