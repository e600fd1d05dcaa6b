"""A part of benchmarks/gpu_training.py on the device, at its smallest; rows are parts."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:] = [folder for folder in sys.path if Path(folder).name != "examples"]  # which the script finds by itself

from benchmarks import gpu_training  # noqa: E402


def answer(row: Any) -> list[str]:
    """Its report with no time at all, with time, and when it is run again with none."""
    minutes, reports = gpu_training.MINUTES[row], list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for given in (0, minutes, 0):
            gpu_training.MINUTES[row] = given
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):  # of a check that fails
                gpu_training.main(["--tiny", "--part", row, "--out", folder])
            reports.append(Path(folder, f"gpu_{row}.md").read_text().replace(folder, "FOLDER"))
    return reports
