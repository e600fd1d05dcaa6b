"""Whether a gradient is that of adjoint="direct": one case of hiding state, run under an adjoint and under an oracle, and compared."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import Adjoint, BacksolveAdjoint, CheckpointAdjoint, Compile, DirectAdjoint, ReversibleAdjoint, odeint
from anodev2.problem import Problem, Run
from anodev2.solvers import Leaves
from tests.happening import ACTS, Act, Call
from tests.hiding import PLACES, Hidden

COUPLING, DIRECT = 0.999, DirectAdjoint()
PLAIN = "list"  # where the oracle finds what has no place of its own nature


@dataclass(frozen=True)
class StoredReversible(Adjoint):
    """The reversible scheme by plain autograd."""

    both_ways = True
    coupling: float = COUPLING

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        return ReversibleAdjoint(self.coupling).stored(problem, y0, args)


@dataclass(frozen=True)
class Mode:
    """``tolerance``: of gradients, relative to the largest element; states are equal, but for those of compiled runs."""

    adjoint: Adjoint | None
    tolerance: float
    oracle: Adjoint = DIRECT
    compile: bool | Compile = False


MODES = {
    "checkpoint": Mode(CheckpointAdjoint(), 0.0),
    "slots=1": Mode(CheckpointAdjoint(slots=1), 1e-13),
    "slots=2": Mode(CheckpointAdjoint(slots=2), 1e-13),
    "memory, all": Mode(CheckpointAdjoint(memory="1GB"), 1e-13),
    "memory, tight": Mode(None, 1e-13),
    "offload": Mode(CheckpointAdjoint(offload="cpu"), 0.0),
    "slots=2, offload": Mode(CheckpointAdjoint(slots=2, offload="cpu"), 1e-13),
    "reversible": Mode(ReversibleAdjoint(COUPLING), 1e-9, StoredReversible()),
    "backsolve": Mode(BacksolveAdjoint(), 1e-9),
    "compiled": Mode(CheckpointAdjoint(), 1e-13, compile=Compile(steps=2, backend="aot_eager")),
}
ON_GRIDS = ("memory, all", "memory, tight", "reversible", "compiled")
REFUSALS = "modified by an inplace operation|through the graph a second time|saved tensor hooks|came out differently|second derivative"


@dataclass(frozen=True)
class Case:
    """``solves``: "one", two in a row ("chained"), or two with a pass backward each ("rounds"); ``second``: a second derivative;
    ``module``: f is a module that holds net, instead of a function."""

    place: str
    act: str
    mode: str = "checkpoint"
    method: str = "euler"
    steps: int | None = 3
    t: tuple[float, ...] = (0.0, 1.0)
    solves: str = "one"
    second: bool = False
    module: bool = False
    seed: int = 0


@dataclass
class Outcome:
    """What came out, values and gradients; what the world was like afterwards; the error that ended it."""

    values: dict[str, Tensor | None] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


class Field(nn.Module):
    def __init__(self, net: nn.Module, slope: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.slope = net, slope

    def forward(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        return self.slope(self.net, t, y, *args)


class World:
    """Everything of one run, made anew from the seed."""

    def __init__(self, case: Case, caching: bool = True) -> None:
        self.case, self.act, self.place = case, ACTS[case.act], PLACES[case.place]
        torch.manual_seed(case.seed)
        self.x = torch.randn(3, 3, dtype=self.act.dtype, requires_grad=True)
        self.net, self.y0 = nn.Linear(3, 3, dtype=self.act.dtype), self.x + 0.1
        self.value, leaves = self.act.start(self.y0, self.net)
        self.hidden = self.place.make(self.value)
        named = {f"net.{name}": p for name, p in self.net.named_parameters()}
        named |= {f"leaf {i}": p for i, p in enumerate(leaves if self.hidden.leaves is None else self.hidden.leaves)}
        self.leaves = {"x": self.x, **named}
        slope = _slope(self.act, self.hidden, caching)
        self.f = Field(self.net, slope) if case.module else (lambda net: lambda *inputs: slope(net, *inputs))(self.net)

    def forward(self, y: Tensor, adjoint: Adjoint, compile: bool | Compile) -> Tensor:
        grid: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2} if self.case.steps is None else {"steps": self.case.steps}
        if self.case.steps is None and "hook" in self.case.act:  # tanh of a gradient is not the sum of those of its parts
            grid["hit"] = "exact"
        with self.act.around():
            return odeint(self.f, y, self.case.t, method=self.case.method, args=self.hidden.args, adjoint=adjoint, compile=compile, **grid)

    def extra(self) -> Tensor | None:
        kept = self.hidden.get(*self.hidden.args) if self.act.extra else None
        return None if kept is None or kept == [] else 100 * self.act.extra(kept)  # pyright: ignore[reportOptionalCall]

    def held(self) -> dict[str, Any]:
        """What must be afterwards as "direct" leaves it."""
        value = self.hidden.get(*self.hidden.args) if self.hidden.state is None else self.hidden.state
        return {"random": torch.get_rng_state(), "place": _copied(value) if self.act.held else None}

    def constant(self) -> dict[str, Any]:
        """What no pass backward touches: version counters of leaves, the very objects that are attributes of modules."""
        value = self.hidden.get(*self.hidden.args) if self.place.attribute else None
        own = id(value) if isinstance(value, (Tensor, nn.Module)) else None
        return {"versions": {name: leaf._version for name, leaf in self.leaves.items()}, "object": own}


def _slope(act: Act, hidden: Hidden, caching: bool) -> Callable[..., Tensor]:
    """f, which sees of the place what it needs."""
    get, put, once = hidden.get, hidden.put if act.rebinds else None, hidden.once if caching else lambda make: make()

    def cached(make: Callable[[], Any], *args: Any) -> Any:
        if (value := get(*args)) is None:
            value = make()
            put(value)  # pyright: ignore[reportOptionalCall]
        return value

    def slope(net: nn.Module, t: Tensor, y: Tensor, *args: Any) -> Tensor:
        keep = once or (lambda make: cached(make, *args))
        return act.slope(Call(t, y, net, lambda: get(*args), put, keep))  # pyright: ignore[reportArgumentType]

    return slope


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module):
        flags = {name: (module.training, [p.requires_grad for p in module.parameters()]) for name, module in value.named_modules()}
        return {**{name: tensor.clone() for name, tensor in value.state_dict().items()}, "flags": str(flags)}
    if isinstance(value, torch.Generator):
        return value.get_state()
    return value if isinstance(value, (int, float)) else None


def run(case: Case, adjoint: Adjoint, change: bool = True, compile: bool | Compile = False, caching: bool = True) -> Outcome:
    """One run; ``change``: with what happens between the passes; ``caching``: what f would keep is kept, not made again."""
    dtype, outcome = torch.get_default_dtype(), Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = World(case, caching)
        try:
            for number in range(2 if case.solves == "rounds" else 1):
                _round(world, adjoint, change, compile, number, outcome)
        except (ValueError, RuntimeError, TypeError, AttributeError, KeyError, AssertionError) as error:
            outcome.error = error
        finally:
            outcome.held |= world.held()
            torch.set_default_dtype(dtype)
    return outcome


def _round(world: World, adjoint: Adjoint, change: bool, compile: bool | Compile, number: int, outcome: Outcome) -> None:
    case, act = world.case, world.act
    ys = world.forward(world.y0, adjoint, compile)
    if case.solves == "chained" or act.amid is not None:
        if act.amid is not None:
            act.amid(world.hidden, world.value)
        ys = torch.cat([ys, world.forward(ys[-1], adjoint, compile)])
    loss = (ys * torch.linspace(-1, 2, ys.numel(), dtype=ys.dtype).reshape(ys.shape)).sum()
    extra = world.extra()
    if extra is not None and not act.later:
        loss = loss + extra
    tracked = None if extra is None else torch.tensor(float(extra.requires_grad))
    outcome.values |= {f"states {number}": ys.detach().clone(), f"extra {number}, whether it has a history": tracked}
    outcome.values[f"extra {number}"] = None if extra is None else extra.detach().clone()
    if change and act.between is not None:
        act.between(world.hidden, world.value)
    before = world.constant()
    act.backward(lambda: _pulled(world, loss, outcome))
    if act.later and extra is not None:
        outcome.values["extra later"] = world.extra().detach()  # pyright: ignore[reportOptionalMemberAccess]
        world.extra().backward()  # pyright: ignore[reportOptionalMemberAccess]
    if (after := world.constant()) != before:
        outcome.held["touched"] = f"{before} became {after}"
    outcome.values |= {f"gradient of {name}": None if p.grad is None else p.grad.clone() for name, p in world.leaves.items()}


def _pulled(world: World, loss: Tensor, outcome: Outcome) -> None:
    if not world.case.second:
        return loss.backward(retain_graph=world.act.later)
    wanted = [leaf for leaf in world.leaves.values() if leaf.requires_grad]
    first = [g for g in torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True) if g is not None]
    outcome.values |= {f"first {i}": g.detach().clone() for i, g in enumerate(first)}
    square = torch.stack([g.square().sum() for g in first]).sum()
    if square.requires_grad:
        square.backward()


def difference(found: Outcome, right: Outcome, tolerance: float, forward: float | None = 0.0, gradients: bool = True) -> str | None:
    """The first thing that is not as it should be: relative to the largest gradient, and for the pass ``forward`` to the largest state."""
    for what, allowed in ((False, forward), (True, tolerance if gradients else None)):
        pairs = {
            name: (found.values.get(name), right.values.get(name))
            for name in {**right.values, **found.values}
            if allowed is not None and name.startswith(("states", "extra")) != what
        }
        largest = max((b.abs().nan_to_num(0, 0).max().item() for _, b in pairs.values() if b is not None), default=0.0)
        for name, (a, b) in pairs.items():
            if a is not None or b is not None:
                a, b = (torch.zeros_like(b if a is None else a) if x is None else x for x in (a, b))  # pyright: ignore
                if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=(allowed or 0.0) * largest, equal_nan=True):
                    return f"{name} is {_short(a)} instead of {_short(b)}"
    return None


def disturbed(case: Case, found: Outcome, right: Outcome) -> str | None:
    """What of the world is not as it should be afterwards; what f rebinds outside modules is its own business."""
    if "touched" in found.held and "touched" not in right.held:
        return f"the pass backward touched what is not its own: {found.held['touched']}"
    for name in ("random", *(("place",) if PLACES[case.place].attribute or not ACTS[case.act].rebinds else ())):
        a, b = found.held[name], right.held[name]
        for what, one, two in [(f"{name}, {key}", a[key], b[key]) for key in b] if isinstance(b, dict) else [(name, a, b)]:
            if not (torch.equal(one, two) if isinstance(one, Tensor) and isinstance(two, Tensor) else one == two):
                return f"afterwards {what} is {_short(one)} instead of {_short(two)}"
    return None


def _short(value: Any) -> str:
    return str(value.flatten()[:9].tolist()) if isinstance(value, Tensor) else repr(value)


def result(case: Case, mode: Mode) -> Outcome:
    """Under the mode's adjoint; for the tight budget that of the least power of two that holds a schedule."""
    if mode.compile:
        torch._dynamo.reset()
    if mode.adjoint is not None:
        return run(case, mode.adjoint, compile=mode.compile)
    budgets = (run(case, CheckpointAdjoint(memory=2**power)) for power in range(7, 30))
    return next(outcome for outcome in budgets if "smallest schedule" not in str(outcome.error))


