"""What a GPU shows in half an hour, in four commands of at most ten minutes:

    python benchmarks/gpu_training.py --data cifar10 --data-dir DIR --part check       # then steps, resnet18, table; without --part: all

1. check: gradients against the CPU's and those of ``adjoint="direct"`` (benchmarks/device_check.py).
2. steps: launches of a training step, beside those that tests allow it, and its time, as it is and replayed from a CUDA graph.
3. resnet18: images per second against those of the same layers, all stored; then one run, of as many epochs as fit.
4. table: the papers' table (examples/paper_table.py), seeds stacked, of as many networks and epochs as fit.

A part ends before its minutes are over, and a check that fails ends all. It writes benchmarks/results/gpu_PART.md after each row and
keeps its figures in OUT, so that the same command goes on where it ended. ``--tiny`` takes a few images, steps and rows, and writes into
OUT alone. On the null device (tests/null_cuda) all is run as on a GPU, with three epochs: launches are a GPU's, times and values are not.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import scripts  # noqa: F401

# isort: split
import paper_table
from anodev2.models import MODELS as NETWORKS
from cuda_graph import WARM, aside, recorded
from images import DOWNLOADED, load_images
from options import Acts, mistakes_told, parse, refuse_idle
from ranks import Ranks, peak_memory
from runs import RunError, read_json, write, write_json
from settings import Config as TrainingConfig
from stacked import Stacked
from training import Training, dealt

ROOT = Path(__file__).parent.parent
sys.path.insert(1, str(ROOT))
from tests.null_cuda import told  # noqa: E402
from tests.null_cuda.launches import LAUNCHES, MEASURED, network, training_step  # noqa: E402

Part = Literal["check", "steps", "resnet18", "table"]
MINUTES: dict[Part, float] = {"check": 3, "steps": 4, "resnet18": 8, "table": 9}
RESNET18 = {f"{block}, {steps} steps{words}": f"--block {block} --steps {steps}{options}" for steps in (2, 5) for block, words, options in
            (("ode", ", stored", " --adjoint direct"), ("ode", "", ""), ("coupled", "", ""))}  # fmt: skip
FAST = "--model resnet18 --batch-size 512 --lr 0.4 --label-smoothing 0.1 --cutout 8 --ema 0.99 --precision bfloat16"
LONG = "coupled, 2 steps"  # of ResNet-18, the run to its accuracy
MODELS = ("resnet4", "resnet10", "alexnet")
NOTHING = "Nothing is computed on this device: neither times nor values say anything.\n\n" if told.present() else ""
MOST = 3 if NOTHING else 350  # epochs, as many as the papers'
LEAST = 3  # epochs for which another network is added to the table
API = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")  # what a profile calls launches


@dataclass(frozen=True)
class Config:
    """What a GPU shows in half an hour."""

    part: Part | None = None
    """one of the four; default: all, in this order"""
    data: str = "mini"
    """as for train_cifar.py"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    out: Path = Path("runs/gpu_training")
    """folder of the runs and of the figures so far"""
    tiny: bool = False
    """everything at the smallest size"""

    @property
    def folder(self) -> list[str]:
        """Where the images lie, which is no part of a report."""
        return ["--data-dir", str(self.data_dir)] if self.data in DOWNLOADED else []

    @property
    def images(self) -> list[str]:
        return ["--data", self.data, *(["--subset", "40"] if self.tiny else [])]


ACTS: Acts = {"data_dir": (f"--data {', '.join(DOWNLOADED)}", lambda c: c.data in DOWNLOADED)}


