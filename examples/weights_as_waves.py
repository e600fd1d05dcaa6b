"""Weights that travel: convolution kernels that follow a wave along their input channels, against weights that stand still.

    dz/dt = f(z; w(t)),    d2w/dt2 = c^2 d2w/di2    along the input channels i, a ring,    w(0), dw/dt(0) and c learned

Any equation of ``pde`` can drive the weights of a ``CoupledODEBlock``: ``FieldDynamics`` lays it along an axis of theirs. What one
channel is looked for now, its neighbour is looked for later; a second-order equation also has an initial velocity for every weight,
so this block has twice the kernel parameters of the standing one. Both networks start from the same weights and see the same images
in the same order. On 2,000 images they come out alike (45, 42 and 45 % with waves, 45, 44 and 45 % without, for three seeds): the
example shows that such a layer trains, not that it is better.

    python examples/weights_as_waves.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, Dynamics, FieldDynamics, Static
from anodev2.pde import Grid1D, Wave
from images import Images, augment, drawn, load_images
from options import DevicePicture, script
from ranks import choose_device

CHANNELS = 16
SPEED = 2.0  # channels per unit of t, at first


class Branch(nn.Module):
    """dz/dt = tanh(norm(conv z))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(z)))


def waving() -> FieldDynamics:
    """A wave along the input channels, a cell each, with a learned speed."""
    grid = Grid1D(CHANNELS, length=CHANNELS)
    return FieldDynamics(Wave(grid, nn.Parameter(torch.tensor(SPEED))), "o i h w -> (o h w) i")


def classifier(dynamics: Dynamics, classes: int, seed: int) -> nn.Sequential:
    """Stem to 16x16, one coupled block, pooling, linear; the same initial weights for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        CoupledODEBlock(Branch(), dynamics, evolve="conv.weight", steps=4),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(CHANNELS * 16, classes),
    )


@dataclass
class Run:
    """A trained network and its training loss and test accuracy in percent, epoch by epoch."""

    model: nn.Sequential
    losses: list[float]
    accuracies: list[float]

    @property
    def block(self) -> CoupledODEBlock:
        block = self.model[3]
        assert isinstance(block, CoupledODEBlock)
        return block

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def train(dynamics: Dynamics, images: Images, epochs: int, seed: int, batch_size: int = 50, lr: float = 0.01) -> Run:
    """Adam under a one-cycle schedule; the order and the augmentation of the images depend on the seed alone."""
    run = Run(classifier(dynamics, images.classes, seed).to(images.y_train.device), [], [])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(run.model.parameters(), lr)
    batches = -(-len(images.y_train) // batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches)
    for _ in range(epochs):
        run.model.train()
        total = 0.0
        for batch in torch.randperm(len(images.y_train), generator=generator).split(batch_size):
            x = augment(images.normalised(images.x_train[batch]), drawn(len(batch), generator, images.y_train.device))
            loss = F.cross_entropy(run.model(x.contiguous()), images.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(batch)
        run.losses.append(total / len(images.y_train))
        run.accuracies.append(accuracy(run.model, images))
    return run


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    model.eval()
    return 100 * (model(images.normalised(images.x_test).contiguous()).argmax(1) == images.y_test).double().mean().item()


def gradients(images: Images, seed: int) -> dict[str, float]:
    """Norms of the gradients of the first loss with respect to the wave's own parameters."""
    model = classifier(waving(), images.classes, seed).to(images.y_train.device)
    F.cross_entropy(model(images.normalised(images.x_train[:50])), images.y_train[:50]).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if ".dynamics." in name:
            assert parameter.grad is not None, name
            found["velocity" if "velocity" in name else "speed"] = parameter.grad.norm().item()
    return found


