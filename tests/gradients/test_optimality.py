"""The optimality conditions of the coupled problem: discrete gradients against the continuous adjoint and against differences.

alpha(1) = dJ/dz(1),   -alpha' = (df/dz)^T alpha (+ (dq/dz)^T beta where q reads z)
beta(1)  = 0,          -beta'  = (dq/dtheta)^T beta + (df/dtheta)^T alpha
dJ/dtheta_0 = beta(0), dJ/dp = int_0^1 (dq/dp)^T beta dt
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, CoupledSystem, NeuralDynamics, odeint
from anodev2.testing import observed_order

W = np.array([[0.3, -1.1], [0.9, 0.2]])


def f(t: Tensor, z: Tensor, theta: Tensor) -> Tensor:
    return torch.tanh(z @ torch.from_numpy(W).T) * theta + 0.3 * torch.sin(3 * t)


def q_with(p: Tensor):
    return lambda t, theta: -p[0] * theta + p[1] * torch.sin(theta) * t


def gradients(steps: int, method: str = "rk4", adjoint: str = "checkpoint") -> tuple[float, list[Tensor]]:
    """J = |z(1)|^2 / 2 and its derivatives with respect to z0, theta0 and p."""
    z0 = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    theta0 = torch.tensor([1.5, -0.8], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.6, 0.9], dtype=torch.float64, requires_grad=True)
    z, _ = odeint(CoupledSystem(f, q_with(p)), (z0, theta0), [0.0, 1.0], steps=steps, method=method, adjoint=adjoint)
    loss = z[-1].square().sum() / 2
    return loss.item(), list(torch.autograd.grad(loss, [z0, theta0, p]))


def continuous() -> list[np.ndarray]:
    """alpha(0), beta(0) and dJ/dp from the adjoint equations, integrated along the true solution."""
    p = np.array([0.6, 0.9])

    def forward(t: float, y: np.ndarray) -> np.ndarray:
        z, theta = y[:2], y[2:]
        return np.concatenate([np.tanh(W @ z) * theta + 0.3 * np.sin(3 * t), -p[0] * theta + p[1] * np.sin(theta) * t])

    options = {"rtol": 1e-12, "atol": 1e-13, "method": "DOP853"}
    path = solve_ivp(forward, (0, 1), [0.7, -0.4, 1.5, -0.8], dense_output=True, **options)

    def backward(t: float, y: np.ndarray) -> np.ndarray:
        (z, theta), (alpha, beta) = path.sol(t).reshape(2, 2), y[:4].reshape(2, 2)
        s = np.tanh(W @ z)
        dfdz = ((1 - s**2) * theta)[:, None] * W
        dqdtheta = np.diag(-p[0] + p[1] * np.cos(theta) * t)
        dqdp = np.stack([-theta, np.sin(theta) * t], axis=1)
        return -np.concatenate([dfdz.T @ alpha, dqdtheta.T @ beta + np.diag(s).T @ alpha, dqdp.T @ beta])

    end = path.y[:2, -1]
    start = solve_ivp(backward, (1, 0), np.concatenate([end, np.zeros(4)]), **options).y[:, -1]
    return [start[:2], start[2:4], start[4:]]


def test_many_steps_reach_the_continuous_adjoint() -> None:
    _, found = gradients(steps=200)
    for discrete, exact in zip(found, continuous(), strict=True):
        np.testing.assert_allclose(discrete.numpy(), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_discrete_gradient_approaches_it_at_the_order_of_the_method(method: str, order: int) -> None:
    exact = np.concatenate(continuous())
    error = lambda n: np.abs(np.concatenate([g.numpy() for g in gradients(n, method)[1]]) - exact).max()
    assert observed_order(error, (10, 20)) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("steps", [1, 3])
def test_coarse_steps_have_the_exact_gradient_of_the_discrete_program(steps: int) -> None:
    """Central differences of the discrete J, far from the continuous limit."""
    values = [torch.tensor(v, dtype=torch.float64) for v in ([0.7, -0.4], [1.5, -0.8], [0.6, 0.9])]

    def loss(z0: Tensor, theta0: Tensor, p: Tensor) -> float:
        return (
            odeint(CoupledSystem(f, q_with(p)), (z0, theta0), [0.0, 1.0], steps=steps, method="midpoint")[0][-1].square().sum().item() / 2
        )

    _, found = gradients(steps, "midpoint")
    for which, gradient in enumerate(found):
        for i in range(2):
            shifted = [[v.clone() for v in values] for _ in range(2)]
            shifted[0][which][i] += 1e-5
            shifted[1][which][i] -= 1e-5
            difference = (loss(*shifted[0]) - loss(*shifted[1])) / 2e-5
            assert gradient[i].item() == pytest.approx(difference, abs=1e-8)
    if steps == 1:  # and it is not the continuous one
        assert np.abs(found[1].numpy() - continuous()[1]).max() > 1e-3


class Field(nn.Module):
    """f(t, z) = tanh(W z) theta: theta enters as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.5, -0.8], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ torch.from_numpy(W).T) * self.theta


