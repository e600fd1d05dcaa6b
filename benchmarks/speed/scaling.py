"""How time and memory grow with the steps, the batch, the channels and the blocks.

    python -m benchmarks.speed.scaling [--out FOLDER] [--quick]

Time: CPU seconds of one thread, medians of interleaved rounds; memory: live bytes beyond the input and the parameters. The
slope over the number of steps is that of log time against log steps, from 16 steps on, and against the steps taken, those redone without
a graph included. --quick counts bytes alone.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anodev2.gradients.schedule import Schedule, positions
from benchmarks import scripts  # noqa: F401 (finds the examples)
from live_bytes import LiveBytes
from options import script

from .__main__ import Config, machine
from .workloads import scaling

CONTENDERS = ("direct", "checkpoint", "8 slots")
STEPS = (1, 4, 16, 64, 256, 1024)
OTHERS = {"batch": (1, 4, 16), "channels": (8, 16, 32), "blocks": (1, 2, 4)}
ROUNDS = 7


def live(run: Any) -> int:
    run()  # what the first call alone needs is not counted
    gc.collect()
    with LiveBytes() as counted:
        counted.ignore(tensor for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor))
        run()
    return counted.peak


def taken(contender: str, steps: int) -> float:
    """Steps of work: forward and backward count as three, as much as a step without a graph counts as one."""
    slots = 8 if contender == "8 slots" else None
    return 3 * steps + (0 if contender == "direct" else Schedule(steps, positions(steps, slots), slots).redone)


def measured(sizes: list[dict[str, int]], quick: bool) -> list[dict[str, Any]]:
    runs = [(contender, size, scaling(contender, **size)) for size in sizes for contender in CONTENDERS]
    rows = [{"contender": contender, **size, "bytes": live(run), "seconds": []} for contender, size, run in runs]
    for _ in range(0 if quick else ROUNDS):
        for row, (_, size, run) in zip(rows, runs, strict=True):
            repeats = max(1, 64 // size.get("steps", 16))
            begin = time.process_time()
            for _ in range(repeats):
                run()
            row["seconds"].append((time.process_time() - begin) / repeats)
    return rows


def slope(xs: list[float], ys: list[float]) -> float:
    """Of log y against log x, by least squares."""
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for contender, mark in zip(CONTENDERS, "os^", strict=True):
        own = [row for row in rows if row["contender"] == contender]
        times.plot([row["steps"] for row in own], [1e3 * statistics.median(row["seconds"]) for row in own], mark + "-", label=contender)
        memory.plot([row["steps"] for row in own], [row["bytes"] / 2**20 for row in own], mark + "-", label=contender)
    for axes, label in ((times, "ms, forward and backward"), (memory, "live MiB")):
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel=label)
        axes.grid(alpha=0.3)
    memory.legend()
    figure.savefig(file, dpi=120)


@dataclass(frozen=True)
class Scaling:
    """What is measured."""

    out: Path | None = None
    """folder for scaling.md, scaling.json and scaling.png; none: printed alone"""
    quick: bool = False
    """bytes alone, no times"""


def main(out: Path | None, quick: bool) -> None:
    torch.set_num_threads(1)
    over_steps = measured([{"steps": steps} for steps in STEPS], quick)
    others = {name: measured([{name: value} for value in values], quick) for name, values in OTHERS.items()}
    head = machine(Config())
    lines = [
        f"# Scaling\n\n    python -m benchmarks.speed.scaling\n\n{head}; {ROUNDS} rounds.",
        "",
        "| steps | " + " | ".join(f"{c}, ms | MiB" for c in CONTENDERS) + " |",
        "|---" * 7 + "|",
    ]
    for name, rows in {"steps": over_steps, **others}.items():
        if name != "steps":
            lines += ["", f"| {name} | " + " | ".join(f"{c}, ms | MiB" for c in CONTENDERS) + " |", "|---" * 7 + "|"]
        for value in STEPS if name == "steps" else OTHERS[name]:
            cells = [f"{value}"]
            for row in (row for row in rows if row[name] == value):
                cells += [f"{1e3 * statistics.median(row['seconds']):.2f}" if row["seconds"] else "-", f"{row['bytes'] / 2**20:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for contender in CONTENDERS:
        own = [row for row in over_steps if row["contender"] == contender and row["steps"] >= 16]
        memory = slope([row["steps"] for row in own], [row["bytes"] for row in own])
        text = f"{contender}: memory grows with the power {memory:.2f} of the steps"
        if not quick:
            seconds = [statistics.median(row["seconds"]) for row in own]
            text += f", time with the power {slope([row['steps'] for row in own], seconds):.3f}"
            text += f" ({slope([taken(contender, row['steps']) for row in own], seconds):.3f} of the steps taken)"
        lines.append(f"- {text}")
    lines += ["", "BatchNorm's statistics before every step are kept besides the slots: 272 bytes a step here."]
    print("\n".join(lines))
    if out is not None:
        (out / "scaling.md").write_text("\n".join(lines) + "\n")
        (out / "scaling.json").write_text(json.dumps({"machine": head, "steps": over_steps, **others}, indent=1))
        draw(over_steps, out / "scaling.png")


if __name__ == "__main__":
    script(main, __doc__, Scaling)
