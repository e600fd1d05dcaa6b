"""The largest stable step of fields that feel each other, by the eigenvalues of small matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anodev2 import stability_function

from .blocks import Pair, matrix_of
from .coefficient import as_coefficient, extremes
from .equation import Sum, Term
from .grid import Grid1D
from .reaction import Reaction
from .scaled import Scaled
from .stability import POINTS, ROUND_OFF, VARYING, Profile, few, limiting, profiles, some_modes

Placed = tuple[Pair, Term]


def coupled_limit(method: Any, terms: Mapping[Pair, Sequence[Term]], grids: Sequence[Grid1D], t: float = 0.0) -> float:
    """The smallest of the limits by modes and, with walls or coefficients that vary, by matrices of a few points."""
    stability, limit, grown = stability_function(method), math.inf, False
    placed = [(pair, term) for pair, each in terms.items() for term in each if term.linear]
    if stability.acts_on != "whole":
        placed = [(pair, term) for pair, term in placed if not term.constant]
    values = [_values(term, t) for _, term in placed]
    if not placed or not all(math.isfinite(value) for found in values for value in found):
        return math.inf
    k = some_modes(grids[0])
    for chosen in itertools.product(*values):
        eigenvalues = torch.linalg.eigvals(
            _summed(placed, [term.frozen(v, k) for (_, term), v in zip(placed, chosen, strict=True)], len(grids), True)
        )
        largest = eigenvalues.abs().max()
        grown = grown or bool((eigenvalues.real > ROUND_OFF * largest).any())
        limit = min(limit, stability.limit(_not_growing(eigenvalues)))
    constant = all(term.constant for _, term in placed)
    if limit == 0 or stability.acts_on != "whole" or (grids[0].periodic and constant):
        return limit
    small = [few(grid, POINTS if constant else VARYING) for grid in grids]
    along = [found if term.constant else profiles(term, t) for found, (_, term) in zip(values, placed, strict=True)]
    for chosen in itertools.product(*along):
        made = [_on(term, small[j], value) for ((_, j), term), value in zip(placed, chosen, strict=True)]
        found = _summed(placed, [Sum(term).matrix() for term in made], len(grids), False)
        limit = min(limit, stability.limit(_not_growing(torch.linalg.eigvals(found)) if grown else limiting(found, len(grids))))
    return limit


def _summed(placed: Sequence[Placed], values: Sequence[Tensor], count: int, per_mode: bool) -> Tensor:
    found: dict[Pair, Tensor] = {}
    for (pair, _), value in zip(placed, values, strict=True):
        found[pair] = found[pair] + value if pair in found else value
    return matrix_of(found, count, per_mode)


def _not_growing(eigenvalues: Tensor) -> Tensor:
    """What the equation lets grow limits no step."""
    return torch.complex(eigenvalues.real.clamp(max=0), eigenvalues.imag)


def _values(term: Term, t: float) -> list[float]:
    """The extremes of the coefficient: of a reaction what it is, for between two fields its sign is no growth."""
    own = term.term if isinstance(term, Scaled) else term
    return extremes(own.rate, own.grid.points(own.like()), t) if isinstance(own, Reaction) else own.extremes(None, t)


def _on(term: Term, grid: Grid1D, value: Profile) -> Term:
    """The same on another grid."""
    own = term.term if isinstance(term, Scaled) else term
    made = Reaction(grid, as_coefficient(value)) if isinstance(own, Reaction) else own.on(grid, value)
    assert made is not None  # a linear term
    return Scaled(made, term.factor) if isinstance(term, Scaled) else made
