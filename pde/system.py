"""Several fields on one axis, each moved by sums of terms of all of them and by functions of all at a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anodev2 import FourierOperator, LinearOperator

from .blocks import ModeBlocks, Pair, PointBlocks, along_fields, matrix_of
from .closed_form import dense_flow, elapsed
from .equation import NEAR, Equation, FieldEquation
from .grid import Grid1D
from .multiples import Multiples
from .numbers import as_tensor, present
from .system_stability import coupled_limit

Row = FieldEquation | Mapping[str, FieldEquation] | None
Fields = tuple[Tensor, ...]


class System(Multiples, Equation):
    """du_i/dt = sum_j A_ij u_j + f_i(t, x, u_1, u_2, ...): several fields, A_ij an equation of one field, a sum of terms.

    ``System({"u": Diffusion(grid, 0.1), "v": {"u": Reaction(grid, 1.0)}})`` is du/dt = 0.1 d2u/dx2, dv/dt = u. The state is a tensor
    (..., components, n), which all methods take, or a tuple of the fields (..., n), in the order of ``rows``, as "leapfrog" needs it;
    du/dt has its form. Each field has the ends of the grid of the terms that read it, so that every field has conditions of its own.
    What is linear with constant coefficients has closed forms, and exponential and IMEX methods treat it as one matrix per Fourier mode,
    or one of all points between walls, (components n)^2 numbers.

    Args:
        rows: for each field by its name what moves it: an equation of the field itself, or a mapping from fields to equations of them
            (``{}`` or None for nothing).
        reaction: f, (t, x, u_1, u_2, ...) -> a tuple of as many tensors (..., n) or numbers, x of shape (n,); a module is trained.

    ``a + b`` of systems of the same fields, ``a - b`` and ``2 * a`` are systems.

    Raises:
        ValueError: no equation at all, an unknown field, grids of other points, or one field on grids with other ends.
        TypeError: something else as equation or reaction.

    Source: Turing, Phil. Trans. R. Soc. B 237 (1952); LeVeque, Finite Volume Methods for Hyperbolic Problems (2002), 2.
    """

    packed = False  # whether the two fields are one complex field

    def __init__(self, rows: Mapping[str, Row], reaction: Callable[..., Any] | None = None) -> None:
        if not isinstance(rows, Mapping):
            raise TypeError(f'rows must be a mapping from fields to equations, {{"u": Diffusion(grid, 1)}} say, got {type(rows).__name__}')
        names = tuple(rows)
        pairs = _pairs(names, rows)
        grids = _grids(names, pairs)
        super().__init__(next(grid for grid in grids if grid is not None))
        self.names, self.components, self.pairs = names, len(names), tuple(pairs)
        self.grids = tuple(grid or self.grid for grid in grids)
        self.equations = nn.ModuleList(pairs.values())
        if reaction is not None and not callable(reaction):
            raise TypeError(f"reaction={reaction!r} must be a function of (t, x, {', '.join(names)})")
        self.reactions = nn.ModuleList([] if reaction is None else [Pointwise(reaction)])
        self._split: tuple[Any, Any] | None = None

    def forward(self, t: Any, state: Any) -> Any:
        """The time derivative, in the form of the state."""
        fields = self.fields(state)
        return self._formed(self._gathered(self._each(), t, fields, True), state)

    def fields(self, state: Any) -> Fields:
        """The fields of a state, (..., n) each.

        Raises:
            TypeError, ValueError: a state of another form, or of another number of fields or points.
        """
        shape = f"a tensor (..., {self.components}, {self.grid.n}) or a tuple of {self.components} fields (..., {self.grid.n})"
        if isinstance(state, tuple | list):
            if len(state) != self.components:
                raise ValueError(f"the state of {type(self).__name__} is {shape}, got {len(state)} fields")
            found = tuple(state)
        elif self.packed:
            if not isinstance(state, Tensor) or not state.is_complex():
                raise TypeError(f"the state of {type(self).__name__} is a complex field (..., {self.grid.n}), or a tuple of its two parts")
            found = state.real, state.imag
        elif not isinstance(state, Tensor):
            raise TypeError(f"the state of {type(self).__name__} is {shape}, got {type(state).__name__}")
        elif state.shape[-2:] != (self.components, self.grid.n):
            raise ValueError(f"the state of {type(self).__name__} is {shape}, got shape {tuple(state.shape)}")
        else:
            found = state.unbind(-2)
        for field in found:
            self.grid.check(field)
        return found

    def symbol(self, k: Tensor) -> Tensor:
        """The matrix of the semi-discrete equation on exp(i k x), complex, (*k.shape, components, components); differentiable.

        Its eigenvalues are those of the modes. Raises ValueError for coefficients that vary, terms that are not linear, and a reaction.
        """
        return self._symbols(k, "symbol")

    def exact_symbol(self, k: Tensor) -> Tensor:
        """That of the differential equation itself."""
        return self._symbols(k, "exact_symbol")

    def matrix(self, u: Tensor | None = None) -> Tensor:
        """The right-hand side as a dense matrix on the fields one after the other, with boundary data zero and coefficients of t = 0.

        Args:
            u: (components, n), where to linearise; needed with a reaction or terms that are not linear: the Jacobian there.

        Raises:
            ValueError: not linear, without u.
        """
        if u is None:
            if self.reactions:
                raise ValueError("the reaction is not linear; give the fields at which its Jacobian is wanted, matrix(u=...)")
            return matrix_of({pair: equation.matrix() for pair, equation in self._each().items()}, self.components, False)
        t, shape = torch.zeros((), dtype=u.dtype, device=u.device), (self.components, self.grid.n)

        def slopes(flat: Tensor) -> Tensor:
            fields = flat.reshape(shape).unbind(0)
            return torch.stack(self._complete(self._gathered(self._each(), t, fields, True), fields)).reshape(-1)

        self.fields(tuple(u.unbind(0)))
        return torch.func.jacrev(slopes)(u.reshape(-1)) - 0  # pyright: ignore[reportReturnType]

    def exact(self, t: float | Tensor, state: Any) -> Any:
        """The solution of the differential equation at time t; times (T,) give (T, ...), in the form of the state.

        Periodic: F^-1 [exp(exact_symbol t) F u], exact where the state has no mode at Nyquist. Where no field feels another, as theirs.

        Raises:
            ValueError: no such solution is known.
        """
        fields = self.fields(state)
        if self._decoupled(self.pairs) and not self.reactions:
            found = [equation.exact(t, fields[i]) for (i, _), equation in self._each().items()]
            known = {i: value for (i, _), value in zip(self.pairs, found, strict=True)}
            still = lambda u: u.expand(*torch.as_tensor(t).shape, *u.shape)  # noqa: E731
            return self._formed([known[i] if i in known else still(u) for i, u in enumerate(fields)], state)
        if not self.grid.periodic:
            raise ValueError(f"no exact solution of {type(self).__name__} is known between walls; take a periodic grid, or small steps")
        return self._formed(self._turned(t, fields, self.exact_symbol, False), state)

    def flow(self, u: Any, times: Sequence[float]) -> Any | None:
        """The semi-discrete solution at ``times`` (elapsed since u), stacked in front, in the form of u; None without a closed form.

        For linear terms with constant coefficients and steady data: by the exponential of the matrix of each mode, or between walls of
        all points. u to the bit at t = 0; differentiable in u, coefficients and data.
        """
        fields = self.fields(u)
        steady = all(grid.boundary.steady() for grid in self.grids)
        if self.reactions or not steady or not all(term.constant for equation in self._each().values() for term in equation.terms()):
            return None
        if self.grid.periodic:
            return self._formed(self._turned(tuple(times), fields, self.symbol, True), u)
        zero = tuple(torch.zeros(self.grid.n, dtype=field.dtype, device=field.device) for field in fields)
        pushed = torch.cat(torch.broadcast_tensors(*self._complete(self._gathered(self._each(), 0.0, zero, False), zero)), -1)
        dense = matrix_of({pair: equation.matrix().to(pushed) for pair, equation in self._each().items()}, self.components, False)
        found = dense_flow(dense, pushed, torch.cat(torch.broadcast_tensors(*fields), -1), times)
        return self._formed(list(found.unflatten(-1, (self.components, self.grid.n)).unbind(-2)), u)

    def split(self) -> tuple[LinearOperator, Any] | tuple[LinearOperator, Any, Any]:
        """(linear, rest), between walls (linear, data, rest), of states that are one tensor: as for an equation of one field."""
        parts = [equation.split() for equation in self._each().values()]
        if self._split is None or any(a is not b for a, b in zip(parts, self._split[0], strict=True)):
            self._split = (parts, self._make_split(parts))
        return self._split[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies split anew."""
        return {**self.__dict__, "_split": None}

    def steady(self) -> bool:
        """Whether the coefficients of linear terms are the same at all times."""
        return all(equation.steady() for equation in self._each().values())

    def max_stable_step(self, method: Any, u: Any = None, *, t: float = 0.0) -> float:
        """The largest step with which ``method`` amplifies no mode that the equation itself does not let grow.

        By the eigenvalues of the matrix of each mode, and between walls or where coefficients vary also of that of a few points. A
        reaction is left out, as sources are, and so are terms that are not linear. Methods that treat the linear part of ``split()`` by
        themselves: 0, where fields feel each other through coefficients that vary, if the rest alone grows; else as their parts say.
        Infinite where nothing limits it.
        """
        if not present(self.like()):
            return math.inf
        with torch.no_grad():
            each = self._each()
            if self._decoupled(self.pairs):
                return min(equation.max_stable_step(method, t=t) for equation in each.values())
            return coupled_limit(method, {pair: equation.terms() for pair, equation in each.items()}, self.grids, t)

    def system(self) -> System:
        """Itself."""
        return self

    def __add__(self, other: Any) -> System:
        if not hasattr(other, "system"):
            return NotImplemented
        added = other.system()
        if added.names != self.names:
            raise ValueError(f"systems of different fields do not add: {self.names} and {added.names}; name them alike, in one order")
        if added.packed != self.packed:
            raise ValueError(f"{type(added).__name__} and {type(self).__name__} have states of other forms and do not add")
        pairs = self._each()
        for pair, equation in added._each().items():
            pairs[pair] = pairs[pair] + equation if pair in pairs else equation  # pyright: ignore[reportArgumentType]
        return self._made(pairs, [*self.reactions, *added.reactions])

    def __radd__(self, other: Any) -> Any:
        if isinstance(other, int) and other == 0:
            return self
        return self + other if hasattr(other, "system") else NotImplemented

    def _times(self, factor: float) -> System:
        pairs = {pair: equation * factor for pair, equation in self._each().items()}
        return self._made(pairs, [Pointwise(own.function, factor * own.factor) for own in self.reactions])  # pyright: ignore

    def extra_repr(self) -> str:
        return ", ".join([f"n={self.grid.n}", f"length={self.grid.length:g}", f"fields={', '.join(self.names)}"])

    def _each(self) -> dict[Pair, FieldEquation]:
        return dict(zip(self.pairs, self.equations, strict=True))  # pyright: ignore[reportReturnType]

    def _made(self, pairs: Mapping[Pair, FieldEquation], reactions: Sequence[nn.Module]) -> System:
        """A system of the same fields."""
        rows = {to: {of: pairs[i, j] for j, of in enumerate(self.names) if (i, j) in pairs} for i, to in enumerate(self.names)}
        made = System(rows)
        made.packed, made.reactions = self.packed, nn.ModuleList(reactions)
        return made

    def _decoupled(self, pairs: Sequence[Pair]) -> bool:
        return not self.packed and all(i == j for i, j in pairs)

    def _gathered(self, parts: Mapping[Pair, Callable[[Any, Tensor], Tensor]], t: Any, fields: Fields, react: bool) -> list[Tensor | None]:
        """The sums of parts per field, None where nothing moves it."""
        total: list[Any] = [None] * self.components
        for (i, j), part in parts.items():
            slope = part(t, fields[j])
            total[i] = slope if total[i] is None else total[i] + slope
        for reaction in self.reactions if react else ():
            found = reaction(t, self.grid.points(fields[0]), *fields)
            check_reaction(found, self.names)
            for i, slope in enumerate(found):
                if isinstance(slope, Tensor) or slope != 0:
                    total[i] = (torch.zeros_like(fields[i]) if total[i] is None else total[i]) + slope
        return total

    def _complete(self, slopes: Sequence[Tensor | None], fields: Fields) -> list[Tensor]:
        return [torch.zeros_like(field) if slope is None else slope for slope, field in zip(slopes, fields, strict=True)]

    def _formed(self, slopes: Sequence[Tensor | None], state: Any) -> Any:
        """In the form of the state."""
        full = self._complete(slopes, self.fields(state))
        if isinstance(state, Tensor):
            full = torch.broadcast_tensors(*full)
            return torch.complex(*full) if self.packed else torch.stack(full, -2)
        return type(state)(full) if type(state) in (tuple, list) else tuple(full)

    def _symbols(self, k: Tensor, name: str) -> Tensor:
        if self.reactions:
            raise ValueError("the symbol of a reaction is not known; leave it out, or linearise it and give its slopes as Reaction")
        k = as_tensor(k)
        return matrix_of({pair: getattr(equation, name)(k) for pair, equation in self._each().items()}, self.components, True)

    def _turned(self, t: Any, fields: Fields, symbol: Callable[[Tensor], Tensor], less: bool) -> list[Tensor]:
        """The fields moved by exp(symbol t) in each mode; ``less``: as a change from what they are."""
        u = torch.stack(torch.broadcast_tensors(*fields), -2)
        v = torch.fft.rfft(u).mT[..., None]
        exponential = torch.linalg.matrix_exp(elapsed(t, symbol(self.grid.modes(u.new_empty(0, dtype=torch.float64))), v))
        if less:
            exponential = exponential - torch.eye(self.components, dtype=exponential.dtype, device=u.device)
        moved = torch.fft.irfft((exponential.to(v.dtype) @ v)[..., 0].mT, n=self.grid.n)
        return list((u + moved if less else moved).unbind(-2))

    def _make_split(self, parts: Sequence[Any]) -> Any:
        known, count, periodic = dict(zip(self.pairs, parts, strict=True)), self.components, self.grid.periodic
        each = self._each()
        linears = {pair: part[0] for pair, part in known.items() if any(term.constant for term in each[pair].terms())}
        rests = {pair: part[-1] for pair, part in known.items() if not _idle(each[pair])}
        alone = self._decoupled(tuple(linears))

        def made() -> Tensor:
            values = {pair: part.eigenvalues for pair, part in (linears or {p: part[0] for p, part in known.items()}).items()}
            return (along_fields if alone else matrix_of)(values, count, periodic)

        def rest(t: Any, state: Any) -> Any:
            return self._formed(self._gathered(rests, t, self.fields(state), True), state)

        def data(t: Any, state: Any) -> Any:
            found = self._gathered({pair: part[1] for pair, part in known.items()}, t, self.fields(state), False)
            return self._formed(found, state)

        shape = (count, self.grid.n)
        varying = any(term.linear and not term.constant for equation in each.values() for term in equation.terms())
        near = None
        if varying and count * self.grid.n <= NEAR:
            near = lambda: PointBlocks(partial(self._linear_matrix, each), shape, None, self.packed)  # noqa: E731
        if alone:
            linear = FourierOperator(made, self.grid.n, near) if periodic else LinearOperator.of(made, near)
        else:
            linear = (ModeBlocks if periodic else PointBlocks)(made, shape, near, self.packed)
        return (linear, rest) if periodic else (linear, data, rest)

    def _linear_matrix(self, each: Mapping[Pair, FieldEquation]) -> Tensor:
        """That of all linear terms, coefficients of t = 0."""
        found = {}
        for pair, equation in each.items():
            linear = [term for term in equation.terms() if term.linear]
            if linear:
                found[pair] = sum(linear).matrix()  # pyright: ignore[reportAttributeAccessIssue]
        return matrix_of(found, self.components, False)


