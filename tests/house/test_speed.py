"""What benchmarks/speed compares, without its times: everybody computes the same gradients, and we hold no more bytes than the peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anodev2.gradients.schedule import redone_by
from benchmarks.speed.scaling import measured, slope
from benchmarks.speed.workloads import FIXED, OURS, WORKLOADS, prepare, scaling
from live_bytes import LiveBytes

ROOT = Path(__file__).parents[2]
INEXACT = "torchdiffeq adjoint"
ELSEWHERE = "torchdyn"  # not among what development needs


@pytest.mark.parametrize("name", ["conv, Euler, N = 5", "MLP, rk4, N = 10"])
def test_all_contenders_compute_the_same_gradients(name: str) -> None:
    exact = prepare(WORKLOADS[name], "plain loop")[0]()
    for contender in FIXED + OURS:
        if not contender.startswith("F") and contender not in (INEXACT, ELSEWHERE):
            found = prepare(WORKLOADS[name], contender)[0]()
            torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4, msg=lambda text, contender=contender: f"{contender}: {text}")
    if name.startswith("conv"):
        inexact = prepare(WORKLOADS[name], INEXACT)[0]()
        assert max(float((a - b).norm() / b.norm()) for a, b in zip(inexact, exact, strict=True)) > 0.01


def bytes_of(name: str, contender: str) -> int:
    run = prepare(WORKLOADS[name], contender)[0]
    run()
    with LiveBytes() as live:
        run()
    return live.peak


@pytest.mark.parametrize(
    ("name", "kernels"),  # how many more gradients of the kernel are held: those at all five times, for one product in the end
    [("conv, Euler, N = 5", 0), ("coupled block, configuration 1", 2), ("coupled block, configuration 2", 0)],
)
def test_no_more_bytes_are_held_than_by_hand(name: str, kernels: int) -> None:
    loop, per_step = bytes_of(name, "plain loop"), bytes_of(name, "torch checkpoint per step")
    little = 30_000 + kernels * 64 * 64 * 9 * 4  # samples of three states, and a generator's state
    assert bytes_of(name, "direct") <= loop + little
    assert bytes_of(name, "checkpoint") <= per_step + little < 0.85 * loop


@pytest.mark.slow
def test_memory_is_flat_for_fixed_slots_and_linear_for_the_rest() -> None:
    rows = measured([{"steps": steps} for steps in (16, 64, 256)], quick=True)
    found = {c: slope([16, 64, 256], [row["bytes"] for row in rows if row["contender"] == c]) for c in ("direct", "checkpoint", "8 slots")}
    assert abs(found["direct"] - 1) < 0.05 and 0.7 < found["checkpoint"] < 1.05 and abs(found["8 slots"]) < 0.15, (
        found
    )  # not 0: statistics of BatchNorm


def test_steps_redone_are_those_of_the_optimal_schedule() -> None:
    calls = []
    run = scaling("8 slots", steps=64)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: calls.append(module) if type(module).__name__ == "BasicBranch" else None
    )
    try:
        run()
    finally:
        hook.remove()
    assert len(calls) == 64 + redone_by(64, 8)


@pytest.mark.slow
def test_the_command_prints_bytes_and_gradients() -> None:
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--only", "configuration 2"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "| checkpoint | - | - |" in said and "| plain loop | - | - |" in said and "Left out" not in said
