"""What mkdocs shows besides docs/: README.md as the home page, and the scripts and results that pages link to.

Links in the pages are those of the repository, so that they lead somewhere on a forge too; here they are turned into links of the site.
A script becomes a page with its source; a notebook of docs/notebooks, which is a script in jupytext's percent format, a page with what its
cells print and draw, run when the site is built, and an .ipynb to take along. Formulas become MathML, which browsers render by themselves.
A public function that a module of its own name hides from mkdocstrings is looked up in that module.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
NOTEBOOKS = "docs/notebooks/"
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^)#\s:]+")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
origins: dict[str, str] = {}  # page of the site -> file of the repository


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/, and what that links to."""
    origins.clear()
    origins.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    origins["index.md"] = "README.md"
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.py")):
        origins[f"notebooks/{path.stem}.md"] = f"{NOTEBOOKS}{path.name}"
        for name, content in converted(path.stem, path.read_text(), config["extra"]["run_notebooks"]).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    waiting = list(origins)
    while waiting:
        page = waiting.pop()
        for target in links(page):
            place = place_of(target)
            if target.startswith("docs/") or place in origins:
                continue
            origins[place] = target
            files.append(added(place, ROOT / target, config))
            if place.endswith(".md"):
                waiting.append(place)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    if origins[here].endswith(".py") and not origins[here].startswith(NOTEBOOKS):
        page.meta["search"] = {"exclude": True}  # the search answers with what pages say, not with lines of scripts
    return rewritten(markdown, here, lambda target: os.path.relpath(place_of(target), os.path.dirname(here)))


def on_page_content(content: str, **_: Any) -> str:
    return FORMULA.sub(lambda found: formula(html.unescape(found[2]), found[1] == "div"), content)


def formula(source: str, displayed: bool) -> str:
    """As MathML; one on a line of its own in a box that scrolls."""
    if not displayed:
        return convert(source, display="inline")
    return f'<div class="formula">{convert(source, display="block")}</div>'


@cache  # while pages are written a notebook runs once
def converted(name: str, source: str, run: bool) -> dict[str, str | bytes]:
    """The files of a notebook: its page, the pictures on it, and itself as .ipynb."""
    notebook = jupytext.reads(source, "py:percent")
    if run:
        place = {"metadata": {"path": str(ROOT / NOTEBOOKS)}}
        client = NotebookClient(notebook, timeout=600, record_timing=False, resources=place, extra_arguments=["--log-level=ERROR"])
        client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    body, kept = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": f"{name}_files"})
    title, rest = body.lstrip().split("\n", 1)
    page = f"{title}\n\n[as a notebook]({name}.ipynb)\n{rest}"
    return {f"{name}.md": page, f"{name}.ipynb": jupytext.writes(notebook, "ipynb"), **kept["outputs"]}


def added(place: str, path: Path, config: Any) -> File:
    level = InclusionLevel.NOT_IN_NAV
    if path.suffix == ".py":
        source = path.read_text()
        return File.generated(config, place, content=f"# {path.relative_to(ROOT)}\n\n``````python\n{source}\n``````\n", inclusion=level)
    return File.generated(config, place, abs_src_path=str(path), inclusion=level)


def place_of(target: str) -> str:
    """Where a file of the repository stands in the site."""
    if target == "README.md":
        return "index.md"
    path = target.removeprefix("docs/")
    return f"{path[:-3]}.md" if path.endswith(".py") else path


def links(page: str) -> Iterator[str]:
    found: list[str] = []
    if not origins[page].endswith(".py") or origins[page].startswith(NOTEBOOKS):
        rewritten((ROOT / origins[page]).read_text(), page, lambda target: found.append(target) or "")
    return iter(found)


def rewritten(markdown: str, page: str, new: Callable[[str], str]) -> str:
    """The text with ``new(target)`` for every link to a file of the repository, code left alone."""
    folder = os.path.dirname(origins[page])

    def replaced(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, link[0]))
        return new(target) if (ROOT / target).is_file() else link[0]

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)
