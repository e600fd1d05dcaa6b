"""Weights that come with the library, and what a network answers to arguments and images that it does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from anodev2 import Galerkin
from anodev2.models import MODELS, NETWORKS, facts, load, resnet4
from trained import MINI, ROOT

SIDES = {"resnet4": 4, "resnet10": 4, "tiny": 2, "alexnet": 32, "vit": 32, "resnet18": 1, "squeezenext": 1}  # a multiple of, or 32 alone
TRAINED = sorted(file.stem for file in (ROOT / "models" / "trained").glob("*.safetensors"))


@torch.no_grad()
def accuracy(network: nn.Module, about: dict[str, Any]) -> float:
    """In percent of the test images of the small set, normalised by hand."""
    with np.load(MINI) as mini:
        x, y = mini["x_test"].astype(np.float32), torch.from_numpy(mini["y_test"])
    pixels = torch.from_numpy((x - np.float32(about["mean"])) / np.float32(about["std"])).permute(0, 3, 1, 2)
    return 100 * (network.eval()(pixels).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("name", ["resnet4", pytest.param("resnet10", marks=pytest.mark.slow)])
def test_the_weights_that_come_with_the_library_are_as_right_as_they_say(name: str) -> None:
    about, network = facts(name), MODELS[name](pretrained=True)
    assert accuracy(network, about) == pytest.approx(about["test_accuracy"], abs=0.41)  # two images of 500 may differ by round-off
    loaded = load(name)
    assert not loaded.training and all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_they_are_small_and_their_record_tells_of_each() -> None:
    assert TRAINED == ["resnet10", "resnet4"]
    record = (ROOT / "models" / "trained" / "README.md").read_text()
    for name in TRAINED:
        assert (ROOT / "models" / "trained" / f"{name}.safetensors").stat().st_size < 200 * 1024
        assert f"--model {name}" in record and f"{facts(name)['test_accuracy']:.1f} %" in record


def test_a_file_or_a_run_of_that_name_goes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet4").mkdir()
    with pytest.raises(ValueError, match=r"resnet4 is no folder of a finished epoch of a run.*weights by name are resnet10, resnet4"):
        facts("resnet4")


def test_other_classes_get_a_last_layer_of_their_own() -> None:
    torch.manual_seed(0)
    fresh = resnet4(3)
    torch.manual_seed(0)
    network, whole = resnet4(3, pretrained=True), resnet4(pretrained=True).state_dict()
    *rest, weight, bias = network.state_dict().items()
    assert [value.shape[0] for _, value in (weight, bias)] == [3, 3] and all(torch.equal(whole[key], value) for key, value in rest)
    assert torch.equal(weight[1], fresh.state_dict()[weight[0]])


@pytest.mark.parametrize(
    "options", [{"block": "ode"}, {"steps": 4}, {"norm": "shared"}, {"method": "rk4"}, {"time": True}, {"weights": "final"}]
)
def test_weights_of_another_network_are_not_given(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"weights of resnet4 were trained with {name}=.*, not {value!r}"):
        resnet4(pretrained=True, **{name: value})


def test_what_has_no_effect_on_them_may_be_chosen() -> None:
    network = resnet4(pretrained=True, adjoint="direct", compile=True, method="euler", steps=5)
    assert torch.equal(network.state_dict()["0.weight"], resnet4(pretrained=True).state_dict()["0.weight"])
    with pytest.raises(ValueError, match=r"trained with dynamics=None, not Galerkin"):
        resnet4(pretrained=True, dynamics=Galerkin("linear", 3))


@pytest.mark.parametrize("name", sorted({*NETWORKS} - {"resnet4", "resnet10"}))
def test_networks_without_weights_say_which_have_some(name: str) -> None:
    with pytest.raises(ValueError, match=f"no weights of {name}, only of resnet10, resnet4"):
        NETWORKS[name](pretrained=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_argument_misspelt_is_answered_with_the_one_meant(name: str) -> None:
    own = {"tiny": [("repeat", "repeats")], "vit": [("feature", "features"), ("deepth", "depth")]}.get(name, [])
    for wrong, meant in [("num_class", "num_classes"), ("pretraned", "pretrained"), ("stepps", "steps"), ("blok", "block"), *own]:
        with pytest.raises(TypeError, match=f"{name} has no argument '{wrong}', did you mean '{meant}'"):
            NETWORKS[name](**{wrong: 1})
    with pytest.raises(TypeError, match=f"{name} has no argument 'xyz'; it has num_classes"):
        NETWORKS[name](xyz=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_that_a_network_does_not_take_are_told_their_shape(name: str) -> None:
    network, unit = NETWORKS[name](block="residual").eval(), SIDES[name]
    for shape in [(2, 1, 32, 32), (3, 32, 32), (2, 4, 32, 32), (2, 32, 32, 3)]:
        with pytest.raises(ValueError, match=rf"images \(batch, 3, height, width\), got \({', '.join(map(str, shape))}\)"):
            network(torch.zeros(shape))
    for sides in [(64, 64), (32, 33), (30, 32), (0, 32)]:
        taken = min(sides) > 0 and (sides == (32, 32) if unit == 32 else not any(side % unit for side in sides))
        if taken:
            assert network(torch.zeros(1, 3, *sides)).shape == (1, 10)
        else:
            with pytest.raises(ValueError, match=rf"got \(1, 3, {sides[0]}, {sides[1]}\); resize"):
                network(torch.zeros(1, 3, *sides))
