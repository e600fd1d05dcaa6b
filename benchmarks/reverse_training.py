"""Two conditions of the papers' reverse solve that train_cifar.py has no option for: python benchmarks/reverse_training.py

ResNet-4, its block an ODE of five Euler steps with one norm for all, trained by ``train_cifar.py``'s recipe in four ways:

    exact       the gradient of the steps taken
    reverse     solved backwards by as many Euler steps; the statistics of the norms are those of the pass forward
    moved       the same, but every evaluation of the pass backward moves the statistics too, as in ``odeint_adjoint``
    adaptive    dopri5 with error control there and back, at the tolerances of torchdiffeq's ODE-Net example

In training mode a norm does not read its statistics: "reverse" and "moved" learn alike, and differ in what they are tested with.
A row is printed after every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn

import scripts  # noqa: F401 # isort: split
from anodev2 import ODEBlock, odeint
from images import Images, load_images
from options import AUTO, DIFFERENT, Count, Positive, Seeds, script
from ranks import Ranks, choose_device
from settings import Config
from training import Training, evaluate, train_epoch

Way = Literal["exact", "reverse", "moved", "adaptive"]


class Backwards(torch.autograd.Function):
    """Euler steps of dz/dt = f(z), and the adjoint equation solved back by Euler steps from the end; f is called with all that it keeps."""

    @staticmethod
    def forward(ctx: Any, f: nn.Module, steps: int, z: Tensor, *parameters: Tensor) -> Tensor:
        for step in range(steps):
            z = z + f(z.new_tensor(step / steps), z, step=step) / steps
        ctx.f, ctx.steps, ctx.parameters = f, steps, parameters
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx: Any, alpha: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,), sums = ctx.saved_tensors, [torch.zeros_like(p) for p in ctx.parameters]
        for step in reversed(range(ctx.steps)):
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                slope = ctx.f(z.new_tensor((step + 1) / ctx.steps), z, step=step)
            of_z, *own = torch.autograd.grad(slope, [z, *ctx.parameters], alpha)
            z, alpha = z - slope / ctx.steps, alpha + of_z / ctx.steps
            sums = [total + part / ctx.steps for total, part in zip(sums, own, strict=True)]
        return None, None, alpha, *sums


class Solved(nn.Module):
    """A block in ``Backwards``, or where there is a tolerance with error control."""

    def __init__(self, block: ODEBlock, tolerance: float | None) -> None:
        super().__init__()
        self.f, self.steps, self.tolerance = block.f, block.steps, tolerance

    def forward(self, z: Tensor) -> Tensor:
        if self.tolerance is None:
            return Backwards.apply(self.f, self.steps, z, *self.f.parameters())  # pyright: ignore[reportReturnType]
        options: Any = {"method": "dopri5", "rtol": self.tolerance, "atol": self.tolerance, "adjoint": "backsolve"}
        return odeint(self.slope, z, [0.0, 1.0], **options)[-1]

    def slope(self, t: Tensor, z: Tensor) -> Tensor:
        return self.f(t, z, step=0)  # one norm for all


def training_of(way: Way, config: Config, images: Images, tolerance: float) -> Training:
    """One run of that way; all ways of a seed start alike and see the same images."""
    made = Training(config, Path(), Ranks(images.y_train.device), images)
    for place, block in enumerate(made.model.children()):
        if isinstance(block, ODEBlock) and way in ("moved", "adaptive"):
            made.model[place] = Solved(block, tolerance if way == "adaptive" else None)  # pyright: ignore[reportIndexIssue]
    return made


@dataclass(frozen=True)
class Runs:
    """What is trained, and for how long."""

    data: str = "mini"
    """as for train_cifar.py"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    subset: Count | None = None
    """use only so many training images, and at most so many test images"""
    ways: Annotated[tuple[Way, ...], DIFFERENT] = get_args(Way)
    """of the gradient"""
    epochs: Count = 10
    """of each run"""
    tolerance: Positive = 1e-3
    """rtol and atol of adaptive"""
    seeds: Seeds = (0,)
    """of initial weights, order of images and augmentation"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""


def main(
    data: str, data_dir: Path, subset: int | None, ways: tuple[Way, ...], epochs: int, tolerance: float, seeds: tuple[int, ...], device: str
) -> None:
    images = load_images(data, data_dir, choose_device(device), subset)
    print("| seed | gradient | epoch | loss | training accuracy in % | test accuracy in % |\n|---|---|---|---|---|---|")
    for seed in seeds:
        for way in ways:
            adjoint: Any = "checkpoint" if way == "exact" else "backsolve"
            run = training_of(way, Config(block="ode", norm="shared", adjoint=adjoint, epochs=epochs, seeds=(seed,)), images, tolerance)
            for epoch in range(epochs):
                loss, right = train_epoch(run)
                run.epoch += 1
                tested = evaluate(run, images.x_test, images.y_test)
                print(f"| {seed} | {way} | {epoch + 1} | {loss:.4f} | {right:.2f} | {tested:.2f} |", flush=True)


if __name__ == "__main__":
    script(main, __doc__, Runs)
