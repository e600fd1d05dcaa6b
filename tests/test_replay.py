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
from torch.utils.checkpoint import checkpoint

from anodev2 import Adjoint, CheckpointAdjoint, ODEBlock, odeint
from anodev2 import solve as solution_of

T = [0.0, 0.5, 1.0]


def both(
    net: nn.Module, run: Callable[[nn.Module, str | Adjoint], Tensor], change: Callable[[nn.Module], Any] | None = None
) -> list[dict[str, Tensor]]:
    """Gradients, buffers and the generator's state after forward and backward with each adjoint, from equal copies of net.

    ``change`` happens between forward and backward.
    """
    ends = []
    for adjoint in ("direct", "checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1MB")):
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
    direct, *others = ends
    assert any(name.startswith("gradient") for name in direct)
    for other in others:
        assert direct.keys() == other.keys()
        for name, expected in direct.items():
            torch.testing.assert_close(other[name], expected, rtol=rtol, atol=rtol, msg=lambda m, name=name: f"{name}: {m}")


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6).double()
        self.dropout = nn.Dropout(0.4)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.dropout(self.linear(z)))


def solve(net: nn.Module, adjoint: str | Adjoint) -> Tensor:
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

    def run(net: Any, adjoint: str | Adjoint) -> Tensor:
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
    def run(net: nn.Module, adjoint: str | Adjoint) -> Tensor:
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

    def twice(net: nn.Module, adjoint: str | Adjoint) -> Tensor:
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


class Shifted(nn.Module):
    """f(t, y) = tanh(linear(y)) + shift, the shift kept as whatever a test makes it."""

    shift: Any = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.linear(y)) + self.shift * y


def shifted_loss(net: nn.Module, adjoint: str | Adjoint = "checkpoint") -> Tensor:
    return odeint(net, torch.ones(3, 6).double(), T, steps=2, adjoint=adjoint).square().sum()


def replace_attribute(net: Any) -> None:
    net.shift = 1.0


def replace_tensor(net: Shifted) -> None:
    net.shift += 1


def test_an_attribute_that_changed_since_the_forward_pass_is_put_back() -> None:
    assert_equal(both(Shifted(), shifted_loss, change=replace_attribute))


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1), "reversible", "backsolve"], ids=str)
def test_a_tensor_modified_since_the_forward_pass_is_noticed(adjoint: Any) -> None:
    net = Shifted()
    net.shift = torch.zeros(6).double()
    loss = shifted_loss(net, adjoint)
    replace_tensor(net)
    with pytest.raises(ValueError, match=r"modified in place between the forward and the backward pass.*adjoint='direct'"):
        loss.backward()


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1), "reversible", "backsolve"], ids=str)
def test_a_loop_variable_bound_late_is_noticed(adjoint: Any) -> None:
    net, y0 = Shifted(), torch.ones(3, 6).double()
    losses = [odeint(lambda t, y: net(t, y.sin() * k), y0, T, steps=2, adjoint=adjoint).sum() for k in (1, 2)]  # noqa: B023
    with pytest.raises(ValueError, match=r"than in the forward pass.*args="):
        torch.stack(losses).sum().backward()


def test_a_factor_that_no_derivative_reads_may_change() -> None:
    """Nothing of it is redone: the gradient is that of the forward pass."""
    y0, ends = torch.ones(3, dtype=torch.float64, requires_grad=True), []
    for adjoint in ("direct", "checkpoint"):
        k = 1
        loss = odeint(lambda t, y: -k * y, y0, [0.0, 1.0], steps=20, method="euler", adjoint=adjoint)[-1].sum()  # noqa: B023
        k = 2
        ends.append(torch.autograd.grad(loss, y0)[0])
    assert torch.equal(*ends)


def test_random_numbers_from_elsewhere_are_noticed() -> None:
    import random

    net = Shifted()
    loss = odeint(lambda t, y: net(t, y * random.random()), torch.ones(3, 6).double(), T, steps=2).sum()
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


def test_a_change_seen_in_the_last_step_alone_is_noticed_and_nan_is_not_a_change() -> None:
    net = Shifted()
    shift = 0.0
    loss = odeint(lambda t, y: net(t, y + (shift if t > 0.7 else 0)), torch.ones(100, 6).double(), T, steps=2, method="euler").sum()
    shift = 1e-3
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()
    (odeint(net, torch.full((3, 6), torch.nan).double(), T, steps=2).sum()).backward()


