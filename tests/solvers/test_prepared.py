"""What a method needs of a linear part is made once per solve: counted, with the gradients of closed forms, for steps of every length."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Adjoint, CheckpointAdjoint, DirectAdjoint, LinearOperator, odeint, solve
from counting import counted
from problems import SPLITTING

ADJOINTS = [DirectAdjoint(), CheckpointAdjoint(), CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MiB")]
RATIONAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # one step on y' = z y / h
    "exponential_euler": lambda rate, h: torch.exp(rate * h),
    "etdrk4": lambda rate, h: torch.exp(rate * h),
    "imex1": lambda rate, h: 1 / (1 - rate * h),
}
TIMES = {"one length": [0.0, 1.0], "of rounded times": [i / 10 for i in range(11)], "two lengths": [0.0, 0.5, 0.75, 1.0]}
N = 9


class Chain(nn.Module):
    """u' = D M u, M the second difference between zero walls, whose eigenvectors are sines; as a matrix, or diagonal in sines."""

    def __init__(self, kind: str, trained: bool = True) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.tensor(0.8, dtype=torch.float64), requires_grad=trained)
        self.kind = kind
        j = torch.arange(1, N + 1, dtype=torch.float64)
        self.sines = math.sqrt(2 / (N + 1)) * torch.sin(j[:, None] * j * math.pi / (N + 1))
        self.rates = -4 * torch.sin(j * math.pi / (2 * (N + 1))) ** 2
        off = torch.ones(N - 1, dtype=torch.float64)
        self.second = torch.diag(off, 1) + torch.diag(off, -1) - 2 * torch.eye(N, dtype=torch.float64)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.D * u @ self.second

    def split(self) -> tuple[Any, Any]:
        return self.D * self.second if self.kind == "matrix" else Sines(self.D * self.rates, self.sines), lambda t, u: torch.zeros_like(u)

    def by_sines(self, factor: Tensor, u: Tensor) -> Tensor:
        return (u @ self.sines * factor) @ self.sines


class Sines(LinearOperator):
    """An operator of a user's own."""

    def __init__(self, rates: Tensor, basis: Tensor) -> None:
        super().__init__(rates)
        self.basis = basis

    def forward(self, u: Tensor) -> Tensor:
        return u @ self.basis

    def inverse(self, v: Tensor) -> Tensor:
        return v @ self.basis


class Free(nn.Module):
    """du/dt = i c u_xx + i |u|^2 u / 5 of complex u on a ring: by a transform of one's own, or by its matrix."""

    def __init__(self, c: Tensor, matrix: bool) -> None:
        super().__init__()
        self.c, self.matrix, self.k = c, matrix, torch.fft.fftfreq(N, 1 / N, dtype=torch.float64)

    def split(self) -> tuple[Any, Any]:
        rates = -1j * self.c * self.k**2
        modes = torch.fft.fft(torch.eye(N, dtype=torch.complex128)) / math.sqrt(N)
        return modes.mH @ torch.diag(rates) @ modes if self.matrix else Modes(rates), lambda t, u: 0.2j * u.abs() ** 2 * u

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        linear, rest = self.split()
        return linear(u) + rest(t, u)


