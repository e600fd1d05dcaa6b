"""What a trained network sees in images: classes with their probabilities, or the network as a file for other programs.

    python examples/predict.py runs/resnet4-coupled-mini-0 cat.jpg dog.png
    python examples/predict.py runs/resnet4-coupled-mini-0 photos/ --csv seen.csv
    python examples/predict.py runs/resnet4-coupled-mini-0 --onnx network.onnx

RUN is the folder of a run of train_cifar.py, or a file of weights in it. Images are fitted as those of a folder are in
training: the shorter side resized, the longer cut at both ends. The ONNX file maps (batch, 3, size, size), normalised, to logits; its
metadata say how to normalise and what the classes are called.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from anodev2 import unroll
from anodev2.models import facts, load
from images import fitted, readable
from options import AUTO, Count, mistakes_told, parse
from ranks import choose_device
from runs import RunError, read_json, writable, write


@dataclass(frozen=True)
class Config:
    """Print what a trained network sees in images."""

    run: tyro.conf.Positional[Path]
    """folder of a run, or its best.safetensors or last.safetensors"""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """files, and folders of files"""
    top: Count = 3
    """so many of the most probable classes"""
    csv: Path | None = None
    """write a table: file, class, and the probability of every class"""
    onnx: Path | None = None
    """write the network, its blocks as plain layers"""
    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""


def main(argv: list[str] | None = None) -> None:
    with mistakes_told():
        config, _ = parse(Config, argv)
        for file, name in ((config.csv, "csv"), (config.onnx, "onnx")):
            if file is not None:
                writable(file, f"--{name}", f".{name}")
        files = found(config.images)
        if not files and (config.onnx is None or config.csv is not None):
            raise RunError("no images: give files or folders of images behind the run, or --onnx FILE to write the network")
        network, about = load(config.run), facts(config.run)
        if config.onnx is not None:
            write(config.onnx, exported(network, about))
            print(f"{config.onnx}: {about['network']['model']} of {config.run}, {len(about['classes'])} classes")
        if files:
            probabilities = predicted(network.to(choose_device(config.device)), about, files)
            show(files, probabilities, about["classes"], config.top)
            if config.csv is not None:
                write(config.csv, table(files, probabilities, about["classes"]))
                print(f"table: {config.csv}")
        if (config.run / "config.json").exists():
            print(f"next:  python examples/{following(config)}")


def following(config: Config) -> str:
    """What one does after this with a run."""
    if config.onnx is None:
        return f"predict.py {config.run} --onnx {config.run / 'network.onnx'}"
    epochs = read_json(config.run / "config.json", str(config.run), "epochs")["epochs"]
    return f"train_cifar.py --resume {config.run} --epochs {2 * epochs}"


def found(paths: tuple[Path, ...]) -> list[Path]:
    """The files given, and those of images in the folders given."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
            if not inside:
                raise RunError(f"{path} holds no images ({', '.join(IMG_EXTENSIONS)})")
            files += inside
        else:
            files.append(path)
    return files


@torch.no_grad()
def predicted(network: nn.Module, about: dict[str, Any], files: list[Path], batch: int = 64) -> Tensor:
    """(number of files, number of classes) probabilities."""
    device = next(network.parameters()).device
    mean, std = (torch.tensor(about[name], device=device) for name in ("mean", "std"))
    parts = []
    for begin in range(0, len(files), batch):
        pixels = np.stack([fitted(readable(str(file)), about["size"]) for file in files[begin : begin + batch]])
        x = ((torch.from_numpy(pixels).to(device).float() - mean) / std).permute(0, 3, 1, 2)
        parts.append(network(x).softmax(1).cpu())
    return torch.cat(parts)


def show(files: list[Path], probabilities: Tensor, classes: list[str], top: int) -> None:
    best = probabilities.topk(min(top, len(classes)))
    for file, values, places in zip(files, best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"{file}: " + ", ".join(f"{classes[place]} {value:.1%}" for value, place in zip(values, places, strict=True)))


def table(files: list[Path], probabilities: Tensor, classes: list[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", *classes])
    for file, row in zip(files, probabilities, strict=True):
        writer.writerow([file, classes[int(row.argmax())], *(f"{value:.6f}" for value in row.tolist())])
    return text.getvalue().encode()


def exported(network: nn.Module, about: dict[str, Any]) -> bytes:
    """The network as ONNX, for any batch, with what is known of it as metadata."""
    x = torch.zeros(2, 3, about["size"], about["size"])
    program = torch.export.export(unroll(network), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
    assert made is not None
    model = made.model_proto
    for name in ("classes", "mean", "std", "size"):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(about[name])
    entry = model.metadata_props.add()
    entry.key = "preprocessing"
    entry.value = "RGB of 0 to 255; shorter side resized to size, longer cut; (value - mean) / std per channel; (batch, 3, size, size)"
    return model.SerializeToString()


if __name__ == "__main__":
    main()
