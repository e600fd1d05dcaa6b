from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("convert_example", ROOT / "examples" / "convert.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_stack_that_is_converted_without_loss_keeps_its_accuracy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script()
    names = ['Galerkin("constant", 5)', 'Galerkin("chebyshev", 2)', "ReactionDiffusionAdvection()"]
    monkeypatch.setattr(module, "DYNAMICS", {name: module.DYNAMICS[name] for name in names})
    found = module.main(["--subset", "128", "--epochs", "1", "--tuning", "1", "--seeds", "3"])[3]
    lossless, line, still = (found[name] for name in names)
    assert lossless.converted == lossless.stack and lossless.error < 1e-6 < line.error < still.error < 1
    assert lossless.parameters == 5 * (2 * 2304 + 64) and still.parameters == 2 * 2304 + 8 + 5 * 64
    printed = capsys.readouterr().out
    assert "the stack: 23,360 parameters" in printed and "seeds 3" in printed and printed.count("\n| ") == 4
