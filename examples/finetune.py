"""Put a coupled ODE block into an existing network: torchvision's ResNet, a stage's repeated blocks replaced by one block of equal cost.

    python examples/finetune.py                                          # on images in this repository, under a minute on two idle cores
    python examples/finetune.py --data FOLDER --weights imagenet --size 224 --freeze

    before   layer3 = block(128 -> 256), block(256 -> 256)                                      the second has two convolutions
    after    layer3 = block(128 -> 256), dz/dt = BN(conv3x3(relu z; w(t))), dw/dt = q(w), relu  one convolution, stepped twice by Euler

The new block applies its one convolution as often as the replaced blocks have convolutions: the same multiply-adds per image, fewer
parameters. Moving the kernel costs, once per batch, what 9 / (h w) of an image costs in the block, whose features have h x w pixels.
All other layers keep their names, so pretrained weights load before the replacement, or after it with ``strict=False``. Both networks
start from the same weights and see the same images in the same order; which one comes out better is for the figures to say.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection
from anodev2.models.blocks import PerStepNorm2d
from images import MINI, readable, splits
from options import AUTO, Count, CountFrom0, NotNegative, Positive, Rule, Seed, mistakes_told, parse
from ranks import choose_device
from runs import RunError, in_words, save_weights, writable


@dataclass(frozen=True)
class Config:
    """Train a ResNet on a folder of images, as it is and with a stage's repeated blocks replaced by one coupled ODE block."""

    data: str = "mini"
    """mini (2,000 CIFAR-10 images), or a folder: train/CLASS/* and test/CLASS/*, or CLASS/*, every fifth for testing"""
    network: Literal["resnet18", "resnet34"] = "resnet18"
    """torchvision's"""
    weights: str = "none"
    """none, imagenet (downloaded once), or a file with the state_dict of such a network; the last layer is new"""
    stage: Literal[1, 2, 3, 4] = 3
    """the stage whose blocks but the first are replaced"""
    freeze: bool = False
    """leave everything before the stage as it is"""
    tau: NotNegative = 0.02
    """initial diffusivity of the kernel, in its cells squared"""
    size: Annotated[int, Rule("at least 33", lambda n: n >= 33)] = 40
    """side of images in pixels, imagenet weights: 224"""
    epochs: Count = 2
    """passes over the training images, for each network"""
    batch_size: Count = 50
    """images per gradient step"""
    lr: Positive = 1e-3
    """largest learning rate of AdamW"""
    seed: Seed = 0
    """of initial weights, order of images and augmentation"""
    workers: CountFrom0 = 0
    """processes that read images"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""
    out: Path | None = None
    """safetensors file for the weights of the trained network with the coupled block"""


class Branch(nn.Module):
    """f(t, z) = BN(conv3x3(relu z)), a BN per step: what a residual block adds to its features, which may be of either sign."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = PerStepNorm2d(channels, steps)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        return self.norm(self.conv(torch.relu(z)), step)


