"""Schedules replayed on a model of the storage: nothing missing, nothing more than allowed, no step too many."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anodev2 import CheckpointAdjoint
from anodev2.gradients.schedule import Schedule, Thinning, most_slots, positions, redone_by


def offline(steps: int, slots: int | None) -> Schedule:
    return Schedule(steps, positions(steps, slots), slots)


def online(steps: int, slots: int) -> Schedule:
    """As an adaptive solve keeps states: it learns the number of steps by reaching the end."""
    thinning, kept = Thinning(slots), set()
    for index in range(steps):
        kept.add(index)
        kept -= set(thinning.admit(index))
        assert len(kept) <= slots
    return Schedule(steps, tuple(sorted(kept | {steps - 1})), slots)


@dataclass
class Store:
    """States (by the number of steps done) and graphs (by the step) that are held, as they come and go."""

    states: set[int] = field(default_factory=set)
    graphs: set[int] = field(default_factory=set)
    history: list[tuple[int, int]] = field(default_factory=list)  # how many of each, after every step

    def step(self, at: int, graph: bool = False) -> None:
        """Take step ``at`` from a state that is there; the state it comes from is only held on if it is kept."""
        assert at in self.states
        self.states.add(at + 1)
        self.graphs |= {at} if graph else set()
        self.history.append((len(self.states), len(self.graphs)))

    def peak(self, state: float, graph: float) -> float:
        return max(states * state + graphs * graph for states, graphs in self.history)


def replay(schedule: Schedule) -> tuple[int, Store]:
    """Both passes, on numbers instead of states: how many steps are redone, and what was held meanwhile."""
    store, steps, redone = Store({0}), schedule.steps, 0
    for at in range(steps):
        store.step(at, graph=at >= steps - schedule.graphs)
        store.states -= {at} - set(schedule.kept)
    expected = steps - 1
    for index, start, way in schedule.backward():
        assert index == expected
        store.states -= set(range(index + 1, steps + 1))
        assert start in store.states and start == max(store.states)  # the nearest
        for at in range(start, index):
            store.step(at)
            redone += 1
            store.states -= {at} if at != start and at not in way else set()
        if index not in store.graphs:
            store.step(index, graph=True)
            redone += 1
        store.states -= {index} - {start, *way}
        store.graphs.remove(index)
        expected -= 1
    assert expected == -1 and not store.graphs
    return redone, store


@cache
def fewest(steps: int, slots: int) -> int:
    """Steps done again by the best reversal with so many slots, one of them taken by the start: Bellman's recursion."""
    if steps == 1:
        return 1
    if slots == 1:
        return steps * (steps + 1) // 2
    return min(at + fewest(steps - at, slots - 1) + fewest(at, slots) for at in range(1, steps))


@pytest.mark.parametrize("steps", range(1, 61))
def test_every_step_is_reversed_once_within_the_slots_and_with_the_fewest_steps_redone(steps: int) -> None:
    for slots in range(1, steps + 3):
        schedule = offline(steps, slots)
        redone, store = replay(schedule)
        assert len(set(schedule.kept) - {steps - 1}) <= slots and 0 in schedule.kept  # the slots, and the state before the last step
        assert max(states for states, _ in store.history) <= min(slots, steps - 1) + 2  # and the two of the step at work
        assert max(graphs for _, graphs in store.history) == 1
        # the optimum (Griewank, Walther 2000) does the last step of its first sweep with a graph; here it is redone
        optimum = steps if slots >= steps else fewest(steps, slots) - steps + 1
        assert redone == schedule.redone == redone_by(steps, slots) == optimum


@pytest.mark.parametrize(("steps", "slots", "optimum"), [(64, 8, 201), (64, 3, 322), (1000, 10, 4636)])
def test_forward_steps_in_all_are_the_binomial_optimum_and_the_last_one_redone(steps: int, slots: int, optimum: int) -> None:
    assert steps + replay(offline(steps, slots))[0] == optimum + 1


