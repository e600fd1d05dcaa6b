"""What a vector field can reach besides its arguments: tensors that want gradients, modules, random generators.

A custom autograd Function only differentiates with respect to what it is handed, so all of it has to be found before
the solve. The search follows what Python can see: module attributes, closures, defaults, partials, bound methods, the
globals a function names, and plain containers. What it cannot see (a tensor behind a C extension) is caught in the
backward pass, where the recomputed graph of every step is compared with the list made here.
"""

from __future__ import annotations

import dis
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

# A data set that hangs on f somewhere must not be walked through at every solve; modules are looked into regardless.
LARGEST_WALK = 50_000
LARGEST_CONTAINER = 5_000
MODULE_FIELDS = frozenset(vars(nn.Module()))
_OPAQUE = (str, bytes, int, float, complex, bool, type(None), types.ModuleType, torch.dtype, torch.device)


_CachedFunction = type(lru_cache(len))


@dataclass
class Reach:
    """Everything found, each object once.

    ``leaves`` are leaf tensors that require grad (parameters among them); ``inner`` are results of earlier operations
    that do; ``constants`` are those that do not. ``modules`` own buffers or a training flag; ``generators`` are private
    sources of random numbers.
    """

    leaves: list[Tensor] = field(default_factory=list)
    inner: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)


def reach(*roots: Any) -> Reach:
    """Search breadth first from ``roots``."""
    with torch._C.DisableTorchFunction():  # a torch function mode (that of a solve around this one) would show stand-ins
        return _search(list(roots))


def _search(queue: list[Any]) -> Reach:
    found = Reach()
    seen: set[int] = set()
    for item in queue:  # the queue grows while it is walked
        if isinstance(item, _OPAQUE) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            (found.constants if not item.requires_grad else found.leaves if item.is_leaf else found.inner).append(item)
        elif isinstance(item, torch.Generator):
            found.generators.append(item)
        else:
            if isinstance(item, nn.Module):
                found.modules.append(item)
            if len(queue) < LARGEST_WALK or isinstance(item, nn.Module):
                queue.extend(_inside(item))
    return found


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, (dict, list, tuple, set, frozenset, deque)):
        if len(item) <= LARGEST_CONTAINER:
            yield from item.values() if isinstance(item, dict) else item
    elif isinstance(item, types.FunctionType):
        yield from _inside_function(item)
    elif isinstance(item, types.MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, partial):
        yield from (item.func, item.args, item.keywords)
    elif isinstance(item, nn.Module):
        yield from item.parameters(recurse=False)
        yield from item.buffers(recurse=False)
        yield from item.children()
        yield from (value for name, value in vars(item).items() if value is not None and (name not in MODULE_FIELDS or value))
        yield from _inside_class(type(item))
    elif isinstance(item, (classmethod, staticmethod)):
        yield item.__func__
    elif isinstance(item, property):
        yield item.fget
    elif isinstance(item, type):
        yield from _inside_class(item)
    elif isinstance(item, _CachedFunction):
        yield item.__wrapped__
    elif not _is_library(type(item)) or type(item).__module__.partition(".")[0] == "anodev2":  # whose instances hold what users gave
        yield from vars(item).values() if hasattr(item, "__dict__") else ()
        slots = (name for base in type(item).__mro__ for name in getattr(base, "__slots__", ()))
        yield from (getattr(item, name, None) for name in slots)
        yield from _inside_class(type(item))


def _inside_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is assigned later
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    if not _is_library(function):
        yield from (function.__globals__[name] for name in _global_names(function.__code__) if name in function.__globals__)


@lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Names that ``code``, and functions made in it, read from the module; ``co_names`` has attributes too."""
    own = {instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _global_names(const)]
    return tuple(sorted(own.union(inner)))


def _inside_class(cls: type) -> Iterator[Any]:
    for base in cls.__mro__:
        if not _is_library(base):
            yield from vars(base).values()


def _is_library(thing: Any) -> bool:
    """Whether its code is known to reach nothing by itself."""
    module = getattr(thing, "__module__", None) or ""
    return module.partition(".")[0] in _LIBRARIES


_LIBRARIES = {"torch", "torchvision", "numpy", "einops", "anodev2"}
_LIBRARIES |= {
    "builtins",
    "functools",
    "typing",
    "collections",
    "abc",
    "fractions",
    "numbers",
    "inspect",
    "enum",
    "dataclasses",
    "warnings",
}
