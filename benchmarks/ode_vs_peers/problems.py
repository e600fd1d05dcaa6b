"""The 25 problems of DETEST and four stiff ones, each written once for numpy, torch and jax.numpy; torch is not needed here.

``field(problem, m)`` is f(t, y) with the functions of m, the module of arrays. References at the end are by scipy's DOP853 at 1e-13, of
stiff ones by its Radau at 1e-12 (``references.json``, made by ``--references``).

Sources: Hull, Enright, Fellen, Sedgwick, Comparing numerical methods for ODEs, SIAM J. Numer. Anal. 9 (1972), classes A to E; Hairer,
Wanner, Solving ODEs II, IV.1 and IV.10, and Mazzia, Magherini, Test Set for Initial Value Problem Solvers, for the stiff ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REFERENCES = Path(__file__).with_name("references.json")
Field = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Problem:
    """y' = make(m)(t, y), y(0) = y0, up to ``end``; ``make`` gives f, whose answer is an array or its components.

    ``atol`` is in units of rtol.
    """

    name: str
    make: Callable[[Any], Field]
    y0: tuple[float, ...]
    end: float = 20.0
    stiff: bool = False
    atol: float = 1.0


def field(problem: Problem, m: Any) -> Field:
    """f of a problem, whose components are put together as users of m do."""
    f, together = problem.make(m), np.array if m is np else m.stack
    y0 = m.asarray(np.array(problem.y0))
    return f if hasattr(f(0 * y0[0], y0), "shape") else lambda t, y: together(f(t, y))


def reference(problem: Problem) -> np.ndarray:
    """y at the end."""
    return np.array(json.loads(REFERENCES.read_text())[problem.name])


def error(problem: Problem, y: Sequence[float], tolerance: float) -> float:
    """The largest error at the end, in units of atol + rtol |y|."""
    exact = reference(problem)
    return float((np.abs(np.asarray(y) - exact) / (tolerance * (problem.atol + np.abs(exact)))).max())


def _matrix(rows: np.ndarray) -> Callable[[Any], Field]:
    """y' = A y."""

    def make(m: Any) -> Field:
        a = m.asarray(rows)
        return lambda t, y: a @ y

    return make


def _chain(rates: np.ndarray, back: np.ndarray, into: np.ndarray) -> np.ndarray:
    return np.diag(-rates) + np.diag(into, -1) + np.diag(back, 1)


def _curve(m: Any) -> Field:
    def f(t: Any, y: Any) -> Any:
        a, b, c = y
        r = m.sqrt(a * a + b * b)
        return [-b - a * c / r, a - b * c / r, a / r]

    return f


G, SUN = 2.95912208286, 1.00000597682
PLANETS = np.array([0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778])


def _five_bodies(m: Any) -> Field:
    """x_j'' = G (-M x_j / r_j^3 + sum_k m_k ((x_k - x_j) / d_jk^3 - x_k / r_k^3)), the outer planets in rows of x, y, z."""
    mass, own = m.asarray(PLANETS), m.asarray(np.eye(5))

    def f(t: Any, y: Any) -> Any:
        x = y[:15].reshape(5, 3)
        apart = x[None] - x[:, None]
        d = (apart * apart).sum(-1) + own
        r = (x * x).sum(-1)
        pull = mass / (d * m.sqrt(d))
        inwards = x / (r * m.sqrt(r))[:, None]
        moved = (pull[:, :, None] * apart).sum(1) - mass @ inwards - SUN * inwards
        return m.concatenate([y[15:], G * moved.reshape(-1)])

    return f


