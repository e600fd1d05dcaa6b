"""Output times that differ from sample to sample: as the samples solved one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import CheckpointAdjoint, ReversibleAdjoint, odeint, solve
from faithful import StoredReversible
from problems import MLP

NAN = float("nan")
RISING = [[0.0, 0.4, 1.0], [0.2, 0.3, NAN], [-1.0, 2.0, 2.5], [0.5, NAN, NAN]]
OPTIONS: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}


def field(t: Tensor, y: Tensor) -> Tensor:
    return torch.cos(2 * t) * torch.stack([y[..., 1], -(y[..., 0] ** 3)], -1) - 0.1 * y


def start() -> Tensor:
    return torch.tensor([[1.0, 0.0], [0.5, 2.0], [-1.0, 0.3], [2.0, 2.0]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("method", ["tsit5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dopri8", "rodas5p"))])
def test_samples_have_the_states_and_gradients_that_they_have_alone(method: str, falling: bool) -> None:
    t, y0 = torch.tensor(RISING, dtype=torch.float64) * (-1 if falling else 1), start()
    found = solve(field, y0, t, method=method, per_sample=True, **OPTIONS)
    assert found.ys.shape == (3, 4, 2) and torch.equal(found.ts.nan_to_num(7.0), t.T.nan_to_num(7.0))
    assert torch.equal(found.ys.isnan().any(-1), t.T.isnan())
    weights = torch.linspace(1, 2, 24, dtype=torch.float64).reshape(3, 4, 2)
    (gradient,) = torch.autograd.grad((weights * found.ys)[~found.ys.isnan()].sum(), y0)
    assert torch.equal(odeint(field, y0, t, method=method, per_sample=True, **OPTIONS).nan_to_num(7.0), found.ys.nan_to_num(7.0))
    for sample, row in enumerate(t.tolist()):
        times, own = [time for time in row if time == time], start()[sample : sample + 1].detach().requires_grad_()
        if len(times) == 1:
            assert torch.equal(found.ys[0, sample], own[0]) and torch.equal(gradient[sample], weights[0, sample])
            continue
        alone = odeint(field, own, times, method=method, hit="exact", **OPTIONS)[:, 0]
        torch.testing.assert_close(found.ys[: len(times), sample], alone, rtol=1e-10, atol=1e-12)
        (expected,) = torch.autograd.grad((weights[: len(times), sample] * alone).sum(), own)
        torch.testing.assert_close(gradient[sample], expected[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "adjoint", [CheckpointAdjoint(), CheckpointAdjoint(slots=3), CheckpointAdjoint(memory="1MB"), ReversibleAdjoint()], ids=str
)
def test_every_adjoint_has_the_gradient_of_store_all(adjoint: Any) -> None:
    net, y0, ends = MLP(2), start(), []
    plain = StoredReversible() if isinstance(adjoint, ReversibleAdjoint) else "direct"
    for how in (plain, adjoint):
        ys = odeint(lambda t, y: net(t, y), y0, torch.tensor(RISING), method="bosh3", rtol=1e-4, atol=1e-4, per_sample=True, adjoint=how)
        ends.append((ys.detach(), *torch.autograd.grad(ys[~ys.isnan()].square().sum(), [y0, *net.parameters()])))
    assert torch.equal(ends[0][0].nan_to_num(7.0), ends[1][0].nan_to_num(7.0))
    if plain == "direct":
        assert torch.equal(ends[0][1], ends[1][1])
    for one, other in zip(*(end[1:] for end in ends), strict=True):
        assert (one - other).abs().max() <= (1e-13 if plain == "direct" else 1e-9) * other.abs().max()


def test_each_sample_has_a_status_and_as_many_steps_as_are_allowed() -> None:
    """y' = y^2 ends at t = 1 / y(0); a fast sample runs out of steps; the others come to their ends, as closed forms tell."""
    y0 = torch.tensor([[0.5], [2.0], [0.25], [0.1]], dtype=torch.float64)
    rate = torch.tensor([[0.0], [0.0], [0.0], [20000.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 1.0, NAN], [0.0, 0.25, 1.0], [0.0, 1.0, 2.0], [0.0, 0.01, 5.0]], dtype=torch.float64)
    f = lambda t, y: torch.where(rate > 0, rate * torch.cos(rate * t), y**2)
    for save in ("times", "end"):
        found = solve(f, y0, t, method="dopri5", rtol=1e-5, atol=1e-5, per_sample=True, throw=False, max_steps=400, save=save)
        assert [status.reason for status in found.statuses][::2] == ["done", "done"]
        assert found.statuses[1].reason in ("step size", "not finite") and found.statuses[1].t == pytest.approx(0.5, rel=1e-3)
        assert found.statuses[3].reason == "max_steps" and found.status.element == (1, 3)
        if save == "end":
            assert found.ys[0, ::2, 0].tolist() == pytest.approx([1.0, 0.5], rel=1e-3) and found.ys[0, 1::2].isnan().all()
    found = solve(f, y0, t, method="dopri5", rtol=1e-5, atol=1e-5, per_sample=True, throw=False, max_steps=400)
    assert found.ys[1, :3, 0].tolist() == pytest.approx([1.0, 4.0, 1 / 3], rel=1e-3)
    assert found.ys[2, 2, 0].item() == pytest.approx(0.5, rel=1e-3)
    assert (torch.stack(found.grid).diff(dim=0) > 0).sum(0).reshape(-1)[3] == 400


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ([[0.0, 1.0]], r"t of shape \(1, 2\) must have a row of output times for each of the 2 samples"),
        ([[0.0, 1.0], [NAN, 1.0]], "may end with nan"),
        ([[0.0, NAN, 1.0], [0.0, 1.0, 2.0]], "may end with nan"),
        ([[0.0, 1.0], [1.0, 0.0]], "all strictly falling"),
        ([[0.0, float("inf")], [0.0, 1.0]], "must be finite"),
        (torch.tensor([[0.0, 1.0]] * 2, requires_grad=True), "no gradient with respect to times"),
    ],
)
def test_times_that_cannot_be_are_refused(t: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        odeint(field, torch.ones(2, 2), t, method="dopri5", per_sample=True)
    with pytest.raises((ValueError, TypeError), match=r"one-dimensional|sequence of times"):
        odeint(field, torch.ones(2, 2), [t, t], method="dopri5")


def test_a_clock_of_one_sample_is_nothing_to_the_others() -> None:
    """A sample that needs short steps passes beside one whose times are seconds since 1970."""
    y0, rate = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[1e4], [1.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 1e-3], [1.7e12, 1.7e12 + 1]], dtype=torch.float64)
    y = odeint(lambda t, y: -rate * y, y0, t, method="dopri5", per_sample=True, rtol=1e-8, atol=1e-10)[-1]
    torch.testing.assert_close(y.flatten(), torch.tensor([-10.0, -1.0], dtype=torch.float64).exp(), rtol=1e-6, atol=1e-9)


