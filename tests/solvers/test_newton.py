"""Newton's iteration of implicit methods: every element to its own precision, whatever its size, its stiffness and what is beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from anodev2 import BackwardEuler, ImplicitMidpoint, SolveError, odeint, solve
from anodev2.pde import Diffusion, Grid1D
from problems import IMPLICIT, MLP

DTYPES = [torch.float32, torch.float64]
SIZES = torch.logspace(-6, 6, 13, dtype=torch.float64)
STIFFNESS = [1e-9, 1e-5, 1e-2, 1.0, 1e3, 1e6]
SLOW = pytest.mark.slow
LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "elements": lambda x: x,
    "samples": lambda x: x[:, None].expand(-1, 3),
    "leaves": lambda x: {"a": x[:6], "b": (x[6:12].reshape(2, 3), x[12])},
}


def factor(method: str, z: Any) -> Any:
    """What a step multiplies y by, for y' = -z y / dt."""
    return 1 / (1 + z) if method == "backward_euler" else (1 - z / 2) / (1 + z / 2)


def flat(y: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1).double() for leaf in tree_leaves(y)])


def close(found: Tensor, exact: Tensor, precision: float) -> None:
    """Relative to each element, but for what underflows."""
    assert ((found - exact).abs() <= precision * exact.abs() + 1e-37).all(), ((found - exact) / exact).abs().max()


