"""What every equation offers beside its right-hand side, and sums of equations.

An ``Equation`` is a module called as ``(t, u)``. A ``FieldEquation`` is one of a single field and a sum of terms; a ``Term`` is linear with
constant coefficients (then it has a symbol), or it is not. All that the sum knows in closed form follows from its terms.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import FourierOperator, LinearOperator, SplitState
from anodev2.torch_private import no_dispatch_modes

from .closed_form import dense_flow, elapsed, fourier_flow, line_between, wall_series
from .coefficient import evaluate, is_number, shown, varies_in_time
from .conditions import without_field_data
from .dense import dense
from .grid import Grid1D
from .multiples import Multiples
from .numbers import Seen, as_tensor, lasting, present, readable, same_key
from .rest import PeriodicRest
from .stability import POINTS, VARYING, Profile, few, matrix_limit, mode_limit, profiles, remembered, scaled

Rest = Callable[[Any, Tensor], Tensor]
NEAR = 1024  # points up to which implicit methods have a dense matrix to iterate with


class Equation(nn.Module, ABC):
    """Abstract right-hand side du/dt = equation(t, u) of fields (..., n) on ``grid``; ``components`` fields make a state."""

    components = 1

    def __init__(self, grid: Grid1D) -> None:
        super().__init__()
        self.grid = grid
        self.boundary = grid.boundary  # a module: its parameters are found

    @abstractmethod
    def symbol(self, k: Tensor) -> Tensor:
        """The eigenvalue(s) of the semi-discrete equation on exp(i k x), complex, in the shape of k; differentiable in coefficients.

        Raises:
            ValueError: coefficients that vary, or a term that is not linear.
        """

    @abstractmethod
    def exact_symbol(self, k: Tensor) -> Tensor:
        """The eigenvalue(s) of the differential equation itself on exp(i k x); otherwise as ``symbol``."""

    @abstractmethod
    def matrix(self, u: Tensor | None = None) -> Tensor:
        """The right-hand side as a dense matrix, with boundary data zero and coefficients of t = 0."""

    @abstractmethod
    def flow(self, u: Any, times: Sequence[float]) -> Any:
        """The state of the semi-discrete equation at ``times`` (elapsed since u), stacked in front; None without a closed form."""

    @abstractmethod
    def max_stable_step(self, method: Any, *, t: float = 0.0) -> float:
        """The largest step with which ``method`` lets no mode grow that the equation, as it is at time t, does not let grow."""

    def like(self) -> Tensor:
        """An empty float64 tensor where the coefficients live."""
        found = self.tensors()
        return torch.empty(0, dtype=torch.float64, device=found[0].device if found else None)

    def tensors(self) -> list[Tensor]:
        """Parameters, buffers, and the tensors with a graph that modules keep as plain attributes."""
        plain = [value for module in self.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        return [*self.parameters(), *self.buffers(), *plain]

    def __add__(self, other: Any) -> Equation:
        return NotImplemented

    def __radd__(self, other: Any) -> Equation:
        """0 + equation, so that ``sum`` works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def extra_repr(self) -> str:
        known = ("speed", "diffusivity", "viscosity", "rate", "source", "scheme")
        own = [(name, value) for name in known if (value := getattr(self, name, None)) is not None and not isinstance(value, nn.Module)]
        coefficients = [f"{name}={value!r}" if isinstance(value, str) else f"{name}={shown(value)}" for name, value in own]
        return ", ".join([f"n={self.grid.n}", f"length={self.grid.length:g}", *coefficients])


