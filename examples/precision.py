"""In which precision a device trains fast: what ``--precision auto`` stands for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch

GAIN = 1.5  # times as fast: less is not worth 16 bits fewer
ROUNDS = 3


def chosen(device: torch.device, step: Callable[[str], object]) -> tuple[Literal["float32", "bfloat16"], str]:
    """bfloat16 or float32 for a training step ``step(precision)``, and why.

    A GPU with units for bfloat16 takes it. On a processor that has instructions for it the step decides, as they do not help every one:
    bfloat16 if it is ``GAIN`` times as fast, by the median of rounds in which both take turns.
    """
    if not has_bfloat16(device):
        return "float32", "as this device has no arithmetic of bfloat16"
    if device.type != "cpu":
        return "bfloat16", "for which this device has units of its own"
    rounds = [(seconds(step, "float32"), seconds(step, "bfloat16")) for _ in range(1 + ROUNDS)][1:]
    gain = statistics.median(plain / cast for plain, cast in rounds)
    return "bfloat16" if gain >= GAIN else "float32", f"as a step in bfloat16 was {gain:.2f} times as fast as in float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for numbers of bfloat16 (avx512_bf16, AMX, ...), rather than casts around those of float32."""
    if device.type == "cpu":
        return any(bool(there) for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def seconds(step: Callable[[str], object], precision: str) -> float:
    began = time.process_time()
    step(precision)
    return time.process_time() - began
