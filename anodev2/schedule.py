"""Which states to keep on the way forward and in which order to redo steps on the way back: pure Python, no tensors.

One instance read aloud, 10 steps and 3 slots: forward keeps the states before steps 0, 4 and 7 and that before the last
step, 9; backward reverses step 9; restores 7, advances to 8 and reverses 8; restores 7 once more and reverses it; ...

The binomial schedule redoes the fewest steps that any schedule with so many slots can (Griewank & Walther, Algorithm 799:
revolve, ACM TOMS 26, 2000); it is supplied by checkpoint_schedules. Where the number of steps is not known beforehand,
states are kept at every 2^k-th step, k as small as the slots allow, and each gap is reversed with the slots that are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Literal, NamedTuple


class Action(NamedTuple):
    """One order to whoever holds the states.

    "restore": make the kept state ``at`` the working one; "keep": keep the working state, which is ``at``; "forget": let
    go of the kept state ``at``; "advance": from ``at`` to ``to`` without a graph; "reverse": redo step ``at`` from the
    working state with a graph and pull the gradient back through it (the working state is gone then).
    """

    kind: Literal["restore", "keep", "forget", "advance", "reverse"]
    at: int
    to: int = 0

    def shifted(self, by: int) -> Action:
        return Action(self.kind, self.at + by, self.to + by if self.kind == "advance" else 0)


@dataclass(frozen=True)
class Schedule:
    """How N steps are reversed from the states ``kept`` on the way forward; the last ``graphs`` steps have their graphs still."""

    steps: int
    kept: tuple[int, ...]
    backward: tuple[Action, ...]
    graphs: int = 0

    @property
    def redone(self) -> int:
        """Steps done again on the way back, with or without a graph."""
        advanced = sum(action.to - action.at for action in self.backward if action.kind == "advance")
        return advanced + self.steps - self.graphs

    def peak(self, state: float, graph: float) -> float:
        """The most held at once, in the unit of ``state`` and ``graph``: kept and working states, kept graphs, the graph being redone."""
        kept, working = set(self.kept), -1
        most = len(kept) * state + self.graphs * graph + state  # at the end of the way forward, with the last state
        for action in self.backward:
            if action.kind == "keep":
                kept.add(action.at)
            elif action.kind == "forget":
                kept.discard(action.at)
            working = action.to if action.kind == "advance" else action.at
            graphs = max(1, self.graphs - (self.steps - 1 - action.at)) if action.kind == "reverse" else 0
            after = state if action.kind in ("reverse", "advance") else 0
            most = max(most, len(kept | {working}) * state + graphs * graph + after)
        return most

    def draw(self, width: int = 96) -> str:
        """Time runs to the right, a line per sweep: o a state kept, - a step without graph, = one whose graph is kept, < one reversed."""
        scale = max(1, -(-self.steps // width))
        graphs = dict.fromkeys(range(self.steps - self.graphs, self.steps), "=")
        lines = [{**dict.fromkeys(range(self.steps), "-"), **dict.fromkeys(self.kept, "o"), **graphs}, {}]
        for action in self.backward:
            if action.kind == "advance":
                new = {at: lines[-1].get(at, "-") for at in range(action.at, action.to)}
            else:
                new = {action.at: mark} if (mark := {"keep": "o", "reverse": "<"}.get(action.kind)) else {}
            if any(lines[-1].get(at, mark) != mark for at, mark in new.items()):
                lines.append({})
            lines[-1].update(new)
        return "\n".join(_line(self.steps, scale, line) for line in lines)


def _line(steps: int, scale: int, marks: dict[int, str]) -> str:
    cells = ([marks.get(i, " ") for i in range(start, min(start + scale, steps))] for start in range(0, steps, scale))
    return "".join(min(cell, key="o=<- ".index) for cell in cells).rstrip()


@lru_cache(maxsize=256)
def positions(steps: int, slots: int | None, graphs: int = 0) -> tuple[int, ...]:
    """Before which steps to keep the state on the way forward.

    The slots, spread over the steps without a kept graph; then the state before the last of these, so that reversing it
    needs no advance, and those that the graphs start from.
    """
    plain = steps - graphs
    if slots is None or slots >= plain:
        return tuple(range(steps))
    starts = [0] if plain == 1 else [at for kind, at, _ in _forward(plain, slots) if kind == "keep"]
    return (*starts, *range(max(plain - 1, 1), steps))


@lru_cache(maxsize=64)
def reversal(steps: int, kept: tuple[int, ...], slots: int | None, graphs: int = 0) -> Schedule:
    """The way back from ``kept``: gap by gap, last to first, each with the slots that are free by then."""
    actions: list[Action] = []
    for place in reversed(range(len(kept))):
        start, end = kept[place], kept[place + 1] if place + 1 < len(kept) else steps
        free = max(1, (slots or steps) - place)
        actions += (action.shifted(start) for action in _gap(end - start, free))
    return Schedule(steps, kept, tuple(actions), graphs)


@lru_cache(maxsize=1024)
def _gap(steps: int, slots: int) -> tuple[Action, ...]:
    """Reverse ``steps`` steps from the state before the first, which is kept and takes one of the slots."""
    return (Action("restore", 0), *_binomial(steps, slots)[1])


def _forward(steps: int, slots: int) -> tuple[Action, ...]:
    return _binomial(steps, slots)[0]


@lru_cache(maxsize=1024)
def _binomial(steps: int, slots: int) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    """The actions of the first sweep of the optimal schedule; and all of them but for keeping state 0."""
    if steps == 1:
        return (), (Action("forget", 0), Action("reverse", 0))
    from checkpoint_schedules import multistage  # imports numpy, which a solve without slots does not need

    multistage.n_advance = getattr(multistage.n_advance, "py_func", multistage.n_advance)  # numba would compile for seconds
    actions: list[Action] = []
    first_sweep = 0
    for order in multistage.MultistageCheckpointSchedule(steps, min(slots, steps - 1), 0):
        actions += _translated(order)
        if type(order).__name__ == "EndForward":
            first_sweep = len(actions)
    return tuple(actions[:first_sweep]), tuple(action for action in actions if action != Action("keep", 0))


def _translated(order: object) -> Iterator[Action]:
    """An action of checkpoint_schedules in ours; its step with adjoint data and the reversal after it are one of ours."""
    kind = type(order).__name__
    if kind == "Forward" and not order.write_adj_deps:  # pyright: ignore[reportAttributeAccessIssue]
        if order.write_ics:  # pyright: ignore[reportAttributeAccessIssue]
            yield Action("keep", order.n0)  # pyright: ignore[reportAttributeAccessIssue]
        yield Action("advance", order.n0, order.n1)  # pyright: ignore[reportAttributeAccessIssue]
    elif kind == "Reverse":
        yield Action("reverse", order.n0)  # pyright: ignore[reportAttributeAccessIssue]
    elif kind in ("Copy", "Move"):
        yield Action("restore", order.n)  # pyright: ignore[reportAttributeAccessIssue]
        if kind == "Move":
            yield Action("forget", order.n)  # pyright: ignore[reportAttributeAccessIssue]


class Thinning:
    """States kept on the way forward while the number of steps is not known: at every 2^k-th step, at most ``slots``."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.stride = 1
        self.kept: list[int] = []

    def admit(self, index: int) -> list[int]:
        """Keep ``index`` where its turn is, and say which states go for it: none, the odd ones, or itself."""
        if index % self.stride:
            return [index]
        self.kept.append(index)
        if len(self.kept) <= self.slots:
            return []
        self.stride *= 2
        gone = [at for at in self.kept if at % self.stride]
        self.kept = [at for at in self.kept if at % self.stride == 0]
        return gone


