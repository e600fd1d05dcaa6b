"""How weights move, a family per file."""

from .dynamics import Dynamics, NeuralDynamics, Static, Theta
from .field import FieldDynamics
from .galerkin import Galerkin
from .reaction_diffusion_advection import ReactionDiffusionAdvection

__all__ = ["Dynamics", "FieldDynamics", "Galerkin", "NeuralDynamics", "ReactionDiffusionAdvection", "Static", "Theta"]
