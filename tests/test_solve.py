from __future__ import annotations

import warnings
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import DirectAdjoint, odeint, solve
from anodev2.checks import warn_of_instability
from anodev2.pde import Diffusion, Grid1D
from anodev2.solvers import as_method
from anodev2.stepping import uniform_grid
from problems import MLP, Pendulum, pendulum_state


def decay(t: Tensor, y: Any) -> Any:
    return -y


def test_result_is_stacked_over_times_and_starts_with_y0() -> None:
    y0 = torch.rand(3, 2)
    ys = odeint(decay, y0, [0.0, 0.5, 2.0], steps=4)
    assert ys.shape == (3, 3, 2) and torch.equal(ys[0], y0)


def test_trees_keep_structure_shapes_and_dtypes() -> None:
    state = {"a": torch.rand(2, dtype=torch.float64), "b": (torch.rand((), dtype=torch.float32), [torch.rand(3, dtype=torch.complex64)])}

    def f(t: Tensor, y: Any) -> Any:
        return {"b": (-y["b"][0], [1j * y["b"][1][0]]), "a": t * y["a"]}

    for adjoint in ("direct", "checkpoint"):
        for t in ([0.0, 1.0], torch.tensor([0.0, 1.0], requires_grad=True)):
            ys = odeint(f, state, t, steps=3, adjoint=adjoint)
            assert isinstance(ys["b"], tuple) and isinstance(ys["b"][1], list)
            assert ys["a"].dtype == torch.float64 and ys["a"].shape == (2, 2)
            assert ys["b"][0].dtype == torch.float32 and ys["b"][0].shape == (2,)
            assert ys["b"][1][0].dtype == torch.complex64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_leaf_keeps_its_dtype_whatever_f_returns(dtype: torch.dtype) -> None:
    ys = odeint(lambda t, y: -y.double(), torch.ones(3, dtype=dtype), [0.0, 1.0], steps=10)
    assert ys.dtype == dtype
    torch.testing.assert_close(ys[-1].double(), torch.full((3,), 0.36788).double(), rtol=0.05, atol=0)


def test_steps_and_stages_are_integers_over_the_whole_solve() -> None:
    seen: list[tuple[int, int, float]] = []

    def f(t: Tensor, y: Tensor, *, step: int, stage: int) -> Tensor:
        seen.append((step, stage, t.item()))
        return -y

    odeint(f, torch.ones(1), [0.0, 1.0, 3.0], steps=2, method="midpoint")
    assert [(step, stage) for step, stage, _ in seen] == [(k, i) for k in range(4) for i in range(2)]
    assert [t for _, _, t in seen] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5]


def test_rising_then_falling_returns() -> None:
    y0 = torch.rand(4, dtype=torch.float64)
    f = lambda t, y: torch.cos(t) * y
    there = odeint(f, y0, [0.0, 2.0], steps=50)[-1]
    back = odeint(f, there, [2.0, 0.0], steps=50)[-1]
    torch.testing.assert_close(back, y0, rtol=1e-6, atol=0)


def test_step_size_and_steps_agree() -> None:
    y0 = torch.rand(4)
    assert torch.equal(odeint(decay, y0, [0.0, 1.0], steps=10), odeint(decay, y0, [0.0, 1.0], step_size=0.1))


def test_args_may_be_nested_and_hold_anything() -> None:
    scale = torch.tensor(2.0)
    f = lambda t, y, options, net: -options["scale"][0] * net(y) if options["on"] else y
    ys = odeint(f, torch.ones(2), [0.0, 1.0], steps=10, args=({"scale": (scale,), "on": True, "note": None}, nn.Identity()))
    torch.testing.assert_close(ys[-1], torch.full((2,), 0.135335), rtol=1e-3, atol=0)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint"])