@lru_cache(maxsize=256)
def oracles(case: Case, oracle: Adjoint) -> tuple[Outcome, Outcome]:
    """With and without what happens between the passes."""
    changed = run(case, oracle)
    return changed, changed if ACTS[case.act].between is None else run(case, oracle, change=False)


def steady(case: Case, changed: Outcome) -> Outcome:
    """What the reverse solve gives where f is handed all it uses and nothing changes: not exact, but a gradient of all that wants one."""
    case = case if PLACES[case.place].own else replace(case, place="nested args")
    found = run(case, BacksolveAdjoint(), change=False, caching=False)
    wanted = {name: value for name, value in found.values.items() if changed.error is not None or changed.values.get(name) is not None}
    return replace(found, values=wanted)


def plain(case: Case) -> Case:
    """Where the oracle looks: the same happening in a list, unless the place or error control, which tries steps, matters."""
    same = case.steps is None or PLACES[case.place].own
    return replace(case, place=case.place if same else PLAIN, mode="")


def verdict(case: Case, mode: Mode) -> tuple[str, str]:
    """Whether it is "exact", "refused", "wrong" or "nothing" (where the oracle itself has no result), and why."""
    act, inexact = ACTS[case.act], isinstance(mode.adjoint, BacksolveAdjoint)
    found = result(case, mode)
    changed, unchanged = oracles(plain(case), mode.oracle)
    if unchanged.error is not None:
        return "nothing", f"the oracle raises {unchanged.error!r}"
    if found.error is not None:
        return _refused(found.error, act)
    rounded = "torch.func" in case.act or "TorchScript" in case.act  # served as slots are, hooks being refused; other code after two runs
    own = max(mode.tolerance, 1e-13) if rounded else mode.tolerance
    tolerance = own * torch.finfo(act.dtype).eps / torch.finfo(torch.float64).eps
    rights = [unchanged] if changed.error is not None else [unchanged, changed]
    differences = [
        difference(found, right, tolerance, tolerance if mode.compile else 0.0, not inexact and case.mode not in act.blind)
        for right in rights
    ]
    if inexact and case.mode not in act.blind and act.extra is None and None in differences:
        differences = [difference(found, steady(case, changed), tolerance, None)]
    if None not in differences:
        return "wrong", str(differences[0])
    harm = disturbed(case, found, changed)
    return ("exact", "") if harm is None else ("wrong", harm)


