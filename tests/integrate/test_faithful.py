"""A gradient is that of adjoint="direct", or there is an error: places to hide state x what happens to it x ways to differentiate.

After the pass backward the world is as "direct" leaves it: statistics have moved once, attributes and random generators are as they were.
What f keeps in Python containers of its own cannot be put back when a step is redone; there the gradient alone is promised.
``check(Case(...))``, as a failure prints it, runs one case again.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anodev2 import Adjoint
from anodev2.problem import Problem, Run
from anodev2.solvers import Leaves
from anodev2.stepping import Grid
from tests.faithful import MODES, ON_GRIDS, Case, Mode, check, oracles, plain, possible, verdict
from tests.happening import ACTS
from tests.hiding import PLACES


@pytest.fixture(scope="module", autouse=True)
def nothing_old_to_collect() -> Iterator[None]:
    """An adjoint may look for garbage before it refuses; what other tests left need not be walked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


REDOING = [mode for mode in MODES if mode not in ("reversible", "backsolve", "compiled")]
ROUNDS = 5  # of all acts: with modes that redo steps, with the two that go back in time, and twice more with the first


def drawn(seed: int) -> Case:
    """A case for each seed; acts take turns, and so do kinds of modes."""
    draw, acts = random.Random(seed), list(ACTS)
    act, kind = acts[seed % len(acts)], seed // len(acts) % ROUNDS
    mode = ("reversible", "backsolve")[kind - 1] if kind in (1, 2) else draw.choice(REDOING)
    adaptive = mode not in ON_GRIDS and draw.random() < 0.2
    case = Case(
        place=draw.choice([place for place in PLACES if possible(place, act)]),
        act=act,
        mode=mode,
        method=draw.choice(["dopri5", "bosh3"] if adaptive else ["euler", "midpoint", "heun2", "rk4", "dopri5"]),
        steps=None if adaptive else draw.randint(1, 6),
        t=draw.choice([(0.0, 1.0), (0.0, 0.3, 1.0)]),
        solves=draw.choice(["one", "one", "chained", "rounds"]),
        second=mode in ("checkpoint", "offload") and draw.random() < 0.25,
        module=draw.random() < 0.5,
        seed=seed,
    )
    again = ACTS[act].between or not ACTS[act].held or (ACTS[act].rebinds and not PLACES[case.place].attribute)
    case = replace(case, solves="one") if again and case.solves == "rounds" else case  # what cannot be put back shows in the second round
    return case if oracles(plain(case), MODES[mode].oracle)[1].error is None else replace(case, solves="one", second=False)


@pytest.mark.parametrize("place", ["closure", "module attribute", "child module"])
def test_second_derivatives(place: str) -> None:
    check(*(Case(place, act, second=True) for act in ACTS if possible(place, act)))


COMPILED = [
    Case("closure", "read a leaf", "compiled"),
    Case("weak reference", "read a module", "compiled"),
    Case("child module", "written BatchNorm", "compiled"),
    Case("closure", "written running statistics", "compiled"),
    Case("module attribute", "written penalty replaced", "compiled"),
    Case("module attribute", "cached kernel", "compiled"),
    Case("module attribute", "changed flag that detaches", "compiled"),
    Case("dict", "changed constant, in place", "compiled"),
    Case("child module", "drawn Dropout", "compiled"),
]


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.act)
def test_compiled_runs_are_no_less_faithful(case: Case) -> None:
    check(replace(case, steps=4))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["closure", "UserDict", "module attribute", "args"])
def test_compiled_runs_of_all_acts(place: str) -> None:
    check(*(Case(place, act, "compiled", steps=4) for act in ACTS if possible(place, act)))


def product(place: str, quick: bool) -> list[Case]:
    """What may happen in the place by default. Quick: all to attributes of modules; elsewhere a third, another one in the next place."""
    own, all_of_it = list(PLACES).index(place), PLACES[place].attribute
    numbered = [(number, act) for number, act in enumerate(ACTS) if possible(place, act)]
    return [Case(place, act) for number, act in numbered if (all_of_it or (own + number) % 3 == 0) == quick]


@pytest.mark.parametrize("place", PLACES)
def test_whatever_happens_in_a_place(place: str) -> None:
    check(*product(place, quick=True))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_whatever_else_happens_in_a_place(place: str) -> None:
    check(*product(place, quick=False))


QUICK = 3 * len(ACTS)


@pytest.mark.parametrize("seed", range(QUICK))
def test_a_draw(seed: int) -> None:
    check(drawn(seed))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_more_draws(part: int) -> None:
    check(*map(drawn, range(QUICK + 50 * part, QUICK + 50 * part + 50)))


class _Redone(torch.autograd.Function):
    """A step whose gradient goes to the state and to some leaves, and to nothing else that it may have used."""

    @staticmethod
    def forward(ctx: Any, advance: Callable[..., tuple[Tensor, ...]], width: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.advance, ctx.width, ctx.inputs = advance, width, inputs
        return advance(*inputs[:width])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        y = [leaf.detach().requires_grad_() for leaf in ctx.inputs[: ctx.width]]
        with torch.enable_grad():
            ends = ctx.advance(*y)
        return None, None, *torch.autograd.grad(ends, [*y, *ctx.inputs[ctx.width :]], cotangents, allow_unused=True)


@dataclass(frozen=True)
class Careless(Adjoint):
    """Steps redone as the world is then: by torch's reentrant checkpoint, or with a gradient for the parameters of f alone."""

    reentrant: bool

    def solve(self, problem: Problem, y0: Leaves, args: tuple[Any, ...]) -> Run:
        grid, states, func = problem.stepping, [y0], problem.field.func
        assert isinstance(grid, Grid) and isinstance(func, nn.Module)
        for step in grid.steps():
            advance = lambda *y, step=step: tuple(problem.advance(step, list(y), args))
            if self.reentrant:
                found = checkpoint(advance, *states[-1], use_reentrant=True, preserve_rng_state=False)
            else:
                found = _Redone.apply(advance, len(y0), *states[-1], *func.parameters())
            states.append(list(found))  # pyright: ignore[reportArgumentType]
        return Run([states[index] for index in problem.outputs(grid)], grid)


HARMLESS = {
    "read a constant",
    "read a number",
    "read net's own weight",
    "written what is kept detached",
    "written number of calls",
    "written slope before",  # both told by autograd: their graph is gone
    "written penalty replaced, differentiated later",
    "cached kernel without gradient",
    "changed leaf, frozen",
}


def test_every_act_tells_careless_from_careful() -> None:
    """Each row finds something: it is wrong where steps are redone without care, but for those which are there to be allowed."""
    found = set()
    for act in ACTS:
        cases = [Case("context variable", act, module=True), Case("builtin method", act, module=True)]
        kinds = {verdict(case, Mode(Careless(reentrant), 1e-13))[0] for case, reentrant in zip(cases, (True, False), strict=True)}
        found |= {act} if "wrong" in kinds else set()
    assert set(ACTS) - found == HARMLESS
