"""Whose gradient is it? Discretize-then-optimize (ANODE), optimize-then-discretize and the reverse solve of the neural ODE, compared.

Shows the slides "Gradient Backpropagation" (the optimality conditions), "Reverse ODE Solve" and "ANODE: Addressing Challenges with Neural
ODEs" ("cannot use continuous form of optimality conditions"). With alpha = dJ/dz as a function of t,

    dz/dt = f(t, z, theta),    -dalpha/dt = (df/dz)^T alpha,  alpha(1) = dJ/dz(1),    dJ/dtheta = int_0^1 (df/dtheta)^T alpha dt.

    DTO     differentiates the discrete steps: the gradient of the J that was computed, to round-off, whatever the steps.
    OTD     solves the equations above for alpha by the same method, along the stored z: off by O(dt) with Euler, O(dt^2) with midpoint.
    reverse solve     the same, with z solved backwards as well instead of stored: off by any factor where z cannot be solved backwards.

Top left, errors against the gradient of the discrete J, which is found without any of this, by complex steps Im J(x + i h) / h. Top
right, the same gradients against that of the continuous problem: there all are as good as their method, which is why the difference
is easily missed. Below, two problems whose reverse solve fails, at tolerances of 1e-6. x' = -lambda^2 x, y' = w x from (1, 0), with
dy(1)/dw = (1 - exp(-lambda^2)) / lambda^2 (dopri5); and van der Pol's oscillator from (2, 0) to t = 3 (dopri8; with dopri5 the reverse
solve finds no step any more from mu = 4 on).

    python examples/gradient_accuracy.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anodev2 import odeint
from options import Picture, script

SIZE = 3
METHODS = ("euler", "midpoint")
TOLERANCE = 1e-6
Errors = dict[tuple[str, str], list[float]]  # by method and kind, one for each number of steps


def f(t: Tensor, z: Tensor, theta: Tensor) -> Tensor:
    """dz/dt = tanh(W z + b + t) - z / 2, with W and b in theta; analytic, so that complex numbers may pass."""
    weight, bias = theta[..., : SIZE**2].unflatten(-1, (SIZE, SIZE)), theta[..., SIZE**2 :]
    return torch.tanh((weight @ z[..., None])[..., 0] + bias + t) - z / 2


def objective(end: Tensor) -> Tensor:
    """J = |z(1) - 1|^2 / 2."""
    return ((end - 1) ** 2).sum(-1) / 2


def start() -> tuple[Tensor, Tensor]:
    """z0 and theta."""
    generator = torch.Generator().manual_seed(0)
    z0, theta = (torch.randn(count, dtype=torch.float64, generator=generator) for count in (SIZE, SIZE**2 + SIZE))
    return z0, theta


def solved(adjoint: str, method: str, steps: int) -> Tensor:
    """dJ/d(z0, theta) by autograd: "checkpoint" is DTO, "backsolve" the reverse solve on the same steps."""
    z0, theta = (tensor.requires_grad_() for tensor in start())
    end = odeint(f, z0, [0.0, 1.0], method=method, steps=steps, args=(theta,), adjoint=adjoint)[-1]
    return torch.cat(torch.autograd.grad(objective(end), (z0, theta)))


def optimize_then_discretize(method: str, steps: int) -> Tensor:
    """dJ/d(z0, theta) from the equations for alpha, solved from t = 1 to 0 by the method that solved for z."""
    (z, theta), h = start(), 1 / steps
    ends, middles = [z], []
    for n in range(steps):  # forward, all states stored: those between the steps too, where midpoint reads z
        slope = f(torch.tensor(n * h), z, theta)
        middles.append(z + h / 2 * slope)
        if method == "midpoint":
            slope = f(torch.tensor((n + 0.5) * h), middles[n], theta)
        z = z + h * slope
        ends.append(z)
    alpha, total = z - 1, torch.zeros_like(theta)
    for n in reversed(range(steps)):
        dalpha, dtheta = pulled((n + 1) * h, ends[n + 1], theta, alpha)
        if method == "midpoint":
            dalpha, dtheta = pulled((n + 0.5) * h, middles[n], theta, alpha + h / 2 * dalpha)
        alpha, total = alpha + h * dalpha, total + h * dtheta
    return torch.cat([alpha, total])


def pulled(t: float, z: Tensor, theta: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """(df/dz)^T alpha and (df/dtheta)^T alpha."""
    return torch.func.vjp(lambda z, theta: f(torch.tensor(t), z, theta), z, theta)[1](alpha)


def complex_steps(method: str, steps: int) -> Tensor:
    """The gradient of the discrete J without differentiating anything: Im J(x + i h e_k) / h for all k at once."""
    x, h = torch.cat(start()), 1e-30
    moved = torch.complex(x.expand(len(x), -1), h * torch.eye(len(x), dtype=torch.float64))
    with torch.no_grad():
        end = odeint(f, moved[:, :SIZE], [0.0, 1.0], method=method, steps=steps, args=(moved[:, SIZE:],))[-1]
    return objective(end).imag / h


def relative(found: Tensor, right: Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


GRADIENTS: dict[str, Callable[[str, int], Tensor]] = {
    "DTO": partial(solved, "checkpoint"),
    "OTD": optimize_then_discretize,
    "reverse solve": partial(solved, "backsolve"),
}


def over_steps(counts: list[int]) -> tuple[Errors, Errors]:
    """Errors against the gradient of the discrete J, and against that of the continuous problem."""
    discrete: Errors = {}
    continuous: Errors = {}
    limit = solved("checkpoint", "dopri8", 40)
    for method in METHODS:
        right = [complex_steps(method, steps) for steps in counts]
        for kind, gradient in GRADIENTS.items():
            found = [gradient(method, steps) for steps in counts]
            discrete[method, kind] = [relative(one, exact) for one, exact in zip(found, right, strict=True)]
            continuous[method, kind] = [relative(one, limit) for one in found]
    return discrete, continuous


def slope(counts: list[int], errors: list[float]) -> float:
    """Of log error over log steps, falling, over the finer half."""
    half = len(counts) // 2
    pairs = list(pairwise(zip(counts[half:], errors[half:], strict=True)))
    return sum(math.log(a / b) / math.log(n / m) for (m, a), (n, b) in pairs) / len(pairs)


def closed_form(adjoint: str, decay: float) -> float:
    """dy(1)/dw, divided by what it should be."""
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return torch.stack([-decay * y[0], w * y[0]])

    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    end = odeint(field, y0, [0.0, 1.0], method="dopri5", rtol=TOLERANCE, atol=TOLERANCE, args=(w,), adjoint=adjoint)[-1]
    (gradient,) = torch.autograd.grad(end[1], w)
    return gradient.item() * decay / -math.expm1(-decay)


def van_der_pol(adjoint: str, mu: float, tolerance: float = TOLERANCE) -> Tensor:
    """d(x^2 + v)/d(x0, v0) at t = 3."""
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])

    end = odeint(field, y0, [0.0, 3.0], method="dopri8", rtol=tolerance, atol=tolerance, adjoint=adjoint)[-1]
    return torch.autograd.grad(end[0] ** 2 + end[1], y0)[0]


Sweep = dict[str, list[float]]  # relative errors by kind
Values = tuple[list[float], list[float]]  # of lambda^2 and mu


def failing(decays: list[float], mus: list[float]) -> tuple[Sweep, Sweep]:
    """Relative errors of DTO and the reverse solve for both problems."""
    adjoints = {"DTO": "checkpoint", "reverse solve": "backsolve"}
    closed = {kind: [abs(closed_form(adjoint, decay) - 1) for decay in decays] for kind, adjoint in adjoints.items()}
    right = [van_der_pol("direct", mu, 1e-12) for mu in mus]
    found = {kind: [relative(van_der_pol(a, mu), g) for mu, g in zip(mus, right, strict=True)] for kind, a in adjoints.items()}
    return closed, found


LOOKS: dict[str, dict[str, Any]] = {
    "DTO": {"color": "#0072B2", "marker": "o", "markersize": 5},
    "OTD": {"color": "#E69F00", "marker": "s", "markersize": 8, "markerfacecolor": "none"},
    "reverse solve": {"color": "#D55E00", "marker": "x", "markersize": 5},
}


def draw_steps(ax: Any, counts: list[int], errors: Errors, named: bool) -> None:
    for (method, kind), values in errors.items():
        told = ", round-off" if kind == "DTO" else f", slope {slope(counts, values):.2f}"
        style = "-" if method == "euler" else "--"
        ax.loglog(counts, [max(value, 1e-17) for value in values], style, label=f"{kind}, {method}{told}", **LOOKS[kind])
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    ax.set(xlabel="number of steps $N_t$", ylabel="relative error of the gradient")
    if named:
        ax.set_ylim(1e-17, 3)
        ax.legend(fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.33))
        ax.set_title("against the gradient of the discrete J")
        return
    ax.set_title("against the gradient of the continuous J")
    ax.text(0.03, 0.18, "lines as on the left", fontsize=8, transform=ax.transAxes)
    for height, method in zip((0.11, 0.04), METHODS, strict=True):
        told = ", ".join(f"{kind} {slope(counts, errors[method, kind]):.2f}" for kind in GRADIENTS)
        ax.text(0.03, height, f"slopes, {method}: {told}", fontsize=8, transform=ax.transAxes)
    ax.set_ylim(errors["midpoint", "DTO"][-1] / 30, 1)


def draw_sweep(ax: Any, x: list[float], sweep: Sweep, label: str, title: str) -> None:
    for kind, errors in sweep.items():
        ax.semilogy(x, errors, "-", label=kind, **LOOKS[kind])
    ax.minorticks_off()
    ax.axhline(1, color="#777777", linestyle=":", linewidth=1)
    ax.text(x[0], 1.3, "as large as the gradient itself", color="#555555", fontsize=8, va="bottom")
    ax.set(xlabel=label, ylabel="relative error, tolerances 1e-6", title=title)
    ax.legend(fontsize=8, loc="upper left" if "lambda" in label else "center right")


def draw(path: Path, counts: list[int], steps: tuple[Errors, Errors], x: Values, failed: tuple[Sweep, Sweep]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.4), layout="constrained")
    figure.suptitle("Only discretize-then-optimize (DTO) gives the gradient of what was computed")
    above, below = figure.subplots(2, 2)
    for ax, errors in zip(above, steps, strict=True):
        draw_steps(ax, counts, errors, named=errors is steps[0])
    draw_sweep(below[0], x[0], failed[0], r"$\lambda^2$", r"$x' = -\lambda^2 x,\ y' = w x$: $dy(1)/dw$ by dopri5")
    draw_sweep(below[1], x[1], failed[1], r"$\mu$", r"van der Pol: $d(x^2 + v)/d(x_0, v_0)$ at $t = 3$ by dopri8")
    guide = [decay for decay in x[0] if decay >= 5]
    anchor = failed[0]["reverse solve"][x[0].index(guide[0])] / 30
    below[0].plot(guide, [anchor * math.exp(decay - guide[0]) for decay in guide], color="#555555", linestyle="-.", linewidth=1)
    below[0].text(22.5, anchor * math.exp(22.5 - guide[0]) / 30, r"$\propto \exp(\lambda^2)$", color="#555555")
    for ax in (*above, *below):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=82)


def tell(counts: list[int], discrete: Errors, continuous: Errors, values: Values, failed: tuple[Sweep, Sweep]) -> None:
    few = counts[:: max(1, (len(counts) - 1) // 3)]
    print("relative error of dJ/d(z0, theta), against the gradient of the discrete J | of the continuous J")
    print(f"{'':24}" + "".join(f"{f'N_t = {count}':>22}" for count in few) + "   slopes")
    for method, kind in discrete:
        pair = discrete[method, kind], continuous[method, kind]
        cells = "".join(f"{pair[0][counts.index(n)]:>12.1e} | {pair[1][counts.index(n)]:.1e}" for n in few)
        slopes = ["    -" if kind == "DTO" and errors is pair[0] else f"{slope(counts, errors):5.2f}" for errors in pair]
        print(f"{method:9} {kind:14}{cells}   {' | '.join(slopes)}")
    for name, x, sweep in zip(("x' = -lambda^2 x, lambda^2", "van der Pol, mu"), values, failed, strict=True):
        print(f"{name:28}" + "".join(f"{value:>10g}" for value in x))
        for kind, errors in sweep.items():
            print(f"  error of {kind:17}" + "".join(f"{error:>10.1e}" for error in errors))


def main(picture: Path | None = None, small: bool = False) -> dict[str, float]:
    counts = [4, 8, 16, 32, 64] if small else [4, 8, 16, 32, 64, 128, 256]
    decays = [5.0, 20.0] if small else [1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    mus = [1.0, 5.0] if small else [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    discrete, continuous = over_steps(counts)
    failed = failing(decays, mus)
    tell(counts, discrete, continuous, (decays, mus), failed)
    if picture is not None:
        draw(picture, counts, (discrete, continuous), (decays, mus), failed)
        print(f"picture: {picture}")
    numbers = {f"{method} {kind} slope": slope(counts, discrete[method, kind]) for method in METHODS for kind in ("OTD", "reverse solve")}
    numbers |= {f"{method} continuous slope": slope(counts, continuous[method, "DTO"]) for method in METHODS}
    numbers |= {f"{method} DTO": max(discrete[method, "DTO"]) for method in METHODS}
    for kind in ("DTO", "reverse solve"):
        numbers |= {f"closed form {kind}": failed[0][kind][decays.index(20.0)], f"van der Pol {kind}": failed[1][kind][mus.index(5.0)]}
    return numbers


if __name__ == "__main__":
    script(main, __doc__, Picture)
