# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train on CIFAR
#
# 2,000 images of CIFAR-10 for training and 500 for testing come with the repository. A ResNet-4 whose only block is a coupled ODE,
# 7,700 parameters and the few of its dynamics, is trained on them in seconds; what it learns from so little is far above chance and far
# below what the full set gives. For that, and for anything serious, there is `examples/train_cifar.py`, with augmentation, checkpoints
# and runs that can be continued ([training](../training.md)).

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import anodev2
from anodev2.diagnose import weight_path
from anodev2.models import resnet4

root = Path(anodev2.__file__).parents[1]
sys.path.insert(0, str(root / "examples"))  # the scripts of the repository
from images import load_images  # noqa: E402

torch.manual_seed(0)
images = load_images("mini", root, torch.device("cpu"))
x, y = images.normalised(images.x_train), images.y_train
x_test, y_test = images.normalised(images.x_test), images.y_test
print(tuple(x.shape), tuple(x_test.shape))

# %% [markdown]
# ## The network
#
# With `block="residual"` it would be the residual network, with `block="ode"` an ODE whose weights rest; names and shapes of its
# parameters are the same. Memory is no question here, so `adjoint="direct"` keeps what the gradient needs; the default would redo each
# step.

# %%
network = resnet4(block="coupled", steps=2, adjoint="direct")
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

# %% [markdown]
# ## Training
#
# An ordinary loop. One thing is particular: a diffusivity tau is at least 0, which an optimizer does not know; `project` sets it back
# after a step.

# %%
EPOCHS, BATCH = 2, 40
optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=0.1, total_steps=EPOCHS * len(x) // BATCH
)
block = next(m for m in network.modules() if isinstance(m, anodev2.CoupledODEBlock))
optimizer.register_step_post_hook(block.dynamics.project)


def accuracy():
    network.eval()
    with torch.no_grad():
        right = (network(x_test).argmax(1) == y_test).float().mean().item()
    network.train()
    return 100 * right


losses, accuracies = [], [accuracy()]
for epoch in range(EPOCHS):
    for chosen in torch.randperm(len(x)).split(BATCH):
        batch = x[chosen]
        if torch.rand(()) < 0.5:
            batch = batch.flip(-1)  # mirrored
        loss = nn.functional.cross_entropy(network(batch), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    accuracies.append(accuracy())
    loss = sum(losses[-len(x) // BATCH :]) * BATCH / len(x)
    print(
        f"epoch {epoch + 1}: loss {loss:.2f}, {accuracies[-1]:.1f} % of the test images right"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].plot(losses, lw=0.8)
axes[0].set(xlabel="updates", ylabel="training loss")
axes[1].plot(accuracies, "o-")
axes[1].axhline(10, color="k", lw=0.6, ls=":")
_ = axes[1].set(xlabel="epochs", ylabel="% of test images right")

# %% [markdown]
# ## What it sees
#
# Eight test images drawn by lot, the class found and, where it is another one, the true class.

# %%
network.eval()
drawn = torch.randperm(len(x_test))[:8]
with torch.no_grad():
    found = network(x_test[drawn]).argmax(1)
figure, axes = plt.subplots(1, 8, figsize=(10, 1.7), layout="constrained")
rows = zip(axes, images.x_test[drawn], found.tolist(), y_test[drawn].tolist(), strict=True)
for axis, image, a, b in rows:
    axis.imshow(image.numpy())
    axis.set_title(images.names[a] + ("" if a == b else f"\n({images.names[b]})"), fontsize=8)
    axis.axis("off")

# %% [markdown]
# And how its kernels move while an image passes:

# %%
path = weight_path(block)
print(path)

# %% [markdown]
# What this notebook promised:

# %%
assert accuracies[-1] > 28, accuracies
assert all(change > 0 for change in path.changes["conv1.weight"][1:])

# %% [markdown]
# From here: [diagnosing a model](diagnosing.py), [the networks](../models.md), [training](../training.md)
