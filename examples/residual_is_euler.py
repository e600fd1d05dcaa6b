"""A residual block is one Euler step of an ODE: the talk's slide "Residual Networks as ODEs".

    ResNet   z1 = z0 + f(z0, theta)
    ODE      z1 = z0 + int_0^1 f(z(t), theta) dt

The first is one step of Euler's method for the second, to the last bit, for a block and for a whole ResNet-4. With the same weights and
more steps the result moves away from the residual block and settles at the solution of the ODE: the error of Euler falls in proportion
to 1 / steps, that of rk4 to 1 / steps^4. What it settles at is another function: a residual network is not a solved ODE, and a network
that was trained with one step need not work with many.

The column "off the flow" is |z1 - z(1)| / |z(1)|, z1 of the residual block and z(1) of the ODE, over 64 random points or 2 random inputs.

Look at the picture: left, points of the plane moved by a small field, jumping once or flowing; right, the errors over the number of steps.

    python examples/residual_is_euler.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import ODEBlock
from anodev2.models import resnet4
from options import SeededPicture, script

METHODS = {"euler": 1, "rk4": 4}  # and their orders


class Branch(nn.Module):
    """The f of a residual block without norms, conv3x3(tanh(conv3x3 z)), smooth so that rk4 shows its order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        return self.conv2(torch.tanh(self.conv1(z)))


class Plane(nn.Module):
    """A field of the plane, A W^T tanh(W z) with 16 hidden numbers and A a turn by 110 degrees: round the origin and a little inwards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.35 * torch.randn(16, 2))
        self.angle = math.radians(110)

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        x, y = (torch.tanh(z @ self.weight.T) @ self.weight).unbind(-1)
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


def residual(f: nn.Module, z0: Tensor) -> Tensor:
    """A residual block."""
    return z0 + f(0.0, z0)


def refined(f: nn.Module, z0: Tensor, steps: Sequence[int], limit: Tensor) -> dict[str, list[float]]:
    """Relative errors of z(1) over the number of steps, with the weights of f unchanged."""
    blocks = {method: [ODEBlock(f, method=method, steps=n) for n in steps] for method in METHODS}
    return {method: [((block(z0) - limit).norm() / limit.norm()).item() for block in some] for method, some in blocks.items()}


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the slope of log error over log steps, by least squares over the errors that are above round-off."""
    pairs = [(math.log(n), math.log(e)) for n, e in zip(steps, errors, strict=True) if n >= 8 and e > 1e-12]
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return -(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def equal_networks() -> bool:
    """Whether ResNet-4 with a residual block and with an ODE block of one Euler step give the same numbers, from the same weights."""
    network, ode = resnet4(block="residual").eval(), resnet4(block="ode", steps=1).eval()
    ode.load_state_dict(network.state_dict())
    images = torch.randn(8, 3, 32, 32)
    return torch.equal(network(images), ode(images))


def draw(path: Path, f: nn.Module, steps: Sequence[int], errors: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle("A residual block is one Euler step; refined with the same weights it tends to the flow of an ODE, another function")
    left, right = figure.subplots(1, 2)
    draw_plane(left, f)
    draw_errors(right, steps, errors)
    figure.savefig(path, dpi=100)


def draw_plane(ax: Any, f: nn.Module) -> None:
    angles = torch.arange(7, dtype=torch.float64) * 2 * torch.pi / 7
    z0 = 1.2 * torch.stack([angles.cos(), angles.sin()], 1)
    for method, n, style, words in (
        ("euler", 1, {"color": "#D55E00", "linestyle": ":", "marker": "s", "linewidth": 1.8}, "residual block: one Euler step"),
        ("euler", 4, {"color": "#0072B2", "linestyle": "--", "marker": "^", "linewidth": 1.2}, "four Euler steps"),
        ("rk4", 100, {"color": "#222222", "linestyle": "-", "linewidth": 1.6}, "the flow"),
    ):
        x, y = ODEBlock(f, method=method, steps=n).trajectory(z0).unbind(-1)
        ends = {"markevery": [n]} if n == 1 else {}
        ax.plot(x.numpy(), y.numpy(), **style, **ends, markersize=5, label=[words, *[None] * (len(z0) - 1)])
        if n == 100:
            ax.plot(x[-1].numpy(), y[-1].numpy(), "o", color="#222222", markersize=5, label="its end, z(1)")
    ax.plot(*z0.T.numpy(), "o", markerfacecolor="w", markeredgecolor="#222222", markersize=6, label="start, z(0)")
    ax.set(xlabel="first number of z", ylabel="second number of z", title="points moved by the same f")
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="upper right")


def draw_errors(ax: Any, steps: Sequence[int], errors: dict[str, list[float]]) -> None:
    styles = {"euler": ("#0072B2", "o", "-"), "rk4": ("#E69F00", "D", "--")}
    for method, (colour, marker, line) in styles.items():
        order, found = METHODS[method], errors[method]
        ax.loglog(steps, found, marker, color=colour, markersize=6, label=f"{method}: slope {-slope(steps, found):.2f}")
        theory = [found[3] * (n / steps[3]) ** -order for n in steps]
        ax.loglog(steps, theory, line, color=colour, linewidth=1, label=f"slope {-order}")
    ax.loglog(1, errors["euler"][0], "s", color="#D55E00", markersize=9, label="residual block")
    ax.set(xlabel="steps from t = 0 to 1", ylabel="relative distance of z(1) from the flow's", ylim=(1e-15, 3))
    ax.set_title("the same weights, more steps")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower left")


@torch.no_grad()
def main(picture: Path | None = None, small: bool = False, seed: int = 1) -> dict[str, float]:
    torch.manual_seed(seed)
    steps = [2**k for k in range(7 if small else 10)]
    shapes: dict[str, tuple[nn.Module, tuple[int, ...]]] = {"plane": (Plane(), (64, 2)), "convolution": (Branch(16), (2, 16, 16, 16))}
    numbers = {"networks equal": float(equal_networks())}
    print(f"{'f':12} {'one step':>9} {'off the flow':>13} {'slope, euler':>13} {'slope, rk4':>11}")
    for name, (f, shape) in shapes.items():
        f, z0 = f.double(), torch.randn(shape).double()
        limit = ODEBlock(f, method="dopri8", steps=256)(z0)
        errors = refined(f, z0, steps, limit)
        equal = torch.equal(ODEBlock(f, steps=1)(z0), residual(f, z0))
        numbers |= {f"{name} equal": float(equal), f"{name} residual off": errors["euler"][0]}
        numbers |= {f"{name} {method}": slope(steps, errors[method]) for method in METHODS}
        words = "the same" if equal else "not equal"
        print(f"{name:12} {words:>9} {errors['euler'][0]:13.1%} {-numbers[f'{name} euler']:13.2f} {-numbers[f'{name} rk4']:11.2f}")
        if picture is not None and name == "plane":
            draw(picture, f, steps, errors)
    words = "the same, to the last bit" if numbers["networks equal"] else "not equal"
    print(f"ResNet-4 with a residual block and with one Euler step: {words}")
    if picture is not None:
        print(f"picture: {picture}")
    return numbers


if __name__ == "__main__":
    script(main, __doc__, SeededPicture)
