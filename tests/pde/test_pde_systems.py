"""Several fields: every named system against a solution that is known or scipy's, every method, condition and kind of state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from anodev2 import FieldDynamics, diagnose, odeint, plan, stability_function
from anodev2.pde import (
    Absorbing,
    Advection,
    DampedWave,
    DerivativeTerm,
    Diffusion,
    Dirichlet,
    FitzHughNagumo,
    GrayScott,
    Grid1D,
    KleinGordon,
    Maxwell,
    Neumann,
    Reaction,
    Schroedinger,
    SecondOrder,
    ShallowWater,
    Source,
    System,
    Value,
    Wave,
)
from anodev2.testing import observed_order

N, L = 16, 2 * math.pi
RING, FIXED, FREE = Grid1D(N, L), Grid1D(N, L, Dirichlet()), Grid1D(N, L, Neumann())
ZERO = torch.zeros((), dtype=torch.float64)
H = L / N


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


X = points(RING)


# Du as it is written by hand, with numpy: central differences on a ring, between u = data, and between slopes of 0


def second(u: np.ndarray, ends: str = "ring", left: float = 0.0, right: float = 0.0) -> np.ndarray:
    beyond = {"ring": (u[-1], u[0]), "values": (2 * left - u[0], 2 * right - u[-1]), "free": (u[0], u[-1])}[ends]
    wide = np.concatenate([[beyond[0]], u, [beyond[1]]])
    return (wide[2:] - 2 * u + wide[:-2]) / H**2


def first(u: np.ndarray, ends: str = "ring") -> np.ndarray:
    beyond = {"ring": (u[-1], u[0]), "values": (-u[0], -u[-1]), "free": (u[0], u[-1])}[ends]
    wide = np.concatenate([[beyond[0]], u, [beyond[1]]])
    return (wide[2:] - wide[:-2]) / (2 * H)


@dataclass(frozen=True)
class ByHand:
    """A system, and the slopes of its fields written out."""

    make: Callable[[], System]
    slopes: Callable[..., tuple[np.ndarray, ...]]


def exchange() -> System:
    """Diffusion with walls of their own, transport of one field by the slope of the other, and an exchange."""
    warm = Grid1D(N, L, Dirichlet(0.3, -0.2))
    moved = {"u": Diffusion(warm, 0.4) + Reaction(warm, -0.5), "v": Reaction(FREE, 0.5)}
    return System({"u": moved, "v": {"u": DerivativeTerm(warm, 2, 0.1, "central2") + Reaction(warm, 0.5), "v": Diffusion(FREE, 0.2)}})


def varying() -> System:
    speed = lambda t, x: 1 + 0.3 * torch.sin(x) * torch.as_tensor(t).cos()
    return System(
        {"u": {"u": Diffusion(RING, 0.3), "v": DerivativeTerm(RING, 1, speed, "central2")}, "v": Reaction(RING, -0.2)},
        lambda t, x, u, v: (0.0, u * v + torch.cos(x)),
    )


SYSTEMS = {
    "Gray-Scott": ByHand(
        lambda: GrayScott(RING, 0.04, 0.06, (0.2, 0.1)),
        lambda t, u, v: (0.2 * second(u) - u * v**2 + 0.04 * (1 - u), 0.1 * second(v) + u * v**2 - 0.1 * v),
    ),
    "Gray-Scott, walls": ByHand(
        lambda: GrayScott(FREE, 0.04, 0.06, (0.2, 0.1)),
        lambda t, u, v: (0.2 * second(u, "free") - u * v**2 + 0.04 * (1 - u), 0.1 * second(v, "free") + u * v**2 - 0.1 * v),
    ),
    "FitzHugh-Nagumo": ByHand(
        lambda: FitzHughNagumo(RING, 0.5, 0.08, 0.7, 0.8, 0.5),
        lambda t, u, v: (0.5 * second(u) + u - u**3 / 3 - v + 0.5, 0.08 * (u + 0.7 - 0.8 * v)),
    ),
    "Klein-Gordon": ByHand(lambda: KleinGordon(RING, 0.7, 1.5), lambda t, u, v: (v, 0.49 * second(u) - 2.25 * u)),
    "Klein-Gordon, walls": ByHand(lambda: KleinGordon(FIXED, 0.7, 1.5), lambda t, u, v: (v, 0.49 * second(u, "values") - 2.25 * u)),
    "a damped wave": ByHand(lambda: DampedWave(RING, 0.7, 0.4), lambda t, u, v: (v, 0.49 * second(u) - 0.4 * v)),
    "a driven wave": ByHand(
        lambda: DampedWave(FIXED, 0.7, 0.4) + Source(FIXED, lambda t, x, u: torch.sin(x) * torch.as_tensor(t).cos() - u**3),
        lambda t, u, v: (v, 0.49 * second(u, "values") - 0.4 * v + np.sin((np.arange(N) + 0.5) * H) * math.cos(t) - u**3),
    ),
    "shallow water": ByHand(lambda: ShallowWater(RING, 0.5, 2.0, "central2"), lambda t, h, v: (-0.5 * first(v), -2 * first(h))),
    "light between mirrors": ByHand(
        lambda: Maxwell(FIXED, 2.0, 0.5, magnetic=FREE), lambda t, e, h: (-first(h, "free") / 2, -2 * first(e, "values"))
    ),
    "Schroedinger": ByHand(
        lambda: Schroedinger(RING, lambda t, x: torch.cos(x), 0.5, "central2"),
        lambda t, u, v: (
            -second(v) / 2 + (np.cos(np.arange(N) * H) + (u**2 + v**2) / 2) * v,
            second(u) / 2 - (np.cos(np.arange(N) * H) + (u**2 + v**2) / 2) * u,
        ),
    ),
    "ends of their own": ByHand(
        exchange,
        lambda t, u, v: (
            0.4 * second(u, "values", 0.3, -0.2) - 0.5 * u + 0.5 * v,
            0.1 * second(u, "values", 0.3, -0.2) + 0.5 * u + 0.2 * second(v, "free"),
        ),
    ),
    "varying": ByHand(
        varying,
        lambda t, u, v: (
            0.3 * second(u) + (1 + 0.3 * np.sin(np.arange(N) * H) * math.cos(t)) * first(v),
            -0.2 * v + u * v + np.cos(np.arange(N) * H),
        ),
    ),
}
QUICK = {"rk4": (25, 1e-4), "etdrk4": (12, 1e-4)}  # steps to t = 1, and by how much these may miss
OTHERS = {
    "imex2": (60, 5e-3),
    "imex3": (30, 1e-3),
    "exponential_euler": (150, 1e-2),
    "implicit_midpoint": (40, 5e-3),
    "backward_euler": (100, 5e-2),
    "rodas4": (20, 1e-4),
}


def start(system: System) -> Tensor:
    x = points(system.grid)
    fields = [torch.exp(torch.sin(x + i)) / 3 + 0.1 * i for i in range(system.components)]
    return torch.complex(*fields) if system.packed else torch.stack(fields)


def as_fields(state: Tensor) -> Tensor:
    return torch.stack([state.real, state.imag], -2) if state.is_complex() else state


def by_scipy(name: str, u: Tensor) -> Tensor:
    def slope(t: float, y: np.ndarray) -> np.ndarray:
        return np.concatenate(SYSTEMS[name].slopes(t, *y.reshape(-1, N)))

    return torch.from_numpy(solve_ivp(slope, (0, 1), u.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1].reshape(-1, N))


def solved(name: str, methods: dict[str, tuple[int, float]]) -> tuple[Tensor, list[str]]:
    """scipy's solution, and the methods that do not come near it."""
    system = SYSTEMS[name].make()
    u = start(system)
    wanted = by_scipy(name, as_fields(u))
    assert (wanted - as_fields(u)).abs().max() > 0.05
    missed = []
    with torch.no_grad():
        for method, (steps, tolerance) in methods.items():
            found = odeint(system, u, [0.0, 1.0], method=method, steps=steps, adjoint="direct")[-1]
            missed += [] if (as_fields(found) - wanted).abs().max() < tolerance else [method]
    return wanted, missed


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_method_solves_every_system(name: str) -> None:
    assert solved(name, OTHERS)[1] == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_are_solved_as_scipy_does(name: str) -> None:
    (wanted, missed), system = solved(name, QUICK), SYSTEMS[name].make()
    u = start(system)
    assert missed == []
    for found, plain in zip(system(ZERO + 0.3, tuple(as_fields(u))), as_fields(system(ZERO + 0.3, u)), strict=True):
        assert torch.equal(found, plain)
    closed = system.flow(u, [0.0, 1.0])
    linear = name in ("Klein-Gordon", "Klein-Gordon, walls", "a damped wave", "shallow water", "light between mirrors", "ends of their own")
    assert (closed is not None) == linear
    if closed is not None:
        assert torch.equal(closed[0], u) or not system.grid.periodic
        assert (as_fields(closed[1]) - wanted).abs().max() < 1e-8
        ahead = system.flow(tuple(as_fields(u)), [1.0])
        assert isinstance(ahead, tuple) and (ahead[1][0] - wanted[1]).abs().max() < 1e-8


