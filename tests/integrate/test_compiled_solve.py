"""compile= of solve, and simulations as one compiled loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import (
    CheckpointAdjoint,
    Control,
    SolveError,
    odeint,
    solve,
)
from anodev2.integrate import compiled
from compiling import TRACED, Field
from sampled import rows


@pytest.mark.parametrize(
    ("save", "adjoint"),
    rows(["times", "end", "steps"], ["direct", "checkpoint", CheckpointAdjoint(slots=1)], quick=[("times", "checkpoint")]),
    ids=str,
)
def test_solve_tells_the_same_of_compiled_runs(save: Any, adjoint: Any) -> None:
    f, start, found = Field(), torch.randn(2, 3, dtype=torch.float64), []
    for compile in (False, TRACED):
        y0 = start.clone().requires_grad_()
        solution = solve(f, y0, [0.0, 0.5, 2.0], steps=4, method="midpoint", adjoint=adjoint, compile=compile, save=save)
        found.append((solution, torch.autograd.grad(solution.ys.square().sum(), [y0, *f.parameters()])))
    (plain, gradients), (fast, own) = found
    assert torch.equal(fast.ys, plain.ys) and torch.equal(fast.ts, plain.ts)
    assert (fast.grid, fast.methods, fast.status) == (plain.grid, plain.methods, plain.status)
    torch.testing.assert_close(own, gradients, rtol=1e-13, atol=1e-14)
    if not isinstance(adjoint, CheckpointAdjoint):  # with slots runs are redone, fewer of them
        costs = [
            (stats.evaluations_forward, stats.evaluations_backward, stats.accepted, stats.recomputed) for stats in (fast.stats, plain.stats)
        ]
        assert costs[0] == costs[1]


@pytest.mark.parametrize(("save", "most"), rows(["times", "end", "steps"], [7, 8, None], quick=[("end", 7), ("end", 8), ("end", None)]))
def test_a_compiled_solve_that_ends_early_is_the_plain_one(save: Any, most: int | None) -> None:
    """In the step and with the states, gradients and numbers of steps of the solve that looks at each."""

    def f(t: Tensor, y: Tensor, *, step: int) -> Tensor:
        return y * y * (1 + 0.1 * step)

    found = []
    for compile in (False, TRACED):
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        solution = solve(f, y0, [0.0, 0.5, 1.0, 2.0**100], steps=4, method="euler", compile=compile, save=save, max_steps=most, throw=False)
        (gradient,) = torch.autograd.grad(solution.ys.sum(), y0)
        found.append((solution, gradient))
    (plain, gradient), (fast, own) = found
    assert str(fast.status) == str(plain.status) and plain.status.reason == ("not finite" if most is None else "max_steps")
    assert torch.equal(fast.ys, plain.ys) and torch.equal(fast.ts, plain.ts) and fast.grid == plain.grid
    torch.testing.assert_close(own, gradient, rtol=1e-13, atol=0)


@pytest.mark.slow
def test_a_callback_is_shown_every_step_of_a_compiled_solve() -> None:
    f, y0 = Field(), torch.ones(2, 3, dtype=torch.float64)
    shown: list[list[float]] = [[], []]
    for own, compile in zip(shown, (False, TRACED), strict=True):
        solve(f, y0, [0.0, 1.0], steps=4, method="euler", compile=compile, callback=lambda t, y, own=own: own.append(t))
    assert shown[0] == shown[1] == [0.25, 0.5, 0.75, 1.0]


def test_what_looks_into_steps_is_refused_while_they_are_compiled() -> None:
    f, y0 = Field(), torch.ones(2, 3, dtype=torch.float64)
    options: dict[str, Any] = {"steps": 4, "compile": True}
    with pytest.raises(ValueError, match="an event looks into each of them"):
        solve(f, y0, [0.0, 1.0], event=lambda t, y: y.sum(), **options)
    with pytest.raises(ValueError, match="dense=True looks into each of them"):
        solve(f, y0, [0.0, 1.0], dense=True, **options)
    with pytest.raises(ValueError, match="compile=True is for adjoint='checkpoint' or 'direct', not BacksolveAdjoint"):
        solve(f, y0, [0.0, 1.0], adjoint="backsolve", **options)
    with pytest.raises(ValueError, match="compile=True needs to know the steps"):
        solve(f, y0, [0.0, 1.0], method="dopri5", compile=True)
    blowing_up: dict[str, Any] = {"method": "dopri5", "control": Control(refresh=2), "compile": TRACED}
    with pytest.raises(SolveError, match="step size fell"):  # no steps are found to be compiled: why
        solve(lambda t, y: y * y, torch.ones(3, dtype=torch.float64), [0.0, 2.0], **blowing_up)


@pytest.mark.slow
def test_samples_with_steps_and_times_of_their_own_are_compiled_too() -> None:
    f, y0 = Field(), torch.tensor([[0.1, 0.2, 0.3], [2.0, -5.0, 4.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 0.5, 2.0], [0.0, 1.0, float("nan")]])
    options: dict[str, Any] = {"method": "bosh3", "rtol": 1e-2, "atol": 1e-2, "per_sample": True}
    for solved in (odeint, lambda *args, **more: solve(*args, **more).ys):
        plain, fast = (solved(f, y0, t, compile=compile, **options) for compile in (False, TRACED))
        assert torch.equal(fast.nan_to_num(7.0), plain.nan_to_num(7.0)) and bool(plain[2, 1].isnan().all())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that are compiled, at each call of one."""
    called, real = list[str](), torch.compile

    def counting(run: Any, **options: Any) -> Any:
        fast = real(run, **options)
        return lambda *args: (called.append(run.__name__), fast(*args))[1]

    monkeypatch.setattr(torch, "compile", counting)
    return called


