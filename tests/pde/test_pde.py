from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import anodev2
from anodev2 import odeint, pde
from anodev2.pde import Advection, Grid1D


@pytest.mark.parametrize("n", [32, 33])
def test_a_constant_speed_carries_the_field(n: int) -> None:
    grid = Grid1D(n, length=3.0)
    x = grid.points(torch.tensor(0.0).double())
    wave = lambda x: torch.sin(2 * math.pi * x / 3) + torch.cos(8 * math.pi * x / 3)
    u = odeint(Advection(grid, 0.7), wave(x).expand(2, n), [0.0, 1.0], steps=100)[-1]
    torch.testing.assert_close(u, wave(x - 0.7).expand(2, n), rtol=0, atol=1e-6)


def test_the_derivative_has_the_symbol_minus_i_c_k() -> None:
    grid = Grid1D(16, length=2 * math.pi)
    x = grid.points(torch.tensor(0.0).double())
    for k in range(8):
        torch.testing.assert_close(Advection(grid, 2.0)(torch.tensor(0.0), torch.sin(k * x)), -2.0 * k * torch.cos(k * x))
    nyquist = torch.cos(8 * x)
    assert Advection(grid, 2.0)(torch.tensor(0.0), nyquist).abs().max() < 1e-12


def test_speeds_may_be_learned_or_vary() -> None:
    grid = Grid1D(16)
    equation = Advection(grid, nn.Parameter(torch.tensor(0.3)))
    odeint(equation, torch.sin(2 * math.pi * grid.points()), [0.0, 1.0], steps=20)[-1].square().mul(grid.points()).sum().backward()
    assert next(equation.parameters()).grad is not None
    varying = Advection(grid, lambda t, x: t + x)
    u = torch.sin(2 * math.pi * grid.points())
    torch.testing.assert_close(varying(torch.tensor(0.5), u), (0.5 + grid.points()) * Advection(grid, 1.0)(torch.tensor(0.0), u))


def test_user_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="n=2"):
        Grid1D(2)
    with pytest.raises(ValueError, match=r"length=0\.0"):
        Grid1D(8, length=0.0)
    with pytest.raises(ValueError, match=r"5 points.*grid 8"):
        Advection(Grid1D(8), 1.0)(torch.tensor(0.0), torch.ones(5))


def test_the_old_name_of_an_equation_warns_and_works() -> None:
    with pytest.warns(DeprecationWarning, match="AdvectionDiffusionReaction"):
        old = pde.ReactionDiffusionAdvection
    assert old is pde.AdvectionDiffusionReaction
    names: dict[str, Any] = {}
    exec("from anodev2 import *\nfrom anodev2.pde import *", names)
    assert names["ReactionDiffusionAdvection"] is anodev2.ReactionDiffusionAdvection
