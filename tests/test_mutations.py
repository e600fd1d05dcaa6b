"""Each protection of the recompute, and a few other load-bearing lines, taken out once: a test must turn red.

Slow (a fresh pytest for each row): ``pytest -m slow``. The copy that is mutated is a temporary one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ["anodev2", "models", "pde", "examples", "tests", "pyproject.toml"]

# what is taken out: (file, text, instead, the tests that must notice)
MUTATIONS = {
    "two tableau weights swapped": ("tableau.py", 'b=_row("1/6", "1/3"', 'b=_row("1/3", "1/6"', "test_tableau.py"),
    "wrong stage times": ("problem.py", "step.time(node)", "step.time(0.0)", "test_solvers.py"),
    "output time missed": ("stepping.py", "if where == self.parts:", "if where > self.parts:", "test_stepping.py"),
    "a rounded step gained": ("stepping.py", " * (1 - 1e-9)", "", "test_stepping.py"),
    # the pass backward
    "a gradient dropped": ("sweep.py", "self.totals.add(gradients)", "pass", "test_adjoint.py"),
    "gradients added in place over shared memory": (
        "pullback.py",
        "elif self.owned[place]:",
        "elif True:",
        "test_adjoint.py::test_gradients_that_share_memory_are_summed_apart",
    ),
    "outputs on the way forgotten": ("sweep.py", "here = self.arriving.get(at, self.nothing)", "here = self.nothing", "test_adjoint.py"),
    "transforms not seen": (
        "adjoint.py",
        "if not torch.is_grad_enabled() or transformed():",
        "if False:",
        "test_adjoint.py::test_transforms_and_forward_mode_are_exact",
    ),
    "second derivative not refused": (
        "adjoint.py",
        "if torch.is_grad_enabled():  # create_graph=True",
        "if False:  # create_graph=True",
        "test_adjoint.py::test_a_second_derivative_is_refused_with_the_alternative",
    ),
    "hooks fire at every step": (
        "pullback.py",
        "        hooks.clear()\n",
        "        pass\n",
        "test_adjoint.py::test_a_hook_that_changes_a_gradient_acts_once",
    ),
    "arguments keep their history": (
        "inputs.py",
        "given = [tensor.detach().requires_grad_(want)",
        "given = [tensor",
        "test_reach.py",
    ),
    "inner tensors keep their history": ("inputs.py", "if self.inner else nullcontext()", "if False else nullcontext()", "test_reach.py"),
    "unused inner tensors drag their graph in": ("inputs.py", "if id(tensor) in mode.met] if", "] if", "test_reach.py"),
    "lost tensors go unnoticed": ("pullback.py", "        _refuse_lost(strangers)\n", "", "test_reach.py"),
    "closures not searched": ("reach.py", "for cell in function.__closure__ or ():", "for cell in ():", "test_reach.py"),
    "gradients asked of a state that wants none": (
        "pullback.py",
        "[leaf for leaf in y if leaf.requires_grad] + others",
        "[*y, *others]",
        "test_adjoint.py::test_only_parameters_may_want_a_gradient_or_only_the_state",
    ),
    "states held until the graph is gone": ("adjoint.py", "ctx.maybe_clear_saved_tensors()", "pass", "test_memory.py"),
    "kept graphs read arguments with a history": (
        "sweep.py",
        "start, self.sweep.inputs.args(stand_ins))",
        "start, self.args)",
        "test_adjoints.py::test_tensors_with_a_history",
    ),
    # replay
    "dropout not replayed": ("replay.py", "        self.random.rewind(index)\n", "", "test_replay.py"),
    "steps on the way not replayed": (
        "sweep.py",
        "                self.recording.rewind(step.index)\n",
        "",
        "test_replay.py",
    ),
    "private generators not replayed": (
        "replay.py",
        "[torch.default_generator, *generators]",
        "[torch.default_generator]",
        "test_replay.py",
    ),
    "generator not put back": ("replay.py", "stack.callback(self.random.write, self.random.read())", "pass", "test_replay.py"),
    "buffers move twice": ("replay.py", "buffers.rewind(index, copies)", "pass", "test_replay.py"),
    "buffers not given back": ("replay.py", "dict(buffers.module._buffers))", "{})", "test_replay.py"),
    "replayed buffers spoil the record": ("replay.py", "if values is not self.values[index + 1]:", "if False:", "test_replay.py"),
    "autocast lost": ("replay.py", "torch.autocast(kind, dtype))", "torch.autocast(kind, dtype, False))", "test_replay.py"),
    "derivatives under autocast": ("replay.py", "if torch.is_autocast_enabled(kind):", "if False:", "test_replay.py"),
    "differences not noticed": ("sweep.py", "        back.comparison.verify()\n", "", "test_replay.py"),
    "the last step not compared": ("sweep.py", "self.end = [sample(leaf).clone() for leaf in y]", "self.end = []", "test_replay.py"),
    "other parameters than in the forward pass": ("replay.py", "module._parameters.update(parameters)", "pass", "test_replay.py"),
    "thawed parameters": ("replay.py", "if leaf.requires_grad != wants:", "if False:", "test_replay.py"),
    "fast paths of inference": ("replay.py", "set_fastpath_enabled(False)", "set_fastpath_enabled(fast_path)", "test_replay.py"),
    "gradients of kept tensors lost": (
        "sweep.py",
        "if step.index == 0:\n            self.recording.kept.refuse",
        "if False:\n            self.recording.kept.refuse",
        "test_replay.py",
    ),
    "kept tensors not given back": ("replay.py", "{name: vars(module).get(name)})", "{})", "test_replay.py"),
    "a state changed in place": ("problem.py", "if before is not None and before != versions(y):", "if False:", "test_replay.py"),
    "changes measured against the state": ("replay.py", "vector_norm(expected - start,", "vector_norm(expected,", "test_replay.py"),
    "a constant changed under a kept graph": ("sweep.py", "if versions(packed[:1]) != [packed[1]]:", "if False:", "test_replay.py"),
    "a second derivative of an event": (
        "observe.py",
        'first_order_only([time, *ends_at(time)], "an event")',
        "[time, *ends_at(time)]",
        "test_observe.py",
    ),
    "shared buffers torn apart": ("replay.py", "copies.setdefault(id(v), v.clone())", "v.clone()", "test_replay.py"),
    "leaves known by their saved copies": (
        "inputs.py",
        "places = {id(tensor): place for place, tensor in enumerate([*given, *self.leaves, *inner])}",
        "places = {id(tensor): place for place, tensor in enumerate([*given, *map(torch.detach, self.leaves), *inner])}",
        "test_replay.py",
    ),
    "training flags of the backward pass": ("replay.py", "if module.training != training:", "if False:", "test_replay.py"),
    # schedules and budgets
    "a schedule without the state before the last step": (
        "schedule.py",
        "range(max(plain - 1, 1), steps)",
        "range(plain, steps)",
        "test_schedule.py",
    ),
    "slots of a gap not shared": (
        "schedule.py",
        "free = max(1, (slots or steps) - place)",
        "free = max(1, slots or steps)",
        "test_schedule.py",
    ),
    "a budget overdrawn": ("schedule.py", "// state - graphs - 1  # states", "// state - graphs  # states", "test_schedule.py"),
    "a graph weighed with its surroundings": (
        "sweep.py",
        "storages.pop(",
        "storages.get(",
        "test_memory.py::test_memory_budgets_are_kept_and_predicted_and_the_more_the_fewer_steps_are_redone",
    ),
    # error control
    "rejected attempts leave a trace": (
        "march.py",
        "slopes[0]\n                    recording.retreat()\n",
        "slopes[0]\n",
        "test_adaptive.py",
    ),
    "slopes of a random f handed on": (
        "march.py",
        "if method.tableau.fsal and not moved else None",
        "if method.tableau.fsal else None",
        "test_adaptive.py",
    ),
    "errors forgiven": ("stepping.py", "accepted = error <= 1", "accepted = error <= 1e9", "test_adaptive.py"),
    "tolerances of one leaf for all": (
        "march.py",
        "zip(error, size, adaptive.rtol, adaptive.atol, strict=True)",
        "zip(error, size, adaptive.rtol[:1] * 9, adaptive.atol[:1] * 9, strict=False)",
        "test_adaptive.py",
    ),
    "states that nobody asked for": ("march.py", "            self._states.pop(index - 1, None)\n", "            pass\n", "test_memory.py"),
    "statistics restored behind autograd's back": (
        "replay.py",
        "with _unsafe_preserve_version_counter(buffer):",
        "if True:",
        "test_replay.py",
    ),
    "graphs of kept tensors torn": (
        "sweep.py",
        "            self.recording.kept.refuse_gradients()\n            self.stand_ins",
        "            self.stand_ins",
        "test_replay.py",
    ),
    "a result that shares memory with what is compared": (
        "sweep.py",
        "[sample(leaf).clone() for leaf in y]",
        "[sample(leaf) for leaf in y]",
        "test_replay.py",
    ),
    "dense output at a fixed place of the step": (
        "dense.py",
        "x = (t - step.time(0.0)) / step.dt",
        "x = (t - self.nodes[step.index]) / (self.nodes[step.index + 1] - self.nodes[step.index])",
        "test_dense.py",
    ),
    "samples moved by rejected attempts": (
        "per_sample.py",
        "self.y = torch.where(accepted, ends[0], self.y)",
        "self.y = ends[0]",
        "test_per_sample.py",
    ),
    # reversible, backsolve, events
    "a reversible step undone in the wrong order": (
        "reversible.py",
        "mark % 2 else step",
        "mark % 2 == 0 else step",
        "test_adjoints.py::test_reversible_equals_store_all_of_its_own_scheme",
    ),
    "a failed reversal kept quiet": (
        "reversible.py",
        "if not gap <=",
        "if False and gap <=",
        "test_adjoints.py::test_a_reversible_solve_that_cannot_be_undone_says_by_how_much",
    ),
    "the cotangent not solved backwards": (
        "backsolve.py",
        "pairs = [(k, -a)",
        "pairs = [(k, a)",
        "test_adjoints.py::test_backsolve_converges_to_the_exact_gradient",
    ),
    "an event's time without gradient": (
        "observe.py",
        "s - value.to(time.dtype) / slope",
        "s - 0 * value.to(time.dtype)",
        "test_observe.py",
    ),
    # the rest
    "phi_2 for phi_3": ("solvers/exponential.py", "phi_3(4 * (n_u", "phi_2(4 * (n_u", "test_stiff.py"),
    "two weights of an IMEX row swapped": ("solvers/imex.py", "(11 / 18, 1 / 18)", "(1 / 18, 11 / 18)", "test_stiff.py"),
    "the implicit gradient without its solve": (
        "solvers/implicit.py",
        "            return v\n",
        "            return g\n",
        "test_stiff.py",
    ),
    "phi functions by the recurrence near zero": ("linear.py", "near = z.abs() < 1", "near = z.abs() < 0", "test_stiff.py"),
    "a stability limit after the first zone": (
        "stability.py",
        "first, new = found.int().argmax(0), found",
        "first, new = len(radii) - 1 + 0 * found[0].int(), found",
        "test_stability.py",
    ),
    "never stable not noticed": ("stability.py", "                return total > 0", "                return False", "test_stability.py"),
    "unstable steps without a warning": ("solve.py", "if longest > limit", "if False and longest > limit", "test_stability.py"),
    "a field along another axis": ("dynamics.py", 'f"... {right} -> ... {left}"', 'f"... {left} -> ... {left}"', "test_dynamics.py"),
    "velocities not trained": (
        "dynamics.py",
        "return {name: self.velocity[_key(name)] for",
        "return {name: self.velocity[_key(name)].detach() for",
        "test_dynamics.py",
    ),
    # pde
    "no second derivative of Nyquist": (
        "../pde/stencils.py",
        "factor = -(grid.modes(padded) ** 2)",
        "factor = -(grid.wavenumbers(padded) ** 2)",
        "test_pde_operators.py",
    ),
    "a wall slope of the other sign": ("../pde/boundary.py", "return image + datum", "return image - datum", "test_pde_boundaries.py"),
    "upwind on the wrong side": (
        "../pde/advection.py",
        "return -(positive * self.forward_side(u, self.grid, t) + negative * self.backward_side",
        "return -(positive * self.backward_side(u, self.grid, t) + negative * self.forward_side",
        "test_pde_operators.py",
    ),
    "weno5 without its weights": (
        "../pde/stencils.py",
        "(smoothness + 1e-6) ** 2",
        "(0 * smoothness + 1e-6) ** 2",
        "test_pde_operators.py",
    ),
    "states promoted": ("solvers/method.py", "        k = k.to(leaf.dtype)", "        pass", "test_solve.py"),
    "leapfrog of what is not separable": (
        "solve.py",
        "any(g is not None for g in torch.autograd.grad(",
        "any(False for g in torch.autograd.grad(",
        "test_solvers.py",
    ),
    "steps not passed on": ("problem.py", '("step", step), ("stage"', '("step", 0), ("stage"', "test_models.py"),
    "theta of the step's start in every stage": ("block.py", "len(way) > 1 else 0][stage]", "len(way) > 1 else 0][0]", "test_block.py"),
    "every step with the first weights": (
        "unroll.py",
        "number, counters = self.plan.number(",
        "number, counters = 0 * self.plan.number(",
        "test_unroll.py::test_outputs_are_the_blocks_to_the_bit",
    ),
    "a basis that moves the start": ("dynamics.py", "torch.cos(angle) - 1, ", "torch.cos(angle), ", "test_galerkin.py"),
    "a norm copied to the first step alone": (
        "../models/blocks.py",
        "value for step in range(len(self))})",
        "value if step == 0 else torch.zeros_like(value) for step in range(len(self))})",
        "test_models.py",
    ),
    # compiled runs
    "runs end a step too early": (
        "compiled.py",
        "    for i in range(count):",
        "    for i in range(count - 1):",
        "test_compiled.py::test_gradients_are_those_of_the_plain_solve",
    ),
    "a graph serves runs of another place": (
        "compiled.py",
        'step.inner[0].index if "step" in vector.call.names else 0',
        "0",
        "test_compiled.py::test_a_coupled_block_with_norms_per_step",
    ),
    # training
    "every rank takes the first one's images": (
        "../examples/train_cifar.py",
        "(ranks.rank * config.accumulate + part) * share",
        "part * share",
        "test_ranks.py::test_two_processes_take_the_steps_of_one",
    ),
    "momentum lost at a kill": (
        "../examples/train_cifar.py",
        '"optimizer": self.optimizer, "scheduler"',
        '"scheduler"',
        "test_train_cifar.py::test_killed_and_resumed_it_ends_with_the_same_weights",
    ),
    "files written in place": ("../examples/runs.py", 'f".{path.name}.partial"', "path.name", "test_train_cifar.py"),
    "pickled code loaded": ("../examples/runs.py", "weights_only=True", "weights_only=False", "test_train_cifar.py"),
    "weights read at the wrong end of an implicit step": (
        "block.py",
        "else (step + 1, 0.0)",
        "else (step, 0.0)",
        "test_block.py::test_moving_weights_are_read_at_the_times_of_the_stages_whichever_way_a_step_goes",
    ),
    "weights of the mirrored stage": (
        "block.py",
        "[1 - node for node in method.nodes]",
        "list(method.nodes)",
        "test_block.py::test_moving_weights_are_read_at_the_times_of_the_stages_whichever_way_a_step_goes",
    ),
    "a state fetched when it is needed": (
        "ferry.py",
        "        if at in self.coming:\n            return\n",
        "",
        "test_ferry.py",
    ),
    # what diagnose says
    "the referee overruled": ("diagnose/gradients.py", "if gap > self.tolerance and", "if False and", "test_diagnose_gradients.py"),
    "steps undone in the wrong order": ("diagnose/reversal.py", "step=self.last - step", "step=step", "test_diagnose_reversal.py"),
    "other draws in every product": (
        "diagnose/jacobian.py",
        "        self.recording.retreat()\n        with forward_ad",
        "        with forward_ad",
        "test_diagnose_spectra.py",
    ),
    "diffusion backwards": ("dynamics.py", "rho.reshape(-1, 1) - tau", "rho.reshape(-1, 1) + tau", "test_dynamics.py"),
}


def copy_of_the_repository(target: Path) -> None:
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, target / part)


def run_tests(where: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True)


@pytest.mark.slow
def test_the_unchanged_copy_passes(tmp_path: Path) -> None:
    copy_of_the_repository(tmp_path)
    result = run_tests(tmp_path, sorted({row[3].split("::")[0] for row in MUTATIONS.values()}))
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_protection_turns_a_test_red(name: str, tmp_path: Path) -> None:
    file, old, new, tests = MUTATIONS[name][:4]
    copy_of_the_repository(tmp_path)
    path = tmp_path / "anodev2" / file
    source = path.read_text()
    assert source.count(old) == 1, f"{file} holds {old!r} {source.count(old)} times"
    path.write_text(source.replace(old, new))
    result = run_tests(tmp_path, [tests])
    assert result.returncode == 1, f"{name}: {tests} stayed green\n{result.stdout[-2000:]}"
