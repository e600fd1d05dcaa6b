"""What arguments, options and methods of torchdiffeq are called here: for errors that answer with it, and docs/from_torchdiffeq.md."""

from __future__ import annotations

from collections.abc import Iterable

OPTIONS = {
    "options": "its entries are arguments: step_size=, control=Control(...), max_steps=",
    "event_fn": "solve(..., event=event_fn), whose last time may be infinite; the solution has event_time and ys[-1]",
    "odeint_interface": "the adjoint of solve(..., event=) is adjoint=",
    "reverse_time": "give falling times to solve(..., event=)",
    "adjoint_rtol": "adjoint=BacksolveAdjoint(rtol=...); the default adjoint is exact and needs none",
    "adjoint_atol": "adjoint=BacksolveAdjoint(atol=...); the default adjoint is exact and needs none",
    "adjoint_method": "a backward solve takes the method of the forward one; the default adjoint is exact and solves nothing backwards",
    "adjoint_options": "a backward solve takes the steps of the forward one; the default adjoint is exact and solves nothing backwards",
    "adjoint_params": "leave it out: whatever func reaches gets its gradient, parameters and closures",
    "norm": "errors are root mean squares over all elements; weigh leaves by rtol and atol as trees like y0, samples by per_sample=True",
    "first_step": "control=Control(first_step=...)",
    "min_step": "control=Control(min_step=...), where an error too large ends the solve, and is not accepted as theirs is",
    "max_step": "control=Control(max_step=...)",
    "safety": "control=Control(safety=...)",
    "ifactor": "control=Control(grow=...)",
    "dfactor": "control=Control(shrink=...)",
    "max_num_steps": "max_steps=, which counts accepted steps",
    "step_t": "times of t with hit='exact'; solve(..., save=[...]) gives the states at some of them",
    "jump_t": "breaks=[...], the times of the jumps, which may require grad",
    "grid_constructor": "grid=, the times of all steps",
    "interp": "steps of a grid end at the times t; between them solve(..., dense=True)",
    "perturb": "breaks=[...], the times of the jumps, which may require grad",
    "dtype": "every leaf of y0 keeps its dtype, times are float64",
    "max_iters": "method=BackwardEuler(iterations=...) or ImplicitMidpoint(iterations=...)",
    "max_order": "there are no multistep methods",
    "solver": "call scipy itself; of its methods RK23 is bosh3, RK45 is dopri5, DOP853 is dopri8",
}
METHODS_OF_TORCHDIFFEQ = {
    "adaptive_heun": 'method="heun2" with rtol= and atol=, or "bosh3"',
    "fehlberg2": 'method="heun2" with rtol= and atol=, or "bosh3"',
    "heun3": 'method="ssprk3", also of order 3',
    "explicit_adams": 'method="rk4"; there are no multistep methods',
    "implicit_adams": 'method="rk4"; there are no multistep methods',
    "fixed_adams": 'method="rk4"; there are no multistep methods',
    "implicit_euler": 'method="backward_euler"',
    "trapezoid": 'method="implicit_midpoint", also of order 2',
    "gl4": 'method="implicit_midpoint", of order 2',
    "gl6": 'method="implicit_midpoint", of order 2',
    "radauIIA3": 'method="rodas4" or "rodas5p", L-stable too',
    "radauIIA5": 'method="rodas4" or "rodas5p", L-stable too',
    "sdirk2": 'method="rodas4" or "rodas5p", L-stable too',
    "trbdf2": 'method="rodas4" or "rodas5p", L-stable too',
    "scipy_solver": 'call scipy itself; RK23 is "bosh3", RK45 is "dopri5", DOP853 is "dopri8"',
}


def refuse_unknown(call: str, names: Iterable[str]) -> None:
    """TypeError for arguments that there are not, with what torchdiffeq's are called here."""
    for name in names:
        known = f"; coming from torchdiffeq: {OPTIONS[name]}" if name in OPTIONS else ""
        raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{known}")
