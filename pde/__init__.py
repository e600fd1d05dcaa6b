"""Equations for one-dimensional fields, called as (t, u): right-hand sides for ``anodev2.odeint``."""

import warnings
from typing import Any

if __name__ == "pde":  # the folder in a checkout: the same modules as anodev2.pde, not copies of them
    import sys
    from importlib import import_module

    import_module("anodev2.pde")
    sys.modules |= {name.removeprefix("anodev2."): module for name, module in sys.modules.items() if name.startswith("anodev2.pde")}

from .advection import Advection
from .boundary import Dirichlet, Neumann, Periodic, Walls
from .burgers import Burgers
from .conditions import Absorbing, Closed, Free, Robin, Slope, Value
from .conservation import ConservationLaw
from .diffusion import Diffusion
from .equation import Equation, Sum
from .grid import Grid1D
from .higher import DerivativeTerm, Dispersion, Hyperdiffusion, Nonlinearity
from .initial import random_fourier, random_fronts, random_pulses
from .named import AllenCahn, CahnHilliard, FisherKPP, KortewegDeVries, KuramotoSivashinsky, SwiftHohenberg
from .named_systems import DampedWave, FitzHughNagumo, GrayScott, KleinGordon, Maxwell, Schroedinger, ShallowWater
from .pictures import animate, plot, space_time
from .plane import Plane, over_plane
from .reaction import AdvectionDiffusionReaction, Reaction, Source
from .second_order import SecondOrder
from .stencils import Derivative, derivative
from .system import System
from .wave import Wave

__all__ = [
    "Absorbing",
    "Advection",
    "AdvectionDiffusionReaction",
    "AllenCahn",
    "Burgers",
    "CahnHilliard",
    "Closed",
    "ConservationLaw",
    "DampedWave",
    "Derivative",
    "DerivativeTerm",
    "Diffusion",
    "Dirichlet",
    "Dispersion",
    "Equation",
    "FisherKPP",
    "FitzHughNagumo",
    "Free",
    "GrayScott",
    "Grid1D",
    "Hyperdiffusion",
    "KleinGordon",
    "KortewegDeVries",
    "KuramotoSivashinsky",
    "Maxwell",
    "Neumann",
    "Nonlinearity",
    "Periodic",
    "Plane",
    "Reaction",
    "Robin",
    "Schroedinger",
    "SecondOrder",
    "ShallowWater",
    "Slope",
    "Source",
    "Sum",
    "SwiftHohenberg",
    "System",
    "Value",
    "Walls",
    "Wave",
    "animate",
    "derivative",
    "over_plane",
    "plot",
    "random_fourier",
    "random_fronts",
    "random_pulses",
    "space_time",
]


def __getattr__(name: str) -> Any:
    if name == "ReactionDiffusionAdvection":
        warnings.warn(
            "pde.ReactionDiffusionAdvection, an equation, is now called AdvectionDiffusionReaction; the dynamics of the old name are "
            "anodev2.ReactionDiffusionAdvection",
            DeprecationWarning,
            stacklevel=2,
        )
        return AdvectionDiffusionReaction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
