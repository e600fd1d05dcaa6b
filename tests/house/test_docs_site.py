"""The site builds without a warning, and what the hook adds to it is there."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import anodev2

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")  # of the theme, about a version of mkdocs to come
        patch.setenv("RUN_NOTEBOOKS", "false")  # that is a test of its own
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def links(page: Path) -> list[str]:
    return re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', page.read_text())


def test_readme_is_the_home_page_with_its_links_turned_to_pages(site: Path) -> None:
    found = links(site / "index.html")
    assert {"coupled_speed.png", "methods.html", "examples/quickstart.html", "training.html"} <= set(found)


def test_no_link_of_any_page_leads_nowhere(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 30
    for page in pages:
        for target in links(page):
            assert (page.parent / target).exists(), (page.name, target)


def test_a_script_is_shown_with_its_source_and_results_with_what_they_link_to(site: Path) -> None:
    assert "travelled" in (site / "examples" / "coupled_speed.html").read_text()
    results = site / "benchmarks" / "results"
    assert {"resnet4_cifar10_10_epochs.csv", "resnet4_cifar10_10_epochs.png"} <= {path.name for path in results.iterdir()}


def test_a_notebook_is_a_page_and_a_file_to_take_along(site: Path) -> None:
    for script in (ROOT / "docs" / "notebooks").glob("*.py"):
        page = site / "notebooks" / f"{script.stem}.html"
        assert {f"{script.stem}.ipynb"} < set(links(page)) and "What this notebook promised" in page.read_text()
        assert json.loads(page.with_suffix(".ipynb").read_text())["nbformat"] == 4


def test_formulas_are_mathml(site: Path) -> None:
    text = (site / "mathematics.html").read_text()
    shown = [ElementTree.fromstring(formula).get("display") for formula in re.findall(r"<math .*?</math>", text, re.DOTALL)]
    source = re.sub(r"^```.*?^```$", "", (ROOT / "docs" / "mathematics.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = re.sub(r"\$\$.*?\$\$", "", source).count("$") / 2
    assert shown.count("block") == source.count("$$") / 2 > 20 and shown.count("inline") == inline > 20
    assert len(shown) == shown.count("block") + shown.count("inline") and "$" not in text and "arithmatex" not in text


def test_a_font_for_formulas_comes_along_and_formulas_on_a_line_of_their_own_scroll(site: Path) -> None:
    style = (site / "style.css").read_text()
    (font,) = re.findall(r'url\("(fonts/[^"]+)"\)', style)
    assert (site / font).read_bytes().startswith(b"wOF2") and "SIL OPEN FONT LICENSE" in (site / "fonts" / "LICENSE.txt").read_text()
    text = (site / "mathematics.html").read_text()
    assert text.count('<div class="formula"><math ') == text.count('display="block"') and "overflow: auto hidden" in style


def test_the_search_finds_pages_and_no_lines_of_scripts(site: Path) -> None:
    found = {entry["location"].partition("#")[0] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]}
    assert {"tutorial.html", "which_page.html", "notebooks/first_solve.html"} <= found
    assert (site / "examples" / "quickstart.html").exists() and not [page for page in found if page.startswith("examples/")]


def test_the_reference_shows_every_public_name(site: Path) -> None:
    text = "".join((site / "api" / f"{page}.html").read_text() for page in ("anodev2", "diagnose", "testing"))
    for name in anodev2.__all__:
        assert f'id="anodev2.{name}' in text, name


def test_the_reference_shows_no_internal_name(site: Path) -> None:
    text = (site / "api" / "anodev2.html").read_text()
    assert not [name for name in ("check_compile", "problem_of", "with_weights") if name in text]
    for name, rest in re.findall(r'id="anodev2\.(\w+)([\w.]*)"', text):
        assert name in anodev2.__all__ and not rest.startswith("._"), name + rest
        if inspect.isfunction(getattr(anodev2, name)):
            assert rest in ("", f".{name}"), name + rest  # not what else is in the module of that name
