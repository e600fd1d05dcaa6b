"""Coupled neural ODEs: features z(t) and weights theta(t) evolve together, with exact discrete gradients."""

from .adjoint import Adjoint, CheckpointAdjoint, DirectAdjoint
from .block import CoupledODEBlock, ODEBlock
from .dynamics import Dynamics, NeuralDynamics, ReactionDiffusionAdvection, Static
from .solve import odeint
from .system import CoupledSystem
from .tableau import METHODS, Tableau

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Adjoint",
    "CheckpointAdjoint",
    "CoupledODEBlock",
    "CoupledSystem",
    "DirectAdjoint",
    "Dynamics",
    "NeuralDynamics",
    "ODEBlock",
    "ReactionDiffusionAdvection",
    "Static",
    "Tableau",
    "odeint",
]
