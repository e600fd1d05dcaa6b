"""What objects print: what matters, on a screen, and nothing that differs from run to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anodev2
from anodev2 import (
    METHODS,
    CheckpointAdjoint,
    Compile,
    Control,
    CoupledODEBlock,
    CoupledSystem,
    FourierOperator,
    NeuralDynamics,
    ODEBlock,
    ReactionDiffusionAdvection,
    Static,
    diagnose,
    plan,
    solve,
    stability_function,
    unroll,
)
from anodev2.pde import Advection, AdvectionDiffusionReaction, Burgers, Diffusion, Grid1D, Wave


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv(z)


def decay(t: Tensor, y: Any) -> Any:
    return -y if isinstance(y, Tensor) else {name: -leaf for name, leaf in y.items()}


X = torch.ones(1, 3, 4, 4)
OBJECTS: dict[str, Callable[[], Any]] = {
    "a solution of many steps": lambda: solve(decay, torch.ones(3), [0.0, 1.0], steps=5000),
    "a solution at many times": lambda: solve(decay, {"q": torch.ones(40)}, torch.linspace(0, 1, 300), steps=2, dense=True),
    "dense": lambda: solve(decay, torch.ones(3), [0.0, 1.0], steps=5, dense=True).dense,
    "statistics": lambda: solve(decay, torch.ones(3), [0.0, 1.0], steps=5).stats,
    "a status": lambda: solve(decay, torch.ones(3), [0.0, 1.0], steps=5).status,
    "a plan of many steps": lambda: plan(decay, torch.ones(3), steps=1000),
    "a plan with slots": lambda: plan(decay, torch.ones(3), steps=1000, adjoint=CheckpointAdjoint(slots=5)),
    **{f"method {name}": lambda name=name: METHODS[name] for name in METHODS},
    "control": Control,
    "compile": Compile,
    "an operator": lambda: FourierOperator(torch.zeros(5, dtype=torch.complex64), 8),
    "a system": lambda: CoupledSystem(lambda t, z, theta: z, lambda t, theta: theta),
    "a block": lambda: ODEBlock(Net(), steps=2),
    "a coupled block": lambda: CoupledODEBlock(Net(), ReactionDiffusionAdvection()),
    "static": lambda: CoupledODEBlock(Net(), Static()),
    "neural": lambda: NeuralDynamics(Net()),
    "unrolled": lambda: unroll(CoupledODEBlock(Net(), ReactionDiffusionAdvection())),
    "a stability function": lambda: stability_function("rk4"),
    "weight path": lambda: diagnose.weight_path(CoupledODEBlock(Net(), ReactionDiffusionAdvection())),
    "gradient report": lambda: diagnose.gradient_report(ODEBlock(Net(), steps=2), X),
    "reversibility": lambda: diagnose.reversibility(ODEBlock(Net(), steps=2), X),
    "stability": lambda: diagnose.stability(ODEBlock(Net(), steps=2), X),
}


GRID = Grid1D(16)
EQUATIONS: dict[str, Callable[[], Any]] = {
    "speed=0.25": lambda: Advection(GRID, 0.25),
    "scheme='central4'": lambda: Advection(GRID, 0.25, "central4"),
    "diffusivity=Tensor[16]": lambda: Diffusion(GRID, torch.rand(16)),
    "diffusivity=Parameter(0.5)": lambda: Diffusion(GRID, nn.Parameter(torch.tensor(0.5))),
    "speed=decay": lambda: Wave(GRID, decay),
    "rate=-2": lambda: AdvectionDiffusionReaction(GRID, 0.1, reaction=-2.0),
    "diffusivity=0.75": lambda: Burgers(GRID, 0.75),
    "diffusivity=0.125": lambda: Advection(GRID, 1.0) + Diffusion(GRID, 0.125),
}
OBJECTS |= EQUATIONS


@pytest.mark.parametrize("part", EQUATIONS)
def test_an_equation_shows_its_coefficients(part: str) -> None:
    assert part in repr(EQUATIONS[part]())


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_object_fits_a_screen_and_shows_no_address(name: str) -> None:
    for text in (repr(OBJECTS[name]()), str(OBJECTS[name]())):
        assert " at 0x" not in text
        assert len(text) < 2000 and len(text.splitlines()) < (10 if "solution" in name or "plan" in name else 25)


def test_a_solution_tells_times_shapes_steps_and_how_it_ended() -> None:
    text = repr(solve(decay, {"q": torch.ones(3)}, [0.0, 0.5, 2.0], steps=5))
    assert all(part in text for part in ("3 times from 0 to 2", "'q': 'float32[3, 3]'", "10 steps", "'done'", "accepted=10"))


def test_a_schedule_is_shown_where_it_is_short_and_on_request() -> None:
    short, long = plan(decay, torch.ones(3), steps=9), plan(decay, torch.ones(3), steps=1000)
    assert "<<<" in str(short) and "<<<" not in str(long)
    assert long.schedule is not None and "<<<" in long.schedule.draw()


def test_the_package_lists_its_public_names_alone() -> None:
    assert sorted(name for name in dir(anodev2) if not name.startswith("__")) == sorted(anodev2.__all__)
