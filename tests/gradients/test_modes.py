"""Modes of PyTorch around a block (fake and meta tensors, inference, transforms) work, and leave nothing behind for the next call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from anodev2 import Compile, odeint
from anodev2.pde import Advection, AdvectionDiffusionReaction, Burgers, Diffusion, Dirichlet, Grid1D, Neumann, Wave
from blocks import DYNAMICS, block_of, stirred
from sampled import rows

pytestmark = pytest.mark.usefixtures("nothing_kept")


def outcome(block: nn.Module, z: Tensor) -> list[Tensor]:
    end = block(z)
    block.zero_grad()
    end.square().sum().backward()
    return [end, *(parameter.grad for parameter in block.parameters() if parameter.grad is not None)]


def image() -> Tensor:
    return torch.linspace(-1, 1, 64).view(1, 4, 4, 4)


INSIDE: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fake": FakeTensorMode,
    "meta": lambda: torch.device("meta"),
    "flops": lambda: FlopCounterMode(display=False),
}


def under_vmap(block: nn.Module, z: Tensor) -> Any:
    return torch.func.vmap(block)(z[None])


def under_grad(block: nn.Module, z: Tensor) -> Any:
    return torch.func.grad(lambda z: block(z).sum())(z)


def under_jvp(block: nn.Module, z: Tensor) -> Any:
    return torch.func.jvp(block, (z,), (z,))


def under_functionalize(block: nn.Module, z: Tensor) -> Any:
    return torch.func.functionalize(block)(z)


def under_inference(block: nn.Module, z: Tensor) -> Any:
    with torch.inference_mode():
        return block(z)


def under_another_device(block: nn.Module, z: Tensor) -> Any:
    with torch.device("meta"):
        return outcome(block, z)


AROUND = [under_vmap, under_grad, under_jvp, under_functionalize, under_inference, under_another_device]


@pytest.mark.parametrize(("mode", "dynamics", "adjoint"), rows(INSIDE, [None, *DYNAMICS], ["direct", "checkpoint"], quick=3))
def test_a_block_inside_a_mode(mode: str, dynamics: str | None, adjoint: str) -> None:
    def inside() -> list[Tensor]:
        with INSIDE[mode]():
            return outcome(stirred(block_of(dynamics, adjoint)), image())

    first = inside()
    real = outcome(stirred(block_of(dynamics, adjoint)), image())
    assert [x.shape for x in first] == [x.shape for x in real]
    assert [x.shape for x in inside()] == [x.shape for x in real]  # with what was kept for real tensors
    torch.testing.assert_close(outcome(stirred(block_of(dynamics, adjoint)), image()), real, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.parametrize(("around", "dynamics"), rows(AROUND, [None, *DYNAMICS], quick=3))
def test_a_mode_around_the_first_call(around: Callable[[nn.Module, Tensor], Any], dynamics: str | None) -> None:
    block = stirred(block_of(dynamics))
    expected = around(block, image())
    real = outcome(block, image())
    torch.testing.assert_close(around(block, image()), expected, rtol=0, atol=0)
    torch.testing.assert_close(outcome(block, image()), real, rtol=0, atol=0)
    assert all(type(x) is Tensor and x.device.type == "cpu" for x in real)


def test_a_compiled_block_after_a_fake_one() -> None:
    options: dict[str, Any] = {"adjoint": "direct", "compile": Compile(steps=2, backend="eager")}
    block = stirred(block_of(None, **options))
    with FakeTensorMode():
        assert block_of(None, **options)(image().float()).shape == image().shape
    torch.testing.assert_close(block(image()), stirred(block_of(None))(image()))


EQUATIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "advection": (lambda: Advection(Grid1D(8), 0.3), "rk4"),
    "advection between walls": (lambda: Advection(Grid1D(8, boundary=Dirichlet(0.0, None)), 0.3), "rk4"),
    "diffusion": (lambda: Diffusion(Grid1D(8, boundary=Neumann(0.5, 1.0)), 0.01), "rk4"),
    "burgers": (lambda: Burgers(Grid1D(8, boundary=Dirichlet(1.0, -1.0)), 0.05), "rk4"),
    "split": (lambda: AdvectionDiffusionReaction(Grid1D(8), 0.01, 0.1, -0.1), "etdrk4"),
    "split between walls": (lambda: Burgers(Grid1D(8, boundary=Dirichlet(1.0, -1.0)), 0.1), "imex2"),
    "wave": (lambda: Wave(Grid1D(8, boundary=Dirichlet(0.0, 0.0)), 0.3), "leapfrog"),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("mode", INSIDE)
def test_an_equation_inside_a_mode(equation: str, mode: str) -> None:
    make, method = EQUATIONS[equation]

    def end(of: Any) -> Tensor:
        u = torch.linspace(1, -1, 8)
        found = odeint(of, (u, 0 * u) if equation == "wave" else u, [0.0, 0.1], steps=2, method=method, adjoint="direct")
        return found[0][-1] if equation == "wave" else found[-1]

    one, expected = make(), end(make())
    for again in (one, make()):
        with INSIDE[mode]():
            assert end(again).shape == (8,)
        torch.testing.assert_close(end(again), expected, rtol=0, atol=0)
