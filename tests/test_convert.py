"""Stacks of residual blocks as one coupled block: exact where that can be, nearest elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anodev2 import (
    BSpline,
    CoupledODEBlock,
    DepthGroups,
    Dynamics,
    Galerkin,
    Hyper,
    LowRank,
    ODEBlock,
    ReactionDiffusionAdvection,
    Scale,
    SkewFlow,
    Static,
    Templates,
    convert,
)
from anodev2.models.blocks import BasicBranch, ResidualBlock
from problems import Convolutions, image
from sampled import rows

LAYERS = 6
ZOO: dict[str, Callable[[float], Dynamics]] = {  # of a length
    "static": lambda _: Static(),
    "reaction-diffusion-advection": lambda _: ReactionDiffusionAdvection(),
    "mix": lambda _: ReactionDiffusionAdvection(mix=True),
    "per channel": lambda _: ReactionDiffusionAdvection(per="channel"),
    "chebyshev": lambda length: Galerkin("chebyshev", 3, length=length),
    "constant": lambda length: Galerkin("constant", 3, length=length),
    "linear": lambda length: Galerkin("linear", 3, length=length),
    "fourier": lambda length: Galerkin("fourier", 3, length=length),
    "b-spline": lambda length: BSpline(4, 2, length=length),
    "b-spline of pieces": lambda length: BSpline(4, 1, length=length),
    "b-spline of degree 3": lambda length: BSpline(4, 3, length=length),
    "low rank": lambda length: LowRank(1, length=length),
    "low rank in pieces": lambda length: LowRank(1, basis="constant", size=3, length=length),
    "low rank fourier": lambda length: LowRank(2, basis="fourier", size=3, length=length),
    "templates": lambda length: Templates(2, LAYERS, length=length),
    "templates chebyshev": lambda length: Templates(1, 3, basis="chebyshev", length=length),
    "hyper": lambda length: Hyper(1, frequencies=2, length=length),
    "scale": lambda length: Scale(LAYERS, length=length),
    "gains chebyshev": lambda length: Scale(3, basis="chebyshev", length=length),
    "skew": lambda _: SkewFlow(),
}
GROUPS = {"halves": (3.0,), "thirds": (2.0, 4.0), "a short and a long": (2.0,), "between layers": (2.5,)}
TOLD = [name for name in ZOO if "piece" not in name and name not in ("templates", "scale", "hyper")]  # where a group ends between layers
UNIQUE = ["static", "reaction-diffusion-advection", "mix", "per channel", "chebyshev", "constant", "linear", "fourier", "b-spline"]
UNIQUE += ["b-spline of pieces", "b-spline of degree 3", "scale", "gains chebyshev", "skew"]


def of_groups(family: str, groups: str) -> Dynamics:
    ends = (0.0, *GROUPS[groups], float(LAYERS))
    return DepthGroups(ZOO[family](max(b - a for a, b in pairwise(ends))), GROUPS[groups])


FAMILIES = {name: lambda make=make: make(float(LAYERS)) for name, make in ZOO.items()}
FAMILIES |= {
    f"{name} in halves": lambda name=name: of_groups(name, "halves") for name in ("skew", "low rank", "gains chebyshev", "chebyshev")
}


def moving(dynamics: Dynamics) -> CoupledODEBlock:
    """A block whose dynamics is no special one."""
    torch.manual_seed(0)
    block = CoupledODEBlock(Convolutions(), dynamics, steps=LAYERS, t=(0.0, LAYERS), evolve="conv*.weight")
    for name, parameter in block.dynamics.named_parameters():
        parameter.data.normal_(std=1.0 if name in ("inner", "bias") else 0.05).abs_()
    return block


def layers(block: CoupledODEBlock) -> list[nn.Module]:
    """Its Euler steps as residual branches, each with norms and biases of its own."""
    made = []
    for step in range(LAYERS):
        f = copy.deepcopy(block.f).eval()
        for name, weight in block.weights(float(step)).items():
            f.get_parameter(name).data.copy_(weight.detach())
        for name, value in (*f.named_parameters(), *f.named_buffers()):
            if value.is_floating_point() and not (name.startswith("conv") and name.endswith("weight")):
                value.data.uniform_(0.5, 1.5)
        made.append(f)
    return made


def stack_of(branches: list[nn.Module], z: Tensor) -> Tensor:
    for step, f in enumerate(branches):
        z = z + f(float(step), z)
    return z


@pytest.mark.parametrize("family", rows(FAMILIES, quick=["static", "mix", "chebyshev", "low rank", "skew"]))
def test_weights_that_follow_a_dynamics_are_found_with_it(family: str) -> None:
    block = moving(FAMILIES[family]())
    branches, z = layers(block), image()
    torch.manual_seed(1)
    found = convert(branches, FAMILIES[family](), evolve="conv*.weight")
    assert {*found.errors} == {"conv1.weight", "conv2.weight"}
    assert all(error.shape == (LAYERS,) and error.max() < 1e-6 for error in found.errors.values())
    torch.testing.assert_close(found.block(z), stack_of(branches, z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.block.unroll()(z), found.block(z), rtol=1e-12, atol=1e-12)
    if family in UNIQUE:
        same_coefficients(found.block, block)


def same_coefficients(found: CoupledODEBlock, made: CoupledODEBlock) -> None:
    expected = {name.replace("conv", "branches/0/conv"): p for name, p in made.dynamics.named_parameters()}
    for name, parameter in found.dynamics.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("family", "groups"),
    rows(ZOO, ["halves", "thirds", "a short and a long"], quick=[("reaction-diffusion-advection", "halves"), ("mix", "thirds")])
    + rows(TOLD, ["between layers"], quick=[("per channel", "between layers")]),
)
def test_weights_that_follow_groups_of_any_dynamics_are_found_with_it(family: str, groups: str) -> None:
    block = moving(of_groups(family, groups))
    found = convert(layers(block), of_groups(family, groups), evolve="conv*.weight")
    assert all(error.max() < 1e-6 for error in found.errors.values()), found
    if family in ("reaction-diffusion-advection", "mix", "per channel", "skew"):  # others have more coefficients than a group has layers
        same_coefficients(found.block, block)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["branch", "residual", "ode"])
def test_one_block_is_itself_to_the_bit(kind: str, family: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 4, 5, 5)
    f = BasicBranch(4).eval()
    stack: list[nn.Module] = {"branch": [f], "residual": [ResidualBlock(f)], "ode": [ODEBlock(f, steps=1)]}[kind]
    dynamics = FAMILIES[family]()
    if hasattr(dynamics, "length"):
        vars(dynamics)["length"] = 1.0
    found = convert(nn.Sequential(*stack), dynamics)
    assert torch.equal(found.block.eval()(z), ResidualBlock(f)(z))
    assert all(not error.any() for error in found.errors.values())


def test_linear_families_are_the_least_squares_of_numpy_and_pieces_lose_nothing() -> None:
    torch.manual_seed(0)
    branches: list[nn.Module] = [Convolutions().eval() for _ in range(LAYERS)]
    found = convert(branches, Galerkin("chebyshev", 3, length=LAYERS), evolve="conv*.weight")
    design = np.polynomial.chebyshev.chebvander(2 * np.arange(LAYERS) / LAYERS - 1, 2)
    for name, error in found.errors.items():
        given = np.stack([f.get_parameter(name).detach().numpy().ravel() for f in branches])
        rest = given - design @ np.linalg.lstsq(design, given, rcond=None)[0]
        np.testing.assert_allclose(error, np.linalg.norm(rest, axis=1) / np.linalg.norm(given, axis=1), rtol=1e-9)
    z = image()
    same = convert(branches, Galerkin("constant", LAYERS, length=LAYERS), evolve="conv*.weight")
    torch.testing.assert_close(same.block(z), stack_of(branches, z), rtol=1e-12, atol=1e-12)


def test_low_rank_is_no_worse_than_truncating_the_best_line() -> None:
    torch.manual_seed(0)
    branches: list[nn.Module] = [Convolutions().eval() for _ in range(LAYERS)]
    s = np.arange(LAYERS) / LAYERS
    found = convert(branches, LowRank(1, length=LAYERS), evolve="conv*.weight")
    for name, error in found.errors.items():
        given = np.stack([f.get_parameter(name).detach().numpy().reshape(3, -1) for f in branches])
        start, slope = np.linalg.lstsq(np.stack([np.ones(LAYERS), s], 1), given.reshape(LAYERS, -1), rcond=None)[0].reshape(2, 3, -1)
        u, values, v = np.linalg.svd(slope)
        cut = start + s[:, None, None] * (values[0] * np.outer(u[:, 0], v[0]))
        assert (error.numpy() ** 2 * (given**2).sum((1, 2))).sum() < ((given - cut) ** 2).sum() * (1 + 1e-9)


def test_what_is_each_steps_own_is_copied_and_trains() -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(*(ResidualBlock(BasicBranch(4)) for _ in range(3)))
    for block in stack:
        block(torch.randn(4, 4, 5, 5))
    before = copy.deepcopy(stack.state_dict())
    found = convert(stack, ReactionDiffusionAdvection())
    z, f = torch.randn(2, 4, 5, 5), found.block.f.get_submodule("branches")
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())
    for step in range(3):
        for norm in ("norm1", "norm2"):
            ours, theirs = (part.get_submodule(norm).state_dict() for part in (f[step], stack[step].f))  # pyright: ignore
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found.block(z).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in found.block.named_parameters() if "upsilon" not in name)
    assert str(found).splitlines()[0].split() == ["relative", "error", "layer", "1", "layer", "2", "layer", "3"]


@pytest.mark.parametrize("family", rows([*FAMILIES][1:], quick=["per channel", "low rank fourier", "hyper"]))  # all but static
def test_layers_that_are_all_alike_can_learn_to_differ(family: str) -> None:
    torch.manual_seed(0)
    found = convert([Convolutions().eval()] * LAYERS, FAMILIES[family](), evolve="conv*.weight")
    assert all(error.max() < 1e-6 for error in found.errors.values())
    found.block(image()).square().sum().backward()
    slopes = [p.grad for p in found.block.dynamics.parameters()]
    assert any(slope is not None and slope.any() for slope in slopes)


def test_steps_of_another_length_keep_it() -> None:
    torch.manual_seed(0)
    stack = [ODEBlock(Convolutions().eval(), steps=1, t=(0.5 * n, 0.5 * n + 0.5)) for n in range(3)]
    found, z = convert(stack, Galerkin("constant", 3, length=1.5)), image()
    assert found.block.t == (0.0, 1.5)
    torch.testing.assert_close(found.block(z), stack[2](stack[1](stack[0](z))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("stack", "options", "message"),
    [
        ([], {}, "stack is empty"),
        ([Convolutions(), BasicBranch(3)], {}, "blocks 0 and 1 of the stack differ in"),
        ([BasicBranch(3), BasicBranch(4)], {}, r"blocks 0 and 1 of the stack differ in conv1.weight: \(3, 3, 3, 3\) and \(4, 4, 3, 3\)"),
        ([ODEBlock(Convolutions(), steps=2)], {}, "block 0 of the stack must be an ODEBlock of one Euler step"),
        ([ODEBlock(Convolutions(), steps=1), ODEBlock(Convolutions(), steps=1)], {}, "block 1 of the stack goes from 0.0 to 1.0"),
        ([Convolutions()] * 3, {"dynamics": Galerkin("linear", 2)}, "length=1.0 of this Galerkin does not reach the time 2.0"),
        ([Convolutions()] * 2, {"evolve": "nothing"}, "evolve='nothing' matches no parameter"),
    ],
)
def test_mistakes_are_named(stack: list[nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(stack, **{"dynamics": Static(), **options})
    with pytest.raises(TypeError, match=r"stack must hold nn\.Modules"):
        convert([3], Static())  # pyright: ignore[reportArgumentType]
