"""The scripts on fields, each with numbers that would be wrong if its idea were wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import fields


@pytest.mark.slow
def test_the_pictures_of_fields_and_their_numbers(tmp_path: Path) -> None:
    found = fields.main(["--out", str(tmp_path), "--device", "cpu"])
    assert found["burgers"]["sum of Burgers' field off by"] < 1e-12
    assert found["porous"]["porous medium off by"] < 2e-4 and found["porous"]["its sum by"] < 1e-12
    assert abs(found["ends"]["mass, closed"] - 1) < 1e-12 and found["ends"]["comes back"] < 1e-3
    assert found["ends"]["mass, zero slopes"] == pytest.approx(math.e, rel=1e-3)
    named = found["named"]
    assert named["KortewegDeVries"] == pytest.approx(2, abs=0.1)  # the tall soliton has passed the low one
    assert named["SwiftHohenberg"] == pytest.approx(2 * math.sqrt(0.3 / 3), rel=0.05)  # rolls
    assert all(named[name] == pytest.approx(1, abs=0.05) for name in ("AllenCahn", "CahnHilliard", "FisherKPP"))  # phases
    for page in found:
        assert 2000 < (tmp_path / f"fields_{page}.png").stat().st_size < 60_000


def test_help_and_mistakes_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        fields.main(["--help"])
    assert left.value.code == 0 and "--pages" in capsys.readouterr().out
    for argv, message in (
        (["--out", str(tmp_path / "none")], "is no folder; make it first"),
        (["--pages", "ends", "ends"], "must be one or more, all different"),
        (["--device", "nothing"], "cannot be used here"),
    ):
        with pytest.raises(SystemExit, match=message):
            fields.main(argv)
