"""Blocks: nn.Modules with a solve inside, for nn.Sequential and everywhere else a layer goes."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .both_ways import BothWays, WrittenBothWays, adjoint_of, check_ways, features, in_own_precision, samples_of, start_of, weights_of
from .dynamics import Dynamics, Theta
from .gradients.adjoint import Adjoint, ReversibleAdjoint, as_adjoint, by
from .integrate.compiled import Compile, as_compile
from .integrate.functional_call import Swapped
from .integrate.sample_weights import Together
from .pieces import stacked
from .plan import Plan, plan
from .pytree import Structure, build
from .readings import ReadingPlan
from .signature import CountedCall
from .solve import integrate, odeint
from .solvers import Leaves, Method, as_method
from .solvers.tableau import Tableau
from .stepping import Grid, as_breaks, as_count, as_sequence, as_times, numbers, uniform_grid, wants_grad
from .system import check_call
from .unroll import Jointly, Unrollable, Unrolled, with_weights


class ODEBlock(Unrollable):
    """z(t1) of dz/dt = f(t, z), z(t0) = input, with a fixed number of equal steps.

    One Euler step over t = (0, 1) is the residual block z + f(0, z).

    Args:
        f: a module called as ``f(t, z)``, z a tensor or a tree of tensors; a keyword-only parameter ``step`` of its
            forward is filled with the integer number of the step.
        steps: number of equal steps, in each interval between breaks; five, as in the first configuration of ANODEV2.
        method: a name in ``METHODS``, a ``Tableau`` or a ``Method``.
        t: start and end time.
        adjoint: "checkpoint", "direct", "reversible", "backsolve" or an ``Adjoint``.
        compile: as for ``odeint``.
        breaks: times at which f may jump, as for ``odeint``: numbers, or a trained ``nn.Parameter`` (K,), which f may own as well.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure.

    Source: ANODE, arXiv 1902.10298.
    """

    def __init__(
        self,
        f: nn.Module,
        *,
        steps: int = 5,
        method: str | Tableau | Method = "euler",
        t: Sequence[float] = (0.0, 1.0),
        adjoint: str | Adjoint = "checkpoint",
        compile: bool | Compile = False,
        breaks: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_field(f)
        times = as_times(t)
        if any(isinstance(time, Tensor) for time in times) or len(times) != 2:
            raise ValueError(f"t={t!r} of a block must be two numbers, start and end")
        self.f = f
        self.steps = as_count("steps", steps)
        self.method = as_method(method)
        self.t = numbers(times)
        self.adjoint = as_adjoint(adjoint)
        self.compiling = as_compile(compile) or False
        self.breaks: tuple[float, ...] | Tensor | None = _own(breaks)
        self._grid()

    def forward(self, z0: Any) -> Any:
        """z(t1), in the structure, shapes and dtypes of z0."""
        states, structure = self._integrate(z0, "end")
        return build(structure, states[0])

    def trajectory(self, z0: Any) -> Any:
        """z after 0, 1, ..., ``steps`` steps (of all intervals), stacked in front: leaves of shape ``(steps + 1, *leaf.shape)``."""
        return stacked(*self._integrate(z0, "steps"))

    def written_out(self) -> nn.Module:
        """The solve as a module of fixed weights, which shares f; see ``unroll``."""
        return self._like_this(self._unrolled([self.f], ReadingPlan(self.method, self._grid(), end_only=True, both_ways=True)))

    def _unrolled(self, copies: list[nn.Module], plan: ReadingPlan) -> Unrolled:
        if type(self).forward is not ODEBlock.forward:
            raise ValueError(
                f"{type(self).__name__} has a forward of its own, which unroll would lose; put it in a module around the block"
            )
        unrolled = Unrolled(copies, plan, self.method, self._grid(), self.adjoint)
        for part in (unrolled, *([unrolled.f] if len(copies) > 1 else [])):
            part.training = self.training
        return unrolled

    def _like_this(self, written: nn.Module) -> nn.Module:
        """With the mode and the hooks of this block."""
        written.training = self.training
        vars(written).update({name: value for name, value in vars(self).items() if name.startswith("_forward_")})
        return written

    def _problem(self, z0: Any) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
        """func, y0 and args of ``odeint``."""
        return self.f, z0, ()

    def _grid(self) -> Grid:
        """The steps, whose times are numbers."""
        breaks = self.breaks.detach() if isinstance(self.breaks, Tensor) else self.breaks
        return uniform_grid(self.t, self.steps, None, *as_breaks(breaks, self.t, torch.float64))

    @property
    def _stepping(self) -> dict[str, Any]:
        """The options of ``odeint`` that tell the steps."""
        return {"method": self.method, "steps": self.steps, "breaks": self.breaks}

    def _integrate(self, z0: Any, save: Literal["steps", "end"]) -> tuple[list[Leaves], Structure]:
        func, y0, args = self._problem(z0)
        adjoint = adjoint_of(func, self.adjoint)
        return integrate(func, y0, self.t, args=args, save=save, adjoint=adjoint, compile=self.compiling, **self._stepping)

    def plan(self, z0: Any) -> Plan:
        """What ``forward(z0)`` costs, as ``anodev2.plan`` tells it; theta(t) that moves by itself is found before, and not counted."""
        func, y0, args = self._problem(z0)
        found = plan(func, y0, self.t, args=args, adjoint=self.adjoint, **self._stepping)
        return replace(found, samples=samples_of(z0)) if isinstance(func, BothWays) else found

    def extra_repr(self) -> str:
        compiling = f", compile={self.compiling}" if self.compiling else ""
        breaks = "" if self.breaks is None else f", breaks={numbers(tuple(self.breaks))}"
        return f"steps={self.steps}, method={self.method.name!r}, t={self.t}{breaks}, adjoint={self.adjoint}{compiling}"


class CoupledODEBlock(ODEBlock):
    """z(t1) of dz/dt = f(t, z; theta(t)), dtheta/dt = q(t, theta), z(t0) = input, theta(t0) = parameters of f.

    theta is solved first, once per forward pass whatever the batch, at exactly the times at which the method reads it:
    by the closed form of ``dynamics`` where it has one, else by stepping. (``odeint(CoupledSystem(f, q), ...)`` steps z
    and theta jointly instead; both agree at the order of the method, and to the bit for Euler on a common grid.)

    Configuration 1 of the paper: ``steps=5`` and Euler, theta on the grid of z. Configuration 2: ``steps=2,
    weight_steps=10``, theta on a finer grid. Threads may share a block: they take turns at f, and see theta(t0) from outside.

    A dynamics that reads the features, q(t, theta, z), makes theta one of each sample, (batch, *weight.shape), and the method steps
    z and theta jointly. z has the batch in front; f must treat samples alike and apart. Where theta enters linear and convolution
    layers alone, all samples go through f together, BatchNorm too; else f is called through ``torch.func.vmap``.

    Args:
        f: a module called as ``f(t, z)``. The parameters that evolve are theta(t0), under their own names in the
            ``state_dict``; the others stay constant in time. What f runs later, in a backward pass or another thread, sees
            theta(t0): so torch.utils.checkpoint in f is refused; ``adjoint="checkpoint"`` does its work.
        dynamics: q, a ``Dynamics``.
        evolve: name pattern(s) such as ``"conv*.weight"`` that narrow which parameters evolve. None: all that the
            dynamics accepts (for reaction-diffusion-advection the convolution kernels longer than 1).
        steps, method, t, adjoint, compile, breaks: as for ``ODEBlock``; steps of theta end at breaks too. They are trained only where
            the dynamics reads the features.
        weight_steps: number of steps of theta over t, rounded up where the times at which z reads theta do not divide
            them; default ``steps``. Of no effect on a closed form.
        weight_method: method for theta; default ``method``.
        weights: "along": z at time t reads theta(t); "final": z reads theta(t1) throughout.
        initial: for a dynamics that reads the features: a module or function of the input that returns theta(t0) of each sample for
            some of the weights, a dict of (batch, *weight.shape); the others, and by default all, start from the parameters of f.

    Raises:
        ValueError, TypeError: naming the argument, what was given and the cure; a parameter that matches ``evolve``
            and that the dynamics cannot evolve is named.

    Source: ANODEV2, arXiv 1906.04596.
    """

    def __init__(
        self,
        f: nn.Module,
        dynamics: Dynamics,
        *,
        evolve: str | Sequence[str] | None = None,
        steps: int = 5,
        weight_steps: int | None = None,
        method: str | Tableau | Method = "euler",
        weight_method: str | Tableau | Method | None = None,
        weights: Literal["along", "final"] = "along",
        t: Sequence[float] = (0.0, 1.0),
        adjoint: str | Adjoint = "checkpoint",
        compile: bool | Compile = False,
        initial: Callable[[Any], Theta] | None = None,
        breaks: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(f, steps=steps, method=method, t=t, adjoint=adjoint, compile=compile, breaks=breaks)
        if not isinstance(dynamics, Dynamics):
            raise TypeError(f"dynamics must be a Dynamics, got {type(dynamics).__name__}; wrap a module q(t, theta) as NeuralDynamics(q)")
        check_call("dynamics", dynamics, "t", "theta", *["z"] * dynamics.reads_features)
        if weights not in ("along", "final"):
            raise ValueError(f"weights={weights!r} must be 'along' or 'final'")
        given = {"weight_steps": weight_steps, "weight_method": weight_method, "weights": None if weights == "along" else weights}
        check_ways(dynamics.reads_features, [name for name, value in given.items() if value is not None], initial)
        self.dynamics = dynamics
        self.initial = initial
        self.evolving = _evolving(f, dynamics, evolve)
        self.weight_steps = self.steps if weight_steps is None else as_count("weight_steps", weight_steps)
        self.weight_method = self.method if weight_method is None else as_method(weight_method)
        self.which_weights = weights
        self._plans: dict[bool, tuple[Any, ReadingPlan]] = {}  # by whether steps are taken both ways
        self._together = Together()
        self._readings()
        dynamics.bind(self._theta0())

    def weights(self, t: float | Sequence[float] | Tensor, z0: Any = None) -> Theta:
        """theta at time t, or at several times of the block stacked in front: a dict by parameter name.

        Where the dynamics reads the features, it is that of each sample of an input z0: (batch, *weight.shape), at a time between two
        steps after a shorter one. Otherwise z0 is not looked at.
        """
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        low, high = min(self.t), max(self.t)
        if times.ndim > 1 or times.numel() == 0 or not ((low <= times) & (times <= high)).all():
            raise ValueError(f"t={t} must be a time between {low} and {high}, or a sequence of such times")
        if self.dynamics.reads_features:
            path = self._joint_path(z0, times.reshape(-1).tolist())
        else:
            path = self._path(self._theta0(), times.reshape(-1).tolist())
        return {name: torch.stack([theta[name] for theta in path]) for name in self.evolving} if times.ndim else path[0]

    def joint(self, z0: Any) -> tuple[Callable[..., Any], Any]:
        """Where the dynamics reads the features: func(t, y) of the joint state y = (z, theta), and y at the start, for ``odeint``.

        Raises:
            ValueError: theta moves by itself; z0 without the batch in front.
        """
        if not self.dynamics.reads_features:
            raise ValueError(f"the weights of this {type(self).__name__} do not read the features; they are weights(t)")
        theta = self._theta0()
        state = self.dynamics.start(start_of(z0, theta, self.initial))
        return BothWays(Swapped(self.f, theta), self.dynamics, self.f, self._together(self.f, self.evolving, z0)), (z0, state)

    def _problem(self, z0: Any) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
        if self.dynamics.reads_features:
            return *self.joint(z0), ()
        if isinstance(self.breaks, Tensor) and self.breaks.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "breaks that require grad move the times at which z reads weights that move by themselves, whose slopes there a block "
                "does not take: give numbers, or solve both jointly, odeint(CoupledSystem(f, q), (z0, theta0), t, breaks=breaks)"
            )
        readings = self._readings(both_ways=by(self.adjoint).both_ways)
        theta = self._theta0()
        return _EvolvingField(self.f, theta, readings), z0, (self._path(theta, readings.times),)

    def _integrate(self, z0: Any, save: Literal["steps", "end"]) -> tuple[list[Leaves], Structure]:
        states, structure = super()._integrate(z0, save)
        return features(states, z0) if self.dynamics.reads_features else (states, structure)

    def written_out(self) -> nn.Module:
        """The solve as a module of fixed weights, a copy of f for each time at which z reads theta; see ``unroll``."""
        if self.dynamics.reads_features:
            system = WrittenBothWays(self.f, self.dynamics)
            readings = ReadingPlan(self.method, self._grid(), end_only=True, both_ways=True)
            return self._like_this(Jointly(self._unrolled([system], readings), self.evolving, self.initial, self._together))
        start = self._theta0()
        readings = self._readings(both_ways=isinstance(self.adjoint, ReversibleAdjoint))
        solved = self._readings(both_ways=self.adjoint.both_ways)
        path = dict(zip(solved.times, self._path(start, solved.times), strict=True))  # with other times round-off would be another
        copies = [with_weights(self.f, {start[name]: path[time][name] for name in start}) for time in readings.times]
        return self._like_this(self._unrolled(copies, readings))

    def _joint_path(self, z0: Any, times: Sequence[float]) -> list[Theta]:
        """theta of each sample at each of ``times``."""
        if z0 is None:
            raise ValueError("the weights of this block read the features, and differ from input to input: give it, weights(t, z0)")
        func, y0 = self.joint(z0)
        nodes = self._grid().nodes()
        options = {"method": self.method, "adjoint": self.adjoint, "breaks": self.breaks}
        states, _ = integrate(func, y0, self.t, steps=self.steps, save="steps", **options)
        at = dict(zip(nodes, weights_of(states, y0, self.dynamics), strict=True))
        for time in {time for time in times if time not in at}:
            grid = [*(node for node in nodes if (node < time) == (self.t[0] < self.t[1])), time]
            end = integrate(func, y0, grid[:: len(grid) - 1], grid=grid, save="end", **options)[0]
            at |= {time: weights_of(end, y0, self.dynamics)[0]}
        return [at[time] for time in times]

    @property
    def reading_times(self) -> list[float]:
        """The times at which z reads theta."""
        return self._readings().times

    def _readings(self, both_ways: bool = False) -> ReadingPlan:
        breaks = numbers(tuple(self.breaks)) if isinstance(self.breaks, Tensor) else self.breaks
        now = (self.method, self.t, self.steps, self.which_weights, breaks)
        if both_ways not in self._plans or self._plans[both_ways][0] != now:
            end_only = self.which_weights == "final"
            self._plans[both_ways] = now, ReadingPlan(self.method, self._grid(), end_only=end_only, both_ways=both_ways)
        return self._plans[both_ways][1]

    def _theta0(self) -> Theta:
        present = dict(self.f.named_parameters(remove_duplicate=False))  # whatever stands for them now, as under torch.func.functional_call
        for name in self.evolving:
            if name not in present:
                raise ValueError(
                    f"{name} of f={type(self.f).__name__} evolves in this {type(self).__name__} and is gone, among {list(present)}: "
                    "prune, parametrize or wrap f first, and make the block then"
                )
            if hasattr(present[name], "full_tensor") and any(hasattr(module, "reshard") for module in self.modules()):
                raise ValueError(
                    f"{name} of f={type(self.f).__name__} evolves and is here in shards alone: fully_shard this {type(self).__name__}, "
                    "no part of it, and outside of its forward call unshard() first"
                )
        return {name: present[name] for name in self.evolving}

    def _path(self, theta: Theta, times: Sequence[float]) -> list[Theta]:
        """theta at each of ``times``, in the weights' own precision whatever autocast says."""
        with in_own_precision(next(iter(theta.values())).device):
            values = self.dynamics.flow(theta, [time - self.t[0] for time in times])
            if values is None:
                return self._stepped(theta, times)
        return _unstacked(values, len(times))

    def _stepped(self, theta: Theta, times: Sequence[float]) -> list[Theta]:
        start, end = self.t
        later = sorted({time for time in times if time != start}, reverse=end < start)
        at = {start: theta}
        if later:
            size = abs(end - start) / self.weight_steps
            state = self.dynamics.start(theta)
            options = {"method": self.weight_method, "step_size": size, "adjoint": self.adjoint, "breaks": self.breaks}
            path = odeint(self.dynamics, state, [start, *later], **options)
            at |= dict(zip(later, _unstacked(self.dynamics.weights(path), len(later) + 1)[1:], strict=True))
        return [at[time] for time in times]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, evolving={list(self.evolving)}, weights={self.which_weights!r}"


