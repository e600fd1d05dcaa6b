"""Control(refresh=k): steps are found by error control in every k-th call and taken by those between."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CheckpointAdjoint, Compile, Control, SolveError, odeint, solve
from anodev2.integrate import refreshed

OPTIONS: dict[str, Any] = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-6}
EVERY_3 = Control(refresh=3)


class Field(nn.Module):
    """A network; ``speed`` sets how many steps it needs."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)).double()
        self.speed = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(3, dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.speed * self.net(y) * torch.cos(self.speed * t)


def start(batch: int = 4) -> Tensor:
    return torch.linspace(-1, 1, 3 * batch, dtype=torch.float64).reshape(batch, 3).requires_grad_()


def steps(f: Any, y0: Tensor, control: Control | None = EVERY_3, t: Any = (0.0, 1.0), **more: Any) -> tuple[float, ...]:
    with torch.no_grad():
        return solve(f, y0, t, control=control, **{**OPTIONS, **more}).grid


def test_every_third_call_finds_the_steps_anew() -> None:
    """As an adaptive solve finds them at that moment, whatever changes between."""
    f, y0 = Field(), start()
    own, taken = [], []
    for call in range(4):
        with torch.no_grad():
            f.speed.fill_(2.0 + call)
        own.append(steps(f, y0, None))
        taken.append(steps(f, y0))
    assert len(set(own)) == 4
    assert taken == [own[0]] * 3 + [own[3]]


def test_shapes_times_tolerances_and_methods_have_grids_of_their_own() -> None:
    f = Field()
    first = steps(f, start())
    with torch.no_grad():
        f.speed.fill_(9.0)
    assert steps(f, start()) == first
    others: list[dict[str, Any]] = [{"y0": start(5)}, {"t": (0.0, 2.0)}, {"rtol": 1e-7}, {"method": "tsit5"}]
    for more in others:
        y0 = more.pop("y0", start())
        assert steps(f, y0, **more) == steps(f, y0, None, **more) != first
    assert steps(copy.deepcopy(f), start()) == steps(f, start(), None) != first, "a copy begins anew"
    assert set(f.state_dict()) == set(Field().state_dict())
    assert steps(f, start()) == first
    methods = Field(), Field()
    with torch.no_grad():
        methods[1].speed.fill_(9.0)
    assert steps(methods[0].forward, start()) != steps(methods[1].forward, start()), "methods of two modules"


ADJOINTS = ["checkpoint", "direct", CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MB"), "reversible"]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_gradients_are_those_of_the_grid_taken(adjoint: Any) -> None:
    """In the call that finds the steps and in one that takes them, with the times' own."""
    f, y0, t = Field(), start(), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"method": "dopri5", "adjoint": adjoint}
    grid: Any = None
    for speed in (2.0, 5.0):
        with torch.no_grad():
            f.speed.fill_(speed)
        control: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6, "hit": "exact"}
        grid = grid or steps(f, y0, None, t.tolist(), **dict(control))
        ends = []
        for more in ({"grid": grid}, {**control, "control": Control(refresh=2)}):
            ys = odeint(f, y0, t, **options, **more)
            ends.append((ys.detach(), *torch.autograd.grad(ys.sin().sum(), [y0, t, f.speed, *f.net.parameters()])))
        for one, other in zip(*ends, strict=True):
            assert torch.equal(one, other)


@pytest.mark.slow
def test_error_control_and_compiled_steps_in_one_training_loop() -> None:
    """The losses and gradients of the same loop without compilation, and of one whose steps are found by error control alone."""
    losses: list[list[float]] = []
    ways: list[dict[str, Any]] = [
        {"control": EVERY_3, "compile": Compile(steps=4, backend="aot_eager")},
        {"control": EVERY_3},
        {},
    ]
    for more in ways:
        f, y0 = Field(), start()
        optimizer, own = torch.optim.SGD(f.parameters(), lr=0.05), []
        for _ in range(5):
            loss = odeint(f, y0, [0.0, 1.0], **OPTIONS, **more)[-1].square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses.append(own)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12) and losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_looking_for_steps_leaves_no_trace() -> None:
    """Random numbers and statistics move as on the given grid."""
    outcomes: list[tuple[float, float]] = []
    ways: list[dict[str, Any]] = [{"rtol": 1e9, "atol": 1e9, "control": EVERY_3}, {"grid": [0.0, 0.5, 1.0]}]
    for more in ways:
        f = Field()
        g = lambda t, y, f=f: f.norm(y) * torch.cos(t)
        torch.manual_seed(0)
        count = solve(g, start(), [0.0, 1.0], method="bosh3", **more).stats.accepted
        outcomes.append((f.norm.state_dict()["num_batches_tracked"].item() / count, torch.rand(1).item()))
    assert outcomes[0] == outcomes[1] and outcomes[0][0] == 3


