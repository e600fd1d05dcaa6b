"""A sweep of which a sample is quick: the whole product of its axes is tested, what is not in the sample is slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def rows(*axes: Iterable[Any], quick: Iterable[Any] | int) -> list[ParameterSet]:
    """A parameter set for each combination.

    ``quick`` are some of them, or some values of the one axis; a number n stands for one in n, in which the values of each axis take turns.
    """
    columns = [list(axis) for axis in axes]
    product = list(itertools.product(*columns))
    if isinstance(quick, int):
        places = itertools.product(*(range(len(column)) for column in columns))
        sample = [row for row, place in zip(product, places, strict=True) if sum(place) % quick == 0]
    else:
        sample = [row if isinstance(row, tuple) else (row,) for row in quick]
    assert all(row in product for row in sample), [row for row in sample if row not in product]
    return [pytest.param(*row, marks=() if row in sample else pytest.mark.slow) for row in product]
