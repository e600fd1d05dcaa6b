"""What works together with what: every adjoint with the rest of PyTorch. docs/gradients.md prints this table.

A cell is "exact" (equal to plain autograd through the same scheme), "stores all" (exact, by plain autograd: memory grows with
the steps), "inexact" (BacksolveAdjoint's nature), "recomputed" (exact, by the compiler's own checkpoints) or "error".
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ODEBlock, ReversibleAdjoint, odeint
from anodev2.models import resnet4
from faithful import COUPLING, StoredReversible

ADJOINTS: dict[str, Adjoint] = {
    "direct": DirectAdjoint(),
    "checkpoint": CheckpointAdjoint(),
    "slots": CheckpointAdjoint(slots=2),
    "memory": CheckpointAdjoint(memory="20KB"),
    "offload": CheckpointAdjoint(offload="cpu"),
    "reversible": ReversibleAdjoint(COUPLING),
    "backsolve": BacksolveAdjoint(),
}
CHECKPOINTED = ("checkpoint", "slots", "memory", "offload")


def row(direct: str, checkpoint: str, reversible: str, backsolve: str) -> dict[str, str]:
    return {"direct": direct, **dict.fromkeys(CHECKPOINTED, checkpoint), "reversible": reversible, "backsolve": backsolve}


MATRIX = {
    "double backward": row("exact", "exact", "error", "error") | {"slots": "error"},
    "forward mode": row("exact", "stores all", "stores all", "error"),
    "vmap": row("exact", "stores all", "stores all", "error"),
    "func.grad": row("exact", "stores all", "stores all", "error"),
    "func.jacrev": row("exact", "stores all", "stores all", "error"),
    "compile(fullgraph)": row("exact", "recomputed", "stores all", "error"),
    "autocast bf16": row("exact", "exact", "exact", "inexact"),
    "autocast fp16": row("exact", "exact", "exact", "inexact"),
    "DDP": row("exact", "exact", "exact", "inexact"),
    "accumulation": row("exact", "exact", "exact", "inexact"),
    "no_grad": row("exact", "exact", "exact", "exact"),
    "complex": row("exact", "exact", "exact", "inexact"),
    "float64": row("exact", "exact", "exact", "inexact"),
    "module hooks": row("exact", "exact", "exact", "inexact"),
    "weight tying": row("exact", "exact", "exact", "inexact"),
}
ERRORS = {"double backward": "second derivative.*adjoint='direct'"}
OTHER_ERROR = "BacksolveAdjoint does not work under .*adjoint='direct'"


class Net(nn.Module):
    """tanh of two layers that share their weight where ``tied``."""

    def __init__(self, tied: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.two.weight = self.one.weight
        self.to(dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.two(torch.tanh(self.one(y)) + t))


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def end(net: nn.Module, y: Tensor, adjoint: Adjoint, steps: int = 12) -> Tensor:
    return odeint(net, y, [0.0, 1.0], steps=steps, method="midpoint", adjoint=adjoint)[-1]


def training_step(net: nn.Module, y: Tensor, adjoint: Adjoint) -> list[Tensor]:
    """Gradients of the state and the parameters of a loss that also uses a weight outside the solve."""
    y = y.clone().requires_grad_()
    net.zero_grad()
    z = end(net, y, adjoint)
    ((z * z.conj()).real.sum() + next(net.parameters()).abs().sum()).backward()
    return [p.grad for p in (y, *net.parameters()) if p.grad is not None]


def autocast(dtype: torch.dtype) -> Callable[[Adjoint], list[Tensor]]:
    def run(adjoint: Adjoint) -> list[Tensor]:
        with torch.autocast("cpu", dtype, cache_enabled=False):  # with its cache direct would sum weight gradients in low precision
            return training_step(Net(dtype=torch.float32), start(torch.float32), adjoint)

    return run


def double_backward(adjoint: Adjoint) -> list[Tensor]:
    net, y = Net(), start().requires_grad_()
    (first,) = torch.autograd.grad(end(net, y, adjoint).square().sum(), y, create_graph=True)
    return list(torch.autograd.grad(first.square().sum(), [y, *net.parameters()]))


def hessian(adjoint: Adjoint) -> list[Tensor]:
    curvature = torch.autograd.functional.hessian(lambda y: end(Net(), y, adjoint).square().sum(), start()[:1])
    assert isinstance(curvature, Tensor)
    return [curvature]


def compiled(adjoint: Adjoint, backend: str | None = "aot_eager") -> list[Tensor]:
    """Of a model with a norm in front of the solve; as it is where ``backend`` is None."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.norm = Net(), nn.BatchNorm1d(4).double()

        def forward(self, y: Tensor) -> Tensor:
            return end(self.f, self.norm(y), adjoint, steps=3)

    torch._dynamo.reset()
    model, y = Model(), start().requires_grad_()
    run = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
    run(y).square().sum().backward()
    assert model.norm.num_batches_tracked == 1
    return [p.grad for p in (y, *model.parameters()) if p.grad is not None]