K = torch.arange(6, dtype=torch.float64)
FREQUENCIES: dict[str, tuple[Callable[[], System], Callable[[Tensor], list[Tensor]]]] = {
    "a wave": (lambda: Wave(RING, 0.7).system(), lambda k: [0.7j * k, -0.7j * k]),
    "Klein-Gordon": (lambda: KleinGordon(RING, 0.7, 1.5), lambda k: [s * 1j * torch.sqrt(0.49 * k**2 + 2.25) for s in (1, -1)]),
    "a damped wave": (
        lambda: DampedWave(RING, 0.7, 0.4),
        lambda k: [-0.2 + s * torch.sqrt((0.04 - 0.49 * k**2).to(torch.complex128)) for s in (1, -1)],
    ),
    "light": (lambda: Maxwell(RING, 2.0, 3.0), lambda k: [1j * k / math.sqrt(6), -1j * k / math.sqrt(6)]),
    "shallow water": (lambda: ShallowWater(RING, 0.5, 3.0), lambda k: [1j * k * math.sqrt(1.5), -1j * k * math.sqrt(1.5)]),
    "Schroedinger": (lambda: Schroedinger(RING), lambda k: [0.5j * k**2, -0.5j * k**2]),
}


@pytest.mark.parametrize("name", FREQUENCIES)
def test_the_dispersion_relation_is_the_known_one(name: str) -> None:
    make, known = FREQUENCIES[name]
    system, wanted = make(), torch.stack([w.to(torch.complex128) for w in known(K)], -1)
    found = torch.linalg.eigvals(system.exact_symbol(K))
    assert (found[..., None] - wanted[..., None, :]).abs().amin(-1).max() < 1e-7
    u = torch.stack([torch.cos(X), 0.5 + torch.sin(3 * X)])
    u = torch.complex(*u) if system.packed else u
    both = system.exact(torch.tensor([0.4, 1.1], dtype=torch.float64), u)
    torch.testing.assert_close(both[1], system.exact(0.7, both[0]), rtol=0, atol=1e-12)
    trace = torch.linalg.eigvals(system.matrix())  # of the scheme: as its symbol says
    modes = torch.linalg.eigvals(system.symbol(RING.modes(ZERO))).flatten()
    assert (trace[:, None] - torch.cat([modes, modes.conj()])).abs().amin(1).max() < 1e-6 * trace.abs().max()