@pytest.mark.parametrize("stiffness", [*(pytest.param(z, marks=SLOW) for z in STIFFNESS), "rising", "falling"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", IMPLICIT)
def test_linear_decay_is_the_recursion(method: str, dtype: torch.dtype, layout: str, stiffness: Any) -> None:
    rates = torch.full_like(SIZES, stiffness) if isinstance(stiffness, float) else torch.logspace(-9, 6, 13, dtype=torch.float64)
    rates, sizes, pack = (rates.flip(0) if stiffness == "falling" else rates).to(dtype), SIZES.to(dtype), LAYOUTS[layout]
    f = lambda t, y: tree_map(lambda leaf, rate: -rate * leaf, y, pack(rates))
    for steps in (1, 4):
        y = odeint(f, pack(sizes), [0.0, float(steps)], method=method, steps=steps)
        exact = pack(sizes.double() * factor(method, rates.double()) ** steps)
        close(flat(tree_map(lambda leaf: leaf[-1], y)), flat(exact), 6 * steps * max(torch.finfo(dtype).eps, 1e-12))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", IMPLICIT)
def test_many_small_steps_add_up(method: str, dtype: torch.dtype) -> None:
    steps, z = 100, torch.tensor([1e-6, 1e-5, 1e-2, 1.0], dtype=torch.float64)
    y = odeint(
        lambda t, y: -z.to(dtype) * y, torch.tensor([1e3, 1, 1e-3, 1e6], dtype=dtype), [0.0, float(steps)], method=method, steps=steps
    )
    moved = 1 - y[-1][:2].double() / torch.tensor([1e3, 1.0])
    exact = 1 - factor(method, z.to(dtype).double()) ** steps
    assert ((moved - exact[:2]).abs() <= 1e-3 * exact[:2] + steps * torch.finfo(dtype).eps / 2).all()


@SLOW
@pytest.mark.parametrize("method", IMPLICIT)
def test_ten_thousand_steps_in_single_precision(method: str) -> None:
    y = odeint(lambda t, y: -1e-3 * y, torch.ones(1), [0.0, 100.0], method=method, steps=10_000)[-1]
    assert y.item() == pytest.approx(factor(method, 1e-5) ** 10_000, rel=2e-3)


@pytest.mark.parametrize("stiffness", [*(pytest.param(z, marks=SLOW) for z in STIFFNESS[:3]), *STIFFNESS[3:]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", IMPLICIT)
def test_nonlinear_decay_is_what_brent_finds(method: str, dtype: torch.dtype, stiffness: float) -> None:
    """y' = -l y (1 + (y / s)^2), the same for every size s."""
    size, exact, node = SIZES.to(dtype), 1.0, 1.0 if method == "backward_euler" else 0.5
    rate = float(torch.tensor(stiffness, dtype=dtype))
    y = odeint(lambda t, y: -rate * y * (1 + (y / size) ** 2), size, [0.0, 3.0], method=method, steps=3)[-1]
    for _ in range(3):
        w: Any = brentq(lambda w, y=exact: w - y + node * rate * w * (1 + w * w), 0, exact, xtol=1e-300, rtol=np.float64(1e-15))
        exact = (w - exact) / node + exact
    close(y.double() / SIZES, torch.full_like(SIZES, exact), 50 * max(torch.finfo(dtype).eps, 1e-12))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", IMPLICIT)
def test_coupled_elements_in_any_units(method: str, dtype: torch.dtype) -> None:
    matrix = torch.tensor([[-2.0, 1, 0], [1, -3.0, 0.5], [0.3, -1, -100.0]], dtype=torch.float64)
    units = torch.tensor([1e6, 1e-6, 1.0], dtype=torch.float64)
    scaled = (units[:, None] * matrix / units).to(dtype)
    y = odeint(lambda t, y: scaled @ y, units.to(dtype), [0.0, 1.0], method=method, steps=5)[-1].double() / units
    exact, one = torch.ones(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    for _ in range(5):
        w = torch.linalg.solve(one - (0.2 if method == "backward_euler" else 0.1) * matrix, exact)
        exact = w if method == "backward_euler" else 2 * w - exact
    close(y, exact, 100 * max(torch.finfo(dtype).eps, 1e-12))


@pytest.mark.parametrize("end", [0.3, 40.0, 4000.0])
def test_robertsons_reaction_in_single_precision(end: float) -> None:
    """Rates from 0.04 to 3e7; the middle concentration is 1e-5 of the others."""

    def reaction(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        first, second = 0.04 * a - 1e4 * b * c, 3e7 * b**2
        return torch.stack([-first, first - second, second], -1)

    run = lambda dtype: odeint(reaction, torch.tensor([1.0, 0, 0], dtype=dtype), [0.0, end], method="backward_euler", steps=40)[-1]
    close(run(torch.float32).double(), run(torch.float64), 1e-4)


@pytest.mark.parametrize("pulse", ["bell", *(pytest.param(name, marks=SLOW) for name in ("box", "point", "wave"))])
@pytest.mark.parametrize("stiffness", [1.0, 1e6, *(pytest.param(z, marks=SLOW) for z in (1e-3, 740.0, 1e4))])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", IMPLICIT)
def test_fields_of_two_sizes_diffuse_in_few_evaluations(method: str, dtype: torch.dtype, stiffness: float, pulse: str) -> None:
    """A pulse with tails below round-off, and 1e-12 of another that steepens slowly; f itself loses the stiffness in round-offs."""
    n = 64
    equation, x = Diffusion(Grid1D(n), 1.0).to(dtype), torch.arange(n, dtype=torch.float64) / n
    starts = {
        "box": (x - 0.5).abs() < 0.2,
        "bell": torch.exp(-((x - 0.5) ** 2) * 1e4),
        "point": x == 0.5,
        "wave": torch.sin(2 * torch.pi * x),
    }
    u0, step = starts[pulse].double(), stiffness / (4 * n**2)
    both, rates = torch.stack([u0, 1e-12 * (x - 0.3).abs()]).to(dtype), (1.0, -0.3 / stiffness)
    f = lambda t, u: torch.tensor(rates, dtype=dtype)[:, None] * equation(t, u)
    found = solve(f, both, [0.0, 2 * step], method=method, steps=2)
    matrix = np.asarray(Diffusion(Grid1D(n), 1.0).double().matrix())
    for sample, rate in enumerate(rates):
        exact = both[sample].double().numpy()
        size = np.abs(exact).max()
        for _ in range(2):
            w = np.linalg.solve(np.eye(n) - rate * step * (1 if method == "backward_euler" else 0.5) * matrix, exact)
            exact = w if method == "backward_euler" else 2 * w - exact
        allowed = 8 * max(torch.finfo(dtype).eps * max(stiffness * rate, 1.0), 1e-12)
        assert np.abs(found.ys[-1, sample].double().numpy() - exact).max() <= allowed * size
    assert found.stats.evaluations_forward <= 2 * 12


def test_a_network_in_single_precision_whose_rounding_exceeds_what_is_allowed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 64))
    y0, ends = torch.randn(16, 64), []
    for dtype in DTYPES:
        net.to(dtype)
        ends.append(odeint(lambda t, y: 5 * net(y), y0.to(dtype), [0.0, 1.0], method="backward_euler", steps=3)[-1].double())
    torch.testing.assert_close(*ends, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", IMPLICIT)
def test_leaves_of_several_precisions(method: str) -> None:
    rates, dtypes = (3.0, 500.0, 1e-2), (torch.float32, torch.float64, torch.bfloat16)
    start = tuple(torch.ones(2, dtype=dtype) for dtype in dtypes)
    ends = odeint(lambda t, y: tuple(-rate * leaf for rate, leaf in zip(rates, y, strict=True)), start, [0.0, 1.0], method=method, steps=10)
    for end, rate, dtype in zip(ends, rates, dtypes, strict=True):
        assert end.dtype == dtype
        close(end[-1].double(), torch.tensor(factor(method, rate / 10) ** 10, dtype=torch.float64), 20 * max(torch.finfo(dtype).eps, 1e-12))


@pytest.mark.parametrize("method", IMPLICIT)
def test_gradcheck(method: str) -> None:
    torch.manual_seed(0)
    matrix, sizes = torch.randn(3, 3, dtype=torch.float64, requires_grad=True), torch.tensor([1.0, 1e2, 1e-2], dtype=torch.float64)
    f = lambda t, y, a: sizes * (3 * torch.tanh((y / sizes) @ a) - t * y / sizes)
    y0 = (sizes * torch.randn(2, 3, dtype=torch.float64)).requires_grad_()
    end = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def run(y: Tensor, a: Tensor, end: Tensor) -> Tensor:
        return odeint(f, y, torch.stack([torch.zeros_like(end), end]), method=method, steps=3, args=(a,), adjoint="direct")[-1]

    assert torch.autograd.gradcheck(run, (y0, matrix, end))
    assert torch.autograd.gradcheck(lambda y: run(y, matrix, end)[:, :1].sum(), y0)  # parts of the state without a gradient


@pytest.mark.parametrize("stiffness", [*(pytest.param(z, marks=SLOW) for z in STIFFNESS), "rising"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", IMPLICIT)
def test_gradients_of_any_size_are_those_of_the_recursion(method: str, dtype: torch.dtype, stiffness: Any) -> None:
    rates = torch.logspace(-9, 6, 13, dtype=torch.float64) if stiffness == "rising" else torch.full_like(SIZES, stiffness)
    y0, rate = SIZES.to(dtype, copy=True).requires_grad_(), rates.to(dtype, copy=True).requires_grad_()
    end = odeint(lambda t, y: -rate * y, y0, [0.0, 3.0], method=method, steps=3, adjoint="direct")[-1]
    (of_y0, of_rate) = torch.autograd.grad((end * SIZES.to(dtype).flip(0)).sum(), (y0, rate))
    y, z = SIZES.to(dtype).to(torch.float64, copy=True).requires_grad_(), rates.to(dtype).to(torch.float64, copy=True).requires_grad_()
    exact = torch.autograd.grad((y * factor(method, z) ** 3 * SIZES.to(dtype).double().flip(0)).sum(), (y, z))
    close(of_y0.double(), exact[0], 30 * max(torch.finfo(dtype).eps, 1e-12))
    # one rate: (1 - z/2)^2 loses digits where z is near 2, and its derivative -1 / (1 + z/2)^2 dies out where z is large
    close(of_rate.double(), exact[1], 1e3 * max(torch.finfo(dtype).eps, 1e-12))


class Foreign(torch.autograd.Function):
    """-y^3, of which autograd knows one derivative."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return -(y**3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -3 * ctx.saved_tensors[0] ** 2 * g


@pytest.mark.parametrize("method", IMPLICIT)
def test_fields_without_a_second_derivative_are_differenced(method: str) -> None:
    y0 = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    run = lambda f, y0=y0: odeint(f, y0, [0.0, 2.0], method=method, steps=4, adjoint="direct")[-1]
    wanted = run(lambda t, y: -(y**3))
    hidden = lambda t, y: torch.from_numpy(-(y.detach().numpy() ** 3))
    for f in (hidden, lambda t, y: Foreign.apply(y), torch.compile(lambda t, y: -(y**3), backend="aot_eager")):
        torch.testing.assert_close(run(f), wanted, rtol=1e-10, atol=0)
    y = y0.clone().requires_grad_()
    (found,) = torch.autograd.grad(run(lambda t, y: Foreign.apply(y), y).sum(), y)
    torch.testing.assert_close(found, torch.autograd.grad(run(lambda t, y: -(y**3), y).sum(), y)[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", IMPLICIT)
def test_models_of_inference_mode_are_stepped(method: str) -> None:
    net, y0 = MLP(), torch.ones(2, 4, dtype=torch.float64)
    wanted = odeint(net, y0, [0.0, 1.0], method=method, steps=2)[-1].detach()
    with torch.inference_mode():
        made = MLP()
        made.load_state_dict(net.state_dict())
        for model in (net, made):
            torch.testing.assert_close(odeint(model, y0, [0.0, 1.0], method=method, steps=2)[-1], wanted, rtol=1e-11, atol=0)


@pytest.mark.parametrize("stepper", [BackwardEuler, ImplicitMidpoint])
def test_those_who_watch_what_is_saved_see_one_evaluation_however_long_newton_takes(stepper: Any) -> None:
    net, y0 = MLP(), torch.ones(2, 4, dtype=torch.float64, requires_grad=True)

    def saved(tolerance: float) -> tuple[int, int]:
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.numel()) or x.detach(), lambda x: x):
            run = solve(lambda t, y: 9 * net(t, y), y0, [0.0, 1.0], method=stepper(tolerance=tolerance), steps=1, adjoint="direct")
        run.ys.sum().backward()
        return sum(seen), run.stats.evaluations_forward

    (short, few), (long, many) = saved(1e-1), saved(1e-14)
    assert short == long and few < many


def test_values_that_are_not_finite_are_told() -> None:
    with pytest.raises(SolveError, match=r"at t=0, step 1: Newton's iteration of backward_euler met values that are not finite"):
        odeint(lambda t, y: y * float("nan"), torch.ones(2), [0.0, 1.0], method="backward_euler", steps=1)