def accumulation(adjoint: Adjoint) -> list[Tensor]:
    net = Net()
    for part in start().split(1):
        end(net, part, adjoint).square().sum().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


def without_gradients(adjoint: Adjoint) -> list[Tensor]:
    with torch.no_grad():
        return [end(Net(), start(), adjoint)]


def complex_state(adjoint: Adjoint) -> list[Tensor]:
    w, y = torch.tensor(0.3 + 1.1j, dtype=torch.complex128, requires_grad=True), (start() + 0.5j * start()).requires_grad_()
    z: Tensor = odeint(lambda t, z, w: w * z / (1 + z.abs() ** 2), y, [0.0, 1.0], steps=12, args=(w,), adjoint=adjoint)[-1]
    return list(torch.autograd.grad(z.abs().square().sum() + z.imag.sum(), [y, w]))


def hooked(adjoint: Adjoint) -> list[Tensor]:
    net = Net()

    def louder(module: nn.Module, inputs: Any, output: Any) -> Any:
        return 1.1 * output

    net.one.register_forward_hook(louder)
    net.two.register_full_backward_hook(lambda module, inputs, outputs: (0.9 * inputs[0],))
    return training_step(net, start(), adjoint)


def transformed(transform: Callable[[Callable[[Tensor], Tensor]], list[Tensor]]) -> Callable[[Adjoint], list[Tensor]]:
    def run(adjoint: Adjoint) -> list[Tensor]:
        net = Net()
        return transform(lambda y: end(net, y, adjoint))

    return run


RUNS: dict[str, Callable[[Adjoint], list[Tensor]]] = {
    "double backward": double_backward,
    "forward mode": transformed(lambda f: [torch.func.jvp(f, (start(),), (torch.ones(3, 4).double(),))[1]]),
    "vmap": transformed(lambda f: [torch.func.vmap(f)(start())]),
    "func.grad": transformed(lambda f: [torch.func.grad(lambda y: f(y).square().sum())(start())]),
    "func.jacrev": transformed(lambda f: [torch.func.jacrev(f)(start()[:1])]),
    "compile(fullgraph)": compiled,
    "autocast bf16": autocast(torch.bfloat16),
    "autocast fp16": autocast(torch.float16),
    "accumulation": accumulation,
    "no_grad": without_gradients,
    "complex": complex_state,
    "float64": lambda adjoint: training_step(Net(), start(), adjoint),
    "module hooks": hooked,
    "weight tying": lambda adjoint: training_step(Net(tied=True), start(), adjoint),
}


def reference(adjoint: str) -> Adjoint:
    return StoredReversible() if adjoint == "reversible" else DirectAdjoint()


def assert_cell(cell: str, found: list[Tensor], expected: list[Tensor], low_precision: bool = False) -> None:
    tolerance = 0.2 if cell == "inexact" else 2e-3 if low_precision else 1e-10
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def slowly(column: str, adjoint: str) -> Any:
    """Each compiles for seconds."""
    return pytest.mark.slow if column.startswith("compile") and adjoint not in ("direct", "checkpoint") else ()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")  # torch's own decompositions