def test_plane_waves_and_solitons_move_as_they_should() -> None:
    psi = torch.exp(2j * X)
    torch.testing.assert_close(Schroedinger(RING).exact(0.7, psi), psi * np.exp(-1.4j), rtol=0, atol=1e-12)
    wave = torch.cos(2 * X)
    found = Maxwell(RING, 2.0, 3.0).exact(0.7, torch.stack([wave, wave * math.sqrt(2 / 3)]))
    torch.testing.assert_close(found[0], torch.cos(2 * (X - 0.7 / math.sqrt(6))), rtol=0, atol=1e-12)
    long = Grid1D(192, 40.0)
    x = points(long)
    soliton = lambda t, a=1.5, c=0.5: a / torch.cosh(a * (x - 15 - c * t)) * torch.exp(1j * (c * x + (a**2 - c**2) * t / 2))
    end = odeint(Schroedinger(long, 0.0, -1.0), soliton(0.0), [0.0, 3.0], method="etdrk4", steps=150, adjoint="direct")[-1]
    assert (end - soliton(3.0)).abs().max() < 2e-3
    assert (soliton(3.0) - soliton(0.0)).abs().max() > 1


def test_what_is_conserved_stays() -> None:
    """Between mirrors the differences of E and H are each other's transpose; midpoint keeps what is quadratic."""
    light, u = Maxwell(FIXED, 2.0, 0.5, magnetic=FREE), start(ShallowWater(RING))
    energy = lambda u: (2 * u[..., 0, :] ** 2 + 0.5 * u[..., 1, :] ** 2).sum(-1)
    path = light.flow(u, [0.0, 1.0, 7.0])
    assert path is not None
    torch.testing.assert_close(energy(path), energy(path[:1]).expand(3), rtol=1e-10, atol=0)
    bent = Maxwell(FIXED, lambda t, x: 2 + torch.sin(x), 0.5, magnetic=FREE)
    weight = 2 + torch.sin(points(FIXED))
    energy = lambda u: (weight * u[..., 0, :] ** 2 + 0.5 * u[..., 1, :] ** 2).sum(-1)
    path = odeint(bent, u, [0.0, 0.5, 1.0], method="implicit_midpoint", steps=5, adjoint="direct")
    torch.testing.assert_close(energy(path), energy(path[:1]).expand(3), rtol=1e-8, atol=0)
    for grid in (RING, FIXED):
        psi = torch.complex(*u) * torch.sin(points(grid) / 2)
        path = odeint(Schroedinger(grid, lambda t, x: x**2), psi, [0.0, 1.0], method="implicit_midpoint", steps=10, adjoint="direct")
        assert path[-1].abs().square().sum() == pytest.approx(psi.abs().square().sum().item(), rel=1e-9)


