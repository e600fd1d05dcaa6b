"""Memory flat in the number of steps: some states are kept, no graph; steps are redone as the binomial schedule says.

An autograd Function ties the outputs to what the steps were observed to use (``vjp``). Steps of the pass forward have a graph too,
which is dropped at once: it shows what they use, and which nodes a redone step must have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..integrate.attributes import Track
from ..integrate.comparison import Comparison, Samples, changed
from ..integrate.loop import Accepts, Loop, Take, Taken
from ..integrate.recording import Recording
from ..problem import Costs, Problem, Run, bytes_of
from ..solvers import Leaves
from ..stepping import Grid, Step
from .offload import Offload
from .per_step import TooLarge
from .schedule import Schedule, Thinning, positions
from .vjp import Captured, Grads, Kinds


@dataclass
class Slots:
    """One solve with ``slots`` states (None: all); ``graph_bytes``: what a step's graph may take, where there is a budget."""

    problem: Problem
    recording: Recording
    captured: Captured
    slots: int | None
    graph_bytes: int | None = None
    offload: Offload | None = None
    costs: Costs = field(default_factory=Costs)
    kinds: Track[Kinds] = field(default_factory=Track)
    expected: dict[int, Samples] = field(default_factory=dict)  # of states, by the number of steps before them

    def forward(self, y0: Leaves) -> tuple[Run, Leaves]:
        """The wanted states, without a history, and the kept ones."""
        stepping = self.problem.stepping
        places = set(positions(len(stepping), self.slots)) if isinstance(stepping, Grid) else None
        thinning, states = Thinning(self.slots), dict[int, Leaves]()
        loop = Loop(self.captured.problem, self.captured.args, self.recording, self._attempt, reuse="none")
        y: Leaves = [leaf.detach() for leaf in y0]
        before: Leaves = []
        for step, y_next in loop.steps(y):
            self.kinds.append(self._last if not self.kinds.values or self._last != self.kinds.values[-1] else self.kinds.values[-1])
            if step.index in loop.read():
                self.expected[step.index + 1] = Samples(y_next)
            if places is None or step.index in places:
                states[step.index] = self._stored(y)
                for gone in thinning.admit(step.index) if places is None else ():
                    del states[gone]
            before, y = y, y_next
        self.grid = loop.grid
        if len(self.grid) and len(self.grid) - 1 not in states:
            states[len(self.grid) - 1] = self._stored(before)  # from which the way back starts
        kept = tuple(sorted(at for at in states if at < len(self.grid)))
        self.schedule = Schedule(len(self.grid), kept, self.slots)
        self.state_bytes = bytes_of(y)
        outputs = zip(self.problem.outputs(self.grid), loop.outputs(), strict=True)
        for index, state in ((len(self.grid), y), *outputs):
            self.expected[index] = Samples(state)
        self.inside, self.read = self.grid.within() if self.problem.reads else {}, tuple(loop.read())
        self.costs.hold((len(kept) + 1) * self.state_bytes)
        grid = self.grid.mapped(self.captured.original)
        run = Run(loop.outputs(), grid, loop.status, loop.rejected, self.costs, loop.read())
        return run, [leaf for at in kept for leaf in states[at]]

    def _attempt(self, take: Take, y: Leaves, first: Leaves | None, between: Callable[[], None], accepts: Accepts) -> Taken:
        weigh = self.graph_bytes is not None
        taken, self._last, (size, _) = self.captured.attempt(lambda start: take(start, None, between, accepts), y, weigh)
        if self.graph_bytes is not None and size > self.graph_bytes:
            raise TooLarge(size)
        return taken

    def backward(self, kept: list[Tensor], cotangents: Sequence[Tensor | None], wants: Sequence[bool]) -> Grads:
        """Gradients of all inputs from those of the outputs: steps redone as the schedule says, last to first."""
        width, steps = len(wants), self.grid.steps()
        outputs = self.problem.outputs(self.grid)
        groups = [list(cotangents[i * width : (i + 1) * width]) for i in range(len(outputs) + len(self.read))]
        arriving, of_read = dict(zip(outputs, groups, strict=False)), dict(zip(self.read, groups[len(outputs) :], strict=True))
        nothing: Grads = [None] * width
        states: dict[int, Leaves] = {at: kept[i * width : (i + 1) * width] for i, at in enumerate(self.schedule.kept)}
        kept.clear()
        totals: Grads = [None] * len(self.captured.sources)
        comparison = Comparison(self.recording.low_precision)
        asked = [*arriving.items(), *((index + 1, seeds) for index, seeds in of_read.items())]
        last = max((at for at, seeds in asked if any(seed is not None for seed in seeds)), default=0)
        y_bar, expected = arriving.get(last, nothing), self.expected[last]
        for index, start, way in replace(self.schedule, steps=last, kept=tuple(at for at in states if at < last)).backward():
            for gone in [at for at in states if at > index]:
                del states[gone]
            here = arriving.get(index, nothing)
            y = states[start] if self.offload is None else self.offload.fetch(start, states[start])
            for at in range(start, index):
                if at in way:
                    states[at] = self._stored(y)
                with self.recording.replaying(at):
                    y = self.captured.end(y, lambda start, step=steps[at]: self.captured.problem.advance(step, start, self.captured.args))
            if self.offload is not None and (ahead := [at for at in states if at < index]):
                self.offload.prefetch(ahead[-1], states[ahead[-1]])
            self.costs.redone += sum(step.count for step in steps[start : index + 1])
            self.costs.hold((len({*states, index}) + 1) * self.state_bytes + (self.graph_bytes or 0))
            watching = self.recording.watching(y) if index == len(steps) - 1 else nullcontext()
            with self.recording.replaying(index):
                with watching:
                    graph = self.captured.graph(y, lambda start, step=steps[index]: self._taken(step, start))
                if graph.kinds != self.kinds[index]:
                    raise changed("led to another graph")
                comparison.add(graph.end[:width], expected)
                expected = Samples(y)
                if len(graph.end) > width:
                    y_bar = [*y_bar, *of_read.get(index, nothing)]
                y_bar = self.captured.pull_back(graph, y_bar, here, totals, wants if index == 0 else [True] * width)
        return [*y_bar, *totals]

    def _taken(self, step: Step, y: list[Tensor]) -> list[Tensor]:
        """The next state, and what is read of the step."""
        end, _, read = Take(self.captured.problem, self.captured.args, step, inside=self.inside.get(step.index, ()))(y)
        return [*end, *read]

    def _stored(self, y: Leaves) -> Leaves:
        return y if self.offload is None else self.offload.store(y)
