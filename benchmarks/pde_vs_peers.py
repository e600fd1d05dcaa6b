"""Fields on a line against py-pde, exponax, scipy and torchdiffeq: error and time per field, as ratios measured in one run.

    python benchmarks/pde_vs_peers.py [--py-pde PYTHON] [--exponax PYTHON] [--sizes 128 1024 8192] [--batches 1 64]

py-pde's import name is that of our folder pde: it runs in a subprocess, PYTHON being an interpreter that has it. Every problem is
periodic on [0, 1) with a closed form. "same" rows: central2, rk4, the same steps for everybody (scipy: RK45 to about the same error).
"best" rows: our method and scheme of choice, at an error no larger than the peer's. exponax: spectral Burgers without aliasing, etdrk4, the
same steps for both, ours without compile=True and with it, forward alone and with the gradient of the sum of squares in the start. One
thread, medians of interleaved rounds, in seconds of the processor, which other programs on the machine change less than those of the clock.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import scipy
import torch
import torchdiffeq
from scipy.integrate import solve_ivp
from torch import Tensor

import scripts  # noqa: F401 # isort: split
from anodev2 import odeint
from anodev2.pde import Advection, Burgers, Diffusion, Equation, Grid1D, Nonlinearity
from options import DIFFERENT, Count, script
from workers import ONE_THREAD, Worker, without_ours

STEPS, ROUNDS = 200, 7
SPEED, DIFFUSIVITY, VISCOSITY = 1.0, 1.0, 0.05
BEST = {"advection": ("spectral", "exponential_euler"), "diffusion": ("spectral", "exponential_euler"), "burgers": ("spectral", "etdrk4")}

PEER = """
import json, sys, time, statistics, logging
import numpy as np
import pde
logging.disable(logging.CRITICAL)
name, n, T, steps, c, nu, rounds = json.loads(sys.argv[1])
grid = pde.CartesianGrid([[0.0, 1.0]], n, periodic=True)
rhs = {"advection": f"-{c} * d_dx(u)", "diffusion": f"{nu} * laplace(u)", "burgers": f"-u * d_dx(u) + {nu} * laplace(u)"}[name]
equation = pde.PDE({"u": rhs})
x = grid.axes_coords[0]
u0 = np.frombuffer(sys.stdin.buffer.read())
state = pde.ScalarField(grid, u0.copy())
begin = time.process_time()
solver = pde.ExplicitSolver(equation, scheme="runge-kutta", adaptive=False, backend="numba")
stepper = solver.make_stepper(state, dt=T / steps)
stepper(state.copy(), 0.0, T)
compiled = time.process_time() - begin
times = []
for _ in range(rounds):
    u = state.copy()
    begin = time.process_time()
    out = stepper(u, 0.0, T)
    times.append(time.process_time() - begin)
