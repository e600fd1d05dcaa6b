"""compile=: the same results and gradients, a graph per shape, and a word where it cannot be."""

from __future__ import annotations

import copy
import gc
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anodev2 import (
    METHODS,
    CheckpointAdjoint,
    Compile,
    CoupledODEBlock,
    ODEBlock,
    ReactionDiffusionAdvection,
    Tableau,
    odeint,
    solve,
)
from anodev2.integrate import compiled
from anodev2.integrate.runs import Runs
from anodev2.models import resnet4
from anodev2.solvers import RungeKutta
from anodev2.stepping import Grid
from compiling import ADJOINTS, FAST, TRACED, Field, gradients
from sampled import rows


@pytest.mark.parametrize(
    ("method", "adjoint"), rows(["euler", "rk4"], ADJOINTS, quick=[("euler", ADJOINTS[1]), ("euler", ADJOINTS[2])]), ids=str
)
def test_gradients_are_those_of_the_plain_solve(method: str, adjoint: Any) -> None:
    f, y0 = Field(), torch.randn(2, 3, dtype=torch.float64)
    plain = gradients(f, y0, method=method, steps=7, adjoint="direct")
    torch.testing.assert_close(gradients(f, y0, method=method, steps=7, adjoint=adjoint, compile=FAST), plain, rtol=1e-12, atol=1e-13)


class Changing(nn.Module):
    """Reads buffers which it changes: before, after, in part, through a view, with spectral norm."""

    part: Tensor
    mean: Tensor
    count: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).double()
        self.norm = nn.BatchNorm1d(3, affine=False).double()
        for name in ("mean", "part"):
            self.register_buffer(name, torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("seen", torch.ones(2, 3, dtype=torch.float64))

    def forward(self, t: Any, y: Tensor) -> Tensor:
        before = self.mean.clone() * y
        if self.training:
            self.mean.lerp_(y.detach().mean(0), 0.3)
            self.part[1:].add_(y.detach()[0, 1:])
            self.part.view(3, 1)[0].mul_(0.5).add_(1)
            self.count.add_(1)
            self.seen.mul_(0.9).add_(y.detach())
        shift = self.mean * torch.sin(self.count) + self.part.square()
        return torch.tanh(self.net(self.norm(y) + before)) * (1 + shift) + torch.cos(self.seen + y)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ADJOINTS[:3], ids=str)
def test_generated_code_reads_buffers_as_they_were(adjoint: Any) -> None:
    f, y0 = Changing(), torch.randn(2, 3, dtype=torch.float64)
    start = copy.deepcopy(f.state_dict())

    def all_of_it(training: bool, **options: Any) -> list[Tensor]:
        f.train(training).load_state_dict(start)
        return [*gradients(f, y0, steps=4, method="euler", **options), *(buffer.clone() for buffer in f.buffers())]

    for training in (True, False, True):
        plain = all_of_it(training, adjoint="direct")
        torch.testing.assert_close(all_of_it(training, adjoint=adjoint, compile=Compile(steps=3)), plain, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_generated_code_has_the_gradients_of_the_plain_solve() -> None:
    f, y0 = Field(), torch.randn(2, 3, dtype=torch.float64)
    plain = gradients(f, y0, steps=4, method="midpoint", adjoint="direct")
    torch.testing.assert_close(gradients(f, y0, steps=4, method="midpoint", compile=Compile(2)), plain, rtol=1e-12, atol=1e-13)


def test_a_shape_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: (calls.append(args), real(*args, **options))[1])
    torch._dynamo.utils.counters.clear()
    f = Field()
    for grid_end in (1.0, 2.0, 3.0):  # other times are the same graph
        y = odeint(f, torch.randn(2, 3, dtype=torch.float64, requires_grad=True), [0.0, grid_end], steps=6, method="euler", compile=FAST)
        y.sum().backward()
    assert len(calls) == 1  # for the first run and those after it
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_functions_made_anew_share_their_graphs() -> None:
    f, made = Field(), []
    for _ in range(3):
        func = lambda t, y: f(t, y)
        made.append(compiled.owner(func))
        odeint(func, torch.randn(2, 3, dtype=torch.float64), [0.0, 1.0], steps=3, method="euler", compile=TRACED)
    assert made[0] is made[1] is made[2]
    assert sum(len(runs) for _, runs in compiled._GRAPHS[made[0]].by.values()) == 1


