"""Train a CIFAR classifier whose blocks are residual, ODEs or coupled ODEs.

    python examples/train_cifar.py                                        # a minute or two on two cores, data included
    python examples/train_cifar.py --data cifar10 --epochs 30             # the full set, downloaded on first use
    python examples/train_cifar.py --model resnet10 --block ode --steps 3
    python examples/train_cifar.py --resume runs/resnet4-coupled-mini-0   # go on after an interruption

Every run has a folder: config.json, metrics.csv, curves.png, last.pt (to resume from), best.pt (the best epoch's
weights) and result.json. A run that was killed and resumed ends, on the CPU, with the same weights to the bit.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection
from examples.images import DataError, Images, crop_and_flip, load_images
from models import MODELS


@dataclass(frozen=True)
class Config:
    """Train a CIFAR classifier whose blocks are residual, ODEs or coupled ODEs."""

    data: str = "mini"
    """mini (2,000 real CIFAR-10 images, in the repository), cifar10, cifar100, or a folder of class folders"""
    data_dir: Path = Path("data")
    """where cifar10.npz / cifar100.npz lie or are put after the download"""
    model: Literal["resnet4", "resnet10", "alexnet"] = "resnet4"
    """network; 7,706, 44,186 and 1,756,682 parameters as residual networks"""
    block: Literal["residual", "ode", "coupled"] = "coupled"
    """residual: one Euler step; ode: dz/dt = f(z, theta); coupled: theta moves too, by reaction-diffusion-advection"""
    steps: int = 5
    """steps of every block (of no effect on residual ones)"""
    method: Literal["euler", "midpoint", "rk4"] = "euler"
    """time-stepping method of every block"""
    norm: Literal["per_step", "shared"] = "per_step"
    """BatchNorm inside blocks: one per step, or one for all"""
    adjoint: Literal["checkpoint", "direct"] = "checkpoint"
    """gradients with one stored state per step, or with everything stored; the same numbers"""
    tau: float = 0.02
    """initial diffusivity of the weights, in kernel cells squared (coupled blocks)"""
    per: Literal["layer", "channel"] = "layer"
    """one set of weight dynamics per kernel, or one per output channel (coupled blocks)"""
    epochs: int = 15
    """passes over the training images"""
    batch_size: int = 64
    """images per gradient step"""
    schedule: Literal["one-cycle", "paper"] = "one-cycle"
    """one-cycle: up for a third of training, then down to 0; paper: lr / 10 after 3/7 and 5/7 of the epochs (150, 250 of 350)"""
    lr: float = 0.1
    """largest learning rate"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 5e-4
    """of everything but the weight dynamics, which decay would pull towards standing still"""
    seed: int = 0
    """of initial weights, order of images and augmentation"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""
    out: Path | None = None
    """run folder; default runs/MODEL-BLOCK-DATA-SEED, with a number behind it if that is taken"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """continue the run in this folder with its own settings; give no other option beside it"""


class RunError(Exception):
    """Something the user can mend, in one sentence."""


def main(argv: list[str] | None = None) -> None:
    try:
        config = tyro.cli(Config, args=argv)
        config, run = open_run(config)
        train(config, run)
    except (RunError, DataError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted outside an epoch; a run folder, if there is one already, can be continued with --resume")
        sys.exit(130)


def open_run(config: Config) -> tuple[Config, Path]:
    """The configuration and folder of a new run, or of the one to resume."""
    if config.resume is not None:
        if dataclasses.replace(config, resume=None) != Config():
            raise RunError("--resume continues a run with its own settings; drop the other options, or start a new run")
        try:
            saved = json.loads((config.resume / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"--resume {config.resume} is no run folder with a readable config.json ({error})") from None
        paths = {name: Path(saved[name]) for name in ("data_dir",)}
        return Config(**{**saved, **paths, "out": None}), config.resume
    for name in ("epochs", "batch_size", "steps"):
        if getattr(config, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} {getattr(config, name)} must be at least 1")
    if not config.lr > 0:
        raise RunError(f"--lr {config.lr} must be positive")
    run = config.out or free_folder(Path("runs") / f"{config.model}-{config.block}-{Path(config.data).name}-{config.seed}")
    if (run / "config.json").exists():
        raise RunError(f"--out {run} already holds a run; continue it with --resume {run}, or choose another folder")
    return config, run


def free_folder(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 10_000))]
    return next(candidate for candidate in candidates if not candidate.exists())


def train(config: Config, run: Path) -> None:
    device = choose_device(config.device)
    images = load_images(config.data, config.data_dir, device)
    torch.manual_seed(config.seed)
    model = make_model(config, images.classes).to(device)
    batches = math.ceil(len(images.y_train) / config.batch_size)
    optimizer = make_optimizer(config, model)
    scheduler = make_scheduler(config, optimizer, batches)
    run.mkdir(parents=True, exist_ok=True)
    write(run / "config.json", json.dumps({**dataclasses.asdict(config), "resume": None}, indent=2, default=str).encode())
    state = {"epoch": 0, "history": [], "best": 0.0, "start": coefficients(model)}
    if (run / "last.pt").exists():
        state = restore(run / "last.pt", model, optimizer, scheduler)
        write_history(run, state["history"])
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{config.model}, block {config.block}, {parameters:,} parameters, {len(images.y_train)} images, on {device}; run folder {run}")
    try:
        for epoch in range(state["epoch"], config.epochs):
            began = time.perf_counter()
            loss, train_accuracy = train_epoch(config, model, optimizer, scheduler, images, epoch)
            accuracy = evaluate(model, images.x_test, images.y_test)
            seconds = time.perf_counter() - began
            state["history"].append(
                {"epoch": epoch + 1, "loss": loss, "train_accuracy": train_accuracy, "test_accuracy": accuracy, "seconds": seconds}
            )
            done = f"epoch {epoch + 1:3d}/{config.epochs}"
            print(f"{done}  loss {loss:.4f}  train {train_accuracy:5.2f} %  test {accuracy:5.2f} %  {seconds:.1f} s")
            if accuracy > state["best"]:  # before last.pt: killed between the two, the epoch is redone and written again
                state["best"] = accuracy
                save(run / "best.pt", {"model": model.state_dict(), "epoch": epoch + 1, "test_accuracy": accuracy})
            state["epoch"] = epoch + 1
            save(run / "last.pt", checkpoint(state, model, optimizer, scheduler))
            write_history(run, state["history"])
    except KeyboardInterrupt:
        print(f"\ninterrupted after {state['epoch']} of {config.epochs} epochs; continue with: python {sys.argv[0]} --resume {run}")
        sys.exit(130)
    finish(config, run, state, model, parameters, device)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device


def make_model(config: Config, classes: int) -> nn.Module:
    dynamics = ReactionDiffusionAdvection(config.tau, per=config.per) if config.block == "coupled" else None
    return MODELS[config.model](
        classes,
        block=config.block,
        steps=config.steps,
        method=config.method,
        dynamics=dynamics,
        norm=config.norm,
        adjoint=config.adjoint,
    )


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    dynamics = [p for name, p in model.named_parameters() if ".dynamics." in name]
    rest = [p for name, p in model.named_parameters() if ".dynamics." not in name]
    groups = [{"params": rest}, {"params": dynamics, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, config.lr, config.momentum, weight_decay=config.weight_decay)


def make_scheduler(config: Config, optimizer: torch.optim.Optimizer, batches: int) -> torch.optim.lr_scheduler.LRScheduler:
    total = config.epochs * batches
    if config.schedule == "paper":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [total * 3 // 7, total * 5 // 7])
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=max(total, 2), cycle_momentum=False)


def train_epoch(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    images: Images,
    epoch: int,
) -> tuple[float, float]:
    """Mean loss and accuracy (%) over one pass; the order and the augmentation depend on seed and epoch alone."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(images.y_train), generator=generator)
    model.train()
    total_loss = torch.zeros((), device=images.x_train.device)
    total_right = torch.zeros((), device=images.x_train.device)
    seen = 0
    progress = tqdm(order.split(config.batch_size), desc=f"epoch {epoch + 1}", leave=False, disable=None)
    for number, batch in enumerate(progress):
        batch = batch.to(images.y_train.device)
        x, y = crop_and_flip(images.x_train[batch], generator), images.y_train[batch]
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total_loss += loss.detach() * len(y)
        total_right += (logits.argmax(1) == y).sum()
        seen += len(y)
        if number % 20 == 0 or seen == len(order):  # looking at the numbers makes a GPU wait
            if not math.isfinite(total_loss.item()):
                raise RunError(f"the loss became {loss.item()} in epoch {epoch + 1}; lower --lr {config.lr}, or --tau for coupled blocks")
            progress.set_postfix(loss=f"{total_loss.item() / seen:.3f}", accuracy=f"{100 * total_right.item() / seen:.1f} %")
    return total_loss.item() / seen, 100 * total_right.item() / seen


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in percent."""
    model.eval()
    right = sum((model(a).argmax(1) == b).sum().item() for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(y)


def coefficients(model: nn.Module) -> dict[str, dict[str, Any]]:
    """tau, upsilon and rho of every kernel that evolves, as plain numbers (or lists, per axis and channel)."""
    found = {}
    for block_name, block in model.named_modules():
        if isinstance(block, CoupledODEBlock) and isinstance(block.dynamics, ReactionDiffusionAdvection):
            for name in block.evolving:
                values = (value.detach().tolist() for value in block.dynamics.coefficients(name))
                found[f"{block_name}.f.{name}"] = dict(zip(("tau", "upsilon", "rho"), values, strict=True))
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


def checkpoint(state: dict[str, Any], model: nn.Module, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return {**state, **parts, "rng": torch.get_rng_state()}


def restore(path: Path, model: nn.Module, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["rng"])
        return {name: saved[name] for name in ("epoch", "history", "best", "start")}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{path} is not a readable checkpoint of this run ({str(error).splitlines()[0]}); delete it to start anew") from None


def write(path: Path, content: bytes) -> None:
    """All or nothing: a kill leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def write_history(run: Path, history: list[dict[str, float]]) -> None:
    """metrics.csv and curves.png, whole each time."""
    if not history:
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write(run / "metrics.csv", table.getvalue().encode())
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], "o-")
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(epochs, [row["train_accuracy"] for row in history], "o-", label="training (augmented)")
    right.plot(epochs, [row["test_accuracy"] for row in history], "o-", label="test")
    right.set(xlabel="epoch", ylabel="accuracy in %")
    right.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write(run / "curves.png", picture.getvalue())


