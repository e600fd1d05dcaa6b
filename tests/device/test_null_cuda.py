"""What a GPU would show, on a CUDA device without a device: how much a step launches, where it waits, and whether it can be captured.

Tables are asked for in a process of its own that runs on the null device (tests/null_cuda), once; each of their rows is a test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from settings import Config
from tests.null_cuda import captures, compiled, waits
from tests.null_cuda.device import NullDevice
from tests.null_cuda.launches import LAUNCHES, MEASURED

slow = pytest.mark.slow
BOTH = ("direct", "checkpoint")
ONCE = "cudaEventSynchronize at anodev2/integrate/comparison.py"  # a backward pass, where a step has been redone, to refuse what changed
REPLAYED = {  # launches of a step of train_cifar.py, its graph one: what it is given is copied, rates are set, figures added
    "": 8,
    "--ema 0.9 --cutout 8 --precision float16 --accumulate 2 --schedule paper --no-channels-last": 9,
    "--adjoint reversible": 8,
    "--seeds 0 1 2 --stack --ema 0.9": 9,
}
SEEDS = "--seeds 0 1 2 3 4 5 6 7 --stack"
ALONE = ["--block residual", "--block ode", "", "--adjoint direct", "--model resnet18 --adjoint direct"]
SHARE = 0.27  # of the launches of eight runs that they take as one network, at most
CONTROLS = {  # what may not be in a capture, and what is said of it
    "a number is read": "cudaStreamSynchronize",
    "a copy from the host": "unless the CPU tensor is pinned",
    "an event is asked for": "cudaEventQuery",
    "work outside of the graph": "vectorized_elementwise_kernel",
    "work that is not waited for": "end of the capture",
}
EPOCHS = [
    "--block residual --schedule paper --momentum 0.8 --weight-decay 1e-4 --lr 0.05",
    "--block ode --steps 2 --method midpoint --norm shared --time --no-channels-last",
    "--ema 0.9 --cutout 8 --label-smoothing 0.1 --precision float16 --accumulate 5",
    "--precision bfloat16 --slots 2 --per channel --tau 0.1 --tensorboard",
    "--memory 64MiB --weights final",
    "--adjoint direct --method heun2 --dynamics static",
    "--adjoint reversible --steps 3 --dynamics chebyshev --basis-size 4",
    "--adjoint backsolve --method rk4 --dynamics fourier",
    "--dynamics constant --seeds 0 1",
    "--seeds 0 1 --stack --ema 0.9 --accumulate 5 --adjoint direct",
    "--seeds 0 1 --stack --no-cuda-graph --precision auto",
    "--dynamics linear --model resnet10 --no-cuda-graph",
    "--model resnet18",
    "--model alexnet",
    "--model squeezenext",
    "--model tiny --steps 3",
    "--model vit --dynamics low-rank",
    "--compile --steps 2",
]
SESSIONS = {  # parts of benchmarks/gpu_training.py, whole, tiny: what their reports say
    "check": (
        "Not judged.",
        "| float64, against the CPU | 1.0e+00 | 1e-10 |",
        "| squeezenext |",
    ),  # all that the device computes is zero
    "steps": ("| resnet4 coupled checkpoint | 212 | 212 |",),
    "resnet18": ("| ode, 2 steps, stored |", "coupled, 2 steps, 1 epochs: 0.00 % on the test set."),
    "table": ("--models resnet4 --epochs 1", "| coupled, configuration 1 (ANODEV2) | 0.00 (0.00/0.00) | ~78.11 |"),
}
QUICK = {  # rows of the tables above that are asked for in the quick part
    "launches": {row for row in LAUNCHES if "resnet4" in row or row == "resnet18 coupled checkpoint"},
    "waits": {
        *(name for name in waits.CASES if name.startswith(("block ode", "network", "augmentation", "average"))),
        *(name for name in waits.CASES if name.startswith("block") and name.endswith("checkpoint")),
        *(name for name in waits.CASES if name.startswith("equation") and name.endswith(" rk4 trained")),
        *(f"solve rk4 {adjoint}" for adjoint in waits.ADJOINTS),
        "equation diffusion imex2",
    },
    "captures": {name for name in captures.CASES if name.startswith(("residual", "ode", "coupled"))},
    "compiled": {"block rda"},
    "graphs": {""},
    "epochs": set(EPOCHS[2:3]),
    "controls": set(CONTROLS),
    "promises": {"tests/device/test_cuda.py"},
    "sessions": set(),
}
ROWS = {
    "launches": list(LAUNCHES),
    "waits": list(waits.CASES),
    "captures": list(captures.CASES),
    "compiled": list(compiled.CASES),
    "graphs": [*REPLAYED, *(f"--no-cuda-graph {words}" for row in ALONE for words in (row, f"{row} {SEEDS}"))],
    "epochs": EPOCHS,
    "controls": list(CONTROLS),
    "promises": ["tests/device/test_cuda.py"],
    "sessions": list(SESSIONS),
}

LIGHT = ("launches", "waits", "captures", "compiled")


def rows(table: str) -> pytest.MarkDecorator:
    """A test for each row of a table, slow but for the quick ones."""
    found = [pytest.param(row, marks=[] if row in QUICK[table] else [slow]) for row in ROWS[table]]
    return pytest.mark.parametrize("row", found, ids=ROWS[table])


def answer(device: NullDevice, table: str, row: str) -> Any:
    """What the null device shows of a row: all quick rows are asked for together, slow ones of little work too, others by their tables."""
    if row in QUICK[table]:
        return device.ask({name: [each for each in ROWS[name] if each in QUICK[name]] for name in ROWS})[table][row]
    tables = LIGHT if table in LIGHT else (table,)
    return device.ask({name: [each for each in ROWS[name] if each not in QUICK[name]] for name in tables})[table][row]


@rows("launches")
@pytest.mark.skipif(not torch.__version__.startswith(MEASURED), reason=f"launches are counted with torch {MEASURED}")
def test_a_training_step_launches_no_more_than_it_did(null_device: NullDevice, row: str) -> None:
    found = answer(null_device, "launches", row)
    assert 20 < found <= LAUNCHES[row]


@rows("waits")
def test_nothing_waits_for_the_device(null_device: NullDevice, row: str) -> None:
    found = answer(null_device, "waits", row)
    compared = [wait for wait in found if wait.startswith(ONCE)]
    assert [wait for wait in found if wait not in compared] == []
    assert len(compared) <= 2  # for the solves of a block and of its weights


@rows("captures")
def test_a_training_step_is_captured_in_a_graph(null_device: NullDevice, row: str) -> None:
    assert answer(null_device, "captures", row) == []


@rows("compiled")
def test_what_is_compiled_has_its_tables_on_the_device(null_device: NullDevice, row: str) -> None:
    assert answer(null_device, "compiled", row) == []


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in QUICK["graphs"] else [slow]) for row in REPLAYED])
def test_a_step_is_replayed_as_one_launch_with_few_beside_it(null_device: NullDevice, row: str) -> None:
    found = answer(null_device, "graphs", row)
    assert found["graphs"] == 1 and found["waits"] == 0
    assert 2 < found["launches"] <= REPLAYED[row] <= 12 and found["of an epoch"] < 25


@pytest.mark.slow
@pytest.mark.parametrize("row", ALONE)
def test_eight_seeds_as_one_network_launch_little_more_than_one(null_device: NullDevice, row: str) -> None:
    alone, together = (answer(null_device, "graphs", f"--no-cuda-graph {words}")["launches"] for words in (row, f"{row} {SEEDS}"))
    assert alone < together < SHARE * 8 * alone


@rows("controls")
def test_the_null_device_notices_mistakes(null_device: NullDevice, row: str) -> None:
    found = answer(null_device, "controls", row)
    assert len(found) == 1 and CONTROLS[row] in found[0]


@rows("epochs")
def test_one_epoch_is_trained(null_device: NullDevice, row: str) -> None:
    assert answer(null_device, "epochs", row) == ""


def test_every_option_is_in_some_row() -> None:
    given = {word.lstrip("-").removeprefix("no-").replace("-", "_") for row in EPOCHS for word in row.split() if word.startswith("--")}
    fixed = {"data", "subset", "batch_size", "epochs", "device", "out"}  # of all rows
    elsewhere = {"data_dir", "size", "validation", "init", "config", "resume"}  # files, which have nothing to do with a device
    assert {field.name for field in dataclasses.fields(Config)} - fixed - elsewhere == given


@rows("promises")
def test_what_tests_promise_of_a_gpu_holds(null_device: NullDevice, row: str) -> None:
    assert "passed" in answer(null_device, "promises", row) and "failed" not in answer(null_device, "promises", row)


@rows("sessions")
def test_half_an_hour_on_a_gpu_is_whole_stopped_and_taken_up(null_device: NullDevice, row: str) -> None:
    stopped, whole, again = answer(null_device, "sessions", row)
    assert "Stopped by the clock" in stopped and "Stopped" not in whole
    assert [words for words in SESSIONS[row] if words not in whole] == []
    assert again == whole
    assert "FOLDER" not in whole  # where it was written is nobody's business
