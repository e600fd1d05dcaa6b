"""Derivatives of a field without forming them: products J v and J^T u, and eigenvalues by Lanczos and Arnoldi.

J v is forward mode, at the price of about two evaluations; J^T u pulls back through one recorded evaluation. Not by ``torch.func``, under
whose transforms BatchNorm in training mode is refused. Every product sees the same random draws and statistics.

Source: Saad, Numerical Methods for Large Eigenvalue Problems (2011), 6.2 (Arnoldi), 6.3 (Lanczos).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..integrate.recording import Recording
from ..solvers import Leaves
from ..testing import SEED

COMPLETE = 64  # unknowns up to which Arnoldi runs to completion: all eigenvalues, to round-off
EVERY = 10  # vectors between two looks at whether the eigenvalues have settled
BASIS_BYTES = 2**29
ROUNDS, ACCURACY = 32, 1e-3  # of Lanczos: products at most, and the change of the eigenvalue that ends it; exact for up to 32 unknowns


class NoForwardMode(ValueError):
    """Products J v cannot be had."""


@contextmanager
def forward_mode() -> Iterator[None]:
    """Products J v may be taken inside."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the one kernel of attention that has forward mode
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # torch's own forward mode uses it
        yield


class Jacobian:
    """J = df/dy at a state y of one or more leaves; flat vectors are float64, with complex leaves as pairs of real numbers.

    Args:
        f: on flat leaves.
        y: the state.
        recording: marked before f; set back around every evaluation.
    """

    def __init__(self, f: Callable[[Leaves], Leaves], y: Leaves, recording: Recording) -> None:
        self.f, self.recording = f, recording
        self.y: Leaves = [leaf.detach().clone() for leaf in y]  # those of inference mode have no derivatives
        self.unknowns = sum(leaf.numel() * (1 + leaf.is_complex()) for leaf in self.y)
        self.device = self.y[0].device
        eps = max(torch.finfo(leaf.dtype).eps for leaf in self.y)
        self.noise, self.round_off = 30 * eps, 0.1 * math.sqrt(eps)  # of products; of eigenvalues, a cluster of which it disperses

    def pushed(self, v: Leaves) -> list[Tensor]:
        """J v; NoForwardMode where f has an operation without it."""
        self.recording.retreat()
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(leaf, tangent) for leaf, tangent in zip(self.y, v, strict=True)]
            try:
                slopes = self.f(duals)
            except NotImplementedError as error:
                raise NoForwardMode(f"func has an operation without forward mode, which J v needs: {error}") from None
            tangents = [forward_ad.unpack_dual(slope).tangent for slope in slopes]
        return [torch.zeros_like(leaf) if w is None else w.to(leaf.dtype) for w, leaf in zip(tangents, self.y, strict=True)]

    def pulled(self, u: Leaves) -> list[Tensor]:
        """J^T u."""
        y, slopes = self._recorded
        pairs = [(slope, seed.to(slope.dtype)) for slope, seed in zip(slopes, u, strict=True) if slope.requires_grad]
        ends, seeds = [slope for slope, _ in pairs], [seed for _, seed in pairs]
        found = torch.autograd.grad(ends, y, seeds, retain_graph=True, allow_unused=True) if ends else [None] * len(y)
        return [torch.zeros_like(leaf) if w is None else w for w, leaf in zip(found, y, strict=True)]

    def symmetric(self, v: Leaves, scale: float) -> list[Tensor]:
        """scale (J + J^T) v / 2."""
        return [scale / 2 * (a + b) for a, b in zip(self.pushed(v), self.pulled(v), strict=True)]

    def __call__(self, v: Tensor) -> Tensor:
        """J v of flat vectors."""
        return torch.cat([_reals(leaf) for leaf in self.pushed(self._leaves(v))])

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


def _reals(leaf: Tensor) -> Tensor:
    return (torch.view_as_real(leaf) if leaf.is_complex() else leaf).reshape(-1).double()