class Modes(LinearOperator):
    """An operator of a user's own, which torch.fft computes: not of a field without elements."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.fft.fft(u)

    def inverse(self, v: Tensor) -> Tensor:
        return torch.fft.ifft(v)


@pytest.mark.parametrize("shape", [(), (2,), (2, 1)], ids=str)
@pytest.mark.parametrize("method", ["exponential_euler", "etdrk4", "imex1", "imex2", "imex3"])
def test_a_transform_of_ones_own_is_its_matrix(method: str, shape: tuple[int, ...]) -> None:
    found = []
    for matrix in (True, False):
        u0 = torch.polar(torch.linspace(1, 2, N).double(), torch.linspace(0, 3, N).double()).expand(*shape, N).clone().requires_grad_()
        c = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        u = odeint(Free(c, matrix), u0, [0.0, 0.1, 0.25], method=method, steps=2)
        found.append([u, *torch.autograd.grad((u.real * u.imag).sum(), [u0, c])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["matrix", "sines"])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("method", RATIONAL)
def test_states_and_gradients_are_those_of_the_closed_form(method: str, times: str, kind: str) -> None:
    equation, t = Chain(kind), TIMES[times]
    start = torch.linspace(-1, 2, 2 * N, dtype=torch.float64).reshape(2, N).square()
    weight = torch.linspace(-1, 1, N, dtype=torch.float64)

    def loss(u: Tensor) -> Tensor:
        return (u * weight).sin().sum()

    steps, factor, exact, d = 4, torch.ones(N, dtype=torch.float64), [], torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    u0 = start.clone().requires_grad_()
    for before, after in pairwise(t):
        h = torch.tensor((after - before) / steps, dtype=torch.float64)
        factor = factor * RATIONAL[method](d * equation.rates, h) ** steps
        exact.append(equation.by_sines(factor, u0))
    right = torch.autograd.grad(loss(torch.stack(exact)), (u0, d))
    for adjoint in ADJOINTS:
        y0 = start.clone().requires_grad_()
        u = odeint(equation, y0, t, method=method, steps=steps, adjoint=adjoint)
        torch.testing.assert_close(u[1:], torch.stack(exact), rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(loss(u[1:]), (y0, equation.D))
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("method", SPLITTING)
def test_a_solve_factorises_once_per_length(method: str, times: str, trained: bool) -> None:
    equation, u = Chain("matrix", trained), torch.ones(3, N, dtype=torch.float64)
    own = {"etdrk4": 2, "exponential_euler": 1}.get(method, 1)  # exponentials; the diagonals of each IMEX tableau are equal
    lengths = 2 if times == "two lengths" else 1
    for steps in (4, 12):
        seen = counted(lambda steps=steps: odeint(equation, u, TIMES[times], method=method, steps=steps)[-1])
        assert seen.of("matrix_exp", "lu_factor", "solve_ex", "inv_ex", "eig") == own * lengths


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=["direct", "checkpoint", "slots", "memory"])
@pytest.mark.parametrize("method", ["etdrk4", "imex2"])
def test_a_backward_pass_factorises_no_more_with_more_steps(method: str, adjoint: Adjoint) -> None:
    def seen(steps: int) -> int:
        equation, u = Chain("matrix"), torch.ones(N, dtype=torch.float64)
        return counted(lambda: odeint(equation, u, [0.0, 1.0], method=method, steps=steps, adjoint=adjoint).sum().backward()).of(
            "matrix_exp", "lu_factor", "solve_ex", "inv_ex", "eig"
        )

    assert seen(4) == seen(12) <= 4


def test_what_is_not_trained_is_kept_for_the_next_solve() -> None:
    equation, u, linear = Chain("sines", trained=False), torch.ones(N, dtype=torch.float64), []
    equation.split = lambda: (linear[0], lambda t, u: torch.zeros_like(u))  # pyright: ignore[reportAttributeAccessIssue]
    linear.append(LinearOperator.of(equation.D * equation.second))
    run = lambda: odeint(equation, u, [0.0, 1.0], method="etdrk4", steps=3)
    assert counted(run).of("matrix_exp") == 2 and counted(run).of("matrix_exp") == 0


def test_a_shorter_step_to_an_event_has_functions_of_its_own() -> None:
    equation, u0 = Chain("sines"), torch.ones(N, dtype=torch.float64)
    found = solve(equation, u0, [0.0, 1.0], method="etdrk4", steps=4, event=lambda t, u: u[0] - 0.68)
    assert found.event_time is not None and 0.05 < found.event_time.item() % 0.25 < 0.2
    exact = equation.by_sines(torch.exp(equation.D * equation.rates * found.event_time), u0)
    torch.testing.assert_close(found.ys[-1], exact, rtol=1e-12, atol=1e-12)
