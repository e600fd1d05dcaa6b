"""What --precision auto chooses, says and keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import precision
import train_cifar
from runs import read_json
from tests.trained import options, result, write_small

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [((2.1, 2.0, 1.9), "bfloat16"), ((1.1, 1.0, 0.9), "float32"), ((0.2, 1.8, 2.0), "bfloat16"), ((9, 1, 1), "float32")],
)
def test_steps_by_turns_decide_after_one_each(gains: tuple[float, ...], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([("float32", 8.0), ("bfloat16", 1.0), *(row for gain in gains for row in (("float32", gain), ("bfloat16", 1.0)))])

    def seconds(step: object, kind: str) -> float:
        turn, value = next(told)
        assert turn == kind
        return value

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "seconds", seconds)
    found, why = precision.chosen(CPU, lambda kind: None)
    assert found == expected and f"{sorted(gains)[1]:.2f} times as fast" in why


def test_a_processor_without_its_instructions_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, tried in (({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, 0), ({"amx_bf16": True}, 8)):
        steps: list[str] = []
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=there: there)
        found, _ = precision.chosen(CPU, steps.append)
        assert len(steps) == tried and (tried or found == "float32")
        assert steps == ["float32", "bfloat16"] * (tried // 2)


def test_a_run_says_and_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def choose(device: torch.device, step: object) -> tuple[str, str]:
        assert callable(step) and device == CPU
        for kind in ("float32", "bfloat16"):
            step(kind)
        return "bfloat16", "as a test says so"

    monkeypatch.setattr(train_cifar, "chosen", choose)
    run = tmp_path / "run"
    train_cifar.main(options(write_small(tmp_path), run, "--block", "residual", "--epochs", "1", "--subset", "50", "--precision", "auto"))
    assert "--precision auto: bfloat16, as a test says so" in capsys.readouterr().out
    assert read_json(run / "config.json", "")["precision"] == result(run)["config"]["precision"] == "bfloat16"
