"""Where the host waits for the device; rows are the names of cases."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import (
    BSpline,
    CoupledODEBlock,
    Dynamics,
    FieldDynamics,
    Galerkin,
    Hyper,
    LowRank,
    NeuralDynamics,
    ODEBlock,
    ReactionDiffusionAdvection,
    Scale,
    Static,
    Templates,
    odeint,
)
from anodev2.pde import Advection, Burgers, Diffusion, Equation, Grid1D, Reaction, Wave
from anodev2.pde import AdvectionDiffusionReaction as FieldRDA
from average import Average
from images import Images, augment, drawn
from tests.null_cuda.launches import ADJOINTS, network, training_step
from tests.null_cuda.told import steady

Case = Callable[[], Callable[[], object]]  # makes what is run, on the device
GRID = Grid1D(32, length=2 * math.pi)
METHODS = ("euler", "rk4", "dopri5", "tsit5")
EQUATIONS: dict[str, tuple[Callable[[Any], Equation], tuple[str, ...]]] = {
    "advection": (lambda c: Advection(GRID, c), ("rk4", "exponential_euler", "etdrk4", "imex2")),
    "upwind advection": (lambda c: Advection(GRID, c, "upwind3"), ("rk4",)),
    "diffusion": (lambda c: Diffusion(GRID, c), ("rk4", "exponential_euler", "etdrk4", "imex2")),
    "reaction": (lambda c: Reaction(GRID, c), ("rk4",)),
    "burgers": (lambda c: Burgers(GRID, c), ("rk4", "etdrk4", "imex3")),
    "wave": (lambda c: Wave(GRID, c), ("rk4", "leapfrog")),
    "reaction-diffusion-advection": (lambda c: FieldRDA(GRID, c, c, c), ("rk4", "etdrk4")),
    "sum": (lambda c: Advection(GRID, c) + Diffusion(GRID, 0.1), ("rk4", "imex2")),
}
PATTERN = "o i h w -> (o h w) i"
DYNAMICS: dict[str, Callable[[], Dynamics]] = {
    "static": Static,
    "rda": ReactionDiffusionAdvection,
    "rda per channel": lambda: ReactionDiffusionAdvection(per="channel"),
    "rda stepped": lambda: ReactionDiffusionAdvection(nonlinearity=torch.tanh),
    "low rank": lambda: LowRank(2),
    "templates": lambda: Templates(3, 3),
    "hyper": lambda: Hyper(3),
    "b-spline": lambda: BSpline(4),
    "scale": lambda: Scale(3),
    **{f"galerkin {basis}": partial(Galerkin, basis, 3) for basis in ("constant", "linear", "fourier", "chebyshev")},
    "field diffusion": lambda: FieldDynamics(Diffusion(Grid1D(8), coefficient()), PATTERN),
    "field burgers": lambda: FieldDynamics(Burgers(Grid1D(8), coefficient()), PATTERN),
    "field wave": lambda: FieldDynamics(Wave(Grid1D(8), coefficient()), PATTERN),
    "neural": lambda: NeuralDynamics(lambda t, theta: {name: -weight for name, weight in theta.items()}),
}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.conv(z))))


def coefficient() -> nn.Parameter:
    """Trained, of a size at which no method is unstable."""
    return nn.Parameter(torch.tensor(0.1, device="cuda"))


def solve(method: str, adjoint: str) -> Callable[[], object]:
    net, y = nn.Linear(8, 8).cuda(), torch.zeros(4, 8, device="cuda", requires_grad=True)
    field = lambda t, y: torch.tanh(net(y)) * t
    return lambda: odeint(field, y, [0.0, 0.5, 1.0], method=method, steps=5, adjoint=ADJOINTS[adjoint])[-1].sum().backward()


def block(adjoint: str, dynamics: str | None = None) -> Callable[[], object]:
    torch.manual_seed(0)
    how: dict[str, Any] = {"steps": 5, "adjoint": ADJOINTS[adjoint]}
    made = ODEBlock(Branch(), **how) if dynamics is None else CoupledODEBlock(Branch(), copy.deepcopy(DYNAMICS[dynamics]()), **how)
    made, z = made.cuda(), torch.zeros(4, 8, 16, 16, device="cuda", requires_grad=True)
    return lambda: made(z).sum().backward()


def equation(name: str, method: str, trained: bool) -> Callable[[], object]:
    made = EQUATIONS[name][0](coefficient() if trained else 0.1).cuda()
    u = torch.zeros(2, 32, device="cuda", requires_grad=True)
    state = (u, u) if name == "wave" else u

    def run() -> None:
        found = odeint(made, state, [0.0, 0.01], method=method, steps=5)
        (found[0] if name == "wave" else found)[-1].sum().backward()

    return run


def network_step(words: str) -> Callable[[], object]:
    return training_step(network("resnet4", *words.split()), 8)


def augmentation() -> Callable[[], object]:
    generator = torch.Generator()
    x, y = torch.zeros(16, 32, 32, 3, dtype=torch.uint8, device="cuda"), torch.zeros(16, dtype=torch.long, device="cuda")
    images = Images(x, y, x, y, torch.zeros(3, device="cuda"), torch.ones(3, device="cuda"), 10)
    draws = drawn(16, generator, torch.device("cuda"), cutout=True)  # once per epoch
    return lambda: augment(images.normalised(images.x_train), draws, 8)


def average() -> Callable[[], object]:
    model = network("resnet4", "coupled")
    mean = Average(model, 0.9)
    return lambda: mean.update_parameters(model)


CASES: dict[str, Case] = {
    **{f"solve {method} {adjoint}": partial(solve, method, adjoint) for method in METHODS for adjoint in ADJOINTS},
    **{f"block ode {adjoint}": partial(block, adjoint) for adjoint in ADJOINTS},
    **{f"block {name} {adjoint}": partial(block, adjoint, name) for name in DYNAMICS for adjoint in ("direct", "checkpoint", "slots=2")},
    **{
        f"equation {name} {method}{' trained' * trained}": partial(equation, name, method, trained)
        for name, (_, methods) in EQUATIONS.items()
        for method in methods
        for trained in (False, True)
    },
    **{f"network {words}": partial(network_step, words) for words in ("residual", "coupled checkpoint")},
    "augmentation": augmentation,
    "average": average,
}


def answer(row: str) -> list[str]:
    return steady(CASES[row]()).waits
