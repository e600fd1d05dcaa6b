"""A run is enough to use its network: by models.load, by predict.py, as ONNX; what cannot be used says why."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import predict
import train_cifar
from anodev2.models import facts, load, made_from
from trained import mistake, options, weights, write_small

NETWORKS = {
    "static": {"block": "coupled", "dynamics": {"class": "Static"}, "weights": "final"},
    "fourier": {"block": "coupled", "dynamics": {"class": "Galerkin", "basis": "fourier", "size": 3}, "steps": 2},
    "checkpoints": {"block": "ode", "adjoint": {"class": "CheckpointAdjoint", "slots": 2, "memory": None}, "method": "rk4"},
    "residual": {"block": "residual"},
}
COLOURS = {"red": (230, 30, 30), "green": (30, 230, 30), "blue": (30, 30, 230)}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of three colours, wider than high, in class folders."""
    folder, random = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(20):
            pixels = np.clip(np.array(colour) + random.normal(0, 25, (40, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    settings = ["--steps", "2", "--epochs", "3", "--batch-size", "8", "--lr", "0.03", "--device", "cpu", "--dynamics", "linear"]
    train_cifar.main(["--data", str(own), "--size", "64", "--out", str(folder), "--basis-size", "2", "--validation", "0.2", *settings])
    return folder


def test_a_run_on_own_images_names_what_it_sees(run: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.main([str(run), *(str(own / name / "3.png") for name in COLOURS), "--device", "cpu"])
    *lines, following = capsys.readouterr().out.splitlines()
    assert following.startswith("next:  python examples/predict.py ")
    for name, line in zip(COLOURS, lines, strict=True):
        assert re.match(rf".*3\.png: {name} \d+\.\d%, ", line), line
    predict.main([str(run), str(own), "--csv", str(tmp_path / "seen.csv"), "--top", "1", "--device", "cpu"])
    rows = list(csv.DictReader((tmp_path / "seen.csv").read_text().splitlines()))
    assert len(rows) == 60 and sum(row["class"] == Path(row["file"]).parent.name for row in rows) >= 58
    assert all(sum(float(row[name]) for name in COLOURS) == pytest.approx(1, abs=1e-5) for row in rows)


def test_nothing_is_stretched(tmp_path: Path) -> None:
    """A white square between black margins: fitted by cutting these, it fills the image."""
    pixels = np.zeros((50, 150, 3), dtype=np.uint8)
    pixels[:, 50:100] = 255
    image = predict.fitted(Image.fromarray(pixels), 32)
    assert image.shape == (32, 32, 3) and image[:, 2:-2].min() > 250


def test_a_file_of_weights_says_what_it_is(run: Path, own: Path) -> None:
    about, network = facts(run), load(run)
    assert about["classes"] == sorted(COLOURS) and about["size"] == 64 and about["data"] == str(own) and about["seed"] == 0
    assert about["versions"]["torch"] == torch.__version__ and not network.training
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights(run, "best.safetensors").items())
    last = load(run / "last.safetensors").state_dict()
    assert all(torch.equal(last[name], value) for name, value in weights(run).items())
    channels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in own.rglob("*.png")]).mean((0, 1, 2))
    assert about["mean"] == pytest.approx(channels.tolist(), abs=6)


def test_the_exported_network_answers_as_the_run(run: Path, own: Path, tmp_path: Path) -> None:
    file = tmp_path / "network.onnx"
    predict.main([str(run), "--onnx", str(file)])
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items() if name != "preprocessing"}
    files = [own / name / f"{number}.png" for name in COLOURS for number in range(2)]
    pixels = np.stack([predict.fitted(Image.open(file), about["size"]) for file in files])
    x = ((pixels - np.array(about["mean"])) / np.array(about["std"])).astype(np.float32).transpose(0, 3, 1, 2)
    logits = torch.as_tensor(session.run(["logits"], {"images": x})[0])
    assert torch.allclose(logits.softmax(1), predict.predicted(load(run), facts(run), files), atol=1e-5)
    assert about["classes"] == sorted(COLOURS)


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_values_make_the_network(name: str) -> None:
    described = {"model": "resnet4", "num_classes": 3, **NETWORKS[name]}
    network = made_from(json.loads(json.dumps(described)))
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    if name == "fourier":
        assert "size=3" in str(network) or "fourier" in str(network)


def test_what_cannot_be_used_says_why(run: Path, own: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plain = tmp_path / "plain.safetensors"
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, plain)
    (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
    (tmp_path / "text.png").write_text("no image")
    image = str(own / "red" / "0.png")
    for arguments, what in {
        (str(tmp_path / "nowhere"), image): "is no folder of a finished epoch",
        (str(plain), image): "does not say which network",
        (str(tmp_path / "damaged.safetensors"), image): "is no readable file of weights",
        (str(run), str(tmp_path / "text.png")): "is not a readable image",
        (str(run), str(tmp_path / "empty")): "holds no images",
        (str(run),): "no images: give files",
        (str(run), image, "--csv", str(tmp_path)): "cannot be written",
        (str(run), image, "--csv", str(tmp_path / "seen.xlsx")): "must have a name that ends in .csv",
        (str(run), "--onnx", str(tmp_path / "network.pt")): "must have a name that ends in .onnx",
        (str(run), image, "--top", "0"): "at least 1",
    }.items():
        assert what in mistake(predict.main, list(arguments))
    for described, what in (
        ({"model": "resnet5"}, "did you mean 'resnet4'"),
        ({"model": "resnet4", "dynamics": {"class": "Galerkins"}}, "did you mean 'Galerkin'"),
        ({"model": "resnet4", "dynamics": {"class": "odeint"}}, "there is no dynamics"),
    ):
        with pytest.raises(ValueError, match=what):
            made_from(described)
    with pytest.raises(TypeError, match="did you mean 'steps'"):
        made_from({"model": "resnet4", "stepps": 3})


def test_size_has_no_effect_on_sets_that_have_theirs(tmp_path: Path) -> None:
    assert "--size has no effect here" in mistake(train_cifar.main, options(write_small(tmp_path), tmp_path / "run", "--size", "64"))
