# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # First solve
#
# A spring with friction, x'' = −x − 2 d x'. Its solution is known, so that we can see what a solver makes of it, how wrong it is, and
# whether its gradient is right.

# %%
import math

import matplotlib.pyplot as plt
import torch

from anodev2 import Event, odeint, solve

torch.set_default_dtype(torch.float64)


def spring(t, y, d):  # y = (place, velocity)
    return torch.stack([y[1], -y[0] - 2 * d * y[1]])


def exact(t, d):
    """The place of a spring that starts at 1, at rest."""
    w = (1 - d**2) ** 0.5
    return torch.exp(-d * t) * (torch.cos(w * t) + d / w * torch.sin(w * t))


# %% [markdown]
# `odeint` takes the right-hand side, the state at the first time, and the times at which the state is wanted. A method of fixed steps
# is told how many lie between two of them. What comes back has a row for each time.

# %%
start, times = torch.tensor([1.0, 0.0]), torch.linspace(0, 20, 101)
y = odeint(spring, start, times, method="rk4", steps=2, args=(0.1,))
off = (y[:, 0] - exact(times, torch.tensor(0.1))).abs().max()
print("states:", tuple(y.shape), "| furthest from the solution:", f"{off:.1e}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(times, y[:, 0], ".", ms=3, label="rk4")
axes[0].plot(times, exact(times, torch.tensor(0.1)), "k", lw=0.6, label="solution")
axes[0].set(xlabel="t", ylabel="place")
axes[0].legend()
axes[1].plot(y[:, 0], y[:, 1], lw=1)
_ = axes[1].set(xlabel="place", ylabel="velocity")

# %% [markdown]
# ## How many steps?
#
# Halve the steps and look what is left of the error: a half with a method of order 1, a sixteenth with one of order 4.

# %%
counts = [20, 40, 80, 160, 320]
end = exact(torch.tensor(20.0), torch.tensor(0.1))
errors = {}
for method in ("euler", "midpoint", "rk4", "dopri5"):
    ends = [
        odeint(spring, start, [0.0, 20.0], method=method, steps=n, args=(0.1,)) for n in counts
    ]
    errors[method] = [abs(y[-1, 0] - end).item() for y in ends]
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for method, row in errors.items():
    order = math.log2(row[-2] / row[-1])
    axis.loglog(counts, row, "o-", ms=4, label=f"{method}: order {order:.1f} at last")
axis.set_xticks(counts, counts)
axis.minorticks_off()
axis.set(xlabel="steps", ylabel="error of the place at t = 20")
_ = axis.legend()

# %% [markdown]
# Or leave it to the solver: with `rtol` and `atol` it chooses its steps. `solve` also tells what it took.

# %%
to = {"rtol": 1e-8, "atol": 1e-8}
solution = solve(spring, start, [0.0, 20.0], method="dopri5", **to, args=(0.1,))
print(solution.stats)
print("off by", f"{abs(solution.ys[-1, 0] - end):.0e}")

# %% [markdown]
# ## The gradient
#
# Let the friction d require a gradient, and the place at t = 20 has one. It is the derivative of what was computed, to round-off,
# however many steps there were; with small steps that is the derivative of the solution too.

# %%
d = torch.tensor(0.1, requires_grad=True)
place = odeint(spring, start, [0.0, 20.0], method="dopri8", steps=200, args=(d,))[-1, 0]
(gradient,) = torch.autograd.grad(place, d)
(known,) = torch.autograd.grad(exact(torch.tensor(20.0), d), d)
print(f"{gradient:.10f}, of the solution {known:.10f}")

# %% [markdown]
# ## When does it happen?
#
# An event is a function that passes through zero. Here the spring passes its place of rest; the solve ends there, and the time of the
# event has a gradient as well. In closed form the time is (π/2 + arcsin d) / √(1 − d²).

# %%
to, event = {"rtol": 1e-12, "atol": 1e-12}, Event(lambda t, y: y[0])
rest = solve(spring, start, [0.0, 10.0], method="dopri8", **to, args=(d,), event=event)
(slope,) = torch.autograd.grad(rest.event_time, d)
closed = (math.pi / 2 + torch.asin(d)) / torch.sqrt(1 - d**2)
(closed_slope,) = torch.autograd.grad(closed, d)
print(f"at t = {rest.event_time:.10f}, later by {slope:.8f} per unit of friction")

# %% [markdown]
# What this notebook promised:

# %%
assert abs(math.log2(errors["rk4"][-2] / errors["rk4"][-1]) - 4) < 0.15
assert abs(gradient - known) < 1e-10
assert abs(rest.event_time - closed) < 1e-9 and abs(slope - closed_slope) < 1e-8

# %% [markdown]
# From here: [a coupled block](coupled_block.py), [choosing a method](../choosing.md), [which gradient am I getting?](../gradients.md)
