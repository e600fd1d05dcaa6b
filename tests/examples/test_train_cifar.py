"""The main job: it learns, survives a kill at any moment to the bit, and says what is wrong in one sentence.

A run that was resumed is compared with one that was not; that its steps are right is for test_train_cifar_steps.py.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import safetensors.torch
import torch
from test_examples_options import OTHERWISE
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import runs
import train_cifar
import training
from anodev2 import CoupledODEBlock
from anodev2.models import facts
from average import Average
from images import Images
from killed import Downloaded, Killed, arrange, interrupt, stop
from ranks import Ranks
from runs import RunError
from settings import Config, make_model
from trained import ROOT, mistake, options, recounted, result, weights, write_small
from training import Training


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("data"))


def killed(moment: str, *arguments: str, **environment: str) -> None:
    """A process that is killed at a given moment."""
    everything = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}", "PYTHONUNBUFFERED": "1", **environment}
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), moment, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=everything, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stdout + process.stderr


def ended(moment: str, arguments: list[str], end: Callable[..., Any] = stop) -> BaseException:
    """What ends a run of this process at a given moment."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, SystemExit)) as caught:
        arrange(moment, end, patch.setattr)
        train_cifar.main(arguments)
    return caught.value


def refused(arguments: list[str]) -> str:
    return mistake(train_cifar.main, arguments)


def curve(run: Path) -> list[list[str]]:
    """Epoch, loss and accuracies, as written."""
    return [row[:4] for row in csv.reader((run / "metrics.csv").read_text().splitlines())]


def the_same(a: Path, b: Path) -> bool:
    """To the bit: the curves, the best and the last weights, and how the weights evolve."""
    pairs = [(weights(a, name), weights(b, name)) for name in ("best.safetensors", "last.safetensors")]
    equal = all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in pairs)
    return equal and curve(a) == curve(b) and result(a)["weights"] == result(b)["weights"]


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs without interruption."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train_cifar.main(options(small, run))
    return run


def test_a_run_leaves_its_files_and_the_weights_moved(whole: Path, small: Path) -> None:
    names = {"config.json", "metrics.csv", "curves.png", "last.pt", "best.safetensors", "last.safetensors", "result.json"}
    assert {p.name for p in whole.iterdir()} == names
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and float(rows[2]["loss"]) < float(rows[0]["loss"])
    found = result(whole)
    assert found["test_accuracy"] == float(rows[2]["test_accuracy"]) == pytest.approx(recounted(whole, small))
    assert found["test_accuracy"] != pytest.approx(recounted(whole, small, part="train"))
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    assert found["best"] == {"epoch": int(best["epoch"]), **{name: float(best[name]) for name in ("validation_accuracy", "test_accuracy")}}
    assert found["best"]["validation_accuracy"] == pytest.approx(recounted(whole, small, "best.safetensors", part="valid"))
    assert found["best"]["test_accuracy"] == pytest.approx(recounted(whole, small, "best.safetensors"))
    assert found["peak_memory_mib"] > 100 and found["images_per_second"] > 1 and found["config"]["batch_size"] == 25
    assert set(found["weights"]) == {"3.f.conv1.weight", "3.f.conv2.weight"}
    for layer in found["weights"].values():
        assert layer["relative_change"] > 1e-3
        assert layer["tau"]["start"] == pytest.approx(0.02) and layer["tau"]["end"] != layer["tau"]["start"]
        assert layer["upsilon"]["start"] == [0, 0] and all(abs(v) > 1e-6 for v in layer["upsilon"]["end"])
        assert layer["rho"]["end"] != 0
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    with safetensors.safe_open(whole / "best.safetensors", "pt") as opened:
        facts = json.loads(opened.metadata()["anodev2"])
    assert all(facts[name] == found["best"][name] for name in found["best"])
    model = make_model(Config(steps=2), 10)
    model.load_state_dict(weights(whole))
    assert len(weights(whole)) == len(model.state_dict())


MOMENTS = ["first epoch", "second epoch", "checkpoint half written", "weights written, checkpoint not", "checkpoint written, table not"]


