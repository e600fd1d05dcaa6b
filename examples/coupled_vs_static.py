"""The smallest task that static weights cannot solve and evolving ones can: turn the plane by half a turn and stretch it.

The features z are two numbers, dz/dt = A z, and z(1) = M z(0) is wanted with M = -diag(1/2, 2), at 16 points of the unit circle. It is the
coupled system of the talk, dz/dt = f(z, theta(t)) and dtheta/dt = q(theta; p), with theta = A and one number p:

    static    dz/dt = A z + b                                          6 parameters (A, b)
    coupled   dz/dt = A z,   dA/dt = p (J A - A J),  J = (0 -1; 1 0)   5 parameters (A(0), p): A turns, its eigenvalues stay

Static weights cannot. z(1) = X z(0) + c with X = exp(A), or X = R(A/N)^N for N steps of a Runge-Kutta method; for even N both are
squares of a real matrix, and M is none: its root would have the eigenvalues +-i sqrt(1/2) and +-i sqrt(2), which are no conjugate
pair. Written as X = m I + d diag(1, -1) + u (0 1; 1 0) + v (0 1; -1 0), a square has d = u = v = 0, or v^2 > d^2 + u^2, or no
negative eigenvalue. The nearest to M (m = -5/4, d = 3/4) are near d = |v| = 3/8, so |X - M|^2 > 9/16 (Frobenius), and the mean square
misfit on the circle, |X - M|^2 / 2 + |c|^2, stays above the floor 9/32 = 0.28125. Training comes near it, with an A that grows and grows.

Evolving weights can. In axes that turn with A the field stands still: z = exp(p t J) y, dy/dt = (A(0) - p J) y, so
z(1) = exp(p J) exp(A(0) - p J) z(0). By the polar decomposition this reaches every M with a positive determinant; here p = pi and
A(0) = pi J + diag(-log 2, log 2) is one way.

Nor is it for want of parameters: no smooth f(z) without t, however large, has a flow with z(1) = M z(0) around 0. For 0 would be at
rest, as M leaves nothing else in place, and the derivative there of the flow to t = 1/2 would be a root of M. On 16 points alone that
proves no floor; what tanh layers with 42 parameters reached on them is measured.

One should see: the static loss comes down to its floor and stays above it from every start; the coupled one falls to round-off.

    python examples/coupled_vs_static.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, NeuralDynamics, ODEBlock
from options import SeededPicture, script

STRETCH = (0.5, 2.0)
FLOOR = (STRETCH[1] - STRETCH[0]) ** 2 / 8
STEPS = 10  # of rk4; any even number
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
M = -torch.diag(torch.tensor(STRETCH, dtype=torch.float64))


class Linear(nn.Linear):
    """A z + b, or A z."""

    def __init__(self, bias: bool) -> None:
        super().__init__(2, 2, bias, dtype=torch.float64)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(z)


class Turning(nn.Module):
    """dA/dt = p (J A - A J)."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t: Tensor, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.p * (TURN @ A - A @ TURN) for name, A in theta.items()}


class Layers(nn.Module):
    """W2 tanh(W1 z + b1) + b2."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(2, width, dtype=torch.float64)
        self.outer = nn.Linear(width, 2, dtype=torch.float64)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(z)))


def static() -> ODEBlock:
    return ODEBlock(Linear(bias=True), steps=STEPS, method="rk4", adjoint="direct")


def coupled() -> CoupledODEBlock:
    return CoupledODEBlock(Linear(bias=False), NeuralDynamics(Turning()), steps=STEPS, method="rk4", adjoint="direct")


def layers() -> ODEBlock:
    return ODEBlock(Layers(), steps=STEPS, method="rk4", adjoint="direct")


def circle(count: int = 16) -> Tensor:
    """Points (count, 2) on the unit circle, mean 0 and second moment I/2."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def misfit(block: nn.Module) -> Tensor:
    """Mean |z(1) - M z(0)|^2."""
    z0 = circle()
    return (block(z0) - z0 @ M.T).square().sum(1).mean()


@dataclass(frozen=True)
class Fit:
    """A trained block and the losses of all evaluations."""

    block: Any
    losses: list[float]

    @property
    def best(self) -> float:
        return min(self.losses)


def fit(make: Callable[[], nn.Module], seed: int, iterations: int) -> Fit:
    """L-BFGS from random weights, p = 0, so that all start static; the block keeps the weights of its lowest loss."""
    torch.manual_seed(seed)
    block = make()
    optimizer = torch.optim.LBFGS(
        block.parameters(), max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
    )
    losses: list[float] = []
    best: dict[str, Tensor] = {}

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = misfit(block)
        loss.backward()
        if loss.item() < min(losses, default=math.inf):
            best.update({name: value.detach().clone() for name, value in block.state_dict().items()})
        losses.append(loss.item() if loss.isfinite() else math.inf)
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    block.load_state_dict(best)
    return Fit(block, losses)


def by_hand() -> float:
    """The misfit of the solution in the text above, with steps so small that they do not count."""
    block = CoupledODEBlock(Linear(bias=False), NeuralDynamics(Turning()), steps=200, method="rk4")
    stretch = torch.diag(torch.tensor(STRETCH, dtype=torch.float64).log())
    block.load_state_dict({"f.weight": math.pi * TURN + stretch, "dynamics.module.p": torch.tensor(math.pi)})
    with torch.no_grad():
        return misfit(block).item()


