"""The claims about gradients, checked on an accelerator: python benchmarks/device_check.py [--device cpu]

Prints a Markdown table: a float64 gradient against the CPU's, then, against ``adjoint="direct"`` on the same device, dropout,
BatchNorm, autocast; every way of keeping states, host memory among them; and a whole training step of each network. With "cpu"
it runs everywhere (autocast then in bfloat16 too). Every row is a pass or the script fails, when all rows have been told.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import scripts  # noqa: F401 # isort: split
from anodev2 import Adjoint, CheckpointAdjoint, CoupledODEBlock, ODEBlock, ReactionDiffusionAdvection, ReversibleAdjoint
from anodev2.models import MODELS
from options import Count, OnDevice, script
from ranks import choose_device
from runs import RunError


class Branch(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(dropout)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv2(self.dropout(torch.relu(self.norm(self.conv1(z)))))


def gradients(block: nn.Module, z: Tensor, cast: bool = False) -> list[Tensor]:
    """Of the input and the parameters, then the buffers, after one step from a fixed seed."""
    block, z = copy.deepcopy(block), z.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast(z.device.type, torch.bfloat16, cast, cache_enabled=False):
        loss = block(z).square().mean()
    loss.backward()
    tensors = [z.grad, *(p.grad for p in block.parameters()), *block.buffers()]
    return [tensor.detach().double().cpu() for tensor in tensors if tensor is not None]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative distance over the tensors that are not nothing but round-off."""
    scale = max(b.norm().item() for b in expected)
    return max(((a - b).norm() / max(b.norm().item(), 1e-6 * scale)).item() for a, b in zip(found, expected, strict=True))


def milliseconds(models: list[nn.Module], x: Tensor, rounds: int) -> list[float]:
    """Median time of a training step's forward and backward for each model, measured round robin."""

    def once(model: nn.Module) -> float:
        begin = time.perf_counter()
        nn.functional.cross_entropy(model(x), torch.arange(len(x), device=x.device) % 10).backward()
        if x.device.type != "cpu":
            torch.accelerator.synchronize()
        return (time.perf_counter() - begin) * 1e3

    times = [[once(model) for model in models] for _ in range(rounds + 2)][2:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


@dataclass(frozen=True)
class Config(OnDevice):
    """The claims about gradients, checked on an accelerator."""

    rounds: Count = 9
    """of the times, which are medians"""


def main(device: str, rounds: int) -> None:
    failed = measure(choose_device(device), rounds)
    if failed:
        raise RunError(f"too far: {'; '.join(failed)}")


def measure(device: torch.device, rounds: int) -> list[str]:
    """Prints the tables; returns what lies beyond its bound."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {device}\n\n| check | relative distance | bound |\n|---|---|---|"
    )

    failed: list[str] = []

    def row(what: str, value: float, bound: float) -> None:
        print(f"| {what} | {value:.1e} | {bound:.0e} |", flush=True)
        if not value <= bound:
            failed.append(what)

    torch.manual_seed(0)
    z = torch.randn(4, 8, 16, 16)
    coupled = CoupledODEBlock(Branch(), ReactionDiffusionAdvection(0.1, 0.2), steps=5)
    row(
        "float64, against the CPU",
        distance(gradients(coupled.double().to(device), z.double().to(device)), gradients(coupled.double().cpu(), z.double())),
        1e-10,
    )
    for what, branch, cast, bound in [
        ("plain", Branch(), False, 1e-5),
        ("dropout", Branch(0.5), False, 1e-5),
        ("dropout under autocast", Branch(0.5), True, 1e-5),
    ]:
        ends = [
            gradients(ODEBlock(branch, steps=5, adjoint=adjoint).to(device), z.to(device), cast) for adjoint in ("checkpoint", "direct")
        ]
        row(f"{what}, against direct", distance(*ends), bound)

    ways: dict[str, Adjoint] = {
        "slots=2": CheckpointAdjoint(slots=2),
        "memory=2MB": CheckpointAdjoint(memory="2MB"),
        "offload": CheckpointAdjoint(offload="cpu"),
        "offload, slots=2": CheckpointAdjoint(slots=2, offload="cpu"),
        "reversible": ReversibleAdjoint(),
    }
    for what, adjoint in ways.items():
        block = ODEBlock(Branch().double(), steps=7, adjoint=adjoint)
        here = gradients(block, z.double())  # before the block moves
        row(f"{what}, float64, against the CPU", distance(gradients(block.to(device), z.double().to(device)), here), 1e-9)

    print("\n| network | ms, checkpoint | ms, direct | checkpoint / direct |\n|---|---|---|---|")
    x = torch.randn(128 if device.type != "cpu" else 8, 3, 32, 32, device=device)
    for network, make in MODELS.items():
        models = [make(block="coupled", adjoint=adjoint).to(device) for adjoint in ("checkpoint", "direct")]
        first, second = milliseconds(models, x, rounds)
        print(f"| {network} | {first:.1f} | {second:.1f} | {first / second:.2f} |", flush=True)
    return failed


if __name__ == "__main__":
    script(main, __doc__, Config)
