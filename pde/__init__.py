"""Equations for one-dimensional fields, called as (t, u): right-hand sides for ``anodev2.odeint``."""

if __name__ == "pde":  # the folder in a checkout: the same modules as anodev2.pde, not copies of them
    import sys
    from importlib import import_module

    import_module("anodev2.pde")
    sys.modules |= {name.removeprefix("anodev2."): module for name, module in sys.modules.items() if name.startswith("anodev2.pde")}

from .advection import Advection
from .boundary import Dirichlet, Neumann, Periodic
from .burgers import Burgers
from .diffusion import Diffusion
from .equation import Equation, Sum
from .grid import Grid1D
from .reaction_diffusion_advection import Reaction, ReactionDiffusionAdvection, Source
from .stencils import Derivative, derivative
from .wave import Wave

__all__ = [
    "Advection",
    "Burgers",
    "Derivative",
    "Diffusion",
    "Dirichlet",
    "Equation",
    "Grid1D",
    "Neumann",
    "Periodic",
    "Reaction",
    "ReactionDiffusionAdvection",
    "Source",
    "Sum",
    "Wave",
    "derivative",
]
