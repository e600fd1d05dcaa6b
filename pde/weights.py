"""Weights of linear formulas from their order conditions, in exact fractions: stencils, extrapolations, reconstructions.

A formula is sum_i w_i L_i(u) = L(u), where each L is a value, a derivative or a cell average of u; the weights are those for which
it holds for all polynomials of as low a degree as there are weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import perm


@dataclass(frozen=True)
class At:
    """The derivative of the given order (0: the value) at a position, in units of the spacing."""

    position: Fraction
    derivative: int = 0

    def of_power(self, power: int) -> Fraction:
        """What it is for u = x^power."""
        if power < self.derivative:
            return Fraction(0)
        return perm(power, self.derivative) * self.position ** (power - self.derivative)


@dataclass(frozen=True)
class Average:
    """The average over the cell of width 1 around a position."""

    position: Fraction

    def of_power(self, power: int) -> Fraction:
        half = Fraction(1, 2)
        return ((self.position + half) ** (power + 1) - (self.position - half) ** (power + 1)) / (power + 1)


def weights(known: Sequence[At | Average], wanted: At) -> tuple[Fraction, ...]:
    """w with sum_i w_i known_i(u) = wanted(u) for all polynomials u of degree below ``len(known)``."""
    rows = [[each.of_power(power) for each in known] + [wanted.of_power(power)] for power in range(len(known))]
    for column in range(len(rows)):
        pivot = next(r for r in range(column, len(rows)) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for r, row in enumerate(rows):
            if r != column and row[column]:
                rows[r] = [x - row[column] * y for x, y in zip(row, rows[column], strict=True)]
    return tuple(row[-1] for row in rows)


def values(positions: Sequence[int | Fraction]) -> list[At]:
    """The values at some positions."""
    return [At(Fraction(position)) for position in positions]