def draw(path: Path, runs: dict[str, Run]) -> None:
    """Space-time diagrams of one row of weights along the input channels in both networks, and the training of both."""
    from matplotlib.figure import Figure

    times = [i / 60 for i in range(61)]
    with torch.no_grad():
        paths = {name: run.block.weights(times)["conv.weight"].numpy() for name, run in runs.items()}  # (times, out, in, 3, 3)
    moved = np.square(paths["wave"][-1] - paths["wave"][0]).sum(1)  # over the input channels
    out, row, column = np.unravel_index(moved.argmax(), moved.shape)
    slices = {name: values[:, out, :, row, column] for name, values in paths.items()}
    limit = max(abs(values).max() for values in slices.values())
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplot_mosaic([["static", "wave", "accuracy"], ["static", "wave", "loss"]])
    titles, colours = {"static": "standing weights", "wave": "weights as waves"}, {"static": "tab:gray", "wave": "tab:red"}
    for name, run in runs.items():
        axes[name].pcolormesh(range(CHANNELS), times, slices[name], cmap="RdBu_r", vmin=-limit, vmax=limit, shading="nearest")
        axes[name].set(xlabel="input channel i", ylabel="t", title=titles[name])
        epochs = range(1, len(run.losses) + 1)
        axes["loss"].plot(epochs, run.losses, "o-", ms=4, color=colours[name])
        axes["accuracy"].plot(
            epochs, run.accuracies, "o-", ms=4, color=colours[name], label=f"{titles[name]}, {run.parameters:,} parameters"
        )
    label = f"w[{out}, i, {row}, {column}](t), the row that moved most"
    figure.colorbar(axes["wave"].collections[0], ax=[axes["static"], axes["wave"]], label=label, shrink=0.9)
    axes["accuracy"].axhline(10, color="k", lw=0.8, ls=":", label="chance")
    axes["accuracy"].set(ylabel="test accuracy in %", title="training of both", ylim=(0, 50))
    axes["accuracy"].legend(fontsize=8, loc="lower right")
    axes["loss"].set(xlabel="epoch", ylabel="training loss")
    figure.suptitle("Weights may travel: a wave along the input channels, its speed and initial velocity learned", fontsize=13)
    figure.savefig(path, dpi=100)


def main(picture: Path | None = None, epochs: int = 8, seed: int = 0, share: float = 1.0, device: str = "cpu") -> dict[str, float]:
    """``share``: the part of the training images to use."""
    images = load_images("mini", Path("data"), choose_device(device))
    count = round(share * len(images.y_train))
    images = replace(images, x_train=images.x_train[:count], y_train=images.y_train[:count])
    first = gradients(images, seed)
    print(f"first gradient: {first['speed']:.1e} with respect to the speed, {first['velocity']:.1e} to the initial velocities")
    runs = {"static": train(Static(), images, epochs, seed), "wave": train(waving(), images, epochs, seed)}
    for name, run in runs.items():
        print(f"{name:6}  {run.parameters:,} parameters, loss {run.losses[-1]:.3f}, test accuracy {run.accuracies[-1]:.1f} %")
    wave = runs["wave"].block
    speed = wave.dynamics.get_parameter("equation.speed").item()
    start, end = wave.weights([0.0, 1.0])["conv.weight"].detach()
    change = ((end - start).norm() / start.norm()).item()
    print(f"wave speed {SPEED:g} -> {speed:.3f} channels per unit of t; |w(1) - w(0)| / |w(0)| = {change:.2f}")
    result = {name: run.accuracies[-1] for name, run in runs.items()}
    assert min(result.values()) > 20, result  # chance is 10 %, with a standard deviation of 1.3 on 500 images
    assert first["speed"] > 0 and first["velocity"] > 0 and speed != SPEED and change > 0.05
    if picture is not None:
        draw(picture, runs)
        print(f"picture: {picture}")
    gradient = {f"gradient_{name}": norm for name, norm in first.items()}
    return result | gradient | {"speed": speed, "change": change}


if __name__ == "__main__":
    script(main, __doc__, DevicePicture)
