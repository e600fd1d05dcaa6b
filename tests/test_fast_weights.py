"""The layer against recursions written by hand, closed forms and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.func import functional_call

from anodev2 import (
    CheckpointAdjoint,
    Compile,
    DeltaRule,
    DirectAdjoint,
    FastWeights,
    GradientFlow,
    Hebb,
    LearningRule,
    Oja,
    Path,
    ReversibleAdjoint,
    odeint,
)

DTYPE = torch.float64
BATCH, LENGTH, DIM = 3, 6, 4
TIMES = torch.tensor([[0.0, 0.4, 1.5, 1.7, 3.0, 3.1], [-1.0, 0.0, 0.1, 1.2, 9.0, 0.0], [0.0, 0.5, 0.9, 1.4, 2.0, 2.6]], dtype=DTYPE)
LENGTHS = [6, 4, 5]


class Memory(nn.Module):
    """Two layers, whose first may learn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(DIM, 5), nn.Linear(5, DIM)

    def forward(self, q: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(q)))


def recalling(memory: nn.Module) -> GradientFlow:
    def loss(theta: dict[str, Tensor], z: tuple[Tensor, Tensor]) -> Tensor:
        return (functional_call(memory, theta, z[0]) - z[1]).square().sum() / 2

    return GradientFlow(loss, 0.3)


def layer_of(rule: str = "delta", **options: Any) -> FastWeights:
    torch.manual_seed(0)
    if rule == "flow":
        options["memory"] = Memory().double()
    rules: dict[str, Any] = {"delta": lambda: DeltaRule(rate=0.7), "hebb": lambda: Hebb(0.3, decay=0.5), "oja": lambda: Oja(0.3)}
    made = recalling(options["memory"]) if rule == "flow" else rules[rule]()
    layer = FastWeights(DIM, rule=made, **options).double()
    with torch.no_grad():
        for p in layer.memory.parameters():
            p.normal_(0, 0.5)
    return layer


def inputs(kind: Any = "hold", irregular: bool = True) -> Path:
    x = torch.randn(BATCH, LENGTH, DIM, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    return Path(TIMES, x, kind, lengths=LENGTHS) if irregular else Path(None, x, kind)


def by_hand(layer: FastWeights, x: Tensor, rule: str) -> Tensor:
    """The discrete recursion, token by token: DeltaNet's, or linear attention's with a decay."""
    unit = nn.functional.normalize
    k, v, q = unit(layer.pairs.key(x), dim=-1), layer.pairs.value(x), unit(layer.query(x), dim=-1)  # type: ignore[operator, union-attr]
    w, rate, outputs = layer.memory.weight.expand(len(x), DIM, DIM), layer.rule.rate("weight"), []  # type: ignore[operator, union-attr]
    for n in range(x.shape[1]):
        if rule == "delta":
            w = w + rate * torch.einsum("bo,bi->boi", v[:, n] - torch.einsum("bi,boi->bo", k[:, n], w), k[:, n])
        else:
            w = w + rate * (torch.einsum("bo,bi->boi", v[:, n], k[:, n]) - 0.5 * w)
        outputs.append(torch.einsum("boi,bi->bo", w, q[:, n]))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("rule", ["delta", "hebb"])
def test_at_integer_times_euler_is_the_discrete_rule_to_the_bit(rule: str) -> None:
    layer = layer_of(rule)
    for length in (1, LENGTH):
        x = inputs().values[:, :length].clone().requires_grad_()
        expected = by_hand(layer, x, rule)
        for given in (x, Path(None, x, "hold"), Path(list(range(length)), x, "hold")):
            assert torch.equal(layer(given), expected)
        ours, right = (torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()]) for y in (layer(x), expected))
        for a, b in zip(ours, right, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["hold", "linear", "cubic"])
