"""Families of fields to start from, and pictures of fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anodev2.pde import Grid1D, Neumann, Periodic, animate, plot, random_fourier, random_fronts, random_pulses, space_time

FAMILIES: dict[str, Callable[..., torch.Tensor]] = {"fourier": random_fourier, "fronts": random_fronts, "pulses": random_pulses}
DOUBLE = torch.empty(0, dtype=torch.float64)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("walls", [False, True])
def test_a_family_is_functions_of_x_drawn_from_a_seed(name: str, walls: bool) -> None:
    """The points of a coarse grid that a fine one has too have the same values, wherever the axis starts and however long it is."""
    make, ends = FAMILIES[name], Neumann() if walls else Periodic()
    coarse, fine = make(Grid1D(20, 3.0, ends), (4, 2), like=DOUBLE), make(Grid1D(60, 3.0, ends), (4, 2), like=DOUBLE)
    assert coarse.shape == (4, 2, 20) and coarse.dtype == torch.float64
    assert torch.allclose(coarse, fine[..., 1 if walls else 0 :: 3], atol=1e-12)
    assert torch.allclose(coarse, make(Grid1D(20, 1.0, ends, -7.0), (4, 2), like=DOUBLE), atol=1e-12)
    assert torch.equal(coarse, make(Grid1D(20, 3.0, ends), (4, 2), seed=0, like=DOUBLE))
    assert not torch.allclose(coarse, make(Grid1D(20, 3.0, ends), (4, 2), seed=1, like=DOUBLE), atol=0.1)
    assert not torch.allclose(coarse[0, 0], coarse[0, 1], atol=0.1)
    assert make(Grid1D(20, 1.0, ends)).dtype == torch.get_default_dtype() and make(Grid1D(20, 1.0, ends)).shape == (20,)
    if not walls:  # what leaves at one end enters at the other: no jump there but those inside
        u = make(Grid1D(4000), (50,), like=DOUBLE)
        steps = (u - u.roll(1, -1)).abs()
        assert steps[:, 0].max() <= steps[:, 1:].max()


def test_the_modes_of_a_random_series_and_how_they_decay() -> None:
    u = random_fourier(Grid1D(64), (4000,), modes=4, decay=1.0, like=DOUBLE)
    power = (torch.fft.rfft(u) / 32).abs().square().mean(0)  # a^2 + b^2, 2 m^-2 expected
    assert power[0] < 1e-28 and power[5:].max() < 1e-28
    for m in range(1, 5):
        assert power[m].item() == pytest.approx(2 * m**-2, rel=0.1)


def test_fronts_are_plateaus_between_minus_1_and_1() -> None:
    for width, sharp in ((0.0, True), (0.01, False)):
        u = random_fronts(Grid1D(400), (30,), fronts=3, width=width, like=DOUBLE)
        assert u.abs().max() <= 1 + 1e-12
        jumps = (u - u.roll(1, -1)).abs() > 1e-9
        assert (jumps.sum(-1) <= 3).all() == sharp
    between = random_fronts(Grid1D(400, boundary=Neumann()), (30,), fronts=1, width=0.0, like=DOUBLE)
    assert ((between.diff(dim=-1) != 0).sum(-1) == 1).all()


def test_a_pulse_holds_its_height_times_its_width() -> None:
    """The integral of a exp(-(x / w)^2) is a w sqrt(pi), also where it goes on beyond the end."""
    u = random_pulses(Grid1D(1000, 2.0), (40,), pulses=1, width=0.03, like=DOUBLE)
    height = torch.where(u.sum(-1) > 0, u.amax(-1), u.amin(-1))
    assert torch.allclose(u.sum(-1) * 2 / 1000, height * 0.06 * math.sqrt(math.pi), rtol=2e-3)
    assert height.abs().max() <= 1 and height.min() < -0.5 and height.max() > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: random_fourier(g, modes=8), "modes=8 must be at least 1 and below n / 2 = 8"),
        (lambda g: random_fronts(g, fronts=1), "fronts=1 must be at least 2 on this grid"),
        (lambda g: random_fronts(g, width=-1.0), "width=-1.0 at least 0"),
        (lambda g: random_pulses(g, width=0.0), "width=0.0 positive"),
        (lambda g: random_pulses(g, pulses=0), "pulses=0 must be at least 1"),
        (lambda g: plot(g, torch.zeros(13, 16)), "13 fields are too many lines; give at most 12"),
        (lambda g: plot(g, torch.zeros(2, 2, 16)), r"must have \(n,\) or \(fields, n\)"),
        (lambda g: space_time(g, [0.0, 1.0], torch.zeros(3, 16)), "give a time per field"),
        (lambda g: space_time(g, [0.0], torch.zeros(1, 2, 16)), "one field"),
        (lambda g: animate(g, [0.0], torch.zeros(1, 16), seconds=0.0), "seconds=0.0 must be positive"),
        (lambda g: plot(g, torch.zeros(15)), "15 points in its last axis, the grid 16"),
        (lambda g: plot(g, torch.zeros(3, 16), labels=["a", "b"]), "2 labels do not match 3 fields"),
        (lambda g: animate(g, [], torch.zeros(0, 16)), "no time to draw"),
        (lambda g: space_time(g, [], torch.zeros(0, 16)), "no time to draw"),
    ],
)
def test_what_cannot_be_drawn_is_told(make: Callable[[Grid1D], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Grid1D(16))


def test_pictures_show_the_numbers_that_they_were_given(tmp_path: Path) -> None:
    grid, times = Grid1D(16, 2.0, start=-1.0), [0.0, 0.5, 2.0]
    u = random_fourier(grid, (3,), like=DOUBLE)
    lines = plot(grid, u, labels=["a", "b", "c"], path=tmp_path / "plot.png").axes[0].lines
    for line, row in zip(lines, u, strict=True):
        assert torch.equal(torch.from_numpy(line.get_ydata()), row)
        assert torch.equal(torch.from_numpy(line.get_xdata()), grid.points(DOUBLE))
    axes = space_time(grid, times, u.requires_grad_(), path=tmp_path / "space_time.png").axes[0]
    mesh = axes.collections[0]
    assert (mesh.get_array() == u.detach().numpy()).all() and mesh.get_clim() == (-u.abs().max().item(), u.abs().max().item())
    assert axes.get_xlim()[0] < -1 + 0.07 and axes.get_ylim()[1] > 2
    film = animate(grid, times, u[:, None].expand(3, 2, 16), path=tmp_path / "film.gif", seconds=0.3)
    film._draw_frame(2)
    shown = film._fig.axes[0].lines
    assert len(shown) == 2 and torch.equal(torch.from_numpy(shown[1].get_ydata()), u[2].detach())
    own = plot(grid, u[0], axes=axes)
    assert own is axes.figure and len(axes.lines) == 1
    for name in ("plot.png", "space_time.png", "film.gif"):
        assert 1000 < (tmp_path / name).stat().st_size < 200_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: random_fourier(g, 3), r"shape=3 must be a tuple, \(3,\)"),  # pyright: ignore[reportArgumentType]
        (lambda g: random_fourier(g, modes=2.5), "modes=2.5 must be a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda g: random_fronts(g, fronts=2.5), "fronts=2.5 must be a whole number"),  # pyright: ignore[reportArgumentType]
        (lambda g: random_pulses(g, pulses=2.5), "pulses=2.5 must be a whole number"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_counts_and_shapes_of_another_kind_are_told(make: Callable[[Grid1D], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(Grid1D(16))


def test_a_field_that_has_blown_up_is_drawn_as_far_as_it_is_finite(tmp_path: Path) -> None:
    grid, u = Grid1D(16), random_fourier(Grid1D(16), (3,), like=DOUBLE)
    last = u[:2].abs().max().item()
    for bad in (math.nan, math.inf):
        u[2] = bad
        axes = space_time(grid, [0.0, 0.5, 2.0], u, path=tmp_path / "space_time.png").axes[0]
        assert axes.collections[0].get_clim() == (-last, last)
        film = animate(grid, [0.0, 0.5, 2.0], u, path=tmp_path / "film.gif", seconds=0.3)
        low, high = film._fig.axes[0].get_ylim()
        assert low < u[:2].min() and high > u[:2].max() and high - low < 3 * last
        animate(grid, [0.0], torch.full((1, 16), bad), path=tmp_path / "film.gif")


def test_a_film_without_ffmpeg_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.animation import writers

    monkeypatch.setattr(writers, "is_available", lambda name: False)
    with pytest.raises(ValueError, match=r"needs ffmpeg, which is not installed; write a \.gif"):
        animate(Grid1D(16), [0.0], torch.zeros(1, 16), path=tmp_path / "film.mp4")
