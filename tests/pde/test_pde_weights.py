"""Weights of a layer that follow an equation of pde along one of their axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, FieldDynamics
from anodev2.pde import Advection, AdvectionDiffusionReaction, Diffusion, Dirichlet, Equation, Grid1D, Neumann, Wave


class Squash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=torch.float64)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return torch.tanh(self.conv(z))


def parameter(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


GRID = Grid1D(8, length=8.0)
EQUATIONS: dict[str, Callable[[], Equation]] = {
    "advection": lambda: Advection(GRID, parameter(0.7)),
    "diffusion": lambda: Diffusion(GRID, parameter(0.3)),
    "diffusion, walls": lambda: Diffusion(Grid1D(8, 8.0, Neumann()), parameter(0.3)),
    "wave": lambda: Wave(GRID, parameter(0.7)),
    "wave, walls": lambda: Wave(Grid1D(8, 8.0, Dirichlet()), parameter(0.7)),
    "all three": lambda: AdvectionDiffusionReaction(GRID, parameter(0.1), parameter(0.5), parameter(0.2)),
}


def results(equation: Equation, pattern: str = "o i h w -> (o h w) i", **options: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    block = CoupledODEBlock(Squash(), FieldDynamics(equation, pattern), steps=2, **options)
    with torch.no_grad():
        for name, value in block.dynamics.named_parameters():
            if name.startswith("velocity"):
                value.copy_(torch.randn(value.shape, dtype=torch.float64))
    out = block(torch.randn(2, 8, 4, 4, dtype=torch.float64))
    out.square().sum().backward()
    gradients = [p.grad for p in block.parameters()]
    assert all(g is not None and g.any() for g in gradients)
    return out.detach(), [g for g in gradients if g is not None]


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_block_trains_in_closed_form_and_agrees_with_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, gradients = results(EQUATIONS[name]())
    stepped = EQUATIONS[name]()
    monkeypatch.setattr(stepped, "flow", lambda u, times: None)
    out, others = results(stepped, weight_method="rk4", weight_steps=200)
    torch.testing.assert_close(out, closed, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(others, gradients, rtol=1e-7, atol=1e-7)


def test_a_speed_that_varies_along_the_channels_is_stepped_by_leapfrog() -> None:
    medium = lambda: Wave(GRID, nn.Parameter(torch.linspace(0.4, 0.9, 8, dtype=torch.float64)))
    fine, gradients = results(medium(), weight_method="rk4", weight_steps=100)
    out, others = results(medium(), weight_method="leapfrog", weight_steps=2000)
    torch.testing.assert_close(out, fine, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(others, gradients, rtol=1e-5, atol=1e-5)


def test_weights_stepped_too_far_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"a step of 0\.25 with euler is beyond the largest stable one, 0\.01667, for FieldDynamics"):
        results(Diffusion(GRID, nn.Parameter(torch.full((8,), 30.0, dtype=torch.float64))), weight_method="euler", weight_steps=4)


def test_only_weights_of_that_many_points_evolve() -> None:
    with pytest.raises(ValueError, match="no parameter that FieldDynamics can evolve"):
        CoupledODEBlock(Squash(), FieldDynamics(Diffusion(Grid1D(5), 0.1), "o i h w -> (o h w) i"))
