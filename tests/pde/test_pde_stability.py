"""max_stable_step from both sides, for every explicit Runge-Kutta method; waves are in test_pde_energy.py."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import METHODS, FieldDynamics, Tableau, odeint
from anodev2.pde import (
    Advection,
    AdvectionDiffusionReaction,
    Burgers,
    Closed,
    Diffusion,
    Dirichlet,
    Dispersion,
    Grid1D,
    Neumann,
    Plane,
    Reaction,
    Robin,
    Slope,
    System,
    Wave,
)
from problems import RUNGE_KUTTA, points

ZERO = torch.zeros((), dtype=torch.float64)
GRID = Grid1D(16, length=2.0)
STEPS = 2000
NEVER = ["euler", "midpoint", "heun2", "ralston", "ssprk2"]  # |R| > 1 all along the imaginary axis
CENTRAL_ADVECTION = ["central2", "central4", "central6", "spectral"]
UPWIND_ADVECTION = ["upwind1", "upwind3", "upwind5"]
EQUATIONS: dict[str, Callable[[], Any]] = {
    **{f"advection {s}": lambda s=s: Advection(GRID, 0.9, s) for s in (*UPWIND_ADVECTION, *CENTRAL_ADVECTION)},
    **{f"diffusion {s}": lambda s=s: Diffusion(GRID, 0.3, s) for s in ("central2", "central4", "central6", "spectral")},
    "advection and diffusion": lambda: Advection(GRID, -0.9, "upwind3") + Diffusion(GRID, 0.02, "central4"),
    "decay": lambda: AdvectionDiffusionReaction(GRID, reaction=-1.7),
}


def polynomial(method: str) -> list[Fraction]:
    """Coefficients of R(z) = 1 + z b (1 - z A)^-1 1, the growth per step of y' = lambda y, z = lambda dt."""
    tableau = METHODS[method]
    assert isinstance(tableau, Tableau)
    stages = [[Fraction(1)]]  # k_i / lambda as polynomials
    add: Any = lambda p, q: [(p[j] if j < len(p) else 0) + (q[j] if j < len(q) else 0) for j in range(max(len(p), len(q)))]
    for row in tableau.a[1:] if len(tableau.a) == tableau.stages else tableau.a:
        total = [Fraction(0)]
        for a, k in zip(row, stages, strict=False):
            total = add(total, [a * c for c in k])
        stages.append(add([Fraction(1)], [Fraction(0), *total]))
    total = [Fraction(0)]
    for b, k in zip(tableau.b, stages, strict=True):
        total = add(total, [b * c for c in k])
    return add([Fraction(1)], [Fraction(0), *total])


def R(method: str, z: Tensor) -> Tensor:
    value = torch.zeros_like(z)
    for c in reversed(polynomial(method)):
        value = value * z + float(c)
    return value


def step_matrix(equation: Any, method: str, h: float) -> Tensor:
    """S with u -> S u one step of odeint."""
    with torch.no_grad():
        return odeint(equation, torch.eye(GRID.n, dtype=torch.float64), [0.0, h], method=method, steps=1)[-1].mT


