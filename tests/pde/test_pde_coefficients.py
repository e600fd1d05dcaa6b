"""What coefficients may be, and what is said of those that may not."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2.pde import (
    Absorbing,
    Diffusion,
    FitzHughNagumo,
    GrayScott,
    Grid1D,
    KleinGordon,
    Maxwell,
    Schroedinger,
    ShallowWater,
    Walls,
    Wave,
)

N = 12
RING = Grid1D(N)
OPEN = Grid1D(N, 1.0, Walls(Absorbing(), Absorbing()))


@pytest.mark.parametrize("value", [0, -1.0, torch.tensor(0.0), torch.tensor([-1.0])])
@pytest.mark.parametrize(
    ("make", "name"),
    [(Maxwell, "permittivity"), (Maxwell, "permeability"), (ShallowWater, "depth"), (ShallowWater, "gravity")],
)
def test_what_must_be_positive(make: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}=-?[01] must be positive"):
        make(RING, **{name: value})


@pytest.mark.parametrize("name", ["depth", "gravity"])
def test_water_of_a_depth_that_varies_is_refused(name: str) -> None:
    """d(D v)/dx is not D dv/dx then."""
    given: dict[str, Any] = {name: lambda t, x: 1 + x}
    with pytest.raises(TypeError, match=rf"{name} must be the same everywhere.*function"):
        ShallowWater(RING, **given)
    for shape, cure in (((N,), "mean"), ((3,), r"\[..., None\]")):
        given = {name: torch.ones(shape)}
        with pytest.raises(ValueError, match=rf"{name} of shape .* same everywhere.*{cure}"):
            ShallowWater(RING, **given)


def test_a_frozen_parameter_is_a_parameter() -> None:
    frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
    equation = Diffusion(RING, frozen)
    assert next(iter(equation.parameters())) is frozen
    assert list(equation.state_dict()) == ["diffusivity"]
    frozen.requires_grad_()
    equation(0.0, torch.arange(N, dtype=torch.float32)).square().sum().backward()
    assert frozen.grad is not None


@pytest.mark.parametrize("added", [False, True], ids=["wave", "system"])
@pytest.mark.parametrize("place", [0, 1, N // 2, N - 1])
def test_a_wave_that_stands_still_at_a_point_has_finite_values_and_gradients(place: int, added: bool) -> None:
    c = torch.full((N,), 0.7, dtype=torch.float64)
    c[place] = 0
    c.requires_grad_()
    u, v = (torch.linspace(0, 3, N, dtype=torch.float64).sin().requires_grad_() for _ in range(2))
    wave = Wave(OPEN, c)
    slope = (wave.system() if added else wave)(0.0, (u, v))[1]
    assert slope.isfinite().all() and slope[place] == 0
    gradients = torch.autograd.grad(slope.square().sum(), (u, v, c))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert wave.matrix().isfinite().all()
    if place == N // 2:  # far from both ends: elsewhere as with a speed that is not 0 there
        other = Wave(OPEN, torch.full((N,), 0.7, dtype=torch.float64))(0.0, (u, v))[1]
        assert torch.equal(slope[:place], other[:place]) and torch.equal(slope[place + 1 :], other[place + 1 :])


def value(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


@pytest.mark.parametrize(
    "made",
    [
        GrayScott(RING, value(0.04)),
        FitzHughNagumo(RING, 1.0),
        Schroedinger(RING, 0.3, value(-1.0)),
        Maxwell(RING, value(2.0)),
        ShallowWater(RING, value(2.0)),
        KleinGordon(RING, value(2.0), value(1.0)),
        Wave(OPEN, 1.0).system(),
        Wave(RING, value(1.0)).system() * 2.0,
    ],
    ids=lambda made: type(made).__name__,
)
def test_named_systems_are_saved_whole(made: Any) -> None:
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    fields = tuple(torch.linspace(0, 2 * math.pi, 2 * N, dtype=torch.float64).sin().reshape(2, N))
    assert all(torch.equal(a, b) for a, b in zip(made(0.0, fields), read(0.0, fields), strict=True))
