"""Coefficients of equations: a number, a tensor, or a function of (t, x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anodev2.signature import signature_of

from .numbers import keep, readable

Coefficient = float | Tensor | Callable[[Any, Tensor], Any]
Diffusivity = Coefficient | Callable[[Any, Tensor, Tensor], Any]


def attach(module: nn.Module, name: str, value: Diffusivity, n: int, of_field: bool = False) -> None:
    """Make a coefficient of fields (..., n) an attribute.

    Raises:
        TypeError: neither a number, a tensor, nor a function of (t, x), or, ``of_field``, of (t, x, u).
        ValueError: a number or tensor that is not finite, or a tensor of another number of points.
    """
    if not (isinstance(value, int | float | Tensor) or callable(value)):
        raise TypeError(f"{name}={value!r} must be a number, a tensor (broadcast against (..., n)) or a function of (t, x)")
    if callable(value) and not isinstance(value, Tensor):
        _need_arguments(name, value, of_field)
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} must be finite")
    if isinstance(value, Tensor) and readable(value) and not value.detach().isfinite().all():
        raise ValueError(f"{name} of shape {tuple(value.shape)} must be finite, and has values that are inf or nan")
    if isinstance(value, Tensor) and value.ndim and value.shape[-1] not in (1, n):
        raise ValueError(f"{name} of shape {tuple(value.shape)} must have {n} values in its last axis, one per point, or 1")
    keep(module, name, value)


class Formula(nn.Module):
    """A function of coefficients as one coefficient: constant where these are, and live where they are trained.

    Args:
        n: points of the grid.
        function: of the values of ``given``, by name.
        given: coefficients.
    """

    def __init__(self, n: int, function: Callable[..., Any], **given: Coefficient) -> None:
        super().__init__()
        for name, value in given.items():
            attach(self, name, value, n)
        self.function, self.given = function, tuple(given)

    @property
    def constant(self) -> bool:
        return all(is_constant(getattr(self, name)) for name in self.given)

    def forward(self, t: Any, x: Tensor) -> Any:
        return self.function(*(evaluate(getattr(self, name), t, lambda: x, x) for name in self.given))


def formula(n: int, function: Callable[..., Any], **given: Coefficient) -> Coefficient:
    """The function of the coefficients: a number where all are."""
    made = Formula(n, function, **given)
    return made if any(not is_number(value) for value in given.values()) else function(*given.values())


def leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """What a coefficient is made of, with names: of a formula what it was given, else itself."""
    if isinstance(value, Formula):
        return [found for inner in value.given for found in leaves(inner, getattr(value, inner))]
    return [(name, value)]


def shown(value: Any) -> str:
    """A coefficient in a few characters."""
    if isinstance(value, Tensor):
        kind = type(value).__name__
        return f"{kind}({value.item():g})" if value.ndim == 0 and readable(value) else f"{kind}{list(value.shape)}"
    return f"{value:g}" if isinstance(value, int | float) else getattr(value, "__name__", type(value).__name__)


def reads_field(value: Any) -> bool:
    """Whether it is a function (t, x, u): three arguments without a default, the third perhaps called u with one; or any number."""
    signature = None if isinstance(value, Tensor) or not callable(value) else signature_of(value)
    if signature is None:  # also one that Python cannot look into
        return False
    given = signature.parameters.values()
    placed = [part for part in given if part.kind <= part.POSITIONAL_OR_KEYWORD]
    needed = sum(part.default is part.empty for part in placed)
    may = any(part.kind is part.VAR_POSITIONAL for part in given) or [part.name for part in placed[2:3]] == ["u"]
    return needed == 3 or (needed < 3 and may)


def _need_arguments(name: str, function: Callable[..., Any], of_field: bool) -> None:
    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind(*range(3 if of_field and reads_field(function) else 2))
    except TypeError:
        wanted = "(t, x) or (t, x, u)" if of_field else "(t, x)"
        cure = "" if of_field else "; what depends on the field is a Source(grid, f) or the diffusivity of a Diffusion"
        raise TypeError(f"{name} must be a function of {wanted}, got one of {signature}{cure}") from None


def is_number(value: Diffusivity) -> bool:
    """A Python number."""
    return isinstance(value, int | float)


def is_zero(value: Diffusivity) -> bool:
    """The number 0; a tensor that happens to be 0 is not, it may be learned."""
    return isinstance(value, int | float) and value == 0


def is_constant(value: Diffusivity) -> bool:
    """The same at all times and points (it may differ between fields: a tensor of shape (..., 1))."""
    if isinstance(value, Formula):
        return value.constant
    return is_number(value) or (isinstance(value, Tensor) and (value.ndim == 0 or value.shape[-1] == 1))


def evaluate(value: Any, t: Any, x: Callable[[], Tensor], u: Tensor) -> Any:
    """The coefficient at time t and the points x(), in the precision of u: a number or a tensor."""
    if callable(value) and not isinstance(value, Tensor):
        value = value(t, x())
    if isinstance(value, Tensor) and value.dtype != u.dtype:
        return value.to(u.dtype)
    return value


def over_speed(v: Tensor, c: Any) -> Tensor:
    """v / |c|, and 0 with the slope 0 where c is 0: nothing moves there."""
    return v / (torch.where(c == 0, math.inf, c.abs()) if isinstance(c, Tensor) else abs(c) or math.inf)


def positive(value: Any) -> Any:
    """max(value, 0), with the slope 1 at 0: a learned coefficient that has become negative counts as 0, and has no gradient there."""
    return torch.where(value < 0, 0.0, value) if isinstance(value, Tensor) else max(value, 0.0)


def need_at_least_0(name: str, value: Diffusivity) -> None:
    """ValueError for a number or a tensor below 0."""
    least = value
    if isinstance(value, Tensor) and value.numel() > 0 and readable(value):
        least = value.min().item()
    if isinstance(least, int | float) and least < 0:
        raise ValueError(f"{name}={least:g} must be at least 0: negative diffusion grows without bound")


def need_positive(name: str, value: Coefficient) -> None:
    """ValueError for a number or a tensor that is 0 or below anywhere."""
    least = value
    if isinstance(value, Tensor) and value.numel() > 0 and readable(value):
        least = value.min().item()
    if isinstance(least, int | float) and not least > 0:
        raise ValueError(f"{name}={least:g} must be positive")


def need_uniform(name: str, value: Any, n: int) -> None:
    """TypeError for a function, ValueError for a tensor that varies along x."""
    if callable(value) and not isinstance(value, Tensor):
        raise TypeError(f"{name} must be the same everywhere, a number or a tensor of shape () or (..., 1), got a function")
    if isinstance(value, Tensor) and value.ndim and value.shape[-1] != 1:
        cure = f"{name}[..., None]" if value.shape[-1] != n else f"{name}.mean()"
        raise ValueError(f"{name} of shape {tuple(value.shape)} must be the same everywhere, of shape () or (..., 1); give {cure} say")


def as_coefficient(value: float | tuple[float, ...]) -> float | Tensor:
    """A number, or the values at the points as a tensor."""
    return torch.tensor(value, dtype=torch.float64, device="cpu") if isinstance(value, tuple) else value


def varies_in_time(value: Any) -> bool:
    """Whether it is a function, of t among others."""
    return callable(value) and not isinstance(value, Tensor)


def extremes(value: Any, x: Tensor, t: float = 0.0) -> list[float]:
    """Smallest and largest value over points (and fields) at time t."""
    if isinstance(value, int | float):
        return [float(value)]
    with torch.no_grad():
        found = torch.as_tensor(evaluate(value, torch.full_like(x.reshape(-1)[0], t), lambda: x, x), dtype=x.dtype, device=x.device)
        return sorted({found.min().item(), found.max().item()})
