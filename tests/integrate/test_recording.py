"""A redone step is the same step: random numbers, buffers, attributes, flags and precision are those of the forward pass.

Every test compares with ``adjoint="direct"``, which never redoes any; in float64 to the bit.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anodev2 import Adjoint, CheckpointAdjoint, ODEBlock, odeint
from anodev2 import solve as solution_of
from sampled import rows

T = [0.0, 0.5, 1.0]
WHOLE = {  # with the graph of the forward pass
    "checkpoint": CheckpointAdjoint(),
    "memory": CheckpointAdjoint(memory="1MB"),
    "offload": CheckpointAdjoint(offload="cpu"),
}
SLOTS = {"slots=1": CheckpointAdjoint(slots=1), "slots=2": CheckpointAdjoint(slots=2)}
CHECKPOINTS = WHOLE | SLOTS
REDOING = ["checkpoint", "offload", *SLOTS]
DIFFERS = r"a step redone in a backward pass (came out|led to|saved).* than in the forward pass, so its gradient would be wrong.*args="


def both(
    net: nn.Module,
    run: Callable[[Any, str | Adjoint], Tensor],
    change: Callable[[Any], Any] | None = None,
    among: dict[str, CheckpointAdjoint] = CHECKPOINTS,
) -> list[dict[str, Tensor]]:
    """Gradients, buffers and the generator's state after forward and backward with each adjoint, from equal copies of net.

    ``change`` happens between forward and backward.
    """
    ends = []
    for adjoint in ("direct", *among.values()):
        own = copy.deepcopy(net)
        torch.manual_seed(5)
        loss = run(own, adjoint)
        if change is not None:
            change(own)
        loss.backward()
        end = {f"gradient of {name}": p.grad for name, p in own.named_parameters() if p.grad is not None}
        ends.append(end | dict(own.named_buffers()) | {"random": torch.get_rng_state()})
    return ends


def assert_equal(ends: list[dict[str, Tensor]], rtol: float = 0.0) -> None:
    direct, *others = ends
    assert any(name.startswith("gradient") for name in direct)
    for other in others:
        assert direct.keys() == other.keys()
        for name, expected in direct.items():
            torch.testing.assert_close(other[name], expected, rtol=rtol, atol=100 * rtol, msg=lambda m, name=name: f"{name}: {m}")


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
    assert all(end["norm.num_batches_tracked"] == 2 * 3 * 4 for end in ends)


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MB"), "reversible"], ids=str)
def test_statistics_moved_by_another_pass_stay_as_that_left_them(adjoint: Any) -> None:
    net = Normed()
    losses = [odeint(net, scale * image(), T, steps=3, adjoint=adjoint).square().sum() for scale in (1.0, 2.0)]
    left = {name: value.clone() for name, value in net.norm.named_buffers()}
    for loss in losses:
        loss.backward()
        assert all(torch.equal(value, left[name]) for name, value in net.norm.named_buffers())


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


@pytest.mark.parametrize("adjoint", CHECKPOINTS)
def test_a_failing_step_leaves_everything_in_its_place(adjoint: str) -> None:
    net = Normed()
    loss = odeint(net, image(), T, steps=2, adjoint=CHECKPOINTS[adjoint]).sum()
    before = copy.deepcopy(dict(net.named_buffers()))
    net.eval()
    net.conv.register_forward_hook(lambda *_: 1 / 0)
    random = torch.get_rng_state()
    with nullcontext() if adjoint == "memory" else pytest.raises(ZeroDivisionError):  # where nothing is redone
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


@pytest.mark.parametrize("change", [1.0, torch.ones(6).double()], ids=["number", "tensor"])
def test_an_attribute_replaced_since_is_that_of_the_forward_pass(change: Any) -> None:
    nets: list[Any] = []

    def replace(net: Shifted) -> None:
        net.shift, net.new = change, change
        nets.append(net)

    net = Shifted()
    net.shift = 0.0 * change
    assert_equal(both(net, shifted_loss, replace))
    assert all(net.shift is change and net.new is change for net in nets)  # as the pass backward found it


def test_an_attribute_that_is_looked_for_is_there_when_it_was_there() -> None:
    class Looking(Shifted):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return super().forward(t, y) * (2 if hasattr(self, "twice") else 1)

    def with_it(net: Any, adjoint: str | Adjoint) -> Tensor:
        net.twice = True
        return shifted_loss(net, adjoint)

    assert_equal(both(Looking(), shifted_loss, lambda net: setattr(net, "twice", True)))
    assert_equal(both(Looking(), with_it, lambda net: delattr(net, "twice")))


def test_parameters_and_buffers_replaced_since_are_those_of_the_forward_pass() -> None:
    class Owning(Shifted):
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((6,), 0.5).double())

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return super().forward(t, y) * self.scale

    ends = []
    for adjoint in ("direct", *CHECKPOINTS.values()):
        torch.manual_seed(0)
        net: Any = Owning()
        weight, loss = net.linear.weight, shifted_loss(net, adjoint)
        new = net.linear.weight = nn.Parameter(2 * weight.detach())
        scale = net.scale = torch.ones(6).double()
        loss.backward()
        assert net.linear.weight is new and new.grad is None and net.scale is scale and bool((scale == 1).all())
        ends.append([weight.grad, net.linear.bias.grad])
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


@pytest.mark.parametrize("adjoint", [*CHECKPOINTS.values(), "reversible", "backsolve"], ids=str)
def test_a_tensor_modified_since_the_forward_pass_is_noticed(adjoint: Any) -> None:
    net = Shifted()
    net.shift = torch.zeros(6).double()
    loss = shifted_loss(net, adjoint)
    net.shift += 1
    held = adjoint == WHOLE["memory"]  # what is saved is still there: autograd's own error
    message = "modified by an inplace operation" if held else r"in place between the forward and the backward pass.*adjoint='direct'"
    with pytest.raises(RuntimeError if held else ValueError, match=message):
        loss.backward()


@pytest.mark.parametrize("adjoint", REDOING)
def test_a_tensor_that_is_read_but_not_saved_must_not_be_modified_either(adjoint: str) -> None:
    """A mask that leads to one branch or the other: no version that autograd looks at would tell."""
    mask, net = torch.ones(6).double(), Shifted()
    f = lambda t, y: net(t, y) if mask.sum() > 3 else -net(t, y)
    loss = odeint(f, torch.ones(3, 6).double(), T, steps=2, adjoint=CHECKPOINTS[adjoint]).square().sum()
    mask.mul_(1 + 1e-9)
    with pytest.raises(ValueError, match="modified in place between the forward and the backward pass, so a step cannot be redone"):
        loss.backward()


@pytest.mark.parametrize("adjoint", [*map(CHECKPOINTS.get, REDOING), "reversible", "backsolve"], ids=str)
def test_a_loop_variable_bound_late_is_noticed(adjoint: Any) -> None:
    net, y0 = Shifted(), torch.ones(3, 6).double()
    losses = [odeint(lambda t, y: net(t, y.sin() * k), y0, T, steps=2, adjoint=adjoint).sum() for k in (1, 2)]  # noqa: B023
    with pytest.raises(ValueError, match=DIFFERS):
        torch.stack(losses).sum().backward()


def test_a_factor_that_no_derivative_reads_may_change() -> None:
    """Nothing of it is redone: the gradient is that of the forward pass."""
    y0, ends = torch.ones(3, dtype=torch.float64, requires_grad=True), []
    for adjoint in ("direct", *WHOLE.values()):
        k = 1
        loss = odeint(lambda t, y: -k * y, y0, [0.0, 1.0], steps=20, method="euler", adjoint=adjoint)[-1].sum()  # noqa: B023
        k = 2
        ends.append(torch.autograd.grad(loss, y0)[0])
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_a_term_of_the_last_step_may_change_with_the_graph_and_not_without() -> None:
    """Nothing is saved of it; but the state that the last step leads to is redone where there is no lasting graph."""
    net, ends = Shifted(), []
    for adjoint in ("direct", *CHECKPOINTS.values()):
        shift, y0 = 0.0, torch.ones(100, 6).double().requires_grad_()
        f = lambda t, y: net(t, y) + (shift if t > 0.8 else 0)  # noqa: B023
        loss = odeint(f, y0, T, steps=2, method="midpoint", adjoint=adjoint).square().sum()
        shift = 1e-3
        if adjoint in SLOTS.values():
            with pytest.raises(ValueError, match="came out differently"):
                loss.backward()
        else:
            ends.append(torch.autograd.grad(loss, [y0, *net.parameters()]))
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


@pytest.mark.parametrize("adjoint", REDOING)
def test_random_numbers_from_elsewhere_are_noticed(adjoint: str) -> None:
    import random

    net, own = Shifted(), CHECKPOINTS[adjoint]
    loss = odeint(lambda t, y: net(t, y * random.random()), torch.ones(3, 6).double(), T, steps=2, adjoint=own).sum()
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


@pytest.mark.parametrize("adjoint", REDOING)
@pytest.mark.parametrize("more", [False, True], ids=["less", "more"])
def test_another_branch_is_noticed_by_what_is_saved_or_by_the_graph(adjoint: str, more: bool) -> None:
    """At zero, where all values are the same."""
    net, gradients = Shifted(), []
    with torch.no_grad():
        net.linear.bias.zero_()
    for own in ("direct", CHECKPOINTS[adjoint]):
        longer = not more

        def f(t: Tensor, y: Tensor) -> Tensor:
            y = net(t, 0 * y)
            return y.sin().sin() if longer else y.sin()  # noqa: B023

        loss = odeint(f, torch.zeros(3, 6).double(), T, steps=2, method="euler", adjoint=own).sum()
        longer = more
        if own == "direct" or (more and adjoint in WHOLE):  # what was saved is the same
            gradients.append(torch.autograd.grad(loss, list(net.parameters())))
        else:
            with pytest.raises(ValueError, match=DIFFERS):
                loss.backward()
    assert all(map(torch.equal, gradients[0], gradients[-1]))


@pytest.mark.parametrize("adjoint", REDOING)
@pytest.mark.parametrize("when", [0.0, 0.25, 0.5, 0.75])
def test_a_change_seen_in_one_step_alone_is_noticed_and_nan_is_not_a_change(adjoint: str, when: float) -> None:
    net, shift, own = Shifted(), 0.0, CHECKPOINTS[adjoint]
    f = lambda t, y: net(t, y + (shift if t == when else 0))
    loss = odeint(f, torch.ones(100, 6).double(), T, steps=2, method="euler", adjoint=own).sum()
    shift = 1e-3
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()
    (odeint(net, torch.full((3, 6), torch.nan).double(), T, steps=2, adjoint=own).sum()).backward()


def test_in_the_last_step_all_that_is_saved_is_compared() -> None:
    """A factor whose product is lost in the sum: what is saved last does not tell."""
    weight, factor = torch.ones(3, dtype=torch.float64, requires_grad=True), 1.0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return (weight * (y * factor)).sin() * 1e-30 + y.cos().sin()

    loss = odeint(f, torch.ones(3).double().requires_grad_(), [0.0, 1.0], steps=3, method="euler")[-1].sum()
    factor = 2.0
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


def test_changing_the_state_in_place_is_refused() -> None:
    net = Shifted()
    with pytest.raises(ValueError, match=r"in place; work on y.clone\(\)"):
        odeint(lambda t, y: net(t, y.mul_(2)), torch.ones(3, 6).double(), T, steps=2)


class Keeping(Shifted):
    """Keeps tensors with a history: a penalty summed up, a cached kernel, the last slope in a buffer, the slope before."""

    kept: Any

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.register_buffer("kept", torch.zeros(3, 6).double()) if what == "buffer" else setattr(self, "kept", None)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope = super().forward(t, y)
        if self.what == "sum":
            self.kept = (0 if self.kept is None else self.kept) + slope.square().sum()
        elif self.what == "buffer":
            self.kept = slope
        elif self.what == "before":
            before, self.kept = self.kept, slope
            return slope if before is None else slope - 0.5 * torch.tanh(before)
        elif self.kept is None:
            self.kept = torch.tanh(self.linear.weight)
        return slope if self.what == "sum" else slope + self.kept.sum()


KEPT = ["sum", "cache", "buffer", "before"]


@pytest.mark.parametrize("used", [False, True], ids=["", "in the loss"])
@pytest.mark.parametrize("what", KEPT)
def test_a_tensor_kept_on_a_module_has_the_whole_history_with_the_graph_of_the_forward_pass(what: str, used: bool) -> None:
    def loss(net: Any, adjoint: str | Adjoint) -> Tensor:
        end = shifted_loss(net, adjoint)
        return end + 0.1 * net.kept.square().sum() if used else end

    assert_equal(both(Keeping(what), loss, among=WHOLE))


@pytest.mark.parametrize(("what", "adjoint"), rows(KEPT, [*SLOTS.values(), "tight", "reversible", "backsolve"], quick=3), ids=str)
def test_a_tensor_kept_on_a_module_is_refused_in_the_forward_pass_without_a_lasting_graph(what: str, adjoint: Any) -> None:
    errors = []
    for budget in range(700, 4000, 100):  # the least that holds a schedule at all
        with pytest.raises(ValueError) as error:
            shifted_loss(Keeping(what), CheckpointAdjoint(memory=budget) if adjoint == "tight" else adjoint)
        errors.append(error)
        if "smallest schedule" not in str(error.value):
            break
    assert errors[-1].match(r"keeps a tensor with a history.*tensor.detach\(\).*adjoint='checkpoint'")


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
    for adjoint in CHECKPOINTS.values():
        net = Keeping()
        loss = shifted_loss(net, adjoint)
        last = net.last
        loss.backward()
        assert net.last is last  # as the forward pass left it


def test_parametrizations_cached_across_the_solve_are_exact_or_refused() -> None:
    net, ends = Shifted(), []
    for adjoint in ("direct", *WHOLE.values()):
        torch.manual_seed(0)
        net = Shifted()
        nn.utils.parametrizations.weight_norm(net.linear)
        with nn.utils.parametrize.cached():
            shifted_loss(net, adjoint).backward()
        ends.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))
    with nn.utils.parametrize.cached(), pytest.raises(ValueError, match="keeps a tensor with a history"):
        shifted_loss(net, SLOTS["slots=1"])
    with nn.utils.parametrize.cached():
        loss = shifted_loss(net)
    with pytest.raises(ValueError, match="than in the forward pass"):
        loss.backward()


def test_parameters_swapped_in_or_thawed_are_those_of_the_forward_pass() -> None:
    """functional_call around a block; a network frozen in the forward pass alone (the generator's half of a GAN step)."""
    ends = []
    for adjoint in ("direct", *CHECKPOINTS.values()):
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
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


@pytest.mark.parametrize("hooks", ["checkpoint", "save_on_cpu"])
def test_saved_tensor_hooks_around_a_block(hooks: str) -> None:
    ends = []
    for adjoint in ("direct", *CHECKPOINTS.values()):
        torch.manual_seed(0)
        block, y = ODEBlock(Shifted(), steps=3, adjoint=adjoint), torch.ones(3, 6).double().requires_grad_()
        if hooks == "checkpoint":
            loss = checkpoint(block, y, use_reentrant=False).square().sum()
        else:
            with torch.autograd.graph.save_on_cpu():
                loss = block(y).square().sum()
        loss.backward()
        ends.append([y.grad, *(p.grad for p in block.parameters())])
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


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
    for adjoint in ("direct", *CHECKPOINTS.values()):
        y0 = torch.ones(2, 3, 6).double().requires_grad_()
        y = odeint(lambda t, y: net(y, src_key_padding_mask=mask), y0, T, steps=2, adjoint=adjoint)
        ends.append([y, *torch.autograd.grad(y.square().sum(), y0)])
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


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
    for adjoint in ("direct", *CHECKPOINTS.values()):
        torch.manual_seed(0)
        net = Partly()
        with torch.autocast("cpu", torch.bfloat16):
            loss = odeint(net, torch.randn(8, 32), T, steps=3, adjoint=adjoint).square().sum()
        ends.append(torch.autograd.grad(loss, list(net.parameters())))
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z))


