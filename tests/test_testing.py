"""What is offered for tests, tested."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import odeint
from anodev2.testing import observed_order, taylor_test


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is wrong by a factor of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def test_the_order_is_that_of_the_finest_errors_above_round_off() -> None:
    asked: list[int] = []

    def error(n: int) -> float:
        asked.append(n)
        return 3.0 * n**-4 + 20 * n**-6.0

    assert observed_order(error, (8, 16, 32, 64, 128), floor=1e-7) == pytest.approx(4, abs=0.1)
    assert asked == [8, 16, 32, 64, 128]
    assert observed_order(lambda n: 7.0 / n) == pytest.approx(1)


def test_errors_that_tell_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than two are above floor=1e-12: begin with coarser sizes"):
        observed_order(lambda n: 1e-15)
    with pytest.raises(ValueError, match=r"error\(4\) is inf; begin with finer sizes"):
        observed_order(lambda n: math.inf)


def loss(wrong: bool) -> Any:
    f = lambda t, y, w: torch.sin((Doubled.apply(y) if wrong else y) * w)
    return lambda y, w: odeint(f, y, [0.0, 1.0], steps=3, args=(w,))[-1].square().sum()


def test_a_wrong_gradient_has_a_remainder_of_first_order() -> None:
    y, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert taylor_test(loss(wrong=False), y, w) == pytest.approx(2, abs=0.1)
    assert taylor_test(loss(wrong=True), y, w) == pytest.approx(1, abs=0.2)


def test_complex_inputs_and_linear_losses() -> None:
    z = torch.randn(3, dtype=torch.complex128)
    assert taylor_test(lambda z: (z * z.conj()).real.square().sum(), z) == pytest.approx(2, abs=0.1)
    assert taylor_test(lambda z: 3 * z.imag.sum(), z) == math.inf


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is wrong by 1 %."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 0.99 * grads[0]


@pytest.mark.parametrize("seed", range(20))
def test_a_gradient_that_is_wrong_by_a_percent_is_told_along_any_direction(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(10, dtype=torch.float64)
    assert taylor_test(lambda x: Scaled.apply(x).square().sum(), x, seed=seed) < 1.5
    assert taylor_test(lambda x: x.square().sum(), x, seed=seed) == pytest.approx(2, abs=0.01)
    with pytest.raises(ValueError, match="too little beside its value"):
        taylor_test(lambda x: 1e9 + 1e-3 * Scaled.apply(x).sum(), x)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="does not depend on its inputs"):
        taylor_test(lambda x: x.detach().sum(), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"float64 or complex128 tensors, got \['torch.float32'\]; use x.double"):
        taylor_test(lambda x: x.sum(), torch.ones(2))
    with pytest.raises(ValueError, match="must return a real scalar"):
        taylor_test(lambda x: x, torch.ones(2, dtype=torch.float64))
