"""The main job: it learns, survives a kill at any moment to the bit, and says what is wrong in one sentence."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from killed import Downloaded

from examples import runs, train_cifar

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "examples" / "train_cifar.py")
KILLED = str(ROOT / "tests" / "killed.py")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cifar10.npz of 200 training and 100 test images that can be told apart."""
    import numpy as np

    folder = tmp_path_factory.mktemp("data")
    with np.load(ROOT / "examples" / "data" / "cifar10_mini.npz") as mini:
        cut = {name: mini[name][: 200 if "train" in name else 100] for name in mini.files}
    np.savez(folder / "cifar10.npz", **cut)
    return folder


def options(small: Path, run: Path, *more: str) -> list[str]:
    fixed = [
        "--data",
        "cifar10",
        "--data-dir",
        str(small),
        "--out",
        str(run),
        "--steps",
        "2",
        "--epochs",
        "3",
        "--batch-size",
        "25",
        "--lr",
        "0.03",
        "--device",
        "cpu",
    ]
    return [*fixed, *more]


def start(*arguments: str, script: str = SCRIPT, **environment: str) -> subprocess.Popen[str]:
    everything = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    command = [sys.executable, script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=everything)


def weights(run: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / name)


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


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


def test_a_run_leaves_its_files_and_the_weights_moved(whole: Path) -> None:
    names = {"config.json", "metrics.csv", "curves.png", "last.pt", "best.safetensors", "last.safetensors", "result.json"}
    assert {p.name for p in whole.iterdir()} == names
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and float(rows[2]["loss"]) < float(rows[0]["loss"])
    found = result(whole)
    assert 0 <= found["test_accuracy"] <= 100 and found["test_accuracy"] == float(rows[2]["test_accuracy"])
    assert found["peak_memory_mib"] > 100 and found["images_per_second"] > 1 and found["config"]["batch_size"] == 25
    assert set(found["weights"]) == {"3.f.conv1.weight", "3.f.conv2.weight"}
    for layer in found["weights"].values():
        assert layer["relative_change"] > 1e-3
        assert layer["tau"]["start"] == pytest.approx(0.02) and layer["tau"]["end"] != layer["tau"]["start"]
        assert layer["upsilon"]["start"] == [0, 0] and all(abs(v) > 1e-6 for v in layer["upsilon"]["end"])
        assert layer["rho"]["end"] != 0
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    with safetensors.safe_open(whole / "best.safetensors", "pt") as best:
        facts = best.metadata()
    assert float(facts["test_accuracy"]) == found["best_test_accuracy"] == max(float(r["test_accuracy"]) for r in rows)
    model = train_cifar.make_model(train_cifar.Config(steps=2), 10)
    model.load_state_dict(weights(whole))
    assert len(weights(whole)) == len(model.state_dict())


MOMENTS = ["first epoch", "second epoch", "checkpoint half written", "weights written, checkpoint not", "checkpoint written, table not"]


