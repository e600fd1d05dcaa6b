"""f called with other weights for each sample of a batch.

Where these weights enter linear and convolution layers alone, f is called once with the whole batch, and each such layer is a product
or grouped convolution over samples; anything else goes through ``torch.func.vmap``, sample by sample as f sees it. The first takes 0.6
to 0.95 of the time of the second on small layers (MLPs of 16 to 128, kernels of 16 channels; 1.3 on kernels of 32 channels, batch 16, one
thread of a CPU), and leaves BatchNorm its batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.random import fork_rng

from ..pytree import build, leaves_of, structure_of
from ..signature import CountedCall
from ..torch_private import BatchNorm
from .functional_call import call_with

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_ALONE = (
    "f is called here with one sample at a time, as weights that read the features enter more than linear and convolution layers, "
    "or f knows how many samples there are; what differs from sample to sample must come in by z, such as a part of it whose slope is zero"
)
_PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 8191)


def call_together(call: Callable[..., Any], weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """``call(weights, *args)``, whose linear and convolution layers take weights of shape (batch, *shape) sample by sample."""
    with _Layers(weights):
        return call(weights, *args, **kwargs)


def call_apart(call: Callable[..., Any], weights: Mapping[str, Tensor], t: Any, z: Any, **kwargs: Any) -> Any:
    """``call(weights, t, z)`` for each sample by itself, as a batch of one; random draws differ between samples."""
    if not leaves_of(z, structure_of(z))[0].shape[0]:
        return call({name: weight.sum(0) for name, weight in weights.items()}, t, z, **kwargs)  # of no samples any weights will do

    def one(weights: Mapping[str, Tensor], z: Any) -> Any:
        slope = call(weights, t, _each(z, lambda leaf: leaf.unsqueeze(0)), **kwargs)
        return _each(slope, lambda leaf: leaf.squeeze(0))

    try:
        return vmap(one, in_dims=(0, 0), randomness="different")(dict(weights), z)
    except RuntimeError as error:
        error.add_note(_ALONE)
        raise


def _each(tree: Any, function: Callable[[Any], Any]) -> Any:
    structure = structure_of(tree)
    return build(structure, [function(leaf) for leaf in leaves_of(tree, structure)])


class Together:
    """Whether ``call_together`` serves f: tried with a copy of f, once per kind of input, on so many samples as no other axis has.

    f must keep the samples in front wherever the weights called ``names`` enter, all of them in linear and convolution layers.
    """

    def __init__(self) -> None:
        self.found: dict[Any, bool] = {}

    def __call__(self, f: nn.Module, names: tuple[str, ...], z: Any) -> bool:
        """Raises ValueError where it does not, and f has a BatchNorm in training, which must see the batch."""
        if torch.compiler.is_compiling():  # what is traced cannot be tried
            return _sees_the_batch(f) or (torch.compiler.is_exporting() and bool(self.found) and all(self.found.values()))
        structure = structure_of(z)
        leaves = leaves_of(z, structure)
        if not leaves[0].numel():
            return False  # nothing to try it with
        case = (structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves), tuple(module.training for module in f.modules()))
        if case not in self.found:
            self.found[case] = _tried(f, names, z)
        if not self.found[case]:
            _refuse_batch_norm(f, names)
        return self.found[case]


def _sees_the_batch(f: nn.Module) -> bool:
    """Whether something in f must see all samples."""
    return any(isinstance(module, BatchNorm) and module.training for module in f.modules())


def _refuse_batch_norm(f: nn.Module, names: tuple[str, ...]) -> None:
    for name, module in f.named_modules():
        if isinstance(module, BatchNorm) and module.training:
            raise ValueError(
                f"{name or 'f'} is a BatchNorm in training, for which the samples go through f together, and then weights that read the "
                f"features must enter linear and convolution layers alone: narrow evolve from {list(names)}, take GroupNorm, or call eval()"
            )


def _tried(f: nn.Module, names: tuple[str, ...], z: Any) -> bool:
    structure = structure_of(z)
    first = leaves_of(z, structure)
    axes = {size for tensor in (*first, *f.parameters()) for size in tensor.shape}
    count = next(prime for prime in _PRIMES if prime not in axes)
    device = first[0].device
    try:
        with warnings.catch_warnings(), torch.no_grad(), fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
            warnings.simplefilter("ignore")
            memo: dict[int, Any] = {id(parameter): parameter for parameter in f.parameters()}
            with _Detached():
                copy = deepcopy(f, memo)
            held = dict(copy.named_parameters(remove_duplicate=False))
            weights = {name: held[name].expand(count, *held[name].shape) for name in names}
            many = _each(z, lambda leaf: leaf[:1].expand(count, *leaf.shape[1:]))
            t = torch.zeros((), dtype=first[0].real.dtype if first[0].is_complex() else first[0].dtype, device=device)
            slope = call_together(partial(call_with, copy), weights, t, many, **CountedCall(f).counters(0, 0))
        return all(k.shape == leaf.shape for k, leaf in zip(leaves_of(slope, structure), leaves_of(many, structure), strict=True))
    except Exception:  # a use of the weights that the layers below do not serve
        return False


class _Detached(TorchFunctionMode):
    """Copies of what f keeps from an earlier call, without its graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept = func is Tensor.__deepcopy__ and not args[0].is_leaf
        return args[0].detach() if kept else func(*args, **(kwargs or {}))


class _Layers(TorchFunctionMode):
    """Linear and convolution layers whose weights have the batch in front; TypeError where such weights enter something else."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = tuple(weights.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()] if kwargs else args
        if not any(self._own(value) for value in given):
            return func(*args, **kwargs)
        if func is F.linear and not self._own(args[0]):
            return self._linear(*args, **kwargs)
        if func in _CONVOLUTIONS and not self._own(args[0]):
            return self._convolution(func, *args, **kwargs)
        raise TypeError(f"weights of each sample enter {func}")

    def _own(self, value: Any) -> bool:
        return isinstance(value, Tensor) and any(value is weight for weight in self.weights)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        batch = x.shape[0]
        if not self._own(weight):
            y = F.linear(x, weight)
        elif x.ndim == 2:
            y = torch.bmm(weight, x.unsqueeze(2)).squeeze(2)
        else:
            y = torch.bmm(x.flatten(1, -2), weight.mT).unflatten(1, x.shape[1:-1])
        if bias is None:
            return y
        return y + (bias.view(batch, *[1] * (y.ndim - 2), bias.shape[-1]) if self._own(bias) else bias)

    def _convolution(
        self, func: Any, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Tensor:
        batch, space = x.shape[0], [1] * (x.ndim - 2)
        if self._own(weight):
            y = func(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), None, stride, padding, dilation, groups * batch)
            y = y.view(batch, -1, *y.shape[2:])
        else:
            y = func(x, weight, None, stride, padding, dilation, groups)
        if bias is None:
            return y
        return y + (bias.view(batch, -1, *space) if self._own(bias) else bias.view(-1, *space))
