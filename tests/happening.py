"""What may happen to a value that a vector field gets from somewhere (see ``hiding``): read, written, rebound, cached, changed since.

An act says what the place holds at first, what f does with it in a call, what it adds to the loss, and what happens between the pass
forward and the pass backward. Every f is tanh(net(y)) and something, on a state of shape (3, 3).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anodev2 import odeint
from tests.hiding import LEAF, MODULE, NUMBER, OBJECT, TENSOR, Hidden

D = torch.float64
LITTLE = 1 + 1e-7  # a change that no tolerance for round-off in float32 would notice
BACKSOLVE = ("backsolve",)
UNDOING = ("backsolve", "reversible")  # which do not come by the same states again


class Call(NamedTuple):
    """A call of f: ``get``, ``put`` and ``once`` are those of the place, which only acts that set may use to write."""

    t: Tensor
    y: Tensor
    net: nn.Module
    get: Callable[[], Any]
    put: Callable[[Any], object]
    once: Callable[[Callable[[], Any]], Any]

    @property
    def base(self) -> Tensor:
        return torch.tanh(self.net(self.y))

    @property
    def kernel(self) -> Tensor:
        """What is worth to be cached: computed from a parameter."""
        return self.net.weight - 0.5 * self.net.weight.mT  # pyright: ignore


Start = Callable[[Tensor, nn.Module], tuple[Any, list[Tensor]]]  # of y0 and net: the value, and the leaves behind it
Between = Callable[[Hidden, Any], object]  # of the place, and the value put there at first


@dataclass(frozen=True)
class Act:
    """``sets``: f, or what happens between, replaces the value; ``rebinds``: f does; ``once``: by ``once`` alone. ``blind``: modes whose
    gradient is not compared, as they neither replay a step nor could see the change. ``must``: where f's search sees the place, nobody
    may refuse. ``held``: what the place holds is compared after the pass backward. ``later``: ``extra`` is differentiated after the loss.
    """

    kind: str
    start: Start
    slope: Callable[[Call], Tensor]
    extra: Callable[[Any], Tensor] | None = None
    between: Between | None = None
    amid: Between | None = None
    sets: bool = False
    rebinds: bool = False
    blind: tuple[str, ...] = ()
    must: bool = False
    held: bool = True
    later: bool = False
    once: bool = False
    dtype: torch.dtype = D
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    backward: Callable[[Callable[[], None]], None] = lambda run: run()


def leaf(y: Tensor, net: nn.Module) -> tuple[Any, list[Tensor]]:
    w = nn.Parameter(0.4 * torch.randn(3, 3, dtype=y.dtype))
    return w, [w]


def inner(y: Tensor, net: nn.Module) -> tuple[Any, list[Tensor]]:
    w = leaf(y, net)[0]
    return 0.3 * w.exp(), [w]


def leaf_with_a_hook(y: Tensor, net: nn.Module) -> tuple[Any, list[Tensor]]:
    """Nonlinear, so that it matters on which sums it acts."""
    w, leaves = leaf(y, net)
    w.register_hook(lambda g: torch.tanh(g))
    return w, leaves


def constant(y: Tensor, net: nn.Module) -> tuple[Any, list[Tensor]]:
    w = leaf(y, net)[0].detach()
    return w, [w]


def of(make: Callable[[], Any]) -> Start:
    """A fresh value without gradients, or a module."""

    def start(y: Tensor, net: nn.Module) -> tuple[Any, list[Tensor]]:
        value = make()
        return value, [*value.parameters()] if isinstance(value, nn.Module) else []

    return start


zeros = lambda *shape: of(lambda: torch.zeros(shape, dtype=D))
NOTHING = of(lambda: None)
NUMERAL = of(lambda: 0.7)
BATCHNORM = of(lambda: nn.BatchNorm1d(3, dtype=D))
DROPOUT = of(lambda: nn.Dropout(0.5))


def linear() -> nn.Linear:
    return nn.Linear(3, 3, dtype=D)


def linear_with_a_hook() -> nn.Linear:
    layer = linear()
    layer.register_full_backward_hook(lambda module, inputs, outputs: (torch.tanh(inputs[0]),))
    return layer


class Scaled(torch.autograd.Function):
    """y w, whose derivative is told by twice its own so that it is known when it is used."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(y, w)
        return y * w

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        y, w = ctx.saved_tensors
        return 2 * cotangents[0] * w, 2 * cotangents[0] * y