@pytest.mark.parametrize(("method", "stages"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_evaluations_are_n_stages_forward_and_again_backward_only_where_recomputed(adjoint: str, method: str, stages: int) -> None:
    net, calls = MLP(), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    net.register_forward_pre_hook(count)
    ys = odeint(net, torch.rand(2, 4, dtype=torch.float64), [0.0, 0.4, 1.0], steps=5, method=method, adjoint=adjoint)
    assert calls == 10 * stages
    ys.sum().backward()
    assert calls == (20 if adjoint == "checkpoint" else 10) * stages


def test_without_gradients_nothing_is_stored_or_recomputed() -> None:
    state = pendulum_state()
    with torch.no_grad():
        assert not odeint(Pendulum(), state, [0.0, 1.0], steps=3)["q"].requires_grad
    with torch.inference_mode():
        assert odeint(Pendulum(), state, [0.0, 1.0], steps=3)["q"].is_inference()
    assert not odeint(decay, torch.ones(2), [0.0, 1.0], steps=3).requires_grad


class dict_subclass(dict):
    pass


class Half(nn.Module):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y[:1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"func": 3}, TypeError, "func must be callable"),
        ({"y0": 1.0}, TypeError, r"y0 must be made of tensors, got float"),
        ({"y0": ()}, ValueError, "y0 holds no tensor"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, TypeError, r"torch.int64; write y0.float\(\)"),
        ({"args": [1]}, TypeError, r"args must be a tuple, got list"),
        ({"adjoint": "backsolve?"}, ValueError, r"adjoint='backsolve\?'.*'direct', 'checkpoint'"),
        ({"method": ["rk4"]}, ValueError, r"method=\['rk4'\]"),
        ({"t": "ab"}, TypeError, "t must be a sequence"),
        ({"y0": dict_subclass(y=torch.ones(2))}, TypeError, "got dict_subclass"),
        ({"adjoint": DirectAdjoint}, ValueError, "pass an Adjoint object"),
        ({"method": "rk5"}, ValueError, r"method='rk5' is unknown \(did you mean 'rk4'\?\); choose one of euler, .*leapfrog"),
        ({"adjoint": "chekpoint"}, ValueError, r"adjoint='chekpoint' is unknown \(did you mean 'checkpoint'\?\)"),
        ({"func": lambda t, y: None}, TypeError, "func returned None"),
        ({"func": lambda y: -y}, TypeError, r"func must be callable as func\(t, y\), got func\(y\)"),
        ({"args": (1.0,)}, TypeError, r"func must be callable as func\(t, y, args\[0\]\), got func\(t.*y"),
        ({"t": "01"}, TypeError, "t must be a sequence of times"),
        ({"adjoint": DirectAdjoint, "steps": 2}, ValueError, r"DirectAdjoint is a class.*DirectAdjoint\(\)"),
        ({"control": {"min_step": 0.1}, "steps": None, "method": "dopri5"}, TypeError, "control must be a Control, got dict"),
        ({"y0": OrderedDict(a=torch.ones(2))}, TypeError, r"got OrderedDict; write dict\(y0\)"),
        ({"steps": -1}, ValueError, "steps=-1 must be a positive integer"),
        ({"t": [1.0, 0.0, 2.0]}, ValueError, "strictly rising or strictly falling"),
        ({"grid": [0.0, 0.5, 1.0]}, ValueError, "give either grid or steps"),
        ({"rtol": 1e-3}, ValueError, "rtol asks for error control, steps for a grid"),
        ({"steps": None}, ValueError, "steps=10"),
        ({"func": Half()}, ValueError, r"shape \(1,\) for a leaf of y0 of shape \(2,\)"),
        ({"func": lambda t, y: (y, y)}, ValueError, "structure of y0"),
        ({"func": lambda t, y: 0.0}, TypeError, "got float"),
        ({"func": lambda t, y: 1j * y}, TypeError, "complex64.*cannot hold"),
        ({"y0": (torch.ones(2), torch.ones(2)), "func": lambda t, y: y[0]}, ValueError, r"expected tuple\(0, 1\), got leaf"),
    ],
)
def test_user_mistakes_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"func": decay, "y0": torch.ones(2), "t": [0.0, 1.0], "steps": 2, **change}
    with pytest.raises(error, match=message):
        odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)


