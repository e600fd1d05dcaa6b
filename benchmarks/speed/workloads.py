"""What is timed: workloads, and how each contender runs them. ``prepare(workload, contender)`` gives a function without arguments.

Every run is the sum of the result and its gradient with respect to the initial state and all parameters. "F" is the evaluations of f that
the method needs, each from a state of its own, with a graph; "F + B" is these and their backward pass in one call: the bound of store-all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anodev2 import (
    CheckpointAdjoint,
    CoupledODEBlock,
    DirectAdjoint,
    ODEBlock,
    ReactionDiffusionAdvection,
    odeint,
    solve,
    unroll,
)
from anodev2.models import MODELS
from anodev2.models.blocks import BasicBranch

Run = Callable[[], list[Tensor]]


class Mlp(nn.Module):
    """f(t, y) = W2 tanh(W1 y + b1) + b2, 16 to 64 to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16))

    def forward(self, t: Any, y: Tensor) -> Tensor:
        return self.net(y)


class Conv(nn.Module):
    """f(t, z) = relu(conv3x3 z), or with BatchNorm between."""

    def __init__(self, channels: int = 64, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(z)))


class VanDerPol(nn.Module):
    """q' = p, p' = mu (1 - q^2) p - q, for rows (q, p)."""

    def __init__(self, mu: float = 5.0) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu))

    def forward(self, t: Any, y: Tensor) -> Tensor:
        q, p = y.unbind(-1)
        return torch.stack([p, self.mu * (1 - q * q) * p - q], -1)


@dataclass(frozen=True)
class Workload:
    """One column of a table; ``kind`` says which contenders there are, ``size`` is N, or the name of a network."""

    name: str
    kind: str
    size: Any
    contenders: tuple[str, ...]


FIXED = (
    "F + B",
    "F",
    "plain loop",
    "torch checkpoint per step",
    "checkpoint per block (ANODE)",
    "torchdiffeq",
    "torchdiffeq adjoint",
    "torchdyn",
)
OURS = ("direct", "checkpoint", "checkpoint, 8 slots", "checkpoint, generous memory")
COMPILED = ("direct, compiled", "checkpoint, compiled")
JAX = ("diffrax", "jax scan")
COUPLED = (
    "F + B",
    "F",
    "plain loop",
    "torch checkpoint per step",
    "torchdiffeq",
    "direct",
    "checkpoint",
    "direct, compiled",
    "weights alone",
)
ADAPTIVE = ("torchdiffeq", "torchode", "direct", "checkpoint")
TRAINING = ("same layers", "ode", "ode, checkpoint", "coupled", "coupled, checkpoint", "weights alone")

WORKLOADS = {
    workload.name: workload
    for workload in (
        *(Workload(f"conv, Euler, N = {n}", "conv", n, FIXED + OURS) for n in (5, 16, 64)),
        *(Workload(f"MLP, rk4, N = {n}", "mlp", n, FIXED + OURS + COMPILED + JAX) for n in (10, 100, 1000)),
        Workload("coupled block, configuration 1", "coupled", (5, 5), COUPLED),
        Workload("coupled block, configuration 2", "coupled", (2, 10), COUPLED),
        *(
            Workload(f"{name}, {method}", "adaptive", (name, method), tuple(c for c in ADAPTIVE if (c, method) != ("torchdiffeq", "tsit5")))
            for name in ("MLP", "Van der Pol")
            for method in ("dopri5", "tsit5")
        ),
        *(Workload(f"training step, {name}", "training", name, TRAINING) for name in ("resnet4", "resnet10", "resnet18")),
    )
}


def prepare(workload: Workload, contender: str) -> tuple[Run, Callable[[], int]]:
    """The run, and the number by which its time is divided (accepted steps of an adaptive solve, else 1)."""
    torch.manual_seed(0)
    one = lambda: 1  # noqa: E731
    if workload.kind == "mlp":
        return _fixed(Mlp(), torch.randn(128, 16), "rk4", workload.size, contender), one
    if workload.kind == "conv":
        return _fixed(Conv(), torch.randn(8, 64, 32, 32), "euler", workload.size, contender), one
    if workload.kind == "coupled":
        steps, weight_steps = workload.size
        return _coupled(steps, weight_steps, contender), one
    if workload.kind == "training":
        return _training(workload.size, contender), one
    assert workload.kind == "adaptive"
    name, method = workload.size
    return _adaptive(name, method, contender)


def _gradients(outcome: Any, wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outcome.sum(), wanted))


def _step(f: nn.Module, method: str, dt: float, y: Tensor) -> Tensor:
    """As one would write it by hand."""
    if method == "euler":
        return y + dt * f(0.0, y)
    k1 = f(0.0, y)
    k2 = f(0.0, y + dt / 2 * k1)
    k3 = f(0.0, y + dt / 2 * k2)
    k4 = f(0.0, y + dt * k3)
    return y + dt / 6 * (k1 + 2 * (k2 + k3) + k4)


