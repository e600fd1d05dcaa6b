"""How the weights of a coupled block move: the numbers of ``diagnose.weight_path``, drawn.

The kernels of a convolution are carried across their window, blurred, and grow. ``weight_path`` has theta(t) at some times, its norms,
how far each weight gets, and the spatial spectrum of kernels, which is checked by |w(k, t)|^2 = |w(k, 0)|^2 exp(2 (rho - tau |k|^2) t).
The picture shows the norms, the kernel that moves most, and the spectrum of all. Any block with convolution kernels can be drawn so.

    python examples/weight_path.py        # the same stem with .gif is the film
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection, diagnose
from kernel_evolution import gabor
from options import Picture, script

TAU, UPSILON, RHO = 0.3, (0.0, -3.5), 0.5
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), "os^Dv"


class Convolution(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, size, padding=size // 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.conv(z))


def carried(size: int) -> CoupledODEBlock:
    """A block of 16 patterns."""
    f = Convolution(size)
    with torch.no_grad():
        patterns = [gabor(size, 0.2 + math.pi * i / 16, 3.5 + 0.15 * i, 0.4 * i) for i in range(16)]
        f.conv.weight.copy_(torch.stack(patterns).view(4, 4, size, size))
    return CoupledODEBlock(f, ReactionDiffusionAdvection(TAU, UPSILON, RHO), steps=5)


def films(path: diagnose.WeightPath, name: str, count: int) -> list[Tensor]:
    """Of each of the ``count`` kernels of a weight that move most, (times, height, width)."""
    pictures = path.theta[name].flatten(1, 2)
    moved = (pictures - pictures[:1]).flatten(2).norm(dim=2).amax(0)
    return [pictures[:, i] for i in moved.argsort(descending=True, stable=True)[:count].tolist()]


def limits(film: Tensor) -> dict[str, float]:
    largest = film.abs().max().item()
    return {"vmin": -largest, "vmax": largest}


def draw(target: Path, path: diagnose.WeightPath) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.6), layout="constrained")
    norms, strip, bands = figure.subplots(1, 3)
    draw_norms(norms, path)
    name = max(path.kernels, key=lambda name: path.changes[name].max().item())
    draw_strip(strip, path, name)
    k, _, power = path.bands(name)
    for place, colour, marker in zip((0, len(path.times) // 2, -1), COLOURS, MARKERS, strict=False):
        bands.semilogy(k.numpy(), power[place].numpy(), color=colour, marker=marker, markersize=4, label=f"t = {path.times[place]:.2g}")
    bands.set(xlabel="|k|  (radians per cell)", ylabel="mean power of a mode", title=f"spectrum of {name}, all channels")
    bands.grid(alpha=0.3)
    bands.legend()
    figure.savefig(target, dpi=100)


def draw_norms(ax: Any, path: diagnose.WeightPath) -> None:
    for (name, norms), colour, marker in zip(path.norms.items(), COLOURS, MARKERS, strict=False):
        ax.plot(path.times, (norms / norms[0]).numpy(), color=colour, marker=marker, markersize=4, label=name)
    ax.set(xlabel="t", ylabel="|θ(t)| / |θ(0)|", title="norms")
    ax.grid(alpha=0.3)
    ax.legend()


def draw_strip(ax: Any, path: diagnose.WeightPath, name: str) -> None:
    """The kernel that moves most at up to six times, in two rows."""
    film = films(path, name, 1)[0]
    places = sorted({round(i * (len(path.times) - 1) / 5) for i in range(6)})
    height, width = film.shape[1:]
    across, down = width + 1, math.ceil(1.3 * height)  # room for the time above each
    columns = math.ceil(len(places) / 2)
    canvas = film.new_full((down * math.ceil(len(places) / columns), across * columns - 1), math.nan)
    for i, place in enumerate(places):
        left, bottom = across * (i % columns), down * (i // columns + 1)
        canvas[bottom - height : bottom, left : left + width] = film[place]
        ax.text(left + (width - 1) / 2, bottom - height - 0.7, f"t = {path.times[place]:.2g}", ha="center", va="bottom")
    image = ax.imshow(canvas.numpy(), cmap="RdBu_r", **limits(film))
    ax.set(xticks=[], yticks=[], frame_on=False, title=f"the kernel of {name} that moves most")
    ax.figure.colorbar(image, ax=ax, label="w")


def animate(target: Path, path: diagnose.WeightPath, name: str, count: int = 16) -> None:
    """The kernels that move most, each in colours of its own; few colours and dots keep the file small."""
    from matplotlib import colormaps
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    shown = films(path, name, count)
    columns = math.ceil(math.sqrt(len(shown)))
    figure = Figure(figsize=(columns, math.ceil(len(shown) / columns) + 0.35), dpi=64)
    grid = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.35 / figure.get_figheight(), wspace=0.05, hspace=0.05)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    colours = colormaps["RdBu_r"].resampled(25)
    images = [axis.imshow(film[0].numpy(), cmap=colours, **limits(film)) for axis, film in zip(grid.flat, shown, strict=False)]
    writer = PillowWriter(fps=10)
    with writer.saving(figure, str(target), dpi=64):
        for place, time in enumerate(path.times):
            for image, film in zip(images, shown, strict=True):
                image.set_data(film[place].numpy())
            figure.suptitle(f"{name}, t = {time:.2f}", fontsize=9, y=0.995)
            writer.grab_frame()


def main(picture: Path | None = None, size: int = 7, times: int = 21) -> dict[str, float]:
    path = diagnose.weight_path(carried(size), times)
    print(path)
    k, _, power = path.bands("conv.weight")
    law = power[0] * torch.exp(2 * (RHO - TAU * k**2) * torch.tensor(path.times, dtype=torch.float64)[:, None])
    if picture is not None:
        draw(picture, path)
        animate(picture.with_suffix(".gif"), path, "conv.weight")
        print(f"picture: {picture}, film: {picture.with_suffix('.gif')}")
    norms = path.norms["conv.weight"]
    return {
        "law": (power / law - 1).abs().max().item(),
        "change": path.changes["conv.weight"].max().item(),
        "norm": (norms[-1] / norms[0]).item(),
    }


if __name__ == "__main__":
    script(main, __doc__, Picture)
