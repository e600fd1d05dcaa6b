"""Where error control rejects attempts: how often, and between which times f seems to jump."""

from __future__ import annotations

import math

Between = tuple[float, float]

LONGER, SOON = 8.0, 3


class Rejections:
    """``count`` attempts were rejected; within the accepted steps ``jumps`` f seems to jump.

    An attempt over a jump is rejected until it is short, wherever it starts: rejections that have a time in common are one pile. Where
    the first of a pile was ``LONGER`` times the step that got over it, and one of the next ``SOON`` is again, it was a jump; in a fast but
    smooth change steps stay short. The step over it is that of the largest error.
    """

    def __init__(self, grow: float) -> None:
        self.count = 0
        self.jumps: list[Between] = []
        self._again = min(LONGER, grow * grow)
        self._origin: float | None = None
        self.forget()

    def forget(self) -> None:
        """What comes has nothing to do with what was: f is known to jump here."""
        self._first, self._end = 0.0, math.nan  # the size of the first rejected, and what all of a pile reach
        self._beyond = 0
        self._clear()

    def _clear(self) -> None:
        self._over: Between | None = None
        self._error = -math.inf

    def saw(self, start: float, stop: float, error: float, accepted: bool, reach: float) -> None:
        """An attempt was made from ``start`` to ``stop``, whose stages reach as many times as far as it does."""
        if self._origin is None:
            self._origin = start
        size, end = abs(stop - start), start + reach * (stop - start)
        if self._first and (start - self._end) * (stop - start) >= 0:
            self._beyond += 1
            self._judge(size, accepted)
        if not accepted:
            self.count += 1
            if not self._first or abs(end - start) < abs(self._end - start):
                self._end = end
            self._first = self._first or size
            self._clear()
        elif self._first and not self._beyond and error > self._error:
            self._over, self._error = (start, stop), error

    def _judge(self, size: float, accepted: bool) -> None:
        """What the pile was, from an attempt behind all that they have in common."""
        over = self._over
        if over is not None and over[0] != self._origin:  # a first step that was too long says nothing
            short = abs(over[1] - over[0])
            if self._first >= LONGER * short and size >= self._again * short:
                self.jumps.append(over)
            elif accepted and self._beyond < SOON:
                return
        self.forget()