def test_changing_the_state_in_place_is_refused() -> None:
    net = Shifted()
    with pytest.raises(ValueError, match=r"in place; work on y.clone\(\)"):
        odeint(lambda t, y: net(t, y.mul_(2)), torch.ones(3, 6).double(), T, steps=2)


@pytest.mark.parametrize("grow", ["sum", "cache", "buffer"])
def test_a_tensor_kept_on_a_module_has_its_gradient_or_is_refused(grow: str) -> None:
    class Keeping(Shifted):
        kept: Any

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            slope = super().forward(t, y)
            if grow == "sum":
                self.kept = (0 if self.kept is None else self.kept) + slope.square().sum()
            elif grow == "buffer":
                self.kept = slope
            elif self.kept is None:
                self.kept = torch.tanh(self.linear.weight)
            return slope if grow == "sum" else slope + self.kept.sum()

    def start() -> Keeping:
        torch.manual_seed(0)
        net = Keeping()
        net.register_buffer("kept", torch.zeros(3, 6).double()) if grow == "buffer" else setattr(net, "kept", None)
        return net

    ends = []
    for adjoint in ("direct", "checkpoint", CheckpointAdjoint(memory="1MB")):
        net = start()
        (shifted_loss(net, adjoint) + net.kept.sum()).backward()
        ends.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, ends[0], ends[1])) and all(map(torch.equal, ends[0], ends[2]))
    for adjoint in (CheckpointAdjoint(slots=1), "reversible", "backsolve"):
        with pytest.raises(ValueError, match=r"keeps a tensor with a history.*tensor.detach\(\)"):
            shifted_loss(start(), adjoint)


def test_constants_and_detached_values_may_be_kept() -> None:
    class Keeping(Shifted):
        grid: Any = None

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            if self.grid is None:
                self.grid = torch.linspace(0, 1, 6).double()
            slope = super().forward(t, y) + self.grid
            self.last = slope.detach()
            return slope

    ends = both(Keeping(), shifted_loss)
    assert_equal(ends)
    net = Keeping()
    loss = shifted_loss(net)
    last = net.last
    loss.backward()
    assert net.last is last  # as the forward pass left it


def test_parametrizations_cached_across_the_solve_are_exact_or_refused() -> None:
    ends = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        net = Shifted()
        nn.utils.parametrizations.weight_norm(net.linear)
        with nn.utils.parametrize.cached():
            shifted_loss(net, adjoint).backward()
        ends.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *ends))
    with nn.utils.parametrize.cached():
        loss = shifted_loss(net)
    with pytest.raises(ValueError, match="than in the forward pass"):
        loss.backward()


def test_parameters_swapped_in_or_thawed_are_those_of_the_forward_pass() -> None:
    """functional_call around a block; a network frozen in the forward pass alone (the generator's half of a GAN step)."""
    ends = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        block, y = ODEBlock(Shifted(), steps=3, adjoint=adjoint), torch.ones(3, 6).double().requires_grad_()
        base = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
        fast = {name: 2 * p for name, p in base.items()}
        block.requires_grad_(False)
        loss = torch.func.functional_call(block, fast, (y,)).square().sum() + block(y).sum()
        block.requires_grad_(True)
        loss.backward()
        ends.append([y.grad, *(p.grad for p in base.values())])
        assert all(p.grad is None and p.requires_grad for p in block.parameters())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hooks", ["checkpoint", "save_on_cpu"])
