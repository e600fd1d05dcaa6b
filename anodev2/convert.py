"""A stack of trained residual blocks as one coupled block: which dynamics do their weights follow, and how nearly?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .block import CoupledODEBlock, ODEBlock
from .diagnose.table import table
from .dynamics import Dynamics, Theta
from .gradients.adjoint import Adjoint
from .signature import CountedCall

ENOUGH = 1e-12  # relative error that is not worth another step
PROJECTIONS = 8  # descents at most, each from where the last was projected to


class StepBranches(nn.Module):
    """f(t, z) of step n is the n-th of ``branches``, which share the weights that are to evolve; the rest is each one's own."""

    def __init__(self, branches: Iterable[nn.Module], shared: Sequence[str]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.counted = "step" in CountedCall(self.branches[0]).names
        for branch in self.branches[1:]:
            for name in shared:
                place, _, own = name.rpartition(".")
                branch.get_submodule(place).register_parameter(own, self.branches[0].get_parameter(name))

    def forward(self, t: Any, z: Any, *, step: int) -> Any:
        return self.branches[step](t, z, step=0) if self.counted else self.branches[step](t, z)


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` found; ``print`` shows the errors as a table.

    ``errors``: by the name of a weight in a branch, for each layer the Frobenius norm of what the coupled block's weight lacks, in parts of
    the layer's own: (layers,), on the CPU.
    """

    block: CoupledODEBlock
    errors: dict[str, Tensor]

    def __str__(self) -> str:
        layers = len(next(iter(self.errors.values())))
        rows = [[name, *error.tolist()] for name, error in self.errors.items()]
        return table(["relative error", *(f"layer {layer + 1}" for layer in range(layers))], rows)


def convert(
    stack: nn.Sequential | Sequence[nn.Module],
    dynamics: Dynamics,
    *,
    evolve: str | Sequence[str] | None = None,
    t: Sequence[float] | None = None,
    adjoint: str | Adjoint = "checkpoint",
) -> Conversion:
    """k trained residual blocks z + f_n(z) of equal shape as one coupled block of k Euler steps whose weights pass nearest to theirs.

    Least is the sum over all weights that evolve and all layers of |theta(t_n) - theta_n|^2, over theta(0) and the parameters of
    ``dynamics``: by least squares where the dynamics is linear in both, from a start by singular values for low rank and banks, by the
    growth of Fourier modes for reaction, diffusion and advection, group by group for ``DepthGroups``; then by L-BFGS in double precision,
    which may end in a local minimum (``Hyper`` of width 2 or more does, and pieces of depth in groups that end between two layers). What
    does not evolve (norms and their statistics, biases) is copied and each step's own. For k = 1 the block is z + f_1(z) to the bit.
    ``Conversion.block.unroll()`` is a stack again. The modules given are left as they are.

    Args:
        stack: the branches f_n, called as f(t, z), or blocks that hold one as ``.f``: ``ODEBlock``s of one Euler step, ``ResidualBlock``s.
        dynamics: a fresh ``Dynamics``, which becomes the block's. One with a ``length`` needs that of t, k by default.
        evolve: as for ``CoupledODEBlock``, by the names in a branch.
        t: start and end; default (0, k), steps of length 1 as in a residual block; for ``ODEBlock``s their own.
        adjoint: of the new block.

    Raises:
        TypeError, ValueError: no branches, branches of different parameters, ``ODEBlock``s that are no consecutive equal Euler steps.
    """
    blocks = list(stack)
    branches = [copy.deepcopy(_branch(block)) for block in blocks]
    count = len(branches)
    _check_alike(branches)
    span = _span(blocks) if t is None else (float(t[0]), float(t[1]))
    probe = CoupledODEBlock(copy.deepcopy(branches[0]), copy.deepcopy(dynamics), evolve=evolve, steps=count, t=span)
    layers = {name: torch.stack([branch.get_parameter(name).detach() for branch in branches]) for name in probe.evolving}
    f = StepBranches(branches, probe.evolving)
    block = CoupledODEBlock(f, dynamics, evolve=[f"branches.0.{name}" for name in probe.evolving], steps=count, t=span, adjoint=adjoint)
    targets = {f"branches.0.{name}": values.to("cpu", torch.float64) for name, values in layers.items()}
    if count > 1:
        _fit(block, targets)
    reached = {name: values.detach().to("cpu", torch.float64) for name, values in block.weights(block.reading_times).items()}
    errors = {name.removeprefix("branches.0."): _norms(reached[name] - w) / _norms(w).clamp(min=1e-300) for name, w in targets.items()}
    for part in (block, f, f.branches):
        part.training = blocks[0].training
    return Conversion(block, errors)


def _fit(block: CoupledODEBlock, targets: Theta) -> None:
    work = copy.deepcopy(block).to("cpu", torch.float64)
    times = work.reading_times
    weights = {name: work.f.get_parameter(name) for name in targets}
    start = work.dynamics.fit(targets, [time - work.t[0] for time in times])
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(targets[name][0] if start is None else start[name])
    whole = sum(float(values.square().sum()) for values in targets.values())

    def misfit() -> Tensor:
        found = work.weights(times)
        return torch.stack([(found[name] - values).square().sum() for name, values in targets.items()]).sum() / whole

    parameters = [p for p in (*weights.values(), *work.dynamics.parameters()) if p.requires_grad]
    for _ in range(PROJECTIONS):
        _descend(misfit, parameters)
        before = [p.detach().clone() for p in parameters]
        getattr(work.dynamics, "project", lambda: None)()  # a diffusivity that was led below 0 has no slope there, and one at 0
        if all(torch.equal(*pair) for pair in zip(parameters, before, strict=True)):
            break
    own = dict(work.named_parameters())
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.startswith("dynamics.") or name.removeprefix("f.") in targets:
                parameter.copy_(own[name])


def _descend(misfit: Callable[[], Tensor], parameters: list[nn.Parameter]) -> None:
    """L-BFGS, and back if that was no good."""
    best, kept = float(misfit().detach()), [p.detach().clone() for p in parameters]
    if not parameters or best <= ENOUGH**2:
        return
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=1000, tolerance_grad=1e-14, tolerance_change=0, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = misfit()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType] (a tensor is what LBFGS wants)
    if not float(misfit().detach()) < best:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)


def _norms(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


def _branch(block: nn.Module) -> nn.Module:
    if not isinstance(block, nn.Module):
        raise TypeError(f"stack must hold nn.Modules, branches f(t, z) or blocks with one as .f, got {type(block).__name__}")
    inside = getattr(block, "f", None)
    return inside if isinstance(inside, nn.Module) else block


def _check_alike(branches: list[nn.Module]) -> None:
    if not branches:
        raise ValueError("stack is empty; give at least one residual block")
    first = {name: tuple(p.shape) for name, p in branches[0].named_parameters()}
    for place, branch in enumerate(branches[1:], start=1):
        shapes = {name: tuple(p.shape) for name, p in branch.named_parameters()}
        if shapes != first:
            differ = sorted({*(first.items() ^ shapes.items())})[0][0]
            raise ValueError(f"blocks 0 and {place} of the stack differ in {differ}: {first.get(differ)} and {shapes.get(differ)}")


def _span(blocks: list[nn.Module]) -> tuple[float, float]:
    """t of the whole, of blocks that have one each."""
    if not any(isinstance(block, ODEBlock) for block in blocks):
        return 0.0, float(len(blocks))
    ends = []
    for place, block in enumerate(blocks):
        if not isinstance(block, ODEBlock) or isinstance(block, CoupledODEBlock) or block.steps != 1 or block.method.name != "euler":
            raise ValueError(f"block {place} of the stack must be an ODEBlock of one Euler step, got {type(block).__name__}")
        ends.append(block.t)
    length = ends[0][1] - ends[0][0]
    for place, (low, high) in enumerate(ends):
        if abs(low - ends[0][0] - place * length) > 1e-9 * abs(length) or abs(high - low - length) > 1e-9 * abs(length):
            raise ValueError(f"block {place} of the stack goes from {low} to {high}; give t=(start, end), or equal steps in a row")
    return ends[0][0], ends[-1][1]
