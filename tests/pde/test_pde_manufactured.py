"""Manufactured solutions over equation x boundary x scheme x kind of coefficient x dtype: order, stability, positivity, conservation.

A field u(x) is chosen, the source that keeps it standing is found by autograd, and w - L w = u - L u is solved on three grids. Nothing of a
scheme enters but the order that it claims.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import odeint, solve
from anodev2.pde import (
    Advection,
    AdvectionDiffusionReaction,
    Burgers,
    Closed,
    Diffusion,
    Dirichlet,
    Free,
    Grid1D,
    Neumann,
    Robin,
    Slope,
    Value,
    Wave,
)
from anodev2.testing import observed_order, taylor_test

Function = Callable[[Tensor], Tensor]
LENGTH = 2.0
ZERO = torch.zeros((), dtype=torch.float64)
UPWIND, CENTRAL = ("upwind1", "upwind3", "upwind5"), ("central2", "central4", "central6")
SIGNED = ("field", "function")
KINDS = ("number", "field", "function", "samples")
SIZES = (32, 48, 64, 96)


def points(grid: Grid1D, dtype: torch.dtype = torch.float64) -> Tensor:
    return grid.points(torch.empty(0, dtype=dtype))


def d(f: Function) -> Function:
    """df/dx by autograd."""

    def slope(x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.clone().requires_grad_()
        value = f(x)
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)[0]

    return slope


def wave(x: Tensor) -> Tensor:
    """Periodic over LENGTH, of one sign, and not even about either wall."""
    return 1.5 + 0.6 * torch.sin(math.pi * x + 0.4) + 0.2 * torch.cos(2 * math.pi * x)


def slope_of_wave(x: Tensor) -> Tensor:
    return math.pi * (0.6 * torch.cos(math.pi * x + 0.4) - 0.4 * torch.sin(2 * math.pi * x))


ENDS: dict[str, Callable[[], Any]] = {
    "periodic": lambda: None,
    "dirichlet": lambda: Dirichlet(*values(wave)),
    "neumann": lambda: Neumann(*values(d(wave))),
    "in left": lambda: Dirichlet(values(wave)[0], None),
    "in right": lambda: Dirichlet(None, values(wave)[1]),
    "out": lambda: Dirichlet(None, None),
    "value, slope": lambda: (Value(values(wave)[0]), Slope(values(d(wave))[1])),
    "robin": lambda: (robin(0, 1.0, -0.4), robin(1, 0.7, 0.5)),
    "robin, value": lambda: (robin(0, 0.3, -2.0), Value(values(wave)[1])),
    "of the field": lambda: (Slope(of_field(d(wave), 0)), Value(of_field(wave, 1))),
    "in by robin": lambda: (robin(0, 1.0, -0.4), Free()),
    "closed": lambda: (Closed(), Closed()),
    "closed, value": lambda: (Closed(), Value(values(wave)[1])),
}


def robin(end: int, a: float, b: float) -> Robin:
    return Robin(a, b, a * values(wave)[end] + b * values(d(wave))[end])


def of_field(f: Function, end: int) -> Callable[[Any, Tensor], Tensor]:
    """f at a wall, as a function that depends on the field there, which is that of ``wave``."""
    at_wall, u_there = values(f)[end], values(wave)[end]
    return lambda t, u: at_wall + 0.7 * (u**2 - u_there**2)


def values(f: Function) -> tuple[float, float]:
    left, right = f(torch.tensor([0.0, LENGTH], dtype=torch.float64)).tolist()
    return left, right


def grid_of(n: int, ends: str) -> Grid1D:
    boundary = ENDS[ends]()
    return Grid1D(n, LENGTH) if boundary is None else Grid1D(n, LENGTH, boundary)


def given(f: Function, kind: str, grid: Grid1D, dtype: torch.dtype = torch.float64) -> Any:
    """A coefficient in the form of its kind: a number and samples take their values at 0.3 (and twice it)."""
    at = float(f(torch.tensor([0.3], dtype=torch.float64)))
    return {
        "number": lambda: at,
        "field": lambda: f(points(grid, dtype)),
        "function": lambda: lambda t, x: f(x),
        "samples": lambda: torch.tensor([[at], [2 * at]], dtype=dtype),
    }[kind]()


def true(f: Function, kind: str) -> list[Function]:
    """The same as functions of x, one per field of a batch."""
    if kind in ("field", "function"):
        return [f]
    at = float(f(torch.tensor([0.3], dtype=torch.float64)))
    return [lambda x, c=c: c + 0 * x for c in ([at] if kind == "number" else [at, 2 * at])]


@dataclass(frozen=True)
class Row:
    """An equation: how it is made, its right-hand side as a functional of u and its coefficient, and the coefficient."""

    make: Callable[[Grid1D, Any, str], Callable[[Any, Tensor], Tensor]]
    true: Callable[[Function, Function], Function]
    coefficient: Function
    orders: dict[tuple[str, str, str], float]


def product(*fs: Function) -> Function:
    return lambda x: math.prod([f(x) for f in fs], start=torch.ones_like(x))


def accuracy(scheme: str) -> int:
    return 20 if scheme == "spectral" else int(scheme[-1])


def orders(
    ends: dict[str, tuple[tuple[str, ...], tuple[str, ...]]], least: Callable[[str, str], float]
) -> dict[tuple[str, str, str], float]:
    return {
        (end, scheme, kind): least(end, scheme)
        for end, (schemes, kinds) in ends.items()
        for scheme, kind in itertools.product(schemes, kinds)
    }


SECOND = ("neumann", "value, slope", "of the field", "closed", "closed, value")  # ends that leave the order 2


def at_walls(end: str, scheme: str) -> float:
    full = 5 if scheme == "central6" and end != "periodic" else accuracy(scheme)
    if end == "in by robin":  # the slope at the wall is known to an order less
        full = {"upwind3": 2, "upwind5": 4, "weno5": 4, "central4": 3}.get(scheme, full)
    return min(full, 2) if end in SECOND else full


def even(end: str, scheme: str) -> float:
    return min(accuracy(scheme), 2) if end in SECOND else accuracy(scheme)


DIFFUSIVE = {
    "periodic": ((*CENTRAL, "spectral"), KINDS),
    "dirichlet": (("central2",), KINDS),
    "neumann": (("central2",), KINDS),
    **{end: (("central2",), ("number", "field", "function")) for end in ("value, slope", "robin", "robin, value", "of the field")},
}
CONSTANT = {end: (CENTRAL, ("number", "samples")) for end in ("dirichlet", "neumann", "value, slope", "robin", "robin, value")}
EVERY = (*UPWIND, "weno5", *CENTRAL, "spectral")
BETWEEN = (*UPWIND, "weno5", "central2", "central4")


def transport(conservative: bool) -> Callable[[Grid1D, Any, str], Any]:
    return lambda grid, c, scheme: Advection(grid, c, scheme, conservative=conservative)


ROWS: dict[str, Row] = {
    "diffusion": Row(
        lambda grid, D, scheme: Diffusion(grid, D, scheme),
        lambda u, D: d(product(D, d(u))),
        lambda x: 0.3 + 0.2 * torch.sin(math.pi * x),
        {**orders(DIFFUSIVE, even), **orders(CONSTANT, even)},
    ),
    "wave": Row(
        lambda grid, c, scheme: lambda t, u: Wave(grid, c, scheme)(t, (u, torch.zeros_like(u)))[1],
        lambda u, c: product(c, c, d(d(u))),
        lambda x: 0.5 + 0.2 * torch.sin(math.pi * x),
        orders(
            {
                "periodic": ((*CENTRAL, "spectral"), KINDS),
                "dirichlet": (CENTRAL, KINDS),
                "neumann": (("central2",), KINDS),
                "value, slope": (("central2",), SIGNED),
                "robin": (CENTRAL, SIGNED),
            },
            even,
        ),
    ),
    "advection": Row(
        transport(False),
        lambda u, c: lambda x: -c(x) * d(u)(x),
        lambda x: 0.2 + 0.9 * torch.cos(math.pi * x),
        orders({"periodic": (EVERY, KINDS)}, at_walls),
    ),
    "flux": Row(
        transport(True),
        lambda u, c: lambda x: -d(product(c, u))(x),
        lambda x: 0.2 + 0.9 * torch.cos(math.pi * x),
        orders({"periodic": (EVERY, KINDS)}, at_walls),
    ),
    "flux that parts between walls": Row(
        transport(True),
        lambda u, c: lambda x: -d(product(c, u))(x),
        lambda x: x - 0.9,
        orders({"out": (BETWEEN, SIGNED)}, at_walls),
    ),
    "flux that meets between walls": Row(
        transport(True),
        lambda u, c: lambda x: -d(product(c, u))(x),
        lambda x: 0.9 - x,
        orders({"dirichlet": (("upwind1", "upwind3", "upwind5", "weno5"), SIGNED)}, at_walls),
    ),
    "advection that parts between walls": Row(
        transport(False),
        lambda u, c: lambda x: -c(x) * d(u)(x),
        lambda x: x - 0.9,
        orders({"out": (BETWEEN, SIGNED)}, at_walls),
    ),
    "advection to the right": Row(
        transport(False),
        lambda u, c: lambda x: -c(x) * d(u)(x),
        lambda x: 0.6 + 0.2 * torch.sin(2 * x),
        orders({"in left": ((*BETWEEN, "central6"), KINDS), "in by robin": ((*UPWIND, "weno5"), SIGNED)}, at_walls),
    ),
    "flux to the left": Row(
        transport(True),
        lambda u, c: lambda x: -d(product(c, u))(x),
        lambda x: -0.6 + 0.2 * torch.sin(2 * x),
        orders({"in right": ((*BETWEEN, "central6"), KINDS)}, at_walls),
    ),
    "all three": Row(
        lambda grid, D, scheme: AdvectionDiffusionReaction(grid, D, 0.4, -0.3, scheme=scheme, advection_scheme="central4"),
        lambda u, D: lambda x: d(product(D, d(u)))(x) - 0.4 * d(u)(x) - 0.3 * u(x),
        lambda x: 0.3 + 0.2 * torch.sin(math.pi * x),
        orders({"periodic": (("central2", "central4"), KINDS), "dirichlet": (("central2",), KINDS)}, even),
    ),
    "drift and diffusion in a box": Row(  # c u = D du/dx at the ends
        lambda grid, c, scheme: Advection(grid, c, scheme, conservative=True) + Diffusion(grid, 0.3),
        lambda u, c: lambda x: -d(product(c, u))(x) + 0.3 * d(d(u))(x),
        lambda x: 0.3 * slope_of_wave(x) / wave(x) + 0.2 * torch.sin(math.pi * x),
        orders(
            {end: ((*UPWIND, "weno5", "central2", "central4"), ("function",)) for end in ("closed", "closed, value")},
            lambda end, scheme: 1 if scheme == "upwind1" else 2,
        ),
    ),
    "burgers": Row(
        lambda grid, _, scheme: Burgers(grid, 0.0, scheme),
        lambda u, _: lambda x: -u(x) * d(u)(x),
        lambda x: 1 + 0 * x,
        orders({"periodic": (EVERY, ("number",)), "in left": (BETWEEN, ("number",))}, at_walls),
    ),
    "viscous burgers": Row(
        lambda grid, nu, scheme: Burgers(grid, nu, scheme),
        lambda u, nu: lambda x: -u(x) * d(u)(x) + d(product(nu, d(u)))(x),
        lambda x: 0.3 + 0.2 * torch.sin(math.pi * x),
        orders({"periodic": (("central2", "weno5"), KINDS), "dirichlet": (("central2", "weno5"), KINDS)}, lambda *_: 2),
    ),
}
CASES = [(name, *key, least) for name, row in ROWS.items() for key, least in row.orders.items()]


def quick(case: tuple[str, str, str, str, float]) -> bool:
    """Those that a change of pde is most likely to break; the rest is marked slow."""
    name, ends, scheme, kind, _ = case
    return (
        kind == "field"
        or (kind == "samples" and ends != "periodic" and scheme != "weno5")
        or (name.startswith("flux that") and kind == "function")
    )


def solved(equation: Callable[[Any, Tensor], Tensor], source: Tensor, start: Tensor, linear: bool) -> Tensor:
    """w with w - equation(w) = source, by Newton."""
    w, unit = start.expand_as(source), torch.eye(source.shape[-1], dtype=source.dtype)
    for _ in range(1 if linear else 8):
        defect = w - equation(ZERO, w) - source
        if linear:
            jacobian = unit - (equation(ZERO, (w[..., None, :] + unit).movedim(-2, 0)) - equation(ZERO, w)).movedim(0, -1)
        else:
            jacobian = unit - torch.func.jacrev(lambda w: equation(ZERO, w))(w)
        w = w - torch.linalg.solve(jacobian, defect[..., None])[..., 0]
    return w


def error_of(name: str, ends: str, scheme: str, kind: str) -> Callable[[int], float]:
    row, linear = ROWS[name], scheme != "weno5" and "burgers" not in name and ends != "of the field"

    def error(n: int) -> float:
        grid = grid_of(n, ends)
        x = points(grid)
        sources = [wave(x) - row.true(wave, f)(x).detach() for f in true(row.coefficient, kind)]
        source = torch.stack(sources) if kind == "samples" else sources[0]
        equation = row.make(grid, given(row.coefficient, kind, grid), scheme)
        if linear or kind != "samples":
            found = solved(equation, source, wave(x), linear)
        else:
            found = torch.stack([solved(lambda t, w, i=i: equation(t, w.expand(2, -1))[i], source[i], wave(x), False) for i in range(2)])
        return (found - wave(x)).square().mean().sqrt().item()

    return error


@pytest.mark.parametrize(
    ("name", "ends", "scheme", "kind", "least"),
    [pytest.param(*case, id="-".join(case[:4]), marks=() if quick(case) else pytest.mark.slow) for case in CASES],
)
def test_the_solution_converges_with_the_order_of_the_scheme(name: str, ends: str, scheme: str, kind: str, least: float) -> None:
    error = error_of(name, ends, scheme, kind)
    if (name, scheme, kind) == ("diffusion", "spectral", "field"):
        least = 6  # that of the interpolation to the midpoints
    elif scheme == "spectral":
        assert error(48) < 1e-9
        return
    assert error(96) < (0.1 if scheme == "upwind1" else 0.02)
    assert observed_order(error, SIZES, floor=1e-11) > least - (0.2 if least <= 2 else 0.6)


@pytest.mark.parametrize(
    ("ends", "scheme"), [*(("periodic", s) for s in (*CENTRAL, "spectral")), ("dirichlet", "central2"), ("neumann", "central2")]
)
def test_no_positive_diffusivity_makes_a_field_grow(scheme: str, ends: str) -> None:
    """Fields of rough, random positive values, and jumps by a factor of up to 1e4."""
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        D = torch.exp(2 * torch.randn(24, dtype=torch.float64, generator=random))
        if seed % 2:
            D = torch.where(torch.rand(24, dtype=torch.float64, generator=random) < 0.3, 1e-4, 1.0).double()
        matrix = Diffusion(grid_of(24, ends), D, scheme).matrix()
        assert torch.linalg.eigvals(matrix).real.max() < 1e-10 * torch.linalg.matrix_norm(matrix, 2)


@pytest.mark.parametrize("data", [(0.0, 1.0), (1.0, 3.0), (-2.0, 2.0)])
def test_central2_keeps_the_largest_value(data: tuple[float, float]) -> None:
    """Each point moves towards its neighbours and the walls: off the diagonal nothing is negative, rows sum to at most 0."""
    random = torch.Generator().manual_seed(0)
    for _ in range(10):
        D = torch.exp(3 * torch.randn(20, dtype=torch.float64, generator=random))
        equation = Diffusion(Grid1D(20, 1.0, Dirichlet(*data)), D)
        matrix = equation.matrix()
        assert (matrix - matrix.diagonal().diag() >= 0).all() and (matrix.sum(1) <= 1e-9 * D.max() * 400).all()
        u = torch.linalg.solve(matrix, -equation(ZERO, torch.zeros(20, dtype=torch.float64)))  # the steady field
        assert u.min() >= min(data) - 1e-12 and u.max() <= max(data) + 1e-12


@pytest.mark.parametrize("kind", ["field", "function"])
@pytest.mark.parametrize("n", [10, 50, 64])
def test_two_materials_have_slopes_in_the_ratio_of_their_diffusivities(kind: str, n: int) -> None:
    """u = 0 to 1 through D = 1 | 10: x / 0.55, then 1 - (1 - x) / 5.5, to round-off."""
    grid = Grid1D(n, boundary=Dirichlet(0.0, 1.0))
    x, D = points(grid), lambda t, x: torch.where(x < 0.5, 1.0, 10.0).to(x)
    equation = Diffusion(grid, D if kind == "function" else D(0.0, x))
    u = torch.linalg.solve(equation.matrix(), -equation(ZERO, torch.zeros_like(x)))
    torch.testing.assert_close(u, torch.where(x < 0.5, x / 0.55, 1 - (1 - x) / 5.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["diffusion", "flux", "burgers", "viscous burgers"])
def test_sums_stay(name: str, kind: str) -> None:
    """On periodic grids, with every scheme; diffusion between walls without slope too."""
    u = torch.rand(2, 24, dtype=torch.float64)
    grids = [Grid1D(24, LENGTH), Grid1D(24, LENGTH, Neumann())] if name == "diffusion" else [Grid1D(24, LENGTH)]
    for grid, scheme in itertools.product(grids, {s for _, s, _ in ROWS[name].orders}):
        if not grid.periodic and scheme != "central2":
            continue
        du = ROWS[name].make(grid, given(ROWS[name].coefficient, kind, grid), scheme)(ZERO, u)
        assert (du.sum(-1) / du.abs().sum(-1)).abs().max() < 1e-13


@pytest.mark.parametrize("scheme", [*UPWIND, "weno5"])
@pytest.mark.parametrize(("ends", "name"), [("periodic", "flux"), ("out", "flux that parts between walls")])
def test_a_speed_that_passes_upward_through_zero(ends: str, name: str, scheme: str) -> None:
    """The solution in time, and none that grows: eigenvalues of the linear schemes have no positive real part."""
    if scheme != "weno5":
        grid = grid_of(40, ends)
        matrix = Advection(grid, lambda t, x: ROWS[name].coefficient(x), scheme, conservative=True).matrix()
        assert torch.linalg.eigvals(matrix).real.max() < 1e-9 * torch.linalg.matrix_norm(matrix, 2)

    def error(n: int) -> float:  # c = sin x: tan(x/2) = tan(x0/2) e^t along characteristics
        grid = Grid1D(n, 2 * math.pi)
        x = points(grid)
        equation = Advection(grid, lambda t, x: torch.sin(x), scheme, conservative=True)
        with torch.no_grad():
            u = odeint(equation, torch.ones_like(x), [0.0, 0.5], method="rk4", steps=2 * n // 3, adjoint="direct")[-1]
        exact = 1 / (math.exp(-0.5) * torch.sin(x / 2) ** 2 + math.exp(0.5) * torch.cos(x / 2) ** 2)
        return (u - exact).abs().mean().item()

    assert observed_order(error, (32, 64) if scheme == "upwind1" else (32, 48, 64)) > 0.8 * accuracy(scheme)


SINGLE = [(name, ends, scheme, kind) for name, ends, scheme, kind, _ in CASES if scheme in ("central2", "upwind3", "weno5", "spectral")]


@pytest.mark.parametrize(("name", "ends", "scheme", "kind"), [pytest.param(*case, id="-".join(case)) for case in SINGLE])
def test_single_precision_is_double_but_for_round_off(name: str, ends: str, scheme: str, kind: str) -> None:
    grid, row = grid_of(32, ends), ROWS[name]
    u = wave(points(grid)).expand(2, -1)
    fine = row.make(grid, given(row.coefficient, kind, grid), scheme)(ZERO, u)
    single = row.make(grid, given(row.coefficient, kind, grid, torch.float32), scheme)(torch.tensor(0.0), u.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), fine, rtol=0, atol=2e-6 * 32**2)


IMPLICIT = [(dtype, method) for dtype in (torch.float32, torch.float64) for method in ("backward_euler", "implicit_midpoint")]


@pytest.mark.parametrize("ends", ["periodic", "dirichlet", "neumann"])
@pytest.mark.parametrize("kind", ["number", "field", "function", "samples"])
@pytest.mark.parametrize(("dtype", "method"), IMPLICIT, ids=str)
def test_stiff_steps_of_implicit_methods(dtype: torch.dtype, method: str, kind: str, ends: str) -> None:
    """dt |lambda| from 100 to 1e5, against a dense solve in double precision; the Jacobian is applied few times."""
    n = 64
    grid = grid_of(n, ends)
    D = lambda x: torch.where(x < 1, 0.2, 2.0).to(x) if kind in ("field", "function") else 0.6 + 0 * x
    u0 = (torch.rand(2, n, dtype=torch.float64) + 1).to(dtype)
    for stiff in (1e2, 1e5):
        dt = stiff / (4 * 2.0 / grid.spacing**2)
        equation = Diffusion(grid, given(D, kind, grid, dtype))
        counted = Counted(equation)
        found = solve(counted, u0, [0.0, dt], method=method, steps=1).ys[-1].double()
        exact = Diffusion(grid, given(D, kind, grid))
        scale = dt * (1 if method == "backward_euler" else 0.5)
        matrix = torch.eye(n, dtype=torch.float64) - scale * exact.matrix()
        pushed = scale * exact(ZERO, torch.zeros(2, n, dtype=torch.float64))
        w = torch.linalg.solve(matrix, (u0.double() + pushed)[..., None])[..., 0]
        w = w if method == "backward_euler" else 2 * w - u0.double()
        torch.testing.assert_close(found, w, rtol=0, atol=2e-8 if dtype == torch.float64 else 3e-3 if stiff < 1e3 else 2e-2)
        assert counted.products < 150, counted.products


@pytest.mark.parametrize("ends", ["periodic", "dirichlet", "neumann"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_stiff_implicit_steps(dtype: torch.dtype, ends: str) -> None:
    """In the field and in D at every point, against autograd through a dense solve; the Jacobian is applied few times."""
    grid, dt = grid_of(32, ends), 0.3
    u0, D, weight = torch.rand(32) + 1, torch.rand(32) + 0.1, torch.linspace(-1, 2, 32, dtype=torch.float64)
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in (u0, D)]
    counted = Counted(Diffusion(grid, leaves[1]))
    end = odeint(counted, leaves[0], [0.0, dt], method="backward_euler", steps=1, adjoint="direct")[-1]
    found = torch.autograd.grad((end * weight.to(dtype)).sum(), leaves)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    equation = Diffusion(grid, exact[1])
    matrix = torch.eye(32, dtype=torch.float64) - dt * equation.matrix()
    wanted = torch.autograd.grad(
        (torch.linalg.solve(matrix, exact[0] + dt * equation(ZERO, torch.zeros(32, dtype=torch.float64))) * weight).sum(), exact
    )
    for ours, closed in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            ours.double(), closed, rtol=0, atol=(2e-3 if dtype == torch.float32 else 1e-9) * closed.abs().max().item()
        )
    assert counted.products < 60


class Counted(torch.nn.Module):
    """An equation that counts how often autograd goes back through its right-hand side."""

    def __init__(self, equation: Any) -> None:
        super().__init__()
        self.equation, self.split, self.products = equation, equation.split, 0

    def forward(self, t: Any, u: Tensor) -> Tensor:
        du = self.equation(t, u)
        if du.requires_grad:
            du.register_hook(self.count)
        return du

    def count(self, g: Tensor) -> None:
        self.products += 1


LIMITED = {
    **{f"diffusion {s} {e}": (Diffusion, 0.4, s, e) for s in CENTRAL for e in ("dirichlet", "neumann")},
    **{f"wave {s} {e}": (Wave, 0.7, s, e) for s in CENTRAL for e in ("dirichlet", "neumann")},
    **{f"advection {s} {c:+}": (Advection, c, s, e) for s in (*UPWIND, *CENTRAL) for c, e in ((0.8, "in left"), (-0.8, "in right"))},
}


@pytest.mark.parametrize("n", [33, 80])
@pytest.mark.parametrize("name", LIMITED)
def test_the_largest_stable_step_between_walls_is_that_of_the_matrix(name: str, n: int) -> None:
    """0.995 of it amplifies no eigenvector, 1.1 of it one; advection is limited by its modes, which walls stop after some time."""
    make, coefficient, scheme, ends = LIMITED[name]
    equation: Any = make(grid_of(n, ends), coefficient, scheme)
    method = "rk4"
    eigenvalues = torch.linalg.eigvals(equation.matrix())
    if make is Wave:
        eigenvalues = 1j * eigenvalues.imag
    grows = lambda h: sum((h * eigenvalues) ** k / math.factorial(k) for k in range(5)).abs().max().item()  # pyright: ignore
    h = equation.max_stable_step(method)
    assert grows(0.995 * h) < 1 + 3e-6
    assert make is Advection or grows(1.05 * h) > 1 + 3e-6


def test_steps_of_a_wave_between_walls_are_stable_up_to_the_limit() -> None:
    equation = Wave(Grid1D(40, 1.0, Dirichlet()), 1.0, "central6")
    h = equation.max_stable_step("leapfrog")
    start = (torch.rand(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64))
    u, _ = odeint(equation, start, [0.0, 2000 * 0.97 * h], method="leapfrog", steps=2000, adjoint="direct")
    assert u[-1].abs().max() < 100


@pytest.mark.parametrize("scheme", [*CENTRAL, "spectral"])
@pytest.mark.parametrize("conservative", [False, True])
def test_no_step_is_stable_for_central_differences_of_a_speed_that_changes_sign(scheme: str, conservative: bool) -> None:
    speed = lambda t, x: torch.sin(math.pi * x) + 0.3 + 0.4 * torch.cos(2 * math.pi * x + 0.5)
    for n in (40, 100):
        equation = Advection(Grid1D(n, LENGTH), speed, scheme, conservative)
        assert torch.linalg.eigvals(equation.matrix()).real.max() > 0.1
        assert equation.max_stable_step("rk4") == 0
    assert Advection(Grid1D(40, LENGTH), speed, "upwind3", conservative).max_stable_step("rk4") > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ends", "scheme", "kind"), [pytest.param(*case[:4], id="-".join(case[:4])) for case in CASES])
def test_gradients_of_a_solve_pass_a_taylor_test(name: str, ends: str, scheme: str, kind: str) -> None:
    grid, row = grid_of(16, ends), ROWS[name]
    u0, coefficient = wave(points(grid)), given(row.coefficient, kind, grid)

    def loss(u: Tensor, a: Tensor) -> Tensor:
        c = (lambda t, x: a * coefficient(t, x)) if callable(coefficient) and not isinstance(coefficient, Tensor) else a * coefficient
        end = odeint(row.make(grid, c, scheme), u.expand(2, -1), [0.0, 0.02], method="rk4", steps=5, adjoint="direct")[-1]
        return (end.square() * torch.linspace(-1, 2, 16, dtype=torch.float64)).sum()

    assert taylor_test(loss, u0, torch.tensor(1.1, dtype=torch.float64), h=2e-5) > 1.8
