"""Output times within steps: what they cost, how accurate they are, and their gradients under every adjoint."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from anodev2 import METHODS, CheckpointAdjoint, Tableau, odeint, solve
from problems import CONTROLLED, MLP, STIFF, Pendulum, pendulum_state, vector
from sampled import rows

ADJOINTS = {
    "direct": "direct",
    "checkpoint": "checkpoint",
    "slots": CheckpointAdjoint(slots=2),
    "offload": CheckpointAdjoint(offload="cpu"),
}
A = vector(-0.1, 2.0, -2.0, -0.1).view(2, 2)


def same(a: Any, b: Any) -> bool:
    return all(map(torch.equal, tree_leaves(a), tree_leaves(b)))


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ A


def counted(n: int, method: str, **options: Any) -> tuple[int, int, Tensor]:
    """Evaluations and steps over [0, 25] for n output times, and the states."""
    times = torch.linspace(0, 25, n, dtype=torch.float64)
    found = solve(spiral, vector(2, 0), times, method=method, rtol=1e-6, atol=1e-8, **options)
    return found.stats.evaluations_forward, len(found.grid) - 1, found.ys


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8"])
def test_output_times_cost_nothing_or_the_further_stages_of_their_steps(method: str) -> None:
    """So many evaluations over [0, 25] at 1e-6, for 2 times and for 4000 (dopri5: 24,008 where steps end at each)."""
    few, steps, ends = counted(2, method)
    assert few == {"dopri5": 1694, "tsit5": 1502, "bosh3": 3869, "dopri8": 1192}[method]
    many, also, ys = counted(4000, method)
    assert also == steps and torch.equal(ys[-1], ends[-1])  # the same steps
    assert many == few + (
        4 * (steps - 1) + 1 if method == "dopri8" else 0
    )  # a slope at the end is the next first; none in the short first step
    if method == "dopri5":
        assert counted(4000, method, hit="exact")[0] == 24_002
    f = lambda t, y: y**3 @ A.numpy()
    nodes = solve(spiral, vector(2, 0), [0.0, 25.0], method=method, rtol=1e-6, atol=1e-8, save="steps")
    exact = solve_ivp(f, (0, 25), [2.0, 0.0], "DOP853", dense_output=True, rtol=1e-13, atol=1e-13).sol
    off = np.abs(nodes.ys.numpy() - exact(nodes.ts.numpy()).T).max()
    assert np.abs(ys.numpy() - exact(np.linspace(0, 25, 4000)).T).max() < 1.5 * off


def test_dopri8_keeps_its_tolerance_between_steps() -> None:
    """A cubic was 1.7e-4 off. Eight digits of a circle, a long step each."""
    f = lambda t, y: torch.stack([y[1], -y[0]])
    times = torch.linspace(0, 10, 501, dtype=torch.float64)
    found = solve(f, vector(0, 1), times, method="dopri8", rtol=1e-9, atol=1e-9)
    assert len(found.grid) == 22
    assert (found.ys[:, 0] - torch.sin(times)).abs().max() < 2e-9


class Driven(nn.Module):
    """Two leaves of different dtype, a parameter, an argument, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP()

    def forward(self, t: Tensor, y: dict[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
        return {"z": scale * self.net(t, y["z"]), "w": 1j * torch.cos(t) * y["w"] + 0.1 * y["z"].mean()}


def gradients(adjoint: Any, method: str, times: Tensor, **options: Any) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    f, t = Driven(), times.clone().requires_grad_()
    y0 = {"z": torch.randn(2, 4, dtype=torch.float64).requires_grad_(), "w": torch.randn(3, dtype=torch.complex128).requires_grad_()}
    scale = torch.tensor([1.2, 0.7, 1.0, 0.4], dtype=torch.float64).requires_grad_()
    ys = odeint(f, y0, t, method=method, args=(scale,), adjoint=adjoint, **options)
    weights = torch.randn(len(times), 2, 4, dtype=torch.float64)
    loss = (ys["z"] * weights).sum() + (ys["w"].abs() ** 2).sum()
    return ys, list(torch.autograd.grad(loss, [*y0.values(), scale, t, *f.parameters()]))


EXPLICIT = ["dopri5", "heun2", "ssprk3", "dopri8"]
QUICK = [*itertools.product(("adaptive", "given"), EXPLICIT), ("adaptive", "rodas4"), ("adaptive", "kvaerno5"), ("adaptive", "auto")]


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)], ids=["rising", "falling"])
@pytest.mark.parametrize(("kind", "method"), rows(("adaptive", "given"), [*EXPLICIT, *STIFF, "auto"], quick=QUICK))
def test_gradients_are_those_of_plain_autograd(kind: str, method: str, span: tuple[float, float]) -> None:
    """States to the bit, gradients with respect to states, arguments, parameters and the times themselves."""
    times = torch.linspace(*span, 9, dtype=torch.float64)
    if (kind, method) == ("given", "auto"):
        return  # it has no grid
    tolerance: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2} if method in ("heun2", *STIFF) else {"rtol": 1e-4, "atol": 1e-4}
    options = {"hit": "between"} | (tolerance if kind == "adaptive" else {"grid": [span[0], 0.3 * span[1] + 0.7 * span[0], span[1]]})
    right = gradients("direct", method, times, **options)
    for adjoint in ("checkpoint", "slots", "offload"):
        found = gradients(ADJOINTS[adjoint], method, times, **options)
        assert same(found[0], right[0])
        for a, b in zip(found[1], right[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "adjoint"),
    rows(["tsit5", "dopri8", *STIFF], ADJOINTS, quick=[*itertools.product(("tsit5", "dopri8"), ADJOINTS), ("rodas5p", "slots")]),
)
def test_gradients_of_states_within_steps_are_those_of_differences(method: str, adjoint: str) -> None:
    """With respect to the start, the output times, and the grid's own first and last time, on the grid that was found."""
    net, weights = MLP(2), torch.randn(5, 2, dtype=torch.float64)
    y0, t = torch.randn(2, dtype=torch.float64), vector(0.0, 0.31, 0.55, 0.9, 1.4)
    grid = solve(net, y0, [0.0, 1.4], method=method, rtol=1e-3, atol=1e-3).grid
    assert not {0.31, 0.55, 0.9} & set(grid)

    def loss(y0: Tensor, t: Tensor) -> Tensor:
        nodes = [t[0], *grid[1:-1], t[-1]]
        return (odeint(net, y0, t, method=method, grid=nodes, hit="between", adjoint=ADJOINTS[adjoint]) * weights).sum()

    inputs = [x.clone().requires_grad_() for x in (y0, t)]
    found = torch.autograd.grad(loss(*inputs), inputs)
    shift = lambda x, i: 1e-5 * torch.eye(len(x), dtype=x.dtype)[i]
    with torch.no_grad():
        for i in range(len(y0)):
            slope = (loss(y0 + shift(y0, i), t) - loss(y0 - shift(y0, i), t)) / 2e-5
            assert found[0][i].item() == pytest.approx(slope.item(), abs=1e-8)
        for i in range(len(t)):
            slope = (loss(y0, t + shift(t, i)) - loss(y0, t - shift(t, i))) / 2e-5
            assert found[1][i].item() == pytest.approx(slope.item(), abs=1e-7)