@pytest.mark.filterwarnings("ignore:ReversibleAdjoint found y0 again:RuntimeWarning")  # in 8 and 11 bits
@pytest.mark.parametrize(("column", "adjoint"), [pytest.param(c, a, marks=slowly(c, a)) for c in RUNS for a in ADJOINTS])
def test_every_cell_of_the_table(column: str, adjoint: str) -> None:
    cell, run = MATRIX[column][adjoint], RUNS[column]
    if cell == "error":
        with pytest.raises((RuntimeError, ValueError), match=ERRORS.get(column, OTHER_ERROR)):
            run(ADJOINTS[adjoint])
    else:
        plain = partial(compiled, backend=None) if run is compiled else run
        assert_cell(cell, run(ADJOINTS[adjoint]), plain(reference(adjoint)), low_precision="autocast" in column)


@pytest.mark.slow
def test_a_whole_coupled_network_compiles_to_the_same_gradients() -> None:
    torch._dynamo.reset()
    network = resnet4(block="coupled").double()
    x, ends = torch.randn(2, 3, 32, 32).double(), []
    for run in (lambda own: own, lambda own: torch.compile(own, fullgraph=True, backend="aot_eager")):
        own = copy.deepcopy(network)
        run(own)(x).square().sum().backward()
        ends.append([p.grad for p in own.parameters() if p.grad is not None] + list(own.buffers()))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "steps"), [("aot_eager", 32), ("inductor", 8)])  # whose time is that of its steps
@pytest.mark.filterwarnings("ignore")  # what the compiler says about the machine
def test_many_steps_compile(backend: str, steps: int) -> None:
    torch._dynamo.reset()
    net, y, ends = Net(), start().requires_grad_(), []
    solve = lambda y: end(net, y, CheckpointAdjoint(), steps=steps)
    for run in (solve, torch.compile(solve, fullgraph=True, backend=backend)):
        ends.append(torch.autograd.grad(run(y).square().sum(), [y, *net.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("adjoint", [*CHECKPOINTED, "reversible", "backsolve"])
def test_a_hessian_is_exact_or_refused(adjoint: str) -> None:
    expected = hessian(DirectAdjoint())
    assert expected[0].abs().max() > 0.1
    if MATRIX["double backward"][adjoint] == "exact":
        assert all(map(torch.equal, hessian(ADJOINTS[adjoint]), expected))
        return
    with pytest.raises(RuntimeError, match="second derivative"):
        hessian(ADJOINTS[adjoint])


def distributed(rank: int, folder: str) -> None:
    """Gradients averaged over two processes, each with its part of the batch, for every adjoint."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, adjoint in ADJOINTS.items():
        net = nn.parallel.DistributedDataParallel(nn.Sequential(ODEBlock(Net(), steps=12, method="midpoint", adjoint=adjoint)))
        net(torch.stack([start()[rank], start()[rank]])).square().mean().backward()
        found[name] = [p.grad for p in net.parameters() if p.grad is not None]
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that takes its time to end


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(distributed, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    found = torch.load(tmp_path / "found.pt")
    for name in ADJOINTS:
        net = Net()
        end(net, start()[:2], reference(name)).square().mean().backward()
        assert_cell(MATRIX["DDP"][name], found[name], [p.grad for p in net.parameters() if p.grad is not None])


def test_the_table_of_the_docs_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gradients.md").read_text()
    for column, cells in MATRIX.items():
        assert "| " + " | ".join([column, *cells.values()]) + " |" in page, column


def test_what_torch_itself_refuses_under_vmap_is_torchs_message() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4).double()

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.norm(super().forward(t, y))

    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda y: end(Normed(), y, CheckpointAdjoint()))(start()[None])


def test_adaptive_solves_are_refused_under_transforms_with_the_cure() -> None:
    net = Net()
    adaptive = lambda y: odeint(net, y, [0.0, 1.0], method="dopri5")[-1]
    for run in (lambda: torch.func.vmap(adaptive)(start()), lambda: torch.func.jacrev(adaptive)(start()[:1])):
        with pytest.raises(ValueError, match=r"grid=solution.grid"):
            run()
