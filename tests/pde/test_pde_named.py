"""Derivatives of any order against plane waves, and every named equation against a solution that is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import (
    AllenCahn,
    CahnHilliard,
    DerivativeTerm,
    Diffusion,
    Dirichlet,
    Dispersion,
    FisherKPP,
    Grid1D,
    Hyperdiffusion,
    KortewegDeVries,
    KuramotoSivashinsky,
    Neumann,
    Nonlinearity,
    Reaction,
    SwiftHohenberg,
    derivative,
)
from anodev2.testing import observed_order

ZERO = torch.zeros((), dtype=torch.float64)


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


@pytest.mark.parametrize("scheme", ["central2", "central4", "central6", "spectral"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_every_order_converge_and_have_their_symbol(order: int, scheme: str) -> None:
    def error(n: int) -> float:
        grid = Grid1D(n, 2 * math.pi)
        x = points(grid)
        exact = [torch.sin, torch.cos, lambda x: -torch.sin(x), lambda x: -torch.cos(x)][order % 4](3 * x) * 3**order
        return (derivative(grid, order, scheme)(torch.sin(3 * x), grid) - exact).abs().max().item()

    if scheme == "spectral":
        assert error(32) < 1e-9 and error(33) < 1e-9
    else:
        assert observed_order(error, (32, 48, 64)) == pytest.approx(int(scheme[-1]), abs=0.15)
    for n in (12, 13):
        grid = Grid1D(n, 2.0)
        term = DerivativeTerm(grid, order, 0.7, scheme)
        modes = term.symbol(grid.modes(ZERO))
        both = torch.cat([modes, modes[1 : (n + 1) // 2].conj()])
        found = torch.linalg.eigvals(term.matrix())
        far = (found[:, None] - both[None]).abs().amin(1).max() / both.abs().max()
        assert far < 1e-10, far


def test_terms_move_and_damp_modes_as_they_should() -> None:
    grid = Grid1D(32, 2 * math.pi)
    x = points(grid)
    moved = Dispersion(grid, 0.1).exact(2.0, torch.cos(3 * x))
    torch.testing.assert_close(moved, torch.cos(3 * x + 0.1 * 27 * 2), rtol=0, atol=1e-12)  # speed -beta k^2
    damped = Hyperdiffusion(grid, 0.01).exact(2.0, torch.cos(3 * x))
    torch.testing.assert_close(damped, math.exp(-0.01 * 81 * 2) * torch.cos(3 * x), rtol=0, atol=1e-12)
    few = Grid1D(10, 2 * math.pi)
    grown = DerivativeTerm(few, 2, -0.2).exact(0.5, torch.cos(2 * points(few)))
    torch.testing.assert_close(grown, math.exp(0.2 * 4 * 0.5) * torch.cos(2 * points(few)), rtol=0, atol=1e-12)
    nu = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"nu=-0\.3"):
        Hyperdiffusion(grid, nu)


@pytest.mark.parametrize(("degree", "order"), list(itertools.product((2, 3), (0, 1, 2))))
@pytest.mark.parametrize("n", [24, 25])
def test_a_nonlinearity_has_no_aliasing(n: int, degree: int, order: int) -> None:
    """The modes that it keeps are those of the product on a grid four times as fine."""
    grid, fine = Grid1D(n, 2 * math.pi), Grid1D(4 * n, 2 * math.pi)
    kept = [m for m in range(n // 2 + 1) if m * (degree + 1) < n]
    spectrum = torch.zeros(n // 2 + 1, dtype=torch.complex128)
    spectrum[kept] = torch.randn(len(kept), dtype=torch.complex128)
    spectrum[0] = spectrum[0].real.clone()
    padded = torch.cat([spectrum, torch.zeros(2 * n - n // 2, dtype=torch.complex128)])
    u, wide = torch.fft.irfft(spectrum, n=n), torch.fft.irfft(4 * padded, n=4 * n)
    product = torch.fft.rfft(derivative(fine, order, "spectral")(wide**degree, fine) if order else wide**degree)[kept] / 4
    found = torch.fft.rfft(Nonlinearity(grid, lambda u: u**degree, degree, order)(ZERO, u))
    torch.testing.assert_close(found[kept], product, rtol=0, atol=1e-9 * product.abs().max().item())
    others = [m for m in range(n // 2 + 1) if m not in kept]
    assert found[others].abs().max() < 1e-9


@dataclass(frozen=True)
class Row:
    """An equation, the time and the steps of a method, the field at the start and at the end, and by how much it may be missed."""

    make: Callable[[], Any]
    start: Callable[[Tensor], Tensor]
    end: Callable[[Tensor, float], Tensor]
    time: float
    steps: int
    method: str
    tolerance: float


def around(x: Tensor, length: float) -> Tensor:
    return (x + length / 2).remainder(length) - length / 2


def soliton(x: Tensor, t: float, c: float = 4.0) -> Tensor:
    return c / 2 / torch.cosh(math.sqrt(c) / 2 * around(x - 10 - c * t, 40)) ** 2


def invasion(x: Tensor, t: float, D: float = 0.5) -> Tensor:
    return torch.sigmoid(-(x - 10 - 3 * math.sqrt(D / 2) * t) / math.sqrt(2 * D))


def spread(x: Tensor, t: float, D: float = 0.5, r: float = 2.0) -> Tensor:
    return torch.sigmoid(-(x - 8 - 5 * math.sqrt(r * D / 6) * t) / math.sqrt(6 * D / r)) ** 2


def two_fronts(x: Tensor, t: float, width: float = math.sqrt(2 * 0.2)) -> Tensor:
    return torch.tanh((x - 5) / width) - torch.tanh((x - 15) / width) - 1


def by_scipy(x: Tensor, t: float) -> Tensor:
    """Kuramoto and Sivashinsky's equation in its Fourier modes, written out with numpy, the square on a grid twice as fine."""
    n, length = len(x), 32.0
    k = 2 * np.pi * np.arange(n // 2 + 1) / length
    kept = np.arange(n // 2 + 1) * 3 < n

    def slope(_: float, modes: np.ndarray) -> np.ndarray:
        v = modes[: n // 2 + 1] + 1j * modes[n // 2 + 1 :]
        square = np.fft.rfft(np.fft.irfft(np.concatenate([2 * v * kept, np.zeros(n // 2)]), 2 * n) ** 2)[: n // 2 + 1] / 2
        du = (k**2 - k**4) * v - 0.5j * k * square * kept
        return np.concatenate([du.real, du.imag])

    start = np.fft.rfft(flame(x).numpy())
    found = solve_ivp(slope, (0, t), np.concatenate([start.real, start.imag]), method="LSODA", rtol=1e-9, atol=1e-9).y[:, -1]
    return torch.from_numpy(np.fft.irfft(found[: n // 2 + 1] + 1j * found[n // 2 + 1 :], n))


def flame(x: Tensor) -> Tensor:
    return torch.cos(2 * math.pi * x / 32) * (1 + torch.sin(2 * math.pi * x / 32))


ROWS = {
    "KdV, a soliton": Row(lambda: KortewegDeVries(Grid1D(192, 40.0)), lambda x: soliton(x, 0), soliton, 1.0, 400, "etdrk4", 1e-4),
    "Kuramoto-Sivashinsky": Row(
        lambda: KuramotoSivashinsky(Grid1D(48, 32.0)), flame, lambda x, t: by_scipy(x, t), 10.0, 200, "etdrk4", 1e-5
    ),
    "Cahn-Hilliard, two phases": Row(
        lambda: CahnHilliard(Grid1D(160, 20.0), 0.2), lambda x: two_fronts(x, 0), two_fronts, 1.0, 200, "etdrk4", 1e-3
    ),
    "Swift-Hohenberg, rolls": Row(
        lambda: SwiftHohenberg(Grid1D(32, 4 * math.pi), 0.03),
        lambda x: 0.15 * torch.cos(x),
        lambda x, t: 2 * math.sqrt(0.03 / 3) * torch.cos(x),
        200.0,
        400,
        "etdrk4",
        2e-3,
    ),
    "Allen-Cahn, an invasion": Row(
        lambda: AllenCahn(Grid1D(200, 30.0, Dirichlet(1.0, 0.0)), 0.5), lambda x: invasion(x, 0), invasion, 4.0, 300, "rk4", 2e-2
    ),
    "Allen-Cahn, spectral": Row(
        lambda: AllenCahn(Grid1D(160, 20.0), 0.2, "spectral"), lambda x: two_fronts(x, 0), two_fronts, 2.0, 100, "etdrk4", 1e-3
    ),
    "Fisher-KPP, a front": Row(
        lambda: FisherKPP(Grid1D(200, 30.0, Neumann()), 0.5, 2.0), lambda x: spread(x, 0), spread, 3.0, 300, "rk4", 2e-2
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_named_equation_has_its_solution(name: str) -> None:
    row = ROWS[name]
    equation = row.make()
    x = points(equation.grid)
    with torch.no_grad():
        u = odeint(equation, row.start(x), [0.0, row.time], method=row.method, steps=row.steps, adjoint="direct")[-1]
    wanted = row.end(x, row.time)
    assert (u - wanted).abs().max() < row.tolerance * wanted.abs().max()
    assert (row.start(x) - wanted).abs().max() > 10 * row.tolerance or "phases" in name or "spectral" in name


@pytest.mark.parametrize("name", ROWS)
def test_gradients_of_named_equations(name: str) -> None:
    """In the field, against central differences, by checkpoints."""
    equation = ROWS[name].make()
    u = 0.3 * torch.sin(2 * math.pi * points(equation.grid) / equation.grid.length)

    def loss(u: Tensor) -> Tensor:
        end = odeint(equation, u, [0.0, 0.02], method=ROWS[name].method, steps=4)[-1]
        return (end**2 * torch.linspace(0, 1, len(u), dtype=torch.float64)).sum()

    along = torch.cos(4 * math.pi * points(equation.grid) / equation.grid.length)
    leaf = u.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(leaf), leaf)
    measured = (loss(u + 1e-5 * along) - loss(u - 1e-5 * along)).item() / 2e-5
    assert (g @ along).item() == pytest.approx(measured, rel=1e-6, abs=1e-7)


def test_sums_stay_and_steps_are_limited_where_modes_are_damped() -> None:
    u = torch.rand(2, 32, dtype=torch.float64)
    for equation in (KortewegDeVries(Grid1D(32, 8.0)), KuramotoSivashinsky(Grid1D(32, 8.0)), CahnHilliard(Grid1D(32, 8.0), 0.1)):
        du = equation(ZERO, u)
        assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-12
    flames = KuramotoSivashinsky(Grid1D(64, 32.0))
    k = 2 * math.pi * 32 / 32.0
    assert flames.max_stable_step("rk4") == pytest.approx(2.785 / (k**4 - k**2), rel=1e-2) and flames.max_stable_step("etdrk4") == math.inf


GRID = Grid1D(16)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "walls": (lambda: Dispersion(Grid1D(16, 1.0, Dirichlet()), 1.0), "Dispersion.*order 3.*periodic"),
    "walls of Korteweg and de Vries": (lambda: KortewegDeVries(Grid1D(16, 1.0, Neumann())), "periodic"),
    "a fifth derivative": (lambda: DerivativeTerm(GRID, 5, 1.0), "order=5"),
    "upwind": (lambda: DerivativeTerm(GRID, 3, 1.0, "upwind3"), "scheme='upwind3'"),
    "hyperdiffusion that grows": (lambda: Hyperdiffusion(GRID, -1.0), "nu=-1"),
    "hyperdiffusion that varies": (lambda: Hyperdiffusion(GRID, torch.ones(16)), "nu of Hyperdiffusion"),
    "a gamma that grows": (lambda: CahnHilliard(GRID, -1.0), "nu=-1"),
    "not finite": (lambda: Dispersion(GRID, math.nan), "beta=nan"),
    "a nonlinearity between walls": (lambda: Nonlinearity(Grid1D(16, 1.0, Dirichlet()), lambda u: u**2, 2), "periodic.*Source"),
    "a linear one": (lambda: Nonlinearity(GRID, lambda u: u, 1), "degree=1"),
    "no function": (lambda: Nonlinearity(GRID, 2.0, 2), "function=2.0"),  # pyright: ignore[reportArgumentType]
    "the symbol of a cube": (lambda: AllenCahn(GRID, 0.1, "spectral").symbol(torch.ones(1)), "Nonlinearity.*matrix"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_learned_nu_below_zero_counts_as_zero_and_reaches_the_named_equation() -> None:
    gamma = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    equation = CahnHilliard(Grid1D(16, 8.0), gamma)
    assert any(p is gamma for p in equation.parameters())
    u = torch.rand(16, dtype=torch.float64)
    with torch.no_grad():
        gamma.fill_(-0.5)
    torch.testing.assert_close(equation(ZERO, u), CahnHilliard(Grid1D(16, 8.0), 0.0)(ZERO, u))
    whole = Diffusion(Grid1D(16, 8.0), 0.2) + Reaction(Grid1D(16, 8.0), 0.1) + Dispersion(Grid1D(16, 8.0), 0.3)
    flow = whole.flow(u, [0.7])
    stepped = odeint(whole, u, [0.0, 0.7], method="etdrk4", steps=3)[-1]
    assert flow is not None
    torch.testing.assert_close(flow[0], stepped, rtol=0, atol=1e-12)
