from __future__ import annotations

from fractions import Fraction

import pytest

from anodev2 import METHODS, Tableau
from anodev2.tableau import as_tableau


def conditions(tableau: Tableau) -> list[tuple[int, Fraction, Fraction]]:
    """(order, left side, right side) of the Runge-Kutta order conditions up to order 4 (Hairer, Norsett, Wanner, II.2)."""
    a, b, c = tableau.a, tableau.b, tableau.c
    stages = range(tableau.stages)
    rows = [lambda x, i=i: sum((a[i][j] * x[j] for j in range(i)), Fraction(0)) for i in stages]
    ac, acc = [row(c) for row in rows], [row([x * x for x in c]) for row in rows]
    aac = [row(ac) for row in rows]
    total = lambda x: sum((b[i] * x[i] for i in stages), Fraction(0))
    return [
        (1, total([Fraction(1)] * len(b)), Fraction(1)),
        (2, total(c), Fraction(1, 2)),
        (3, total([x**2 for x in c]), Fraction(1, 3)),
        (3, total(ac), Fraction(1, 6)),
        (4, total([x**3 for x in c]), Fraction(1, 4)),
        (4, total([x * y for x, y in zip(c, ac, strict=True)]), Fraction(1, 8)),
        (4, total(acc), Fraction(1, 12)),
        (4, total(aac), Fraction(1, 24)),
    ]


@pytest.mark.parametrize("tableau", METHODS.values(), ids=METHODS)
def test_order_conditions_hold_to_the_claimed_order_and_not_beyond(tableau: Tableau) -> None:
    checked = conditions(tableau)
    assert all(left == right for order, left, right in checked if order <= tableau.order)
    if tableau.order < 4:
        assert any(left != right for order, left, right in checked if order == tableau.order + 1)


@pytest.mark.parametrize(
    ("a", "b", "c", "message"),
    [
        (((), (1,)), (Fraction(1, 2),), (0,), "one per stage"),
        (((), (Fraction(1),)), (Fraction(1, 2), Fraction(1, 2)), (Fraction(0), Fraction(1, 2)), "row sums"),
        (((), (Fraction(1),)), (Fraction(1, 2), Fraction(1)), (Fraction(0), Fraction(1)), "sum to 3/2"),
    ],
)
def test_a_tableau_that_cannot_be_right_is_refused(a: tuple, b: tuple, c: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tableau("wrong", 1, a, b, c)


def test_methods_by_name_or_object() -> None:
    assert as_tableau("rk4") is METHODS["rk4"] and as_tableau(METHODS["euler"]) is METHODS["euler"]
    with pytest.raises(ValueError, match=r"method='dopri9'.*euler, midpoint, rk4"):
        as_tableau("dopri9")
