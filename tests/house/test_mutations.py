"""Each protection of the recompute, and a few other load-bearing lines, taken out once: a test must turn red.

Slow (a pytest for each row): ``pytest -m slow``. The copy that is mutated is a temporary one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["anodev2", "models", "pde", "examples", "benchmarks", "tests", "pyproject.toml"]

# what is taken out: (file, text, instead, the tests that must notice)
MUTATIONS = {
    "two tableau weights swapped": ("solvers/tableau.py", 'b=_row("1/6", "1/3"', 'b=_row("1/3", "1/6"', "test_tableau.py"),
    "wrong stage times": ("problem.py", "step.seen(node)", "step.seen(0.0)", "test_solvers.py"),
    "output time missed": ("stepping/grid.py", "if where == self.parts:", "if where > self.parts:", "test_stepping.py"),
    "every so manieth step counted from another": (
        "stepping/grid.py",
        "range(-self.before % self.every,",
        "range(0,",
        "test_saved_steps.py::test_steps_are_counted_over_those_that_another_grid_has_taken",
    ),
    "states kept that are not saved": (
        "integrate/loop.py",
        "if stepping.every is not None and index % stepping.every == 0:",
        "if stepping.every is not None:",
        "test_saved_steps.py::test_other_states_are_not_kept",
    ),
    "a rounded step gained": ("stepping/grid.py", " * (1 - 1e-9)", "", "test_stepping.py"),
    # states, parameters and saved tensors must be those of the pass forward
    "a parameter changed since": (
        "gradients/per_step.py",
        "if holder._version != version:",
        "if False:",
        "test_adjoint.py::test_what_a_gradient_needs_must_not_be_modified_before_it",
    ),
    "what was saved, changed since": (
        "gradients/per_step.py",
        "if tensor._version != self.now[place]:",
        "if False:",
        "test_recording.py::test_a_constant_changed_before_backward_is_noticed_by_kept_graphs",
    ),
    "a state changed since": (
        "gradients/per_step.py",
        "if versions(y) != self.versions:",
        "if False:",
        "test_adjoint.py::test_states_that_a_callback_was_shown_must_not_be_modified",
    ),
    "a state changed by f": ("problem.py", "if before is not None:", "if False:", "test_recording.py"),
    "other versions in a redone step": (
        "gradients/per_step.py",
        "        if odd:\n            raise",
        "        if False:\n            raise",
        "test_recording.py::test_what_f_saves_and_writes_to_afterwards_is_refused_as_by_autograd",
    ),
    "other tensors in a redone step": (
        "gradients/per_step.py",
        "        if kinds != self.saved:\n            raise",
        "        if False:\n            raise",
        "test_recording.py::test_another_branch_is_noticed_by_what_is_saved_or_by_the_graph",
    ),
    "redone values not compared": (
        "gradients/per_step.py",
        "solve.comparison.add([redone",
        "list([redone",
        "test_recording.py::test_a_change_seen_in_one_step_alone_is_noticed_and_nan_is_not_a_change",
    ),
    "compared in the last step alone": (
        "gradients/per_step.py",
        "not in seen and _is_result(tensor, moving):",
        "not in seen and everything and _is_result(tensor, moving):",
        "test_recording.py::test_a_change_seen_in_one_step_alone_is_noticed_and_nan_is_not_a_change",
    ),
    "what f writes to is compared": (
        "gradients/per_step.py",
        " and (tensor.requires_grad or storage(tensor) not in moving)",
        "",
        "test_recording.py::test_batchnorm_reached_through_a_function_moves_once",
    ),
    "a redone step that ends too early": (
        "gradients/per_step.py",
        "if len(at) == wanted and stoppable(sys._getframe(1)):",
        "if len(at) == wanted:",
        "test_outside.py::test_what_f_undoes_at_its_end_is_undone_in_a_redone_step_too",
    ),
    "hooks of modules left out at the end of a redone step": (
        "gradients/per_step.py",
        "if module is not None and has_forward_hooks(module):",
        "if False:",
        "test_outside.py::test_what_f_undoes_at_its_end_is_undone_in_a_redone_step_too",
    ),
    "floats compared alone": (
        "gradients/per_step.py",
        "steady = tensor.is_cpu or tensor",
        "steady = tensor",
        "test_outside.py::test_values_that_only_choose_are_compared_too",
    ),
    "changed elsewhere": (
        "integrate/recording.py",
        "if elsewhere and not self.opaque:",
        "if False:",
        "test_outside.py::test_what_one_step_alone_reads_may_not_be_modified",
    ),
    "whatever has changed refused": (
        "integrate/recording.py",
        "    if seen.met:\n",
        "    if True:\n",
        "test_outside.py::test_what_no_step_reads_may_be_modified",
    ),
    "an infinite value hides others": (
        "integrate/comparison.py",
        "expected.nan_to_num(0.0, 0.0, 0.0)",
        "expected",
        "test_outside.py::test_values_beside_an_infinite_one_are_compared",
    ),
    "aliases told from views": (
        "gradients/vjp.py",
        'name.replace("ReshapeAlias", "View")',
        "name",
        "test_outside.py::test_any_reshape_is_redone",
    ),
    "states sent away with a history": (
        "gradients/offload.py",
        "leaf.detach(), non_blocking=True)",
        "leaf, non_blocking=True)",
        "test_outside.py::test_a_graph_that_is_not_used_to_its_end_is_freed",
    ),
    "recomputed with other weights": (
        "integrate/functional_call.py",
        'frame.f_globals.get("__name__") == checkpoint.__name__',
        "False",
        "test_block.py::test_what_f_would_run_again_with_other_weights_is_refused",
    ),
    "written unseen in code that is compiled": (
        "integrate/recording.py",
        "if tensor._version != version or wrote:",
        "if False:",
        "test_compiled.py::test_what_compiled_code_writes_to_unseen_is_refused",
    ),
    "what an estimate of the error saved forgotten though f keeps it": (
        "gradients/per_step.py",
        "self.estimate is not None and self.estimate() is None",
        "self.estimate is not None",
        "test_outside.py::test_a_penalty_kept_in_the_stage_that_estimates_the_error_counts",
    ),
    "containers among the arguments copied": (
        "gradients/vjp.py",
        "args if all(map(is_, leaves, swapped)) else build",
        "build",
        "test_outside.py::test_a_container_among_the_arguments_is_the_users_own",
    ),
    "the last saved tensor compared alone": (
        "gradients/per_step.py",
        "                if not everything:",
        "                if True:",
        "test_recording.py::test_in_the_last_step_all_that_is_saved_is_compared",
    ),
    "differences forgiven": (
        "integrate/comparison.py",
        '    raise changed("came out differently")',
        "    return",
        "test_recording.py::test_a_change_seen_in_one_step_alone_is_noticed_and_nan_is_not_a_change",
    ),
    "a first step that filled a cache let go": (
        "gradients/per_step.py",
        "not Counter(self.whole[0].saved) - Counter(frame.saved) and ",
        "",
        "test_outside.py::test_a_cache_that_the_first_step_fills_may_have_no_gradient",
    ),
    "a first step that later ones reach back into let go": (
        "gradients/per_step.py",
        " and not _reaches_back(y, *self.began)",
        "",
        "test_recording.py::test_a_first_step_that_later_ones_reach_back_into_is_held",
    ),
    "what f keeps of a redone step": (
        "gradients/per_step.py",
        "leaf.register_hook(_refuse_kept)",
        "pass",
        "test_recording.py::test_what_f_keeps_of_a_redone_step_is_no_part_of_a_later_loss",
    ),
    "places in a redone step": (
        "gradients/per_step.py",
        "    if place >= len(holder):\n        _refuse_kept()\n",
        "",
        "test_recording.py::test_what_f_keeps_of_a_redone_step_is_no_part_of_a_later_loss",
    ),
    "hooks around a solve": (
        "gradients/per_step.py",
        "else solve.outer[0](leaf.detach())",
        "else leaf.detach()",
        "test_recording.py::test_saved_tensor_hooks_around_a_block",
    ),
    "a state in another role": (
        "gradients/per_step.py",
        "nn.Parameter if _of_parameter(leaf) else Tensor.detach",
        "Tensor.detach",
        "test_adjoint.py::test_a_state_that_is_a_parameter",
    ),
    "tensors of a redone step held to its end": (
        "gradients/per_step.py",
        "self.live[place] = None  # nobody",
        "pass  # nobody",
        "test_speed.py::test_no_more_bytes_are_held_than_by_hand",
    ),
    "redone steps held": (
        "gradients/per_step.py",
        "            last.let_go()\n",
        "            pass\n",
        "test_memory.py::test_a_graph_that_is_retained_holds_one_redone_step",
    ),
    # steps that are redone by slots, or undone
    "outputs on the way forgotten": ("gradients/slots.py", "here = arriving.get(index, nothing)", "here = nothing", "test_adjoints.py"),
    "gradients of earlier steps forgotten": (
        "gradients/vjp.py",
        "*totals], strict",
        "*([None] * len(totals))], strict",
        "test_adjoints.py",
    ),
    "sums in another order": (
        "gradients/vjp.py",
        "totals[:] = [gradients.get(id(source)) for source in sources]",
        "totals[:] = [g if t is None or g is None else (g - t) + t for t, g in zip(totals, (gradients.get(id(x)) for x in sources))]",
        "test_adjoints.py",
    ),
    "states on the way not kept": (
        "gradients/slots.py",
        "                    states[at] = self._stored(y)\n",
        "                    pass\n",
        "test_adjoints.py",
    ),
    "steps on the way not replayed": (
        "gradients/slots.py",
        "with self.recording.replaying(at):",
        "with nullcontext():",
        "test_recording.py::test_dropout_is_replayed_and_the_generator_is_left_where_it_was",
    ),
    "steps of slots not compared": (
        "gradients/slots.py",
        "comparison.add(graph.end[:width], expected)",
        "pass",
        "test_recording.py::test_a_change_seen_in_one_step_alone_is_noticed_and_nan_is_not_a_change",
    ),
    "a result that shares memory with what is compared": (
        "integrate/comparison.py",
        "self.rows = {kind: torch.cat(own) for",
        "self.rows = {kind: own[0] if len(own) == 1 else torch.cat(own) for",
        "test_recording.py::test_the_result_of_a_block_may_be_changed_in_place",
    ),
    "another graph with slots": (
        "gradients/slots.py",
        "if graph.kinds != self.kinds[index]:",
        "if False:",
        "test_recording.py::test_another_branch_is_noticed_by_what_is_saved_or_by_the_graph",
    ),
    "another graph, undone": (
        "gradients/reversible.py",
        "if graph.kinds != self.undone.kinds[mark]:",
        "if False:",
        "test_recording.py::test_another_branch_undone_or_solved_backwards_is_noticed",
    ),
    "another graph, solved backwards": (
        "gradients/backsolve.py",
        "if kinds != again:",
        "if False:",
        "test_recording.py::test_another_branch_undone_or_solved_backwards_is_noticed",
    ),
    "the last half step not compared": (
        "gradients/reversible.py",
        "            if first:\n",
        "            if False:\n",
        "test_recording.py::test_a_loop_variable_bound_late_is_noticed",
    ),
    "the last step not compared, solved backwards": (
        "gradients/backsolve.py",
        "self._compare(*self.last)",
        "pass",
        "test_recording.py::test_a_loop_variable_bound_late_is_noticed",
    ),
    "tensors with a history not replaced": (
        "gradients/vjp.py",
        "return self._stand_in(item) if old else item",
        "return item",
        "test_captured.py",
    ),
    "arguments with a history not replaced": (
        "gradients/vjp.py",
        "swapped = [self._swap(leaf) for leaf in leaves]",
        "swapped = leaves",
        "test_compiled.py::test_an_argument_with_a_history_with_slots",
    ),
    "what steps leave taken for what was before": (
        "gradients/vjp.py",
        "if tensor.grad_fn._sequence_nr() >= self.born:",
        "if False:",
        "test_recording.py::test_a_tensor_kept_on_a_module_is_refused_in_the_forward_pass_without_a_lasting_graph",
    ),
    "kept tensors not noticed": (
        "gradients/vjp.py",
        "        if self.probe() is not None:\n",
        "        if False:\n",
        "test_recording.py::test_a_tensor_kept_on_a_module_is_refused_in_the_forward_pass_without_a_lasting_graph",
    ),
    "leaves that no search finds forgotten": (
        "gradients/vjp.py",
        "self.leaves.append(weakref.ref(variable))",
        "pass",
        "test_captured.py::test_what_no_search_finds_has_its_gradient_or_is_refused_with_the_cure",
    ),
    "a new leaf in a redone step": (
        "gradients/vjp.py",
        "        if graph.dropped():\n",
        "        if graph.dropped() and False:\n",
        "test_recording.py::test_a_leaf_that_was_another_one_in_the_forward_pass_is_noticed_or_does_not_matter",
    ),
    "paths that cannot be followed": (
        "gradients/vjp.py",
        "elif node._sequence_nr() < captured.since:",
        "elif False:",
        "test_captured.py::test_what_no_search_finds_has_its_gradient_or_is_refused_with_the_cure",
    ),
    "leaves in a cycle taken for lost ones": (
        "gradients/vjp.py",
        "            gc.collect()",
        "            pass",
        "test_captured.py::test_a_leaf_of_f_that_lies_in_a_reference_cycle_is_not_taken_for_a_lost_one",
    ),
    "hooks fire at every step": (
        "gradients/vjp.py",
        "        hooks.clear()\n",
        "        pass\n",
        "test_adjoint.py::test_a_hook_that_changes_a_gradient_acts_once",
    ),
    "stand-ins of the solve around": ("gradients/vjp.py", "with no_torch_functions():", "if True:", "test_captured.py"),
    "steps inside given to the hooks of a solve around": (
        "problem.py",
        "    if saving_hooks() is None:\n        return nullcontext()",
        "    if True:\n        return nullcontext()",
        "test_captured.py",
    ),
    "closures not searched": (
        "integrate/captured.py",
        "for cell in function.__closure__ or ():",
        "for cell in ():",
        "test_outside.py::test_flags_of_a_module_in_a_closure_are_those_of_the_forward_pass",
    ),
    "gradients asked of a state that wants none": (
        "gradients/slots.py",
        "wants if index == 0 else",
        "[False] * width if index == 0 else",
        "test_adjoint.py",
    ),
    # what is tried, and given up
    "transforms not seen": (
        "gradients/adjoint.py",
        "torch.jit.is_tracing() or transformed():",
        "torch.jit.is_tracing():",
        "test_adjoint.py::test_transforms_and_forward_mode_are_exact",
    ),
    "second derivative not refused": (
        "gradients/function.py",
        "if torch.is_grad_enabled():  # create_graph=True",
        "if False:  # create_graph=True",
        "test_adjoint.py::test_a_second_derivative_is_exact_or_refused_with_the_alternative",
    ),
    "states held until the graph is gone": ("gradients/function.py", "ctx.maybe_clear_saved_tensors()", "pass", "test_memory.py"),
    "a graph that is too large": (
        "gradients/adjoint.py",
        "                graph = error.graph_bytes\n",
        "                raise\n",
        "test_recording.py::test_a_budget_that_all_states_do_not_fit_into_leaves_no_trace_of_the_attempt",
    ),
    "an attempt that leaves a trace": (
        "gradients/adjoint.py",
        "            recording.retreat(0)\n",
        "            pass\n",
        "test_recording.py::test_a_budget_that_all_states_do_not_fit_into_leaves_no_trace_of_the_attempt",
    ),
    "evaluations of an attempt counted": (
        "gradients/adjoint.py",
        "            problem.field.evaluations = counted\n",
        "            pass\n",
        "test_recording.py::test_a_budget_that_all_states_do_not_fit_into_leaves_no_trace_of_the_attempt",
    ),
    "torch.func inside f": (
        "gradients/adjoint.py",
        'if not whole or "saved tensor hooks" not in str(error):',
        "if True:",
        "test_memory.py::test_a_step_with_transforms_inside_is_weighed",
    ),
    # replay
    "random numbers of the pass backward": (
        "integrate/recording.py",
        "self.random.write(self.random.track[index])",
        "pass",
        "test_recording.py::test_dropout_is_replayed_and_the_generator_is_left_where_it_was",
    ),
    "generators not put back": (
        "integrate/recording.py",
        "undo.callback(self.random.write, self.random.read())",
        "pass",
        "test_recording.py::test_dropout_is_replayed_and_the_generator_is_left_where_it_was",
    ),
    "private generators not replayed": (
        "integrate/recording.py",
        "[torch.default_generator, *generators]",
        "[torch.default_generator]",
        "test_recording.py::test_private_generators_are_replayed",
    ),
    "statistics of the pass backward": (
        "integrate/recording.py",
        "                put(then)\n",
        "",
        "test_recording.py::test_buffers_that_enter_the_result_are_those_of_their_step",
    ),
    "statistics move twice": (
        "integrate/recording.py",
        "undo.callback(put, now, versions(written(now)))",
        "pass",
        "test_recording.py::test_batchnorm_statistics_move_once_per_evaluation",
    ),
    "statistics restored behind autograd's back": (
        "integrate/buffers.py",
        "        set_versions(",
        "        str(",
        "test_recording.py",
    ),
    "statistics that another module holds too, as they were for it": (
        "integrate/buffers.py",
        "if any(moved[place] for place in places):",
        "if False:",
        "test_buffers.py::test_memory_that_modules_share_moves_for_all_of_them",
    ),
    "a sample's end without the gradient of its time": (
        "events_of_samples.py",
        "time = torch.where(met, time, self.time)",
        "pass",
        "test_events_of_samples.py::test_samples_that_end_while_others_go_on_keep_the_gradient_of_their_time",
    ),
    "limits of samples with a history": (
        "stepping/jumps.py",
        "self._of_samples(start.detach(), ",
        "self._of_samples(start, ",
        "test_events_of_samples.py::test_samples_that_end_while_others_go_on_keep_the_gradient_of_their_time",
    ),
    "a count cut to half of its memory": (
        "integrate/buffers.py",
        "row.view(torch.int32) if",
        "row.to(torch.int32) if",
        "test_buffers.py",
    ),
    "an operator of one's own asked for coordinates of nothing": (
        "solvers/linear.py",
        "            return self.forward(u)\n",
        "            return self.forward(u.new_empty(0, *u.shape[-1:]))\n",
        "test_prepared.py::test_a_transform_of_ones_own_is_its_matrix",
    ),
    "a factor of before it changed": (
        "solvers/linear.py",
        "key = (key, own._version, v.dtype, v.device)",
        "key = (key, 0, v.dtype, v.device)",
        "test_stiff.py::test_a_table_is_moved_to_a_device_once_and_again_when_it_has_changed",
    ),
    "statistics that another step moves, taken for the last": (
        "integrate/buffers.py",
        "if moved or own is not last:",
        "if moved:",
        "test_recording.py::test_buffers_that_enter_the_result_are_those_of_their_step",
    ),
    "statistics changed since, taken for the last": (
        "integrate/buffers.py",
        "now += [] if moved else [last]",
        "now += [last]",
        "test_recording.py::test_statistics_moved_by_another_pass_stay_as_that_left_them",
    ),
    "no look for what a later step alone reaches": (
        "gradients/vjp.py",
        "if self.looking or self.closed or self.recording.opaque:",
        "if True:",
        "test_captured.py::test_a_tensor_with_a_history_that_later_steps_alone_read",
    ),
    "what a step did before it was looked at": (
        "gradients/vjp.py",
        "            self.recording.retreat(marks - 1)\n",
        "",
        "test_captured.py::test_a_tensor_with_a_history_that_later_steps_alone_read",
    ),
    "hidden tensors move twice": (
        "integrate/recording.py",
        "                self.buffers.add(tensor, before, self.marks)\n",
        "",
        "test_faithful.py::test_whatever_happens_in_a_place[buffer]",
    ),
    "hidden BatchNorm": (
        "integrate/side_effects.py",
        'BATCH_NORM = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}',
        "BATCH_NORM = set()",
        "test_faithful.py::test_whatever_happens_in_a_place[buffer]",
    ),
    "operators of others": ("integrate/side_effects.py", "custom = func.namespace not in TORCH_OWN", "custom = False", "test_faithful.py"),
    "a leaf changed in place": (
        "integrate/recording.py",
        "                if tensor.requires_grad:\n                    raise",
        "                if False:\n                    raise",
        "test_faithful.py::test_a_draw[35]",
    ),
    "hidden tensors written late": (
        "integrate/recording.py",
        "        if odd:\n            put",
        "        if False:\n            put",
        "test_recording.py::test_a_hidden_tensor_that_later_steps_alone_write_to_is_refused",
    ),
    "constants changed since": (
        "integrate/recording.py",
        "if moved := self.constants.moved():",
        "if moved := {}:",
        "test_recording.py::test_a_tensor_that_is_read_but_not_saved_must_not_be_modified_either",
    ),
    "attributes of the pass backward": (
        "integrate/attributes.py",
        "                    own[name] = value\n",
        "                    pass\n",
        "test_recording.py::test_an_attribute_replaced_since_is_that_of_the_forward_pass",
    ),
    "attributes that were not there": (
        "integrate/attributes.py",
        "and n not in attributes and isinstance(x, PLAIN)]:\n                del own[name]",
        "and n not in attributes and isinstance(x, PLAIN)]:\n                pass",
        "test_recording.py::test_an_attribute_that_is_looked_for_is_there_when_it_was_there",
    ),
    "buffers of the pass backward": (
        "integrate/attributes.py",
        "            _become(module._buffers, buffers)\n            if",
        "            if",
        "test_recording.py::test_parameters_and_buffers_replaced_since_are_those_of_the_forward_pass",
    ),
    "parameters of the pass backward": (
        "integrate/attributes.py",
        "others.append((module, parameters))",
        "pass",
        "test_recording.py::test_parameters_and_buffers_replaced_since_are_those_of_the_forward_pass",
    ),
    "attributes not given back": (
        "integrate/attributes.py",
        "                own.update(attributes)\n",
        "",
        "test_recording.py::test_an_attribute_replaced_since_is_that_of_the_forward_pass",
    ),
    "buffers not given back": (
        "integrate/attributes.py",
        "                own.update(attributes)\n            _become(module._buffers, buffers)\n",
        "                own.update(attributes)\n",
        "test_recording.py::test_parameters_and_buffers_replaced_since_are_those_of_the_forward_pass",
    ),
    "thawed parameters": (
        "integrate/recording.py",
        "if leaf.requires_grad != wants:",
        "if False:",
        "test_recording.py::test_parameters_swapped_in_or_thawed_are_those_of_the_forward_pass",
    ),
    "parameters left frozen": (
        "integrate/recording.py",
        "undo.callback(leaf.requires_grad_, leaf.requires_grad)",
        "pass",
        "test_recording.py::test_parameters_swapped_in_or_thawed_are_those_of_the_forward_pass",
    ),
    "autocast lost": (
        "integrate/recording.py",
        "undo.enter_context(torch.autocast(*cast))",
        "pass",
        "test_recording.py::test_autocast_is_that_of_the_forward_pass",
    ),
    "casts of a step before": (
        "integrate/recording.py",
        "            torch.clear_autocast_cache()",
        "            pass",
        "test_recording.py::test_autocast_is_that_of_the_forward_pass",
    ),
    "derivatives under autocast": (
        "integrate/recording.py",
        "if torch.is_autocast_enabled(kind):",
        "if False:",
        "test_recording.py::test_derivatives_of_redone_steps_are_taken_without_autocast",
    ),
    "a second derivative of an event": (
        "events.py",
        'first_order_only([time, *self._end(problem, y, args, time)], "an event")',
        "[time, *self._end(problem, y, args, time)]",
        "test_events.py",
    ),
    # schedules and budgets
    "a schedule without the state before the last step": (
        "gradients/schedule.py",
        "return (*kept, *range(max(steps - 1, 1), steps))",
        "return tuple(kept)",
        "test_schedule.py",
    ),
    "slots of a gap not shared": ("gradients/schedule.py", "- len(held) + 1)", "+ 1)", "test_schedule.py"),
    "a budget overdrawn": ("gradients/schedule.py", "// max(state, 1) - 2))", "// max(state, 1) - 1))", "test_schedule.py"),
    "graphs that do not fit": (
        "gradients/adjoint.py",
        "left = budget - (steps + 1) * state",
        "left = budget - steps * state",
        "test_schedule.py",
    ),
    "a graph weighed with its surroundings": (
        "gradients/per_step.py",
        "sizes.pop(storage(tensor), None)",
        "pass",
        "test_memory.py::test_memory_budgets_are_kept_and_predicted_and_the_more_the_fewer_steps_are_redone",
    ),
    "a state too few told of storing everything": (
        "plan.py",
        "(count + 1) * state + count * graph",
        "count * state + count * graph",
        "test_plan.py::test_the_predicted_peak_is_that_of_the_live_bytes",
    ),
    "a state too few told of a reversible solve": (
        "plan.py",
        "(4 + 2 * pairs) * state + graph, 2",
        "3 * state + graph, 2",
        "test_plan.py::test_the_predicted_peak_is_that_of_the_live_bytes",
    ),
    "outputs left out of what is told of a solve backwards": (
        "plan.py",
        "len(problem.stepping.outputs()) * state + 2 * state",
        "2 * state",
        "test_plan.py::test_the_predicted_peak_is_that_of_the_live_bytes",
    ),
    "a state too few told of checkpoints": (
        "gradients/schedule.py",
        "len(kept | {index, index + 1})",
        "len(kept | {index})",
        "test_plan.py::test_the_predicted_peak_is_that_of_the_live_bytes",
    ),
    # error control
    "rejected attempts leave a trace": (
        "integrate/loop.py",
        "again and not moved else None\n                    recording.retreat()\n",
        "again and not moved else None\n",
        "test_adaptive.py::test_rejected_attempts_and_error_estimates_leave_no_trace",
    ),
    "slopes of a random f handed on": (
        "integrate/loop.py",
        "if after is not None and not moved and self.reuse",
        "if after is not None and self.reuse",
        "test_adaptive.py::test_rejected_attempts_and_error_estimates_leave_no_trace",
    ),
    "the wrong side of a jump": (
        "stepping/jumps.py",
        "(ASIDE if other > time else -ASIDE)",
        "(-ASIDE if other > time else ASIDE)",
        "test_breaks.py::test_a_break_at_zero",
    ),
    "a slope carried across a jump": (
        "integrate/loop.py",
        "                recording.retreat()\n                self.first = None",
        "                recording.retreat()",
        "test_breaks.py::test_error_control_keeps_its_tolerance",
    ),
    "a sample that steps across a jump": (
        "integrate/per_sample.py",
        "return torch.minimum(breaks.where(ahead, math.inf).amin(0), self.sign * end) * self.sign",
        "return end",
        "test_breaks.py::test_each_sample_stops_at_the_breaks",
    ),
    "a sample on the wrong side of a jump": (
        "stepping/jumps.py",
        "((start, way), (end, -way))",
        "((start, -way), (end, way))",
        "test_breaks.py::test_each_sample_stops_at_the_breaks_with_exact_gradients",
    ),
    "theta steps across a jump of its own": (
        "block.py",
        '"breaks": self.breaks}\n            path',
        '"breaks": None}\n            path',
        "test_breaks_of_blocks.py::test_blocks_keep_the_order",
    ),
    "the wrong side of a jump in a block written out": (
        "unroll.py",
        "float(limited(step, sides).seen(node))",
        "float(step.time(node))",
        "test_breaks_of_blocks.py::test_written_out_in_every_precision",
    ),
    "an output time that moves with the break in its place": (
        "stepping/jumps.py",
        "return time is not knot and",
        "return False and",
        "test_breaks.py::test_gradients_of_an_output_time_and_of_the_break_beside_it",
    ),
    "errors forgiven": ("stepping/control.py", "accepted = error <= 1", "accepted = error <= 1e9", "test_adaptive.py"),
    "every pile of rejections a jump": (
        "stepping/rejections.py",
        " and size >= self._again * short:",
        ":",
        "test_rejections.py::test_fast_changes_of_a_stiff_problem_are_no_jumps",
    ),
    "the first step over a jump taken for the one that crosses it": (
        "stepping/rejections.py",
        "and error > self._error:",
        "and self._over is None:",
        "test_rejections.py::test_every_jump_is_told_to_within_a_step_and_no_other",
    ),
    "a stage beyond the attempt forgotten where jumps are told": (
        "integrate/loop.py",
        "verdict.accepted, max(1.0, *method.nodes))",
        "verdict.accepted, 1.0)",
        "test_rejections.py::test_every_jump_is_told_to_within_a_step_and_no_other",
    ),
    "tolerances of one leaf for all": (
        "integrate/loop.py",
        "zip(error, size, adaptive.rtol, adaptive.atol, strict=True)",
        "zip(error, size, adaptive.rtol[:1] * 9, adaptive.atol[:1] * 9, strict=False)",
        "test_adaptive.py::test_tolerances_are_numbers_tensors_or_trees_of_them",
    ),
    "an error as a share of the old state": (
        "integrate/loop.py",
        "size = [torch.maximum(a.abs(), b.abs())",
        "size = [a.abs()",
        "test_adaptive.py::test_an_error_is_a_share_of_the_larger_end_of_its_step",
    ),
    "an error as a share of the new state": (
        "integrate/loop.py",
        "size = [torch.maximum(a.abs(), b.abs())",
        "size = [b.abs()",
        "test_adaptive.py::test_an_error_is_a_share_of_the_larger_end_of_its_step",
    ),
    "states that nobody asked for": (
        "integrate/loop.py",
        "            self._states.pop(index - 1, None)\n",
        "            pass\n",
        "test_memory.py",
    ),
    "states at a fixed place of the step": (
        "solvers/interpolant.py",
        "- start) / dt",
        "- float(start)) / float(dt)",
        "test_dense.py",
    ),
    "further stages leave a trace": (
        "integrate/loop.py",
        "between = _nothing if recording is None else",
        "between = _nothing if recording is None or take.inside else",
        "test_output_times.py::test_output_times_leave_no_trace",
    ),
    "cotangents of states within steps lost where steps are redone": (
        "gradients/slots.py",
        "y_bar = [*y_bar, *of_read.get(index, nothing)]",
        "y_bar = [*y_bar, *nothing]",
        "test_output_times.py",
    ),
    "output times of a given grid in the wrong step": (
        "stepping/grid.py",
        "while sign * values[step + 1] < sign * value:",
        "while values[step + 1] < value:",
        "test_output_times.py",
    ),
    "slopes at the end not handed on from further stages": (
        "solvers/runge_kutta.py",
        "return self.tableau.ending if self.tableau.ending is not None and self.tableau.ending < len(slopes) else None",
        "return len(slopes) - 1 if self.tableau.fsal else None",
        "test_output_times.py::test_output_times_cost_nothing_or_the_further_stages_of_their_steps",
    ),
    "samples moved by rejected attempts": (
        "integrate/per_sample.py",
        "self.y = torch.where(accepted, ends[0], self.y)",
        "self.y = ends[0]",
        "test_per_sample.py",
    ),
    # reversible, backsolve, events
    "a reversible step undone in the wrong order": (
        "gradients/reversible.py",
        "step, mark % 2 == 1, start",
        "step, mark % 2 == 0, start",
        "test_reversible.py::test_reversible_equals_store_all_of_its_own_scheme",
    ),
    "kept states of a reversible solve not taken up": (
        "gradients/reversible.py",
        "back.y, back.z = pair[:width], pair[width:]",
        "pass",
        "test_reversible.py::test_kept_states_make_exact_what_cannot_be_undone",
    ),
    "a failed reversal kept quiet": (
        "gradients/reversible.py",
        "if not gap.item() <= limit:",
        "if False:",
        "test_reversible.py::test_a_reversible_solve_that_cannot_be_undone_says_by_how_much",
    ),
    "the cotangent not solved backwards": (
        "gradients/backsolve.py",
        "pairs = [(k, -a)",
        "pairs = [(k, a)",
        "test_adjoints.py::test_backsolve_converges_to_the_exact_gradient",
    ),
    "an event's time without gradient": (
        "events.py",
        ".double() / slope",
        ".double() * 0",
        "test_events.py",
    ),
    "a start on the surface taken at its word": (
        "events.py",
        " | (value.abs() <= doubt)",
        "",
        "test_events.py::test_a_start_on_the_surface_is_no_event",
    ),
    "the way of a solve that falls forgotten": (
        "events.py",
        "way * pace",
        "pace",
        "test_events.py::test_directions_are_those_of_the_way",
    ),
    "what goes on from an event forgets when": (
        "pieces.py",
        "start: Time = time if time.requires_grad else number",
        "start: Time = number",
        "test_events.py::test_a_ball_that_bounces_in_one_call_has_the_gradients_of_the_closed_form",
    ),
    "the event of a sample at a constant time": (
        "events_of_samples.py",
        "time = s + (move - move.detach())",
        "time = s.clone()",
        "test_events_of_samples.py::test_balls_from_different_heights_land_when_they_should",
    ),
    "a sample goes on from its event at a constant time": (
        "events_of_samples.py",
        "torch.where(node == here, self.time, node) if self.time.requires_grad else node",
        "node",
        "test_events_of_samples.py::test_a_batch_of_bouncing_balls_has_the_closed_form_and_its_gradients",
    ),
    "passes of a recursion a time late": (
        "solvers/map.py",
        "field(step, 0, 0.0, y)",
        "field(step, 0, 1.0, y)",
        "test_map.py::test_passes_are_counted_by_the_times",
    ),
    "effects apart taken for ones at once": (
        "pieces.py",
        "AT_ONCE = 1e-12",
        "AT_ONCE = 1e-3",
        "test_events.py::test_bounces_without_number_are_told",
    ),
    "compiled as inductor would": (
        "integrate/compiled.py",
        "if steps is _loop else keeps_what_is_read(recompute)",
        "if steps is _loop else {}",
        "test_compiled.py::test_generated_code_reads_buffers_as_they_were",
    ),
    "a broken graph is redone by the compiler's means": (
        "gradients/adjoint.py",
        "if not torch.compiler.is_compiling():  # f breaks",
        "if False:  # f breaks",
        "test_graph_breaks.py",
    ),
    "what grows is judged by its end alone": (
        "gradients/reversible.py",
        "torch.float64: (1e-6, 1e-5)",
        "torch.float64: (1e-6, 1.0)",
        "test_reversible.py::test_a_gradient_that_growing_states_make_wrong_is_never_silent",
    ),
    # the rest
    "phi_2 for phi_3": ("solvers/exponential.py", "2 * phi_2 - 4 * phi_3", "2 * phi_2 - 4 * phi_2", "test_stiff.py"),
    "two weights of an IMEX row swapped": ("solvers/imex.py", "(11 / 18, 1 / 18)", "(1 / 18, 11 / 18)", "test_stiff.py"),
    "a time differentiated through the state before": (
        "solvers/jacobian.py",
        "return x.view_as(x) if graph and x.requires_grad",
        "return x if graph and x.requires_grad",
        "test_stiff_control.py::test_every_adjoint_has_the_gradient_of_store_all",
    ),
    "Newton's first update taken for the last": (
        "solvers/sdirk.py",
        "if before < torch.inf else 1.0",
        "if before < torch.inf else 0.0",
        "test_stiff_control.py::test_the_stiff_set_within_some_tolerances_and_twice_the_steps_of_radau",
    ),
    "the estimate of a diagonally implicit step taken as it is": (
        "solvers/sdirk.py",
        "self.caution * float(x - y)",
        "float(x - y)",
        "test_stiff_control.py::test_the_stiff_set_within_some_tolerances_and_twice_the_steps_of_radau[esdirk4-0.0001-Oregonator]",
    ),
    "a preconditioner taken for its transpose": (
        "solvers/newton.py",
        "return _transposed(act) if transposed else act",
        "return act",
        "test_preconditioner.py::test_states_and_gradients_are_those_of_factorised_matrices",
    ),
    "a stage that GMRES does not find ends the solve": (
        "solvers/sdirk.py",
        "            if field.allowed(known) is None:\n                raise\n",
        "            raise\n",
        "test_preconditioner.py::test_a_stage_that_gmres_does_not_find_shortens_the_step",
    ),
    "what error control allows a complex leaf, told for one of its parts": (
        "solvers/sdirk.py",
        "torch.complex(a, a) if leaf.is_complex() else a",
        "a",
        "test_output_times.py::test_gradients_are_those_of_plain_autograd",
    ),
    "steps that depend on the times read from them": (
        "solvers/rosenbrock.py",
        "return [start, *(",
        "return [flat.split(start.found[0]), *(",
        "test_stiff_between.py::test_output_times_do_not_end_steps",
    ),
    "a diagonally implicit gradient without its solve": (
        "solvers/sdirk.py",
        "return g if matrix is None else Inverse",
        "return g if matrix is not None else Inverse",
        "test_stiff_control.py::test_gradients_of_stiff_solves_are_central_differences",
    ),
    "the look for stiffness leaves a trace": (
        "integrate/loop.py",
        "                        recording.retreat()\n                stop = sizes",
        "                stop = sizes",
        "test_auto.py::test_looking_for_stiffness_leaves_no_trace",
    ),
    "a step redone by the other method": (
        "stepping/grid.py",
        "*place, by=by[index], before",
        "*place, before",
        "test_auto.py::test_every_adjoint_has_the_gradient_of_store_all_across_changes",
    ),
    "an event located by the other method": (
        "events.py",
        ", by=self.step.by), y, args)",
        "), y, args)",
        "test_auto.py::test_events_and_what_is_between_steps",
    ),
    "no way back from the stiff method": (
        "solvers/auto.py",
        "else TO_STIFF):",
        "else TO_STIFF) and not self.by:",
        "test_auto.py",
    ),
    "padding taken for states": (
        "pieces.py",
        "    if run.grid.asked:\n",
        "    if False:\n",
        "test_times_of_samples.py::test_samples_have_the_states_and_gradients_that_they_have_alone",
    ),
    "a sample that failed told as done": (
        "integrate/per_sample.py",
        "failed.get(sample, Status())",
        "Status()",
        "test_times_of_samples.py::test_each_sample_has_a_status_and_as_many_steps_as_are_allowed",
    ),
    "recorded steps never found anew": (
        "integrate/refreshed.py",
        "found[2] -= 1",
        "pass",
        "test_refreshed.py::test_every_third_call_finds_the_steps_anew",
    ),
    "recorded steps of another shape": (
        "integrate/refreshed.py",
        "weights, shapes\n",
        "weights\n",
        "test_refreshed.py::test_shapes_times_tolerances_and_methods_have_grids_of_their_own",
    ),
    "the search for steps to record leaves a trace": (
        "integrate/refreshed.py",
        "recording.retreat(0)",
        "pass",
        "test_refreshed.py::test_looking_for_steps_leaves_no_trace",
    ),
    "a drift of f summed over samples": (
        "solvers/jacobian.py",
        "together = parts == 1 or start.ndim > 0",
        "together = True",
        "test_stiff_control.py::test_samples_take_steps_of_their_own",
    ),
    "a drift of f left out": (
        "solvers/rosenbrock.py",
        "if drift is not None and self.d[stage]:",
        "if False:",
        "test_solvers.py",
    ),
    "the gradient of a step without that of its matrix": (
        "solvers/rosenbrock.py",
        "Inverse(at.matrix, scale)",
        "Inverse(at.matrix.detach(), scale)",
        "test_stiff_control.py::test_gradients_of_stiff_solves_are_central_differences",
    ),
    "the Jacobian of a rejected step made anew": (
        "solvers/rosenbrock.py",
        "first.at if isinstance(first, _Start)",
        "None if isinstance(first, _Start)",
        "test_stiff_control.py::test_a_rejected_step_leaves_its_jacobian_to_the_next",
    ),
    "the implicit gradient without its solve": (
        "solvers/newton.py",
        "            return v\n",
        "            return g\n",
        "test_stiff.py::test_gradients_in_state_coefficient_and_times_are_those_of_the_program[method5-direct]",
    ),
    "phi functions of another step": (
        "problem.py",
        "linear.kept((self.method, h)",
        "linear.kept((self.method,)",
        "test_stiff.py::test_an_equation_may_be_solved_with_other_steps_afterwards",
    ),
    "functions prepared for steps of another length": (
        "problem.py",
        "self.lengths.get(h)",
        "0",
        "test_prepared.py",
    ),
    "lengths that differ by rounding prepared one by one": (
        "problem.py",
        "4 * math.ulp(max(map(abs, numbers(grid.times))))",
        "0.0",
        "test_prepared.py",
    ),
    "a multiple by way of the field": (
        "pde/scaled.py",
        "return None if known is None else self.factor * known",
        "return None",
        "test_pde_cost.py",
    ),
    "modes by way of the field": (
        "../pde/higher.py",
        "self._of_modes(state.held)",
        "self._of_modes(modes_of(state.field))",
        "test_pde_cost.py::test_transforms_of_a_nonlinearity_without_aliasing",
    ),
    "a spectral product by way of the field": (
        "pde/burgers.py",
        "if isinstance(side, Spectral) else None",
        "if False else None",
        "test_pde_cost.py",
    ),
    "phi functions by the recurrence near zero": ("solvers/linear.py", "near = z.abs() < 1", "near = z.abs() < 0", "test_stiff.py"),
    "a stability limit after the first zone": (
        "solvers/stability.py",
        "first, new = found.int().argmax(0), found",
        "first, new = len(radii) - 1 + 0 * found[0].int(), found",
        "test_stability.py",
    ),
    "never stable not noticed": (
        "solvers/stability.py",
        "                return total > 0",
        "                return False",
        "test_stability.py",
    ),
    "a changed coefficient on a GPU, judged by its old value": (
        "checks.py",
        "if now == asked.versions:",
        "if True:",
        "test_solve.py::test_on_a_gpu_a_changed_coefficient_is_not_judged_by_its_old_value",
    ),
    "unstable steps without a warning": ("checks.py", "if longest > limit", "if False and longest > limit", "test_stability.py"),
    "a field along another axis": ("dynamics/field.py", 'f"... {right} -> ... {left}"', 'f"... {left} -> ... {left}"', "test_dynamics.py"),
    "a nonlinearity as steep as 1": (
        "dynamics/reaction_diffusion_advection.py",
        "limit(slope * torch.cat(found) - 1)",
        "limit(torch.cat(found) - 1)",
        "test_dynamics.py::test_nonlinear_kernels_warn_beyond_their_stable_step",
    ),
    "velocities not trained": (
        "dynamics/field.py",
        "return {name: self.velocity[parameter_key(name)] for",
        "return {name: self.velocity[_key(name)].detach() for",
        "test_dynamics.py",
    ),
    # pde
    "no second derivative of Nyquist": (
        "../pde/stencils.py",
        "if order % 2 else modes(n, length, like), scale",
        "if order % 2 else wavenumbers(n, length, like), scale",
        "test_pde_operators.py",
    ),
    "a wall slope of the other sign": ("../pde/extrapolation.py", "return image + slope", "return image - slope", "test_pde_boundaries.py"),
    "negative wavenumbers of a plane as positive ones": ("../pde/plane.py", ".flip(first).conj()", ".flip(first)", "test_pde_plane.py"),
    "a coefficient of the plane not turned": (
        "../pde/plane.py",
        "return found.mT if self.turned else found",
        "return found",
        "test_pde_plane.py",
    ),
    "a jump at a wall carried on beyond it": (
        "../pde/extrapolation.py",
        "far * most), far * least)",
        "far * -99), far * 99)",
        "test_pde_boundaries.py",
    ),
    "the other end of a short form": (
        "../pde/boundary.py",
        "given.told[0] if len(given.told) == 1 else end",
        "end",
        "test_pde_conditions.py::test_pairs_are_their_short_forms_and_parameters_are_found",
    ),
    "a speed that has changed, not read again": (
        "../pde/advection.py",
        "known[1] == Seen(speed)",
        "True",
        "test_pde_cost.py::test_a_speed_that_is_a_tensor_is_read_once_until_it_changes",
    ),
    "fields that feel the wrong one": (
        "../pde/blocks.py",
        "known.get((i, j), zero)",
        "known.get((j, i), zero)",
        "test_pde_systems.py::test_systems_are_solved_as_scipy_does",
    ),
    "growth of the equation taken for the scheme's": (
        "../pde/stability.py",
        "~(smooth & (values.real > 0))",
        "(values.abs() > 0)",
        "test_pde_stability.py::test_what_the_equation_lets_grow_limits_no_step",
    ),
    "a preconditioner that is not finite": (
        "../pde/equation.py",
        "for term, _ in known()]",
        "for term in linear]",
        "test_pde_stability.py::test_a_diffusivity_that_is_infinite_at_first_is_solved_from_later_on",
    ),
    "steps judged by the coefficients of another time": (
        "checks.py",
        "method, t=t)",
        "method, t=0)",
        "test_pde_stability.py::test_steps_are_judged_by_the_first_and_the_last_time",
    ),
    "a matrix without the axes of Robin's coefficients": (
        "../pde/dense.py",
        "columns.narrow(axis, 0, 1) if size == 1 else columns",
        "columns.narrow(axis, 0, 1)",
        "test_pde_boundaries.py::test_matrices_and_closed_forms_of_fields_with_data_of_their_own",
    ),
    "growth of the scheme taken for the equation's": (
        "../pde/stability.py",
        "~(smooth & (values.real > 0))",
        "(values.real <= 0)",
        "test_pde_stability.py::test_what_a_scheme_lets_grow_makes_no_step_stable",
    ),
    "a velocity counted as growth": (
        "../pde/system_stability.py",
        "if isinstance(own, Reaction) else own.extremes(None, t)",
        "if False else own.extremes(None, t)",
        "test_pde_systems.py::test_the_largest_stable_step_is_where_the_matrix_says",
    ),
    "a velocity that is a copy": ("../pde/second_order.py", "        return u\n", "        return 1.0 * u\n", "test_pde_systems.py"),
    "a coefficient of coefficients as it was at first": (
        "../pde/coefficient.py",
        "return made if any(not is_number(value) for value in given.values()) else function(*given.values())",
        "return function(*given.values())",
        "test_pde_systems.py::test_gradients_in_coefficients_and_state",
    ),
    "two leaves preconditioned as one": ("solvers/newton.py", "or len(state.leaves) > 1", "", "test_pde_systems.py"),
    "a multiple with the symbol of one": (
        "../pde/scaled.py",
        "return self.factor * self.term.symbol(k)",
        "return self.term.symbol(k)",
        "test_pde_multiples.py",
    ),
    "speeds of the values that a field has alone": (
        "../pde/conservation.py",
        "SAMPLES = 33",
        "SAMPLES = 2",
        "test_pde_conservation.py::test_a_jump_between_two_values_where_nothing_moves_is_seen",
    ),
    "complex numbers compiled": (
        "integrate/compiled.py",
        'if not method.splits or method.options.backend != "inductor":',
        "if True:",
        "test_compiled_fourier.py::test_steps_in_complex_numbers_run_as_they_are_with_a_word",
    ),
    "compiled steps that keep what a mode of a field has not": (
        "fourier.py",
        "torch.where(_own_mirror(n, v), 0.0, v[..., 1])",
        "v[..., 1]",
        "test_compiled_fourier.py::test_a_simulation_is_one_call_of_a_compiled_loop[exponential_euler]",
    ),
    "a start that only the points know": (
        "../pde/diffusion.py",
        "walls = grid.faces(like)",
        "walls = grid.faces(like) - grid.start",
        "test_pde_of_the_field.py",
    ),
    "a diffusivity of the field beside the midpoint": (
        "../pde/diffusion.py",
        "return (padded[..., 1:] + padded[..., :-1]) / 2",
        "return padded[..., 1:]",
        "test_pde_of_the_field.py",
    ),
    "a diffusivity of the field that limits no step": (
        "../pde/diffusion.py",
        "return extremes(lambda t, _: self._of_field(t, self.grid.points(u), u), u, t)",
        "return [0.0]",
        "test_pde_of_the_field.py",
    ),
    "random fields that hang on the grid": (
        "../pde/initial.py",
        'grid.points(torch.empty(0, dtype=torch.float64, device="cpu")) - grid.start - place',
        'grid.points(torch.empty(0, dtype=torch.float64, device="cpu")) - grid.start - place - grid.spacing',
        "test_pde_initial.py",
    ),
    "aliased products": ("../pde/higher.py", "* (degree + 1) < n", "< n", "test_pde_named.py"),
    "waves that disperse the other way": (
        "../pde/higher.py",
        '"Dispersion", "beta", -1.0, False',
        '"Dispersion", "beta", 1.0, False',
        "test_pde_named.py::test_terms_move_and_damp_modes_as_they_should",
    ),
    "closed ends that leak": ("../pde/stencils.py", "keepdim=True) * closed[0]", "keepdim=True) * 0", "test_pde_conditions.py"),
    "a slope of Robin of the other sign": (
        "../pde/extrapolation.py",
        "columns[1], bump[1] = [-w for w in columns[1]], -bump[1]",
        "columns[1] = columns[1]",
        "test_pde_conditions.py::test_the_slowest_mode_between_robin_walls_decays_as_it_should",
    ),
    "data of the field in a linear part": (
        "../pde/conditions.py",
        "return 0.0 if _quiet.get() else",
        "return",
        "test_pde_conditions.py::test_the_parts_of_a_split_add_up_whatever_the_conditions",
    ),
    "waves that an end turns back": (
        "../pde/conditions.py",
        "-rate if side.mirrored else rate",
        "0 * rate",
        "test_pde_conditions.py::test_a_pulse_leaves_through_an_absorbing_end",
    ),
    "upwind on the wrong side": (
        "../pde/advection.py",
        "return -(positive * self.forward_side(u, self.grid, t) + negative * self.backward_side",
        "return -(positive * self.backward_side(u, self.grid, t) + negative * self.forward_side",
        "test_pde_operators.py::test_a_speed_per_field_is_upwinded_as_the_same_number_is",
    ),
    "weno5 without its weights": (
        "../pde/stencils.py",
        "(smoothness + 1e-6) ** 2",
        "(0 * smoothness + 1e-6) ** 2",
        "test_pde_operators.py",
    ),
    "a learned speed below zero seen from upwind": (
        "../pde/advection.py",
        "+ (c - c.abs()) / 2 * self.backward_side.symbol(k, h))",
        "+ (c - c.abs()) / 2 * self.forward_side.symbol(k, h))",
        "test_pde_stability.py::test_a_learned_speed_has_the_symbol_of_its_sign",
    ),
    "waves limited where they are slowest": (
        "../pde/wave.py",
        "c = max(abs(value)",
        "c = min(abs(value)",
        "test_pde_energy.py::test_a_wave_of_varying_speed_is_limited_where_it_is_fastest",
    ),
    "waves limited by the largest speed of one sign": (
        "../pde/wave.py",
        "c = max(abs(value)",
        "c = max(value",
        "test_pde_energy.py::test_a_wave_of_varying_speed_is_limited_where_it_is_fastest",
    ),
    "wall data of the stage before": (
        "solvers/imex.py",
        "pushed(step, stage + 1, nodes[stage + 1], shaped)",
        "pushed(step, stage + 1, nodes[stage], shaped)",
        "test_pde_moving_walls.py",
    ),
    "states promoted": ("solvers/method.py", "        k = k.to(leaf.dtype)", "        pass", "test_solve.py"),
    "leapfrog of what is not separable": (
        "solve.py",
        "any(g is not None for g in torch.autograd.grad(",
        "any(False for g in torch.autograd.grad(",
        "test_solvers.py",
    ),
    "steps not passed on": ("signature.py", '("step", step), ("stage"', '("step", 0), ("stage"', "test_models.py"),
    "theta of the step's start in every stage": ("readings.py", "len(way) > 1 else 0][stage]", "len(way) > 1 else 0][0]", "test_block.py"),
    "every step with the first weights": (
        "unroll.py",
        "number, counters = self.plan.number(",
        "number, counters = 0 * self.plan.number(",
        "test_unroll.py::test_outputs_are_the_blocks_to_the_bit",
    ),
    "kinds of a benchmark that start from different weights": (
        "../benchmarks/depth/networks.py",
        "    torch.manual_seed(seed)\n",
        "    torch.manual_seed(seed + len(kind))\n",
        "test_depth.py::test_all_kinds_start_alike_and_do_the_same_work",
    ),
    "differences not within pairs": (
        "../benchmarks/depth/report.py",
        'float(base[seed]["accuracy"])',
        'float(base[min(base)]["accuracy"])',
        "test_depth.py::test_differences_are_within_pairs_and_intervals_are_those_of_the_t_test",
    ),
    "planets that fall twice towards the sun": (
        "../benchmarks/ode_vs_peers/problems.py",
        " - SUN * inwards",
        " - (SUN + mass)[:, None] * inwards",
        "test_ode_vs_peers.py::test_five_bodies_by_loops",
    ),
    "times divided by those of another problem": (
        "../benchmarks/ode_vs_peers/report.py",
        '("problem", "family", "tolerance")',
        '("family", "tolerance")',
        "test_ode_vs_peers.py::test_a_table_divides_by_the_row_of_the_same_problem",
    ),
    "images of half the size by leaving pixels out": (
        "../examples/images.py",
        "return ((sums + 2) // 4).astype(np.uint8)",
        "return x[:, ::2, ::2]",
        "test_images.py::test_images_of_half_the_size_are_means_of_four_pixels",
    ),
    "statistics that stand still on the way back": (
        "../benchmarks/reverse_training.py",
        "                slope = ctx.f(",
        "                slope = ctx.f.eval()(",
        "test_examples_memory.py::test_statistics_moved_in_the_pass_backward_are_all_that_differs_from_a_reverse_solve",
    ),
    "an idx file that is cut short": (
        "../examples/images.py",
        "if not axes or len(content) != 4 + 4 * axes + math.prod(shape):",
        "if not axes:",
        "test_images.py::test_idx_files_that_are_damaged_are_one_sentence",
    ),
    "a diffusivity that a descent left below 0": (
        "convert.py",
        '        getattr(work.dynamics, "project", lambda: None)()',
        "        (lambda: None)()",
        "test_convert.py::test_what_is_each_steps_own_is_copied_and_trains",
    ),
    "norms of a stack shared by all steps": (
        "convert.py",
        "return self.branches[step](t, z, step=0)",
        "return self.branches[0](t, z, step=0)",
        "test_convert.py::test_what_is_each_steps_own_is_copied_and_trains",
    ),
    "far kernels that are near": (
        "../models/tiny.py",
        "padding=9, dilation=3",
        "padding=3, dilation=1",
        "test_tiny_vit.py::test_a_tiny_block_is_the_one_written_out",
    ),
    "a layer that forgets its attention": (
        "../models/vit.py",
        "self.norm2(z + attended, step)",
        "self.norm2(z, step)",
        "test_tiny_vit.py::test_a_transformer_layer_is_torchs",
    ),
    "a repeated time told once": (
        "steps.py",
        "for _ in range(copies[float(point[0])] or 1)",
        "",
        "test_repeated_times.py::test_a_time_that_is_repeated_is_a_copy",
    ),
    "every group starting where the first does": (
        "dynamics/depth_groups.py",
        "theta = {name: values[-1] for name, values in path.items()}",
        "pass",
        "test_zoo.py::test_a_group_goes_on_where_the_one_before_ends",
    ),
    "groups fitted without the weights at their end": (
        "dynamics/depth_groups.py",
        "if begin <= time <= end)",
        "if begin <= time < end)",
        "test_convert.py::test_weights_that_follow_groups_of_any_dynamics_are_found_with_it[templates-thirds]",
    ),
    "modes that turn the other way in a fit": (
        "dynamics/spectral.py",
        "modes[:-1].conj() * modes[1:]",
        "modes[:-1] * modes[1:].conj()",
        "test_convert.py::test_weights_that_follow_groups_of_any_dynamics_are_found_with_it[mix-thirds]",
    ),
    "a group at the time of the block": (
        "dynamics/depth_groups.py",
        "(t - self.starts[place], theta)",
        "(t, theta)",
        "test_zoo.py::test_a_group_goes_on_where_the_one_before_ends",
    ),
    "compiled kernels that turn the other way": (
        "dynamics/spectral.py",
        "torch.exp(grown) * torch.sin(turned)",
        "-torch.exp(grown) * torch.sin(turned)",
        "test_zoo.py::test_all_families_are_compiled_stacked_and_run_elsewhere",
    ),
    "kernels moved by the circulant of their transpose": (
        "dynamics/spectral.py",
        "(whole[:, None] - whole) % sizes",
        "(whole - whole[:, None]) % sizes",
        "test_dynamics.py::test_depthwise_and_dilated_kernels_move_as_in_a_loop_written_by_hand",
    ),
    "a flow that is no rotation": (
        "dynamics/skew_flow.py",
        "return below - below.mT",
        "return below + below.mT",
        "test_zoo.py::test_skew_flow_is_the_exponential_and_keeps_what_is_orthogonal",
    ),
    "fields that leave a kernel in another layout": (
        "dynamics/field.py",
        ".to(w.dtype).contiguous()",
        ".to(w.dtype)",
        "test_zoo.py::test_a_fresh_block_is_the_ode_block_to_the_bit_and_trains",
    ),
    "fields of 16 bits": (
        "dynamics/field.py",
        "torch.promote_types(w.dtype, torch.float32)",
        "w.dtype",
        "test_zoo.py::test_fresh_dynamics_share_the_weights_to_the_bit_and_have_as_many_parameters_as_they_say",
    ),
    "a small network that moves the start": (
        "dynamics/hyper.py",
        "(values[1:] - values[0])",
        "values[1:]",
        "test_zoo.py::test_fresh_dynamics_share_the_weights_to_the_bit_and_have_as_many_parameters_as_they_say",
    ),
    "channels mixed by the transposed matrix": (
        "dynamics/channel_mixing.py",
        "(moved.flatten(2, -2) @ matrices)",
        "(moved.flatten(2, -2) @ matrices.mT)",
        "test_zoo.py::test_channels_mix_by_the_symbol_of_each_axis",
    ),
    "splines of other knots": (
        "dynamics/bases.py",
        "[0.0] * degree + [piece / pieces",
        "[0.0] * degree + [(piece / pieces) ** 2",
        "test_zoo.py::test_b_splines_are_those_of_scipy",
    ),
    "gains that are no exponentials": (
        "dynamics/scale.py",
        "torch.exp(self._gains(self.functions(s, w), name, w)) * w",
        "(1 + self._gains(self.functions(s, w), name, w)) * w",
        "test_zoo.py::test_gains_are_exponentials_of_each_output_channel",
    ),
    "a basis that moves the start": ("dynamics/bases.py", "torch.cos(angle) - 1, ", "torch.cos(angle), ", "test_galerkin.py"),
    "a norm copied to the first step alone": (
        "../models/blocks.py",
        "value for step in range(len(self))})",
        "value if step == 0 else torch.zeros_like(value) for step in range(len(self))})",
        "test_models.py::test_a_residual_network_loads_into_the_ode_its_norm_into_every_step",
    ),
    # compiled runs
    "runs end a step too early": (
        "integrate/compiled.py",
        "    for i in range(count):",
        "    for i in range(count - 1):",
        "test_compiled.py::test_gradients_are_those_of_the_plain_solve",
    ),
    "what is left after compiled runs counts steps anew": (
        "stepping/grid.py",
        "before = self.before + done",
        "before = 0",
        "test_compiled_solve.py::test_a_compiled_solve_that_ends_early_is_the_plain_one",
    ),
    "a compiled loop takes its first step again and again": (
        "integrate/compiled.py",
        "times.index_select(0, torch.stack([done, done + 1]))",
        "times.index_select(0, torch.stack([0 * done, 0 * done + 1]))",
        "test_compiled_solve.py::test_a_simulation_is_one_call_of_a_compiled_loop",
    ),
    "what has no loop is not compiled": (
        "integrate/compiled.py",
        "vector.evaluations, self.graphs.unrolled = counted, True",
        "self.graphs.refused = self.graphs.unrolled = True",
        "test_compiled_solve.py::test_steps_without_a_loop_are_unrolled",
    ),
    "a last piece without a step has no end": (
        "pieces.py",
        'kind in ("steps", "end")]',
        'kind == "steps"]',
        "test_compiled_solve.py::test_a_compiled_solve_that_ends_early_is_the_plain_one",
    ),
    "methods made anew pile up their graphs": (
        "integrate/compiled.py",
        "while len(self.by) > METHODS:",
        "while False:",
        "test_compiled.py::test_methods_that_are_made_anew_do_not_pile_up",
    ),
    "compiled runs are seen with their own numbers": (
        "integrate/compiled.py",
        "watch(replace(run, index=run.inner[-1].index), y, y_next)",
        "watch(run, y, y_next)",
        "test_compiled_solve.py::test_a_compiled_solve_that_ends_early_is_the_plain_one",
    ),
    "redone compiled runs count as one step": (
        "gradients/per_step.py",
        "solve.costs.redone += self.take.step.count",
        "solve.costs.redone += 1",
        "test_compiled_solve.py::test_solve_tells_the_same_of_compiled_runs",
    ),
    "compiled runs keep what their steps save": (
        "integrate/compiled.py",
        "if steps is _loop else keeps_what_is_read(recompute)",
        "if steps is _loop else keeps_what_is_read()",
        "test_compiled_runs.py::test_a_run_is_taken_again_by_its_own_backward_pass",
    ),
    "a solve whose runs are not all compiled leaves those before": (
        "gradients/compiled_runs.py",
        "recording.retreat(0)",
        "pass",
        "test_compiled_runs.py::test_where_a_run_is_not_compiled_the_solve_is_that_of_a_state_per_run",
    ),
    "a compiled solve by sample forgets who has come where": (
        "pieces.py",
        "return replace(run, grid=grid if run.grid.stop is None else replace(grid, stop=run.grid.done))",
        "return run",
        "test_compiled_solve.py::test_samples_with_steps_and_times_of_their_own_are_compiled_too",
    ),
    "a graph serves runs of another place": (
        "integrate/compiled.py",
        'step.inner[0].number if "step" in vector.call.names else 0',
        "0",
        "test_compiled.py::test_a_coupled_block_with_norms_per_step",
    ),
    # networks
    "steps of the weights without effect": (
        "../models/blocks.py",
        "            weight_steps=self.weight_steps,\n",
        "",
        "test_models.py::test_options_of_the_weights_reach_the_block",
    ),
    "no ReLU in a stem": (
        "../models/resnet.py",
        "nn.BatchNorm2d(channels), nn.ReLU()]",
        "nn.BatchNorm2d(channels), nn.Identity()]",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet4]",
    ),
    "no ReLU behind the block of ResNet-4": (
        "../models/resnet.py",
        "make(BasicBranch, 16), nn.ReLU(), *_head",
        "make(BasicBranch, 16), nn.Identity(), *_head",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet4]",
    ),
    "no ReLU behind the last block of ResNet-10": (
        "../models/resnet.py",
        "make(BasicBranch, 32),\n        nn.ReLU(),",
        "make(BasicBranch, 32),\n        nn.Identity(),",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet10]",
    ),
    "no ReLU behind the first block of ResNet-18": (
        "../models/resnet.py",
        "ResidualBlock(BasicBranch(64)),\n        nn.ReLU(),",
        "ResidualBlock(BasicBranch(64)),\n        nn.Identity(),",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet18]",
    ),
    "no ReLU inside a block that halves the size": (
        "../models/resnet.py",
        "self.conv2(torch.relu(self.norm1(self.conv1(z))))",
        "self.conv2(self.norm1(self.conv1(z)))",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet10]",
    ),
    "no ReLU behind a block that halves the size": (
        "../models/resnet.py",
        "return torch.relu(self.shortcut(z) + branch)",
        "return self.shortcut(z) + branch",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet10]",
    ),
    "no ReLU inside a basic branch": (
        "../models/blocks.py",
        "torch.relu(self.norm1(self.conv1(z, t), step))",
        "self.norm1(self.conv1(z, t), step)",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet4]",
    ),
    "maxima for means of a small ResNet": (
        "../models/blocks.py",
        "F.avg_pool2d(input",
        "F.max_pool2d(input",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet4]",
    ),
    "maxima for means of ResNet-18": (
        "../models/resnet.py",
        "nn.AdaptiveAvgPool2d(1)",
        "nn.AdaptiveMaxPool2d(1)",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[resnet18]",
    ),
    "means for the first maxima of AlexNet": (
        "../models/alexnet.py",
        "nn.MaxPool2d(3, stride=2, padding=1),\n        make",
        "nn.AvgPool2d(3, stride=2, padding=1),\n        make",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[alexnet]",
    ),
    "means for the last maxima of AlexNet": (
        "../models/alexnet.py",
        "nn.MaxPool2d(3, stride=2, padding=1),\n        nn.Flatten",
        "nn.AvgPool2d(3, stride=2, padding=1),\n        nn.Flatten",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[alexnet]",
    ),
    "no ReLU behind the first convolution of AlexNet": (
        "../models/alexnet.py",
        "nn.BatchNorm2d(64),\n        nn.ReLU(),",
        "nn.BatchNorm2d(64),\n        nn.Identity(),",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[alexnet]",
    ),
    "no ReLU behind the block of AlexNet": (
        "../models/alexnet.py",
        "make(WideBranch, 64),\n        nn.ReLU(),",
        "make(WideBranch, 64),\n        nn.Identity(),",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[alexnet]",
    ),
    "no ReLU behind the first linear layer of AlexNet": (
        "../models/alexnet.py",
        "nn.Linear(4096, 384),\n        nn.ReLU(),",
        "nn.Linear(4096, 384),\n        nn.Identity(),",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[alexnet]",
    ),
    "no ReLU behind the second linear layer of AlexNet": (
        "../models/alexnet.py",
        "nn.Linear(384, 192),\n        nn.ReLU(),",
        "nn.Linear(384, 192),\n        nn.Identity(),",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[alexnet]",
    ),
    "no ReLU in SqueezeNext": (
        "../models/squeezenext.py",
        "self.relu = nn.ReLU()",
        "self.relu = nn.Identity()",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[squeezenext]",
    ),
    "maxima for means of SqueezeNext": (
        "../models/squeezenext.py",
        "nn.AdaptiveAvgPool2d(1)",
        "nn.AdaptiveMaxPool2d(1)",
        "test_models_by_hand.py::test_the_network_is_the_one_written_out[squeezenext]",
    ),
    "the adjoint of ODE blocks ignored": (
        "../models/blocks.py",
        "method=self.method, adjoint=self.adjoint, compile",
        "method=self.method, compile",
        "test_models_by_hand.py::test_every_block_has_the_adjoint_asked_for",
    ),
    "the adjoint of coupled blocks ignored": (
        "../models/blocks.py",
        "            adjoint=self.adjoint,\n",
        "",
        "test_models_by_hand.py::test_every_block_has_the_adjoint_asked_for",
    ),
    # training
    "stacked seeds, each the first one's images": (
        "../examples/stacked.py",
        "deals = [dealt(run) for run in self.runs]",
        "deals = [dealt(self.runs[0]) for _ in self.runs]",
        "test_stacked.py::test_each_seed_is_trained_as_alone",
    ),
    "momenta of stacked seeds lost": (
        "../examples/stacked.py",
        "            if all(",
        "            if not all(",
        "test_stacked.py::test_runs_go_on_alone_and_together",
    ),
    "dynamics of stacked seeds not projected": (
        "../examples/stacked.py",
        "            run.optimizer.step()  #",
        "            pass  #",
        "test_stacked.py::test_each_seed_is_trained_as_alone",
    ),
    "checkpoints of stacked seeds hold all of them": (
        "../examples/runs.py",
        "return content.clone() if part else content",
        "return content",
        "test_stacked.py::test_what_it_leaves_is_what_separate_runs_leave",
    ),
    "tables made anew under transforms": (
        "tables.py",
        "make(*key) if traced() else",
        "make(*key) if passing() else",
        "test_null_cuda.py::test_a_step_is_replayed_as_one_launch_with_few_beside_it",
    ),
    "tables made anew in compiled code": (
        "tables.py",
        "if entered_modes():",
        "if True:",
        "test_tables.py::test_compiled_code_takes_the_table_that_is_there",
    ),
    "real tables among fake tensors": (
        "tables.py",
        "if entered_modes():",
        "if False:",
        "test_tables.py::test_fake_tensors_meet_no_table_that_is_real",
    ),
    "symbols in the key of a table": (
        "torch_private.py",
        "guard_scalar(value) if isinstance(value, (int, float)) else value",
        "value",
        "test_tables.py::test_tables_serve_whatever_is_made_of_them[plain]",
    ),
    "features of depth sent in every pass": (
        "dynamics/hyper.py",
        "kept(_waves, (0.0, *s), self.frequencies, self.inner.dtype, self.inner.device)",
        "_waves((0.0, *s), self.frequencies, self.inner.dtype, self.inner.device)",
        "test_null_cuda.py::test_nothing_waits_for_the_device",
    ),
    "every rank takes the first one's images": (
        "../examples/training.py",
        "begin = number * config.batch_size + ranks.rank * share",
        "begin = number * config.batch_size",
        "test_ranks.py::test_two_processes_take_the_steps_of_one",
    ),
    "momentum lost at a kill": (
        "../examples/training.py",
        '"optimizer": self.optimizer, "scheduler"',
        '"scheduler"',
        "test_train_cifar.py::test_killed_and_resumed_it_ends_with_the_same_weights",
    ),
    "a confusion matrix the other way round": (
        "../examples/look.py",
        "images.y_test * images.classes + seen_in(network, images, images.x_test).argmax(1)",
        "seen_in(network, images, images.x_test).argmax(1) * images.classes + images.y_test",
        "test_look.py::test_classes_are_rows_and_what_is_seen_columns",
    ),
    "a picture of another kind": (
        "../examples/runs.py",
        "if not path.name.endswith(suffix):",
        "if False:",
        "test_examples_options.py::test_a_picture_that_cannot_be_written_is_refused_before_the_work",
    ),
    "output times read where only the ends of steps are right": (
        "solvers/rosenbrock.py",
        "    ends = True",
        "    ends = False",
        "test_stiff_between.py::test_where_nothing_is_said_output_times_keep_the_tolerance[rodas4]",
    ),
    "files written in place": (
        "../examples/runs.py",
        'f".{path.name}.partial"',
        "path.name",
        "test_train_cifar.py::test_writing_is_all_or_nothing",
    ),
    "pickled code loaded": (
        "../examples/runs.py",
        "weights_only=True",
        "weights_only=False",
        "test_train_cifar.py::test_a_checkpoint_that_holds_code_is_refused",
    ),
    "runs that are over, foretold": (
        "../examples/paper_table.py",
        "if not over(folder(config, run))]",
        "if True]",
        "test_paper_table.py::test_how_many_runs_and_how_long_is_told_before_the_first",
    ),
    "weights given to another network": (
        "../models/pretrained.py",
        "    if other:",
        "    if False:",
        "test_pretrained.py::test_weights_of_another_network_are_not_given",
    ),
    "a run that has the name of weights": (
        "../models/files.py",
        "in TRAINED and not path.exists()",
        "in TRAINED",
        "test_pretrained.py::test_a_file_or_a_run_of_that_name_goes_before",
    ),
    "images of any shape": (
        "../models/blocks.py",
        "if input.ndim != 4 or shape[1] != 3:",
        "if False:",
        "test_pretrained.py::test_images_that_a_network_does_not_take_are_told_their_shape",
    ),
    "--model without effect": (
        "../models/saved.py",
        "return NETWORKS[name](",
        'return NETWORKS["resnet4"](',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[model]",
    ),
    "--steps without effect": (
        "../examples/settings.py",
        '"block", "steps", "method"',
        '"block", "method"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[steps]",
    ),
    "--method without effect": (
        "../examples/settings.py",
        '"steps", "method", "norm"',
        '"steps", "norm"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[method]",
    ),
    "--norm without effect": (
        "../examples/settings.py",
        '"method", "norm", "weights"',
        '"method", "weights"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[norm]",
    ),
    "--weights without effect": (
        "../examples/settings.py",
        '"norm", "weights", "time"',
        '"norm", "time"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[weights]",
    ),
    "--time without effect": (
        "../examples/settings.py",
        '"weights", "time", "adjoint"',
        '"weights", "adjoint"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[time]",
    ),
    "--dynamics without effect": (
        "../examples/settings.py",
        'if config.dynamics == "rda":',
        "if True:",
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[dynamics]",
    ),
    "--basis-size without effect": (
        "../examples/settings.py",
        '"size": config.basis_size',
        '"size": 3',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[basis_size]",
    ),
    "--tau without effect": (
        "../examples/settings.py",
        '"tau": config.tau, "per"',
        '"tau": 0.02, "per"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[tau]",
    ),
    "--per without effect": (
        "../examples/settings.py",
        '"tau": config.tau, "per": config.per',
        '"tau": config.tau',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[per]",
    ),
    "--adjoint without effect": (
        "../examples/settings.py",
        '"time", "adjoint")',
        '"time")',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[adjoint]",
    ),
    "--slots without effect": (
        "../examples/settings.py",
        '"slots": config.slots, "memory"',
        '"memory"',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[slots]",
    ),
    "--memory without effect": (
        "../examples/settings.py",
        '"slots": config.slots, "memory": config.memory',
        '"slots": config.slots',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[memory]",
    ),
    "--lr without effect": (
        "../examples/settings.py",
        "SGD(groups, config.lr,",
        "SGD(groups, 0.1,",
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[lr]",
    ),
    "--momentum without effect": (
        "../examples/settings.py",
        "config.lr, config.momentum, weight_decay",
        "config.lr, 0.9, weight_decay",
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[momentum]",
    ),
    "--weight-decay without effect": (
        "../examples/settings.py",
        "config.momentum, weight_decay=config.weight_decay",
        "config.momentum, weight_decay=5e-4",
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[weight_decay]",
    ),
    "--seeds without effect": (
        "../examples/training.py",
        "torch.manual_seed(config.seed)",
        "torch.manual_seed(0)",
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[seeds]",
    ),
    "--channels-last without effect": (
        "../examples/training.py",
        "        if config.channels_last:\n",
        "        if True:\n",
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[channels_last]",
    ),
    "weights of the dynamics decay": (
        "../examples/settings.py",
        '"params": dynamics, "weight_decay": 0.0',
        '"params": dynamics',
        "test_train_cifar_steps.py::test_an_option_sets_what_it_says[weight_decay]",
    ),
    "--precision without effect": (
        "../examples/training.py",
        "getattr(torch, self.config.precision)",
        "torch.float32",
        "test_train_cifar_steps.py::test_networks_run_in_the_precision_asked_for",
    ),
    "--precision without effect in evaluation": (
        "../examples/training.py",
        "        with training.autocast():\n            right",
        "        if True:\n            right",
        "test_train_cifar_steps.py::test_networks_run_in_the_precision_asked_for",
    ),
    "--label-smoothing without effect": (
        "../examples/training.py",
        ", label_smoothing=config.label_smoothing",
        "",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "parts of a batch count as whole ones": (
        "../examples/training.py",
        "scale(loss / config.accumulate)",
        "scale(loss)",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "an average that forgets what it should keep": (
        "../examples/average.py",
        "else 1 - self.decay",
        "else self.decay",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "gradients of earlier steps left in training": (
        "../examples/training.py",
        "        self.optimizer.zero_grad()\n",
        "",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "the rate stands still in training": (
        "../examples/training.py",
        "            run.scheduler.step()\n",
        "",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "training as in evaluation": (
        "../examples/training.py",
        "        run.network.train()\n    loss_sum",
        "        run.network.eval()\n    loss_sum",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "a loss told of another number of images": (
        "../examples/training.py",
        "loss_sum + loss * share",
        "loss_sum + loss",
        "test_train_cifar_steps.py::test_an_epoch_is_that_of_a_loop_in_double_precision[residual]",
    ),
    "a precision chosen by one slow step": (
        "../examples/precision.py",
        "statistics.median(plain / cast for plain, cast in rounds)",
        "max(plain / cast for plain, cast in rounds)",
        "test_precision.py::test_steps_by_turns_decide_after_one_each",
    ),
    "a learning rate that a graph keeps": (
        "../examples/cuda_graph.py",
        '            rate.fill_(group["lr"])\n',
        "            pass\n",
        "test_cuda_graph.py::test_replayed_steps_are_those_taken[coupled]",
    ),
    "images that a graph keeps": (
        "../examples/cuda_graph.py",
        "            self.given[name].copy_(tensor)\n",
        "            pass\n",
        "test_cuda_graph.py::test_replayed_steps_are_those_taken[coupled]",
    ),
    "an average counted in the graph": (
        "../examples/training.py",
        "            self.average.move(self.model)\n",
        "            self.average.update_parameters(self.model)\n",
        "test_train_cifar.py::test_an_average_of_the_weights_is_what_is_tested_and_saved",
    ),
    "a graph recorded before momentum begins": (
        "../examples/cuda_graph.py",
        "WARM = 3",
        "WARM = 0",
        "test_cuda_graph.py::test_replayed_steps_are_those_taken[residual]",
    ),
    "a rate that falls too early": (
        "../examples/settings.py",
        "[total * 3 // 7, total * 5 // 7]",
        "[total * 2 // 7, total * 5 // 7]",
        "test_train_cifar_steps.py::test_rates_are_those_of_the_paper_or_of_one_cycle",
    ),
    "a cycle of another length": (
        "../examples/settings.py",
        "total_steps=max(total, 2)",
        "total_steps=2 * total",
        "test_train_cifar_steps.py::test_rates_are_those_of_the_paper_or_of_one_cycle",
    ),
    "one order for all epochs": (
        "../examples/training.py",
        "seed = config.seed * 1_000_003 + training.epoch",
        "seed = config.seed * 1_000_003",
        "test_train_cifar_steps.py::test_each_epoch_has_an_order_of_its_own",
    ),
    "images in the order they came in": (
        "../examples/training.py",
        "order = torch.randperm(len(images.y_train), generator=generator)",
        "order = torch.arange(len(images.y_train))",
        "test_train_cifar_steps.py::test_each_epoch_has_an_order_of_its_own",
    ),
    "training images as they are": (
        "../examples/training.py",
        "            x = augment(x, Draws(**chance)[mine], config.cutout)\n",
        "",
        "test_train_cifar_steps.py::test_training_images_are_shifted_and_mirrored_and_test_images_are_as_they_are",
    ),
    "--cutout without effect": (
        "../examples/training.py",
        "augment(x, Draws(**chance)[mine], config.cutout)",
        "augment(x, Draws(**chance)[mine])",
        "test_train_cifar_steps.py::test_squares_are_cut_out_of_training_images_alone",
    ),
    "statistics move in evaluation": (
        "../examples/training.py",
        "    model.eval()\n",
        "    model.train()\n",
        "test_train_cifar_steps.py::test_statistics_move_in_training_and_stand_still_in_evaluation",
    ),
    "tested on training images": (
        "../examples/training.py",
        "evaluate(self, images.x_test, images.y_test)",
        "evaluate(self, images.x_train, images.y_train)",
        "test_train_cifar.py::test_a_run_leaves_its_files_and_the_weights_moved",
    ),
    "an epoch chosen on test images": (
        "../examples/training.py",
        "evaluate(self, images.x_valid, images.y_valid)",
        "evaluate(self, images.x_test, images.y_test)",
        "test_train_cifar.py::test_a_run_leaves_its_files_and_the_weights_moved",
    ),
    "a run that goes on at the rates of the shorter one": (
        "../examples/training.py",
        "                self.reschedule()",
        "                pass",
        "test_train_cifar.py::test_a_run_that_was_over_goes_on_at_the_rates_of_the_longer_one",
    ),
    "movement told of the end": (
        "../examples/training.py",
        "(end[name] - start).norm() / start.norm()",
        "(end[name] - start).norm() / end[name].norm()",
        "test_train_cifar_steps.py::test_how_far_weights_move_is_told_of_their_start",
    ),
    "weights saved that were not tested": (
        "../examples/training.py",
        '"last.safetensors", self.tested',
        '"last.safetensors", self.model',
        "test_train_cifar.py::test_an_average_of_the_weights_is_what_is_tested_and_saved",
    ),
    "an accuracy of another number of images": (
        "../examples/training.py",
        "/ len(y)",
        "/ len(images.y_train)",
        "test_train_cifar.py::test_a_run_leaves_its_files_and_the_weights_moved",
    ),
    # fine-tuning
    "gradients of earlier steps left in fine-tuning": (
        "../examples/finetune.py",
        "            optimizer.zero_grad()\n",
        "",
        "test_examples_finetune.py::test_training_is_that_of_a_loop_in_double_precision",
    ),
    "the rate stands still in fine-tuning": (
        "../examples/finetune.py",
        "            scheduler.step()\n",
        "",
        "test_examples_finetune.py::test_training_is_that_of_a_loop_in_double_precision",
    ),
    "fine-tuning as in evaluation": (
        "../examples/finetune.py",
        "        model.train()\n",
        "",
        "test_examples_finetune.py::test_training_is_that_of_a_loop_in_double_precision",
    ),
    "statistics move after fine-tuning": (
        "../examples/finetune.py",
        "    model.eval()\n    with torch.no_grad():\n        right",
        "    model.train()\n    with torch.no_grad():\n        right",
        "test_examples_finetune.py::test_training_is_that_of_a_loop_in_double_precision",
    ),
    "fine-tuning tested on training images": (
        "../examples/finetune.py",
        "for x, y in testing])",
        "for x, y in training])",
        "test_examples_finetune.py::test_training_is_that_of_a_loop_in_double_precision",
    ),
    "no image mirrored in fine-tuning": (
        "../examples/finetune.py",
        "v2.RandomHorizontalFlip(), ",
        "",
        "test_examples_finetune.py::test_training_images_are_cut_and_mirrored_and_test_images_are_as_they_are",
    ),
    "all images seen whole in fine-tuning": (
        "../examples/finetune.py",
        "v2.RandomResizedCrop(config.size, scale=(0.5, 1))",
        "v2.Resize(config.size), v2.CenterCrop(config.size)",
        "test_examples_finetune.py::test_training_images_are_cut_and_mirrored_and_test_images_are_as_they_are",
    ),
    "test images changed by chance": (
        "../examples/finetune.py",
        "plain = v2.Compose([v2.Resize(config.size), v2.CenterCrop(config.size), *last])",
        "plain = augmented",
        "test_examples_finetune.py::test_training_images_are_cut_and_mirrored_and_test_images_are_as_they_are",
    ),
    "one order in fine-tuning": (
        "../examples/finetune.py",
        "shuffle=True",
        "shuffle=False",
        "test_examples_finetune.py::test_training_images_are_cut_and_mirrored_and_test_images_are_as_they_are",
    ),
    # the rest
    "weights read at the wrong end of an implicit step": (
        "readings.py",
        "else (step + 1, 0.0)",
        "else (step, 0.0)",
        "test_block.py::test_moving_weights_are_read_at_the_times_of_the_stages_whichever_way_a_step_goes",
    ),
    "weights of the mirrored stage": (
        "readings.py",
        "[1 - node for node in method.nodes]",
        "list(method.nodes)",
        "test_block.py::test_moving_weights_are_read_at_the_times_of_the_stages_whichever_way_a_step_goes",
    ),
    "a state fetched when it is needed": (
        "gradients/offload.py",
        "        if at in self.coming:\n            return\n",
        "",
        "test_offload.py",
    ),
    # what diagnose says
    "the referee overruled": (
        "diagnose/gradients.py",
        "if gap > self.tolerance and",
        "if False and",
        "test_diagnose_gradients.py::test_a_wrong_derivative_is_found_by_differences_and_told",
    ),
    "a verdict on adjoints that promise nothing": (
        "diagnose/gradients.py",
        "not set(self.bad) & set(self.promised)",
        "not self.bad",
        "test_diagnose_gradients.py",
    ),
    "a program that is no function of its inputs": (
        "diagnose/gradients.py",
        "        _refuse_another_end(program)\n",
        "",
        "test_diagnose_gradients.py",
    ),
    "steps undone in the wrong order": ("diagnose/subject.py", "step=last - step", "step=step", "test_diagnose_reversal.py"),
    "other draws in every product": (
        "diagnose/jacobian.py",
        "        self.recording.retreat()\n        with forward_ad",
        "        with forward_ad",
        "test_diagnose_spectra.py",
    ),
    "a diffusivity below 0 left there": (
        "dynamics/reaction_diffusion_advection.py",
        "parameter.clamp_(min=0)",
        "pass",
        "test_dynamics.py::test_a_step_beyond_zero_is_no_strong_diffusion_and_comes_back",
    ),
    "a diffusivity below 0 that diffuses": (
        "dynamics/reaction_diffusion_advection.py",
        "columns.append(torch.where(signed < 0, 0.0, signed))",
        "columns.append(signed.abs())",
        "test_dynamics.py::test_diffusivity_stays_non_negative_and_can_leave_zero",
    ),
    "diffusion backwards": ("dynamics/spectral.py", "-(k**2).sum(-1)", "(k**2).sum(-1)", "test_dynamics.py"),
    "a start that is a view of a parameter": (
        "gradients/per_step.py",
        "nn.Parameter if _of_parameter(leaf) else",
        "nn.Parameter if isinstance(leaf, nn.Parameter) else",
        "test_adjoints.py::test_a_start_that_is_a_view_of_a_parameter",
    ),
    "samples not in front of a layer": (
        "integrate/sample_weights.py",
        "next(prime for prime in _PRIMES if prime not in axes)",
        "len(first[0])",
        "test_both_ways.py::test_a_block_is_the_coupled_system_of_all_samples",
    ),
    "samples that a compiled network recomputes together": (
        "both_ways.py",
        "return DirectAdjoint() if stored and",
        "return DirectAdjoint() if False and",
        "test_sample_weights.py::test_torch_compile_of_a_network_changes_no_gradient_and_no_statistics",
    ),
    "a module under two names, swapped twice": (
        "integrate/functional_call.py",
        "return functional_call(f, found, args, kwargs, tie_weights=False)",
        "return functional_call(f, dict(weights), args, kwargs)",
        "test_sample_weights.py::test_unrolled_blocks_are_the_blocks_to_the_bit",
    ),
    "an exact flow without its decay": (
        "dynamics/delta_rule.py",
        "1 - x / 2, -torch.expm1(-safe) / safe)",
        "1 - x / 2, 1.0)",
        "test_learning_rules.py::test_the_exact_flow_of_the_delta_rule_is_the_solution_of_its_equation",
    ),
    "solves that keep their own adjoint": (
        "gradients/adjoint.py",
        "return by(own), None",
        "return own, None",
        "test_diagnose_networks.py::test_gradients_of_modules_that_solve_by_themselves_are_looked_at_under_each_adjoint",
    ),
    "uneven steps taken for their mean": (
        "diagnose/spectra.py",
        "report if step is None else replace(report, step=step)",
        "report",
        "test_diagnose_networks.py::test_the_least_stable_solve_of_a_network_is_told",
    ),
    "padding that is looked at": (
        "path.py",
        "arange(values.shape[1], device=values.device).minimum(self.lengths[:, None] - 1)",
        "arange(values.shape[1], device=values.device).expand(values.shape[:2])",
        "test_path.py::test_a_path_is_that_of_scipy_sample_by_sample",
    ),
    "intervals of one length": (
        "fast_weights.py",
        "None if path.regular else _apart(path.gaps)",
        "None",
        "test_fast_weights.py::test_weights_that_follow_a_path_are_those_of_scipy",
    ),
    "a last token that is not learned": (
        "fast_weights.py",
        "_apart(gaps + ends)",
        "_apart(gaps)",
        "test_fast_weights.py::test_the_exact_flow_is_the_solution_at_irregular_times",
    ),
    "the way back by the path's other half": (
        "fast_weights.py",
        "part + (1 - node if backwards else node)",
        "part + node",
        "test_fast_weights.py::test_the_way_back_evaluates_the_path_where_the_way_there_did",
    ),
    "Oja's weights not held back": (
        "dynamics/hebb.py",
        "outer(value, value) @ w",
        "0.9 * outer(value, value) @ w",
        "test_learning_rules.py::test_oja_finds_the_principal_components",
    ),
    "a diagnosis of z alone": (
        "diagnose/subject.py",
        "return cls(func, block.t, subject.options), y0",
        'return cls(func, block.t, subject.options | {"method": "euler"}), y0',
        "test_diagnose_both_ways.py::test_gradients_and_the_way_back_are_looked_at",
    ),
    "weights that read the features under autocast": (
        "both_ways.py",
        "with in_own_precision(t.device):",
        "if True:",
        "test_both_ways.py::test_autocast_leaves_the_rule_in_its_own_precision",
    ),
}


def copy_of_the_repository(target: Path) -> None:
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, symlinks=True, ignore=shutil.ignore_patterns("*.pyc.*"))
        else:
            shutil.copy(ROOT / part, target / part)


SERVER = """
import gc, os, pathlib, signal, sys
import checkpoint_schedules, einops, hypothesis, numpy, pytest, scipy.integrate, scipy.linalg, torch, torch._dynamo
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and each takes its time
gc.collect(), gc.freeze()  # pytest collects garbage for every row; this is none
for line in sys.stdin:
    where, test = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        signal.alarm(300)  # a row that never ends is told as one that failed
        os.chdir(where)
        sys.path.insert(0, where)
        out = os.open("out.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        file, one, function = test.partition("::")
        path = next(pathlib.Path("tests").rglob(file))
        os._exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *(["-m", ""] if one else []), f"{path}{one}{function}"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """Runs tests of a copy of the repository, each in a fork of one process that has imported what ours does and nothing of ours."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self, where: Path, test: str) -> tuple[int, str]:
        """The exit code and what was printed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{where}\t{test}\n")
        code = int(self.process.stdout.readline())
        return code, (where / "out.txt").read_text()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    with runner.process:  # closes its input, which ends it
        pass


def test_every_row_has_one_place_and_its_tests() -> None:
    odd, where = [], {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for name, (file, old, _, tests) in MUTATIONS.items():
        path, _, function = tests.partition("::")
        count = (ROOT / "anodev2" / file).read_text().count(old)
        there = f"def {function.partition('[')[0]}" in where[path].read_text()
        odd += [f"{name}: {file} holds {old!r} {count} times"] * (count != 1) + [f"{name}: {tests} is not there"] * (not there)
    assert not odd, "\n".join(odd)


@pytest.mark.slow
def test_an_unchanged_copy_passes(tmp_path: Path, runner: Runner) -> None:
    copy_of_the_repository(tmp_path)
    code, printed = runner.run(tmp_path, "test_tableau.py")
    assert code == 0, printed


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_protection_turns_a_test_red(name: str, tmp_path: Path, runner: Runner) -> None:
    file, old, new, test = MUTATIONS[name]
    copy_of_the_repository(tmp_path)
    path = tmp_path / "anodev2" / file
    path.write_text(path.read_text().replace(old, new))
    code, printed = runner.run(tmp_path, test)
    assert code == 1, f"{name}: {test} stayed green\n{printed[-2000:]}"
