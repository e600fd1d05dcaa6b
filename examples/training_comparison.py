"""The slide "Challenges with Neural ODEs": one network trained twice, with exact gradients and with those of a reverse solve.

The slide shows SqueezeNext on CIFAR-10 by RK2, where the reverse solve ends far below, and ResNet-18 on CIFAR-100, where that of adaptive
RK45 diverges. Here both runs start from the same weights and see the same images in the same order. After every epoch the gradients of
both adjoints are compared, in float64 and at the same weights, with plain autograd through all steps. One should see: the exact
gradient is off by round-off alone, that of the reverse solve by half to all of it at first and by hundredths to tenths later. In a training
as short as the default the loss does not show it, since the wrong gradient soon points almost the right way; what longer ones gave is in
benchmarks/results/training_comparison.md and resnet4_cifar10_10_epochs.md.

    python examples/training_comparison.py     # SqueezeNext, 1,000 images that come with the repository, at 16x16
    python examples/training_comparison.py --data cifar10 --subset None --size 32 --epochs 350 --batch-size 256 --lr 0.1
    python examples/training_comparison.py --models resnet18 --data cifar100 --subset None --size 32 --epochs 350 --batch-size 256 \\
        --lr 0.1 --method dopri5 --rtol 1e-3

The default is small: it shows errors of gradients, not the accuracies of the slide. With --rtol the reverse solve is adaptive RK45, as in
the slide's second picture; the way forward takes a fixed number of steps all the same, since that is what a block takes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ODEBlock, SolveError
from images import DOWNLOADED, Images, load_images
from options import AUTO, DIFFERENT, Acts, Count, Drawing, Positive, Seed, drawable, mistakes_told, parse, refuse_idle
from ranks import Ranks, joined
from runs import RunError, write_json
from settings import Config as TrainingConfig
from train_cifar import check_shares
from training import Training

VARIANTS = ("exact", "reverse")
TITLES = {"exact": "exact gradients", "reverse": "reverse solve"}
LOOKS: dict[str, dict[str, Any]] = {
    "exact": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "reverse": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
}
Row = dict[str, float]


@dataclass(frozen=True)
class Config:
    """Train networks twice, with exact gradients and with those of a reverse solve, and draw both curves."""

    out: Drawing = Path("training_comparison.png")
    """where to draw; none: no picture, the numbers alone"""
    models: Annotated[tuple[Literal["squeezenext", "resnet18", "resnet4", "resnet10", "alexnet"], ...], DIFFERENT] = ("squeezenext",)
    """networks, a row of the picture each"""
    data: str = "mini"
    """as for train_cifar.py: mini, cifar10, cifar100, fashion or a folder"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    subset: Count | None = 1000
    """use only so many training images; None: all"""
    size: Literal[16, 32] = 16
    """height and width of the images; 16: means of 2x2 pixels, a quarter of the time (squeezenext and resnet18 alone)"""
    steps: Count = 2
    """steps of every block"""
    method: Literal["heun2", "midpoint", "euler", "rk4", "dopri5"] = "heun2"
    """of every block: heun2 and midpoint are RK2"""
    norm: Literal["shared", "per_step"] = "shared"
    """BatchNorm inside blocks: one for all steps, or one per step (not with --rtol)"""
    rtol: Positive | None = None
    """rtol and atol of an adaptive reverse solve, for dopri5; default: the grid of the way forward"""
    epochs: Count = 6
    """passes over the training images"""
    batch_size: Count = 32
    """images per gradient step"""
    lr: Positive = 0.02
    """largest learning rate, of the one-cycle schedule"""
    seed: Seed = 0
    """of initial weights, order of images and augmentation"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""
    runs: Path | None = None
    """keep the run folders here; default: a temporary folder"""

    @property
    def reverse(self) -> Adjoint:
        return BacksolveAdjoint(rtol=self.rtol, atol=self.rtol)


ACTS: Acts = {
    "data_dir": (f"--data {', '.join(DOWNLOADED)}", lambda c: c.data in DOWNLOADED),
    "norm": ("more than one step", lambda c: c.steps > 1),
}


class Compared(Training):
    """A run that measures, after every epoch, how far both gradients are from the stored one."""

    def __init__(self, settings: Config, variant: str, options: TrainingConfig, folder: Path, ranks: Ranks, images: Images) -> None:
        super().__init__(options, folder, ranks, images)
        self.reverse = settings.reverse
        for block in blocks(self.model):
            block.adjoint = self.reverse if variant == "reverse" else CheckpointAdjoint()
        self.before = errors(self.model, images, self.reverse)

    def one_epoch(self) -> Row:
        row = super().one_epoch()
        row |= errors(self.model, self.images, self.reverse)  # the row that the history holds
        return row


def blocks(model: nn.Module) -> list[ODEBlock]:
    return [part for part in model.modules() if isinstance(part, ODEBlock)]


def gradient(model: nn.Module, x: Tensor, y: Tensor, adjoint: Adjoint) -> Tensor:
    """Of all parameters, in one vector, in float64; the model itself stays as it is."""
    twin = copy.deepcopy(model).double().train()
    for block in blocks(twin):
        block.adjoint = adjoint
    return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))])


def errors(model: nn.Module, images: Images, reverse: Adjoint, count: int = 32) -> Row:
    """|g - g*| / |g*| of both adjoints, g* by plain autograd through all steps, on the first training images."""
    x, y = images.normalised(images.x_train[:count]).double(), images.y_train[:count]
    right = gradient(model, x, y, DirectAdjoint())
    exact = gradient(model, x, y, CheckpointAdjoint())
    try:
        wrong = gradient(model, x, y, reverse)
    except SolveError:  # no step is small enough
        wrong = torch.full_like(right, float("nan"))
    row = {"exact_error": ((exact - right).norm() / right.norm()).item(), "reverse_error": ((wrong - right).norm() / right.norm()).item()}
    return row | {"reverse_cosine": torch.cosine_similarity(wrong, right, 0).item()}


def images_of(config: Config, device: torch.device) -> Images:
    images = load_images(config.data, config.data_dir, device, config.subset)
    if config.size == 32:
        return images

    def halved(x: Tensor) -> Tensor:
        return F.avg_pool2d(x.permute(0, 3, 1, 2).float(), 2).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    return dataclasses.replace(images, x_train=halved(images.x_train), x_test=halved(images.x_test))


def train(config: Config, model: Any, variant: str, folder: Path, ranks: Ranks, images: Images) -> list[Row]:
    """One row an epoch, the first one that of the untrained network; shorter where the training failed."""
    own = ("data", "data_dir", "subset", "steps", "method", "norm", "epochs", "batch_size", "lr")
    shared: dict[str, Any] = {name: getattr(config, name) for name in own}
    options = TrainingConfig(**shared, model=model, block="ode", seeds=(config.seed,))
    check_shares(options, 1, len(images.y_train))
    folder.mkdir(parents=True, exist_ok=True)
    training = Compared(config, variant, options, folder, ranks, images)
    print(f"\n{model}, {TITLES[variant]}: {len(images.y_train)} images; gradient error at first {training.before['reverse_error']:.3f}")
    rows: list[Row] = [{"epoch": 0.0, **training.before}]
    while training.epoch < config.epochs:
        try:
            row = training.one_epoch()
        except (RunError, SolveError) as failure:
            print(f"failed: {failure}")
            break
        rows.append(row)
        accuracies = f"training {row['train_accuracy']:.1f} %, test {row['test_accuracy']:.1f} %"
        found = f"gradient error {row['reverse_error']:.3f} (exact: {row['exact_error']:.0e})"
        print(f"epoch {training.epoch}/{config.epochs}: loss {row['loss']:.3f}, {accuracies}, {found}", flush=True)
    write_json(folder / "history.json", {"options": dataclasses.asdict(config), "rows": rows})
    return rows


def draw(path: Path, config: Config, histories: dict[tuple[str, str], list[Row]], images: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9 * len(config.models)), layout="constrained")
    data = {"mini": "CIFAR-10", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(config.data, Path(config.data).name)
    for (loss, accuracy, error), model in zip(figure.subplots(len(config.models), 3, squeeze=False), config.models, strict=True):
        for variant, look in LOOKS.items():
            start, *rows = histories[model, variant]
            faint = look | {"linestyle": ":", "alpha": 0.6, "markerfacecolor": "white"}
            curve(loss, rows, "loss", **look, label=f"trained with {TITLES[variant]}")
            curve(accuracy, rows, "test_accuracy", **look, label=f"test, {TITLES[variant]}")
            curve(accuracy, rows, "train_accuracy", **faint, label=f"training, {TITLES[variant]}")
            curve(error, [start, *rows], "reverse_error", **look, label=f"reverse solve, in the run with {TITLES[variant]}")
        rows = [*histories[model, "exact"], *histories[model, "reverse"]]
        most = max(row["exact_error"] for row in rows)
        curve(error, histories[model, "exact"], "exact_error", color="#009E73", linewidth=3, label=f"exact, in both: at most {most:.0g}")
        loss.set(title=f"{model}, {images:,} {data} images, {config.size}x{config.size}", ylabel="training loss (cross entropy)")
        accuracy.set(title=f"{config.method}, steps per block: {config.steps}", ylabel="accuracy in %")
        error.set(title="gradient, against plain autograd", ylabel="relative error")
        for axes in (loss, accuracy, error):
            axes.set(xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def curve(axes: Any, rows: list[Row], name: str, **look: Any) -> None:
    axes.plot([row["epoch"] for row in rows], [row[name] for row in rows], **look)


def check(config: Config) -> None:
    if config.rtol is not None and (config.method, config.norm) != ("dopri5", "shared"):
        given = f"--method {config.method} --norm {config.norm}"
        raise RunError(f"--rtol {config.rtol} needs --method dopri5, which estimates its error, and --norm shared; got {given}")
    fixed = [model for model in config.models if model not in ("squeezenext", "resnet18")]
    if config.size != 32 and fixed:
        raise RunError(f"--size {config.size} is not for {', '.join(fixed)}, which end in layers for 32x32 images; give --size 32")
    if config.runs is not None and config.runs.exists() and not config.runs.is_dir():
        raise RunError(f"--runs {config.runs} is no folder; choose another name")


def main(picture: Path | None = None, small: bool = False, config: Config | None = None) -> dict[str, float]:
    config = config or (Config(subset=64, epochs=2) if small else Config())
    check(config)
    histories: dict[tuple[str, str], list[Row]] = {}
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined(config.device, timedelta(minutes=10)))
        out = config.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = images_of(config, ranks.device)
        for model in config.models:
            for variant in VARIANTS:
                histories[model, variant] = train(config, model, variant, out / f"{model}-{variant}", ranks, images)
    if picture is not None:
        draw(picture, config, histories, len(images.y_train))
        print(f"picture: {picture}")
    return numbers(histories)


def numbers(histories: dict[tuple[str, str], list[Row]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for (model, variant), rows in histories.items():
        found[f"{model}, {variant}: largest exact error"] = max(row["exact_error"] for row in rows)
        found[f"{model}, {variant}: first error"] = rows[0]["reverse_error"]
        found[f"{model}, {variant}: last error"] = rows[-1]["reverse_error"]
        found[f"{model}, {variant}: loss"] = rows[-1].get("loss", float("nan"))
        found[f"{model}, {variant}: test accuracy"] = rows[-1].get("test_accuracy", float("nan"))
    return found


if __name__ == "__main__":
    with mistakes_told():
        chosen, given = parse(Config, None)
        refuse_idle(chosen, given, ACTS)
        main(drawable(chosen.out), config=chosen)