@pytest.mark.parametrize("adjoint", CHECKPOINTS)
@pytest.mark.parametrize("cast_backward", [False, True])
@pytest.mark.parametrize("cast_forward", [False, True])
def test_autocast_is_that_of_the_forward_pass(cast_forward: bool, cast_backward: bool, adjoint: str) -> None:
    """Direct without autocast's cache of cast weights: with it, direct sums the weights' gradients in bfloat16.

    The nodes of a lasting graph are run by autograd under the autocast that it is called in; those of redone steps under none.
    """
    gradients = []
    for own in ("direct", CHECKPOINTS[adjoint]):
        torch.manual_seed(0)
        net, y0 = Mixed(), torch.randn(8, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, cast_forward, cache_enabled=own != "direct"):
            loss = odeint(net, y0, T, steps=3, method="euler", adjoint=own).square().sum()
        with torch.autocast("cpu", torch.bfloat16, cast_backward and (own != "direct" or adjoint in WHOLE)):
            gradients.append(torch.autograd.grad(loss, [y0, *net.parameters()]))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("adjoint", CHECKPOINTS)
def test_derivatives_of_redone_steps_are_taken_without_autocast(adjoint: str) -> None:
    """A part of f in full precision has a gradient in full precision."""

    class Precise(Mixed):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(t, z)

    gradients = []
    for own in ("direct", CHECKPOINTS[adjoint]):
        torch.manual_seed(0)
        net, y0 = Precise(), torch.randn(8, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = odeint(net, y0, T, steps=3, method="euler", adjoint=own).square().sum()
        gradients.append(torch.autograd.grad(loss, [y0, *net.parameters()]))
    assert all(map(torch.equal, *gradients))


def test_weights_cast_inside_a_solve_keep_their_gradient_outside() -> None:
    """Autocast caches cast weights; one cached while no graph was recorded must not be used where one is."""
    gradients = []
    for adjoint in ("direct", *CHECKPOINTS.values()):
        torch.manual_seed(0)
        net = Mixed()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=adjoint != "direct"):
            y = odeint(net, torch.randn(8, 32), T, steps=3, method="euler", adjoint=adjoint)[-1]
            loss = F.linear(y, net.linear.weight).square().sum()  # the same weight, tied
        gradients.append(torch.autograd.grad(loss, [net.linear.weight]))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-6, atol=1e-6)


