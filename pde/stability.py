"""The largest stable step of an equation: its modes far from walls, and on a few points of its spacing the matrix with its walls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anodev2 import stability_function

from .coefficient import evaluate
from .grid import Grid1D

if TYPE_CHECKING:
    from .equation import Term

MODES = 1024  # looked at at most
POINTS = 32  # on which walls are looked at: what they do to eigenvalues, they do within a few points
VARYING = 128  # on which coefficients that vary are looked at, as they are up to so many
ROUND_OFF = 1e-8  # of the largest eigenvalue: what is smaller is not told from 0
SLOW = 1e-3  # of the largest eigenvalue: a real part that is smaller grows over thousands of steps, as errors of the scheme do

Profile = float | tuple[float, ...]  # a coefficient that is constant, or its values at points


def remembered(known: dict[Any, float], key: Any, find: Callable[[], float]) -> float:
    """A number found once per key; the last few are kept."""
    if key not in known:
        while len(known) >= 8:
            known.pop(next(iter(known)))
        known[key] = find()
    return known[key]


def some_modes(grid: Grid1D) -> Tensor:
    """Wavenumbers of the real modes of a grid, of n > 1024 points evenly chosen ones, the largest among them."""
    k = grid.modes(torch.empty(0, dtype=torch.float64))
    return k if grid.n <= MODES else k[torch.linspace(0, len(k) - 1, MODES).round().long().clamp(max=len(k) - 1)]


def profiles(term: Term) -> list[Profile]:
    """The coefficient at t = 0: numbers where it is constant, else its values in the fields that have its extremes, on ``few`` points."""
    x = term.grid.points(term.like())
    values = evaluate(getattr(term, term.coefficient), torch.zeros_like(x[0]), lambda: x, x)
    if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[-1] == 1:
        return list(term.extremes(None))
    rows = values.expand(*values.shape[:-1], term.grid.n).reshape(-1, term.grid.n)
    rows = rows[sorted({int(rows.amin(1).argmin()), int(rows.amax(1).argmax())})]
    if term.grid.n > VARYING:
        rows = torch.nn.functional.interpolate(rows[None], VARYING, mode="linear")[0]
    return [tuple(row) for row in rows.tolist()]


def scaled(profile: Profile, scale: float) -> Profile:
    """Divided by it."""
    return tuple(value / scale for value in profile) if isinstance(profile, tuple) else profile / scale


def few(grid: Grid1D, points: int = POINTS) -> Grid1D:
    """So many points of the same spacing at most, between the same walls without data."""
    n = min(grid.n, points)
    return Grid1D(n, n * grid.spacing, grid.boundary.homogeneous())


def mode_limit(method: Any, terms: Sequence[Term], values: Sequence[Sequence[float]], grid: Grid1D) -> float:
    """The largest step for terms with coefficients of these values, the smallest one over all their combinations."""
    stability, k, limit = stability_function(method), some_modes(grid), math.inf
    whole = [stability.acts_on == "whole" or not term.constant for term in terms]
    for chosen in itertools.product(*values):
        parts = {True: torch.zeros_like(k, dtype=torch.complex128), False: torch.zeros_like(k, dtype=torch.complex128)}
        for term, value, where in zip(terms, chosen, whole, strict=True):
            parts[where] = parts[where] + term.frozen(value, k)
        if any(term.grows for term in terms):  # what the equation lets grow limits no step
            parts = {where: torch.complex(total.real.clamp(max=0), total.imag) for where, total in parts.items()}
        limit = min(limit, stability.limit(parts[True], parts[False]))
    return limit


def matrix_limit(
    method: Any, terms: Sequence[Term], coefficients: Sequence[Sequence[Profile]], grid: Grid1D, matrix: Callable[[Sequence[Term]], Tensor]
) -> float:
    """That of the eigenvalues of the matrix with its walls; infinite for methods that treat a part by itself, which has others."""
    stability, limit = stability_function(method), math.inf
    if stability.acts_on != "whole":
        return limit
    for chosen in itertools.product(*coefficients):
        made = [term.on(grid, value) for term, value in zip(terms, chosen, strict=True)]
        known = [term for term in made if term is not None]
        if len(known) == len(made):
            limit = min(limit, stability.limit(told_from_round_off(torch.linalg.eigvals(matrix(known)))))
    return limit


def told_from_round_off(eigenvalues: Tensor) -> Tensor:
    """Without those that are 0, and real parts that are positive, but for round-off and slow growth."""
    largest = eigenvalues.abs().max()
    kept = eigenvalues[eigenvalues.abs() > 10 * ROUND_OFF * largest]
    kept = kept[(kept.real <= 0) | (kept.real > SLOW * largest) | (kept.abs() > SLOW * largest)]
    return torch.complex(torch.where((kept.real > 0) & (kept.real < SLOW * largest), 0.0, kept.real), kept.imag)
