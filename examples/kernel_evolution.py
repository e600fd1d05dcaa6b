"""What reaction, diffusion and advection do to a convolution kernel, each alone and all together.

The weights of a coupled block follow dw/dt = tau Lap w + upsilon . grad w + rho w over the pixels of a kernel, from t = 0 to 1.
Reaction makes the kernel louder, diffusion blurs it, advection carries it across its periodic window; three numbers per kernel
say how much. The path is known in closed form, and three facts check it: the mean of a kernel grows by exp(rho t) whatever else
happens, advection by a whole window brings an odd-sized kernel back, and stepping the equation leads to the same kernels.

    python examples/kernel_evolution.py        # the same stem with .gif is the film
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anodev2 import ReactionDiffusionAdvection, odeint
from options import Picture, script


@dataclass(frozen=True)
class Motion:
    """One choice of the three coefficients, in kernel cells and units of t."""

    name: str
    tau: float = 0.0
    upsilon: tuple[float, float] = (0.0, 0.0)
    rho: float = 0.0

    @property
    def formula(self) -> str:
        terms = [(self.tau, "Δw"), (self.upsilon[1], "∂w/∂x"), (self.rho, "w")]
        return "∂w/∂t = " + " + ".join(f"{value:g} {term}" for value, term in terms if value).replace("+ -", "- ")


def motions(size: int) -> list[Motion]:
    """A whole window to the right per unit of t (upsilon < 0 moves towards +x), a blur of about a cell, growth by exp(0.8)."""
    advection = (0.0, -float(size))
    return [
        Motion("reaction", rho=0.8),
        Motion("diffusion", tau=0.6),
        Motion("advection", upsilon=advection),
        Motion("all three", tau=0.6, upsilon=advection, rho=0.8),
    ]


def gabor(size: int, angle: float, wavelength: float, phase: float) -> Tensor:
    """A wave under a Gaussian, what the first layer of an image network tends to learn: shape (size, size), largest value 1."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    kernel = torch.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2)) * torch.cos(2 * math.pi * along / wavelength + phase)
    return kernel / kernel.abs().max()


def sobel(size: int) -> Tensor:
    """The derivative of a Gaussian along x, an edge detector."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    bell = torch.exp(-(axis**2) / (2 * (size / 6) ** 2))
    kernel = bell[:, None] * (axis * bell)
    return kernel / kernel.abs().max()


def kernels(size: int) -> Tensor:
    """Convolution weights (out, in, height, width) = (3, 1, size, size)."""
    return torch.stack([gabor(size, 0.6, 4.0, 0.5), gabor(size, 2.2, 5.5, 0.0), sobel(size)])[:, None]


def evolution(motion: Motion, weight: Tensor, times: list[float]) -> tuple[Tensor, ReactionDiffusionAdvection]:
    """The kernels at ``times``, stacked in front, in closed form; and the dynamics itself."""
    dynamics = ReactionDiffusionAdvection(motion.tau, motion.upsilon, motion.rho, learnable=False)
    dynamics.bind({"weight": weight})  # what a CoupledODEBlock does with the weights of its f
    path = dynamics.flow({"weight": weight}, times)
    assert path is not None
    return path["weight"], dynamics


def measure(motion: Motion, weight: Tensor, times: list[float], steps: int) -> dict[str, float]:
    """Largest deviations of the means from exp(rho t), of the closed form from rk4, and the kernel's change over the whole time."""
    path, dynamics = evolution(motion, weight, times)
    growth = torch.exp(motion.rho * torch.tensor(times, dtype=weight.dtype))
    means = path.mean((-2, -1)) - growth[:, None, None] * weight.mean((-2, -1))
    stepped = odeint(dynamics, {"weight": weight}, times, method="rk4", steps=steps)["weight"]
    return {
        "mean": means.abs().max().item(),
        "rk4": (path - stepped).abs().max().item(),
        "change": (path[-1] - weight).abs().max().item(),
    }


