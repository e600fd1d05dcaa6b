"""What lies between: the speed of waves at every point of a medium, from what four receivers hear through noise.

    d2u/dt2 = c(x)^2 d2u/dx2,    du/dx = 0 at both ends,    u(0, x) a pulse at one of three places, at rest

The medium is quick in one place and slow in another; a wave shows it by arriving early or late, and by its echoes. The recordings
come from a grid three times as fine and get noise of standard deviation SIGMA. Starting from a medium that is the same everywhere,
L-BFGS fits c at every point, with exact gradients of the whole computation (leapfrog) through ``odeint``. What can be expected: the
misfit falls to the noise and no further, and c is found up to a per cent or two.

    python examples/learn_medium.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import Grid1D, Neumann, Wave
from options import SeededPicture, script

SOURCES, WIDTH = [0.08, 0.5, 0.92], 0.04  # places of the pulses and their width; the medium is 1 long
RECEIVERS = [0.05, 0.35, 0.65, 0.95]
TIMES = [i / 60 for i in range(61)]  # once through the medium at speed 1
SIGMA = 0.02  # of the noise; the pulses have height 1, the recordings a root mean square of 0.17
ROUGHNESS = 1e-2  # weight of the mean squared slope of c beside the squared misfit in units of the noise
FASTEST = 1.6  # the step is stable up to this speed


@dataclass(frozen=True)
class Survey:
    """A grid between free ends and what is fired and heard on it."""

    n: int

    @property
    def grid(self) -> Grid1D:
        return Grid1D(self.n, boundary=Neumann())

    @property
    def x(self) -> Tensor:
        return self.grid.points(torch.empty(0, dtype=torch.float64))

    def medium(self, speed: Tensor) -> Wave:
        return Wave(self.grid, speed, "central4")

    def fields(self, wave: Wave) -> Tensor:
        """u of every source at TIMES: (times, sources, n)."""
        pulses = torch.stack([torch.exp(-(((self.x - place) / WIDTH) ** 2)) for place in SOURCES])
        limit = self.medium(torch.tensor(FASTEST)).max_stable_step("leapfrog")
        steps = math.ceil(TIMES[1] / limit)
        return odeint(wave, (pulses, torch.zeros_like(pulses)), TIMES, method="leapfrog", steps=steps)[0]

    def record(self, fields: Tensor) -> Tensor:
        """u at the receivers after the start, in the nearest cell: (times, sources, receivers)."""
        return fields[1:, :, [int(place * self.n) for place in RECEIVERS]]


def true_speed(x: Tensor) -> Tensor:
    return 1 + 0.35 * torch.exp(-(((x - 0.32) / 0.07) ** 2)) - 0.25 * torch.exp(-(((x - 0.68) / 0.1) ** 2))


def observe(survey: Survey, sigma: float, seed: int = 0) -> Tensor:
    """Noisy recordings from a grid of three times as many points, of which every third is one of the survey's."""
    fine = Survey(3 * survey.n)
    fields = fine.fields(fine.medium(true_speed(fine.x)))[..., 1::3]
    clean = survey.record(fields)
    return clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(seed))


