"""Where steps are: grids, and error control."""

from .control import ATOL, MAX_STEPS, MORE, RTOL, STRETCH, Adaptive, Control, StepSizes, tolerances
from .grid import Grid, Step, Time, Times, as_count, as_times, given_grid, numbers, times_of_samples, uniform_grid, unit_grid, wants_grad

__all__ = [
    "ATOL",
    "MAX_STEPS",
    "MORE",
    "RTOL",
    "STRETCH",
    "Adaptive",
    "Control",
    "Grid",
    "Step",
    "StepSizes",
    "Time",
    "Times",
    "as_count",
    "as_times",
    "given_grid",
    "numbers",
    "times_of_samples",
    "tolerances",
    "uniform_grid",
    "unit_grid",
    "wants_grad",
]
