"""A layer for sequences whose weights learn from what they read."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from .both_ways import in_own_precision
from .dynamics import DeltaRule, LearningRule, Theta
from .gradients.adjoint import Adjoint, as_adjoint
from .integrate.compiled import Compile, as_compile
from .integrate.functional_call import call_with
from .integrate.sample_weights import call_together
from .path import Path
from .signature import signature_of
from .solve import odeint
from .solvers import Map, Method, as_method
from .solvers.tableau import Tableau
from .stepping import as_count

EXACT = "exact"
EXPONENTIAL = "exponential_euler"  # the same, for a rule that is linear while its input is held


class Pairs(nn.Module):
    """x -> key and value of the same size: linear maps, the key of length 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(self.key(x), dim=-1), self.value(x)


class FastWeights(nn.Module):
    """A sequence to a sequence, read from a memory whose weights W learn while the sequence runs:

        dW/dt = rule(W, key(x(t)), value(x(t))),  output n = memory(query(x_n)) with the W of its time

    Each sample has a W of its own, which starts from the memory's parameters; these, the rule's rate, keys, values and queries are
    trained. Queries have length 1.

    Of an input held still between knots, x_n is learned until the next knot, the last one for a unit of time, and then read: with
    "euler" and one step this is the discrete rule W_{n+1} = W_n + gap_n rule(W_n, x_n) to the bit, DeltaNet for ``DeltaRule()``. Of
    "linear" and "cubic" paths output n is read at the time of x_n, the first one from the memory as it is.

    Args:
        dim: the size of x_n, of keys, values, and of outputs where the memory keeps it.
        rule: a ``LearningRule`` without ``pairs`` of its own, which reads z = (key, value) of a token, and counts t in knots; default
            ``DeltaRule()``.
        memory: a module whose parameters that the rule accepts are W, called as memory(query) for one sample and token; default
            ``nn.Linear(dim, dim, bias=False)``, at first zero.
        pairs: a module called as pairs(x) -> (key, value), or pairs(x, dx) where it has a second parameter, dx/dt of a path that is
            not held. Default: linear maps, keys of length 1.
        method, steps, adjoint, compile: as for ``odeint``; ``steps`` are those between two knots. "exact" is the closed form of an
            input held still, of rules that have one (``DeltaRule.held``): EFLA. "exponential_euler", which
            solves a linear part exactly, is the same.

    ``adjoint="direct"`` keeps what the steps save, a small multiple of the weights at all knots, which are kept in any case to be
    read; "checkpoint" keeps these alone, for one more pass of the rule.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.

    Source: Schlag, Irie, Schmidhuber, ICML 2021 (arXiv 2102.11174); Irie, Faccio, Schmidhuber, Neural Differential Equations for
    Learning to Program Neural Nets Through Continuous Learning Rules, NeurIPS 2022 (arXiv 2206.01649).
    """

    def __init__(
        self,
        dim: int,
        *,
        rule: LearningRule | None = None,
        memory: nn.Module | None = None,
        pairs: nn.Module | None = None,
        method: str | Tableau | Method = "euler",
        steps: int = 1,
        adjoint: str | Adjoint = "direct",
        compile: bool | Compile = False,
    ) -> None:
        super().__init__()
        self.dim = as_count("dim", dim)
        self.rule = DeltaRule() if rule is None else rule
        if not isinstance(self.rule, LearningRule):
            raise TypeError(f"rule must be a LearningRule such as DeltaRule(), got {type(rule).__name__}")
        for name, module in (("memory", memory), ("pairs", pairs)):
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be an nn.Module, got {type(module).__name__}")
        self.exact = method in (EXACT, EXPONENTIAL)
        if self.exact and not callable(getattr(self.rule, "held", None)):
            raise ValueError(f"method='exact' needs a closed form, which {type(self.rule).__name__} has not; DeltaRule has")
        self.method, self.steps = as_method("map" if isinstance(method, str) and self.exact else method), as_count("steps", steps)
        if isinstance(self.method, Map) and not self.exact:
            raise ValueError("method='map' has no times; take method='euler', or 'exact' for the closed form of a rule")
        if self.exact and self.steps > 1:
            raise ValueError(f"method='exact' needs one step between knots, got steps={steps}")
        self.adjoint, self.compiling = as_adjoint(adjoint), as_compile(compile) or False
        self.memory = _memory(dim) if memory is None else memory
        self.pairs = Pairs(dim) if pairs is None else pairs
        self.query = nn.Linear(dim, dim, bias=False)
        self.evolving = tuple(name for name, w in self.memory.named_parameters() if self.rule.accepts(name, w))
        if not self.evolving:
            raise ValueError(f"memory has no parameter that {type(self.rule).__name__} can move, among {_names(self.memory)}")
        self.rule.bind(self._start())
        signature = signature_of(self.pairs)
        self._wants_slope = signature is not None and len([p for p in signature.parameters.values() if p.default is p.empty]) == 2

    def forward(self, x: Tensor | Path) -> Tensor:
        """The outputs, (batch, length, dim); in padding the last one again.

        Args:
            x: a ``Path`` of values (batch, length, dim), or these alone, held still from 0 to 1, 1 to 2 ...
        """
        path = self._path(x)
        theta = self.weights(path)
        read = {name: w[1:] if path.kind == "hold" else w for name, w in theta.items()}
        query = nn.functional.normalize(self.query(path.values), dim=-1).transpose(0, 1)
        return _read(self.memory, read, query).transpose(0, 1)

    def weights(self, x: Tensor | Path) -> Theta:
        """W at all knots, (length, batch, *weight.shape), and one after the last where x is held still."""
        path = self._path(x)
        if len(path) == 1 and path.kind != "hold":
            return {name: w.expand(1, path.values.shape[0], *w.shape) for name, w in self._start().items()}
        drive = self._drive(path)
        start = {name: w.expand(path.values.shape[0], *w.shape) for name, w in self._start().items()}
        grid = {} if self.exact else {"steps": self.steps}
        options: dict[str, Any] = {"method": self.method, "adjoint": self.adjoint, "compile": self.compiling, **grid}
        with in_own_precision(path.values.device):
            return odeint(_Learning(self, path.kind), start, range(drive.intervals + 1), args=(drive.pairs, drive.gaps), **options)

    def _path(self, x: Tensor | Path) -> Path:
        path = x if isinstance(x, Path) else Path(None, x, "hold")
        if path.values.ndim != 3 or path.values.shape[2] != self.dim:
            raise ValueError(f"x must be (batch, length, {self.dim}), got {tuple(path.values.shape)}")
        if path.kind != "hold" and self.exact:
            raise ValueError(f"method='exact' is for an input held still, got a {path.kind!r} path; write Path(times, x, 'hold')")
        if path.kind == "hold" and self._wants_slope:
            raise ValueError("pairs(x, dx) needs the slope of a 'linear' or 'cubic' path, and this one is held still")
        return path

    def _start(self) -> Theta:
        present = dict(self.memory.named_parameters())
        return {name: present[name] for name in self.evolving}

    def _drive(self, path: Path) -> _Drive:
        """Keys and values of all evaluations, made together, and how long each interval between knots is."""
        if path.kind == "hold":
            made = [self._made(path.values)]
            return _Drive(made, _held(path), len(path))
        made = [self._made(*path.within(fraction)) for fraction in _fractions(self.method, self.steps)]
        return _Drive(made, None if path.regular else _apart(path.gaps), len(path) - 1)

    def _made(self, x: Tensor, slope: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """By interval."""
        found = self.pairs(x, slope) if self._wants_slope else self.pairs(x)
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) and part.ndim == 3 for part in found)):
            raise TypeError(f"pairs must return (key, value), (batch, length, size) both, got {type(found).__name__}")
        dtype = next(iter(self._start().values())).dtype
        return list(zip(*(_apart(part.to(dtype)) for part in found), strict=True))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, method={EXACT if self.exact else self.method.name!r}, steps={self.steps}, evolving={list(self.evolving)}"