def fit(survey: Survey, observed: Tensor, sigma: float, iterations: int) -> tuple[Wave, list[float]]:
    """The medium found, and the root mean squared misfit in units of the noise at every evaluation."""
    speed = nn.Parameter(torch.ones_like(survey.x))
    wave = survey.medium(speed)
    optimizer = torch.optim.LBFGS([speed], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")
    misfits = []

    def closure() -> float:
        optimizer.zero_grad()
        misfit = ((survey.record(survey.fields(wave)) - observed) / sigma).square().mean()
        slope = speed.diff() / survey.grid.spacing
        loss = misfit + ROUGHNESS * slope.square().mean()
        loss.backward()
        misfits.append(math.sqrt(misfit.item()))
        return loss.item()

    optimizer.step(closure)
    return wave, misfits


def draw(path: Path, survey: Survey, found: Tensor, observed: Tensor) -> None:
    """The medium; a wave through it; one pulse as recorded, in the medium found and in the one at the start."""
    from matplotlib.figure import Figure

    uniform = torch.ones_like(found)
    with torch.no_grad():
        after, before = (survey.fields(survey.medium(speed)) for speed in (found, uniform))
    x = survey.x.numpy()
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    medium, wave, traces = figure.subplots(1, 3)
    medium.plot(x, true_speed(survey.x).numpy(), "k", lw=3, alpha=0.3, label="truth")
    medium.plot(x, uniform.numpy(), "--", color="tab:gray", label="start")
    medium.plot(x, found.numpy(), color="tab:red", label="from the recordings")
    medium.plot(SOURCES, [0.67] * len(SOURCES), "*", ms=11, color="tab:orange", label="sources")
    medium.plot(RECEIVERS, [0.67] * len(RECEIVERS), "v", ms=8, color="tab:blue", label="receivers")
    medium.set(xlabel="x", ylabel="speed c(x)", ylim=(0.62, 1.5), title="the medium")
    medium.legend(fontsize=8)
    wave.pcolormesh(x, TIMES, after[:, 0].numpy(), cmap="RdBu_r", vmin=-0.6, vmax=0.6, shading="nearest", rasterized=True)
    for place in RECEIVERS:
        wave.axvline(place, color="tab:blue", lw=1, ls=":")
    wave.set(xlabel="x", ylabel="t", title="u(t, x) after the leftmost pulse")
    recordings = [survey.record(fields)[:, 0].numpy() for fields in (before, after)]
    for number in range(len(RECEIVERS)):
        offset = 0.7 * number
        labels = ["recorded", "start", "fitted"] if number == 0 else [None] * 3
        traces.plot(TIMES[1:], observed[:, 0, number].numpy() + offset, ".", color="k", ms=3, label=labels[0])
        traces.plot(TIMES[1:], recordings[0][:, number] + offset, "--", color="tab:gray", lw=1, label=labels[1])
        traces.plot(TIMES[1:], recordings[1][:, number] + offset, color="tab:red", lw=1.2, label=labels[2])
    traces.set(xlabel="t", yticks=[0.7 * i for i in range(len(RECEIVERS))], yticklabels=[f"x = {x:g}" for x in RECEIVERS])
    traces.set_title("what the receivers hear of it")
    traces.legend(fontsize=8, ncols=3, loc="upper right")
    traces.set_ylim(-0.35, 0.7 * len(RECEIVERS) + 0.35)
    figure.suptitle("Noisy recordings at four places tell the speed of waves at every point between", fontsize=13)
    figure.savefig(path, dpi=100)


def main(picture: Path | None = None, n: int = 96, sigma: float = SIGMA, iterations: int = 25, seed: int = 0) -> dict[str, float]:
    survey = Survey(n)
    observed = observe(survey, sigma, seed)
    truth = true_speed(survey.x)
    wave, misfits = fit(survey, observed, sigma, iterations)
    found = wave.get_parameter("speed").detach()
    before, after = (((speed - truth).norm() / truth.norm()).item() for speed in (torch.ones_like(truth), found))
    with torch.no_grad():
        best = ((survey.record(survey.fields(survey.medium(truth))) - observed) / sigma).square().mean().sqrt().item()
    print(
        f"{observed.numel()} recorded numbers, noise {sigma:g} of signals of rms {observed.square().mean().sqrt():.3f}; {n} unknown speeds"
    )
    print(f"relative error of c(x):        {100 * before:.1f} % at the start, {100 * after:.2f} % after {len(misfits)} gradients")
    print(f"misfit in units of the noise:  {misfits[0]:.2f} at the start, {misfits[-1]:.3f} at the end ({best:.3f} with the true c)")
    assert after < before / 5, (before, after)
    assert misfits[0] > 2 and 0.85 < misfits[-1] < 1.1, misfits
    if picture is not None:
        draw(picture, survey, found, observed)
        print(f"picture: {picture}")
    return {"error_before": before, "error_after": after, "misfit_before": misfits[0], "misfit_after": misfits[-1], "noise_floor": best}


if __name__ == "__main__":
    script(main, __doc__, SeededPicture)
