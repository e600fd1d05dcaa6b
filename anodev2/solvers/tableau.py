"""Explicit Runge-Kutta methods as data.

A method with s stages computes, for y' = f(t, y) and one step from t to t + dt,

    k_i = f(t + c_i dt, y + dt sum_{j<i} a_ij k_j),        y(t + dt) = y + dt sum_i b_i k_i.

An embedded solution, y + dt sum_i b_hat_i k_i, estimates the error; an interpolant gives the states within the step:

    y(t + x dt) ~ y + dt sum_i b_i(x) k_i,        b_i(x) = sum_j p_ij x^(j+1),        0 <= x <= 1.

A new method is one ``Tableau`` and one row in ``METHODS``; the tests check its order conditions through all rooted
trees and its observed order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction

Row = tuple[Fraction, ...]
_ROUNDING = Fraction(1, 10**13)  # of tableaus known in rounded numbers only


@dataclass(frozen=True, repr=False)
class Tableau:
    """Butcher tableau of an explicit Runge-Kutta method.

    Args:
        name: what ``method=`` calls it.
        order: the order p of its global error O(dt^p).
        a: strictly lower triangle, row i with i entries.
        b: weights of the slopes.
        c: nodes, the stage times in units of dt; must be the row sums of ``a``.
        b_hat: weights of the embedded solution, None without one.
        embedded_order: the order of the embedded solution.
        interpolant: row i holds the coefficients p_i0, p_i1, ... of b_i(x), one row per stage; b_i(1) must be b_i.
        exact: False where the literature gives rounded numbers; sums are then compared to 1e-13, else exactly.

    ``fsal`` (first same as last): the last slope is taken at the new state and time, so it is the next step's first.
    ``advancing``: leading stages that the new state needs; those after the last b_i != 0 can go.

    Raises:
        ValueError: rows of the wrong length, nodes that are not the row sums, weights that do not sum to one, an
            embedded solution without its order or the reverse, or an interpolant that does not end in the weights.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    c: Row
    b_hat: Row | None = None
    embedded_order: int | None = None
    interpolant: tuple[Row, ...] | None = None
    exact: bool = True
    weights: tuple[float, ...] = field(init=False, repr=False)
    stage_weights: tuple[tuple[float, ...], ...] = field(init=False, repr=False)
    nodes: tuple[float, ...] = field(init=False, repr=False)
    error_weights: tuple[float, ...] | None = field(init=False, repr=False)
    fsal: bool = field(init=False, repr=False)
    advancing: int = field(init=False, repr=False)

    def __repr__(self) -> str:
        embedded = "" if self.embedded_order is None else f", embedded_order={self.embedded_order}"
        return f"Tableau({self.name!r}, order={self.order}{embedded}, stages={self.stages})"

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_sums()
        object.__setattr__(self, "weights", tuple(map(float, self.b)))
        object.__setattr__(self, "stage_weights", tuple(tuple(map(float, row)) for row in self.a))
        object.__setattr__(self, "nodes", tuple(map(float, self.c)))
        error = None if self.b_hat is None else tuple(float(x - y) for x, y in zip(self.b, self.b_hat, strict=True))
        object.__setattr__(self, "error_weights", error)
        object.__setattr__(self, "fsal", (*self.a[-1], 0) == self.b and self.c[-1] == 1)
        object.__setattr__(self, "advancing", 1 + max(i for i, weight in enumerate(self.b) if weight != 0))

    def _check_shapes(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))) or len(self.c) != len(self.b):
            raise ValueError(f"tableau {self.name!r}: row i of a must have i entries, b and c one per stage")
        if (self.b_hat is None) != (self.embedded_order is None):
            raise ValueError(f"tableau {self.name!r}: give b_hat and embedded_order together")
        if self.b_hat is not None and len(self.b_hat) != len(self.b):
            raise ValueError(f"tableau {self.name!r}: b_hat must have one entry per stage")
        if self.interpolant is not None and (len(self.interpolant) != len(self.b) or len(set(map(len, self.interpolant))) != 1):
            raise ValueError(f"tableau {self.name!r}: the interpolant must have one row per stage, all of one length")

    def _check_sums(self) -> None:
        if not all(self._same(sum(row), node) for row, node in zip(self.a, self.c, strict=True)):
            raise ValueError(f"tableau {self.name!r}: the nodes c must be the row sums of a")
        for label, row in (("b", self.b), ("b_hat", self.b_hat)):
            if row is not None and not self._same(sum(row), 1):
                raise ValueError(f"tableau {self.name!r}: the weights {label} sum to {sum(row)}, not 1")
        if self.interpolant is not None and not all(self._same(sum(row), w) for row, w in zip(self.interpolant, self.b, strict=True)):
            raise ValueError(f"tableau {self.name!r}: the interpolant must end in the weights, b_i(1) = b_i")

    def _same(self, left: Fraction | int, right: Fraction | int) -> bool:
        return abs(left - right) <= (0 if self.exact else _ROUNDING)

    @property
    def stages(self) -> int:
        """Slopes k_i of one step, those that only the error estimate or the interpolant reads included."""
        return len(self.b)