def test_blocks_in_a_row_and_one_used_twice() -> None:
    torch.manual_seed(0)
    field = Normed()

    def run(net: nn.Module, adjoint: str | Adjoint) -> Tensor:
        block = ODEBlock(net, steps=3, adjoint=adjoint)
        return nn.Sequential(block, nn.Tanh(), block)(image()).square().sum()

    assert_equal(both(field, run, among=WHOLE))
    assert_equal(both(field, run), rtol=1e-14)  # without a lasting graph each solve has its own sum of gradients


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", CheckpointAdjoint(slots=2)], ids=str)
def test_batchnorm_under_error_control_and_events(adjoint: str) -> None:
    """Undoing what a rejected attempt did to statistics is not an in-place change that autograd minds."""
    net, y0 = Normed(), image().requires_grad_()
    odeint(net, y0, [0.0, 1.0], method="bosh3", rtol=1e-3, atol=1e-3, adjoint=adjoint).square().sum().backward()
    found = solution_of(lambda t, z: net(t, z) + 1, y0, T, steps=4, event=lambda t, z: z.mean() - 0.5, adjoint=adjoint)
    assert found.event_time is not None
    found.event_time.backward()


@pytest.mark.parametrize("adjoint", [*CHECKPOINTS.values(), "reversible", "backsolve"], ids=str)
def test_the_result_of_a_block_may_be_changed_in_place(adjoint: Any) -> None:
    ends = []
    for in_place in (False, True):
        torch.manual_seed(0)
        block, y = ODEBlock(Shifted(), steps=3, adjoint=adjoint), torch.randn(3, 6).double().requires_grad_()
        nn.Sequential(block, nn.ReLU(inplace=in_place))(y).square().sum().backward()
        ends.append([y.grad, *(p.grad for p in block.parameters())])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("adjoint", [CHECKPOINTS["checkpoint"], CheckpointAdjoint(slots=20)], ids=str)
