"""The notebooks run, end in what they promise, and stand in the site with what they print and draw."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hooks import NOTEBOOKS, converted
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / NOTEBOOKS).glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_runs_and_keeps_its_promise(script: Path) -> None:
    files = converted(script.stem, script.read_text(), run=True)
    page, pictures = str(files.pop(f"{script.stem}.md")), [name for name in files if name.endswith(".png")]
    assert pictures and all(f"({name})" in page for name in pictures)
    assert "Warning" not in page and "<matplotlib" not in page and '"name": "stderr"' not in str(files[f"{script.stem}.ipynb"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_ends_in_assertions_and_links(script: Path) -> None:
    *_, promise, links = re.split(r"^# %%.*\n", script.read_text(), flags=re.MULTILINE)
    assert "\nassert " in f"\n{promise}" and links.startswith("# From here: [")


@pytest.mark.slow
def test_a_promise_that_is_not_kept_is_seen() -> None:
    with pytest.raises(CellExecutionError, match=r"assert a == 3, a\n(.*\n)*.*AssertionError.*: 2"):
        converted("broken", "# %% [markdown]\n# # Broken\n\n# %%\na = 2\n\n# %%\nassert a == 3, a\n", run=True)


def test_the_page_of_a_notebook_holds_text_code_and_what_was_printed() -> None:
    files = converted("sum", "# %% [markdown]\n# # A sum\n#\n# Of two.\n\n# %%\nprint(2 + 3)\n", run=True)
    assert files["sum.md"] == "# A sum\n\n[as a notebook](sum.ipynb)\n\nOf two.\n\n\n```python\nprint(2 + 3)\n```\n\n    5\n\n"
    assert str(files["sum.ipynb"]).count('"cell_type"') == 2


def test_the_table_of_temperatures_is_the_series_it_is_said_to_be() -> None:
    head, *rows = csv.reader((ROOT / NOTEBOOKS / "rod.csv").read_text().splitlines())
    t, *measured = np.array(rows, dtype=float).T
    x = np.array([float(name.removesuffix(" m")) for name in head[1:]])[:, None, None]
    D, k, length = 1.1e-4, 1e-3, 0.5
    m, modes = np.sqrt(k / D), (np.arange(2000) + 0.5) * np.pi / length
    steady = np.cosh(m * (length - x)) / np.cosh(m * length)
    decaying = 2 / length * modes / (modes**2 + m**2) * np.exp(-(D * modes**2 + k) * t[:, None])
    noise = np.array(measured) - 20 - 60 * (steady[..., 0] - (decaying * np.sin(modes * x)).sum(-1))
    assert noise.shape == (5, 30) and abs(noise.mean()) < 0.1 and 0.25 < noise.std() < 0.35
