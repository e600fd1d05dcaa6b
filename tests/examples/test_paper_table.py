from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import paper_table
import train_cifar
from options import parse, refuse_idle
from settings import ACTS
from settings import Config as TrainingConfig
from trained import write_small

SMALL = ["--models", "resnet4", "--seeds", "0", "1", "--epochs", "1", "--subset", "40", "--recipe=--batch-size 20"]


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the table happen in this process, which saves each its imports."""

    started = subprocess.run

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == "git":
            return started(command, **given)
        try:
            train_cifar.main(command[2:])
        except SystemExit as end:
            return subprocess.CompletedProcess(command, 1, stderr=str(end.code))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.slow
@pytest.mark.usefixtures("within")
def test_the_table_is_made_run_by_run_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table"
    arguments = [*SMALL, "--out", str(out), "--variants", "residual"]
    paper_table.main([*arguments, "coupled-2"])
    table = (out / "table.md").read_text()
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [(row["model"], row["variant"], row["seed"]) for row in rows] == [
        ("resnet4", variant, seed) for variant in ("residual", "coupled-2") for seed in "01"
    ]
    accuracies = [float(row["test_accuracy"]) for row in rows[:2]]
    assert f"| residual | {sum(accuracies) / 2:.2f} ({min(accuracies):.2f}/{max(accuracies):.2f}) | 76.95 (76.47/77.35) |" in table
    assert "40 training images" in table and "1 epochs" in table and "batch_size 20" in table and "Papers: 350 epochs" in table
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((out / "resnet4-coupled-2-0" / "config.json").read_text())
    assert (config["block"], config["steps"], config["seeds"]) == ("coupled", 2, [0])

    times = {path: path.stat().st_mtime_ns for path in out.rglob("last.pt")}
    (out / "resnet4-residual-1" / "result.json").unlink()  # as if killed before its end
    paper_table.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("last.pt")} == times
    assert "coupled" not in (out / "table.md").read_text()
    with pytest.raises(SystemExit, match=r"other settings \(subset was 40\)"):
        paper_table.main([*SMALL, "--subset", "41", "--out", str(out)])
    assert "train_cifar.py --resume" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_diverges_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a process of its own."""
    out = tmp_path / "table"
    recipe = "--recipe=--batch-size 20 --lr 1e30"
    for _ in range(2):  # what has diverged is not tried again
        paper_table.main([*SMALL[:-1], recipe, "--out", str(out), "--variants", "residual"])
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    assert "| residual | 2 of 2 diverged |" in (out / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("within")
def test_seeds_of_a_variant_are_trained_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, "--out", str(tmp_path), "--variants", "residual", "--stack"]
    paper_table.main(arguments)
    printed = capsys.readouterr().out
    assert printed.count("train_cifar.py --model") == 1 and "--seeds 0 1 --stack" in printed and "| residual | " in printed
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1"] and rows[0] != rows[1]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    paper_table.main(arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("within")
def test_after_one_of_them_diverged_each_goes_on_alone(tmp_path: Path) -> None:
    arguments = [*SMALL[:-1], "--recipe=--batch-size 20 --lr 1e30", "--out", str(tmp_path), "--variants", "residual", "--stack"]
    paper_table.main([*arguments, "--epochs", "3"])
    assert "| residual | 2 of 2 diverged |" in (tmp_path / "table.md").read_text()


