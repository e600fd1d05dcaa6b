"""The command lines of all scripts: help, no traceback for what a user may mistype, and no option without effect."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import safetensors.torch
import torch
from torch import nn

import train_cifar
import training
from anodev2 import ODEBlock
from options import Count, NotNegative, Rule, SeededPicture, Seeds, Share, checked, parse, script
from runs import RunError
from settings import Config
from training import Training

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
SOURCE = {path: (ROOT / path).read_text() for path in FILES}
SCRIPTS = [path for path in FILES if "__main__" in SOURCE[path] and "sys.stdin" not in SOURCE[path]]  # those read orders of another
PICTURES = [path for path in SCRIPTS if re.search(r"script\(main, __doc__, \w*Picture|out: Drawing", SOURCE[path])]
CONFIGURED = [path for path in SCRIPTS if "class Config:" in SOURCE[path] and path.parent.name in ("examples", "benchmarks")]
HANDED_ON = {  # why a script that trains has no device to choose
    "paper_table": "--recipe",
    "gpu_training": "a GPU, by its name",
    "__main__": "times of one core",
}
FIXED = {  # why a script that draws random numbers has no seed to choose
    "gradient_accuracy": "one problem, whose errors are compared",
    "memory_and_work": "counts, whatever the numbers",
    "quickstart": "a gradient that is there or not",
    "make_mini": "the set that ships",
    **dict.fromkeys(("device_check", "unrolled_speed", "reverse_solve", "__main__", "pde_vs_peers", "scaling"), "times and distances"),
}
RUNS = {"look": ("runs/one",)}  # what a script must be given besides options


def end(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What a script's command line ends with, before it does anything."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as caught:
        if script.parent.name in ("examples", "benchmarks"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:  # python -m
            name = ".".join(script.with_suffix("").parts).removesuffix(".__main__")
            monkeypatch.delitem(sys.modules, name if script.stem != "__main__" else f"{name}.__main__", raising=False)
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    return caught.value.code


def wanted(source: str, name: str) -> set[str]:
    """The options that a script of this source must have."""
    found = set()
    if "savefig" in source:
        found.add("--out")
    if re.search(r"manual_seed|default_rng|randn?\(", source) and name not in FIXED:
        found.add("--seed")
    if re.search(r"optim\.(Adam|SGD)|load\(config|train_cifar", source) and name not in HANDED_ON:
        found.add("--device")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_has_the_same_command_line(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Help and nothing else, out, seed and device under these names; what is not known is refused."""
    monkeypatch.chdir(tmp_path)
    assert not re.search(r"^import argparse|^from argparse|(?<!\")sys\.argv\[1", SOURCE[script], re.MULTILINE)
    assert end(script, monkeypatch, "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage:" in shown and not list(tmp_path.iterdir())
    options = set(re.findall(r"--[a-z][a-z-]*", shown.split("options", 1)[-1]))
    assert not wanted(SOURCE[script], script.stem) - options
    if script in PICTURES:
        assert "--out PICTURE.png|none" in shown and re.search(rf"\(default: (RUN/)?{script.stem}\.png\)", shown)
    if "--device" in options:
        assert re.search(r"\(default: (auto|cpu)\)", shown)
    assert end(script, monkeypatch, "--nonsense", "3") == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", PICTURES, ids=str)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("nowhere/picture.png", "picture", "picture.docx", "folder.png"):
        message = end(script, monkeypatch, *RUNS.get(script.stem, ()), "--out", str(tmp_path / name))
        assert message.startswith("error: --out ") and str(tmp_path / name) in message and "\n" not in message


def test_no_picture_is_drawn_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And one of the script's name where nothing is said; a seed comes with it."""
    seen: list[Any] = []

    def main(picture: Path | None = None, seed: int = 5) -> None:
        seen.append((picture, seed))

    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--out", "none", "--seed", "3"], ["--out", "a.png"]):
        monkeypatch.setattr(sys, "argv", ["x", *arguments])
        script(main, "about", SeededPicture)
    assert seen == [(Path("test_examples_options.png"), 0), (None, 3), (Path("a.png"), 0)]


NUMBERS = [
    (path, name)
    for path in CONFIGURED
    for name, hint in get_type_hints(importlib.import_module(path.stem).Config).items()
    if any(kind in str(hint) for kind in ("int", "float"))
]


@pytest.mark.parametrize(("script", "name"), NUMBERS, ids=lambda value: str(getattr(value, "stem", value)))
def test_no_number_may_be_below_0_or_none(script: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, rates, sizes: whatever takes a number says which."""
    hint = str(get_type_hints(importlib.import_module(script.stem).Config)[name])
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
    seeds: Seeds = (1,)
    where: Path | None = None


def test_a_command_line_says_which_options_it_gave() -> None:
    config, names = parse(Sample, ["--seeds", "3", "4", "--no-on", "--rate=-2", "--count", "1"])
    assert config == Sample(seeds=(3, 4), rate=-2.0) and names == ["seeds", "on", "rate", "count"]
    assert parse(Sample, ["--seed", "3"]) == (Sample(seeds=(3,)), ["seeds"])


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
            "seeds": [[], [1, 1], [-1], ["1"], 1, "12", None],
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


OTHERWISE = {  # another value of every option
    **{"data": "cifar100", "data_dir": "other", "subset": "4", "model": "resnet10", "block": "ode", "steps": "3", "method": "heun2"},
    **{"norm": "shared", "weights": "final", "time": "", "dynamics": "linear", "basis_size": "5", "tau": "0.5", "per": "channel"},
    **{"adjoint": "backsolve", "slots": "1", "memory": "64MiB", "epochs": "2", "batch_size": "2", "accumulate": "2", "schedule": "paper"},
    **{"lr": "0.01", "momentum": "0.5", "weight_decay": "0.1", "label_smoothing": "0.1", "cutout": "6", "ema": "0.5"},
    **{
        "validation": "0.25",
        "size": "64",
        "precision": "bfloat16",
        "channels_last": "no",
        "compile": "",
        "cuda_graph": "",
        "tensorboard": "",
        "seeds": "3",
        "stack": "",
    },
}
SITUATIONS: dict[str, list[str]] = {
    "residual": ["--block", "residual"],
    "ode": ["--block", "ode", "--steps", "2"],
    "coupled": ["--steps", "2"],
    "static": ["--steps", "2", "--dynamics", "static"],
    "fourier": ["--steps", "2", "--dynamics", "fourier"],
    "stored": ["--steps", "2", "--adjoint", "direct"],
    "one step": ["--steps", "1"],
    "folder": ["--block", "residual", "--data", "folder"],
    "vit": ["--model", "vit", "--steps", "2", "--dynamics", "low-rank"],
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, as cifar10.npz and cifar100.npz, others in other/, all in two folders."""
    import numpy as np
    from PIL import Image

    place = tmp_path_factory.mktemp("few")
    (place / "other").mkdir()
    x = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    y = np.arange(8) % 4
    for name, shift, images in (("cifar10", 0, x[:8]), ("cifar100", 60, x[:8]), ("other/cifar10", 0, x[8:])):
        np.savez(place / f"{name}.npz", x_train=images, y_train=y + shift, x_test=images[:4], y_test=y[:4] + shift)
    for number, image in enumerate(x):
        for name, shown in (("folder", image), ("mirrored", image[::-1])):
            folder = place / name / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(folder / f"{number}.png")
    return place


class Compiled(nn.Sequential):
    """Stands for what torch.compile makes."""


def observed(arguments: list[str], run: Path, patch: pytest.MonkeyPatch) -> Any:
    """All that a run does: its weights, curve, files, and how blocks are differentiated and parameters lie in memory."""
    trained: list[Training] = []
    finish = Training.finish
    patch.setattr(Training, "finish", lambda self: (trained.append(self), finish(self)))
    patch.setattr(training, "write_history", lambda *_: None)  # the picture takes most of the time
    patch.setattr(training.gc, "collect", lambda: None)  # and this the rest
    patch.setattr(torch, "compile", Compiled)
    train_cifar.main([*arguments, "--out", str(run)])
    (made,) = trained
    adjoints = [str(part.adjoint) for part in made.model.modules() if isinstance(part, ODEBlock)]
    layout = [(name, p.stride()) for name, p in made.model.named_parameters()]
    curves = [[row[name] for name in ("loss", "train_accuracy", "test_accuracy")] for row in made.history]
    kept = [
        [(key, w.dtype, w.tolist()) for key, w in sorted(safetensors.torch.load_file(run / f"{name}.safetensors").items())]
        for name in ("best", "last")
        if (run / f"{name}.safetensors").exists()
    ]
    return kept, curves, adjoints, layout, type(made.network), sorted(path.name for path in run.iterdir())


@pytest.mark.parametrize("situation", [pytest.param(s, marks=() if s == "coupled" else pytest.mark.slow) for s in SITUATIONS])
def test_every_option_has_an_effect_or_is_refused(situation: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is refused for having none has none."""
    assert get_type_hints(Config).keys() - OTHERWISE.keys() == {"device", "out", "resume", "init", "config"}
    monkeypatch.chdir(few)
    given = ["--epochs", "1", "--batch-size", "4", "--device", "cpu", *SITUATIONS[situation]]
    given += [] if "--data" in given else ["--data", "cifar10", "--data-dir", "."]
    with monkeypatch.context() as patch:
        base, again = (observed(given, tmp_path / name, patch) for name in ("base", "again"))
    assert base == again
    values = OTHERWISE | {"ode": {"block": "residual"}, "folder": {"data": "mirrored"}}.get(situation, {})
    for name, value in values.items():
        words = [f"--{'no-' if value == 'no' else ''}{name.replace('_', '-')}", *([value] if value not in ("", "no") else [])]
        arguments, refused = [*given, *words], None
        with monkeypatch.context() as patch:
            try:
                assert observed(arguments, tmp_path / name, patch) != base, f"{words} have no effect and are not refused"
            except SystemExit as end:
                refused = str(end.code)
        if refused is not None and refused.startswith(f"error: {words[0]} "):
            assert "has no effect here" in refused
            with monkeypatch.context() as patch:
                patch.setattr(train_cifar, "refuse_idle", lambda *_: None)
                with suppress(SystemExit):  # refused by the network itself
                    assert observed(arguments, tmp_path / f"{name}-all-the-same", patch) == base, f"{words} have an effect and are refused"
