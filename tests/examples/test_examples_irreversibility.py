"""The scripts about residual blocks as Euler steps and about solving backwards, with numbers that would be wrong if their ideas were."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_examples import is_picture

import irreversibility
import residual_is_euler


@pytest.mark.slow
def test_well_scaled_convolutions_come_back_and_unscaled_ones_do_not(tmp_path: Path) -> None:
    result = irreversibility.main(tmp_path / "picture.png", small=True)
    for name in irreversibility.PICTURED:
        assert result[f"scaled {name} Lipschitz"] < 2 and result[f"scaled {name} exponent"] < 1.5
        assert result[f"unscaled {name} Lipschitz"] > 10 and result[f"unscaled {name} exponent"] > 8
        assert max(result[f"scaled {name} {solver}"] for solver in irreversibility.SOLVERS) < 0.01
        assert min(result[f"unscaled {name} {solver}"] for solver in ("Euler", "RK45")) > (0.1 if name == "tanh" else 10)
    assert result["unscaled ReLU RK45, 1e-6"] > 0.1  # a tighter tolerance does not save it
    assert result["unscaled tanh RK45, 1e-6"] < 0.01  # but saves this one
    assert result["Euler off its law"] < 1.01 and result["RK45 off its law"] < 10 and result["worst of a precise solver"] < 1e-4
    assert result["RK45 slope"] == pytest.approx(1, abs=0.15) and result["rounding slope"] == pytest.approx(1, abs=0.15)
    assert is_picture(tmp_path / "picture.png")


def test_a_decay_is_missed_by_exp_lambda_squared_times_what_the_solver_left() -> None:
    lines = irreversibility.decay([rate**2 for rate in (2.0, 2.5, 3.0, 3.5, 5.0, 6.0)])
    assert lines.found["Euler"] == pytest.approx(lines.laws["Euler"], rel=0.01)
    for found, law in zip(lines.found["RK45"], lines.laws["RK45"], strict=True):
        assert law / 10 < found < 10 * law
    assert irreversibility.slope(lines.rates, lines.found["RK45"]) == pytest.approx(1, abs=0.15)
    assert irreversibility.slope(lines.rates[:4], lines.found["to 1"][:4]) == pytest.approx(1, abs=0.15)
    for found, law in zip(lines.found["to 1"][:4], lines.laws["to 1"][:4], strict=True):
        assert law < found < 10 * law
    assert max(lines.found["to 0"]) < 1e-4  # floating point keeps the relative accuracy of what tends to 0


@pytest.mark.slow
def test_a_residual_block_is_one_euler_step_and_not_the_flow(tmp_path: Path) -> None:
    result = residual_is_euler.main(tmp_path / "picture.png", small=True)
    assert result["networks equal"] == 1
    for name, far in (("plane", 0.3), ("convolution", 0.01)):
        assert result[f"{name} equal"] == 1 and result[f"{name} residual off"] > far
        assert result[f"{name} euler"] == pytest.approx(1, abs=0.15) and result[f"{name} rk4"] == pytest.approx(4, abs=0.15)
    assert is_picture(tmp_path / "picture.png")
