"""Multiples and differences of equations: 2 * a, -a, a - b."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class Multiples:
    """Multiplication by numbers, of equations that are sums of terms, or tell their multiples by ``_times``."""

    def __mul__(self, factor: Any) -> Any:
        if isinstance(factor, Tensor):
            raise TypeError(f"an equation is multiplied by numbers, got a tensor of shape {tuple(factor.shape)}; multiply its coefficient")
        if not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise ValueError(f"the factor {factor} of an equation must be finite")
        return self._times(factor)

    def _times(self: Any, factor: float) -> Any:
        from .equation import Sum
        from .scaled import Scaled

        return Sum(*(Scaled(term, factor) for term in self.terms()))

    def __rmul__(self, factor: Any) -> Any:
        return self * factor

    def __neg__(self) -> Any:
        return self * -1.0

    def __sub__(self: Any, other: Any) -> Any:
        return self + -other if isinstance(other, Multiples) else NotImplemented
