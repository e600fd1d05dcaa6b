from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, CoupledSystem, Dynamics, FieldDynamics, NeuralDynamics, ODEBlock, odeint
from sampled import rows


class Q(nn.Module):
    def forward(self, t: Tensor, theta: Tensor, z: Tensor) -> Tensor:
        return -theta * z.mean()


@pytest.mark.parametrize(
    ("q", "reads_z"),
    [
        (lambda t, theta: -theta, False),
        (lambda t, theta, z: -theta, True),
        (lambda t, theta, rate=2.0: -rate * theta, False),
        (Q(), True),
    ],
)
def test_whether_q_reads_z_is_read_off_its_signature(q: Any, reads_z: bool) -> None:
    assert CoupledSystem(lambda t, z, theta: z, q).reads_z is reads_z


@pytest.mark.parametrize("q", [lambda t: t, lambda a, b, c, d: a, lambda *args: args[1]])
def test_a_q_that_takes_something_else_is_refused(q: Any) -> None:
    with pytest.raises(TypeError, match=r"q\(t, theta, z\)"):
        CoupledSystem(lambda t, z, theta: z, q)


NAMES = [("theta", "z"), ("w", "x"), ("p", "y"), ("params", "u"), ("weights", "h"), ("W", "state"), ("theta_t", "z_t"), ("w0", "features")]


def written(first: str, second: str, rule: str, kind: str) -> Any:
    """A function of (t, first, second), or a module or a method that is called so."""
    space: dict[str, Any] = {}
    exec(f"def function(t, {first}, {second}): return {rule}\ndef method(self, t, {first}, {second}): return {rule}", space)
    if kind == "function":
        return space["function"]
    made = type("Written", (nn.Module,), {"forward": space["method"]})()
    return made if kind == "module" else made.forward


SWAPPED = itertools.product([False, True], repeat=2)  # of f, of q


@pytest.mark.parametrize(("kind", "swapped", "names"), rows(["function", "module", "method"], SWAPPED, NAMES, quick=3))
def test_arguments_are_handed_over_as_they_are_named(kind: str, swapped: tuple[bool, bool], names: tuple[str, str]) -> None:
    """z' = -theta z, theta' = -theta / 2 from (1, 2): theta(1) = 2 exp(-1/2), z(1) = exp(-4 (1 - exp(-1/2)))."""
    theta, z = names
    f = written(*((theta, z) if swapped[0] else (z, theta)), f"-{theta} * {z}", kind)
    q = written(*((z, theta) if swapped[1] else (theta, z)), f"-0.5 * {theta} + 0 * {z}", kind)
    for options in ({}, {"reads_z": True}):
        start = torch.ones(1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)
        end = odeint(CoupledSystem(f, q, **options), start, [0.0, 1.0], steps=50)
        assert [x[-1].item() for x in end] == pytest.approx([math.exp(-4 * (1 - math.exp(-0.5))), 2 * math.exp(-0.5)], rel=1e-7)


def a_call(t: Any, a: Any, b: Any) -> Any:
    return -a + 0 * b


@pytest.mark.parametrize(
    "q",
    [
        a_call,
        lambda t, y, z: z,
        lambda t, theta, p: theta,
        lambda t, z: z,
        lambda t, theta, z=None: theta,
        lambda theta, t: theta,
        lambda z, theta, t: theta,
        lambda z, theta: theta,
        lambda w, x: w,
        lambda t, theta, *, z: theta,
    ],
)
def test_a_q_that_could_be_read_in_two_ways_is_refused(q: Any) -> None:
    with pytest.raises(TypeError, match=r"q\(.*reads_z=True|q\(t, theta(, z)?\), t first|must be callable as q\(t, theta\)"):
        CoupledSystem(lambda t, z, theta: z, q)


def test_reads_z_settles_which_argument_is_which_where_names_do_not() -> None:
    f: Callable[..., Any] = lambda t, z, theta: 0 * z
    for reads_z in (True, False):
        q = a_call if reads_z else lambda t, z: -z
        theta = odeint(CoupledSystem(f, q, reads_z=reads_z), (torch.ones(1), torch.ones(1)), [0.0, 1.0], steps=20)[1]
        assert theta[-1].item() == pytest.approx(math.exp(-1), rel=1e-4)
    with pytest.raises(TypeError, match=r"q must be callable as q\(t, theta\)"):
        CoupledSystem(f, a_call, reads_z=False)
    with pytest.raises(TypeError, match=r"q must be callable as q\(t, theta, z\)"):
        CoupledSystem(f, lambda t, theta: theta, reads_z=True)
    for wrong in (lambda t, z: z, lambda z, t, theta: z):
        with pytest.raises(TypeError, match=r"f(\(| must be callable as f\(| is called as f\()t, z, theta\)"):
            CoupledSystem(wrong, lambda t, theta: theta)


class Backwards(Dynamics):
    def forward(self, theta: Any, t: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return theta


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.w * z


class Turned(nn.Module):
    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return z


neural: Any = NeuralDynamics
field: Any = FieldDynamics


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: neural(lambda theta: theta), r"module must be callable as module\(t, theta\)"),
        (lambda: neural(lambda t, theta, z, more: theta), r"q must be callable as q\(t, theta\) or q\(t, theta, z\)"),
        (lambda: neural(lambda theta, t: theta), r"module is called as module\(t, theta\), t first"),
        (lambda: neural(nn.Linear(2, 2)), r"module must be callable as module\(t, theta\), got Linear\(input"),
        (lambda: field(lambda u: u, "o i -> i o"), r"equation must be callable as equation\(t, u\)"),
        (lambda: field(lambda u, t: u, "o i -> i o"), r"equation is called as equation\(t, u\), t first"),
        (lambda: CoupledODEBlock(Turned(), neural(a_call)), r"module.* does not tell which of its arguments is z"),
        (lambda: CoupledODEBlock(Scaled(), Backwards()), r"dynamics is called as dynamics\(t, theta\), t first, got Backwards\(theta"),
        (lambda: ODEBlock(Turned(), steps=1), r"f is called as f\(t, z\), t first, got Turned\(z"),
    ],
)
def test_a_wrong_signature_is_told_when_it_is_given(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_coupled_advection_has_its_closed_form() -> None:
    """z' = c(t) z, c' = -p c: z(1) = z0 exp(c0 (1 - exp(-p)) / p), with both gradients in closed form."""
    c0 = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    z, c = odeint(CoupledSystem(lambda t, z, c: c * z, lambda t, c: -p * c), (torch.ones(2).double(), c0), [0.0, 1.0], steps=50)
    total = c0 * (1 - torch.exp(-p)) / p
    torch.testing.assert_close(z[-1], torch.exp(total).expand(2), rtol=1e-8, atol=0)
    torch.testing.assert_close(c[-1], c0 * torch.exp(-p), rtol=1e-8, atol=0)
    expected = torch.autograd.grad(2 * torch.exp(total), [c0, p])
    torch.testing.assert_close(torch.autograd.grad(z[-1].sum(), [c0, p]), expected, rtol=1e-7, atol=0)


def test_f_may_ask_for_the_step() -> None:
    seen = []

    def f(t: Tensor, z: Tensor, theta: Tensor, *, step: int) -> Tensor:
        seen.append(step)
        return theta * z

    odeint(CoupledSystem(f, lambda t, theta: -theta), (torch.ones(1), torch.ones(1)), [0.0, 1.0], steps=3, method="midpoint")
    assert seen == [0, 0, 1, 1, 2, 2]
