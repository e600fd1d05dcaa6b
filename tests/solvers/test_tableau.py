from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

import pytest
from scipy.integrate import RK23, RK45

from anodev2 import Tableau
from anodev2.solvers.tableau import METHODS, Row, nearest
from rooted import Tree, density, trees

TABLEAUS = {name: tableau for name, tableau in METHODS.items() if name == tableau.name}
EMBEDDED = {name: tableau for name, tableau in TABLEAUS.items() if tableau.b_hat is not None}
DENSE = {"heun2": 2, "ssprk3": 3, "bosh3": 3, "dopri5": 4, "tsit5": 4, "dopri8": 7}  # orders of the interpolants
ROUNDING = 1e-13


@cache
def stage_values(name: str, tree: Tree) -> tuple[Fraction, ...]:
    """Per stage, the product over the root's children of sum_j a_ij times the child's value of stage j."""
    a = (*METHODS[name].a, *METHODS[name].further)  # by name, since hashing a hundred fractions takes longer than the sums
    factors = [[dot(row, stage_values(name, child)) for row in a] for child in tree]
    return tuple(prod(column, start=Fraction(1)) for column in zip(*factors, strict=True)) if tree else (Fraction(1),) * len(a)


def dot(weights: Row, values: tuple[Fraction, ...]) -> Fraction:
    return sum((w * v for w, v in zip(weights, values, strict=False) if w), Fraction(0))


def residual(tableau: Tableau, weights: Row, n: int, x: Fraction = Fraction(1)) -> Fraction:
    """Largest |sum_i b_i Phi_i(tree) - x^n / gamma(tree)| over the trees of n nodes (Hairer, Norsett, Wanner, II.2 and II.6)."""
    return max(abs(dot(weights, stage_values(tableau.name, tree)) - x**n / density(tree)) for tree in trees(n))


def allowed(tableau: Tableau) -> float:
    return 0 if tableau.exact else ROUNDING


def dense_weights(tableau: Tableau, x: Fraction) -> Row:
    assert tableau.interpolant is not None
    return tuple(sum((p * x ** (j + 1) for j, p in enumerate(row)), Fraction(0)) for row in tableau.interpolant)


def test_there_are_as_many_rooted_trees_as_known() -> None:
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    assert [sorted(map(density, trees(n))) for n in range(1, 5)] == [[1], [2], [3, 6], [4, 8, 12, 24]]
    assert len(set(trees(8))) == 115


@pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=TABLEAUS)
def test_order_conditions_hold_to_the_claimed_order_and_not_beyond(tableau: Tableau) -> None:
    for n in range(1, tableau.order + 1):
        assert residual(tableau, tableau.b, n) <= allowed(tableau)
    assert residual(tableau, tableau.b, tableau.order + 1) > 1e-6


@pytest.mark.parametrize("tableau", EMBEDDED.values(), ids=EMBEDDED)
def test_embedded_solutions_have_their_order_and_no_more(tableau: Tableau) -> None:
    assert tableau.b_hat is not None and tableau.embedded_order is not None
    assert tableau.embedded_order < tableau.order
    for n in range(1, tableau.embedded_order + 1):
        assert residual(tableau, tableau.b_hat, n) <= allowed(tableau)
    assert residual(tableau, tableau.b_hat, tableau.embedded_order + 1) > 1e-6


def test_every_method_with_error_control_has_an_interpolant() -> None:
    assert {name for name, tableau in TABLEAUS.items() if tableau.interpolant is not None} == set(DENSE) == set(EMBEDDED)


@pytest.mark.parametrize("name", DENSE)
def test_interpolants_have_their_order_and_join_smoothly(name: str) -> None:
    tableau = METHODS[name]
    for x in (Fraction(1, 3), Fraction(1, 2), Fraction(7, 9), Fraction(1)):
        for n in range(1, DENSE[name] + 1):
            assert residual(tableau, dense_weights(tableau, x), n, x) <= allowed(tableau)
    assert residual(tableau, dense_weights(tableau, Fraction(1, 2)), DENSE[name] + 1, Fraction(1, 2)) > 1e-6
    weights = (*tableau.b, *(Fraction(0) for _ in tableau.further))
    assert all(abs(x - b) <= allowed(tableau) for x, b in zip(dense_weights(tableau, Fraction(1)), weights, strict=True))
    assert tableau.interpolant is not None
    start = [row[0] for row in tableau.interpolant]
    end = [sum((j + 1) * p for j, p in enumerate(row)) for row in tableau.interpolant]
    assert start == [i == 0 for i in range(len(weights))]
    last = len(tableau.b) - 1 if tableau.ending is None else tableau.ending  # that of heun2 is no slope at the new state
    assert all(abs(slope - (i == last)) <= allowed(tableau) for i, slope in enumerate(end))


def test_further_stages_of_dopri8_are_states_within_the_step() -> None:
    """That at its end of order 8, one of order 5, three of order 6."""
    tableau = METHODS["dopri8"]
    assert tableau.further[0] == tableau.b and tableau.nodes[13:] == pytest.approx((1.0, 0.62, 0.28, 0.51, 0.94))
    for row, order in zip(tableau.further[1:], (5, 6, 6, 6), strict=True):
        for n in range(1, order + 1):
            assert residual(tableau, row, n, sum(row, Fraction(0))) <= ROUNDING