@pytest.fixture(scope="module")
def brief(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "brief"
    train_cifar.main(options(small, run, "--epochs", "2", "--subset", "100"))
    return run


QUICK = ("second epoch",)


@pytest.mark.parametrize("moment", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MOMENTS])
def test_killed_and_resumed_it_ends_with_the_same_weights(moment: str, small: Path, brief: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    arguments = options(small, run, "--epochs", "2", "--subset", "100")
    if moment == "checkpoint half written":
        killed(moment, *arguments)
    else:
        assert isinstance(ended(moment, arguments), Killed)
    assert not (run / "result.json").exists()
    train_cifar.main(["--resume", str(run)])
    assert the_same(run, brief)
    assert not list(run.glob(".*"))


@pytest.mark.slow
def test_killed_while_it_keeps_what_it_downloaded_it_leaves_no_run_and_no_cache(
    small: Path, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    arguments = options(data, tmp_path / "run", "--epochs", "2", "--subset", "100")
    killed("cache half written", *arguments, DOWNLOAD=str(small / "cifar10.npz"))
    assert not (data / "cifar10.npz").exists() and not (tmp_path / "run").exists() and len(list(data.iterdir())) > 0  # only what is partial
    monkeypatch.setenv("DOWNLOAD", str(small / "cifar10.npz"))
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Downloaded)
    train_cifar.main(arguments)
    assert not [path for path in data.glob(".*") if "partial" in path.name]
    assert the_same(tmp_path / "run", brief)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_killed_and_resumed_with_all_that_can_be_kept(precision: str, small: Path, tmp_path: Path) -> None:
    more = ["--subset", "40", "--steps", "2", "--precision", precision]  # a processor takes ten times as long for float16
    more += ["--ema", "0.9", "--accumulate", "5", "--cutout", "6", "--per", "channel"]
    train_cifar.main(options(small, tmp_path / "whole", *more))
    assert isinstance(ended("second epoch", options(small, tmp_path / "killed", *more)), Killed)
    train_cifar.main(["--resume", str(tmp_path / "killed")])
    assert the_same(tmp_path / "killed", tmp_path / "whole")


def test_ctrl_c_ends_with_a_word_and_a_resumable_run(small: Path, brief: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "stopped"
    end = ended("second epoch", options(small, run, "--epochs", "2", "--subset", "100"), interrupt)
    out = capsys.readouterr().out
    assert isinstance(end, SystemExit) and end.code == 130 and f"--resume {run}" in out and "Traceback" not in out, out
    train_cifar.main(["--resume", str(run)])
    assert the_same(run, brief)


HINTS = get_type_hints(Config)


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name == "resnet18" else ()) for name in get_args(HINTS["model"])]
)
@pytest.mark.parametrize("dynamics", get_args(HINTS["dynamics"]))
def test_every_dynamics_trains_every_network_with_the_other_options_as_they_are(dynamics: str, model: str) -> None:
    """One step, after which whatever can move moves; kernels lie in memory as asked."""
    config = Config(model=model, dynamics=dynamics, batch_size=2, epochs=1)  # pyright: ignore[reportArgumentType]
    if model == "vit" and dynamics == "rda":
        pytest.skip("it moves kernels, of which there are none")
    x, y = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8), torch.tensor([3, 7])
    images = Images(x, y, x, y, torch.full((3,), 128.0), torch.full((3,), 64.0), 10)
    made = Training(config, Path(), Ranks(torch.device("cpu")), images)
    assert math.isfinite(made.one_epoch()["loss"])
    blocks = [part for part in made.model.modules() if isinstance(part, CoupledODEBlock)]
    moved = [not torch.equal(*block.weights([0.0, 0.4])[name]) for block in blocks for name in block.evolving]
    assert any(moved) == (dynamics != "static")
    kernels = [p for p in made.model.parameters() if p.ndim == 4]
    assert bool(kernels) == (model != "vit") and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("block", ["residual", "ode"])
def test_other_blocks_and_the_paper_schedule(block: str, small: Path, tmp_path: Path) -> None:
    train_cifar.main(options(small, tmp_path / "run", "--block", block, "--schedule", "paper", "--lr", "0.02", "--epochs", "1"))
    found = result(tmp_path / "run")
    assert found["weights"] == {} and found["epochs"] == 1