class _EvolvingField:
    """f(t, z) with the weights that belong to the stage swapped in from a path of weights."""

    counters_wanted = ("step", "stage", "backwards")

    def __init__(self, f: nn.Module, theta0: Theta, plan: ReadingPlan) -> None:
        self.owner = f
        self.f = Swapped(f, theta0)
        self.plan = plan
        self.counters = CountedCall(f).counters

    def __call__(self, t: Tensor, z: Any, path: list[Theta], *, step: int, stage: int, backwards: bool) -> Any:
        return self.f(path[self.plan.number(step, stage, backwards)], t, z, **self.counters(step, stage))


def _unstacked(values: Theta, count: int) -> list[Theta]:
    columns = {name: value.unbind() for name, value in values.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _evolving(f: nn.Module, dynamics: Dynamics, evolve: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of the parameters of f that evolve."""
    parameters = dict(f.named_parameters())
    if evolve is None:
        names = tuple(name for name, weight in parameters.items() if _accepts(dynamics, name, weight))
        if not names:
            raise ValueError(f"f has no parameter that {type(dynamics).__name__} can evolve, among {list(parameters)}")
        return names
    patterns = [evolve] if isinstance(evolve, str) else list(evolve)
    if not patterns:
        raise ValueError("evolve=[] lets nothing evolve; use ODEBlock for that, or None for all that the dynamics accepts")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(f"evolve={pattern!r} matches no parameter of f, among {list(parameters)}")
    names = tuple(name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    for name in names:
        if not _accepts(dynamics, name, parameters[name]):
            shape = tuple(parameters[name].shape)
            raise ValueError(f"evolve={evolve!r} matches {name} of shape {shape}, which {type(dynamics).__name__} cannot evolve; narrow it")
    return names


def _accepts(dynamics: Dynamics, name: str, weight: Tensor) -> bool:
    if is_lazy(weight):
        raise ValueError(f"{name} of f has no shape yet, and is to evolve or not by its shape: call f once before the block is made")
    return dynamics.accepts(name, weight)


def _own(breaks: Any) -> tuple[float, ...] | nn.Parameter | None:
    """What a block keeps of them: numbers, but for a parameter."""
    if breaks is None or isinstance(breaks, nn.Parameter):
        return breaks
    times, values = as_sequence("breaks", breaks)
    if any(map(wants_grad, times)):
        raise ValueError("breaks of a block that are trained must be one nn.Parameter of shape (K,), which is the block's then")
    return values


def _check_field(f: nn.Module) -> None:
    if not isinstance(f, nn.Module):
        raise TypeError(f"f must be an nn.Module called as f(t, z), got {type(f).__name__}; for a function use odeint")
    check_call("f", f, "t", "z")
