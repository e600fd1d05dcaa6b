"""Tables of known numbers, made once and kept where they are used, so that a GPU gets them once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

_TRACING = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)


def kept(make: Callable[..., Tensor], *key: Any) -> Tensor:
    """make(*key), kept; under a compiler, a tracer or a transform it is made anew, and not kept."""
    passing = torch.compiler.is_compiling() or torch.jit.is_tracing() or peek_interpreter_stack() is not None  # pyright: ignore[reportPrivateImportUsage]
    return make(*key) if passing or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING) else _made(make, *key)


@lru_cache(maxsize=256)
def _made(make: Callable[..., Tensor], *key: Any) -> Tensor:
    with torch.inference_mode(False), _disable_current_modes():  # what is kept must serve everywhere, whoever comes first
        return make(*key)
