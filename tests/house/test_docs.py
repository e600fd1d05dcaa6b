"""The code in README and docs runs, and prints what the page says; no page, link or public name is left out."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mkdocs.utils.yaml import yaml_load

import anodev2
from anodev2 import diagnose, models, pde, testing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^(?!# ).*$", re.MULTILINE)  # of a notebook
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def run(page: Path) -> list[tuple[str, str]]:
    """(printed, what the page says it prints) of every block, in order and in one namespace."""
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    pairs = []
    for code, said in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        pairs.append((printed.getvalue(), said))
    return pairs


LONG = ("docs/speed.md", "docs/tutorial.md")
NEEDS = {"docs/recipes/lightning.md": "lightning", "docs/recipes/hugging_face.md": "transformers"}  # libraries that are no dependencies
LAUNCHED = "docs/recipes/distributed.md"


def marks(name: str) -> list[pytest.MarkDecorator]:
    found = [pytest.mark.slow] if name in LONG or name in NEEDS else []
    if name in NEEDS:
        missing = importlib.util.find_spec(NEEDS[name]) is None
        found += [pytest.mark.skipif(missing, reason=f"{NEEDS[name]} is no dependency and is not installed")]
        found += [pytest.mark.filterwarnings("ignore")]  # its own
    return found


with_code = [
    pytest.param(page, id=name, marks=marks(name))
    for page in PAGES
    if BLOCK.search(page.read_text()) and (name := str(page.relative_to(ROOT))) != LAUNCHED
]


@pytest.mark.parametrize("page", with_code)
def test_the_code_of_a_page_prints_what_the_page_says(page: Path) -> None:
    for printed, said in run(page):
        assert not said or printed == said


@pytest.mark.slow
def test_the_script_of_several_processes_prints_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / LAUNCHED).read_text()
    line, options = re.findall(r"^(    torchrun (--standalone .*)\n\n)", page, re.MULTILINE)[0]
    ((code, said),) = BLOCK.findall(page.replace(line, ""))
    (tmp_path / "sharded.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", *options.split()]
    hidden = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=hidden, timeout=300)
    assert done.stdout == said, done.stderr


def test_a_page_that_prints_something_else_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\nand\n\n```python\nprint(a + 1)\n```\n\n```text\n3\n```\n")
    assert run(page) == [("", ""), ("2\n", "3\n")]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    code = FENCED if page.suffix == ".md" else CODE
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", code.sub("", page.read_text())):
        assert (page.parent / target).exists(), target


def test_the_page_about_extending_names_every_hook_of_a_dynamics() -> None:
    page = (DOCS / "extending.md").read_text()
    hooks = [name for name in vars(anodev2.Dynamics) if not name.startswith("_") and name != "forward"]
    assert len(hooks) > 5 and not [name for name in hooks if not re.search(rf"`{name}\b", page)]


def nav(entry: Any) -> Iterator[str]:
    """The pages in a part of mkdocs' nav."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from nav(part)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(nav(yaml_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = [*DOCS.rglob("*.md"), *(path.with_suffix(".md") for path in NOTEBOOKS)]
    assert sorted(pages) == sorted(["index.md", *(str(page.relative_to(DOCS)) for page in written)])


def public(module: ModuleType) -> list[str]:
    """Its public names in full, modules among them left out: they have pages of their own."""
    names = getattr(module, "__all__", None) or [name for name, value in vars(module).items() if inspect.isfunction(value)]
    return sorted(f"{module.__name__}.{name}" for name in names if not inspect.ismodule(getattr(module, name)))


def documented(page: str) -> list[str]:
    """Names on a page of the reference; a function that hides the module of its name is written as anodev2.solve.solve."""
    names = re.findall(r"^::: ([\w.]+)$", (DOCS / "api" / page).read_text(), re.MULTILINE)
    return [re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in names]


def test_every_public_name_stands_in_the_reference_once() -> None:
    for module in (anodev2, diagnose, testing, pde, models):
        names = documented(f"{module.__name__.rpartition('.')[2]}.md")  # parts of inner modules may stand there too
        assert sorted(name for name in names if name.rpartition(".")[0] == module.__name__) == public(module)
