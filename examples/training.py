"""One run of train_cifar.py: its network and optimizer, its steps and epochs, and the files that it leaves."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import anodev2
from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection
from anodev2.models.files import weights_file
from average import Average
from cuda_graph import Replayed
from images import Draws, Images, augment, drawn
from ranks import Ranks, peak_memory
from runs import (
    RunError,
    in_words,
    load_checkpoint,
    revision,
    save_checkpoint,
    save_weights,
    write_history,
    write_json,
    write_tensorboard,
)
from settings import Config, make_model, make_optimizer, make_scheduler, network_of


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
        graph = config.cuda_graph and ranks.size == 1 and ranks.device.type == "cuda"
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

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def run(self) -> None:
        self.begin()
        self.go_on(self.config.epochs)
        if self.ranks.first:
            self.finish()

    def begin(self) -> None:
        """Where the run was when it was last interrupted, if it was."""
        config = self.config
        if (self.folder / "last.pt").exists():
            self.restore(load_checkpoint(self.folder / "last.pt"))
        if self.ranks.first:
            where = f"{self.ranks.device}" if self.ranks.size == 1 else f"{self.ranks.size} processes"
            network = f"{config.model}, block {config.block}, seed {config.seed}, {self.parameters:,} parameters"
            print(f"{network}, {len(self.images.y_train)} images, on {where}; run folder {self.folder}")
            write_history(self.folder, self.history)

    def go_on(self, epochs: int) -> None:
        """Until so many have been trained."""
        gc.collect()  # the network of the seed before
        peak_memory(self.ranks.device, reset=True)
        while self.epoch < epochs:
            row = self.one_epoch()
            if self.ranks.first:
                self.keep(row)

    def one_epoch(self) -> dict[str, float]:
        began = time.perf_counter()
        loss, train_accuracy = train_epoch(self)
        return self.tell(loss, train_accuracy, time.perf_counter() - began)

    def tell(self, loss: float, train_accuracy: float, trained: float) -> dict[str, float]:
        """The row of an epoch that took ``trained`` seconds to train, the accuracies on other images among it."""
        began = time.perf_counter()
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
        row |= {"seconds": trained + time.perf_counter() - began, **rest}
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

    def finish(self) -> None:
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
            "parameters": self.parameters,
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
        print(f"figures: {self.folder / 'result.json'}, curves.png")
        if config.resume is None:
            print(f"next:    python examples/look.py {self.folder}")
        else:
            print(f"next:    python examples/train_cifar.py --config {self.folder / 'config.json'} --seeds 0 1 2")
        if config.tensorboard:
            self.write_look()

    def write_look(self) -> None:
        """The picture of look.py, in TensorBoard too."""
        from look import confused, figure

        drawn = figure(self.tested, self.images, confused(self.tested, self.images), self.history)
        write_tensorboard(self.folder / "tensorboard", self.epoch, {}, {"look": drawn})


def rehearsal(config: Config, ranks: Ranks, images: Images) -> Callable[[], object]:
    """The first part of a batch, there and back: what cannot run is refused before anything is made."""
    training = Training(dataclasses.replace(config, compile=False), Path(), ranks, images)
    share = slice(config.batch_size // (ranks.size * config.accumulate))
    training.network.train()
    return lambda: backward(training, images.normalised(images.x_train[share]), images.y_train[share], last=True)


def begin_from(init: Path, model: nn.Module) -> None:
    """The weights of a run or of a file, which must be those of such a network."""
    file = weights_file(init)
    try:
        model.load_state_dict(safetensors.torch.load_file(str(file)))
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise RunError(f"--init {init} does not hold weights of this network ({' '.join(str(error).split())[:300]})") from None


def lay_out(model: nn.Module) -> None:
    """Channels last in memory for all that is read as kernels; what has more axes, such as their expansion over depth, stays."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def train_epoch(training: Training) -> tuple[float, float]:
    """Mean loss and accuracy (%) over one pass."""
    totals = training.ranks.total(*one_pass([training], training.step, dealt(training)))
    return means(training, *totals)


def means(training: Training, loss_sum: float, right: float) -> tuple[float, float]:
    size = training.config.batch_size
    seen = len(training.images.y_train) // size * size
    return loss_sum / seen, 100 * right / seen


def dealt(training: Training) -> dict[str, Tensor]:
    """The numbers of the images in their order and what is drawn for each, images along the last axis.

    They depend on seed and epoch alone, however many the ranks.
    """
    config, images, ranks = training.config, training.images, training.ranks
    seed = config.seed * 1_000_003 + training.epoch
    torch.manual_seed(seed + 7_919 * ranks.rank)  # for what the network itself may draw
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.y_train), generator=generator).to(ranks.device)
    draws = vars(drawn(len(order), generator, ranks.device, cutout=config.cutout > 0))
    return {"order": order} | {name: tensor for name, tensor in draws.items() if tensor is not None}


def one_pass(runs: Sequence[Training], step: Callable[..., tuple[Tensor, ...]], images: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Learn from all images dealt: the sum of their losses and how many were right, in each run where ``step`` is one for several."""
    config, ranks = runs[0].config, runs[0].ranks
    share, batches = config.batch_size // ranks.size, images["order"].shape[-1] // config.batch_size
    for run in runs:
        run.network.train()
    loss_sum = right = torch.zeros((), device=ranks.device)
    progress = tqdm(range(batches), desc=f"epoch {runs[0].epoch + 1}", leave=False, disable=None if ranks.first else True)
    for number in progress:
        begin = number * config.batch_size + ranks.rank * share
        loss, hits = step(**{name: tensor[..., begin : begin + share] for name, tensor in images.items()})
        loss_sum, right = loss_sum + loss, right + hits
        for run in runs:
            run.scheduler.step()
            if run.average is not None:
                run.average.n_averaged += 1
        if number % 20 == 0 or number == batches - 1:  # looking at the numbers makes a GPU wait
            seen, losses, hits = (number + 1) * share, loss_sum.reshape(-1).tolist(), right.reshape(-1).tolist()
            refuse_endless(runs, losses)
            progress.set_postfix(loss=f"{statistics.mean(losses) / seen:.3f}", accuracy=f"{100 * statistics.mean(hits) / seen:.1f} %")
    return loss_sum, right


def refuse_endless(runs: Sequence[Training], losses: Sequence[float]) -> None:
    for run, loss in zip(runs, losses, strict=True):
        if not math.isfinite(loss):
            whose = f" of seed {run.config.seed}" if len(runs) > 1 else ""
            cure = f"lower --lr {run.config.lr}, or --tau for coupled blocks"
            alone = f"; the other seeds go on one by one with --resume {run.folder.with_name('seed-N')}" if len(runs) > 1 else ""
            raise RunError(f"the loss became {loss}{whose} in epoch {run.epoch + 1}; {cure}{alone}")


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
