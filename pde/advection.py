"""Transport of a field along one axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .grid import Grid1D

Speed = float | Tensor | Callable[[Tensor, Tensor], Tensor]


class Advection(nn.Module):
    """du/dt = -c du/dx, so that a constant c > 0 moves the field towards +x: u(t, x) = u(0, x - c t).

    The derivative is spectral (exact for every mode below Nyquist); fields are (..., n). Called as ``(t, u)``: a right-hand
    side for ``odeint``. The mode k has the symbol -i c k; an explicit method must keep dt |c| pi n / length within its
    stability interval on the imaginary axis (rk4: 2.83; Euler and midpoint: none, keep dt small).

    Args:
        grid: the points.
        speed: c, length per time: a number, a tensor (a Parameter is trained), or a function (t, x) -> c.
    """

    def __init__(self, grid: Grid1D, speed: Speed) -> None:
        super().__init__()
        self.grid = grid
        self.speed = speed

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        if u.shape[-1] != self.grid.n:
            raise ValueError(f"the field has {u.shape[-1]} points in its last axis, the grid {self.grid.n}")
        ik = torch.complex(torch.zeros_like(k := self.grid.wavenumbers(u)), k)
        slope = torch.fft.irfft(ik * torch.fft.rfft(u), n=self.grid.n)
        speed = self.speed(t, self.grid.points(u)) if callable(self.speed) else self.speed
        return -speed * slope
