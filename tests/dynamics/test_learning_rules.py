from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from anodev2 import CheckpointAdjoint, CoupledODEBlock, DeltaRule, DirectAdjoint, Dynamics, GradientFlow, Hebb, ODEBlock, Oja, odeint

DTYPE = torch.float64


def bound(rule: Any, out: int, inside: int) -> Any:
    rule.bind({"w": torch.zeros(out, inside, dtype=DTYPE)})
    return rule


def given(t: Any, z: Any) -> Any:
    return z


def tokens(batch: int = 4, length: int = 9, inside: int = 5, out: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    keys = nn.functional.normalize(torch.randn(batch, length, inside, dtype=DTYPE), dim=-1)
    return keys, torch.randn(batch, length, out, dtype=DTYPE), torch.randn(batch, out, inside, dtype=DTYPE)


def stepped(rule: Any, start: Tensor, keys: Tensor, values: Tensor, t: list[float], **options: Any) -> Tensor:
    """W at the times t, key and value those of the number of the time."""

    def f(t: Tensor, w: Tensor, *, step: int = 0) -> Tensor:
        place = min(int(t), keys.shape[1] - 1)
        return rule(t, {"w": w}, (keys[:, place], values[:, place]))["w"]

    return odeint(f, start, t, **options)


@pytest.mark.parametrize("kind", ["delta", "hebb"])
def test_euler_at_integer_times_is_the_discrete_recursion_to_the_bit(kind: str) -> None:
    keys, values, w = tokens()
    rate = 0.5
    rule = bound(DeltaRule(given, rate) if kind == "delta" else Hebb(rate, given), 3, 5)
    found = stepped(rule, w, keys, values, [float(n) for n in range(10)], method="euler", steps=1)
    for n in range(9):
        error = values[:, n] - torch.einsum("bi,boi->bo", keys[:, n], w) if kind == "delta" else values[:, n]
        w = w + rate * torch.einsum("bo,bi->boi", error, keys[:, n])
        assert torch.equal(found[n + 1], w)


def test_the_exact_flow_of_the_delta_rule_is_the_solution_of_its_equation() -> None:
    keys, values, start = tokens()
    keys[0, 0] = 0  # no key: nothing changes
    keys[1] *= 3
    rule = bound(DeltaRule(given, 0.7), 3, 5)
    elapsed = torch.tensor([1.0, 0.3, 2.5, 0.0], dtype=DTYPE)
    found = rule.held(0.0, {"w": start}, (keys[:, 0], values[:, 0]), elapsed)["w"]
    for i, span in enumerate(elapsed.tolist()):
        w, z = start[i : i + 1], (keys[i : i + 1, 0], values[i : i + 1, 0])
        if span:
            w = odeint(lambda t, w, z=z: rule(t, {"w": w}, z)["w"], w, [0.0, span], method="dopri8", steps=40)[-1]
        torch.testing.assert_close(found[i : i + 1], w, rtol=0, atol=1e-10)
    assert torch.equal(found[0], start[0]) and torch.equal(found[3], start[3])
    wanted = [p.requires_grad_() for p in (start, keys, values, elapsed)]
    assert torch.autograd.gradcheck(
        lambda w, k, v, span: rule.held(0.0, {"w": w}, (k[:, 1], v[:, 1]), span + 0.1)["w"], [wanted[0], wanted[1], wanted[2], wanted[3]]
    )


def test_oja_finds_the_principal_components() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=DTYPE))[0]
    scales = torch.tensor([3.0, 1.5, 0.6, 0.3, 0.1], dtype=DTYPE).sqrt()
    rows = torch.linalg.qr(torch.randn(40, 5, dtype=DTYPE))[0] * 40**0.5 * scales @ basis.T
    values, vectors = torch.linalg.eigh(rows.T @ rows / 40)
    torch.testing.assert_close(values.flip(0), scales**2)
    for count in (1, 2):
        rule, start = bound(Oja(), count, 5), torch.randn(1, count, 5, dtype=DTYPE)
        w = odeint(lambda t, w, rule=rule: rule(t, {"w": w}, rows[None])["w"], start, [0.0, 30.0], steps=300)[-1, 0]
        top = vectors[:, -count:]
        torch.testing.assert_close(w.T @ w, top @ top.T, rtol=0, atol=1e-6)


class Recall(nn.Module):
    """z' = W z, with a branch around."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(4, 4, bias=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.w(z))


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(self.key(z), dim=-1), self.value(z) * torch.cos(t)


class Reconstruction(nn.Module):
    """How well the weights of a sample map a view of it to another; a linear map: the delta rule."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = Pairs()

    def forward(self, theta: dict[str, Tensor], z: Tensor) -> Tensor:
        key, value = self.pairs(torch.zeros((), dtype=DTYPE), z)
        return (value - theta["w.weight"] @ key).square().sum() / 2


RULES: dict[str, Any] = {
    "hebb": lambda: Hebb(0.3, decay=0.5),
    "hebb pairs": lambda: Hebb(0.3, Pairs()),
    "oja": lambda: Oja(0.3),
    "delta": lambda: DeltaRule(Pairs(), 0.8),
    "flow": lambda: GradientFlow(Reconstruction(), 0.8),
}


def block_of(rule: Dynamics, **options: Any) -> CoupledODEBlock:
    torch.manual_seed(1)
    return CoupledODEBlock(Recall().double(), rule.double(), **{"steps": 3, "method": "midpoint", **options})


