"""The public calls that join the parts; user-facing errors about states, times and modes start here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import check_one_method, check_runs, check_splits, check_state, warn_of_instability
from .events import Event, Observer, as_events, check_events
from .events_of_samples import solved_by_sample
from .gradients.adjoint import Adjoint, in_force
from .integrate.compiled import Compile, as_compile
from .integrate.per_sample import check_samples, find_grid
from .integrate.recording import untouched
from .integrate.refreshed import refreshed
from .pieces import costs, densely, happenings, joined, met, methods_of, nodes, one_run, saved_points, saved_tree, solved_in_pieces
from .problem import Problem, Run, SolveError, Status, VectorField
from .pytree import Structure, build, leaves_of, structure_of
from .solution import Solution, Stats
from .solvers import Leapfrog, Leaves, Map, Method, as_method, halves
from .solvers.tableau import Tableau
from .stepping import MAX_STEPS, Adaptive, Control, Grid, Step, as_count, times_of_samples, without_repeats
from .steps import Save, saving, stepping_of
from .torch_private import transformed
from .torchdiffeq import refuse_unknown

NO_GRID = "per_sample=True is about error control; give rtol and atol instead of a grid, with a method such as dopri5"


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Sequence[float] | Tensor,
    *,
    method: str | Tableau | Method = "rk4",
    steps: int | None = None,
    step_size: float | None = None,
    grid: Sequence[float] | Tensor | None = None,
    rtol: Any = None,
    atol: Any = None,
    control: Control | None = None,
    hit: Literal["between", "exact"] | None = None,
    breaks: Sequence[float | Tensor] | Tensor | None = None,
    per_sample: bool = False,
    max_steps: int | None = MAX_STEPS,
    args: tuple[Any, ...] = (),
    adjoint: str | Adjoint = "checkpoint",
    compile: bool | Compile = False,
    **unknown: Any,
) -> Any:
    """Solve dy/dt = func(t, y, *args), y(t[0]) = y0, and return y at all times t, stacked in front.

    Args:
        func: called as ``func(t, y, *args)`` with t a real zero-dimensional tensor; returns dy/dt in the structure and
            shapes of y0. On a grid, keyword-only parameters of func named ``step`` and ``stage`` are filled with the
            integer number of the step (counted over the whole solve) and of the stage within it.
        y0: a floating or complex tensor, or a (nested) tuple, list or dict of them; every leaf keeps its dtype.
        t: times that rise or fall, any unit. Steps of a grid end there; for error control see ``hit``. At the first, and at one alone,
            y is y0; a time may be given more than once where it requires no grad.
        method: a name in ``METHODS`` ("euler", "rk4", "dopri5", "leapfrog", ...), a ``Tableau``, or a ``Method``. "auto" goes from tsit5 to
            rodas5p while the problem is stiff, see ``Auto``; "map" is the recursion y_{n+1} = func(n, y_n), with a pass for each unit of t.
        steps: number of equal steps in each interval between neighbouring times.
        step_size: instead of ``steps``: an upper bound for the step, in the unit of t; intervals are cut equally.
        grid: instead: the times of all steps, such as the ``grid`` of an adaptive ``Solution``; those of t among them, or within a step of
            a method with an interpolant.
        rtol, atol: instead: steps found by error control, for methods with an embedded error estimate (what they do
            when nothing is given, with 1e-7 and 1e-9). Numbers, or trees like y0 of numbers or tensors that broadcast.
        control: how error control chooses its steps, see ``Control``.
        hit: with error control, whether times of t "between" the first and last are read from the interpolant of the step that passes
            them, which costs (nearly) nothing, or steps end there "exact"ly; so they do for methods without interpolant, and with
            ``per_sample``. None: "between", but "exact" for "rodas4", "rodas5p", "kvaerno5" and "auto", which keep the tolerance at the
            ends of steps alone where y only follows a function of t.
        breaks: times at which func may jump, in any order. A step ends there (``steps`` count from one time of t or break to the next),
            func is asked for its limit from within each step, and nothing is carried from one side to the other. With gradients with
            respect to breaks that require one (none with ``per_sample``); those outside of t do nothing.
        per_sample: error control for each sample of a tensor (batch, ...) by itself; func gets t of shape (batch, 1, ..., 1).
            The steps are found first, without a graph, and then taken: twice the evaluations forward. Then t may be of shape (batch, T),
            output times of each sample in a row that may end with nan: states there are nan.
        max_steps: of error control (of each sample, with ``per_sample``), accepted ones; None: any number. A grid has its own.
        args: further arguments of func: tensors, modules or anything else, nested in tuples, lists and dicts.
        adjoint: "checkpoint" (default), "direct", "reversible", "backsolve", or an ``Adjoint``. All but the last give the
            gradient of the discrete solution, with respect to y0, args, parameters and other tensors that func
            reaches, and the times that require grad. Step sizes found by error control are constants for the gradient;
            a time of t moves the two steps that meet there, or its place within a step.
        compile: compile runs of steps, forward and backward, once per shape; for grids and "checkpoint" or "direct". A
            ``Compile`` says how many steps at a time. Worth its seconds where f is small or is called often.

    Returns:
        A tree like y0 whose leaves have shape ``(len(t), *leaf.shape)``; entry 0 is y0.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.
        SolveError: error control could not go on, or not in ``max_steps``; its ``status`` says where and why.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.1, II.4.
    """
    refuse_unknown("odeint", unknown)
    once, places = without_repeats(t)
    run, problem = run_of(
        func,
        y0,
        once,
        method=method,
        steps=steps,
        step_size=step_size,
        grid=grid,
        rtol=rtol,
        atol=atol,
        control=control,
        hit=hit,
        breaks=breaks,
        per_sample=per_sample,
        max_steps=max_steps,
        args=args,
        adjoint=adjoint,
        compile=compile,
    )
    ys = joined(run, problem)
    if places is None:
        return ys
    structure = problem.field.structure
    return build(structure, [torch.stack([leaf[place] for place in places]) for leaf in leaves_of(ys, structure)])


def solve(
    func: Callable[..., Any],
    y0: Any,
    t: Sequence[float] | Tensor,
    *,
    method: str | Tableau | Method = "rk4",
    steps: int | None = None,
    step_size: float | None = None,
    grid: Sequence[float] | Tensor | None = None,
    rtol: Any = None,
    atol: Any = None,
    control: Control | None = None,
    hit: Literal["between", "exact"] | None = None,
    breaks: Sequence[float | Tensor] | Tensor | None = None,
    per_sample: bool = False,
    args: tuple[Any, ...] = (),
    adjoint: str | Adjoint = "checkpoint",
    compile: bool | Compile = False,
    save: Save = "times",
    dense: bool = False,
    event: Event | Callable[[Tensor, Any], Tensor] | Sequence[Event | Callable[[Tensor, Any], Tensor]] | None = None,
    callback: Callable[[float, Any], Any] | None = None,
    progress: bool = False,
    max_steps: int | None = MAX_STEPS,
    throw: bool = True,
    **unknown: Any,
) -> Solution:
    """Solve as ``odeint`` does, and tell about it: a ``Solution`` with times, states, grid, statistics and status.

    Args:
        func, y0, t, method, steps, step_size, grid, rtol, atol, control, hit, breaks, per_sample, args, adjoint: as for ``odeint``; with
            an event, error control ends steps at the times t.
        compile: as for ``odeint``: the runs are what is looked at, and where one ends the solve its steps are taken again, one by one.
            With a callback or save="steps" each step is a run. Not with ``event`` and ``dense``.
        save: the states at "times" t, after all "steps", or at the "end"; k: at the start, after every k-th accepted step, and at the end
            (counted anew after the effect of an event); a list of times between the first and the last of t: at these alone, which
            steps treat like times of t; or a function (t, y) whose results at the times t are stacked instead of the states.
        dense: keep states and slopes of all steps, to call the solution with any time.
        event: an ``Event`` or several, or g(t, y) for one that ends the solve: where g, one real element, changes sign within a step,
            located to round-off. Time and state there have the gradient of the implicit function theorem. Two changes of one g in one
            step are missed; a start where g is zero to round-off is no event. The last time may be infinite where an event ends the solve.
            With ``per_sample`` g has an element per sample, and each sample ends, or goes on after the effect, by itself.
        callback: called as callback(t, y) after every accepted step, with a number and a detached state.
        progress: show a bar (needs tqdm).
        max_steps: end with status "max_steps" where more would be taken, on a grid only if it is not the default; None: never.
        throw: raise ``SolveError`` for a solve that ended early; False returns what was reached, with the ``status``.

    Every step is looked at: a state that is not finite ends the solve (one synchronisation with the device per step). With
    ``per_sample`` a sample that cannot go on stays where it is, and the others go on: ``status.element`` has the numbers of those
    that failed, ``status.y`` the last good states, ``grid[-1]`` the time of each, ``statuses`` how each
    ended; at times that they did not reach ys has nan.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.
        SolveError: not finite values, step size underflow, or ``max_steps``, unless ``throw`` is False.
    """
    refuse_unknown("solve", unknown)
    if torch.compiler.is_compiling():
        raise ValueError("solve looks at every step, which torch.compile does not allow; compile odeint, or call solve outside")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable as callback(t, y), got {type(callback).__name__}")
    events = as_events(event)
    if per_sample and (dense or progress or callback is not None):
        raise ValueError("per_sample=True gives samples times of their own: dense, callback, progress need common ones")
    saved = saving(save, t, per_sample, any(one.effect is not None for one in events))
    kind, every = saved.kind, saved.every
    problem, args, leaves = problem_of(
        func,
        y0,
        saved.t,
        method=method,
        steps=steps,
        step_size=step_size,
        grid=grid,
        rtol=rtol,
        atol=atol,
        control=control,
        hit="exact" if events else hit,
        breaks=breaks,
        per_sample=per_sample,
        max_steps=max_steps,
        args=args,
        throw=throw,
        events=bool(events),
    )
    check_events(events, problem, max_steps, control is not None and control.refresh is not None)
    if isinstance(problem.method, Map) and (dense or events):
        raise ValueError("method='map' has no times between its passes: dense and event need an ODE; look at save='steps'")
    (chosen, how), ended = in_force(adjoint, as_compile(compile)), None
    if how is not None:
        check_runs(problem, chosen, "an event" if events else "dense=True" if dense else None)
        how = replace(how, steps=1) if kind == "steps" or callback is not None else how
    problem = problem if every is None else replace(problem, stepping=problem.stepping.saved_every(every))
    if per_sample and events and isinstance(problem.stepping, Adaptive):
        ended = solved_by_sample(problem, leaves, args, chosen, events, max_steps, kind if every is None else "steps")
        pieces, points, status = ended.pieces, saved.by_sample(ended.points), ended.status
    else:
        own = isinstance(problem.stepping, Grid) and max_steps == MAX_STEPS
        watch = Observer(problem, args, events, callback, progress, None if own else max_steps)
        kept = ("all" if kind == "times" else "steps") if dense else "reached" if (events or how) and kind == "times" else kind
        slopes = dense and problem.method.interpolant is not None
        problem = replace(problem, watch=None if per_sample else watch, save=kept, slopes=slopes)
        with watch:
            pieces = solved_in_pieces(problem, leaves, args, chosen, watch, how)
        points = saved_points(pieces, kind)
        if per_sample and kind != "steps" and every is None:  # there all samples meet
            points = met(pieces[0].run.grid, points, kind)
        points = saved.shown(points, pieces[-1].ending)
        status = pieces[-1].run.status or pieces[-1].run.grid.status or Status()
    if throw and not status.ok:
        raise SolveError(status)
    start: list[tuple[Tensor, Leaves]] = [(problem.field.time(0.0), leaves)]  # of no times at all
    last = pieces[-1].ending if status.reason == "event" else None
    return Solution(
        *saved_tree(points or start, problem.field.structure, save if callable(save) else None, len(points)),
        Stats(problem.field.evaluations, *costs(pieces)),
        status,
        ended.grid if ended else pieces[0].run.grid.times if per_sample else nodes(pieces),
        ended.event_time if ended else None if last is None else last[0],
        densely(pieces, args) if dense else None,
        *(ended.happenings if ended else happenings(pieces, len(events), leaves, problem.field.structure)),
        methods_of(pieces),
        ended.statuses if ended else pieces[0].run.grid.statuses,
    )


def integrate(func: Callable[..., Any], y0: Any, t: Any, **options: Any) -> tuple[list[Leaves], Structure]:
    """``odeint`` before stacking: the leaves after every step or at the end, as ``save`` says, and the structure of y0."""
    run, problem = run_of(func, y0, t, **options)
    return run.states, problem.field.structure


def run_of(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    adjoint: str | Adjoint,
    save: Literal["times", "steps", "end"] = "times",
    max_steps: int | None = MAX_STEPS,
    compile: bool | Compile = False,
    **options: Any,
) -> tuple[Run, Problem]:
    """The solve of ``odeint``, and what it was about."""
    problem, args, leaves = problem_of(func, y0, t, save=save, max_steps=max_steps, **options)
    if isinstance(problem.stepping, Adaptive):
        check_events((), problem, max_steps)
        problem = replace(problem, watch=Observer(problem, (), (), None, False, max_steps).limit)
    chosen, how = in_force(adjoint, as_compile(compile))
    if how is not None:
        check_runs(problem, chosen)
    run = one_run(chosen, problem, leaves, args, how if save != "steps" else None)
    if run.status is not None:
        raise SolveError(run.status)
    return run, problem


def problem_of(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    method: str | Tableau | Method,
    steps: int | None = None,
    step_size: float | None = None,
    grid: Any = None,
    rtol: Any = None,
    atol: Any = None,
    control: Control | None = None,
    hit: Literal["between", "exact"] | None = None,
    breaks: Sequence[float | Tensor] | Tensor | None = None,
    per_sample: bool = False,
    max_steps: int | None = MAX_STEPS,
    args: tuple[Any, ...] = (),
    save: Literal["times", "steps", "end"] = "times",
    throw: bool = True,
    events: bool = False,
) -> tuple[Problem, tuple[Any, ...], list[Tensor]]:
    """The checked problem, the arguments with what is prepared for the steps, and the leaves of y0; ``events``: a search for the steps of
    samples is left to those who look for events."""
    if not callable(func):
        raise TypeError(f"func must be callable as func(t, y), got {type(func).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(x,) for a single argument")
    if control is not None and not isinstance(control, Control):
        raise TypeError(f"control must be a Control, got {type(control).__name__}; write Control(min_step=...)")
    if hit not in (None, "between", "exact"):
        raise ValueError(f"hit={hit!r} must be 'between' (read output times from interpolants), 'exact' (end steps there) or None")
    max_steps = None if max_steps is None else as_count("max_steps", max_steps)
    structure = structure_of(y0)
    leaves = leaves_of(y0, structure)
    check_state(leaves)
    chosen = as_method(method).for_state(leaves)
    field = VectorField(func, structure, leaves)
    if not torch.compiler.is_compiling():
        field.call.check(t, y0, *args)
    grids = {"steps": steps, "step_size": step_size, "grid": grid}
    between = chosen.interpolant is not None and (not chosen.ends if hit is None else hit == "between")
    own, bounds = times_of_samples(t, leaves[0], events) if per_sample else None, (rtol, atol, control)
    if own is not None and (chosen.embedded_order is None or any(value is not None for value in grids.values())):
        raise ValueError(f"{NO_GRID}; for own times with {chosen.name} and steps, solve sample by sample")
    jumping = breaks, field.time_dtype
    stepping = stepping_of(own or t, chosen, structure, leaves, grids, bounds, between and not per_sample, jumping)
    if isinstance(stepping, Adaptive) and "step" in field.call.names:
        raise ValueError("func takes the number of the step, which error control does not know beforehand; give steps or a grid")
    problem = Problem(field, chosen, stepping, save)
    check_one_method(chosen, isinstance(stepping, Adaptive), per_sample)
    problem = replace(problem, stepping=found_steps(problem, leaves, args, per_sample, max_steps, throw, events))
    if chosen.splits:
        check_splits(func, chosen, structure)
    if isinstance(chosen, Leapfrog):
        check_separable(problem, leaves, args)
    if grid is None and isinstance(stepping, Grid):
        warn_of_instability(func, chosen, stepping, leaves)
    return *problem.prepared(leaves, args), leaves


def found_steps(
    problem: Problem, leaves: Leaves, args: tuple[Any, ...], per_sample: bool, max_steps: int | None, throw: bool, events: bool
) -> Grid | Adaptive:
    """The grid, where the steps are found before they are taken: for each sample, or for several calls; else what there is."""
    stepping = problem.stepping
    recorded = isinstance(stepping, Adaptive) and stepping.control.refresh is not None
    if not per_sample:
        return refreshed(problem, leaves, args, max_steps) if recorded else stepping
    if recorded:
        raise ValueError("per_sample=True finds steps of its own for each sample in every call; leave Control(refresh=...) out")
    if not isinstance(stepping, Adaptive):
        if len(stepping.times) > 1:
            raise ValueError(NO_GRID)
        return stepping
    check_samples(problem, stepping, leaves)
    if events:
        return stepping
    check_events((), problem, max_steps)
    found = find_grid(problem, leaves, args, max_steps)
    if throw and found.status is not None:
        raise SolveError(found.status)
    return found


def check_separable(problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> None:
    """Leapfrog's assumption, seen in the graph of one evaluation: q' does not depend on q, v' not on v."""
    (q, v), pair = halves(y0), problem.field.structure.children
    if len(pair) != 2 or pair[0] != pair[1] or [a.shape for a in q] != [b.shape for b in v]:
        given = str(problem.field.structure) if pair else "a single tensor; give a tuple, tuple(u.unbind(-2)) of fields stacked (..., 2, n)"
        raise ValueError(f"leapfrog needs a state (q, v) of two equal halves, got {given}")
    if torch.is_inference_mode_enabled() or torch.compiler.is_compiling() or transformed():
        return  # no graph to look at
    counted = problem.field.evaluations
    with untouched(problem, y0, args), torch.enable_grad():
        q, v = ([leaf.detach().requires_grad_() for leaf in half] for half in (q, v))
        step = problem.stepping.steps()[0] if isinstance(problem.stepping, Grid) else Step(0, problem.stepping.times, 0, 0, 1)
        slopes = halves(problem.field(args, step, 0, 0.5, [*q, *v]))
        problem.field.evaluations = counted
        for name, slope, wrong, right in (("q'", slopes[0], q, "v"), ("v'", slopes[1], v, "t and q")):
            ends = [k for k in slope if k.requires_grad]
            if ends and any(g is not None for g in torch.autograd.grad(ends, wrong, [torch.ones_like(k) for k in ends], allow_unused=True)):
                other = "q" if wrong is q else "v"
                raise ValueError(f"leapfrog needs {name} to depend on {right} alone, and here it depends on {other}; use another method")
