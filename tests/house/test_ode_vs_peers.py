"""benchmarks/ode_vs_peers: problems that are those of the literature in every library's arrays, and a table that says who is ahead."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.optimize import brentq

from benchmarks.ode_vs_peers import __main__ as compared
from benchmarks.ode_vs_peers.problems import FIVE, PLANETS, PROBLEMS, SUN, G, error, field, reference
from benchmarks.ode_vs_peers.report import COLUMNS, behind, mean, table
from problems import STIFF_PROBLEMS


def orbit(e: float) -> list[float]:
    """At t = 20, by Kepler's equation E - e sin E = t (Hull et al., D)."""
    at = float(brentq(lambda x: x - e * math.sin(x) - 20, 15, 25, xtol=1e-15))  # pyright: ignore[reportArgumentType]
    speed, across = 1 / (1 - e * math.cos(at)), math.sqrt(1 - e * e)
    return [math.cos(at) - e, across * math.sin(at), -speed * math.sin(at), speed * across * math.cos(at)]


def chain(below: list[float], diagonal: list[float], above: list[float]) -> list[float]:
    return expm(20 * (np.diag(below, -1) + np.diag(diagonal) + np.diag(above, 1)))[:, 0].tolist()


EXACT = {
    "A1": [math.exp(-20)],
    "A2": [1 / math.sqrt(21)],
    "A3": [math.exp(math.sin(20))],
    "A4": [20 / (1 + 19 * math.exp(-5))],
    "B2": [1 + math.exp(-20) / 2, 1.0, 1 - math.exp(-20) / 2],  # (1, 1, 1) stays, (1, 0, -1) has the rate 1, (1, -2, 1) the rate 3
    "C1": chain([1.0] * 9, [*[-1.0] * 9, 0.0], [0.0] * 9),
    "C2": chain([float(i) for i in range(1, 10)], [*(-float(i) for i in range(1, 10)), 0.0], [0.0] * 9),
    "C3": chain([1.0] * 9, [-2.0] * 10, [1.0] * 9),
    "C4": chain([1.0] * 50, [-2.0] * 51, [1.0] * 50),
    **{f"D{number}": orbit(e) for number, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)},
    "E1": [
        math.sqrt(2 / (math.pi * 21)) * math.sin(21),  # the Bessel function of order 1/2
        math.sqrt(2 / (math.pi * 21)) * (math.cos(21) - math.sin(21) / 42),
    ],
    "E5": [(25 * math.log(5) - 12) / 2, 2.4],
    **{problem.name.replace("van", "Van"): problem.end for problem in STIFF_PROBLEMS},
}


@pytest.mark.parametrize("name", EXACT)
def test_references_are_closed_forms(name: str) -> None:
    np.testing.assert_allclose(reference(PROBLEMS[name]), EXACT[name], rtol=2e-9 if PROBLEMS[name].stiff else 3e-11, atol=2e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_field_is_the_same_in_numpy_and_torch(name: str) -> None:
    problem = PROBLEMS[name]
    y = np.array(problem.y0) + 0.1 + np.random.default_rng(0).random(len(problem.y0)) / 10
    in_torch = field(problem, torch)(torch.tensor(1.5, dtype=torch.float64), torch.from_numpy(y))
    np.testing.assert_allclose(in_torch, field(problem, np)(1.5, y), rtol=1e-13)


def test_stiff_fields_are_those_of_the_other_tests() -> None:
    for problem in STIFF_PROBLEMS:
        other = PROBLEMS[problem.name.replace("van", "Van")]
        assert (problem.y0, problem.t1, problem.atol) == (other.y0, other.end, other.atol)
        y = torch.tensor(problem.y0, dtype=torch.float64) + 0.3
        torch.testing.assert_close(field(other, torch)(torch.zeros(()), y), problem.func(torch.zeros(()), y), rtol=1e-12, atol=1e-12)


def test_five_bodies_by_loops() -> None:
    x = np.array(FIVE[:15]).reshape(5, 3)
    norm = np.linalg.norm
    for j in range(5):
        pull = -(SUN + PLANETS[j]) * x[j] / norm(x[j]) ** 3
        for k in range(5):
            if k != j:
                pull = pull + PLANETS[k] * ((x[k] - x[j]) / norm(x[k] - x[j]) ** 3 - x[k] / norm(x[k]) ** 3)
        found = field(PROBLEMS["C5"], np)(0.0, np.array(FIVE))
        np.testing.assert_allclose(found[15 + 3 * j : 18 + 3 * j], G * pull, rtol=1e-12)
        np.testing.assert_allclose(found[:15], FIVE[15:])


def test_two_problems_without_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compared, "find_spec", lambda name: None)
    compared.main(compared.Config(("A3", "Robertson"), (1e-4,), rounds=1, compiled=False, out=tmp_path))
    with (tmp_path / "ode_vs_peers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["problem"], row["who"], row["method"]) for row in rows] == [
        *(("A3", "anodev2", "dopri5"), ("A3", "scipy", "RK45"), ("A3", "anodev2", "dopri8"), ("A3", "scipy", "DOP853")),
        *(("Robertson", "anodev2", "rodas5p"), ("Robertson", "anodev2", "kvaerno5"), ("Robertson", "scipy", "Radau")),
    ]
    assert all(float(row["error"]) < 10 and float(row["seconds"]) > 0 and int(row["steps"]) > 10 for row in rows)
    ours, theirs = (int(row["evaluations"]) for row in rows[:2])
    assert abs(ours - theirs) <= 12, "the same pair of Dormand and Prince"
    assert "- anodev2 takes more than 1.5 times as long as scipy" in (tmp_path / "ode_vs_peers.md").read_text()
    with pytest.raises(ValueError, match="Z9"):
        compared.main(compared.Config(("Z9",)))
    capsys.readouterr()


def test_a_table_divides_by_the_row_of_the_same_problem() -> None:
    def row(problem: str, who: str, seconds: float) -> dict[str, object]:
        return dict(zip(COLUMNS, (problem, "order 5", 1e-6, who, "dopri5", 100, 10, 2.0, seconds), strict=True))

    rows = [row("A1", "anodev2", 1.0), row("A1", "scipy", 0.5), row("A2", "anodev2", 3.0), row("A2", "scipy", 6.0)]
    assert table(rows)[2].split("|")[-4:-1] == [" - ", " 1.00 ", f" {1e3 * math.sqrt(3):.2f} "]
    assert behind(rows, "anodev2", "scipy", 1.5) == (2, ["A1, dopri5 at 1e-06 (2.00)"])
    assert mean([1.0, 4.0]) == 2.0
    assert error(PROBLEMS["E5"], [14.117973905426254 + 15.117973905426254e-6, 2.4], 1e-6) == pytest.approx(1.0)
