"""The rooms of the repository import in one direction only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

import anodev2
from anodev2 import torch_private

ROOT = Path(__file__).parents[2]
ORDER = [
    *(
        "torch_private",
        "torchdiffeq",
        "pytree",
        "tables",
        "fourier",
        "signature",
        "stepping",
        "solvers",
        "problem",
        "checks",
        "steps",
        "integrate",
        "gradients",
        "events",
        "pieces",
        "events_of_samples",
        "solution",
        "solve",
        "plan",
        "system",
        "dynamics",
    ),
    *("both_ways", "readings", "unroll", "block", "path", "fast_weights", "testing", "diagnose", "convert", "citation"),
]
FOLDERS = {
    "dynamics": [
        *("dynamics", "spectral", "channel_mixing", "reaction_diffusion_advection", "bases", "expansion", "galerkin", "b_spline"),
        *("low_rank", "templates", "hyper", "scale", "skew_flow", "field"),
        *("depth_groups", "learning_rule", "hebb", "delta_rule", "gradient_flow", ""),
    ],
    "stepping": ["times", "jumps", "grid", "control", "rejections", ""],
    "solvers": [
        *(
            "tableau",
            "linear",
            "method",
            "interpolant",
            "runge_kutta",
            "leapfrog",
            "map",
            "exponential",
            "imex",
            "flat",
            "krylov",
            "newton",
            "one_stage",
        ),
        *("jacobian", "rosenbrock", "sdirk", "auto"),
        *("", "stability"),
    ],
    "integrate": [
        *("captured", "functional_call", "sample_weights", "attributes", "comparison", "buffers", "side_effects", "recording", "loop"),
        *("per_sample", "dense", "runs", "compiled", "refreshed", ""),
    ],
    "gradients": ["vjp", "offload", "per_step", "compiled_runs", "schedule", "slots", "reversible", "backsolve", "function", "adjoint", ""],
    "diagnose": ["table", "subject", "jacobian", "program", "gradients", "reversal", "spectra", "path", ""],
}
ALLOWED = {
    "anodev2": {"torch", "einops", "checkpoint_schedules", "tqdm", "matplotlib"},  # the last two only where asked for
    "pde": {"torch", "anodev2", "matplotlib"},  # the last one in pictures, when they are drawn
    "models": {"torch", "anodev2", "einops", "safetensors"},  # the last where a run is loaded
    "examples": {
        *("torch", "torchvision", "numpy", "PIL", "matplotlib", "tqdm", "tyro", "safetensors", "filelock"),
        *("anodev2", *(path.stem for path in (ROOT / "examples").glob("*.py"))),
    },
}

PARTS = {  # besides the public names
    "pde": ("anodev2.fourier", "anodev2.signature", "anodev2.tables", "anodev2.torch_private"),
    "models": ("anodev2.pde",),
    "examples": ("anodev2.pde", "anodev2.models", "anodev2.diagnose", "anodev2.testing"),
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
                if module == "anodev2" and room != "anodev2":
                    assert set(names) <= set(anodev2.__all__) | {"pde", "models"}, f"{path.name} imports {names}: not public names"
                elif top == "anodev2" and room != "anodev2":
                    assert module.startswith(PARTS[room]), f"{path.name} imports {module}: not public"
            assert level <= len(path.relative_to(ROOT / room).parts) and "*" not in names


def test_modules_of_the_library_import_only_earlier_ones() -> None:
    """Of the rooms, and within each; whatever a room holds is in its order."""
    library = ROOT / "anodev2"
    found = [
        p for p in library.iterdir() if (p.suffix == ".py" or (p / "__init__.py").exists()) and p.stem != "__init__" and not p.is_symlink()
    ]
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
    long = {
        path.name: count
        for room in ("anodev2", "pde", "models")
        for path in (ROOT / room).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_only_what_differentiates_has_autograd_functions() -> None:
    """Not what does the numerics: a second derivative, forward mode and transforms go through that as they are."""
    holders = [p.stem for p in (ROOT / "anodev2").rglob("*.py") if "autograd.Function" in p.read_text()]
    assert sorted(holders) == ["function", "vjp"]


def test_public_names_are_sorted_documented_and_there() -> None:
    assert anodev2.__all__ == sorted(anodev2.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    undocumented = [n for n in anodev2.__all__ if n != "METHODS" and not (getattr(anodev2, n).__doc__ or "").strip()]
    assert not undocumented


def test_the_library_imports_quickly() -> None:
    """Nothing that takes long, or that only an extra brings."""
    slow = ["torch._dynamo", "torch._inductor", "sympy", "matplotlib", "onnx", "numba", "scipy", "torchvision", "tyro"]
    code = f"import sys, anodev2; bad = set({slow}) & set(sys.modules); assert not bad, bad"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


PRIVATE = re.compile(r"torch(\.\w+)*\._\w|from torch(\.\w+)*\._\w+ import|from torch[\w.]* import (.*, )?_\w|Variable\._")


@pytest.mark.parametrize("room", ["anodev2", "pde", "models"])
def test_private_names_of_torch_are_used_in_one_file_alone(room: str) -> None:
    paths = [path for path in (ROOT / room).rglob("*.py") if path.name != "torch_private.py"]
    found = [f"{path.name}: {line.strip()}" for path in paths for line in path.read_text().splitlines() if PRIVATE.search(line)]
    assert paths and not found
    assert PRIVATE.search("torch._C._f()") and PRIVATE.search("from torch._C import f") and PRIVATE.search("from torch.nn import A, _b")


def test_private_names_of_torch_are_there() -> None:
    """With what our tests know of them: a release of PyTorch that takes one away is noticed here first."""
    y, count = torch.ones(3, requires_grad=True), torch_private.next_node()
    assert not torch_private.transformed() and torch.func.vmap(lambda x: x * torch_private.in_transform())(torch.ones(2)).all()
    with forward_ad.dual_level():
        assert torch_private.transformed() and not torch_private.in_transform()
    with FakeTensorMode():
        assert torch_private.in_fake_mode() and torch_private.in_dispatch_mode()
    assert not torch_private.in_fake_mode() and not torch_private.in_dispatch_mode() and torch_private.saving_hooks() is None
    with torch.autograd.graph.save_on_cpu():
        assert torch_private.saving_hooks() is not None
    seen: list[Any] = []
    z = y * y
    assert torch_private.next_node() == count + 1
    z.register_hook(lambda g: seen.append(torch_private.keeps_graph()))
    y.register_hook(lambda g: torch_private.after_backward(lambda: seen.append("end")))
    z.sum().backward(retain_graph=True)
    assert seen == [True, "end"]
    a, b = torch.zeros(2), torch.zeros(3)
    torch_private.copy_together([a, b], [torch.ones(2), torch.ones(3)])
    assert a.sum() + b.sum() == 5 and a._version > 0
    torch_private.set_versions([a], [0])
    assert a._version == 0
    module = torch.nn.Linear(2, 2)
    assert not torch_private.has_forward_hooks(module)
    module.register_forward_hook(lambda *_: None)
    assert torch_private.has_forward_hooks(module) and issubclass(torch.nn.SyncBatchNorm, torch_private.BatchNorm)
    assert all(issubclass(error, Exception) for error in torch_private.compile_errors())
    assert torch_private.options_of_mode("max-autotune") and torch_private.keeps_what_is_read().keys() <= set(
        torch._inductor.list_options()
    )
    with Seen() as modes, torch_private.no_torch_functions():
        torch.add(y, y)
    assert not modes.seen and torch_private.tree_leaves([1, (2, {"a": 3})]) == [1, 2, 3]


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_tests_lie_in_the_rooms_of_the_code() -> None:
    """A folder of tests is one of the project, or CONTRIBUTING.md explains it; at the top is what belongs to a file at the top."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    rooms = {path.name for top in (ROOT, ROOT / "anodev2") for path in top.iterdir() if path.is_dir()}
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert folders <= rooms | {"device", "house"} and all(f"`{folder}`" in page for folder in folders)
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest needs names of their own"
    files = {path.stem for path in (ROOT / "anodev2").glob("*.py")}
    assert {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")} <= files | {"fsdp"}