def test_gradients_of_a_curve_have_their_closed_form() -> None:
    """y' = -a y: d/da of sum_i exp(-a t_i) is -sum_i t_i exp(-a t_i)."""
    times = torch.linspace(0, 3, 100, dtype=torch.float64)
    for method in ("dopri5", "tsit5", "dopri8"):
        for adjoint in (*ADJOINTS.values(), "backsolve"):
            a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
            ys = odeint(lambda t, y, a: -a * y, vector(1), times, method=method, rtol=1e-9, atol=1e-9, args=(a,), adjoint=adjoint)
            (found,) = torch.autograd.grad(ys.sum(), a)
            assert found.item() == pytest.approx(-(times * torch.exp(-0.7 * times)).sum().item(), rel=1e-7)


@pytest.mark.parametrize("method", CONTROLLED)
def test_a_recorded_grid_replays_states_within_steps_bit_for_bit(method: str) -> None:
    f, state, times = Pendulum(), pendulum_state(False), [0.0, 0.3, 0.31, 0.9, 2.0]
    tableau = METHODS[method]
    assert isinstance(tableau, Tableau)
    for t in (times, times[::-1]):
        found = solve(f, state, t, method=method, rtol=1e-3, atol=1e-3, hit="between")
        assert not {0.3, 0.31, 0.9} <= set(found.grid)
        again = solve(f, state, t, method=method, grid=found.grid)
        assert same(found.ys, again.ys)
        assert same(found.ys, odeint(f, state, t, method=method, grid=found.grid, adjoint="direct"))
        more = tableau.stages - tableau.advancing + len(tableau.further)
        holding = len({sum(abs(node - t[0]) < abs(time - t[0]) for node in found.grid) for time in t[1:-1]})
        assert again.stats.evaluations_forward == again.stats.accepted * tableau.advancing + holding * more


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")  # torch's own decompositions
def test_states_within_steps_go_through_transforms_and_compilers() -> None:
    net, y0, times, grid = MLP(2), torch.randn(3, 2, dtype=torch.float64), [0.0, 0.2, 0.25, 1.0], [0.0, 0.4, 1.0]
    run = lambda y: odeint(net, y, times, method="tsit5", grid=grid)
    right = run(y0)
    torch.testing.assert_close(torch.func.vmap(run, out_dims=1)(y0), right, rtol=1e-13, atol=1e-13)
    v = torch.randn_like(y0)
    forward = torch.func.jvp(run, (y0,), (v,))[1]
    start = y0.clone().requires_grad_()
    (back,) = torch.autograd.grad(run(start).sum(), start)
    assert forward.sum().item() == pytest.approx((back * v).sum().item(), rel=1e-12)
    torch._dynamo.reset()
    traced = torch.compile(run, fullgraph=True, backend="eager")
    start = y0.clone().requires_grad_()
    again = traced(start)
    torch.testing.assert_close(again, right, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), start)[0], back, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", "slots"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_output_times_leave_no_trace(method: str, adjoint: str) -> None:
    """In random numbers, in statistics, in the states of a field with dropout and BatchNorm; nor in the gradient at the end."""
    ends = []
    for times in ([0.0, 1.0], [0.0, 0.1, 0.33, 0.34, 0.7, 1.0]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.1)).double()
        y0 = torch.randn(5, 4, dtype=torch.float64)
        f = lambda t, y, net=net: 0.1 * net(y) - y
        options: dict[str, Any] = {"method": method, "grid": [0.0, 0.15, 0.5, 1.0], "adjoint": ADJOINTS[adjoint]}
        ys = odeint(f, y0, times, **options)
        found = torch.autograd.grad(ys[-1].sum(), list(net.parameters()))
        ends.append([ys[-1], *net.buffers(), torch.get_rng_state(), *found])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_the_states_of_steps_with_outputs_alone_may_be_asked_for() -> None:
    """A loss of states within one step, of several, of none at the end: steps after them are not redone."""
    net, y0 = MLP(2), torch.randn(2, dtype=torch.float64)
    times = [0.0, 0.1, 0.35, 0.36, 1.0]
    for some in ([1], [2], [2, 3], [1, 4], [0, 3]):
        found = []
        for adjoint in ADJOINTS.values():
            start = y0.clone().requires_grad_()
            ys = odeint(net, start, times, method="dopri5", grid=[0.0, 0.2, 0.5, 0.7, 1.0], adjoint=adjoint)
            found.append(torch.autograd.grad(ys[some].sum(), [start, *net.parameters()], allow_unused=True))
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                assert (a is None) == (b is None)
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_saving_functions_dense_solutions_and_ends_see_the_same() -> None:
    times = torch.linspace(0, 3, 20).tolist()
    options: dict[str, Any] = {"method": "tsit5", "rtol": 1e-5, "atol": 1e-5}
    plain = solve(spiral, vector(2, 0), times, **options)
    assert plain.ts.tolist() == times and torch.equal(plain.ys, odeint(spiral, vector(2, 0), times, **options))
    dense = solve(spiral, vector(2, 0), times, dense=True, **options)
    assert torch.equal(dense.ys, plain.ys) and torch.equal(dense(times), plain.ys) and dense.grid == plain.grid
    norms = solve(spiral, vector(2, 0), times, save=lambda t, y: (t, y.norm()), **options)
    assert torch.equal(norms.ys[1], torch.stack([y.norm() for y in plain.ys])) and norms.ys[0].tolist() == times
    assert torch.equal(solve(spiral, vector(2, 0), times, save="end", **options).ys, plain.ys[-1:])
    every = solve(spiral, vector(2, 0), times, save="steps", **options)
    assert tuple(every.ts.tolist()) == plain.grid


