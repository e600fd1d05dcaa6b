"""How the weights of a coupled block move: norms, change, spectra of kernels, singular values of matrices, and pictures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..block import CoupledODEBlock, ODEBlock
from ..stepping import as_count
from .subject import Subject, uncompiled
from .table import axes, each, number, table

STILL, STEADY = 1e-3, 0.02  # relative change below which a weight hardly moves, and change of its norm below which it keeps its size
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe, Ito
MARKERS = "os^Dvx+"
GAP = 1  # empty columns between two pictures of a kernel


class Bands(NamedTuple):
    """|k| of the Fourier modes of a kernel (radians per cell, 0 for the mean), rising; how many modes have it; and their mean power,
    (times, bands)."""

    k: Tensor
    modes: Tensor
    power: Tensor


@dataclass(frozen=True, repr=False, eq=False)
class WeightPath:
    """theta(t) of a block by parameter name at some times; ``print`` reads it aloud, ``plot`` and ``animate`` draw it.

    ``theta``: the weights, the times in front: (times, *shape), detached, on the CPU, float64 or complex128.
    """

    times: tuple[float, ...]
    theta: dict[str, Tensor]
    dynamics: str

    @cached_property
    def norms(self) -> dict[str, Tensor]:
        """Per weight its Frobenius norm at each time, (times,)."""
        return {name: w.flatten(1).norm(dim=1) for name, w in self.theta.items()}

    @cached_property
    def changes(self) -> dict[str, Tensor]:
        """|theta(t) - theta(t0)| / |theta(t0)| per weight, (times,): inf where a weight starts from 0."""
        found = {}
        for name, w in self.theta.items():
            moved = (w - w[:1]).flatten(1).norm(dim=1)
            found[name] = torch.where(moved == 0, 0.0, moved / self.norms[name][0])
        return found

    @property
    def kernels(self) -> tuple[str, ...]:
        """The convolution kernels among the weights: (out, in, *space) with two or more spatial axes longer than 1."""
        return tuple(name for name, w in self.theta.items() if sum(size > 1 for size in w.shape[3:]) >= 2)

    def bands(self, name: str) -> Bands:
        """The spatial Fourier spectrum of a kernel: |F w(k)|^2 / places, averaged over the modes of equal |k| and the channels.

        Summed over all modes it is |w|^2 per channel pair (Parseval). Periodic, unit spacing, as the dynamics sees it: on 3x3 |k| is 0,
        2.09 or 2.96.

        Raises:
            ValueError: not one of ``kernels``.
        """
        if name not in self.kernels:
            raise ValueError(
                f"name={name!r} is no convolution kernel with two spatial axes; choose one of {', '.join(self.kernels) or '(none)'}"
            )
        w = self.theta[name]
        space = w.shape[3:]
        power = torch.fft.fftn(w, dim=tuple(range(3, w.ndim))).abs().square().flatten(3).mean((1, 2)) / math.prod(space)
        waves = torch.meshgrid(*(2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64) for size in space), indexing="ij")
        size = torch.stack(waves).square().sum(0).sqrt().flatten()
        k, place = torch.unique((size * 1e9).round() / 1e9, return_inverse=True)
        total = torch.zeros(len(w), len(k), dtype=torch.float64).index_add(1, place, power)
        modes = place.bincount()
        return Bands(k, modes, total / modes)

    def singular_values(self, name: str) -> Tensor:
        """Of a weight of two or more axes, as a matrix (out, everything else): (times, values), largest first.

        Raises:
            ValueError: a weight with one axis.
        """
        w = self.theta[name]
        if w.ndim < 3:
            raise ValueError(f"name={name!r} of shape {tuple(w.shape[1:])} is no matrix and has no singular values")
        return torch.linalg.svdvals(w.flatten(2))

    @property
    def moving_most(self) -> str:
        """The weight that gets furthest from its start, relative to its size."""
        return max(self.changes, key=lambda name: self.changes[name].max().item())

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        columns = ["weight", "shape", f"|theta({self.times[0]:g})|", f"|theta({self.times[-1]:g})|", "furthest change", "what moves"]
        rows = [
            [
                name,
                "x".join(map(str, w.shape[1:])),
                *(self.norms[name][[0, -1]].tolist()),
                self.changes[name].max().item(),
                self._moves(name),
            ]
            for name, w in self.theta.items()
        ]
        return "\n".join([table(columns, rows), self.verdict])

    @property
    def verdict(self) -> str:
        """Which weight moves most, by how much, and how."""
        name = self.moving_most
        change, norms = self.changes[name], self.norms[name]
        span = f"from t = {self.times[0]:g} to {self.times[-1]:g} under {self.dynamics}"
        if change.max() < STILL:
            return f"the weights hardly move {span}: by {change.max():.1g} of their size at most, of {name}"
        when = self.times[int(change.argmax())]
        if norms[0] == 0:
            return f"{name} moves most {span}: it starts from 0 and its norm ends at {norms[-1]:.3g}"
        largest = change.max().item()
        far = f"{name} moves most {span}, by {f'{largest:.0%} of' if largest < 10 else f'{largest:.3g} times'} its size at t = {when:g}"
        ratio = (norms[-1] / norms[0]).item()
        if abs(ratio - 1) < STEADY:
            return f"{far}, and keeps its norm"
        return f"{far}; its norm {'grows' if ratio > 1 else 'decays'} by a factor {ratio:.3g}"

    def _moves(self, name: str) -> str:
        """Of a kernel how fine it is, of a matrix its largest singular value, at the start and end."""
        if not bool(self.theta[name].isfinite().all()):
            return "not finite"
        if name in self.kernels:
            k, modes, power = self.bands(name)
            fine = ((power * modes) @ k / (power @ modes.double())).nan_to_num()
            return f"mean |k| {number(fine[0].item())} -> {number(fine[-1].item())}"
        if self.theta[name].ndim >= 3:
            values = self.singular_values(name)[:, 0]
            return f"largest singular value {number(values[0].item())} -> {number(values[-1].item())}"
        return "-"

    def plot(self, ax: Any = None) -> Any:
        """Norms over t; then of the kernel that moves most a strip over t and its spectrum, or of the matrix its singular values.

        ``ax``: one for the norms alone, or as many of the three panels as there are to be drawn; returns the axes.
        """
        panels = [self._draw_norms]
        if self.kernels:
            panels += [self._draw_strip, self._draw_bands]
        elif self._matrices:
            panels.append(self._draw_singular_values)
        ax = axes(ax, 1, len(panels))
        for one, draw in zip(each(ax), panels, strict=False):
            draw(one)
        return ax

    def animate(self, path: str | Path, name: str | None = None, *, count: int = 16, fps: int = 10, dpi: int = 64) -> Path:
        """A film of kernels (a matrix is one picture) over the times, as a GIF; returns its path.

        Args:
            path: of the file to write.
            name: which weight; None: the kernel that moves most, or else the matrix.
            count: so many of its kernels are shown, those that move most, each in colours of its own.
            fps, dpi: frames per second, dots per inch.

        Raises:
            ValueError: a weight that is not there, or has fewer than two axes.
        """
        from matplotlib import colormaps
        from matplotlib.animation import PillowWriter
        from matplotlib.figure import Figure

        name = self._pictured(name)
        films = self._kernels_of(name, as_count("count", count))
        columns = math.ceil(math.sqrt(len(films)))
        rows = math.ceil(len(films) / columns)
        cell = max(1.0, 2.6 / columns)
        figure = Figure(figsize=(cell * columns, cell * rows + 0.35), dpi=dpi)
        grid = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.35 / figure.get_figheight(), wspace=0.05, hspace=0.05)
        colours, images = colormaps["RdBu_r"].resampled(25), []  # few colours keep the file small
        for axis in grid.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, film in zip(grid.flat, films, strict=False):
            images.append(axis.imshow(film[0].numpy(), cmap=colours, **_range(film)))
        writer = PillowWriter(fps=fps)
        with writer.saving(figure, str(path), dpi=dpi):
            for place, time in enumerate(self.times):
                for image, film in zip(images, films, strict=True):
                    image.set_data(film[place].numpy())
                figure.suptitle(f"{name}, t = {time:.2f}", fontsize=9, y=0.995)
                writer.grab_frame()
        return Path(path)

    @property
    def _matrices(self) -> list[str]:
        return [name for name, w in self.theta.items() if w.ndim >= 3 and name not in self.kernels]

    def _pictured(self, name: str | None) -> str:
        """The weight to be shown: the given one, else the kernel, else the matrix that moves most."""
        if name is None:
            names = self.kernels or self._matrices
            if not names:
                raise ValueError("no weight of this path has two axes to be seen as a picture; plot() draws the norms")
            return max(names, key=lambda name: self.changes[name].max().item())
        if name not in self.theta or self.theta[name].ndim < 3:
            raise ValueError(f"name={name!r} is no weight with two axes; choose one of {', '.join([*self.kernels, *self._matrices])}")
        return name

    def _kernels_of(self, name: str, count: int) -> list[Tensor]:
        """Pictures (times, height, width) of the kernels that move most; a matrix is one."""
        w = self.theta[name].real
        if name not in self.kernels:
            return [w.flatten(2)]
        pictures = w.flatten(1, 2)
        moved = (pictures - pictures[:1]).flatten(2).norm(dim=2).amax(0)
        shown = [pictures[:, i] for i in moved.argsort(descending=True, stable=True)[:count].tolist()]
        return [_flat(picture) for picture in shown]

    def _draw_norms(self, ax: Any) -> None:
        shown = sorted(self.theta, key=lambda name: -self.changes[name].max().item())[: len(COLOURS)]
        for name, colour, marker in zip(shown, COLOURS, MARKERS, strict=False):
            norms = self.norms[name]
            ax.plot(
                self.times, (norms / norms[0] if norms[0] > 0 else norms).numpy(), color=colour, marker=marker, markersize=4, label=name
            )
        rest = len(self.theta) - len(shown)
        ax.set(xlabel="t", ylabel="|θ(t)| / |θ(0)|", title="norms" + (f" (and {rest} weights that move less)" if rest else ""))
        ax.grid(alpha=0.3)
        ax.legend()

    def _draw_strip(self, ax: Any) -> None:
        name = self._pictured(None)
        film = self._kernels_of(name, 1)[0]
        places = sorted({round(i * (len(self.times) - 1) / 5) for i in range(6)})
        height, width = film.shape[1:]
        across, down = width + GAP, math.ceil(1.3 * height)  # room for the time above each
        columns = math.ceil(len(places) / 2)
        canvas = film.new_full((down * math.ceil(len(places) / columns), across * columns - GAP), math.nan)
        for i, place in enumerate(places):
            left, bottom = across * (i % columns), down * (i // columns + 1)
            canvas[bottom - height : bottom, left : left + width] = film[place]
            ax.text(left + (width - 1) / 2, bottom - height - 0.7, f"t = {self.times[place]:.2g}", ha="center", va="bottom")
        image = ax.imshow(canvas.numpy(), cmap="RdBu_r", **_range(film))
        ax.set(xticks=[], yticks=[], frame_on=False, title=f"the kernel of {name} that moves most")
        ax.figure.colorbar(image, ax=ax, label="w")

    def _draw_bands(self, ax: Any) -> None:
        name = self._pictured(None)
        k, _, power = self.bands(name)
        for place, colour, marker in zip(sorted({0, len(self.times) // 2, len(self.times) - 1}), COLOURS, MARKERS, strict=False):
            ax.semilogy(k.numpy(), power[place].numpy(), color=colour, marker=marker, markersize=4, label=f"t = {self.times[place]:.2g}")
        ax.set(xlabel="|k|  (radians per cell)", ylabel="mean power of a mode", title=f"spectrum of {name}, all channels")
        ax.grid(alpha=0.3)
        ax.legend()

    def _draw_singular_values(self, ax: Any) -> None:
        name = self._pictured(None)
        values = self.singular_values(name)
        for place in range(min(values.shape[1], len(COLOURS))):
            ax.plot(
                self.times, values[:, place].numpy(), color=COLOURS[place], marker=MARKERS[place], markersize=4, label=f"no. {place + 1}"
            )
        ax.set(xlabel="t", ylabel="singular value", title=f"largest singular values of {name}")
        ax.grid(alpha=0.3)
        ax.legend()


def weight_path(block: CoupledODEBlock, times: int | Sequence[float] | None = None) -> WeightPath:
    """How the weights of a coupled block move, theta(t) at some times: norms, change, spectra; a table and pictures.

    Where the dynamics has no closed form, its steps are cut further so that they meet the times that are given.

    Args:
        block: a ``CoupledODEBlock``.
        times: so many equally spaced ones over the block's t, at least 2; or the times themselves, the first of which counts as the start.
            None: 11, or where the dynamics has no closed form those at which z reads theta, whose steps are the block's own.

    Raises:
        TypeError: something else than a ``CoupledODEBlock``; of a network, its coupled blocks are named.
        ValueError: times outside the block's t, or fewer than two.

    Source: ANODEV2, arXiv 1906.04596.
    """
    block = uncompiled(block)
    if not isinstance(block, CoupledODEBlock):
        raise TypeError(f"block must be a CoupledODEBlock, {_instead(block)}")
    with torch.inference_mode(False), torch.no_grad(), Subject(block, None, {}).untouched():
        chosen = _chosen(block, times)
        if len(chosen) < 2:
            raise ValueError(f"times={times!r} must be at least two times, to see a change")
        theta = block.weights(chosen)
    kept = {name: w.detach().cpu().to(torch.complex128 if w.is_complex() else torch.float64) for name, w in theta.items()}
    return WeightPath(tuple(chosen), kept, type(block.dynamics).__name__)


def _instead(block: Any) -> str:
    if isinstance(block, ODEBlock):
        return "the weights of this ODEBlock are the same at all times"
    inside = [name for name, module in block.named_modules() if isinstance(module, CoupledODEBlock)] if isinstance(block, nn.Module) else []
    return f"got {type(block).__name__}" + (f"; give one of those inside it: {', '.join(inside)}" if inside else "")


def _chosen(block: CoupledODEBlock, times: int | Sequence[float] | None) -> list[float]:
    start, end = block.t
    if times is None and block.dynamics.flow(block.weights(start), [0.0]) is None:
        return list(dict.fromkeys([start, *block.reading_times, end]))
    if times is not None and not isinstance(times, int):
        return [float(time) for time in times]
    count = 11 if times is None else as_count("times", times)
    return [start + (end - start) * i / max(1, count - 1) if i < count - 1 or i == 0 else end for i in range(count)]


def _flat(picture: Tensor) -> Tensor:
    """(times, height, width) of (times, *space): axes of length 1 dropped, the middle of those in front."""
    space = [size for size in picture.shape[1:] if size > 1]
    picture = picture.reshape(len(picture), *space)
    while picture.ndim > 3:
        picture = picture[:, picture.shape[1] // 2]
    return picture


def _range(film: Tensor) -> dict[str, float]:
    limit = film.abs().max().item() or 1.0
    return {"vmin": -limit, "vmax": limit}