@pytest.fixture(scope="module")
def brief(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "brief"
    train_cifar.main(options(small, run, "--epochs", "2", "--subset", "100"))
    return run


@pytest.mark.parametrize("moment", [*MOMENTS, "cache half written"])
def test_killed_and_resumed_it_ends_with_the_same_weights(
    moment: str, small: Path, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tmp_path / "killed", tmp_path / "data"
    arguments = options(small, run, "--epochs", "2", "--subset", "100")
    if moment == "cache half written":
        arguments[arguments.index("--data-dir") + 1] = str(data)
    process = start(moment, *arguments, script=KILLED, DOWNLOAD=str(small / "cifar10.npz"))
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, out + err
    assert not (run / "result.json").exists()
    if moment == "cache half written":
        assert not (data / "cifar10.npz").exists() and len(list(data.iterdir())) > 0  # only what is partial
        monkeypatch.setenv("DOWNLOAD", str(small / "cifar10.npz"))
        monkeypatch.setattr("torchvision.datasets.CIFAR10", Downloaded)
    train_cifar.main(["--resume", str(run)])
    assert not [path for path in data.glob(".*") if "partial" in path.name]
    assert the_same(run, brief)
    assert not list(run.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_killed_and_resumed_with_all_that_can_be_kept(precision: str, small: Path, tmp_path: Path) -> None:
    more = ["--subset", "100", "--ema", "0.9", "--accumulate", "5", "--precision", precision, "--cutout", "6", "--per", "channel"]
    train_cifar.main(options(small, tmp_path / "whole", *more))
    process = start("second epoch", *options(small, tmp_path / "killed", *more), script=KILLED)
    assert process.communicate() and process.returncode == -signal.SIGKILL
    train_cifar.main(["--resume", str(tmp_path / "killed")])
    assert the_same(tmp_path / "killed", tmp_path / "whole")


def test_ctrl_c_ends_with_a_word_and_a_resumable_run(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    process = start(*options(small, run))
    while not (run / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and f"--resume {run}" in out and "Traceback" not in err
    train_cifar.main(["--resume", str(run)])
    assert (run / "result.json").exists()


@pytest.mark.parametrize("block", ["residual", "ode"])
def test_other_blocks_and_the_paper_schedule(block: str, small: Path, tmp_path: Path) -> None:
    train_cifar.main(options(small, tmp_path / "run", "--block", block, "--schedule", "paper", "--lr", "0.02", "--epochs", "1"))
    found = result(tmp_path / "run")
    assert found["weights"] == {} and found["epochs"] == 1


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
    fixed = options(small, tmp_path / "ema", "--epochs", "2", "--subset", "50")
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


def test_every_other_option_trains(small: Path, tmp_path: Path) -> None:
    more = ["--epochs", "1", "--subset", "50", "--label-smoothing", "0.1", "--cutout", "8", "--tensorboard", "--no-channels-last"]
    train_cifar.main(options(small, tmp_path / "a", *more, "--precision", "bfloat16", "--dynamics", "chebyshev", "--slots", "1"))
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    train_cifar.main(options(small, tmp_path / "b", *more[:4], "--memory", "64MiB", "--time", "--method", "midpoint", "--norm", "shared"))
    train_cifar.main(options(small, tmp_path / "c", *more[:4], "--adjoint", "backsolve", "--weights", "final", "--weight-steps", "4"))
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
    arguments = ["--data", "cifar10", "--data-dir", str(small), "--epochs", "1", "--block", "residual", "--device", "cpu"]
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
        (["--batch-size", "201"], "at most the 200 training images"),
        (["--accumulate", "2"], "--batch-size 25 must be a multiple of --accumulate 2"),
        (["--label-smoothing", "2"], "--label-smoothing 2.0 must be at least 0 and below 1"),
        (["--momentum", "-1"], "--momentum -1.0 must be"),
        (["--cutout", "-3"], "--cutout -3 must be at least 0"),
        (["--seeds", "99999999999999"], "below 2^31"),
        (["--ema", "1"], "--ema 1.0 must be at least 0 and below 1"),
        (["--seeds", "1", "1"], "--seeds (1, 1) must be different"),
        (["--slots", "2", "--adjoint", "direct"], "--slots and --memory are for --adjoint checkpoint"),
        (["--memory", "lots"], "lots"),
        (["--lr", "0"], "--lr 0.0 must be positive"),
        (["--tau", "-1"], "tau=-1.0 must be at least 0"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--data", "nowhere"], "nowhere' is neither mini"),
        (["--lr", "1e30"], "the loss became"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], sentence: str, small: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main([*options(small, tmp_path / "run"), *arguments])
    message = str(caught.value)
    assert message.startswith("error: ") and sentence in message and "\n" not in message


def test_an_unknown_model_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_cifar.main(["--model", "resnet9"])
    shown = capsys.readouterr()
    assert caught.value.code == 2 and "resnet9" in shown.out + shown.err and "resnet10" in shown.out + shown.err


def test_mistakes_about_runs_get_one_sentence(small: Path, whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((whole / "config.json").read_text())
    (broken / "last.pt").write_bytes((whole / "last.pt").read_bytes()[:1000])
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text('{"data_dir": "data", "seed": 0}')
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (["--resume", str(broken)], "is not a readable checkpoint"),
        (["--resume", str(empty)], "is no run folder: config.json cannot be read"),
        (["--resume", str(whole), "--epochs", "9"], "drop the other options"),
        (["--resume", str(old)], "is a run of another version of this script ('seeds')"),
        (options(small, whole), "already holds a run"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(SystemExit) as caught:
            train_cifar.main(arguments)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_leave_no_run_behind(small: Path, tmp_path: Path) -> None:
    for arguments in (["--data", "nowhere"], ["--accumulate", "2"], ["--tau", "-1"]):
        with pytest.raises(SystemExit):
            train_cifar.main([*options(small, tmp_path / "run"), *arguments])
    train_cifar.main(options(small, tmp_path / "run", "--epochs", "1", "--subset", "50", "--block", "residual"))


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runs.write(tmp_path / "file", b"new")
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