def finish(config: Config, run: Path, state: dict[str, Any], model: nn.Module, parameters: int, device: torch.device) -> None:
    """result.json and the last words."""
    end, moved = coefficients(model), movement(model)
    weights = {
        name: {"relative_change": moved[name]}
        | {key: {"start": state["start"][name][key], "end": end[name][key]} for key in end.get(name, {})}
        for name in moved
    }
    history = state["history"]
    result = {
        "test_accuracy": history[-1]["test_accuracy"],
        "best_test_accuracy": state["best"],
        "epochs": config.epochs,
        "seconds_per_epoch": sum(row["seconds"] for row in history) / len(history),
        "parameters": parameters,
        "seed": config.seed,
        "device": str(device),
        "torch": torch.__version__,
        "weights": weights,
    }
    write(run / "result.json", json.dumps(result, indent=2).encode())
    print(f"\ntest accuracy {result['test_accuracy']:.2f} % after {config.epochs} epochs (best {state['best']:.2f} %)")
    for name, change in moved.items():
        print(f"  {name}: |theta(1) - theta(0)| / |theta(0)| = {change:.3f}")
    print(f"curves: {run / 'curves.png'}\nmodel:  {run / 'best.pt'} (best epoch), {run / 'last.pt'} (last)\nfigures: {run / 'result.json'}")


if __name__ == "__main__":
    main()
