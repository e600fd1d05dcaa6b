"""Schedules replayed on a model of the storage: nothing missing, nothing more than allowed, no step too many."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anodev2.schedule import Action, Schedule, Thinning, fewest_redone, positions, redone_by, reversal


def offline(steps: int, slots: int | None, graphs: int = 0) -> Schedule:
    return reversal(steps, positions(steps, slots, graphs), slots, graphs)


def online(steps: int, slots: int) -> Schedule:
    """As an adaptive solve keeps states: it learns the number of steps by reaching the end."""
    thinning, kept = Thinning(slots), set()
    for index in range(steps):
        kept.add(index)
        kept -= set(thinning.admit(index))
        assert len(kept) <= slots
    return reversal(steps, tuple(sorted(kept | {steps - 1})), slots)


def replay(schedule: Schedule) -> tuple[int, int]:
    """Carry the orders out on step numbers instead of states: how many steps are redone, how many states lie in store at most."""
    kept, working, redone, most, expected = set(schedule.kept), None, 0, len(schedule.kept), schedule.steps - 1
    for kind, at, to in schedule.backward:
        if kind == "restore":
            assert at in kept
            working = at
        elif kind == "keep":
            assert working == at
            kept.add(at)
        elif kind == "forget":
            kept.remove(at)
        elif kind == "advance":
            assert working == at < to
            working, redone = to, redone + to - at
        else:
            assert kind == "reverse" and working == at == expected
            working, expected = None, expected - 1
            redone += at < schedule.steps - schedule.graphs
        most = max(most, len(kept))
    assert expected == -1 and not kept
    return redone, most


@cache
def fewest(steps: int, slots: int) -> int:
    """Steps done again by the best reversal with so many slots, one of them taken by the start: Bellman's recursion."""
    if steps == 1:
        return 1
    if slots == 1:
        return steps * (steps + 1) // 2
    return min(at + fewest(steps - at, slots - 1) + fewest(at, slots) for at in range(1, steps))


@given(st.integers(1, 80), st.integers(1, 12))
def test_every_step_is_reversed_once_within_the_slots_and_with_the_fewest_steps_redone(steps: int, slots: int) -> None:
    schedule = offline(steps, slots)
    redone, most = replay(schedule)
    assert most <= min(steps, slots + 1)  # the slots, and the state before the last step
    # the optimum (Griewank, Walther 2000) does the last step of its first sweep with a graph; here it is redone
    optimum = fewest(steps, min(slots, steps))
    assert redone == schedule.redone == redone_by(steps, slots) == (steps if slots >= steps else optimum - steps + 1)


def test_literal_order_of_ten_steps_with_three_slots() -> None:
    words = [f"{a.kind} {a.at}" + (f"-{a.to}" if a.kind == "advance" else "") for a in offline(10, 3).backward]
    assert offline(10, 3).kept == (0, 4, 7, 9)
    expected = """
        restore 9, forget 9, reverse 9,
        restore 7, advance 7-8, reverse 8, restore 7, forget 7, reverse 7,
        restore 4, advance 4-5, keep 5, advance 5-6, reverse 6, restore 5, forget 5, reverse 5, restore 4, forget 4, reverse 4,
        restore 0, advance 0-1, keep 1, advance 1-2, keep 2, advance 2-3, reverse 3,
        restore 2, forget 2, reverse 2, restore 1, forget 1, reverse 1, restore 0, forget 0, reverse 0
    """
    assert words == [word.strip() for word in expected.split(",")]


@pytest.mark.parametrize(("steps", "slots", "optimum"), [(64, 8, 201), (64, 3, 322), (1000, 10, 4636)])
def test_forward_steps_in_all_are_the_binomial_optimum_and_the_last_one_redone(steps: int, slots: int, optimum: int) -> None:
    assert steps + replay(offline(steps, slots))[0] == optimum + 1


@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_kept_graphs_are_not_redone(steps: int, slots: int, data: st.DataObject) -> None:
    graphs = data.draw(st.integers(0, steps))
    redone, most = replay(offline(steps, slots, graphs))
    assert redone == (redone_by(steps - graphs, slots) if graphs < steps else 0)
    assert most <= min(slots + 1, steps - graphs) + graphs + (graphs == steps)


@given(st.integers(1, 300), st.integers(1, 20))
def test_an_unknown_number_of_steps_is_reversed_within_the_slots(steps: int, slots: int) -> None:
    redone, most = replay(online(steps, slots))
    assert most <= slots + 1
    if slots >= 4:
        assert redone <= 2.2 * redone_by(steps, slots)


def test_the_slots_of_an_unknown_number_of_steps_are_spread_evenly() -> None:
    assert online(100, 8).kept == (0, 16, 32, 48, 64, 80, 96, 99)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 60))
def test_the_peak_counts_states_and_graphs_held_at_once(steps: int, slots: int, graphs: int) -> None:
    schedule = offline(steps, slots, min(graphs, steps))
    states = schedule.peak(1, 0)
    assert states <= replay(schedule)[1] + 2  # the working state and the one it leads to
    assert schedule.peak(0, 1) == max(1, schedule.graphs)
    assert schedule.peak(3, 7) <= 3 * states + 7 * max(1, schedule.graphs)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 5), st.integers(0, 9))
def test_a_budget_is_kept_by_the_schedule_that_redoes_fewest(steps: int, budget: int, state: int, graph: int) -> None:
    pairs = itertools.product(range(1, steps + 1), range(steps + 1))
    fitting = [redone for slots, graphs in pairs if (redone := held(steps, slots, graphs, state, graph, budget)) is not None]
    found = fewest_redone(steps, budget, state, graph)
    assert (found is None) == (not fitting)
    if found is not None:
        assert held(steps, *found, state, graph, budget) == min(fitting)


def held(steps: int, slots: int, graphs: int, state: int, graph: int, budget: int) -> int | None:
    """Steps redone, if the schedule stays within the budget."""
    schedule = offline(steps, slots, graphs)
    return schedule.redone if schedule.peak(state, graph) <= budget else None


def test_a_drawing_shows_what_is_kept_and_each_sweep_back() -> None:
    assert offline(10, 3).draw().splitlines() == ["o---o--o-o", "       -<<", "    -o<<", "-oo<<<", "<<<"]
    assert offline(6, None, 2).draw().splitlines() == ["oooo==", "<<<<<<"]
    long = offline(1000, 10).draw(width=80).splitlines()
    assert max(map(len, long)) <= 80 and long[0].count("o") == 10  # two neighbours share a cell


def test_actions_shift_as_a_whole() -> None:
    assert Action("advance", 1, 3).shifted(4) == Action("advance", 5, 7)
    assert Action("keep", 1).shifted(4) == Action("keep", 5)
