"""What the null device must notice; rows are the names of mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.null_cuda.captures import failures


def answer(row: str) -> list[str]:
    x, before = torch.zeros(3, device="cuda"), torch.cuda.Event()
    before.record()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        inside = torch.cuda.current_stream()
    aside = next(stream for stream in (torch.cuda.Stream() for _ in range(99)) if stream != inside)  # they come round again

    def elsewhere(joins: bool) -> None:
        if joins:
            aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            x.add_(1)

    mistakes: dict[str, Callable[[], object]] = {
        "a number is read": lambda: x.sum().item(),
        "a copy from the host": lambda: x.copy_(torch.zeros(3)),
        "an event is asked for": lambda: before.query(),
        "work outside of the graph": lambda: elsewhere(joins=False),
        "work that is not waited for": lambda: elsewhere(joins=True),
    }
    return failures(mistakes[row])
