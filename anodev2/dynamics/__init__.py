"""How weights move, a family per file."""

from .b_spline import BSpline
from .delta_rule import DeltaRule
from .depth_groups import DepthGroups
from .dynamics import Dynamics, NeuralDynamics, Static, Theta
from .field import FieldDynamics
from .galerkin import Galerkin
from .gradient_flow import GradientFlow
from .hebb import Hebb, Oja
from .hyper import Hyper
from .learning_rule import KeyedRule, LearningRule
from .low_rank import LowRank
from .reaction_diffusion_advection import ReactionDiffusionAdvection
from .scale import Scale
from .skew_flow import SkewFlow
from .templates import Templates

__all__ = [
    "BSpline",
    "DeltaRule",
    "DepthGroups",
    "Dynamics",
    "FieldDynamics",
    "Galerkin",
    "GradientFlow",
    "Hebb",
    "Hyper",
    "KeyedRule",
    "LearningRule",
    "LowRank",
    "NeuralDynamics",
    "Oja",
    "ReactionDiffusionAdvection",
    "Scale",
    "SkewFlow",
    "Static",
    "Templates",
    "Theta",
]
