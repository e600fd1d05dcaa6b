"""What train_cifar.py can be told, where each option acts, and the network and optimizer that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from anodev2 import ReactionDiffusionAdvection
from anodev2.models import made_from
from image_classes import KNOWN
from images import DOWNLOADED
from options import Acts, Count, CountFrom0, NotNegative, Positive, Seeds, Share
from ranks import choose_device, processes

Precision = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True)
class Config:
    """Train a CIFAR classifier whose blocks are residual, ODEs or coupled ODEs."""

    data: str = "mini"
    """mini (2,000 of CIFAR-10, in the repository), cifar10, cifar100, fashion, or a folder: train/CLASS/* and test/CLASS/*, or CLASS/*"""
    data_dir: Path = Path("data")
    """where cifar10.npz, cifar100.npz, fashion.npz or FashionMNIST's idx files lie, or are put after the download"""
    size: Literal[16, 32, 64] = 32
    """height and width in pixels that images of a folder get: the shorter side resized, the longer cut at both ends; of other --data 16
    are means of 2x2, for a quarter of the work"""
    validation: Share = 0.0
    """share of the training images that are kept aside, on which the best epoch is chosen; 0: the last epoch is the result"""
    subset: Count | None = None
    """use only so many training images, and at most so many test images"""
    model: Literal["resnet4", "resnet10", "resnet18", "alexnet", "squeezenext", "tiny", "vit"] = "resnet4"
    """network; docs/models.md has the parameters of each; tiny and vit repeat a block, 3 and 4 times where --block is residual"""
    block: Literal["residual", "ode", "coupled"] = "coupled"
    """residual: one Euler step; ode: dz/dt = f(z, theta); coupled: theta moves too"""
    steps: Count = 5
    """steps of every ODE and coupled block"""
    method: Literal["euler", "midpoint", "heun2", "rk4"] = "euler"
    """time-stepping method of every block"""
    norm: Literal["per_step", "shared"] = "per_step"
    """BatchNorm, in tiny and vit LayerNorm, inside blocks: one per step, or one for all"""
    weights: Literal["along", "final"] = "along"
    """activations at time t read the weights of time t, or those of the end (coupled blocks)"""
    time: bool = False
    """t as one more input channel of the convolutions inside blocks; those of tiny see one channel each, vit has none"""
    dynamics: Literal["rda", "static", "constant", "linear", "fourier", "chebyshev", "low-rank"] = "rda"
    """of the weights of coupled blocks: reaction-diffusion-advection of kernels, none, an expansion in a basis over depth, or of rank 4"""
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
    schedule: Literal["one-cycle", "paper", "constant"] = "one-cycle"
    """one-cycle: up for a third of training, then down to 0; paper: lr / 10 after 3/7 and 5/7 of the epochs (150, 250 of 350); constant"""
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
    seeds: Seeds = (0,)
    """of initial weights, order of images and augmentation; several: one run each, then their mean (min/max)"""
    stack: bool = False
    """train the --seeds as one network, each launch for all of them: the same curves to round-off, in a fraction of the launches"""
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
    "size": ("a folder as --data, or --size 16", lambda c: c.data not in KNOWN or c.size == 16),
    "data_dir": (f"--data {', '.join(DOWNLOADED)}", lambda c: c.data in DOWNLOADED),
    "steps": (BLOCKS, lambda c: c.block != "residual"),
    "method": (BLOCKS, lambda c: c.block != "residual"),
    "norm": (f"{BLOCKS} and more than one step", lambda c: c.block != "residual" and c.steps > 1),
    "weights": ("--block coupled and dynamics that are not static", lambda c: c.block == "coupled" and c.dynamics != "static"),
    "time": (f"{BLOCKS} and --model other than tiny and vit", lambda c: c.block != "residual" and c.model not in ("tiny", "vit")),
    "dynamics": ("--block coupled", lambda c: c.block == "coupled"),
    "basis_size": (f"--block coupled and --dynamics {', '.join(BASES)}", lambda c: c.block == "coupled" and c.dynamics in BASES),
    "tau": ("--block coupled and --dynamics rda", lambda c: c.block == "coupled" and c.dynamics == "rda"),
    "per": ("--block coupled and --dynamics rda", lambda c: c.block == "coupled" and c.dynamics == "rda"),
    "adjoint": (BLOCKS, lambda c: c.block != "residual"),
    "slots": (f"{BLOCKS} and --adjoint checkpoint", lambda c: c.block != "residual" and c.adjoint == "checkpoint"),
    "memory": (f"{BLOCKS} and --adjoint checkpoint", lambda c: c.block != "residual" and c.adjoint == "checkpoint"),
    "stack": ("several --seeds", lambda c: len(c.seeds) > 1),
    "channels_last": (
        "one seed at a time, without --stack, and --model other than vit",
        lambda c: (not c.stack or len(c.seeds) == 1) and c.model != "vit",
    ),
    "cuda_graph": (
        "one process on CUDA",
        lambda c: processes() == 1 and choose_device(c.device).type == "cuda",
    ),
}


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
    if config.dynamics == "rda" and config.model == "vit":
        raise ValueError("--dynamics rda moves kernels of convolutions, of which --model vit has none; give another, such as low-rank")
    if config.dynamics == "rda":
        return {"class": "ReactionDiffusionAdvection", "tau": config.tau, "per": config.per}
    if config.dynamics == "static":
        return {"class": "Static"}
    if config.dynamics == "low-rank":
        return {"class": "LowRank", "rank": 4}
    return {"class": "Galerkin", "basis": config.dynamics, "size": config.basis_size}


def sgd(config: Config, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    dynamics = [p for name, p in parameters.items() if ".dynamics." in name]
    rest = [p for name, p in parameters.items() if ".dynamics." not in name]
    groups = [{"params": rest}, {"params": dynamics, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = sgd(config, dict(model.named_parameters()))
    for moving in (module for module in model.modules() if isinstance(module, ReactionDiffusionAdvection)):
        optimizer.register_step_post_hook(moving.project)
    return optimizer


def make_scheduler(config: Config, optimizer: torch.optim.Optimizer, batches: int) -> torch.optim.lr_scheduler.LRScheduler:
    total = config.epochs * batches
    if config.schedule == "paper":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [total * 3 // 7, total * 5 // 7])
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=max(total, 2), cycle_momentum=False)