def _row(*entries: str | int) -> Row:
    return tuple(Fraction(entry) for entry in entries)


def _rows(drawing: str) -> tuple[Row, ...]:
    return tuple(_row(*line.split()) for line in drawing.strip().splitlines())


def _drawn(
    name: str, order: int, embedded_order: int, drawing: str, interpolant: tuple[Row, ...] | None = None, exact: bool = True
) -> Tableau:
    """The tableau drawn as in the literature: rows c_i | a_i1 a_i2 ..., then | b and | b_hat; a line without | continues its row."""
    rows: list[tuple[str, list[str]]] = []
    for line in drawing.strip().splitlines():
        node, bar, entries = line.rpartition("|")
        if bar:
            rows.append((node.strip(), []))
        rows[-1][1].extend(entries.split())
    a = tuple(_row(*entries) for node, entries in rows if node)
    b, b_hat = (_row(*entries) for node, entries in rows if not node)
    return Tableau(name, order, a, b, _row(*(node for node, _ in rows if node)), b_hat, embedded_order, interpolant, exact)


EULER = Tableau("euler", 1, a=(_row(),), b=_row(1), c=_row(0))
MIDPOINT = Tableau("midpoint", 2, a=(_row(), _row("1/2")), b=_row(0, 1), c=_row(0, "1/2"))
HEUN2 = Tableau(  # the explicit trapezoidal rule, with Euler embedded; strong stability preserving (Shu, Osher 1988)
    "heun2",
    2,
    a=(_row(), _row(1)),
    b=_row("1/2", "1/2"),
    c=_row(0, 1),
    b_hat=_row(1, 0),
    embedded_order=1,
)
RALSTON = Tableau("ralston", 2, a=(_row(), _row("2/3")), b=_row("1/4", "3/4"), c=_row(0, "2/3"))  # 1962: least bound of the local error
SSPRK3 = Tableau(  # Shu, Osher 1988; with heun2 embedded, its first two stages
    "ssprk3",
    3,
    a=(_row(), _row(1), _row("1/4", "1/4")),
    b=_row("1/6", "1/6", "2/3"),
    c=_row(0, 1, "1/2"),
    b_hat=_row("1/2", "1/2", 0),
    embedded_order=2,
)
RK4 = Tableau(  # Kutta 1901
    "rk4",
    4,
    a=(_row(), _row("1/2"), _row(0, "1/2"), _row(0, 0, 1)),
    b=_row("1/6", "1/3", "1/3", "1/6"),
    c=_row(0, "1/2", "1/2", 1),
)
RK4_38 = Tableau(  # the 3/8 rule, Kutta 1901
    "rk4_38",
    4,
    a=(_row(), _row("1/3"), _row("-1/3", 1), _row(1, -1, 1)),
    b=_row("1/8", "3/8", "3/8", "1/8"),
    c=_row(0, "1/3", "2/3", 1),
)
BOSH3 = _drawn(  # Bogacki, Shampine 1989; interpolant: the cubic through both states and slopes
    "bosh3",
    3,
    2,
    """
    0   |
    1/2 | 1/2
    3/4 | 0     3/4
    1   | 2/9   1/3  4/9
        | 2/9   1/3  4/9  0
        | 7/24  1/4  1/3  1/8
    """,
    _rows("""
    1  -4/3   5/9
    0     1  -2/3
    0   4/3  -8/9
    0    -1     1
    """),
)
DOPRI5 = _drawn(  # Dormand, Prince 1980, RK5(4)7M; interpolant: Shampine 1986, that of least error
    "dopri5",
    5,
    4,
    """
    0    |
    1/5  | 1/5
    3/10 | 3/40        9/40
    4/5  | 44/45       -56/15       32/9
    8/9  | 19372/6561  -25360/2187  64448/6561  -212/729
    1    | 9017/3168   -355/33      46732/5247  49/176    -5103/18656
    1    | 35/384      0            500/1113    125/192   -2187/6784     11/84
         | 35/384      0            500/1113    125/192   -2187/6784     11/84     0
         | 5179/57600  0            7571/16695  393/640   -92097/339200  187/2100  1/40
    """,
    _rows("""
    1    -8048581381/2820520608     8663915743/2820520608   -12715105075/11282082432
    0                         0                         0                          0
    0  131558114200/32700410799  -68118460800/10900136933   87487479700/32700410799
    0     -1754552775/470086768    14199869525/1410260304   -10690763975/1880347072
    0  127303824393/49829197408 -318862633887/49829197408  701980252875/199316789632
    0      -282668133/205662961      2019193451/616988883      -1453857185/822651844
    0         40617522/29380423       -110615467/29380423          69997945/29380423
    """),
)
TSIT5 = _drawn(  # Tsitouras 2011, to 20 decimals; interpolant: his, with its products multiplied out
    "tsit5",
    5,
    4,
    """
    0                      |
    0.161                  |                    0.161
    0.327                  |  -0.00848065549235698854   0.33548065549235698854
    0.9                    |   2.89715305710549343213  -6.35944848997507484315   4.36229543286958141102
    0.98002554090450968573 |   5.32586482843925660443 -11.74888356406282787775    7.4955393428898362083  -0.09249506636175524926
    1                      |   5.86145544294642002866 -12.92096931784710929171   8.15936789857615864318  -0.07158497328140099722
                              -0.02826905039406838291
    1                      |   0.09646076681806522952                     0.01   0.47988965041449957478   1.37900857410374189319
                               -3.2900695154360806799   2.32471052409977398242
                           |   0.09646076681806522952                     0.01   0.47988965041449957478   1.37900857410374189319
                               -3.2900695154360806799   2.32471052409977398242                        0
                           |   0.09468075576583945807    0.0091835655403432531   0.48777052842476157079   1.23429756693047898566
                              -2.70771234998352545488   1.86662841817058703575                     1/66
    """,
    _rows("""
                            1   -2.76370619727482591134    2.91325546182191274375       -1.0530884977290216
                            0    0.13169999999999999727   -0.22339999999999999818                    0.1017
                            0    3.93029623689475152851    -5.9410338721315047347      2.490627285651252793
                            0  -12.41107716693367698373   30.33818863028232159817     -16.54810288924490272
                            0   37.50931341651103919497  -88.17890489476640110143      47.37952196281928122
                            0  -27.89652628919728780595   65.09189467479367152629     -34.87065786149660974
                            0                       1.5                        -4                       2.5
    """),
    exact=False,
)
DOPRI8 = _drawn(  # Prince, Dormand 1981, RK8(7)13M; the published fractions are approximations
    "dopri8",
    8,
    7,
    """
    0                     |
    1/18                  | 1/18
    1/12                  | 1/48 1/16
    1/8                   | 1/32 0 3/32
    5/16                  | 5/16 0 -75/64 75/64
    3/8                   | 3/80 0 0 3/16 3/20
    59/400                | 29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000
    93/200                | 16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229
                            -180193667/1043307555
    5490023248/9719169821 | 39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059
                            790204164/839813087 800635310/3783071287
    13/20                 | 246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935
                            6005943493/2108947869 393006217/1396673457 123872331/1001029789
    1201146811/1299019798 | -1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382
                            -48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653
    1                     | 185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211
                            5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418
                            65686358/487910083
    1                     | 403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604
                            11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525
                            248638103/1413531060 0
                          | 14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732
                            -1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4
                          | 13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186
                            -3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0
    """,
    exact=False,
)

METHODS: dict[str, Tableau] = {
    tableau.name: tableau for tableau in (EULER, MIDPOINT, HEUN2, RALSTON, SSPRK3, RK4, RK4_38, BOSH3, DOPRI5, TSIT5, DOPRI8)
}
METHODS["ssprk2"] = HEUN2  # the name it has beside ssprk3


def nearest(name: object, known: Iterable[str]) -> str:
    """For messages: " (did you mean 'rk4'?)" with the known name most like this one, "" if none is."""
    found = get_close_matches(name.lower(), known, n=1) if isinstance(name, str) else []
    return f" (did you mean {found[0]!r}?)" if found else ""
