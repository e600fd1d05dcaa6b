"""Tools to look at one's own model: which gradient it gets, whether it can be solved backwards, whether its steps are stable, how its
weights move. Each returns data that prints as a table."""

from .gradients import GradientReport, gradient_report
from .path import WeightPath, weight_path
from .reversal import Reversibility, reversibility
from .spectra import Stability, stability

__all__ = ["GradientReport", "Reversibility", "Stability", "WeightPath", "gradient_report", "reversibility", "stability", "weight_path"]
