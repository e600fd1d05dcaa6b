"""Weights expanded in a basis of depth: what is spanned, where the basis stands still, how it trains."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, CoupledSystem, Galerkin, ODEBlock, odeint
from problems import Convolutions, image

BASES = [("constant", 4), ("linear", 4), ("fourier", 5), ("chebyshev", 4), ("linear", 2), ("chebyshev", 2)]
SMOOTH = [row for row in BASES if row[0] in ("fourier", "chebyshev")]
TIMES = [0.0, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0]


def weights(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"a.weight": torch.randn(3, 2, 3, 3, dtype=dtype), "b.weight": torch.randn(4, 3, dtype=dtype)}


def bound(theta: dict[str, Tensor], basis: str, size: int, length: float = 1.0) -> Galerkin:
    """With coefficients that are not zero."""
    dynamics = Galerkin(basis, size, length=length)
    dynamics.bind(theta)
    for parameter in dynamics.parameters():
        parameter.data.normal_()
    return dynamics


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.one(z))


def expected(basis: str, start: Tensor, a: Tensor, s: float) -> Tensor:
    """theta(s) written down again, in the basis as it is usually given, by numpy."""
    size, zero, rows = len(a) + 1, start.numpy(), a.detach().numpy()
    if basis == "constant":
        return torch.as_tensor([zero, *(zero + row for row in rows)][min(math.floor(s * size), size - 1)])
    if basis == "linear":
        nodes = np.array([zero, *(zero + row for row in rows)])
        flat = [np.interp(s, np.linspace(0, 1, size), column) for column in nodes.reshape(size, -1).T]
        return torch.as_tensor(np.reshape(flat, zero.shape))
    if basis == "chebyshev":
        values = [np.polynomial.chebyshev.chebval(2 * s - 1, np.eye(size)[k]) - (-1.0) ** k for k in range(1, size)]
    else:
        k = np.arange(1, size // 2 + 1)
        values = [*(np.cos(2 * np.pi * k * s) - 1), *np.sin(2 * np.pi * k * s)]
    return torch.as_tensor(zero + np.tensordot(values, rows, 1))


@pytest.mark.parametrize("length", [1.0, 2.5, -0.5])
@pytest.mark.parametrize(("basis", "size"), BASES)
def test_the_flow_is_the_sum_over_the_basis(basis: str, size: int, length: float) -> None:
    theta = weights()
    dynamics = bound(theta, basis, size, length)
    path = dynamics.flow(theta, [s * length for s in TIMES])
    for name, start in theta.items():
        a = dynamics.coefficients[name.replace(".", "/")]
        assert a.shape == (size - 1, *start.shape) and path[name].shape == (len(TIMES), *start.shape)
        for s, found in zip(TIMES, path[name], strict=True):
            torch.testing.assert_close(found, expected(basis, start, a, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("basis", "size"), BASES)
def test_theta_starts_at_theta_0_and_stands_still_before_training_to_the_bit(basis: str, size: int, dtype: torch.dtype) -> None:
    theta = weights(dtype)
    fresh = Galerkin(basis, size)
    fresh.bind(theta)
    moved = bound(theta, basis, size)
    for name, start in theta.items():
        assert all(torch.equal(weight, start) for weight in fresh.flow(theta, TIMES)[name])
        path = moved.flow(theta, TIMES)[name]
        assert path.dtype == dtype and torch.equal(path[0], start) and not torch.equal(path[4], start)


def test_a_jump_belongs_to_the_later_piece_whatever_rounding_did() -> None:
    theta = {"w": torch.zeros(1, 1)}
    for size in range(2, 12):
        dynamics = Galerkin("constant", size, length=0.7)
        dynamics.bind(theta)
        dynamics.coefficients["w"].data = torch.arange(1.0, size).view(-1, 1, 1)
        jumps = [1.1 + 0.7 * (piece / size) - 1.1 for piece in range(size)]  # as far off as a block's times may be
        assert dynamics.flow(theta, [*jumps, 0.7])["w"].flatten().tolist() == [*range(size), size - 1]


@pytest.mark.parametrize(("basis", "size"), SMOOTH)
def test_the_derivative_is_that_of_the_flow(basis: str, size: int) -> None:
    theta = weights()
    dynamics = bound(theta, basis, size, 2.0)
    for t in (0.3, 1.1):
        ends = dynamics.flow(theta, [t - 1e-5, t + 1e-5])
        for name, slope in dynamics(torch.tensor(t, dtype=torch.float64), theta).items():
            torch.testing.assert_close(slope, (ends[name][1] - ends[name][0]) / 2e-5, rtol=1e-6, atol=1e-6)
            assert torch.equal(slope, dynamics(t, theta)[name])


@pytest.mark.parametrize(("basis", "size", "method", "tolerance"), [("linear", 4, "euler", 1e-12), ("fourier", 5, "rk4", 1e-6)])
def test_z_and_theta_may_be_stepped_together(basis: str, size: int, method: str, tolerance: float) -> None:
    theta = weights()
    dynamics = bound(theta, basis, size)
    f = lambda t, z, theta: theta["b.weight"].sum() * z
    _, path = odeint(CoupledSystem(f, dynamics), (torch.ones(1), theta), [0.0, 1 / 3, 1.0], steps=90, method=method)
    for name, values in dynamics.flow(theta, [0.0, 1 / 3, 1.0]).items():
        torch.testing.assert_close(path[name], values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("basis", "size"), BASES)
def test_an_untrained_block_is_the_ode_block_to_the_bit(basis: str, size: int) -> None:
    branch, z = Convolutions(), image()
    for t, method in (((0.0, 1.0), "rk4"), ((1.0, 3.0), "euler"), ((2.0, 1.0), "midpoint")):
        coupled = CoupledODEBlock(copy.deepcopy(branch), Galerkin(basis, size, length=t[1] - t[0]), steps=3, method=method, t=t)
        plain = ODEBlock(copy.deepcopy(branch), steps=3, method=method, t=t)
        assert coupled.evolving == ("conv1.weight", "conv2.weight")
        for mode in (True, False):
            assert torch.equal(coupled.train(mode)(z), plain.train(mode)(z))


def test_a_piece_per_step_is_a_residual_network_whose_layers_have_their_own_weights() -> None:
    torch.manual_seed(0)
    z, steps = image(), 4
    block = CoupledODEBlock(Convolutions().eval(), Galerkin("constant", steps), steps=steps, t=(0.0, 1.0))
    for parameter in block.dynamics.parameters():
        parameter.data.normal_(std=0.1)
    layers = [copy.deepcopy(block.f) for _ in range(steps)]
    for k, layer in enumerate(layers[1:]):
        for name in block.evolving:
            layer.get_parameter(name).data += block.dynamics.get_parameter(f"coefficients.{name.replace('.', '/')}").data[k]
    expected = z
    for layer in layers:
        expected = expected + layer(0.0, expected) / steps
    found = block(z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    loss = expected.square().sum()
    for name in block.evolving:
        per_layer = torch.autograd.grad(loss, [layer.get_parameter(name) for layer in layers], retain_graph=True)
        a = block.dynamics.get_parameter(f"coefficients.{name.replace('.', '/')}")
        torch.testing.assert_close(a.grad, torch.stack(per_layer[1:]))
        torch.testing.assert_close(block.f.get_parameter(name).grad, torch.stack(per_layer).sum(0))


@pytest.mark.parametrize(("basis", "size"), BASES)
def test_checkpointed_gradients_are_exact(basis: str, size: int) -> None:
    branch, z, ends = Convolutions(), image(), []
    for adjoint in ("direct", "checkpoint"):
        torch.manual_seed(1)
        block = CoupledODEBlock(copy.deepcopy(branch), Galerkin(basis, size), steps=4, method="midpoint", adjoint=adjoint)
        for parameter in block.dynamics.parameters():
            parameter.data.normal_(std=0.1)
        block(z).square().sum().backward()
        ends.append({name: p.grad for name, p in block.named_parameters()})
    assert [name for name in ends[0] if name.startswith("dynamics.")] == [
        "dynamics.coefficients.conv1/weight",
        "dynamics.coefficients.conv2/weight",
    ]
    for name, grad in ends[0].items():
        assert grad is not None and grad.any(), name
        torch.testing.assert_close(ends[1][name], grad, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("basis", "size"), BASES[:4])
def test_transforms_second_derivatives_and_compilation_are_those_of_plain_autograd(basis: str, size: int) -> None:
    torch._dynamo.reset()
    block = CoupledODEBlock(Dense(), Galerkin(basis, size), steps=2, method="midpoint", adjoint="direct")
    a, z = block.dynamics.get_parameter("coefficients.one/weight"), torch.randn(2, 3, dtype=torch.float64)
    a.data.normal_()
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, parameters, (z,)).square().sum()

    block(z).square().sum().backward()
    expected = {name: p.grad for name, p in block.named_parameters()}
    torch.testing.assert_close(torch.func.grad(loss)(parameters), expected)

    pair = {name: torch.stack([p, 1.1 * p]) for name, p in parameters.items()}
    both = [loss(parameters), loss({name: 1.1 * p for name, p in parameters.items()})]
    torch.testing.assert_close(torch.func.vmap(loss)(pair), torch.stack(both))

    of_a = lambda a: loss({**parameters, "dynamics.coefficients.one/weight": a})
    assert torch.autograd.gradgradcheck(of_a, a.detach().clone().requires_grad_(), fast_mode=True)

    again = copy.deepcopy(block)
    again.zero_grad()
    torch.compile(again, fullgraph=True, backend="aot_eager")(z).square().sum().backward()
    torch.testing.assert_close({name: p.grad for name, p in again.named_parameters()}, expected)


def test_what_evolves() -> None:
    dynamics = Galerkin("linear", 3)
    shapes = [(4, 4, 3, 3), (4, 4, 1, 1), (4, 4), (4,), ()]
    assert [dynamics.accepts("w", torch.zeros(shape)) for shape in shapes] == [True, True, True, False, False]
    assert not dynamics.accepts("w", torch.zeros(4, 4, dtype=torch.int64))
    assert (
        repr(Galerkin("fourier", 3, length=2)) == "Galerkin(\n  basis='fourier', size=3, length=2.0\n  (coefficients): ParameterDict()\n)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "wavelet"}, "basis='wavelet' must be one of 'constant', 'linear', 'fourier', 'chebyshev'"),
        ({"size": 1}, "size=1 .*Static"),
        ({"size": 2.5}, "size=2.5 must be a positive integer"),
        ({"basis": "fourier", "size": 4}, "size=4 must be odd.*give 5"),
        ({"length": 0.0}, "length=0.0"),
        ({"length": math.inf}, "length=inf"),
    ],
)
def test_user_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Galerkin(**{"basis": "linear", "size": 3, **options})


def test_times_beyond_the_length_and_other_misuse_are_refused() -> None:
    for t in ((0.0, 2.0), (1.0, 0.0), (0.0, 1.1)):
        block = CoupledODEBlock(Convolutions(), Galerkin("linear", 3), steps=2, method="rk4", t=t)
        with pytest.raises(ValueError, match=r"length=1.0 of this Galerkin does not reach .*t=\(t0, t1\), length=t1 - t0"):
            block(image())
    theta = weights()
    dynamics = bound(theta, "constant", 3)
    with pytest.raises(ValueError, match="deepcopy"):
        dynamics.bind(theta)
    with pytest.raises(ValueError, match=r"Galerkin\('constant'\) jumps"):
        dynamics(0.0, theta)
    assert dynamics.flow(theta, [-1e-12, 1 + 1e-12])["b.weight"].isfinite().all()
