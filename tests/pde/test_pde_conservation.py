"""Conservation laws: shocks at the speed of their jump, no new extrema, order where smooth, steps from the fastest wave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import odeint
from anodev2.pde import Burgers, Closed, ConservationLaw, Diffusion, Free, Grid1D, Value
from anodev2.testing import observed_order
from sampled import rows

ZERO = torch.zeros((), dtype=torch.float64)
Flux = Callable[[Tensor], Tensor]


def points(grid: Grid1D) -> Tensor:
    return grid.points(torch.empty(0, dtype=torch.float64))


def buckley_leverett(u: Tensor) -> Tensor:
    return u**2 / (u**2 + 0.5 * (1 - u) ** 2)


def its_speed(u: Tensor) -> Tensor:
    return u * (1 - u) / (u**2 + 0.5 * (1 - u) ** 2) ** 2


LAWS: dict[str, tuple[Flux, Flux, float, float]] = {  # the flux, its slope, and what stands left and right of a shock
    "Burgers": (lambda u: u**2 / 2, lambda u: u, 2.0, 0.5),
    "traffic, a jam that grows": (lambda u: u * (1 - u), lambda u: 1 - 2 * u, 0.3, 1.0),
    "traffic, a jam that moves on": (lambda u: u * (1 - u), lambda u: 1 - 2 * u, 0.1, 0.6),
    "a cube": (lambda u: u**3, lambda u: 3 * u**2, 1.0, 0.2),
    "Buckley-Leverett": (buckley_leverett, its_speed, math.sqrt(1 / 3), 0.0),  # where the tangent from 0 meets the flux
}


SHOCKS = [
    ("Burgers", "weno5", "as it is"),
    ("traffic, a jam that grows", "upwind1", "as it is"),
    ("traffic, a jam that moves on", "weno5", "mirrored"),
    ("a cube", "upwind1", "mirrored"),
    ("Buckley-Leverett", "weno5", "as it is"),
]


@pytest.mark.parametrize(("name", "scheme", "way"), rows(LAWS, ["weno5", "upwind1"], ["as it is", "mirrored"], quick=SHOCKS))
def test_a_shock_has_the_speed_of_its_jump_and_makes_no_extrema(name: str, scheme: str, way: str) -> None:
    flux, slope, left, right = LAWS[name]
    turned = way == "mirrored"
    f = (lambda u: -flux(u)) if turned else flux
    n, start, end = 100, 0.4, 0.25
    speed = ((flux(ZERO + left) - flux(ZERO + right)) / (left - right)).item()
    first, last = Value(left), Value(right) if name.startswith("traffic") else Free()
    grid = Grid1D(n, 1.0, (last, first) if turned else (first, last))
    x = 1 - points(grid) if turned else points(grid)
    u0 = torch.where(x < start, left, right).double()
    law = ConservationLaw(grid, f, slope, scheme)
    times = law.steps(u0, [0.0, end])
    with torch.no_grad():
        u = odeint(law, u0, [0.0, end], method="ssprk3", grid=times, adjoint="direct")[-1]
    size = abs(left - right)
    assert u.max() < max(left, right) + 3e-4 * size and u.min() > min(left, right) - 3e-4 * size
    front = ((u - right) / (left - right)).sum().item() / n  # where the jump would be, with as much under it
    assert front == pytest.approx(start + speed * end, abs=2e-3 if scheme == "weno5" else 1e-2)
    assert ((u - torch.where(x < start + speed * end, left, right)).abs() > 0.05 * size).sum() < (6 if scheme == "weno5" else 24)


def test_water_that_drives_oil_out_has_a_fan_behind_its_shock() -> None:
    """Buckley and Leverett's problem from 1 to 0: f'(u) = x / t behind a shock at u = sqrt(1/3), by the construction of Welge."""
    grid = Grid1D(120, 1.0, (Value(1.0), Free()))
    x, end = points(grid), 0.4
    law = ConservationLaw(grid, buckley_leverett, its_speed)
    u0 = torch.where(x < 0.1, 1.0, 0.0).double()
    with torch.no_grad():
        u = odeint(law, u0, [0.0, end], method="ssprk3", grid=law.steps(u0, [0.0, end]), adjoint="direct")[-1]
    values = torch.linspace(1, math.sqrt(1 / 3), 4001, dtype=torch.float64)
    reached = 0.1 + end * its_speed(values)
    exact = values[torch.searchsorted(reached, x).clamp(max=4000)] * (x < reached[-1])
    assert (u - exact).abs().mean() < 6e-3 and u.max() < 1 + 1e-3 and u.min() > -1e-3


@pytest.mark.parametrize("scheme", ["upwind1", "upwind3", "upwind5", "weno5"])
def test_smooth_fields_converge_with_the_order_of_the_scheme(scheme: str) -> None:
    """f = u^3 on a circle before it breaks: u = u0(x - 3 u^2 t), by iteration."""

    def error(n: int) -> float:
        grid = Grid1D(n, 2 * math.pi)
        x = points(grid)
        profile = lambda x: 0.6 + 0.2 * torch.sin(x)
        exact = profile(x)
        for _ in range(200):
            exact = profile(x - 3 * exact**2 * 0.4)
        law = ConservationLaw(grid, lambda u: u**3, lambda u: 3 * u**2, scheme)
        with torch.no_grad():
            u = odeint(law, profile(x), [0.0, 0.4], method="rk4", steps=n // 3, adjoint="direct")[-1]
        return (u - exact).abs().mean().item()

    claimed = int(scheme[-1])
    assert observed_order(error, (48, 96, 144)) > (0.85 if claimed == 1 else claimed - 0.7)


def test_sums_stay_and_batches_have_their_own_speed() -> None:
    u = torch.stack([torch.rand(32), 10 * torch.rand(32)]).double()
    for grid in (Grid1D(32, 2.0), Grid1D(32, 2.0, (Closed(), Closed()))):
        law = ConservationLaw(grid, lambda u: u**2 / 2, lambda u: u, "upwind3")
        du = law(ZERO, u)
        assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-13
        torch.testing.assert_close(du[0], law(ZERO, u[0]))
        torch.testing.assert_close(law.fastest(u), u.abs().amax(-1, keepdim=True))
    viscous = ConservationLaw(Grid1D(32), lambda u: u**2 / 2, lambda u: u) + Diffusion(Grid1D(32), 0.1)
    smooth = torch.sin(2 * math.pi * points(viscous.grid))
    torch.testing.assert_close(viscous(ZERO, smooth), Burgers(Grid1D(32), 0.1)(ZERO, smooth), rtol=0, atol=0.1)
    assert ConservationLaw(Grid1D(32), lambda u: u**3, lambda u: 3 * u**2).max_stable_step("ssprk3", smooth) == pytest.approx(
        1.43 / 3 / 32, rel=0.1
    )


def test_a_jump_between_two_values_where_nothing_moves_is_seen() -> None:
    """f' of Buckley and Leverett is 0 at 0 and at 1, the only values of the field; the shock between has the speed 1.37."""
    law = ConservationLaw(Grid1D(50, 1.0, (Value(1.0), Free())), buckley_leverett, its_speed)
    u0 = torch.where(points(law.grid) < 0.5, 1.0, 0.0).double()
    assert law.fastest(u0).item() == pytest.approx(2.0, abs=0.3)
    steps = torch.tensor(law.steps(u0, [0.0, 0.05, 0.1], cfl=0.4)).diff()
    assert steps.max() <= 0.4 / 50 / law.fastest(u0).item() * 1.2 and len(steps) == pytest.approx(0.1 * 50 * 2.0 / 0.4, rel=0.3)
    assert set(odeint(law, u0, [0.0, 0.05, 0.1], method="ssprk3", grid=law.steps(u0, [0.0, 0.05, 0.1])).shape) == {3, 50}


