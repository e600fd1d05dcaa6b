"""What a one-step method is: y0 -> y1, pure, no loop over time, no storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..stepping import Step, Time
from .linear import LinearOperator, SplitState

Leaves = Sequence[Tensor]
Weights = tuple[tuple[float, ...], ...]


class FlatField(Protocol):
    """f on flat leaves, its arguments given."""

    def __call__(self, step: Step, stage: int, node: float, y: Leaves) -> list[Tensor]:
        """f at the stage's time."""
        ...


class SplitField(FlatField, Protocol):
    """f that may know a linear part of itself, and what error control allows."""

    def split(self) -> Split | None:
        """Its parts, or None."""
        ...

    def allowed(self, y: Leaves) -> list[Tensor] | None:
        """The error allowed in a step from y, of every element; None on a grid."""
        ...

    def preconditioner(self, step: Step, node: float, y: Leaves, scale: float) -> Callable[[Leaves], list[Tensor]] | None:
        """About (1 - scale f')^-1 at y and the stage's time, where f knows it."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """f = L y + data + rest, data of t alone (None: 0). ``inside``: F rest, F being ``linear.forward``, where rest knows it by itself.
    ``prepared``: what a method has made of L for steps of a length, see ``Method.prepare``."""

    linear: LinearOperator
    rest: FlatField
    data: FlatField | None = None
    inside: Callable[[Step, int, float, SplitState], Tensor] | None = None
    prepared: Callable[[Time], Any | None] = lambda h: None

    @staticmethod
    def of(field: SplitField) -> Split:
        """The parts of a field that has them."""
        split = field.split()
        assert split is not None  # checked when the problem was made
        return split

    def tables(self, method: Method, h: Time) -> Any:
        """What the method has prepared for steps of length h, or prepares now."""
        found = self.prepared(h)
        return method.prepare(self.linear, h) if found is None else found

    def at(self, field: Tensor) -> SplitState:
        """A field, which has coordinates."""
        return SplitState(self.linear, field=field)

    def transformed(self, step: Step, stage: int, node: float, state: SplitState) -> Tensor:
        """F rest at a state."""
        if self.inside is not None:
            return self.linear.received(self.inside(step, stage, node, state))
        return self.linear.forward(self.rest(step, stage, node, [state.field])[0])

    def pushed(self, step: Step, stage: int, node: float, shaped: Tensor) -> Tensor | None:
        """F data at the stage's time, in the shape of a field."""
        return None if self.data is None else self.linear.forward(self.data(step, stage, node, [shaped])[0])

    def besides(self, step: Step, stage: int, node: float, at: SplitState | Tensor, shaped: Tensor) -> Tensor:
        """F (data + rest) at a state, or at coordinates: all but L u."""
        state = SplitState(self.linear, coordinates=at) if isinstance(at, Tensor) else at
        rest, data = self.transformed(step, stage, node, state), self.pushed(step, stage, node, shaped)
        return rest if data is None else rest + data


class StepFailed(RuntimeError):
    """A step whose equations could not be solved; says why in one sentence."""


class Chooser(ABC):
    """Chooses which method takes the next step, for ``Step.by``."""

    @abstractmethod
    def saw(self, step: Step, y: Leaves, slopes: Sequence[Leaves]) -> None:
        """A step from y has been accepted."""

    @abstractmethod
    def next(self, field: SplitField) -> int:
        """Who takes the next; f may be evaluated, and is left as it was."""


class Method(ABC):
    """A one-step method.

    ``nodes`` are the stage times, in units of the step, at which a step evaluates f; ``order`` is that of its global error.
    ``splits``: whether a step needs the linear part of f, of ``func.split()``. ``jacobian``: whether it needs that
    of f. ``traced``: whether torch.compile traces it. ``embedded_order``: with it the method has error control, by ``attempt`` and
    ``error``; ``fsal`` (first same as last): the last slope of an attempt is f at its end. ``interpolant``: row i has the coefficients of
    x, x^2, ... in the weight b_i(x) of slope i, for the states y + dt sum_i b_i(x) k_i at times t + x dt within a step. ``ends``: whether
    steps end at output times where nothing is said, as the error estimate passes any length of those in which y only follows f.
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    splits: bool = False
    jacobian: bool = False
    traced: bool = False
    embedded_order: int | None = None
    fsal: bool = False
    interpolant: Weights | None = None
    ends: bool = False

    def prepare(self, linear: LinearOperator, h: Time) -> Any:
        """Functions of the linear part that steps of length h apply, a tree of tensors: made once per solve."""
        return ()

    def at(self, step: Step) -> Method:
        """The one that takes this step, of a method that consists of several."""
        return self

    def for_state(self, leaves: Leaves) -> Method:
        """The same for states such as this."""
        return self

    def chooser(self) -> Chooser | None:
        """What chooses between several methods, in one solve with error control."""
        return None

    @abstractmethod
    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        """y after the step; ``field(step, stage, node, y)`` evaluates f at the stage's time. Leaves keep their dtype."""

    def attempt(
        self, field: SplitField, step: Step, y: Leaves, first: Leaves | None, between: Callable[[], None] = lambda: None
    ) -> tuple[list[Tensor], list[Leaves]]:
        """y after the step, and what tells its error, f at the start first; ``first`` is that where it is known.

        ``between`` is called once y has been found, before what only estimates the error.
        """
        raise NotImplementedError(f"{self.name} has no error estimate")

    def completed(self, field: SplitField, step: Step, y: Leaves, end: Leaves, slopes: list[Leaves]) -> list[Leaves]:
        """The slopes of an attempt that led to ``end``, with those that only the interpolant reads."""
        return slopes

    def handed(self, slopes: Sequence[Leaves]) -> int | None:
        """Which of an attempt's slopes is f at its end, where one is."""
        return len(slopes) - 1 if self.fsal else None

    def error(self, dt: Time, slopes: Sequence[Leaves]) -> list[Tensor]:
        """The estimated error of the step in each leaf, from what ``attempt`` gave."""
        raise NotImplementedError(f"{self.name} has no error estimate")


class SplitMethod(Method):
    """A method that treats the linear part by itself, in its coordinates."""

    splits = True

    @abstractmethod
    def moved(self, split: Split, step: Step, start: SplitState, shaped: Tensor) -> SplitState:
        """The state after the step; ``shaped`` has the shape of a field."""

    def step(self, field: SplitField, step: Step, y: Leaves) -> list[Tensor]:
        split = Split.of(field)
        return [self.moved(split, step, split.at(y[0]), y[0]).field]


def combine(y: Leaves, dt: Time, weights: Sequence[float], slopes: Sequence[Leaves]) -> list[Tensor]:
    """Per leaf: y + dt sum_i w_i k_i, one fused multiply-add per nonzero weight; weights beyond the slopes are zero."""
    if len(y) == 1:  # nearly always, and lists take their time beside small operations
        leaf = y[0]
        for weight, (k,) in zip(weights, slopes, strict=False):
            leaf = add(leaf, weight * dt, k) if weight != 0 else leaf
        return [leaf]
    total = list(y)
    for weight, slope in zip(weights, slopes, strict=False):
        if weight != 0:
            total = [add(leaf, weight * dt, k) for leaf, k in zip(total, slope, strict=True)]
    return total


def add(leaf: Tensor, scale: Time, k: Tensor) -> Tensor:
    if k.dtype != leaf.dtype:
        k = k.to(leaf.dtype)
    if isinstance(scale, Tensor):
        return leaf + scale.to(k.real.dtype if k.is_complex() else k.dtype) * k
    return torch.add(leaf, k, alpha=scale)
