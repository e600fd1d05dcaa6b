"""Error control for every sample by itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, Control, ReversibleAdjoint, SolveError, odeint, solve
from faithful import StoredReversible
from problems import MLP

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
    with pytest.raises(ValueError, match=r"at least one sample with an element, got y0 of shape \(0, 2\)"):
        odeint(lambda t, y: -y, torch.ones(0, 2), [0.0, 1.0], method="dopri5", per_sample=True)


FAILURES = [
    pytest.param(*row, marks=() if row[0] in (1.0, 3.0) and row[2] == "bosh3" else pytest.mark.slow)
    for row in product(
        (1e-3, 0.25, 0.5, 1.0, 2.0, 3.0, 1e3), (False, True), ("bosh3", "dopri5", "tsit5", "dopri8"), (torch.float32, torch.float64)
    )
]


@pytest.mark.parametrize(("at", "falling", "method", "dtype"), FAILURES)
def test_samples_that_fail_are_named_and_the_others_go_on(at: float, falling: bool, method: str, dtype: torch.dtype) -> None:
    """y' = sqrt(1 - t / at) y has no values beyond ``at`` (before it, where t falls); for the others y' = y / at."""
    doomed = torch.tensor([[False], [True], [False], [True]])
    t, sign = ([1.5 * at, 0.8 * at, 0.0], -1) if falling else ([0.0, 1.2 * at, 2 * at], 1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return sign * y * torch.where(doomed, torch.sqrt(sign * (1 - t / at)), 1.0) / at

    options: dict[str, Any] = {"method": method, "rtol": 1e-4, "atol": 1e-6, "per_sample": True}
    y0 = torch.ones(4, 1, dtype=dtype)
    found = solve(f, y0, t, **options, throw=False)
    status, close = found.status, 1e-6 if dtype == torch.float32 else 1e-9
    assert not status.ok and status.element == (1, 3) and status.t == pytest.approx(at, rel=close)
    assert [time.item() for time in found.grid[-1]] == [t[-1], pytest.approx(at, rel=close), t[-1], pytest.approx(at, rel=close)]
    assert found.ts.tolist() == t and found.stats.evaluations_forward < 30_000
    exact = torch.exp(torch.tensor(t, dtype=torch.float64).sub(t[0]).abs() / at)
    for sample in (0, 2):
        torch.testing.assert_close(found.ys[:, sample, 0].double(), exact, rtol=2e-3, atol=0)
    alive = [time == t[0] or not doomed_sample for doomed_sample in doomed.reshape(-1) for time in t]
    reached = torch.tensor(alive).reshape(4, 3).T | (torch.tensor(t)[:, None] * sign < sign * at)
    assert torch.equal(found.ys[..., 0].isfinite(), reached)
    area = sign * (at - t[0]) / at  # from the start to the last good state
    assert status.y[1].item() == pytest.approx(torch.tensor(2 / 3 * area**1.5).exp().item(), rel=2e-3)
    with pytest.raises(SolveError, match=r"sample 1 of the batch at t=.*; sample 3 of the batch at t=") as caught:
        odeint(f, y0, t, **options)
    assert caught.value.status.t == status.t
    with pytest.raises(SolveError):  # the whole batch at once, by the same rules
        odeint(f, y0, t, method=method, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lost", [0, 2, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_any_number_of_samples_may_fail(lost: int) -> None:
    """y' = y^2 from 1 / (1 + i) has its pole at 1 + i."""
    y0 = (1 / torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]).requires_grad_()
    t = [0.0, 0.5, lost + 0.6]
    found = solve(lambda t, y: y**2, y0, t, method="dopri5", rtol=1e-6, atol=1e-6, per_sample=True, throw=False)
    assert found.status.ok == (lost == 0) and found.status.element == (tuple(range(lost)) if lost else None)
    assert found.ts.tolist() == (t[:2] if lost == 4 else t)
    assert "samples more" in found.status.message if lost == 4 else "samples more" not in found.status.message
    (gradient,) = torch.autograd.grad(found.ys[-1].nan_to_num().sum(), y0)
    kept = torch.arange(4) >= lost % 4
    end = t[1] if lost == 4 else t[2]
    exact = torch.where(kept[:, None], (1 - end * y0.detach()) ** -2, 0.0)  # y = 1 / (1 / y0 - t)
    torch.testing.assert_close(gradient, exact, rtol=1e-3, atol=0)
    ends = solve(lambda t, y: y**2, y0, t, method="dopri5", rtol=1e-6, atol=1e-6, per_sample=True, throw=False, save="end")
    if lost < 4:
        torch.testing.assert_close(ends.ys, found.ys[-1:], equal_nan=True)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "control", [Control(min_step=1e-3, first_step=1e-3), Control(safety=1.0), Control(max_step=1e-30, first_step=1e-30)], ids=str
)
def test_no_control_repeats_an_attempt_for_ever(control: Control, per_sample: bool) -> None:
    """A jump just before an output time, at distances that the shortest step would nearly hit."""
    options: dict[str, Any] = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9, "control": control, "per_sample": per_sample}
    jump = lambda t, y: torch.where(t < 0.30005, 1.0, 1e5) + 0 * y
    y0 = torch.zeros(2, 1, dtype=torch.float64)
    if control.max_step == 1e-30:
        assert solve(lambda t, y: 1 + y, y0, [1.0, 1.0 + 37 * 2.0**-52], **options).status.ok
    elif control.min_step:
        for end in torch.linspace(1.001e-3, 1.02e-3, 11).tolist():
            found = solve(lambda t, y: jump(t + 0.2995, y), y0, [0.0, end], **options, throw=False)
            assert found.status.reason == "step size" and found.status.t is not None and found.status.t < 1e-3
    else:
        for end in torch.linspace(0.3001, 0.302, 5).tolist():
            assert solve(jump, y0, [0.0, end, 1.0], **options).status.ok


