"""Can an ODE be solved backwards? The talk's slides "Reversibility of ODEs" and "Irreversibility of ODEs" (Euler, adaptive RK45).

dz/dt = -lambda^2 z forgets where it came from: an error of z(1) grows by exp(lambda^2) on the way back. What the error is depends on the
solver: error control leaves one of the size of its tolerance, and a state that does not tend to 0 is rounded; a state that tends to 0
keeps its relative accuracy in floating point, so there a precise solver does come back. Euler misses z(0) by its own error, which needs
no noise: each step there and back multiplies by 1 - (lambda^2 dt)^2. The law of z that tends to 1 holds while z(1) still differs from
point to point: from lambda^2 = 16 on, rounding leaves three values for 100 points, within a few eps of 1, and what they came from is
lost ("-" in the table; the lines in the picture end before).

A convolution block dz/dt = sigma(K * z) on a real image is the same story: with kernels as PyTorch initialises them it runs backwards
without trouble, with kernels drawn from N(0, 1) it does not, whether solved by Euler or by an adaptive RK45 (dopri5, 1e-3). It is a matter
of the Lipschitz constant and of the solver's accuracy, not of the kind of layer: at a tolerance of 1e-6 RK45 still misses the input by
30 to 60 %, but by 0.02 % with tanh, which saturates.

Look at the picture: left, the input, the output and what each solver finds when it goes back; right, the error over lambda^2 against these
laws, and the error over the Lipschitz constant while the kernel grows from the one scale to the other.

    python examples/irreversibility.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import diagnose, odeint
from images import load_images
from options import SeededPicture, script

ACTIVATIONS: dict[str, nn.Module] = {"ReLU": nn.ReLU(), "leaky ReLU": nn.LeakyReLU(), "softplus": nn.Softplus(), "tanh": nn.Tanh()}
PICTURED = ("ReLU", "softplus", "tanh")
EULER: dict[str, Any] = {"method": "euler", "steps": 100}
RK45: dict[str, Any] = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}
FINE: dict[str, Any] = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}
PRECISE: dict[str, Any] = {"method": "dopri8", "steps": 100}  # only round-off is left
SOLVERS = {"Euler": EULER, "RK45": RK45, "RK45, 1e-6": FINE}
CHANNELS = 16  # as in the first stage of a ResNet for CIFAR-10; three of them are the image, the others 0 at first
CAT = 25  # of the test images
EPS = torch.finfo(torch.float32).eps


class Convolution(nn.Module):
    """sigma(K * z), K of 3 x 3 pixels, multiplied by ``scale``; ``unscaled``: drawn from N(0, 1), else as PyTorch does."""

    def __init__(self, activation: nn.Module, unscaled: bool, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.activation = activation
        with torch.no_grad():
            if unscaled:
                self.conv.weight.normal_()
            self.conv.weight.mul_(scale)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.activation(self.conv(z))


def image(small: bool = False) -> Tensor:
    """A cat, (1, 16, 32, 32) with values from -1 to 1; small: every second pixel of it."""
    pixels = load_images("mini", Path(), torch.device("cpu")).x_test[CAT].permute(2, 0, 1).float() / 127.5 - 1
    whole = torch.cat([pixels, torch.zeros(CHANNELS - 3, 32, 32)])[None]
    return whole[..., ::2, ::2] if small else whole


@dataclass
class Decay:
    """Reconstruction errors of dz/dt = -lambda^2 z over lambda^2 = ``rates``, measured and by the law; nan where z(1) is rounded away."""

    rates: list[float]
    found: dict[str, list[float]]
    laws: dict[str, list[float]]


def decay(rates: list[float]) -> Decay:
    start, found, laws = torch.linspace(0.02, 2, 100), {}, {}
    for name, rest, options in (("Euler", 0.0, EULER), ("RK45", 0.0, FINE), ("to 1", 1.0, PRECISE), ("to 0", 0.0, PRECISE)):
        fields = [lambda t, z, rate=rate, rest=rest: -rate * (z - rest) for rate in rates]
        found[name] = [diagnose.reversibility(f, start, times=2, **options).error for f in fields]
        if name == "RK45":
            ends = [odeint(f, start, [0.0, 1.0], **options)[-1] for f in fields]
            off = [(z - start * math.exp(-rate)).norm() / start.norm() for z, rate in zip(ends, rates, strict=True)]
            laws[name] = [math.exp(rate) * error.item() for rate, error in zip(rates, off, strict=True)]
    steps, mean_square = EULER["steps"], start.square().mean().sqrt().item()
    laws["Euler"] = [abs(1 - (1 - (rate / steps) ** 2) ** steps) for rate in rates]
    laws["to 1"] = [math.exp(rate) * EPS / mean_square for rate in rates]  # z(1) is near 1, and off by a few roundings of eps / 2
    laws["to 0"] = [EPS for _ in rates]
    for i, rate in enumerate(rates):
        z1 = odeint(lambda t, z, rate=rate: -rate * (z - 1), start, [0.0, 1.0], **PRECISE)[-1]
        if len(z1.unique()) < len(start) / 10:  # rounded away
            found["to 1"][i] = laws["to 1"][i] = math.nan
    return Decay(rates, found, laws)


def slope(x: list[float], y: list[float]) -> float:
    """Of log y over x, by least squares."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64).log()
    return (((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()).item()


@dataclass
class Growing:
    """Lipschitz constants of ReLU convolutions as their kernels grow, and the reconstruction errors of two solvers."""

    lipschitz: list[float]
    errors: dict[str, list[float]]


def growing(z0: Tensor, count: int, seed: int = 0) -> Growing:
    """From the scale of PyTorch's initialisation, deviation 1 / sqrt(27 channels), to N(0, 1)."""
    scales = torch.logspace(math.log10(1 / math.sqrt(27 * CHANNELS)), 0, count).tolist()
    fields = [Convolution(ACTIVATIONS["ReLU"], True, scale, seed) for scale in scales]
    reports = {name: [diagnose.reversibility(f, z0, times=2, **SOLVERS[name]) for f in fields] for name in SOLVERS}
    return Growing([max(r.lipschitz) for r in reports["Euler"]], {name: [r.error for r in found] for name, found in reports.items()})


@torch.no_grad()
def there_and_back(f: nn.Module, z0: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """z(1), and z(0) as it is found from there."""
    z1 = odeint(f, z0, [0.0, 1.0], **options)[-1]
    return z1, odeint(f, z1, [1.0, 0.0], **options)[-1]


def shown(z: Tensor, stretch: bool = False) -> Any:
    """The first three channels as an image, clipped to the values of the input, or stretched to fill these."""
    pixels = z[0, :3].nan_to_num()
    if stretch:
        low, high = pixels.quantile(0.01), pixels.quantile(0.99)
        pixels = 2 * (pixels - low) / (high - low) - 1
    return ((pixels + 1) * 11.5).clamp(0, 23).round().div(23).permute(1, 2, 0).numpy()  # 24 levels make a small file


def share(error: float) -> str:
    return f"{error:.0f} times" if error >= 2 else f"{100 * error:.2g} %" if error > 1e-5 else "< 0.001 %"


def draw(path: Path, z0: Tensor, errors: dict[str, float], lines: Decay, scales: Growing, seed: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    figure.suptitle("Solved backwards: well-scaled convolutions come back to their input, N(0, 1) kernels do not")
    left, right = (figure.add_subfigure(place) for place in figure.add_gridspec(1, 2, width_ratios=(7, 4)))
    draw_images(left, z0, errors, seed)
    over_lambda, over_scale = right.subplots(2, 1)
    draw_decay(over_lambda, lines)
    draw_growing(over_scale, scales)
    figure.savefig(path, dpi=83, pil_kwargs={"optimize": True})


def draw_images(figure: Any, z0: Tensor, errors: dict[str, float], seed: int) -> None:
    """A row for each activation (leaky ReLU looks as ReLU does): input, and with either kernel the output and what is found from there."""
    grid = figure.subplots(len(PICTURED), 7)
    columns = ["output", "Euler back", "RK45 back"]
    for row, name in zip(grid, PICTURED, strict=True):
        pictures, words = [shown(z0)], [""]
        for kind, unscaled in (("scaled", False), ("unscaled", True)):
            f = Convolution(ACTIVATIONS[name], unscaled, seed=seed)
            z1, by_euler = there_and_back(f, z0, EULER)
            by_rk45 = there_and_back(f, z0, RK45)[1]
            pictures += [shown(z1, stretch=True), shown(by_euler), shown(by_rk45)]
            words += ["", *(f"off by {share(errors[f'{kind} {name} {solver}'])}" for solver in ("Euler", "RK45"))]
        for ax, picture, word in zip(row, pictures, words, strict=True):
            ax.imshow(picture, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(word, fontsize=8)
        row[0].set_ylabel(name)
    for ax, head in zip(grid[0], ["input", *columns, *columns], strict=True):
        ax.set_title(head, fontsize=9)
    for place, kind, words in ((2, "scaled", "PyTorch's kernels"), (5, "unscaled", "N(0, 1) kernels")):
        head = f"{words}, Lipschitz {errors[f'{kind} ReLU Lipschitz']:.0f} (ReLU)\n{columns[1]}"
        grid[0][place].set_title(head, fontsize=9)


def draw_decay(ax: Any, lines: Decay) -> None:
    styles = {
        "RK45": ("#D55E00", "s", "RK45, tolerance 1e-6", "exp($\\lambda^2$) $\\times$ its error of z(1)"),
        "to 1": ("#CC79A7", "^", "z tends to 1, precise solver", "exp($\\lambda^2$) $\\times$ rounding of z(1)"),
        "Euler": ("#0072B2", "o", "Euler, 100 steps", "1 $-$ (1 $-$ ($\\lambda^2$/100)$^2$)$^{100}$"),
        "to 0": ("#222222", "x", "z tends to 0, precise solver", None),
    }
    for name, (colour, marker, label, law) in styles.items():
        ax.semilogy(lines.rates, lines.found[name], marker, color=colour, markersize=5, label=label)
        if law is not None:
            ax.semilogy(lines.rates, lines.laws[name], {"RK45": "--", "to 1": ":", "Euler": "-"}[name], color=colour, label=law)
    ax.set(xlabel="$\\lambda^2$", ylabel="relative error of z(0)", ylim=(1e-8, 1e10))
    ax.set_title("dz/dt = $-\\lambda^2$ z in float32, there and back", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=2)


def draw_growing(ax: Any, scales: Growing) -> None:
    styles = {
        "Euler": ("#0072B2", "o-", "Euler, 100 steps"),
        "RK45": ("#D55E00", "s--", "RK45, 1e-3"),
        "RK45, 1e-6": ("#009E73", "^:", "RK45, 1e-6"),
    }
    for name, (colour, line, label) in styles.items():
        ax.loglog(scales.lipschitz, scales.errors[name], line, color=colour, markersize=5, label=label)
    ax.axhline(1.0, color="#555555", linewidth=0.8)
    ax.text(4, 1.6, "all is lost", fontsize=8, color="#555555")
    ax.set(xlabel="Lipschitz constant: largest singular value of df/dz", ylabel="relative error of z(0)")
    ax.set_title("ReLU convolution, kernels growing to N(0, 1)", fontsize=10)
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8, loc="upper left")


def main(picture: Path | None = None, small: bool = False, seed: int = 0) -> dict[str, float]:
    z0, numbers = image(small), {}
    for name in PICTURED if small else ACTIVATIONS:
        for kind in ("scaled", "unscaled"):
            for solver, options in SOLVERS.items():
                report = diagnose.reversibility(Convolution(ACTIVATIONS[name], kind == "unscaled", seed=seed), z0, times=3, **options)
                numbers |= {f"{kind} {name} {solver}": report.error, f"{kind} {name} exponent": report.exponent}
                numbers[f"{kind} {name} Lipschitz"] = max(report.lipschitz)
    lines = decay([rate**2 for rate in ((1, 2, 2.5, 3, 3.5, 5, 6) if small else (0.5 + 0.5 * i for i in range(12)))])
    show(numbers, lines)
    if picture is not None:
        draw(picture, z0, numbers, lines, growing(z0, 4 if small else 8, seed), seed)
        print(f"picture: {picture}")
    for name in ("Euler", "RK45"):
        ratios = [abs(math.log(a / b)) for a, b, rate in zip(lines.found[name], lines.laws[name], lines.rates, strict=True) if rate >= 1]
        numbers[f"{name} off its law"] = math.exp(max(ratios))
    early = [i for i, rate in enumerate(lines.rates) if rate > 2 and not math.isnan(lines.found["to 1"][i])]  # before, little is lost
    numbers["rounding slope"] = slope([lines.rates[i] for i in early], [lines.found["to 1"][i] for i in early])
    numbers["RK45 slope"] = slope(lines.rates, lines.found["RK45"])
    return numbers | {"worst of a precise solver": max(lines.found["to 0"])}


def cell(error: float) -> str:
    return f"{'-':>9}" if math.isnan(error) else f"{error:9.2g}"


def show(numbers: dict[str, float], lines: Decay) -> None:
    print("relative error of z(0) found backwards, dz/dt = sigma(K * z), 16 channels, float32:")
    print(f"{'kernels':10} {'sigma':10} {'Lipschitz':>9} {'growth up to':>13} " + " ".join(f"{solver:>11}" for solver in SOLVERS))
    for key in [key.removesuffix(" Lipschitz") for key in numbers if key.endswith("Lipschitz")]:
        kind, name = key.split(" ", 1)
        errors = " ".join(f"{numbers[f'{key} {solver}']:11.2g}" for solver in SOLVERS)
        growth = f"exp({numbers[f'{key} exponent']:.1f})"
        print(f"{kind:10} {name:10} {numbers[f'{key} Lipschitz']:9.1f} {growth:>13} {errors}")
    print("dz/dt = -lambda^2 z, the same error, and by the law:")
    print(f"{'lambda^2':>8} {'Euler':>9} {'law':>9} {'RK45 1e-6':>10} {'law':>9} {'z to 1':>9} {'law':>9} {'z to 0':>9}")
    for i, rate in enumerate(lines.rates):
        pairs = [f"{cell(lines.found[name][i])} {cell(lines.laws[name][i])}" for name in ("Euler", "RK45", "to 1")]
        print(f"{rate:8.2f} {pairs[0]}  {pairs[1]} {pairs[2]} {lines.found['to 0'][i]:9.2g}")


if __name__ == "__main__":
    script(main, __doc__, SeededPicture)