def test_a_sample_is_what_it_is_alone_and_padding_is_nothing(kind: Any) -> None:
    layer, path = layer_of(method="heun2", steps=2), inputs(kind)
    spoilt = path.values.clone()
    for i, length in enumerate(LENGTHS):
        spoilt[i, length:] = torch.nan
    outputs = layer(Path(TIMES, spoilt, kind, lengths=LENGTHS))
    for i, length in enumerate(LENGTHS):
        alone = layer(Path(TIMES[i, :length], path.values[i : i + 1, :length], kind))
        torch.testing.assert_close(outputs[i, :length], alone[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(outputs[i, length:], alone[0, -1:].expand(LENGTH - length, DIM), rtol=0, atol=1e-14)


def slope(layer: FastWeights, x: Tensor, w: Tensor) -> Tensor:
    """Of the delta rule, for one sample."""
    key, value = nn.functional.normalize(layer.pairs.key(x), dim=-1), layer.pairs.value(x)  # type: ignore[operator, union-attr]
    return layer.rule.rate("weight") * torch.outer(value - w @ key, key)


@pytest.mark.parametrize("method", ["exact", "exponential_euler"])
def test_the_exact_flow_is_the_solution_at_irregular_times(method: str) -> None:
    layer, path = layer_of(method=method), inputs()
    found, start = layer.weights(path)["weight"], layer.memory.weight
    for i, length in enumerate(LENGTHS):
        w = start
        for n in range(length):
            end = float(TIMES[i, n + 1] - TIMES[i, n]) if n + 1 < length else 1.0
            w = odeint(lambda t, w, x=path.values[i, n]: slope(layer, x, w), w, [0.0, end], method="dopri8", steps=5)[-1]
            torch.testing.assert_close(found[n + 1, i], w, rtol=0, atol=1e-10)
    many = layer_of(method="rk4", steps=100)
    torch.testing.assert_close(many(path), layer(path), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_weights_that_follow_a_path_are_those_of_scipy(kind: Any) -> None:
    layer, path = layer_of(method="rk4", steps=30), inputs(kind)
    with torch.no_grad():
        found, outputs = layer.weights(path)["weight"], layer(path)
        q = nn.functional.normalize(layer.query(path.values), dim=-1)
        torch.testing.assert_close(outputs, torch.einsum("nboi,bni->bno", found, q), rtol=0, atol=1e-13)
        for i, length in list(enumerate(LENGTHS))[1:]:
            alone, w = (
                Path(TIMES[i, :length], path.values[i : i + 1, :length], kind),
                dict(layer.memory.named_parameters())["weight"].numpy().ravel(),
            )
            for n in range(length - 1):

                def f(t: float, w: np.ndarray, alone: Path = alone) -> np.ndarray:
                    return slope(layer, alone(t)[0], torch.from_numpy(w).view(DIM, DIM)).numpy().ravel()

                w = solve_ivp(f, TIMES[i, n : n + 2].tolist(), w, method="DOP853", rtol=1e-8, atol=1e-9).y[:, -1]
                np.testing.assert_allclose(found[n + 1, i].numpy().ravel(), w, rtol=0, atol=2e-5)


class Slopes(nn.Module):
    """The key stands still, the value is dx/dt."""

    def forward(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(x), dx


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_a_rule_that_reads_the_slope_integrates_it(kind: Any) -> None:
    """W' = rate x'(t) 1^T: W(t_n) = W(0) + rate (x_n - x_0) 1^T, whatever the times."""
    torch.manual_seed(0)
    layer, path = FastWeights(DIM, rule=Hebb(0.3), pairs=Slopes(), method="rk4").double(), inputs(kind)
    expected = layer.rule.rate("weight") * (path.values - path.values[:, :1]).transpose(0, 1)[..., None].expand(-1, -1, -1, DIM)
    torch.testing.assert_close(layer.weights(path)["weight"], expected, rtol=0, atol=1e-13)


def test_a_memory_of_layers_learns_by_gradient_descent() -> None:
    """Each token a step of SGD on the squared error, its own network for each sample."""
    layer, path = layer_of("flow"), inputs(irregular=False)
    with torch.no_grad():
        outputs = layer(path)
        keys, values = layer.pairs(path.values)
        queries = nn.functional.normalize(layer.query(path.values), dim=-1)
    for i in range(BATCH):
        alone = Memory().double()
        alone.load_state_dict(layer.memory.state_dict())
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.3)
        for n in range(LENGTH):
            optimizer.zero_grad()
            ((alone(keys[i, n]) - values[i, n]).square().sum() / 2).backward()
            optimizer.step()
            torch.testing.assert_close(outputs[i, n], alone(queries[i, n]), rtol=0, atol=1e-13)


CASES = [
    ("delta", "euler", "hold"),
    ("delta", "exact", "hold"),
    ("delta", "rk4", "cubic"),
    ("hebb", "heun2", "linear"),
    ("oja", "euler", "hold"),
]
CASES += [("flow", "midpoint", "linear")]


def gradients(layer: FastWeights, path: Path) -> list[Tensor]:
    x = path.values.clone().requires_grad_()
    y = layer(Path(path.times, x, path.kind, lengths=path.lengths))
    return [y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])]


def check_rate(layer: FastWeights, path: Path, found: list[Tensor]) -> None:
    """The gradient of the rule's rate among those found is that of differences."""
    rate, ends = next(iter(layer.rule.rates.values())), []
    with torch.no_grad():
        for move in (1e-5, -1e-5):
            rate += move
            ends.append(layer(path).sin().sum().item())
            rate -= move
    place = 2 + [q is rate for q in layer.parameters()].index(True)
    assert found[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


@pytest.mark.parametrize(("rule", "method", "kind"), CASES)
def test_gradients_are_those_of_plain_autograd(rule: str, method: str, kind: Any) -> None:
    layer, path = layer_of(rule, method=method), inputs(kind)
    assert layer.adjoint == DirectAdjoint()
    exact = gradients(layer, path)
    assert all(g.abs().sum() > 0 for g in exact)
    for adjoint in (CheckpointAdjoint(), CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="20KiB")):
        layer.adjoint = adjoint
        y, *found = gradients(layer, path)
        assert torch.equal(y, exact[0])
        for a, b in zip(found, exact[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    check_rate(layer, path, exact)


@pytest.mark.slow
def test_compiled_runs_have_the_same_gradients() -> None:
    rule, method, kind = CASES[3]
    layer, path = layer_of(rule, method=method), inputs(kind)
    exact = gradients(layer, path)
    for adjoint in (DirectAdjoint(), CheckpointAdjoint()):
        own = layer_of(rule, method=method, adjoint=adjoint, compile=Compile(backend="aot_eager"))
        for a, b in zip(gradients(own, path), exact, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class Reading(nn.Module):
    def __init__(self, layer: FastWeights, kind: Any) -> None:
        super().__init__()
        self.layer, self.kind = layer, kind

    def forward(self, times: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        return self.layer(Path(times, x, self.kind, lengths=lengths))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [("euler", "hold"), ("exact", "hold"), ("rk4", "linear")])
def test_exported_layers_take_any_number_of_samples(method: str, kind: Any) -> None:
    reads, path, batch = Reading(layer_of(method=method), kind), inputs(kind), torch.export.Dim("batch")
    given = (TIMES.cummax(1).values + torch.arange(LENGTH) * 1e-3, path.values, torch.tensor(LENGTHS))
    exported = torch.export.export(reads, given, dynamic_shapes=({0: batch},) * 3).module()
    for more in (given, tuple(torch.cat([part, part.flip(0)]) for part in given)):
        torch.testing.assert_close(exported(*more), reads(*more), rtol=0, atol=1e-14)


def test_the_way_back_evaluates_the_path_where_the_way_there_did() -> None:
    layers = [layer_of(method="midpoint", steps=8, adjoint=adjoint) for adjoint in (ReversibleAdjoint(), DirectAdjoint())]
    found, right = (own(inputs("cubic", irregular=False)) for own in layers)
    assert (found - right).abs().max() < 4e-3
    layer, path = layer_of(method="heun2", steps=2, adjoint=ReversibleAdjoint()), inputs("cubic")
    check_rate(layer, path, gradients(layer, path))


@pytest.mark.parametrize("kind", ["hold", "linear", "cubic"])
def test_no_output_looks_ahead(kind: Any) -> None:
    layer, path = layer_of(method="rk4"), inputs(kind, irregular=False)
    x = path.values.clone().requires_grad_()
    outputs = layer(Path(None, x, kind))
    for n in range(LENGTH):
        (g,) = torch.autograd.grad(outputs[:, n].sum(), x, retain_graph=True)
        assert not g[:, n + 1 :].any() and g[:, n].any() and (g[:, 0].any() or n == 0)


def test_autocast_leaves_the_weights_in_their_own_precision() -> None:
    torch.manual_seed(0)
    layer, x = FastWeights(DIM), torch.randn(2, 5, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weights(x)["weight"].dtype == torch.float32 and layer(x).isfinite().all()


class Blind(LearningRule):
    def accepts(self, name: str, weight: Tensor) -> bool:
        return False

    def changes(self, t: Any, theta: Any, z: Any) -> Any:
        return theta


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FastWeights(0), "dim"),
        (lambda: FastWeights(4, rule="delta"), "rule must be a LearningRule"),  # type: ignore[arg-type]
        (lambda: FastWeights(4, memory=torch.tanh), "memory must be an nn.Module"),  # type: ignore[arg-type]
        (lambda: FastWeights(4, rule=Blind()), "no parameter that Blind can move"),
        (lambda: FastWeights(4, rule=Hebb(), method="exact"), "closed form"),
        (lambda: FastWeights(4, method="exact", steps=2), "one step"),
        (lambda: FastWeights(4, method="map"), "'map' has no times"),
        (lambda: FastWeights(4, method="eulre"), "eulre"),
        (lambda: layer_of(method="exact")(inputs("linear")), "held still"),
        (lambda: FastWeights(4, pairs=Slopes())(torch.zeros(1, 2, 4)), "needs the slope"),
        (lambda: layer_of()(torch.zeros(2, 3, 5)), r"x must be \(batch, length, 4\)"),
        (lambda: layer_of(pairs=nn.Identity())(inputs()), "pairs must return"),
    ],
)
def test_mistakes_are_named(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()
