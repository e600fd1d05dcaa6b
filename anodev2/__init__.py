"""Coupled neural ODEs: features z(t) and weights theta(t) evolve together, with exact discrete gradients."""

from importlib import import_module
from typing import Any

from . import diagnose, testing
from .block import CoupledODEBlock, ODEBlock
from .citation import citation
from .convert import Conversion, convert
from .dynamics import (
    BSpline,
    DeltaRule,
    DepthGroups,
    Dynamics,
    FieldDynamics,
    Galerkin,
    GradientFlow,
    Hebb,
    Hyper,
    KeyedRule,
    LearningRule,
    LowRank,
    NeuralDynamics,
    Oja,
    ReactionDiffusionAdvection,
    Scale,
    SkewFlow,
    Static,
    Templates,
)
from .events import Event
from .fast_weights import FastWeights
from .gradients.adjoint import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ReversibleAdjoint
from .integrate.compiled import Compile
from .path import Path
from .plan import Plan, plan
from .problem import SolveError, Status
from .solution import Solution
from .solve import odeint, solve
from .solvers import METHODS, Auto, BackwardEuler, ImplicitMidpoint, Leapfrog, Method
from .solvers.linear import FourierOperator, LinearOperator, SplitState
from .solvers.stability import stability_function
from .solvers.tableau import Tableau
from .stepping import Control
from .system import CoupledSystem
from .unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Adjoint",
    "Auto",
    "BSpline",
    "BacksolveAdjoint",
    "BackwardEuler",
    "CheckpointAdjoint",
    "Compile",
    "Control",
    "Conversion",
    "CoupledODEBlock",
    "CoupledSystem",
    "DeltaRule",
    "DepthGroups",
    "DirectAdjoint",
    "Dynamics",
    "Event",
    "FastWeights",
    "FieldDynamics",
    "FourierOperator",
    "Galerkin",
    "GradientFlow",
    "Hebb",
    "Hyper",
    "ImplicitMidpoint",
    "KeyedRule",
    "Leapfrog",
    "LearningRule",
    "LinearOperator",
    "LowRank",
    "Method",
    "NeuralDynamics",
    "ODEBlock",
    "Oja",
    "Path",
    "Plan",
    "ReactionDiffusionAdvection",
    "ReversibleAdjoint",
    "Scale",
    "SkewFlow",
    "Solution",
    "SolveError",
    "SplitState",
    "Static",
    "Status",
    "Tableau",
    "Templates",
    "citation",
    "convert",
    "diagnose",
    "odeint",
    "plan",
    "solve",
    "stability_function",
    "testing",
    "unroll",
]


def __getattr__(name: str) -> Any:
    if name in ("models", "pde"):  # imported where they are asked for
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
