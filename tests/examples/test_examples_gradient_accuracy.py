from __future__ import annotations

import pytest
import torch

import gradient_accuracy

ORDERS = {"euler": 1, "midpoint": 2}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    path = tmp_path_factory.mktemp("accuracy") / "picture.png"
    found = gradient_accuracy.main(path, small=True)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000
    return found


@pytest.mark.parametrize("method", ORDERS)
def test_optimize_then_discretize_is_off_at_the_order_of_the_method_and_dto_at_round_off(numbers: dict[str, float], method: str) -> None:
    assert numbers[f"{method} OTD slope"] == pytest.approx(ORDERS[method], abs=0.15)
    assert numbers[f"{method} reverse solve slope"] == pytest.approx(ORDERS[method], abs=0.15)
    assert numbers[f"{method} DTO"] < 1e-14
    assert numbers[f"{method} continuous slope"] == pytest.approx(ORDERS[method], abs=0.15)


def test_reverse_solves_fail_where_the_exact_gradient_does_not(numbers: dict[str, float]) -> None:
    assert numbers["closed form DTO"] < 1e-6 and numbers["van der Pol DTO"] < 1e-6
    assert numbers["closed form reverse solve"] > 2 and numbers["van der Pol reverse solve"] > 1


def test_complex_steps_are_central_differences_without_their_error() -> None:
    """The reference owes nothing to autograd: finite differences of the same J agree as far as they can."""
    x, found = torch.cat(gradient_accuracy.start()), gradient_accuracy.complex_steps("midpoint", 5)

    def objective(x: torch.Tensor) -> torch.Tensor:
        z = x[:3]
        for n in range(5):
            middle = z + 0.1 * gradient_accuracy.f(torch.tensor(0.2 * n), z, x[3:])
            z = z + 0.2 * gradient_accuracy.f(torch.tensor(0.2 * n + 0.1), middle, x[3:])
        return gradient_accuracy.objective(z)

    differences = [(objective(x + h) - objective(x - h)) / 2e-5 for h in 1e-5 * torch.eye(15, dtype=torch.float64)]
    assert torch.allclose(torch.stack(differences), found, rtol=0, atol=1e-7)  # times are float32 here, float64 there