def test_graphs_live_as_long_as_func() -> None:
    f = Field()
    odeint(f, torch.randn(2, 3, dtype=torch.float64), [0.0, 1.0], steps=3, method="euler", compile=TRACED)
    assert f in compiled._GRAPHS
    gone = weakref.ref(f)
    del f
    torch._dynamo.reset()  # guards of the last call
    gc.collect()
    assert gone() is None


def test_dropout_is_the_same_in_both_passes() -> None:
    f, y0 = Field(dropout=0.5), torch.randn(2, 3, dtype=torch.float64)
    found = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(1)
        found.append(gradients(f, y0, steps=6, method="euler", adjoint=adjoint, compile=FAST))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
    assert (gradients(f, y0, steps=6, method="euler", compile=FAST)[0] - found[0][0]).abs().max() > 1e-3  # it does draw


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_a_coupled_block_with_norms_per_step(adjoint: str) -> None:
    plain = resnet4(block="coupled", steps=4, adjoint=adjoint).double()
    fast = resnet4(block="coupled", steps=4, adjoint=adjoint, compile=Compile(steps=2, backend="aot_eager")).double()
    fast.load_state_dict(plain.state_dict())
    block = next(module for module in fast.modules() if isinstance(module, CoupledODEBlock))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for network in (plain, fast):
        network(images).square().sum().backward()
    torch.testing.assert_close([p.grad for p in fast.parameters()], [p.grad for p in plain.parameters()], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(dict(fast.named_buffers()), dict(plain.named_buffers()))  # moved once
    assert not compiled._GRAPHS[block.f].refused


def test_a_method_with_a_step_of_its_own_has_graphs_of_its_own() -> None:
    class Half(RungeKutta):
        def step(self, field: Any, step: Any, y: Any) -> list[Tensor]:
            return [leaf + (end - leaf) / 2 for leaf, end in zip(y, super().step(field, step, y), strict=True)]

    f, y0 = Field(), torch.randn(2, 3, dtype=torch.float64)
    tableau = METHODS["euler"]
    assert isinstance(tableau, Tableau)
    whole, half = (odeint(f, y0, [0.0, 1.0], method=m, steps=1, compile=TRACED)[-1] for m in ("euler", Half(tableau)))
    torch.testing.assert_close(half, (y0 + whole) / 2)


def test_gradients_of_times() -> None:
    f, y0, found = Field(), torch.randn(2, 3, dtype=torch.float64), []
    for compile in (False, TRACED):
        t = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
        found.append(torch.autograd.grad(odeint(f, y0, t, steps=4, method="midpoint", compile=compile).square().sum(), t)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_a_recorded_grid_is_cut_into_runs_too() -> None:
    f, y0 = Field(), torch.randn(2, 3, dtype=torch.float64)
    nodes = [0.0, 0.1, 0.3, 0.5, 0.9, 1.2, 2.0]
    plain = gradients(f, y0, grid=nodes, adjoint="direct")
    torch.testing.assert_close(gradients(f, y0, grid=nodes, compile=FAST), plain, rtol=1e-12, atol=1e-13)


def test_tensors_with_a_history_in_a_closure_are_served() -> None:
    weight, y0 = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)
    product = weight * 2
    func = lambda t, y: torch.tanh(y @ product)
    ends = [odeint(func, y0, [0.0, 1.0], steps=3, method="midpoint", compile=compile)[-1] for compile in (False, FAST)]
    found = [torch.autograd.grad(end.sum(), weight, retain_graph=True)[0] for end in ends]
    torch.testing.assert_close(found[1], found[0])
    with pytest.raises(ValueError, match="cannot be followed"):
        odeint(func, y0, [0.0, 1.0], steps=6, method="midpoint", compile=FAST, adjoint=CheckpointAdjoint(slots=1))


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=2)
def test_more_shapes_than_torch_compiles_run_with_a_word() -> None:
    f = Field()
    for batch in (2, 3):
        odeint(f, torch.randn(batch, 3, dtype=torch.float64), [0.0, 1.0], steps=3, compile=FAST)
    with pytest.warns(UserWarning, match="compile=True has no effect here"):
        odeint(f, torch.randn(4, 3, dtype=torch.float64), [0.0, 1.0], steps=3, compile=FAST)