def test_a_driven_wave_swings_as_it_should_by_leapfrog_too() -> None:
    """u'' = u_xx + sin(3 x) cos(2 t) from rest: sin(3 x) (cos 2t - cos 3t) / 5."""
    grid = Grid1D(64, L)
    x = points(grid)
    force = Source(grid, lambda t, x, u: torch.sin(3 * x) * torch.as_tensor(2 * t, dtype=torch.float64).cos())
    wanted = torch.sin(3 * x) * (math.cos(4) - math.cos(6)) / 5
    for driven in (Wave(grid, 1.0, "spectral") + force, force + Wave(grid, 1.0, "spectral"), Wave(grid, 1.0, "spectral") - (-1 * force)):
        assert isinstance(driven, SecondOrder)
        still = (torch.zeros_like(x), torch.zeros_like(x))
        u, _ = odeint(driven, still, [0.0, 2.0], method="leapfrog", steps=200, adjoint="direct")
        assert (u[-1] - wanted).abs().max() < 4e-4
        assert driven(ZERO, (still[0], still[1]))[0] is still[1]
        assert (odeint(driven, torch.stack(still), [0.0, 2.0], method="etdrk4", steps=40)[-1, 0] - wanted).abs().max() < 1e-6
    assert driven.max_stable_step("leapfrog") == pytest.approx(Wave(grid, 1.0, "spectral").max_stable_step("leapfrog"), rel=1e-6)


