# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Diagnosing a model
#
# A network trains badly, or not at all. Is its gradient right? Are the steps of its blocks stable? Could the blocks be solved
# backwards? How do the weights move? Four calls answer, on a batch of your own; each prints as a table and holds its numbers.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection, diagnose

torch.manual_seed(0)


class Branch(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t, z):
        return -self.conv2(torch.relu(self.conv1(z)))


def network(adjoint, steps=4):
    block = CoupledODEBlock(
        Branch(6), ReactionDiffusionAdvection(tau=0.02), steps=steps, adjoint=adjoint
    )
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        block,
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).double()


sick = network("backsolve")
with torch.no_grad():
    sick[1].f.conv1.weight.mul_(8)  # as after some steps at too large a rate
    sick[1].f.conv2.weight.copy_(sick[1].f.conv1.weight.transpose(0, 1).flip(-1, -2) / 2)
batch = torch.randn(4, 3, 16, 16, dtype=torch.float64)

# %% [markdown]
# ## Is the gradient right?
#
# Every adjoint's gradient beside the exact one, of plain autograd through the steps, and finite differences as the referee of that.
# This network was made with `adjoint="backsolve"`, which solves backwards, as the first neural ODEs did.

# %%
report = diagnose.gradient_report(sick, batch)
print(report)

# %% [markdown]
# The default, "checkpoint", is exact on the very same network; nothing else need change.

# %%
healthy = copy.deepcopy(sick)
healthy[1].adjoint = "checkpoint"
cured = diagnose.gradient_report(healthy, batch)
print(cured.verdict)

# %% [markdown]
# ## Why does it go wrong backwards?
#
# The block solved forwards and back again, on the features that it gets. Read the table from below, where the way back starts.

# %%
with torch.no_grad():
    features = sick[0](batch)
back = diagnose.reversibility(sick[1], features)
print(back)

# %% [markdown]
# ## Are the steps stable?
#
# The eigenvalues of df/dz that matter, against the region of the method. Steps outside make modes grow that the equation damps.

# %%
stable = diagnose.stability(sick[1], features)
print(stable)

# %%
limits = {}
for factor in (0.25, 0.5, 1.0):
    trial = copy.deepcopy(sick[1])
    with torch.no_grad():
        trial.f.conv2.weight.mul_(factor)
    limits[factor] = diagnose.stability(trial, features).limit
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.loglog(list(limits), list(limits.values()), "o-", label="longest stable step")
axis.axhline(1 / 4, color="k", lw=0.8, ls=":", label="the step of the block")
axis.set(xlabel="factor on the second convolution", ylabel="step")
_ = axis.legend()

# %% [markdown]
# As many steps as the report asks for, and the block is stable. (A better initialisation costs less.)

# %%
more = network("checkpoint", stable.steps_needed)
more.load_state_dict(sick.state_dict())
better = diagnose.stability(more[1], features)
print("steps:", more[1].steps, "| stable:", better.inside)

# %% [markdown]
# ## How do the weights move?

# %%
path = diagnose.weight_path(sick[1])
print(path)

# %% [markdown]
# What this notebook promised:

# %%
assert not report.ok and "backsolve" in report.bad and cured.ok
assert back.worst > 0.1 and not stable.inside and better.inside
assert path.moving_most in sick[1].evolving

# %% [markdown]
# From here: [all of it read aloud](../diagnose.md), [what is guaranteed](../gradients.md#what-is-guaranteed),
# [choosing](../choosing.md)
