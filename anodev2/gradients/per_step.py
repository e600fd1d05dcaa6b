"""A state per step: the graph is that of the forward pass; what it saved is dropped, and a step redone when a backward pass asks.

``torch.autograd.graph.saved_tensors_hooks`` see every tensor that an operation saves for its derivative. The frame of a step
keeps them while it runs, then lets them go; the nodes hold places in the frame. When a node first asks for its tensor, the step
is taken again from its kept state, with everything as it was (``recording``), until it has saved the last one. As nodes are never
made anew, whatever f does with tensors (closures, caches, attributes, hooks, derivatives inside) is differentiated as without
checkpoints, any number of times. Only values are redone, and they are compared: how many, their shapes, types and versions, a
sample of the last, and samples of all in the last step, with which every backward pass begins.

The first step is not let go before the second has saved as much: a cache that it filled would not be filled again.
"""

from __future__ import annotations

import dis
import sys
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..integrate.captured import is_library
from ..integrate.comparison import Comparison, Samples, changed
from ..integrate.loop import Accepts, Loop, Take, Taken
from ..integrate.recording import MODIFIED, Recording
from ..problem import Costs, Problem, Run, bytes_of, storage, versions
from ..solvers import Leaves
from ..stepping import Grid, Step, numbers
from ..torch_private import compilers_own_warnings_ignored, has_forward_hooks, keeps_graph, next_node, saving_hooks
from .offload import Offload

Kind = tuple[torch.Size, torch.dtype]  # of what is saved


class TooLarge(Exception):
    """A step's graph of so many bytes does not fit beside the states that are planned for."""

    def __init__(self, graph_bytes: int) -> None:
        self.graph_bytes = graph_bytes


class PerStep:
    """One solve. ``budget``: bytes of states and of graphs; those of the last steps are kept as far as they fit."""

    def __init__(
        self, problem: Problem, recording: Recording, args: tuple[Any, ...], budget: int | None = None, offload: Offload | None = None
    ) -> None:
        self.problem, self.recording, self.args, self.budget, self.offload = problem, recording, args, budget, offload
        self.outer = saving_hooks() if offload is None else None
        self.loop: Loop | None = None
        self.costs = Costs()
        self.comparison = Comparison(recording.low_precision)
        self.frame: Frame | None = None  # of the last attempt
        self.redone: weakref.ref[Frame] | None = None  # the frame redone last
        self.whole: deque[Frame] = deque()  # those that hold what they saved, oldest first
        self.graphs = 0  # bytes of these
        # numbers of the next node when the solve began and when the last attempt did, and the nodes that this one starts from
        self.began: tuple[int, int, set[Any]] = next_node(), 0, set()

    def run(self, y0: Leaves) -> Run:
        """The wanted states, with their history."""
        loop = self.loop = Loop(self.problem, self.args, self.recording, self.attempt, reuse="accepted")
        try:
            for step, y in loop.steps(y0):
                self._settle(step, y)
            if self.budget is None and len(loop.grid) == 1:
                self.whole[0].let_go()
        finally:  # whatever has a history would hold itself
            if self.frame is not None and self.frame.running:  # failed, or did not count
                self.frame.let_go()
            self.recording.attributes.close()
            self.frame = self.loop = None
            self.began = 0, 0, set()
            self.whole.clear()
        return Run(loop.outputs(), loop.grid, loop.status, loop.rejected, self.costs, loop.read())

    def attempt(self, take: Take, y: Leaves, first: Leaves | None, between: Callable[[], None], accepts: Accepts) -> Taken:
        """Take a step with a frame around it."""
        if self.frame is not None and self.frame.running:  # rejected
            self.frame.let_go()
        self.frame = frame = Frame(self, take, y, self.frame)
        self.began = self.began[0], next_node(), {leaf.grad_fn for leaf in (*y, *(first or ()))}

        holders: list[Any] = [frame]

        def advanced() -> None:
            frame.advancing, holders[0] = len(frame.at), Estimate(frame)
            frame.estimate = weakref.ref(holders[0])
            between()

        assert frame.live is not None
        quietly = compilers_own_warnings_ignored() if self.recording.opaque else nullcontext()
        with quietly, saved_tensors_hooks(packer(holders, frame.live, frame.at), unpack):
            found = take(y, first, advanced, accepts)
        holders[0] = frame
        return found

    def _settle(self, step: Step, y: Leaves) -> None:
        """The step just taken is accepted: what it holds, and who lets go for it."""
        frame, stepping, state = self.frame, self.problem.stepping, bytes_of(y)
        assert frame is not None and self.loop is not None
        steps = len(stepping) if isinstance(stepping, Grid) else step.index + 1
        last = step.index + 1 == steps if isinstance(stepping, Grid) else numbers((step.time(1.0),)) == numbers(stepping.times[-1:])
        if last:
            self.loop.first = None
        if self.loop.first is None:
            frame.forget_estimate()
        frame.last = last
        frame.end(y, everything=last or self.loop.wants(step.index + 1))
        if step.index == 0 or self.budget is not None:
            frame.hold()
            self.whole.append(frame)
        else:
            frame.let_go()
        if self.budget is None:
            if step.index == 1 and not Counter(self.whole[0].saved) - Counter(frame.saved) and not _reaches_back(y, *self.began):
                self.whole[0].let_go()
            self.costs.hold((step.index + 2) * state)
            return
        self.graphs += frame.bytes
        while self.graphs > self.budget - (steps + 1) * state:
            if len(self.whole) == 1:
                raise TooLarge(frame.bytes)
            gone = self.whole.popleft()
            self.graphs -= gone.bytes
            gone.let_go()
        self.costs.hold((step.index + 2) * state + self.graphs)


