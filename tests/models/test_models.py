from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from anodev2 import Adjoint, CheckpointAdjoint, CoupledODEBlock, Galerkin, NeuralDynamics, ODEBlock, ReactionDiffusionAdvection, Static
from anodev2.models import MODELS
from anodev2.models.blocks import BranchConv2d, PerStepNorm2d
from anodev2.models.squeezenext import SqueezeBranch
from sampled import rows

TOTALS = {"resnet4": 7_706, "resnet10": 44_186, "alexnet": 1_756_682, "resnet18": 11_173_962, "squeezenext": 461_466}
IN_ODES = {"resnet4": 4_672, "resnet10": 27_904, "alexnet": 102_592, "resnet18": 6_270_720, "squeezenext": 199_800}
FEATURES = {"resnet4": 256, "resnet10": 128, "alexnet": 192, "resnet18": 512, "squeezenext": 128}  # into the last layer
ANY_SIZE = ("resnet18", "squeezenext")


def total(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(name: str = "resnet4", count: int = 2) -> torch.Tensor:
    size = 16 if name in ANY_SIZE else 32
    return torch.randn(count, 3, size, size)


def odes(model: nn.Module) -> list[ODEBlock]:
    return [module for module in model.modules() if isinstance(module, ODEBlock)]


@pytest.mark.parametrize("name", MODELS)
def test_parameter_totals_are_those_of_the_papers(name: str) -> None:
    for classes in (10, 100, 7):
        assert total(MODELS[name](classes, block="residual")) == TOTALS[name] + (classes - 10) * (FEATURES[name] + 1)
    one, five = MODELS[name](block="ode", steps=1), MODELS[name](block="ode", steps=5)
    assert total(one) == TOTALS[name] and sum(total(block) for block in odes(one)) == IN_ODES[name]
    norms = sum(total(m) for block in odes(one) for m in block.modules() if isinstance(m, nn.BatchNorm2d))
    assert total(five) == total(one) + 4 * norms and total(MODELS[name](block="ode", norm="shared")) == TOTALS[name]


def test_the_squeezed_branch_has_the_parameters_of_its_formula() -> None:
    for c in (32, 64, 128, 256):
        assert total(SqueezeBranch(c)) == 2.25 * c**2 + 8.25 * c


@pytest.mark.parametrize("name", ANY_SIZE)
def test_images_of_other_sizes_and_numbers_of_classes(name: str) -> None:
    model = MODELS[name](7, block="ode", steps=2).eval()
    assert [model(torch.randn(1, 3, h, w)).shape for h, w in ((32, 32), (20, 28))] == [(1, 7), (1, 7)]


def test_a_squeezenext_block_needs_no_relu_behind_it() -> None:
    model, z = MODELS["squeezenext"](block="ode", steps=2, method="rk4"), images("squeezenext")
    for layer in list(model.children())[:-2]:
        z = layer(z)
        assert (z >= 0).all() and z.any()


@pytest.mark.parametrize("norm", ["per_step", "shared"])
@pytest.mark.parametrize("name", MODELS)
def test_one_euler_step_is_the_residual_network_to_the_bit(name: str, norm: str) -> None:
    residual, ode = MODELS[name](block="residual", norm=norm), MODELS[name](block="ode", steps=1, norm=norm)
    assert list(residual.state_dict()) == list(ode.state_dict()) and total(ode) == TOTALS[name]
    x = images(name)
    residual(x)  # statistics that are not the initial ones
    ode.load_state_dict(residual.state_dict())
    for mode in (True, False):
        assert torch.equal(ode.train(mode)(x), residual.train(mode)(x))


STANDING = [Static(), ReactionDiffusionAdvection(0.0, learnable=False), ReactionDiffusionAdvection(0.0), Galerkin("linear", 3)]


NETWORKS = [*((name, torch.float32) for name in MODELS), ("resnet4", torch.float64), ("squeezenext", torch.float64)]


@pytest.mark.parametrize(("network", "dynamics"), rows(NETWORKS, STANDING, quick=3))
def test_standing_weights_compute_the_ode_network_to_the_bit(network: tuple[str, torch.dtype], dynamics: Any) -> None:
    name, dtype = network
    ode, coupled = MODELS[name](block="ode", steps=2).to(dtype), MODELS[name](block="coupled", steps=2, dynamics=dynamics).to(dtype)
    x = images(name).to(dtype)
    ode(x)  # statistics that are not the initial ones
    coupled.load_state_dict(ode.state_dict(), strict=False)
    for mode in (True, False):
        assert torch.equal(coupled.train(mode)(x), ode.train(mode)(x))


def gradients(name: str, adjoint: str | Adjoint, **options: Any) -> dict[str, torch.Tensor]:
    """Of a training step from a fixed seed, every parameter's, all finite."""
    torch.manual_seed(0)
    steps = 2 if name == "resnet18" else 3
    model = MODELS[name](steps=steps, method="midpoint", adjoint=adjoint, **options)
    nn.functional.cross_entropy(model(images(name)), torch.tensor([1, 2])).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters())) and all(grad.isfinite().all() for grad in found.values())
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To single precision; a bias before a norm has no gradient but round-off."""
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        gap = (found[name] - grad).abs().max().item()
        assert gap <= 2e-5 * grad.abs().max().item() + 1e-6 * largest, f"{name}: {gap}"


VARIANTS = [*itertools.product(MODELS, ["residual", "ode", "coupled"], ["per_step", "shared"])]


@pytest.mark.parametrize(("name", "block", "norm"), rows(MODELS, ["residual", "ode", "coupled"], ["per_step", "shared"], quick=2))
def test_every_variant_trains_a_step_with_exact_gradients(name: str, block: str, norm: str) -> None:
    expected = gradients(name, "direct", block=block, norm=norm)
    assert_same(gradients(name, "checkpoint", block=block, norm=norm), expected)
    if name != "resnet18":
        assert_same(gradients(name, CheckpointAdjoint(slots=2), block=block, norm=norm), expected)


@pytest.mark.parametrize("adjoint", ["reversible", "backsolve"])
@pytest.mark.parametrize(
    ("name", "block", "norm"),
    [
        row if row[0] != "resnet18" else pytest.param(*row, marks=pytest.mark.slow)
        for row in VARIANTS
        if row[1] != "residual"  # which has no solver
    ],
)
def test_every_variant_trains_a_step_by_the_other_adjoints(name: str, block: str, norm: str, adjoint: str) -> None:
    assert all(grad.isfinite().all() for grad in gradients(name, adjoint, block=block, norm=norm).values())


@pytest.mark.slow
@pytest.mark.parametrize(("block", "norm"), [*itertools.product(["ode", "coupled"], ["per_step", "shared"])])
def test_resnet18_with_slots_has_exact_gradients(block: str, norm: str) -> None:
    expected = gradients("resnet18", "direct", block=block, norm=norm)
    assert_same(gradients("resnet18", CheckpointAdjoint(slots=2), block=block, norm=norm), expected)


@pytest.mark.parametrize(("name", "block"), [("resnet4", "ode"), ("alexnet", "coupled"), ("squeezenext", "coupled")])
def test_baselines_train_with_exact_gradients(name: str, block: str) -> None:
    options: dict[str, Any] = {"block": block, "time": True, "dynamics": Galerkin("chebyshev", 3) if block == "coupled" else None}
    expected = gradients(name, "direct", **options)
    assert_same(gradients(name, "checkpoint", **options), expected)
    coefficients = [name for name in expected if ".dynamics.coefficients." in name]
    assert all(expected[name].any() for name in coefficients) and bool(coefficients) == (block == "coupled")
    assert not any("norm" in name or "bias" in name for name in coefficients)


# conversion


@pytest.mark.parametrize("name", MODELS)
def test_a_residual_network_loads_into_the_ode_its_norm_into_every_step(name: str) -> None:
    residual, ode = MODELS[name](block="residual"), MODELS[name](block="ode", steps=3)
    residual(images(name))
    state = residual.state_dict()
    names = list(state)
    ode.load_state_dict(state)
    assert list(state) == names
    copied = 0
    for key, value in ode.state_dict().items():
        parent, _, last = key.rpartition(".")
        owner = parent.rpartition(".")[0]
        of_step = isinstance(ode.get_submodule(owner), PerStepNorm2d)
        assert torch.equal(value, state[f"{owner}.{last}" if of_step else key]), key
        assert not last.startswith("running") or value.any()
        copied += of_step
    assert copied == 3 * 5 * sum(isinstance(m, PerStepNorm2d) for m in ode.modules()) > 0
    with torch.no_grad():
        next(m for m in ode.modules() if isinstance(m, PerStepNorm2d))[0].get_parameter("weight").zero_()
    again = MODELS[name](block="ode", steps=3)
    again.load_state_dict(ode.state_dict())  # the names of its own as ever
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ode.state_dict().values(), strict=True))


def test_a_norm_on_its_own_loads_a_plain_one() -> None:
    plain, norm = nn.BatchNorm2d(4), PerStepNorm2d(4, 2)
    plain(torch.randn(3, 4, 2, 2))
    norm.load_state_dict(plain.state_dict())
    assert torch.equal(norm[1].get_buffer("running_mean"), plain.get_buffer("running_mean"))
    plain.get_buffer("running_mean").zero_()
    assert norm[0].get_buffer("running_mean").any() and norm[0].get_buffer("num_batches_tracked") == 1


def test_what_does_not_fit_is_still_an_error() -> None:
    state = MODELS["resnet4"](block="residual").state_dict()
    ode = MODELS["resnet4"](block="ode", steps=3)
    for broken, message in (
        ({key: value for key, value in state.items() if key != "3.f.norm1.weight"}, r"Missing key.*3\.f\.norm1\.0\.weight"),
        (state | {"3.f.norm1.scale": torch.zeros(1)}, r"Unexpected key.*3\.f\.norm1\.scale"),
        (state | {"3.f.norm1.0.weight": torch.zeros(16)}, r"Unexpected key.*3\.f\.norm1\.weight"),
        (state | {"3.f.norm1.weight": torch.zeros(8)}, r"size mismatch for 3\.f\.norm1\.2\.weight"),
    ):
        with pytest.raises(RuntimeError, match=f"(?s){message}"):
            ode.load_state_dict(broken)
    with pytest.raises(RuntimeError, match=r"size mismatch for 3\.f\.conv1\.weight"):
        MODELS["resnet4"](block="ode", time=True).load_state_dict(state)


@pytest.mark.parametrize("dynamics", [None, Galerkin("fourier", 3)], ids=["reaction-diffusion-advection", "galerkin"])
def test_a_residual_network_lacks_the_dynamics_of_a_coupled_one_alone(dynamics: Any) -> None:
    state = MODELS["resnet10"](block="residual").state_dict()
    coupled = MODELS["resnet10"](block="coupled", dynamics=dynamics)
    missing, unexpected = coupled.load_state_dict(state, strict=False)
    assert missing == [name for name, _ in coupled.named_parameters() if ".dynamics." in name] != [] and not unexpected
    with pytest.raises(RuntimeError, match="Missing key"):
        coupled.load_state_dict(state)


# time as a channel


@pytest.mark.parametrize("name", MODELS)
def test_time_is_one_more_channel_of_every_convolution_of_the_branch(name: str) -> None:
    plain, timed = MODELS[name](block="ode"), MODELS[name](block="ode", time=True)
    assert list(plain.state_dict()) == list(timed.state_dict())
    of_blocks = {id(m) for block in odes(timed) for m in block.modules() if isinstance(m, nn.Conv2d)}
    assert of_blocks
    for (key, a), b in zip(plain.named_modules(), timed.modules(), strict=True):
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d):
            assert b.in_channels == a.in_channels + (id(b) in of_blocks) and b.weight.shape[1] == b.in_channels, key


def test_the_convolution_of_time() -> None:
    conv, z = BranchConv2d(3, 5, (1, 3), time=True).double(), torch.randn(2, 3, 6, 7).double()
    channel = torch.ones(2, 1, 6, 7).double()
    for t in (0.0, 0.7, torch.tensor(0.7)):
        torch.testing.assert_close(conv(z, t), nn.functional.conv2d(torch.cat([z, t * channel], 1), conv.weight, conv.bias, padding=(0, 1)))
    assert conv(z, 0.5).shape == (2, 5, 6, 7) and not torch.equal(conv(z, 0.0), conv(z, 0.5))


@pytest.mark.parametrize("block", ["ode", "coupled"])
@pytest.mark.parametrize("name", MODELS)
def test_the_branch_reads_the_time_of_the_solver(name: str, block: str) -> None:
    """All weights but that of one time channel zero: what leaves the first convolution of the branch is t."""
    ode = odes(MODELS[name](block=block, steps=2, method="midpoint", time=True, dynamics=Static() if block == "coupled" else None))[0]
    conv = next(m for m in ode.modules() if isinstance(m, BranchConv2d))
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
        conv.weight[0, -1, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = 1.0
    seen: list[float] = []
    conv.register_forward_hook(lambda module, inputs, output: seen.extend(output[:, 0].unique().tolist()))
    channels = conv.in_channels - 1
    ode(torch.randn(2, channels, 4, 4))
    assert seen == [0.0, 0.25, 0.5, 0.75]


# the rest


def test_each_step_has_its_own_statistics_and_its_stages_share_them() -> None:
    block = MODELS["resnet4"](block="ode", steps=3, method="midpoint").get_submodule("3")
    norm = block.get_submodule("f.norm1")
    assert isinstance(norm, PerStepNorm2d) and len(norm) == 3
    block(torch.randn(2, 16, 8, 8)).sum().backward()
    assert [n.get_buffer("num_batches_tracked").item() for n in norm] == [2, 2, 2]
    means = [n.get_buffer("running_mean") for n in norm]
    assert not torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])
    with pytest.raises(ValueError, match=r"made for 3 steps.*step number 4.*norm='shared'"):
        norm(torch.randn(2, 16, 8, 8), 3)


def test_each_block_has_its_own_dynamics() -> None:
    prototype = ReactionDiffusionAdvection(0.1)
    model = MODELS["resnet10"](block="coupled", dynamics=prototype)
    blocks = [m for m in model.modules() if isinstance(m, CoupledODEBlock)]
    assert len(blocks) == 3 and len({id(b.dynamics) for b in blocks}) == 3
    assert all(b.evolving == ("conv1.weight", "conv2.weight") for b in blocks) and not len(prototype.rho)


def test_configuration_2_and_neural_dynamics_in_a_network() -> None:
    dynamics = NeuralDynamics(lambda t, theta: {name: -0.1 * w for name, w in theta.items()})
    model = MODELS["resnet4"](block="coupled", steps=2, weight_steps=10, dynamics=dynamics)
    model(images()).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "dynamics" not in name)


def test_options_of_the_weights_reach_the_block() -> None:
    model = MODELS["resnet4"](block="coupled", steps=2, weight_steps=10, weight_method="rk4", weights="final")
    block = next(m for m in model.modules() if isinstance(m, CoupledODEBlock))
    assert (block.weight_steps, block.weight_method.name, block.which_weights) == (10, "rk4", "final")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "dense"}, "block='dense'"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"block": "ode", "dynamics": Static()}, "block='ode'"),
        ({"block": "ode", "steps": 0}, "steps=0"),
        ({"method": "dopri9"}, "method='dopri9'"),
        ({"block": "residual", "time": True}, "time=True needs block='ode' or 'coupled', got block='residual'"),
        ({"weights": "both"}, "weights='both'"),
        ({"dynamics": Galerkin("linear", 3, length=0.5)}, "length=0.5"),
    ],
)
def test_user_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS["resnet4"](**options)(images())
