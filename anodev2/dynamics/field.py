"""Weights that follow an equation for fields along one of their axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..signature import takes
from ..system import check_call
from .dynamics import Dynamics, Theta, parameter_key, refuse_another


class FieldDynamics(Dynamics):
    """Weights that evolve as fields along one of their axes: dw/dt = equation(t, w), by shape alone any equation called as (t, u).

    ``FieldDynamics(Diffusion(Grid1D(16), 0.1), "o i h w -> (o h w) i")`` lets every kernel of 16 input channels diffuse along
    these. Where the equation has ``flow(u, times)`` and that is not None, the closed form is used instead of steps.

    An equation of ``components`` 2, called as (t, (u, v)) such as a wave, moves the weights u and a velocity v, of which v(0) is
    a parameter per weight, ``velocity``, zero at first. Its state is the pair (theta, velocities), as leapfrog needs it.

    Args:
        equation: module (or function) on fields (..., n); its parameters are trained with the block's.
        pattern: einops pattern from the axes of the weight to fields, the evolving axis last and alone.

    Weights with as many axes as the pattern and ``equation.grid.n`` points (if it has a grid) along the last are accepted.

    Raises:
        ValueError: a pattern without "->", or whose last axis is no single axis of the weight; an equation of more than two fields.

    Source: ANODEV2, arXiv 1906.04596, whose kernels evolve along their spatial axes.
    """

    def __init__(self, equation: Callable[[Any, Any], Any], pattern: str) -> None:
        super().__init__()
        if not callable(equation):
            raise TypeError(f"equation must be callable as equation(t, u), got {type(equation).__name__}")
        check_call("equation", equation, "t", "u")
        left, arrow, right = (part.strip() for part in pattern.partition("->"))
        self.axes = left.split()
        if not arrow or right.split()[-1:] != [axis for axis in self.axes if axis == right.split()[-1]]:
            raise ValueError(f"pattern={pattern!r} must read like 'o i h w -> (o h w) i', an axis of the weight last and alone")
        self.equation = equation
        self.pattern = f"{left} -> {right}"
        self.backwards = f"... {right} -> ... {left}"
        components = getattr(equation, "components", 1)
        if components > 2:
            raise ValueError(f"equation moves {components} fields; weights are one field, which may have a second beside it, its velocity")
        self.paired = components == 2
        self.velocity = nn.ParameterDict()

    def accepts(self, name: str, weight: Tensor) -> bool:
        n = getattr(getattr(self.equation, "grid", None), "n", None)
        if not weight.is_floating_point() or weight.ndim != len(self.axes):
            return False
        return n is None or weight.shape[self.axes.index(self.pattern.split()[-1])] == n

    def bind(self, theta: Theta) -> None:
        refuse_another(self, self.velocity)
        if self.paired:
            for name, weight in theta.items():
                self.velocity[parameter_key(name)] = nn.Parameter(torch.zeros_like(weight))

    def start(self, theta: Theta) -> Any:
        return (theta, self._velocities(theta)) if self.paired else theta

    def weights(self, state: Any) -> Theta:
        return state[0] if self.paired else state

    def forward(self, t: Tensor | float, theta: Any) -> Any:
        """dtheta/dt; for a pair (theta, velocities) the pair of their slopes."""
        if not self.paired:
            return {name: self._weight(self.equation(t, self._field(w)), w) for name, w in theta.items()}
        slopes: tuple[Theta, Theta] = ({}, {})
        for name, w in theta[0].items():
            v = theta[1][name]
            field = self._field(v)
            du, dv = self.equation(t, (self._field(w), field))
            slopes[0][name] = v if du is field else self._weight(du, w)
            slopes[1][name] = self._weight(dv, w)
        return slopes

    def flow(self, theta: Theta, times: Sequence[float]) -> Theta | None:
        flow = getattr(self.equation, "flow", None)
        if flow is None:
            return None
        velocities, path = self._velocities(theta), {}
        for name, w in theta.items():
            wide = torch.promote_types(w.dtype, torch.float32)  # transforms and exponentials know no 16 bits
            field = self._field(w).to(wide)
            values = flow((field, self._field(velocities[name]).to(wide)) if self.paired else field, times)
            if values is None:
                return None
            path[name] = self._weight(values[0] if self.paired else values, w).to(w.dtype).contiguous()  # as f had it, to the bit
        return path

    def max_stable_step(self, method: Any, *, t: float = 0.0) -> float:
        """That of the equation, at time t where it asks for one; infinite where it tells none."""
        limit = getattr(self.equation, "max_stable_step", None)
        return math.inf if limit is None else limit(method, **({"t": t} if takes(limit, "t") else {}))

    def _velocities(self, theta: Theta) -> Theta:
        return {name: self.velocity[parameter_key(name)] for name in theta} if self.paired else {}

    def _field(self, weight: Tensor) -> Tensor:
        return rearrange(weight, self.pattern)

    def _weight(self, field: Tensor, like: Tensor) -> Tensor:
        return rearrange(field, self.backwards, **dict(zip(self.axes, like.shape, strict=True)))

    def extra_repr(self) -> str:
        return repr(self.pattern)
