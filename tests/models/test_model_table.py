"""The table of docs/models.md is what benchmarks/model_table.py prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from anodev2.models import resnet4
from benchmarks import model_table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.slow
def test_the_table_of_the_page_is_the_one_printed() -> None:
    (shown,) = re.findall(r"<!-- table -->\n(.*?)\n<!-- end of table -->", PAGE.read_text(), re.DOTALL)
    assert model_table.table() == shown


@pytest.mark.parametrize(("steps", "method", "evaluations"), [(1, "euler", 1), (5, "euler", 5), (3, "rk4", 12)])
def test_multiply_adds_are_those_counted_by_hand(steps: int, method: str, evaluations: int) -> None:
    stem, conv, linear = 27 * 16 * 32**2, 9 * 16 * 16 * 32**2, 256 * 10
    model = resnet4(block="ode", steps=steps, method=method, norm="shared")
    assert model_table.multiply_adds(model) == stem + 2 * conv * evaluations + linear
    assert model_table.multiply_adds(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32**2, 7))) == 3 * 32**2 * 7
    assert torch.is_grad_enabled()
