"""What coefficients may be, and what is said of those that may not."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import (
    Absorbing,
    Advection,
    DerivativeTerm,
    Diffusion,
    FitzHughNagumo,
    GrayScott,
    Grid1D,
    KleinGordon,
    Maxwell,
    Plane,
    Reaction,
    Schroedinger,
    SecondOrder,
    ShallowWater,
    System,
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


class Porous(nn.Module):
    def forward(self, t: Any, x: Tensor, u: Tensor) -> Tensor:
        return 1 + u**2


def rest_given(t: Any, *rest: Tensor) -> Tensor:
    return 1 + rest[1] ** 2


def u_with_a_default(t: Any, x: Tensor, u: Any = None) -> Tensor:
    return 1 + u**2


@pytest.mark.parametrize(
    "D", [Porous(), torch.compile(Porous(), backend="eager"), lambda *args: 1 + args[2] ** 2, rest_given, u_with_a_default]
)
def test_a_diffusivity_of_the_field_is_told_however_it_is_written(D: Any) -> None:
    u = torch.linspace(0, 3, N, dtype=torch.float64).sin()
    equation = Diffusion(RING, D)
    assert not equation.linear
    torch.testing.assert_close(equation(0.0, u), Diffusion(RING, lambda t, x, u: 1 + u**2)(0.0, u), rtol=1e-14, atol=1e-14)


def test_a_default_that_binds_a_number_is_no_field() -> None:
    assert Diffusion(RING, lambda t, x, D=0.3: D + 0 * x).linear


OF_THE_FIELD: dict[str, Callable[[Any], Any]] = {
    "speed": lambda f: Advection(RING, f),
    "rate": lambda f: Reaction(RING, f),
    "factor": lambda f: DerivativeTerm(RING, 2, f),
    "permittivity": lambda f: Maxwell(RING, f),
    "mass": lambda f: KleinGordon(RING, 1.0, f),
    "feed": lambda f: GrayScott(RING, f),
}


@pytest.mark.parametrize("f", [Porous(), lambda x: x, lambda t, x, u: u], ids=["module", "one", "three"])
@pytest.mark.parametrize("name", OF_THE_FIELD)
def test_a_function_of_other_arguments_is_refused_by_name(name: str, f: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a function of \(t, x\), got one of \(.*Source"):
        OF_THE_FIELD[name](f)
    with pytest.raises(TypeError, match=r"diffusivity must be a function of \(t, x\) or \(t, x, u\), got one of"):
        Diffusion(RING, lambda x: x)  # pyright: ignore[reportArgumentType]


MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one diffusivity": (lambda: GrayScott(RING, diffusivities=(1e-5,)), ValueError, r"diffusivities=\(1e-05,\) must be a pair"),  # pyright: ignore
    "a number for two": (lambda: GrayScott(RING, diffusivities=1e-5), ValueError, "diffusivities=1e-05 must be a pair"),  # pyright: ignore
    "rows in a list": (lambda: System([Diffusion(RING, 1.0)]), TypeError, "rows must be a mapping.* got list"),  # pyright: ignore
    "a wave as row": (lambda: System({"u": Wave(RING, 1.0)}), TypeError, "what moves u must be .* got Wave"),  # pyright: ignore
    "a number as row": (lambda: System({"u": 3}), TypeError, "what moves u must be .* got int"),  # pyright: ignore
    "a number as force": (lambda: SecondOrder(3), TypeError, "force must be an equation of one field, got int"),  # pyright: ignore
    "a number as drag": (lambda: SecondOrder(Reaction(RING, 1.0), 3), TypeError, "drag must be .* got int"),  # pyright: ignore
    "half a point": (lambda: Grid1D(8.5), TypeError, "n=8.5 must be a whole number"),  # pyright: ignore
    "no slope": (lambda: reacting(1.0)(0.0, torch.zeros(2, N)), TypeError, "NoneType for v; give 0.0"),
    "no slope, scaled": (lambda: reacting(2.0)(0.0, torch.zeros(2, N)), TypeError, "NoneType for v; give 0.0"),
    "no slope on a plane": (lambda: Plane(two(), two(), lambda *_: (0.0, None))(0.0, torch.zeros(2, N, N)), TypeError, "NoneType for v"),
    "a batch of D on a plane": (lambda: Plane(Diffusion(RING, torch.ones(N, 1)), Diffusion(RING, 1.0)), ValueError, "along_x has shape"),
    "three axes on a plane": (lambda: Plane(Diffusion(RING, 1.0), Diffusion(RING, torch.ones(3, 1, 1))), ValueError, "along_y has shape"),
    "a multiple on a plane": (
        lambda: Plane(2 * Diffusion(RING, torch.ones(3, 1)), Diffusion(RING, 1.0)),
        ValueError,
        "along_x has shape",
    ),
    "a formula on a plane": (lambda: Plane(Maxwell(RING, torch.ones(3, 1)), Maxwell(RING)), ValueError, "permittivity of .* along_x"),
}


def two() -> System:
    return System({"u": Diffusion(RING, 1.0), "v": None})


def reacting(factor: float) -> System:
    return factor * System({"u": Diffusion(RING, 1.0), "v": None}, lambda t, x, u, v: (0.0, None))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_words(mistake: str) -> None:
    make, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words):
        make()


def test_states_of_the_other_form_are_told_what_to_write() -> None:
    q, v = torch.ones(2, N, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got a single tensor; give a tuple, tuple\(u\.unbind\(-2\)\)"):
        odeint(ShallowWater(RING), torch.stack([q, v]), [0.0, 0.1], method="leapfrog", steps=2)
    with pytest.raises(ValueError, match=r"etdrk4 needs a single tensor.*torch\.stack\(y0, -2\)"):
        odeint(ShallowWater(RING), (q, v), [0.0, 0.1], method="etdrk4", steps=2)
    with pytest.raises(ValueError, match=r"384 elements.*at most 128; take 'kvaerno5'.*'imex3'"):
        odeint(Diffusion(Grid1D(384), 1e-4), torch.ones(384), [0.0, 0.1], method="rodas5p", steps=2)
