"""What a review from outside found in how steps are redone: each was a wrong number, a trace left behind, or a refusal without cause."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anodev2 import BacksolveAdjoint, CheckpointAdjoint, CoupledODEBlock, NeuralDynamics, ODEBlock, odeint
from sampled import rows

D = torch.float64
WHOLE = ["checkpoint", CheckpointAdjoint(offload="cpu")]
SLOTS = CheckpointAdjoint(slots=1)
STATE = torch.arange(12, dtype=D).view(4, 3) / 7 - 0.8


def weight() -> Tensor:
    return torch.randn(3, 3, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()


class Acting:
    """Fields that do something, and undo it after the last tensor that is needed for the gradient; ``trace`` tells what is left."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net, self.stack, self.lock = nn.Linear(3, 3, dtype=D), list[float](), threading.Lock()
        self.average = 0.5 * self.net.weight.data

    def trace(self) -> tuple[Any, ...]:
        kept = self.net.weight.requires_grad, self.net.weight.detach().clone().sum().item()
        return (*kept, len(self.stack), torch.get_default_dtype(), self.lock.locked())

    def freezing(self, t: Tensor, y: Tensor) -> Tensor:
        self.net.requires_grad_(False)
        slope = torch.tanh(self.net(y))
        self.net.requires_grad_(True)
        return slope

    def averaged(self, t: Tensor, y: Tensor) -> Tensor:
        own, self.net.weight.data = self.net.weight.data, self.average
        slope = torch.tanh(self.net(y))
        self.net.weight.data = own
        return slope

    def pushing(self, t: Tensor, y: Tensor) -> Tensor:
        self.stack.append(1.0)
        slope = torch.tanh(self.net(y)) * len(self.stack)
        self.stack.pop()
        return slope

    def in_a_loop(self, t: Tensor, y: Tensor) -> Tensor:
        for _ in range(2):
            while self.stack:
                self.stack.pop()
            y = torch.tanh(self.net(y))
            self.stack += [1.0]
        self.stack.clear()
        return y

    def precisely(self, t: Tensor, y: Tensor) -> Tensor:
        torch.set_default_dtype(D)
        slope = torch.tanh(self.net(y))
        torch.set_default_dtype(torch.float32)
        return slope

    def locking(self, t: Tensor, y: Tensor) -> Tensor:
        assert self.lock.acquire(timeout=5)
        slope = torch.tanh(self.net(y))
        self.lock.release()
        return slope

    def hooked(self, t: Tensor, y: Tensor) -> Tensor:
        if not self.net._forward_hooks:
            self.net.register_forward_pre_hook(lambda module, inputs: self.stack.append(1.0))
            self.net.register_forward_hook(lambda module, inputs, output: (self.stack.pop(), None)[1])
        return self.net(torch.tanh(y))


