"""A recomputed step is the same step: random numbers, buffers, flags and precision are those of the forward pass.

Every test compares with ``adjoint="direct"``, which never recomputes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anodev2 import ODEBlock, odeint

T = [0.0, 0.5, 1.0]


def both(
    net: nn.Module, run: Callable[[nn.Module, str], Tensor], change: Callable[[nn.Module], Any] | None = None
) -> list[dict[str, Tensor]]:
    """Gradients, buffers and the generator's state after forward and backward with each adjoint, from equal copies of net.

    ``change`` happens between forward and backward.
    """
    ends = []
    for adjoint in ("direct", "checkpoint"):
        own = copy.deepcopy(net)
        torch.manual_seed(5)
        loss = run(own, adjoint)
        if change is not None:
            change(own)
        loss.backward()
        end = {f"gradient of {name}": p.grad for name, p in own.named_parameters() if p.grad is not None}
        ends.append(end | dict(own.named_buffers()) | {"random": torch.get_rng_state()})
    return ends


def assert_equal(ends: list[dict[str, Tensor]], rtol: float = 1e-12) -> None:
    direct, checkpoint = ends
    assert direct.keys() == checkpoint.keys() and any(name.startswith("gradient") for name in direct)
    for name, expected in direct.items():
        torch.testing.assert_close(checkpoint[name], expected, rtol=rtol, atol=rtol, msg=lambda m, name=name: f"{name}: {m}")


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6).double()
        self.dropout = nn.Dropout(0.4)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.dropout(self.linear(z)))


def solve(net: nn.Module, adjoint: str) -> Tensor:
    return odeint(net, torch.ones(3, 6).double(), T, steps=3, method="midpoint", adjoint=adjoint).square().sum()


def test_dropout_is_replayed_and_the_generator_is_left_where_it_was() -> None:
    assert_equal(both(Dropping(), solve))


def test_random_draws_of_only_some_steps_are_replayed() -> None:
    class Sometimes(Dropping):
        def forward(self, t: Tensor, z: Tensor, *, step: int = 0) -> Tensor:
            return super().forward(t, z) if step in (1, 4) else self.linear(z)

    assert_equal(both(Sometimes(), solve))


def test_private_generators_are_replayed() -> None:
    class Noisy(Dropping):
        generator: Any = None

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.linear(z) * torch.rand(z.shape, generator=self.generator, dtype=z.dtype)

    def run(net: Any, adjoint: str) -> Tensor:
        net.generator = torch.Generator().manual_seed(1)
        return solve(net, adjoint)

    assert_equal(both(Noisy(), run))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.conv(z)))


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_batchnorm_statistics_move_once_per_evaluation() -> None:
    ends = both(Normed(), lambda net, adjoint: odeint(net, image(), T, steps=3, adjoint=adjoint).square().sum())
    assert_equal(ends)
    assert ends[1]["norm.num_batches_tracked"] == 2 * 3 * 4


def test_batchnorm_reached_through_a_function_moves_once() -> None:
    def run(net: nn.Module, adjoint: str) -> Tensor:
        return odeint(lambda t, z: -net(t, z), image(), T, steps=3, adjoint=adjoint).square().sum()

    assert_equal(both(Normed(), run))


def test_buffers_that_enter_the_result_are_those_of_their_step() -> None:
    class Drifting(nn.Module):
        """Every call reads and moves a buffer, as spectral norm's power iteration does."""

        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)).double()
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.count += 1
            return torch.tanh(self.linear(z)) / self.count.clone()

    assert_equal(both(Drifting(), solve))

    def twice(net: nn.Module, adjoint: str) -> Tensor:
        loss = solve(net, adjoint)
        torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        return loss

    assert_equal(both(Drifting(), twice))


def test_training_flags_are_those_of_the_forward_pass() -> None:
    for start in (True, False):
        ends = both(
            Normed().train(start),
            lambda net, adjoint: odeint(net, image(), T, steps=3, adjoint=adjoint).square().sum(),
            change=lambda net, start=start: net.train(not start),
        )
        assert_equal(ends)


def test_a_failing_recompute_leaves_everything_in_its_place() -> None:
    net = Normed()
    loss = odeint(net, image(), T, steps=2).sum()
    before = copy.deepcopy(dict(net.named_buffers()))
    net.eval()
    net.conv.register_forward_hook(lambda *_: 1 / 0)
    random = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    assert not net.norm.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z))


@pytest.mark.parametrize("cast_backward", [False, True])
@pytest.mark.parametrize("cast_forward", [False, True])
def test_autocast_is_that_of_the_forward_pass(cast_forward: bool, cast_backward: bool) -> None:
    """Direct without autocast's cache of cast weights: with it, direct sums the weights' gradients in bfloat16."""
    gradients = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        net, y0 = Mixed(), torch.randn(8, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, cast_forward, cache_enabled=adjoint == "checkpoint"):
            loss = odeint(net, y0, T, steps=3, method="euler", adjoint=adjoint).square().sum()
        with torch.autocast("cpu", torch.bfloat16, cast_backward and adjoint == "checkpoint"):
            gradients.append(torch.autograd.grad(loss, [y0, *net.parameters()]))
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


def test_weights_cast_inside_a_solve_keep_their_gradient_outside() -> None:
    """Autocast caches cast weights; one cached while no graph was recorded must not be used where one is."""
    gradients = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        net = Mixed()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=adjoint == "checkpoint"):
            y = odeint(net, torch.randn(8, 32), T, steps=3, method="euler", adjoint=adjoint)[-1]
            loss = F.linear(y, net.linear.weight).square().sum()  # the same weight, tied
        gradients.append(torch.autograd.grad(loss, [net.linear.weight]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


def test_blocks_in_a_row_and_one_used_twice() -> None:
    torch.manual_seed(0)
    field = Normed()

    def run(net: nn.Module, adjoint: str) -> Tensor:
        block = ODEBlock(net, steps=3, adjoint=adjoint)
        return nn.Sequential(block, nn.Tanh(), block)(image()).square().sum()

    assert_equal(both(field, run))