class Pointwise(nn.Module):
    """A reaction, times a number."""

    def __init__(self, function: Callable[..., Any], factor: float = 1.0) -> None:
        super().__init__()
        self.function, self.factor = function, factor

    def forward(self, t: Any, x: Tensor, *fields: Tensor) -> Any:
        found = self.function(t, x, *fields)
        if self.factor == 1 or not isinstance(found, tuple | list):
            return found
        return tuple(slope if slope is None else self.factor * slope for slope in found)


def check_reaction(found: Any, names: Sequence[str]) -> None:
    """ValueError or TypeError for what is no tuple of slopes, one for each field."""
    if not isinstance(found, tuple | list) or len(found) != len(names):
        what = f"{len(found)}" if isinstance(found, tuple | list) else type(found).__name__
        raise ValueError(f"reaction must return a tuple of {len(names)} tensors, for {', '.join(names)}; got {what}")
    for name, slope in zip(names, found, strict=True):
        if not isinstance(slope, Tensor | int | float):
            raise TypeError(f"reaction must return tensors or numbers, got {type(slope).__name__} for {name}; give 0.0 for nothing")


def _idle(equation: FieldEquation) -> bool:
    """Whether nothing of it is left beside its linear part, and nothing is to be checked."""
    if not all(term.constant for term in equation.terms()):
        return False
    return equation.grid.periodic or (any(term.diffusive for term in equation.terms()) and not equation.boundary.reads_field)