def test_saved_tensor_hooks_around_a_block(hooks: str) -> None:
    ends = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        block, y = ODEBlock(Shifted(), steps=3, adjoint=adjoint), torch.ones(3, 6).double().requires_grad_()
        if hooks == "checkpoint":
            loss = checkpoint(block, y, use_reentrant=False).square().sum()
        else:
            with torch.autograd.graph.save_on_cpu():
                loss = block(y).square().sum()
        loss.backward()
        ends.append([y.grad, *(p.grad for p in block.parameters())])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_buffers_shared_by_modules_or_made_anew_are_replayed() -> None:
    class Sharing(Shifted):
        """Two modules own one buffer, which each call moves in place; another is replaced in each call, a third made in the first."""

        drift: Tensor
        late: Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("drift", torch.ones((), dtype=torch.float64))
            self.register_buffer("late", None)
            self.linear.register_buffer("drift", self.drift)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.drift.add_(0.1)
            self.late = torch.ones(()).double() if self.late is None else self.late * 1.1
            return super().forward(t, y) / self.linear.get_buffer("drift").clone() + self.late * y

    assert_equal(both(Sharing(), shifted_loss))


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_fast_paths_of_inference_are_not_taken() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 1).double().eval()
    mask = torch.tensor([[False, False, True], [False, True, True]])
    ends = []
    for adjoint in ("direct", "checkpoint"):
        y0 = torch.ones(2, 3, 6).double().requires_grad_()
        y = odeint(lambda t, y: net(y, src_key_padding_mask=mask), y0, T, steps=2, adjoint=adjoint)
        ends.append([y, *torch.autograd.grad(y.square().sum(), y0)])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_derivatives_are_taken_outside_autocast() -> None:
    """A region of f without autocast has derivatives in full precision too."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return torch.tanh(self.linear(z))

    ends = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        net = Partly()
        with torch.autocast("cpu", torch.bfloat16):
            loss = odeint(net, torch.randn(8, 32), T, steps=3, adjoint=adjoint).square().sum()
        ends.append(torch.autograd.grad(loss, list(net.parameters())))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z))


@pytest.mark.parametrize("cast_backward", [False, True])
@pytest.mark.parametrize("cast_forward", [False, True])
def test_autocast_is_that_of_the_forward_pass(cast_forward: bool, cast_backward: bool) -> None:
    """Direct without autocast's cache of cast weights: with it, direct sums the weights' gradients in bfloat16.

    Derivatives are autograd's own, under the autocast that it is called in.
    """
    gradients = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        net, y0 = Mixed(), torch.randn(8, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, cast_forward, cache_enabled=adjoint == "checkpoint"):
            loss = odeint(net, y0, T, steps=3, method="euler", adjoint=adjoint).square().sum()
        with torch.autocast("cpu", torch.bfloat16, cast_backward):
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

    def run(net: nn.Module, adjoint: str | Adjoint) -> Tensor:
        block = ODEBlock(net, steps=3, adjoint=adjoint)
        return nn.Sequential(block, nn.Tanh(), block)(image()).square().sum()

    assert_equal(both(field, run))


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
def test_batchnorm_under_error_control_and_events(adjoint: str) -> None:
    """Undoing what a rejected attempt did to statistics is not an in-place change that autograd minds."""
    net, y0 = Normed(), image().requires_grad_()
    odeint(net, y0, [0.0, 1.0], method="bosh3", rtol=1e-3, atol=1e-3, adjoint=adjoint).square().sum().backward()
    found = solution_of(lambda t, z: net(t, z) + 1, y0, T, steps=4, event=lambda t, z: z.mean() - 0.5, adjoint=adjoint)
    assert found.event_time is not None
    found.event_time.backward()


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1MB"), "reversible", "backsolve"])
def test_the_result_of_a_block_may_be_changed_in_place(adjoint: Any) -> None:
    ends = []
    for in_place in (False, True):
        torch.manual_seed(0)
        block, y = ODEBlock(Shifted(), steps=3, adjoint=adjoint), torch.randn(3, 6).double().requires_grad_()
        nn.Sequential(block, nn.ReLU(inplace=in_place))(y).square().sum().backward()
        ends.append([y.grad, *(p.grad for p in block.parameters())])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [20, 2000])
def test_a_change_is_noticed_however_small_the_steps_are(steps: int) -> None:
    k = 1
    loss = odeint(lambda t, y: -(k * y).sin(), torch.ones(3, requires_grad=True), [0.0, 1.0], steps=steps, method="euler")[-1].sum()
    k = 1.001
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("adjoint", ["direct", CheckpointAdjoint(memory="1GB")], ids=str)
def test_a_constant_changed_before_backward_is_noticed_by_kept_graphs(adjoint: Any, steps: int) -> None:
    c, y0 = torch.full((3,), 2.0), torch.ones(3, requires_grad=True)
    loss = odeint(lambda t, y: torch.sin(c * y), y0, [0.0, 1.0], steps=steps, method="euler", adjoint=adjoint)[-1].sum()
    c.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_states_kept_on_the_host_keep_their_strides() -> None:
    net, y0, ends = Shifted(), torch.randn(6, 5).double().t().requires_grad_(), []
    for adjoint in ("checkpoint", CheckpointAdjoint(offload="cpu")):
        ends.append(torch.autograd.grad(odeint(net, y0, T, steps=3, adjoint=adjoint).square().sum(), y0)[0])
    assert torch.equal(*ends)
