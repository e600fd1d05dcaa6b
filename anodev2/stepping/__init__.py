"""Where steps are: grids, and error control."""

from .control import ATOL, MAX_STEPS, MORE, RTOL, STRETCH, Adaptive, Control, StepSizes, tolerances
from .grid import Grid, Step, as_count, given_grid, limited, uniform_grid, unit_grid
from .jumps import Jumps, apart, as_breaks, merged
from .rejections import Between, Rejections
from .times import Time, Times, as_sequence, as_times, numbers, times_of_samples, wants_grad, without_repeats

__all__ = [
    "ATOL",
    "MAX_STEPS",
    "MORE",
    "RTOL",
    "STRETCH",
    "Adaptive",
    "Between",
    "Control",
    "Grid",
    "Jumps",
    "Rejections",
    "Step",
    "StepSizes",
    "Time",
    "Times",
    "apart",
    "as_breaks",
    "as_count",
    "as_sequence",
    "as_times",
    "given_grid",
    "limited",
    "merged",
    "numbers",
    "times_of_samples",
    "tolerances",
    "uniform_grid",
    "unit_grid",
    "wants_grad",
    "without_repeats",
]