def test_a_tableau_without_interpolant_ends_steps_at_output_times() -> None:
    bare = METHODS["dopri5"]
    assert isinstance(bare, Tableau)
    own = Tableau("own", 5, bare.a, bare.b, bare.c, bare.b_hat, 4)
    times = [0.0, 0.3, 1.0]
    found = solve(spiral, vector(2, 0), times, method=own, rtol=1e-6, atol=1e-6)
    assert set(times) <= set(found.grid)
    right = solve(spiral, vector(2, 0), times, method="dopri5", hit="exact", rtol=1e-6, atol=1e-6)
    assert torch.equal(found.ys, right.ys) and not {0.3} & set(solve(spiral, vector(2, 0), times, method="dopri5").grid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hit": "near"}, "hit='near' must be 'between'"),
        ({"method": "rk4", "grid": [0.0, 0.4, 1.0]}, "0.5 is not in it; states within steps are read by methods with an interpolant"),
        ({"grid": [0.0, 0.4, 1.0], "adjoint": "reversible"}, "ReversibleAdjoint has no interpolant.*hit='exact'"),
        ({"grid": [0.0, 0.4, 1.0], "compile": True}, "compile=True needs a grid that holds every time"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        odeint(spiral, vector(2, 0).requires_grad_(), [0.0, 0.5, 1.0], **{"method": "dopri5", **change})


def test_a_solve_that_ends_early_has_the_output_times_that_it_reached() -> None:
    found = solve(lambda t, y: y**2, vector(1), torch.linspace(0, 2, 21).tolist(), method="dopri5", throw=False)
    assert not found.status.ok and found.ts.tolist() == pytest.approx([0.1 * i for i in range(11)])
    assert found.ys[:10, 0].tolist() == pytest.approx([1 / (1 - 0.1 * i) for i in range(10)], rel=1e-5)
    assert math.isfinite(found.ys.sum().item()) and len(tree_leaves(found.ys)) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.parametrize("what", ["t", "stacked", "breaks", "grid"])
@pytest.mark.parametrize("how", ["jacfwd", "jvp", "dual"])
def test_forward_mode_has_no_derivative_of_times(what: str, how: str) -> None:
    """It is refused; reverse mode has it, and so has forward over reverse."""
    y0, rate = torch.zeros(1, dtype=torch.float64), lambda t, y: torch.cos(t) + 0 * y

    def run(time: Tensor) -> Tensor:
        t = {"t": [0.0, time, 1.0], "stacked": torch.stack([torch.zeros_like(time), time])}.get(what, [0.0, 1.0])
        more: dict[str, Any] = (
            {"grid": [0.0, time, 1.0]} if what == "grid" else {"steps": 2, "breaks": [time] if what == "breaks" else None}
        )
        return odeint(rate, y0, t, method="rk4", adjoint="direct", **more)[1].sum()

    def dual(time: Tensor) -> None:
        with forward_ad.dual_level():
            run(forward_ad.make_dual(time, torch.ones_like(time)))

    at = torch.tensor(0.5, dtype=torch.float64)
    ways: dict[str, Any] = {
        "jacfwd": lambda: torch.func.jacfwd(run)(at),
        "jvp": lambda: torch.func.jvp(run, (at,), (at,)),
        "dual": lambda: dual(at),
    }
    with pytest.raises(ValueError, match=r"no derivative in forward mode.*reverse"):
        ways[how]()
    if what in ("t", "stacked"):
        torch.testing.assert_close(torch.func.jacrev(run)(at), at.cos(), rtol=1e-3, atol=0)
        torch.testing.assert_close(torch.func.hessian(run)(at), -at.sin(), rtol=5e-2, atol=0)
