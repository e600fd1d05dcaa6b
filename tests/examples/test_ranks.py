"""Several processes train one network: the same steps as one (which are right by test_train_cifar_steps.py), one writer, and an end when
one is lost."""

from __future__ import annotations

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

from settings import Config, make_model
from trained import MINI, ROOT, recounted, result
from two_ranks import JOBS, five_steps, options


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10.npz").symlink_to(MINI)
    return folder


def launch(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "tests", "examples")), **environment}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=everything)


def free_ports(count: int) -> list[str]:
    """That nobody uses, as far as can be known beforehand."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of one start leave: see two_ranks.py."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = launch(*torchrun, str(ROOT / "tests" / "two_ranks.py"), str(data), str(folder), *free_ports(len(JOBS)))
    try:
        _, err = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0 and "Warning" not in err, err
    return folder


@pytest.mark.parametrize("name", ["two", "parts"])
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(name: str, two: Path, data: Path, tmp_path: Path) -> None:
    five_steps(data, tmp_path / "one", 1)
    alone, first, second = (torch.load(path) for path in (tmp_path / "one.0", two / f"{name}.0", two / f"{name}.1"))
    torch.manual_seed(0)
    start = dict(make_model(Config(steps=2), 10).named_parameters())
    assert start.keys() == alone.keys() and not any(torch.equal(start[name], alone[name]) for name in start)
    for name, parameter in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(two: Path) -> None:
    """One epoch in two processes, one in one, one in two again; with an average of the weights."""
    run, out = two / "run", (two / "begin.0.txt").read_text()
    assert out.count("epoch   1/1") == 1 and "2 processes" in out and not (two / "begin.1.txt").read_text()  # one speaks
    history = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in history[1:]] == ["1", "2", "3"] and result(run)["processes"] == 2
    last = torch.load(run / "last.pt", weights_only=True)
    assert last["scheduler"]["last_epoch"] == 15 and int(last["average"]["n_averaged"]) == 15
    first = safetensors.torch.load_file(two / "first.safetensors")
    assert not all(torch.equal(first[name], value) for name, value in safetensors.torch.load_file(run / "last.safetensors").items())


@pytest.mark.slow
def test_the_accuracy_is_that_of_all_test_images(two: Path, data: Path) -> None:
    """What two ranks count of a checkpoint together, one process counts alone."""
    assert result(two / "tested")["test_accuracy"] == pytest.approx(recounted(two / "tested", data))


@pytest.mark.slow
def test_a_lost_rank_ends_the_others(data: Path, tmp_path: Path) -> None:
    """Without torchrun's agent, which would end them itself."""
    (port,) = free_ports(1)
    arguments = [str(ROOT / "examples" / "train_cifar.py"), *options(data, tmp_path / "run", "--epochs", "1000")]
    both = [
        launch(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    both[1].send_signal(signal.SIGKILL)
    both[1].communicate(timeout=60)
    lost = time.monotonic()
    try:
        _, err = both[0].communicate(timeout=60)
    finally:
        both[0].kill()
    assert both[0].returncode == 1 and "rank 0 of 2 ends, another one is gone or has failed" in err and "Traceback" not in err, err
    assert time.monotonic() - lost < 60


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_one_sentence(two: Path) -> None:
    for rank in (0, 1):
        said = (two / f"refuse.{rank}.txt").read_text()
        assert said == (
            "error: --batch-size 21 must be a multiple of 2 processes times --accumulate 1, and at most the 100 training images"
        )
    assert not (two / "refused").exists()
