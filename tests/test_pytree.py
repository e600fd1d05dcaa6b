from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anodev2.pytree import LEAF, build, leaves_of, structure_of


class Pair(NamedTuple):
    q: Any
    p: Any


trees = st.recursive(
    st.floats(allow_nan=False),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
)


@given(trees)
def test_taking_apart_and_building_is_the_identity(tree: Any) -> None:
    structure = structure_of(tree)
    rebuilt = build(structure, leaves_of(tree, structure))
    assert rebuilt == tree and type(rebuilt) is type(tree)


def test_dicts_are_matched_by_key_and_lists_stand_for_tuples() -> None:
    structure = structure_of({"a": 1, "b": (2, 3)})
    assert leaves_of({"b": [5, 6], "a": 4}, structure) == [4, 5, 6]
    assert str(structure) == "dict(a, b: tuple(0, 1))" and str(LEAF) == "leaf"


@pytest.mark.parametrize("wrong", [1.0, {"a": 1}, {"a": 1, "c": 2}, {"a": (1,), "b": (2, 3)}, (1, (2, 3)), {"a": 1, "b": (2,)}])
def test_another_structure_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        leaves_of(wrong, structure_of({"a": 1, "b": (2, 3)}))