@lru_cache(maxsize=64)
def fewest_redone(steps: int, budget: int, state: int, graph: int) -> tuple[int, int] | None:
    """Slots, and how many of the last steps keep their graph, that redo the fewest steps with at most ``budget`` held at once.

    None where a single slot is too much. What is held (``Schedule.peak``) is largest at the end of the way forward or
    while the first step without a kept graph is redone.
    """
    state = max(state, 1)
    choices: list[tuple[int, int, int]] = []
    for graphs in range(steps + 1):
        plain = steps - graphs
        forward = (budget - graphs * graph) // state - graphs - 1  # states without a kept graph, at the end of the way forward
        if plain == 0 and forward >= 0:
            choices.append((0, -graphs, 1))
        elif plain and (most := min(forward, (budget - graph) // state - 1)) >= min(plain, 2):
            slots = plain if most >= plain else most - 1  # one is the state before the last of these steps
            choices.append((redone_by(plain, slots), -graphs, slots))
    return (min(choices)[2], -min(choices)[1]) if choices else None


def redone_by(steps: int, slots: int) -> int:
    """Steps that the binomial schedule does again, the last one included: r N - C(s + r, r - 1) + 1, C(s + r, s) >= N > C(s + r - 1, s).

    Source: Griewank & Walther 2000, Proposition 1.
    """
    if slots >= steps:
        return steps
    r = next(r for r in range(1, steps + 1) if comb(slots + r, slots) >= steps)
    return r * steps - comb(slots + r, r - 1) + 1