def _pairs(names: tuple[str, ...], rows: Mapping[str, Row]) -> dict[Pair, FieldEquation]:
    """What moves which field by which."""
    found = {}
    for i, (name, row) in enumerate(rows.items()):
        if not isinstance(row, FieldEquation | Mapping | None):
            raise TypeError(
                f"what moves {name} must be an equation of one field, a mapping from fields to such, or None, got {type(row).__name__}"
            )
        for of, equation in ({name: row} if isinstance(row, FieldEquation) else row or {}).items():
            if of not in names:
                raise ValueError(f"{name} is moved by {of!r}, which is none of the fields {', '.join(names)}")
            if not isinstance(equation, FieldEquation):
                raise TypeError(f"what moves {name} by {of} must be an equation of one field, got {type(equation).__name__}")
            found[i, names.index(of)] = equation
    if not found:
        raise ValueError("a system needs at least one equation, to know its grid; give a Diffusion(grid, 0.0) where there is none")
    return found


def _grids(names: tuple[str, ...], pairs: Mapping[Pair, FieldEquation]) -> list[Grid1D | None]:
    """That of each field, of the terms that read it."""
    grids: list[Grid1D | None] = [None] * len(names)
    first = next(iter(pairs.values())).grid
    for (_, j), equation in pairs.items():
        grid = equation.grid
        if (grid.n, grid.length, grid.start, grid.periodic) != (first.n, first.length, first.start, first.periodic):
            raise ValueError(f"the fields of a system share their points: {grid} and {first} differ")
        before = grids[j]
        if before is not None and before != grid:
            raise ValueError(f"{names[j]} is read on grids with different ends, {before} and {grid}; make its terms with one grid")
        grids[j] = grid
    return grids
