"""The talk's table "ANODE vs Neural ODE", measured: what a gradient holds and what it costs, over N_t steps and over L blocks.

    memory     store everything O(L N_t)     ANODE O(L + N_t)     reverse solve O(L)
    work       O(L N_t) for each of them, with other constants

Memory is the peak of live bytes in a training step, counted storage by storage, without its input and parameters; work is the number of
evaluations of f, forward and backward, and is compared with what ``plan`` tells beforehand. One should see: over N_t the bytes of
storing everything, and of one state per step, grow with slope 1; with 8 slots, a budget, a reversible scheme or a reverse solve they
stand still. The work is 1, 2, a slowly growing binomial number (4.14 at N_t = 256), 2.88 there with a budget of 1 MiB, 4 and 2 evaluations
per step. The budget counts states and graphs of steps. The peak, 1.11 MiB, has besides what autograd makes while it pulls a gradient back
through one step: gradients of z and of the numbers within f, 3.5 states here, whatever N_t.

A state per step in each of L blocks is L N_t states. O(L + N_t) is had where whole blocks are done again, in one of two ways: ANODE's own,
an outer solve whose L steps are the blocks, which stores L inputs of blocks and the graph of one block (torch.utils.checkpoint around
every block holds as much, and moves BatchNorm's statistics twice); or one solve through all blocks with L + N_t slots. With a fixed
number of slots in each block, and more work, it is O(L).

The second picture shows when each step is evaluated, as the field itself wrote down, and for how long its state and its graph are held.
With s slots a schedule keeps s + 1 states; the picture counts one more, that from which the last step was taken.

    python examples/memory_and_work.py
"""

from __future__ import annotations

import math
import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, ODEBlock, Plan, ReversibleAdjoint, plan
from live_bytes import LiveBytes
from options import Drawing, Picture, script

STATE = (2048, 4)  # 32 KiB
WIDTH = 8
SLOTS = 8
ADJOINTS: dict[str, Adjoint] = {
    "store all": DirectAdjoint(),
    "state per step": CheckpointAdjoint(),
    "memory=1MiB": CheckpointAdjoint(memory="1MiB"),
    "slots=8": CheckpointAdjoint(slots=SLOTS),
    "reversible": ReversibleAdjoint(),
    "reverse solve": BacksolveAdjoint(),
}
AGAIN, ONE = "each block again", "one solve"  # the two ways to O(L + N_t)
KINDS = (*ADJOINTS, AGAIN, ONE)
LOOKS = {  # colour, marker, line
    "store all": ("#000000", "o", "-"),
    "state per step": ("#D55E00", "s", "-"),
    AGAIN: ("#CC79A7", "P", "-"),
    ONE: ("#8B4513", "X", "--"),
    "memory=1MiB": ("#E69F00", "D", "-."),
    "slots=8": ("#009E73", "^", "-"),
    "reversible": ("#0072B2", "v", "--"),
    "reverse solve": ("#56B4E9", "*", ":"),
}


class Field(nn.Module):
    """f(t, z) = W2 tanh(W1 z), which counts its evaluations."""

    evaluations = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(STATE[1], WIDTH), nn.Linear(WIDTH, STATE[1])

    def forward(self, t: Any, z: Tensor) -> Tensor:
        Field.evaluations += 1
        return self.outer(torch.tanh(self.inner(z)))


