"""What one solve is about, on flat lists of leaves: the user's f, a method, a grid, the initial state and f's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .pytree import LEAF, Structure, build, leaves_of
from .solvers import Leaves, runge_kutta_step
from .stepping import Grid, Step
from .tableau import Tableau

Counters = dict[str, int]


def signature_of(func: Callable[..., Any]) -> inspect.Signature | None:
    """The signature ``func`` is called with (a module's is that of ``forward``); None where Python knows none."""
    while isinstance(inside := getattr(func, "_orig_mod", None), nn.Module):  # torch.compile(module)
        func = inside
    try:
        return inspect.signature(func.forward if isinstance(func, nn.Module) else func)
    except (TypeError, ValueError):
        return None


class CountedCall:
    """Call ``func(*args)``, with ``step`` and ``stage`` where it has keyword-only parameters of these names."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        signature = signature_of(func)
        parameters = signature.parameters.values() if signature is not None else ()
        self.names = {"step", "stage"} & {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    def counters(self, step: int, stage: int) -> Counters:
        """The keyword arguments that func wants."""
        return {name: value for name, value in (("step", step), ("stage", stage)) if name in self.names}

    def __call__(self, *args: Any, step: int, stage: int) -> Any:
        return self.func(*args, **self.counters(step, stage))


class VectorField:
    """f on flat leaves, its answer checked against the state.

    Calls ``func(t, y, *args)`` with t a real zero-dimensional tensor; ``step`` (counted over the whole solve) and
    ``stage`` are passed where func has keyword-only parameters of these names.
    """

    def __init__(self, func: Callable[..., Any], structure: Structure, y0: Leaves) -> None:
        self.func = func
        self.call = CountedCall(func)
        self.structure = structure
        self.device = y0[0].device
        self.time_dtype = torch.float32
        for leaf in y0:
            self.time_dtype = torch.promote_types(self.time_dtype, leaf.dtype.to_real())

    def __call__(self, args: tuple[Any, ...], step: Step, stage: int, node: float, y: Leaves) -> list[Tensor]:
        time = step.time(node)
        if isinstance(time, Tensor):
            t = time.to(self.device, self.time_dtype)
        else:
            t = torch.full((), time, dtype=self.time_dtype, device=self.device)
        slope = self.call(t, build(self.structure, y), *args, step=step.index, stage=stage)
        return self._checked(slope, y)

    def _checked(self, slope: Any, y: Leaves) -> list[Tensor]:
        try:
            slopes = [slope] if self.structure is LEAF and isinstance(slope, Tensor) else leaves_of(slope, self.structure)
        except ValueError as error:
            raise ValueError(f"func must return the time derivative in the structure of y0: {error}") from None
        for k, leaf in zip(slopes, y, strict=True):
            if not isinstance(k, Tensor):
                raise TypeError(f"func must return tensors like y0, got {type(k).__name__} for a leaf of shape {tuple(leaf.shape)}")
            if k.shape != leaf.shape:
                raise ValueError(
                    f"func returned a derivative of shape {tuple(k.shape)} for a leaf of y0 of shape {tuple(leaf.shape)}; make them equal"
                )
            if k.dtype != leaf.dtype and not torch.can_cast(k.dtype, leaf.dtype):
                raise TypeError(
                    f"func returned {k.dtype} for a leaf of y0 of {leaf.dtype}, which cannot hold it; "
                    f"make y0 {k.dtype} or return {leaf.dtype}"
                )
        return slopes


@dataclass(frozen=True)
class Problem:
    """What stays the same whatever the state and the arguments: f, method, grid, and which states are wanted.

    ``outputs`` lists, rising, after how many steps the state is wanted: ``(0, 5, 10)``, or ``(10,)`` for the end alone.
    """

    field: VectorField
    method: Tableau
    grid: Grid
    outputs: tuple[int, ...]

    def advance(self, step: Step, y: Leaves, args: tuple[Any, ...]) -> list[Tensor]:
        """The state after ``step``."""
        return runge_kutta_step(partial(self.field, args), self.method, step, y)
