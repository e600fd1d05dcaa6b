"""A solver in the loop: a coarse solve of Burgers' equation learns from a fine one what its grid leaves out.

    du/dt = -d(u^2 / 2)/dx + nu d2u/dx2 + force(t, x)                  on 256 points, spectral: the fine solve
    du/dt = the same on 32 points, first-order upwind, - d(net(u))/dx  the coarse one; net is a flux, a small convolution

The shocks are thinner than a coarse cell. The network first sees short pieces, then its gradient goes through the whole solve, 1,000 steps
and the network in each, within 20 MiB (``memory=``), and is that of all graphs kept (a test compares them). Fields and forces of the
test were not seen in training. A correction that is learned step by step may drift away in the long run: the error is shown over time.

    python examples/solver_in_the_loop.py [--out PICTURE.png|none] [--seed N] [--device auto|cpu|cuda]

Source: Um, Brand, Fei, Holl, Thuerey, Solver-in-the-Loop, NeurIPS 2020; Bar-Sinai, Hoyer, Hickey, Brenner, PNAS 116 (2019).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, odeint
from anodev2.pde import Burgers, Grid1D, Source
from options import DevicePicture, script
from ranks import choose_device

LENGTH, NU = 2 * math.pi, 0.03
COARSE, FINE = 32, 256  # points
DT, BETWEEN = 0.02, 10  # of a coarse step; steps from output to output
WAVES = 5  # in the force
MEMORY = "16MiB"  # of states and graphs; all live tensors together stay below 20 MiB


class Size(NamedTuple):
    """Fields to learn from, half as many to test; outputs of a solve; gradients through short pieces, and through whole solves."""

    fields: int = 16
    outputs: int = 100
    pieces: int = 600
    whole: int = 3


FULL = Size()


class Force(NamedTuple):
    """A few waves that travel, of every field its own: (fields, WAVES, 1) each."""

    height: Tensor
    frequency: Tensor
    wavenumber: Tensor
    phase: Tensor

    def __call__(self, t: Any, x: Tensor, u: Tensor | None = None) -> Tensor:
        return (self.height * torch.sin(self.frequency * t + self.wavenumber * x + self.phase)).sum(-2)

    def later(self, t: Tensor, fields: Tensor) -> Force:
        """That of these fields from the times t on, one each."""
        height, frequency, wavenumber, phase = (part[fields] for part in self)
        return Force(height, frequency, wavenumber, phase + frequency * t[:, None, None])


def draw_forces(fields: int, generator: torch.Generator) -> Force:
    uniform = lambda: torch.rand(fields, WAVES, 1, generator=generator)  # noqa: E731
    return Force(uniform() - 0.5, 0.8 * (uniform() - 0.5), 1 + (3 * uniform()).floor(), 2 * math.pi * uniform())


class Correction(nn.Module):
    """-d(net(u))/dx: what leaves one cell enters the next, so the sum of u stays. No correction at first."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        first, second, last = (
            nn.Conv1d(*sizes, padding="same", padding_mode="circular")
            for sizes in ((1, channels, 5), (channels, channels, 3), (channels, 1, 3))
        )
        nn.init.zeros_(last.weight)
        self.net = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)

    def forward(self, t: Any, u: Tensor) -> Tensor:
        flux = self.net(u[:, None])[:, 0]
        return (flux.roll(1, -1) - flux) * (u.shape[-1] / LENGTH)


class Corrected(nn.Module):
    """The coarse equation and the correction."""

    def __init__(self, force: Force, correction: nn.Module) -> None:
        super().__init__()
        self.equation, self.correction = coarse(force), correction

    def forward(self, t: Any, u: Tensor) -> Tensor:
        return self.equation(t, u) + self.correction(t, u)


def coarse(force: Force) -> nn.Module:
    grid = Grid1D(COARSE, LENGTH)
    return Burgers(grid, NU, "upwind1") + Source(grid, force)


def times(outputs: int) -> list[float]:
    return [DT * BETWEEN * i for i in range(outputs + 1)]