class Kept:
    """The figures of a part, in a file from the moment they are there, and the time that is left for more."""

    def __init__(self, config: Config, part: Part) -> None:
        self.path, self.end = config.out / f"{part}.json", time.monotonic() + 60 * MINUTES[part]
        versions = f"CUDA {torch.version.cuda}, torch {torch.__version__}, Python {platform.python_version()}"
        where = f"{torch.cuda.get_device_name()}, {versions}, {shlex.join(config.images)}"
        begun: dict[str, Any] = {"date": str(date.today()), "where": where}
        self.figures = read_json(self.path, f"--out {config.out}", *begun) if self.path.exists() else begun
        if self.figures["where"] != where:
            raise RunError(f"--out {config.out} holds figures of {self.figures['where']}; give another folder")

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What has been measured under this name, or is now; None is not kept."""
        if name not in self.figures:
            found = measure()
            if found is None:
                return None
            self.figures[name] = found
            write_json(self.path, self.figures)
        return self.figures[name]

    def command(self, script: str, *words: str) -> tuple[int | None, str]:
        """Run a script of ours: its status, None where the time was over, and what it printed."""
        command = [sys.executable, str(ROOT / script), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            printed, _ = process.communicate(timeout=max(self.left - 15, 1))
        except subprocess.TimeoutExpired:
            return None, interrupted(process)
        except KeyboardInterrupt:
            interrupted(process)
            raise
        return process.returncode, printed

    def finished(self, script: str, *words: str) -> bool:
        """Run a script of ours: whether it came to its end before the time was over."""
        status, _ = self.command(script, *words)
        if status:
            raise RunError(f"{script} ended with status {status}")
        return status == 0


def interrupted(process: subprocess.Popen[str]) -> str:
    """End a process and those that it has begun, which keep what they have: what it printed."""
    for last in (signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, last)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)[0]
    return ""


def check(config: Config, kept: Kept) -> Iterator[str]:
    status, printed = 0, kept.figures.get("printed")
    if printed is None:
        status, printed = kept.command("benchmarks/device_check.py", "--device", "cuda", *(["--rounds", "1"] if config.tiny else []))
        if NOTHING and f"| {[*NETWORKS][-1]} |" in printed:  # whole
            status = 0
        kept.once("printed", lambda: printed if status == 0 else None)
    ends: dict[int | None, str] = {0: "Not judged." if NOTHING else "Every row is within its bound.", None: "Stopped by the clock."}
    yield f"{ends.get(status, 'ROWS ARE BEYOND THEIR BOUNDS, or missing.')}\n\n{printed}"
    if status:
        raise RunError("the check failed; its table says where")


def steps(config: Config, kept: Kept) -> Iterator[str]:
    text = f"Training steps at batch {8 if config.tiny else 256}, TF32 in convolutions; allowed: by tests, on a device without a device, "
    text += f"where a convolution is one launch (torch {MEASURED}).\n\n"
    text += "| network | launches | allowed | ms | ms, replayed from a graph |\n|---|---|---|---|---|\n"
    for row, allowed in [item for item in LAUNCHES.items() if item[0].startswith("resnet4 coupled" if config.tiny else "")]:
        if row not in kept.figures and kept.left < 20:
            yield f"{text}\nStopped by the clock.\n"
            return
        found = kept.once(row, lambda row=row: of_a_step(training_step(network(*row.split()), 8 if config.tiny else 256)))
        text += f"| {row} | {found['launches']} | {allowed} | {found['ms']:.2f} | {found['replayed']:.2f} |\n"
        yield text


def of_a_step(step: Callable[[], None]) -> dict[str, float]:
    """Its launches, and its milliseconds as it is and replayed."""

    def taken() -> tuple[Tensor, ...]:
        step()
        return ()

    for _ in range(WARM):
        step()
    found = {"launches": launches(step), "ms": 1e3 * seconds(step)}
    aside(taken, {})
    replay, _ = recorded(taken, {})
    return {**found, "replayed": 1e3 * seconds(replay)}


def launches(step: Callable[[], None]) -> int:
    """Kernels, copies and fills of memory: what the profiler sees of a GPU, or what the null device is told."""
    if told.present():
        return told.steady(step).launches
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.name.startswith(API) for event in seen.events() or ())


def seconds(step: Callable[[], object], enough: float = 1.0) -> float:
    """The median over rounds of three calls, of at least three rounds and about a second in all."""
    took: list[float] = []
    while len(took) < 3 or (3 * sum(took) < enough and len(took) < 100):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        took.append((time.perf_counter() - began) / 3)
    return statistics.median(took)


def pace(settings: TrainingConfig) -> dict[str, float]:
    """Of train_cifar.py with these settings, from its first steps: seconds until it runs, seconds of an epoch, images per second, MiB."""
    found = of_first_steps(settings)
    gc.collect()
    torch.cuda.empty_cache()
    return found


def of_first_steps(settings: TrainingConfig) -> dict[str, float]:
    began, device = time.perf_counter(), torch.device("cuda")
    torch.backends.cudnn.benchmark = True  # as in a run
    images = load_images(settings.data, settings.data_dir, device, settings.subset, settings.size, settings.validation)
    peak_memory(device, reset=True)
    runs = [Training(replace(settings, seeds=(seed,), stack=False), Path(), Ranks(device), images) for seed in settings.seeds]
    deals = [{name: tensor[..., : settings.batch_size] for name, tensor in dealt(run).items()} for run in runs]
    joined = {name: torch.stack([deal[name] for deal in deals]) for name in deals[0]}
    step, given = (Stacked(runs).take_step, joined) if settings.stack else (runs[0].step, deals[0])
    for run in runs:
        run.network.train()
    for _ in range(WARM + 1):
        step(**given)
    torch.cuda.synchronize()
    start = time.process_time() + time.perf_counter() - began  # a process of its own imports what this one has
    each = seconds(lambda: step(**given)) / settings.batch_size
    peak = peak_memory(device) / 2**20
    epoch = each * len(images.y_train) + sum(map(of_an_end, runs))
    return {"start": start, "epoch": epoch, "images_per_second": len(runs) / each, "peak": peak}


def of_an_end(run: Training) -> float:
    """Seconds of an epoch beside its steps: images are dealt, the network is tested, files are written; the second time."""
    took = 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run.folder = Path(folder)
        for _ in range(2):
            began = time.perf_counter()
            dealt(run)
            run.keep(run.tell(0.0, 0.0, 1.0))
            took = time.perf_counter() - began
    return took


def resnet18(config: Config, kept: Kept) -> Iterator[str]:
    words = [*config.images, *shlex.split(FAST), *(["--batch-size", "20"] if config.tiny else [])]
    text = f'Options: {FAST}; steps replayed from a graph. Stored: forward and backward of the same layers, by `adjoint="direct"`.\n\n'
    text += "| ResNet-18 | images per second | time / stored | peak memory in MiB | / stored |\n|---|---|---|---|---|\n"
    stored: dict[str, float] = {}
    for name, options in {"residual": "--block residual", **RESNET18}.items():
        if config.tiny and "5 steps" in name:
            continue
        if name not in kept.figures and kept.left < 60:
            yield f"{text}\nStopped by the clock.\n"
            return
        settings = parse(TrainingConfig, [*words, *config.folder, *options.split()])[0]
        found = kept.once(name, lambda settings=settings: pace(settings))
        stored = found if name == "residual" or name.endswith("stored") else stored
        speed, memory = stored["images_per_second"] / found["images_per_second"], found["peak"] / stored["peak"]
        text += f"| {name} | {found['images_per_second']:.0f} | {speed:.2f} | {found['peak']:.0f} | {memory:.2f} |\n"
        yield text
    yield f"{text}\n{accuracy(config, kept, [*words, *RESNET18[LONG].split()])}\n"


def accuracy(config: Config, kept: Kept, words: list[str]) -> str:
    """Of a run of as many epochs as fit, with a fifth of the time to spare; as many as before where it goes on."""
    pace, folder = kept.figures[LONG], config.out / "resnet18"
    epochs = kept.once("epochs", lambda: 1 if config.tiny else fitting(kept.left, pace["start"], pace["epoch"]))
    if not (folder / "result.json").exists():
        begun = ["--resume", str(folder)] if (folder / "config.json").exists() else []
        kept.finished("examples/train_cifar.py", *(begun or [*words, *config.folder, "--epochs", str(epochs), "--out", str(folder)]))
    if (folder / "result.json").exists():
        return f"{LONG}, {epochs} epochs: {read_json(folder / 'result.json', LONG)['test_accuracy']:.2f} % on the test set."
    last = (folder / "metrics.csv").read_text().splitlines()[-1:] if (folder / "metrics.csv").exists() else []
    return f"{LONG}, {epochs} epochs, stopped by the clock after {paper_table.epochs_of(folder)}: {', '.join(last)}."


def fitting(left: float, start: float, epoch: float) -> int:
    """Epochs that fit into the time that is left, with a fifth of it to spare, and at most as many as are of use."""
    return min(max(1, int((0.8 * left - start) / epoch)), MOST)


def table(config: Config, kept: Kept) -> Iterator[str]:
    small = paper_table.Config(steps=2, seeds=(0, 1), variants=("coupled-1",), subset=40, recipe="--batch-size 20")
    whole = small if config.tiny else paper_table.Config(recipe="--schedule paper --batch-size 256")
    whole = replace(whole, data=config.data, data_dir=config.data_dir, stack=True, out=config.out / "table")
    plan = kept.once("plan", lambda: planned(whole, kept, config.tiny))
    words = [*config.images, "--stack", "--models", *plan["models"], "--epochs", str(plan["epochs"]), f"--recipe={whole.recipe}"]
    words += ["--seeds", *map(str, whole.seeds), "--steps", str(whole.steps), "--variants", *whole.variants]
    folders = [*config.folder, "--out", str(whole.out)]
    over = kept.once("over", lambda: kept.finished("examples/paper_table.py", *words, *folders) or None)
    text = (whole.out / "table.md").read_text() if (whole.out / "table.md").exists() else ""
    stopped = "" if over else "\nStopped by the clock."
    yield f"    python examples/paper_table.py {shlex.join(words)}\n\n{text}{stopped}"


def planned(whole: paper_table.Config, kept: Kept, tiny: bool) -> dict[str, Any]:
    """The most networks that leave some epochs to each."""
    start = epoch = 0.0
    plan: dict[str, Any] = {}
    for count, model in enumerate(MODELS[:1] if tiny else MODELS, 1):
        for variant in whole.variants:
            settings = parse(TrainingConfig, paper_table.options_of(whole, (model, variant, 0)))[0]
            together = paper_table.together(whole, variant)
            found = pace(replace(settings, seeds=whole.seeds, stack=True) if together else settings)
            times = 1 if together else len(whole.seeds)
            start, epoch = start + times * found["start"], epoch + times * found["epoch"]
        epochs = 1 if tiny else fitting(kept.left, start, epoch)
        if plan and epochs < LEAST:
            break
        plan = {"models": MODELS[:count], "epochs": epochs}
    return plan


MEASURES: dict[Part, Callable[[Config, Kept], Iterator[str]]] = {"check": check, "steps": steps, "resnet18": resnet18, "table": table}


def main(argv: list[str] | None = None) -> None:
    with mistakes_told():
        config, given = parse(Config, argv)
        refuse_idle(config, given, ACTS)
        if not torch.cuda.is_available():
            raise RunError("a CUDA device is needed; tests/device/test_null_cuda.py runs this on one without a device")
        parts: list[Part] = [*MINUTES] if config.part is None else [config.part]
        for part in parts:
            print(f"{part:10}{MINUTES[part]:3g} minutes at most", flush=True)
        for part in parts:
            measure(config, part)


def measure(config: Config, part: Part) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    kept = Kept(config, part)
    file = (config.out if config.tiny else ROOT / "benchmarks" / "results") / f"gpu_{part}.md"
    command = shlex.join(["python", "benchmarks/gpu_training.py", "--data", config.data, "--part", part, *["--tiny"][: config.tiny]])
    head = f"# On a GPU: {part}\n\n{kept.figures['date']}, {kept.figures['where']}.\n\n    {command}\n\n{NOTHING}"
    for text in MEASURES[part](config, kept):
        write(file, f"{head}{text.rstrip()}\n".encode())
    print(f"\n{file.read_text()}", flush=True)


if __name__ == "__main__":
    main()