@pytest.mark.parametrize("steps", [20, 2000])
def test_a_change_is_noticed_however_small_the_steps_are(steps: int, adjoint: Adjoint) -> None:
    k, y0 = 1.0, torch.ones(3, requires_grad=True)
    loss = odeint(lambda t, y: -(k * y).sin(), y0, [0.0, 1.0], steps=steps, method="euler", adjoint=adjoint)[-1].sum()
    k = 1.1
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("adjoint", ["direct", CheckpointAdjoint(memory="1GB")], ids=str)
def test_a_constant_changed_before_backward_is_noticed_by_kept_graphs(adjoint: Any, steps: int) -> None:
    """Whose versions autograd itself compares where there are no hooks."""
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


def test_a_state_modified_since_the_forward_pass_is_noticed() -> None:
    net, y0 = Shifted(), torch.ones(3, 6).double()
    loss = shifted_loss_from(net, y0)
    y0 += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation: the state before step 0"):
        loss.backward()


def shifted_loss_from(net: nn.Module, y0: Tensor, adjoint: str | Adjoint = "checkpoint") -> Tensor:
    return odeint(net, y0, T, steps=2, adjoint=adjoint).square().sum()


def test_what_the_last_tensor_does_not_show_is_compared_in_the_last_step() -> None:
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    k = 1.0
    f = lambda t, y: torch.stack([torch.tanh(first(k * y[0])), torch.tanh(second(y[1]))])
    loss = odeint(f, torch.ones(2, 3).double(), [0.0, 1.0], steps=3, method="euler").sum()
    k = 1.5
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


