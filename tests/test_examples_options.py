"""The command lines of all scripts: help, and no traceback for what a user may mistype."""

from __future__ import annotations

import importlib
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest

from examples.options import DIFFERENT, Count, NotNegative, Rule, Share, checked, parse
from examples.runs import RunError

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for path in [*(ROOT / "examples").glob("*.py"), ROOT / "benchmarks" / "gpu_training.py"]
    if "__main__" in path.read_text() and path.stem not in ("quickstart", "make_mini")  # which have no options
)
PICTURES = [path for path in SCRIPTS if "picture_script(main" in path.read_text() or path.stem == "training_comparison"]
CONFIGURED = [path for path in SCRIPTS if "class Config:" in path.read_text()]


def end(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What a script's command line ends with, before it does anything."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_says_what_the_script_takes(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(script, monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert "usage:" in shown and ("--" in shown.replace("--help", "") if script in CONFIGURED else "PICTURE" in shown)
    assert end(script, monkeypatch, "--nonsense", "3") == 2


@pytest.mark.parametrize("script", PICTURES, ids=str)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("nowhere/picture.png", "picture", "picture.docx", "folder.png"):
        message = end(script, monkeypatch, str(tmp_path / name))
        assert message.startswith("error: the picture ") and str(tmp_path / name) in message and "\n" not in message


NUMBERS = [
    (path, name)
    for path in CONFIGURED
    for name, hint in get_type_hints(importlib.import_module(f"{path.parent}.{path.stem}").Config).items()
    if any(kind in str(hint) for kind in ("int", "float"))
]


@pytest.mark.parametrize(("script", "name"), NUMBERS, ids=lambda value: str(getattr(value, "stem", value)))
def test_no_number_may_be_below_0_or_none(script: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, rates, sizes: whatever takes a number says which."""
    hint = str(get_type_hints(importlib.import_module(f"{script.parent}.{script.stem}").Config)[name])
    for value in ["-1", *(["nan", "inf", "-inf"] if "float" in hint else [])]:
        message = end(script, monkeypatch, f"--{name.replace('_', '-')}", value)
        assert message == 2 or (f"--{name.replace('_', '-')} " in message and "must be" in message)


@dataclass(frozen=True)
class Sample:
    count: Count = 1
    rate: Annotated[float | None, Rule("none or below 5", lambda x: x is None or x < 5)] = None
    share: Share = 0.5
    size: NotNegative | None = None
    kind: Literal["a", "b", 3] = "a"
    on: bool = False
    seeds: Annotated[tuple[Count, ...], DIFFERENT] = (1,)
    where: Path | None = None


def test_a_command_line_says_which_options_it_gave() -> None:
    config, names = parse(Sample, ["--seeds", "3", "4", "--no-on", "--rate=-2", "--count", "1"])
    assert config == Sample(seeds=(3, 4), rate=-2.0) and names == ["seeds", "on", "rate", "count"]


def test_settings_survive_json_and_wrong_ones_are_named() -> None:
    import json

    saved = {"count": 2, "rate": 3, "share": 0, "size": None, "kind": 3, "on": True, "seeds": [1, 2], "where": "x/y"}
    want = Sample(2, 3.0, 0.0, None, 3, True, (1, 2), Path("x/y"))
    found = checked(Sample, json.loads(json.dumps(saved)), str, "file")
    assert found == want and [type(value) for value in vars(found).values()] == [type(value) for value in vars(want).values()]
    wrong: dict[str, list[Any]] = {
        **{
            "count": [0, 1.0, "1", True, None, [1]],
            "rate": [5, "x", False],
            "share": [1, -0.1, float("nan"), None],
            "size": [-1, float("inf")],
        },
        **{
            "kind": ["c", None, 3.0, True],
            "on": [0, 1, "true", None],
            "seeds": [[], [1, 1], [0], ["1"], 1, "12", None],
            "where": [3, ["x"]],
        },
    }
    assert wrong.keys() == saved.keys()
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(RunError) as caught:
                checked(Sample, {**saved, name: value}, str, "file")
            assert str(caught.value).startswith(f"{name} {value!r} must be ")
    for values in ({**saved, "more": 1}, {key: saved[key] for key in saved if key != "on"}):
        with pytest.raises(RunError, match=r"file is of another version of this script, which differs in (more|on)"):
            checked(Sample, values, str, "file")
