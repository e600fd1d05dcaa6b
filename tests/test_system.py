from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledSystem, odeint


class Q(nn.Module):
    def forward(self, t: Tensor, theta: Tensor, z: Tensor) -> Tensor:
        return -theta * z.mean()


@pytest.mark.parametrize(
    ("q", "reads_z"),
    [
        (lambda t, theta: -theta, False),
        (lambda t, theta, z: -theta, True),
        (lambda t, theta, rate=2.0: -rate * theta, False),
        (Q(), True),
    ],
)
def test_whether_q_reads_z_is_read_off_its_signature(q: Any, reads_z: bool) -> None:
    assert CoupledSystem(lambda t, z, theta: z, q).reads_z is reads_z


@pytest.mark.parametrize("q", [lambda t: t, lambda a, b, c, d: a, lambda *args: args[1]])
def test_a_q_that_takes_something_else_is_refused(q: Any) -> None:
    with pytest.raises(TypeError, match=r"q\(t, theta, z\)"):
        CoupledSystem(lambda t, z, theta: z, q)


def test_reads_z_settles_an_open_signature() -> None:
    system = CoupledSystem(lambda t, z, theta: theta * z, lambda *args: -args[1] + 0 * args[2].sum(), reads_z=True)
    z, theta = odeint(system, (torch.ones(3), torch.ones(())), [0.0, 1.0], steps=10)
    assert z.shape == (2, 3) and theta.shape == (2,)
    assert "reads_z=True" in repr(system)


def test_coupled_advection_has_its_closed_form() -> None:
    """z' = c(t) z, c' = -p c: z(1) = z0 exp(c0 (1 - exp(-p)) / p), with both gradients in closed form."""
    c0 = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    z, c = odeint(CoupledSystem(lambda t, z, c: c * z, lambda t, c: -p * c), (torch.ones(2).double(), c0), [0.0, 1.0], steps=50)
    total = c0 * (1 - torch.exp(-p)) / p
    torch.testing.assert_close(z[-1], torch.exp(total).expand(2), rtol=1e-8, atol=0)
    torch.testing.assert_close(c[-1], c0 * torch.exp(-p), rtol=1e-8, atol=0)
    expected = torch.autograd.grad(2 * torch.exp(total), [c0, p])
    torch.testing.assert_close(torch.autograd.grad(z[-1].sum(), [c0, p]), expected, rtol=1e-7, atol=0)


def test_f_may_ask_for_the_step() -> None:
    seen = []

    def f(t: Tensor, z: Tensor, theta: Tensor, *, step: int) -> Tensor:
        seen.append(step)
        return theta * z

    odeint(CoupledSystem(f, lambda t, theta: -theta), (torch.ones(1), torch.ones(1)), [0.0, 1.0], steps=3, method="midpoint")
    assert seen == [0, 0, 1, 1, 2, 2]
