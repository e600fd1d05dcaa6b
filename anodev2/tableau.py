"""Explicit Runge-Kutta methods as data.

A method with s stages computes, for y' = f(t, y) and one step from t to t + dt,

    k_i = f(t + c_i dt, y + dt sum_{j<i} a_ij k_j),        y(t + dt) = y + dt sum_i b_i k_i.

A new method is one ``Tableau`` and one row in ``METHODS``; the tests check its order conditions in exact fractions
and its observed order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

Row = tuple[Fraction, ...]


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit Runge-Kutta method.

    Args:
        name: what ``method=`` calls it.
        order: the order p of its global error O(dt^p).
        a: strictly lower triangle, row i with i entries.
        b: weights of the slopes.
        c: nodes, the stage times in units of dt; must be the row sums of ``a``.

    Raises:
        ValueError: rows of the wrong length, nodes that are not the row sums, or weights that do not sum to one.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row
    weights: tuple[float, ...] = field(init=False, repr=False)
    stage_weights: tuple[tuple[float, ...], ...] = field(init=False, repr=False)
    nodes: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))) or len(self.c) != len(self.b):
            raise ValueError(f"tableau {self.name!r}: row i of a must have i entries, b and c one per stage")
        if any(sum(row) != node for row, node in zip(self.a, self.c, strict=True)):
            raise ValueError(f"tableau {self.name!r}: the nodes c must be the row sums of a")
        if sum(self.b) != 1:
            raise ValueError(f"tableau {self.name!r}: the weights b sum to {sum(self.b)}, not 1")
        object.__setattr__(self, "weights", tuple(map(float, self.b)))
        object.__setattr__(self, "stage_weights", tuple(tuple(map(float, row)) for row in self.a))
        object.__setattr__(self, "nodes", tuple(map(float, self.c)))

    @property
    def stages(self) -> int:
        """Evaluations of f in one step."""
        return len(self.b)


def _row(*entries: str | int) -> Row:
    return tuple(Fraction(entry) for entry in entries)


EULER = Tableau("euler", 1, a=(_row(),), b=_row(1), c=_row(0))
MIDPOINT = Tableau("midpoint", 2, a=(_row(), _row("1/2")), b=_row(0, 1), c=_row(0, "1/2"))
RK4 = Tableau(  # Kutta 1901
    "rk4",
    4,
    a=(_row(), _row("1/2"), _row(0, "1/2"), _row(0, 0, 1)),
    b=_row("1/6", "1/3", "1/3", "1/6"),
    c=_row(0, "1/2", "1/2", 1),
)

METHODS: dict[str, Tableau] = {tableau.name: tableau for tableau in (EULER, MIDPOINT, RK4)}


def as_tableau(method: str | Tableau) -> Tableau:
    """The method of that name, or the given tableau; ValueError names the methods there are."""
    if isinstance(method, Tableau):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)} or pass a Tableau")
    return METHODS[method]
