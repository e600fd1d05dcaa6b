"""Several processes train one network: the same steps, one writer, and an end when one is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from trained import MINI, ROOT, recounted

from examples import train_cifar

SCRIPT = str(ROOT / "examples" / "train_cifar.py")
FIVE_STEPS = str(ROOT / "tests" / "five_steps.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10.npz").symlink_to(MINI)
    return folder


def launch(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=everything)


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    return launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments)


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def options(data: Path, run: Path, *more: str) -> list[str]:
    fixed = ["--data", "cifar10", "--data-dir", str(data), "--subset", "100", "--batch-size", "20", "--lr", "0.02"]
    fixed += [] if "residual" in more else ["--steps", "2"]
    return [*fixed, "--schedule", "paper", "--device", "cpu", "--out", str(run), *more]


@pytest.mark.parametrize("accumulate", ["1", "2"])
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(accumulate: str, data: Path, tmp_path: Path) -> None:
    finished(launch(FIVE_STEPS, str(data), str(tmp_path / "one"), "1"))
    finished(torchrun(FIVE_STEPS, str(data), str(tmp_path / "two"), accumulate))
    alone, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    torch.manual_seed(0)
    start = dict(train_cifar.make_model(train_cifar.Config(steps=2), 10).named_parameters())
    assert start.keys() == alone.keys() and not any(torch.equal(start[name], alone[name]) for name in start)
    for name, parameter in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter, rtol=0, atol=1e-6)


def lengthen(run: Path, epochs: int) -> None:
    """As if the run had been started with more epochs and interrupted where it ended."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "epochs": epochs}))
    (run / "result.json").unlink()


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(data: Path, tmp_path: Path) -> None:
    """One epoch in two processes, one in one, one in two again; with an average of the weights."""
    run = tmp_path / "run"
    out = finished(torchrun(SCRIPT, *options(data, run, "--epochs", "1", "--ema", "0.9")))
    assert out.count("epoch   1/1") == 1 and "2 processes" in out  # one speaks
    lengthen(run, 2)
    first = safetensors.torch.load_file(run / "last.safetensors")
    train_cifar.main(["--resume", str(run)])
    lengthen(run, 3)
    finished(torchrun(SCRIPT, "--resume", str(run)))
    result = json.loads((run / "result.json").read_text())
    history = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in history[1:]] == ["1", "2", "3"] and result["processes"] == 2
    last = torch.load(run / "last.pt", weights_only=True)
    assert last["scheduler"]["last_epoch"] == 15 and int(last["average"]["n_averaged"]) == 15
    assert not all(torch.equal(first[name], value) for name, value in safetensors.torch.load_file(run / "last.safetensors").items())


@pytest.mark.slow
def test_the_accuracy_is_that_of_all_test_images(data: Path, tmp_path: Path) -> None:
    """What two ranks count of a checkpoint together, one process counts alone."""
    run = tmp_path / "run"
    finished(torchrun(SCRIPT, *options(data, run, "--epochs", "1", "--subset", "99", "--block", "residual")))
    assert json.loads((run / "result.json").read_text())["test_accuracy"] == pytest.approx(recounted(run, data))


@pytest.mark.slow
def test_a_lost_rank_ends_the_others(data: Path, tmp_path: Path) -> None:
    """Without torchrun's agent, which would end them itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [SCRIPT, *options(data, tmp_path / "run", "--epochs", "1000")]
    both = [
        launch(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    both[1].send_signal(signal.SIGKILL)
    both[1].communicate()
    lost = time.monotonic()
    try:
        _, err = both[0].communicate(timeout=60)
    finally:
        both[0].kill()
    assert both[0].returncode == 1 and "rank 0 of 2 ends, another one is gone or has failed" in err and "Traceback" not in err, err
    assert time.monotonic() - lost < 60


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_one_sentence(data: Path, tmp_path: Path) -> None:
    process = torchrun(SCRIPT, *options(data, tmp_path / "run", "--batch-size", "21"))
    _, err = process.communicate()
    assert process.returncode != 0 and "error: --batch-size 21 must be a multiple of 2 processes times --accumulate 1" in err
    assert not (tmp_path / "run" / "config.json").exists()