def panels(figure: Any, rows: int, columns: int) -> Any:
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return axes


def draw(path: Path, weight: Tensor) -> None:
    """Rows of one Gabor kernel: a motion each; columns: times. The scale of a row is the same throughout."""
    from matplotlib.figure import Figure

    times = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    chosen = motions(weight.shape[-1])
    figure = Figure(figsize=(8.4, 6.6), layout="constrained")
    axes = panels(figure, len(chosen), len(times))
    for row, motion in enumerate(chosen):
        kernel = evolution(motion, weight, times)[0][:, 0, 0]
        limit = kernel.abs().max().item()
        shown = [
            axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit) for axis, values in zip(axes[row], kernel, strict=True)
        ]
        axes[row, 0].set_ylabel(motion.name, fontsize=12, fontweight="bold")
        axes[row, 2].set_xlabel(motion.formula, loc="left")
        figure.colorbar(shown[0], ax=list(axes[row]), shrink=0.85, aspect=12)
    for axis, time in zip(axes[0], times, strict=True):
        axis.set_title(f"t = {time:g}")
    figure.suptitle("A kernel under its own PDE: it grows, blurs and travels; after a whole window it is back", fontsize=13)
    figure.savefig(path, dpi=100)


def animate(path: Path, weight: Tensor, frames: int) -> None:
    """All kernels (rows) under all motions (columns), once through t = 0 ... 1; few colours and dots keep the file small."""
    from matplotlib import colormaps
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    times = [frame / frames for frame in range(frames)]  # t = 1 would show the kernel of t = 0 twice in the advection's loop
    chosen = motions(weight.shape[-1])
    figure = Figure(figsize=(6.0, 0.5 + 1.5 * len(weight)), dpi=64)
    axes = panels(figure, len(weight), len(chosen))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.6 / figure.get_figheight(), wspace=0.04, hspace=0.04)
    films = []
    for column, motion in enumerate(chosen):
        axes[0, column].set_title(motion.name, fontsize=11)
        for row, kernel in enumerate(evolution(motion, weight, times)[0][:, :, 0].unbind(1)):
            limit = kernel.abs().max().item()
            image = axes[row, column].imshow(kernel[0].numpy(), cmap=colormaps["RdBu_r"].resampled(25), vmin=-limit, vmax=limit)
            films.append((image, kernel))
    writer = PillowWriter(fps=10)
    with writer.saving(figure, str(path), dpi=64):
        for frame, time in enumerate(times):
            for image, kernel in films:
                image.set_data(kernel[frame].numpy())
            figure.suptitle(f"convolution kernels under their own PDE, t = {time:.2f}", fontsize=11, y=0.995)
            writer.grab_frame()


def main(picture: Path | None = None, size: int = 7, steps: int = 100, frames: int = 24) -> dict[str, float]:
    weight = kernels(size)
    times = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = {motion.name: measure(motion, weight, times, steps) for motion in motions(size)}
    for motion in motions(size):
        numbers = found[motion.name]
        print(
            f"{motion.name:9}  {motion.formula:40}  |w(1) - w(0)| {numbers['change']:.1e}"
            f"   mean against exp(rho t) {numbers['mean']:.1e}   closed form against rk4 {numbers['rk4']:.1e}"
        )
    result = {
        "mean": max(numbers["mean"] for numbers in found.values()),
        "period": found["advection"]["change"],
        "rk4": max(numbers["rk4"] for numbers in found.values()),
        "blurred": found["diffusion"]["change"],
    }
    assert result["mean"] < 1e-12 and result["period"] < 1e-10 and result["rk4"] < 1e-6 and result["blurred"] > 0.1
    if picture is not None:
        draw(picture, weight)
        animate(picture.with_suffix(".gif"), weight[[0, 2]], frames)
        print(f"picture: {picture}, film: {picture.with_suffix('.gif')}")
    return result


if __name__ == "__main__":
    script(main, __doc__, Picture)
