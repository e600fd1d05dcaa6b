"""What users of torchdiffeq are told."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchdiffeq

import anodev2
from anodev2 import METHODS, Control, odeint, solve
from anodev2.torchdiffeq import METHODS_OF_TORCHDIFFEQ, OPTIONS

PAGE = (Path(__file__).parents[1] / "docs" / "from_torchdiffeq.md").read_text()


@pytest.mark.parametrize("call", [odeint, solve])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_argument_of_torchdiffeq_is_answered_with_its_line(name: str, call: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"unexpected keyword argument {name!r}; coming from torchdiffeq: {OPTIONS[name]}")):
        call(lambda t, y: -y, torch.ones(1), [0.0, 1.0], **{name: None})
    assert f"| `{name}` | {OPTIONS[name]} |" in PAGE


@pytest.mark.parametrize("name", METHODS_OF_TORCHDIFFEQ)
def test_a_method_of_torchdiffeq_is_answered_with_its_line(name: str) -> None:
    line = METHODS_OF_TORCHDIFFEQ[name]
    with pytest.raises(ValueError, match=re.escape(f"method={name!r} is torchdiffeq's; here: {line}")):
        odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=name, steps=3)
    assert name not in METHODS and f"| `{name}` | {line} |" in PAGE


def test_all_that_they_take_has_its_line() -> None:
    """Of their calls and solvers, as their signatures have it; "implicit" is not for users, "func" and "method" are the same here."""
    solvers = importlib.import_module("torchdiffeq._impl.odeint").SOLVERS
    calls = [torchdiffeq.odeint, torchdiffeq.odeint_adjoint, torchdiffeq.odeint_dense, torchdiffeq.odeint_event]
    inits = [parent.__init__ for solver in solvers.values() for parent in solver.__mro__ if "__init__" in vars(parent)]
    taken = {name for call in (*calls, *inits) for name, one in inspect.signature(call).parameters.items() if one.kind not in (2, 4)}
    known = {*OPTIONS, *inspect.signature(odeint).parameters, "t0", "t1", "self", "implicit"}
    assert len(taken) > 30 and taken <= known, taken - known
    assert set(solvers) <= {*METHODS, *METHODS_OF_TORCHDIFFEQ}


def test_what_the_lines_name_is_there() -> None:
    known = {*inspect.signature(odeint).parameters, *inspect.signature(solve).parameters, *inspect.signature(Control).parameters}
    known |= {"iterations", "event"}
    for line in (*OPTIONS.values(), *METHODS_OF_TORCHDIFFEQ.values()):
        assert set(re.findall(r"(\w+)=", line)) <= known, line
        assert set(re.findall(r'"(\w+)"', line)) <= METHODS.keys(), line
        assert all(hasattr(anodev2, name) for name in re.findall(r"\b([A-Z]\w+)\(", line)), line


@pytest.mark.parametrize("call", [odeint, solve])
def test_an_unknown_argument_is_refused(call: Any) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'step_sizes'$"):
        call(lambda t, y: -y, torch.ones(1), [0.0, 1.0], step_sizes=0.1)