@pytest.mark.parametrize("adjoint", WHOLE, ids=str)
@pytest.mark.parametrize("does", ["freezing", "averaged", "pushing", "in_a_loop", "precisely", "locking", "hooked"])
def test_what_f_undoes_at_its_end_is_undone_in_a_redone_step_too(does: str, adjoint: Any) -> None:
    gradients = []
    for mode in ("direct", adjoint):
        acting, y = Acting(), STATE.clone().requires_grad_()
        before = acting.trace()
        odeint(getattr(acting, does), y, [0.0, 1.0], method="euler", steps=4, adjoint=mode)[-1].sum().backward()
        assert acting.trace() == before
        gradients.append(y.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("adjoint", WHOLE, ids=str)
def test_a_redone_step_ends_with_the_last_tensor_that_is_needed(adjoint: Any) -> None:
    """Where nothing but values is left to be made."""
    rows = []

    class Counted(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            rows.append(len(y))
            return 2 * y

    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Counted())
    odeint(lambda t, y: net(y), torch.ones(2, 3), [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum().backward()
    assert len(rows) == 4  # forward


Choosing = tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[], Any]]


def shuffled() -> Choosing:
    draw = random.Random(0)
    return lambda t, y, w: y[:, draw.sample(range(3), 3)], lambda: None


def mask_replaced() -> Choosing:
    held = {"mask": torch.arange(12).view(4, 3) % 2 == 0}
    return lambda t, y, w: torch.tanh(y @ w).masked_fill(held["mask"], 0.0), lambda: held.update(mask=~held["mask"])


def places_replaced() -> Choosing:
    held = {"places": torch.tensor([[1, 2, 0]] * 4)}
    return lambda t, y, w: y.gather(1, held["places"]), lambda: held.update(places=held["places"].flip(1))


def parity() -> Choosing:
    calls, orders = [0], ([1, 2, 0], [0, 2, 1])

    def f(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        calls[0] += 1
        return y[:, orders[calls[0] % 2]]

    return f, lambda: None


def threshold() -> Choosing:
    held = {"least": 0.1}
    return lambda t, y, w: torch.where(y > held["least"], y, 0.1 * y) @ w.detach(), lambda: held.update(least=0.9)


@pytest.mark.parametrize("adjoint", [*WHOLE, SLOTS], ids=str)
@pytest.mark.parametrize("make", [shuffled, mask_replaced, places_replaced, parity, threshold])
def test_values_that_only_choose_are_compared_too(make: Callable[[], Choosing], adjoint: Any) -> None:
    """Whole numbers and flags are all that is saved at the end of such an f."""
    f, between = make()
    y = STATE.clone().requires_grad_()
    loss = (odeint(f, y, [0.0, 1.0], method="euler", steps=4, args=(weight(),), adjoint=adjoint)[-1] * STATE).sum()
    between()
    with pytest.raises(ValueError, match="than in the forward pass"):
        loss.backward()


@pytest.mark.parametrize("adjoint", [*WHOLE, SLOTS, "reversible"], ids=str)
@pytest.mark.parametrize("kind", ["constants", "parameters"])
def test_what_one_step_alone_reads_may_not_be_modified(kind: str, adjoint: Any) -> None:
    held = [torch.full((3,), 0.5 + i, dtype=D, requires_grad=kind == "parameters") for i in range(4)]
    w, y = weight(), STATE.clone().requires_grad_()
    f = lambda t, y, *, step: torch.sin(y + held[step]) @ w + torch.tanh(y)
    loss = odeint(f, y, [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum()
    with torch.no_grad():
        held[1].mul_(2)
    with pytest.raises((ValueError, RuntimeError), match=r"modified (in place between the forward and the backward pass|by an inplace)"):
        loss.backward()


@pytest.mark.parametrize("adjoint", [*WHOLE, SLOTS, "reversible"], ids=str)
def test_what_no_step_reads_may_be_modified(adjoint: Any) -> None:
    """The same tensors, seen by f and not used: another network, a counter."""
    gradients = []
    for modified in (False, True):
        held = [torch.full((3,), 0.5 + i, dtype=D, requires_grad=True) for i in range(5)]
        w, y = weight(), STATE.clone().requires_grad_()
        f = lambda t, y, *, step, held=held, w=w: torch.sin(y + held[step]) @ w + torch.tanh(y)
        loss = odeint(f, y, [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum()
        with torch.no_grad():
            if modified:
                held[4].mul_(2)
        loss.backward()
        gradients.append(y.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("adjoint", WHOLE, ids=str)
def test_one_element_of_a_leaf_between_the_samples_may_not_be_modified(adjoint: Any) -> None:
    bias = torch.zeros(1000, dtype=D, requires_grad=True)
    y = torch.ones(4, 1000, dtype=D, requires_grad=True)
    loss = odeint(lambda t, z: torch.sin(z + bias), y, [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum()
    with torch.no_grad():
        bias[7] += 1
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


@pytest.mark.parametrize("adjoint", WHOLE, ids=str)
def test_values_beside_an_infinite_one_are_compared(adjoint: Any) -> None:
    mask, held = torch.eye(4, 3, dtype=torch.bool), {"scale": 1.0}
    f = lambda t, z: F.softplus((z * held["scale"]).masked_fill(mask, -torch.inf))
    y = torch.ones(4, 3, dtype=D, requires_grad=True)
    odeint(f, y, [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum().backward()  # unchanged it passes
    loss = odeint(f, y, [0.0, 1.0], method="euler", steps=4, adjoint=adjoint)[-1].sum()
    held["scale"] = 3.0
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


def test_every_backward_pass_of_a_reverse_solve_looks_whether_f_has_changed() -> None:
    held = {"scale": 1.0}
    y = STATE.clone().requires_grad_()
    loss = odeint(lambda t, z: torch.tanh(held["scale"] * z), y, [0.0, 1.0], steps=4, adjoint=BacksolveAdjoint())[-1].sum()
    loss.backward(retain_graph=True)
    held["scale"] = 3.0
    with pytest.raises(ValueError, match="came out differently"):
        loss.backward()


@pytest.mark.parametrize("adjoint", WHOLE, ids=str)
def test_a_cache_that_the_first_step_fills_may_have_no_gradient(adjoint: Any) -> None:
    gradients = []
    for mode in ("direct", adjoint):
        w, y, cache = weight(), STATE.clone().requires_grad_(), {}

        def f(t: Tensor, y: Tensor, w: Tensor = w, cache: dict[str, Tensor] = cache) -> Tensor:
            if not cache:
                cache["kernel"] = torch.exp(0.3 * w).detach()
            return torch.tanh(y @ cache["kernel"]) @ w

        odeint(f, y, [0.0, 1.0], method="euler", steps=4, adjoint=mode)[-1].sum().backward()
        gradients.append((y.grad, w.grad))
    assert all(map(torch.equal, *gradients))


def held_by_closure(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: torch.tanh(net(y))


@pytest.mark.parametrize("adjoint", [*WHOLE, SLOTS], ids=str)
def test_flags_of_a_module_in_a_closure_are_those_of_the_forward_pass(adjoint: Any) -> None:
    gradients = []
    for mode in ("direct", adjoint):
        torch.manual_seed(0)
        y, net = STATE.clone().requires_grad_(), nn.Sequential(nn.Linear(3, 3, dtype=D), nn.Dropout(0.4))
        loss = odeint(held_by_closure(net), y, [0.0, 1.0], method="euler", steps=4, adjoint=mode)[-1].sum()
        net.eval()
        gradients.append(torch.autograd.grad(loss, [y, *net.parameters()]))
        assert not net.training
    assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("adjoint", WHOLE, ids=str)
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "heun2"])
def test_a_penalty_kept_in_the_stage_that_estimates_the_error_counts(method: str, adjoint: Any) -> None:
    gradients = []
    for mode in ("direct", adjoint):
        w, y, penalties = weight(), STATE.clone().requires_grad_(), list[Tensor]()

        def f(t: Tensor, y: Tensor, w: Tensor = w, penalties: list[Tensor] = penalties) -> Tensor:
            h = torch.tanh(y @ w)
            penalties.append(h.square().mean())
            return h

        end = odeint(f, y, [0.0, 1.0], method=method, rtol=1e-3, atol=1e-4, adjoint=mode)[-1]
        gradients.append(torch.autograd.grad(end.sum() + torch.stack(penalties).sum(), [y, w]))
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=0)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", SLOTS, "reversible"], ids=str)
def test_a_container_among_the_arguments_is_the_users_own(adjoint: Any) -> None:
    counted = {"calls": [0]}

    def f(t: Tensor, y: Tensor, own: dict[str, list[int]]) -> Tensor:
        own["calls"][0] += 1
        assert own["calls"] is counted["calls"]
        return -y

    odeint(f, STATE.clone().requires_grad_(), [0.0, 1.0], method="euler", steps=2, args=(counted,), adjoint=adjoint)
    assert counted == {"calls": [4 if adjoint == "reversible" else 2]}


SHAPED: dict[str, Callable[[nn.ModuleDict, Tensor], Tensor]] = {
    "transposed": lambda nets, y: nets["qkv"](y)[..., :4].mT.reshape(2, 20).sin().view(2, 5, 4),
    "expanded": lambda nets, y: torch.tanh(nets["qkv"](y)[:, :1, :4].expand(2, 5, 4).reshape(2, 5, 4)),
    "strided": lambda nets, y: nets["qkv"](y)[..., ::3].reshape(10, 4).sin().view(2, 5, 4),
    "chunks": lambda nets, y: torch.stack([x.reshape(2, 5, 2, 2) for x in nets["qkv"](y).chunk(3, -1)]).sin().prod(0).reshape(2, 5, 4),
    "attention": lambda nets, y: nets["attention"](y, y, y, need_weights=False)[0],
    "layer": lambda nets, y: nets["layer"](y),
}


@pytest.mark.parametrize("adjoint", ["checkpoint", SLOTS, CheckpointAdjoint(slots=2)], ids=str)
@pytest.mark.parametrize("shape", SHAPED)
def test_any_reshape_is_redone(shape: str, adjoint: Any) -> None:
    """A reshape of what is not contiguous is an alias, and a view where a mode watches."""
    ends = []
    for mode in ("direct", adjoint):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        nets = nn.ModuleDict(
            {"qkv": nn.Linear(4, 12), "attention": nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True), "layer": layer}
        ).to(D)
        y = torch.randn(2, 5, 4, dtype=D, requires_grad=True)
        loss = odeint(lambda t, y, nets=nets: SHAPED[shape](nets, y), y, [0.0, 1.0], method="euler", steps=3, adjoint=mode)[-1]
        ends.append(torch.autograd.grad(loss.square().sum(), y)[0])
    assert torch.equal(*ends)


class Wrapped(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.net(y))


@pytest.mark.parametrize("adjoint", ["direct", *WHOLE, SLOTS, CheckpointAdjoint(memory="1MiB"), "reversible", "backsolve"], ids=str)
@pytest.mark.parametrize("kind", [lambda: nn.LazyLinear(3), nn.LazyBatchNorm1d, lambda: nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(3))])
def test_lazy_modules_take_their_shapes_in_the_first_step(kind: Callable[[], nn.Module], adjoint: Any) -> None:
    torch.manual_seed(0)
    net = kind()
    out = ODEBlock(Wrapped(net), steps=3, adjoint=adjoint)(torch.linspace(0, 1, 12).view(4, 3))
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("adjoint", [*WHOLE, SLOTS, CheckpointAdjoint(memory="1MiB"), "reversible"], ids=str)
@pytest.mark.parametrize("kind", ["sparse", "inference"])
def test_constants_of_other_kinds(kind: str, adjoint: Any) -> None:
    with torch.inference_mode(kind == "inference"):
        constant = torch.eye(4, dtype=D) * torch.arange(4)
    constant = constant.to_sparse() if kind == "sparse" else constant
    product = torch.sparse.mm if kind == "sparse" else lambda a, z: (a @ z.detach()) * z
    ends = []
    for mode in ("direct" if adjoint != "reversible" else adjoint, adjoint):
        y = STATE.clone().requires_grad_()
        f = lambda t, z: torch.tanh(product(constant, z))
        odeint(f, y, [0.0, 1.0], method="euler", steps=3, adjoint=mode)[-1].sum().backward()
        ends.append(y.grad)
    assert torch.equal(*ends)


class Watched:
    """Something that a graph holds."""

    def __call__(self, gradient: Tensor) -> None: ...


ADJOINTS = ["checkpoint", CheckpointAdjoint(offload="cpu"), CheckpointAdjoint(memory="1MB"), SLOTS]
ENDS = ["without a backward pass", "in a redone step that fails", "in the forward pass"]


@pytest.mark.parametrize(("ends", "adjoint"), rows(ENDS, ADJOINTS, quick=2), ids=str)
def test_a_graph_that_is_not_used_to_its_end_is_freed(ends: str, adjoint: Any) -> None:
    w, left = weight(), [10**9]
    gone: list[weakref.ref[Watched]] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise ArithmeticError("told to")
        return torch.tanh(y @ w)

    def run() -> None:
        y, watched = STATE.clone().requires_grad_() * 1.0, Watched()
        y.register_hook(watched)
        gone.append(weakref.ref(watched))
        left[0] = 9 if ends == "in the forward pass" else 10**9
        out = odeint(f, y, [0.0, 1.0], steps=6, adjoint=adjoint)
        left[0] = 5
        if ends == "in a redone step that fails":
            out.sum().backward()

    with suppress(ArithmeticError):
        run()
    gc.collect()
    assert gone[0]() is None


def test_weights_of_a_scripted_module_cannot_evolve() -> None:
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(nn.Linear(3, 3))
    block = CoupledODEBlock(Wrapped(scripted), NeuralDynamics(lambda t, theta: {name: -w for name, w in theta.items()}), steps=3)
    with pytest.raises(ValueError, match=r"\['weight', 'bias'\] belong to a TorchScript module"):
        block(torch.ones(2, 3))
