"""What each option of train_cifar.py sets, and what an epoch of it does, against loops written out here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import train_cifar
from anodev2 import (
    BacksolveAdjoint,
    CheckpointAdjoint,
    CoupledODEBlock,
    DirectAdjoint,
    Galerkin,
    LowRank,
    ODEBlock,
    ReactionDiffusionAdvection,
    ReversibleAdjoint,
    Static,
)
from anodev2.models.blocks import PerStepNorm2d, ResidualBlock, SharedNorm2d
from images import Images
from ranks import Ranks
from runs import RunError
from settings import Config
from training import Training, coefficients, evaluate, movement, train_epoch

COUNT = 12  # training images, and as many test images
FOURIER = ["--dynamics", "fourier"]


def images(kind: torch.dtype) -> Images:
    """Noise with labels; what the network is given has the precision of the numbers by which it is divided."""
    x = torch.randint(256, (2 * COUNT, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    y, mean, std = torch.arange(2 * COUNT) % 10, torch.full((3,), 120.0, dtype=kind), torch.full((3,), 70.0, dtype=kind)
    return Images(x[:COUNT], y[:COUNT], x[COUNT:], y[COUNT:], mean, std, 10)


def training(*words: str, kind: torch.dtype = torch.float32) -> Training:
    """What a command line makes, before the first step."""
    made = Training(train_cifar.settled(["--batch-size", "4", *words]), Path(), Ranks(torch.device("cpu")), images(kind))
    for network in (made.model, made.tested):
        network.to(kind)
    return made


def blocks(made: Training) -> list[Any]:
    return [part for part in made.model.modules() if isinstance(part, ODEBlock | ResidualBlock)]


def block(made: Training) -> Any:
    return blocks(made)[0]


def groups(made: Training, name: str) -> list[float]:
    """A setting of the optimizer, for the network and for the dynamics of its weights."""
    return [group[name] for group in made.optimizer.param_groups]


# of an option: the rest of a command line, its other value, what is looked at, and what is there with the other value
SETS: dict[str, tuple[list[str], list[str], Callable[[Training], Any], Any]] = {
    "model": ([], ["resnet10"], lambda made: len(blocks(made)), 3),
    "block": ([], ["ode"], lambda made: type(block(made)), ODEBlock),
    "steps": ([], ["3"], lambda made: block(made).steps, 3),
    "method": ([], ["heun2"], lambda made: block(made).method.name, "heun2"),
    "norm": ([], ["shared"], lambda made: type(block(made).f.norm1), SharedNorm2d),
    "weights": ([], ["final"], lambda made: block(made).which_weights, "final"),
    "time": ([], [], lambda made: block(made).f.conv1.weight.shape[1], 17),
    "dynamics": ([], ["chebyshev"], lambda made: type(block(made).dynamics), Galerkin),
    "basis_size": (FOURIER, ["7"], lambda made: block(made).dynamics.coefficients["conv1/weight"].shape[0], 6),
    "tau": ([], ["0.5"], lambda made: block(made).dynamics.coefficients("conv1.weight")[0].item(), 0.5),
    "per": ([], ["channel"], lambda made: block(made).dynamics.coefficients("conv1.weight")[0].shape, (16,)),
    "adjoint": ([], ["reversible"], lambda made: type(block(made).adjoint), ReversibleAdjoint),
    "slots": ([], ["2"], lambda made: block(made).adjoint.slots, 2),
    "memory": ([], ["8MiB"], lambda made: block(made).adjoint.memory, "8MiB"),
    "lr": (["--schedule", "paper"], ["0.3"], lambda made: groups(made, "lr"), [0.3, 0.3]),
    "momentum": ([], ["0.5"], lambda made: groups(made, "momentum"), [0.5, 0.5]),
    "weight_decay": ([], ["0.01"], lambda made: groups(made, "weight_decay"), [0.01, 0.0]),
    "channels_last": ([], [], lambda made: block(made).f.conv1.weight.is_contiguous(), True),
    "precision": ([], ["float16"], lambda made: made.scaler.is_enabled(), True),
    "schedule": ([], ["paper"], lambda made: type(made.scheduler).__name__, "MultiStepLR"),
    "ema": ([], ["0.5"], lambda made: made.tested is made.model, False),
    "seeds": ([], ["3"], lambda made: torch.initial_seed(), 3),
}
BELOW = {"epochs", "batch_size", "accumulate", "label_smoothing", "cutout"}  # seen in what an epoch does
ELSEWHERE = {"data", "data_dir", "size", "subset", "compile", "tensorboard", "device", "out", "resume"}  # in test_examples_options.py
ELSEWHERE |= {"validation", "init", "config"}  # in test_train_cifar.py
ELSEWHERE |= {"stack"}  # in test_stacked.py
ELSEWHERE |= {"cuda_graph"}  # on a GPU without one: tests/device; what it does: test_cuda_graph.py


def test_every_option_is_looked_at() -> None:
    assert SETS.keys() | BELOW | ELSEWHERE == get_type_hints(Config).keys()


@pytest.mark.parametrize("name", SETS)
def test_an_option_sets_what_it_says(name: str) -> None:
    rest, values, look, there = SETS[name]
    assert look(training(*rest)) != there
    no = "no-" if name == "channels_last" else ""
    assert look(training(*rest, f"--{no}{name.replace('_', '-')}", *values)) == there


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--block", "residual"], ResidualBlock),
        (["--block", "ode"], ODEBlock),
        (["--block", "coupled"], CoupledODEBlock),
    ],
)
def test_every_kind_of_block(words: list[str], kind: type) -> None:
    assert type(block(training(*words))) is kind
    assert kind is ResidualBlock or isinstance(block(training(*words)).f.norm1, PerStepNorm2d)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("checkpoint", CheckpointAdjoint), ("direct", DirectAdjoint), ("reversible", ReversibleAdjoint), ("backsolve", BacksolveAdjoint)),
        *(
            ("rda", ReactionDiffusionAdvection),
            ("static", Static),
            ("constant", Galerkin),
            ("linear", Galerkin),
            ("fourier", Galerkin),
            ("low-rank", LowRank),
        ),
    ],
)
def test_every_adjoint_and_dynamics(name: str, kind: type) -> None:
    adjoint = kind.__name__.endswith("Adjoint")
    made = block(training("--adjoint" if adjoint else "--dynamics", name))
    assert type(made.adjoint if adjoint else made.dynamics) is kind
    assert kind is not Galerkin or made.dynamics.basis == name


@pytest.mark.parametrize(
    ("words", "count", "kinds"),
    [
        (["--model", "tiny", "--block", "residual"], 97_530, [ResidualBlock] * 6),
        (["--model", "tiny", "--block", "ode", "--steps", "3", "--norm", "shared"], 36_730, [ODEBlock] * 2),
        (["--model", "tiny", "--steps", "3", "--norm", "shared"], 36_760, [CoupledODEBlock] * 2),
        (["--model", "vit", "--block", "residual"], 207_946, [ResidualBlock] * 4),
        (["--model", "vit", "--block", "ode", "--norm", "shared"], 57_994, [ODEBlock]),
        (["--model", "vit", "--dynamics", "low-rank", "--norm", "shared"], 62_090, [CoupledODEBlock]),
    ],
)
def test_networks_of_repeated_blocks_have_a_stack_or_one(words: list[str], count: int, kinds: list[type]) -> None:
    made = training(*words)
    assert (made.parameters, [type(part) for part in blocks(made)]) == (count, kinds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "vit"], "--dynamics rda moves kernels of convolutions, of which --model vit has none"),
        (["--model", "tiny", "--time"], "--time has no effect here, only with --block ode or coupled and --model other than tiny and vit"),
    ],
)
def test_what_a_network_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises((ValueError, RunError), match=said):
        training(*words)


# what an epoch does


def unchanged(x: Tensor, *_: Any) -> Tensor:
    """Stands for the augmentation."""
    return x


def shown(made: Training) -> list[Tensor]:
    """Filled with what the network is given, part by part."""
    seen: list[Tensor] = []
    made.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    return seen


def numbers(made: Training, x: Tensor) -> list[int]:
    """Which training images these are."""
    known = made.images.normalised(made.images.x_train)
    return [next(number for number, image in enumerate(known) if torch.equal(image, one)) for one in x]


def by_hand(model: nn.Module, batches: list[list[tuple[Tensor, Tensor]]], rates: list[float]) -> Iterator[tuple[float, float]]:
    """SGD with momentum 0.8 on cross entropy with a tenth of its weight on all classes alike; weights, but not those of dynamics, decay.

    Yields the loss of each image and whether it was told.
    """
    velocity: dict[str, Tensor] = {}
    for parts, rate in zip(batches, rates, strict=True):
        logits = [model(x) for x, _ in parts]
        targets = [0.9 * nn.functional.one_hot(y, 10).double() + 0.01 for _, y in parts]
        losses = torch.cat([-(w * z.log_softmax(1)).sum(1) for w, z in zip(targets, logits, strict=True)])
        names, parameters = zip(*model.named_parameters(), strict=True)
        for name, p, slope in zip(names, parameters, torch.autograd.grad(losses.mean(), parameters), strict=True):
            pull = slope if ".dynamics." in name else slope + 0.01 * p.detach()
            velocity[name] = 0.8 * velocity.get(name, torch.zeros_like(p)) + pull
            p.data -= rate * velocity[name]
        yield from zip(losses.tolist(), (torch.cat(logits).argmax(1) == torch.cat([y for _, y in parts])).tolist(), strict=True)


@pytest.mark.parametrize("kind", ["residual", "coupled"])
def test_an_epoch_is_that_of_a_loop_in_double_precision(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, of two parts each, at rates that fall after 3/7 and 5/7 of them, and the average of the weights."""
    monkeypatch.setattr("training.augment", unchanged)
    words = ["--epochs", "1", "--accumulate", "2", "--lr", "0.05", "--momentum", "0.8", "--weight-decay", "0.01", "--schedule", "paper"]
    made = training(*words, "--block", kind, "--label-smoothing", "0.1", "--ema", "0.75", kind=torch.float64)
    model, seen = copy.deepcopy(made.model), shown(made)
    loss, accuracy = train_epoch(made)
    assert [len(x) for x in seen] == [2] * 6
    parts = [(x, made.images.y_train[numbers(made, x)]) for x in seen]
    told, average = [], None
    for number, one in enumerate(by_hand(model.train(), [parts[:2], parts[2:4], parts[4:]], [0.05, 0.005, 0.0005])):
        told.append(one)
        if number % 4 == 3:
            now = {name: p.detach().clone() for name, p in model.named_parameters()}
            average = now if average is None else {name: 0.75 * average[name] + 0.25 * now[name] for name in now}
    assert loss == pytest.approx(sum(each for each, _ in told) / COUNT, rel=1e-9)
    assert accuracy == pytest.approx(100 * sum(right for _, right in told) / COUNT)
    for found, expected in ((made.model, dict(model.named_parameters())), (made.tested, average)):
        assert expected is not None
        torch.testing.assert_close({name: p.detach() for name, p in found.named_parameters()}, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dict(made.model.named_buffers()), dict(model.named_buffers()), rtol=1e-9, atol=1e-12)


