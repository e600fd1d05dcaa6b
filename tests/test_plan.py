"""Predicted costs are the costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ReversibleAdjoint, odeint, plan, solve
from live_bytes import LiveBytes
from problems import MLP, Pendulum, pendulum_state

ADJOINTS = [
    DirectAdjoint(),
    CheckpointAdjoint(),
    *(CheckpointAdjoint(slots=slots) for slots in (1, 2, 3, 5, 100)),
    *(CheckpointAdjoint(memory=memory) for memory in (3000, 6000, 20000)),
]


def state() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("adjoint", [*ADJOINTS, ReversibleAdjoint(), BacksolveAdjoint()], ids=str)
@pytest.mark.parametrize(("method", "steps"), [("euler", 1), ("rk4", 7), ("dopri5", 7), ("midpoint", 24)])
def test_evaluations_are_those_counted(method: str, steps: int, adjoint: Any) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    net, y0, options = MLP(), state(), {"method": method, "steps": steps}
    predicted = plan(net, y0, [0.0, 0.5], adjoint=adjoint, **options)
    net.register_forward_pre_hook(count)  # a step redone ends once it has saved what it saved at first, perhaps inside net
    stats = None
    if isinstance(adjoint, ReversibleAdjoint):  # which is not watched by solve
        ys = odeint(net, y0, [0.0, 0.5], adjoint=adjoint, **options)
    else:
        found = solve(net, y0, [0.0, 0.5], adjoint=adjoint, **options)
        ys, stats = found.ys, found.stats
    assert predicted.steps == steps and predicted.method == method and predicted.adjoint == adjoint
    assert predicted.evaluations_forward == calls
    calls = 0
    ys[-1].square().sum().backward()
    assert predicted.evaluations_backward == calls
    if stats is not None:
        assert predicted.evaluations_forward == stats.evaluations_forward
        assert predicted.evaluations_backward == stats.evaluations_backward
    if isinstance(adjoint, CheckpointAdjoint) and stats is not None:
        assert predicted.recomputed == stats.recomputed
        assert predicted.evaluations_backward == predicted.recomputed * predicted.evaluations_forward // steps


@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=str)
def test_bytes_of_states_and_graphs_are_those_of_the_solve(adjoint: CheckpointAdjoint) -> None:
    net, y0 = MLP(), state()
    predicted = plan(net, y0, [0.0, 1.0], steps=24, adjoint=adjoint)
    found = solve(net, y0, [0.0, 1.0], steps=24, adjoint=adjoint)
    found.ys[-1].square().sum().backward()
    assert predicted.state_bytes == 3 * 4 * 8
    if adjoint.memory is not None:
        assert predicted.peak_bytes == found.stats.peak_bytes <= int(adjoint.memory)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("spare", [0, 5])
def test_steps_that_save_nothing_beside_states_are_kept_wherever_states_are(steps: int, spare: int) -> None:
    y0, f = state(), lambda t, y: y.sin()
    adjoint = CheckpointAdjoint(memory=(steps + 1) * 96 + spare)
    predicted = plan(f, y0, steps=steps, method="euler", adjoint=adjoint)
    found = solve(f, y0, [0.0, 1.0], steps=steps, method="euler", adjoint=adjoint)
    found.ys[-1].sum().backward()
    assert predicted.graph_bytes == 0 and predicted.recomputed == found.stats.recomputed == 0


# states held at the peak beside what a plan tells: cotangents, outputs, and what f holds while it runs, whatever its steps
BESIDE: list[tuple[Adjoint, float, float]] = [
    (DirectAdjoint(), 4.5, 5.5),
    (CheckpointAdjoint(), 4, 5.5),
    (CheckpointAdjoint(slots=3), 4.5, 5.5),
    (CheckpointAdjoint(memory="1MiB"), 4, 5.5),
    (CheckpointAdjoint(memory="2MiB"), 4, 5.5),
    (ReversibleAdjoint(), 9.5, 10.5),
    (BacksolveAdjoint(), 9.5, 12.5),
]


@pytest.mark.parametrize(("adjoint", "least", "most"), BESIDE, ids=str)
def test_the_predicted_peak_is_that_of_the_live_bytes(adjoint: Adjoint, least: float, most: float) -> None:
    """Of a training step with states of 64 KiB, by a function that stores what it is given."""
    y0, f = torch.randn(16384, requires_grad=True), lambda t, y: torch.sin(torch.sin(y))
    for method, steps in (("euler", 16), ("midpoint", 40)):
        predicted = plan(f, y0, steps=steps, adjoint=adjoint, method=method)
        with LiveBytes() as live:
            odeint(f, y0, [0.0, 1.0], steps=steps, adjoint=adjoint, method=method)[-1].square().mean().backward()
        y0.grad = None
        assert least <= (live.peak - predicted.peak_bytes) / predicted.state_bytes <= most, (method, steps)


def test_states_that_f_does_not_store_are_told_of_storing_everything_though_not_held() -> None:
    y0, f = torch.randn(16384, requires_grad=True), lambda t, y: torch.tanh(torch.tanh(y))
    predicted = plan(f, y0, steps=16, adjoint="direct", method="midpoint")
    with LiveBytes() as live:
        odeint(f, y0, [0.0, 1.0], steps=16, adjoint="direct", method="midpoint")[-1].square().mean().backward()
    assert live.peak == pytest.approx(predicted.peak_bytes - 10 * predicted.state_bytes, abs=predicted.state_bytes)


def test_budgets_are_kept_and_more_memory_never_costs_more() -> None:
    net, y0, last = MLP(), state(), 10**9
    least = plan(net, y0, steps=40, adjoint=CheckpointAdjoint(slots=1)).peak_bytes
    everything = plan(net, y0, steps=40, adjoint=DirectAdjoint()).peak_bytes
    kept = 0
    for budget in (least, *range(least + 50, everything + 2000, 700)):
        found = plan(net, y0, steps=40, adjoint=CheckpointAdjoint(memory=budget))
        assert found.peak_bytes <= budget and found.recomputed <= last
        last, kept = found.recomputed, found.graphs
    assert last == 0 and kept == 40
    with pytest.raises(ValueError, match=r"memory=\d+ is below the smallest schedule for 40 steps, \d+\.\d+ KiB"):
        plan(net, y0, steps=40, adjoint=CheckpointAdjoint(memory=least - 100))


@pytest.mark.parametrize("adjoint", [CheckpointAdjoint(slots=4), CheckpointAdjoint(), CheckpointAdjoint(memory=6000)], ids=str)
def test_a_plan_is_told_with_its_schedule(adjoint: CheckpointAdjoint) -> None:
    found = plan(MLP(), state(), steps=20, adjoint=adjoint)
    assert found.schedule is not None
    lines = str(found).splitlines()
    assert lines[0] == f"20 steps of rk4, {adjoint}"
    assert f"func evaluated 80 times forward, {found.evaluations_backward} times backward" in lines[2]
    assert f"{found.recomputed} steps redone ({found.recomputed / 20:.2f} per step)" in lines[2]
    place = next(i for i, line in enumerate(lines) if line.startswith(f"{len(found.schedule.kept)} states"))
    picture = lines[place + 1]
    assert len(picture) == 20 and picture.count("=") == found.graphs
    assert picture.count("o") == len([at for at in found.schedule.kept if at < 20 - found.graphs])
    if found.slots is not None and adjoint.memory is None:
        assert picture.count("o") == found.slots + 1  # and the state before the last step


@pytest.mark.parametrize("adjoint", ["direct", "reversible", "backsolve"])
def test_other_adjoints_have_plans_without_a_picture(adjoint: str) -> None:
    found = plan(Pendulum(), pendulum_state(), [0.0, 0.3, 1.0], steps=5, method="midpoint", adjoint=adjoint)
    assert found.schedule is None and found.steps == 10 and found.slots is None
    assert len(str(found).splitlines()) == 3 and "10 steps of midpoint" in str(found)


def test_nothing_is_left_behind() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    f = lambda t, y: net(y)
    before = [b.clone() for b in net.buffers()]
    y0 = torch.randn(3, 4, requires_grad=True)
    generator = torch.get_rng_state()
    for adjoint in ADJOINTS:
        plan(f, y0, steps=8, adjoint=adjoint)
    assert all(map(torch.equal, net.buffers(), before)) and torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in tree_leaves(list(net.parameters()))) and y0.grad is None


def test_without_grad_mode_the_plan_is_the_same() -> None:
    net, y0 = MLP(), state()
    with torch.no_grad():
        quiet = plan(net, y0, steps=8)
    assert str(quiet) == str(plan(net, y0, steps=8))


def test_grids_are_planned_and_adaptive_solves_refused() -> None:
    net, y0 = MLP(), state()
    with pytest.raises(ValueError, match=r"does not know its steps beforehand; give steps, or grid=solution.grid"):
        plan(net, y0, [0.0, 1.0], method="dopri5")
    found = solve(net, y0, [0.0, 1.0], method="dopri5", rtol=1e-4, atol=1e-4)
    planned = plan(net, y0, [0.0, 1.0], method="dopri5", grid=found.grid)
    assert planned.steps == found.stats.accepted and planned.evaluations_backward == 6 * planned.steps
    with pytest.raises(ValueError, match="steps=10"):
        plan(net, y0)
    with pytest.raises(ValueError, match="adjoint='chekpoint'"):
        plan(net, y0, steps=2, adjoint="chekpoint")


def test_a_backward_solve_with_its_own_tolerances_has_no_plan() -> None:
    with pytest.raises(ValueError, match=r"BacksolveAdjoint.*own tolerances"):
        plan(MLP(), state(), steps=4, adjoint=BacksolveAdjoint(rtol=1e-6))


NETS = {
    "linear": "nn.Linear(8, 8)",
    "mlp": "nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))",
    "deep": "nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.LayerNorm(8)) for _ in range(6)])",
    "conv": "nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))",
}
GROWTH = """
import gc
from pathlib import Path
import torch
from torch import nn
from anodev2 import odeint, plan

def resident():
    gc.collect()
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

net, y0 = {net}, torch.randn({shape}, requires_grad=True)
f = lambda t, y: net(y)
odeint(f, y0, [0.0, 1.0], method={method!r}, steps=20).sum().backward()
before = resident()
end = odeint(f, y0, [0.0, 1.0], method={method!r}, steps={steps})
told = plan(f, y0, method={method!r}, steps={steps})
print((resident() - before - {steps} * told.state_bytes) / told.node_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no count of resident memory")
@pytest.mark.parametrize(
    ("net", "method", "steps"),
    [("linear", "euler", 4000), ("mlp", "rk4", 2000), ("mlp", "dopri5", 1000), ("deep", "rk4", 500), ("conv", "heun2", 1000)],
)
def test_nodes_take_what_was_told_within_a_fifth(net: str, method: str, steps: int) -> None:
    shape = "1, 2, 4, 4" if net == "conv" else "1, 8"
    code = GROWTH.format(net=NETS[net], shape=shape, method=method, steps=steps)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(1, abs=0.2)