@pytest.mark.parametrize("rule", RULES)
def test_a_block_that_learns_while_it_runs_has_exact_gradients(rule: str) -> None:
    block, z = block_of(RULES[rule]()), torch.randn(3, 4, dtype=DTYPE)
    found = []
    for adjoint in (DirectAdjoint(), CheckpointAdjoint(), CheckpointAdjoint(slots=2)):
        block.adjoint = adjoint
        x = z.clone().requires_grad_()
        found.append(torch.autograd.grad(block(x).sin().sum(), [x, *block.parameters()]))
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert all(g.abs().sum() > 0 for g in found[0])
    block.adjoint, names = DirectAdjoint(), [name for name, _ in block.named_parameters()]
    of = lambda z, *values: functional_call(block, dict(zip(names, values, strict=True)), (z,))
    assert torch.autograd.gradcheck(of, [p.detach().clone().requires_grad_() for p in (z, *block.parameters())], fast_mode=True)
    assert torch.equal(block.unroll()(z), block(z))


@pytest.mark.parametrize("rule", RULES)
def test_at_the_rate_0_every_sample_keeps_the_shared_weights_to_the_bit(rule: str) -> None:
    block, z = block_of(RULES[rule]()), torch.randn(3, 4, dtype=DTYPE)
    assert {name: rate.shape for name, rate in block.dynamics.rates.items()} == {"w/weight": (1,)}  # type: ignore[operator, union-attr]
    for rate in block.dynamics.rates.values():  # type: ignore[operator, union-attr]
        rate.data.zero_()
    for t in (0.3, 1.0):
        assert torch.equal(block.weights(t, z)["w.weight"], block.f.get_submodule("w").weight.expand(3, 4, 4))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(block(z), ODEBlock(block.f, steps=3, method="midpoint")(z), rtol=0, atol=1e-14)  # a product per sample


class Rules(nn.Module):
    """A row through a block of each rule, written out; the gradient flow traced too, as docs/inference.md has it."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.blocks = {rule: block_of(make(), steps=2, method="euler").float().eval() for rule, make in RULES.items()}
        plain = {rule: block.unroll() for rule, block in self.blocks.items()}
        self.plain = nn.ModuleDict({rule: make_fx(module)(z) if rule == "flow" else module for rule, module in plain.items()})

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {rule: module(z) for rule, module in self.plain.items()}


@pytest.mark.slow
def test_learning_blocks_run_in_onnxruntime() -> None:
    z = torch.randn(3, 4)
    rules = Rules(z)
    made = torch.onnx.export(torch.export.export(rules, (z,)), dynamo=True, verbose=False)
    assert made is not None
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(rules.blocks, session.run(None, {session.get_inputs()[0].name: z.numpy()}), strict=True))
    for rule, block in rules.blocks.items():
        torch.testing.assert_close(torch.as_tensor(found[rule]), block(z).detach(), rtol=1e-5, atol=1e-5)


def test_the_gradient_flow_of_a_squared_error_is_the_delta_rule() -> None:
    loss = Reconstruction().double()
    delta = DeltaRule(lambda t, z: loss.pairs(torch.zeros((), dtype=DTYPE), z), 0.8)
    blocks, z = (block_of(GradientFlow(loss, 0.8)), block_of(delta)), torch.randn(3, 4, dtype=DTYPE)
    torch.testing.assert_close(blocks[0](z), blocks[1](z), rtol=0, atol=1e-14)


def test_a_step_of_the_gradient_flow_is_gradient_descent_on_the_whole_branch() -> None:
    """The inner loss calls f with the weights of its sample."""
    f = Recall().double()

    def loss(theta: dict[str, Tensor], z: Tensor) -> Tensor:
        return functional_call(f, theta, (torch.zeros(()), z)).square().sum()

    block, z = CoupledODEBlock(f, GradientFlow(loss, 0.25), steps=1), torch.randn(3, 4, dtype=DTYPE)
    moved = block.weights(1.0, z)["w.weight"]
    for i in range(3):
        w = f.w.weight.detach().clone().requires_grad_()
        torch.tanh(w @ z[i]).square().sum().backward()
        torch.testing.assert_close(moved[i], w - 0.25 * w.grad, rtol=0, atol=1e-14)  # type: ignore[operator]


def test_mistakes_are_named() -> None:
    z = torch.randn(3, 5, dtype=DTYPE)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: Hebb(float("nan")), ValueError, "rate"),
        (lambda: Hebb(decay=-1.0), ValueError, "decay"),
        (lambda: block_of(DeltaRule())(z[:, :4]), ValueError, "pairs is needed"),
        (lambda: Hebb(pairs=lambda z: z), TypeError, "pairs"),  # type: ignore[arg-type, return-value]
        (lambda: Hebb(pairs=3), TypeError, "pairs"),  # type: ignore[arg-type]
        (lambda: GradientFlow(lambda theta: theta), TypeError, r"loss\(theta, z\)"),  # type: ignore[arg-type]
        (lambda: GradientFlow(3), TypeError, r"loss\(theta, z\)"),  # type: ignore[arg-type]
        (lambda: block_of(Hebb(1.0, lambda t, z: (z[:, :3], z)))(z[:, :4]), ValueError, "key for w.weight"),
        (lambda: block_of(DeltaRule(lambda t, z: (z, z[0])))(z[:, :4]), ValueError, "value for w.weight"),
    ]
    for make, error, words in cases:
        with pytest.raises(error, match=words):
            make()
    rule = bound(DeltaRule(given), 5, 5)
    with pytest.raises(ValueError, match="2 rows"):
        rule.held(0.0, {"w": torch.zeros(3, 5, 5, dtype=DTYPE)}, (z[:, None].expand(3, 2, 5), z[:, None].expand(3, 2, 5)), 1.0)
    with pytest.raises(ValueError, match="deepcopy"):
        rule.bind({"w": z})
