# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A coupled block
#
# A residual block is a step of dz/dt = f(z, θ). Here θ has an equation of its own: the weights move while the features do. First one
# looks at that movement, then two small networks are trained on a task that weights at rest cannot solve.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from anodev2 import CoupledODEBlock, NeuralDynamics, ODEBlock, ReactionDiffusionAdvection
from anodev2.diagnose import weight_path

torch.manual_seed(0)


class Branch(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3)

    def forward(self, t, z):
        return torch.tanh(self.conv(z))


# %% [markdown]
# ## Kernels that are fields
#
# `ReactionDiffusionAdvection` treats every kernel as a small periodic picture: `tau` blurs it, `upsilon` carries it along either axis,
# `rho` lets it grow. What stands in the `state_dict`, under the names of your module, is θ at t = 0.

# %%
dynamics = ReactionDiffusionAdvection(tau=0.05, upsilon=(0.0, -3.0), rho=0.3)
block = CoupledODEBlock(Branch(4), dynamics, steps=5)
with torch.no_grad():  # a pattern that one can follow
    block.f.conv.weight.mul_(0.2)[:, :, 2:5, 1:3] += 1.0
stays = [name for name, _ in block.f.named_parameters() if name not in block.evolving]
print("moves:", block.evolving, "| stays:", stays)

times = [0.0, 0.25, 0.5, 0.75, 1.0]
path = block.weights(times)["conv.weight"].detach()
figure, axes = plt.subplots(1, len(times), figsize=(9, 2), layout="constrained")
for axis, t, kernels in zip(axes, times, path, strict=True):
    axis.imshow(kernels[0, 0].numpy(), vmin=-1.2, vmax=1.2, cmap="RdBu_r")
    axis.set(title=f"t = {t}", xticks=[], yticks=[])
print(weight_path(block))

# %% [markdown]
# The path does not depend on the features: it is computed once per pass, here in closed form, for the whole batch. With nothing that
# moves the block is the `ODEBlock` of the same f, to the bit; with one step, the residual block.

# %%
z = torch.randn(2, 4, 16, 16)
still = CoupledODEBlock(block.f, ReactionDiffusionAdvection(tau=0.0), steps=5)
same = torch.equal(still(z), ODEBlock(block.f, steps=5)(z))
residual = torch.equal(ODEBlock(block.f, steps=1)(z), z + block.f(0.0, z))
print("at rest, an ODEBlock:", same, "| one step, a residual block:", residual)

# %% [markdown]
# ## What weights at rest cannot do
#
# Turn the plane by half a turn and stretch it: z(1) = −diag(1/2, 2) z(0). For dz/dt = A z + b with A at rest, the mean squared distance
# from that, on the unit circle, is more than 9/32, whatever A and b: the matrix wanted has no real square root. With dA/dt = p (J A − A
# J), one number p more and b left out, A turns and the task is solved. (Why it is 9/32 stands in `examples/coupled_vs_static.py`.)

# %%
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
angle = torch.arange(16) * 2 * math.pi / 16
circle = torch.stack([angle.cos(), angle.sin()], 1)
wanted = circle * torch.tensor([-0.5, -2.0])


class Linear(nn.Linear):
    def forward(self, t, z):
        return super().forward(z)


class Turning(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def forward(self, t, theta):
        return {name: self.p * (TURN @ A - A @ TURN) for name, A in theta.items()}


def train(network, updates=250):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    losses = []
    for _ in range(updates):
        loss = (network(circle) - wanted).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


static = ODEBlock(Linear(2, 2), steps=6, method="rk4", adjoint="direct")
coupled = CoupledODEBlock(
    Linear(2, 2, bias=False), NeuralDynamics(Turning()), steps=6, method="rk4", adjoint="direct"
)
losses = {"at rest, 6 parameters": train(static), "that turn, 5 parameters": train(coupled)}

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name, row in losses.items():
    axes[0].semilogy(row, label="weights " + name)
axes[0].axhline(9 / 32, color="k", lw=0.6, ls=":")
axes[0].set(xlabel="updates", ylabel="loss")
axes[0].legend(fontsize=8)
with torch.no_grad():
    ways = coupled.trajectory(circle)
axes[1].plot(ways[:, ::4, 0], ways[:, ::4, 1], "o-", lw=1, ms=3)
axes[1].plot(*wanted.T, "k.", ms=5)
axes[1].set(title="four points, step by step", aspect="equal")
print({name: f"{row[-1]:.1e}" for name, row in losses.items()})

# %% [markdown]
# ## Without the solver
#
# A block that is trained can be written out: a copy of f for every time at which the features read θ, plain layers for export.

# %%
plain = coupled.unroll()
same_as_unrolled = torch.allclose(plain(circle), coupled(circle), atol=1e-6)
print("the same:", same_as_unrolled, "|", len(plain.state_dict()), "matrices")

# %% [markdown]
# What this notebook promised:

# %%
assert same and residual
assert losses["at rest, 6 parameters"][-1] > 9 / 32
assert losses["that turn, 5 parameters"][-1] < 0.02

# %% [markdown]
# From here: [train on CIFAR](train_cifar.py), [how weights can move](../models.md#dynamics-and-what-they-cost), [a coupled system of
# your own](../coupled.md)
