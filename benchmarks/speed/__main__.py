"""Times and memory against every peer that is installed, as ratios to the bound, in one command.

    python -m benchmarks.speed [--only TEXT ...] [--rounds 7] [--threads 1] [--device cpu] [--out benchmarks/results]
    python -m benchmarks.speed --quick          # bytes and gradients alone, no times: a minute

Every contender has a process of its own; rounds go A B C A B C, and only one process works at a time. With one thread the times are CPU
times, else wall times. --jax-python names an interpreter with jax and diffrax; --peers a folder with torchode, torchdyn and what they
import, which is old (pip install --no-deps --target FOLDER torchode torchtyping 'typeguard<3' torchdyn torchcde torchsde trampoline attrs).
What is not installed is left out and said. Gradients are compared, by the norm of each, with the plain loop's (but for coupled blocks,
whose weights are in closed form for us and stepped by the peers).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import scripts  # noqa: F401 (finds the examples)
from benchmarks.workers import ONE_THREAD, Worker, cpu
from options import Count, mistakes_told, parse

from .workloads import JAX, WORKLOADS, Workload

HERE = Path(__file__).parent
TARGET = 0.4  # seconds of one round of one contender


@dataclass(frozen=True)
class Config:
    """What is measured."""

    only: tuple[str, ...] = ()
    """workloads whose name contains one of these; none: all"""
    rounds: Count = 7
    """of all contenders, one after the other"""
    threads: Count = 1
    """of each process"""
    device: str = "cpu"
    """cpu, cuda, ...; the processes of the peers know no other names"""
    jax_python: Path | None = None
    """a Python interpreter that has jax and diffrax"""
    peers: Path | None = None
    """a folder with torchode and torchdyn"""
    quick: bool = False
    """bytes and gradients alone, no times"""
    out: Path | None = None
    """folder for speed.md and speed.json; none: printed alone"""


class Contender(Worker):
    """A process that runs one contender when told."""

    def __init__(self, name: str, order: dict[str, Any], options: Config) -> None:
        jax = name in JAX
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
        if jax:
            environment |= ONE_THREAD
        if name in ("torchode", "torchdyn") and options.peers:
            environment["PYTHONPATH"] = str(options.peers)
        script = HERE / ("worker_jax.py" if jax else "worker.py")
        super().__init__([str(options.jax_python) if jax else sys.executable, script], environment)
        self.name = name
        self.seconds: list[float] = []
        self.ready = self.ask(order)


def measured(workload: Workload, options: Config) -> dict[str, Any]:
    """Of one workload: seconds per round, bytes, and how long the first call took, for each contender."""
    contenders: list[Contender] = []
    missing: dict[str, str] = {}
    order = {"workload": workload.name, "size": workload.size, "threads": options.threads, "device": options.device}
    for name in workload.contenders:
        if (name in JAX and not options.jax_python) or (name.startswith("torchdiffeq") and find_spec("torchdiffeq") is None):
            missing[name] = "not installed"
            continue
        if options.quick and (name in JAX or "compiled" in name):
            continue
        try:
            contenders.append(Contender(name, {**order, "contender": name, "bytes": "compiled" not in name}, options))
        except RuntimeError as error:
            missing[name] = str(error)
    if not options.quick:
        repeats = {}
        for contender in contenders:
            once = contender.ask({"repeats": 1})["seconds"]
            repeats[contender.name] = max(1, min(1000, round(TARGET / max(once, 1e-6))))
        for _ in range(options.rounds):
            for contender in contenders:
                contender.seconds.append(contender.ask({"repeats": repeats[contender.name]})["seconds"])
    for contender in contenders:
        contender.close()
    rows = {c.name: {"seconds": c.seconds, **c.ready} for c in contenders}
    return {"workload": workload.name, "rows": rows, "missing": missing}


def table(result: dict[str, Any]) -> str:
    """Markdown: each contender divided by the bound (or by the first peer), the spread, bytes, gradient error, first call."""
    rows, lines = result["rows"], []
    base = next((name for name in ("F + B", "same layers", "torchdiffeq", "torchode") if name in rows), None)
    exact = next((rows[name]["norms"] for name in ("plain loop", "direct") if name in rows and "weights alone" not in rows), None)
    lines += [
        f"### {result['workload']}",
        "",
        f"| | time / {base} | spread | live MiB | gradient error | first call, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio = spread = error = "-"
        if row["seconds"] and base is not None:
            per = [one / row["units"] for one in row["seconds"]]
            bound = [one / rows[base]["units"] for one in rows[base]["seconds"]]
            ratios = [a / b for a, b in zip(per, bound, strict=True)]
            ratio, spread = f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"
        if exact is not None and len(exact) == len(row["norms"]) and name not in JAX and not name.startswith("F"):
            error = f"{max(abs(a - b) for a, b in zip(row['norms'], exact, strict=True)) / max(exact):.1e}"
        mebibytes = "-" if row["peak"] is None else f"{row['peak'] / 2**20:.1f}"
        units = f", {row['units']} steps" if row["units"] > 1 else ""
        lines.append(f"| {name}{units} | {ratio} | {spread} | {mebibytes} | {error} | {row['first']:.1f} |")
    if base is not None and rows[base]["seconds"]:
        lines += ["", f"{base}: {1e3 * statistics.median(rows[base]['seconds']):.2f} ms."]
    lines += [f"Left out: {name}, {why}." for name, why in result["missing"].items()]
    return "\n".join(lines) + "\n"


def machine(options: Config) -> str:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "torchdiffeq") if find_spec(name)]
    if options.jax_python:
        code = "import jax, diffrax; print('jax', jax.__version__ + ', diffrax', diffrax.__version__)"
        versions.append(subprocess.run([str(options.jax_python), "-c", code], capture_output=True, text=True).stdout.strip())
    what = torch.cuda.get_device_name() if options.device == "cuda" else cpu()
    return f"{time.strftime('%Y-%m-%d')}, {what}, {options.threads} thread(s), Python {platform.python_version()}, {', '.join(versions)}"


def main(options: Config) -> None:
    chosen = [w for name, w in WORKLOADS.items() if not options.only or any(text in name for text in options.only)]
    head = f"{machine(options)}; medians of {options.rounds} rounds, each divided by the bound's of the same round.\n"
    print(head)
    results, texts = [], []
    for workload in chosen:
        results.append(measured(workload, options))
        texts.append(table(results[-1]))
        for row in results[-1]["rows"].values():
            del row["norms"]
        print(texts[-1], flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            given = [
                ("--only", options.only),
                ("--peers", ["FOLDER"] if options.peers else []),
                ("--jax-python", ["PYTHON"] if options.jax_python else []),
            ]
            command = " ".join(
                ["python -m benchmarks.speed", *(f"{name} {' '.join(map(repr, values))}" for name, values in given if values)]
            )
            (options.out / "speed.md").write_text(f"# Speed\n\n    {command}\n\n{head}\n" + "\n".join(texts))
            (options.out / "speed.json").write_text(json.dumps({"machine": head, "results": results}))


if __name__ == "__main__":
    with mistakes_told():
        main(parse(Config, None, about=__doc__)[0])
