"""Stability functions against the steps themselves, and limits against the literature."""

from __future__ import annotations

import math

import pytest
import torch

from anodev2 import METHODS, Method, Tableau, odeint, stability_function
from problems import IMPLICIT, RUNGE_KUTTA, SPLITTING, STIFF


@pytest.mark.parametrize("method", RUNGE_KUTTA + IMPLICIT + STIFF)
def test_one_step_multiplies_by_r(method: str) -> None:
    z = torch.tensor([-0.7 + 0.4j, 0.3j, -1.5, 0.2 - 0.1j], dtype=torch.complex128)
    step = odeint(lambda t, y: z * y, torch.ones_like(z), [0.0, 1.0], method=method, steps=1)[-1]
    torch.testing.assert_close(stability_function(method)(z), step, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", STIFF)
def test_stiff_methods_are_l_stable(method: str) -> None:
    R, y = stability_function(method), torch.logspace(-3, 6, 2000, dtype=torch.float64)
    assert (R(1j * y).abs() <= 1 + 1e-11).all(), "on the imaginary axis, and so, without poles on the left, in all of that half"
    assert R(torch.tensor([-1e9, 1e9j])).abs().max() < 1e-7
    assert R.limit(torch.tensor([-1.0, 1j, -3 + 2j])) == math.inf


@pytest.mark.parametrize("method", RUNGE_KUTTA)
def test_the_polynomial_begins_like_the_exponential(method: str) -> None:
    R, tableau = stability_function(method), METHODS[method]
    assert isinstance(tableau, Tableau)
    for k in range(tableau.order + 1):
        assert float(R.coefficients[k]) == pytest.approx(1 / math.factorial(k), rel=1e-12)
    z = torch.tensor([0.3 - 0.8j], dtype=torch.complex128)
    torch.testing.assert_close(sum(float(c) * z**k for k, c in enumerate(R.coefficients)), R(z))


@pytest.mark.parametrize(
    ("method", "real", "imaginary"),
    [  # Hairer, Wanner II, IV.2; Durran 2010, 2.3
        ("euler", 2.0, 0.0),
        ("midpoint", 2.0, 0.0),
        ("heun2", 2.0, 0.0),
        ("ssprk3", 2.5127, math.sqrt(3)),
        ("rk4", 2.7853, 2 * math.sqrt(2)),
        ("leapfrog", None, 2.0),  # its eigenvalues are frequencies
        ("backward_euler", math.inf, math.inf),
        ("implicit_midpoint", math.inf, math.inf),
        ("etdrk4", 2.7853, 2 * math.sqrt(2)),
        ("imex1", 2.0, 0.0),
        ("imex2", 2.0, 0.0),
    ],
)
def test_known_limits(method: str, real: float | None, imaginary: float) -> None:
    R = stability_function(method)
    assert R.limit(torch.tensor([1j, -0.5j])) == pytest.approx(imaginary, rel=1e-4)
    if real is not None:
        assert R.limit(torch.tensor([-1.0])) == pytest.approx(real, rel=1e-4)
        assert R.limit(torch.tensor([-4.0])) == pytest.approx(real / 4, rel=1e-4)


def test_the_worst_eigenvalue_decides_and_none_is_no_limit() -> None:
    R = stability_function("rk4")
    assert R.limit(torch.tensor([-1.0, -10.0, 2j])) == pytest.approx(0.27853, rel=1e-4)
    assert R.limit(torch.zeros(3)) == R.limit(torch.zeros(0)) == math.inf
    assert R.limit(torch.tensor([-1.0, 0.1])) == 0.0


@pytest.mark.parametrize("method", SPLITTING)
def test_a_linear_part_treated_by_itself_does_not_limit(method: str) -> None:
    R = stability_function(method)
    assert R.acts_on == "rest" and R.limit(torch.zeros(2), torch.tensor([-1.0, -1e6])) == math.inf
    damped = R.limit(torch.tensor([1j]), torch.tensor([-1.0]))
    assert damped > R.limit(torch.tensor([1j]))
    r = torch.linspace(0.01, 0.99, 50, dtype=torch.float64) * min(damped, 50.0)
    assert (R(1j * r, -r).abs() <= 1 + 2e-6).all()


@pytest.mark.parametrize("method", RUNGE_KUTTA)
def test_below_the_limit_stable_above_not(method: str) -> None:
    R = stability_function(method)
    eigenvalue = torch.polar(torch.ones(64, dtype=torch.float64), torch.linspace(math.pi / 2 + 0.01, math.pi, 64).double())
    for value in eigenvalue:
        limit = R.limit(value)
        assert (R(torch.linspace(0, 0.999, 50).double() * limit * value).abs() <= 1 + 1.1e-6).all()
        assert R(1.001 * limit * value).abs() > 1 + 1e-6


def test_odeint_warns_with_both_numbers() -> None:
    class Decay(torch.nn.Module):
        def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -10 * y

        def max_stable_step(self, method: str | Method) -> float:
            return stability_function(method).limit(torch.tensor([-10.0]))

    with pytest.warns(UserWarning, match=r"a step of 0\.25 with euler is beyond the largest stable one, 0\.2, for Decay"):
        odeint(Decay(), torch.ones(2), [0.0, 1.0], method="euler", steps=4)
    odeint(Decay(), torch.ones(2), [0.0, 1.0], method="euler", steps=6)  # warnings are errors here
    odeint(Decay(), torch.ones(2), [0.0, 1.0], method="dopri5", rtol=1e-3)
    with pytest.raises(ValueError, match="is not known"):

        class Own(Method):
            name, order, nodes = "own", 1, (0.0,)

            def step(self, field, step, y):  # type: ignore[no-untyped-def]
                return list(y)

        stability_function(Own())
