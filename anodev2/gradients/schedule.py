"""Which states to keep on the way forward, and which on the way back: pure Python, no tensors.

One instance read aloud, 10 steps and 3 slots: forward keeps the states before steps 0, 4 and 7 and that before the last
step, 9; backward reverses step 9; starts from 7, advances to 8 and reverses it; reverses 7; starts from 4, keeps 5 on the way ...

A step is reversed from the nearest kept state; on the way there the binomial positions of the gap are kept in the slots that are
free. The binomial schedule redoes the fewest steps that any schedule with so many slots can (Griewank & Walther, Algorithm 799:
revolve, ACM TOMS 26, 2000); its positions are supplied by checkpoint_schedules. Where the number of steps is not known beforehand,
states are kept at every 2^k-th step, k as small as the slots allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import comb


@dataclass(frozen=True)
class Schedule:
    """How N steps are reversed from the states ``kept`` on the way forward; the last ``graphs`` steps have their graphs still."""

    steps: int
    kept: tuple[int, ...]
    slots: int | None = None
    graphs: int = 0

    def backward(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """For every step, last to first: the kept state that it is reached from, and the states to keep on the way."""
        held = list(self.kept)
        for index in reversed(range(self.steps)):
            while held[-1] > index:
                held.pop()
            start, way = held[-1], ()
            if start < index:
                free = max(1, (self.slots or self.steps) - len(held) + 1)
                way = tuple(start + place for place in positions(index + 1 - start, free) if 0 < place < index - start)
            yield index, start, way
            held += way

    @property
    def redone(self) -> int:
        """Steps done again on the way back, with or without a use of their graph."""
        return self.steps - self.graphs + sum(index - start for index, start, _ in self.backward())

    def peak(self, state: float, graph: float) -> float:
        """The most held at once, in the unit of ``state`` and ``graph``: kept states, those around a step, kept graphs, its own."""
        kept, most = set(self.kept), 0.0
        for index, _, way in self.backward():
            kept |= set(way)
            kept = {at for at in kept if at <= index}
            graphs = max(1, self.graphs - (self.steps - 1 - index))
            most = max(most, len(kept | {index, index + 1}) * state + graphs * graph)
        return most

    def draw(self, width: int = 96) -> str:
        """Time runs to the right, a line per sweep: o a state kept, - a step without graph, = one whose graph is kept, < one reversed."""
        scale = max(1, -(-self.steps // width))
        graphs = dict.fromkeys(range(self.steps - self.graphs, self.steps), "=")
        lines = [{**dict.fromkeys(range(self.steps), "-"), **dict.fromkeys(self.kept, "o"), **graphs}, {}]
        for index, start, way in self.backward():
            new = {**{at: lines[-1].get(at, "-") for at in range(start, index)}, **dict.fromkeys(way, "o"), index: "<"}
            if any(lines[-1].get(at, mark) != mark for at, mark in new.items()):
                lines.append({})
            lines[-1].update(new)
        return "\n".join(_line(self.steps, scale, line) for line in lines)


def _line(steps: int, scale: int, marks: dict[int, str]) -> str:
    cells = ([marks.get(i, " ") for i in range(start, min(start + scale, steps))] for start in range(0, steps, scale))
    return "".join(min(cell, key="o=<- ".index) for cell in cells).rstrip()


@lru_cache(maxsize=1024)
def positions(steps: int, slots: int | None) -> tuple[int, ...]:
    """Before which steps to keep the state on the way forward: the slots, and the last step, so that reversing it needs no advance."""
    if slots is None or slots >= steps:
        return tuple(range(steps))
    from checkpoint_schedules import multistage  # imports numpy, which a solve without slots does not need

    multistage.n_advance = getattr(multistage.n_advance, "py_func", multistage.n_advance)  # numba would compile for seconds
    kept = []
    for order in multistage.MultistageCheckpointSchedule(steps, min(slots, steps - 1), 0):
        if type(order).__name__ == "EndForward":
            break
        if getattr(order, "write_ics", False):
            kept.append(order.n0)  # pyright: ignore[reportAttributeAccessIssue]
    return (*kept, *range(max(steps - 1, 1), steps))


class Thinning:
    """States kept on the way forward while the number of steps is not known: at every 2^k-th step, at most ``slots``."""

    def __init__(self, slots: int | None) -> None:
        self.slots = slots
        self.stride = 1
        self.kept: list[int] = []

    def admit(self, index: int) -> list[int]:
        """Keep ``index`` where its turn is, and say which states go for it: none, the odd ones, or itself."""
        if index % self.stride:
            return [index]
        self.kept.append(index)
        if self.slots is None or len(self.kept) <= self.slots:
            return []
        self.stride *= 2
        gone = [at for at in self.kept if at % self.stride]
        self.kept = [at for at in self.kept if at % self.stride == 0]
        return gone


def most_slots(steps: int, budget: int, state: int, graph: int) -> int:
    """So many slots that at most ``budget`` bytes are held at once (``Schedule.peak``); 0 where one is too much."""
    return max(0, min(steps, (budget - graph) // max(state, 1) - 2))


def redone_by(steps: int, slots: int) -> int:
    """Steps that the binomial schedule does again, the last one included: r N - C(s + r, r - 1) + 1, C(s + r, s) >= N > C(s + r - 1, s).

    Source: Griewank & Walther 2000, Proposition 1.
    """
    if slots >= steps:
        return steps
    r = next(r for r in range(1, steps + 1) if comb(slots + r, slots) >= steps)
    return r * steps - comb(slots + r, r - 1) + 1