def test_a_wave_as_a_system_is_the_wave() -> None:
    kinds = {
        "ring": (RING, 0.7),
        "fixed": (Grid1D(N, L, Dirichlet(0.2, lambda t: t)), 0.7),
        "absorbing": (Grid1D(N, L, (Value(0.1), Absorbing())), -0.7),
        "varying": (Grid1D(N, L, (Absorbing(), Absorbing())), lambda t, x: 1 + 0.2 * torch.cos(x)),
        "learned": (RING, nn.Parameter(ZERO + 0.7)),
    }
    for name, (grid, speed) in kinds.items():
        wave = Wave(grid, speed)
        u, v = start(ShallowWater(RING))
        t = ZERO + 0.3
        for found, wanted in zip(wave.system()(t, (u, v)), wave(t, (u, v)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, msg=name)
        for factor in (2, -0.5):
            for found, wanted in zip((factor * wave)(t, (u, v)), wave(t, (u, v)), strict=True):
                torch.testing.assert_close(found, factor * wanted, rtol=0, atol=1e-12)
        if name != "fixed":
            for method in ("rk4",) if grid.boundary.absorbs else ("rk4", "leapfrog"):
                limits = wave.system().max_stable_step(method), wave.max_stable_step(method)
                assert limits[0] == pytest.approx(limits[1], rel=0.02), (name, method, limits)


@pytest.mark.parametrize("name", SYSTEMS)
def test_sums_differences_and_multiples(name: str) -> None:
    a = SYSTEMS[name].make()
    u, t = start(a), ZERO + 0.3
    for found, factor in ((2 * a, 2.0), (a + a, 2.0), (a * 0.5 + a, 1.5), (sum([a, a, a]), 3.0)):
        assert isinstance(found, System)
        torch.testing.assert_close(found(t, u), factor * a(t, u), rtol=1e-12, atol=1e-12)
        linear, *rest = found.split()
        torch.testing.assert_close(linear(u) + sum(part(t, u) for part in rest), factor * a(t, u), rtol=1e-10, atol=1e-10)
    if not any(isinstance(term, Diffusion) for equation in a.equations for term in equation.terms()):  # pyright: ignore
        torch.testing.assert_close((3 * a - a)(t, u), 2 * a(t, u), rtol=1e-12, atol=1e-12)
    if not a.reactions and "driven" not in name:
        flat = as_fields(a(t, u) - a(t, 0 * u)).flatten()
        torch.testing.assert_close(a.matrix() @ as_fields(u).flatten(), flat, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a.matrix(as_fields(u)), 0.5 * (2 * a).matrix(as_fields(u)), rtol=1e-10, atol=1e-10)


def test_batches_of_states_and_of_coefficients() -> None:
    speeds = torch.tensor([[0.5], [0.9], [1.4]], dtype=torch.float64)
    u = start(ShallowWater(RING)).expand(3, 2, N)
    for grid in (RING, FIXED):
        together = KleinGordon(grid, speeds, 1.0)
        for method in ("rk4", "etdrk4", "imex3", "implicit_midpoint"):
            found = odeint(together, u, [0.0, 0.5], method=method, steps=5, adjoint="direct")[-1]
            for i, c in enumerate(speeds.flatten().tolist()):
                alone = odeint(KleinGordon(grid, c, 1.0), u[i], [0.0, 0.5], method=method, steps=5, adjoint="direct")[-1]
                torch.testing.assert_close(found[i], alone, rtol=0, atol=1e-8)
        closed = together.flow(u, [0.5])
        assert closed is not None and closed.shape == (1, 3, 2, N)
        single = odeint(KleinGordon(grid, 0.9, 1.0), u[1].float(), [0.0, 0.5], method="etdrk4", steps=4)[-1]
        assert single.dtype == torch.float32 and (single - closed[0, 1]).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["implicit_midpoint", "backward_euler"])
