"""Fields on a plane: modes with closed forms, scipy on the same differences, every kind of method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import (
    Advection,
    DerivativeTerm,
    Diffusion,
    Dirichlet,
    GrayScott,
    Grid1D,
    Plane,
    Reaction,
    Schroedinger,
    Source,
    System,
    Value,
    Wave,
    over_plane,
)

NX, NY = 12, 9
GX, GY = Grid1D(NX, 2 * math.pi), Grid1D(NY, 4 * math.pi)
ZERO = torch.zeros((), dtype=torch.float64)
X, Y = GX.points(ZERO), GY.points(ZERO)[:, None]


def waves(scheme: str = "spectral", c: float = 0.7) -> Plane:
    across = System({"u": None, "v": {"u": DerivativeTerm(GY, 2, c**2, scheme)}})
    return Plane(Wave(GX, c, scheme).system(), across)


def spots() -> Plane:
    """Gray and Scott's, the reaction on the plane."""
    eat = lambda t, x, y, u, v: (0.04 * (1 - u) - u * v**2, u * v**2 - 0.1 * v)
    along = lambda grid: System({"u": Diffusion(grid, 0.2), "v": Diffusion(grid, 0.1)})
    return Plane(along(GX), along(GY), eat)


def test_modes_of_a_plane_decay_move_and_swing_as_they_should() -> None:
    mode = torch.cos(2 * X + 1.5 * Y)
    plain = Plane(Diffusion(GX, 0.1, "spectral") + Advection(GX, 0.5), Diffusion(GY, 0.3, "spectral") + Advection(GY, -0.2))
    wanted = math.exp(-0.1 * 4 - 0.3 * 2.25) * torch.cos(2 * (X - 0.5) + 1.5 * (Y + 0.2))
    for found in (plain.exact(1.0, mode), odeint(plain, mode, [0.0, 1.0], method="etdrk4", steps=3)[-1]):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    closed = plain.flow(mode.expand(2, NY, NX), [0.0, 1.0])
    assert torch.equal(closed[0, 1], mode)  # pyright: ignore[reportOptionalSubscript]
    torch.testing.assert_close(closed[1, 0], wanted, rtol=0, atol=1e-12)  # pyright: ignore[reportOptionalSubscript]
    w = 0.7 * math.sqrt(4 + 2.25)
    start = torch.stack([mode, 0 * mode])
    for method, steps in (("etdrk4", 2), ("rk4", 40), ("imex3", 60)):
        end = odeint(waves(), start, [0.0, 1.0], method=method, steps=steps, adjoint="direct")[-1]
        assert (end[0] - math.cos(w) * mode).abs().max() < 1e-4, method
    torch.testing.assert_close(waves().exact(1.0, start)[1], -w * math.sin(w) * mode, rtol=0, atol=1e-12)
    pair = odeint(waves(), (mode, 0 * mode), [0.0, 1.0], method="leapfrog", steps=50, adjoint="direct")
    assert (pair[0][-1] - math.cos(w) * mode).abs().max() < 1e-3


def by_scipy(u: Tensor, time: float) -> Tensor:
    hx, hy = 2 * math.pi / NX, 4 * math.pi / NY

    def slope(_: float, flat: np.ndarray) -> np.ndarray:
        u, v = flat.reshape(2, NY, NX)
        across = lambda u, axis, h: (np.roll(u, 1, axis) - 2 * u + np.roll(u, -1, axis)) / h**2
        spread = lambda u: across(u, 1, hx) + across(u, 0, hy)
        return np.stack([0.2 * spread(u) + 0.04 * (1 - u) - u * v**2, 0.1 * spread(v) + u * v**2 - 0.1 * v]).reshape(-1)

    return torch.from_numpy(
        solve_ivp(slope, (0, time), u.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1].reshape(u.shape)
    )


def start() -> Tensor:
    return torch.stack([1 - 0.5 * torch.exp(-((X - 3) ** 2) - (Y - 6) ** 2), 0.4 * torch.exp(-((X - 3) ** 2) - (Y - 5) ** 2)])


@pytest.mark.parametrize(("method", "steps", "tolerance"), [("rk4", 20, 1e-4), ("etdrk4", 8, 1e-4), ("imex3", 15, 1e-3)])
def test_spots_are_those_of_scipy(method: str, steps: int, tolerance: float) -> None:
    u = start()
    wanted = by_scipy(u, 2.0)
    assert (wanted - u).abs().max() > 0.1
    assert (odeint(spots(), u, [0.0, 2.0], method=method, steps=steps, adjoint="direct")[-1] - wanted).abs().max() < tolerance


