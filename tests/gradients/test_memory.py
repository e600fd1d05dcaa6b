"""Peak memory of a training step: a bound on live bytes, and its growth with the number of steps."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ODEBlock, ReversibleAdjoint, odeint, plan, solve
from anodev2.integrate.comparison import Samples
from live_bytes import LiveBytes

MIB = 2**20


class ConvField(nn.Module):
    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(z)))


STATE = 4 * 64 * 16 * 16 * 4 / MIB


def image(size: int = 16) -> Tensor:
    return torch.randn(4, 64, size, size, generator=torch.Generator().manual_seed(1), requires_grad=True)


def peak(adjoint: str | Adjoint, steps: int) -> float:
    return measured(adjoint, steps)[0]


def measured(adjoint: str | Adjoint, steps: int, size: int = 16) -> tuple[float, int]:
    """The peak of live bytes in MiB, and evaluations of f, in one training step."""
    torch.manual_seed(0)
    block, calls = ODEBlock(ConvField(), steps=steps, adjoint=adjoint), []
    block.f.register_forward_pre_hook(lambda *_: calls.append(1))
    z = image(size)
    with LiveBytes() as live:
        block(z).square().mean().backward()
    return live.peak / MIB, len(calls)


def test_peak_of_64_checkpointed_steps_is_64_states_and_little_more() -> None:
    assert peak("checkpoint", 64) <= 18.5  # 64 states of 0.25 MiB are 16


def test_a_graph_that_is_retained_holds_one_redone_step() -> None:
    block, z = ODEBlock(ConvField(), steps=64), image(16)
    with LiveBytes() as live:
        loss = block(z).square().mean()
        loss.backward(retain_graph=True)
    assert live.peak / MIB <= 19


def test_storing_everything_takes_twice_that() -> None:
    assert peak("direct", 64) > 33  # the counter sees what it should see


def test_each_further_step_costs_one_state_and_a_sample() -> None:
    assert peak("checkpoint", 48) - peak("checkpoint", 32) == pytest.approx(16 * (STATE + Samples.SIZE * 4 / MIB), rel=1e-3)


@pytest.mark.parametrize(("slots", "bound", "optimum"), [(8, 5.0, 201), (3, 3.5, 322)])
def test_slots_bound_the_peak_at_the_binomial_number_of_steps(slots: int, bound: float, optimum: int) -> None:
    found, evaluations = measured(CheckpointAdjoint(slots=slots), 64)
    assert found <= bound
    assert evaluations == optimum + 1  # the last step is redone


@pytest.mark.slow
def test_the_peak_of_fixed_slots_does_not_grow_with_the_number_of_steps() -> None:
    short, _ = measured(CheckpointAdjoint(slots=10), 64, size=4)
    long, evaluations = measured(CheckpointAdjoint(slots=10), 1000, size=4)
    assert long <= short and evaluations == 4636 + 1


@pytest.mark.parametrize("adjoint", ["reversible", "backsolve"])
def test_the_peak_of_a_solve_without_checkpoints_does_not_grow_with_the_number_of_steps(adjoint: str) -> None:
    assert peak(adjoint, 64) <= peak(adjoint, 16)


def test_memory_budgets_are_kept_and_predicted_and_the_more_the_fewer_steps_are_redone() -> None:
    """Apart from what f holds while it runs, parameters and their gradients: what remains with one slot."""
    one, z = CheckpointAdjoint(slots=1), image(8)
    beside = measured(one, 64, size=8)[0] - plan(ConvField(), z, steps=64, method="euler", adjoint=one).peak_bytes / MIB
    redone = []
    for budget in (0.325, 0.5, 1.25, 3, 5, 8.25):
        adjoint = CheckpointAdjoint(memory=f"{budget}MiB")
        told = plan(ConvField(), z, steps=64, method="euler", adjoint=adjoint)
        found, evaluations = measured(adjoint, 64, size=8)
        samples = 64 * Samples.SIZE * 4 / MIB if told.slots is None else 1e-3  # of what each step saved
        assert found - beside <= budget + samples
        assert found - beside == pytest.approx(told.peak_bytes / MIB, rel=0.1)
        tried = int(told.slots is not None)  # a step whose graph was too large to be kept beside all states
        assert evaluations == tried + told.evaluations_forward + told.evaluations_backward
        redone.append(told.recomputed)
    assert redone == sorted(redone, reverse=True) and redone[0] > 300 and redone[-1] == 0


def test_a_budget_below_the_smallest_schedule_names_it() -> None:
    with pytest.raises(ValueError, match=r"memory='0.9MiB' is below the smallest schedule for 64 steps, 1.00 MiB"):
        ODEBlock(ConvField(), steps=64, adjoint=CheckpointAdjoint(memory="0.9MiB"))(image())


ADJOINTS: dict[str, Adjoint] = {
    "direct": DirectAdjoint(),
    "checkpoint": CheckpointAdjoint(),
    "slots": CheckpointAdjoint(slots=3),
    "memory": CheckpointAdjoint(memory="1MB"),
    "offload": CheckpointAdjoint(offload="cpu"),
    "reversible": ReversibleAdjoint(),
    "backsolve": BacksolveAdjoint(),
}


class Small(nn.Module):
    """Raises when told to, in the n-th evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.1)
        self.evaluations, self.fatal = 0, -1

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations == self.fatal:
            raise ArithmeticError("told to")
        return torch.tanh(self.norm(self.dropout(self.linear(y)) * self.scale))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_many_iterations_leak_nothing_even_where_f_raises(adjoint: str) -> None:
    deterministic = adjoint in ("reversible", "backsolve")
    net, w = Small(), torch.ones(64, requires_grad=True)
    net.train(not deterministic)
    y0, optimizer = torch.randn(8, 64), torch.optim.SGD([*net.parameters(), w], 1e-3)

    def iterate(fatal: int) -> None:
        net.evaluations, net.fatal = 0, fatal
        net.scale = w.exp()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.zero_grad()
        try:
            odeint(net, y0, [0.0, 0.5, 1.0], steps=3, method="euler", adjoint=ADJOINTS[adjoint]).square().sum().backward()
        except ArithmeticError:
            return
        optimizer.step()

    sizes = []
    gc.collect()
    with LiveBytes() as live:
        for i in range(21):
            iterate(fatal={3: 4, 4: 9, 5: 1}.get(i % 7, -1))  # forward, in the recompute where there is one, at once
            if i % 7 == 6:
                sizes.append(live.now)
    assert len(set(sizes[1:])) == 1, sizes


