from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from anodev2 import CoupledODEBlock, NeuralDynamics, ReactionDiffusionAdvection, Static
from models import MODELS
from models.blocks import PerStepNorm2d

TOTALS = {"resnet4": 7_706, "resnet10": 44_186, "alexnet": 1_756_682}


def total(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_totals_are_those_of_the_paper(name: str) -> None:
    assert total(MODELS[name](block="residual")) == TOTALS[name]
    assert total(MODELS[name](100, block="residual")) > TOTALS[name]


@pytest.mark.parametrize("norm", ["per_step", "shared"])
@pytest.mark.parametrize("name", MODELS)
def test_one_euler_step_is_the_residual_network_to_the_bit(name: str, norm: str) -> None:
    residual, ode = MODELS[name](block="residual", norm=norm), MODELS[name](block="ode", steps=1, norm=norm)
    assert list(residual.state_dict()) == list(ode.state_dict()) and total(ode) == TOTALS[name]
    ode.load_state_dict(residual.state_dict())
    x = images()
    for mode in (True, False):
        assert torch.equal(ode.train(mode)(x), residual.train(mode)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "dynamics", [Static(), ReactionDiffusionAdvection(0.0, 0.0, 0.0, learnable=False), ReactionDiffusionAdvection(0.0)]
)
@pytest.mark.parametrize("name", MODELS)
def test_standing_weights_compute_the_ode_network_to_the_bit(name: str, dynamics: Any, dtype: torch.dtype) -> None:
    ode, coupled = MODELS[name](block="ode").to(dtype), MODELS[name](block="coupled", dynamics=dynamics).to(dtype)
    x = images().to(dtype)
    for _ in range(2):
        ode(x)  # statistics that are not the initial ones
    coupled.load_state_dict(ode.state_dict(), strict=False)
    assert torch.equal(coupled.eval()(x), ode.eval()(x))


@pytest.mark.parametrize(("name", "block", "norm"), [*itertools.product(MODELS, ["residual", "ode", "coupled"], ["per_step", "shared"])])
def test_every_variant_trains_a_step_with_exact_gradients(name: str, block: str, norm: str) -> None:
    gradients = []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(0)
        model = MODELS[name](block=block, norm=norm, steps=2, method="midpoint", adjoint=adjoint).double()
        nn.functional.cross_entropy(model(images(2).double()), torch.tensor([1, 2])).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for n, expected in gradients[0].items():
        assert expected is not None and expected.isfinite().all(), n
        torch.testing.assert_close(gradients[1][n], expected, rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "dense"}, "block='dense'"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"block": "ode", "dynamics": Static()}, "block='ode'"),
        ({"block": "ode", "steps": 0}, "steps=0"),
        ({"method": "dopri9"}, "method='dopri9'"),
    ],
)
def test_user_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS["resnet4"](**options)