@pytest.mark.parametrize("steps", [2, 5])
def test_a_cache_that_the_first_step_fills_is_exact_and_a_later_one_refused(steps: int) -> None:
    def loss(first: float, adjoint: str) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        w, cache = torch.randn(3, 3, dtype=torch.float64, requires_grad=True), {}

        def f(t: Tensor, y: Tensor) -> Tensor:
            if t < first:
                return torch.tanh(y)
            if "kernel" not in cache:
                cache["kernel"] = torch.matrix_exp(w - w.T)
            return torch.tanh(y @ cache["kernel"])

        return odeint(f, torch.ones(2, 3).double(), [0.0, 1.0], steps=steps, method="euler", adjoint=adjoint).square().sum(), w

    ends = [torch.autograd.grad(*loss(0.0, adjoint)) for adjoint in ("direct", "checkpoint")]
    assert torch.equal(ends[0][0], ends[1][0])
    later = loss(0.3, "checkpoint")
    with pytest.raises(ValueError, match="saved other tensors"):
        torch.autograd.grad(*later)


def test_what_a_redone_step_keeps_has_no_gradient_and_says_so() -> None:
    net, kept = Shifted(), {}

    def f(t: Tensor, y: Tensor) -> Tensor:
        slope = net(t, y)
        kept["sum"] = slope.sum()
        return slope

    loss = odeint(f, torch.ones(3, 6).double().requires_grad_(), T, steps=2).square().sum()
    (loss + kept["sum"]).backward()  # of the forward pass
    with pytest.raises(ValueError, match="use what is kept before that backward pass"):
        kept["sum"].backward()


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1), CheckpointAdjoint(memory="1MB"), "backsolve"], ids=str)
@pytest.mark.parametrize("kind", ["weakref", "plain tensors", "a counter"])
def test_hidden_statistics_move_once(kind: str, adjoint: Any) -> None:
    def after(adjoint: Any) -> list[Tensor]:
        torch.manual_seed(0)
        norm, y0 = nn.BatchNorm1d(3, affine=False).double(), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        stats, calls, hidden = [torch.zeros(3).double(), torch.ones(3).double()], torch.zeros(()), weakref.ref(norm)
        f: Any = {
            "weakref": lambda t, y: torch.tanh(hidden()(y)),  # pyright: ignore[reportOptionalCall]
            "plain tensors": lambda t, y: torch.tanh(F.batch_norm(y, *stats, training=True)),
            "a counter": lambda t, y: torch.tanh(y) * calls.add_(1).clone(),
        }[kind]
        odeint(f, y0, [0.0, 1.0], method="euler", steps=4, adjoint=adjoint).sum().backward()
        return [*norm.buffers(), *stats, calls]

    assert all(map(torch.equal, after("direct"), after(adjoint)))


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=1), "reversible", "backsolve"], ids=str)
def test_hidden_statistics_that_only_later_steps_move_are_refused(adjoint: Any) -> None:
    norm = nn.BatchNorm1d(3, affine=False)
    hidden, linear = weakref.ref(norm), nn.Linear(3, 3)
    f: Any = lambda t, y: torch.tanh(hidden()(linear(y)) if t > 0.5 else linear(y))  # pyright: ignore[reportOptionalCall]
    loss = odeint(f, torch.randn(5, 3), [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum()
    with pytest.raises(ValueError, match=r"hidden tensor of shape .* in later steps only"):
        loss.backward()


@pytest.mark.parametrize("adjoint", [CheckpointAdjoint(slots=1), "reversible", "backsolve"], ids=str)
def test_a_hidden_flag_that_changes_the_graph_alone_is_noticed(adjoint: Any) -> None:
    net, hidden = Shifted(), {"stop": False}
    f = lambda t, y: net(t, y.detach() if hidden["stop"] else y) - y
    loss = odeint(f, torch.ones(3, 6).double(), T, steps=2, adjoint=adjoint).square().sum()
    hidden["stop"] = True
    with pytest.raises(ValueError, match="led to another graph"):
        loss.backward()


@pytest.mark.parametrize("inside", ["nothing", "torch.func"])
def test_statistics_move_once_where_a_solve_begins_anew(inside: str) -> None:
    """A budget that the first step shows to be too tight; an f that refuses hooks."""

    class Begun(Normed):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            slope = super().forward(t, z)
            return slope if inside == "nothing" else slope * torch.func.grad(lambda x: x.square())(z.mean())

    torch.manual_seed(0)
    net, ends = Begun(), []
    adjoint = CheckpointAdjoint(memory=30_000) if inside == "nothing" else CheckpointAdjoint()
    for how in ("direct", adjoint):
        own = copy.deepcopy(net)
        found = solution_of(own, image(), [0.0, 1.0], steps=6, method="euler", adjoint=how)
        found.ys.square().sum().backward()
        ends.append([*own.buffers(), *(p.grad for p in own.parameters())])
        assert found.stats.evaluations_forward == 6
    assert all(map(torch.equal, *ends))


def tightest(run: Callable[[CheckpointAdjoint], Any]) -> Any:
    """What comes out with the least budget that holds a schedule."""
    for budget in range(500, 20_000, 100):
        try:
            return run(CheckpointAdjoint(memory=budget))
        except ValueError as error:
            if "smallest schedule" not in str(error):
                raise
    raise AssertionError


class Everything(Normed):
    """Statistics that move, draws, an attribute that counts, an auxiliary number."""

    calls = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(super().forward(t, z), 0.3) * (1 + 0.1 * self.calls)


def test_a_budget_that_all_states_do_not_fit_into_leaves_no_trace_of_the_attempt() -> None:
    ends = []
    for tight in (False, True):
        torch.manual_seed(5)
        net = Everything()
        run = lambda adjoint, net=net: solution_of(net, image(), T, steps=4, method="midpoint", adjoint=adjoint)
        found = tightest(run) if tight else run("direct")
        found.ys.square().sum().backward()
        assert found.stats.evaluations_forward == 16 and (found.stats.recomputed > 8) == tight
        ends.append([*(p.grad for p in net.parameters()), *net.buffers(), torch.get_rng_state(), torch.tensor(net.calls)])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("adjoint", ["direct", *CHECKPOINTS.values()], ids=str)
def test_what_f_saves_and_writes_to_afterwards_is_refused_as_by_autograd(adjoint: Any) -> None:
    count = torch.ones(6, dtype=torch.float64)

    def f(t: Tensor, y: Tensor) -> Tensor:
        slope = torch.sin(y * count)
        count.add_(1)
        return slope

    y0 = torch.ones(3, 6).double().requires_grad_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        odeint(f, y0, T, steps=3, method="euler", adjoint=adjoint).sum().backward()


@pytest.mark.parametrize("adjoint", REDOING)
def test_a_change_is_noticed_where_the_last_step_is_not_asked_for(adjoint: str) -> None:
    """By dense output: what is saved last in each step does not tell."""
    factor, w, y0 = 1.0, torch.ones(3, dtype=torch.float64, requires_grad=True), torch.ones(3).double()
    f = lambda t, y: torch.sin(w * (factor * y.detach())) + w.sin()
    end = solution_of(f, y0, T, steps=5, method="euler", dense=True, adjoint=CHECKPOINTS[adjoint]).dense(0.3).sum()  # pyright: ignore
    factor = 2.0
    with pytest.raises(ValueError, match="came out differently"):
        end.backward()


def test_a_first_step_that_later_ones_reach_back_into_is_held() -> None:
    """A cache that is filled in the first step, where later steps save as much: taken again, the first step would not fill it."""
    ends = []
    for adjoint in ("direct", *WHOLE.values()):
        torch.manual_seed(0)
        net, cache = nn.Linear(6, 6).double(), list[Tensor]()

        def f(t: Tensor, y: Tensor, net: nn.Linear = net, cache: list[Tensor] = cache) -> Tensor:
            first = not cache
            if first:
                cache.append(torch.tanh(net.weight))
            kernel = cache[0] if first else cache[0] + 0 * torch.sin(2 * net.weight)
            return torch.tanh(net(y)) + y @ kernel

        odeint(f, torch.ones(3, 6).double(), T, steps=2, method="euler", adjoint=adjoint).square().sum().backward()
        ends.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for end in ends[1:] for a, b in zip(end, ends[0], strict=True))


@pytest.mark.parametrize("what", ["of the state", "of a weight"])
def test_what_f_keeps_of_a_redone_step_is_no_part_of_a_later_loss(what: str) -> None:
    """Outside of modules it is not put back; its graph leads to where the step was taken again, or holds what has been let go."""
    net, kept = nn.Linear(6, 6).double(), dict[str, Tensor]()

    def f(t: Tensor, y: Tensor) -> Tensor:
        kept["last"] = -y.sum() if what == "of the state" else net.weight.mul(2).square().sum()
        return torch.tanh(net(y))

    for adjoint in ("direct", *WHOLE.values()):
        y0 = torch.ones(3, 6).double().requires_grad_()
        loss = odeint(f, y0, T, steps=2, method="euler", adjoint=adjoint).sum()
        loss.backward(retain_graph=True)
        redone = adjoint not in ("direct", WHOLE["memory"])
        with pytest.raises(ValueError, match="keeps a tensor with a history outside itself") if redone else nullcontext():
            kept["last"].backward()


@pytest.mark.parametrize("adjoint", ["reversible", "backsolve"])
@pytest.mark.parametrize("more", [False, True], ids=["less", "more"])
def test_another_branch_undone_or_solved_backwards_is_noticed(adjoint: str, more: bool) -> None:
    longer, w = not more, torch.ones(3, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        y = w * y
        return y.sin().sin() if longer else y.sin()

    loss = odeint(f, torch.zeros(3).double(), T, steps=2, method="euler", adjoint=adjoint).sum()
    longer = more
    with pytest.raises(ValueError, match="led to another graph"):
        loss.backward()


@pytest.mark.parametrize("adjoint", ["direct", *CHECKPOINTS.values(), "reversible", "backsolve"], ids=str)
def test_a_leaf_that_was_another_one_in_the_forward_pass_is_noticed_or_does_not_matter(adjoint: Any) -> None:
    box = [torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)]
    before, y0 = box[0], torch.ones(3).double()
    loss = odeint(lambda t, y: box[0] * y, y0, T, steps=2, method="euler", adjoint=adjoint)[-1].sum()
    box[0] = after = before.detach().clone().requires_grad_()
    if adjoint == "direct" or adjoint in WHOLE.values():
        loss.backward()
        assert before.grad is not None and after.grad is None
        assert torch.equal(before.grad, torch.full((3,), 1.125**3).double())  # d/dw (1 + w / 4)^4 at 1/2
    else:
        with pytest.raises(ValueError, match=r"reached another tensor that requires grad|led to another graph"):
            loss.backward()


@pytest.mark.parametrize("adjoint", [*map(CHECKPOINTS.get, REDOING), "reversible", "backsolve"], ids=str)
def test_a_hidden_tensor_that_later_steps_alone_write_to_is_refused(adjoint: Any) -> None:
    count, net = torch.zeros((), dtype=torch.float64), nn.Linear(6, 6).double()

    def f(t: Tensor, y: Tensor) -> Tensor:
        if t > 0.6:
            count.add_(1)
        return torch.tanh(net(y))

    loss = odeint(f, torch.ones(3, 6).double(), T, steps=2, method="euler", adjoint=adjoint).sum()
    before = count.clone()
    with pytest.raises(ValueError, match=r"writes to a hidden tensor of shape \(\) in later steps only"):
        loss.backward()
    assert torch.equal(count, before)
