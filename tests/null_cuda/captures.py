"""Which training steps can be captured in a CUDA graph, and what the device refuses meanwhile; rows are the names of cases."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch

from tests.null_cuda.launches import ADJOINTS, network, training_step
from tests.null_cuda.told import line_in, told
from tests.null_cuda.waits import CASES as WAITING
from tests.null_cuda.waits import DYNAMICS


def trained(*words: str) -> Callable[[], Callable[[], object]]:
    """A training step of ResNet-4: network, loss, gradients and optimiser."""
    return lambda: training_step(network("resnet4", *words), 8)


CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "residual": trained("residual"),
    **{f"{block} {adjoint}": trained(block, adjoint) for block in ("ode", "coupled") for adjoint in ADJOINTS},
    **{f"{name} {adjoint}": WAITING[f"block {name} {adjoint}"] for name in DYNAMICS for adjoint in ("direct", "checkpoint")},
}


def failures(step: Callable[[], object]) -> list[str]:
    """What hinders the capture of a step, which has been done before in a stream of its own."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with told() as seen:
        try:
            with torch.cuda.graph(graph):
                step()
        except Exception as error:
            raised = line_in(traceback.extract_tb(error.__traceback__))
            return seen.refused or [f"{type(error).__name__}: {str(error).splitlines()[0]} at {raised}"]
    with told() as replayed:
        graph.replay()
    assert replayed.launched["launch graph"] == 1 and replayed.launches <= 3  # seed and offset of random numbers
    return seen.refused


def answer(row: str) -> list[str]:
    return failures(CASES[row]())