def test_what_is_saved_of_samples_with_times_of_their_own() -> None:
    """A function of time gets it as func does; complex states that are missing are nan in both parts; times are (k, batch)."""
    y0, t = torch.ones(2, 2, dtype=torch.complex128), torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, NAN]], dtype=torch.float64)
    run = lambda save: solve(lambda t, y: 1j * y, y0, t, method="dopri5", per_sample=True, rtol=1e-9, atol=1e-9, save=save)
    found = run("times")
    saved = run(lambda t, y: y * torch.exp(-1j * t)).ys
    there = ~t.T.isnan()
    torch.testing.assert_close(saved[there], torch.ones(5, 2, dtype=torch.complex128), rtol=1e-6, atol=1e-6)
    assert found.ys.dtype == torch.complex128 and found.ys[~there].real.isnan().all() and found.ys[~there].imag.isnan().all()
    steps = run("steps")
    assert steps.ts.shape == steps.ys.shape[:2] and found.ts.shape == (3, 2)


@pytest.mark.parametrize(
    ("t", "options", "words"),
    [
        (RISING, {"method": "rk4"}, "about error control"),
        (RISING, {"method": "dopri5", "steps": 3}, "about error control"),
        (RISING, {"method": "dopri5", "grid": [0.0, 1.0]}, "about error control"),
        (RISING, {"method": "dopri5", "adjoint": "backsolve"}, "take another adjoint"),
        ([[0.0, 1.0, 2.0], [0.0, 2.0], [0.0, 1.0], [0.0, 1.0]], {"method": "dopri5"}, "end the shorter with nan"),
        ([torch.arange(2.0), torch.arange(3.0), torch.arange(2.0), torch.arange(2.0)], {"method": "dopri5"}, "pad_sequence"),
    ],
)
def test_a_mistake_is_told_with_its_cure(t: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        odeint(field, start(), t, per_sample=True, **options)
