"""Which steps a solve takes: a grid that was asked for, or error control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .pytree import Structure
from .solvers import METHODS, Map, Method
from .stepping import Adaptive, Control, Grid, as_breaks, as_times, given_grid, tolerances, uniform_grid, unit_grid


def stepping_of(
    t: Any,
    method: Method,
    structure: Structure,
    leaves: list[Tensor],
    grids: dict[str, Any],
    control: tuple[Any, Any, Control | None],
    between: bool,
    breaks: tuple[Any, torch.dtype],
) -> Grid | Adaptive:
    """The grid asked for, or error control where none is and the method can; output times may be ``between`` the ends of steps."""
    given = [name for name, value in grids.items() if value is not None]
    wanted = [name for name, value in zip(("rtol", "atol", "control"), control, strict=True) if value is not None]
    if wanted and given:
        raise ValueError(f"{wanted[0]} asks for error control, {given[0]} for a grid; give one of them")
    controlled = method.embedded_order is not None
    if wanted and not controlled:
        able = [name for name, known in METHODS.items() if known.embedded_order is not None]
        raise ValueError(f"{method.name} has no error estimate for {wanted[0]}; give steps, or take one of {', '.join(able)}")
    if breaks[0] is not None and isinstance(method, Map):
        raise ValueError("method='map' has no times between its passes, at which breaks could be")
    whole = t if isinstance(t, tuple) and isinstance(t[0], Tensor) and t[0].ndim else as_times(t, endless=True, single=True)
    if len(whole) == 1 and not (isinstance(whole[0], Tensor) and whole[0].ndim):
        return Grid(whole, ())  # y0 is all there is
    found = as_breaks(breaks[0], whole, breaks[1])
    if found[1] is not None and (given or not controlled) and not all(0 <= node <= 1 for node in method.nodes):
        raise ValueError(f"{method.name} asks func beyond the end of a step, and must not beyond breaks: take esdirk4, or error control")
    if grids["grid"] is not None:
        if len(given) > 1:
            raise ValueError(f"give either grid or {given[0]}, not both")
        return given_grid(whole, grids["grid"], between, *found)
    if controlled and not given:
        times = whole
        stops = (times[0], times[-1]) if between else None
        return Adaptive(times, *tolerances(control[0], control[1], structure, leaves), control[2] or Control(), stops, *found)
    if isinstance(method, Map) and not given:
        return unit_grid(whole)
    return uniform_grid(whole, grids["steps"], grids["step_size"], *found)
