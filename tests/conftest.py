from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import lru_cache

# before torch is imported, here and in the processes that tests start: those that share the cores take twice as long with threads
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from tests.null_cuda.device import NullDevice, why_not

torch.set_num_threads(1)  # where torch had been imported
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """What our functions have kept from earlier tests is forgotten."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("anodev2", "pde"):
            for value in list(vars(module).values()):
                if isinstance(value, type(lru_cache(len))):
                    value.cache_clear()
    yield


@pytest.fixture(scope="session")
def null_device(tmp_path_factory: pytest.TempPathFactory) -> NullDevice:
    """A CUDA device without a device, built once for all workers."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "null_cuda"
    folder.mkdir(exist_ok=True)
    device = NullDevice(folder)
    device.build()
    return device
