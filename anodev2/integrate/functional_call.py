"""Other weights in a module while it is called: those are for the calling thread, and all others go on seeing the module's own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import checkpoint

from ..torch_private import saving_hooks

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_LOCKS.clear)  # whoever held them is not there


class Swapped:
    """f, to be called with others in the place of some of its ``weights`` (by name), under all names that they have in f."""

    def __init__(self, f: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.f, self.weights = f, weights
        self.places: list[tuple[nn.Module, dict[str, str]]] | None = None
        if not torch.compiler.is_compiling():
            self._find()

    def _find(self) -> None:
        """Where the weights are in f, and the locks of these places."""
        names: dict[Any, str] = {weight: name for name, weight in self.weights.items()}
        held = [(module, {key: names[own] for key, own in module._parameters.items() if own in names}) for module in self.f.modules()]
        self.places = [(module, places) for module, places in held if places]
        for module, places in self.places:
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(
                    f"{[*places]} belong to a TorchScript module, which keeps the weights it has seen; take one that is not scripted"
                )
        # one lock for all that share a module; all that f may need are taken at once and in one order, so none waits for another
        new = threading.RLock()
        self.locks = sorted({_LOCKS.setdefault(module, new) for module, _ in held}, key=id)

    def __call__(self, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """f(*args, **kwargs) with these weights, while other threads that call it so wait.

        Raises ValueError where torch.utils.checkpoint runs inside f: it would recompute later, with f's own weights.
        """
        if torch.compiler.is_compiling():
            return call_with(self.f, weights, *args, **kwargs)
        if self.places is None:  # made where a graph broke
            self._find()
        assert self.places is not None
        saving = torch.is_grad_enabled(), _hook()
        with ExitStack() as held:
            for lock in self.locks:
                held.enter_context(lock)
            for module, places in self.places:
                held.callback(vars(module).__setitem__, "_parameters", module._parameters)
                vars(module)["_parameters"] = _Seen(module._parameters, {key: weights[name] for key, name in places.items()}, saving)
            return self.f(*args, **kwargs)


def call_with(f: nn.Module, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """f(*args, **kwargs) by ``torch.func.functional_call`` with these weights, under all names that they have in f.

    Each place once: a module that f holds under two names would otherwise keep the weights it was called with.
    """
    own = dict(f.named_parameters(remove_duplicate=False))
    given = [(own[name], weight) for name, weight in weights.items()]
    found: dict[str, Tensor] = {}
    for prefix, module in f.named_modules():
        for key, parameter in module._parameters.items():
            for old, new in given:
                if parameter is old:
                    found[f"{prefix}.{key}" if prefix else key] = new
    return functional_call(f, found, args, kwargs, tie_weights=False)


@contextmanager
def overlaid(others: list[tuple[nn.Module, dict[str, Any]]]) -> Iterator[None]:
    """Modules have these parameters, for the calling thread alone, as long as this lasts; others that would do the same wait."""
    new = threading.RLock()
    with ExitStack() as held:
        for lock in sorted({_LOCKS.setdefault(module, new) for module, _ in others}, key=id):
            held.enter_context(lock)
        for module, parameters in others:
            held.callback(vars(module).__setitem__, "_parameters", module._parameters)
            vars(module)["_parameters"] = _Seen(module._parameters, parameters)
        yield


class _Seen(MutableMapping[str, Any], dict[str, Any]):  # pyright: ignore[reportGeneralTypeIssues] (the compiler wants a dict, and reads what is inside it)
    """A module's ``own`` parameters; with ``others`` in their place, where the thread looks that made it."""

    def __init__(self, own: dict[str, Any], others: dict[str, Any], saving: tuple[bool, Any] | None = None) -> None:
        dict.__init__(self, {**own, **others})
        self.own, self.others, self.thread = own, others, threading.get_ident()
        self.saving = saving  # whether and by what tensors were saved when the weights were swapped in

    def mine(self) -> bool:
        return torch.compiler.is_compiling() or threading.get_ident() == self.thread

    def __getitem__(self, key: str) -> Any:
        if not self.mine():
            return self.own[key]
        watched = self.saving is not None and not torch.compiler.is_compiling()
        if watched and self.saving != (torch.is_grad_enabled(), _hook()) and _recomputed_later():
            raise ValueError(
                "torch.utils.checkpoint inside f would recompute it in the backward pass with f's own weights, not with those at time t; "
                "leave it out of f, adjoint='checkpoint' of the block does its work"
            )
        return dict.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, key) if self.mine() else key in self.own

    def __setitem__(self, key: str, value: Any) -> None:
        if mine := self.mine():
            dict.__setitem__(self, key, value)
        if not (mine and key in self.others):
            self.own[key] = value

    def __delitem__(self, key: str) -> None:
        if mine := self.mine():
            dict.__delitem__(self, key)
        if not (mine and key in self.others):
            del self.own[key]

    def __iter__(self) -> Any:
        return dict.__iter__(self) if self.mine() else iter(self.own)

    def __reduce__(self) -> Any:
        return dict, (dict(self.items()),)

    __len__ = dict.__len__


def _hook() -> Any:
    """What packs a tensor that is saved here."""
    hooks = saving_hooks()
    return hooks and hooks[0]


def _recomputed_later() -> bool:
    """Whether torch.utils.checkpoint has been called since the weights were swapped in."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals is not globals():
        if frame.f_globals.get("__name__") == checkpoint.__name__:
            return True
        frame = frame.f_back
    return False