def test_threads_and_the_end_of_a_func() -> None:
    f, y0, found = Field(), start(), list[tuple[float, ...]]()
    expected = steps(f, y0, None)
    watch = lambda f=f: found.append(steps(f, y0, Control(refresh=1000)))
    threads = [threading.Thread(target=watch) for _ in range(6)]
    for act in (threading.Thread.start, threading.Thread.join):
        list(map(act, threads))
    assert found == [expected] * 6
    gc.collect()
    gone, kept = weakref.ref(f), len(refreshed._KEPT)
    del f, threads, watch
    gc.collect()
    assert gone() is None and len(refreshed._KEPT) == kept - 1


def test_many_shapes_do_not_pile_up() -> None:
    f = Field()
    for batch in range(1, 20):
        steps(f, start(batch))
    assert len(refreshed._KEPT[f].grids) == refreshed.GRIDS


def test_a_search_that_fails_fails_as_the_solve_does() -> None:
    for limit, reason in ((5, "max_steps"), (None, "step size")):
        for control in (None, EVERY_3):
            found = solve(lambda t, y: y**2, torch.ones(1).double(), [0.0, 2.0], **OPTIONS, control=control, max_steps=limit, throw=False)
            assert found.status.reason == reason
    with pytest.raises(SolveError):
        odeint(lambda t, y: y**2, torch.ones(1).double(), [0.0, 2.0], **OPTIONS, control=EVERY_3)


REFUSED: list[tuple[Any, str]] = [
    (lambda: Control(refresh=0), "refresh"),
    (lambda: odeint(Field(), start(), [0.0, 1.0], **OPTIONS, control=EVERY_3, per_sample=True), "leave Control"),
    (lambda: solve(Field(), start(), [0.0, 1.0], **OPTIONS, control=EVERY_3, event=lambda t, y: y[0, 0]), "leave refresh out"),
    (lambda: torch.func.vmap(lambda y: odeint(lambda t, y: -y, y, [0.0, 1.0], **OPTIONS, control=EVERY_3))(start()), "give grid="),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_take_recorded_steps_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@dataclass
class Two:
    """Equal to any of its kind with the same speed, and without a hash; of one object, two methods."""

    speed: float = 1.0

    def slow(self, t: Tensor, y: Tensor) -> Tensor:
        return -y * self.speed

    def fast(self, t: Tensor, y: Tensor) -> Tensor:
        return 50 * torch.cos(50 * t) - y * self.speed


class Same:
    """Whatever its speed, equal to any other."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.speed * torch.cos(self.speed * t) - y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same)

    def __hash__(self) -> int:
        return 1


def scaled(speed: float, t: Tensor, y: Tensor) -> Tensor:
    return Same(speed)(t, y)


def closed(speed: Any) -> Any:
    return lambda t, y: scaled(sum(speed) if isinstance(speed, list) else speed, t, y)


def with_default(speed: float) -> Any:
    def field(t: Tensor, y: Tensor, *, speed: float = speed) -> Tensor:
        return scaled(speed, t, y)

    return field


def logged(func: Any) -> Any:
    @functools.wraps(func)
    def inner(t: Tensor, y: Tensor) -> Tensor:
        return func(t, y)

    return inner


TWO = Two()
PAIRS = {
    "closures": (closed(1.0), closed(50.0)),
    "closures of lists": (closed([1.0]), closed([20.0, 30.0])),
    "closures of tensors": (closed(torch.tensor(1.0)), closed(torch.tensor(50.0))),
    "defaults": (with_default(1.0), with_default(50.0)),
    "decorated": (logged(closed(1.0)), logged(closed(50.0))),
    "methods": (TWO.slow, TWO.fast),
    "partials": (partial(scaled, 1.0), partial(scaled, 50.0)),
    "equal": (Same(1.0), Same(50.0)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_no_two_funcs_share_a_grid(pair: str) -> None:
    """However alike they are; each keeps its own."""
    own = [steps(f, start(), None) for f in PAIRS[pair]]
    assert [steps(f, start()) for f in PAIRS[pair] * 2] == own * 2 and own[0] != own[1]
    others = [steps(f, start(), Control(refresh=3), t=(0.0, 0.5)) for f in PAIRS[pair]]
    assert others[0] != others[1]
    assert len({id(refreshed._KEPT[refreshed._holder(f)[0]]) for f in PAIRS[pair]}) == 1 + (pair in ("partials", "equal"))


def test_a_function_made_anew_around_the_same_things_keeps_its_grid() -> None:
    f, scale = Field(), 0.5
    make = lambda: lambda t, y, more=(scale, "x"): more[0] * f(t, y)
    found = [solve(make(), start(), [0.0, 1.0], **OPTIONS, control=EVERY_3) for _ in range(4)]
    assert [one.stats.rejected for one in found[1:3]] == [0, 0] and len({one.grid for one in found}) == 1
    assert found[1].stats.evaluations_forward == found[2].stats.evaluations_forward < found[0].stats.evaluations_forward


def test_what_takes_no_weak_reference_is_refused() -> None:
    class Slots:
        __slots__ = ()

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

    with pytest.raises(TypeError, match="__weakref__"):
        steps(Slots(), start())