class Frame:
    """One step: the state before it, what it saved, and these tensors while it runs or has been redone."""

    __slots__ = (
        "__weakref__", "advancing", "at", "before", "bytes", "estimate", "kinds", "last", "live", "now", "place", "running", "samples",
        "saved", "solve", "take", "versions", "y",
    )  # fmt: skip

    def __init__(self, solve: PerStep, take: Take, y: Leaves, before: Frame | None) -> None:
        self.solve, self.take, self.before = solve, take, None if before is None else weakref.ref(before)
        self.place = solve.recording.marks - 1
        self.kinds = [(leaf.requires_grad, leaf.is_leaf, nn.Parameter if _of_parameter(leaf) else Tensor.detach) for leaf in y]
        if solve.offload is not None:
            self.y: list[Any] = solve.offload.store(y)
        else:
            self.y = [leaf.detach() if solve.outer is None else solve.outer[0](leaf.detach()) for leaf in y]
        self.versions = versions(y)
        self.live: list[Tensor | None] | None = []
        self.saved: list[Kind] = []
        self.at: list[int] = []  # versions of these when they were saved
        self.now: list[int] = []  # and as they have been redone
        self.samples: tuple[list[int], Samples] = [], Samples([])  # of what was saved at these places
        self.advancing: int | None = None  # how many had been saved when the next state was there
        self.estimate: weakref.ref[Estimate] | None = None  # what holds those that were saved afterwards
        self.bytes, self.running, self.last = 0, True, False

    def forget_estimate(self) -> None:
        """What only the estimate of the error saved has no nodes any more, unless f keeps something of it."""
        if self.estimate is not None and self.estimate() is None and self.live is not None:
            del self.live[self.advancing :], self.at[self.advancing :]

    def end(self, y: Leaves, everything: bool) -> None:
        """The step has been taken and led to y."""
        live = self.live or []
        seen, moving = {_part(leaf) for leaf in self.y if isinstance(leaf, Tensor)}, self.solve.recording.moving()
        found: dict[int, Tensor] = {}
        for place in reversed(range(len(live))):
            tensor = live[place]
            if tensor is not None and (part := _part(tensor)) not in seen and _is_result(tensor, moving):
                seen.add(part)
                found[place] = tensor
                if not everything:
                    break
        self.samples = list(found), Samples(list(found.values()))
        self.saved = _kinds(live)
        before = self.before() if self.before is not None else None
        if before is not None and before.saved == self.saved and before.at == self.at:
            self.saved, self.at = before.saved, before.at  # one list for all that are alike
        if self.solve.budget is not None:
            self.bytes = bytes_saved(live, [*y, *self.y], self.solve.recording)

    def hold(self) -> None:
        """Keep what was saved, apart from its nodes: a result that holds itself would never be freed."""
        live: list[Tensor | None] = [None if tensor is None else tensor.detach() for tensor in self.live or ()]
        self.let_go()
        self.live = live
        self.now = self.at

    def let_go(self) -> None:
        if self.live is not None:
            self.live.clear()  # nodes hold the hook that fills it
        self.live, self.running = None, False

    def tensor(self, place: int) -> Tensor:
        """What was saved at this place, redone where it is gone."""
        if self.live is None or self.live[place] is None:
            self.redo()
        assert self.live is not None
        tensor = self.live[place]
        assert tensor is not None
        if self.running:  # a derivative inside f
            return tensor
        if tensor._version != self.now[place]:  # with hooks autograd does not look
            raise RuntimeError(
                f"{MODIFIED}: a tensor of shape {tuple(tensor.shape)} is at version {tensor._version}, not {self.now[place]}"
            )
        if not keeps_graph():
            self.live[place] = None  # nobody will ask again
        return tensor

    def state(self) -> tuple[list[Tensor], list[Tensor]]:
        """The state before the step as leaves, and in the role that it had."""
        solve, before = self.solve, self.before() if self.before is not None else None
        if solve.offload is not None:
            y = solve.offload.fetch(self.place, self.y)
            if before is not None:
                solve.offload.prefetch(before.place, before.y)
        elif solve.outer is not None:
            y = [solve.outer[1](packed) for packed in self.y]
        else:
            y = self.y
            if versions(y) != self.versions:
                raise RuntimeError(f"{MODIFIED}: the state before step {self.take.step.index}; change a copy of it")
        leaves = [role(leaf.detach()).requires_grad_(wants) for leaf, (wants, _, role) in zip(y, self.kinds, strict=True)]
        return leaves, [leaf if is_leaf else leaf.view_as(leaf) for leaf, (_, is_leaf, _) in zip(leaves, self.kinds, strict=True)]

    def redo(self) -> None:
        """Take the step again, until all that it saved is there."""
        solve, live, at = self.solve, list[Tensor](), list[int]()
        last = solve.redone() if solve.redone is not None else None
        if last is not None and last is not self:
            last.let_go()
        solve.redone = weakref.ref(self)
        solve.costs.redone += self.take.step.count
        with torch.enable_grad():
            leaves, y = self.state()
            watching = solve.recording.watching(y) if self.last else nullcontext()
            with solve.recording.replaying(self.place), watching, saved_tensors_hooks(packer([live], live, at, len(self.at)), unpack):
                try:
                    self.take(y)
                except BaseException:  # TorchScript makes another of _Complete
                    if len(at) < len(self.at):
                        live.clear()
                        raise
        if self.advancing == len(self.at):  # what only estimates the error is not asked for
            del live[self.advancing :], at[self.advancing :]
        kinds, now = _kinds(live), versions(live)
        if kinds != self.saved or at != self.at or at != now:
            self._check(live, kinds, at, now, y)
        self.live, self.now = list(live), now
        live.clear()  # the nodes of the redone step hold what holds them
        for leaf in leaves:
            if leaf.requires_grad:
                leaf.register_hook(_refuse_kept)
        redone: Any = self.live
        solve.comparison.add([redone[place] for place in self.samples[0]], self.samples[1])
        if solve.budget is not None:
            solve.costs.hold((self.place + 1) * bytes_of(y) + self.bytes)

    def _check(self, live: list[Tensor], kinds: list[Kind], at: list[int], now: list[int], y: Leaves) -> None:
        """Refuse other kinds, and other versions but for those of copies of the state; what f writes to is counted as it is by now."""
        own, moving = {storage(leaf) for leaf in y}, self.solve.recording.moving()
        odd = [
            tensor
            for tensor, then, during, after in zip(live, self.at, at, now, strict=False)
            if storage(tensor) not in own and (after != then or (during != then and storage(tensor) not in moving))
        ]
        if kinds != self.saved or odd:
            live.clear()
        if kinds != self.saved:
            raise changed(f"saved other tensors ({len(kinds)}, not {len(self.saved)}, or of other shapes)")
        if odd:
            raise RuntimeError(f"{MODIFIED}: a tensor of shape {tuple(odd[0].shape)}, of which func saves a derivative")


