"""Networks whose stack of blocks becomes one block: their sizes, their layers against others' code, and what all blocks have to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, Galerkin, LowRank, ODEBlock, convert, unroll
from anodev2.gradients.adjoint import as_adjoint
from anodev2.models import tiny, vit
from anodev2.models.blocks import ResidualBlock
from anodev2.models.tiny import TinyBranch
from anodev2.models.vit import TransformerBranch

NETWORKS: dict[str, Callable[..., nn.Sequential]] = {"tiny": tiny, "vit": vit}
TOTALS = {("tiny", "residual"): 97_530, ("tiny", "ode"): 36_730, ("vit", "residual"): 207_946, ("vit", "ode"): 57_994}


def total(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(("name", "block"), TOTALS)
def test_parameter_totals(name: str, block: str) -> None:
    model = NETWORKS[name](block=block, norm="shared")
    assert total(model) == TOTALS[name, block] and model(images()).shape == (2, 10)
    assert total(NETWORKS[name](7, block=block, norm="shared")) == TOTALS[name, block] - 3 * {"tiny": 81, "vit": 65}[name]
    steps = {"tiny": 3, "vit": 4}[name]
    blocks = [part for part in model if isinstance(part, ResidualBlock if block == "residual" else ODEBlock)]
    assert len(blocks) == {"tiny": 2, "vit": 1}[name] * (steps if block == "residual" else 1)
    if block == "ode":
        norms = {"tiny": 2 * (48 + 80), "vit": 4 * 64}[name]
        assert total(NETWORKS[name](block="ode")) == total(model) + (steps - 1) * norms and blocks[0].steps == steps


def tiny_block(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """The block as its authors' figure has it, from shifted copies of padded images."""

    def depthwise(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        kernel = state[f"{name}.weight"][:, 0]
        reach = dilation * (kernel.shape[-1] // 2)
        padded, out = F.pad(x, [reach] * 4), torch.zeros_like(x) + state[f"{name}.bias"][:, None, None]
        for i in range(kernel.shape[1]):
            for j in range(kernel.shape[2]):
                window = padded[:, :, i * dilation : i * dilation + x.shape[2], j * dilation : j * dilation + x.shape[3]]
                out = out + kernel[:, i, j, None, None] * window
        return out

    def pointwise(name: str, x: Tensor) -> Tensor:
        return torch.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, 0, 0], x) + state[f"{name}.bias"][:, None, None]

    a, b, c, d = z.split(z.shape[1] // 4, 1)
    rows = F.pad(d, [1] * 4).unfold(2, 3, 1).unfold(3, 3, 1).mean((-2, -1))
    x = torch.cat([a, depthwise("near", b), depthwise("middle", c), depthwise("far", rows, 3)], 1)
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    x = pointwise("widen", x * state["norm.weight"][:, None, None] + state["norm.bias"][:, None, None])
    gate, values = x.split(z.shape[1], 1)
    return pointwise("narrow", gate.exp().tanh() * gate * values) + state["scale"] * z


def stirred(module: nn.Module) -> Any:
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module.double()


def test_a_tiny_block_is_the_one_written_out() -> None:
    f, z = stirred(TinyBranch(8)), torch.randn(2, 8, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(ResidualBlock(f)(z), tiny_block(f.state_dict(), z), rtol=1e-12, atol=1e-12)


def test_a_transformer_layer_is_torchs() -> None:
    f, z = stirred(TransformerBranch(32)), torch.randn(2, 5, 32, dtype=torch.float64)
    layer = nn.TransformerEncoderLayer(32, 2, 128, 0.0, F.gelu, batch_first=True, norm_first=True, dtype=torch.float64)
    names = {"qkv": "self_attn.in_proj", "out": "self_attn.out_proj", "widen": "linear1", "narrow": "linear2"}
    state = {}
    for name, value in f.state_dict().items():
        place, _, kind = name.partition(".")
        state[f"{names.get(place, place)}{'_' if place == 'qkv' else '.'}{kind}"] = value
    layer.load_state_dict(state)
    torch.testing.assert_close(ResidualBlock(f)(z), layer(z), rtol=1e-12, atol=1e-12)


def test_patches_are_cut_in_rows_of_the_image() -> None:
    model, x = vit(block="ode").double(), images().double()
    patches = [x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] for row in range(8) for column in range(8)]
    flat = torch.stack([patch.permute(0, 2, 3, 1).flatten(1) for patch in patches], 1)
    torch.testing.assert_close(model[0](x), F.linear(flat, *model[0].project.parameters()) + model[0].positions)  # pyright: ignore


@pytest.mark.parametrize("name", NETWORKS)
def test_one_euler_step_is_one_layer_and_standing_weights_are_the_ode_to_the_bit(name: str) -> None:
    layers = {"tiny": {"repeats": 1}, "vit": {"depth": 1}}[name]
    residual, ode = NETWORKS[name](block="residual", **layers), NETWORKS[name](block="ode", **layers)
    ode.load_state_dict(residual.state_dict())
    x = images()
    assert torch.equal(ode(x), residual(x))
    ode, coupled = NETWORKS[name](block="ode"), NETWORKS[name](block="coupled", dynamics=LowRank(2))
    coupled.load_state_dict(ode.state_dict(), strict=False)
    assert torch.equal(ode(x), coupled(x))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dynamics", [None, Galerkin("chebyshev", 2)], ids=["default", "chebyshev"])
def test_gradients_are_those_of_plain_autograd_and_all_parameters_train(name: str, dynamics: Any) -> None:
    x, found = images().double(), []
    torch.manual_seed(0)
    model = NETWORKS[name](block="coupled", dynamics=dynamics).double()
    for module in model.modules():
        if isinstance(module, CoupledODEBlock):
            for parameter in stirred(module.dynamics).parameters():
                parameter.data.abs_()  # a diffusivity below 0 does not act
    for adjoint in ("direct", "checkpoint"):
        other = copy.deepcopy(model)
        for module in other.modules():
            if isinstance(module, CoupledODEBlock):
                module.adjoint = as_adjoint(adjoint)
        end = other(x)
        found.append((end, torch.autograd.grad(end.square().sum(), list(other.parameters()))))
    assert torch.equal(found[0][0], found[1][0]) and all(gradient.any() for gradient in found[0][1])
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(unroll(model)(x), found[0][0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stack_is_converted_to_one_block(name: str) -> None:
    model, x = NETWORKS[name](block="residual"), images()
    stack = [part for part in model if isinstance(part, ResidualBlock)][: {"tiny": 3, "vit": 4}[name]]
    first = [*model].index(stack[0])
    found = convert(stack, Galerkin("constant", len(stack), length=len(stack)))
    changed = nn.Sequential(*model[:first], found.block, *model[first + len(stack) :])
    torch.testing.assert_close(changed(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_learned(name: str) -> None:
    torch.manual_seed(0)
    model, x, y = (
        NETWORKS[name](block="coupled"),
        torch.randn(4, 3, 16, 16) if name == "tiny" else torch.randn(4, 3, 32, 32),
        torch.arange(4),
    )
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(8):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_mistakes_are_named() -> None:
    for network in NETWORKS.values():
        with pytest.raises(ValueError, match="time=True needs a network"):
            network(block="ode", time=True)
    with pytest.raises(ValueError, match="features=40 must be a positive multiple of 16"):
        vit(features=40)