@torch.library.custom_op("hiding::scaled", mutates_args=())
def scaled(y: Tensor, w: Tensor) -> Tensor:
    return y * w


@torch.library.custom_op("hiding::count", mutates_args={"counter"})
def count(counter: Tensor) -> None:
    counter.add_(1)


torch.library.register_autograd(
    "hiding::scaled",
    lambda ctx, g: (g * ctx.saved_tensors[1], g * ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def product(y: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(y @ w)


@cache
def scripted_product() -> Any:
    return torch.jit.script(product)


def by_autograd(c: Call, careful: bool) -> Tensor:
    """A field with an energy, as is written; ``careful``: also by those whose f is called without gradients."""
    with torch.enable_grad() if careful else nullcontext():
        y = c.y if c.y.requires_grad or not careful else c.y.detach()
        y = y.requires_grad_()
        return c.base - torch.autograd.grad(product(y, c.get()).square().sum(), y, create_graph=True)[0]


def solving(c: Call, adjoint: str) -> Tensor:
    return odeint(lambda t, y: y @ c.get(), c.net(c.y), [0.0, 0.3], steps=2, adjoint=adjoint)[-1] - c.y


def with_a_hook(c: Call, careful: bool) -> Tensor:
    """``careful``: as is written by those whose f is also called without gradients."""
    h = c.y @ c.get()
    if h.requires_grad or not careful:
        h.register_hook(lambda g: torch.tanh(g))
    return c.base + h


@torch.no_grad()
def counting(c: Call, how: Callable[[Tensor], object]) -> None:
    how(c.get())


def counted(how: Callable[[Tensor], object]) -> Callable[[Call], Tensor]:
    return lambda c: (counting(c, how), c.base)[1]


def running_mean(c: Call) -> Tensor:
    counting(c, lambda mean: mean.mul_(0.7).add_(0.3 * c.y.detach().mean(0)))
    return c.base - c.get().clone() * c.y


def kept(c: Call, what: Callable[[Tensor], Any], since: float = 0.0) -> Tensor:
    h = c.base
    if c.t >= since:
        c.put(what(h))
    return h


def added(c: Call, how: Callable[[Any, Tensor], object]) -> Tensor:
    h = c.base
    how(c.get(), size(h))
    return h


def by_time(c: Call) -> Tensor:
    known = c.get()
    if (key := round(2 * float(c.t))) not in known:
        known[key] = (1 + c.t) * c.kernel
    return c.base + c.y @ known[key]


def previous(c: Call, as_kept: Callable[[Tensor], Tensor]) -> Tensor:
    before = c.get()
    h = c.base if before is None else c.base * (1 + before)
    c.put(as_kept(h))
    return h


def detaching(c: Call) -> Tensor:
    return torch.tanh(c.net(c.y.detach() if c.get() else c.y)) - 0.5 * c.y


def counting_up(c: Call, used: bool) -> Tensor:
    c.put(c.get() + 1)
    return c.base * (1 + 0.1 * c.get()) if used else c.base


@torch.no_grad()
def slightly(place: Hidden, value: Tensor) -> None:
    value.mul_(LITTLE)


def replaced(how: Callable[[Any], Any]) -> Between:
    return lambda place, value: place.put and place.put(how(place.get(*place.args)))


def in_a_thread(run: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(run).result()


def reading(c: Call) -> Tensor:
    return c.base + c.y @ c.get()


def calling(c: Call) -> Tensor:
    return torch.tanh(c.get()(c.net(c.y)))


def scaling(c: Call) -> Tensor:
    return c.base * c.get()


def rounding(c: Call) -> Tensor:
    """With a number that float32 does not have, in the default type."""
    return c.base * (torch.tensor(c.get()) - 2.0**24 + 1)


def low_precision() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def dropping(c: Call) -> Tensor:
    return F.dropout(c.base, c.get())


def drawing(c: Call) -> Tensor:
    return c.base * torch.rand(3, 3, generator=c.get(), dtype=D)


def size(h: Tensor) -> Tensor:
    return h.square().mean()


def same(value: Any) -> Any:
    return value


def summed(values: Any) -> Tensor:
    return torch.stack(list(values)).sum()


REBINDS: dict[str, Any] = {"sets": True, "rebinds": True}
CACHES: dict[str, Any] = {**REBINDS, "once": True}

READ: dict[str, Act] = {
    "a leaf": Act(LEAF, leaf, reading, must=True),
    "a leaf, in later steps": Act(LEAF, leaf, lambda c: reading(c) if c.t >= 0.5 else c.base, must=True),
    "a leaf, returned": Act(LEAF, leaf, lambda c: c.get() if c.t >= 0.5 else c.base),
    "a leaf with a hook": Act(LEAF, leaf_with_a_hook, reading, must=True),
    "a leaf, through an autograd.Function": Act(LEAF, leaf, lambda c: Scaled.apply(c.base, c.get()), must=True),
    "a leaf, through a custom operator": Act(LEAF, leaf, lambda c: scaled(c.base, c.get()), must=True),
    "a leaf, through TorchScript": Act(LEAF, leaf, lambda c: scripted_product()(c.net(c.y), c.get())),
    "a leaf, through torch.func": Act(LEAF, leaf, lambda c: -torch.func.grad(lambda y: product(y, c.get()).sum())(c.y)),
    "a leaf, through autograd.grad": Act(LEAF, leaf, lambda c: by_autograd(c, careful=False)),
    "a leaf, through autograd.grad and enable_grad": Act(LEAF, leaf, lambda c: by_autograd(c, careful=True)),
    "a leaf, through a checkpoint": Act(LEAF, leaf, lambda c: checkpoint(product, c.net(c.y), c.get(), use_reentrant=False)),
    "a leaf, in a solve inside": Act(LEAF, leaf, lambda c: solving(c, "checkpoint")),
    "a leaf, in a direct solve inside": Act(LEAF, leaf, lambda c: solving(c, "direct")),
    "a leaf, where a hook is": Act(LEAF, leaf, lambda c: with_a_hook(c, careful=False)),
    "a leaf, where a hook may be": Act(LEAF, leaf, lambda c: with_a_hook(c, careful=True)),
    "net's own weight": Act(LEAF, lambda y, net: (net.weight, []), reading),
    "y0": Act(TENSOR, lambda y, net: (y, []), reading, must=True),
    "an inner tensor": Act(TENSOR, inner, reading, must=True),
    "an inner tensor, returned": Act(TENSOR, inner, lambda c: c.get() if c.t >= 0.5 else c.base),
    "an inner tensor, through an autograd.Function": Act(TENSOR, inner, lambda c: Scaled.apply(c.base, c.get())),
    "an inner tensor, where a hook is": Act(TENSOR, inner, lambda c: with_a_hook(c, careful=True)),
    "a constant": Act(TENSOR, constant, reading, must=True),
    "a module": Act(MODULE, of(linear), calling, must=True),
    "a module with a hook": Act(MODULE, of(linear_with_a_hook), calling, must=True),
    "a number": Act(NUMBER, NUMERAL, scaling, must=True),
}

WRITTEN: dict[str, Act] = {
    "BatchNorm": Act(MODULE, BATCHNORM, calling, must=True, blind=BACKSOLVE),
    "BatchNorm without weights": Act(MODULE, of(lambda: nn.BatchNorm1d(3, affine=False, dtype=D)), calling, must=True),
    "running statistics": Act(TENSOR, zeros(2, 3), lambda c: F.batch_norm(c.base, *c.get().unbind(), training=True)),
    "running mean, used": Act(TENSOR, zeros(3), running_mean, blind=BACKSOLVE),
    "counter": Act(TENSOR, zeros(3), counted(lambda n: n.add_(1))),
    "counter, by out=": Act(TENSOR, zeros(3), counted(lambda n: torch.add(n, 1, out=n))),
    "counter, by a view": Act(TENSOR, zeros(3), counted(lambda n: n[:1].add_(1))),
    "counter, by an index": Act(TENSOR, zeros(3), counted(lambda n: n.__setitem__(0, n[0] + 1))),
    "counter, by .data": Act(TENSOR, zeros(3), counted(lambda n: n.data.add_(1))),
    "counter, by a custom operator": Act(TENSOR, zeros(3), counted(count)),
    "penalty": Act(TENSOR, zeros(), lambda c: added(c, lambda sum, h: sum.add_(h)), same),
    "penalty, by an index": Act(TENSOR, zeros(2), lambda c: added(c, lambda sum, h: sum.__setitem__(int(c.t), h)), summed),
    "penalties in a list": Act(OBJECT, of(list), lambda c: added(c, lambda all, h: all.append(h)), summed),
    "penalty replaced": Act(TENSOR, NOTHING, lambda c: kept(c, size), same, **REBINDS),
    "penalty replaced, of later steps": Act(TENSOR, NOTHING, lambda c: kept(c, size, 0.5), same, **REBINDS),
    "penalty replaced, differentiated later": Act(TENSOR, NOTHING, lambda c: kept(c, size), same, **REBINDS, later=True),
    "penalty summed": Act(TENSOR, zeros(), lambda c: kept(c, lambda h: c.get() + size(h)), same, **REBINDS),
    "what is kept detached": Act(TENSOR, NOTHING, lambda c: kept(c, lambda h: h.detach()), **REBINDS, must=True),
    "number of calls": Act(NUMBER, of(lambda: 0), lambda c: counting_up(c, used=False), **REBINDS),
    "number of calls, used": Act(NUMBER, of(lambda: 0), lambda c: counting_up(c, used=True), **REBINDS, blind=BACKSOLVE),
    "slope before": Act(TENSOR, NOTHING, lambda c: previous(c, lambda h: h), **REBINDS, blind=BACKSOLVE),
    "slope before, detached": Act(TENSOR, NOTHING, lambda c: previous(c, lambda h: h.detach()), **REBINDS, blind=BACKSOLVE),
}

CACHED: dict[str, Act] = {
    "kernel": Act(TENSOR, NOTHING, lambda c: c.base + c.y @ c.once(lambda: c.kernel), **CACHES),
    "kernel, in later steps": Act(TENSOR, NOTHING, lambda c: c.base + c.y @ c.once(lambda: c.kernel) if c.t >= 0.5 else c.base, **CACHES),
    "kernels by time": Act(OBJECT, of(dict), by_time, blind=BACKSOLVE),
    "kernel without gradient": Act(TENSOR, NOTHING, lambda c: c.base + c.y @ c.once(lambda: c.kernel.detach()), **CACHES),
    "mean of the first state": Act(TENSOR, NOTHING, lambda c: c.base - c.once(lambda: c.y.mean(0)), **CACHES, blind=BACKSOLVE),
}

CHANGED: dict[str, Act] = {
    "number": Act(NUMBER, NUMERAL, scaling, between=replaced(lambda v: v + 0.25), sets=True, blind=BACKSOLVE),
    "number, by little": Act(NUMBER, NUMERAL, scaling, between=replaced(lambda v: (1 + 1e-9) * v), sets=True, blind=UNDOING),
    "number, in a thread": Act(
        NUMBER, NUMERAL, scaling, between=lambda *to: in_a_thread(lambda: replaced(lambda v: v + 0.25)(*to)), sets=True, blind=BACKSOLVE
    ),
    "flag that detaches": Act(NUMBER, of(lambda: False), detaching, between=replaced(lambda v: True), sets=True, blind=BACKSOLVE),
    "constant, in place": Act(TENSOR, constant, reading, between=slightly),
    "constant, replaced": Act(TENSOR, constant, reading, between=replaced(lambda v: LITTLE * v), sets=True),
    "constant, replaced between two solves": Act(TENSOR, constant, reading, amid=replaced(lambda v: 1.5 * v), sets=True),
    "constant, to be trained": Act(TENSOR, constant, reading, between=lambda place, value: value.requires_grad_()),
    "inner tensor, detached": Act(TENSOR, inner, reading, between=replaced(lambda v: v.detach()), sets=True),
    "leaf, frozen": Act(LEAF, leaf, reading, between=lambda place, value: value.requires_grad_(False)),
    "leaf, by an optimizer": Act(LEAF, leaf, reading, between=slightly),
    "leaf, by .data": Act(LEAF, leaf, reading, between=lambda place, value: setattr(value, "data", 1.5 * value.data), blind=BACKSOLVE),
    "leaf, replaced": Act(LEAF, leaf, reading, between=replaced(lambda v: nn.Parameter(LITTLE * v.detach())), sets=True),
    "module, replaced": Act(MODULE, of(linear), calling, between=replaced(lambda v: linear()), sets=True),
    "Dropout to eval": Act(MODULE, DROPOUT, calling, between=lambda place, value: value.eval(), blind=BACKSOLVE),
    "BatchNorm to eval": Act(MODULE, BATCHNORM, calling, between=lambda place, value: value.eval()),
    "default dtype": Act(NUMBER, of(lambda: 1 + 2.0**24), rounding, between=lambda *_: torch.set_default_dtype(D), blind=BACKSOLVE),
    "thread of the pass backward": Act(TENSOR, constant, reading, backward=in_a_thread),
    "thread of the pass backward, a number": Act(NUMBER, NUMERAL, scaling, backward=in_a_thread, blind=BACKSOLVE),
    "autocast": Act(NUMBER, NUMERAL, scaling, dtype=torch.float32, around=low_precision, blind=UNDOING),
}

DRAWN: dict[str, Act] = {
    "dropout": Act(NUMBER, NUMERAL, dropping, blind=BACKSOLVE, must=True),
    "Dropout": Act(MODULE, DROPOUT, calling, blind=BACKSOLVE, must=True),
    "dropout, seed set since": Act(NUMBER, NUMERAL, dropping, between=lambda *_: torch.manual_seed(99), blind=BACKSOLVE),
    "dropout, seed set in f": Act(NUMBER, NUMERAL, lambda c: (torch.manual_seed(int(8 * c.t)), dropping(c))[1], blind=BACKSOLVE),
    "torch's generator": Act(OBJECT, of(lambda: torch.Generator().manual_seed(5)), drawing, blind=BACKSOLVE, must=True),
    "Python's generator": Act(OBJECT, of(lambda: random.Random(5)), lambda c: c.base * c.get().random(), blind=BACKSOLVE, held=False),
    "numpy's generator": Act(
        OBJECT, of(lambda: np.random.default_rng(5)), lambda c: c.base * c.get().random(), blind=BACKSOLVE, held=False
    ),
}

ACTS: dict[str, Act] = {
    f"{what} {name}": act
    for what, acts in (("read", READ), ("written", WRITTEN), ("cached", CACHED), ("changed", CHANGED), ("drawn", DRAWN))
    for name, act in acts.items()
}