def test_gradients_through_a_shock_are_those_of_the_program() -> None:
    law = ConservationLaw(Grid1D(24, 1.0, (Value(1.0), Free())), lambda u: u**2 / 2, lambda u: u)
    u0 = (torch.where(points(law.grid) < 0.4, 1.0, 0.2) + 0.02 * torch.sin(9 * points(law.grid))).double()
    times = law.steps(u0, [0.0, 0.2])

    def loss(u: Tensor, **adjoint: Any) -> Tensor:
        end = odeint(law, u, [0.0, 0.2], method="ssprk3", grid=times, **adjoint)[-1]
        return (end**2 * torch.linspace(0, 1, 24, dtype=torch.float64)).sum()

    leaf = u0.clone().requires_grad_()
    (g,), (direct,) = (torch.autograd.grad(loss(leaf, **adjoint), leaf) for adjoint in ({}, {"adjoint": "direct"}))
    assert torch.equal(g, direct)
    along = torch.cos(5 * points(law.grid))
    assert (g @ along).item() == pytest.approx((loss(u0 + 1e-6 * along) - loss(u0 - 1e-6 * along)).item() / 2e-6, rel=1e-5)


RING = Grid1D(16)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no function": (lambda: ConservationLaw(RING, 2.0, torch.cos), "flux=2.0"),  # pyright: ignore[reportArgumentType]
    "a number as speed": (lambda: ConservationLaw(RING, torch.sin, 1.0), "max_speed=1.0"),  # pyright: ignore[reportArgumentType]
    "central": (lambda: ConservationLaw(RING, torch.sin, torch.cos, "central4"), "scheme='central4'.*weno5"),
    "cfl": (lambda: ConservationLaw(RING, torch.sin, torch.cos).steps(torch.ones(16), [0.0, 1.0], cfl=0.0), "cfl=0.0"),
    "times": (lambda: ConservationLaw(RING, torch.sin, torch.cos).steps(torch.ones(16), [1.0, 0.0]), "must rise"),
    "a symbol": (lambda: ConservationLaw(RING, torch.sin, torch.cos).symbol(torch.ones(1)), "no symbol"),
    "a number in its place": (lambda: ConservationLaw(RING, torch.sin, torch.cos) + 1.0, "unsupported operand|one field"),  # pyright: ignore
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