@pytest.mark.parametrize("method", ["rk4", "ssprk3"])
def test_the_largest_stable_step_is_where_modes_begin_to_grow(method: str) -> None:
    for make, most in ((lambda: Plane(Diffusion(GX, 0.2), Diffusion(GY, 0.7)), 0.0), (waves, 1.0)):
        plane = make()
        h = plane.max_stable_step(method)
        noise = torch.randn(*((2,) if most else ()), NY, NX, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        noise = noise - noise.mean((-2, -1), keepdim=True)
        size = lambda f: odeint(plane, noise, [0.0, f * h * 300], method=method, steps=300, adjoint="direct")[-1].abs().max().item()  # noqa: B023
        with pytest.warns(UserWarning, match="beyond the largest stable"):
            assert size(1.1) > 1e3 * size(0.97)
    varying = Plane(Diffusion(GX, lambda t, x: 1 + 0.5 * torch.sin(x)), Diffusion(Grid1D(NY, 1.0, Dirichlet()), 0.1))
    parts = [part.max_stable_step(method) for part in (varying.along_x, varying.along_y)]
    assert varying.max_stable_step(method) == pytest.approx(1 / (1 / parts[0] + 1 / parts[1]))
    assert spots().max_stable_step("etdrk4") == math.inf


@pytest.mark.parametrize("sizes", [(12, 9), (9, 8), (8, 6)])
def test_the_parts_of_a_split_add_up(sizes: tuple[int, int]) -> None:
    """Odd and even numbers of points, noise up to Nyquist."""
    x, y = Grid1D(sizes[0], 2.0), Grid1D(sizes[1], 3.0)
    one = Plane(Advection(x, 0.5) + Diffusion(x, 0.1), Advection(y, -0.3, "upwind3"), lambda t, x, y, u: u * x * y)
    coupled = System({"u": {"v": DerivativeTerm(y, 1, 0.4)}, "v": {"u": DerivativeTerm(y, 2, 0.3)}})
    for plane, lead in ((one, (3,)), (Plane(Wave(x, 0.7).system(), coupled), (3, 2))):
        u = torch.randn(*lead, sizes[1], sizes[0], dtype=torch.float64)
        linear, rest = plane.split()
        torch.testing.assert_close(linear(u) + rest(ZERO, u), plane(ZERO, u), rtol=0, atol=1e-10)
        solved = linear.solve(0.1, u)
        torch.testing.assert_close(solved - 0.1 * linear(solved), u, rtol=0, atol=1e-10)
        implicit = odeint(plane, u, [0.0, 0.1], method="backward_euler", steps=1, adjoint="direct")[-1]
        torch.testing.assert_close(implicit - 0.1 * plane(ZERO + 0.1, implicit), u, rtol=0, atol=1e-5)


def test_gradients_on_a_plane() -> None:
    D = nn.Parameter(ZERO + 0.3)
    plane, u = Plane(Diffusion(GX, D), Diffusion(GY, D), lambda t, x, y, u: u - u**3 + torch.cos(x) * torch.sin(y / 2)), start()[0]

    def loss(adjoint: str = "checkpoint") -> Tensor:
        return (odeint(plane, u, [0.0, 0.3], method="etdrk4", steps=3, adjoint=adjoint)[-1] ** 2 * torch.cos(X)).sum()

    found = [torch.autograd.grad(loss(adjoint), D)[0] for adjoint in ("checkpoint", "direct")]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        D += 1e-5
        ahead = loss().item()
        D -= 2e-5
        assert found[0].item() == pytest.approx((ahead - loss().item()) / 2e-5, rel=1e-6)


WALLED = Plane(Diffusion(GX, lambda t, x: 1 + 0.5 * torch.sin(x)), Diffusion(Grid1D(NY, 4 * math.pi, Dirichlet(1.0, 0.0)), 0.4))


def test_implicit_methods_take_walls_and_coefficients_that_vary() -> None:
    u = torch.cos(X) + torch.exp(-Y)
    fine = odeint(WALLED, u, [0.0, 0.2], method="rk4", steps=20, adjoint="direct")[-1]
    assert (odeint(WALLED, u, [0.0, 0.2], method="implicit_midpoint", steps=4, adjoint="direct")[-1] - fine).abs().max() < 2e-3


D = lambda t, x, y: (1.2 + 0.5 * torch.sin(x + y / 2)) * (1 + 0.3 * t)
Term = tuple[Callable[[Grid1D, Any], Any], Callable[[Tensor, Tensor, Tensor], Tensor], int]  # made, what it is of (D, u, s), its order
TERMS: dict[str, Term] = {
    "diffusion": (Diffusion, lambda D, u, s: along(D * along(u, s), s), 2),
    "diffusion of order 4": (lambda grid, D: Diffusion(grid, D, "central4"), lambda D, u, s: along(D * along(u, s), s), 4),
    "advection": (lambda grid, D: Advection(grid, D, "upwind3"), lambda D, u, s: -D * along(u, s), 3),
    "conservative advection": (lambda grid, D: Advection(grid, D, "upwind3", conservative=True), lambda D, u, s: -along(D * u, s), 3),
    "dispersion": (lambda grid, D: DerivativeTerm(grid, 3, D), lambda D, u, s: D * along(along(along(u, s), s), s), 2),
    "growth": (Reaction, lambda D, u, s: D * u, 9),
    "halved": (lambda grid, D: Diffusion(grid, D) * 0.5, lambda D, u, s: along(D * along(u, s), s) / 2, 2),
}


def along(u: Tensor, s: Tensor) -> Tensor:
    return torch.autograd.grad(u.sum(), s, create_graph=True)[0]


def wave(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-t) * (torch.sin(x - y / 2) + 0.5 * torch.cos(2 * x + y))


def missed(name: str, n: int) -> float:
    """By how much the plane's slope misses that of formulas differentiated by autograd; as many points along x as along y."""
    make, formula, _ = TERMS[name]
    x, y = Grid1D(n, 2 * math.pi, start=0.3), Grid1D(n, 4 * math.pi)
    found = Plane(*(make(grid, one) for grid, one in zip((x, y), over_plane(x, y, D), strict=True)))
    X, Y = (each.requires_grad_() for each in torch.meshgrid(x.points(ZERO), y.points(ZERO), indexing="xy"))
    u, d = wave(ZERO + 0.2, X, Y), D(0.2, X, Y)
    wanted = formula(d, u, X) + formula(d, u, Y)
    return (found(ZERO + 0.2, u.detach().expand(2, n, n))[1] - wanted).abs().max().item()


@pytest.mark.parametrize("name", TERMS)
def test_coefficients_vary_over_the_plane(name: str) -> None:
    coarse, fine = missed(name, 48), missed(name, 96)
    assert fine < 1e-9 or 0.05 > fine < coarse / 2 ** (TERMS[name][2] - 0.3)


def test_coefficients_and_data_at_walls_vary_over_the_plane() -> None:
    """u = exp(-t) (sin(x - y / 2) + ...) between walls at all four sides, moved by d/dx(D du/dx) + d/dy(D du/dy) and what is missing."""

    def off(n: int) -> float:
        lengths = (1.0, 1.5)
        plain = [Grid1D(n + more, length, Dirichlet()) for more, length in zip((0, 3), lengths, strict=True)]
        xs, ys = (grid.points(ZERO) for grid in plain)
        sides = (
            [lambda t, s=s: wave(t, ZERO + s, ys)[:, None] for s in (0.0, 1.0)],
            [lambda t, s=s: wave(t, xs, ZERO + s)[:, None] for s in (0, 1.5)],
        )
        x, y = (Grid1D(grid.n, grid.length, (Value(a), Value(b))) for grid, (a, b) in zip(plain, sides, strict=True))

        def source(t: Tensor, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
            with torch.enable_grad():
                X, Y = (each.requires_grad_() for each in torch.meshgrid(x, y[:, 0], indexing="xy"))
                u, d = wave(t, X, Y), D(t, X, Y)
                return (-u - along(d * along(u, X), X) - along(d * along(u, Y), Y)).detach()

        D_x, D_y = over_plane(x, y, D)
        plane = Plane(Diffusion(x, D_x), Diffusion(y, D_y), source)
        exact = lambda t: wave(ZERO + t, xs, ys[:, None])
        found = odeint(plane, exact(0.0), [0.0, 0.1], method="rk4", steps=n * n * 5 // 8, adjoint="direct")[-1]
        return (found - exact(0.1)).abs().max().item()

    assert off(10) < off(5) / 2**1.7 < 0.005


def test_complex_fields_on_a_plane() -> None:
    """A free wave, and an oscillator in its lowest state: exp(-(x^2 + y^2) / 2 - i t)."""
    plane = Plane(Schroedinger(GX), Schroedinger(GY))
    free = torch.exp(1j * (2 * X - 1.5 * Y))
    wanted = free * torch.exp(ZERO - 0.5j * (4 + 2.25))
    for method, steps in (("etdrk4", 1), ("imex3", 60), ("rk4", 40)):
        end = odeint(plane, free, [0.0, 1.0], method=method, steps=steps, adjoint="direct")[-1]
        assert (end - wanted).abs().max() < 1e-3, method
    torch.testing.assert_close(plane.exact(1.0, free), wanted, rtol=0, atol=1e-12)
    parts = plane(ZERO, (free.real, free.imag))
    assert torch.equal(torch.complex(*parts), plane(ZERO, free))
    axis = Grid1D(24, 12.0, start=-6.0)
    trap = lambda t, x, y, u, v: ((x**2 + y**2) / 2 * v, -(x**2 + y**2) / 2 * u)
    s = axis.points(ZERO)
    ground = torch.exp(-(s**2 + s[:, None] ** 2) / 2).to(torch.complex128)
    end = odeint(Plane(Schroedinger(axis), Schroedinger(axis), trap), ground, [0.0, 1.0], method="etdrk4", steps=25, adjoint="direct")[-1]
    assert (end - ground * torch.exp(-1j * (ZERO + 1))).abs().max() < 1e-4


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a system and an equation": (lambda: Plane(GrayScott(GX), Diffusion(GY, 1.0)), "GrayScott and Diffusion"),
    "no equation": (lambda: Plane(Diffusion(GX, 1.0), 1.0), "Diffusion and float"),  # pyright: ignore[reportArgumentType]
    "other fields": (lambda: Plane(GrayScott(GX), System({"u": Diffusion(GY, 1.0)})), r"\('u', 'v'\) and \('u',\)"),
    "a complex field and a pair": (
        lambda: Plane(Schroedinger(GX), System({"real": None, "imaginary": {"real": DerivativeTerm(GY, 2, 0.5)}})),
        "both be of a complex field",
    ),
    "real numbers for a complex field": (lambda: Plane(Schroedinger(GX), Schroedinger(GY))(ZERO, X + Y), "is a complex field"),
    "a function of both axes": (
        lambda: Plane(Diffusion(GX, lambda t, x: x + Y), Diffusion(GY, 1.0)),
        r"along_x has shape \(9, 12\).*over_plane",
    ),
    "y in the place of the field": (lambda: Plane(Diffusion(GX, lambda t, x, y: 1 + y), Diffusion(GY, 1.0)), "the field: call it u"),
    "a source of y": (lambda: Plane(Source(GX, lambda t, x, y: y), Diffusion(GY, 1.0)), "function of Source along_x"),
    "halves exchanged": (
        lambda: Plane(Diffusion(GX, over_plane(GX, GY, lambda t, x, y: x)[1]), Diffusion(GY, 1.0)),
        "along_x is that of the other axis",
    ),
    "halves exchanged, of the field": (
        lambda: Plane(Diffusion(GX, 1.0), Reaction(GY, over_plane(GX, GY, lambda t, x, y: x)[0])),
        "along_y is that of the other axis",
    ),
    "over no plane": (lambda: over_plane(GX, GY, lambda t, x: x), r"function of \(t, x, y\)"),  # pyright: ignore[reportArgumentType]
    "no axis": (lambda: over_plane(GX, 9, lambda t, x, y: x), "y=9 must be a Grid1D"),  # pyright: ignore[reportArgumentType]
    "axes exchanged": (lambda: Plane(Diffusion(GX, 1.0), Diffusion(GY, 1.0))(ZERO, torch.zeros(NX, NY)), r"\(12, 9\).*9, 12"),
    "one field of two": (lambda: spots()(ZERO, start()[:1]), r"\(\.\.\., 2, 9, 12\)"),
    "a pair for one": (lambda: Plane(Diffusion(GX, 1.0), Diffusion(GY, 1.0))(ZERO, (X, X)), "got tuple"),
    "a split between walls": (lambda: odeint(WALLED, X + 0 * Y, [0.0, 1.0], method="etdrk4", steps=9), "etdrk4 needs func.split"),
    "a symbol that varies": (lambda: Plane(Reaction(GX, lambda t, x: x), Diffusion(GY, 1.0)).symbol(), "constant coefficients"),
    "the solution of a reaction": (lambda: spots().exact(1.0, start()), "reaction"),
    "a number as reaction": (lambda: Plane(Diffusion(GX, 1.0), Diffusion(GY, 1.0), 1.0), "reaction=1.0"),  # pyright: ignore
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