def _fixed(f: nn.Module, y0: Tensor, method: str, steps: int, contender: str) -> Run:
    y0.requires_grad_()
    parameters, dt = cast(list[Tensor], list(f.parameters())), 1 / steps
    wanted = [y0, *parameters]
    if contender in ("F", "F + B"):
        return _bound(lambda y: f(0.0, y), parameters, y0, steps * (4 if method == "rk4" else 1), contender)

    def loop(start: Tensor) -> Tensor:
        for _ in range(steps):
            start = _step(f, method, dt, start)
        return start

    def per_step(start: Tensor) -> Tensor:
        for _ in range(steps):
            start = checkpoint(_step, f, method, dt, start, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        return start

    def ours(**options: Any) -> Callable[[Tensor], Tensor]:
        return ODEBlock(f, method=method, steps=steps, **options)

    def theirs(name: str) -> Callable[[Tensor], Tensor]:
        import torchdiffeq

        options = {"step_size": dt} | ({"perturb": False} if method == "euler" else {})
        return lambda start: getattr(torchdiffeq, name)(f, start, torch.tensor([0.0, 1.0]), method=method, options=options)[-1]

    def torchdyn() -> Callable[[Tensor], Tensor]:
        from torchdyn.numerics import odeint  # pyright: ignore[reportMissingImports]

        times = torch.linspace(0, 1, steps + 1)
        return lambda start: odeint(f, start, times, solver=method)[1][-1]

    solves: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "plain loop": lambda: loop,
        "torch checkpoint per step": lambda: per_step,
        "checkpoint per block (ANODE)": lambda: lambda start: checkpoint(loop, start, use_reentrant=False),  # pyright: ignore[reportReturnType]
        "torchdiffeq": lambda: theirs("odeint"),
        "torchdiffeq adjoint": lambda: theirs("odeint_adjoint"),
        "torchdyn": torchdyn,
        "direct": lambda: ours(adjoint="direct"),
        "checkpoint": lambda: ours(adjoint="checkpoint"),
        "checkpoint, 8 slots": lambda: ours(adjoint=CheckpointAdjoint(slots=8)),
        "checkpoint, generous memory": lambda: ours(adjoint=CheckpointAdjoint(memory="16GiB")),
        "direct, compiled": lambda: ours(adjoint="direct", compile=True),
        "checkpoint, compiled": lambda: ours(adjoint="checkpoint", compile=True),
    }
    chosen = solves[contender]()
    return lambda: _gradients(chosen(y0), wanted)


def _bound(f: Callable[[Tensor], Tensor], parameters: list[Tensor], y0: Tensor, count: int, contender: str) -> Run:
    starts = [y0.detach().clone().requires_grad_() for _ in range(count)]
    seeds = [torch.randn_like(y0)] * count

    def run() -> list[Tensor]:
        ends = [f(start) for start in starts]
        return list(torch.autograd.grad(ends, [*starts, *parameters], seeds)) if contender == "F + B" else []

    return run


