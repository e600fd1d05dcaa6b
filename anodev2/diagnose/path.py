"""How the weights of a coupled block move: norms, change, spectra of kernels, singular values of matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..block import CoupledODEBlock, ODEBlock
from ..fast_weights import FastWeights
from ..signature import uncompiled
from ..stepping import as_count
from .subject import Subject
from .table import number, table


class Bands(NamedTuple):
    """|k| of the Fourier modes of a kernel (radians per cell, 0 for the mean), rising; how many modes have it; and their mean power,
    (times, bands)."""

    k: Tensor
    modes: Tensor
    power: Tensor


@dataclass(frozen=True, repr=False, eq=False)
class WeightPath:
    """theta(t) of a block by parameter name at some times; ``print`` shows a table.

    ``theta``: the weights, the times in front: (times, *shape), detached, on the CPU, float64 or complex128.
    """

    times: tuple[float, ...]
    theta: dict[str, Tensor]
    dynamics: str

    @cached_property
    def norms(self) -> dict[str, Tensor]:
        """Per weight its Frobenius norm at each time, (times,)."""
        return {name: w.flatten(1).norm(dim=1) for name, w in self.theta.items()}

    @cached_property
    def changes(self) -> dict[str, Tensor]:
        """|theta(t) - theta(t0)| / |theta(t0)| per weight, (times,): inf where a weight starts from 0."""
        found = {}
        for name, w in self.theta.items():
            moved = (w - w[:1]).flatten(1).norm(dim=1)
            found[name] = torch.where(moved == 0, 0.0, moved / self.norms[name][0])
        return found

    @property
    def kernels(self) -> tuple[str, ...]:
        """The convolution kernels among the weights: (out, in, *space) with two or more spatial axes longer than 1."""
        return tuple(name for name, w in self.theta.items() if sum(size > 1 for size in w.shape[3:]) >= 2)

    def bands(self, name: str) -> Bands:
        """The spatial Fourier spectrum of a kernel: |F w(k)|^2 / places, averaged over the modes of equal |k| and the channels.

        Summed over all modes it is |w|^2 per channel pair (Parseval). Periodic, unit spacing, as the dynamics sees it: on 3x3 |k| is 0,
        2.09 or 2.96.

        Raises:
            ValueError: not one of ``kernels``.
        """
        if name not in self.kernels:
            raise ValueError(
                f"name={name!r} is no convolution kernel with two spatial axes; choose one of {', '.join(self.kernels) or '(none)'}"
            )
        w = self.theta[name]
        space = w.shape[3:]
        power = torch.fft.fftn(w, dim=tuple(range(3, w.ndim))).abs().square().flatten(3).mean((1, 2)) / math.prod(space)
        waves = torch.meshgrid(*(2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64) for size in space), indexing="ij")
        size = torch.stack(waves).square().sum(0).sqrt().flatten()
        k, place = torch.unique((size * 1e9).round() / 1e9, return_inverse=True)
        total = torch.zeros(len(w), len(k), dtype=torch.float64).index_add(1, place, power)
        modes = place.bincount()
        return Bands(k, modes, total / modes)

    def singular_values(self, name: str) -> Tensor:
        """Of a weight of two or more axes, as a matrix (out, everything else): (times, values), largest first.

        Raises:
            ValueError: a weight with one axis.
        """
        w = self.theta[name]
        if w.ndim < 3:
            raise ValueError(f"name={name!r} of shape {tuple(w.shape[1:])} is no matrix and has no singular values")
        return torch.linalg.svdvals(w.flatten(2))

    @property
    def moving_most(self) -> str:
        """The weight that gets furthest from its start, relative to its size."""
        return max(self.changes, key=lambda name: self.changes[name].max().item())

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        start, end = self.times[0], self.times[-1]
        columns = ["weight", "shape", f"|theta({start:g})|", f"|theta({end:g})|", "furthest change", "what moves"]
        rows: list[list[Any]] = []
        for name, w in self.theta.items():
            norms, change = self.norms[name][[0, -1]].tolist(), self.changes[name].max().item()
            rows.append([name, "x".join(map(str, w.shape[1:])), *norms, change, self._moves(name)])
        return f"theta under {self.dynamics}\n{table(columns, rows)}"

    def _moves(self, name: str) -> str:
        """Of a kernel how fine it is, of a matrix its largest singular value, at the start and end."""
        if not bool(self.theta[name].isfinite().all()):
            return "not finite"
        if name in self.kernels:
            k, modes, power = self.bands(name)
            fine = ((power * modes) @ k / (power @ modes.double())).nan_to_num()
            return f"mean |k| {number(fine[0].item())} -> {number(fine[-1].item())}"
        if self.theta[name].ndim >= 3:
            values = self.singular_values(name)[:, 0]
            return f"largest singular value {number(values[0].item())} -> {number(values[-1].item())}"
        return "-"


def weight_path(block: ODEBlock | FastWeights, times: int | Sequence[float] | None = None, *, z0: Any = None) -> WeightPath:
    """How the weights of a block move, theta(t) at some times: norms, change, spectra.

    Where the dynamics has no closed form, its steps are cut further so that they meet the times that are given.

    Args:
        block: a ``CoupledODEBlock``; an ``ODEBlock``, whose parameters stand still; ``FastWeights``, seen at all knots of z0.
        times: so many equally spaced ones over the block's t, at least 2; or the times themselves, the first of which counts as the start.
            None: 11, or where the dynamics has no closed form those at which z reads theta, whose steps are the block's own.
        z0: the input, where the weights read the features: those of each sample are looked at, by the names ``name[0]``, ``name[1]`` ...

    Raises:
        TypeError: something else than a block; of a network, its blocks are named.
        ValueError: times outside the block's t, or fewer than two.

    Source: ANODEV2, arXiv 1906.04596.
    """
    block = uncompiled(block)
    if isinstance(block, FastWeights):
        return _learned(block, z0)
    if not isinstance(block, ODEBlock):
        raise TypeError(f"block must be an ODEBlock, CoupledODEBlock or FastWeights, {_instead(block)}")
    with torch.inference_mode(False), torch.no_grad(), Subject(block, None, {}).untouched(() if z0 is None else z0):
        chosen = _chosen(block, times)
        if len(chosen) < 2:
            raise ValueError(f"times={times!r} must be at least two times, to see a change")
        theta = block.weights(chosen, z0) if isinstance(block, CoupledODEBlock) else _standing(block, len(chosen))
    if not isinstance(block, CoupledODEBlock):
        return WeightPath(tuple(chosen), _kept(theta), "no dynamics")
    if block.dynamics.reads_features:
        theta = {f"{name}[{i}]": w[:, i] for name, w in theta.items() for i in range(w.shape[1])}
    return WeightPath(tuple(chosen), _kept(theta), type(block.dynamics).__name__)


def _learned(layer: FastWeights, x: Any) -> WeightPath:
    """Those of each sample at all knots, which are numbered."""
    if x is None:
        raise ValueError("the weights of FastWeights learn from the sequence they read: give it as z0")
    with torch.inference_mode(False), torch.no_grad():
        theta = layer.weights(x)
    apart = {f"{name}[{i}]": w[:, i] for name, w in theta.items() for i in range(w.shape[1])}
    return WeightPath(tuple(map(float, range(len(next(iter(theta.values())))))), _kept(apart), type(layer.rule).__name__)


def _standing(block: ODEBlock, count: int) -> dict[str, Tensor]:
    return {name: w.expand(count, *w.shape) for name, w in block.f.named_parameters()}


def _kept(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.detach().cpu().to(torch.complex128 if w.is_complex() else torch.float64) for name, w in theta.items()}


def _instead(block: Any) -> str:
    wanted = (ODEBlock, FastWeights)
    inside = [name for name, module in block.named_modules() if isinstance(module, wanted)] if isinstance(block, nn.Module) else []
    return f"got {type(block).__name__}" + (f"; give one of those inside it: {', '.join(inside)}" if inside else "")


def _chosen(block: ODEBlock, times: int | Sequence[float] | None) -> list[float]:
    start, end = block.t
    coupled = isinstance(block, CoupledODEBlock)
    if times is None and coupled and (block.dynamics.reads_features or block.dynamics.flow(block.weights(start), [0.0]) is None):
        return list(dict.fromkeys([start, *block.reading_times, end]))
    if times is not None and not isinstance(times, int):
        return [float(time) for time in times]
    count = 11 if times is None else as_count("times", times)
    return [start + (end - start) * i / max(1, count - 1) if i < count - 1 or i == 0 else end for i in range(count)]
