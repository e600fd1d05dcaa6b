"""Two coupled vector fields, features z and weights theta, as one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .problem import CountedCall, signature_of

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class CoupledSystem(nn.Module):
    """dz/dt = f(t, z, theta) together with dtheta/dt = q(t, theta) or q(t, theta, z).

    ``odeint(CoupledSystem(f, q), (z0, theta0), t, ...)`` returns ``(z, theta)`` at the times t. Both are stepped
    jointly by the method, theta too; ``CoupledODEBlock`` may use a closed form for theta instead, and agrees with this
    at the order of the method. theta has no batch axis unless theta0 has one.

    Args:
        f: ``f(t, z, theta)``, a module or function; returns a tree like z.
        q: ``q(t, theta)`` or ``q(t, theta, z)``; returns a tree like theta.
        reads_z: whether q takes z. None reads it off q's signature (a third positional parameter without default).

    Raises:
        TypeError: q takes neither (t, theta) nor (t, theta, z), or a variable number of arguments and no ``reads_z``.

    Source: ANODEV2, arXiv 1906.04596 (coupled system); its discrete gradients are those of ``odeint``.
    """

    reads_z: bool

    def __init__(self, f: Callable[..., Any], q: Callable[..., Any], *, reads_z: bool | None = None) -> None:
        super().__init__()
        self.f = f
        self.q = q
        self.reads_z = _reads_z(q) if reads_z is None else reads_z
        self._call_f = CountedCall(f)
        self.counters_wanted = self._call_f.names

    def forward(self, t: Any, y: Any, *, step: int = 0, stage: int = 0) -> tuple[Any, Any]:
        z, theta = y
        dz = self._call_f(t, z, theta, step=step, stage=stage)
        dtheta = self.q(t, theta, z) if self.reads_z else self.q(t, theta)
        return dz, dtheta

    def extra_repr(self) -> str:
        return f"reads_z={self.reads_z}"


def _reads_z(q: Callable[..., Any]) -> bool:
    signature = signature_of(q)
    if signature is None or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        raise TypeError("q's signature does not tell whether it is called as q(t, theta) or q(t, theta, z); pass reads_z=True or False")
    positional = [p for p in signature.parameters.values() if p.kind in _POSITIONAL]
    required = [p for p in positional if p.default is p.empty]
    if len(positional) < 2 or len(required) > 3:
        raise TypeError(f"q must be callable as q(t, theta) or q(t, theta, z), got q{signature}")
    return len(required) == 3
