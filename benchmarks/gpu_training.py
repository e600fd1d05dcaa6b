"""What training takes on a GPU, in one command: python benchmarks/gpu_training.py --data cifar10 --data-dir DIR --epochs 60

1. The papers' table: AlexNet, ResNet-4 and ResNet-10, five variants, three seeds (examples/paper_table.py).
2. ResNet-18, coupled, to its accuracy; time and memory per epoch of it, of the residual network and of the ODE in 2 and 5 steps.
3. Images per second of ResNet-18, coupled, with and without --compile.

Runs that are finished are kept, so the command can be repeated after an interruption. Writes OUT/report.md. ``--tiny`` does it all
with a few images, few steps and one seed: a check that everything runs, on any machine.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import paper_table
import scripts  # noqa: F401 # isort: split
from images import DOWNLOADED
from options import Acts, Count, mistakes_told, parse, refuse_idle
from ranks import choose_device
from runs import RunError, read_json, write

SCRIPT = Path(__file__).parent.parent / "examples" / "train_cifar.py"
FAST = ["--batch-size", "512", "--lr", "0.4", "--label-smoothing", "0.1", "--cutout", "8", "--ema", "0.99", "--precision", "bfloat16"]
RESNET18 = {
    "residual": ["--block", "residual"],
    "ode, 2 steps": ["--block", "ode", "--steps", "2"],
    "ode, 5 steps": ["--block", "ode", "--steps", "5"],
    "coupled, 2 steps": ["--block", "coupled", "--steps", "2"],
    "coupled, 5 steps": ["--block", "coupled", "--steps", "5"],
}


@dataclass(frozen=True)
class Config:
    """What training takes on a GPU."""

    data: str = "mini"
    """as for train_cifar.py"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    epochs: Count = 60
    """of the table's runs; the papers' are 350"""
    resnet18_epochs: Count = 40
    """of the run that is to reach 93 %"""
    out: Path = Path("runs/gpu_training")
    """folder of the runs and the report"""
    tiny: bool = False
    """everything at the smallest size"""


ACTS: Acts = {
    "data_dir": (f"--data {', '.join(DOWNLOADED)}", lambda c: c.data in DOWNLOADED),
    "epochs": ("--no-tiny", lambda c: not c.tiny),
    "resnet18_epochs": ("--no-tiny", lambda c: not c.tiny),
}


def data_options(config: Config) -> list[str]:
    return ["--data", config.data, *(["--data-dir", str(config.data_dir)] if config.data in DOWNLOADED else [])]


def trained(config: Config, name: str, *options: str) -> dict[str, Any]:
    """result.json of a run of train_cifar.py: begun, continued, or there already."""
    folder = config.out / f"{name}, {options[-1]} epochs".replace(", ", "-").replace(" ", "-")
    if not (folder / "result.json").exists():
        arguments = ["--resume", str(folder)]
        if not (folder / "config.json").exists():
            small = ["--subset", "40", "--batch-size", "20"] if config.tiny else []
            arguments = [*data_options(config), "--out", str(folder), "--model", "resnet18", *FAST, *options, *small]
        print(f"\n{name}", flush=True)
        status = subprocess.run([sys.executable, str(SCRIPT), *arguments]).returncode
        if status == 130:
            raise KeyboardInterrupt
        if status:
            raise RunError(f"{folder} ended with status {status}")
    return read_json(folder / "result.json", name)


def main() -> None:
    with mistakes_told():
        config, given = parse(Config, None)
        refuse_idle(config, given, ACTS)
        measure(config)


def measure(config: Config) -> None:
    small = ["--subset", "40", "--seeds", "0", "--steps", "2", "--recipe=--batch-size 20"]
    # the papers' recipe; float32, since the reverse solve is to fail for its own reasons
    full = ["--recipe=--schedule paper --batch-size 256"]
    table = [*data_options(config), "--out", str(config.out / "table")]
    paper_table.main([*table, "--epochs", str(1 if config.tiny else config.epochs), *(small if config.tiny else full)])

    timing, long = ("1", "1") if config.tiny else ("3", str(config.resnet18_epochs))
    runs = {name: trained(config, f"resnet18, {name}", *options, "--epochs", timing) for name, options in RESNET18.items()}
    compiled = trained(config, "resnet18, compiled", *RESNET18["coupled, 2 steps"], "--compile", "--epochs", timing)
    accurate = trained(config, "resnet18, long", *RESNET18["coupled, 2 steps"], "--epochs", long)

    device = choose_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    lines = [f"{date.today()}, {name}, torch {torch.__version__}, Python {platform.python_version()}", ""]
    lines += [f"    python {' '.join(sys.argv)}", "", "## The papers' table", "", (config.out / "table" / "table.md").read_text()]
    lines += ["## ResNet-18", "", f"Coupled, 2 steps, {accurate['epochs']} epochs: {accurate['test_accuracy']:.2f} % on the test set."]
    lines += [f"Options: {' '.join(FAST)}; {timing} epochs each for the times.", ""]
    lines += ["| | images per second | time / residual | peak memory in MiB | / residual |", "|---|---|---|---|---|"]
    base = runs["residual"]
    for name, run in [*runs.items(), ("coupled, 2 steps, compiled", compiled)]:
        time, memory = (base["images_per_second"] / run["images_per_second"], run["peak_memory_mib"] / base["peak_memory_mib"])
        lines.append(f"| {name} | {run['images_per_second']:.0f} | {time:.2f} | {run['peak_memory_mib']:.0f} | {memory:.2f} |")
    write(config.out / "report.md", ("\n".join(lines) + "\n").encode())
    print((config.out / "report.md").read_text())


if __name__ == "__main__":
    main()
