"""A field carried by a speed that changes and turns round, by seven schemes, against its exact solution.

    dz/dt + c(t) dz/dx = 0,    c(t) = 1/2 + sin(2 pi t),    z(t, x) = z0(x - C(t)),    C(t) = t/2 + (1 - cos(2 pi t)) / (2 pi)

on a periodic axis of length 1. Each scheme's error falls with the number of points as its order says (a smooth field), and each has
its own way of getting a box wrong: upwind1 smears it, central2 leaves ripples, weno5 keeps its height and steep sides.

    python examples/advection_1d.py
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import Advection, Grid1D
from options import Picture, script

END = 0.9  # the field has then moved by 0.48: no whole number of points on any of the grids
ORDERS = {"upwind1": 1, "central2": 2, "upwind3": 3, "central4": 4, "weno5": 5, "central6": 6, "spectral": math.inf}


def speed(t: Tensor, x: Tensor) -> Tensor:
    return 0.5 + torch.sin(2 * math.pi * t)


def travelled(t: Tensor) -> Tensor:
    """C(t), the integral of the speed."""
    return t / 2 + (1 - torch.cos(2 * math.pi * t)) / (2 * math.pi)


def hump(x: Tensor) -> Tensor:
    return torch.exp(torch.cos(2 * math.pi * (x - 0.3)) - 1)


def box(x: Tensor) -> Tensor:
    return ((x - 0.3).abs() < 0.15).to(x.dtype)


def points(n: int) -> Tensor:
    return Grid1D(n).points(torch.empty(0, dtype=torch.float64))


def error(scheme: str, n: int) -> float:
    """Root mean square error of the hump at t = END; error control in time, so that what is left is the scheme's."""
    x = points(n)
    z = odeint(Advection(Grid1D(n), speed, scheme), hump(x), [0.0, END], method="dopri8", rtol=1e-11, atol=1e-13)[-1]
    return (z - hump(x - travelled(torch.full_like(x, END)))).square().mean().sqrt().item()


def table(sizes: list[int]) -> dict[str, list[float]]:
    """Errors of every scheme for every n, printed with the order observed between the last two."""
    print("scheme   " + "".join(f"{f'n = {n}':>10}" for n in sizes) + f"{'order':>8}{'claim':>7}")
    errors = {}
    for scheme, claim in ORDERS.items():
        errors[scheme] = [error(scheme, n) for n in sizes]
        observed = f"{order(errors[scheme], sizes):8.2f}{claim:>7}" if math.isfinite(claim) else f"{'-':>8}{'any':>7}"
        print(f"{scheme:<9}" + "".join(f"{e:10.1e}" for e in errors[scheme]) + observed)
    return errors


def order(errors: list[float], sizes: list[int]) -> float:
    return math.log(errors[-2] / errors[-1]) / math.log(sizes[-1] / sizes[-2])


def carried_box(scheme: str, n: int) -> Tensor:
    """The box after t = 2, when it has gone round once."""
    equation = Advection(Grid1D(n), speed, scheme)
    return odeint(equation, box(points(n)), [0.0, 2.0], method="ssprk3", steps=4 * n)[-1]


def total_variation(z: Tensor) -> float:
    return (z - z.roll(1)).abs().sum().item()


def draw(path: Path, errors: dict[str, list[float]], sizes: list[int], boxes: dict[str, Tensor]) -> None:
    from matplotlib.figure import Figure

    grid = Grid1D(64)
    times = torch.linspace(0, 2, 101, dtype=torch.float64)
    field = odeint(Advection(grid, speed), hump(points(grid.n)), times, steps=4)
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle("A field carried by a speed that turns round: every scheme keeps its order, and makes its own kind of error")
    left, middle, right = figure.subplots(1, 3)

    image = left.contourf(points(grid.n).numpy(), times.numpy(), field.numpy(), levels=20, cmap="viridis")
    figure.colorbar(image, ax=left, label="z")
    for start in (-0.7, 0.3):
        left.plot((start + travelled(times)).numpy(), times.numpy(), "w--", linewidth=1.2, label="x = 0.3 + C(t)" if start > 0 else None)
    left.legend(loc="lower right", labelcolor="w", framealpha=0.25, facecolor="k")
    left.set(xlabel="x", ylabel="t", xlim=(0, 1 - grid.spacing), title="z(t, x) with c(t) = 1/2 + sin(2πt)")

    colours = dict(zip(ORDERS, ("#d95f02", "#7570b3", "#e6ab02", "#66a61e", "#e7298a", "#1b9e77", "#444444"), strict=True))
    for scheme, values in errors.items():
        middle.loglog(sizes, values, "o-", color=colours[scheme], markersize=4)
        name = scheme if scheme == "spectral" else f"{scheme}: {order(values, sizes):.2f}"
        middle.annotate(name, (sizes[-1], values[-1]), (6, -3), textcoords="offset points", color=colours[scheme], fontsize=9)
    middle.set_xticks(sizes, [str(n) for n in sizes])
    middle.minorticks_off()
    middle.grid(alpha=0.3)
    middle.set(
        xlabel="points n",
        xlim=(sizes[0] / 1.2, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.6),
        ylabel=f"root mean square error at t = {END}",
        title="a smooth field: observed orders of accuracy",
    )

    for scheme, z in boxes.items():
        right.plot(points(len(z)).numpy(), z.numpy(), color=colours[scheme], label=scheme)
    fine = points(1000)
    right.plot(fine.numpy(), box(fine).numpy(), "k:", linewidth=1, label="exact")
    right.set(xlabel="x", ylabel="z", title=f"a box after one round (n = {len(boxes['weno5'])})")
    right.legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=100)


def main(picture: Path | None = None, small: bool = False) -> dict[str, float]:
    sizes = [64, 128] if small else [16, 32, 64, 128, 256]
    errors = table(sizes)
    boxes = {scheme: carried_box(scheme, 50 if small else 200) for scheme in ("upwind1", "central2", "weno5")}
    for scheme, z in boxes.items():
        print(f"box by {scheme}: height {z.max() - z.min():.3f} (exact: 1), total variation {total_variation(z):.3f} (exact: 2)")
    if picture is not None:
        draw(picture, errors, sizes, boxes)
        print(f"picture: {picture}")
    numbers = {scheme: order(errors[scheme], sizes) for scheme in ORDERS if scheme != "spectral"}
    numbers["spectral error"] = errors["spectral"][-1]
    return numbers | {f"{scheme} variation": total_variation(z) for scheme, z in boxes.items()}


if __name__ == "__main__":
    script(main, __doc__, Picture)
