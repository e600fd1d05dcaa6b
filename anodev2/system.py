"""Two coupled vector fields, features z and weights theta, as one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .signature import CountedCall, signature_of


class CoupledSystem(nn.Module):
    """dz/dt = f(t, z, theta) together with dtheta/dt = q(t, theta) or q(t, theta, z).

    ``odeint(CoupledSystem(f, q), (z0, theta0), t, ...)`` returns ``(z, theta)`` at the times t. Both are stepped
    jointly by the method, theta too; ``CoupledODEBlock`` may use a closed form for theta instead, and agrees with this
    at the order of the method. theta has no batch axis unless theta0 has one.

    Args:
        f: ``f(t, z, theta)``, a module or function; returns a tree like z.
        q: ``q(t, theta)`` or ``q(t, theta, z)``; returns a tree like theta. Arguments that are named the other way round, as in
            ``q(t, z, theta)`` or ``f(t, p, y)``, are handed over as they are named.
        reads_z: whether q takes z. None reads it off q's signature (a third positional parameter without default).

    Raises:
        TypeError: q takes neither (t, theta) nor (t, theta, z), or its signature leaves open which is which and there is no ``reads_z``.

    Source: ANODEV2, arXiv 1906.04596 (coupled system); its discrete gradients are those of ``odeint``.
    """

    reads_z: bool

    def __init__(self, f: Callable[..., Any], q: Callable[..., Any], *, reads_z: bool | None = None) -> None:
        super().__init__()
        self.f = f
        self.q = q
        self.reads_z = takes_z(q) if reads_z is None else reads_z
        self._z_last = check_call("f", f, "t", "z", "theta") is False
        z_first = check_call("q", q, "t", "theta", *["z"] * self.reads_z)
        if self.reads_z and z_first is None and reads_z is None and not hasattr(q, "reads_features"):
            raise TypeError(
                f"q{signature_of(q)} does not tell which of its arguments is z: name them theta and z, or pass reads_z=True to have it "
                "called as q(t, theta, z)"
            )
        self._z_first = self.reads_z and z_first is True
        self._call_f = CountedCall(f)
        self.counters_wanted = self._call_f.names

    def forward(self, t: Any, y: Any, *, step: int = 0, stage: int = 0) -> tuple[Any, Any]:
        z, theta = y
        dz = self._call_f(t, *((theta, z) if self._z_last else (z, theta)), step=step, stage=stage)
        dtheta = self.q(t, *((z, theta) if self._z_first else (theta, z) if self.reads_z else (theta,)))
        return dz, dtheta

    def extra_repr(self) -> str:
        return f"reads_z={self.reads_z}"


def takes_z(q: Callable[..., Any]) -> bool:
    """Whether q is called as q(t, theta, z) rather than q(t, theta), as a ``Dynamics`` says or its signature.

    Raises TypeError where that does not tell.
    """
    if isinstance(said := getattr(q, "reads_features", None), bool):
        return said
    signature = signature_of(q)
    if signature is None or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        raise TypeError("q's signature does not tell whether it is called as q(t, theta) or q(t, theta, z); pass reads_z=True or False")
    positional = _positional(signature)
    required = [p for p in positional if p.default is p.empty]
    if len(positional) < 2 or len(required) > 3:
        raise TypeError(f"q must be callable as q(t, theta) or q(t, theta, z), got q{signature}")
    if len(required) < 3 and (positional[1].name == "z" or any(_role(p) == "z" for p in positional[2:])):
        raise TypeError(
            f"q{signature} does not tell whether it reads z: make it q(t, theta) or q(t, theta, z), or pass reads_z=True or False"
        )
    return len(required) == 3


def check_call(name: str, func: Callable[..., Any], *roles: str) -> bool | None:
    """Whether the names of func's second and third argument say that z comes before theta; None where they do not say.

    Raises TypeError where func cannot be called with so many arguments, or t is another than the first.
    """
    signature = signature_of(func)
    if signature is None:
        return None
    call, got = ", ".join(roles), f"{type(func).__name__ if isinstance(func, nn.Module) else name}{signature}"
    try:
        signature.bind(*roles, **CountedCall(func).counters(0, 0))
    except TypeError as error:
        raise TypeError(f"{name} must be callable as {name}({call}), got {got}: {error}") from None
    positional = _positional(signature)[: len(roles)]
    found = [_role(p) for p in positional]
    if "t" in found[1:] or "theta" in found[:1] or "z" in [p.name for p in positional[:1]]:
        raise TypeError(f"{name} is called as {name}({call}), t first, got {got}")
    first, last = "z" in found[1:2] or "theta" in found[2:], "theta" in found[1:2] or "z" in found[2:]
    return None if first == last else first


def _positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _role(parameter: inspect.Parameter) -> str | None:
    """What people mean by a name such as w, y0 or theta_t."""
    if parameter.name in ("t", "time"):
        return "t"
    name = parameter.name.lower().strip("_").split("_")[0].rstrip("0123456789")
    return "z" if name in _FEATURES else "theta" if name in _WEIGHTS else None


_FEATURES = {"z", "x", "y", "u", "h", "hidden", "state", "states", "feature", "features", "activations"}
_WEIGHTS = {"theta", "\u03b8", "w", "weight", "weights", "p", "param", "params", "parameter", "parameters", "kernel", "kernels"}