def _refused(error: Exception, act: Act) -> tuple[str, str]:
    known = f"{REFUSALS}|element 0 of tensors does not require grad" if act.later else REFUSALS
    if isinstance(error, ValueError) or (isinstance(error, RuntimeError) and re.search(known, str(error))):
        return "refused", str(error)
    return "wrong", f"{type(error).__name__}: {error}"


@cache
def possible(place: str, act: str) -> bool:
    """Whether the place holds such values, and lets them be written."""
    where, what = PLACES[place], ACTS[act]
    if what.kind not in where.kinds:
        return False
    made = where.make(what.start(torch.zeros(3, 3, dtype=torch.float64), nn.Linear(3, 3, dtype=torch.float64))[0])
    return not what.sets or made.put is not None or (what.once and made.once is not None)


def complaint(case: Case) -> str | None:
    """What is wrong with the case, and all that is needed to see it again."""
    kind, why = verdict(case, MODES[case.mode])
    must = ACTS[case.act].must and PLACES[case.place].seen and not case.second
    if kind == "wrong" or (kind == "refused" and must):
        return f"check({case}) is {kind}{', though what f uses can be seen' if kind == 'refused' else ''}: {why}"
    return None


def check(*cases: Case) -> None:
    """AssertionError with the complaints."""
    complaints = [text for case in cases if (text := complaint(case)) is not None]
    assert not complaints, f"{len(complaints)} of {len(cases)}:\n" + "\n".join(complaints)
