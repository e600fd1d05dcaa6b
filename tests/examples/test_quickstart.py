from __future__ import annotations

import ast
from pathlib import Path

import quickstart

ROOT = Path(__file__).parents[2]


def test_gradients_equal_the_closed_form() -> None:
    errors = quickstart.main()
    assert set(errors) == {"dJ/dc0", "dJ/dp"} and all(error < 1e-6 for error in errors.values())


def test_the_readme_shows_the_code_that_runs() -> None:
    source = (ROOT / "examples" / "quickstart.py").read_text()
    readme = (ROOT / "README.md").read_text()
    block = readme.split("```python\n", 1)[1].split("```", 1)[0]
    shown = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    run = [line.strip() for line in source.splitlines()]
    assert 10 <= len(shown) <= 16 and all(line in run for line in shown)
    namespace: dict[str, object] = {}
    exec(compile(ast.parse(block), "README.md", "exec"), namespace)
    assert "J" in namespace