class Estimate:
    """Stands for a frame where a stage that only estimates the error saves something, and lives as long as that may be asked for."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame


def packer(holders: list[Any], live: list[Any], at: list[int], wanted: int = -1) -> Callable[[Tensor], tuple[Any, int, int]]:
    """What gives a saved tensor a place in ``live``, its version in ``at``; parameters and their views stay references."""

    def pack(tensor: Tensor) -> tuple[Any, int, int]:
        if _of_parameter(tensor):
            return tensor, -1, tensor._version
        live.append(tensor)
        at.append(tensor._version)
        if len(at) == wanted and stoppable(sys._getframe(1)):
            raise _Complete
        return holders[0], len(at) - 1, 0

    return pack


def _of_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor._base, nn.Parameter) if tensor._is_view() else tensor.is_leaf and isinstance(tensor, nn.Parameter)


class _Complete(BaseException):
    """A redone step has saved all that it saved at first."""


def stoppable(frame: types.FrameType | None) -> bool:
    """Whether nothing of note is left to do in the functions that are at work: a value set, a call for its effect, a hook."""
    while frame is not None and frame.f_code is not Frame.redo.__code__:
        module = frame.f_locals["self"] if frame.f_code is nn.Module._call_impl.__code__ else None
        if module is not None and has_forward_hooks(module):
            return False
        if not is_library(frame.f_globals.get("__name__", "")) and _acts_after(frame.f_code, frame.f_lasti):
            return False
        frame = frame.f_back
    return True


@lru_cache(maxsize=4096)
def _acts_after(code: types.CodeType, at: int) -> bool:
    """Whether what is left of ``code`` sets anything but its own names, or makes a call of which it does not use the result."""
    instructions = list(dis.get_instructions(code))
    begin = min([at, *(i.argval for i in instructions if i.offset > at and "JUMP_BACKWARD" in i.opname)])  # a loop goes round
    names = [i.opname for i in instructions if i.offset > at or begin <= i.offset < at]
    called = any(a.startswith("CALL") and b == "POP_TOP" for a, b in pairwise(names))
    return called or any(name in ACTS for name in names)


ACTS = {kind + what for kind in ("STORE_", "DELETE_") for what in ("ATTR", "SUBSCR", "GLOBAL", "DEREF", "SLICE")}


def unpack(packed: tuple[Any, int, int]) -> Tensor:
    holder, place, version = packed
    if type(holder) is Frame:
        return holder.tensor(place)
    if type(holder) is Estimate:
        return holder.frame.tensor(place)
    if place < 0:
        if holder._version != version:  # with hooks autograd does not look
            raise RuntimeError(f"{MODIFIED}: a parameter of shape {tuple(holder.shape)} is at version {holder._version}, not {version}")
        return holder
    if place >= len(holder):
        _refuse_kept()
    return holder[place]


def _refuse_kept(*_: Tensor) -> Any:
    raise ValueError(
        "func keeps a tensor with a history outside itself, and in a backward pass has put that of a redone step in its place, which has "
        "no history before it; use what is kept before that backward pass and clear it after, make it part of the state, or solve with "
        "adjoint='direct'"
    )


def _is_result(tensor: Tensor, moving: set[int]) -> bool:
    """Whether a redone step must find these values: not in what f writes to, nor an order that a device may choose anew."""
    steady = tensor.is_cpu or tensor.is_floating_point() or tensor.is_complex()
    return steady and tensor.layout is torch.strided and (tensor.requires_grad or storage(tensor) not in moving)


def _part(tensor: Tensor) -> Any:
    """Which numbers a strided tensor shows."""
    return storage(tensor), tensor.storage_offset() if tensor.layout is torch.strided else 0, tensor.shape


def _kinds(live: Sequence[Tensor | None]) -> list[Kind]:
    return [(tensor.shape, tensor.dtype) for tensor in live if tensor is not None]


def _reaches_back(ends: Leaves, origin: int, since: int, starts: set[Any]) -> bool:
    """Whether the graph of a step reaches nodes of steps before otherwise than from its start: a cache, something that f has kept."""
    nodes: list[Any] = [leaf.grad_fn for leaf in ends if leaf.grad_fn is not None]
    seen = {None, *nodes}
    for node in nodes:  # grows while it is walked
        for child, _ in node.next_functions:
            if child not in seen and child._sequence_nr() >= since:
                nodes.append(child)
            elif child not in seen and child not in starts and child._sequence_nr() >= origin:
                return True
            seen.add(child)
    return False


def bytes_saved(live: list[Tensor | None], around: list[Any], recording: Recording) -> int:
    """Of what a step saved, apart from states and constants."""
    sizes = {
        storage(tensor): tensor.untyped_storage().nbytes()
        for tensor in live
        if tensor is not None and tensor.layout is torch.strided and not isinstance(tensor._base, nn.Parameter)
    }
    for tensor in around:
        if isinstance(tensor, Tensor):
            sizes.pop(storage(tensor), None)
    return sum(size for key, size in sizes.items() if key not in recording.outside)
