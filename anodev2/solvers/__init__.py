"""One step y0 -> y1 of each method, a file per family."""

from __future__ import annotations

from ..torchdiffeq import METHODS_OF_TORCHDIFFEQ
from .auto import Auto
from .exponential import ETDRK4, ExponentialEuler
from .imex import IMEX, IMEX1, IMEX2, IMEX3
from .interpolant import between as states_between
from .interpolant import stacked_slopes
from .leapfrog import Leapfrog, halves
from .map import Map
from .method import FlatField, Leaves, Method, SplitField, StepFailed
from .newton import Implicit
from .one_stage import BackwardEuler, ImplicitMidpoint
from .rosenbrock import RODAS4, RODAS5P, Rosenbrock
from .runge_kutta import RungeKutta
from .sdirk import ESDIRK4, KVAERNO5, SDIRK
from .tableau import METHODS as TABLEAUS
from .tableau import Tableau, nearest

__all__ = [
    "IMEX",
    "METHODS",
    "SDIRK",
    "Auto",
    "BackwardEuler",
    "FlatField",
    "Implicit",
    "ImplicitMidpoint",
    "Leapfrog",
    "Leaves",
    "Map",
    "Method",
    "Rosenbrock",
    "RungeKutta",
    "SplitField",
    "StepFailed",
    "as_method",
    "halves",
    "stacked_slopes",
    "states_between",
]

_OTHERS = (
    *(Leapfrog(), ExponentialEuler(), ETDRK4(), IMEX1, IMEX2, IMEX3, BackwardEuler(), ImplicitMidpoint(), RODAS4, RODAS5P),
    *(ESDIRK4, KVAERNO5, Auto(), Map()),
)
METHODS: dict[str, Tableau | Method] = {**TABLEAUS, **{method.name: method for method in _OTHERS}}


def as_method(method: str | Tableau | Method) -> Method:
    """The method of that name, of that tableau, or the given one; ValueError names the nearest match and all there are."""
    if isinstance(method, str) and method in METHODS:
        method = METHODS[method]
    if isinstance(method, str) and method in METHODS_OF_TORCHDIFFEQ:
        raise ValueError(f"method={method!r} is torchdiffeq's; here: {METHODS_OF_TORCHDIFFEQ[method]}")
    if isinstance(method, Tableau):
        return RungeKutta(method)
    if isinstance(method, Method):
        return method
    raise ValueError(f"method={method!r} is unknown{nearest(method, METHODS)}; choose one of {', '.join(METHODS)} or pass a Tableau")
