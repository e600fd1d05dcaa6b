"""Which steps a solve takes: a grid that was asked for, or error control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .pytree import Structure
from .solvers import METHODS, Leaves, Map, Method
from .stepping import (
    Adaptive,
    Control,
    Grid,
    apart,
    as_breaks,
    as_count,
    as_times,
    given_grid,
    merged,
    numbers,
    tolerances,
    uniform_grid,
    unit_grid,
    without_repeats,
)

Point = tuple[Tensor, Leaves]  # a time and the state then
Save = Literal["times", "steps", "end"] | int | Sequence[float | Tensor] | Tensor | Callable[[Tensor, Any], Any]


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


class Saved(NamedTuple):
    """What of a solve is kept to be shown."""

    kind: Any  # "times", "steps" or "end"
    t: Any  # output times, with those to be saved
    every: int | None = None  # how many steps from one to the next
    only: frozenset[float] | None = None  # the times to be saved, where not all of t are
    places: list[int] | None = None  # in t of each that was asked for, where some repeat

    def by_sample(self, points: list[Point]) -> list[Point]:
        """Of a point for each of t, or for each step."""
        if self.every is not None:
            return [*points[: -1 : self.every], points[-1]]
        return points if self.places is None else [points[place] for place in self.places]

    def shown(self, points: list[Point], ending: Point | None) -> list[Point]:
        """Of what was reached of t, effects and an ending beside them."""
        if self.only is not None:
            return [point for point in points if point[0].item() in self.only or point is ending]
        if self.places is None:
            return points
        copies = Counter(numbers(tuple(self.t[place] for place in self.places)))
        return [point for point in points for _ in range(copies[float(point[0])] or 1)]


def saving(save: Save, t: Any, per_sample: bool, effects: bool) -> Saved:
    """What ``save`` and ``t`` ask for."""
    once, places = without_repeats(t)
    if callable(save) or (isinstance(save, str) and save in ("times", "steps", "end")):
        kind = "times" if callable(save) else save
        return Saved(kind, once, places=places if kind == "times" else None)
    if save is None or isinstance(save, (str, dict)):
        raise ValueError(f"save={save!r} must be 'times', 'steps', 'end', a number of steps, times, or a function (t, y)")
    if isinstance(save, (int, float)) or getattr(save, "ndim", 1) == 0:
        if per_sample and effects:
            raise ValueError(f"save={save!r} counts anew after an event's effect, which each sample has at its own step: take save='steps'")
        return Saved("times", once, as_count("save", save))
    if per_sample:
        raise ValueError("per_sample=True takes times to be saved as t, of shape (batch, T) where samples have their own; not as save=")
    times, own = as_times(once, endless=True, single=True), as_times(save, "save", single=True)
    (start, end), values = numbers((times[0], times[-1])), numbers(own)
    if not all(min(start, end) <= value <= max(start, end) for value in values) or (values[-1] - values[0]) * (end - start) < 0:
        raise ValueError(f"save={[*values]} must lie between the first and the last time of t, {start} and {end}, and go their way")
    at = dict(zip(numbers(times), times, strict=True))
    shared = [(time, at[value]) for time, value in zip(own, values, strict=True) if isinstance(at.get(value), Tensor)]
    if any(apart(*pair) for pair in shared):
        raise ValueError(f"a time of save={[*values]} is one of t that requires grad: give both as the same tensor")
    return Saved("times", merged(times, own), only=frozenset(values))