@pytest.mark.parametrize(
    ("name", "order", "embedded_order", "stages", "advancing", "fsal", "exact"),
    [
        ("euler", 1, None, 1, 1, False, True),
        ("midpoint", 2, None, 2, 2, False, True),
        ("heun2", 2, 1, 2, 2, False, True),
        ("ralston", 2, None, 2, 2, False, True),
        ("ssprk3", 3, 2, 3, 3, False, True),
        ("rk4", 4, None, 4, 4, False, True),
        ("rk4_38", 4, None, 4, 4, False, True),
        ("bosh3", 3, 2, 4, 3, True, True),
        ("dopri5", 5, 4, 7, 6, True, True),
        ("tsit5", 5, 4, 7, 6, True, False),
        ("dopri8", 8, 7, 13, 13, False, False),
    ],
)
def test_properties_of_each_method(
    name: str, order: int, embedded_order: int | None, stages: int, advancing: int, fsal: bool, exact: bool
) -> None:
    tableau = METHODS[name]
    assert (tableau.name, tableau.order, tableau.embedded_order) == (name, order, embedded_order)
    assert (tableau.stages, tableau.advancing, tableau.fsal, tableau.exact) == (stages, advancing, fsal, exact)


def test_the_methods_are_these() -> None:
    assert list(TABLEAUS) == ["euler", "midpoint", "heun2", "ralston", "ssprk3", "rk4", "rk4_38", "bosh3", "dopri5", "tsit5", "dopri8"]
    assert METHODS.keys() - TABLEAUS.keys() == {"ssprk2"} and METHODS["ssprk2"] is METHODS["heun2"]


def test_every_trailing_stage_without_weight_is_dropped() -> None:
    zero, one = Fraction(0), Fraction(1)
    tableau = Tableau("idle", 1, a=((), (one,), (zero, one)), b=(one, zero, zero), c=(zero, one, one))
    assert tableau.advancing == 1 and not tableau.fsal


@pytest.mark.parametrize(("name", "solver"), [("bosh3", RK23), ("dopri5", RK45)])
def test_tables_equal_those_of_scipy(name: str, solver: Any) -> None:
    tableau = METHODS[name]
    steps = solver.n_stages
    assert tableau.stages == steps + 1 and tableau.advancing == steps
    assert tableau.nodes == (*solver.C, 1.0)
    assert tableau.weights == (*solver.B, 0.0)
    assert tableau.stage_weights == (*(tuple(solver.A[i, :i]) for i in range(steps)), tuple(solver.B))
    assert tableau.error_weights is not None and tableau.interpolant is not None
    assert tableau.error_weights == tuple(-solver.E)  # scipy has b_hat - b
    assert [list(map(float, row)) for row in tableau.interpolant] == solver.P.tolist()


def test_error_weights_are_the_difference_of_the_solutions() -> None:
    assert METHODS["heun2"].error_weights == (-0.5, 0.5)
    assert METHODS["rk4"].error_weights is None
    tsit5 = METHODS["tsit5"].error_weights
    assert tsit5 is not None and tsit5[-1] == -1 / 66 and abs(sum(tsit5)) < 1e-15


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("midpoint", {"a": ((), (1,), (0, 1))}, "'midpoint'.*one per stage"),
        ("midpoint", {"c": (0,)}, "'midpoint'.*one per stage"),
        ("midpoint", {"c": (0, Fraction(1, 3))}, "'midpoint'.*row sums"),
        ("midpoint", {"c": (0, Fraction(1, 2) + Fraction(1, 10**15))}, "'midpoint'.*row sums"),
        ("tsit5", {"c": tuple(c + Fraction(2, 10**13) for c in METHODS["tsit5"].c)}, "'tsit5'.*row sums"),
        ("dopri8", {"exact": True}, "'dopri8'.*row sums"),
        ("midpoint", {"b": (Fraction(1, 2), 1)}, "'midpoint'.*weights b sum to 3/2"),
        ("midpoint", {"b_hat": (1, 0)}, "'midpoint'.*together"),
        ("midpoint", {"embedded_order": 1}, "'midpoint'.*together"),
        ("heun2", {"b_hat": (1,)}, "'heun2'.*b_hat must have one entry per stage"),
        ("heun2", {"b_hat": (1, 1)}, "'heun2'.*weights b_hat sum to 2"),
        ("midpoint", {"interpolant": ((1,),)}, "'midpoint'.*one row per stage"),
        ("midpoint", {"interpolant": ((0,), (0, 1))}, "'midpoint'.*of one length"),
        ("midpoint", {"further": ((0, 1, 0),)}, "'midpoint'.*further rows must continue a"),
        ("ssprk3", {"further": ()}, "'ssprk3'.*one row per stage"),
        ("midpoint", {"interpolant": ((1, 0), (0, 1))}, "'midpoint'.*end in the weights"),
    ],
)
def test_a_tableau_that_cannot_be_right_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(METHODS[name], **changes)


def test_the_nearest_name_ignores_case() -> None:
    assert nearest("RK45", METHODS) == " (did you mean 'rk4'?)"
    assert nearest("leapfog", ["rk4", "leapfrog"]) == " (did you mean 'leapfrog'?)"
    assert nearest("zzz", METHODS) == nearest(3, METHODS) == ""
