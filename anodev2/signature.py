"""How a user's function is called: its signature, and the counters of steps and stages that it wants."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

Counters = dict[str, int]


def signature_of(func: Callable[..., Any]) -> inspect.Signature | None:
    """The signature ``func`` is called with (a module's is that of ``forward``); None where Python knows none."""
    try:
        return inspect.signature(_called(func))
    except (TypeError, ValueError):
        return None


def takes(func: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    signature = signature_of(func)
    return signature is not None and name in signature.parameters


def uncompiled(func: Any) -> Any:
    """The module inside torch.compile(module)."""
    while isinstance(inside := getattr(func, "_orig_mod", None), nn.Module):
        func = inside
    return func


def _called(func: Callable[..., Any]) -> Callable[..., Any]:
    func = uncompiled(func)
    return func.forward if isinstance(func, nn.Module) else func


class CountedCall:
    """Call ``func(*args)``, with ``step`` and ``stage`` where it has keyword-only parameters of these names."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        self.names = _counters_wanted(func)

    def counters(self, step: int, stage: int, backwards: bool = False) -> Counters:
        """The keyword arguments that func wants."""
        return {name: value for name, value in (("step", step), ("stage", stage), ("backwards", backwards)) if name in self.names}

    def check(self, *args: Any) -> None:
        """TypeError where func cannot be called with so many arguments."""
        signature = signature_of(self.func)
        try:
            if signature is not None:
                signature.bind(*args, **self.counters(0, 0))
        except TypeError as error:
            call = ", ".join(["t", "y", *(f"args[{i}]" for i in range(len(args) - 2))])
            raise TypeError(f"func must be callable as func({call}), got func{signature}: {error}") from None

    def __call__(self, *args: Any, step: int, stage: int, backwards: bool = False) -> Any:
        return self.func(*args, **self.counters(step, stage, backwards)) if self.names else self.func(*args)


def _counters_wanted(func: Callable[..., Any]) -> set[str]:
    names = getattr(func, "counters_wanted", None)  # a wrapper that takes both may know that what it wraps takes none
    if names is not None:
        return set(names)
    called = _called(func)
    function = getattr(called, "__func__", called)
    code = getattr(function, "__code__", None)
    if code is not None and getattr(function, "__wrapped__", None) is None:  # inspect does not go through torch.compile from Python 3.13 on
        return {"step", "stage"} & set(code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount])
    signature = signature_of(func)
    parameters = signature.parameters.values() if signature is not None else ()
    return {"step", "stage"} & {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
