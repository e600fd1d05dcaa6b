"""What a sequence costs FastWeights against a loop of einsums: python benchmarks/fast_weights_speed.py [--device cpu]

Prints a Markdown table: the time of a pass forward and backward of DeltaNet's recursion, 32 sequences of 64 tokens of size 32, by the
layer with each adjoint over that of the same recursion written by hand, weights of all tokens read in both. All are measured in one
run, in turn; a figure is the median of the ratios of the rounds, of processor time on a CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

import scripts  # noqa: F401 # isort: split
from anodev2 import CheckpointAdjoint, DeltaRule, DirectAdjoint, FastWeights
from options import OnDevice, Seed, script
from ranks import choose_device

BATCH, LENGTH, DIM, ROUNDS = 32, 64, 32, 25


def by_hand(layer: FastWeights, x: Tensor) -> Tensor:
    keys, values = (part.unbind(1) for part in layer.pairs(x))
    queries, rate = normalize(layer.query(x), dim=-1).unbind(1), layer.rule.rate("weight")
    w, outputs = layer.memory.get_parameter("weight").expand(BATCH, DIM, DIM), []
    for key, value, query in zip(keys, values, queries, strict=True):
        w = w + rate * torch.einsum("bo,bi->boi", value - torch.einsum("bi,boi->bo", key, w), key)
        outputs.append(torch.einsum("boi,bi->bo", w, query))
    return torch.stack(outputs, 1)


def timed(call: Callable[[], Tensor], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    call().square().sum().backward()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


@dataclass(frozen=True)
class Options(OnDevice):
    seed: Seed = 0
    """of the sequences and weights"""


def main(device: str = "cpu", seed: int = 0, rounds: int = ROUNDS) -> dict[str, float]:
    torch.manual_seed(seed)
    place = choose_device(device)
    x = torch.randn(BATCH, LENGTH, DIM, device=place, requires_grad=True)
    layer = FastWeights(DIM, rule=DeltaRule(rate=0.5)).to(place)
    calls: dict[str, Callable[[], Tensor]] = {"by hand": lambda: by_hand(layer, x)}
    for name, adjoint in (("direct", DirectAdjoint()), ("checkpoint", CheckpointAdjoint())):

        def run(adjoint: DirectAdjoint | CheckpointAdjoint = adjoint) -> Tensor:
            layer.adjoint = adjoint
            return layer(x)

        calls[name] = run
    assert place.type != "cpu" or torch.equal(by_hand(layer, x), layer(x))
    times = [{name: timed(call, place) for name, call in calls.items()} for _ in range(rounds + 3)][3:]
    found = {name: statistics.median(row[name] / row["by hand"] for row in times) for name in calls if name != "by hand"}
    print("| adjoint | forward and backward, against the loop by hand |\n|---|---|")
    for name, ratio in found.items():
        print(f"| {name} | {ratio:.2f} |")
    return found


if __name__ == "__main__":
    script(main, __doc__, Options)