@pytest.mark.parametrize("adjoint", [CheckpointAdjoint(slots=2), BacksolveAdjoint()], ids=["slots", "backsolve"])
def test_an_adaptive_solve_holds_no_state_that_is_not_asked_for(adjoint: Adjoint) -> None:
    y0 = torch.linspace(0, 3, 2**14, requires_grad=True)
    options: dict[str, Any] = {"method": "bosh3", "rtol": 1e-6, "atol": 1e-6}
    f = lambda t, y: torch.cos(7 * y + t)
    steps = len(solve(f, y0, [0.0, 2.0], **options).grid)
    with LiveBytes() as live:
        odeint(f, y0, [0.0, 2.0], **options, adjoint=adjoint)
    assert steps > 60 and live.peak < 30 * 2**16, steps  # of one state
    with LiveBytes() as live, torch.no_grad():
        odeint(f, y0, [0.0, 2.0], **options)
        solve(f, y0, [0.0, 2.0], method="bosh3", steps=100, save="end")
    assert live.peak < 30 * 2**16


def test_a_step_with_transforms_inside_is_weighed() -> None:
    """torch.func does not bear the hooks that weigh what autograd stores."""
    net = nn.Linear(3, 3)
    f = lambda t, y: torch.func.vmap(torch.func.grad(lambda v: torch.tanh(net(v)).sum()))(y)
    y0, ends = torch.ones(4, 3), []
    for adjoint in ("direct", CheckpointAdjoint(memory="1MB"), CheckpointAdjoint(memory="2KB")):
        ends.append(torch.autograd.grad(odeint(f, y0, [0.0, 1.0], steps=9, adjoint=adjoint)[-1].sum(), net.weight)[0])
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])
    told = plan(f, y0, steps=9, method="euler")
    assert told.graph_bytes > 0 and told.evaluations_forward == 9


def test_what_surrounds_f_is_no_part_of_the_graph() -> None:
    """Frozen parameters, buffers, constants and arguments are read by it, not made for it."""
    net, context, matrix = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 100)), torch.ones(1, 100), torch.eye(100)
    y0 = torch.ones(1, 100, requires_grad=True)
    f = lambda t, y, c: net(y) @ matrix * c
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        assert plan(f, y0, steps=8, method="euler", args=(context,)).graph_bytes < 2000
        for budget in (3000, 4000, 5500):  # with slots, with all states, with graphs
            adjoint = CheckpointAdjoint(memory=budget)
            run = solve(f, y0, [0.0, 1.0], steps=8, method="euler", args=(context,), adjoint=adjoint)
            run.ys[-1].sum().backward()
            assert run.stats.peak_bytes == plan(f, y0, steps=8, method="euler", args=(context,), adjoint=adjoint).peak_bytes <= budget
