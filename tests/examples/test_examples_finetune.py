"""A coupled block in torchvision's ResNet: equal cost, unchanged names, exact gradients, and a run on a user's own folder of images."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision.transforms.v2.functional import to_pil_image

import finetune
from anodev2 import CheckpointAdjoint, CoupledODEBlock, DirectAdjoint
from trained import mistake


def network(name: str = "resnet18", classes: int = 3) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def write_images(folder: Path, classes: tuple[str, ...] = ("dark", "light", "red"), count: int = 6, size: int = 20) -> Path:
    """Noise around a grey or a colour of the class's own, of different heights, under folder/CLASS/*.png."""
    generator = torch.Generator().manual_seed(0)
    colours = {"dark": [60, 60, 60], "light": [190, 190, 190], "red": [190, 60, 60]}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = torch.randint(-50, 50, (3, size + number, size), generator=generator)
            to_pil_image((torch.tensor(colours[name])[:, None, None] + noise).to(torch.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 training and 12 test images of three classes."""
    path = tmp_path_factory.mktemp("images")
    write_images(path / "train")
    write_images(path / "test", count=4)
    return path


def options(folder: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--size", "33", "--batch-size", "6", "--epochs", "1", "--device", "cpu", *more]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as torchvision offers: 1,000 classes, running statistics that are not the initial ones."""
    torch.manual_seed(1)
    model = network(classes=1000)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def test_it_learns_from_a_folder_at_equal_cost_and_leaves_its_weights(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "coupled.safetensors"
    result = finetune.main(options(folder, "--epochs", "3", "--out", str(file)))
    original, coupled = result["original"], result["coupled"]
    assert original["per_image"] == coupled["per_image"] and original["per_pass"] == 0
    assert coupled["per_pass"] == 2 * (8 * 9 + 2 * 9 * 81 + 256 * 256 * 81)  # two times: growth of modes, circulant matrices, products
    kernel, norms, dynamics = 9 * 256 * 256, 4 * 256, 4  # one convolution of two; as many norms; tau, upsilon (2), rho
    block = 2 * kernel + norms
    assert original["parameters"] - coupled["parameters"] == block - (kernel + norms + dynamics)
    for run in (original, coupled):
        assert run["losses"][-1] < 0.7 * run["losses"][0] and run["accuracy"] > 60, run  # chance: 1.10 and 33 %
    assert 0.01 < result["moved"] < 1
    model = network()
    finetune.couple(model, 3)
    model.load_state_dict(safetensors.torch.load_file(file))
    _, testing, classes = finetune.load_folder(folder, finetune.Config(size=33, batch_size=6))
    with torch.no_grad():
        right = torch.cat([model.eval()(x).argmax(1) == y for x, y in testing])
    assert classes == 3 and 100 * right.double().mean().item() == result["coupled"]["accuracy"]


@pytest.mark.parametrize(("name", "stage", "convolutions"), [("resnet18", 1, 2), ("resnet18", 4, 2), ("resnet34", 3, 10)])
def test_all_stages_cost_the_same_and_other_names_stay(name: str, stage: int, convolutions: int) -> None:
    model = network(name).eval()
    before = copy.deepcopy(model.state_dict())
    images = [torch.zeros(count, 3, 64, 64) for count in (1, 2)]
    with torch.no_grad():
        one, two = (finetune.multiply_adds(model, x) for x in images)
        block = finetune.couple(model, stage)
        coupled_one, coupled_two = (finetune.multiply_adds(model, x) for x in images)
    channels = block.f.get_parameter("conv.weight").shape[0]
    assert coupled_two - coupled_one == two - one and block.steps == convolutions == 2 * block.t[1]
    modes, places = 9, 9  # the growth of the modes by four coefficients, circulant matrices of it, and products with these
    evolution = convolutions * (4 * 2 * modes + 2 * modes * places**2 + channels**2 * places**2)
    assert coupled_one - one == evolution
    assert evolution < 0.3 * (two - one)  # once per batch less than a third of an image, here of 64 x 64 pixels
    own, after = f"layer{stage}.1.", model.state_dict()
    replaced = tuple(f"layer{stage}.{i}." for i in range(1, 1 + convolutions // 2))
    assert [k for k in before if not k.startswith(replaced)] == [k for k in after if not k.startswith(own)]
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert missing and all(k.startswith(own) for k in missing)
    assert unexpected and all(k.startswith(replaced) for k in unexpected)
    assert all(torch.equal(value, after[k]) for k, value in before.items() if not k.startswith(replaced))


def test_weights_load_before_or_after_the_replacement(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    early, late = network(classes=1000), network(classes=1000)
    early.load_state_dict(state)
    finetune.couple(early, 3)
    finetune.couple(late, 3)
    late.load_state_dict(state, strict=False)
    own = {k: v for k, v in early.state_dict().items() if k.startswith("layer3.1.")}
    late.load_state_dict(own, strict=False)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(early.eval()(x), late.eval()(x))
    assert torch.equal(own["layer3.1.f.conv.weight"], state["layer3.1.conv1.weight"])
    for step in range(2):
        assert torch.equal(own[f"layer3.1.f.norm.{step}.weight"], state["layer3.1.bn2.weight"])
        assert torch.equal(own[f"layer3.1.f.norm.{step}.running_var"], torch.ones(256))


def test_the_stage_is_two_steps_of_its_moving_kernel() -> None:
    model = network().eval()
    block = finetune.couple(model, 2, tau=0.3)
    layer = model.get_submodule("layer2")
    assert isinstance(layer, nn.Sequential) and block.t == (0, 1)
    for step in range(2):
        nn.init.normal_(block.f.get_parameter(f"norm.{step}.bias"), -1.0)
    x = torch.randn(2, 64, 8, 8)
    z = layer[0](x)
    for step in range(2):
        kernel = block.weights(step / 2)["conv.weight"]
        z = z + 0.5 * block.f.get_submodule(f"norm.{step}")(nn.functional.conv2d(torch.relu(z), kernel, padding=1))
    assert z.min() < -0.1
    torch.testing.assert_close(layer(x), torch.relu(z))


def test_without_what_it_adds_the_block_hands_its_features_on() -> None:
    model = network().eval()
    block = finetune.couple(model, 2)
    for step in range(2):
        nn.init.zeros_(block.f.get_parameter(f"norm.{step}.weight"))
    layer = model.get_submodule("layer2")
    assert isinstance(layer, nn.Sequential)
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(layer(x), layer[0](x))


def test_training_shows_every_network_the_same_images_in_the_same_order(folder: Path) -> None:
    config = finetune.Config(size=33, batch_size=6, epochs=1)
    training, testing, classes = finetune.load_folder(folder, config)
    model = network(classes=classes)
    first, second = (finetune.train(copy.deepcopy(model), training, testing, config) for _ in range(2))
    assert first == second


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def adamw(model: nn.Module, batches: list[tuple[Tensor, Tensor]], largest: float) -> list[float]:
    """AdamW by hand (weights decay by 0.01 of the rate), its rate and first beta on one cycle, up for three tenths; the losses."""
    losses, first, second, top, last = [], {}, {}, 0.3 * len(batches) - 1, len(batches) - 1
    for k, (x, y) in enumerate(batches):
        share = k / top if k <= top else (k - top) / (last - top)
        rate = cosine(largest / 25, largest, share) if k <= top else cosine(largest, largest / 25e4, share)
        beta = cosine(0.95, 0.85, share) if k <= top else cosine(0.85, 0.95, share)
        loss = -model(x).log_softmax(1)[range(len(y)), y].mean()
        losses.append(loss.item())
        parameters = list(model.parameters())
        for place, (p, slope) in enumerate(zip(parameters, torch.autograd.grad(loss, parameters), strict=True)):
            first[place] = beta * first.get(place, 0) + (1 - beta) * slope
            second[place] = 0.999 * second.get(place, 0) + 0.001 * slope**2
            p.data *= 1 - 0.01 * rate
            p.data -= rate * first[place] / (1 - beta ** (k + 1)) / ((second[place] / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
    return losses


def test_training_is_that_of_a_loop_in_double_precision() -> None:
    """Two epochs of four batches, then three of four test images told: what the network says of them, but for every fourth."""
    model: Any = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)).double()
    training: Any = [(torch.randn(5, 3, 2, 2).double(), torch.randint(3, (5,))) for _ in range(4)]
    x, alone = torch.randn(12, 3, 2, 2).double(), copy.deepcopy(model)
    losses = adamw(alone, training * 2, 0.05)
    labels = (alone.eval()(x).argmax(1) + (torch.arange(12) % 4 == 0)) % 3
    testing: Any = [(x[:7], labels[:7]), (x[7:], labels[7:])]
    means, accuracy = finetune.train(model.eval(), training, testing, finetune.Config(epochs=2, lr=0.05))
    assert means == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-10)
    torch.testing.assert_close(dict(model.state_dict()), dict(alone.state_dict()), rtol=1e-10, atol=1e-12)
    assert accuracy == pytest.approx(75.0)


def test_training_images_are_cut_and_mirrored_and_test_images_are_as_they_are(tmp_path: Path) -> None:
    """Images that become lighter to the right, and from one to the next."""
    plain = torch.stack([(5 * torch.arange(33) + 7 * number).expand(3, 33, 33) for number in range(6)]).to(torch.uint8)
    for part in ("train", "test"):
        for number, image in enumerate(plain):
            path = tmp_path / part / "ab"[number // 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(path)
    batches: Any = finetune.load_folder(tmp_path, finetune.Config(size=33, batch_size=6))[:2]
    passes = [one for _ in range(8) for one in batches[0]]
    rises = torch.stack([x[:, 0, 16, -1] - x[:, 0, 16, 0] for x, _ in passes]).flatten()
    assert 10 < (rises > 0).sum() < 38 and len(rises.abs().unique()) > 20  # of 48
    assert all(sorted(y) == [0, 0, 0, 1, 1, 1] for _, y in passes) and len({tuple(y.tolist()) for _, y in passes}) > 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ((x, y),) = batches[1]
    torch.testing.assert_close(x, (plain / 255 - mean[:, None, None]) / std[:, None, None])
    assert y.tolist() == [0, 0, 0, 1, 1, 1]


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    nn.functional.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {name: buffer for name, buffer in model.named_buffers() if "running" in name}


def test_gradients_and_statistics_are_those_of_storing_everything() -> None:
    stored, x = network().double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    checkpointed = copy.deepcopy(stored)
    reference = finetune.couple(stored, 3, adjoint="direct")
    block = finetune.couple(checkpointed, 3)
    assert isinstance(reference.adjoint, DirectAdjoint) and isinstance(block.adjoint, CheckpointAdjoint)
    expected, found = gradients(stored, x), gradients(checkpointed, x)
    assert expected.keys() == found.keys() and dict(checkpointed.named_parameters()).keys() < found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14 * value.abs().max().item())
    for name, parameter in block.dynamics.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("source", ["imagenet", pytest.param("file", marks=pytest.mark.slow)])
def test_frozen_layers_keep_the_weights_they_came_with(
    source: str, folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    os.link(weights, cache / "resnet18-f37072fd.pth")  # where torchvision keeps what it has downloaded
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: pytest.fail("no download is needed"))
    given = str(weights) if source == "file" else source
    finetune.main(options(folder, "--weights", given, "--freeze", "--out", str(tmp_path / "out.safetensors")))
    before, after = torch.load(weights, weights_only=True), safetensors.torch.load_file(tmp_path / "out.safetensors")
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    assert after["fc.weight"].shape == (3, 512)
    for name, value in after.items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
        elif name in before and value.shape == before[name].shape:
            assert not torch.equal(value, before[name]), name


def test_every_fifth_image_of_a_folder_without_parts_is_held_out(tmp_path: Path) -> None:
    training, testing, classes = finetune.load_folder(write_images(tmp_path / "all", count=5), finetune.Config(size=40))
    assert classes == 3 and isinstance(training.dataset, Subset) and isinstance(testing.dataset, Subset)
    assert list(testing.dataset.indices) == [4, 9, 14] and {*training.dataset.indices} == {*range(15)} - {4, 9, 14}
    labels: list[Any] = [label for _, batch in testing for label in batch.tolist()]
    assert labels == [0, 1, 2]
    assert all(x.shape[1:] == (3, 40, 40) for x, _ in [*training, *testing])


def test_the_images_in_the_repository_are_written_out_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(finetune, "MINI", tmp_path / "cut.npz")
    x, y = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, 1, 0])
    np.savez(tmp_path / "cut.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    finetune.write_mini(tmp_path / "images")
    assert sorted(str(p.relative_to(tmp_path / "images")) for p in (tmp_path / "images").rglob("*.png")) == [
        *("test/0/0.png", "test/1/1.png", "train/0/0.png", "train/0/3.png", "train/1/1.png", "train/1/2.png")
    ]
    image, label = torchvision.datasets.ImageFolder(str(tmp_path / "images" / "train"))[3]
    assert label == 1 and np.array_equal(np.asarray(image), x[2])


def refused(arguments: list[str]) -> str:
    return mistake(finetune.main, arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
        (["--size", "32"], "--size 32 must be at least 33"),
        (["--tau", "-1"], "--tau -1.0 must be at least 0"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--lr", "1e30"], "lower --lr 1e+30"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth could not be loaded"),
        (["--weights", __file__], "give none, imagenet (needs a connection), or a file"),
        (["--data", "nowhere"], "--data nowhere is neither mini nor a folder"),
        (["--out", "nowhere/out.pt"], "--out nowhere/out.pt"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], sentence: str, folder: Path) -> None:
    assert sentence in refused(options(folder, *arguments))


def test_mistakes_about_folders_and_files_get_one_sentence(folder: Path, weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "one", ("dark",))
    write_images(tmp_path / "apart" / "train", ("dark", "light"))
    write_images(tmp_path / "apart" / "test", ("dark", "red"))
    write_images(tmp_path / "half" / "train")
    assert [len(batches) for batches in finetune.load_folder(tmp_path / "half", finetune.Config(batch_size=1))[:2]] == [15, 3]
    write_images(tmp_path / "broken")
    (tmp_path / "broken" / "dark" / "0.png").write_bytes(b"no image")
    write_images(tmp_path / "parts" / "train")
    write_images(tmp_path / "parts" / "validation", count=2)
    assert [len(batches) for batches in finetune.load_folder(tmp_path / "parts", finetune.Config(batch_size=1))[:2]] == [18, 6]
    write_images(tmp_path / "lost" / "test")
    cases = {"one": "but ['dark']", "apart": "['dark', 'red']", "lost": "one train/ is needed", "broken": "0.png"}
    for name, sentence in cases.items():
        assert sentence in refused(options(tmp_path / name))
    assert "state_dict of torchvision's resnet34" in refused(options(folder, "--network", "resnet34", "--weights", str(weights)))


def test_without_a_connection_it_says_what_to_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    message = refused(options(folder, "--weights", "imagenet"))
    assert "no route to host" in message and "imagenet (needs a connection)" in message


def test_the_block_is_found_in_the_network() -> None:
    model = network()
    block = finetune.couple(model, 3, tau=0.03)
    assert isinstance(block, CoupledODEBlock) and model.get_submodule("layer3.1") is block
    assert block.evolving == ("conv.weight",)
    assert block.dynamics.get_parameter("signed_tau.conv/weight").item() == pytest.approx(0.03)