class FieldEquation(Multiples, Equation):
    """Abstract equation of one field, du/dt = the sum of ``terms``; a + b, a - b, 2 * a are a ``Sum`` (equal grids, else ValueError)."""

    _split: tuple[Any, Any] | None = None

    def __init__(self, grid: Grid1D) -> None:
        super().__init__(grid)
        self._limits: dict[Any, float] = {}

    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The terms, none of them a sum."""

    def forward(self, t: Any, u: Tensor) -> Tensor:
        """du/dt, shape (..., n) like u."""
        self.grid.check(u)
        self._check_data(t, u)
        terms = self.terms()
        return reduce(torch.add, [term.tendency(t, u) for term in terms]) if terms else torch.zeros_like(u)

    def __add__(self, other: Any) -> FieldEquation:
        return Sum(self, other) if isinstance(other, FieldEquation) else NotImplemented

    def symbol(self, k: Tensor) -> Tensor:
        k = as_tensor(k)
        return sum((term.symbol(k) for term in self.terms()), torch.complex(torch.zeros_like(k), torch.zeros_like(k)))

    def exact_symbol(self, k: Tensor) -> Tensor:
        k = as_tensor(k)
        return sum((term.exact_symbol(k) for term in self.terms()), torch.complex(torch.zeros_like(k), torch.zeros_like(k)))

    def matrix(self, u: Tensor | None = None) -> Tensor:
        """The right-hand side as a dense (n, n) matrix, with boundary data zero and coefficients of t = 0; float64, or like u.

        Args:
            u: shape (n,), where to linearise. Needed by equations that are not linear: the result is the Jacobian there.

        Coefficients of shape (..., 1) give (..., n, n).

        Raises:
            ValueError: an equation that is not linear, without u.
        """
        nonlinear = [term for term in self.terms() if not term.linear]
        like = self.like() if u is None else u
        if not nonlinear and not (self.boundary.reads_field and u is not None):
            return _dense(self.terms(), self.grid, like)
        if u is None:
            raise ValueError(f"{nonlinear[0].name} is not linear; give the field at which its Jacobian is wanted, matrix(u=...)")
        self.grid.check(u)
        t = torch.zeros((), dtype=u.dtype, device=u.device)
        return torch.func.jacrev(lambda v: self(t, v))(u)  # pyright: ignore[reportReturnType]

    def exact(self, t: float | Tensor, u0: Any, **given: Any) -> Tensor:
        """The solution of the differential equation at time t, from the field u0 (..., n); times (T,) give (T, ..., n).

        Periodic: F^-1 [exp(exact_symbol t) F u0], exact where u0 has no mode at Nyquist. Between walls: the same with a sine
        (Dirichlet) or cosine series (Neumann) of the cell centres, for diffusion and reaction with steady data: wall values, which
        need be 0 with a reaction, or one slope at both ends, likewise.

        Raises:
            ValueError: no such solution is known.
        """
        if given or not isinstance(u0, Tensor):
            raise ValueError("exact needs u0, the field at t = 0; functions of x are for Advection alone, amplitudes for Burgers")
        return self._exact_series(t, u0)

    def flow(self, u: Tensor, times: Sequence[float]) -> Tensor | None:
        """The semi-discrete solution at ``times`` (elapsed since u), shape (len(times), ..., n), in closed form, else None.

        For linear equations with constant coefficients: u + F^-1 [(exp(symbol t) - 1) F u] on periodic grids, which is u to the bit at
        t = 0; between walls, with steady data, the exponential of the matrix with the data as one more column. Differentiable
        in u, coefficients and data.
        """
        self.grid.check(u)
        if not all(term.constant for term in self.terms()) or not self.boundary.steady():
            return None
        self._check_data(0.0, u)
        if self.grid.periodic:
            return fourier_flow(self.symbol(self.grid.modes(u.new_empty(0, dtype=torch.float64))), u, times)
        pushed = self._from_data(0.0, u)
        return dense_flow(_dense(self.terms(), self.grid, u), pushed, u, times)

    def split(self) -> tuple[LinearOperator, Rest] | tuple[LinearOperator, Rest, Rest]:
        """(linear, rest) with du/dt = linear u + rest(t, u): all linear terms of constant coefficients, and everything else.

        ``linear`` is a FourierOperator on periodic grids. Between walls it is an operator with a dense (n, n) matrix, and there are
        three parts, (linear, data, rest): data(t, u) is what boundary data add to the linear terms, and takes from u its shape alone.
        Implicit methods iterate with all linear terms. Kept while no coefficient requires grad.
        """
        sources = self.tensors()
        live = any(source.requires_grad or source.is_inference() for source in sources)
        if live or not (readable() if sources else lasting()) or torch.is_inference_mode_enabled():
            return self._make_split(kept=False)
        plain = [value for module in self.modules() for name, value in vars(module).items() if is_number(value) and name != "training"]
        coefficients = [getattr(term, term.coefficient) for term in self.terms()]
        key = [*((source, Seen(source)) for source in sources), *((value,) for value in [*plain, *coefficients])]
        key.append((None, self.like().device))
        if self._split is None or not same_key(self._split[0], key):
            with no_dispatch_modes():
                self._split = (key, self._make_split(kept=True))
        return self._split[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles split anew: what is kept refers to this very equation."""
        return {**self.__dict__, "_split": None}

    def steady(self) -> bool:
        """Whether the coefficients of its linear terms are the same at all times."""
        return not any(varies_in_time(getattr(term, term.coefficient)) for term in self.terms() if term.linear)

    def max_stable_step(self, method: Any, u: Tensor | None = None, *, t: float = 0.0) -> float:
        """The largest step with which ``method`` amplifies no mode: |R(h lambda)| <= 1 for the symbol lambda of every mode.

        Methods that treat the linear part of ``split()`` by themselves are judged on both parts. Between walls, and where coefficients
        vary, also the eigenvalues of the matrix count, on a few points of the same spacing: 0 where one of a rough mode has a positive
        real part, as with central differences at a speed that changes its sign; smooth modes that grow are the equation's own, and limit
        nothing. Coefficients that vary are those of time t; in the symbol they are frozen at their smallest and largest values: an
        estimate. Growing reaction and sources are left out; so is transport by u itself unless u is given (Burgers), which is frozen at
        max |u|. For n > 1024 1024 modes stand for all. Infinite where nothing limits h, and for coefficients not finite, fake or meta.

        Source: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.2; LeVeque, Finite Difference Methods, 9.
        """
        if not present(self.like()):
            return math.inf
        terms = self.terms()
        with torch.no_grad():
            values = [term.extremes(u, t) for term in terms]
            scale = max((abs(value) for found in values for value in found), default=0.0)
            if scale == 0 or not all(math.isfinite(value) for found in values for value in found):
                return math.inf
            values = [[value / scale for value in found] for found in values]  # symbols are linear in the coefficients
            known = not self.grid.periodic or not all(term.constant for term in terms)
            along = [[scaled(profile, scale) for profile in profiles(term, t)] for term in terms if term.linear] if known else []
        key = (method, *map(tuple, values), *map(tuple, along))
        return remembered(self._limits, key, lambda: self._limit(method, values, along)) / scale

    def _limit(self, method: Any, values: Sequence[Sequence[float]], along: Sequence[Sequence[Profile]]) -> float:
        terms = self.terms()
        limit = mode_limit(method, terms, values, self.grid)
        if limit == 0 or not along:
            return limit
        linear = [term for term in terms if term.linear]
        varying = any(isinstance(profile, tuple) for found in along for profile in found)
        grid = few(self.grid, VARYING if varying else POINTS)
        return min(
            limit,
            matrix_limit(method, linear, along, grid, lambda made: _dense(made, grid, torch.empty(0, dtype=torch.float64, device="cpu"))),
        )

    def _check_data(self, t: Any, u: Tensor) -> None:
        """Whether the boundary data suit the terms: with diffusion they stand at both ends, else each term says."""
        if not self.grid.periodic and not any(term.diffusive for term in self.terms()):
            for term in self.terms():
                term.check_inflow(t, u)

    def _from_data(self, t: Any, u: Tensor, terms: Sequence[Term] | None = None) -> Tensor:
        """What boundary data add to du/dt by the constant terms."""
        zero = torch.zeros(self.grid.n, dtype=u.dtype, device=u.device)
        return sum((term.tendency(t, zero) for term in (terms if terms is not None else self.terms())), zero)

    def _make_split(self, kept: bool) -> tuple[LinearOperator, Rest] | tuple[LinearOperator, Rest, Rest]:
        constant = [term for term in self.terms() if term.constant]
        others = [term for term in self.terms() if not term.constant]

        def rest(t: Any, u: Tensor) -> Tensor:
            self._check_data(t, u)
            total = reduce(torch.add, [term.tendency(t, u) for term in others]) if others else torch.zeros_like(u)
            if not (self.boundary.reads_field and constant):
                return total
            with without_field_data(self.boundary):
                affine = reduce(torch.add, [term.tendency(t, u) for term in constant])
            return total + reduce(torch.add, [term.tendency(t, u) for term in constant]) - affine

        def data(t: Any, u: Tensor) -> Tensor:
            with without_field_data(self.boundary):
                return self._from_data(t, u, constant).expand_as(u)

        near = self._near([term for term in self.terms() if term.linear]) if any(term.linear for term in others) else None
        near = cache(near) if near is not None and kept else near
        if not self.grid.periodic:
            return LinearOperator.of(lambda: _dense(constant, self.grid, self.like()), near), data, rest

        def symbol() -> Tensor:
            k = self.grid.modes(self.like())
            return sum((term.symbol(k) for term in constant), torch.zeros_like(k, dtype=torch.complex128))

        return FourierOperator(symbol, self.grid.n, near), PeriodicRest(self.grid, others)

    def _near(self, linear: Sequence[Term]) -> Callable[[], LinearOperator]:
        """Linear terms with the coefficients of t = 0, if finite, for implicit methods; of many points on a circle with their means."""
        known = lambda: [(term, found) for term in linear if all(map(math.isfinite, found := term.extremes(None)))]  # noqa: E731
        if self.grid.n <= NEAR or not self.grid.periodic:
            return lambda: LinearOperator.of(_dense([term for term, _ in known()], self.grid, self.like()))
        k = self.grid.modes(self.like())
        means = [(term, statistics.fmean(found)) for term, found in known()]
        return lambda: FourierOperator(sum((term.frozen(mean, k) for term, mean in means), 0j * k), self.grid.n)

    def _exact_series(self, t: float | Tensor, u0: Tensor) -> Tensor:
        self.grid.check(u0)
        for term in self.terms():
            term.need_exact_symbol()
        if self.grid.periodic:
            k = self.grid.modes(u0.new_empty(0, dtype=torch.float64))
            spectrum, factor = torch.fft.rfft(u0), torch.exp(elapsed(t, self.exact_symbol(k), u0))
            return torch.fft.irfft(factor.to(spectrum.dtype) * spectrum, n=self.grid.n)
        odd = [term.name for term in self.terms() if not term.even]
        if odd:
            raise ValueError(f"no exact solution with {odd[0]} is known between walls; take a periodic grid, or small steps")
        line = line_between(self.grid, u0)
        if line is not None and any(not term.diffusive for term in self.terms()):
            raise ValueError("the exact solution with a reaction between walls is known for zero data only; give Dirichlet() or Neumann()")
        series, k = wall_series(self.grid, u0)
        factor = torch.exp(elapsed(t, self.exact_symbol(k).real, u0)).to(u0.dtype)
        decayed = (factor * ((u0 if line is None else u0 - line) @ series.mT)) @ series
        return decayed if line is None else decayed + line


