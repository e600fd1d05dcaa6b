"""What an installation gives to other projects: anodev2 with its parts, and no other name."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(where: Path, *command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
    done = subprocess.run([*map(str, command)], cwd=where, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("long_first", [True, False])
def test_the_folders_of_a_checkout_are_the_parts_of_the_library(long_first: bool) -> None:
    """Whichever is imported first, under either name."""
    for_one = (
        "for short, part in (('pde', 'stencils'), ('models', 'blocks')):\n"
        f"    names = ['anodev2.' + short, short][:: {1 if long_first else -1}]\n"
        "    a, b = [importlib.import_module(name) for name in names]\n"
        "    c, d = [importlib.import_module(name + '.' + part) for name in names]\n"
        "    assert a is b and c is d, names\n"
    )
    run(ROOT, sys.executable, "-c", "import importlib\n" + for_one)


@pytest.mark.slow
def test_a_wheel_beside_py_pde(tmp_path: Path) -> None:
    """In an environment that holds nothing else; of this one only what the library needs is lent to it."""
    run(ROOT, sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    run(tmp_path, sys.executable, "-m", "venv", "env")
    python = tmp_path / "env" / "bin" / "python"
    run(tmp_path, python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, "py-pde")
    site = Path(run(tmp_path, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("OWN = 1\n")
    code = (
        "import importlib.util, anodev2, models; from anodev2.pde import Advection, Grid1D; from anodev2.models import resnet4; "
        "assert models.OWN and 'pde/__init__' in importlib.util.find_spec('pde').origin; "
        "Advection(Grid1D(8), 1.0); resnet4(10, block='coupled'); print(anodev2.__file__, importlib.util.find_spec('pde').origin)"
    )
    own, peer = run(tmp_path, python, "-c", code).split()
    assert Path(own).parent.parent == site and Path(peer).parent.parent == site
    assert not any((site / name).exists() for name in ("tests", "examples", "benchmarks", "models"))