@torch.no_grad()
def draw(path: Path, fits: dict[str, list[Fit]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 8.0), layout="constrained")
    figure.suptitle("Half a turn and a stretch: out of reach for static weights, easy for weights that turn")
    (losses, weights), (left, right) = figure.subplots(2, 2)
    draw_losses(losses, fits)
    best = {name: min(found, key=lambda fit: fit.best) for name, found in fits.items()}
    draw_weights(weights, best["coupled"].block)
    words = f"static, best of {len(fits['static'])}: loss {best['static'].best:.4f}"
    draw_paths(left, best["static"].block, f"{words}\n(ways leave the picture)")
    draw_paths(right, best["coupled"].block, f"coupled, best of {len(fits['coupled'])}: loss {best['coupled'].best:.0e}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=80)


def draw_losses(ax: Any, fits: dict[str, list[Fit]]) -> None:
    styles = {"static": ("#D55E00", "--"), "coupled": ("#0072B2", "-"), "tanh layers": ("#009E73", "-.")}
    for name, (colour, line) in styles.items():
        for i, found in enumerate(fits[name]):
            lowest = torch.tensor(found.losses).cummin(0).values
            label = f"{name}, {count(found.block)} parameters" if i == 0 else None
            ax.semilogy(lowest.numpy(), color=colour, linestyle=line, linewidth=1.3, label=label)
    ax.axhline(FLOOR, color="#222222", linestyle=":", label="floor of the static model, 9/32")
    ax.set(xlabel="evaluations of loss and gradient", ylabel="lowest mean |z(1) - M z(0)|² so far", title="training, one line per seed")
    ax.grid(alpha=0.3)
    ax.legend(loc="center right", fontsize=8)


def draw_weights(ax: Any, block: CoupledODEBlock) -> None:
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    A = block.weights(t)["weight"]
    entries = {(0, 0): ("#0072B2", "o"), (0, 1): ("#E69F00", "s"), (1, 0): ("#009E73", "^"), (1, 1): ("#CC79A7", "D")}
    for (i, j), (colour, marker) in entries.items():
        ax.plot(t.numpy(), A[:, i, j].numpy(), color=colour, marker=marker, markevery=8, label=f"$A_{{{i + 1}{j + 1}}}$")
    p = block.dynamics.get_parameter("module.p").item()
    ax.set(xlabel="t", ylabel="entries of A(t)", title=f"coupled: the weights turn, p = {p:.3f}")
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", ncols=2)


def draw_paths(ax: Any, block: ODEBlock, title: str) -> None:
    z0 = circle()
    fine = ODEBlock(block.f, steps=400, method="rk4")
    if isinstance(block, CoupledODEBlock):
        fine = CoupledODEBlock(block.f, block.dynamics, steps=400, method="rk4")
    path, ends, wanted = fine.trajectory(z0), block(z0), z0 @ M.T
    marked = {0: ("#0072B2", "o"), 2: ("#E69F00", "s"), 4: ("#009E73", "^"), 6: ("#CC79A7", "D")}
    for i in range(0, len(z0), 2):
        colour, marker = marked.get(i, ("#BBBBBB", "."))
        ax.plot(path[:, i, 0].numpy(), path[:, i, 1].numpy(), color=colour, linewidth=1.6 if i in marked else 0.8, zorder=1 + (i in marked))
        ax.plot(*z0[i].tolist(), marker, color=colour, fillstyle="none", zorder=3)
        ax.plot(*ends[i].tolist(), marker, color=colour, zorder=3)
    ax.plot(wanted[:, 0].numpy(), wanted[:, 1].numpy(), "x", color="#222222", markersize=8, zorder=4, label="wanted: M z(0)")
    ax.plot([], [], "o", color="#555555", fillstyle="none", label="z(0)")
    ax.plot([], [], "o", color="#555555", label="z(1), in the shape and colour of its point")
    ax.set(xlabel="$z_1$", ylabel="$z_2$", title=title, aspect="equal", xlim=(-2.9, 2.9), ylim=(-2.5, 2.5))
    ax.grid(alpha=0.3)


def count(block: nn.Module) -> int:
    return sum(p.numel() for p in block.parameters())


def main(picture: Path | None = None, small: bool = False, seed: int = 0) -> dict[str, float]:
    seeds, iterations = (2, 60) if small else (5, 200)
    models: dict[str, Callable[[], nn.Module]] = {"static": static, "coupled": coupled, "tanh layers": layers}
    fits = {name: [fit(make, each, iterations) for each in range(seed, seed + seeds)] for name, make in models.items()}
    print(f"mean |z(1) - M z(0)|^2 after training from {seeds} seeds; no static A and b get below {FLOOR}")
    print(f"{'model':12} parameters  best       worst")
    result: dict[str, float] = {"floor": FLOOR, "by hand": by_hand()}
    for name, found in fits.items():
        best, worst = (choose(fit.best for fit in found) for choose in (min, max))
        print(f"{name:12} {count(found[0].block):10}  {best:<9.3g}  {worst:<9.3g}")
        result |= {f"{name} best": best, f"{name} worst": worst, f"{name} parameters": count(found[0].block)}
    print(f"coupled, p = pi and A(0) = pi J + log of the stretch, by hand: {result['by hand']:.1g}")
    if picture is not None:
        draw(picture, fits)
        print(f"picture: {picture}")
    return result


if __name__ == "__main__":
    script(main, __doc__, SeededPicture)
