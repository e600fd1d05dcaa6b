"""What an equation keeps between solves follows every change of what it was made of, however it was made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import odeint
from anodev2.pde import Advection, Diffusion, Dirichlet, Grid1D, KleinGordon, Reaction, Robin, System

N = 12


def doubled_data(tensor: Tensor) -> None:
    tensor.data.mul_(2)


def other_data(tensor: Tensor) -> None:
    tensor.data = 2 * tensor.detach()


def through_numpy(tensor: Tensor) -> None:
    tensor.numpy()[...] *= 2


def from_a_vector(tensor: Tensor) -> None:
    nn.utils.vector_to_parameters(2 * tensor.reshape(1), [tensor])


CHANGES = [doubled_data, other_data, through_numpy, from_a_vector]
EQUATIONS: dict[str, Callable[[Tensor], Any]] = {
    "diffusion": lambda c: Diffusion(Grid1D(N), c),
    "walls": lambda c: Diffusion(Grid1D(N, 1.0, Dirichlet(c, 0.0)), 0.1),
    "sum": lambda c: Diffusion(Grid1D(N), 0.01) + Reaction(Grid1D(N), c),
    "multiple": lambda c: 0.5 * Diffusion(Grid1D(N), c),
    "system": lambda c: System({"u": Diffusion(Grid1D(N), c), "v": {"u": Reaction(Grid1D(N), 1.0)}}),
    "formula": lambda c: KleinGordon(Grid1D(N), 1.0, c),
}


def moved(equation: Any) -> Tensor:
    rows = getattr(equation, "components", 1)
    u = torch.linspace(-1, 1, rows * N, dtype=torch.float64).sin().reshape(rows, N)
    return odeint(equation, u if rows > 1 else u[0], [0.0, 0.1], method="etdrk4", steps=3)[-1]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", EQUATIONS)
def test_a_split_follows_a_tensor_that_changes_behind_its_version(name: str, change: Callable[[Tensor], None]) -> None:
    c = torch.tensor(0.03, dtype=torch.float64)
    equation = EQUATIONS[name](c)
    before = moved(equation)
    assert torch.equal(moved(equation), before)
    change(c)
    after = moved(equation)
    assert not torch.equal(after, before)
    assert torch.equal(after, moved(EQUATIONS[name](torch.tensor(0.06, dtype=torch.float64))))


def test_a_split_follows_numbers_of_conditions_and_factors() -> None:
    def robin(a: float) -> Diffusion:
        return Diffusion(Grid1D(N, 1.0, (Robin(a, -0.5, 0.2), Robin(1.0, 0.5, 0.0))), 0.1)

    equation: Any = robin(1.0)
    moved(equation)
    equation.boundary.left.a = 3.0
    assert torch.equal(moved(equation), moved(robin(3.0)))
    scaled: Any = 0.5 * Diffusion(Grid1D(N), 0.1)
    kept = scaled.split()
    assert scaled.train(False).split() is kept
    scaled.parts[0].factor = 2.0
    assert torch.equal(moved(scaled), moved(2.0 * Diffusion(Grid1D(N), 0.1)))


@pytest.mark.parametrize("turn", [lambda c: c.data.neg_(), lambda c: torch.from_numpy(c.numpy()).neg_()])
def test_a_speed_that_turns_behind_its_version_is_checked_anew(turn: Callable[[Tensor], Any]) -> None:
    speed = torch.tensor(0.5, dtype=torch.float64)
    equation = Advection(Grid1D(N, 1.0, Dirichlet(0.2, None)), speed)
    equation(0.0, torch.ones(N, dtype=torch.float64))
    turn(speed)
    with pytest.raises(ValueError, match=r"-0\.5.*flows"):
        equation(0.0, torch.ones(N, dtype=torch.float64))