def test_what_cannot_be_compiled_runs_with_a_word() -> None:
    def by_value(t: Any, y: Tensor) -> Tensor:
        return y if y.sum().item() > 0 else -y

    y0 = torch.ones(3)
    with pytest.warns(UserWarning, match="compile=True has no effect here, the solve goes on without"):
        found = odeint(by_value, y0, [0.0, 1.0], steps=4, compile=FAST)
    assert torch.equal(found, odeint(by_value, y0, [0.0, 1.0], steps=4))
    odeint(by_value, y0, [0.0, 1.0], steps=4, compile=FAST)  # said once


@pytest.mark.slow
def test_second_derivatives_are_refused() -> None:
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    for adjoint in ("direct", "checkpoint", CheckpointAdjoint(slots=1)):
        end = odeint(Field(), y0, [0.0, 1.0], steps=6, adjoint=adjoint, compile=FAST)[-1]
        with pytest.raises(RuntimeError, match=r"double backward|second derivative"):
            (gradient,) = torch.autograd.grad(end.square().sum(), y0, create_graph=True)
            torch.autograd.grad(gradient.sum(), y0)


def test_mistakes_are_refused() -> None:
    def in_place(t: Any, y: Tensor) -> Tensor:
        return y.mul_(2)

    class Unhashable:
        __hash__ = None  # pyright: ignore[reportAssignmentType]

        def __call__(self, t: Any, y: Tensor) -> Tensor:
            return y

    f, y0 = Field(), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="modifies its state y in place"):
        odeint(in_place, y0, [0.0, 1.0], steps=4, method="euler", compile=FAST)
    with pytest.raises(ValueError, match="compile=True needs to know the steps"):
        odeint(f, y0, [0.0, 1.0], method="dopri5", compile=True)
    with pytest.raises(ValueError, match="compile=True is for adjoint='checkpoint' or 'direct', not ReversibleAdjoint"):
        odeint(f, y0, [0.0, 1.0], steps=4, adjoint="reversible", compile=True)
    with pytest.raises(TypeError, match="compile='yes' must be True, False or a Compile object"):
        ODEBlock(f, steps=4, compile="yes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="steps=0 must be a positive integer"):
        Compile(steps=0)
    with pytest.raises(TypeError, match=r"a function, method or nn\.Module, got a Unhashable"):
        odeint(Unhashable(), y0, [0.0, 1.0], steps=4, compile=True)


def test_blocks_compile_and_say_so() -> None:
    torch.manual_seed(0)
    f, z = nn.Conv1d(2, 2, 3, padding=1), torch.randn(2, 2, 8)

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = f

        def forward(self, t: Any, z: Tensor) -> Tensor:
            return torch.relu(self.conv(z))

    block = CoupledODEBlock(Branch(), ReactionDiffusionAdvection(), steps=3, compile=FAST)
    assert "compile=Compile(steps=3, mode=None, backend='aot_eager')" in repr(block)
    fast = block(z)
    assert sum(len(runs) for _, runs in compiled._GRAPHS[block.f].by.values()) == 1
    path = block.trajectory(z)  # every state is wanted: not in runs
    block.compiling = False
    torch.testing.assert_close(fast, block(z))
    torch.testing.assert_close(path[-1], fast)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), longest=st.integers(1, 12))
