"""Inference time of unrolled networks against the same layers written by hand: python benchmarks/unrolled_speed.py [--device cpu]

Prints a Markdown table: for ResNet-4 with an ODE block and with a coupled block, the median times of a forward pass of the network
as trained (with its solver), unrolled, as a loop by hand over the same f, and written by hand without f, its layers one after the
other; and the ratios of unrolled to the last two, eager and exported to onnxruntime.
All are measured in one run, one call of each per round in random order; a ratio is the median of those of the rounds.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import scripts  # noqa: F401 # isort: split
from anodev2 import unroll
from anodev2.models import MODELS
from options import OnDevice, script
from ranks import choose_device

STEPS = 5


class HandWritten(nn.Module):
    """ResNet-4 with five Euler steps, as one would write it: z = z + h BN conv relu BN conv z, h = 1/5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv1 = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(STEPS))
        self.norm1 = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(STEPS))
        self.conv2 = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(STEPS))
        self.norm2 = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(STEPS))
        self.pool, self.linear = nn.AvgPool2d(8), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.stem_norm(self.stem(x)))
        for conv1, norm1, conv2, norm2 in zip(self.conv1, self.norm1, self.conv2, self.norm2, strict=True):
            z = torch.add(z, norm2(conv2(torch.relu(norm1(conv1(z))))), alpha=1 / STEPS)
        return self.linear(torch.flatten(self.pool(torch.relu(z)), 1))


class Loop(nn.Module):
    """An unrolled block's f, or its copies, in a loop by hand."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        f = block.get_submodule("f")
        self.f = f if isinstance(f, nn.ModuleList) else nn.ModuleList([f] * STEPS)

    def forward(self, z: Tensor) -> Tensor:
        for step, f in enumerate(self.f):
            z = torch.add(z, f(step / STEPS, z, step=step), alpha=1 / STEPS)
        return z


def by_hand(plain: nn.Module) -> HandWritten:
    """The hand-written network with the weights of an unrolled resnet4 of five Euler steps, norms per step."""
    hand = HandWritten().eval()
    source = plain.state_dict()
    copies = [f"3.f.{step}" if f"3.f.{step}.conv1.weight" in source else "3.f" for step in range(STEPS)]
    names = {"stem.": "0.", "stem_norm.": "1.", "linear.": "7."}
    for step, f in enumerate(copies):
        names |= {f"{conv}.{step}.": f"{f}.{conv}." for conv in ("conv1", "conv2")}
        names |= {f"{norm}.{step}.": f"{f}.{norm}.{step}." for norm in ("norm1", "norm2")}
    renamed = {new + name.removeprefix(old): value for new, old in names.items() for name, value in source.items() if name.startswith(old)}
    hand.load_state_dict(renamed)
    return hand.to(next(plain.parameters()).device)


def onnx_session(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward pass in onnxruntime on one thread; ``x`` is bound once."""
    import onnxruntime

    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def milliseconds(calls: list[Callable[[], object]], device: torch.device, rounds: int) -> list[list[float]]:
    """Times of each call, one of each per round in an order drawn anew: what runs before a call moves its time."""
    times: list[list[float]] = [[] for _ in calls]
    draw = random.Random(0)
    for count in range(rounds + 5):
        for place in draw.sample(range(len(calls)), len(calls)):
            begin = time.perf_counter()
            calls[place]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if count >= 5:
                times[place].append((time.perf_counter() - begin) * 1e3)
    return times


def row(title: str, times: list[list[float]]) -> None:
    """Medians of (solver,) unrolled, loop and layers, and the medians over the rounds of unrolled / loop and unrolled / layers."""
    medians = [f"{statistics.median(column):.3f}" for column in times]
    unrolled, *hands = times[-3:]
    ratios = [f"{statistics.median(a / b for a, b in zip(unrolled, hand, strict=True)):.3f}" for hand in hands]
    print(f"| {title} | {' | '.join(['-'] * (4 - len(medians)) + medians + ratios)} |", flush=True)


@torch.no_grad()
def main(device: str) -> None:
    measure(choose_device(device))


def measure(device: torch.device) -> None:
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {where}; ms per forward pass, medians\n")
    print("| resnet4, 5 Euler steps | with solver | unrolled | loop over f | layers | unrolled / loop | unrolled / layers |")
    print("|---|---|---|---|---|---|---|")
    for block in ("ode", "coupled"):
        network = MODELS["resnet4"](block=block).eval().to(device)
        plain = unroll(network)
        loop = nn.Sequential(*(Loop(part) if place == 3 else part for place, part in enumerate(plain.children()))).eval()
        models = [plain, loop, by_hand(plain)]
        for batch, rounds in ((1, 600), (32, 60)):
            x = torch.randn(batch, 3, 32, 32, device=device)
            assert all(torch.allclose(model(x), network(x), rtol=1e-5, atol=1e-5) for model in models)
            calls: list[Callable[[], object]] = [lambda m=m, x=x: m(x) for m in (network, *models)]
            row(f"{block}, batch {batch}, eager", milliseconds(calls, device, rounds))
            if device.type == "cpu":
                row(f"{block}, batch {batch}, onnxruntime", milliseconds([onnx_session(m, x) for m in models], device, rounds))


if __name__ == "__main__":
    script(main, __doc__, OnDevice)
