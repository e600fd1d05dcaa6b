"""Tables of known numbers, made once and kept where they are used, so that a GPU gets them once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .torch_private import in_tracing_mode, in_transform, no_dispatch_modes, no_transforms


def passing() -> bool:
    """Whether tensors made here are for a compiler, a tracer or a transform, and must not be kept."""
    return traced() or in_transform()


def traced() -> bool:
    """Whether operations are noted for a compiler or a tracer."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return watched or in_tracing_mode()


def kept(make: Callable[..., Tensor], *key: Any) -> Tensor:
    """make(*key), kept; under a compiler or a tracer it is made anew, and not kept."""
    return make(*key) if traced() else _made(make, *key)


@lru_cache(maxsize=4096)
def _made(make: Callable[..., Tensor], *key: Any) -> Tensor:
    with torch.inference_mode(False), no_dispatch_modes(), no_transforms():  # what is kept must serve everywhere, whoever comes first
        return make(*key)
