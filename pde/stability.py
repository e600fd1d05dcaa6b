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
SMOOTH = 0.25  # (1 - cos k h) / 2 of waves of six points: modes as smooth that grow are the equation's own, those of a scheme are rougher

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


def profiles(term: Term, t: float = 0.0) -> list[Profile]:
    """The coefficient at time t: numbers where it is constant, else its values in the fields that have its extremes, on ``few`` points."""
    x = term.grid.points(term.like())
    values = evaluate(getattr(term, term.coefficient), torch.full_like(x[0], t), lambda: x, x)
    if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[-1] == 1:
        return list(term.extremes(None, t))
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
            limit = min(limit, stability.limit(limiting(matrix(known))))
    return limit


def limiting(matrix: Tensor, components: int = 1) -> Tensor:
    """The eigenvalues of a matrix of fields that limit a step: without those that are 0, and those of smooth modes that grow.

    What the equation itself lets grow is smooth: a drift that carries a field in through a wall, a wall that gives more the more there is.
    Of rough modes slow growth counts as none.
    """
    values, vectors = torch.linalg.eig(matrix)
    largest = values.abs().max()
    fields = vectors.unflatten(-2, (components, -1))
    rough, size = (part.abs().square().sum((-3, -2)) for part in (fields.diff(dim=-2), fields))
    smooth = rough < 4 * SMOOTH * size
    kept = values[(values.abs() > 10 * ROUND_OFF * largest) & ~(smooth & (values.real > 0))]
    return torch.complex(torch.where((kept.real > 0) & (kept.real < SLOW * largest), 0.0, kept.real), kept.imag)
