"""Reversible steps: exact where they can be undone, and a word where they cannot."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Adjoint, ReversibleAdjoint, odeint, plan, solve
from anodev2.testing import observed_order
from compared import SYSTEMS, gradients
from faithful import StoredReversible
from problems import MLP
from sampled import rows


@pytest.mark.parametrize(("method", "system"), rows(["euler", "midpoint", "rk4", "dopri5"], SYSTEMS, quick=2))
def test_reversible_equals_store_all_of_its_own_scheme(method: str, system: str) -> None:
    func, y0 = SYSTEMS[system]()
    for t, steps in (([0.0, 1.0], 20), ([1.0, 0.6, -0.5], 8)):
        exact = gradients(func, y0, t, method=method, steps=steps, adjoint=StoredReversible())
        found = gradients(func, y0, t, method=method, steps=steps, adjoint=ReversibleAdjoint())
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_the_reversible_scheme_has_the_order_of_the_method() -> None:
    net, y0 = MLP(), torch.randn(3, 4).double()
    exact = odeint(net, y0, [0.0, 1.0], steps=200)[-1]
    for method, order in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        error = lambda n, method=method: (
            (odeint(net, y0, [0.0, 1.0], method=method, steps=n, adjoint="reversible")[-1] - exact).norm().item()
        )
        assert observed_order(error, (8, 16)) == pytest.approx(order, abs=0.35)


def test_a_reversible_solve_that_cannot_be_undone_says_by_how_much() -> None:
    y0 = torch.tensor([1.0, 0.5]).double().requires_grad_()
    y = odeint(lambda t, y: -60 * y, y0, [0.0, 1.0], steps=40, adjoint="reversible")[-1]
    with pytest.warns(RuntimeWarning, match=r"found y0 again only to \d\.\de[-+]\d+ \(relative\)"):
        y.sum().backward()


@pytest.mark.parametrize("rate", [-10.0, -1.0, 5.0, 10.0, 15.0, 20.0])
@pytest.mark.parametrize("start", [[0.3, -1.0], [0.0, 0.0], [1e-4, 1.0]], ids=str)
@pytest.mark.parametrize(("dtype", "wrong", "right"), [(torch.float64, 1e-5, 1e-9), (torch.float32, 5e-2, 1e-4)])
def test_a_gradient_that_growing_states_make_wrong_is_never_silent(
    rate: float, start: list[float], dtype: torch.dtype, wrong: float, right: float
) -> None:
    """Nor are right ones told: against a pair kept after every step, from which nothing is undone but that step."""

    def gradients(every: int | None) -> tuple[Tensor, bool]:
        y0, weight = torch.tensor(start, dtype=dtype, requires_grad=True), torch.ones((), dtype=dtype, requires_grad=True)
        f = lambda t, y: rate * weight * y + torch.sin(5 * y) + torch.cos(t)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            y = odeint(f, y0, [0.0, 1.0], steps=40, adjoint=ReversibleAdjoint(every=every))[-1]
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(y.sum(), [y0, weight])]), bool(said)

    (expected, never), (found, told) = gradients(1), gradients(None)
    error = ((found - expected).abs() / expected.abs().clamp_min(1e-30)).max().item()
    assert not never and (told or error < wrong) and (not told or error > right), (told, error)


def test_kept_states_make_exact_what_cannot_be_undone() -> None:
    """Van der Pol's oscillator, whose 200 steps undone from the end lead nowhere; outputs and kept states meet at some steps."""

    def run(adjoint: Adjoint) -> list[Tensor]:
        y0, mu = (
            torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True),
            torch.tensor(6.5, dtype=torch.float64, requires_grad=True),
        )
        f = lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])
        y = odeint(f, y0, [0.0, 0.3, 0.75, 1.5], method="midpoint", step_size=0.0075, adjoint=adjoint)
        return [y, *torch.autograd.grad(y[-1].sum() + y[1].sin().sum(), [y0, mu])]

    expected = run(StoredReversible(0.75))
    for every in (7, 20):
        found = run(ReversibleAdjoint(0.75, every=every))
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1:], expected[1:], rtol=1e-10, atol=1e-10)
    for every, what in ((None, "y0"), (150, "kept states")):
        with pytest.warns(RuntimeWarning, match=f"found {what} again only to"):
            run(ReversibleAdjoint(0.75, every=every))


def test_kept_states_are_counted() -> None:
    f, y0 = nn.Linear(4, 4).double(), torch.randn(3, 4, dtype=torch.float64)
    for every, pairs in ((None, 1), (1, 12), (4, 3), (5, 3), (12, 1), (50, 1)):
        found = solve(lambda t, y: f(y), y0, [0.0, 1.0], steps=12, adjoint=ReversibleAdjoint(every=every))
        assert found.stats.peak_bytes == 2 * pairs * 96
        held = plan(lambda t, y: f(y), y0, steps=12, adjoint=ReversibleAdjoint(every=every)).peak_bytes
        assert held - plan(lambda t, y: f(y), y0, steps=12, adjoint="reversible").peak_bytes == 2 * (pairs - 1) * 96
    with pytest.raises(ValueError, match="every=0 must be a positive integer"):
        ReversibleAdjoint(every=0)


def test_a_leaf_that_starts_at_zero_is_found_again_without_a_warning() -> None:
    y0 = (torch.ones(3, requires_grad=True), torch.zeros(1))
    odeint(lambda t, y: (-y[0], y[0].sum(0, keepdim=True)), y0, [0.0, 1.0], steps=8, adjoint="reversible")[1].sum().backward()
    assert y0[0].grad is not None  # and warnings are errors


def test_reversible_replays_dropout_and_moves_batchnorm_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.dropout = nn.Linear(4, 4).double(), nn.BatchNorm1d(4).double(), nn.Dropout(0.3)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.norm(self.dropout(self.linear(y))))

    ends = []
    for adjoint in (StoredReversible(), ReversibleAdjoint()):
        torch.manual_seed(0)
        net, y0 = Net(), torch.randn(6, 4).double().requires_grad_()
        odeint(net, y0, [0.0, 1.0], steps=5, method="euler", adjoint=adjoint).square().sum().backward()
        assert net.norm.num_batches_tracked == 10
        ends.append([y0.grad, *(p.grad for p in net.parameters()), *net.buffers(), torch.get_rng_state()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_reversible_gradcheck_of_state_args_and_times() -> None:
    net = MLP(2)

    def run(y0: Tensor, scale: Tensor, times: Tensor) -> Tensor:
        return odeint(lambda t, y, s: s * net(t, y), y0, times, args=(scale,), method="midpoint", steps=3, adjoint="reversible")

    y0, scale = torch.randn(2, 2).double().requires_grad_(), torch.tensor(0.7).double().requires_grad_()
    assert torch.autograd.gradcheck(run, (y0, scale, torch.tensor([0.1, 0.5, 0.9]).double().requires_grad_()))