FIVE = (
    *(
        3.42947415189,
        3.35386959711,
        1.35494901715,
        6.64145542550,
        5.97156957878,
        2.18231499728,
        11.2630437207,
        14.6952576794,
        6.27960525067,
    ),
    *(-30.1552268759, 1.65699966404, 1.43785752721, -21.1238353380, 28.4465098142, 15.3882659679),
    *(-0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780, -0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
)


def _orbit(m: Any) -> Field:
    def f(t: Any, y: Any) -> Any:
        a, b, u, v = y
        r = a * a + b * b
        r = r * m.sqrt(r)
        return [u, v, -a / r, -b / r]

    return f


def _systems(rates: Callable[..., Sequence[Any]]) -> Callable[[Any], Field]:
    """f by its components: rates(m, t, *y)."""
    return lambda m: lambda t, y: rates(m, t, *y)


def _hires(m: Any, t: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Sequence[Any]:
    binding = 280 * f * h - 1.81 * g
    return [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * f + 0.43 * g,
        -binding - 1.12 * g + 0.69 * d + 1.71 * e - 0.43 * f,
        binding,
        -binding,
    ]


def _robertson(m: Any, t: Any, a: Any, b: Any, c: Any) -> Sequence[Any]:
    first, second = 0.04 * a - 1e4 * b * c, 3e7 * b * b
    return [-first, first - second, second]


ONE = (1.0, *[0.0] * 9)
PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("A1", lambda m: lambda t, y: -y, (1.0,)),
        Problem("A2", lambda m: lambda t, y: -(y**3) / 2, (1.0,)),
        Problem("A3", lambda m: lambda t, y: y * m.cos(t), (1.0,)),
        Problem("A4", lambda m: lambda t, y: y / 4 * (1 - y / 20), (1.0,)),
        Problem("A5", lambda m: lambda t, y: (y - t) / (y + t), (4.0,)),
        Problem("B1", _systems(lambda m, t, a, b: [2 * (a - a * b), a * b - b]), (1.0, 3.0)),
        Problem("B2", _matrix(np.array([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]])), (2.0, 0.0, 1.0)),
        Problem("B3", _systems(lambda m, t, a, b, c: [-a, a - b * b, b * b]), (1.0, 0.0, 0.0)),
        Problem("B4", _curve, (3.0, 0.0, 0.0)),
        Problem("B5", _systems(lambda m, t, a, b, c: [b * c, -a * c, -0.51 * a * b]), (0.0, 1.0, 1.0)),
        Problem("C1", _matrix(_chain(np.array([*[1.0] * 9, 0.0]), np.zeros(9), np.ones(9))), ONE),
        Problem("C2", _matrix(_chain(np.array([*range(1, 10), 0.0]), np.zeros(9), np.arange(1.0, 10.0))), ONE),
        Problem("C3", _matrix(_chain(np.full(10, 2.0), np.ones(9), np.ones(9))), ONE),
        Problem("C4", _matrix(_chain(np.full(51, 2.0), np.ones(50), np.ones(50))), (*ONE, *[0.0] * 41)),
        Problem("C5", _five_bodies, FIVE),
        *(
            Problem(f"D{number}", _orbit, (1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))))
            for number, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)
        ),
        Problem(
            "E1",
            _systems(lambda m, t, a, b: [b, -(b / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * a)]),
            (0.6713967071418030, 0.09540051444747446),
        ),
        Problem("E2", _systems(lambda m, t, a, b: [b, (1 - a * a) * b - a]), (2.0, 0.0)),
        Problem("E3", _systems(lambda m, t, a, b: [b, a**3 / 6 - a + 2 * m.sin(2.78535 * t)]), (0.0, 0.0)),
        Problem("E4", _systems(lambda m, t, a, b: [b, 0.032 - 0.4 * b * b]), (30.0, 0.0)),
        Problem("E5", _systems(lambda m, t, a, b: [b, m.sqrt(1 + b * b) / (25 - t)]), (0.0, 0.0)),
        Problem("Van der Pol", _systems(lambda m, t, a, b: [b, 1e3 * (1 - a * a) * b - a]), (2.0, 0.0), 2000.0, True),
        Problem("Robertson", _systems(_robertson), (1.0, 0.0, 0.0), 1e5, True, 1e-3),
        Problem("HIRES", _systems(_hires), (1.0, *[0.0] * 6, 0.0057), 321.8122, True, 1e-3),
        Problem(
            "Oregonator",
            _systems(lambda m, t, a, b, c: [77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)]),
            (1.0, 2.0, 3.0),
            360.0,
            True,
            1e-3,
        ),
    )
}
