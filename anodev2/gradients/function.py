"""Autograd Functions that tie a solve without a lasting graph to what it depends on, and say where derivatives end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..problem import Run
from ..solvers import Leaves
from ..torch_private import transformed
from .backsolve import Backsolve
from .reversible import Undo
from .slots import Slots
from .vjp import Grads, hooks_silent


def attached(solve: Slots | Undo | Backsolve, y0: Leaves) -> Run:
    """The solve run forward; the wanted states have a history, whose gradients ``solve.backward`` gives."""
    run, kept = solve.forward(y0)
    solve.captured.closed = True
    states = [leaf.detach() for state in (*run.states, *run.read.values()) for leaf in state]
    flat = _Solved.apply(solve, len(y0), states, [leaf.detach() for leaf in kept], *y0, *solve.captured.inputs)
    groups = [flat[i : i + len(y0)] for i in range(0, len(flat), len(y0))]
    return replace(run, states=groups[: len(run.states)], read=dict(zip(run.read, groups[len(run.states) :], strict=True)))


class _Solved(torch.autograd.Function):
    """Ties the outputs of a pass forward, computed without a lasting graph, to everything they depend on."""

    @staticmethod
    def forward(ctx: Any, solve: Any, width: int, outputs: list[Tensor], kept: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.solve, ctx.width, ctx.inputs = solve, width, len(inputs)
        ctx.save_for_backward(*inputs, *kept)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, kept = saved[: ctx.inputs], list(saved[ctx.inputs :])
        del saved
        ctx.maybe_clear_saved_tensors()  # unless the graph is retained: states go as they are used up
        with torch.no_grad(), hooks_silent(ctx.solve.captured.leaves.values()):
            gradients = ctx.solve.backward(kept, cotangents, ctx.needs_input_grad[4 : 4 + ctx.width])
        if torch.is_grad_enabled():  # create_graph=True
            gradients = _FirstOrderOnly.apply(gradients, "this adjoint", *inputs, *cotangents)
        return (None, None, None, None, *gradients)


def first_order_only(tensors: Leaves, what: str) -> Leaves:
    """The same tensors, through which a first derivative can be taken, and a second is refused (forward mode passes as it is)."""
    return tensors if transformed() else _Passing.apply(what, *tensors)


class _Passing(torch.autograd.Function):
    """The identity, whose gradients have no history."""

    @staticmethod
    def forward(ctx: Any, what: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.what = what
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph
            return None, *_FirstOrderOnly.apply(list(cotangents), ctx.what, *ctx.saved_tensors)
        return None, *cotangents


class _FirstOrderOnly(torch.autograd.Function):
    """Gradients as they are, with a clear refusal where a second derivative would need their history."""

    @staticmethod
    def forward(ctx: Any, gradients: Grads, what: str, *origins: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.what = what
        return tuple(gradient if gradient is None else gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        cure = "" if ctx.what == "an event" else "; solve with adjoint='direct' or 'checkpoint' (a state per step) for that"
        raise RuntimeError(f"a second derivative through {ctx.what} is not available{cure}")
