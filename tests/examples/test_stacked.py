"""Seeds trained as one network: each is, to round-off, what it is alone, which is right by test_train_cifar_steps.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import train_cifar
from anodev2.models import load
from anodev2.torch_private import tree_leaves
from runs import load_checkpoint
from stacked import Stacked
from tests.examples.test_train_cifar_steps import training
from trained import mistake, options, recounted, result, write_small
from training import Training

SEEDS = (0, 3, 5)
ROUND_OFF = 1e-11  # in float64, after two epochs of three steps
ODE = ["--block", "ode", "--steps", "2"]
COUPLED = ["--steps", "2"]
slow = pytest.mark.slow


def made(words: list[str]) -> list[Training]:
    return [training("--epochs", "3", "--seeds", str(seed), *words, kind=torch.float64) for seed in SEEDS]


def kept(run: Training) -> dict[str, Tensor]:
    """Weights, BatchNorm statistics, what is tested, and momenta."""
    momenta = {name: run.optimizer.state[p].get("momentum_buffer", torch.zeros(())) for name, p in run.model.named_parameters()}
    found = {"of the network": run.model.state_dict(), "tested": run.tested.state_dict(), "momentum": momenta}
    return {f"{name}, {what}": tensor.double().clone() for what, part in found.items() for name, tensor in part.items()}


@pytest.mark.parametrize(
    "words",
    [
        ["--block", "residual", "--label-smoothing", "0.1"],
        ODE,
        [*COUPLED, "--ema", "0.5", "--accumulate", "2", "--cutout", "8"],
        pytest.param([*ODE, "--adjoint", "direct", "--method", "heun2", "--time", "--momentum", "0"], marks=slow),
        pytest.param([*ODE, "--adjoint", "reversible", "--norm", "shared"], marks=slow),
        pytest.param([*COUPLED, "--slots", "1", "--per", "channel", "--schedule", "paper", "--tau", "0"], marks=slow),
        pytest.param([*COUPLED, "--memory", "64MiB", "--weights", "final", "--no-channels-last"], marks=slow),
        pytest.param([*COUPLED, "--dynamics", "fourier", "--model", "resnet10"], marks=slow),
        pytest.param([*COUPLED, "--dynamics", "static", "--weight-decay", "0.1"], marks=slow),
    ],
    ids=" ".join,
)
def test_each_seed_is_trained_as_alone(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "keep", lambda run, row: None)  # the files
    together, alone = made(words), made(words)
    stack = Stacked(together)
    for _ in range(2):
        stack.one_epoch()
    for run, own in zip(together, alone, strict=True):
        before = kept(own)
        for _ in range(2):
            own.one_epoch()
        found, want = kept(run), kept(own)
        assert found.keys() == want.keys() and any((want[name] - before[name]).abs().max() > 1e-3 for name in want)
        for name, tensor in want.items():
            assert torch.allclose(found[name], tensor, rtol=ROUND_OFF, atol=ROUND_OFF), name
        for row, other in zip(run.history, own.history, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=ROUND_OFF)
            assert all(row[name] == other[name] for name in ("epoch", "train_accuracy", "test_accuracy"))
        assert run.scheduler.get_last_lr() == own.scheduler.get_last_lr()
    (first, second, _) = (run.history[-1]["loss"] for run in together)
    assert first != second


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("data"))


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in load_checkpoint(run / "last.pt")["history"]]


def tensors(run: Path) -> int:
    return sum(part.untyped_storage().nbytes() for part in tree_leaves(load_checkpoint(run / "last.pt")) if isinstance(part, Tensor))


@pytest.fixture
def apart_and_stacked(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr("training.write_history", lambda *_: None)  # the picture takes most of the time
    more = ("--block", "residual", "--epochs", "2", "--subset", "60", "--seeds", "0", "4")
    train_cifar.main(options(small, tmp_path / "apart", *more))
    train_cifar.main(options(small, tmp_path / "stack", *more, "--stack"))
    return tmp_path / "apart", tmp_path / "stack"


def test_what_it_leaves_is_what_separate_runs_leave(apart_and_stacked: tuple[Path, Path], small: Path) -> None:
    assert len({frozenset(result(folder)) for folder in apart_and_stacked}) == 1
    for seed in (0, 4):
        apart, stack = (folder / f"seed-{seed}" for folder in apart_and_stacked)
        assert {path.name for path in stack.iterdir()} == {path.name for path in apart.iterdir()}
        assert tensors(stack) == tensors(apart)  # not those of all seeds
        assert recounted(stack, small) == pytest.approx(result(stack)["test_accuracy"]) and not load(stack).training
        assert losses(stack) == pytest.approx(losses(apart), rel=1e-3)
        assert result(stack).keys() == result(apart).keys() and result(stack)["config"]["seeds"] == [seed]


@slow
def test_runs_go_on_alone_and_together(apart_and_stacked: tuple[Path, Path]) -> None:
    """As where a kill came between the checkpoints of two."""
    apart, stack = apart_and_stacked
    train_cifar.main(["--resume", str(stack / "seed-4"), "--epochs", "3"])
    train_cifar.main(["--resume", str(stack), "--epochs", "4"])
    train_cifar.main(["--resume", str(apart), "--epochs", "4"])
    assert losses(stack / "seed-0") == pytest.approx(losses(apart / "seed-0"), rel=1e-2)
    for seed in ("seed-0", "seed-4"):
        history = load_checkpoint(stack / seed / "last.pt")["history"]
        assert [row["epoch"] for row in history] == [1, 2, 3, 4] and result(stack / seed)["epochs"] == 4


def test_what_cannot_be_the_same_for_several_is_refused(small: Path, tmp_path: Path) -> None:
    seeds = ("--stack", "--seeds", "0", "1")
    cases = [
        (("--stack",), "--stack has no effect here, only with several --seeds"),
        ((*seeds, "--compile"), "--stack does not go with --compile, which goes with one seed at a time, or leave out --stack"),
        ((*seeds, "--adjoint", "backsolve"), "--stack does not go with --adjoint backsolve"),
        ((*seeds, "--precision", "float16"), "take float32, or leave out --stack"),
        ((*seeds, "--channels-last"), "--channels-last has no effect here, only with one seed at a time"),
    ]
    for words, sentence in cases:
        assert sentence in mistake(train_cifar.main, options(small, tmp_path / "run", *words))
        assert not (tmp_path / "run").exists()


@slow
def test_a_seed_that_diverges_is_named_and_the_others_can_go_on(small: Path, tmp_path: Path) -> None:
    more = ("--block", "residual", "--subset", "60", "--seeds", "0", "1", "--stack", "--lr", "1e30")
    said = mistake(train_cifar.main, options(small, tmp_path / "run", *more))
    assert "the loss became" in said and " of seed 0 in epoch " in said and f"--resume {tmp_path / 'run' / 'seed-N'}" in said
