"""The public call that joins the parts; user-facing errors about states, times and modes start here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoint import Adjoint, as_adjoint
from .problem import Problem, VectorField
from .pytree import Structure, build, leaves_of, structure_of
from .solvers import Leaves
from .stepping import uniform_grid
from .tableau import Tableau, as_tableau


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Sequence[float] | Tensor,
    *,
    method: str | Tableau = "rk4",
    steps: int | None = None,
    step_size: float | None = None,
    args: tuple[Any, ...] = (),
    adjoint: str | Adjoint = "checkpoint",
) -> Any:
    """Solve dy/dt = func(t, y, *args), y(t[0]) = y0, and return y at all times t, stacked in front.

    Args:
        func: called as ``func(t, y, *args)`` with t a real zero-dimensional tensor; returns dy/dt in the structure and
            shapes of y0. Keyword-only parameters of func named ``step`` and ``stage`` are filled with the integer
            number of the step (counted over the whole solve) and of the stage within it.
        y0: a floating or complex tensor, or a (nested) tuple, list or dict of them; every leaf keeps its dtype.
        t: at least two times, strictly rising or falling; any unit. Output times are hit exactly.
        method: "euler" (order 1), "midpoint" (2), "rk4" (4), or a ``Tableau``.
        steps: number of equal steps in each interval between neighbouring times.
        step_size: instead of ``steps``: an upper bound for the step, in the unit of t; intervals are cut equally.
        args: further arguments of func: tensors, modules or anything else, nested in tuples, lists and dicts.
        adjoint: "checkpoint" (one stored state per step) or "direct" (plain autograd), or an ``Adjoint``. Both give the
            gradient of the discrete solution, with respect to y0, args, parameters and other tensors that func
            reaches, and t where it is a tensor that requires grad.

    Returns:
        A tree like y0 whose leaves have shape ``(len(t), *leaf.shape)``; entry 0 is y0.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.1.
    """
    return stacked(*integrate(func, y0, t, method=method, steps=steps, step_size=step_size, args=args, adjoint=adjoint))


def stacked(states: list[Leaves], structure: Structure) -> Any:
    """One tree whose leaves have the states' leaves stacked in front."""
    return build(structure, [torch.stack(leaf) for leaf in zip(*states, strict=True)])


def integrate(
    func: Callable[..., Any],
    y0: Any,
    t: Sequence[float] | Tensor,
    *,
    method: str | Tableau,
    steps: int | None,
    step_size: float | None = None,
    args: tuple[Any, ...] = (),
    adjoint: str | Adjoint,
    save: Literal["times", "steps", "end"] = "times",
) -> tuple[list[Leaves], Structure]:
    """``odeint`` before stacking: the leaves at the times t, after every step or at the end, and the structure of y0."""
    if not callable(func):
        raise TypeError(f"func must be callable as func(t, y), got {type(func).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(x,) for a single argument")
    grid = uniform_grid(t, steps, step_size)
    structure = structure_of(y0)
    leaves = leaves_of(y0, structure)
    _check_state(leaves)
    field = VectorField(func, structure, leaves)
    outputs = {"times": grid.outputs(), "steps": tuple(range(len(grid) + 1)), "end": (len(grid),)}[save]
    problem = Problem(field, as_tableau(method), grid, outputs)
    return as_adjoint(adjoint).solve(problem, leaves, args), structure


def _check_state(leaves: list[Any]) -> None:
    if not leaves:
        raise ValueError("y0 holds no tensor; give a tensor or a (nested) tuple, list or dict of tensors")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"y0 must be made of tensors, got {type(leaf).__name__}; write torch.tensor(...)")
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(f"y0 must be floating or complex, got a leaf of {leaf.dtype}; write y0.float()")