class Chain(nn.Module):
    """The L blocks as L Euler steps of length 1: z + (block(z) - z)."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        return self.blocks[step](z) - z


class Joined(nn.Module):
    """The fields of L blocks as one field over t = (0, L): step n belongs to block n // N_t."""

    def __init__(self, fields: Sequence[nn.Module], steps: int) -> None:
        super().__init__()
        self.fields, self.steps = nn.ModuleList(fields), steps

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        return self.fields[step // self.steps](t, z)


def network(kind: str, blocks: int, steps: int) -> nn.Module:
    """L blocks of N_t Euler steps: the same function for every kind but "reversible", which has a scheme of its own."""
    torch.manual_seed(0)
    fields = [Field() for _ in range(blocks)]
    if kind == ONE:
        together = CheckpointAdjoint(slots=blocks + steps)
        return ODEBlock(Joined(fields, steps), steps=blocks * steps, t=(0, blocks), adjoint=together)
    inside = DirectAdjoint() if kind == AGAIN else ADJOINTS[kind]
    parts = [ODEBlock(f, steps=steps, adjoint=inside) for f in fields]
    return ODEBlock(Chain(parts), steps=blocks, t=(0, blocks)) if kind == AGAIN else nn.Sequential(*parts)


def start() -> Tensor:
    return torch.randn(STATE, generator=torch.Generator().manual_seed(1), requires_grad=True)


@dataclass(frozen=True)
class Row:
    """One training step: peak of live bytes, evaluations of f."""

    kind: str
    blocks: int
    steps: int
    bytes: int
    evaluations: int


def measure(kind: str, blocks: int, steps: int) -> Row:
    net, z = network(kind, blocks, steps), start()
    Field.evaluations = 0
    with LiveBytes() as live:
        live.ignore([z, *net.parameters()])
        net(z).square().mean().backward()
    return Row(kind, blocks, steps, live.peak, Field.evaluations)


def told(kind: str, blocks: int, steps: int) -> Plan:
    """The plan of one block, or of the one solve through all."""
    if kind == ONE:
        f, adjoint = Joined([Field() for _ in range(blocks)], steps), CheckpointAdjoint(slots=blocks + steps)
        return plan(f, start(), (0.0, blocks), steps=blocks * steps, method="euler", adjoint=adjoint)
    return plan(Field(), start(), steps=steps, method="euler", adjoint=ADJOINTS[kind])


def predicted(kind: str, blocks: int, steps: int) -> int:
    """Evaluations of f, forward and backward, told beforehand."""
    if kind == AGAIN:
        return 2 * blocks * steps
    found = told(kind, blocks, steps)
    tried = int(getattr(found.adjoint, "memory", None) is not None and found.slots is not None)  # a step shows that not all states fit
    return (tried + found.evaluations_forward + found.evaluations_backward) * (1 if kind == ONE else blocks)


def binomial(steps: int, slots: int) -> int:
    """Evaluations for N steps and s slots, s < N: N + r N - C(s + r, r - 1) + 1 with the least r such that C(s + r, s) >= N."""
    r = next(r for r in range(1, steps + 1) if math.comb(slots + r, slots) >= steps)
    return steps + r * steps - math.comb(slots + r, r - 1) + 1


def slope(rows: Sequence[Row]) -> float:
    """Of log bytes over log N_t, by least squares."""
    xs, ys = [math.log(row.steps) for row in rows], [math.log(row.bytes) for row in rows]
    return statistics.linear_regression(xs, ys).slope


def bend(rows: Sequence[Row], state: int) -> float:
    """d^2 (states) / dL dN_t, from the smallest and the largest L and N_t: 0 for a + b L + c N_t, the factor of L N_t otherwise."""
    at = {(row.blocks, row.steps): row.bytes / state for row in rows}
    (l0, l1), (n0, n1) = ((min(values), max(values)) for values in zip(*at, strict=True))
    return (at[l1, n1] - at[l0, n1] - at[l1, n0] + at[l0, n0]) / (l1 - l0) / (n1 - n0)


@dataclass
class Held:
    """Something that occupies memory on account of one step, from one tick of the clock to another."""

    step: int
    begin: int
    end: int
    graph: bool = False


@dataclass
class Record:
    """What a field saw: a tick for every evaluation of f and for every pull of a gradient back through one."""

    evaluations: list[tuple[int, int, bool]] = field(default_factory=list)  # tick, step, with a graph
    pulls: list[tuple[int, int]] = field(default_factory=list)  # tick, step
    held: list[Held] = field(default_factory=list)
    clock: int = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock - 1


class Watched(nn.Module):
    """A field that writes down which step it is evaluated for, with a graph or without, and how long the state it was given lives."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.inside = Field()
        self.record, self.known = record, weakref.WeakKeyDictionary[Any, Held]()

    def forward(self, t: Any, z: Tensor, *, step: int) -> Tensor:
        record, now, graph = self.record, self.record.tick(), torch.is_grad_enabled()
        record.evaluations.append((now, step, graph))
        self.see(z, Held(step, now, now + 1))
        slope = self.inside(t, z)
        if graph:
            own = Held(step, now, now + 1, graph=True)
            record.held.append(own)
            slope.register_hook(lambda _: self.pulled(own))
        return slope

    def see(self, z: Tensor, state: Held) -> None:
        storage = z.untyped_storage()
        if storage in self.known:
            return
        self.known[storage] = state
        self.record.held.append(state)
        weakref.finalize(storage, lambda: setattr(state, "end", self.record.clock))

    def pulled(self, graph: Held) -> None:
        tick = self.record.tick()
        self.record.pulls.append((tick, graph.step))
        graph.end = tick


def recorded(adjoint: Adjoint, steps: int) -> Record:
    """A solve forward and back, as its field saw it."""
    record = Record()
    ODEBlock(Watched(record), steps=steps, adjoint=adjoint)(start()).square().mean().backward()
    return record


def most_states(record: Record) -> int:
    """Held at once."""
    return max(sum(h.begin <= tick < h.end for h in record.held if not h.graph) for tick in range(record.clock))


def draw_schedules(path: Path, records: dict[str, Record], steps: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.2), layout="constrained")
    figure.suptitle(f"What is evaluated when and held how long, {steps} Euler steps: downwards is work, ink on a horizontal line is memory")
    for axes, (name, record) in zip(figure.subplots(1, len(records), sharey=True), records.items(), strict=True):
        for held in record.held:
            color, width, order = ("#F0B27A", 9, 1) if held.graph else ("#0072B2", 2.5, 2)
            axes.plot([held.step] * 2, [held.begin, held.end], color=color, linewidth=width, zorder=order, solid_capstyle="butt")
        for graph, face, label in ((False, "white", "f evaluated, no graph"), (True, "black", "f evaluated, with a graph")):
            ticks = [(step, tick) for tick, step, own in record.evaluations if own == graph]
            axes.plot(*zip(*ticks, strict=True) if ticks else ([], []), "o", color="black", mfc=face, ms=4.5, zorder=3, label=label)
        axes.plot(
            [s for _, s in record.pulls], [t for t, _ in record.pulls], "<", color="#D55E00", ms=6, zorder=3, label="gradient pulled back"
        )
        title = f"{name}\n{len(record.evaluations)} evaluations\n{most_states(record)} states at most"
        axes.set(title=title, xlabel="step", xticks=range(0, steps, 2), xlim=(-0.8, steps - 0.2))
        axes.grid(alpha=0.2)
    first, *_ = figure.axes
    first.plot([], [], color="#0072B2", linewidth=2.5, label="state held")
    first.plot([], [], color="#F0B27A", linewidth=9, label="graph of a step held")
    first.invert_yaxis()
    first.set(ylabel="action number: evaluations and pulls")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=100)


def draw(path: Path, over_steps: list[Row], over_blocks: list[Row], weights: Plan) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for kind, (color, marker, line) in LOOKS.items():
        look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": line, "markersize": 6, "linewidth": 1.3}
        own, wide = ([row for row in rows if row.kind == kind] for rows in (over_steps, over_blocks))
        left.plot([row.steps for row in own], [row.bytes / 2**20 for row in own], **look, label=kind)
        middle.plot([row.steps for row in own], [row.evaluations / row.steps for row in own], **look)
        right.plot([row.blocks for row in wide], [row.bytes / 2**20 for row in wide], **look)
    fixed = over_blocks[0].steps
    draw_theory(figure.axes, over_steps, over_blocks, weights.state_bytes / 2**20, weights.graph_bytes / 2**20)
    left.set(xlabel="steps $N_t$ of one block", ylabel="peak of live MiB", title="memory over steps: slope 1 or 0")
    middle.set(xlabel="steps $N_t$ of one block", ylabel="evaluations of f / $N_t$", title="work, forward and backward", ylim=(0, 4.6))
    right.set(xlabel=f"blocks L, of {fixed} steps each", ylabel="peak of live MiB", title="memory over blocks: $L\\,N_t$, $L + N_t$ or $L$")
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    right.set_yscale("log")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=8.5, columnspacing=1.2)
    figure.savefig(path, dpi=100)


def draw_theory(panels: Sequence[Any], over_steps: list[Row], over_blocks: list[Row], state: float, graph: float) -> None:
    """The leading terms, as broad grey lines; what a step and the end of the network hold besides does not grow."""
    left, middle, right = panels
    look: dict[str, Any] = {"color": "#999999", "linewidth": 5, "alpha": 0.4, "zorder": 0}
    steps, blocks = sorted({row.steps for row in over_steps}), sorted({row.blocks for row in over_blocks})
    fixed = over_blocks[0].steps
    left.plot(steps, [n * (state + graph) for n in steps], **look, label="theory, leading term")
    left.plot(steps, [n * state for n in steps], **look)
    left.plot(steps, [(SLOTS + 1) * state + graph for _ in steps], **look)
    for constant in (1, 2, 4):
        middle.plot(steps, [constant for _ in steps], **look)
    middle.plot(steps, [binomial(n, SLOTS) / n if n > SLOTS else 2 for n in steps], **look)
    for each in (fixed * (state + graph), fixed * state, (SLOTS + 1) * state):
        right.plot(blocks, [count * each for count in blocks], **look)
    right.plot(blocks, [count * state + fixed * (state + graph) for count in blocks], **look)
    right.plot(blocks, [(count + fixed) * state for count in blocks], **look)


@dataclass(frozen=True)
class Pictures(Picture):
    schedules: Drawing = Path("schedules.png")
    """the same, for the picture of the schedules"""


def main(picture: Path | None = None, schedules: Path | None = None, small: bool = False) -> dict[str, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # operations as small as these only wait for a second one
    try:
        numbers = costs(picture, small) | recordings(schedules)
    finally:
        torch.set_num_threads(threads)
    for what, file in (("picture", picture), ("schedules", schedules)):
        if file is not None:
            print(f"{what}: {file}")
    return numbers


def costs(picture: Path | None, small: bool) -> dict[str, float]:
    """The talk's table, measured, over N_t for one block and over L (from two on: one block has no other to be done again)."""
    over_steps = [measure(kind, 1, 2**i) for kind in ADJOINTS for i in range(9)]
    over_blocks = [measure(kind, 2**i, 32) for kind in KINDS for i in range(2 if small else 6) if kind != "memory=1MiB"]
    corners = [measure(kind, blocks, steps) for kind in KINDS for blocks in (2, 4) for steps in (16, 48)]
    weights = told("store all", 1, 1)
    numbers: dict[str, float] = {}
    for kind in KINDS:
        own, four = ([row for row in rows if row.kind == kind] for rows in (over_steps, corners))
        numbers[f"{kind}, L N_t"] = bend(four, weights.state_bytes)
        longest = (own or four)[-1]
        numbers[f"{kind}, work"] = longest.evaluations / longest.blocks / longest.steps
        if own:
            numbers[f"{kind}, slope"] = slope([row for row in own if row.steps >= 32])
            numbers[f"{kind}, states per step"] = (own[-1].bytes - own[-2].bytes) / weights.state_bytes / (own[-1].steps - own[-2].steps)
    unforeseen = (abs(row.evaluations - predicted(row.kind, row.blocks, row.steps)) for row in (*over_steps, *over_blocks, *corners))
    numbers["evaluations not told by plan"] = sum(unforeseen)
    report(numbers, weights)
    if picture is not None:
        draw(picture, over_steps, over_blocks, weights)
    return numbers


def recordings(schedules: Path | None, steps: int = 12) -> dict[str, float]:
    """What was held and evaluated in a few schedules, and their drawing."""
    chosen = {"store all": DirectAdjoint(), "state per step": CheckpointAdjoint(), "slots=3": CheckpointAdjoint(slots=3)}
    chosen |= {name: ADJOINTS[name] for name in ("reversible", "reverse solve")}
    records = {name: recorded(adjoint, steps) for name, adjoint in chosen.items()}
    if schedules is not None:
        draw_schedules(schedules, records, steps)
    held = {f"{name}, states held": float(most_states(record)) for name, record in records.items()}
    return held | {f"{name}, evaluations": float(len(record.evaluations)) for name, record in records.items()}


def report(numbers: dict[str, float], weights: Plan) -> None:
    print(f"a state: {weights.state_bytes / 1024:.0f} KiB, what autograd stores in a step besides: {weights.graph_bytes / 1024:.0f} KiB")
    print("bytes ~ N_t^slope from 32 steps on; states that one more step adds; states in the term L N_t; evaluations of f per step\n")
    print(f"{'':18}{'slope':>8}{'states/step':>13}{'in L N_t':>10}{'work':>8}")
    for kind in KINDS:
        cells = [numbers.get(f"{kind}, {name}") for name in ("slope", "states per step", "L N_t", "work")]
        widths = (8, 13, 10, 8)
        print(f"{kind:18}" + "".join(f"{'-' if v is None else f'{v:.3f}':>{w}}" for v, w in zip(cells, widths, strict=True)))
    print(f"\nevaluations that plan did not tell: {numbers['evaluations not told by plan']:.0f}")


if __name__ == "__main__":
    script(main, __doc__, Pictures)
