"""A training step as one launch: recorded in a CUDA graph after a few that warm up, and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM = 3  # steps taken as they are: momentum begins, tables are made, cuDNN chooses its algorithms
Step = Callable[..., tuple[Tensor, ...]]


class Replayed:
    """step(name=tensor, ...) of always the same shapes, the optimizer's among it, replayed with other tensors and other learning rates.

    In a replay no Python runs: a number that ``step`` counts outside of the device stands still, all but the learning rates is as it was
    when the step was recorded. What it returns lasts until the next step.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        self.step, self.optimizer, self.taken = step, optimizer, 0

    def __call__(self, **given: Tensor) -> tuple[Tensor, ...]:
        self.taken += 1
        if self.taken <= WARM:
            return aside(self.step, given)
        if self.taken == WARM + 1:
            self._record(given)
        for name, tensor in given.items():
            self.given[name].copy_(tensor)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.replay()
        return self.found

    def _record(self, given: dict[str, Tensor]) -> None:
        self.given = {name: tensor.clone() for name, tensor in given.items()}
        device = next(iter(given.values())).device
        self.rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        with self._rates_as_tensors():
            self.replay, self.found = recorded(self.step, self.given)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """A number would be in the graph for good. Outside of it rates are numbers, for schedules and checkpoints."""
        groups = self.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number


def aside(step: Step, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The step taken in a stream of its own, as it is recorded in one."""
    stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        found = step(**given)
    here.wait_stream(stream)
    return found


def recorded(step: Step, given: dict[str, Tensor]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """What takes the step again, and where its results then are; the step itself is not yet taken."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(**given)
    return graph.replay, found
