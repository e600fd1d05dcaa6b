"""The examples on memory, work and training, each with numbers that would be wrong if its idea were wrong."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_examples import is_picture

import memory_and_work
import training
import training_comparison
from anodev2 import BacksolveAdjoint, ODEBlock
from anodev2.models import squeezenext
from benchmarks import reverse_training
from images import load_images
from runs import RunError
from settings import Config


@pytest.mark.slow
def test_memory_and_work_are_those_of_the_table(tmp_path: Path) -> None:
    result = memory_and_work.main(tmp_path / "picture.png", tmp_path / "schedules.png", small=True)
    slopes = {"store all": 1, "state per step": 1, "memory=1MiB": 0, "slots=8": 0, "reversible": 0, "reverse solve": 0}
    for kind, claim in slopes.items():
        assert result[f"{kind}, slope"] == pytest.approx(claim, abs=0.15), kind
    assert result["store all, states per step"] == 3  # here a step's graph is twice its state
    assert result["state per step, states per step"] == pytest.approx(1, abs=0.05)  # and a sample of what was saved
    assert result["evaluations not told by plan"] == 0
    work = {
        "store all": 1,
        "state per step": 2,
        "slots=8": 4.14453125,
        "reversible": 4,
        "reverse solve": 2 + 1 / 256,
        "each block again": 2,
    }
    assert {kind: result[f"{kind}, work"] for kind in work} == work
    assert result["slots=8, work"] == memory_and_work.binomial(256, 8) / 256
    assert is_picture(tmp_path / "picture.png") and is_picture(tmp_path / "schedules.png")

    products = {kind: result[f"{kind}, L N_t"] for kind in memory_and_work.KINDS}
    assert products.pop("store all") == 3 and products.pop("state per step") == pytest.approx(1, abs=0.05)  # O(L N_t)
    assert all(value == pytest.approx(0, abs=0.1) for value in products.values())  # O(L + N_t) or less

    held = {"store all": 12, "state per step": 12, "slots=3": 5, "reversible": 4, "reverse solve": 4}
    assert {kind: result[f"{kind}, states held"] for kind in held} == held
    evaluations = {"store all": 12, "state per step": 24, "slots=3": 34, "reversible": 48, "reverse solve": 25}
    assert {kind: result[f"{kind}, evaluations"] for kind in evaluations} == evaluations


@pytest.mark.slow
def test_the_reverse_solve_trains_with_a_wrong_gradient_and_the_exact_one_with_the_right_one(tmp_path: Path) -> None:
    result = training_comparison.main(tmp_path / "picture.png", small=True)
    for variant in training_comparison.VARIANTS:
        found = {name: result[f"squeezenext, {variant}: {name}"] for name in ("largest exact error", "first error", "last error", "loss")}
        assert found["largest exact error"] < 1e-14
        assert found["first error"] > 0.5 and found["last error"] > 0.3
        assert 1.5 < found["loss"] < 2.7  # log 10 is 2.3
    assert result["squeezenext, exact: first error"] == result["squeezenext, reverse: first error"]  # the same weights at first
    assert abs(result["squeezenext, exact: loss"] - result["squeezenext, reverse: loss"]) > 1e-4  # other gradients
    assert is_picture(tmp_path / "picture.png")


def test_a_training_that_fails_is_told_and_drawn_as_far_as_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = training_comparison.Config(subset=16, batch_size=8, epochs=2, lr=1e30)
    result = training_comparison.main(tmp_path / "picture.png", config=config)
    assert capsys.readouterr().out.count("failed: the loss became nan in epoch 1") == 2
    assert math.isnan(result["squeezenext, exact: loss"]) and is_picture(tmp_path / "picture.png")


def test_an_adaptive_reverse_solve_needs_a_method_that_estimates_its_error() -> None:
    with pytest.raises(RunError, match=r"--rtol 0.001 needs --method dopri5, .*; got --method heun2 --norm shared"):
        training_comparison.main(config=training_comparison.Config(rtol=1e-3))


@pytest.mark.parametrize("rtol", [1e-2, pytest.param(1e-4, marks=pytest.mark.slow)])
def test_an_adaptive_reverse_solve_is_wrong_at_any_tolerance(rtol: float) -> None:
    """It solves other equations than those of the steps that were taken forwards."""
    images = training_comparison.images_of(training_comparison.Config(subset=16), torch.device("cpu"))
    torch.manual_seed(0)
    model = squeezenext(block="ode", steps=1, method="dopri5", norm="shared")
    assert training_comparison.errors(model, images, BacksolveAdjoint(rtol=rtol, atol=rtol), 8)["reverse_error"] > 0.5


@pytest.mark.slow
def test_statistics_moved_in_the_pass_backward_are_all_that_differs_from_a_reverse_solve() -> None:
    """Those of the norms against the evaluations there and back written out; the slopes against those of the library's solve."""
    images = load_images("mini", Path(), torch.device("cpu"), 16)
    config = Config(block="ode", norm="shared", adjoint="backsolve", batch_size=8, steps=3)
    kept, moved, adaptive = (reverse_training.training_of(way, config, images, 1e-3) for way in ("reverse", "moved", "adaptive"))
    x, y = images.normalised(images.x_train[:8]), images.y_train[:8]
    models: list[Any] = [run.model.train() for run in (kept, moved, adaptive)]
    place = next(i for i, part in enumerate(models[0]) if isinstance(part, ODEBlock))
    by_hand: Any = copy.deepcopy(models[0])
    with torch.no_grad():
        f, z = by_hand[place].f, by_hand[:place](x)
        for sign in (1, 1, 1, -1, -1, -1):
            z = z + sign * f(torch.zeros(()), z, step=0) / 3
    losses = [training.backward(run, x, y, last=True)[0] for run in (kept, moved, adaptive)]
    assert torch.equal(losses[0], losses[1]) and 0 < abs(losses[2] - losses[0]) < 0.5  # another method
    torch.testing.assert_close(*([p.grad for p in model.parameters()] for model in models[1::-1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(models[1][place].f.state_dict(), f.state_dict(), rtol=1e-4, atol=1e-5)
    assert models[1][place].f.norm1.num_batches_tracked == 6 and models[0][place].f.norm1.num_batches_tracked == 3


@pytest.mark.slow
def test_in_a_longer_training_too_exact_gradients_end_at_least_as_low() -> None:
    result = training_comparison.main(config=training_comparison.Config(subset=400, epochs=3, batch_size=16))
    assert result["squeezenext, exact: largest exact error"] < 1e-14
    assert result["squeezenext, exact: first error"] > 0.5
    assert min(result[f"squeezenext, {variant}: last error"] for variant in training_comparison.VARIANTS) > 0.03
    assert result["squeezenext, exact: loss"] < min(2.2, result["squeezenext, reverse: loss"] + 0.1)  # the two runs differ by chance
