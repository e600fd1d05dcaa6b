"""The processes that train one network together: torchrun's ranks, or this process alone."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runs import RunError, in_words

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``size``; alone, every method does nothing."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def parallel(self, model: Any) -> Any:
        """The model with its gradients averaged over the ranks; each gathers buffers of its own, see ``share``."""
        if self.size == 1:
            return model
        # of a coefficient that is one number: its gradient is a column of a table, which costs nothing to read
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        network = nn.parallel.DistributedDataParallel(model)
        network.broadcast_buffers = False  # as an argument it is told to be of the past by torch 2.14, and what replaces it is new there
        return network

    def averaging(self, network: Any, now: bool) -> AbstractContextManager[None]:
        """Around forward and backward of such a model: whether the gradients gathered so far are averaged at the end of it."""
        return nullcontext() if self.size == 1 or now else network.no_sync()

    def total(self, *values: Tensor) -> list[float]:
        """Each value summed over the ranks."""
        stack = torch.stack([value.double() if self.device.type != "mps" else value.float() for value in values])
        if self.size > 1:
            dist.all_reduce(stack)
        return stack.tolist()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Every rank gets the first one's tensors (the BatchNorm statistics, which each gathers from its own images)."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, decide: Callable[[], T]) -> T:
        """What ``decide`` returns on the first rank, a plain object, or the RunError it raises there."""
        if self.size == 1:
            return decide()
        decided: list[Any] = [None, None]
        if self.first:
            try:
                decided[0] = decide()
            except RunError as error:
                decided[1] = error
        dist.broadcast_object_list(decided, 0)
        if decided[1] is not None:
            raise decided[1]
        return decided[0]


def processes() -> int:
    """How many torchrun started."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(name: str, patience: timedelta) -> Iterator[Ranks]:
    """The ranks torchrun started, on their devices; where one is lost the others end within ``patience`` and say so."""
    size, rank = processes(), int(os.environ.get("RANK", 0))
    device = choose_device(name, int(os.environ.get("LOCAL_RANK", 0)), size)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # shapes stay as they are: cuDNN tries its algorithms once for each
    if size == 1:
        yield Ranks(device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield Ranks(device, rank, size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        first = str(error).splitlines()[0]
        what = f"error: rank {rank} of {size} ends, another one is gone or has failed, see its message ({first})"
        print(f"{what}; what was interrupted continues with --resume", file=sys.stderr, flush=True)
        os._exit(1)  # an orderly end would wait for the lost one
    dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0, size: int = 1) -> torch.device:
    """``auto``: an accelerator where there is one; of several ranks each has its own."""
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and size > 1:
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise RunError(f"--device {name} cannot be used here ({in_words(error)}); try --device cpu") from None
    return device


def peak_memory(device: torch.device, *, reset: bool = False) -> float:
    """The most bytes since the last reset: of tensors on a GPU, else of the whole process (without resets outside Linux)."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024.0 * int(lines["VmHWM"].split()[0])
    except (OSError, KeyError):
        try:
            import resource
        except ImportError:  # Windows
            return 0.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
