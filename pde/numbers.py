"""Numbers as tensors, and tensors as numbers where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anodev2.tables import kept
from anodev2.torch_private import in_dispatch_mode, in_fake_mode, in_tracing_mode, transformed

Rows = tuple[tuple[float, ...], ...]


def present(*tensors: Tensor) -> bool:
    """Whether these hold numbers, unlike fake, meta and traced tensors."""
    return not (in_fake_mode() or torch.jit.is_tracing() or any(tensor.is_meta for tensor in tensors))  # pyright: ignore[reportPrivateImportUsage]


def readable(*tensors: Tensor) -> bool:
    """Whether numbers can be read out of tensors here without waiting for a device: not while compiling or tracing, nor under a
    transform of torch.func or a mode."""
    return (
        not (torch.compiler.is_compiling() or transformed() or in_dispatch_mode())
        and present(*tensors)
        and all(tensor.is_cpu for tensor in tensors)
    )


def lasting() -> bool:
    """Whether what is made here of plain numbers serves everywhere; a mode that only watches operations has nothing to see in it."""
    return not (torch.compiler.is_compiling() or transformed() or in_tracing_mode()) and present()


def as_tensor(value: Any) -> Tensor:
    """A tensor as it is, where it is, whatever the default device."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value)


def constant(rows: Rows, like: Tensor) -> Tensor:
    """A matrix of known numbers with the dtype and device of ``like``; kept, so that a GPU gets it once."""
    return kept(_matrix, rows, like.dtype, like.device)


def _matrix(rows: Rows, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=device)


def keep(module: nn.Module, name: str, value: Any) -> None:
    """Make a value an attribute: parameters and modules are registered, tensors without a graph move with the module."""
    if isinstance(value, Tensor) and not (value.requires_grad or isinstance(value, nn.Parameter)):
        module.register_buffer(name, value, persistent=False)
    else:
        setattr(module, name, value)


class Seen:
    """What a tensor was: equal to what it is later if nothing has changed it, which on a CPU its numbers tell, elsewhere its version."""

    def __init__(self, tensor: Tensor) -> None:
        self.place = (tensor._version, tensor.dtype, tensor.device, tensor.shape)
        plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
        self.numbers = tensor.detach().clone() if plain and tensor.is_cpu else None  # .data, .numpy() and the like leave the version
        self.place += (tensor.data_ptr(),) if plain and self.numbers is None else ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Seen) or self.place != other.place:
            return False
        return self.numbers is None or other.numbers is None or torch.equal(self.numbers, other.numbers)


def same_key(a: Sequence[tuple[Any, ...]], b: Sequence[tuple[Any, ...]]) -> bool:
    """Of tuples that begin with what was given: the same object, or equal numbers."""
    return len(a) == len(b) and all((x[0] is y[0] or _same_number(x[0], y[0])) and x[1:] == y[1:] for x, y in zip(a, b, strict=True))


def _same_number(a: Any, b: Any) -> bool:
    return isinstance(a, int | float) and isinstance(b, int | float) and a == b
