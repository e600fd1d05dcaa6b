"""Static weights stay above their floor, weights that turn reach round-off."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import coupled_vs_static


@pytest.mark.slow
def test_weights_that_turn_solve_what_static_ones_cannot(tmp_path: Path) -> None:
    result = coupled_vs_static.main(tmp_path / "picture.png", small=True)
    assert result["floor"] == 9 / 32
    assert 9 / 32 < result["static best"] < 0.3 and result["coupled worst"] < 1e-6
    assert result["static parameters"] == 6 > result["coupled parameters"] == 5
    assert result["by hand"] < 1e-12
    assert result["tanh layers best"] > 1e-3  # measured, not proved
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "picture.png").stat().st_size < 150_000


def test_no_square_is_nearer_than_the_floor_and_some_come_close() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = 2 * torch.randn(200_000, 2, 2, generator=generator, dtype=torch.float64)
    random = (roots @ roots - coupled_vs_static.M).square().sum((1, 2)) / 2
    assert coupled_vs_static.FLOOR < random.min() < 0.4
    near = torch.tensor([[-7 / 8, 3 / 8], [-3 / 8, -13 / 8]], dtype=torch.float64)  # m = -5/4, d = v = 3/8: the limit itself
    assert (near - coupled_vs_static.M).square().sum() / 2 == pytest.approx(coupled_vs_static.FLOOR, rel=1e-12)
    turned = near + 1e-3 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # a little inside: a square of a real matrix
    values, vectors = torch.linalg.eig(turned)
    root = vectors @ torch.diag(torch.sqrt(values)) @ torch.linalg.inv(vectors)
    assert root.imag.abs().max() < 1e-9 and torch.allclose((root @ root).real, turned)


@pytest.mark.parametrize("steps", [2, 10])
def test_an_even_number_of_steps_of_a_static_block_is_a_square(steps: int) -> None:
    f = coupled_vs_static.Linear(bias=False)
    with torch.no_grad():
        f.weight.copy_(3 * torch.randn(2, 2, dtype=torch.float64))
    whole, half = (coupled_vs_static.ODEBlock(f, steps=n, method="rk4", t=(0.0, n / steps)) for n in (steps, steps // 2))
    z0 = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(whole(z0), half(half(z0)))


def test_the_points_have_mean_zero_and_equal_moments() -> None:
    z0 = coupled_vs_static.circle()
    torch.testing.assert_close(z0.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(z0.T @ z0 / len(z0), torch.eye(2, dtype=torch.float64) / 2)
    assert math.isclose(coupled_vs_static.misfit(torch.nn.Identity()).item(), ((1.5**2 + 3**2) / 2))