@pytest.mark.parametrize("limit", [pytest.param(10_000, marks=pytest.mark.slow), 50])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_stiff_problem_ends_with_the_cures(per_sample: bool, limit: int) -> None:
    f = lambda t, y: torch.tensor([[-1e6], [-1.0]]) * y
    options: dict[str, Any] = {"method": "heun2", "rtol": 1e-3, "atol": 1e-3, "per_sample": per_sample}
    given: dict[str, Any] = {"max_steps": limit} if limit == 50 else {}
    with pytest.raises(
        SolveError, match=rf"max_steps={limit} were done.*max_steps=None.*larger errors.*rodas5p, an implicit or an exponential"
    ) as caught:
        odeint(f, torch.ones(2, 1), [0.0, 1.0], **options, **given)
    assert caught.value.status.reason == "max_steps"
    found = solve(f, torch.ones(2, 1), [0.0, 1.0], **options, **given, throw=False)
    assert found.status.reason == "max_steps" and found.status.t is not None and 0 < found.status.t < 0.1
    if per_sample:
        assert torch.stack(found.grid)[:, 0].unique().numel() == limit + 1
        assert found.status.element == (0,) and found.ys[-1, 1].item() == pytest.approx(0.3679, rel=1e-2)
    whole = solve(f, torch.ones(2, 1), [0.0, 3e-4], **options, max_steps=None)
    assert whole.status.ok and whole.stats.accepted > 50
    assert odeint(f, torch.ones(2, 1), [0.0, 3e-4], **options, max_steps=whole.stats.accepted).shape == (2, 2, 1)


def test_a_grid_has_its_own_number_of_steps() -> None:
    assert solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="euler", steps=10_003).stats.accepted == 10_003
    assert odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="euler", steps=10_003, adjoint="direct").shape == (2, 1)
    for wrong in (0, -1, 2.5, True):
        options: dict[str, Any] = {"method": "dopri5", "max_steps": wrong}
        with pytest.raises(ValueError, match="max_steps"):
            odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], **options)
