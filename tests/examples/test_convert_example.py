from __future__ import annotations

import pytest

import convert


@pytest.mark.slow
def test_a_stack_that_is_converted_without_loss_keeps_its_accuracy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ['Galerkin("constant", 5)', 'Galerkin("chebyshev", 2)', "ReactionDiffusionAdvection()"]
    monkeypatch.setattr(convert, "DYNAMICS", {name: convert.DYNAMICS[name] for name in names})
    found = convert.main(["--subset", "128", "--epochs", "1", "--tuning", "1", "--seeds", "3"])[3]
    lossless, line, still = (found[name] for name in names)
    assert lossless.converted == lossless.stack and lossless.error < 1e-6 < line.error < still.error < 1
    assert lossless.parameters == 5 * (2 * 2304 + 64) and still.parameters == 2 * 2304 + 8 + 5 * 64
    printed = capsys.readouterr().out
    assert "the stack: 23,360 parameters" in printed and "seeds 3" in printed and printed.count("\n| ") == 4
