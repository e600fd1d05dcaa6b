"""Places from which a vector field may get what it uses besides t and y: some that a search can see, some that it cannot.

A place is made around a value. ``get(*args)`` reads it, args being those that f was handed; ``put(value)`` replaces it where it can be
replaced. What must stay alive but must not be seen from f is held by ``alive``, a builtin method, which shows nobody its list.
"""

from __future__ import annotations

import array
import contextvars
import ctypes
import functools
import itertools
import threading
import types
import warnings
import weakref
from collections import ChainMap, UserDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEAF, TENSOR, MODULE, NUMBER, OBJECT = "leaf", "tensor or None", "module", "number", "object"
ANYTHING = (LEAF, TENSOR, MODULE, NUMBER, OBJECT)
REFERABLE = (LEAF, TENSOR, MODULE)


@dataclass
class Hidden:
    """A made place. ``once(make)``: what make() gave when it was first asked for; ``leaves``, ``state``: where they are not the value."""

    get: Callable[..., Any]
    put: Callable[[Any], object] | None = None
    args: tuple[Any, ...] = ()
    once: Callable[[Callable[[], Any]], Any] | None = None
    leaves: list[Tensor] | None = None
    state: nn.Module | None = None


@dataclass(frozen=True)
class Place:
    """``kinds`` of values that it can hold; ``seen``: the search for what f reaches finds it; ``attribute``: of a module, by name;
    ``own``: what f gets is more than the value, or depends on the thread."""

    make: Callable[[Any], Hidden]
    kinds: tuple[str, ...] = ANYTHING
    seen: bool = True
    attribute: bool = False
    own: bool = False


def other(value: Any) -> Any:
    """Something else that could stand in its place, as in another thread."""
    return 1.5 * value.detach() if isinstance(value, Tensor) else value + 1 if type(value) in (int, float) else value


class Box:
    def __init__(self, v: Any) -> None:
        self.v = v

    def read(self, *args: Any) -> Any:
        return self.v


class Slots:
    __slots__ = ("v",)

    def __init__(self, v: Any) -> None:
        self.v = v


@dataclass
class Record:
    v: Any


class Property:
    def __init__(self, v: Any) -> None:
        self._inside = v

    @property
    def v(self) -> Any:
        return self._inside

    @v.setter
    def v(self, new: Any) -> None:
        self._inside = new