def truth(force: Force, outputs: int) -> Tensor:
    """The fine solve, seen on the coarse points: (outputs + 1, fields, COARSE)."""
    grid = Grid1D(FINE, LENGTH)
    equation = Burgers(grid, NU, "spectral", "spectral") + Source(grid, force)
    start = force(0.0, grid.points(force.height))
    with torch.no_grad():
        u = odeint(equation, start, times(outputs), method="etdrk4", steps=2 * BETWEEN)
    return u[..., :: FINE // COARSE]


def solved(equation: nn.Module, start: Tensor, outputs: int, adjoint: Any = "direct") -> Tensor:
    return odeint(equation, start, times(outputs), method="euler", steps=BETWEEN, adjoint=adjoint)


def misfit(found: Tensor, right: Tensor) -> Tensor:
    """Mean square of the error over that of the field, at each time after the start."""
    return (found - right)[1:].square().mean((-1, -2)) / right.square().mean()


def learn(correction: nn.Module, force: Force, right: Tensor, size: Size, generator: torch.Generator) -> list[float]:
    """Short pieces from anywhere, then whole solves; the root mean squared errors of these."""
    optimizer = torch.optim.Adam(correction.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.03, max(size.pieces, 1))
    for _ in range(size.pieces):
        fields = torch.randint(right.shape[1], (64,), generator=generator)
        starts = torch.randint(size.outputs - 1, (64,), generator=generator)
        piece = torch.stack([right[starts + i, fields] for i in range(3)])
        equation = Corrected(force.later(starts.to(right) * (DT * BETWEEN), fields), correction)
        optimizer.zero_grad()
        misfit(solved(equation, piece[0], 2), piece).mean().backward()
        optimizer.step()
        schedule.step()
    errors = []
    for _ in range(size.whole):
        optimizer.zero_grad()
        found = solved(Corrected(force, correction), right[0], size.outputs, CheckpointAdjoint(memory=MEMORY))
        loss = misfit(found, right).mean()
        loss.backward()
        optimizer.step()
        errors.append(math.sqrt(loss.item()))
    return errors


def draw(path: Path, right: Tensor, found: dict[str, Tensor], errors: dict[str, Tensor]) -> None:
    """One field of the test by all three, and the errors over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
    x, t = Grid1D(COARSE, LENGTH).points().numpy(), times(len(right) - 1)
    for panel, (name, u) in zip(panels[:3], {"fine": right, **found}.items(), strict=True):
        panel.pcolormesh(x, t, u[:, 0].cpu().numpy(), shading="nearest", cmap="RdBu_r", vmin=-1.5, vmax=1.5, rasterized=True)
        panel.set(xlabel="x", ylabel="t", title=f"u(t, x), {name}")
    for name, values in errors.items():
        panels[3].plot(t[1:], 100 * values.cpu().numpy(), label=name)
    panels[3].set(xlabel="t", ylabel="error in % of the field", ylim=(0, None), title="not seen in training")
    panels[3].legend()
    figure.savefig(path, dpi=90)


def main(picture: Path | None = None, seed: int = 0, device: str = "cpu", size: Size = FULL) -> dict[str, Any]:
    place, generator = choose_device(device), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    forces = [Force(*(part.to(place) for part in draw_forces(n, generator))) for n in (size.fields, max(size.fields // 2, 1))]
    right, unseen = (truth(force, size.outputs) for force in forces)
    correction = Correction().to(place)
    trained = learn(correction, forces[0], right, size, generator)
    with torch.no_grad():
        found = {
            "coarse": solved(coarse(forces[1]), unseen[0], size.outputs),
            "coarse, corrected": solved(Corrected(forces[1], correction), unseen[0], size.outputs),
        }
    errors = {name: misfit(u, unseen).sqrt() for name, u in found.items()}
    steps = size.outputs * BETWEEN
    print(f"{COARSE} points for {FINE}, {steps} steps, each gradient through all of them, memory={MEMORY}")
    for name, values in errors.items():
        quarter = [100 * part.mean().item() for part in values.chunk(4)]
        print(f"{name + ':':18} error {', '.join(f'{value:.1f}' for value in quarter)} % of the field, in the four quarters of the time")
    before, after = (values.square().mean().sqrt().item() for values in errors.values())
    last = errors["coarse, corrected"][-1].item()
    mean = found["coarse, corrected"].mean(-1)
    if picture is not None:
        draw(picture, unseen, found, errors)
        print(f"picture: {picture}")
    drift = (mean - mean[0]).abs().max().item()
    return {"steps": steps, "before": before, "after": after, "last": last, "drift": drift, "trained": trained}


if __name__ == "__main__":
    script(main, __doc__, DevicePicture)
