"""What is to be cited for a solve agrees with the sources that the docstrings name and with CITATION.cff."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

import anodev2
from anodev2 import METHODS, CheckpointAdjoint, Dynamics, Galerkin, ReactionDiffusionAdvection, Static, citation
from anodev2.citation import ADJOINT_KEYS, DYNAMICS_KEYS, ENTRIES, METHOD_KEYS

PUBLIC = {name: getattr(anodev2, name) for name in anodev2.__all__ if inspect.isclass(getattr(anodev2, name))}
MOVING = {name: kind for name, kind in PUBLIC.items() if issubclass(kind, Dynamics) and kind is not Dynamics}


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)


def papers(kind: type) -> set[str]:
    """arXiv numbers of the docstring's sources."""
    return set(re.findall(r"\d{4}\.\d{5}", (kind.__doc__ or "").partition("Source:")[2]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_what_it_is_known_by(name: str) -> None:
    assert len(keys(citation(name, "direct"))) >= (name != "map")
    if name not in ("euler", "midpoint", "heun2", "rk4", "rk4_38", "map", "auto", "ssprk2"):  # the last is heun2
        assert keys(citation(METHODS[name], "direct")) == keys(citation(name, "direct"))


@pytest.mark.parametrize("name", MOVING)
def test_the_sources_of_a_dynamics_are_cited(name: str) -> None:
    text = citation("map", "direct", MOVING[name])
    assert papers(MOVING[name]) - {"2512.12602"} <= set(re.findall(r"\d{4}\.\d{5}", text))  # that one: of the exact flow alone
    assert ("zhang2019anodev2" in keys(text)) == (name != "Static")


def test_adjoints() -> None:
    for name in ADJOINT_KEYS:
        assert papers(PUBLIC[name]) <= set(re.findall(r"\d{4}\.\d{5}", citation("map", PUBLIC[name]())))
    assert "griewank2000revolve" in keys(citation(adjoint=CheckpointAdjoint(slots=4))) and len(keys(citation("map", "checkpoint"))) == 1
    assert citation("map", "direct") == citation("map", "direct", Static()) == ""


def test_what_is_made_of_others_cites_them() -> None:
    """Both methods of "auto", the dynamics of groups, and the base of a dynamics of one's own."""

    class Own(Galerkin):
        pass

    assert set(keys(citation("auto", "direct"))) == {
        "hairer1996stiff",
        *keys(citation("tsit5", "direct")),
        *keys(citation("rodas5p", "direct")),
    }
    given = citation(anodev2.Auto("dopri5", "kvaerno5"), "direct")
    assert {"dormand1980family", "kvaerno2004singly"} < set(keys(given)) and "tsitouras2011pairs" not in given
    expected = citation("map", "direct", Galerkin)
    assert "massaroli2020dissecting" in keys(expected)
    for dynamics in (Own, Own("linear", 2), anodev2.DepthGroups(Galerkin("linear", 2))):
        assert citation("map", "direct", dynamics) == expected


def test_each_entry_once_and_none_is_left_over() -> None:
    text = citation("dopri8", CheckpointAdjoint(slots=2), Galerkin("linear", 2))
    assert len(keys(text)) == len(set(keys(text))) == 7
    used = {key for table in (METHOD_KEYS, ADJOINT_KEYS, DYNAMICS_KEYS) for found in table.values() for key in found}
    assert used | {"zhang2019anodev2", "griewank2000revolve"} == set(ENTRIES)
    assert set(DYNAMICS_KEYS) <= set(MOVING) and set(METHOD_KEYS) == set(METHODS)
    everything = [citation(name, "direct") for name in METHODS] + [citation("map", "direct", kind) for kind in MOVING.values()]
    for entry in "\n\n".join(everything).split("\n\n"):
        assert entry.count("{") == entry.count("}") and all(f"  {field}" in entry or not entry for field in ("author", "title", "year"))


def test_the_papers_of_this_library_are_those_of_the_citation_file() -> None:
    told = yaml.safe_load((Path(anodev2.__file__).parents[1] / "CITATION.cff").read_text())
    for paper in (told["preferred-citation"], *told["references"]):
        (found,) = [fields for _, fields in ENTRIES.values() if paper["url"].endswith(fields.get("eprint", "-"))]
        assert re.sub(r"[{}]", "", found["title"]) == paper["title"] and found["year"] == str(paper["year"])
        assert [name.split(", ")[0] for name in found["author"].split(" and ")] == [author["family-names"] for author in paper["authors"]]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="rk5"):
        citation("rk5")
    with pytest.raises(ValueError, match="adjont"):
        citation(adjoint="adjont")
    with pytest.raises(TypeError, match="dynamics must be"):
        citation(dynamics=3)  # pyright: ignore[reportArgumentType]
    assert "zhang2019anodev2" in keys(citation(dynamics=ReactionDiffusionAdvection()))
