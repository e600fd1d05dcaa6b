"""Error control against torchdiffeq, scipy and diffrax: evaluations, error / tolerance and time, in one run.

    python -m benchmarks.ode_vs_peers [--problems A1 B5 ...] [--tolerances 1e-4 1e-6 1e-8] [--rounds 5] [--jax-python PYTHON] [--out FOLDER]

The 25 problems of DETEST by methods of order 5 and 8, four stiff ones by stiff methods, all in double precision; f is written once and
has each package's own arrays. rtol is the tolerance, atol the same or (Robertson, HIRES, Oregonator) a thousandth. Errors are those at
the end, the largest in units of atol + rtol |y|. What is not installed is left out. Times are in seconds of the processor, one thread,
medians of rounds in which all take turns, without gradients. "recorded, compiled": ``odeint(..., grid=solution.grid, compile=True)``,
what ``Control(refresh=k)`` does in k - 1 of k calls. torchdiffeq has no stiff method of its own: it is asked for scipy's Radau.
diffrax is compiled; the tolerance is an argument, so that it is compiled once per problem and method. Problems that are in FOLDER's .csv
stay as they are, so that a run which was stopped goes on.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from anodev2 import Compile, odeint, solve
from benchmarks import scripts  # noqa: F401 (finds the examples)
from benchmarks.workers import ONE_THREAD, Worker, cpu, without_ours
from options import DIFFERENT, Count, Positive, mistakes_told, parse

from .problems import PROBLEMS, REFERENCES, Problem, error, field
from .report import COLUMNS, read, report, write

TARGET = 0.02  # seconds of one turn of one contender
RUNS = Compile(steps=3)  # two lengths of runs, and so two graphs, per problem

# family: (who, method)
METHODS: dict[str, tuple[tuple[str, str], ...]] = {
    "order 5": (
        ("anodev2", "dopri5"),
        ("anodev2, recorded, compiled", "dopri5"),
        ("torchdiffeq", "dopri5"),
        ("scipy", "RK45"),
        ("diffrax", "Dopri5"),
    ),
    "order 8": (("anodev2", "dopri8"), ("torchdiffeq", "dopri8"), ("scipy", "DOP853"), ("diffrax", "Dopri8")),
    "stiff": (("anodev2", "rodas5p"), ("anodev2", "kvaerno5"), ("torchdiffeq", "Radau"), ("scipy", "Radau"), ("diffrax", "Kvaerno5")),
}


@dataclass(frozen=True)
class Config:
    """What is compared."""

    problems: Annotated[tuple[str, ...], DIFFERENT] = tuple(PROBLEMS)
    """A1 to E5, "Van der Pol", Robertson, HIRES, Oregonator"""
    tolerances: Annotated[tuple[Positive, ...], DIFFERENT] = (1e-4, 1e-6, 1e-8)
    """relative ones"""
    rounds: Count = 5
    """in which all contenders take turns"""
    compiled: bool = True
    """our compiled runs too, which take a quarter of a minute per problem to compile"""
    jax_python: Path | None = None
    """a Python interpreter that has jax and diffrax"""
    references: bool = False
    """make references.json anew, and nothing else"""
    out: Path | None = None
    """folder for ode_vs_peers.md and .csv; none: printed alone"""


@dataclass(frozen=True)
class Found:
    """What one solve came to, and how it is run again, so many times, in seconds each."""

    y: list[float]
    evaluations: int
    steps: int | None
    timed: Callable[[int], float]


def repeated(run: Callable[[], Any]) -> Callable[[int], float]:
    """Seconds of the processor for each of so many calls."""

    def timed(repeats: int) -> float:
        begin = time.process_time()
        for _ in range(repeats):
            run()
        return (time.process_time() - begin) / repeats

    return timed


@cache
def of_torch(problem: Problem) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """f and y0; f is the same object from call to call, which keeps what is compiled for it."""
    return field(problem, torch), torch.tensor(problem.y0, dtype=torch.float64)


def ours(problem: Problem, method: str, tolerance: float, compiled: bool = False) -> Found:
    f, y0 = of_torch(problem)
    times: list[float] = [0.0, problem.end]
    options: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance * problem.atol, "max_steps": None}
    found = solve(f, y0, times, **options)
    evaluations = found.stats.evaluations_forward
    if compiled:
        options = {"method": method, "grid": found.grid, "compile": RUNS, "adjoint": "direct"}
        found = solve(f, y0, times, method=method, grid=found.grid)  # to count
        evaluations = found.stats.evaluations_forward
    run = partial(odeint, f, y0, times, **options)
    return Found(run()[-1].tolist(), evaluations, found.stats.accepted, repeated(run))


def torchdiffeqs(problem: Problem, method: str, tolerance: float) -> Found | None:
    if find_spec("torchdiffeq") is None:
        return None
    import torchdiffeq

    f, y0 = of_torch(problem)
    options: dict[str, Any] = {"method": method, "rtol": tolerance, "atol": tolerance * problem.atol}
    if method == "Radau":
        options |= {"method": "scipy_solver", "options": {"solver": method}}
        warnings.filterwarnings("ignore", message="Solver 'scipy_solver' does not support callbacks")
        warnings.filterwarnings("ignore", message="The following arguments have no effect for a chosen solver: `min_step`")
    times = torch.tensor([0.0, problem.end], dtype=torch.float64)
    seen = {"calls": 0, "steps": 0}

    class Counted(torch.nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            seen["calls"] += 1
            return f(t, y)

        def callback_accept_step(self, *_: Any) -> None:
            seen["steps"] += 1

    y: Any = torchdiffeq.odeint(Counted(), y0, times, **options)
    return Found(y[-1].tolist(), seen["calls"], seen["steps"] or None, repeated(partial(torchdiffeq.odeint, f, y0, times, **options)))


def scipys(problem: Problem, method: str, tolerance: float) -> Found:
    f, y0 = field(problem, np), np.array(problem.y0)
    run = partial(solve_ivp, f, (0.0, problem.end), y0, method, rtol=tolerance, atol=tolerance * problem.atol)
    found = run()
    return Found(found.y[:, -1].tolist(), found.nfev, len(found.t) - 1, repeated(run))


class Diffrax:
    """A process per problem and method, which lives as long as these are compared."""

    def __init__(self, python: Path, problem: Problem, method: str) -> None:
        self.worker = Worker([python, Path(__file__).with_name("worker_jax.py")], without_ours() | ONE_THREAD)
        self.worker.ask({"problem": problem.name, "method": method})

    def found(self, tolerance: float) -> Found:
        said = self.worker.ask({"tolerance": tolerance, "repeats": 0})
        timed = lambda repeats: self.worker.ask({"tolerance": tolerance, "repeats": repeats})  # noqa: E731
        return Found(said["y"], said["evaluations"], said["steps"], timed)


def rows(problem: Problem, family: str, options: Config) -> Iterator[dict[str, Any]]:
    """What all contenders came to on one problem, at every tolerance."""
    contenders: dict[tuple[str, str], Callable[[float], Found | None]] = {}
    worker = None
    for who, method in METHODS[family]:
        if who == "diffrax":
            worker = None if options.jax_python is None else Diffrax(options.jax_python, problem, method)
            contenders[who, method] = (lambda tolerance: None) if worker is None else worker.found
        elif who.endswith("compiled"):
            if options.compiled:
                contenders[who, method] = partial(ours, problem, method, compiled=True)
        else:
            contenders[who, method] = partial({"anodev2": ours, "torchdiffeq": torchdiffeqs, "scipy": scipys}[who], problem, method)
    for tolerance in options.tolerances:
        asked = {names: contender(tolerance) for names, contender in contenders.items()}
        found = {names: one for names, one in asked.items() if one is not None}
        repeats = {names: max(1, min(50, round(TARGET / max(one.timed(1), 1e-6)))) for names, one in found.items()}
        seconds: dict[tuple[str, str], list[float]] = {names: [] for names in found}
        for _ in range(options.rounds):
            for names, one in found.items():
                seconds[names].append(one.timed(repeats[names]))
        for (who, method), one in found.items():
            off, median = error(problem, one.y, tolerance), statistics.median(seconds[who, method])
            yield dict(zip(COLUMNS, (problem.name, family, tolerance, who, method, one.evaluations, one.steps, off, median), strict=True))
    if worker is not None:
        worker.worker.close()


def make_references() -> None:
    """The ends of all problems, as lines of json."""
    ends: dict[str, list[float]] = {}
    for problem in PROBLEMS.values():
        how = {"method": "Radau", "rtol": 1e-12, "atol": 1e-14} if problem.stiff else {"method": "DOP853", "rtol": 1e-13, "atol": 1e-15}
        ends[problem.name] = solve_ivp(field(problem, np), (0.0, problem.end), np.array(problem.y0), **how).y[:, -1].tolist()
        print(problem.name, ends[problem.name], flush=True)
    REFERENCES.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(end)}" for name, end in ends.items()) + "\n}\n")


def where(options: Config) -> str:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "torchdiffeq") if find_spec(name)]
    versions.append(f"scipy {scipy.__version__}")
    if options.jax_python is not None:
        worker = Worker([options.jax_python, "-c", VERSIONS], without_ours())
        versions.append(worker.ask({}))
        worker.close()
    return f"{time.strftime('%Y-%m-%d')}, {cpu()}, one thread, {', '.join(versions)}; medians of {options.rounds} rounds."


VERSIONS = "import json, jax, diffrax; print('=>' + json.dumps(f'jax {jax.__version__}, diffrax {diffrax.__version__}'))"


@torch.no_grad()
def main(options: Config) -> None:
    if options.references:
        return make_references()
    unknown = sorted(set(options.problems) - set(PROBLEMS))
    if unknown:
        raise ValueError(f"--problems {unknown} must be among {', '.join(PROBLEMS)}")
    torch.set_num_threads(1)
    head, file = where(options), None if options.out is None else options.out / "ode_vs_peers.csv"
    found = read(file) if file is not None and file.exists() else []
    done = {row["problem"] for row in found}
    print(f"{head}\n", flush=True)
    for name in (name for name in options.problems if name not in done):
        for family in METHODS:
            if (family == "stiff") == PROBLEMS[name].stiff:
                for row in rows(PROBLEMS[name], family, options):
                    found.append(row)
                    print(", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()), flush=True)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, found)
    text = report(found, head)
    print(f"\n{text}")
    if file is not None:
        file.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    with mistakes_told():
        main(parse(Config, None, about=__doc__)[0])