def test_adjoints_may_be_objects() -> None:
    assert odeint(decay, torch.ones(2), [0.0, 1.0], steps=2, adjoint=DirectAdjoint()).shape == (2, 2)


@pytest.mark.parametrize("options", [{"steps": 3}, {"method": "dopri5"}], ids=["grid", "adaptive"])
def test_inference_mode(options: dict[str, Any]) -> None:
    with torch.inference_mode():
        assert odeint(decay, torch.ones(2), [0.0, 1.0], **options).is_inference()
        assert solve(decay, torch.ones(2), [0.0, 1.0], **options).ys.is_inference()


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", "reversible"])
def test_a_func_that_changes_its_state_in_place_is_refused_without_gradients_too(adjoint: str) -> None:
    y0 = torch.ones(3)
    with torch.no_grad(), pytest.raises(ValueError, match=r"in place; work on y.clone\(\)"):
        odeint(lambda t, y: y.mul_(-1.0), y0, [0.0, 1.0], steps=2, adjoint=adjoint)


@pytest.mark.filterwarnings("ignore:.*torch._dynamo")
def test_solve_is_refused_while_compiling() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda y: solve(decay, y, [0.0, 1.0], steps=2, event=lambda t, y: y.sum() - 1).ys, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="compile odeint, or call solve outside"):
        run(torch.ones(2))


def test_a_reversible_solve_is_observed_too() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    found = solve(decay, y0, [0.0, 1.0], steps=20, event=lambda t, y: y[0] - 0.5, adjoint="reversible")
    assert found.event_time is not None and found.event_time.item() == pytest.approx(0.693147, rel=1e-5)
    assert torch.autograd.grad(found.event_time, y0)[0][0].item() == pytest.approx(1.0, rel=1e-4)
    assert (
        found.stats.recomputed == len(found.grid) - 2 and solve(decay, y0, [0.0, 1.0], steps=9, max_steps=3, throw=False).status.step == 3
    )


@pytest.mark.parametrize(
    "change", [lambda t: t.add_(1.0), lambda t: t.unsqueeze_(0), lambda t: t.requires_grad_()], ids=["value", "shape", "flag"]
)
@pytest.mark.parametrize("adjoint", ["direct", "checkpoint", "reversible"])
def test_what_f_does_to_its_time_is_its_own_business(change: Any, adjoint: str) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        slope = y * t.detach().clone()
        change(t)
        return slope

    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    ends = []
    for func in (f, lambda t, y: y * t):
        y = odeint(func, y0, [0.0, 1.0], method="rk4", steps=4, adjoint=adjoint)[-1]
        ends.append([y, *torch.autograd.grad(y.sum(), y0)])
    assert all(map(torch.equal, *ends))


def test_on_a_gpu_a_changed_coefficient_is_not_judged_by_its_old_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    equation: Any = Diffusion(Grid1D(16), nn.Parameter(torch.tensor(1.0)))
    asked: list[float] = []
    own = equation.max_stable_step
    monkeypatch.setattr(equation, "max_stable_step", lambda method: (asked.append(float(equation.diffusivity)), own(method))[1])
    euler, there = as_method("euler"), SimpleNamespace(is_cuda=True)
    grid = uniform_grid([0.0, own(euler)], 1)

    def warned() -> bool:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warn_of_instability(equation, euler, grid, [there])  # pyright: ignore[reportArgumentType]
        return bool(seen)

    def becomes(value: float) -> None:
        with torch.no_grad():
            equation.diffusivity.fill_(value)

    with torch.no_grad():
        for value in (1.0, 2.0, 2.0, 0.5, 3.0):
            becomes(value)
            assert warned() is (value > 1)
            assert warned() is (value > 1) and asked[-1] == value
        equation.diffusivity = nn.Parameter(torch.tensor(0.5))  # another of the same version
        assert not warned()
    count = len(asked)
    for change in range(100):  # in training
        becomes(0.5 + change)
        warned()
    assert 3 < len(asked) - count < 8