def test_rates_are_those_of_the_paper_or_of_one_cycle() -> None:
    def rates(schedule: str) -> list[float]:
        made = training("--schedule", schedule, "--epochs", "350", "--lr", "0.2")
        made.optimizer.step()
        found = []
        for _ in range(1050):  # three batches an epoch
            first, second = groups(made, "lr")
            assert first == second
            found.append(first)
            made.scheduler.step() if len(found) < 1050 else None
        return found

    assert rates("paper") == pytest.approx([0.2] * 450 + [0.02] * 300 + [0.002] * 300)
    assert rates("constant") == [0.2] * 1050
    cycle = rates("one-cycle")
    top = cycle.index(max(cycle))
    assert max(cycle) == pytest.approx(0.2) and 0.28 < top / 1050 < 0.35
    assert cycle[:top] == sorted(cycle[:top]) and cycle[top:] == sorted(cycle[top:], reverse=True)
    assert cycle[0] < 0.01 and cycle[-1] < 1e-5


def test_each_epoch_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.augment", unchanged)

    def orders(seed: str) -> list[list[int]]:
        made = training("--block", "residual", "--seeds", seed)
        seen = shown(made)
        for made.epoch in (0, 1):
            train_epoch(made)
        found = numbers(made, torch.cat(seen))
        return [found[:COUNT], found[COUNT:]]

    first, second = orders("0")
    assert sorted(first) == sorted(second) == list(range(COUNT)) and first != second != sorted(second)
    assert orders("0") == [first, second] and orders("1")[0] != first


