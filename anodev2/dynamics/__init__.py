"""How weights move, a family per file."""

from .b_spline import BSpline
from .dynamics import Dynamics, NeuralDynamics, Static, Theta
from .field import FieldDynamics
from .galerkin import Galerkin
from .hyper import Hyper
from .low_rank import LowRank
from .reaction_diffusion_advection import ReactionDiffusionAdvection
from .scale import Scale
from .skew_flow import SkewFlow
from .templates import Templates

__all__ = [
    "BSpline",
    "Dynamics",
    "FieldDynamics",
    "Galerkin",
    "Hyper",
    "LowRank",
    "NeuralDynamics",
    "ReactionDiffusionAdvection",
    "Scale",
    "SkewFlow",
    "Static",
    "Templates",
    "Theta",
]