def couple(model: nn.Module, stage: int, tau: float = 0.02, adjoint: str = "checkpoint") -> CoupledODEBlock:
    """Replaces, in place, the repeated blocks of ``model.layer<stage>`` by one coupled block and the ReLU that they end with.

    A residual block is an Euler step of size 1: t runs from 0 to their number, in a step per convolution. The kernel starts as their
    first, which reads the same features; the norms start with the scale and shift with which the replaced blocks write to these. So
    the new block writes as much as they did, though not the same: it has to be trained. (On a network pretrained on 2,000 small images
    a random kernel, or norms of scale 0 or 1, came out alike.)
    """
    first, *repeated = model.get_submodule(f"layer{stage}").children()
    kernel = repeated[0].get_parameter("conv1.weight")
    f = Branch(len(kernel), steps=2 * len(repeated)).to(kernel)
    f.conv.load_state_dict({"weight": kernel})
    for step, norm in enumerate(f.norm):
        norm.load_state_dict(dict(repeated[step // 2].get_submodule("bn2").named_parameters()), strict=False)  # not its statistics
    dynamics = ReactionDiffusionAdvection(tau)
    block = CoupledODEBlock(f, dynamics, evolve="conv.weight", steps=len(f.norm), t=(0, len(repeated)), adjoint=adjoint)
    setattr(model, f"layer{stage}", nn.Sequential(first, block, nn.ReLU()))
    return block


def build(config: Config, classes: int) -> nn.Module:
    """torchvision's network with the chosen weights and a new last layer."""
    model = torchvision.models.get_model(config.network, weights=None, num_classes=classes)
    if config.weights == "none":
        return model
    try:
        if config.weights == "imagenet":
            state = torchvision.models.get_model_weights(config.network)["IMAGENET1K_V1"].get_state_dict(check_hash=True)
        else:
            state = torch.load(config.weights, map_location="cpu", weights_only=True)
        head = {name: value for name, value in model.state_dict().items() if name.startswith("fc.")}
        model.load_state_dict({**state, **head})
    except Exception as error:  # what a damaged file raises has no end
        cure = f"give none, imagenet (needs a connection), or a file with a state_dict of torchvision's {config.network}"
        raise RunError(f"--weights {config.weights} could not be loaded ({in_words(error)}); {cure}") from None
    return model


def write_mini(folder: Path) -> None:
    """The images in this repository as folder/train/CLASS/*.png and folder/test/CLASS/*.png."""
    with np.load(MINI) as arrays:
        for part in ("train", "test"):
            for number, (image, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
                path = folder / part / str(label) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                v2.functional.to_pil_image(image).save(path)


def load_folder(folder: Path, config: Config) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    """Batches of training images (augmented) and test images, normalised as for ImageNet, and the number of classes."""
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    augmented = v2.Compose([v2.RandomResizedCrop(config.size, scale=(0.5, 1)), v2.RandomHorizontalFlip(), *last])
    plain = v2.Compose([v2.Resize(config.size), v2.CenterCrop(config.size), *last])
    if not folder.is_dir():
        raise RunError(f"--data {folder} is neither mini nor a folder")
    train, test = splits(folder)
    try:
        training, testing = (ImageFolder(str(part), how, loader=readable) for part, how in ((train, augmented), (test or train, plain)))
    except OSError as error:
        raise RunError(f"--data {folder} lacks images in class folders ({in_words(error)})") from None
    if training.classes != testing.classes or len(training.classes) < 2 or len(training) < 5:
        found = f"{len(training)} training images of {training.classes} and test images of {testing.classes}"
        raise RunError(f"--data {folder} has {found}; the same two classes or more and five images or more are needed")
    numbers = range(len(training))
    train_set = training if test else Subset(training, [i for i in numbers if i % 5 != 4])
    test_set = testing if test else Subset(testing, [i for i in numbers if i % 5 == 4])
    batches = partial(DataLoader, batch_size=config.batch_size, num_workers=config.workers)
    return batches(train_set, shuffle=True), batches(test_set), len(training.classes)


@torch.no_grad()
def multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Of one forward pass: proportional to the images, but for the weights' evolution, which happens once."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops() // 2


def train(model: nn.Module, training: DataLoader[Any], testing: DataLoader[Any], config: Config) -> tuple[list[float], float]:
    """Mean loss of every epoch, and test accuracy in percent; the order and augmentation of the images depend on the seed alone."""
    torch.manual_seed(config.seed)
    device = next(model.parameters()).device
    before = ["conv1", "bn1", *(f"layer{i}" for i in range(1, config.stage))] if config.freeze else []
    frozen = [model.get_submodule(name).requires_grad_(False) for name in before]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], config.lr)
    for dynamics in (module for module in model.modules() if isinstance(module, ReactionDiffusionAdvection)):
        optimizer.register_step_post_hook(dynamics.project)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=max(2, config.epochs * len(training)))
    means = []
    for epoch in range(config.epochs):
        model.train()
        for part in frozen:
            part.eval()  # or its running statistics would move
        losses = []
        for x, y in tqdm(training, desc=f"epoch {epoch + 1}", leave=False, disable=None):
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        means.append(torch.stack(losses).mean().item())
        if not means[-1] < float("inf"):
            raise RunError(f"the loss became {means[-1]} in epoch {epoch + 1}; lower --lr {config.lr}")
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(x.to(device)).argmax(1).cpu() == y for x, y in testing])
    return means, 100 * right.double().mean().item()


def compare(config: Config, folder: Path) -> dict[str, Any]:
    """Trains and measures both networks; returns what it prints."""
    training, testing, classes = load_folder(folder, config)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    original = build(config, classes).to(device)
    coupled = copy.deepcopy(original)
    block = couple(coupled, config.stage, config.tau)
    result: dict[str, Any] = {}
    for name, model in {"original": original, "coupled": coupled}.items():
        one, two = (multiply_adds(model, torch.zeros(n, 3, config.size, config.size, device=device)) for n in (1, 2))
        cost = {"parameters": sum(p.numel() for p in model.parameters()), "per_image": two - one, "per_pass": 2 * one - two}
        print("{}: {:,} parameters, {:,} multiply-adds per image, {:,} per batch for moving weights".format(name, *cost.values()))
        losses, accuracy = train(model, training, testing, config)
        print(f"  loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last; test accuracy {accuracy:.1f} %")
        result[name] = {**cost, "losses": losses, "accuracy": accuracy}
    start, end = block.weights(block.t)["conv.weight"].detach()
    result["moved"] = ((end - start).norm() / start.norm()).item()
    print(f"kernel w of the coupled block: |w({block.t[1]:g}) - w(0)| / |w(0)| = {result['moved']:.3f}")
    if config.out is not None:
        save_weights(config.out, coupled.state_dict(), {"test_accuracy": result["coupled"]["accuracy"]})
    return result


def main(argv: list[str] | None = None) -> dict[str, Any]:
    with mistakes_told():
        config, _ = parse(Config, argv)
        if config.out is not None:
            writable(config.out, "--out", ".safetensors")
        with tempfile.TemporaryDirectory() as scratch:
            if config.data == "mini":
                write_mini(Path(scratch))
            return compare(config, Path(scratch if config.data == "mini" else config.data))


if __name__ == "__main__":
    main()