@dataclass(frozen=True)
class Search:
    """When Arnoldi may end."""

    count: int
    vectors: int
    tolerance: float

    def most(self, unknowns: int) -> int:
        if unknowns <= COMPLETE:
            return unknowns
        return min(unknowns, self.vectors, max(2 * EVERY, BASIS_BYTES // (8 * unknowns)))

    def settled(self, values: Tensor, residuals: Tensor, limiting: Callable[[Tensor, Tensor], Tensor]) -> bool:
        wanted = torch.cat([order[: self.count] for order in (falling(values.abs()), falling(values.real), limiting(values, residuals))])
        return bool((residuals[wanted] <= self.tolerance * values.abs().max()).all())


def arnoldi(jacobian: Jacobian, search: Search, limiting: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, int]:
    """Eigenvalues, residuals, and how many vectors it took: J V = V H + beta v e^T with orthonormal V.

    Where V spans an invariant space it ends; for few unknowns it goes on with a new vector, so that multiple eigenvalues are all found.
    """
    most, n = search.most(jacobian.unknowns), jacobian.unknowns
    generator = torch.Generator().manual_seed(SEED)
    basis = torch.zeros(most + 1, n, dtype=torch.float64, device=jacobian.device)
    H = torch.zeros(most + 1, most, dtype=torch.float64)
    basis[0] = _unit(_orthogonal(_random(n, generator, jacobian.device), basis[:0])[0])
    for j in range(most):
        w, h = _orthogonal(jacobian(basis[j]), basis[: j + 1])
        H[: j + 1, j], beta = h.cpu(), w.norm().item()
        if not math.isfinite(beta):
            raise ValueError("the derivative of func is not finite at this state")
        if j + 1 == most:
            H[j + 1, j] = beta if most < n else 0.0
        elif beta > jacobian.noise * H.norm().item():
            H[j + 1, j], basis[j + 1] = beta, w / beta
        elif n <= COMPLETE:
            basis[j + 1] = _unit(_orthogonal(_random(n, generator, jacobian.device), basis[: j + 1])[0])
        else:
            return *_ritz(H, j + 1), j + 1
        if n > COMPLETE and (j + 1) % EVERY == 0 and j + 1 < most:
            values, residuals = _ritz(H, j + 1)
            if search.settled(values, residuals, limiting):
                return values, residuals, j + 1
    return *_ritz(H, most), most


def _ritz(H: Tensor, m: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eig(H[:m, :m])
    return values, H[m, m - 1] * vectors[-1].abs()


def _orthogonal(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """w made orthogonal to the rows of ``basis``, and its components along them; twice is enough (Kahan, Parlett)."""
    total = w.new_zeros(len(basis))
    for _ in range(2):
        h = basis @ w
        w, total = w - h @ basis, total + h
    return w, total


def _random(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64).to(device)


def _unit(w: Tensor) -> Tensor:
    return w / w.norm()


def falling(values: Tensor) -> Tensor:
    return values.argsort(descending=True)


def largest_eigenvalue(apply: Callable[[Leaves], Leaves], like: Leaves) -> float:
    """Of a symmetric map, by Lanczos without reorthogonalisation, which costs copies of found eigenvalues and no accuracy of these."""
    size = sum(leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in like)
    eps = max(torch.finfo(leaf.dtype).eps for leaf in like)
    generator = torch.Generator().manual_seed(SEED)
    v: Leaves = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device) for leaf in like]
    v, before, beta = _scaled(v, 1 / norm_of(v)), v, 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    found: list[float] = []
    for _ in range(min(size, ROUNDS)):
        w = apply(v)
        diagonal.append(_dot(v, w))
        w = [a - diagonal[-1] * b - beta * c for a, b, c in zip(w, v, before, strict=True)]
        beta = norm_of(w)
        if not math.isfinite(beta):
            return math.nan
        off = torch.tensor(beside, dtype=torch.float64)
        values = torch.linalg.eigvalsh(torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1))
        found.append(values[-1].item())
        scale = values.abs().max().item()
        settled = size > ROUNDS and len(found) > 2 and found[-1] - found[-3] <= ACCURACY * scale
        if settled or beta <= 10 * eps * scale:
            break
        beside.append(beta)
        v, before = _scaled(w, 1 / beta), v
    return found[-1]


def _scaled(leaves: Leaves, factor: float) -> list[Tensor]:
    return [leaf * factor for leaf in leaves]


def _dot(a: Leaves, b: Leaves) -> float:
    """Of real and imaginary parts, summed in float64."""
    return sum((x.conj() * y).real.sum(dtype=torch.float64).item() for x, y in zip(a, b, strict=True))


def norm_of(leaves: Leaves) -> float:
    """Over all leaves, in float64."""
    return math.hypot(*(torch.linalg.vector_norm(leaf.to(torch.promote_types(leaf.dtype, torch.float64))).item() for leaf in leaves))
