"""Steps in Fourier modes, which compiled code takes in pairs of real numbers: the same states and gradients as without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Compile, FourierOperator, LinearOperator, odeint
from anodev2.integrate import compiled
from anodev2.pde import (
    Advection,
    AllenCahn,
    Burgers,
    CahnHilliard,
    Dirichlet,
    FisherKPP,
    Grid1D,
    KortewegDeVries,
    KuramotoSivashinsky,
    Source,
    SwiftHohenberg,
)
from compiling import FAST
from sampled import rows

TWO = Compile(steps=2, backend="aot_eager")
EQUATIONS: dict[str, Callable[[Grid1D, Any], nn.Module]] = {
    "Burgers": lambda grid, nu: Burgers(grid, nu, "spectral", "spectral"),
    "FisherKPP": lambda grid, d: FisherKPP(grid, d, d) + Source(grid, lambda t, x, u: torch.cos(t) * torch.sin(x) * u),  # at points
    "CahnHilliard": lambda grid, gamma: 1e-2 * CahnHilliard(grid, gamma),
    "the others": lambda grid, d: (
        1e-3 * KortewegDeVries(grid)  # the symbol of the first has both parts
        + Advection(grid, d, "upwind1")
        + 1e-5 * (KuramotoSivashinsky(grid) + SwiftHohenberg(grid, d))
        + AllenCahn(grid, d, "spectral")
    ),
}


class OwnModes(LinearOperator):
    def forward(self, u: Tensor) -> Tensor:
        return torch.fft.rfft(u)

    def inverse(self, v: Tensor) -> Tensor:
        return torch.fft.irfft(v, n=12)


class Decay(nn.Module):
    """du/dt = L u - u^3, L with an operator of its own; at 12 points its last mode has a symbol that is not real."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        k = torch.arange(7, dtype=torch.float64)
        self.linear = operator(torch.complex(-(k**2), k))

    def forward(self, t: Any, u: Tensor) -> Tensor:
        return self.linear(u) - u**3

    def split(self) -> tuple[Any, Any]:
        return self.linear, lambda t, u: -(u**3)


def start(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.sin(torch.arange(2 * n, dtype=dtype)).reshape(2, n)


def found(f: nn.Module, n: int, **options: Any) -> list[Tensor]:
    """The state, and the gradients in the start and the coefficient."""
    u = start(n).requires_grad_()
    end = odeint(f, u, [0.0, 0.01], **options)[-1]
    assert end.isfinite().all() and (end - u).abs().max() > 1e-4
    return [end.detach(), *torch.autograd.grad(end.square().sum(), [u, *f.parameters()])]


SLOW = [
    ("FisherKPP", "imex2", "checkpoint", 15),
    ("CahnHilliard", "etdrk4", "checkpoint", 15),
    ("the others", "exponential_euler", "direct", 12),
]


@pytest.mark.parametrize(
    ("name", "method", "adjoint", "n"),
    [("Burgers", "exponential_euler", "direct", 12), *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)],
)
def test_states_and_gradients_are_those_of_the_plain_solve(name: str, method: str, adjoint: str, n: int) -> None:
    f = EQUATIONS[name](Grid1D(n), nn.Parameter(torch.tensor(0.05, dtype=torch.float64)))
    options: dict[str, Any] = {"n": n, "method": method, "adjoint": adjoint, "grid": [0.0, 0.002, 0.01]}
    for a, b in zip(found(f, **options), found(f, **options, compile=TWO), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", rows(["etdrk4", "exponential_euler"], quick=["exponential_euler"]))
def test_a_simulation_is_one_call_of_a_compiled_loop(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision too; states between are those of fields: a last mode whose symbol is not real is made real in every step."""
    calls, of = set[str](), compiled.Graphs.of
    monkeypatch.setattr(compiled.Graphs, "of", lambda self, a, b, c, steps: calls.add(steps.__name__) or of(self, a, b, c, steps))
    decay = Decay(lambda symbol: FourierOperator(symbol, 12))
    for f, dtype in ((Burgers(Grid1D(12), 0.05, "spectral", "spectral"), torch.float32), (decay, torch.float64)):
        with torch.no_grad():
            fast, plain = (odeint(f, start(12, dtype), [0.0, 0.1, 0.3], steps=7, method=method, compile=how) for how in (FAST, False))
        error = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(fast, plain, rtol=error, atol=error / 10)
    assert calls == {"_loop"}


def test_steps_in_complex_numbers_run_as_they_are_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor has no code for them; a FourierOperator and walls have real ones, and are compiled."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda run, **options: calls.append(options) or run)
    u = torch.linspace(0.1, 1, 12, dtype=torch.float64)
    for method in ("etdrk4", "imex2"):
        decay = Decay(OwnModes)
        solved = lambda decay=decay, method=method, **more: odeint(decay, u, [0.0, 0.1], steps=4, method=method, **more)
        with pytest.warns(UserWarning, match=f"compile=True has no effect with {method} here, .* complex numbers"):
            found = solved(compile=True)
        assert torch.equal(found, solved()) and not calls
        assert torch.equal(found, solved(compile=True))  # said once
        solved(compile=FAST)  # another backend may have code for them
        assert calls.pop()["backend"] == "aot_eager"
        for equation in (Burgers(Grid1D(12, 1.0, Dirichlet(0.1, 1.0)), 0.1), Decay(lambda symbol: FourierOperator(symbol, 12))):
            odeint(equation, u, [0.0, 0.1], steps=4, method=method, compile=True)
            assert calls.pop()["backend"] == "inductor"