def test_training_images_are_shifted_and_mirrored_and_test_images_are_as_they_are() -> None:
    made = training("--block", "residual")
    seen = shown(made)
    train_epoch(made)
    plain = made.images.normalised(made.images.x_train)
    windows = nn.functional.pad(plain, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)  # image, channel, down, right, 32, 32
    ways = torch.stack([windows, windows.flip(-1)])
    found = [(ways == x[:, None, None]).all(-1).all(-1).all(2).nonzero().tolist() for x in torch.cat(seen)]
    assert sorted(way[0][1] for way in found) == list(range(COUNT)) and all(len(way) == 1 for way in found)
    mirrored, _, down, right = zip(*(way[0] for way in found), strict=True)
    assert set(mirrored) == {0, 1} and len({*zip(down, right, strict=True)}) > 6
    del seen[:]
    evaluate(made, made.images.x_test, made.images.y_test)
    assert torch.equal(torch.cat(seen), made.images.normalised(made.images.x_test))


def test_squares_are_cut_out_of_training_images_alone() -> None:
    made = training("--block", "residual", "--cutout", "64")  # whichever its middle, all of an image
    seen = shown(made)
    train_epoch(made)
    assert len(seen) == 3 and not torch.cat(seen).any()
    evaluate(made, made.images.x_test, made.images.y_test)
    assert seen[-1].any()