class Cached:
    """``v`` is what ``make`` gave at first."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    @functools.cached_property
    def v(self) -> Any:
        return self.make()


class EasyDict(dict):
    __getattr__ = dict.__getitem__


Pair = namedtuple("Pair", "v w")
GLOBAL: Any = None


def attribute(owner: Any, name: str = "v") -> Hidden:
    return Hidden(lambda *args: getattr(owner, name), lambda new: setattr(owner, name, new))


def item(box: Any, key: Any) -> Hidden:
    return Hidden(lambda *args: box[key], lambda new: box.__setitem__(key, new))


def filled(owner: Any, v: Any) -> Any:
    owner.v = v
    return owner


def closure(v: Any) -> Hidden:
    def put(new: Any) -> None:
        nonlocal v
        v = new

    return Hidden(lambda *args: v, put)


def inner_function(v: Any) -> Hidden:
    def read() -> Any:
        return v

    return Hidden(lambda *args: read())


def of_the_file(v: Any) -> Hidden:
    def put(new: Any) -> None:
        global GLOBAL
        GLOBAL = new

    put(v)
    return Hidden(lambda *args: GLOBAL, put)


def default(v: Any) -> Hidden:
    def get(*args: Any, v: Any = v) -> Any:
        return v

    return Hidden(get, lambda new: setattr(get, "__kwdefaults__", {"v": new}))


def behind_a_builtin(v: Any) -> Hidden:
    box = {"v": v}
    read, write = box.get, box.update
    return Hidden(lambda *args: read("v"), lambda new: write(v=new))


def weak(v: Any) -> Hidden:
    alive = [v].append
    ref: Callable[[], Any] = (lambda: None) if v is None else weakref.ref(v)

    def put(new: Any) -> None:
        nonlocal ref
        alive(new)
        ref = weakref.ref(new)

    return Hidden(lambda *args: ref(), put)


def weak_value(v: Any) -> Hidden:
    alive, box = [v].append, weakref.WeakValueDictionary({} if v is None else {"v": v})

    def put(new: Any) -> None:
        alive(new)
        box["v"] = new

    return Hidden(lambda *args: box.get("v"), put)


def weak_key(v: Any) -> Hidden:
    key = Box(None)
    return item(weakref.WeakKeyDictionary({key: v}), key)


def thread_local(v: Any) -> Hidden:
    return attribute(filled(type("Local", (threading.local,), {"v": other(v)})(), v))


def context_variable(v: Any) -> Hidden:
    elsewhere = other(v)
    variable = contextvars.ContextVar("variable", default=elsewhere)
    variable.set(v)
    return Hidden(lambda *args: variable.get(), variable.set)


def generator(v: Any) -> Hidden:
    def endless(v: Any) -> Any:
        while True:
            sent = yield v
            v = v if sent is None else sent[0]

    running = endless(v)
    next(running)
    return Hidden(lambda *args: running.send(None), lambda new: running.send((new,)))


def cycle(v: Any) -> Hidden:
    endless = itertools.cycle([v])
    return Hidden(lambda *args: next(endless))


def cached_function(v: Any) -> Hidden:
    read, makers = functools.lru_cache(lambda: v), []
    cached = functools.lru_cache(lambda: makers.pop()())
    return Hidden(lambda *args: read(), once=lambda make: (makers.append(make), cached())[1])


def cached_property(v: Any) -> Hidden:
    box, cache = Cached(lambda: v), Cached(lambda: None)
    return Hidden(lambda *args: box.v, once=lambda make: (setattr(cache, "make", make), cache.v)[1])


def object_array(v: Any) -> Hidden:
    box = np.empty(1, dtype=object)
    box[0] = v
    return item(box, 0)


def in_args(args: tuple[Any, ...], get: Callable[..., Any], put: Callable[[Any], object] | None = None) -> Hidden:
    return Hidden(get, put, args)


def nested_args(v: Any) -> Hidden:
    box = [v]
    return in_args((1.0, {"a": box}), lambda *args: args[1]["a"][0], lambda new: box.__setitem__(0, new))


def object_in_args(v: Any) -> Hidden:
    box = Box(v)
    return in_args((box,), lambda *args: args[0].v, lambda new: setattr(box, "v", new))


def nested(v: Any) -> Hidden:
    outer: Any = nn.Module()
    outer.inner = filled(nn.Module(), v)
    return Hidden(lambda *args: outer.inner.v, lambda new: setattr(outer.inner, "v", new))


def listed(owner: Any) -> Hidden:
    return Hidden(lambda *args: owner.v[0], lambda new: owner.v.__setitem__(0, new))


def buffer(v: Any, persistent: bool = True) -> Hidden:
    owner = nn.Module()
    owner.register_buffer("v", v, persistent=persistent)
    return attribute(owner)


def hooked(v: Any, before: bool) -> Hidden:
    owner, blank = nn.Identity(), torch.zeros(())
    if before:
        owner.register_forward_pre_hook(lambda module, inputs: (v,))
    else:
        owner.register_forward_hook(lambda module, inputs, output: v)
    return Hidden(lambda *args: owner(blank))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def layer(v: Tensor) -> nn.Linear:
    linear = nn.Linear(3, 3, bias=False, dtype=v.dtype)
    linear.weight = v  # pyright: ignore[reportAttributeAccessIssue]
    return linear


def reparametrized(v: Any, change: Callable[[nn.Module], nn.Module], called: bool = False) -> Hidden:
    """The weight that comes out; ``called``: it is set anew when the layer is called."""
    owner = change(layer(v))
    blank = torch.zeros(1, 3, dtype=v.dtype)
    get = (lambda *args: (owner(blank), owner.weight)[1]) if called else lambda *args: owner.weight
    return Hidden(get, leaves=list(owner.parameters()), state=owner)


def parametrized(owner: nn.Module) -> nn.Module:
    parametrize.register_parametrization(owner, "weight", Doubled())
    return owner


def old_weight_norm(owner: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(owner)


def scripted(v: Any) -> Hidden:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        owner = torch.jit.script(layer(v))
    return Hidden(lambda *args: owner.weight)


def numpy_number(v: float) -> Hidden:
    box = np.array([float(v)])
    return Hidden(lambda *args: float(box[0]), lambda new: box.__setitem__(0, new))


def tensor_number(v: float) -> Hidden:
    box = torch.tensor(float(v), dtype=torch.float64)
    return Hidden(lambda *args: box.item(), box.fill_)


PLACES: dict[str, Place] = {
    # variables of functions
    "closure": Place(closure),
    "closure of an inner function": Place(inner_function),
    "global": Place(of_the_file),
    "default argument": Place(default),
    "partial": Place(lambda v: Hidden(functools.partial(lambda v, *args: v, v))),
    "function attribute": Place(lambda v: attribute(filled(lambda: None, v))),
    "cached function": Place(cached_function),
    # containers
    "list": Place(lambda v: item([v], 0)),
    "long list": Place(lambda v: item([None] * 6000 + [v], 6000), seen=False),
    "tuple": Place(lambda v: Hidden((lambda box: lambda *args: box[0])((v,)))),
    "dict": Place(lambda v: item({"v": v}, "v")),
    "set": Place(lambda v: Hidden((lambda box: lambda *args: next(iter(box)))({v})), (*REFERABLE, NUMBER)),
    "deque": Place(lambda v: item(deque([v]), 0)),
    "UserDict": Place(lambda v: item(UserDict(v=v), "v"), seen=False),
    "ChainMap": Place(lambda v: item(ChainMap({"v": v}), "v"), seen=False),
    "mapping proxy": Place(lambda v: Hidden((lambda box: lambda *args: box["v"])(types.MappingProxyType({"v": v}))), seen=False),
    "namedtuple": Place(lambda v: Hidden((lambda box: lambda *args: box.v)(Pair(v, 0)))),
    "array of objects": Place(object_array, seen=False),
    "WeakKeyDictionary": Place(weak_key),
    "WeakValueDictionary": Place(weak_value, REFERABLE, seen=False),
    # objects
    "object": Place(lambda v: attribute(Box(v))),
    "bound method": Place(lambda v: Hidden(Box(v).read)),
    "object with slots": Place(lambda v: attribute(Slots(v))),
    "dataclass": Place(lambda v: attribute(Record(v))),
    "property": Place(lambda v: attribute(Property(v))),
    "cached property": Place(cached_property),
    "class attribute": Place(lambda v: attribute(type("Holder", (), {"v": v}))),
    "namespace": Place(lambda v: attribute(types.SimpleNamespace(v=v))),
    "attribute of a tensor": Place(lambda v: attribute(filled(torch.zeros(1), v)), seen=False),
    # what Python's eyes do not see through
    "weak reference": Place(weak, REFERABLE, seen=False),
    "builtin method": Place(behind_a_builtin, seen=False),
    "generator": Place(generator, seen=False),
    "itertools.cycle": Place(cycle, seen=False),
    "ctypes": Place(lambda v: attribute(ctypes.py_object(v), "value"), seen=False),
    "Python module": Place(lambda v: attribute(filled(types.ModuleType("fresh"), v)), seen=False),
    "context variable": Place(context_variable, seen=False, own=True),
    "thread local": Place(thread_local, own=True),
    # arguments
    "args": Place(lambda v: in_args((v,), lambda *args: args[0])),
    "nested args": Place(nested_args),
    "dict subclass in args": Place(lambda v: in_args((EasyDict(v=v),), lambda *args: args[0].v)),
    "object in args": Place(object_in_args),
    # modules
    "parameter": Place(lambda v: attribute(filled(nn.Module(), v)), (LEAF,), attribute=True),
    "nested parameter": Place(nested, (LEAF,), attribute=True),
    "parameter list": Place(lambda v: item(nn.ParameterList([v]), 0), (LEAF,), attribute=True),
    "buffer": Place(buffer, (TENSOR,), attribute=True),
    "buffer that is not saved": Place(functools.partial(buffer, persistent=False), (TENSOR,), attribute=True),
    "child module": Place(lambda v: attribute(filled(nn.Module(), v)), (MODULE,), attribute=True),
    "module list": Place(lambda v: item(nn.ModuleList([v]), 0), (MODULE,), attribute=True),
    "module attribute": Place(lambda v: attribute(filled(nn.Module(), v)), (TENSOR, NUMBER, OBJECT), attribute=True),
    "nested module attribute": Place(nested, (TENSOR, NUMBER, OBJECT), attribute=True),
    "list of a module": Place(lambda v: listed(filled(nn.Module(), [v]))),
    "pre-hook": Place(functools.partial(hooked, before=True), (LEAF, TENSOR)),
    "hook": Place(functools.partial(hooked, before=False), (LEAF, TENSOR)),
    "parametrization": Place(functools.partial(reparametrized, change=parametrized), (LEAF,), own=True),
    "weight norm": Place(functools.partial(reparametrized, change=nn.utils.parametrizations.weight_norm), (LEAF,), own=True),
    "weight norm by hooks": Place(functools.partial(reparametrized, change=old_weight_norm, called=True), (LEAF,), own=True),
    "spectral norm": Place(functools.partial(reparametrized, change=nn.utils.parametrizations.spectral_norm), (LEAF,), own=True),
    "spectral norm by hooks": Place(functools.partial(reparametrized, change=nn.utils.spectral_norm, called=True), (LEAF,), own=True),
    "TorchScript module": Place(scripted, (LEAF,), own=True),
    # numbers
    "numpy array": Place(numpy_number, (NUMBER,), seen=False),
    "array of numbers": Place(lambda v: item(array.array("d", [v]), 0), (NUMBER,), seen=False),
    "tensor read as a number": Place(tensor_number, (NUMBER,)),
}
