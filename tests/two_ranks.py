"""All that test_ranks.py asks of two processes, in one start: torchrun two_ranks.py DATA FOLDER PORT..."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from images import load_images
from ranks import joined
from settings import Config
from train_cifar import main
from training import Training, train_epoch


def options(data: Path, run: Path, *more: str) -> list[str]:
    fixed = ["--data", "cifar10", "--data-dir", str(data), "--subset", "100", "--batch-size", "20", "--lr", "0.02"]
    fixed += [] if "residual" in more else ["--steps", "2"]
    return [*fixed, "--schedule", "paper", "--device", "cpu", "--out", str(run), *more]


def five_steps(data: Path, out: Path, accumulate: int) -> None:
    """Of train_cifar.py, with BatchNorm as in evaluation; the parameters after them are in OUT.RANK."""
    config = Config(data="cifar10", subset=100, batch_size=20, steps=2, accumulate=accumulate, lr=0.05, label_smoothing=0.1, cutout=4)
    with joined("cpu", timedelta(seconds=50)) as ranks:
        training = Training(config, out.parent, ranks, load_images("cifar10", data, ranks.device, config.subset))
        for module in training.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().train = lambda mode=True, module=module: module  # stays
        train_epoch(training)
        torch.save(dict(training.model.named_parameters()), f"{out}.{ranks.rank}")


def lengthen(run: Path, epochs: int) -> None:
    """As if the run had been started with more epochs and interrupted where it ended."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "epochs": epochs}))
    (run / "result.json").unlink()


def go_on(folder: Path) -> None:
    """The run's second epoch in the first process alone, its third in both again."""
    ready = folder / "ready"
    if os.environ["RANK"] == "0":
        shutil.copy(folder / "run" / "last.safetensors", folder / "first.safetensors")
        lengthen(folder / "run", 2)
        os.environ["WORLD_SIZE"] = "1"
        main(["--resume", str(folder / "run")])
        os.environ["WORLD_SIZE"] = "2"
        lengthen(folder / "run", 3)
        ready.touch()
    deadline = time.monotonic() + 120
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    main(["--resume", str(folder / "run")])


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "five steps": lambda data, folder: five_steps(data, folder / "two", 1),
    "five steps in parts": lambda data, folder: five_steps(data, folder / "parts", 2),
    "begin": lambda data, folder: main(options(data, folder / "run", "--epochs", "1", "--ema", "0.9")),
    "go on": lambda data, folder: go_on(folder),
    "test": lambda data, folder: main(options(data, folder / "tested", "--epochs", "1", "--subset", "99", "--block", "residual")),
    "refuse": lambda data, folder: main(options(data, folder / "refused", "--batch-size", "21")),
}


if __name__ == "__main__":
    data, folder = map(Path, sys.argv[1:3])
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # processes that meet again do so at a port where none has met
    for (name, job), os.environ["MASTER_PORT"] in zip(JOBS.items(), sys.argv[3:], strict=True):
        said = io.StringIO()
        try:
            with redirect_stdout(said):
                job(data, folder)
        except SystemExit as end:
            said.write(str(end.code))
            if dist.is_initialized():
                dist.destroy_process_group()
        (folder / f"{name}.{os.environ['RANK']}.txt").write_text(said.getvalue())
    os._exit(0)  # gloo's threads may abort a process that takes its time to end
