"""The smallest task that standing weights cannot solve and evolving ones can, with two trained numbers each.

A field is carried along x by dz/dt + c(t) dz/dx = 0 and observed at two times. With c' = -p c it has moved by
C(t) = c0 (1 - exp(-p t)) / p. A constant speed moves it by c t, a straight line through the origin, which cannot pass
through both observations (even with a growth rate as second number); the coupled model recovers c0 and p.

    python examples/coupled_vs_static.py [PICTURE.png]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from anodev2 import CoupledSystem, odeint
from pde import Advection, Grid1D

TIMES = [0.0, 0.5, 1.0]
GRID = Grid1D(48, length=2 * math.pi)
C0, P = 3.0, 2.0  # the truth


def bump(x: Tensor) -> Tensor:
    return torch.exp(2 * torch.cos(x - 1.5) - 2)


def shift(t: Tensor, c0: Tensor | float, p: Tensor | float) -> Tensor:
    return c0 * (1 - torch.exp(-p * t)) / p


def static(numbers: Tensor, times: list[float]) -> Tensor:
    """dz/dt = -c dz/dx + r z with standing c and r."""
    carry = Advection(GRID, numbers[0])
    return odeint(lambda t, z: carry(t, z) + numbers[1] * z, bump(GRID.points(numbers)), times, steps=20)


def coupled(numbers: Tensor, times: list[float]) -> Tensor:
    """dz/dt = -c dz/dx with dc/dt = -p c."""

    def f(t: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return Advection(GRID, c)(t, z)

    system = CoupledSystem(f, lambda t, c: -numbers[1] * c)
    return odeint(system, (bump(GRID.points(numbers)), numbers[0]), times, steps=20)[0]


def fit(model: Callable[[Tensor, list[float]], Tensor], observed: Tensor) -> tuple[Tensor, float]:
    """The two numbers and the mean squared misfit after 30 steps of L-BFGS."""
    numbers = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([numbers], max_iter=30, line_search_fn="strong_wolfe")

    def misfit() -> Tensor:
        return (model(numbers, TIMES)[1:] - observed).square().mean()

    def closure() -> float:
        optimizer.zero_grad()
        loss = misfit()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return numbers.detach(), misfit().item()


def draw(path: Path, standing: Tensor, moving: Tensor) -> None:
    from matplotlib.figure import Figure

    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    field = coupled(moving, times.tolist())
    x, t, travelled = GRID.points(field).numpy(), times.numpy(), shift(times, *moving).numpy()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.pcolormesh(x, t, field.numpy(), shading="nearest", cmap="viridis")
    left.plot(1.5 + travelled, t, "w--")
    left.set(xlabel="x", ylabel="t", title="z(x, t): the speed follows an ODE of its own")
    right.plot(t, travelled, label="coupled: c' = -p c, learned")
    right.plot(t, standing[0].item() * t, label="standing speed, best fit")
    right.plot(TIMES[1:], shift(torch.tensor(TIMES[1:]), C0, P).numpy(), "ko", label="observed")
    right.set(xlabel="t", ylabel="distance travelled C(t)", title="two observations are one too many for a line")
    right.legend()
    figure.savefig(path, dpi=120)


def main(picture: Path | None = None) -> dict[str, float]:
    truth = torch.tensor([C0, P], dtype=torch.float64)
    x = GRID.points(truth)
    observed = torch.stack([bump(x - shift(torch.tensor(t), C0, P)) for t in TIMES[1:]])
    (standing, static_misfit), (moving, coupled_misfit) = fit(static, observed), fit(coupled, observed)
    print(f"standing: c  = {standing[0]:.3f}, r = {standing[1]:.3f}, mean squared misfit {static_misfit:.1e}")
    print(f"coupled:  c0 = {moving[0]:.3f}, p = {moving[1]:.3f}, mean squared misfit {coupled_misfit:.1e} (truth: {C0}, {P})")
    if picture is not None:
        draw(picture, standing, moving)
        print(f"picture: {picture}")
    return {"static": static_misfit, "coupled": coupled_misfit, "c0": moving[0].item(), "p": moving[1].item()}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
