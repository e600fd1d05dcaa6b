"""Make the small balanced subset of CIFAR-10 that ships with this repository: 200 training and 50 test images a class.

    python examples/make_mini.py DIR/cifar10.npz

Picks at random with a fixed seed from the full set (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny
Images), keeps the original order, and writes ``examples/data/cifar10_mini.npz`` with the same four arrays.
"""

from pathlib import Path

import numpy as np
import tyro

from images import MINI, read_arrays
from options import mistakes_told
from runs import replacing


def balanced(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Sorted indices of ``per_class`` random members of every class."""
    random = np.random.default_rng(seed)
    classes = (np.flatnonzero(labels == label) for label in np.unique(labels))
    return np.sort(np.concatenate([random.choice(members, per_class, replace=False) for members in classes]))


def main(source: tyro.conf.Positional[Path], target: tyro.conf.Positional[Path] = MINI) -> None:
    full, mini = read_arrays(source, 10), {}
    for part, per_class in (("train", 200), ("test", 50)):
        pick = balanced(full[f"y_{part}"], per_class, seed=0)
        mini |= {f"x_{part}": full[f"x_{part}"][pick], f"y_{part}": full[f"y_{part}"][pick]}
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        np.savez_compressed(file, **mini)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", {name: array.shape for name, array in mini.items()})


if __name__ == "__main__":
    with mistakes_told():
        tyro.cli(main, description=__doc__)
