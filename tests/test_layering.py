"""The rooms of the repository import in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anodev2

ROOT = Path(__file__).parent.parent
ORDER = [
    *("pytree", "stepping", "solvers", "problem", "integrate", "gradients", "events", "solution", "solve", "plan", "system", "dynamics"),
    *("unroll", "block", "testing", "diagnose"),
]
FOLDERS = {
    "stepping": ["grid", "control", ""],
    "solvers": ["tableau", "linear", "method", "runge_kutta", "leapfrog", "exponential", "imex", "implicit", "", "stability"],
    "integrate": [
        *("captured", "functional_call", "attributes", "buffers", "side_effects", "comparison", "recording", "loop"),
        *("per_sample", "dense", "compiled", ""),
    ],
    "gradients": ["vjp", "offload", "per_step", "schedule", "slots", "reversible", "backsolve", "function", "adjoint", ""],
    "diagnose": ["table", "subject", "jacobian", "program", "gradients", "reversal", "spectra", "path", ""],
}
ALLOWED = {
    "anodev2": {"torch", "einops", "checkpoint_schedules", "tqdm", "matplotlib"},  # the last two only where asked for
    "pde": {"torch", "anodev2"},
    "models": {"torch", "anodev2", "pde"},
    "examples": {
        *("torch", "torchvision", "numpy", "matplotlib", "tqdm", "tyro", "safetensors", "filelock"),
        *("anodev2", "pde", "models", "examples"),
    },
}


def imports(path: Path) -> list[tuple[int, str, list[str]]]:
    """(level, module, names) of every import statement."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_stands_below_them(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for level, module, names in imports(path):
            top = module.split(".")[0]
            if level == 0 and top not in sys.stdlib_module_names:
                assert top in ALLOWED[room], f"{path.name} imports {module}"
                if top == "anodev2" and room != "anodev2":
                    assert set(names) <= set(anodev2.__all__), f"{path.name} imports {names}: not public names"
            assert level <= len(path.relative_to(ROOT / room).parts) and "*" not in names


def test_modules_of_the_library_import_only_earlier_ones() -> None:
    """Of the rooms, and within each; whatever a room holds is in its order."""
    library = ROOT / "anodev2"
    found = [p for p in library.iterdir() if (p.suffix == ".py" or (p / "__init__.py").exists()) and p.stem != "__init__"]
    assert sorted(ORDER) == sorted(p.stem for p in found)
    assert sorted(FOLDERS) == sorted(p.stem for p in found if p.is_dir())
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library).with_suffix("").parts
        if place == ("__init__",):
            continue
        room, own = place[0], "" if place[-1] == "__init__" else place[-1]
        assert len(place) == 1 or own in FOLDERS[room], f"{room} holds {own}"
        for level, module, _ in imports(path):
            first, _, inner = module.partition(".")
            if level == len(place):
                assert ORDER.index(first) < ORDER.index(room), f"{path} imports {module}"
                assert not inner or inner in FOLDERS[first], f"{path} imports {module}"
            elif level:
                assert FOLDERS[room].index(module) < FOLDERS[room].index(own), f"{path} imports {module}"


def test_no_file_of_the_library_is_longer_than_400_lines() -> None:
    long = {path.name: count for path in (ROOT / "anodev2").rglob("*.py") if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_only_what_differentiates_has_autograd_functions() -> None:
    """Not what does the numerics: a second derivative, forward mode and transforms go through that as they are."""
    holders = [p.stem for p in (ROOT / "anodev2").rglob("*.py") if "autograd.Function" in p.read_text()]
    assert sorted(holders) == ["function", "vjp"]


def test_public_names_are_sorted_documented_and_there() -> None:
    assert anodev2.__all__ == sorted(anodev2.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    undocumented = [n for n in anodev2.__all__ if n != "METHODS" and not (getattr(anodev2, n).__doc__ or "").strip()]
    assert not undocumented


def test_the_library_imports_without_the_extras() -> None:
    code = "import sys, anodev2; bad = {'torchvision', 'matplotlib', 'tyro', 'scipy'} & set(sys.modules); assert not bad, bad"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
