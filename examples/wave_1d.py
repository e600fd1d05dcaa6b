"""A plucked string: the bump splits in two, the ends send the halves back, and the energy stays, if the method lets it.

    d2u/dt2 = c^2 d2u/dx2,    at rest at first:    u(t, x) = (F(x - c t) + F(x + c t)) / 2    (d'Alembert),

with F the bump continued beyond the ends: odd about fixed ends (Dirichlet, u = 0), even about free ones (Neumann, du/dx = 0).
So a fixed end turns a wave upside down, a free end does not. Then 100 rounds of a ring by two methods at equal cost: the classical
Runge-Kutta method damps the short waves at every step, leapfrog is symplectic and its energy error stays as small as it was.

    python examples/wave_1d.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import Dirichlet, Grid1D, Neumann, Wave
from options import Picture, script

C, START, WIDTH = 1.0, 0.4, 0.05  # speed, centre and width of the bump; the length is 1
ENDS = {"fixed": Dirichlet(), "free": Neumann()}
SIGNS = {"fixed": -1.0, "free": 1.0}
METHODS = {"rk4": ("rk4", 16), "leapfrog": ("leapfrog", 64)}  # steps per quarter period: the same number of evaluations


def bump(x: Tensor) -> Tensor:
    return torch.exp(-(((x - START) / WIDTH) ** 2))


def continued(x: Tensor, sign: float) -> Tensor:
    """F: the bump, its images beyond both ends times the sign, and so on with period 2."""
    x = x.remainder(2.0)
    return bump(x) + bump(x - 2) + sign * bump(2 - x)


def dalembert(t: Tensor, x: Tensor, sign: float) -> Tensor:
    """u at the times t (first axis) and points x."""
    t = t[:, None]
    return (continued(x - C * t, sign) + continued(x + C * t, sign)) / 2


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


def reflect(ends: str, n: int, times: Tensor) -> tuple[Tensor, Tensor, float]:
    """x, u at the times, and the largest deviation from d'Alembert."""
    grid = Grid1D(n, boundary=ENDS[ends])
    x = points(grid)
    steps = round(2 * n * (times[1] - times[0]).item()) + 1  # a wave passes half a cell per step
    u, _ = odeint(Wave(grid, C, "central4"), (bump(x), torch.zeros_like(x)), times, steps=steps)
    return x, u, (u - dalembert(times, x, SIGNS[ends])).abs().max().item()


def energies(method: str, steps: int, periods: int) -> Tensor:
    """Energy over that of the start, four times per period 1 / C, on a periodic axis of 64 points."""
    grid = Grid1D(64)
    wave = Wave(grid, C)
    x = points(grid)
    times = torch.arange(4 * periods + 1, dtype=torch.float64) / (4 * C)
    u, v = odeint(wave, (bump(x), torch.zeros_like(x)), times, method=method, steps=steps)
    energy = wave.energy((u, v))
    return energy / energy[0]


def draw(path: Path, fields: dict[str, tuple[Tensor, Tensor]], times: Tensor, energy: dict[str, Tensor]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle("A bump at rest splits in two; fixed ends turn the halves upside down, free ends do not; leapfrog keeps the energy")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    image = None
    for panel, (ends, (x, u)) in zip(panels[:2], fields.items(), strict=True):
        image = panel.pcolormesh(x.numpy(), times.numpy(), u.numpy(), shading="nearest", cmap="RdBu_r", vmin=-1, vmax=1)
        condition = "u = 0" if ends == "fixed" else "du/dx = 0"
        panel.set(xlabel="x", ylabel="t", xlim=(0, 1), title=f"u(t, x), {ends} ends: {condition}")
    assert image is not None
    figure.colorbar(image, ax=panels[1], label="u")

    right = panels[2]
    for (method, values), colour in zip(energy.items(), ("#d95f02", "#1b6ca8"), strict=True):
        periods = torch.arange(len(values)) / 4
        right.plot(periods.numpy(), values.numpy(), color=colour, label=method)
    right.set(xlabel="periods", ylabel="energy / energy at the start", ylim=(0, 1.1), title="energy, same number of evaluations")
    right.grid(alpha=0.3)
    right.legend(loc="lower left")
    figure.savefig(path, dpi=100)


def strongest(u: Tensor) -> float:
    """The value of largest magnitude."""
    return u[u.abs().argmax()].item()


def main(picture: Path | None = None, small: bool = False) -> dict[str, float]:
    n, periods = (100, 20) if small else (200, 100)
    times = torch.linspace(0, 2, 201, dtype=torch.float64)
    fields: dict[str, tuple[Tensor, Tensor]] = {}
    numbers: dict[str, float] = {}
    for ends in ENDS:
        x, u, worst = reflect(ends, n, times)
        fields[ends] = (x, u)
        split, back = strongest(u[20]), strongest(u[80])  # t = 0.2: halves on their way; t = 0.8: each has met one end
        print(f"{ends} ends: halves of height {split:.4f}, {back:+.4f} after the ends; {worst:.1e} from d'Alembert at most")
        numbers |= {f"{ends} split": split, f"{ends} reflected": back, f"{ends} error": worst}

    energy = {name: energies(method, steps, periods) for name, (method, steps) in METHODS.items()}
    for name, values in energy.items():
        start, end = values[: len(values) // 5], values[-(len(values) // 5) :]
        numbers |= {f"{name} energy": values[-1].item(), f"{name} swing": (values - 1).abs().max().item()}
        numbers[f"{name} drift"] = (end.mean() - start.mean()).item()
        print(f"{name}, {periods} periods: energy {values[-1]:.4f} of 1 at the end, drift of its mean {numbers[f'{name} drift']:+.1e}")
    if picture is not None:
        draw(picture, fields, times, energy)
        print(f"picture: {picture}")
    return numbers


if __name__ == "__main__":
    script(main, __doc__, Picture)