final = out[0].data if isinstance(out, tuple) and hasattr(out[0], "data") and not isinstance(out[0], float) else u.data
print(json.dumps({"version": pde.__version__, "compile": compiled, "seconds": statistics.median(times), "u": final.tolist()}))
"""


@dataclass(frozen=True)
class Case:
    """A periodic problem on [0, 1) with its closed form, for STEPS steps of rk4 with central2 at 0.8 of what is stable."""

    name: str
    n: int

    def equation(self, scheme: str) -> Equation:
        grid = Grid1D(self.n)
        if self.name == "advection":
            return Advection(grid, SPEED, scheme)
        return Diffusion(grid, DIFFUSIVITY, scheme) if self.name == "diffusion" else Burgers(grid, VISCOSITY, scheme, scheme)

    def end(self) -> float:
        equation = self.equation("central2")
        if isinstance(equation, Burgers):
            return 0.8 * STEPS * equation.max_stable_step("rk4", self.exact(0.0))
        return 0.8 * STEPS * equation.max_stable_step("rk4")

    def exact(self, t: float) -> Tensor:
        equation = self.equation("central2")
        if isinstance(equation, Burgers):
            return equation.exact(t, 0.9)
        return equation.exact(t, torch.sin(2 * math.pi * equation.grid.points(torch.empty(0, dtype=torch.float64))))  # type: ignore[attr-defined]


def numpy_rhs(case: Case, batch: int) -> Callable[[float, np.ndarray], np.ndarray]:
    """The same right-hand side (central2) as a numpy user writes it."""
    h, n = 1 / case.n, case.n

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        u = y.reshape(batch, n)
        after, before = np.roll(u, -1, -1), np.roll(u, 1, -1)
        if case.name == "advection":
            return (-SPEED / (2 * h) * (after - before)).ravel()
        if case.name == "diffusion":
            return (DIFFUSIVITY / h**2 * (after - 2 * u + before)).ravel()
        return (-(after**2 - before**2) / (4 * h) + VISCOSITY / h**2 * (after - 2 * u + before)).ravel()

    return slope


def py_pde(python: str, case: Case) -> dict[str, Any] | None:
    """One field, stepped by py-pde's compiled rk4 with the same steps."""
    given = json.dumps([case.name, case.n, case.end(), STEPS, SPEED, DIFFUSIVITY if case.name == "diffusion" else VISCOSITY, ROUNDS])
    u0 = case.exact(0.0).numpy().tobytes()
    run = subprocess.run([python, "-c", PEER, given], input=u0, capture_output=True, cwd="/", env=without_ours(), check=False)
    if run.returncode:
        print(f"py-pde did not run: {run.stderr.decode().strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(run.stdout.decode().strip().splitlines()[-1])


def against_exponax(python: str, n: int, batch: int, backward: bool) -> list[str]:
    """Two rows, without compile=True and with: CPU microseconds per step of both, and the median of the ratios."""
    equation = Diffusion(Grid1D(n), VISCOSITY, "spectral") + Nonlinearity(Grid1D(n), lambda u: -(u**2) / 2, 2, 1)
    u0 = Case("burgers", n).exact(0.0).expand(batch, n).contiguous()
    end, steps = 0.5, 100
    order = {"n": n, "steps": steps, "end": end, "viscosity": VISCOSITY, "backward": backward, "u0": u0.tolist()}

    def run(compile: bool) -> Tensor:
        start = u0.clone().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            u = odeint(equation, start, [0.0, end], method="etdrk4", steps=steps, compile=compile)[-1]
            return torch.autograd.grad(u.square().sum(), start)[0] if backward else u

    worker = Worker([python, Path(__file__).with_name("exponax_worker.py")], without_ours() | ONE_THREAD)
    peer, found, first = worker.ask(order), {}, {}
    for compile in (False, True):
        begin = time.process_time()
        found[compile] = run(compile)
        first[compile] = time.process_time() - begin
    seconds: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        began = [time.process_time()]
        for compile in (False, True):
            run(compile)
            began.append(time.process_time())
        seconds.append((began[1] - began[0], began[2] - began[1], worker.ask({})))
    worker.close()
    rows = []
    for compile in (False, True):
        own, other = (statistics.median(row[place] for row in seconds) / steps * 1e6 for place in (compile, 2))
        ratio = statistics.median(row[compile] / row[2] for row in seconds)
        differ = (found[compile][0] - torch.tensor(peer["u"], dtype=torch.float64)).abs().max() / found[compile].abs().max()
        what = ("forward and backward" if backward else "forward") + (f", compiled in {first[True]:.0f} s" if compile else "")
        rows.append(f"| {n} | {batch} | {what} | {own:.0f} | {other:.0f} | {ratio:.2f} | {differ:.0e} |")
    return rows


def interleaved(runs: dict[str, Callable[[], Tensor]]) -> dict[str, tuple[float, Tensor]]:
    """Median seconds and the result of each, measured round robin."""
    results = {name: run() for name, run in runs.items()}  # warm-up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    return {name: (statistics.median(times[name]), results[name]) for name in runs}


def ours(case: Case, u0: Tensor, scheme: str, method: str, steps: int, compiled: bool = False) -> Callable[[], Tensor]:
    equation, t = case.equation(scheme), [0.0, case.end()]
    func: Any = equation
    if compiled:
        torch._dynamo.reset()  # or its limit of recompilations stops it
        func = torch.compile(equation, fullgraph=True)
    return lambda: odeint(func, u0, t, method=method, steps=steps)[-1]


def coarsest(case: Case, u0: Tensor, scheme: str, method: str, error: float) -> int:
    """The fewest steps (a power of 2) with which we are at most as wrong as that."""
    exact = case.exact(case.end())
    steps = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while steps < 4 * STEPS and not (ours(case, u0[:1], scheme, method, steps)() - exact).abs().max() <= error:
            steps *= 2
    return steps


def measure(case: Case, batch: int, python: str | None, rows: list[str], peers: dict[tuple[str, int], dict[str, Any] | None]) -> None:
    T, exact = case.end(), case.exact(case.end())
    u0 = case.exact(0.0).expand(batch, case.n).contiguous()
    equation, peer = case.equation("central2"), None
    if python is not None:
        peer = peers.setdefault((case.name, case.n), None) or py_pde(python, case)
        peers[case.name, case.n] = peer
    slope, flat = numpy_rhs(case, batch), u0.numpy().ravel()
    level = (ours(case, u0, "central2", "rk4", STEPS)() - exact).abs().max().item()
    best = BEST[case.name]
    few = coarsest(case, u0, *best, level)
    rtol, times = 1e-6, torch.tensor([0.0, T], dtype=torch.float64)
    found = interleaved(
        {
            "same": ours(case, u0, "central2", "rk4", STEPS),
            "compiled": ours(case, u0, "central2", "rk4", STEPS, compiled=True),
            "best": ours(case, u0, *best, few),
            "torchdiffeq": lambda: torchdiffeq.odeint(equation, u0, times, method="rk4", options={"step_size": T / STEPS})[-1],  # pyright: ignore
            "scipy": lambda: torch.from_numpy(solve_ivp(slope, (0, T), flat, rtol=rtol, atol=rtol).y[:, -1].reshape(batch, -1)),
        }
    )
    per_field = {name: seconds / batch for name, (seconds, _) in found.items()}
    errors = {name: (u - exact).abs().max().item() for name, (_, u) in found.items()}
    if peer is not None:
        per_field["py-pde"], errors["py-pde"] = peer["seconds"], float(np.abs(np.array(peer["u"]) - exact.numpy()).max())
    for name, seconds in per_field.items():
        what = {"same": "anodev2, central2, rk4", "compiled": "the same, compiled", "best": f"anodev2, {', '.join(best)}, {few} steps"}
        ratio = f"{seconds / per_field['best']:.2f}"
        rows.append(
            f"| {case.name} | {case.n} | {batch} | {what.get(name, name)} | {errors[name]:.1e} | {seconds * 1e6:.0f} "
            f"| {seconds / per_field['same']:.2f} | {ratio} |"
        )
        print(rows[-1], flush=True)


@dataclass(frozen=True)
class Config:
    """What is compared."""

    py_pde: Path | None = None
    """a Python interpreter that has py-pde; none: without it"""
    exponax: Path | None = None
    """a Python interpreter that has exponax and jax; none: without it"""
    problems: Annotated[tuple[Literal["advection", "diffusion", "burgers", "none"], ...], DIFFERENT] = ("advection", "diffusion", "burgers")
    """equations to compare with all but exponax"""
    sizes: Annotated[tuple[Count, ...], DIFFERENT] = (128, 1024, 8192)
    """points of the grids"""
    batches: Annotated[tuple[Count, ...], DIFFERENT] = (1, 64)
    """fields at once"""


def main(py_pde: Path | None, exponax: Path | None, problems: tuple[str, ...], sizes: tuple[int, ...], batches: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", message=".*functools.lru_cache.*")
    print(
        f"{platform.machine()}, one thread; torch {torch.__version__}, scipy {scipy.__version__}, torchdiffeq {torchdiffeq.__version__}\n"
    )
    if exponax is not None:
        print("| n | batch | | anodev2, CPU us per step | exponax | ratio | they differ by |\n|---|---|---|---|---|---|---|")
        for n, batch, backward in product(sizes, batches, (False, True)):
            print(*against_exponax(str(exponax), n, batch, backward), sep="\n", flush=True)
        print()
    if "none" in problems:
        return
    print(
        "| problem | n | batch | who | largest error | us per field | / anodev2 same | / anodev2 best |\n|---|---|---|---|---|---|---|---|"
    )
    peers: dict[tuple[str, int], dict[str, Any] | None] = {}
    rows: list[str] = []
    for name in problems:
        for n in sizes:
            for batch in batches:
                measure(Case(name, n), batch, None if py_pde is None else str(py_pde), rows, peers)
    for (name, n), peer in peers.items():
        if peer is not None:
            print(f"py-pde {peer['version']}: {name}, n = {n}: compiled in {peer['compile']:.1f} s")


if __name__ == "__main__":
    script(main, __doc__, Config)