@pytest.mark.usefixtures("within")
def test_any_other_failure_ends_with_its_sentence(tmp_path: Path) -> None:
    out = str(tmp_path / "deep" / "table")
    with pytest.raises(SystemExit, match="--batch-size 41 must be a multiple"):
        paper_table.main([*SMALL[:-1], "--recipe=--batch-size 41", "--out", out, "--variants", "residual"])
    assert not list(tmp_path.iterdir())
    arguments = ["--models", "resnet4", "--out", out, "--variants"]
    cases = [
        (["residual", "--recipe=--tau 0.1"], "--recipe has --tau, without effect in any of the runs"),
        (["ode", "--recipe=--epochs 3"], "--recipe has --epochs, which the table itself gives"),
        (["ode", "--recipe='"], "cannot be read"),
        (["ode", "--recipe=--precision auto"], "--recipe has --precision auto, by which the runs of one table could differ"),
        (["residual", "coupled-2", "--steps", "3"], "--steps has no effect here, only with --variants ode, coupled-1, ode-backsolve"),
        (["ode", "--data-dir", "x"], "--data-dir has no effect here, only with --data cifar10, cifar100, fashion"),
        (["ode", "--seeds", "0", "0"], "--seeds (0, 0) must be one or more, all different"),
        (["ode", "ode"], "--variants ('ode', 'ode') must be"),
        (["ode", "--epochs", "0"], "--epochs 0 must be at least 1"),
    ]
    for given, sentence in cases:
        with pytest.raises(SystemExit) as caught:
            paper_table.main([*arguments, *given])
        assert str(caught.value).startswith("error: ") and sentence in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_variants_are_options_of_the_training_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each variant's command line is understood, and says what its row's title says."""
    seen: dict[str, TrainingConfig] = {}

    def pretend(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        config, given = parse(TrainingConfig, command[2:])
        refuse_idle(config, given, ACTS)
        assert config.out is not None
        seen[config.out.name] = config
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", pretend)
    monkeypatch.setattr(paper_table, "seconds_per_epoch", lambda *_: 1.0)
    recipe = "--recipe=--slots 2 --tau 0.1 --norm shared --lr 0.2"  # each run gets what has an effect in it, and all understand it
    paper_table.main(["--models", "alexnet", "--seeds", "7", "--epochs", "350", "--out", str(tmp_path), recipe])
    assert set(seen) == {f"alexnet-{variant}-7" for variant in paper_table.OPTIONS}
    exact, reverse = seen["alexnet-ode-7"], seen["alexnet-ode-backsolve-7"]
    assert (exact.block, exact.steps, exact.adjoint, reverse.block, reverse.steps, reverse.adjoint) == (
        "ode",
        5,
        "checkpoint",
        "ode",
        5,
        "backsolve",
    )
    assert all(config.lr == 0.2 for config in seen.values()) and seen["alexnet-coupled-1-7"].tau == 0.1 and exact.slots == 2
    assert seen["alexnet-coupled-1-7"].steps == 5 and seen["alexnet-coupled-2-7"].steps == 2
    assert all(config.epochs == 350 and config.seed == 7 for config in seen.values())


def test_how_many_runs_and_how_long_is_told_before_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By steps of each kind of run that is left; a run that is over, or an epoch that is done, takes no time."""
    monkeypatch.setattr(paper_table.time, "process_time", lambda: 11.0)
    monkeypatch.setattr(paper_table, "seconds_per_epoch", lambda _, run: {"residual": 20.0, "ode": 100.0}[run[1]])

    def diverges(place: Path, _: list[str]) -> str:
        place.mkdir(exist_ok=True)
        return capsys.readouterr().out or "diverged"

    monkeypatch.setattr(paper_table, "failure", diverges)
    arguments = ["--variants", "residual", "ode", "--epochs", "3", "--out", str(tmp_path)]
    began = tmp_path / "resnet4-ode-1"
    began.mkdir()
    (began / "metrics.csv").write_text("epoch\n1\n2\n")
    (tmp_path / "resnet4-residual-0").mkdir()
    (tmp_path / "resnet4-residual-0" / "failed.txt").write_text("the loss became nan")
    paper_table.main(arguments)
    told = (tmp_path / "resnet4-ode-0" / "failed.txt").read_text()  # what was printed before the first run
    assert "resnet4, residual: 20 s per epoch" in told and (tmp_path / "resnet4-ode-2" / "failed.txt").read_text() == "diverged"
    # 2 * (11 + 60) + 2 * (11 + 300) + 11 + 100 = 875 s
    assert told.splitlines()[-1].startswith("6 runs of 3 epochs, 1 of them over: about 15 minutes")
    assert [paper_table.in_time(seconds) for seconds in (0.4, 119, 121, 7300, 200000)] == [
        "0 seconds",
        "119 seconds",
        "2 minutes",
        "2 hours",
        "2 days",
    ]


def test_the_time_of_an_epoch_is_that_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images of which 50 are for validation, 100 for testing; a step of 20 takes 1 s, the first ones more."""
    clock, seen = iter([0.0, 3.0, 10.0, 11.0, 20.0, 21.5]), list[int]()
    monkeypatch.setattr(paper_table.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(paper_table, "rehearsal", lambda settings, *_: lambda: seen.append(settings.batch_size))
    config, _ = parse(
        paper_table.Config,
        ["--data", "cifar10", "--data-dir", str(write_small(tmp_path)), "--recipe=--batch-size 20 --validation 0.25"],
    )
    assert paper_table.seconds_per_epoch(config, ("resnet4", "ode", 0)) == pytest.approx(1.0 / 20 * (150 + 100 / 3 + 50 / 3))
    assert seen == [20, 20, 20]