class Reading(nn.Module):
    """q(t, theta, z) = -p0 theta + p1 sin(theta z) t."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.6, 0.9], dtype=torch.float64))

    def forward(self, t: Tensor, theta: dict[str, Tensor], z: Tensor) -> dict[str, Tensor]:
        return {"theta": -self.p[0] * theta["theta"] + self.p[1] * torch.sin(theta["theta"] * z) * t}


Z0 = np.array([[0.7, -0.4], [-0.2, 0.9]])


def both_ways() -> list[np.ndarray]:
    """dJ/dz0 of each sample, dJ/dtheta_0 and dJ/dp summed over them: -alpha' = (df/dz)^T alpha + (dq/dz)^T beta."""
    p, options = np.array([0.6, 0.9]), {"rtol": 1e-12, "atol": 1e-13, "method": "DOP853"}
    starts = []
    for z0 in Z0:

        def forward(t: float, y: np.ndarray) -> np.ndarray:
            z, theta = y[:2], y[2:]
            return np.concatenate([np.tanh(W @ z) * theta, -p[0] * theta + p[1] * np.sin(theta * z) * t])

        path = solve_ivp(forward, (0, 1), [*z0, 1.5, -0.8], dense_output=True, **options)

        def backward(t: float, y: np.ndarray, path: object = path) -> np.ndarray:
            (z, theta), (alpha, beta) = path.sol(t).reshape(2, 2), y[:4].reshape(2, 2)  # type: ignore[attr-defined]
            s, slope = np.tanh(W @ z), p[1] * np.cos(theta * z) * t
            dfdz = ((1 - s**2) * theta)[:, None] * W
            dqdp = np.stack([-theta, np.sin(theta * z) * t], axis=1)
            return -np.concatenate([dfdz.T @ alpha + theta * slope * beta, (z * slope - p[0]) * beta + s * alpha, dqdp.T @ beta])

        starts.append(solve_ivp(backward, (1, 0), np.concatenate([path.y[:2, -1], np.zeros(4)]), **options).y[:, -1])
    return [np.stack(starts)[:, :2], sum(starts)[2:4], sum(starts)[4:]]  # type: ignore[index]


def test_a_rule_that_reads_the_features_adds_its_term() -> None:
    block = CoupledODEBlock(Field(), NeuralDynamics(Reading()), steps=200, method="rk4")
    z0 = torch.tensor(Z0, requires_grad=True)
    found = torch.autograd.grad(block(z0).square().sum() / 2, [z0, *block.parameters()])
    for discrete, exact in zip(found, both_ways(), strict=True):
        np.testing.assert_allclose(discrete.numpy(), exact, rtol=0, atol=1e-8)
