"""What is said about moving weights, against closed forms of how they move."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, Dynamics, NeuralDynamics, ReactionDiffusionAdvection, Static
from anodev2.diagnose.path import weight_path


class Conv(nn.Conv2d):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.tanh(super().forward(z))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.outer = nn.Linear(3, 3)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(z)))


def kernels(size: int = 3, dynamics: Dynamics | None = None, **coefficients: Any) -> CoupledODEBlock:
    f = Conv(2, 2, size, padding=size // 2, dtype=torch.float64)
    return CoupledODEBlock(f, dynamics or ReactionDiffusionAdvection(**{"tau": 0.0, **coefficients}), steps=4)


def shrinking(rates: dict[str, float]) -> NeuralDynamics:
    return NeuralDynamics(lambda t, theta: {name: -rates[name] * w for name, w in theta.items()})


def test_reaction_grows_norms_by_its_exponential() -> None:
    block = kernels(rho=0.8)
    report = weight_path(block, 5)
    t = torch.tensor(report.times, dtype=torch.float64)
    assert report.times == (0.0, 0.25, 0.5, 0.75, 1.0)
    torch.testing.assert_close(report.norms["weight"], block.f.get_parameter("weight").detach().norm() * torch.exp(0.8 * t))
    torch.testing.assert_close(report.changes["weight"], torch.expm1(0.8 * t))
    assert f"{math.expm1(0.8):.3g}" in str(report) and str(report).startswith("theta under ReactionDiffusionAdvection")


@pytest.mark.parametrize("size", [3, 4, 5])
def test_diffusion_takes_each_band_down_by_its_own_rate(size: int) -> None:
    report = weight_path(kernels(size, tau=0.1), [0.0, 0.5, 1.0])
    k, modes, power = report.bands("weight")
    t = torch.tensor(report.times, dtype=torch.float64)
    torch.testing.assert_close(power, power[0] * torch.exp(-2 * 0.1 * t[:, None] * k**2))
    torch.testing.assert_close(power @ modes.double() * 4, report.norms["weight"] ** 2)  # Parseval, 4 pairs of channels
    assert modes.sum() == size**2 and k[0] == 0
    if size == 3:
        assert k.tolist() == pytest.approx([0, 2 * math.pi / 3, math.sqrt(2) * 2 * math.pi / 3]) and modes.tolist() == [1, 4, 4]
    assert "mean |k|" in str(report)


def test_advection_moves_a_kernel_and_keeps_its_norm_and_spectrum() -> None:
    report = weight_path(kernels(5, upsilon=(0.0, 2.0)), 3)
    power = report.bands("weight").power
    torch.testing.assert_close(power[2], power[0])
    torch.testing.assert_close(report.norms["weight"][2], report.norms["weight"][0])
    assert report.changes["weight"][2] > 0.3


def test_standing_weights_hardly_move() -> None:
    report = weight_path(kernels(dynamics=Static()))
    assert len(report.times) == 11 and all((change == 0).all() for change in report.changes.values())


def test_matrices_have_singular_values_and_the_fastest_weight_is_named() -> None:
    rates = {"inner.weight": 2.0, "inner.bias": 0.3, "outer.weight": 0.1, "outer.bias": 0.0}
    block = CoupledODEBlock(Dense().double(), shrinking(rates), steps=16, method="rk4", t=(1.0, 2.0))
    report = weight_path(block, 3)
    values = report.singular_values("inner.weight")
    expected = torch.linalg.svdvals(block.f.get_parameter("inner.weight").detach())
    torch.testing.assert_close(
        values, expected * torch.exp(-2 * torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)), rtol=1e-3, atol=0
    )
    assert report.moving_most == "inner.weight" and report.kernels == ()
    assert "largest singular value" in str(report)
    with pytest.raises(ValueError, match="no matrix"):
        report.singular_values("inner.bias")
    with pytest.raises(ValueError, match="no convolution kernel"):
        report.bands("inner.weight")


def test_a_weight_that_starts_from_zero() -> None:
    block = CoupledODEBlock(Conv(1, 1, 3, padding=1), NeuralDynamics(lambda t, theta: {k: w + 1 for k, w in theta.items()}), steps=4)
    with torch.no_grad():
        block.f.get_parameter("bias").zero_()
    report = weight_path(block, 3)
    assert report.changes["bias"].tolist()[1:] == [math.inf, math.inf]
    assert report.moving_most == "bias" and report.norms["bias"][-1].item() == pytest.approx(1.25**4 - 1)


def test_the_block_is_left_as_it_was() -> None:
    class Noisy(Dynamics):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Any, theta: dict[str, Tensor]) -> dict[str, Tensor]:
            self.calls += 1  # pyright: ignore
            return {name: torch.randn_like(w) for name, w in theta.items()}

    block = kernels(dynamics=Noisy())
    drawn, before = torch.get_rng_state(), {name: w.clone() for name, w in block.state_dict().items()}
    report = weight_path(block)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(w, before[name]) for name, w in block.state_dict().items())
    assert not any(w.requires_grad for w in report.theta.values()) and report.changes["weight"][-1] > 0


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match=r"got Sequential; give one of those inside it: 0, 1\.0"):
        weight_path(nn.Sequential(kernels(), nn.Sequential(kernels())))  # pyright: ignore[reportArgumentType]
    for times in (1, [0.5], 0, [0.0, 2.0]):
        with pytest.raises(ValueError, match=r"times|between 0\.0 and 1\.0"):
            weight_path(kernels(), times)


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.inner(z)


def test_stepped_weights_are_those_that_the_block_reads() -> None:
    q = NeuralDynamics(lambda t, theta: {name: 3 * w for name, w in theta.items()})
    block = CoupledODEBlock(Sized(), q, steps=2, method="rk4", weight_method="euler")
    path = weight_path(block)
    assert path.times == (0.0, 0.25, 0.5, 0.75, 1.0)
    read = block.weights(block.reading_times)
    for name in block.evolving:
        assert torch.equal(path.theta[name], read[name])


def test_weights_that_blow_up_are_told() -> None:
    q = NeuralDynamics(lambda t, theta: {name: 1e300 * w for name, w in theta.items()})
    assert "not finite" in str(weight_path(CoupledODEBlock(Sized(), q, steps=5)))
