"""Explicit Runge-Kutta methods as data.

A method with s stages computes, for y' = f(t, y) and one step from t to t + dt,

    k_i = f(t + c_i dt, y + dt sum_{j<i} a_ij k_j),        y(t + dt) = y + dt sum_i b_i k_i.

An embedded solution, y + dt sum_i b_hat_i k_i, estimates the error; an interpolant gives the states within the step:

    y(t + x dt) ~ y + dt sum_i b_i(x) k_i,        b_i(x) = sum_j p_ij x^(j+1),        0 <= x <= 1,

where further stages may be evaluated that nothing else needs.

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
        interpolant: row i holds the coefficients p_i0, p_i1, ... of b_i(x), one row per stage and further stage; b_i(1) must be b_i.
        further: rows that continue ``a``, of stages for the interpolant alone.
        exact: False where the literature gives rounded numbers; sums are then compared to 1e-13, else exactly.

    ``fsal`` (first same as last): the last slope is taken at the new state and time, so it is the next step's first.
    ``advancing``: leading stages that the new state needs; those after the last b_i != 0 can go. ``ending``: the stage, a further one
    perhaps, that is the slope at the new state and time.

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
    further: tuple[Row, ...] = ()
    weights: tuple[float, ...] = field(init=False, repr=False)
    stage_weights: tuple[tuple[float, ...], ...] = field(init=False, repr=False)
    nodes: tuple[float, ...] = field(init=False, repr=False)
    error_weights: tuple[float, ...] | None = field(init=False, repr=False)
    fsal: bool = field(init=False, repr=False)
    advancing: int = field(init=False, repr=False)
    ending: int | None = field(init=False, repr=False)
    dense_weights: tuple[tuple[float, ...], ...] | None = field(init=False, repr=False)

    def __repr__(self) -> str:
        embedded = "" if self.embedded_order is None else f", embedded_order={self.embedded_order}"
        return f"Tableau({self.name!r}, order={self.order}{embedded}, stages={self.stages})"

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_sums()
        object.__setattr__(self, "weights", tuple(map(float, self.b)))
        object.__setattr__(self, "stage_weights", tuple(tuple(map(float, row)) for row in (*self.a, *self.further)))
        object.__setattr__(self, "nodes", tuple(map(float, (*self.c, *map(sum, self.further)))))
        error = None if self.b_hat is None else tuple(float(x - y) for x, y in zip(self.b, self.b_hat, strict=True))
        object.__setattr__(self, "error_weights", error)
        object.__setattr__(self, "fsal", (*self.a[-1], 0) == self.b and self.c[-1] == 1)
        object.__setattr__(self, "advancing", 1 + max(i for i, weight in enumerate(self.b) if weight != 0))
        after = self.stages if self.further[:1] == (self.b,) else None
        object.__setattr__(self, "ending", self.stages - 1 if self.fsal else after)
        dense = None if self.interpolant is None else tuple(tuple(map(float, row)) for row in self.interpolant)
        object.__setattr__(self, "dense_weights", dense)

    def _check_shapes(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))) or len(self.c) != len(self.b):
            raise ValueError(f"tableau {self.name!r}: row i of a must have i entries, b and c one per stage")
        if (self.b_hat is None) != (self.embedded_order is None):
            raise ValueError(f"tableau {self.name!r}: give b_hat and embedded_order together")
        if self.b_hat is not None and len(self.b_hat) != len(self.b):
            raise ValueError(f"tableau {self.name!r}: b_hat must have one entry per stage")
        if [len(row) for row in self.further] != [self.stages + i for i in range(len(self.further))]:
            raise ValueError(f"tableau {self.name!r}: further rows must continue a, each with an entry for every stage before it")
        rows = self.stages + len(self.further)
        if self.interpolant is not None and (len(self.interpolant) != rows or len(set(map(len, self.interpolant))) != 1):
            raise ValueError(f"tableau {self.name!r}: the interpolant must have one row per stage, all of one length")

    def _check_sums(self) -> None:
        if not all(self._same(sum(row), node) for row, node in zip(self.a, self.c, strict=True)):
            raise ValueError(f"tableau {self.name!r}: the nodes c must be the row sums of a")
        for label, row in (("b", self.b), ("b_hat", self.b_hat)):
            if row is not None and not self._same(sum(row), 1):
                raise ValueError(f"tableau {self.name!r}: the weights {label} sum to {sum(row)}, not 1")
        weights = (*self.b, *(Fraction(0) for _ in self.further))
        if self.interpolant is not None and not all(self._same(sum(row), w) for row, w in zip(self.interpolant, weights, strict=True)):
            raise ValueError(f"tableau {self.name!r}: the interpolant must end in the weights, b_i(1) = b_i")

    def _same(self, left: Fraction | int, right: Fraction | int) -> bool:
        return abs(left - right) <= (0 if self.exact else _ROUNDING)

    @property
    def stages(self) -> int:
        """Slopes k_i of one step, those that only the error estimate or the interpolant reads included."""
        return len(self.b)


def _row(*entries: str | int | Fraction) -> Row:
    return tuple(Fraction(entry) for entry in entries)


def _rows(drawing: str) -> tuple[Row, ...]:
    return tuple(_row(*line.split()) for line in drawing.strip().splitlines())


def _cubic(b: Row) -> tuple[Row, ...]:
    """The interpolant through both states and slopes, where the one further stage is the slope at the end."""
    rows = [_row(0, 3 * weight, -2 * weight) for weight in b]
    rows[0] = _row(1, rows[0][1] - 2, rows[0][2] + 1)
    return (*rows, _row(0, -1, 1))


def _drawn(
    name: str,
    order: int,
    embedded_order: int,
    drawing: str,
    interpolant: tuple[Row, ...],
    exact: bool = True,
) -> Tableau:
    """The tableau drawn as in the literature: rows c_i | a_i1 a_i2 ..., then | b and | b_hat, then rows of further stages.

    A line without | continues its row.
    """
    rows: list[tuple[str, list[str]]] = []
    for line in drawing.strip().splitlines():
        node, bar, entries = line.rpartition("|")
        if bar:
            rows.append((node.strip(), []))
        rows[-1][1].extend(entries.split())
    stages = next(place for place, (node, _) in enumerate(rows) if not node)
    parts = [_row(*entries) for _, entries in rows]
    a, (b, b_hat), further = tuple(parts[:stages]), parts[stages : stages + 2], tuple(parts[stages + 2 :])
    c = _row(*(node for node, _ in rows[:stages]))
    return Tableau(name, order, a, b, c, b_hat, embedded_order, interpolant, exact, further)


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
    interpolant=(_row(1, "-1/2"), _row(0, "1/2")),
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
    interpolant=_cubic(_row("1/6", "1/6", "2/3")),
    further=(_row("1/6", "1/6", "2/3"),),
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
DOPRI8 = _drawn(  # Prince, Dormand 1981, RK8(7)13M; the published fractions are approximations. Interpolant: of order 7 in the least norm
    # that joins smoothly, its further stages at nodes of a small error (one of order 5, three of order 6), solved from the order conditions
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
    1                     | 14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732
                            -1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4
    0.62                  | 0.045072876384143485 0 0 0 0 0.16562557007231279 0.22106224454483856 0.10992759406836677
                            0.054994514741197213 0.022191951180590077 0.0032798984480985709 -0.00071821647984909054
                            -0.00071821647984917392 -0.00071821647984920156
    0.28                  | 0.046313521526648049 0 0 0 0 0.031187404016082136 0.20980145979299931 -0.0049125178614593287
                            -0.016176282828290283 -0.018889168024978576 -0.00048610854047728337 0.014883219129857341
                            0.00044778719796632739 -0.0149416752191457 0.032772360810798006
    0.51                  | 0.052676028120942231 0 0 0 0 0.068482072414411954 0.16861863465106685 0.050806594164914485
                            0.03455009373412838 0.0082434936586832077 -0.010184174851397179 0.0075173602456297681
                            -0.016852691976908326 0.014850523442054994 -0.0054753715192649122 0.13676743791573855
    0.94                  | 0.059873635930112402 0 0 0 0 0.18456067697998382 0.13123412653884454 -0.069622100813295674
                            -0.09585588727247546 0.26935632714208266 0.13375506087897954 -0.20665538277579334 0.22600086580233981
                            -0.038240085854060161 0.19953938125685511 0.16658017147426652 -0.020526789287839762
    """,
    _rows("""
    1 -8.0776058491459346 31.397859110684887 -65.275509482182798 74.30818193246499 -43.701010177400751 10.389831956721136
    0 0 0 0 0 0 0
    0 0 0 0 0 0 0
    0 0 0 0 0 0 0
    0 0 0 0 0 0 0
    0 5.3220191116480275 -22.292842141597684 19.559282583693524 25.663522492005888 -47.831786027220426 19.524351652859431
    0 19.2525482598393 -114.26752785821245 283.64614652270874 -354.04616912838392 219.6364584727032 -53.982143461453682
    0 5.9677635456208903 -34.864423286645386 97.713693309832085 -135.92346727303365 93.249304720872234 -25.439360347242733
    0 4.0759077682134085 -33.973488922009966 102.37151217152689 -155.49958035144496 114.08072373858087 -31.814834018680692
    0 -4.2645589111176992 50.15429226712442 -198.41950331015393 353.86662640859276 -287.14517618317692 86.468882759653652
    0 -4.9867867122521532 43.578202183372444 -153.56564989706429 256.27432682227897 -200.12326674802321 58.981361834198363
    0 8.5843607554543967 -76.063743811406696 271.41085923268545 -456.15642855352361 357.74668410607563 -105.75984126803804
    0 -9.4961098468245732 82.078591369114022 -288.01391204132655 479.30304630552827 -373.64817272941011 110.02655694291894
    0 -0.57684643459453971 9.1369928676132412 -42.6167666722257 85.724352903384143 -78.262145087571454 26.594412423394309
    0 0 0 0 0 0 0
    0 -19.724663868614521 143.09981875752913 -388.39566919671118 504.81931766268877 -318.22758342228792 78.428780067395715
    0 -3.0072951722840853 -13.50337669922521 124.15626734689478 -265.28626871011272 227.15371803786238 -69.513044803135139
    0 6.9312673540574679 -64.480353836340676 237.42924943232261 -413.04746051044437 337.07225129899627 -103.9049537385913
    """),
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
