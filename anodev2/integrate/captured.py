"""What a vector field can reach besides its arguments: modules, random generators, tensors.

Modules and generators have a state that a redone step must find as it was. The search follows what Python can see: module
attributes, closures, defaults, partials, bound methods, the globals a function names, and plain containers. What it cannot see
(a module behind a weak reference) is observed while the first step runs, see ``recording``.
"""

from __future__ import annotations

import dis
import types
from collections import ChainMap, UserDict, UserList, deque
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
HELD = ("_parameters", "_buffers", "_modules")  # a module's own, by their names
_OPAQUE = (str, bytes, int, float, complex, bool, type(None), types.ModuleType, torch.dtype, torch.device)
_PLAIN = frozenset(_OPAQUE)  # asked for first: most of what is met is one of these itself


_CachedFunction = type(lru_cache(len))


@dataclass
class Reachable:
    """Everything found, each object once; ``compiled``: whether something of torch.compile is among it."""

    tensors: list[Tensor] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    compiled: bool = False


def reachable(*roots: Any) -> Reachable:
    """Search breadth first from ``roots``."""
    queue, found = list(roots), Reachable()
    seen: set[int] = set()
    for item in queue:  # the queue grows while it is walked
        if type(item) in _PLAIN or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.tensors.append(item)
        elif isinstance(item, nn.Module):
            found.modules.append(item)
            found.compiled = found.compiled or _is_compiled(item)
            queue.extend(_inside_module(item))
        elif isinstance(item, torch.Generator):
            found.generators.append(item)
        elif not isinstance(item, _OPAQUE):
            found.compiled = found.compiled or _is_compiled(item)
            if len(queue) < LARGEST_WALK:
                queue.extend(_inside(item))
    return found


def _is_compiled(item: Any) -> bool:
    own = getattr(item, "__dict__", {})
    return "_torchdynamo_orig_callable" in own or "_orig_mod" in own.get("_modules", ()) or own.get("_compiled_call_impl") is not None


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, (dict, list, tuple, set, frozenset, deque)):
        if len(item) <= LARGEST_CONTAINER:
            yield from item.values() if isinstance(item, dict) else item
    elif isinstance(item, (UserDict, UserList, ChainMap)):
        yield from vars(item).values()
    elif isinstance(item, types.FunctionType):
        yield from _inside_function(item)
    elif isinstance(item, types.MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, partial):
        yield from (item.func, item.args, item.keywords)
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
        yield type(item)


def _inside_module(module: nn.Module) -> Iterator[Any]:
    own = vars(module)
    for name in HELD:
        yield from own[name].values()
    for name, value in own.items():
        if (name not in MODULE_FIELDS or value) and type(value) not in _PLAIN and name not in HELD:
            yield value
    yield type(module)


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
    return is_library(getattr(thing, "__module__", None) or "")


def is_library(module: str) -> bool:
    """Whether code of the module is known to reach nothing by itself."""
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