def unwarned(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return call()


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("method", RUNGE_KUTTA)
def test_the_limit_is_sharp_from_both_sides(method: str, name: str) -> None:
    """2000 steps from any field stay bounded below it; above it the worst mode grows by |R| per step."""
    equation = EQUATIONS[name]()
    h = equation.max_stable_step(method)
    eigenvalues = torch.linalg.eigvals(equation.matrix())
    if name.split()[-1] in CENTRAL_ADVECTION and name.startswith("advection ") and method in NEVER:
        assert h == 0
        h = 1e-2
        S = unwarned(lambda: step_matrix(equation, method, h))
    else:
        assert 0 < h < math.inf
        below = step_matrix(equation, method, 0.98 * h)
        assert torch.linalg.matrix_norm(torch.linalg.matrix_power(below, STEPS), 2) < 1 + 2 * STEPS * 1e-6
        assert R(method, 1.01 * h * eigenvalues).abs().max() > 1 + 1e-6
        h = 1.05 * h
        with pytest.warns(UserWarning, match=re.escape(f"{h:.4g}")):
            S = step_matrix(equation, method, h)
    growth = R(method, h * eigenvalues).abs().max().item()
    assert growth > 1
    assert torch.linalg.matrix_norm(S, 2).item() == pytest.approx(growth, abs=1e-6)
    blown_up_after = math.log(1e6) / math.log(growth)
    if blown_up_after < STEPS:
        assert torch.linalg.matrix_norm(torch.linalg.matrix_power(S, math.ceil(blown_up_after)), 2) > 0.99e6


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_an_eigenmode_is_multiplied_by_R(method: str, name: str) -> None:
    """The real and imaginary part of exp(i k x), one step each, by R(h symbol(k))."""
    equation, h = EQUATIONS[name](), 0.03
    k = 2 * math.pi / GRID.length * torch.arange(GRID.n // 2 + 1, dtype=torch.float64)
    modes = torch.exp(1j * k[:, None] * points(GRID))
    pairs = torch.stack([modes.real, modes.imag])
    real, imaginary = unwarned(lambda: odeint(equation, pairs, [0.0, h], method=method, steps=1))[-1]
    expected = R(method, h * equation.symbol(k).to(torch.complex128))[:, None] * modes
    torch.testing.assert_close(torch.complex(real, imaginary), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("speed", [0.9, -0.9])
@pytest.mark.parametrize("scheme", UPWIND_ADVECTION)
def test_a_learned_speed_has_the_symbol_of_its_sign(scheme: str, speed: float) -> None:
    """The eigenvalue of the right-hand side on exp(i k x): information comes from where the field does, so that all waves are damped."""
    equation = Advection(GRID, torch.tensor(speed, dtype=torch.float64), scheme)
    k = 2 * math.pi / GRID.length * torch.arange(1, GRID.n // 2, dtype=torch.float64)
    modes = torch.exp(1j * k[:, None] * points(GRID))
    eigenvalues = torch.complex(equation(ZERO, modes.real), equation(ZERO, modes.imag)) / modes
    torch.testing.assert_close(equation.symbol(k)[:, None].expand_as(modes), eigenvalues, rtol=1e-11, atol=1e-11)
    assert (equation.symbol(k).real < 0).all()
    assert equation.max_stable_step("rk4") == pytest.approx(Advection(GRID, speed, scheme).max_stable_step("rk4"), rel=1e-9)


@pytest.mark.parametrize("method", NEVER)
@pytest.mark.parametrize("scheme", CENTRAL_ADVECTION)
def test_methods_without_a_part_of_the_imaginary_axis_are_never_stable(scheme: str, method: str) -> None:
    assert Advection(GRID, 0.9, scheme).max_stable_step(method) == 0.0
    with pytest.warns(UserWarning, match="stable"):
        odeint(Advection(GRID, 0.9, scheme), points(GRID), [0.0, 1e-3], method=method, steps=1)


@pytest.mark.parametrize(("method", "limit"), [("rk4", math.sqrt(8)), ("ssprk3", math.sqrt(3)), ("bosh3", math.sqrt(3))])
def test_limits_known_by_hand_for_advection(method: str, limit: float) -> None:
    """The imaginary stability interval over c max |symbol|: central2 h / c, spectral below Nyquist."""
    assert Advection(GRID, 0.9, "central2").max_stable_step(method) == pytest.approx(limit * GRID.spacing / 0.9, rel=1e-4)
    largest = 2 * math.pi * (GRID.n // 2 - 1) / GRID.length
    assert Advection(GRID, -0.9, "spectral").max_stable_step(method) == pytest.approx(limit / (0.9 * largest), rel=1e-4)


@pytest.mark.parametrize(("method", "limit"), [("euler", 2.0), ("midpoint", 2.0), ("ssprk3", 2.51274532662), ("rk4", 2.78529356341)])
def test_limits_known_by_hand_for_diffusion(method: str, limit: float) -> None:
    assert Diffusion(GRID, 0.3).max_stable_step(method) == pytest.approx(limit * GRID.spacing**2 / (4 * 0.3), rel=1e-4)
    nyquist = math.pi / GRID.spacing
    assert Diffusion(GRID, 0.3, "spectral").max_stable_step(method) == pytest.approx(limit / (0.3 * nyquist**2), rel=1e-4)


def test_euler_with_first_order_upwind_is_stable_up_to_courant_number_one() -> None:
    for c in (0.9, -0.9):
        assert Advection(GRID, c, "upwind1").max_stable_step("euler") == pytest.approx(GRID.spacing / 0.9, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "method"), [("advection upwind3", "rk4"), ("diffusion central2", "euler"), ("advection spectral", "ssprk3")]
)
def test_two_thousand_steps_of_odeint_on_both_sides(name: str, method: str) -> None:
    equation = EQUATIONS[name]()
    h = equation.max_stable_step(method)
    u0 = torch.randn(GRID.n, dtype=torch.float64)
    with torch.no_grad():
        below = odeint(equation, u0, [0.0, 0.98 * h * STEPS], method=method, steps=STEPS)[-1]
        with pytest.warns(UserWarning, match="stable"):
            above = odeint(equation, u0, [0.0, 1.05 * h * STEPS], method=method, steps=STEPS)[-1]
    assert below.norm() <= 1.003 * u0.norm() and above.norm() > 1e6 * u0.norm()


@pytest.mark.parametrize("boundary", [Dirichlet(), Neumann()])
@pytest.mark.parametrize("scheme", ["central2", "central4", "central6"])
def test_between_walls_the_limit_is_a_usable_estimate(scheme: str, boundary: Any) -> None:
    """Within a factor 1.6 of what the closed operator allows; 0.6 of it is stable."""
    equation = Diffusion(Grid1D(32, boundary=boundary), 0.3, scheme)
    h = equation.max_stable_step("rk4")
    eigenvalues = torch.linalg.eigvals(equation.matrix())
    assert R("rk4", 0.6 * h * eigenvalues).abs().max() < 1 + 1e-9
    assert R("rk4", 1.2 * h * eigenvalues).abs().max() > 1


def test_odeint_warns_with_both_numbers_and_only_beyond_the_limit() -> None:
    equation = Diffusion(GRID, 0.3)
    h = equation.max_stable_step("rk4")
    u0 = torch.ones(16, dtype=torch.float64)
    odeint(equation, u0, [0.0, 9.9 * h], steps=10)
    with pytest.warns(UserWarning) as caught:
        odeint(equation, u0, [0.0, 10.1 * h], steps=10)
    assert len(caught) == 1
    assert f"{1.01 * h:.4g}" in str(caught[0].message) and f"{h:.4g}" in str(caught[0].message)


def test_fine_grids_are_judged_by_their_largest_mode() -> None:
    for n in (1024, 1025, 5000):
        h = Diffusion(Grid1D(n), 1.0).max_stable_step("euler")
        assert h == pytest.approx(1 / (2 * n**2), rel=1e-5)


def test_nothing_limits_a_field_that_stands_still() -> None:
    for equation in (Advection(GRID, 0.0), Diffusion(GRID, 0.0), AdvectionDiffusionReaction(GRID), Wave(GRID, 0.0)):
        assert equation.max_stable_step("leapfrog" if isinstance(equation, Wave) else "rk4") == math.inf


def drift(t: Any, x: Tensor) -> Tensor:
    return 1 - x


SLOPES, GIVING, CLOSED = (Slope(), Slope()), (Robin(1.0, 0.3), Robin(1.0, -0.3)), (Closed(), Closed())
GROWS: dict[str, Callable[[int], Any]] = {  # the mass by e^t as the drift carries it in; walls that give the more, the more is there
    **{
        f"drift {s}": lambda n, s=s: Advection(Grid1D(n, 2.0, SLOPES), drift, s, conservative=True)
        for s in ("upwind1", "upwind3", "upwind5")
    },
    "drift and diffusion": lambda n: (
        Advection(Grid1D(n, 2.0, SLOPES), drift, "upwind3", conservative=True) + Diffusion(Grid1D(n, 2.0, SLOPES), 0.1)
    ),
    **{f"walls {s}": lambda n, s=s: Diffusion(Grid1D(n, 2.0, GIVING), 0.1, s) for s in ("central2", "central4", "central6")},
    "walls, D varies": lambda n: Diffusion(Grid1D(n, 2.0, GIVING), lambda t, x: 0.1 + 0.03 * torch.sin(3 * x)),
    "a system": lambda n: System(
        {
            "u": {"u": Diffusion(Grid1D(n, 2.0, GIVING), 0.1), "v": Reaction(Grid1D(n, 2.0, GIVING), 0.1)},
            "v": {"u": Reaction(Grid1D(n, 2.0, GIVING), -0.1), "v": Diffusion(Grid1D(n, 2.0, GIVING), 0.2)},
        }
    ),
}
ROUGH: dict[str, Callable[[int], Any]] = {  # what no step mends: central differences where the speed changes its sign, a pile at a wall
    "central2": lambda n: Advection(Grid1D(n, 2.0, SLOPES), drift, "central2"),
    "central2 conservative": lambda n: Advection(Grid1D(n, 2.0, SLOPES), drift, "central2", conservative=True),
    "upwind5 closed": lambda n: Advection(Grid1D(n, 2.0, CLOSED), 1.0, "upwind5", conservative=True),
}


@pytest.mark.parametrize("n", [24, 48, 96])
@pytest.mark.parametrize("name", GROWS)
def test_what_the_equation_lets_grow_limits_no_step(name: str, n: int) -> None:
    """Up to the limit no mode grows faster than the equation lets it, beyond it one that decays does."""
    equation = GROWS[name](n)
    h, eigenvalues = equation.max_stable_step("rk4"), torch.linalg.eigvals(equation.matrix())
    grown = torch.exp(h * eigenvalues.real.clamp(min=0))
    assert eigenvalues.real.max() > 0.1
    assert (R("rk4", 0.98 * h * eigenvalues).abs() < grown + 1e-6).all()
    top = 2.6 if name.startswith("drift upwind") else 1.05  # of a speed that varies the largest one counts everywhere: an estimate
    assert (R("rk4", top * h * eigenvalues).abs() > torch.exp(top * h * eigenvalues.real.clamp(min=0)) + 1e-6).any()
    u = torch.ones(2, n, dtype=torch.float64) if name == "a system" else torch.ones(n, dtype=torch.float64)
    with torch.no_grad():
        odeint(equation, u, [0.0, 4 * h], steps=5)  # without a warning


@pytest.mark.parametrize("n", [24, 48, 96])
@pytest.mark.parametrize("name", ROUGH)
def test_what_a_scheme_lets_grow_makes_no_step_stable(name: str, n: int) -> None:
    equation = ROUGH[name](n)
    assert torch.linalg.eigvals(equation.matrix()).real.max() > 0.1
    assert equation.max_stable_step("rk4") == 0


WALLS = Grid1D(24, 2.0, (Slope(), Slope()))
IN_TIME: dict[str, Callable[[Any], Any]] = {
    "advection": lambda c: Advection(GRID, c, "upwind3"),
    "advection between walls": lambda c: Advection(WALLS, c, "upwind1", conservative=True) + Diffusion(WALLS, 0.01),
    "diffusion": lambda c: Diffusion(GRID, c),
    "diffusion between walls": lambda c: Diffusion(WALLS, c) + Reaction(WALLS, c),
    "a multiple": lambda c: 2 * Diffusion(GRID, c) - Reaction(GRID, c),
    "dispersion": lambda c: Dispersion(GRID, c, "central2"),
    "wave": lambda c: Wave(GRID, c),
    "waves of a system": lambda c: 0.5 * Wave(WALLS, c),
    "fields that feel each other": lambda c: System(
        {"u": {"u": Diffusion(WALLS, c), "v": Reaction(WALLS, 1.0)}, "v": Diffusion(WALLS, 0.1)}
    ),
    "plane": lambda c: Plane(Diffusion(GRID, c), Diffusion(WALLS, c)),
    "weights": lambda c: FieldDynamics(Diffusion(GRID, c), "o i -> o i"),
}
FACTORS: dict[str, Callable[[Any], Any]] = {
    "from 0 on": lambda t: t / 2,
    "infinite at 0": lambda t: 2 / t,
    "not a number at 0": lambda t: (t - 1) ** 0.5,
}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", IN_TIME)
def test_coefficients_are_those_of_the_time_that_is_asked_for(name: str, factor: str) -> None:
    """All are 1 at t = 2; at t = 0 nothing is known of them, or they are 0."""
    field = lambda t, x: FACTORS[factor](t) * torch.ones_like(x)
    for varying in (field, lambda t, x: FACTORS[factor](t)):
        assert IN_TIME[name](varying).max_stable_step("rk4", t=2.0) == pytest.approx(IN_TIME[name](1.0).max_stable_step("rk4"), rel=1e-3)
        assert IN_TIME[name](varying).max_stable_step("rk4") > 0


@pytest.mark.parametrize("grid", [GRID, WALLS], ids=["periodic", "walls"])
@pytest.mark.parametrize("method", ["rk4", "imex3", "implicit_midpoint"])
def test_a_diffusivity_that_is_infinite_at_first_is_solved_from_later_on(method: str, grid: Grid1D) -> None:
    """D = a / t: a cosine falls by t^(-a k^2), k^2 that of the differences; D = a t by exp(-a k^2 t^2 / 2)."""
    x, k = points(grid), math.pi if grid is GRID else math.pi / 2
    square = (2 / grid.spacing * math.sin(k * grid.spacing / 2)) ** 2
    for diffusivity, fallen in ((lambda t, x: 0.02 / t, math.log(3.0)), (lambda t, x: 0.02 * t, 4.0)):
        u = odeint(Diffusion(grid, diffusivity), torch.cos(k * x), [1.0, 3.0], method=method, steps=60)[-1]
        torch.testing.assert_close(u, torch.cos(k * x) * math.exp(-0.02 * square * fallen), rtol=0, atol=2e-5)


def test_steps_are_judged_by_the_first_and_the_last_time() -> None:
    """A speed that grows from 0, and one that falls to 0: both are too fast for such steps at one end."""
    for speed in (lambda t, x: t, lambda t, x: 1 - t):
        with pytest.warns(UserWarning, match="beyond the largest stable one"):
            odeint(Advection(GRID, speed, "upwind1"), torch.ones(16, dtype=torch.float64), [0.0, 1.0], steps=5)
        odeint(Advection(GRID, speed, "upwind1"), torch.ones(16, dtype=torch.float64), [0.0, 1.0], steps=8)


ASKED: dict[str, Callable[[Any], Any]] = {
    "advection": lambda c: Advection(GRID, c),
    "sum": lambda c: Advection(GRID, c) + Diffusion(GRID, 0.01),
    "wave": lambda c: Wave(GRID, c),
    "system": lambda c: System({"u": Advection(GRID, c), "v": Diffusion(GRID, 0.01)}),
}


@pytest.mark.parametrize(("speed", "asked"), [(0.5, 1), (torch.full((16,), 0.5), 1), (lambda t, x: 0.5 + 0 * x, 2)], ids=type)
@pytest.mark.parametrize("name", ASKED)
def test_what_is_the_same_at_all_times_is_judged_once(name: str, speed: Any, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    equation, times = ASKED[name](speed), list[float]()
    limit = equation.max_stable_step
    monkeypatch.setattr(equation, "max_stable_step", lambda method, *, t=0.0: times.append(t) or limit(method, t=t))
    u = torch.ones((2, 16), dtype=torch.float64)
    odeint(equation, tuple(u) if name == "wave" else u, [0.0, 0.1], method="rk4", steps=9)
    assert len(times) == asked


def test_growing_reaction_is_left_out() -> None:
    without = AdvectionDiffusionReaction(GRID, 0.1, 0.4).max_stable_step("rk4")
    assert AdvectionDiffusionReaction(GRID, 0.1, 0.4, 2.0).max_stable_step("rk4") == pytest.approx(without, rel=1e-12)
    assert 0.5 * without < AdvectionDiffusionReaction(GRID, 0.1, 0.4, -2.0).max_stable_step("rk4") < without


def test_the_limit_follows_learned_coefficients() -> None:
    """What is remembered for one value must not answer for another."""
    c, D = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (0.7, 0.01))
    equation = Advection(GRID, c, "upwind3") + Diffusion(GRID, D)
    for speed, diffusivity in ((0.7, 0.01), (-0.7, 0.01), (1.4, 0.02), (1.4, 0.3), (0.7, 0.01)):
        with torch.no_grad():
            c.fill_(speed)
            D.fill_(diffusivity)
        fresh = Advection(Grid1D(16, 2.0), speed, "upwind3") + Diffusion(Grid1D(16, 2.0), diffusivity)
        assert equation.max_stable_step("rk4") == pytest.approx(fresh.max_stable_step("rk4"), rel=1e-9)
        eigenvalues = torch.linalg.eigvals(fresh.matrix())
        assert R("rk4", 0.98 * equation.max_stable_step("rk4") * eigenvalues).abs().max() < 1 + 2e-6
        assert R("rk4", 1.02 * equation.max_stable_step("rk4") * eigenvalues).abs().max() > 1 + 1e-6
    assert equation.max_stable_step("euler") < equation.max_stable_step("rk4")


@pytest.mark.parametrize("method", ["backward_euler", "implicit_midpoint"])
def test_implicit_methods_have_no_limit_on_diffusion(method: str) -> None:
    assert Diffusion(GRID, 0.3).max_stable_step(method) == math.inf


@pytest.mark.parametrize("method", ["exponential_euler", "etdrk4"])
def test_exponential_methods_have_no_limit_where_all_is_linear_and_constant(method: str) -> None:
    for name in EQUATIONS:
        assert EQUATIONS[name]().max_stable_step(method) == math.inf, name


def test_exponential_methods_are_limited_by_the_rest() -> None:
    u = 0.7 * torch.sin(math.pi * points(GRID))
    stiff = Burgers(GRID, 0.5)
    assert stiff.max_stable_step("etdrk4", u) > 2 * stiff.max_stable_step("rk4", u)
    varying = Diffusion(GRID, lambda t, x: 0.3 + 0 * x)
    assert varying.max_stable_step("etdrk4") < math.inf


def test_a_varying_coefficient_is_frozen_at_its_extremes() -> None:
    c = lambda t, x: 0.2 + 0.7 * torch.cos(math.pi * x)  # from -0.5 to 0.9 on the points
    for scheme in ("upwind1", "central4", "weno5"):
        h = Advection(GRID, c, scheme).max_stable_step("rk4")
        assert h == pytest.approx(Advection(GRID, 0.9, scheme).max_stable_step("rk4"), rel=1e-6), scheme
    field = 0.2 + 0.1 * torch.cos(math.pi * points(GRID))
    assert Diffusion(GRID, field).max_stable_step("rk4") == pytest.approx(Diffusion(GRID, 0.3).max_stable_step("rk4"), rel=1e-6)


def test_weno5_is_estimated_by_upwind5() -> None:
    limits = [Advection(GRID, 0.9, scheme).max_stable_step("ssprk3") for scheme in ("weno5", "upwind5")]
    assert limits[0] == pytest.approx(limits[1], rel=1e-6)


def test_burgers_is_limited_by_the_largest_speed_of_a_field() -> None:
    u = torch.tensor([0.3, -1.2, 0.5]).double().repeat(6)[:16]
    inviscid = Burgers(GRID)
    assert inviscid.max_stable_step("ssprk3", u) == pytest.approx(Advection(GRID, 1.2, "upwind5").max_stable_step("ssprk3"), rel=1e-6)
    assert inviscid.max_stable_step("ssprk3") == math.inf
    viscous = Burgers(GRID, 0.3)
    assert viscous.max_stable_step("ssprk3") == pytest.approx(Diffusion(GRID, 0.3).max_stable_step("ssprk3"), rel=1e-6)
    assert viscous.max_stable_step("ssprk3", u) < viscous.max_stable_step("ssprk3")
