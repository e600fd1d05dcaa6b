"""The example scripts, each with numbers that would be wrong if its idea were wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import advection_1d
import coupled_speed
import deep_recursion
import wave_1d


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000


@pytest.mark.slow
def test_a_moving_speed_fits_and_predicts_what_a_constant_one_cannot(tmp_path: Path) -> None:
    result = coupled_speed.main(tmp_path / "picture.png", small=True)
    assert result["c0 error"] < 1e-6 and result["p error"] < 1e-6
    assert result["constant misfit"] > 0.1 and result["coupled misfit"] < 1e-6
    assert result["constant later"] > 0.3 and result["coupled later"] < 1e-6
    assert is_picture(tmp_path / "picture.png")


@pytest.mark.slow
def test_a_carried_field_is_wrong_by_the_order_of_its_scheme(tmp_path: Path) -> None:
    result = advection_1d.main(tmp_path / "picture.png", small=True)
    orders = {"upwind1": 1, "central2": 2, "upwind3": 3, "central4": 4, "weno5": 5, "central6": 6}
    for scheme, claim in orders.items():
        assert result[scheme] == pytest.approx(claim, abs=0.15 if claim > 1 else 0.2), scheme  # of upwind1, the grids are coarse
    assert result["spectral error"] < 1e-9
    assert result["upwind1 variation"] < 2 and result["weno5 variation"] < 2.02 and result["central2 variation"] > 4
    assert is_picture(tmp_path / "picture.png")


@pytest.mark.slow
def test_the_gradient_through_all_passes_solves_what_that_of_the_last_does_not(tmp_path: Path) -> None:
    result = deep_recursion.main(tmp_path / "picture.png", small=True)
    assert result["grids"] == 288  # of 4x4 Sudoku
    assert result["through all passes"] > 0.5 and result["of the last pass"] < 0.3
    assert result["bytes"] < result["all graphs"] / 4 and result["batch"] > 32
    assert is_picture(tmp_path / "picture.png")


def test_a_fixed_end_turns_a_wave_upside_down_and_leapfrog_keeps_its_energy(tmp_path: Path) -> None:
    result = wave_1d.main(tmp_path / "picture.png", small=True)
    for ends, height in {"fixed": -0.5, "free": 0.5}.items():
        assert result[f"{ends} split"] == pytest.approx(0.5, abs=0.01)
        assert result[f"{ends} reflected"] == pytest.approx(height, abs=0.01)
        assert result[f"{ends} error"] < 0.02
    assert result["rk4 energy"] < 0.8
    assert result["leapfrog swing"] < 0.01 and abs(result["leapfrog drift"]) < 1e-3
    assert is_picture(tmp_path / "picture.png")
