"""Modules that call odeint themselves, networks of several solves, and blocks whose weights stand still or learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anodev2
from anodev2 import CheckpointAdjoint, CoupledODEBlock, DirectAdjoint, FastWeights, Galerkin, Hebb, ODEBlock, Path, odeint, unroll
from anodev2.diagnose import gradient_report, stability, weight_path

DTYPE = torch.float64


class Own(nn.Module):
    """dz/dt = tanh(A z) - rate z, solved by its own call of odeint."""

    def __init__(self, rate: float = 1.0, **options: Any) -> None:
        super().__init__()
        self.a, self.rate = nn.Linear(4, 4), rate
        self.options = {"method": "rk4", "steps": 3, "t": [0.0, 1.0, 2.0], **options}

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.a(z)) - self.rate * z

    def forward(self, x: Tensor) -> Tensor:
        options = dict(self.options)
        return odeint(self.field, x, options.pop("t"), **options)[-1]


class Decay(Own):
    """dz/dt = -rate z."""

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        return 0 * self.a(z) - self.rate * z


class Named(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return anodev2.odeint(lambda t, z: -z, x, [0.0, 1.0], steps=2)[-1]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.a(z))


def batch(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 4)), dtype=DTYPE, generator=torch.Generator().manual_seed(0))


def test_gradients_of_modules_that_solve_by_themselves_are_looked_at_under_each_adjoint() -> None:
    torch.manual_seed(0)
    first, block, last = Own(compile=True), ODEBlock(Branch(), adjoint="direct"), Own(9.0, adjoint="backsolve")
    network = nn.Sequential(nn.Linear(4, 4), first, block, last).double()
    report = gradient_report(network, batch())
    assert set(report.errors) == {"checkpoint", "reversible", "backsolve", "DirectAdjoint()"}
    assert not report.ok and report.bad == ("backsolve",) and "backsolve" in report.promised and not report.refuted
    assert max(report.errors["checkpoint"].values()) < 1e-12 and report.errors["backsolve"]["z0"] > 0.01
    assert first.options["compile"] is True and block.adjoint == DirectAdjoint() and last.options["adjoint"] == "backsolve"
    last.options["adjoint"] = CheckpointAdjoint(slots=2)
    report = gradient_report(network, batch(), directions=0)
    assert report.ok and "CheckpointAdjoint(slots=2)" in report.errors
    report = gradient_report(FastWeights(4, rule=Hebb(0.3)).double(), batch(2, 5, 4))
    assert report.ok and "DirectAdjoint()" in report.errors and "reversible" in report.exact


def test_a_network_without_a_solve_has_one_gradient() -> None:
    report = gradient_report(nn.Linear(4, 2).double(), batch())
    assert report.ok and report.groups == ("z0", "weight", "bias") and not any(any(errors.values()) for errors in report.errors.values())
    with pytest.raises(ValueError, match="Linear solves nothing"):
        stability(nn.Linear(4, 2).double(), batch())


def test_the_least_stable_solve_of_a_network_is_told() -> None:
    """-rate is the only eigenvalue; rk4 bears 2.785, Euler 2."""
    network = nn.Sequential(Decay(1.0), nn.BatchNorm1d(4), Decay(9.0), Decay(3.0, method="euler", steps=None, step_size=0.5)).double()
    report = stability(network, batch())
    assert report.limit == pytest.approx(2.785 / 9, rel=1e-3) and report.step == pytest.approx(1 / 3) and report.inside is False
    told = str(report)
    assert "solve 2 of 3, of Decay" in told and "solve 1, of Decay: rk4 is stable" in told and "solve 3, of Decay: euler is stable" in told
    assert not next(network[1].buffers()).any()
    uneven = Decay(4.0, method="euler", t=[0.0, 0.2, 1.2], steps=2).double()
    assert stability(uneven, batch()).step == 0.5 and stability(uneven, batch()).limit == pytest.approx(0.5)
    controlled = stability(Decay(4.0, method="dopri5", steps=None, rtol=1e-4, atol=1e-6).double(), batch())
    assert controlled.step is None and controlled.limit == pytest.approx(3.307 / 4, rel=1e-2)
    one, alone = Own().double(), stability(Own().double().field, batch(), (0.0, 2.0), method="rk4", steps=6)
    assert len(stability(one, batch()).spectra) == len(alone.spectra) and not stability(one, batch()).notes


def test_a_network_of_blocks_is_looked_at_as_its_blocks_are() -> None:
    torch.manual_seed(0)
    coupled = CoupledODEBlock(Branch(), Galerkin("chebyshev", 2), steps=2, method="rk4")
    for block in (ODEBlock(Branch(), steps=4).double(), coupled.double()):
        found, right = stability(nn.Sequential(nn.Identity(), block), batch()), stability(block, batch())
        assert found.step == right.step and found.limit == pytest.approx(right.limit)
        torch.testing.assert_close(found.spectra[0].eigenvalues, right.spectra[0].eigenvalues)


def test_steps_of_fast_weights_are_stable_up_to_the_rate_of_the_rule() -> None:
    """dW/dt = r (v - W k) k^T with |k| = 1 decays at r, and at 0."""
    layer = FastWeights(4, rule=anodev2.DeltaRule(rate=2.5)).double()
    report = stability(layer, Path([0.0, 1.0, 2.0], batch(2, 3, 4), "hold"))
    assert report.limit == pytest.approx(2 / 2.5) and report.inside is False


def test_paths_of_blocks_that_stand_still_or_learn() -> None:
    block = ODEBlock(Branch().double(), steps=3)
    path = weight_path(block, 4)
    assert path.times == (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0) and set(path.theta) == {"a.weight", "a.bias"}
    assert torch.equal(path.theta["a.weight"][2], block.f.a.weight) and not path.changes["a.bias"].any()  # type: ignore[union-attr]
    layer, x = FastWeights(4).double(), batch(2, 5, 4)
    path = weight_path(layer, z0=x)
    assert path.times == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0) and path.dynamics == "DeltaRule"
    assert torch.equal(path.theta["weight[1]"], layer.weights(x)["weight"][:, 1].detach())
    with pytest.raises(ValueError, match="give it as z0"):
        weight_path(layer)
    with pytest.raises(TypeError, match="give one of those inside it: 1"):
        weight_path(nn.Sequential(nn.Identity(), block))  # pyright: ignore[reportArgumentType]


def test_unroll_says_what_it_does_not_write_out() -> None:
    block, x = ODEBlock(Branch(), steps=2).double(), batch()
    for own in (Own(), Decay(), Named(), FastWeights(4)):
        name = type(own).__name__
        with pytest.raises(ValueError, match=f"{name} solves by itself"):
            unroll(own)
        with pytest.warns(UserWarning, match=rf"1 \({name}\) solves by itself, which is not written out"):
            written = unroll(nn.Sequential(block, own.double()))
        assert type(written[1]) is type(own) and not isinstance(written[0], ODEBlock)  # type: ignore[index]
    with pytest.raises(ValueError, match="plain already"):
        unroll(nn.Linear(2, 2))
    assert torch.equal(unroll(block)(x), block(x))  # without a warning


def test_fast_weights_are_exported_as_they_are() -> None:
    layer, x = FastWeights(4).double(), batch(2, 3, 4)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))