def _coupled(steps: int, weight_steps: int, contender: str) -> Run:
    f, z0 = Conv(norm=True), torch.randn(8, 64, 32, 32, requires_grad=True)
    dynamics = ReactionDiffusionAdvection()
    adjoint = "checkpoint" if contender.startswith("checkpoint") else "direct"
    block = CoupledODEBlock(f, dynamics, steps=steps, weight_steps=weight_steps, adjoint=adjoint, compile="compiled" in contender)
    parameters = list(block.parameters())
    wanted = [z0, *parameters]
    if contender in ("F", "F + B"):
        return _bound(lambda z: f(0.0, z), cast(list[Tensor], list(f.parameters())), z0, steps, contender)
    if contender == "weights alone":
        times = [k / steps for k in range(steps)]
        moving = [f.conv.weight, *dynamics.parameters()]
        return lambda: _gradients(block.weights(times)["conv.weight"], moving)
    dz, dw = 1 / steps, 1 / weight_steps
    theta0 = {"conv.weight": f.conv.weight}

    def z_step(z: Tensor, theta: dict[str, Tensor]) -> Tensor:
        return z + dz * torch.func.functional_call(f, theta, (0.0, z))

    def loop(keep: bool) -> Tensor:
        z, theta = z0, theta0
        for k in range(max(steps, weight_steps)):
            if k % (max(steps, weight_steps) // steps) == 0:
                z = checkpoint(z_step, z, theta, use_reentrant=False) if keep else z_step(z, theta)  # pyright: ignore[reportAssignmentType]
            assert isinstance(theta, dict)
            slope = dynamics(torch.zeros(()), theta)
            theta = {name: value + dw * slope[name] for name, value in theta.items()}
        return z  # pyright: ignore[reportReturnType]

    def theirs() -> Tensor:
        import torchdiffeq

        def pair(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            theta = {"conv.weight": state[1]}
            return torch.func.functional_call(f, theta, (t, state[0])), dynamics(t, theta)["conv.weight"]

        return torchdiffeq.odeint(pair, (z0, f.conv.weight), torch.tensor([0.0, 1.0]), method="euler", options={"step_size": dz})[0][-1]

    solves: dict[str, Callable[[], Tensor]] = {
        "plain loop": lambda: loop(False),
        "torch checkpoint per step": lambda: loop(True),
        "torchdiffeq": theirs,
    }
    chosen = solves.get(contender, lambda: block(z0))
    return lambda: _gradients(chosen(), wanted)


def _adaptive(name: str, method: str, contender: str) -> tuple[Run, Callable[[], int]]:
    f = Mlp() if name == "MLP" else VanDerPol()
    y0 = torch.randn(128, 16) if name == "MLP" else torch.tensor([[2.0, 0.0]])
    end = 20.0
    y0.requires_grad_()
    wanted, accepted = [y0, *f.parameters()], [0]
    rtol, atol = 1e-5, 1e-6
    if contender == "torchdiffeq":
        import torchdiffeq

        class Counted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f = f

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return self.f(t, y)

            def callback_accept_step(self, *_: Any) -> None:
                accepted[0] += 1

        counted = Counted()

        def run() -> list[Tensor]:
            accepted[0] = 0
            return _gradients(torchdiffeq.odeint(counted, y0, torch.tensor([0.0, end]), method=method, rtol=rtol, atol=atol)[-1], wanted)

    elif contender == "torchode":
        import torchode  # pyright: ignore[reportMissingImports]

        term = torchode.ODETerm(f)
        stepper = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method](term=term)
        solver = torchode.AutoDiffAdjoint(stepper, torchode.IntegralController(atol=atol, rtol=rtol, term=term))
        times = torch.tensor([[0.0, end]]).expand(len(y0), 2)

        def run() -> list[Tensor]:
            solution = solver.solve(torchode.InitialValueProblem(y0=y0, t_eval=times))
            accepted[0] = int(solution.stats["n_accepted"].max())
            return _gradients(solution.ys[:, -1], wanted)

    else:

        def run() -> list[Tensor]:
            solution = solve(f, y0, [0.0, end], method=method, rtol=rtol, atol=atol, adjoint=contender)
            accepted[0] = solution.stats.accepted
            return _gradients(solution.ys[-1], wanted)

        def run_odeint() -> list[Tensor]:
            return _gradients(odeint(f, y0, [0.0, end], method=method, rtol=rtol, atol=atol, adjoint=contender)[-1], wanted)

        run()
        return run_odeint, lambda: accepted[0]

    return run, lambda: accepted[0]


def _training(name: str, contender: str) -> Run:
    batch = 32 if name != "resnet18" else 8
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    block = contender.partition(",")[0] if contender.startswith(("ode", "coupled")) else "coupled"
    network = MODELS[name](block=block, adjoint="checkpoint" if "checkpoint" in contender else "direct")
    if contender == "same layers":
        network = unroll(copy.deepcopy(network))
        for parameter in network.parameters():
            parameter.requires_grad_()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.train()
    if contender == "weights alone":
        blocks = [module for module in network.modules() if isinstance(module, CoupledODEBlock)]
        moving = [p for b in blocks for p in (*(p for n, p in b.f.named_parameters() if n in b.evolving), *b.dynamics.parameters())]
        times = [k / 5 for k in range(5)]
        return lambda: list(torch.autograd.grad(sum(w.square().sum() for b in blocks for w in b.weights(times).values()), moving))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return lambda: list(torch.autograd.grad(nn.functional.cross_entropy(network(images), labels), parameters))


def scaling(contender: str, steps: int = 16, batch: int = 4, channels: int = 16, blocks: int = 1) -> Run:
    """Blocks like those of resnet10 (8 x 8 pixels), Euler."""
    torch.manual_seed(0)
    adjoint = {"direct": DirectAdjoint(), "checkpoint": CheckpointAdjoint(), "8 slots": CheckpointAdjoint(slots=8)}[contender]
    network = nn.Sequential(*(ODEBlock(BasicBranch(channels), steps=steps, adjoint=adjoint) for _ in range(blocks)))
    z0 = torch.randn(batch, channels, 8, 8, requires_grad=True)
    return lambda: _gradients(network(z0), [z0, *network.parameters()])
