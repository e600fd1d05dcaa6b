"""The Jacobian of f as a matrix: one block for the whole state, or one for each sample where samples do not feel each other.

Its rows come from one vectorised pass of autograd, n times the work of a derivative in one direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stepping import Step, Time
from ..torch_private import in_transform
from .flat import Flat
from .method import FlatField, Leaves

DENSE = 128  # elements of a block up to which matrices are made and inverted


@dataclass(frozen=True)
class Linearised:
    """f near a state and a time: ``slope`` (N,), ``matrix`` (blocks, n, n) with blocks n = N, ``drift`` = df/dt (blocks, n) or None."""

    slope: Tensor
    matrix: Tensor
    drift: Tensor | None


def blocks(step: Step, y: Leaves, independent: bool) -> int:
    """In how many blocks the Jacobian falls: one, or one per sample where samples have times of their own or are told to be independent."""
    dt = step.dt
    if not independent and not (isinstance(dt, Tensor) and dt.numel() > 1):
        return 1
    if len(y) != 1 or y[0].ndim == 0:
        raise ValueError("independent=True needs a single tensor with a batch axis in front as y0")
    return len(y[0])


def column(value: Time) -> Time:
    """A time, or one per sample, as what multiplies (blocks, n)."""
    return value.reshape(-1, 1) if isinstance(value, Tensor) else value


def linearise(field: FlatField, step: Step, flat: Flat, w: Tensor, parts: int, graph: bool) -> Linearised:
    """f at the start of the step and the state w (N,), with its derivatives; ``graph``: these have a history."""
    start = torch.as_tensor(step.time(0.0), dtype=torch.float64, device=w.device)
    with nullcontext() if graph else own_graph():
        w, start = (_partial(x, graph) for x in (w, start))
        slope = flat.join(field(Step(step.index, (start, start), 0, 0, 1, limits=step.limits), 0, 0.0, flat.split(w)))
        together = parts == 1 or start.ndim > 0  # else one time for all samples, the rows of which are sums over them
        matrix, drift = _rows(slope, w, start if together else None, parts, graph)
        if not together and matrix is not None:
            drift = _drift(slope, start, graph)
    if matrix is None:
        matrix = _differences(field, step, flat, w.detach(), slope.detach(), parts)
    return Linearised(slope if graph else slope.detach(), matrix, drift)


def _drift(slope: Tensor, start: Tensor, graph: bool) -> Tensor | None:
    """df/dt of every element: the derivative of v -> (df/dt)^T v."""
    seed = torch.zeros_like(slope, requires_grad=True)
    (back,) = torch.autograd.grad(slope, start, seed, create_graph=True, allow_unused=True)
    return None if back is None else torch.autograd.grad(back, seed, create_graph=graph)[0].to(slope.dtype)


def _partial(x: Tensor, graph: bool) -> Tensor:
    """The same numbers, to differentiate with respect to: a time may be what a state depends on too."""
    return x.view_as(x) if graph and x.requires_grad else x.detach().clone().requires_grad_()


def _rows(slope: Tensor, w: Tensor, start: Tensor | None, parts: int, graph: bool) -> tuple[Tensor | None, Tensor | None]:
    """The Jacobian in w and in the time, None where autograd has none."""
    if not slope.requires_grad:
        return None, None
    n, inputs = len(w) // parts, (w,) if start is None else (w, start)
    units = torch.eye(n, dtype=w.dtype, device=w.device)[:, None].expand(n, parts, n).reshape(n, -1)
    rows = lambda unit, together: torch.autograd.grad(  # noqa: E731
        slope, inputs, unit, retain_graph=True, create_graph=graph, allow_unused=True, is_grads_batched=together
    )
    try:
        found = rows(units, True)
    except RuntimeError:  # an autograd Function without a rule for vmap
        singly = [rows(unit, False) for unit in units]
        found = tuple(None if one[0] is None else torch.stack(one) for one in zip(*singly, strict=True))
    matrix = w.new_zeros(parts, n, n) if found[0] is None else found[0].reshape(n, parts, n).transpose(0, 1)
    return matrix, None if found[-1] is None or start is None else found[-1].reshape(n, -1).mT.to(w.dtype)


def rows_of(slope: Tensor, w: Tensor, parts: int) -> Tensor | None:
    """The Jacobian (blocks, n, n) of what has been computed from the leaf w; None where it does not depend on it by autograd."""
    return _rows(slope, w, None, parts, False)[0]


def _differences(field: FlatField, step: Step, flat: Flat, w: Tensor, slope: Tensor, parts: int) -> Tensor:
    """The Jacobian of what autograd cannot see through, a column of each block at a time."""
    columns: list[Tensor] = []
    n, shaped = len(w) // parts, w.reshape(parts, -1)
    with torch.no_grad():
        for place in range(n):
            moved = shaped.clone()
            moved[:, place] += torch.finfo(w.dtype).eps ** 0.5 * (shaped[:, place].abs() + shaped.abs().amax(1) + 1e-30)
            change = flat.join(field(step, 0, 0.0, flat.split(moved.reshape(-1)))) - slope
            columns.append(change.reshape(parts, n) / (moved - shaped)[:, place, None])
    return torch.stack(columns, -1)


class Inverse:
    """(1 - scale matrix)^-1, as accurate as by LU factors (Druinsky, Toledo, arXiv 1201.6035) and a product to apply; what is singular
    gives values that are not finite."""

    def __init__(self, matrix: Tensor, scale: Time) -> None:
        parts, n, _ = matrix.shape
        scale = scale.reshape(-1, 1, 1).to(matrix.dtype) if isinstance(scale, Tensor) else scale
        self.shape = (parts, n, 1)
        self.matrix, _ = torch.linalg.inv_ex(torch.eye(n, dtype=matrix.dtype, device=matrix.device) - scale * matrix)

    def __call__(self, b: Tensor, transposed: bool = False) -> Tensor:
        """For b of shape (blocks, n) or flat, the result in that shape."""
        return torch.bmm(self.matrix.mT if transposed else self.matrix, b.reshape(self.shape)).reshape(b.shape)


@contextmanager
def own_graph() -> Iterator[None]:
    """For a graph that lives within a step: those who watch what a step saves are not shown it."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
        yield


def refuse_transforms(name: str) -> None:
    """ValueError under torch.compile and torch.func."""
    if torch.compiler.is_compiling() or in_transform():
        raise ValueError(f"{name} needs the Jacobian of func, which torch.compile and torch.func cannot follow: take an explicit method")


def weighted(weights: Sequence[float], vectors: Sequence[Tensor], total: Tensor | None = None) -> Tensor:
    """total + sum_i weights_i vectors_i, zero weights left out."""
    for weight, vector in zip(weights, vectors, strict=False):
        if weight:
            total = weight * vector if total is None else torch.add(total, vector, alpha=weight)
    assert total is not None
    return total
