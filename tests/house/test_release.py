"""What a release states in several places is the same everywhere, and its long description stands by itself."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import anodev2

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPE = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())


def bounds(requirements: list[str]) -> dict[str, str]:
    """Name to versions, without spaces; torch as conda calls it."""
    split = [re.fullmatch(r"([\w-]+)(.*)", line.replace(" ", "")) for line in requirements]
    return {"pytorch" if (name := found[1]) == "torch" else name: found[2] for found in split if found}


def test_conda_asks_for_what_pip_asks_for() -> None:
    python = {"python": PROJECT["project"]["requires-python"]}
    assert bounds(RECIPE["requirements"]["run"]) == bounds(PROJECT["project"]["dependencies"]) | python
    assert bounds(RECIPE["requirements"]["host"]) == bounds(PROJECT["build-system"]["requires"]) | python | {"pip": ""}


@pytest.mark.skipif(importlib.util.find_spec("rattler_build") is None, reason="py-rattler-build is no dependency")
def test_rattler_build_takes_the_recipe() -> None:
    """Every field is one that it knows, and its one package is what is released."""
    rattler = importlib.import_module("rattler_build")
    (rendered,) = rattler.Stage0Recipe.from_file(ROOT / "conda" / "recipe.yaml").render()
    package, needs = rendered.recipe.package, rendered.recipe.requirements
    assert (package.name, package.version) == (PROJECT["project"]["name"], anodev2.__version__)
    assert bounds(list(needs.run)) == bounds(RECIPE["requirements"]["run"])


def test_one_version_and_its_date() -> None:
    version = anodev2.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert RECIPE["context"]["version"] == version == str(citation["version"])
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and re.fullmatch(re.escape(version) + r" \(\d{4}-\d\d-\d\d\)|unreleased", newest[1]), newest
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_long_description_leads_nowhere_inside_the_repository(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        metadata = message_from_bytes(wheel.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets and all(target.startswith("https://") for target in targets), targets
    assert "## Twelve lines" in text and "Notebooks: first solve" in text
