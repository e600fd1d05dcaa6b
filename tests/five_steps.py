"""Five steps of train_cifar.py with BatchNorm as in evaluation: python five_steps.py DATA_DIR OUT ACCUMULATE."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

from examples.images import load_images
from examples.ranks import joined
from examples.train_cifar import Config, Training, train_epoch

if __name__ == "__main__":
    config = Config(data="cifar10", subset=100, batch_size=20, steps=2, accumulate=int(sys.argv[3]), lr=0.05, label_smoothing=0.1, cutout=4)
    with joined("cpu", timedelta(seconds=50)) as ranks:
        images = load_images("cifar10", Path(sys.argv[1]), ranks.device, config.subset)
        training = Training(config, Path(sys.argv[2]).parent, ranks, images)
        for module in training.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().train = lambda mode=True, module=module: module  # stays
        train_epoch(training)
        torch.save(dict(training.model.named_parameters()), f"{sys.argv[2]}.{ranks.rank}")
