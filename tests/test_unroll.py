from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from anodev2 import METHODS, CoupledODEBlock, FourierOperator, NeuralDynamics, ODEBlock, ReactionDiffusionAdvection, Static, unroll
from anodev2.models import MODELS
from problems import Rates, image
from sampled import rows


class Layers(nn.Module):
    """Reads t, moves BatchNorm statistics, draws nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def apply_to(self, t: Tensor, z: Tensor) -> Tensor:
        return self.conv2(torch.tanh(self.norm(self.conv1(z))) * torch.cos(t))


class Branch(Layers):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.apply_to(t, z)


class Counted(Layers):
    """Reads the number of the step and of the stage."""

    def forward(self, t: Tensor, z: Tensor, *, step: int, stage: int) -> Tensor:
        return (1 + step + 0.1 * stage) * self.apply_to(t, z)


def rates() -> NeuralDynamics:
    return NeuralDynamics(Rates())


def diffusing() -> ReactionDiffusionAdvection:
    return ReactionDiffusionAdvection(0.1, 0.4, 0.3)


def statistics(module: nn.Module) -> list[Tensor]:
    """Buffers of the norms, each once, in order."""
    return [b for name, b in module.named_buffers() if name.rsplit(".")[-1] != "t"]


def assert_same(block: nn.Module, plain: nn.Module, z: Tensor) -> None:
    """Same outputs to the bit in evaluation and in training, whose statistics move alike."""
    for mode in (False, True, False):
        assert torch.equal(plain.train(mode)(z), block.train(mode)(z)) and block.training is mode
    before, after = statistics(block), statistics(plain)
    assert len(before) == len(after) and all(map(torch.equal, before, after))


DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TIMES = [(0.0, 1.0), (1.0, 3.0), (2.0, 0.0)]


@pytest.mark.parametrize(("t", "dtype"), rows(TIMES, DTYPES, quick=list(zip(TIMES, DTYPES, strict=True))))
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5", pytest.param("dopri8", marks=pytest.mark.slow)])
def test_outputs_are_the_blocks_to_the_bit(method: str, t: Any, dtype: torch.dtype) -> None:
    z, options = image(dtype), {"steps": 3, "method": method, "t": t}
    for f in (Branch(), Counted()):
        f = f.to(dtype)
        blocks: list[ODEBlock] = [
            ODEBlock(f, **options),
            CoupledODEBlock(copy.deepcopy(f), diffusing(), **options),
            CoupledODEBlock(copy.deepcopy(f), diffusing(), weights="final", **options),
        ]
        if dtype != torch.bfloat16:  # Rates is made for its own dtype
            stepped = CoupledODEBlock(copy.deepcopy(f), rates().to(dtype), evolve="conv*.weight", weight_steps=7, **options)
            blocks.append(stepped)
        for block in blocks:
            assert_same(block, block.unroll(), z)


TRACED = list(zip(["euler", "rk4", "midpoint"], DTYPES, strict=True))


@pytest.mark.parametrize(("method", "dtype"), rows(["euler", "midpoint", "rk4", "dopri5"], DTYPES, quick=TRACED))
def test_fx_takes_down_an_unrolled_block(method: str, dtype: torch.dtype) -> None:
    for f, t in itertools.product((Branch(), Counted()), ((0.0, 1.0), (2.0, 0.0))):
        options: dict[str, Any] = {"steps": 2, "method": method, "t": t}
        for block in (ODEBlock(f.to(dtype), **options), CoupledODEBlock(copy.deepcopy(f), diffusing(), **options)):
            plain, z = block.unroll(), image(dtype)
            traced = torch.fx.symbolic_trace(copy.deepcopy(plain))
            for training, kind in itertools.product((True, False), (dtype, torch.bfloat16)):
                with torch.autocast("cpu", torch.bfloat16, enabled=kind != dtype):
                    assert torch.equal(traced.train(training)(z), plain.train(training)(z))
            moved = dict(plain.named_buffers())
            assert all(torch.equal(b, moved[name]) for name, b in traced.named_buffers() if "norm" in name)


@pytest.mark.parametrize("block", ["ode", "coupled"])
@pytest.mark.parametrize(
    "name", ["resnet4", "alexnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "squeezenext"))]
)
def test_features_are_taken_out_of_unrolled_networks(name: str, block: str) -> None:
    x, network = torch.randn(2, 3, 32, 32), MODELS[name](block=block, steps=2, time=True).eval()
    plain = unroll(network)
    inside = [node for node in get_graph_node_names(plain)[1] if "conv" in node]
    features = create_feature_extractor(plain, return_nodes=[inside[-1], get_graph_node_names(plain)[1][-1]])(x)
    assert len(inside) > 2 and torch.equal(list(features.values())[-1], network(x))


@pytest.mark.parametrize("norm", ["per_step", "shared"])
@pytest.mark.parametrize("block", ["ode", "coupled"])
@pytest.mark.parametrize("name", ["resnet4", "alexnet", pytest.param("resnet10", marks=pytest.mark.slow)])
def test_networks_compute_the_same_to_the_bit(name: str, block: str, norm: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    for method, dtype in (("euler", torch.float32), ("rk4", torch.float64)):
        network = MODELS[name](block=block, norm=norm, steps=2, method=method).to(dtype)
        network(x.to(dtype))
        plain = unroll(network)
        assert not any(isinstance(module, ODEBlock) for module in plain.modules())
        assert_same(network, plain, x.to(dtype))


def test_methods_that_are_no_explicit_runge_kutta_come_along() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stiffness = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return y[1], -self.stiffness * torch.sin(y[0]) * (1 + t)

    class Split(nn.Module):
        def forward(self, t: Tensor, u: Tensor) -> Tensor:
            linear, rest = self.split()
            return linear(u) + rest(t, u)

        def split(self) -> Any:
            return FourierOperator(-(torch.arange(5.0) ** 2).to(torch.complex128), 8), lambda t, u: torch.sin(u) * (1 + t)

    pair = (torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64))
    for method in ("leapfrog", "backward_euler", "implicit_midpoint"):
        block = ODEBlock(Waves(), steps=3, method=method, t=(1.0, 2.0))
        found, expected = block.unroll()(pair), block(pair)
        assert isinstance(found, tuple) and all(map(torch.equal, found, expected))
    u = torch.randn(2, 8, dtype=torch.float64)
    for method in [name for name, known in METHODS.items() if getattr(known, "splits", False)]:
        block = ODEBlock(Split(), steps=3, method=method)
        assert torch.equal(block.unroll()(u), block(u))
    coupled = CoupledODEBlock(Branch().double().eval(), diffusing(), steps=2, method="backward_euler").eval()
    assert torch.equal(coupled.unroll()(image()), coupled(image())) is False  # another image
    z = image()
    assert torch.equal(coupled.unroll()(z), coupled(z))


@pytest.mark.parametrize("make", [ODEBlock, lambda f, **options: CoupledODEBlock(f, diffusing(), **options)], ids=["ode", "coupled"])
@pytest.mark.parametrize("adjoint", ["direct", "reversible", "backsolve"])
def test_the_scheme_of_the_adjoint_is_kept(make: Any, adjoint: str) -> None:
    block = make(Branch().double(), steps=3, method="midpoint", adjoint=adjoint).eval()
    z = image()
    plain = make(copy.deepcopy(block.f), steps=3, method="midpoint").eval()
    assert torch.equal(block.unroll()(z), block(z))
    assert torch.allclose(block(z), plain(z), rtol=1e-12, atol=1e-12) is (adjoint != "reversible")


def test_trees_and_mixed_dtypes_pass_through() -> None:
    class Field(nn.Module):
        def forward(self, t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
            assert t.dtype == torch.float64
            return {"b": [torch.tanh(y["a"].real).float() * t.float()], "a": 1j * y["a"] * t}

    z = {"a": torch.randn(3, dtype=torch.complex128), "b": [torch.randn(3)]}
    block = ODEBlock(Field(), steps=3, method="rk4", t=(0.0, 0.7))  # without parameters t is made for float32: here it is made anew
    found, expected = block.unroll()(z), block(z)
    assert list(found) == ["a", "b"] and found["b"][0].dtype == torch.float32
    assert torch.equal(found["a"], expected["a"]) and torch.equal(found["b"][0], expected["b"][0])


def test_slopes_of_another_dtype_are_cast_to_the_states() -> None:
    class Double(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(z.double()) / 3

    block, z = ODEBlock(Double(), steps=3, method="rk4"), torch.randn(5)
    assert block.unroll()(z).dtype == torch.float32 and torch.equal(block.unroll()(z), block(z))


def test_times_are_rounded_as_the_solver_rounds_them_whatever_the_module_went_through() -> None:
    block = ODEBlock(Branch(), steps=3, method="midpoint").eval()  # t = 1/6, 1/2, 5/6
    plain = block.unroll()
    for change in (nn.Module.double, nn.Module.bfloat16, nn.Module.double, nn.Module.float):
        for module in (block, plain):
            change(module)
        z = image(next(block.parameters()).dtype)
        assert torch.equal(plain(z), block(z))
    state = block.state_dict()
    assert list(plain.state_dict()) == list(state)  # one copy of f under its own name, times are no state
    plain = plain.to("meta").to_empty(device="cpu")
    plain.load_state_dict(state)
    assert torch.equal(plain(z), block(z))


def test_a_copy_of_f_for_each_time_at_which_the_weights_are_read() -> None:
    f = Branch()
    options: dict[str, Any] = {"steps": 3, "evolve": "conv*.weight"}
    counts = {"euler": 3, "midpoint": 6, "rk4": 7}
    for method, count in counts.items():
        plain = CoupledODEBlock(f, diffusing(), method=method, **options).unroll()
        assert sum(isinstance(module, Branch) for module in plain.modules()) == count
        assert sum(p.numel() for p in plain.parameters()) == count * 2 * 81 + 12
    assert sum(isinstance(m, Branch) for m in CoupledODEBlock(f, diffusing(), weights="final", **options).unroll().modules()) == 1
    block = CoupledODEBlock(f, diffusing(), method="rk4", **options)
    copies: Any = block.unroll().f
    path = block.weights([0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0])
    for number, part in enumerate(copies):
        torch.testing.assert_close(part.conv1.weight, path["conv1.weight"][number])
        assert part.conv1.bias is copies[0].conv1.bias and part.norm is copies[0].norm
        assert isinstance(part.conv1.weight, nn.Parameter) and part.conv1.weight.is_leaf
    standing: Any = CoupledODEBlock(f, Static(), **options).unroll().f
    with torch.no_grad():
        standing[0].conv1.weight.zero_()  # theta(t) is one tensor for all t in the block
    assert torch.equal(standing[1].conv1.weight, f.conv1.weight)


def test_nothing_is_shared_with_the_block_and_nothing_leads_to_its_dynamics() -> None:
    for block in (
        ODEBlock(Branch(), steps=2),
        CoupledODEBlock(Branch(), Static(), steps=2),
        CoupledODEBlock(Branch(), diffusing(), steps=2),
    ):
        block(image(torch.float32)).sum().backward()
        before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        gradients = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
        plain = block.unroll().train()
        assert all(p.grad is None for p in plain.parameters()) and not any("dynamics" in name for name in plain.state_dict())
        plain(image(torch.float32)).square().sum().backward()
        torch.optim.SGD(plain.parameters(), 0.1).step()
        assert all(p.grad is not None for p in plain.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())
        assert all(p.grad is None or torch.equal(gradients[name], p.grad) for name, p in block.named_parameters())


def test_buffers_stay_shared_between_copies_when_they_are_moved_or_replaced() -> None:
    class Mean(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1, 3))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.mean = 0.5 * self.mean + z.mean()  # a new tensor each time
            return torch.conv1d(z, self.weight, padding=1) - self.mean

    z = torch.randn(2, 1, 6)
    block = CoupledODEBlock(Mean(), diffusing(), steps=3, adjoint="direct")
    plain = block.unroll()
    assert torch.equal(plain(z), block(z))
    plain.double()
    means = [module.mean for module in plain.modules() if isinstance(module, Mean)]
    assert len(means) == 3 and all(mean is means[0] for mean in means) and means[0].dtype == torch.float64
    assert torch.equal(means[0].float(), block.f.get_buffer("mean"))


def test_frozen_tied_and_parametrized_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(z)))

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    f = Tied().double()
    f.first.weight.requires_grad_(False)
    f.second.bias.requires_grad_(False)  # pyright: ignore[reportOptionalMemberAccess]
    block = CoupledODEBlock(f, diffusing(), steps=3)
    plain = block.unroll()
    assert_same(block, plain, image())
    for part in (module for module in plain.modules() if isinstance(module, Tied)):
        assert part.first.weight is part.second.weight and not part.first.weight.requires_grad
    assert sorted(p.requires_grad for p in plain.parameters()) == [False] * 4 + [True]  # three weights and a bias; a bias
    f = Branch().double()
    parametrize.register_parametrization(f.conv1, "weight", Doubled())
    block = CoupledODEBlock(f, diffusing(), steps=3)
    assert "conv1.parametrizations.weight.original" in block.evolving
    assert_same(block, block.unroll(), image())


def test_training_flags_are_kept_one_by_one() -> None:
    f = Branch()
    f.norm.eval()
    for block in (ODEBlock(f, steps=2), CoupledODEBlock(f, diffusing(), steps=2)):
        plain = block.unroll()
        assert plain.training and all(module.training is not isinstance(module, nn.BatchNorm2d) for module in plain.modules())
        block.training = False
        assert not block.unroll().training and any(module.training for module in block.unroll().modules())


def test_nested_shared_hooked_and_inference_mode_blocks() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.inner = CoupledODEBlock(Branch(), ReactionDiffusionAdvection(0.2), steps=2)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.inner(self.conv(z))

    z = image(torch.float32)
    outer = CoupledODEBlock(Nested(), diffusing(), evolve=["conv.weight", "inner.f.conv1.weight"], steps=2, adjoint="direct")
    network = nn.Sequential(outer, nn.Tanh(), outer)  # the same block twice
    double: Any = lambda module, args, out: 2 * out
    hook = outer.register_forward_hook(double)
    with torch.inference_mode():
        plain = unroll(network)
    assert not any(isinstance(module, ODEBlock) for module in plain.modules()) and plain.get_submodule("0") is plain.get_submodule("2")
    with torch.no_grad():  # an inner weight's own dynamics starts from memory of another alignment here, on which matrix products depend
        torch.testing.assert_close(plain(z), network(z))
    first = [module for module in plain.modules() if isinstance(module, Branch)]
    assert len(first) == 4 and len({id(part.norm) for part in first}) == 1  # evolving from outside and within: two by two
    plain(z).sum().backward()
    hook.remove()
    assert torch.equal(plain(z), plain(z.clone()))


@torch.no_grad()
def test_compiled_networks_come_back_plain() -> None:
    z = image(torch.float32)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), CoupledODEBlock(Branch(), diffusing(), steps=2)).eval()
    expected = network(z)
    whole, part = torch.compile(network, backend="eager"), copy.deepcopy(network)
    part[1] = torch.compile(part[1], backend="eager")  # pyright: ignore[reportArgumentType]
    field = copy.deepcopy(network)
    inside: Any = torch.compile(field.get_submodule("1.f"), backend="eager")
    field[1] = CoupledODEBlock(inside, diffusing(), evolve="*conv*.weight", steps=2).eval()
    for compiled in (whole, part, field):
        torch.testing.assert_close(compiled(z), expected)
        plain = unroll(compiled)  # pyright: ignore[reportArgumentType]
        assert not any(isinstance(m, ODEBlock) or hasattr(m, "_orig_mod") for m in plain.modules())
        assert torch.equal(plain(z), expected)
    again = torch.compile(unroll(network), backend="eager", fullgraph=True)
    torch.testing.assert_close(again(z), expected)


def test_it_can_be_saved_copied_and_transformed(tmp_path: Any) -> None:
    block, z = CoupledODEBlock(Branch().double(), diffusing(), steps=2).eval(), image()
    plain = block.unroll()
    torch.save(plain, tmp_path / "plain.pt")
    for other in (torch.load(tmp_path / "plain.pt", weights_only=False), copy.deepcopy(plain)):
        assert torch.equal(other(z), block(z))
        assert len({id(module.norm) for module in other.modules() if isinstance(module, Branch)}) == 1
    other = CoupledODEBlock(Branch().double(), diffusing(), steps=2).unroll().eval()
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(z), block(z))
    found = torch.func.vmap(plain)(torch.stack([z, 2 * z]))
    torch.testing.assert_close(found[1], block(2 * z))


class Calls(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += func is not torch.ops.aten.promote_types.default  # of dtypes, no tensors
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("block", ["ode", "coupled"])
def test_it_computes_what_layers_written_by_hand_compute(block: str) -> None:
    from benchmarks.unrolled_speed import by_hand

    x = torch.randn(2, 3, 32, 32)
    network = MODELS["resnet4"](block=block).eval()
    plain = unroll(network)
    hand = by_hand(plain)
    counts = []
    with torch.no_grad():
        assert torch.equal(hand(x), network(x))
        for module in (plain, hand):
            with Calls() as calls:
                module(x)
            counts.append(calls.count)
    assert counts[1]["aten.convolution.default"] == 11 and counts[1]["aten.add.Tensor"] == 5
    assert counts[0] - counts[1] == Counter({"aten.unbind.int": 1}) and not counts[1] - counts[0]  # a view, for all times at once


def exported(plain: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


CONVOLUTIONS = {"resnet4": (1, 2), "resnet10": (4, 6), "alexnet": (1, 1)}  # outside blocks, in one evaluation of all blocks


def check_export(name: str, block: str, norm: str, method: str, steps: int, onnx: bool) -> None:
    network = MODELS[name](block=block, norm=norm, method=method, steps=steps)
    x, more = torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32)
    network(x)
    plain = unroll(network.eval())
    program = exported(plain, x)
    targets = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    outside, inside = CONVOLUTIONS[name]
    assert targets["aten.conv2d.default"] == outside + inside * steps * {"euler": 1, "rk4": 4}[method]
    assert not any(word in target for target in targets for word in ("anodev2", "fft", "expm1", "matmul", "index"))
    with torch.no_grad():
        expected = network(more)
        torch.testing.assert_close(program.module()(more), expected, rtol=0, atol=0)
    if onnx:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        assert sum(node.op_type == "Conv" for node in made.model.graph) == targets["aten.conv2d.default"]
        session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-5, atol=1e-5)


QUICK = [
    ("resnet4", "ode", "shared", "rk4", 1, False),
    ("alexnet", "coupled", "shared", "euler", 2, False),
    ("resnet10", "coupled", "per_step", "euler", 2, False),
    ("resnet4", "coupled", "per_step", "rk4", 2, True),
]


@pytest.mark.parametrize(("name", "block", "norm", "method", "steps", "onnx"), QUICK)
def test_exports_are_straight_and_equal(name: str, block: str, norm: str, method: str, steps: int, onnx: bool) -> None:
    check_export(name, block, norm, method, steps, onnx)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block", "norm", "method"),
    [*itertools.product(CONVOLUTIONS, ["ode", "coupled"], ["per_step", "shared"], ["euler", "rk4"])],
)
def test_every_export_runs_in_onnxruntime(name: str, block: str, norm: str, method: str) -> None:
    check_export(name, block, norm, method, 5, True)


def test_user_mistakes_are_named() -> None:
    class Own(ODEBlock):
        def forward(self, z0: Any) -> Any:
            return 2 * super().forward(z0)

    with pytest.raises(TypeError, match=r"network must be an nn.Module, got function"):
        unroll(lambda z: z)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="network=Sequential holds no ODEBlock or CoupledODEBlock"):
        unroll(nn.Sequential(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ValueError, match="Own has a forward of its own"):
        unroll(nn.Sequential(Own(Branch(), steps=1)))
    plain = ODEBlock(Branch(), steps=1).unroll()
    with pytest.raises(TypeError, match=r"z0 must be made of floating or complex tensors, got a tensor of torch.int64; write z0.float"):
        plain(torch.ones(2, 3, 5, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="got float"):
        plain([1.0])
