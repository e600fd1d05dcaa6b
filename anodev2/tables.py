"""Tables of known numbers, made once and kept where they are used, so that a GPU gets them once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch

from .torch_private import constant_for_compilers, entered_modes, in_tracing_mode, in_transform, known, no_dispatch_modes, no_transforms

T = TypeVar("T")


def passing() -> bool:
    """Whether tensors made here are for a compiler, a tracer or a transform, and must not be kept."""
    return traced() or in_transform()


def traced() -> bool:
    """Whether operations are noted for a compiler or a tracer."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return watched or in_tracing_mode()


def kept(make: Callable[..., T], *key: Any) -> T:
    """make(*key), kept; what is compiled takes it as an input; under a tracer it is made anew."""
    if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and (name := _name(make, *known(key))):
        return getattr(_TABLES, name)
    return make(*key) if traced() else _made(make, *key)


@lru_cache(maxsize=4096)
def _made(make: Callable[..., Any], *key: Any) -> Any:
    with torch.inference_mode(False), no_dispatch_modes(), no_transforms():  # what is kept must serve everywhere, whoever comes first
        return make(*key)


class _Tables:
    """Tables by name, as attributes: a compiler makes inputs of them, but sends numbers to a device in every call."""


_TABLES = _Tables()
_NAMES: dict[Any, str] = {}


@constant_for_compilers
def _name(make: Callable[..., Any], *key: Any) -> str:
    """Where what is compiled finds the table from now on; nowhere within a mode, as of fake tensors."""
    if entered_modes():
        return ""
    name = _NAMES.setdefault((make, key), f"table{len(_NAMES)}")
    setattr(_TABLES, name, _made(make, *key))
    return name
