"""Waves along one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anodev2 import stability_function

from .closed_form import dense_flow, elapsed, line_between, wall_series
from .coefficient import Coefficient, attach, evaluate, extremes, is_constant, over_speed, varies_in_time
from .dense import dense
from .equation import Equation
from .grid import Grid1D
from .multiples import Multiples
from .numbers import as_tensor, present
from .second_order import Absorbed, SecondOrder, Spreading
from .stability import few, limiting, remembered, some_modes
from .stencils import Derivative, derivative
from .system import System

Pair = tuple[Tensor, Tensor]


class Wave(Multiples, Equation):
    """du/dt = v, dv/dt = c^2 d2u/dx2: the state is the pair (u, v) of fields (..., n), called as (t, (u, v)).

    du/dt is v itself, the same tensor, as "leapfrog" likes it: symplectic, and stable for dt c / h <= 1 (central2). rk4 damps short
    waves a little; Euler makes all grow. Modes have the eigenvalues +-i c sqrt(-D2(k)), D2(k) the symbol of the second derivative.

    An equation of one field that is added goes to dv/dt: ``Wave + Source(grid, f)`` is driven by f(t, x, u), see ``SecondOrder``.

    Args:
        grid: the points; walls need data at both ends (fixed ends ``Dirichlet()``, free ends ``Neumann()``), or are ``Absorbing``.
        speed: c, length per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> c. Its sign does not matter.
        scheme: "central2", "central4", "central6", or "spectral" (periodic grids).

    Raises:
        ValueError: an unknown scheme, "spectral" between walls, or an end without data.
        TypeError: a speed of another kind.

    Source: LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 2.9; Hairer, Lubich, Wanner, Geometric Numerical Integration, I.
    """

    components = 2
    name = "Wave"

    def __init__(self, grid: Grid1D, speed: Coefficient, scheme: str = "central2") -> None:
        super().__init__(grid)
        attach(self, "speed", speed, grid.n)
        self.scheme = scheme
        self.second: Derivative = derivative(grid, 2, scheme)
        self.boundary.validate("Wave", "wave")
        self._limits: dict[Any, float] = {}

    def forward(self, t: Any, state: Pair) -> Pair:
        """(du/dt, dv/dt)."""
        u, v = self._pair(state)
        c = evaluate(self.speed, t, lambda: self.grid.points(u), u)
        return v, c**2 * self.second(u, self.grid, t, over_speed(v, c) if self.boundary.absorbs else None)

    def energy(self, state: Pair, t: Any = 0.0) -> Tensor:
        """h/2 sum(v^2 / c^2 - u D2 u) >= 0, shape (...,).

        The semi-discrete equation conserves it for a speed that does not change in time, on periodic grids, between free ends (zero
        slopes), and between fixed ends (zero values) with "central2"; there the other schemes, whose D2 is not symmetric, let it swing.
        """
        u, v = self._pair(state)
        c = evaluate(self.speed, t, lambda: self.grid.points(u), u)
        return (v**2 / c**2 - u * self.second(u, self.grid, t)).sum(-1) * (self.grid.spacing / 2)

    def symbol(self, k: Tensor) -> Tensor:
        """+i w and -i w, w = c sqrt(-D2(k)), stacked in front: (2, *k.shape). ValueError for a speed that varies."""
        k = as_tensor(k)
        return _both(self._frequency(k, -self.second.symbol(k, self.grid.spacing).real))

    def exact_symbol(self, k: Tensor) -> Tensor:
        """+i c k and -i c k, stacked in front: (2, *k.shape). ValueError for a speed that varies."""
        k = as_tensor(k)
        return _both(self._frequency(k, k**2))

    def matrix(self, u: Tensor | None = None) -> Tensor:
        """[[0, 1], [c^2 D2, 0]], (2n, 2n) on u and v one after the other, with boundary data zero and c of t = 0; float64, or like u."""
        like = self.like() if u is None else u
        t = torch.zeros((), dtype=like.dtype, device=like.device)
        return self._matrix(self._speed(t, like), like)

    def exact(self, t: float | Tensor, state: Pair) -> Pair:
        """The solution of the differential equation at time t from (u, v) at 0; times (T,) give (T, ..., n).

        u(t) = cos(c k t) u + t sinc(c k t) v for each mode: Fourier on periodic grids, where the state has no mode at Nyquist; sines
        or cosines between walls with steady data (wall values, or one slope at both ends).

        Raises:
            ValueError: no such solution is known.
        """
        u, v = self._pair(state)
        if self.grid.periodic:
            k = self.grid.modes(u.new_empty(0, dtype=torch.float64))
            return self._turned(t, u, v, self._frequency(k, k**2))
        line, (series, k) = line_between(self.grid, u), wall_series(self.grid, u)
        w = self._frequency(k, k**2)
        time = elapsed(t, torch.ones_like(w), u)
        cos, sin = (f(time * w).to(u.dtype) for f in (torch.cos, torch.sin))
        a, b = (u if line is None else u - line) @ series.mT, v @ series.mT
        found = (cos * a + (time * torch.sinc(time * w / math.pi)).to(u.dtype) * b) @ series
        return (found if line is None else found + line), (cos * b - w.to(u.dtype) * sin * a) @ series

    def flow(self, u: Any, times: Sequence[float]) -> Pair | None:
        """(u, v) of the semi-discrete equation at ``times``, each stacked in front, in closed form; None where c or the data vary.

        Periodic: turned by the angle w t in each mode, (u, v) to the bit at t = 0; between walls the exponential of the matrix.
        """
        u, v = self._pair(u)
        if not is_constant(self.speed) or not self.boundary.steady():
            return None
        if self.grid.periodic:
            k = self.grid.modes(u.new_empty(0, dtype=torch.float64))
            return self._turned(times, u, v, self._frequency(k, -self.second.symbol(k, self.grid.spacing).real))
        zero = torch.zeros(self.grid.n, dtype=u.dtype, device=u.device)
        c = self._speed(0.0, u)
        pushed = c**2 * self.second(zero, self.grid)
        both = torch.cat(torch.broadcast_tensors(u, v), -1)
        found = dense_flow(self._matrix(c, u), torch.cat([torch.zeros_like(pushed), pushed], -1), both, times)
        return found[..., : self.grid.n], found[..., self.grid.n :]

    def steady(self) -> bool:
        """Whether the speed is the same at all times."""
        return not varies_in_time(self.speed)

    def max_stable_step(self, method: Any, *, t: float = 0.0) -> float:
        """The largest step with which ``method`` amplifies no mode: |R(+-i w h)| <= 1 for all frequencies w of the grid.

        A speed that varies is frozen at its largest size at time t: an estimate. Between walls the eigenvalues of the second derivative
        on at most 32 points of the same spacing count too. 0 for methods that are stable nowhere on the imaginary axis (Euler,
        midpoint), infinite for fake and meta tensors.
        """
        if not present(self.like()):
            return math.inf
        with torch.no_grad():
            c = max(abs(value) for value in extremes(self.speed, self.grid.points(self.like()), t))
        return math.inf if c == 0 or not math.isfinite(c) else remembered(self._limits, method, lambda: self._limit(method)) / c

    def _limit(self, method: Any) -> float:
        """That for c = 1."""
        square = -self.second.symbol(some_modes(self.grid), self.grid.spacing).real
        if self.boundary.absorbs:
            matrix = Wave(few(self.grid), 1.0, self.scheme).matrix()
            eigenvalues = limiting(matrix, 2)
            return stability_function(method).limit(torch.cat([_both(torch.sqrt(square)).flatten(), eigenvalues]))
        if not self.grid.periodic:
            square = torch.cat([square, -torch.linalg.eigvals(self.second.matrix(few(self.grid))).real.clamp(max=0).flatten()])
        return stability_function(method).limit(_both(torch.sqrt(square)))

    def system(self) -> SecondOrder:
        """The same as a system of the fields u and v, to which terms are added."""
        drag = Absorbed(self.grid, self.speed, self.scheme) if self.boundary.absorbs else None
        return SecondOrder(Spreading(self.grid, self.speed, self.scheme), drag)

    def __add__(self, other: Any) -> Any:
        return self.system() + other

    def __radd__(self, other: Any) -> Any:
        return self if isinstance(other, int) and other == 0 else self.system() + other

    def _times(self, factor: float) -> System:
        return self.system() * factor

    def _pair(self, state: Pair) -> Pair:
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise TypeError(f"the state of Wave is a pair (u, v) of fields, got {type(state).__name__}")
        for field in state:
            self.grid.check(field)
        return state[0], state[1]

    def _speed(self, t: Any, like: Tensor) -> Tensor:
        c = evaluate(self.speed, t, lambda: self.grid.points(like), like)
        return torch.as_tensor(c, dtype=like.dtype, device=like.device)

    def _frequency(self, like: Tensor, square: Tensor) -> Tensor:
        """c sqrt(square); ValueError where c varies."""
        if not is_constant(self.speed):
            raise ValueError("Wave with a speed that varies has no symbol and no closed form; give a number, or take small steps")
        return evaluate(self.speed, 0.0, lambda: like, like) * torch.sqrt(square)

    def _turned(self, t: Any, u: Tensor, v: Tensor, w: Tensor) -> Pair:
        time = elapsed(t, torch.ones_like(w), u)
        phase = time * w
        a, b = torch.fft.rfft(u), torch.fft.rfft(v)
        less = (-2 * torch.sin(phase / 2) ** 2).to(u.dtype)  # cos - 1: what is 0 at t = 0 is added to the field
        stretch, swing = (time * torch.sinc(phase / math.pi)).to(u.dtype), (w * torch.sin(phase)).to(u.dtype)
        back = lambda spectrum: torch.fft.irfft(spectrum, n=self.grid.n)  # noqa: E731
        return u + back(less * a + stretch * b), v + back(less * b - swing * a)

    def _matrix(self, c: Tensor, like: Tensor) -> Tensor:
        n = self.grid.n
        stiff = (c**2)[..., None] * self.second.matrix(self.grid, like) if c.ndim else c**2 * self.second.matrix(self.grid, like)
        unit = torch.eye(n, dtype=like.dtype, device=like.device).expand_as(stiff)
        zero = torch.zeros_like(stiff)
        lost = self._absorbed(c, like).expand_as(stiff) if self.boundary.absorbs else zero
        return torch.cat([torch.cat([zero, unit], -1), torch.cat([stiff, lost], -1)], -2)

    def _absorbed(self, c: Tensor, like: Tensor) -> Tensor:
        """What v adds to dv/dt through absorbing ends, as a matrix."""
        lead = torch.broadcast_shapes(self.boundary.lead(), c.shape[:-1])
        return dense(
            lambda v: c**2 * self.second(torch.zeros_like(v), self.grid, v.new_zeros(()), over_speed(v, c)), self.grid, like, tuple(lead)
        )


def _both(w: Tensor) -> Tensor:
    return torch.stack([torch.complex(torch.zeros_like(w), w), torch.complex(torch.zeros_like(w), -w)])