def test_ten_steps_with_three_slots_read_aloud() -> None:
    schedule = offline(10, 3)
    assert schedule.kept == (0, 4, 7, 9)
    nothing = ()
    assert list(schedule.backward()) == [
        *((9, 9, nothing), (8, 7, nothing), (7, 7, nothing)),
        *((6, 4, (5,)), (5, 5, nothing), (4, 4, nothing)),
        *((3, 0, (1, 2)), (2, 2, nothing), (1, 1, nothing), (0, 0, nothing)),
    ]


@given(st.integers(1, 60), st.data())
def test_kept_graphs_are_not_redone(steps: int, data: st.DataObject) -> None:
    schedule = Schedule(steps, positions(steps, None), None, data.draw(st.integers(0, steps)))
    redone, store = replay(schedule)
    assert redone == schedule.redone == steps - schedule.graphs
    assert store.history[steps - 1] == (steps + 1, schedule.graphs)


@given(st.integers(1, 300), st.integers(1, 20))
def test_an_unknown_number_of_steps_is_reversed_within_the_slots(steps: int, slots: int) -> None:
    schedule = online(steps, slots)
    redone, store = replay(schedule)
    assert max(states for states, _ in store.history) <= slots + 3  # before the last step one more, and the two of a step
    assert redone == schedule.redone
    if slots >= 4:
        assert redone <= 2.2 * redone_by(steps, slots)


def test_the_slots_of_an_unknown_number_of_steps_are_spread_evenly() -> None:
    assert online(100, 8).kept == (0, 16, 32, 48, 64, 80, 96, 99)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 60), st.integers(0, 9), st.integers(0, 9))
def test_the_peak_is_what_is_held_at_once(steps: int, slots: int, graphs: int, state: int, graph: int) -> None:
    for schedule in (offline(steps, slots), online(steps, slots), Schedule(steps, positions(steps, None), None, min(graphs, steps))):
        assert schedule.peak(state, graph) == replay(schedule)[1].peak(state, graph)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 5), st.integers(0, 9))
def test_as_many_slots_as_fit(steps: int, budget: int, state: int, graph: int) -> None:
    fitting = [slots for slots in range(1, steps) if offline(steps, slots).peak(state, graph) <= budget] or [0]
    assert most_slots(steps, budget, state, graph) in (fitting[-1], *([steps] if fitting[-1] >= steps - 1 else []))


@given(st.integers(1, 30), st.integers(1, 400), st.integers(1, 5), st.integers(1, 9))
def test_a_budget_is_kept_by_the_schedule_that_redoes_fewest(steps: int, budget: int, state: int, graph: int) -> None:
    """Of those with slots, and of those with all states and the graphs of the last steps."""
    offered = [*(offline(steps, s) for s in range(1, steps)), *(Schedule(steps, positions(steps, None), None, g) for g in range(steps + 1))]
    fitting = [schedule.redone for schedule in offered if replay(schedule)[1].peak(state, graph) <= budget]
    if not fitting:
        with pytest.raises(ValueError, match="below the smallest schedule"):
            CheckpointAdjoint(memory=budget).schedule(steps, state, graph)
        return
    found = CheckpointAdjoint(memory=budget).schedule(steps, state, graph)
    redone, store = replay(found)
    assert store.peak(state, graph) <= budget and redone == found.redone == min(fitting)


def test_a_drawing_shows_what_is_kept_and_each_sweep_back() -> None:
    assert offline(10, 3).draw().splitlines() == ["o---o--o-o", "       -<<", "    -o<<", "-oo<<<", "<<<"]
    assert Schedule(6, positions(6, None), None, 2).draw().splitlines() == ["oooo==", "<<<<<<"]
    long = offline(1000, 10).draw(width=80).splitlines()
    assert max(map(len, long)) <= 80 and long[0].count("o") == 10  # two neighbours share a cell
