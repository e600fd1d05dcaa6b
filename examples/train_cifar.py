"""Train a CIFAR classifier whose blocks are residual, ODEs or coupled ODEs.

    python examples/train_cifar.py                                        # a minute or two on two cores, data included
    python examples/train_cifar.py --data cifar10 --epochs 30             # the full set, downloaded on first use
    python examples/train_cifar.py --model resnet10 --block ode --steps 3 --seeds 0 1 2
    python examples/train_cifar.py --resume runs/resnet4-coupled-mini-0   # go on after an interruption
    torchrun --nproc-per-node 2 examples/train_cifar.py --data cifar10 --batch-size 512

Every run has a folder: config.json, metrics.csv, curves.png, last.pt (to resume from), best.safetensors and
last.safetensors (weights) and result.json. A run in one process on a CPU that was killed and resumed ends with the same
weights to the bit; one that several processes began may go on in one, and the other way round.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm import tqdm

import anodev2
from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection
from anodev2.models import made_from
from anodev2.models.saved import weights_file
from average import Average
from cuda_graph import Replayed
from image_classes import KNOWN
from images import DOWNLOADED, Draws, Images, augment, drawn, load_images
from options import (
    DIFFERENT,
    Acts,
    Count,
    CountFrom0,
    NotNegative,
    Positive,
    Seed,
    Share,
    checked,
    mistakes_told,
    parse,
    refuse_idle,
)
from precision import chosen
from ranks import Ranks, choose_device, joined, peak_memory, processes
from runs import (
    NotWritten,
    RunError,
    in_words,
    load_checkpoint,
    new_folder,
    read_json,
    refuse_taken,
    revision,
    save_checkpoint,
    save_weights,
    write_history,
    write_json,
    write_tensorboard,
)

Precision = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True)
class Config:
    """Train a CIFAR classifier whose blocks are residual, ODEs or coupled ODEs."""

    data: str = "mini"
    """mini (2,000 of CIFAR-10, in the repository), cifar10, cifar100, fashion, or a folder: train/CLASS/* and test/CLASS/*, or CLASS/*"""
    data_dir: Path = Path("data")
    """where cifar10.npz, cifar100.npz, fashion.npz or FashionMNIST's idx files lie, or are put after the download"""
    size: Literal[32, 64] = 32
    """height and width in pixels that images of a folder get: the shorter side resized, the longer cut at both ends"""
    validation: Share = 0.0
    """share of the training images that are kept aside, on which the best epoch is chosen; 0: the last epoch is the result"""
    subset: Count | None = None
    """use only so many training images, and at most so many test images"""
    model: Literal["resnet4", "resnet10", "resnet18", "alexnet", "squeezenext"] = "resnet4"
    """network; docs/models.md has the parameters and multiply-adds of each"""
    block: Literal["residual", "ode", "coupled"] = "coupled"
    """residual: one Euler step; ode: dz/dt = f(z, theta); coupled: theta moves too"""
    steps: Count = 5
    """steps of every ODE and coupled block"""
    method: Literal["euler", "midpoint", "heun2", "rk4"] = "euler"
    """time-stepping method of every block"""
    norm: Literal["per_step", "shared"] = "per_step"
    """BatchNorm inside blocks: one per step, or one for all"""
    weights: Literal["along", "final"] = "along"
    """activations at time t read the weights of time t, or those of the end (coupled blocks)"""
    time: bool = False
    """t as one more input channel of the convolutions inside blocks"""
    dynamics: Literal["rda", "static", "constant", "linear", "fourier", "chebyshev"] = "rda"
    """of the weights of coupled blocks: reaction-diffusion-advection, none, or an expansion in a basis over depth"""
    basis_size: Count = 3
    """functions in that basis (odd for fourier)"""
    tau: NotNegative = 0.02
    """initial diffusivity of the weights, in kernel cells squared (rda)"""
    per: Literal["layer", "channel"] = "layer"
    """one set of coefficients per kernel, or one per output channel (rda)"""
    adjoint: Literal["checkpoint", "direct", "reversible", "backsolve"] = "checkpoint"
    """one stored state per step; everything stored (same gradients); of a reversible scheme; solved backwards (inexact)"""
    slots: Count | None = None
    """states a block may store, for --adjoint checkpoint; default: one per step"""
    memory: str | None = None
    """bytes a block may use, such as 512MiB, for --adjoint checkpoint"""
    init: Annotated[Path | None, tyro.conf.arg(metavar="RUN|FILE")] = None
    """weights to start from: a run of such a network, or a file of weights; those of a residual network start its ODE too"""
    epochs: Count = 15
    """passes over the training images"""
    batch_size: Count = 64
    """images per gradient step, over all processes; what is left of a pass over is dropped, others each time"""
    accumulate: Count = 1
    """parts in which a process takes its share of a batch"""
    schedule: Literal["one-cycle", "paper"] = "one-cycle"
    """one-cycle: up for a third of training, then down to 0; paper: lr / 10 after 3/7 and 5/7 of the epochs (150, 250 of 350)"""
    lr: Positive = 0.1
    """largest learning rate"""
    momentum: Share = 0.9
    """of SGD"""
    weight_decay: NotNegative = 5e-4
    """of everything but the weight dynamics, which decay would pull towards standing still"""
    label_smoothing: Share = 0.0
    """probability given to all classes alike"""
    cutout: CountFrom0 = 0
    """side of a square of pixels set to 0 in every training image"""
    ema: Share = 0.0
    """decay per step of an average of the weights, which is then what is tested and saved; 0: none"""
    precision: Precision = "float32"
    """autocast; float16 with a gradient scaler; auto: bfloat16 where the device is much faster in it, else float32"""
    channels_last: bool = True
    """layout of images and kernels in memory; a quarter faster on CPUs too"""
    compile: bool = False
    """torch.compile the network (a minute or so first)"""
    cuda_graph: bool = True
    """of one process on CUDA: replay a whole training step, the optimizer's with it, as one launch"""
    tensorboard: bool = False
    """write RUN/tensorboard"""
    seeds: Annotated[tuple[Seed, ...], DIFFERENT] = (0,)
    """of initial weights, order of images and augmentation; several: one run each, then their mean (min/max)"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""
    out: Path | None = None
    """run folder; default runs/MODEL-BLOCK-DATA-SEEDS, with a number behind it if that is taken"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """continue the run in this folder with its own settings; beside it give --device and more --epochs at most"""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """config.json of a run, whose settings hold where no option is given"""

    @property
    def seed(self) -> int:
        return self.seeds[0]


BASES = ("constant", "linear", "fourier", "chebyshev")
BLOCKS = "--block ode or coupled"
ACTS: Acts = {  # options that do not always have an effect: with what they have one; elsewhere they are refused
    "size": ("a folder as --data", lambda c: c.data not in KNOWN),
    "data_dir": (f"--data {', '.join(DOWNLOADED)}", lambda c: c.data in DOWNLOADED),
    "steps": (BLOCKS, lambda c: c.block != "residual"),
    "method": (BLOCKS, lambda c: c.block != "residual"),
    "norm": (f"{BLOCKS} and more than one step", lambda c: c.block != "residual" and c.steps > 1),
    "weights": ("--block coupled and dynamics that are not static", lambda c: c.block == "coupled" and c.dynamics != "static"),
    "time": (BLOCKS, lambda c: c.block != "residual"),
    "dynamics": ("--block coupled", lambda c: c.block == "coupled"),
    "basis_size": (f"--block coupled and --dynamics {', '.join(BASES)}", lambda c: c.block == "coupled" and c.dynamics in BASES),
    "tau": ("--block coupled and --dynamics rda", lambda c: c.block == "coupled" and c.dynamics == "rda"),
    "per": ("--block coupled and --dynamics rda", lambda c: c.block == "coupled" and c.dynamics == "rda"),
    "adjoint": (BLOCKS, lambda c: c.block != "residual"),
    "slots": (f"{BLOCKS} and --adjoint checkpoint", lambda c: c.block != "residual" and c.adjoint == "checkpoint"),
    "memory": (f"{BLOCKS} and --adjoint checkpoint", lambda c: c.block != "residual" and c.adjoint == "checkpoint"),
    "cuda_graph": (
        "one process on CUDA and without --compile",
        lambda c: processes() == 1 and not c.compile and choose_device(c.device).type == "cuda",
    ),
}


def main(argv: list[str] | None = None) -> None:
    with mistakes_told():
        config = settled(argv)
        with joined(config.device, timedelta(minutes=10) if config.compile else timedelta(seconds=50)) as ranks:
            images = load_images(config.data, config.data_dir, ranks.device, config.subset, config.size, config.validation)
            check_shares(config, ranks.size, len(images.y_train))
            if config.resume is None:
                rehearsal(config, ranks, images)()
                config = with_precision(config, ranks, images)
            run = ranks.agree(lambda: run_folder(config))
            try:
                train_seeds(config, run, ranks, images)
            except KeyboardInterrupt:
                if ranks.first:
                    print(f"\ninterrupted; continue from the last epoch with: --resume {run}")
                raise
            except (NotWritten, OSError) as error:
                raise RunError(f"{in_words(error)}; that mended, continue from the last epoch with: --resume {run}") from None


def settled(argv: list[str] | None) -> Config:
    """The options as given, or those of the run to resume."""
    config, given = parse(Config, argv)
    if config.config is not None and config.resume is None:
        config, given = parse(Config, argv, saved_config(config.config, f"--config {config.config}"))
        config = dataclasses.replace(config, config=None)
    if config.resume is None:
        refuse_idle(config, given, ACTS)
        if config.out is not None:
            refuse_taken(config.out)
        return config
    if {*given} - {"resume", "device", "epochs"}:
        raise RunError(
            "--resume continues a run with its own settings; drop the other options but --device and --epochs, or start a new run"
        )
    changes = {name: getattr(config, name) for name in given if name != "resume"}
    saved = saved_config(config.resume / "config.json", f"--resume {config.resume} is no run folder")
    if config.epochs < saved.epochs and "epochs" in given:
        raise RunError(f"--epochs {config.epochs} must be at least the {saved.epochs} of the run in {config.resume}")
    return dataclasses.replace(saved, resume=config.resume, **changes)


def saved_config(path: Path, what: str) -> Config:
    """The settings that a run has left, without its folder."""
    saved = read_json(path, what) | {"out": None, "resume": None, "config": None}
    return checked(Config, saved, lambda name: f"{path}: {name}", str(path))


def run_folder(config: Config) -> Path:
    """The folder of the run to resume, or a new one with its settings."""
    if config.resume is not None:
        if saved_config(config.resume / "config.json", "").epochs != config.epochs:
            write_json(config.resume / "config.json", {**dataclasses.asdict(config), "resume": None})
        return config.resume
    default = Path("runs") / "-".join([config.model, config.block, Path(config.data).name, *map(str, config.seeds)])
    return new_folder(config.out, default, {**dataclasses.asdict(config), "resume": None})


def check_shares(config: Config, processes: int, images: int) -> None:
    if config.batch_size % (processes * config.accumulate) or config.batch_size > images:
        parts = f"{processes} processes times --accumulate {config.accumulate}" if processes > 1 else f"--accumulate {config.accumulate}"
        raise RunError(f"--batch-size {config.batch_size} must be a multiple of {parts}, and at most the {images} training images")


def with_precision(config: Config, ranks: Ranks, images: Images) -> Config:
    """The precision that auto stands for here, the same in all processes and for the rest of the run."""
    if config.precision != "auto":
        return config

    def choose() -> Config:
        kinds: tuple[Precision, ...] = ("float32", "bfloat16")
        steps = {kind: rehearsal(dataclasses.replace(config, precision=kind), Ranks(ranks.device), images) for kind in kinds}
        found, why = chosen(ranks.device, lambda kind: steps[kind]())
        print(f"--precision auto: {found}, {why}")
        return dataclasses.replace(config, precision=found)

    return ranks.agree(choose)


def rehearsal(config: Config, ranks: Ranks, images: Images) -> Callable[[], object]:
    """The first part of a batch, there and back: what cannot run is refused before anything is made."""
    training = Training(dataclasses.replace(config, compile=False), Path(), ranks, images)
    share = slice(config.batch_size // (ranks.size * config.accumulate))
    training.network.train()
    return lambda: backward(training, images.normalised(images.x_train[share]), images.y_train[share], last=True)


def train_seeds(config: Config, run: Path, ranks: Ranks, images: Images) -> None:
    """One run per seed; those of several have folders seed-N inside ``run``, and their summary in its result.json."""
    if len(config.seeds) == 1:
        Training(config, run, ranks, images).run()
        return
    accuracies = []
    for seed in config.seeds:
        own, folder = dataclasses.replace(config, seeds=(seed,)), run / f"seed-{seed}"
        done = ranks.agree(lambda folder=folder: finished(folder, config.epochs))
        if ranks.first and not done:
            folder.mkdir(exist_ok=True)
            write_json(folder / "config.json", {**dataclasses.asdict(own), "resume": None})
        if not done:
            Training(own, folder, ranks, images).run()
        result = ranks.agree(lambda folder=folder: read_json(folder / "result.json", f"{folder}", "test_accuracy"))
        accuracies.append(result["test_accuracy"])
    if ranks.first:
        mean, low, high = statistics.mean(accuracies), min(accuracies), max(accuracies)
        summary = {"test_accuracy": {"mean": mean, "min": low, "max": high}, "seeds": dict(zip(config.seeds, accuracies, strict=True))}
        write_json(run / "result.json", summary)
        print(f"\n{len(accuracies)} seeds: {mean:.2f} ({low:.2f}/{high:.2f}) % test accuracy, mean (min/max); {run / 'result.json'}")


def finished(folder: Path, epochs: int) -> bool:
    return (folder / "result.json").exists() and read_json(folder / "result.json", f"{folder}", "epochs")["epochs"] >= epochs


class Training:
    """One run with one seed: what has to be kept between its epochs, and how to put it back."""

    def __init__(self, config: Config, run: Path, ranks: Ranks, images: Images) -> None:
        self.config, self.folder, self.ranks, self.images = config, run, ranks, images
        torch.manual_seed(config.seed)
        self.model = make_model(config, images.classes).to(ranks.device)
        if config.init is not None:
            begin_from(config.init, self.model)
        if config.channels_last:
            lay_out(self.model)
        self.average = Average(self.model, config.ema) if config.ema else None
        self.optimizer = make_optimizer(config, self.model)
        self.scheduler = make_scheduler(config, self.optimizer, len(images.y_train) // config.batch_size)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "float16")
        self.network = ranks.parallel(torch.compile(self.model) if config.compile else self.model)
        graph = config.cuda_graph and not config.compile and ranks.size == 1 and ranks.device.type == "cuda"
        self.step = Replayed(self.one_step, self.optimizer) if graph else self.one_step
        self.epoch, self.best, self.history = 0, -1.0, []
        self.start = coefficients(self.model)

    @property
    def tested(self) -> nn.Module:
        """The model whose weights are tested and saved."""
        return self.model if self.average is None else self.average.module

    def parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return parts if self.average is None else {**parts, "average": self.average}

    def checkpoint(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("epoch", "best", "history", "start")}
        numbers["epochs"] = self.config.epochs
        return {**numbers, **{name: part.state_dict() for name, part in self.parts().items()}}

    def restore(self, saved: dict[str, Any]) -> None:
        try:
            for name, part in self.parts().items():
                part.load_state_dict(saved[name])
            self.epoch, self.best, self.history, self.start = (saved[name] for name in ("epoch", "best", "history", "start"))
            if saved["epochs"] != self.config.epochs:
                self.reschedule()
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{self.folder / 'last.pt'} is not a readable checkpoint of this run ({in_words(error)})"
            raise RunError(f"{what}; delete it to start anew") from None

    def reschedule(self) -> None:
        """The learning rate goes on as if so many epochs had been meant from the start."""
        batches, groups = len(self.images.y_train) // self.config.batch_size, self.optimizer.param_groups
        for group in groups:
            group["lr"] = self.config.lr
        self.scheduler = make_scheduler(self.config, self.optimizer, batches)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # before optimizer.step
            for _ in range(self.epoch * batches):
                self.scheduler.step()

    def autocast(self) -> AbstractContextManager[Any]:
        kind = getattr(torch, self.config.precision) if self.config.precision != "auto" else torch.float32
        # the cache would keep a weight's cast from one evaluation, and its graph, for the next
        return torch.autocast(self.ranks.device.type, kind, enabled=kind is not torch.float32, cache_enabled=False)

    def one_step(self, order: Tensor, **chance: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from the images of these numbers: the sum of their losses, and how many are right. All of it lies on the device."""
        config, images, share = self.config, self.images, len(order) // self.config.accumulate
        loss_sum = right = torch.zeros((), device=order.device)
        for part in range(config.accumulate):
            mine = slice(part * share, (part + 1) * share)
            x, y = images.normalised(images.x_train[order[mine]]), images.y_train[order[mine]]
            x = augment(x, Draws(**chance)[mine], config.cutout)
            loss, logits = backward(self, x, y, last=part == config.accumulate - 1)
            loss_sum, right = loss_sum + loss * share, right + (logits.argmax(1) == y).sum()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.move(self.model)
        return loss_sum, right

    def run(self) -> None:
        config, first = self.config, self.ranks.first
        if (self.folder / "last.pt").exists():
            self.restore(load_checkpoint(self.folder / "last.pt"))
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if first:
            where = f"{self.ranks.device}" if self.ranks.size == 1 else f"{self.ranks.size} processes"
            images = f"{len(self.images.y_train)} images, on {where}"
            print(
                f"{config.model}, block {config.block}, seed {config.seed}, {parameters:,} parameters, {images}; run folder {self.folder}"
            )
            write_history(self.folder, self.history)
        gc.collect()  # the network of the seed before
        peak_memory(self.ranks.device, reset=True)
        while self.epoch < config.epochs:
            row = self.one_epoch()
            if first:
                self.keep(row)
        if first:
            self.finish(parameters)

    def one_epoch(self) -> dict[str, float]:
        began = time.perf_counter()
        loss, train_accuracy = train_epoch(self)
        trained = time.perf_counter() - began
        self.ranks.share(self.model.buffers())
        self.ranks.share(self.tested.buffers())
        images = self.images
        accuracies = {"train_accuracy": train_accuracy, "test_accuracy": evaluate(self, images.x_test, images.y_test)}
        if len(images.y_valid):
            accuracies["validation_accuracy"] = evaluate(self, images.x_valid, images.y_valid)
        self.epoch += 1
        row = {"epoch": self.epoch, "loss": loss, **accuracies}
        seen = len(images.y_train) // self.config.batch_size * self.config.batch_size
        rest = {"images_per_second": seen / trained, "peak_memory_mib": peak_memory(self.ranks.device) / 2**20}
        row |= {"seconds": time.perf_counter() - began, **rest}
        self.history.append(row)
        return row

    def facts(self) -> dict[str, Any]:
        """What a file of weights says of them; ``anodev2.models.facts`` reads it."""
        config, images = self.config, self.images
        return {
            "network": network_of(config, images.classes),
            "classes": images.names,
            "mean": images.mean.tolist(),
            "std": images.std.tolist(),
            "size": images.size,
            "data": config.data,
            "seed": config.seed,
            "epoch": self.epoch,
            **{name: value for name, value in self.history[-1].items() if name in ("test_accuracy", "validation_accuracy")},
            "versions": {"anodev2": anodev2.__version__, "torch": torch.__version__},
            "revision": revision(),
        }

    def keep(self, row: dict[str, float]) -> None:
        """Say what the epoch brought, and write what a resumed run needs."""
        config, chosen = self.config, row.get("validation_accuracy", -1.0)
        done = f"epoch {self.epoch:3d}/{config.epochs}  loss {row['loss']:.4f}  train {row['train_accuracy']:5.2f} %"
        done += f"  validation {chosen:5.2f} %" if "validation_accuracy" in row else ""
        print(f"{done}  test {row['test_accuracy']:5.2f} %  {row['seconds']:.1f} s", flush=True)
        # before last.pt: killed between the two, the epoch is redone and written again
        save_weights(self.folder / "last.safetensors", self.tested.state_dict(), self.facts())
        if chosen > self.best:
            self.best = chosen
            save_weights(self.folder / "best.safetensors", self.tested.state_dict(), self.facts())
        if config.tensorboard:
            rates = {"lr": self.optimizer.param_groups[0]["lr"]} | {f"moved/{name}": value for name, value in movement(self.tested).items()}
            write_tensorboard(self.folder / "tensorboard", self.epoch, row | rates)
        save_checkpoint(self.folder / "last.pt", self.checkpoint())
        write_history(self.folder, self.history)

    def finish(self, parameters: int) -> None:
        """The last weights, result.json and the last words."""
        end, moved = coefficients(self.tested), movement(self.tested)
        weights = {
            name: {"relative_change": moved[name]}
            | {key: {"start": self.start[name][key], "end": end[name][key]} for key in end.get(name, {})}
            for name in moved
        }
        history, config = self.history, self.config
        result = {
            "test_accuracy": history[-1]["test_accuracy"],
            "epochs": config.epochs,
            "seconds_per_epoch": statistics.mean(row["seconds"] for row in history),
            "images_per_second": statistics.median(row["images_per_second"] for row in history),
            "peak_memory_mib": max(row["peak_memory_mib"] for row in history),
            "parameters": parameters,
            "seed": config.seed,
            "device": torch.cuda.get_device_name() if self.ranks.device.type == "cuda" else str(self.ranks.device),
            "processes": self.ranks.size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "config": dataclasses.asdict(config),
            "weights": weights,
        }
        print(f"\ntest accuracy {result['test_accuracy']:.2f} % after {config.epochs} epochs")
        if "validation_accuracy" in history[0]:
            best = max(history, key=lambda row: row["validation_accuracy"])
            result["best"] = {name: best[name] for name in ("epoch", "validation_accuracy", "test_accuracy")}
            print("best on the validation images: epoch {epoch}, {validation_accuracy:.2f} % (test {test_accuracy:.2f} %)".format(**best))
        write_json(self.folder / "result.json", result)
        for name, change in moved.items():
            print(f"  {name}: |theta(1) - theta(0)| / |theta(0)| = {change:.3f}")
        print(f"figures: {self.folder / 'result.json'}, curves.png\nuse it:  python examples/predict.py {self.folder} IMAGE...")
        print(f"go on:   python examples/train_cifar.py --resume {self.folder} --epochs {2 * config.epochs}")


def begin_from(init: Path, model: nn.Module) -> None:
    """The weights of a run or of a file, which must be those of such a network."""
    file = weights_file(init)
    try:
        model.load_state_dict(safetensors.torch.load_file(str(file)))
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise RunError(f"--init {init} does not hold weights of this network ({' '.join(str(error).split())[:300]})") from None


def make_model(config: Config, classes: int) -> nn.Module:
    return made_from(network_of(config, classes))


def network_of(config: Config, classes: int) -> dict[str, Any]:
    """The network in plain values, from which ``anodev2.models.made_from`` makes it, here and from a file of weights."""
    names = ("model", "block", "steps", "method", "norm", "weights", "time", "adjoint")
    network = {"num_classes": classes, **{name: getattr(config, name) for name in names}}
    if config.adjoint == "checkpoint":
        network["adjoint"] = {"class": "CheckpointAdjoint", "slots": config.slots, "memory": config.memory}
    if config.block == "coupled":
        network["dynamics"] = dynamics_of(config)
    return network


def dynamics_of(config: Config) -> dict[str, Any]:
    if config.dynamics == "rda":
        return {"class": "ReactionDiffusionAdvection", "tau": config.tau, "per": config.per}
    if config.dynamics == "static":
        return {"class": "Static"}
    return {"class": "Galerkin", "basis": config.dynamics, "size": config.basis_size}


def lay_out(model: nn.Module) -> None:
    """Channels last in memory for all that is read as kernels; what has more axes, such as their expansion over depth, stays."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    dynamics = [p for name, p in model.named_parameters() if ".dynamics." in name]
    rest = [p for name, p in model.named_parameters() if ".dynamics." not in name]
    groups = [{"params": rest}, {"params": dynamics, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    for moving in (module for module in model.modules() if isinstance(module, ReactionDiffusionAdvection)):
        optimizer.register_step_post_hook(moving.project)
    return optimizer


def make_scheduler(config: Config, optimizer: torch.optim.Optimizer, batches: int) -> torch.optim.lr_scheduler.LRScheduler:
    total = config.epochs * batches
    if config.schedule == "paper":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [total * 3 // 7, total * 5 // 7])
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=max(total, 2), cycle_momentum=False)


def train_epoch(training: Training) -> tuple[float, float]:
    """Mean loss and accuracy (%) over one pass; the order and the augmentation depend on seed and epoch alone, however many the ranks."""
    config, images, ranks = training.config, training.images, training.ranks
    seed = config.seed * 1_000_003 + training.epoch
    torch.manual_seed(seed + 7_919 * ranks.rank)  # for what the network itself may draw
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.y_train), generator=generator).to(ranks.device)
    draws = drawn(len(order), generator, ranks.device, cutout=config.cutout > 0)
    share, batches = config.batch_size // ranks.size, len(order) // config.batch_size
    training.network.train()
    loss_sum = right = torch.zeros((), device=ranks.device)
    progress = tqdm(range(batches), desc=f"epoch {training.epoch + 1}", leave=False, disable=None if ranks.first else True)
    for number in progress:
        begin = number * config.batch_size + ranks.rank * share
        mine = slice(begin, begin + share)
        chance = {name: tensor for name, tensor in vars(draws[mine]).items() if tensor is not None}
        loss, hits = training.step(order=order[mine], **chance)
        loss_sum, right = loss_sum + loss, right + hits
        training.scheduler.step()
        if training.average is not None:
            training.average.n_averaged += 1
        if number % 20 == 0 or number == batches - 1:  # looking at the numbers makes a GPU wait
            seen = (number + 1) * share
            if not math.isfinite(loss_sum.item()):
                what = f"the loss became {loss_sum.item()} in epoch {training.epoch + 1}"
                raise RunError(f"{what}; lower --lr {config.lr}, or --tau for coupled blocks")
            progress.set_postfix(loss=f"{loss_sum.item() / seen:.3f}", accuracy=f"{100 * right.item() / seen:.1f} %")
    loss_sum, right = ranks.total(loss_sum, right)
    return loss_sum / (batches * config.batch_size), 100 * right / (batches * config.batch_size)


def backward(training: Training, x: Tensor, y: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
    """Add the gradient of these images' part of the mean loss; the ranks meet at the last part of a batch."""
    config = training.config
    x = x.contiguous(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    with training.ranks.averaging(training.network, now=last):
        with training.autocast():
            logits = training.network(x)
            loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
        training.scaler.scale(loss / config.accumulate).backward()
    return loss.detach(), logits.detach()


@torch.no_grad()
def evaluate(training: Training, x: Tensor, y: Tensor) -> float:
    """Accuracy in percent on these images, each rank taking its share of them."""
    ranks, images, model = training.ranks, training.images, training.tested
    model.eval()
    right = torch.zeros((), device=ranks.device)
    for part, labels in zip(x[ranks.rank :: ranks.size].split(500), y[ranks.rank :: ranks.size].split(500), strict=True):
        with training.autocast():
            right = right + (model(images.normalised(part)).argmax(1) == labels).sum()
    return 100 * ranks.total(right)[0] / len(y)


def coefficients(model: nn.Module) -> dict[str, dict[str, Any]]:
    """tau, upsilon and rho of every kernel that evolves, as plain numbers (or lists, per axis and channel)."""
    found = {}
    for block_name, block in model.named_modules():
        if isinstance(block, CoupledODEBlock) and isinstance(block.dynamics, ReactionDiffusionAdvection):
            for name in block.evolving:
                values = [value.detach() for value in block.dynamics.coefficients(name)]
                if block.dynamics.per == "layer":
                    values = [value.squeeze(0) for value in values]
                found[f"{block_name}.f.{name}"] = dict(zip(("tau", "upsilon", "rho"), (v.tolist() for v in values), strict=True))
    return found


@torch.no_grad()
def movement(model: nn.Module) -> dict[str, float]:
    """|theta(1) - theta(0)| / |theta(0)| of every weight that evolves."""
    found = {}
    for block_name, block in model.named_modules():
        if isinstance(block, CoupledODEBlock):
            end = block.weights(block.t[1])
            for name in block.evolving:
                start = block.f.get_parameter(name)
                found[f"{block_name}.f.{name}"] = ((end[name] - start).norm() / start.norm()).item()
    return found


if __name__ == "__main__":
    main()
