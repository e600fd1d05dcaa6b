"""func.preconditioner: what it is worth to GMRES, that it changes nothing else, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from anodev2 import Control, SolveError, odeint, solve
from sampled import rows

N = 150


def rates() -> Tensor:
    """Eigenvalues from -1 to -1e6, far from symmetric: the transpose of an approximate inverse is none."""
    above = torch.ones(N, N, dtype=torch.float64).triu(1) * torch.logspace(0, 5, N, dtype=torch.float64)[:, None] / 10
    return above - torch.diag(torch.logspace(0, 6, N, dtype=torch.float64))


class Decay:
    """y' = s A y, as one tensor or as two, with a preconditioner that is given s too."""

    def __init__(self, tree: bool, transposable: bool = True) -> None:
        self.matrix, self.tree, self.transposable = rates(), tree, transposable

    def __call__(self, t: Tensor, y: Any, s: Tensor) -> Any:
        return self.packed(s * self.matrix @ self.whole(y))

    def whole(self, y: Any) -> Tensor:
        return torch.cat([y["a"], y["b"][0]]) if self.tree else y

    def packed(self, y: Tensor) -> Any:
        return {"a": y[:70], "b": (y[70:],)} if self.tree else y

    def preconditioner(self, t: Tensor, y: Any, scale: float, s: Tensor) -> Callable[[Any], Any]:
        assert t.ndim == 0 and self.whole(y).shape == (N,)
        shifted = torch.eye(N, dtype=torch.float64) - scale * s.detach() * self.matrix
        solved = lambda v: torch.linalg.solve_triangular(shifted, self.whole(v)[:, None], upper=True)[:, 0]
        return lambda v: self.packed(solved(v) if self.transposable else torch.from_numpy(solved(v).detach().numpy().copy()))


def end(method: str, s: Tensor, y0: Tensor, adjoint: Any = "checkpoint", **how: Any) -> Tensor:
    f = Decay(**how)
    y = odeint(f, f.packed(y0), [0.0, 0.2], method=method, steps=2, args=(s,), adjoint=adjoint)
    return f.whole(tree_map(lambda leaf: leaf[-1], y))


@pytest.fixture
def short_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """GMRES has six products, where it needs some hundred without a preconditioner."""
    monkeypatch.setattr("anodev2.solvers.krylov.RESTART", 3)
    monkeypatch.setattr("anodev2.solvers.krylov.CYCLES", 2)


@pytest.mark.usefixtures("short_of_vectors")
@pytest.mark.parametrize(
    ("method", "tree", "adjoint"),
    rows(["backward_euler", "implicit_midpoint", "esdirk4", "kvaerno5"], [False, True], ["checkpoint", "direct"], quick=4),
)
def test_states_and_gradients_are_those_of_factorised_matrices(
    method: str, tree: bool, adjoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed forms of one stage, and dense algebra for several."""
    s, y0 = torch.tensor(1.5, dtype=torch.float64, requires_grad=True), torch.linspace(1, 2, N, dtype=torch.float64).requires_grad_()
    weights = torch.linspace(-1, 1, N, dtype=torch.float64)
    found = end(method, s, y0, adjoint, tree=tree)
    gradients = torch.autograd.grad(weights @ found, (s, y0))
    if METHODS_OF_ONE_STAGE.get(method):
        one, exact = torch.eye(N, dtype=torch.float64), y0
        for _ in range(2):
            exact = METHODS_OF_ONE_STAGE[method](one, 0.1 * s * rates(), exact)
    else:
        monkeypatch.setattr("anodev2.solvers.sdirk.DENSE", N)
        exact = end(method, s, y0, "direct", tree=False)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(gradients, torch.autograd.grad(weights @ exact, (s, y0)), rtol=1e-7, atol=1e-8)


METHODS_OF_ONE_STAGE = {
    "backward_euler": lambda one, z, y: torch.linalg.solve(one - z, y),
    "implicit_midpoint": lambda one, z, y: torch.linalg.solve(one - z / 2, y + z @ y / 2),
}


@pytest.mark.usefixtures("short_of_vectors")
def test_without_it_gmres_does_not_get_there() -> None:
    bare = Decay(False)
    with pytest.raises(SolveError, match="Newton's iteration"):
        odeint(lambda t, y: bare(t, y, torch.tensor(1.5)), torch.ones(N).double(), [0.0, 0.2], method="backward_euler", steps=2)


def test_one_that_autograd_does_not_know_serves_the_way_forward_alone() -> None:
    s, y0 = torch.tensor(1.5, dtype=torch.float64), torch.ones(N, dtype=torch.float64)
    torch.testing.assert_close(end("backward_euler", s, y0, tree=False, transposable=False), end("backward_euler", s, y0, tree=False))
    found = end("backward_euler", s, y0.requires_grad_(), tree=False, transposable=False)
    with pytest.raises(ValueError, match="operations that autograd knows"):
        found.sum().backward()


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (None, TypeError, "must return a function of a vector like y0, got NoneType"),
        (lambda v: (v, v), ValueError, "structure of y0"),
        (lambda v: v[:1], ValueError, r"gave \(1,\) for a leaf of \(2,\)"),
        (lambda v: 1.0, ValueError, "gave float for a leaf"),
    ],
)
def test_what_is_refused(made: Any, error: type[Exception], message: str) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y

    f.preconditioner = lambda t, y, scale: made  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(error, match=message):
        odeint(f, torch.ones(2), [0.0, 1.0], method="backward_euler", steps=1)


def test_a_stage_that_gmres_does_not_find_shortens_the_step() -> None:
    """y' = y^2: the stages of a step to near 1/y0 have no solution."""
    y0, end = torch.full((N,), 10.0, dtype=torch.float64), 0.09
    found = solve(lambda t, y: y**2, y0, [0.0, end], method="kvaerno5", rtol=1e-4, atol=1e-4, control=Control(first_step=end))
    assert found.stats.rejected and (found.ys[-1] / 100 - 1).abs().max() < 1e-2