@pytest.mark.parametrize("grid", [RING, FIXED])
def test_implicit_methods_take_both_kinds_of_state(grid: Grid1D, method: str) -> None:
    system = SecondOrder(Diffusion(grid, lambda t, x: 1 + 0.3 * torch.sin(x)) + Reaction(grid, -1.0))
    for u in (start(system), start(system).expand(2, 2, N)):  # a batch of as many fields too
        whole = odeint(system, u, [0.0, 0.4], method=method, steps=2, adjoint="direct")[-1]
        pair = odeint(system, tuple(u.unbind(-2)), [0.0, 0.4], method=method, steps=2, adjoint="direct")
        torch.testing.assert_close(torch.stack([field[-1] for field in pair], -2), whole, rtol=0, atol=1e-8)


def test_a_wall_that_moves_keeps_the_order_of_imex3() -> None:
    grid = Grid1D(N, L, Dirichlet(lambda t: torch.as_tensor(3 * t).sin(), 0.0))
    other = Reaction(FREE, 0.3)
    system = System({"u": {"u": Diffusion(grid, 1.0), "v": other}, "v": {"u": Reaction(grid, -0.3), "v": Diffusion(FREE, 0.5)}})
    u = torch.stack([0 * X, torch.cos(points(FREE))])
    exact = odeint(system, u, [0.0, 1.0], method="rk4", steps=200, adjoint="direct")[-1]
    error = lambda steps: (odeint(system, u, [0.0, 1.0], method="imex3", steps=steps, adjoint="direct")[-1] - exact).abs().max().item()
    assert observed_order(error, (40, 60, 80)) > 2.5


PARAMETERS: dict[str, Callable[..., System]] = {
    "Gray-Scott": lambda p: GrayScott(RING, p, 0.06, (p, 0.1)),
    "FitzHugh-Nagumo": lambda p: FitzHughNagumo(FREE, p, p, p, p, p),
    "Klein-Gordon": lambda p: KleinGordon(RING, p, p),
    "a damped wave": lambda p: DampedWave(FIXED, p, p),
    "light": lambda p: Maxwell(RING, p, p),
    "shallow water": lambda p: ShallowWater(RING, p, p),
    "Schroedinger": lambda p: Schroedinger(RING, p, p),
}