def rates(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of all gradient steps."""
    seen: list[float] = []
    backward = training.backward

    def watched(run: Training, *args: Any, **kwargs: Any) -> Any:
        if run.folder != Path():  # not the rehearsal
            seen.append(run.optimizer.param_groups[0]["lr"])
        return backward(run, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, "backward", watched)
        train_cifar.main(arguments)
    return seen


@pytest.mark.parametrize("schedule", ["one-cycle", pytest.param("paper", marks=pytest.mark.slow)])
def test_a_run_that_was_over_goes_on_at_the_rates_of_the_longer_one(
    schedule: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (options(small, tmp_path / name, "--subset", "50", "--schedule", schedule, "--block", "residual") for name in ("a", "b"))
    first = rates([*short, "--epochs", "2"], monkeypatch)
    more = rates(["--resume", str(tmp_path / "a"), "--epochs", "4"], monkeypatch)
    whole = rates([*long, "--epochs", "4"], monkeypatch)
    assert len(first) == len(more) == len(whole) // 2 and more == pytest.approx(whole[len(first) :])
    assert [row[0] for row in curve(tmp_path / "a")[1:]] == ["1", "2", "3", "4"] and result(tmp_path / "a")["epochs"] == 4
    assert rates(["--resume", str(tmp_path / "a")], monkeypatch) == []
    assert "--epochs 3 must be at least the 4" in refused(["--resume", str(tmp_path / "a"), "--epochs", "3"])


def test_a_run_starts_from_the_weights_of_another_and_from_its_settings(whole: Path, small: Path, tmp_path: Path) -> None:
    config = train_cifar.settled(["--config", str(whole / "config.json"), "--lr", "0.5", "--init", str(whole / "last.safetensors")])
    saved = json.loads((whole / "config.json").read_text())
    assert (config.lr, config.steps, config.batch_size, config.out) == (0.5, 2, 25, None)
    assert {name for name, value in saved.items() if str(getattr(config, name)) != str(value)} <= {"lr", "init", "out", "seeds"}
    images = train_cifar.load_images("cifar10", small, torch.device("cpu"))
    made = Training(config, Path(), Ranks(torch.device("cpu")), images)
    assert all(torch.equal(made.model.state_dict()[name], value) for name, value in weights(whole).items())
    best = Training(dataclasses.replace(config, init=whole), Path(), Ranks(torch.device("cpu")), images)
    assert all(torch.equal(best.model.state_dict()[name], value) for name, value in weights(whole, "best.safetensors").items())
    message = refused(options(small, tmp_path / "other", "--model", "resnet10", "--init", str(whole)))
    assert message.startswith(f"error: --init {whole} does not hold weights of this network") and not (tmp_path / "other").exists()
    assert "has no best.safetensors" in refused(options(small, tmp_path / "other", "--init", str(tmp_path)))


def test_without_validation_images_no_epoch_is_chosen(small: Path, tmp_path: Path) -> None:
    """The test images choose nothing."""
    train_cifar.main(options(small, tmp_path / "run", "--epochs", "2", "--subset", "50", "--block", "residual", "--validation", "0"))
    assert not (tmp_path / "run" / "best.safetensors").exists() and "best" not in result(tmp_path / "run")
    assert result(tmp_path / "run")["test_accuracy"] == json.loads(json.dumps(facts(tmp_path / "run")["test_accuracy"]))


def test_several_seeds_are_runs_of_their_own_and_a_summary(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "seeds"
    arguments = options(small, run, "--epochs", "1", "--subset", "50", "--block", "residual", "--seeds", "0", "1", "2")
    train_cifar.main(arguments)
    accuracies = [result(run / f"seed-{seed}")["test_accuracy"] for seed in range(3)]
    mean, low, high = sum(accuracies) / 3, min(accuracies), max(accuracies)
    assert result(run)["test_accuracy"] == {"mean": pytest.approx(mean), "min": low, "max": high}
    assert f"{mean:.2f} ({low:.2f}/{high:.2f})" in capsys.readouterr().out
    kept = weights(run / "seed-1"), (run / "seed-0" / "result.json").stat().st_mtime_ns
    for name in ("result.json", "last.pt", "last.safetensors"):
        (run / "seed-1" / name).unlink()
    train_cifar.main(["--resume", str(run)])  # what is finished stays, what is not is done
    again = weights(run / "seed-1")
    assert (run / "seed-0" / "result.json").stat().st_mtime_ns == kept[1] and all(torch.equal(again[key], kept[0][key]) for key in again)


def test_an_average_of_the_weights_is_what_is_tested_and_saved(small: Path, tmp_path: Path) -> None:
    fixed = options(small, tmp_path / "ema", "--epochs", "2", "--subset", "50", "--validation", "0")
    train_cifar.main([*fixed, "--ema", "0.5"])
    saved = torch.load(tmp_path / "ema" / "last.pt", weights_only=True)
    average = {name.removeprefix("module."): value for name, value in saved["average"].items() if name != "n_averaged"}
    last = weights(tmp_path / "ema")
    assert int(saved["average"]["n_averaged"]) == 4 and last.keys() == average.keys()
    assert all(torch.equal(last[key], average[key]) for key in last)
    assert not all(torch.equal(last[key], saved["model"][key]) for key in last)
    for name, layer in result(tmp_path / "ema")["weights"].items():
        key = name.replace("f.", "dynamics.signed_tau.f/").replace(".weight", "/weight").replace("tau.f/", "tau.")
        assert layer["tau"]["end"] == pytest.approx(last[key].item())


def test_the_average_is_that_of_torch() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    ours, theirs = Average(model, 0.7), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    for _ in range(3):
        model(torch.randn(5, 3, 6, 6))
        with torch.no_grad():
            next(model.parameters()).add_(1)
        for average in (ours, theirs):
            average.update_parameters(model)
    own, expected = ours.state_dict(), theirs.state_dict()
    assert own.keys() == expected.keys() and own.pop("module.1.num_batches_tracked") == 3
    assert all(torch.equal(value, expected[name]) for name, value in own.items())


@pytest.mark.slow
def test_every_other_option_trains(small: Path, tmp_path: Path) -> None:
    more = ["--epochs", "1", "--subset", "50", "--label-smoothing", "0.1", "--cutout", "8", "--tensorboard", "--no-channels-last"]
    train_cifar.main(options(small, tmp_path / "a", *more, "--precision", "bfloat16", "--dynamics", "chebyshev", "--slots", "1"))
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    train_cifar.main(options(small, tmp_path / "b", *more[:4], "--memory", "64MiB", "--time", "--method", "midpoint", "--norm", "shared"))
    train_cifar.main(options(small, tmp_path / "c", *more[:4], "--adjoint", "backsolve", "--weights", "final"))
    for run in "abc":
        assert result(tmp_path / run)["parameters"] > 7_706


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")  # the symbol of the dynamics
def test_compiled_it_learns_the_same(small: Path, tmp_path: Path) -> None:
    arguments = options(small, tmp_path / "eager", "--epochs", "1", "--subset", "100")
    train_cifar.main(arguments)
    arguments[arguments.index("--out") + 1] = str(tmp_path / "compiled")
    train_cifar.main([*arguments, "--compile"])
    eager, compiled = (weights(tmp_path / name) for name in ("eager", "compiled"))
    assert all(torch.allclose(compiled[key], eager[key], atol=1e-3) for key in eager)


def test_seeds_decide_and_runs_get_folders_of_their_own(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "cifar10", "--data-dir", str(small), "--epochs", "1", "--subset", "50", "--batch-size", "25"]
    arguments += ["--block", "residual", "--device", "cpu"]
    for seed in ("1", "1", "2"):
        train_cifar.main([*arguments, "--seeds", seed])
    first, again, other = (weights(Path("runs") / f"resnet4-residual-cifar10-{name}") for name in ("1", "1-2", "2"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
        (["--batch-size", "-3"], "--batch-size -3"),
        (["--batch-size", "151"], "at most the 150 training images"),
        (["--accumulate", "2"], "--batch-size 25 must be a multiple of --accumulate 2"),
        (["--label-smoothing", "2"], "--label-smoothing 2.0 must be at least 0 and below 1"),
        (["--momentum", "-1"], "--momentum -1.0 must be"),
        (["--cutout", "-3"], "--cutout -3 must be at least 0"),
        (["--seeds", "99999999999999"], "below 2^31"),
        (["--ema", "1"], "--ema 1.0 must be at least 0 and below 1"),
        (["--seeds", "1", "1"], "--seeds (1, 1) must be one or more, all different"),
        (["--slots", "2", "--adjoint", "direct"], "--slots has no effect here, only with --block ode or coupled and --adjoint checkpoint"),
        (["--cuda-graph"], "only with one process on CUDA; leave"),
        (["--slots", "0"], "--slots 0 must be at least 1"),
        (["--memory", "lots"], "lots"),
        (["--memory", "1KiB"], "memory"),
        (["--lr", "0"], "--lr 0.0 must be positive"),
        (["--lr", "nan"], "--lr nan must be positive"),
        (["--weight-decay", "inf"], "--weight-decay inf must be at least 0 and finite"),
        (["--tau", "-1"], "--tau -1.0 must be at least 0"),
        (["--dynamics", "fourier", "--basis-size", "4"], "size=4 must be odd for 'fourier'"),
        (["--subset", "0"], "--subset 0 must be at least 1"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--data-dir", __file__], "cannot be used"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing_behind(arguments: list[str], sentence: str, small: Path, tmp_path: Path) -> None:
    assert sentence in refused([*options(small, tmp_path / "deep" / "run"), *arguments])
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_one_sentence(small: Path, tmp_path: Path) -> None:
    assert "the loss became" in refused(options(small, tmp_path / "run", "--lr", "1e30"))


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/run"])
def test_where_no_run_can_be_written_is_one_sentence(out: str, small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"--out {tmp_path / out}" in refused(options(small, tmp_path / out, "--subset", "40"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_model_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main(["--model", "resnet9"])
    shown = capsys.readouterr()
    assert caught.value.code == 2 and "resnet9" in shown.out + shown.err and "resnet10" in shown.out + shown.err


def copied(whole: Path, run: Path) -> Path:
    """A finished run as it is before its last words."""
    shutil.copytree(whole, run)
    (run / "result.json").unlink()
    return run


def test_mistakes_about_runs_get_one_sentence(small: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    other = copied(whole, tmp_path / "other")
    saved = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({name: value for name, value in saved.items() if name != "seeds"} | {"seed": 0}))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[1, 2]")
    cases = [
        (["--resume", str(tmp_path / "empty")], "is no run folder: config.json cannot be read"),
        (["--resume", str(tmp_path / "nowhere")], "is no run folder: config.json cannot be read"),
        (["--resume", __file__], "is no run folder: config.json cannot be read"),
        (["--resume", str(tmp_path / "list")], "is no run folder: config.json"),
        (["--resume", str(other)], "config.json is of another version of this script, which differs in seed, seeds"),
        (options(small, whole), "already holds a run"),
    ]
    for arguments, sentence in cases:
        assert sentence in refused(arguments)
    for name in OTHERWISE.keys() - {"epochs"}:  # also where what is given is the default
        given = "--no-time" if name == "time" else f"--{name.replace('_', '-')}"
        if not isinstance(HINTS[name], type) or HINTS[name] is not bool or name == "time":
            value = Config.__dataclass_fields__[name].default
            words = [] if name == "time" else [str(part) for part in (value if isinstance(value, tuple) else [value])]
            assert "drop the other options" in refused(["--resume", str(whole), given, *words]), name


def test_a_changed_setting_is_refused_by_its_file_and_its_name(whole: Path, tmp_path: Path) -> None:
    """Each field in turn, wrong in type, in range, and in what may not be missing."""
    run = copied(whole, tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    for name in set(saved) - {"out", "resume", "config"}:  # which are the new command's
        hint = str(HINTS[name])
        wrong: list[Any] = [{"a": 1}]
        if "Optional" not in hint and "None" not in hint:
            wrong.append(None)
        if "str" not in hint and "Path" not in hint:
            wrong.append("nope")
        if "float" in hint or "int" in hint:
            wrong += [-1, math.nan, True] if "tuple" not in hint else [[-1], [], [0, 0]]
        if "Literal" in hint:
            wrong.append("nope")
        for value in wrong:
            (run / "config.json").write_text(json.dumps({**saved, name: value}))
            assert f"error: {run / 'config.json'}: {name} " in refused(["--resume", str(run)]), (name, value)


def test_a_checkpoint_that_has_changed_in_any_place_is_refused(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path / "run")
    good = (run / "last.pt").read_bytes()
    for length in (0, 1, 100, len(good) // 2, len(good) - 1):
        (run / "last.pt").write_bytes(good[:length])
        assert f"{run / 'last.pt'} is not a readable checkpoint" in refused(["--resume", str(run)]), length
    kept = {name: torch.load(whole / "last.pt", weights_only=True)["model"][name] for name in ("0.weight", "3.f.conv1.weight")}
    for tensor in kept.values():  # as it lies in the file
        flat = tensor.permute(0, 2, 3, 1).numpy().tobytes()
        place = good.index(flat) + len(flat) // 2
        (run / "last.pt").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(RunError, match="is not a readable checkpoint"):
            runs.load_checkpoint(run / "last.pt")
    for content in ({}, [], 3, {name: 5 for name in torch.load(whole / "last.pt", weights_only=True)}):
        torch.save(content, run / "last.pt")
        assert "is not a readable checkpoint of this run" in refused(["--resume", str(run)]), content


QUICK = ["config.json", "last.pt in the second epoch"]
OTHER_FILES = ["best.safetensors", "last.pt", "metrics.csv", "curves.png", "last.safetensors", "result.json"]


@pytest.mark.parametrize("file", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_FILES)])
def test_a_full_disk_loses_nothing_past_the_last_epoch(
    file: str, small: Path, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when that file is written out."""
    times, name = 2 if "second" in file else 1, file.split()[0]

    class Full(io.FileIO):
        """Refuses the last bytes, as a disk does that is written to late."""

        def close(self) -> None:
            nonlocal times
            if not self.closed and Path(str(self.name)).name == f".{name}.partial":
                times -= 1
                if times == 0:
                    super().close()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().close()

    run = tmp_path / "deep" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "open", lambda path, mode: Full(path, mode), raising=False)
        message = refused(options(small, run, "--epochs", "2", "--subset", "100"))
    assert f"{run / name} cannot be written (No space left on device)" in message
    if name == "config.json":
        assert not list(tmp_path.iterdir())
        return
    assert f"--resume {run}" in message and not list(run.glob(".*"))
    train_cifar.main(["--resume", str(run)])
    assert the_same(run, brief)


def test_a_file_that_may_grow_no_more_is_one_sentence(small: Path, brief: Path, tmp_path: Path) -> None:
    """The operating system refuses, as it does on a full disk, what goes beyond a limit that the first weights do not reach."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        message = refused(options(small, tmp_path / "run", "--epochs", "2", "--subset", "100"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path / 'run' / 'last.pt'} cannot be written (File too large)" in message
    assert (tmp_path / "run" / "best.safetensors").exists() and not list((tmp_path / "run").glob(".*"))
    train_cifar.main(["--resume", str(tmp_path / "run")])
    assert the_same(tmp_path / "run", brief)


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    runs.write(tmp_path / "file", b"old")
    with pytest.raises(ZeroDivisionError), runs.replacing(tmp_path / "file") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_checkpoint_that_holds_code_is_refused(whole: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text((whole / "config.json").read_text())
    torch.save({"model": Trap()}, run / "last.pt")
    with pytest.raises(SystemExit, match="is not a readable checkpoint"):
        train_cifar.main(["--resume", str(run)])
    assert not (tmp_path / "sprung").exists()


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and all(
        word in text for word in ("--tau", "diffusivity", "--resume", "one-cycle", "{residual,ode,coupled}")
    )
