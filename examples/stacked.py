"""Runs that differ in their seed alone, trained as one network: whatever a step launches, it launches once for all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from cuda_graph import Replayed
from images import Draws, augment
from ranks import peak_memory
from settings import sgd
from training import Training, dealt, means, one_pass


def train_stacked(runs: Sequence[Training]) -> None:
    """All of them to their end; those that a kill left behind the others come up with them alone."""
    for run in runs:
        run.begin()
    ahead = max((run.epoch for run in runs), default=0)
    for run in runs:
        run.go_on(ahead)
    if runs and ahead < runs[0].config.epochs:
        Stacked(runs).go_on()
    for run in runs:
        run.finish()


class Stacked:
    """Trains the networks of ``runs`` by one step for all: forward by vmap over stacked weights, backward and SGD on these.

    The weights, BatchNorm statistics and momenta of each run are then views of what is stacked, so that it is tested, saved and taken up
    as if it had been trained alone. Orders and augmentation are its own.
    """

    def __init__(self, runs: Sequence[Training]) -> None:
        first = runs[0]
        self.runs, self.config, self.images = runs, first.config, first.images
        models = [run.model for run in runs]
        self.parameters = joined([dict(model.named_parameters()) for model in models])
        self.buffers = joined([dict(model.named_buffers()) for model in models])
        self.optimizer = sgd(self.config, self.parameters)
        self._join_momenta()
        graph = self.config.cuda_graph and first.ranks.device.type == "cuda"
        self.step = Replayed(self.one_step, self.optimizer) if graph else self.one_step

    def go_on(self) -> None:
        """All epochs that are left."""
        gc.collect()
        peak_memory(self.runs[0].ranks.device, reset=True)
        while self.runs[0].epoch < self.config.epochs:
            self.one_epoch()

    def one_epoch(self) -> None:
        """Seconds of a run are its share; the peak of memory is that of all together."""
        began = time.perf_counter()
        totals = [total.tolist() for total in self.train_epoch()]
        trained = (time.perf_counter() - began) / len(self.runs)
        for run, *sums in zip(self.runs, *totals, strict=True):
            run.keep(run.tell(*means(run, *sums), trained))

    def train_epoch(self) -> tuple[Tensor, Tensor]:
        """The sum of the losses of each run, and how many it had right."""
        deals = [dealt(run) for run in self.runs]
        totals = one_pass(self.runs, self.take_step, {name: torch.stack([deal[name] for deal in deals]) for name in deals[0]})
        self._part_momenta()
        return totals

    def take_step(self, **given: Tensor) -> tuple[Tensor, ...]:
        for ours, group in zip(self.optimizer.param_groups, self.runs[0].optimizer.param_groups, strict=True):
            ours["lr"] = group["lr"]
        return self.step(**given)

    def one_step(self, order: Tensor, **chance: Tensor) -> tuple[Tensor, Tensor]:
        """``Training.one_step`` of all runs, whose images lie behind one another: (runs, images) numbers, (runs, ..., images) draws."""
        config, images, share = self.config, self.images, order.shape[1] // self.config.accumulate
        loss_sum = right = torch.zeros((), device=order.device)
        for part in range(config.accumulate):
            mine = slice(part * share, (part + 1) * share)
            numbers = order[:, mine].flatten()
            draws = {name: tensor[..., mine].movedim(0, -2).flatten(-2) for name, tensor in chance.items()}
            x = augment(images.normalised(images.x_train[numbers]), Draws(**draws), config.cutout).contiguous()
            y = images.y_train[numbers].view(-1, share)
            loss, logits = self._backward(x.unflatten(0, (-1, share)), y)
            loss_sum, right = loss_sum + loss * share, right + (logits.argmax(2) == y).sum(1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for run in self.runs:
            run.optimizer.step()  # without gradients of its own it projects, no more
            if run.average is not None:
                run.average.move(run.model)
        return loss_sum, right

    def _backward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of these images' part of the mean losses."""
        network = self.runs[0].model

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = functional_call(network, (parameters, buffers), (x,))
            return F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing), logits

        with self.runs[0].autocast():
            loss, logits = torch.vmap(one)(self.parameters, self.buffers, x, y)
        (loss.sum() / self.config.accumulate).backward()
        return loss.detach(), logits.detach()

    def _join_momenta(self) -> None:
        """Those of runs that were interrupted."""
        for name, whole in self.parameters.items():
            states = [run.optimizer.state[run.model.get_parameter(name)] for run in self.runs]
            if all("momentum_buffer" in state for state in states):
                self.optimizer.state[whole]["momentum_buffer"] = stacked([state["momentum_buffer"] for state in states])

    def _part_momenta(self) -> None:
        for name, whole in self.parameters.items():
            if "momentum_buffer" in self.optimizer.state[whole]:
                for run, own in zip(self.runs, self.optimizer.state[whole]["momentum_buffer"], strict=True):
                    run.optimizer.state[run.model.get_parameter(name)]["momentum_buffer"] = own


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: stacked([part[name] for part in parts]) for name in parts[0]}


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """These behind one another; from now on they are views of the whole.

    Not channels last: BatchNorm of cuDNN under vmap asks whether a tensor is, and gets no answer.
    """
    whole = torch.stack([tensor.detach().contiguous() for tensor in tensors])
    for tensor, part in zip(tensors, whole.unbind(), strict=True):
        tensor.data = part
    return whole.requires_grad_(tensors[0].requires_grad)
