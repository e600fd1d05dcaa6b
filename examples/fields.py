"""Fields, in a picture per page: where they start, what they do at ends, a medium with pores, and six equations with a name.

    python examples/fields.py --out FOLDER

writes fields_start.png, fields_burgers.png, fields_porous.png, fields_ends.png and fields_named.png, those of docs/pde.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import (
    Absorbing,
    Advection,
    AllenCahn,
    Burgers,
    CahnHilliard,
    Closed,
    Diffusion,
    FisherKPP,
    Grid1D,
    KortewegDeVries,
    KuramotoSivashinsky,
    Slope,
    SwiftHohenberg,
    Wave,
    plot,
    random_fourier,
    random_fronts,
    random_pulses,
    space_time,
)
from options import DIFFERENT, Seed, mistakes_told, parse
from ranks import choose_device
from runs import RunError

Page = Literal["start", "burgers", "porous", "ends", "named"]
Panels = Callable[..., Any]  # (columns, width, height) -> axes of a new figure
DOUBLE = torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class Config:
    """Solve a few equations and draw what becomes of them."""

    out: str = "none"
    """folder for the pictures; none: the numbers alone"""
    seed: Seed = 3
    """of the fields at the start"""
    device: str = "auto"
    """cpu, cuda, ...; auto: an accelerator where there is one"""
    pages: tuple[Page, ...] = ("start", "burgers", "porous", "ends", "named")
    """which pictures"""

    def __post_init__(self) -> None:
        if not DIFFERENT.holds(self.pages):
            raise RunError(f"--pages {' '.join(self.pages)} must be {DIFFERENT.words}")


def start(config: Config, like: Tensor, axes: Panels | None) -> dict[str, float]:
    """Three families of fields."""
    grid = Grid1D(400)
    fields = {f.__name__: f(grid, (5,), seed=config.seed, like=like) for f in (random_fourier, random_fronts, random_pulses)}
    if axes is not None:
        for panel, (name, u) in zip(axes(3, 9, 2.6), fields.items(), strict=True):
            plot(grid, u, axes=panel)
            panel.set_title(name)
    return {name: u.abs().max().item() for name, u in fields.items()}


def burgers(config: Config, like: Tensor, axes: Panels | None) -> dict[str, float]:
    """Waves that steepen into shocks, and the shocks run into one another."""
    grid, times = Grid1D(256), [0.02 * i for i in range(41)]
    u = odeint(Burgers(grid, 0.002), random_fourier(grid, modes=3, decay=1.0, seed=config.seed, like=like), times, steps=40)
    if axes is not None:
        left, right = axes(2, 8, 3)
        plot(grid, u[::20], labels=["t = 0", "0.4", "0.8"], axes=left)
        space_time(grid, times, u, axes=right)
    return {"sum of Burgers' field off by": (u[-1].mean() - u[0].mean()).abs().item()}


def barenblatt(t: float, x: Tensor) -> Tensor:
    """The solution of du/dt = d2(u^2)/dx2 that has spread from a point."""
    return t ** (-1 / 3) * (0.2 - (x / t ** (1 / 3)) ** 2 / 12).clamp(min=0)


def porous(config: Config, like: Tensor, axes: Panels | None) -> dict[str, float]:
    """D = 2 u: a field with an edge that moves, beside one that diffuses everywhere at once."""
    grid, times = Grid1D(60, 4.0, (Closed(), Closed()), start=-2.0), [0.1, 0.4, 1.6]
    x = grid.points(like)
    medium = Diffusion(grid, lambda t, x, u: 2 * u)
    u0 = barenblatt(times[0], x)
    u, even = (
        odeint(equation, u0, times, method="ssprk3", steps=math.ceil(1.2 / equation.max_stable_step("ssprk3", u0)))
        for equation in (medium, Diffusion(grid, 0.2))
    )
    right = torch.stack([barenblatt(t, x) for t in times])
    if axes is not None:
        panels = axes(2, 8, 3)
        for panel, field, title in zip(panels, (u, even), ("D = 2 u, dots: Barenblatt's solution", "D = 0.2"), strict=True):
            plot(grid, field, labels=[f"t = {t:g}" for t in times], axes=panel)
            panel.set_title(title)
        panels[0].plot(x.cpu().numpy(), right.T.cpu().numpy(), "k.", ms=2)
    return {"porous medium off by": (u - right).abs().mean().item(), "its sum by": (u.sum(-1) - u0.sum()).abs().max().item()}


def ends(config: Config, like: Tensor, axes: Panels | None) -> dict[str, float]:
    """A particle in a valley between closed walls and zero slopes, and a wave that leaves."""
    masses, valleys = {}, {}
    for name, condition in (("closed", Closed), ("zero slopes", Slope)):
        grid = Grid1D(60, 2.0, (condition(), condition()))
        equation = Advection(grid, lambda t, x: 1 - x, "upwind3", conservative=True) + Diffusion(grid, 0.1)
        u = odeint(equation, torch.ones_like(grid.points(like)), [0.0, 1.0], method="rk4", steps=400)[-1]
        masses[name], valleys[name] = u.mean().item(), u
    grid, times = Grid1D(128, 1.0, (Absorbing(), Absorbing())), [0.025 * i for i in range(41)]
    x = grid.points(like)
    bump = torch.exp(-(((x - 0.4) / 0.06) ** 2))
    wave = odeint(Wave(grid, 1.0, "central4"), (bump, torch.zeros_like(x)), times, method="rk4", steps=8)[0]
    if axes is not None:
        left, right = axes(2, 8, 3)
        plot(Grid1D(60, 2.0, (Closed(), Closed())), torch.stack([*valleys.values()]), labels=list(valleys), axes=left)
        left.set_title("drift 1 - x and diffusion, t = 1")
        space_time(grid, times, wave, axes=right)
        right.set_title("a wave between absorbing ends")
    return {f"mass, {name}": mass for name, mass in masses.items()} | {"comes back": (wave[-1].abs().max() / 0.5).item()}


def named(config: Config, like: Tensor, axes: Panels | None) -> dict[str, float]:
    """Six equations with a name: name, grid, field at the start, end, steps."""
    water, flames, rolls, phases = Grid1D(128, 40.0), Grid1D(128, 100.0), Grid1D(64, 40.0), Grid1D(128, 1.0)
    x = water.points(like)
    solitons = 2 / torch.cosh(x - 8) ** 2 + 0.5 / torch.cosh((x - 20) / 2) ** 2
    noise = lambda grid, size: size * random_fourier(grid, modes=20, seed=config.seed, like=like)  # noqa: E731
    rows: list[tuple[Any, Tensor, float, str, int]] = [
        (KortewegDeVries(water), solitons, 8.0, "etdrk4", 40),
        (KuramotoSivashinsky(flames), noise(flames, 0.1), 120.0, "etdrk4", 12),
        (SwiftHohenberg(rolls, 0.3), noise(rolls, 0.01), 40.0, "etdrk4", 4),
        (CahnHilliard(phases, 1e-4), noise(phases, 0.02), 0.05, "etdrk4", 40),
        (AllenCahn(phases, 1e-4, "spectral"), noise(phases, 0.02), 12.0, "etdrk4", 2),
        (FisherKPP(phases, 1e-4, 1.0, "spectral"), torch.exp(-(((phases.points(like) - 0.5) / 0.02) ** 2)), 20.0, "etdrk4", 2),
    ]
    found, panels = {}, axes(3, 11, 5.4, 2) if axes is not None else [None] * len(rows)
    for panel, (equation, u0, end, method, steps) in zip(panels, rows, strict=True):
        times = [end * i / 100 for i in range(101)]
        u = odeint(equation, u0, times, method=method, steps=steps)
        found[type(equation).__name__] = u[-1].abs().max().item()
        if panel is not None:
            space_time(equation.grid, times, u, axes=panel)
            panel.set_title(type(equation).__name__)
    return found


DRAWN: dict[str, Callable[[Config, Tensor, Panels | None], dict[str, float]]] = {
    f.__name__: f for f in (start, burgers, porous, ends, named)
}


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(layout="constrained", dpi=80)


def _panels(figure: Any, columns: int, width: float, height: float, rows: int = 1) -> Any:
    figure.set_size_inches(width, height)
    return figure.subplots(rows, columns).ravel()


def run(config: Config) -> dict[str, dict[str, float]]:
    like, found = DOUBLE.to(choose_device(config.device)), {}
    for page in config.pages:
        figure = _figure() if config.out != "none" else None
        panels = None if figure is None else partial(_panels, figure)
        found[page] = DRAWN[page](config, like, panels)
        print(f"{page}: " + ", ".join(f"{name} {value:.3g}" for name, value in found[page].items()))
        if figure is not None:
            figure.savefig(whole := BytesIO())
            Image.open(whole).convert("RGB").quantize(64).save(Path(config.out) / f"fields_{page}.png", optimize=True)  # small
    return found


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    with mistakes_told():
        config, _ = parse(Config, argv)
        if config.out != "none" and not Path(config.out).is_dir():
            raise RunError(f"--out {config.out} is no folder; make it first")
        return run(config)


if __name__ == "__main__":
    main()