def test_a_simulation_is_one_call_of_a_compiled_loop(calls: list[str]) -> None:
    """From one output to the next, however many steps that are, with times of its own for each."""
    torch._dynamo.utils.counters.clear()
    f, y0 = Field(), torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        for steps in (2, 40):
            fast = odeint(f, y0, [0.0, 0.5, 2.0], steps=steps, method="midpoint", compile=TRACED)
            torch.testing.assert_close(fast, odeint(f, y0, [0.0, 0.5, 2.0], steps=steps, method="midpoint"), rtol=1e-13, atol=1e-14)
            assert calls == ["_loop"] * 2
            calls.clear()
        solution = solve(f, y0, [0.0, 1.0], steps=1200, method="midpoint", compile=TRACED)
        assert len(calls) == 2 and solution.stats.evaluations_forward == 2400 and solution.stats.accepted == 1200  # 1,024 at a time
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    y0.requires_grad_()
    odeint(f, y0, [0.0, 1.0], steps=3, method="midpoint", adjoint="direct", compile=TRACED)[-1].sum().backward()
    assert calls[2:] == ["_run"]  # which has a backward pass


@pytest.mark.slow
@pytest.mark.parametrize("jumps", [False, True], ids=["", "breaks"])
@pytest.mark.parametrize("method", ["leapfrog", "dopri5"])
def test_what_a_loop_carries(method: str, jumps: bool, calls: list[str]) -> None:
    """States of several leaves, kinds and orders in memory, complex ones, and the side of a break that f is asked for."""
    q = torch.randn(3, 4, dtype=torch.float64).T
    f = lambda t, y: {"q": y["v"] * (1.0 + (t >= 0.5)), "v": -y["q"]} if isinstance(y, dict) else 1j * y * (t >= 0.5)
    starts: list[Any] = [{"q": q, "v": q + 1}] + ([] if method == "leapfrog" else [q + 1j])
    options: dict[str, Any] = {"steps": 6, "method": method, "breaks": [0.5] if jumps else None}
    with torch.no_grad():
        for y0 in starts:
            fast, plain = (odeint(f, y0, [0.0, 0.75, 1.0], compile=compile, **options) for compile in (TRACED, False))
            torch.testing.assert_close(fast, plain, rtol=1e-13, atol=1e-14)
    assert set(calls) == {"_loop"}


@pytest.mark.slow
def test_generated_loops_draw_anew_and_move_statistics_in_each_step() -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm = nn.Dropout(), nn.BatchNorm1d(8)

        def forward(self, t: Any, y: Tensor) -> Tensor:
            self.norm(t + y.new_ones(64, 1) * torch.arange(8.0))
            return self.drop(torch.ones_like(y))

    f, plain, y0 = Noise(), Noise(), torch.zeros(64, 8)
    with torch.no_grad():
        end, _ = (odeint(one, y0, [0.0, 16.0], steps=16, method="euler", compile=one is f)[-1] for one in (f, plain))
    assert not compiled._GRAPHS[f].unrolled
    torch.testing.assert_close(dict(f.named_buffers()), dict(plain.named_buffers()))
    assert abs(end.mean().item() - 16) < 1.5 and 8 < end.var().item() < 32  # twice binomial(16, 1/2): variance 16, with one mask 256


def test_steps_without_a_loop_are_unrolled(calls: list[str]) -> None:
    y0 = torch.ones(3)
    with torch.no_grad():
        found = odeint(lambda t, y: y, y0, [0.0, 6.0], method="map", compile=TRACED)  # what it returns is what it is given
        assert torch.equal(found, odeint(lambda t, y: y, y0, [0.0, 6.0], method="map"))
        assert calls == ["_loop", "_run", "_run"]
        calls.clear()
        numbered = lambda t, y, *, step: y * (step + 1)
        fast, plain = (odeint(numbered, y0, [0.0, 1.0], steps=6, method="euler", compile=compile) for compile in (TRACED, False))
    torch.testing.assert_close(fast, plain)
    assert calls == ["_run", "_run"]
