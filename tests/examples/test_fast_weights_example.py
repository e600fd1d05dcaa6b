"""The script about sequences, on made ones that are easy to tell apart, and on the real ones where they are."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest
import torch

import fast_weights
import fast_weights_speed

ROOT = Path(__file__).parents[2]
ALL = ("hebb", "delta", "exact delta", "gradient flow", "GRU", "neural ODE", "Galerkin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers of two channels: what one says rises, the other's falls; 4 to 7 frames."""
    place, generator = tmp_path_factory.mktemp("sequences"), torch.Generator().manual_seed(0)
    for part, count in (("TRAIN", 54), ("TEST", 20)):
        lines = []
        for i in range(count):
            length, speaker = 4 + i % 4, i % 2
            x = torch.linspace(-1, 1, length) * (1 - 2 * speaker) + 0.1 * torch.randn(2, length, generator=generator)
            lines.append(":".join([*(",".join(f"{v:.4f}" for v in channel) for channel in x.tolist()), str(speaker + 1)]))
        (place / f"JapaneseVowels_{part}.ts").write_text("#words\n@classLabel true 1 2\n@data\n" + "\n".join(lines))
    return place


@pytest.mark.parametrize("names", [("delta", "neural ODE"), pytest.param(ALL, marks=pytest.mark.slow)], ids=len)
def test_networks_learn_and_have_the_size_asked_for(
    names: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.md"
    options = ["--parameters", "250", "--epochs", "16", "--seeds", "1", "--seed", "3", "--lr", "0.05", "--out", str(table)]
    found = fast_weights.main(["--data", str(folder), "--models", *names, *options])
    assert tuple(found) == names and set(fast_weights.Config().models) == set(ALL)
    for name, own in found.items():
        assert own["whole"][0] >= 90 and 150 < own["parameters"] < 350, (name, own)
    printed = capsys.readouterr().out
    assert table.read_text() in printed and "seeds 3 to 3" in printed and "30% of the frames missing" in printed
    again = fast_weights.main(["--data", str(folder), *options[:-2], "--models", "delta"])
    assert again["delta"] == found["delta"]


def test_dropped_frames_leave_the_others_at_their_times(folder: Path) -> None:
    _, test = fast_weights.load(folder, torch.device("cpu"))
    fewer = test.dropped(0.3, 0)
    assert fewer.lengths.tolist() == [3, 4, 4, 5] * 5 and test.dropped(0.9, 0).lengths.min() == 2
    for i, length in enumerate(fewer.lengths.tolist()):
        times = fewer.times[i, :length].long()
        assert (times.diff() > 0).all() and times.max() < test.lengths[i]
        assert torch.equal(fewer.frames[i, :length], test.frames[i, times])
    assert len({tuple(row) for row in fewer.times[:, :3].tolist()}) > 3
    assert torch.equal(fewer.path().values[:, 1:3, 2], fewer.times.diff(dim=1)[:, :2])  # the time since the last frame


def test_steps_beyond_the_longest_sequence_change_nothing(folder: Path) -> None:
    data, _ = fast_weights.load(folder, torch.device("cpu"))
    for name in ("neural ODE", "Galerkin"):
        torch.manual_seed(0)
        model = fast_weights.network(name, 3, 12, 2, 250)
        few = data.these(data.lengths.argsort()[:5])
        torch.testing.assert_close(model(few.path()), model(data.path())[data.lengths.argsort()[:5]])


def test_where_the_data_are_not_the_script_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for options, words in (([], 'pip install --no-deps "aeon>=1.6"'), (["--data", str(folder / "nowhere")], "holds no JapaneseVowels")):
        with pytest.raises(SystemExit, match="error: ") as caught:
            fast_weights.main(options)
        assert words in str(caught.value)


def test_a_wheel_is_read_as_a_folder_is(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "aeon-1.6.0-py3-none-any.whl", "w") as wheel:
        for file in folder.glob("*.ts"):
            wheel.write(file, f"aeon/{fast_weights.FILES}/{file.name}")
    (packed, _), (plain, _) = (
        fast_weights.load(place, torch.device("cpu")) for place in (tmp_path / "aeon-1.6.0-py3-none-any.whl", folder)
    )
    assert torch.equal(packed.frames, plain.frames) and torch.equal(packed.speakers, plain.speakers)


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="the data come with aeon, which is not installed")
def test_the_real_sequences_are_those_of_the_source() -> None:
    train, test = fast_weights.load(None, torch.device("cpu"))
    assert (len(train), len(test), train.frames.shape[2]) == (270, 370, 12)
    lengths = torch.cat([train.lengths, test.lengths])
    assert (lengths.min(), lengths.max()) == (7, 29) and train.speakers.bincount().tolist() == [30] * 9


def test_the_cost_of_a_sequence_is_measured_on_what_equals_the_loop_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    found = fast_weights_speed.main(rounds=1)  # which compares both, to the bit
    assert set(found) == {"direct", "checkpoint"} and capsys.readouterr().out.count("\n| ") == 2
