"""What is left of an equation besides its linear part, on a periodic grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anodev2 import SplitState
from anodev2.fourier import modes_of

from .grid import Grid1D

if TYPE_CHECKING:
    from .equation import Term


class PeriodicRest:
    """The sum of terms on a periodic grid; ``transformed`` gives its Fourier modes, with one transform for all terms but the spectral."""

    def __init__(self, grid: Grid1D, terms: Sequence[Term]) -> None:
        self.grid = grid
        self.terms = terms

    def __call__(self, t: Any, u: Tensor) -> Tensor:
        self.grid.check(u)
        return reduce(torch.add, [term.tendency(t, u) for term in self.terms]) if self.terms else torch.zeros_like(u)

    def transformed(self, t: Any, state: SplitState) -> Tensor:
        """The real Fourier transform of the sum, of a field that is known, or its modes."""
        spectra = [term.spectrum(t, state) for term in self.terms]
        plain = [term.tendency(t, state.field) for term, spectrum in zip(self.terms, spectra, strict=True) if spectrum is None]
        known = [spectrum for spectrum in spectra if spectrum is not None]
        if plain:
            known.append(modes_of(reduce(torch.add, plain)))
        return reduce(torch.add, known) if known else torch.zeros_like(state.held)
