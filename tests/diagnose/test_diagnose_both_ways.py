"""Blocks whose weights read the features, by every diagnosis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, Hebb
from anodev2.diagnose import gradient_report, reversibility, stability, weight_path

RATE, DECAY = 0.3, 4.0


class Decaying(nn.Module):
    """z' = W z - 2 z."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(2, 2, bias=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.w(z) - 2 * z


def block() -> CoupledODEBlock:
    """W' = rate (v k^T - decay W) with keys and values of z: at z = 0 and W = 0 linear, with known eigenvalues."""
    torch.manual_seed(0)
    made = CoupledODEBlock(Decaying().double(), Hebb(RATE, lambda t, z: (z, z), decay=DECAY), steps=4, method="rk4")
    return made


def test_the_spectrum_is_that_of_the_joint_equation() -> None:
    made, z = block(), torch.zeros(1, 2, dtype=torch.float64)
    with torch.no_grad():
        made.f.get_parameter("w.weight").zero_()
    report = stability(made, z)
    for spectrum in report.spectra:
        found = sorted(round(value.real, 8) for value in spectrum.eigenvalues.tolist())
        assert found == [-2.0, -2.0, *[round(-RATE * DECAY, 8)] * 4]


def test_gradients_and_the_way_back_are_looked_at() -> None:
    made, z = block(), torch.randn(3, 2, dtype=torch.float64)
    assert gradient_report(made, z).ok
    report = reversibility(made, z)
    end = torch.cat([x.flatten() for x in (made(z), made.weights(1.0, z)["w.weight"])]).norm().item()
    assert report.norms[-1] == pytest.approx(end, rel=1e-12) and 0 < report.errors[0] < 1e-2


def test_the_path_of_the_weights_is_that_of_each_sample() -> None:
    made, z = block(), torch.randn(3, 2, dtype=torch.float64)
    path = weight_path(made, z0=z)
    assert list(path.theta) == [f"w.weight[{i}]" for i in range(3)]
    for i, w in enumerate(path.theta.values()):
        expected = made.weights(list(path.times), z)["w.weight"][:, i]
        torch.testing.assert_close(w, expected.detach(), rtol=0, atol=0)
    assert "w.weight[2]" in str(path)
    with pytest.raises(ValueError, match=r"weights\(t, z0\)"):
        weight_path(made)