class _Drive(NamedTuple):
    """(key, value) by fraction of an interval and interval; the length of each interval, None for 1; how many there are."""

    pairs: list[list[tuple[Tensor, Tensor]]]
    gaps: list[Tensor] | None
    intervals: int


class _Learning:
    """dtheta/ds in units of intervals, or theta after an interval in closed form."""

    counters_wanted = ("step", "stage", "backwards")

    def __init__(self, layer: FastWeights, kind: str) -> None:
        self.owner = self.rule = layer.rule
        self.exact, self.steps = layer.exact, layer.steps
        self.nodes = None if kind == "hold" else layer.method.nodes
        self.place = {fraction: place for place, fraction in enumerate(_fractions(layer.method, layer.steps))}

    def __call__(self, t: Tensor, theta: Theta, pairs: Any, gaps: Any, *, step: int, stage: int, backwards: bool) -> Theta:
        n, part = divmod(step, self.steps)
        place = 0
        if self.nodes is not None:
            node = self.nodes[stage]
            place = self.place[_fraction(part + (1 - node if backwards else node), self.steps)]
        if self.exact:
            return self.rule.held(t, theta, pairs[place][n], 1.0 if gaps is None else gaps[n])  # pyright: ignore
        slope = self.rule(t, theta, pairs[place][n])
        return slope if gaps is None else {name: gaps[n].view(-1, *[1] * (k.ndim - 1)).to(k.dtype) * k for name, k in slope.items()}


def _fractions(method: Method, steps: int) -> list[float]:
    """Where in an interval the rule is evaluated, forwards or backwards."""
    nodes = [*method.nodes, *(1 - node for node in method.nodes)]
    return sorted({_fraction(part + node, steps) for part in range(steps) for node in nodes})


def _fraction(place: float, steps: int) -> float:
    return round(place / steps, 12)


def _held(path: Path) -> list[Tensor] | None:
    """How long each value is held, the last one of a sample for a unit of time."""
    if path.regular:
        return None
    last = len(path) - 1 if path.lengths is None else path.lengths[:, None] - 1
    ends = torch.arange(len(path), device=path.values.device)[None] == last
    gaps = torch.cat([path.gaps, torch.zeros_like(path.times[:, :1])], 1)
    return _apart(gaps + ends)


def _apart(sequence: Tensor) -> list[Tensor]:
    """Along the second axis; one node of the graph, so that its gradient is put together once."""
    return list(sequence.unbind(1))


def _read(memory: nn.Module, theta: Theta, query: Tensor) -> Tensor:
    """memory(query) with the weights of each token and sample, (length, batch, ...) all."""

    def one(theta: Theta, query: Tensor) -> Tensor:
        return call_with(memory, theta, query)

    flat, rows = {name: w.flatten(0, 1) for name, w in theta.items()}, query.flatten(0, 1)
    if isinstance(memory, nn.Linear):  # as a product of matrices per token, whose round-off is that of one alone
        return call_together(partial(call_with, memory), flat, rows).unflatten(0, query.shape[:2])
    return vmap(one, randomness="different")(flat, rows).unflatten(0, query.shape[:2])


def _memory(dim: int) -> nn.Linear:
    memory = nn.Linear(dim, dim, bias=False)
    nn.init.zeros_(memory.weight)
    return memory


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]
