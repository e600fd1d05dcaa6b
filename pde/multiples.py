"""Multiples and differences of equations: 2 * a, -a, a - b."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .equation import FieldEquation


class Multiples:
    """Multiplication by numbers, of equations that are sums of terms."""

    def __mul__(self: Any, factor: Any) -> FieldEquation:
        from .equation import Sum
        from .scaled import Scaled

        if isinstance(factor, Tensor):
            raise TypeError(f"an equation is multiplied by numbers, got a tensor of shape {tuple(factor.shape)}; multiply its coefficient")
        if not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise ValueError(f"the factor {factor} of an equation must be finite")
        return Sum(*(Scaled(term, factor) for term in self.terms()))

    def __rmul__(self, factor: Any) -> FieldEquation:
        return self * factor

    def __neg__(self) -> FieldEquation:
        return self * -1.0

    def __sub__(self: Any, other: Any) -> FieldEquation:
        return self + -other if isinstance(other, Multiples) else NotImplemented
