"""Derivatives of a field without forming them: products J v and J^T u, and eigenvalues by Arnoldi's iteration.

J v is forward mode, at the price of about two evaluations; J^T u pulls back through one recorded evaluation. Not by ``torch.func``, under
whose transforms BatchNorm in training mode is refused. Every product sees the same random draws and statistics.

Not ARPACK: it returns the few eigenvalues that have converged at one end of a spectrum, in a run each for the largest, the rightmost and
those high up the imaginary axis, where one basis shows all these ends at once, with the residual of each.

Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), 6.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..integrate.recording import Recording
from ..pytree import build, leaves_of, structure_of
from ..solvers import Leaves
from ..testing import SEED

COMPLETE = 64  # unknowns up to which Arnoldi runs to completion: all eigenvalues, to round-off
BASIS_BYTES = 2**29


@contextmanager
def forward_mode() -> Iterator[None]:
    """Products J v may be taken inside."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the one kernel of attention that has forward mode
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # torch's own forward mode uses it
        yield


class Jacobian:
    """J = df/dy at a state y of one or more leaves; flat vectors are float64, with complex leaves as pairs of real numbers.

    Args:
        f: of a state alone.
        y: the state.
        recording: marked before f; set back around every evaluation.
    """

    def __init__(self, f: Callable[[Any], Any], y: Any, recording: Recording) -> None:
        self.structure, self.recording = structure_of(y), recording
        self.f: Callable[[Leaves], Leaves] = lambda leaves: leaves_of(f(build(self.structure, leaves)), self.structure)
        self.y: Leaves = [leaf.detach().clone() for leaf in leaves_of(y, self.structure)]  # those of inference mode have no derivatives
        self.unknowns = sum(leaf.numel() * (1 + leaf.is_complex()) for leaf in self.y)
        eps = max(torch.finfo(leaf.dtype).eps for leaf in self.y)
        self.noise, self.round_off = 30 * eps, 0.1 * math.sqrt(eps)  # of products; of eigenvalues, a cluster of which it disperses

    def pushed(self, v: Tensor) -> Tensor:
        """J v; ValueError where f has an operation without forward mode."""
        self.recording.retreat()
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(leaf, tangent) for leaf, tangent in zip(self.y, self._leaves(v), strict=True)]
            try:
                slopes = self.f(duals)
            except NotImplementedError as error:
                raise ValueError(f"func has an operation without forward mode, which J v needs: {error}") from None
            return self._flat([forward_ad.unpack_dual(slope).tangent for slope in slopes])

    def pulled(self, u: Tensor) -> Tensor:
        """J^T u."""
        y, slopes = self._recorded
        pairs = [(slope, seed.to(slope.dtype)) for slope, seed in zip(slopes, self._leaves(u), strict=True) if slope.requires_grad]
        ends, seeds = [slope for slope, _ in pairs], [seed for _, seed in pairs]
        return self._flat(torch.autograd.grad(ends, y, seeds, retain_graph=True, allow_unused=True) if ends else [None] * len(y))

    @cached_property
    def _recorded(self) -> tuple[Leaves, Leaves]:
        self.recording.retreat()
        with torch.enable_grad():
            y = [leaf.detach().requires_grad_() for leaf in self.y]
            return y, self.f(y)

    def _leaves(self, v: Tensor) -> list[Tensor]:
        parts, start = [], 0
        for leaf in self.y:
            real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            part = v[start : start + real.numel()].to(leaf.device, real.dtype).view(real.shape)
            parts.append(torch.view_as_complex(part) if leaf.is_complex() else part)
            start += real.numel()
        return parts

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """None where there is no dependence."""
        found = [torch.zeros_like(leaf) if part is None else part.to(leaf.dtype) for part, leaf in zip(parts, self.y, strict=True)]
        reals = [torch.view_as_real(part) if part.is_complex() else part for part in found]
        return torch.cat([part.reshape(-1).double().to(self.y[0].device) for part in reals])

    def eigenvalues(self, vectors: int, apply: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor, int]:
        """Of J, or of another map of flat vectors, the largest first, with residuals, and how many vectors it took: A V = V H + beta v e^T.

        Where V spans an invariant space it ends; for few unknowns it goes on with a new vector, so that multiple eigenvalues are all found.
        """
        n, apply, device = self.unknowns, apply or self.pushed, self.y[0].device
        most = n if n <= COMPLETE else min(n, vectors, max(20, BASIS_BYTES // (8 * n)))
        generator = torch.Generator().manual_seed(SEED)
        basis = torch.zeros(most + 1, n, dtype=torch.float64, device=device)
        H = torch.zeros(most + 1, most, dtype=torch.float64)

        def another(count: int) -> Tensor:
            w = _orthogonal(torch.randn(n, generator=generator, dtype=torch.float64).to(device), basis[:count])[0]
            return w / w.norm()

        basis[0] = another(0)
        for j in range(most):
            w, h = _orthogonal(apply(basis[j]), basis[: j + 1])
            H[: j + 1, j], beta = h.cpu(), w.norm().item()
            if not math.isfinite(beta):
                raise ValueError("the derivative of func is not finite at this state")
            if j + 1 < n and beta > self.noise * H.norm().item():
                H[j + 1, j], basis[j + 1] = beta, w / beta
            elif j + 1 < n <= COMPLETE:
                basis[j + 1] = another(j + 1)
            else:
                most = j + 1
                break
        values, combined = torch.linalg.eig(H[:most, :most])
        order = values.abs().argsort(descending=True)
        return values[order], H[most, most - 1] * combined[-1, order].abs(), most


def _orthogonal(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """w made orthogonal to the rows of ``basis``, and its components along them; twice is enough (Kahan, Parlett)."""
    total = w.new_zeros(len(basis))
    for _ in range(2):
        h = basis @ w
        w, total = w - h @ basis, total + h
    return w, total
