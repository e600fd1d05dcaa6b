"""The example scripts, each with one number that would be wrong if its idea were wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import coupled_vs_static


def test_a_moving_speed_fits_what_a_standing_one_cannot(tmp_path: Path) -> None:
    result = coupled_vs_static.main(tmp_path / "picture.png")
    assert result["static"] > 1e-3 and result["coupled"] < 1e-9
    assert result["c0"] == pytest.approx(3.0, abs=1e-3) and result["p"] == pytest.approx(2.0, abs=1e-3)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
