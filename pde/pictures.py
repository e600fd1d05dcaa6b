"""Pictures of fields in one line each; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .grid import Grid1D

LINES = 12  # of one panel, at most


def plot(grid: Grid1D, u: Tensor, *, axes: Any = None, path: str | Path | None = None, labels: Sequence[Any] | None = None) -> Any:
    """Fields over x, a line each.

    Args:
        grid: the points.
        u: (n,), or (fields, n) with 12 fields at most.
        axes: of matplotlib, to draw into; by default a new figure is made.
        path: a file to write.
        labels: of the lines.

    Returns:
        The figure.

    Raises:
        ValueError: another shape, or labels of another number.
        ImportError: no matplotlib.
    """
    rows = _numbers(grid, u, 1, 2, f"(n,) or (fields, n) with at most {LINES} fields")
    rows = rows.reshape(-1, grid.n)
    if len(rows) > LINES:
        raise ValueError(f"{len(rows)} fields are too many lines; give at most {LINES}, u[:: {-(-len(rows) // LINES)}] say")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels do not match {len(rows)} fields; give one for each")
    figure, axes = _axes(axes)
    for number, row in enumerate(rows):
        axes.plot(_x(grid), row.numpy(), label=None if labels is None else str(labels[number]))
    if labels is not None:
        axes.legend()
    axes.set(xlabel="x", ylabel="u", xlim=(grid.start, grid.start + grid.length))
    return _written(figure, path)


def space_time(grid: Grid1D, times: Sequence[float] | Tensor, u: Tensor, *, axes: Any = None, path: str | Path | None = None) -> Any:
    """u(t, x) in colours, x to the right and t upwards.

    Args:
        grid: the points.
        times: (T,), rising or falling.
        u: (T, n), as ``odeint`` returns it for one field.
        axes, path: as for ``plot``.

    Returns:
        The figure.

    Raises:
        ValueError: another shape.
        ImportError: no matplotlib.
    """
    values, t = _film(grid, times, u)
    figure, axes = _axes(axes)
    low, high = _range(values)
    extreme = max(-low, high)
    colours = {"cmap": "RdBu_r", "vmin": -extreme, "vmax": extreme} if low < 0 < high else {"cmap": "viridis"}
    image = axes.pcolormesh(_x(grid), t.numpy(), values.numpy(), shading="nearest", rasterized=True, **colours)
    figure.colorbar(image, ax=axes, label="u")
    axes.set(xlabel="x", ylabel="t")
    return _written(figure, path)


def animate(grid: Grid1D, times: Sequence[float] | Tensor, u: Tensor, *, path: str | Path | None = None, seconds: float = 5.0) -> Any:
    """The field on its way, a picture per time.

    Args:
        grid: the points.
        times, u: as for ``space_time``; u also (T, fields, n), a line each.
        path: a file to write, .gif (by Pillow) or .mp4 (by ffmpeg).
        seconds: that it takes.

    Returns:
        matplotlib's FuncAnimation; keep it as long as it is shown. ``animation.to_jshtml()`` is for a notebook.

    Raises:
        ValueError: another shape, no times, seconds that are not positive, or no ffmpeg for what it is to write.
        ImportError: no matplotlib.
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be positive")
    values, t = _film(grid, times, u, fields=True)
    from matplotlib.animation import FuncAnimation, writers

    if path is not None and not str(path).endswith(".gif") and not writers.is_available("ffmpeg"):
        raise ValueError(f"path={str(path)!r} needs ffmpeg, which is not installed; write a .gif")

    figure, axes = _axes(None)
    lines = axes.plot(_x(grid), values[0].reshape(-1, grid.n).mT.numpy())
    low, high = _range(values)
    margin = 0.05 * (high - low) or 1.0
    axes.set(xlabel="x", ylabel="u", xlim=(grid.start, grid.start + grid.length), ylim=(low - margin, high + margin))

    def draw(frame: int) -> Sequence[Any]:
        for line, row in zip(lines, values[frame].reshape(-1, grid.n), strict=True):
            line.set_ydata(row.numpy())
        axes.set_title(f"t = {t[frame].item():.3g}")
        return lines

    animation = FuncAnimation(figure, draw, frames=len(t), interval=1000 * seconds / len(t), init_func=lambda: draw(0))
    if path is not None:
        animation.save(str(path), writer="pillow" if str(path).endswith(".gif") else None, fps=max(1, round(len(t) / seconds)))
    return animation


def _film(grid: Grid1D, times: Sequence[float] | Tensor, u: Tensor, fields: bool = False) -> tuple[Tensor, Tensor]:
    t = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    values = _numbers(grid, u, 2, 3 if fields else 2, "(times, n)" + (" or (times, fields, n)" if fields else ", one field"))
    if t.shape != values.shape[:1]:
        raise ValueError(f"times of shape {tuple(t.shape)} and u of shape {tuple(u.shape)} do not match; give a time per field")
    if not len(t):
        raise ValueError("there is no time to draw; give at least one")
    return values, t


def _range(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest finite value; others leave gaps."""
    seen = values[values.isfinite()]
    return (seen.min().item(), seen.max().item()) if len(seen) else (0.0, 0.0)


def _numbers(grid: Grid1D, u: Tensor, least: int, most: int, shapes: str) -> Tensor:
    grid.check(u)
    if not least <= u.ndim <= most:
        raise ValueError(f"u has the shape {tuple(u.shape)}, and must have {shapes}")
    return u.detach().to("cpu", torch.float64)


def _x(grid: Grid1D) -> Any:
    return grid.points(torch.empty(0, dtype=torch.float64, device="cpu")).numpy()


def _axes(axes: Any) -> tuple[Any, Any]:
    if axes is not None:
        return axes.figure, axes
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    return figure, figure.subplots()


def _written(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        figure.savefig(path, dpi=100)
    return figure