@pytest.mark.parametrize("method", ["etdrk4", *(pytest.param(m, marks=pytest.mark.slow) for m in ("rk4", "imex2", "implicit_midpoint"))])
@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_in_coefficients_and_state(name: str, method: str) -> None:
    """Against central differences; states to the bit, and parameters, those of the stored graph."""
    make = PARAMETERS[name]
    p = nn.Parameter(ZERO + 0.4)
    system = make(p)
    assert [q is p for q in system.parameters()].count(True) == 1
    u = start(system)
    weights = torch.linspace(0, 1, N, dtype=torch.float64)

    def loss(u: Tensor, adjoint: str = "checkpoint") -> Tensor:
        end = odeint(system, u, [0.0, 0.2], method=method, steps=4, adjoint=adjoint)[-1]
        return (weights * as_fields(end) ** 2).sum()

    found = []
    for adjoint in ("checkpoint", "direct"):
        leaf = u.clone().requires_grad_()
        found.append(torch.autograd.grad(loss(leaf, adjoint), (leaf, p)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        measured = []
        for way in (1e-5, -1e-5):
            p += way
            measured.append(loss(u).item())
            p -= way
    assert found[0][1].item() == pytest.approx((measured[0] - measured[1]) / 2e-5, rel=1e-5, abs=1e-7)


LIMITED = {
    "Klein-Gordon": lambda: KleinGordon(RING, 0.7, 1.5),
    "Klein-Gordon, walls": lambda: KleinGordon(FIXED, 0.7, 1.5, "central4"),
    "a damped wave": lambda: DampedWave(RING, 0.7, 0.4),
    "light": lambda: Maxwell(RING, 2.0, 3.0),
    "light between mirrors": lambda: Maxwell(FIXED, 2.0, 0.5, magnetic=FREE),
    "shallow water": lambda: ShallowWater(RING, 0.5, 3.0, "central4"),
    "Schroedinger": lambda: Schroedinger(RING),
    "ends of their own": exchange,
}


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("method", ["rk4", "ssprk3"])
def test_the_largest_stable_step_is_where_the_matrix_says(name: str, method: str) -> None:
    system = LIMITED[name]()
    h, R = system.max_stable_step(method), stability_function(method)
    values = torch.linalg.eigvals(system.matrix())
    values = torch.complex(values.real.clamp(max=0), values.imag)  # what the equation lets grow limits no step
    grows = lambda h: R(h * values).abs().max().item() - 1
    assert grows(0.97 * h) < 1e-5 and grows(1.1 * h) > 1e-3
    assert system.max_stable_step("etdrk4") == math.inf


def test_steps_where_no_field_feels_another_or_the_scheme_grows() -> None:
    alone = GrayScott(RING, 0.04, 0.06, (0.2, 0.1))
    assert alone.max_stable_step("rk4") == Diffusion(RING, 0.2).max_stable_step("rk4")
    turning = Advection(RING, lambda t, x: torch.sin(5 * x) + 0.2, "central2")
    grows = System({"u": turning, "v": {"u": Reaction(RING, 0.1), "v": Reaction(RING, -0.1)}})
    assert torch.linalg.eigvals(grows.matrix()).real.max() > 0.1 and grows.max_stable_step("rk4") == 0
    speed = lambda t, x: 1 + 0.9 * torch.sin(x)
    wide = System({"u": {"v": DerivativeTerm(RING, 1, speed, "central2")}, "v": {"u": DerivativeTerm(RING, 1, 1.0, "central2")}})
    step = wide.max_stable_step("rk4")
    assert step == pytest.approx(2.828 * H / math.sqrt(1.9), rel=0.05)


@pytest.mark.parametrize("name", ["Klein-Gordon, walls", "Gray-Scott", "Schroedinger"])
def test_tools_for_equations_take_systems(name: str) -> None:
    system = SYSTEMS[name].make()
    u = start(system)
    end = lambda u, adjoint="direct": odeint(system, u, [0.0, 0.2], method="etdrk4", steps=4, adjoint=adjoint)[-1]
    assert "etdrk4" in str(plan(system, u, t=[0, 1], steps=10, method="etdrk4"))
    rest = diagnose.stability(system, u, [0.0, 0.1], method="etdrk4", steps=2)
    assert rest.spectra[0].eigenvalues.abs().max() < 3  # the rest alone, differences reach 2 / H^2 = 13
    both = torch.func.vmap(end)(torch.stack([u, 2 * u]))
    torch.testing.assert_close(both[0], end(u), rtol=0, atol=1e-14)
    assert torch.equal(copy.deepcopy(system)(ZERO, u), system(ZERO, u)) and "fields=" in repr(system)
    with torch.inference_mode():
        inside = end(u)
    assert torch.equal(inside, end(u)) and torch.equal(end(u, "checkpoint"), end(u))


def test_weights_follow_two_fields_and_no_more() -> None:
    grid = Grid1D(4)
    dynamics = FieldDynamics(KleinGordon(grid, 0.3, 1.0), "o i -> o i")
    theta = {"w": torch.randn(3, 4, dtype=torch.float64)}
    dynamics.bind(theta)
    state = dynamics.start(theta)
    ahead = odeint(dynamics, state, [0.0, 0.5], method="leapfrog", steps=200)[0]["w"][-1]
    closed = dynamics.flow(theta, [0.5])
    assert closed is not None
    torch.testing.assert_close(closed["w"][0], ahead, rtol=0, atol=1e-4)
    three = System({name: Diffusion(grid, 0.1) for name in "uvw"})
    with pytest.raises(ValueError, match="3 fields"):
        FieldDynamics(three, "o i -> o i")


PAIR = torch.zeros(2, N, dtype=torch.float64)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no equation": (lambda: System({"u": None}), "at least one equation"),
    "an unknown field": (lambda: System({"u": {"w": Diffusion(RING, 1.0)}}), "'w'.*none of the fields u"),
    "no equation but a number": (lambda: System({"u": {"u": 1.0}}), "u by u.*got float"),  # pyright: ignore[reportArgumentType]
    "other points": (lambda: System({"u": Diffusion(RING, 1.0), "v": Diffusion(Grid1D(8, L), 1.0)}), "share their points"),
    "other ends": (lambda: System({"u": Diffusion(FIXED, 1.0), "v": {"u": Reaction(FREE, 1.0)}}), "u is read on grids with different ends"),
    "a number as reaction": (lambda: System({"u": Diffusion(RING, 1.0)}, 2.0), "reaction=2.0"),  # pyright: ignore[reportArgumentType]
    "one reaction of two": (lambda: System({"u": Diffusion(RING, 1.0), "v": None}, lambda t, x, u, v: u)(ZERO, PAIR), "tuple of 2.*Tensor"),
    "three fields": (lambda: GrayScott(RING)(ZERO, torch.zeros(3, N)), r"\(\.\.\., 2, 16\).*\(3, 16\)"),
    "one field": (lambda: GrayScott(RING)(ZERO, (PAIR[0],)), "got 1 fields"),
    "no field": (lambda: GrayScott(RING)(ZERO, 1.0), "got float"),
    "a real wave function": (lambda: Schroedinger(RING)(ZERO, X), "complex field"),
    "complex fields": (lambda: GrayScott(RING)(ZERO, PAIR + 1j), "fields are real"),
    "other names": (lambda: GrayScott(RING) + Maxwell(RING), r"\('u', 'v'\) and \('E', 'H'\)"),
    "a field without a name": (lambda: GrayScott(RING) + Diffusion(RING, 1.0), "unsupported operand"),
    "other states": (lambda: System({"real": Diffusion(RING, 1.0), "imaginary": None}) + Schroedinger(RING), "other forms"),
    "a tensor": (lambda: GrayScott(RING) * ZERO, "multiplied by numbers"),
    "negative diffusion": (lambda: -GrayScott(RING), "grows without bound"),
    "the symbol of a reaction": (lambda: GrayScott(RING).symbol(K), "linearise it"),
    "the matrix of a reaction": (lambda: GrayScott(RING).matrix(), r"matrix\(u=...\)"),
    "a solution between walls": (lambda: KleinGordon(FIXED, 1.0, 1.0).exact(1.0, PAIR), "KleinGordon.*between walls"),
    "waves of many speeds": (lambda: KleinGordon(Grid1D(N, L, (Value(), Absorbing())), 1.0, 1.0), "Absorbing.*KleinGordon"),
    "a frictionless one with drag": (
        lambda: odeint(DampedWave(RING, 1.0, 0.1), (PAIR[0], PAIR[1]), [0.0, 1.0], method="leapfrog", steps=100),
        "leapfrog",
    ),
    "leapfrog of a tensor": (lambda: odeint(KleinGordon(RING, 1.0, 0.1), PAIR, [0.0, 1.0], method="leapfrog", steps=100), "leapfrog"),
    "etdrk4 of a pair": (lambda: odeint(KleinGordon(RING, 1.0, 0.1), (X, X), [0.0, 1.0], method="etdrk4", steps=100), "single tensor"),
    "flows out": (lambda: Advection(FIXED, 1.0)(ZERO, X), "flows out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