class Term(FieldEquation):
    """Abstract equation that is no sum. ``diffusive``: needs data at both ends. ``even``: unchanged by mirroring x."""

    linear = True
    even = False
    grows = False  # whether its own modes may, as the equation lets them
    name: str
    coefficient: str

    def terms(self) -> tuple[Term, ...]:
        return (self,)

    @property
    @abstractmethod
    def constant(self) -> bool:
        """Whether it is linear with constant coefficients."""

    @property
    def diffusive(self) -> bool:
        return False

    @abstractmethod
    def tendency(self, t: Any, u: Tensor) -> Tensor:
        """Its part of du/dt."""

    def spectrum(self, t: Any, state: SplitState) -> Tensor | None:
        """The real Fourier transform of ``tendency`` on a periodic grid, where it is known before that is."""
        return None

    @abstractmethod
    def extremes(self, u: Tensor | None, t: float = 0.0) -> list[float]:
        """The smallest and the largest value of its coefficient at time t (around u, where it is not linear)."""

    @abstractmethod
    def frozen(self, value: float, k: Tensor) -> Tensor:
        """Its symbol if the coefficient had this value everywhere; linear in it but for its sign."""

    def on(self, grid: Grid1D, value: Profile) -> Term | None:
        """A linear term with a coefficient of this value, or these at the points, on another grid; None where it limits no step."""
        return None

    def check_inflow(self, t: Any, u: Tensor) -> None:
        """ValueError where boundary data do not suit the term alone."""
        return

    def need_exact_symbol(self) -> None:
        """ValueError where the differential equation is not linear with constant coefficients."""
        self.need_constant("the exact solution")

    def need_constant(self, what: str) -> None:
        if not self.constant:
            raise ValueError(
                f"{what} of {self.name} is known for a linear scheme and a constant {self.coefficient} only; "
                f"give it a number as {self.coefficient}, one of interest if it varies"
            )