def test_runs_cover_the_grid_and_end_at_its_outputs(counts: list[int], longest: int) -> None:
    grid = Grid(tuple(float(i) for i in range(len(counts) + 1)), tuple(counts))
    runs = Runs(grid.times, grid.counts, longest=longest)
    steps: list[Any] = runs.steps()
    assert [one for run in steps for one in run.inner] == grid.steps()
    assert len(runs) == len(steps) and all(1 <= len(run.inner) <= longest for run in steps)
    ends = [0, *(run.inner[-1].index + 1 for run in steps)]
    assert [ends[place] for place in runs.outputs()] == list(grid.outputs())
    assert all(a.time(1.0) == b.time(0.0) for a, b in pairwise(steps))
    for place, count in enumerate(counts):  # where a divisor is at hand, one graph serves all runs
        lengths = {len(run.inner) for run in steps if run.interval == place}
        assert len(lengths) == 1 or not any(count % length == 0 for length in range((longest + 1) // 2, longest + 1))


def test_an_argument_with_a_history_with_slots() -> None:
    """Compiled code cannot be looked into, so what has a history is handed to it by args."""
    gradients = []
    compiled: dict[str, Any] = {"adjoint": CheckpointAdjoint(slots=1), "compile": Compile(steps=1, backend="aot_eager")}
    plain: dict[str, Any] = {"adjoint": "direct"}
    for options in (plain, compiled):
        w = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
        f = lambda t, y, scale: torch.tanh(scale * y)
        odeint(f, torch.ones(2, 3, dtype=torch.float64), [0.0, 1.0], steps=3, method="midpoint", args=(w.exp(),), **options)[
            -1
        ].sum().backward()
        gradients.append(w.grad)
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=0)


HIDDEN = {
    "add_": lambda count: count.add_(1),
    ".data": lambda count: count.data.add_(1),
    "a view": lambda count: count[:1].add_(1),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # where the same code is compiled once more
@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("own", [True, False], ids=["compile=", "torch.compile"])
def test_what_compiled_code_writes_to_unseen_is_refused(own: bool, how: str) -> None:
    count, write = torch.zeros(3), HIDDEN[how]

    def f(t: Tensor, y: Tensor) -> Tensor:
        write(count)
        return torch.tanh(y)

    def run(adjoint: str) -> Tensor:
        func: Any = f if own else torch.compile(f, backend="aot_eager")
        y0 = torch.ones(2, 3, requires_grad=True)
        return odeint(func, y0, [0.0, 1.0], steps=4, method="euler", adjoint=adjoint, compile=FAST if own else False)

    run("direct")
    with pytest.raises(ValueError, match=r"writes to a hidden tensor of shape \(3,\) in code that is compiled"):
        run("checkpoint")


def test_methods_that_are_made_anew_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
    f, y0 = Field(), torch.ones(2, 3, dtype=torch.float64)

    class Own(RungeKutta):
        pass

    tableau = METHODS["euler"]
    assert isinstance(tableau, Tableau)
    for _ in range(compiled.METHODS + 5):
        odeint(f, y0, [0.0, 1.0], method=Own(tableau), steps=1, compile=TRACED)
    assert len(compiled._GRAPHS[f].by) == compiled.METHODS


@pytest.mark.slow
def test_what_a_compiled_func_captures_is_freed_with_it() -> None:
    gone = []

    def use() -> None:
        f = Field()
        gone.append(weakref.ref(f))
        y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        solve(lambda t, y: f(t, y), y0, [0.0, 1.0], steps=2, method="euler", compile=TRACED).ys.sum().backward()

    use()
    use()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