def test_statistics_move_in_training_and_stand_still_in_evaluation() -> None:
    made = training("--block", "residual")
    start = {name: buffer.clone() for name, buffer in made.model.named_buffers()}
    train_epoch(made)
    moved = {name: buffer.clone() for name, buffer in made.model.named_buffers()}
    assert len(start) == 9 and not any(torch.equal(moved[name], start[name]) for name in start)
    assert all(int(value) == 3 for name, value in moved.items() if "num_batches" in name)
    evaluate(made, made.images.x_test, made.images.y_test)
    assert all(torch.equal(buffer, moved[name]) for name, buffer in made.model.named_buffers())


def test_the_accuracy_is_that_of_the_test_images_in_evaluation() -> None:
    """Three of four are told: the labels are what the network says, but for every fourth. It says otherwise of all training images."""
    made = training("--block", "residual")
    train_epoch(made)
    model = copy.deepcopy(made.model).eval()
    say = lambda x: model(made.images.normalised(x)).argmax(1)
    made.images.y_test = (say(made.images.x_test) + (torch.arange(COUNT) % 4 == 0)) % 10
    made.images.y_train = (say(made.images.x_train) + 1) % 10
    assert evaluate(made, made.images.x_test, made.images.y_test) == pytest.approx(75.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_networks_run_in_the_precision_asked_for(precision: str) -> None:
    made = training("--block", "residual", "--precision", precision)
    kinds: list[torch.dtype] = []
    made.model.register_forward_hook(lambda module, given, logits: kinds.append(logits.dtype))
    assert math.isfinite(train_epoch(made)[0])
    evaluate(made, made.images.x_test, made.images.y_test)
    assert kinds == [getattr(torch, precision)] * 4
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}


def test_how_far_weights_move_is_told_of_their_start() -> None:
    """Weights that grow by exp(rho t), to three times what they were, have moved by twice their size."""
    made = training("--tau", "0")
    for parameter in block(made).dynamics.rho.values():
        nn.init.constant_(parameter, math.log(3))
    assert movement(made.model) == pytest.approx({"3.f.conv1.weight": 2.0, "3.f.conv2.weight": 2.0}, rel=1e-5)
    told = coefficients(made.model)["3.f.conv2.weight"]
    assert told == {"tau": 0.0, "upsilon": [0.0, 0.0], "rho": pytest.approx(math.log(3))}