class Sum(FieldEquation):
    """The sum of equations on one grid; ``a + b`` makes it.

    Args:
        parts: equations of one field.

    Raises:
        ValueError: different grids, or none.
        TypeError: something else.
    """

    def __init__(self, *parts: FieldEquation) -> None:
        if not parts:
            raise ValueError("Sum() needs at least one equation")
        for part in parts:
            if not isinstance(part, FieldEquation):
                raise TypeError(f"only equations of one field add, got {type(part).__name__}")
            if part.grid != parts[0].grid:
                raise ValueError(f"equations of different grids do not add: {parts[0].grid} and {part.grid}; make both with the same grid")
        super().__init__(parts[0].grid)
        self.parts = nn.ModuleList(piece for part in parts for piece in (part.parts if isinstance(part, Sum) else (part,)))

    def terms(self) -> tuple[Term, ...]:
        return tuple(term for part in self.parts for term in part.terms())  # pyright: ignore[reportCallIssue]


def _dense(terms: Sequence[Term], grid: Grid1D, like: Tensor) -> Tensor:
    """The matrix of linear terms. Coefficients (..., 1) lead."""
    t = torch.zeros((), dtype=like.dtype, device=like.device)
    values = [evaluate(getattr(term, term.coefficient), t, lambda: grid.points(like), like) for term in terms]
    lead = torch.broadcast_shapes(grid.boundary.lead(), *(value.shape[:-1] for value in values if isinstance(value, Tensor)))
    return dense(lambda u: reduce(torch.add, [term.tendency(t, u) for term in terms], torch.zeros_like(u)), grid, like, tuple(lead))
