"""A pass forward without a graph, and the pass backward that redoes its steps as a schedule says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .ferry import Ferry
from .inputs import Inputs, StandIns, belongings
from .march import March
from .problem import Costs, Problem, Status, bytes_of, versions
from .pullback import Grads, StepGraph, Totals, hooks_silent, saved_below
from .replay import Recording, sample, without_graph
from .schedule import Schedule, Thinning, positions, reversal
from .solvers import Leaves
from .stepping import Grid, Step

Choice = Callable[[int, int, int], tuple[int | None, int]]  # (steps, bytes of a state, of a graph) -> (slots, graphs to keep)


@dataclass
class Sweep:
    """One solve, forward and backward; ``choose`` decides what to keep once the size of a step's graph is known."""

    problem: Problem
    inputs: Inputs
    recording: Recording
    slots: int | None = None
    choose: Choice | None = None
    ferry: Ferry | None = None
    end: list[Tensor] = field(default_factory=list)
    grid: Grid = field(init=False)
    schedule: Schedule = field(init=False)
    graphs: dict[int, tuple[Leaves, Leaves]] = field(default_factory=dict)
    stand_ins: StandIns | None = None
    status: Status | None = None
    rejected: int = 0
    state_bytes: int = 0
    graph_bytes: int = 0
    costs: Costs = field(default_factory=Costs)

    def forward(self, inputs: list[Tensor], args: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the steps; the leaves of the wanted states and of the kept ones."""
        y = [leaf.detach() for leaf in inputs[: self.inputs.width]]
        inner = [tensor.detach() for tensor in self.inputs.inner]
        keeper = _Keeper(self, args)
        if self.choose is not None:
            everything = [*inputs, *self.inputs.reached]
            self.stand_ins = self.inputs.stand_ins(everything, [tensor.requires_grad for tensor in everything])
            inner = self.stand_ins.inner
        march = March(self.problem, args, self.recording, keeper.advance if self.choose is not None else None)
        with self.recording.making(), self.inputs.instead(inner) as mode:
            for step, y_next in march.steps(y):
                keeper.see(step.index, y)
                y = y_next
        used = self.inputs.narrow(mode)
        if self.stand_ins is not None:
            self.recording.kept.refuse_gradients()
            self.stand_ins = self.inputs.placed([*self.stand_ins.times, *self.stand_ins.arguments], [inner[place] for place in used])
        self.end = [sample(leaf).clone() for leaf in y]
        self.grid = march.grid
        kept = keeper.finish(len(self.grid))
        self.status, self.rejected, self.state_bytes, self.graph_bytes = march.status, march.rejected, bytes_of(y), keeper.graph_bytes
        self.costs.hold((len(kept) + 1) * self.state_bytes + len(self.graphs) * self.graph_bytes)
        return [leaf for state in march.outputs() for leaf in state], [leaf for state in kept for leaf in state]

    def backward(self, inputs: Leaves, kept: list[Tensor], cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: steps redone as the schedule says, last to first."""
        stand_ins = self.stand_ins or self.inputs.stand_ins(inputs, wants)
        width = self.inputs.width
        states: dict[int, Leaves] = {at: kept[i * width : (i + 1) * width] for i, at in enumerate(self.schedule.kept)}
        kept.clear()
        back = _Back(self, stand_ins, cotangents, wants)
        with self.recording.replaying(), hooks_silent(self.inputs.leaves), self.inputs.instead(stand_ins.inner):
            for action, (kind, at, to) in enumerate(self.schedule.backward):
                if kind == "restore":
                    back.y, back.at = states[at] if self.ferry is None else self.ferry.fetch(at, states[at]), at
                    self._send_ahead(states, action)
                elif kind == "keep":
                    states[at] = self.stow(back.y)
                    self._send_ahead(states, action)
                elif kind == "forget":
                    del states[at]
                else:
                    held, graphs = len(states) + (back.at not in states) + 1, max(1, len(self.graphs)) if kind == "reverse" else 0
                    self.costs.hold(held * self.state_bytes + graphs * self.graph_bytes)
                    if kind == "advance":
                        back.advance(at, to)
                    else:
                        back.reverse(at)
        back.comparison.verify()
        return [*back.y_bar, *back.totals.values]

    def stow(self, y: Leaves) -> Leaves:
        """The state as it is kept."""
        return y if self.ferry is None else self.ferry.stow(y)

    def _send_ahead(self, states: dict[int, Leaves], action: int) -> None:
        """Let the state that is restored next, if it is kept by now, set out from host memory."""
        if self.ferry is None:
            return
        later = (self.schedule.backward[i] for i in range(action + 1, len(self.schedule.backward)))
        following = next((at for kind, at, _ in later if kind == "restore"), None)
        if following in states:
            self.ferry.send_for(following, states[following])


class _Keeper:
    """What stays of the pass forward, decided as its steps go by: states, and the graphs of the last steps."""

    def __init__(self, sweep: Sweep, args: tuple[Any, ...]) -> None:
        self.sweep = sweep
        self.args = args
        grid = sweep.problem.stepping
        self.steps = len(grid) if isinstance(grid, Grid) else None
        self.states: dict[int, Leaves] = {}
        self.last: tuple[int, Leaves] | None = None
        self.slots, self.graphs, self.graph_bytes = sweep.slots, 0, 0
        self.places: set[int] | None = None  # None: every state
        self.with_stand_ins: list[Step] = []
        self.thinning = Thinning(self.slots) if self.steps is None and self.slots is not None else None
        if self.steps is not None and self.slots is not None:
            self.places = set(positions(self.steps, self.slots))

    def see(self, index: int, y: Leaves) -> None:
        """The state before step ``index``, which has just been done."""
        self.last = (index, y)
        if self.thinning is not None:
            self.states[index] = self.sweep.stow(y)
            for gone in self.thinning.admit(index):
                del self.states[gone]
        elif self.places is None or index in self.places:
            self.states[index] = self.sweep.stow(y)

    def advance(self, step: Step, y: Leaves) -> list[Tensor]:
        """A step of a solve that chooses what it keeps: the first one is weighed, the last ones keep their graphs."""
        assert self.steps is not None and self.sweep.choose is not None
        if 0 < step.index < self.steps - self.graphs:
            return self.sweep.problem.advance(step, y, self.args)
        stand_ins = self.sweep.stand_ins
        assert stand_ins is not None
        start = [leaf.detach().requires_grad_() for leaf in y]
        if step.index == 0:
            self.with_stand_ins = self.sweep.inputs.steps(self.sweep.problem.stepping, stand_ins)  # pyright: ignore[reportArgumentType]
        step = self.with_stand_ins[step.index]
        run = lambda: self.sweep.problem.advance(step, start, self.sweep.inputs.args(stand_ins))  # noqa: E731
        with torch.enable_grad():
            if step.index == 0:
                own = [*start, *stand_ins.arguments, *stand_ins.inner, *belongings(self.sweep.problem, self.args)]
                end, self.graph_bytes = weighed(self.sweep.problem, self.sweep.recording, run, own)
                self.slots, self.graphs = self.sweep.choose(self.steps, bytes_of(y), self.graph_bytes)
                self.places = set(positions(self.steps, self.slots, self.graphs)) if self.slots is not None else None
            else:
                end = run()
        if step.index >= self.steps - self.graphs:
            self.sweep.graphs[step.index] = (start, end)
        return [leaf.detach() for leaf in end]

    def finish(self, steps: int) -> list[Leaves]:
        """The kept states in order; the way back starts from the state before the last step."""
        if self.last is not None and steps:
            self.states.setdefault(*self.last)
        kept = tuple(sorted(at for at in self.states if at < steps))
        self.sweep.schedule = reversal(steps, kept, self.slots, len(self.sweep.graphs))
        return [self.states[at] for at in kept]


class _Back:
    """Where the pass backward is: the working state, the cotangents, and the sums so far."""

    def __init__(self, sweep: Sweep, stand_ins: StandIns, cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> None:
        width = sweep.inputs.width
        self.problem, self.recording, self.graphs, self.costs = sweep.problem, sweep.recording, sweep.graphs, sweep.costs
        self.stand_ins, self.wants = stand_ins, wants[:width]
        self.steps, self.args = sweep.inputs.steps(sweep.grid, stand_ins), sweep.inputs.args(stand_ins)
        self.nothing: Grads = [None] * width
        outputs = sweep.problem.outputs(sweep.grid)
        self.arriving = {index: list(cotangents[i * width : (i + 1) * width]) for i, index in enumerate(outputs)}
        self.y: Leaves = []
        self.at = -1  # which state y is
        self.y_bar: Grads = self.arriving.get(len(self.steps), self.nothing)
        self.expected = sweep.end
        self.totals = Totals(len(stand_ins.places))
        self.comparison = sweep.recording.comparison()

    def advance(self, at: int, to: int) -> None:
        """Move the working state on, without a graph."""
        with without_graph():
            for step in self.steps[at:to]:
                self.recording.rewind(step.index)
                with self.recording.surroundings():
                    self.y = self.problem.advance(step, self.y, self.args)
        self.at, self.costs.redone = to, self.costs.redone + to - at

    def reverse(self, at: int) -> None:
        """Pull the cotangents back through the step that starts from the working state."""
        here = self.arriving.get(at, self.nothing)
        y, self.y = [leaf.detach().requires_grad_(at > 0 or want) for leaf, want in zip(self.y, self.wants, strict=True)], []
        expected, self.expected = self.expected, [sample(leaf) for leaf in y]
        if all(seed is None for seed in self.y_bar):  # no later state was asked for
            self.y_bar = here
            return
        if at in self.graphs:
            y, y_next = self.graphs.pop(at)
        else:
            y_next = self._redone(self.steps[at], y)
            self.comparison.add(y_next, expected, self.expected)
        graph = StepGraph.of([*y_next, *y], [*self.y_bar, *here])
        del y_next  # from here on only its graph is needed
        self.y_bar, gradients = graph.pull_back(y, self.stand_ins.places)
        self.totals.add(gradients)

    def _redone(self, step: Step, y: Leaves) -> Leaves:
        self.costs.redone += 1
        self.recording.rewind(step.index)
        with self.recording.surroundings(), torch.enable_grad():
            y_next = self.problem.advance(step, y, self.args)
        if step.index == 0:
            self.recording.kept.refuse_gradients()
        return y_next


def weighed(problem: Problem, recording: Recording, run: Callable[[], Leaves], own: Leaves) -> tuple[Leaves, int]:
    """The result of ``run``, and how many bytes its graph holds apart from its result and tensors of its surroundings (``own``).

    Where f uses torch.func, which does not bear hooks, it is run once more, as if for the first time, and its graph looked at.
    """
    storages: dict[int, int] = {}
    evaluations = problem.field.evaluations

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor.detach(), versions([tensor])[0]  # an output that holds itself would never be freed

    def unpack(packed: tuple[Tensor, int]) -> Tensor:
        if versions(packed[:1]) != [packed[1]]:  # with hooks autograd does not look
            raise RuntimeError("one of the variables needed for gradient computation has been modified by an inplace operation")
        return packed[0]

    try:
        with saved_tensors_hooks(pack, unpack):
            result = run()
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        recording.retreat()
        problem.field.evaluations = evaluations
        storages.clear()
        result = run()
        for tensor in saved_below([leaf.grad_fn for leaf in result if leaf.grad_fn is not None]):
            pack(tensor)
    with torch._C.DisableTorchFunction():  # asking for its storage is no use of an inner tensor
        for tensor in (*own, *result):
            storages.pop(tensor.untyped_storage()._cdata, None)
    return result, sum(storages.values())
