"""Why weights should move: the smallest task that a standing weight cannot solve and an evolving one can.

A field is carried along x by dz/dt + c(t) dz/dx = 0 and observed at a few times up to t = 1; then t = 2 is predicted. The speed decays,
c' = -p c, so the field has moved by C(t) = c0 (1 - exp(-p t)) / p. The coupled model solves both equations together and recovers
c0 and p. A constant speed moves the field by c t, a straight line through the origin, and a line cannot bend; a growth rate as
second number does not help it.

    python examples/coupled_speed.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from anodev2 import CoupledSystem, odeint
from anodev2.pde import Advection, AdvectionDiffusionReaction, Grid1D
from options import Picture, script

OBSERVED, LATER = [0.25, 0.5, 0.75, 1.0], 2.0
GRID = Grid1D(48)
C0, P = 0.9, 2.5  # the truth
START = 0.2  # where the bump is at first


def bump(x: Tensor) -> Tensor:
    return torch.exp(3 * torch.cos(2 * torch.pi * (x - START)) - 3)


def travelled(t: Tensor, c0: Tensor | float, p: Tensor | float) -> Tensor:
    return c0 * (1 - torch.exp(-p * t)) / p


def standing(numbers: Tensor, times: list[float]) -> Tensor:
    """dz/dt = -c dz/dx + r z with constant c and r, in closed form."""
    equation = AdvectionDiffusionReaction(GRID, speed=numbers[0], reaction=numbers[1])
    z = equation.flow(bump(GRID.points(numbers)), times)
    assert z is not None
    return z


def coupled(numbers: Tensor, times: list[float]) -> Tensor:
    """dz/dt = -c dz/dx with dc/dt = -p c."""

    def f(t: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return Advection(GRID, c)(t, z)

    system = CoupledSystem(f, lambda t, c: -numbers[1] * c)
    z0 = bump(GRID.points(numbers))
    return odeint(system, (z0, numbers[0]), [0.0, *times], method="dopri8", step_size=1 / 20, adjoint="direct")[0][1:]


Model = Callable[[Tensor, list[float]], Tensor]


def fit(model: Model, seen: Tensor, guess: list[float], iterations: int) -> tuple[Tensor, float]:
    """The two numbers and the root mean square misfit, by L-BFGS from a guess."""
    numbers = nn.Parameter(torch.tensor(guess, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        [numbers], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-13, tolerance_change=1e-18
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(numbers, OBSERVED) - seen).square().mean()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    with torch.no_grad():
        return numbers.detach(), misfit(model(numbers, OBSERVED), seen)


def misfit(z: Tensor, truth: Tensor) -> float:
    return (z - truth).square().mean().sqrt().item()


def exact(times: list[float]) -> Tensor:
    t = torch.tensor(times, dtype=torch.float64)[:, None]
    return bump(GRID.points(t) - travelled(t, C0, P))


def draw(path: Path, line: Tensor, curve: Tensor) -> None:
    from matplotlib.figure import Figure

    grey, blue, red = "#222222", "#1b6ca8", "#d1495b"
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle("A speed that follows its own ODE fits what it saw and predicts what comes; a constant speed does neither")
    left, middle, right = figure.subplots(1, 3)

    t = torch.linspace(0, LATER, 81, dtype=torch.float64)
    seen, x = torch.tensor(OBSERVED), GRID.points(t)
    field = coupled(curve, t[1:].tolist())
    image = left.contourf(x.numpy(), t[1:].numpy(), field.numpy(), levels=20, cmap="viridis")
    figure.colorbar(image, ax=left, label="z")
    left.hlines(OBSERVED, 0, 1, colors="w", linewidth=0.8, linestyles=":")
    left.plot((START + travelled(t, *curve)).numpy(), t.numpy(), "w--", linewidth=1.2)
    left.text(0.96, 1.02, "observed", color="w", ha="right", va="bottom")
    left.text(0.96, LATER - 0.03, "predicted", color="w", ha="right", va="top")
    left.set(xlabel="x", ylabel="t", xlim=(0, 1 - GRID.spacing), ylim=(t[1].item(), LATER), title="coupled model: z(t, x), learned")

    middle.plot(t.numpy(), travelled(t, C0, P).numpy(), color=grey, linewidth=5, alpha=0.25, label="truth")
    middle.plot(t.numpy(), travelled(t, *curve).numpy(), color=blue, label=f"coupled: c0 = {curve[0]:.3f}, p = {curve[1]:.3f}")
    middle.plot(t.numpy(), (line[0] * t).numpy(), color=red, label=f"constant speed: best c = {line[0]:.3f}")
    middle.plot(seen.numpy(), travelled(seen, C0, P).numpy(), "o", color=grey, label="observed")
    middle.set(xlabel="t", ylabel="distance travelled C(t)", ylim=(-0.03, 1.2), title="a straight line cannot bend")
    middle.grid(alpha=0.3)
    middle.legend(loc="upper left")

    right.plot(x.numpy(), exact([LATER])[0].numpy(), "o", color=grey, markersize=4, label="truth, not seen in training")
    right.plot(x.numpy(), coupled(curve, [LATER])[0].numpy(), color=blue, label="coupled")
    right.plot(x.numpy(), standing(line, [LATER])[0].numpy(), color=red, label="constant speed")
    right.set(xlabel="x", ylabel="z", ylim=(-0.05, 1.45), title=f"prediction for t = {LATER:g}")
    right.grid(alpha=0.3)
    right.legend(loc="upper right")
    figure.savefig(path, dpi=100)


def main(picture: Path | None = None, small: bool = False) -> dict[str, float]:
    seen, unseen = exact(OBSERVED), exact([LATER])
    guesses = [[0.5, 0.0]] if small else [[c, 0.0] for c in (0.1, 0.3, 0.5, 0.7, 0.9)]
    line, line_misfit = min((fit(standing, seen, guess, 40) for guess in guesses), key=lambda found: found[1])
    curve, curve_misfit = fit(coupled, seen, [0.5, 1.0], 40)
    with torch.no_grad():
        line_later, curve_later = misfit(standing(line, [LATER]), unseen), misfit(coupled(curve, [LATER]), unseen)
        if picture is not None:
            draw(picture, line, curve)
    print("root mean square misfits, of z between 0 and 1:")
    print(f"constant speed: {line_misfit:.1e} observed, {line_later:.1e} at t = {LATER:g}; c = {line[0]:.6f}, growth rate {line[1]:.6f}")
    print(f"coupled:        {curve_misfit:.1e} observed, {curve_later:.1e} at t = {LATER:g}; c0 = {curve[0]:.6f}, p = {curve[1]:.6f}")
    print(f"truth: c0 = {C0}, p = {P}")
    if picture is not None:
        print(f"picture: {picture}")
    numbers = {"constant misfit": line_misfit, "constant later": line_later, "coupled misfit": curve_misfit, "coupled later": curve_later}
    return numbers | {"c0 error": abs(curve[0].item() - C0), "p error": abs(curve[1].item() - P)}


if __name__ == "__main__":
    script(main, __doc__, Picture)
