"""Error control for every sample by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import MLP
from scipy.integrate import solve_ivp
from test_composition import StoredReversible
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, Control, ReversibleAdjoint, SolveError, odeint, solve

STIFFNESS = torch.tensor([0.5, 3.0, 8.0]).double()[:, None]


def oscillators(t: Tensor, y: Tensor) -> Tensor:
    """Van der Pol, of another stiffness for each sample."""
    q, v = y.split(1, dim=1)
    return torch.cat([v, STIFFNESS * (1 - q**2) * v - q], 1)


def start() -> Tensor:
    return torch.tensor([[2.0, 0.0]]).double().repeat(3, 1).requires_grad_()


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5", "dopri8"])
def test_every_sample_keeps_the_tolerance_with_steps_of_its_own(method: str) -> None:
    solution = solve(oscillators, start(), [0.0, 1.0, 3.0], method=method, rtol=1e-5, atol=1e-5, per_sample=True)
    for sample, mu in enumerate(STIFFNESS.flatten().tolist()):
        f = lambda t, y, mu=mu: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]
        exact = torch.tensor(solve_ivp(f, (0, 3), [2.0, 0.0], method="DOP853", rtol=1e-13, atol=1e-13, t_eval=[0, 1, 3]).y.T)
        assert (solution.ys[:, sample] - exact).abs().max() < 1e-4
    assert solution.ts.tolist() == [0.0, 1.0, 3.0]
    assert all(time.shape == (3, 1) for time in solution.grid)
    moved = torch.stack(solution.grid).diff(dim=0) > 0
    assert len(set(moved.sum(0).flatten().tolist())) == 3  # the stiffer, the more steps


@pytest.mark.parametrize("falling", [False, True])
def test_a_sample_of_a_batch_takes_the_steps_that_it_takes_alone(falling: bool) -> None:
    t = [1.5, 0.0] if falling else [0.0, 1.5]
    options: dict[str, Any] = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}
    f = lambda t, y: y * torch.cos(5 * t) - 0.1 * y**3
    y0 = torch.tensor([[0.1], [0.5], [1.0]]).double()
    grid = torch.cat(solve(f, y0, t, **options, per_sample=True).grid, dim=1)
    for sample in range(3):
        alone = solve(f, y0[sample : sample + 1], t, **options)
        own = torch.unique_consecutive(grid[sample])
        torch.testing.assert_close(own, torch.tensor(alone.grid, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=3), CheckpointAdjoint(memory="1MB")], ids=str)
def test_gradients_are_those_of_plain_autograd(adjoint: Any) -> None:
    net, y0 = MLP(2), torch.tensor([[0.1, 2.0], [5.0, -1.0], [0.0, 0.3]]).double().requires_grad_()
    ends = []
    for how in ("direct", adjoint):
        ys = odeint(lambda t, y: 5 * net(t, y), y0, [0.0, 0.5, 1.0], method="dopri5", rtol=1e-5, atol=1e-5, per_sample=True, adjoint=how)
        ends.append(torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()]))
    assert torch.equal(ends[0][0], ends[1][0])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-13)


def test_the_gradient_matches_differences() -> None:
    f = lambda t, y, w: w * torch.sin(y) - t * y
    options: dict[str, Any] = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10, "per_sample": True}
    loss = lambda w: odeint(f, torch.tensor([[0.3], [2.0]]).double(), [0.0, 1.0], args=(w,), **options)[-1].square().sum()
    w = torch.tensor(1.2).double().requires_grad_()
    (found,) = torch.autograd.grad(loss(w), w)
    with torch.no_grad():
        assert found.item() == pytest.approx(((loss(w + 1e-5) - loss(w - 1e-5)) / 2e-5).item(), rel=1e-7)


def test_a_reversible_solve_on_times_of_their_own() -> None:
    y0, ends = start(), []
    for adjoint in (StoredReversible(), ReversibleAdjoint()):
        ys = odeint(oscillators, y0, [0.0, 0.3], method="dopri5", rtol=1e-4, atol=1e-4, per_sample=True, adjoint=adjoint)
        ends.append(torch.autograd.grad(ys[-1].sum(), y0)[0])
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)


def test_func_gets_a_time_for_each_sample() -> None:
    seen: list[tuple[int, ...]] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(tuple(t.shape))
        return -y

    odeint(f, torch.ones(4, 2, 3), [0.0, 1.0], method="dopri5", rtol=1e-3, atol=1e-3, per_sample=True)
    assert set(seen) == {(4, 1, 1)}


def test_random_numbers_are_left_to_the_solve() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).double()
    options: dict[str, Any] = {"method": "bosh3", "rtol": 1e-1, "atol": 1e-1, "per_sample": True}
    ends = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(3)
        y0 = torch.ones(3, 2).double().requires_grad_()
        (found,) = torch.autograd.grad(odeint(lambda t, y: net(y), y0, [0.0, 0.1], adjoint=adjoint, **options)[-1].sum(), y0)
        ends.append(found)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y0": (torch.ones(2), torch.ones(2))}, "single tensor with a batch axis"),
        ({"y0": torch.tensor(1.0)}, "single tensor with a batch axis"),
        ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, "no gradient with respect to times"),
        ({"func": nn.BatchNorm1d(2)}, "BatchNorm in training mode"),
        ({"rtol": None, "steps": 3}, "instead of a grid"),
        ({"adjoint": "backsolve"}, "common times"),
    ],
)
def test_what_has_no_times_of_its_own_is_refused(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"func": lambda t, y: -y, "y0": torch.ones(2, 2, requires_grad=True), "t": [0.0, 1.0], "rtol": 1e-3, **change}
    if isinstance(norm := call["func"], nn.Module):
        call["func"] = lambda t, y: norm(y)
    with pytest.raises(ValueError, match=message):
        odeint(call.pop("func"), call.pop("y0"), call.pop("t"), method="dopri5", per_sample=True, **call).sum().backward()
    with pytest.raises(ValueError, match="need common ones"):
        solve(lambda t, y: -y, torch.ones(2, 2), [0.0, 1.0], method="dopri5", per_sample=True, dense=True)


def test_a_sample_that_is_stuck_is_named() -> None:
    y0 = torch.tensor([[0.5], [2.0]]).double()
    with pytest.raises(SolveError, match=r"sample 1 of the batch at t=0\.5") as caught:
        odeint(lambda t, y: y**2, y0, [0.0, 1.0], method="dopri5", per_sample=True)
    assert caught.value.status.element == (1,)


def test_control_is_that_of_the_batch() -> None:
    y0 = torch.ones(2, 1).double()
    for control in (Control(max_step=0.05), Control(first_step=0.01, grow=1.5), Control(pid=(0.4, 0.3, 0.0))):
        options: dict[str, Any] = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4, "control": control}
        f = lambda t, y: torch.cos(3 * t) * y
        own = torch.cat(solve(f, y0, [0.0, 2.0], per_sample=True, **options).grid, dim=1)[0]
        torch.testing.assert_close(own, torch.tensor(solve(f, y0, [0.0, 2.0], **options).grid, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("onset", [-1.0, 0.3])
def test_a_sample_whose_func_is_not_finite_is_named(onset: float, value: float) -> None:
    f = lambda t, y: torch.where((t > onset) & (y > 1), value, -y)
    with pytest.raises(SolveError, match=r"sample 1 of the batch at t=.*: ") as caught:
        odeint(f, torch.tensor([[0.5], [2.0]]).double(), [0.0, 1.0], method="dopri5", per_sample=True)
    assert caught.value.status.reason in ("not finite", "step size")


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one sample, got y0 of shape \(0, 2\)"):
        odeint(lambda t, y: -y, torch.ones(0, 2), [0.0, 1.0], method="dopri5", per_sample=True)
