"""A coupled system in twelve lines, and the same idea as a layer.

The talk's example: a field z is carried along x by a speed c that itself follows an ODE,

    dz/dt + c(t) dz/dx = 0,    dc/dt = -p c,    z(t, x) = z0(x - C(t)),    C(t) = c0 (1 - exp(-p t)) / p.

With z0 = sin and J = mean(cos(x) z(1, x)) = -sin(C(1)) / 2 the gradients with respect to c0 and p are known in closed form.
"""

import math

import torch
from torch import nn

from anodev2 import CoupledODEBlock, CoupledSystem, ReactionDiffusionAdvection, odeint
from anodev2.pde import Advection, Grid1D
from options import script


def main() -> dict[str, float]:
    # --- the README's code -------------------------------------------------------------------------------------------
    grid = Grid1D(n=32, length=2 * math.pi)
    c0 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)  # initial speed
    p = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)  # its decay
    x = grid.points(like=c0)

    def f(t, z, c):  # dz/dt = -c dz/dx
        return Advection(grid, c)(t, z)

    def q(t, c):  # dc/dt = -p c
        return -p * c

    z, c = odeint(CoupledSystem(f, q), (torch.sin(x), c0), t=[0.0, 1.0], method="rk4", steps=40)
    J = (torch.cos(x) * z[-1]).mean()
    J.backward()
    print(f"J = {J.item():.6f}, c(1) = {c[-1].item():.6f}, dJ/dc0 = {c0.grad:.6f}, dJ/dp = {p.grad:.6f}")
    # -----------------------------------------------------------------------------------------------------------------
    assert c0.grad is not None and p.grad is not None
    decay = math.exp(-0.5)
    shift, dshift_dc0, dshift_dp = 2 * (1 - decay), 2 * (1 - decay), 2 * decay - 4 * (1 - decay)
    errors = {
        "dJ/dc0": abs(c0.grad.item() + math.cos(shift) / 2 * dshift_dc0),
        "dJ/dp": abs(p.grad.item() + math.cos(shift) / 2 * dshift_dp),
    }
    for name, error in errors.items():
        print(f"{name}: {error:.1e} from the closed form")
        assert error < 1e-6, name

    class Branch(nn.Module):  # dz/dt = tanh(conv z); the kernel is theta(0)
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.conv(z))

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        CoupledODEBlock(Branch(), ReactionDiffusionAdvection(tau=0.02), steps=5),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 10),
    )
    network(torch.randn(4, 3, 16, 16)).square().mean().backward()
    for name, parameter in network[1].named_parameters():
        assert parameter.grad is not None
        print(f"block gradient {name}: norm {parameter.grad.norm():.2e}")
    return errors


if __name__ == "__main__":
    script(main, __doc__)
