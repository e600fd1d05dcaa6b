"""The scripts on fields, each with numbers that would be wrong if its idea were wrong."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fields
import solver_in_the_loop
from anodev2 import CheckpointAdjoint
from live_bytes import LiveBytes


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


@pytest.mark.slow
def test_a_coarse_solve_learns_from_a_fine_one_and_stays_right_on_fields_not_seen(tmp_path: Path) -> None:
    small = solver_in_the_loop.Size(fields=6, outputs=40, pieces=120, whole=1)
    result = solver_in_the_loop.main(tmp_path / "picture.png", size=small)
    assert result["before"] > 0.1
    assert result["after"] < 0.8 * result["before"] and result["last"] < 0.15
    assert result["drift"] < 1e-5  # the correction is a flux: the sum stays
    assert 2000 < (tmp_path / "picture.png").stat().st_size < 150_000


@pytest.mark.slow
def test_the_gradient_through_a_thousand_steps_is_that_of_all_graphs_kept_within_its_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    force = solver_in_the_loop.draw_forces(16, generator)
    start = force(0.0, solver_in_the_loop.Grid1D(solver_in_the_loop.COARSE, solver_in_the_loop.LENGTH).points())
    torch.manual_seed(0)
    correction = solver_in_the_loop.Correction()
    torch.nn.init.normal_(list(correction.parameters())[-2], std=0.02)

    def gradients(outputs: int, adjoint: Any, *, counted: bool) -> tuple[tuple[Tensor, ...], float]:
        """Of the correction, and the most MiB that lived, where they are counted, which takes as long again."""
        with LiveBytes() if counted else nullcontext() as live:
            if live is not None:
                live.ignore([*correction.parameters(), *force, start])
            u = solver_in_the_loop.solved(solver_in_the_loop.Corrected(force, correction), start, outputs, adjoint)
            found = torch.autograd.grad(u.square().mean(), list(correction.parameters()))
        return found, live.peak / 2**20 if live is not None else math.nan

    bounded, peak = gradients(100, CheckpointAdjoint(memory=solver_in_the_loop.MEMORY), counted=True)
    kept, _ = gradients(100, "direct", counted=False)
    for found, right in zip(bounded, kept, strict=True):
        assert (found - right).norm() <= 1e-5 * right.norm()  # float32; the order of a sum over steps is another
    assert peak < 20 and gradients(10, "direct", counted=True)[1] > 100 / 10  # of a tenth of the steps
