"""How reports look: tables in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned: words to the left, numbers (three digits) to the right."""
    cells = [list(columns), *([cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows)]
    words = [all(isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [[cell.ljust(w) if word else cell.rjust(w) for cell, w, word in zip(row, widths, words, strict=True)] for row in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def number(value: float | int | bool | None) -> str:
    """As a reader wants it: 3 significant digits, a dash for nothing."""
    return "-" if value is None else str(value) if isinstance(value, (bool, int)) else f"{value:.3g}"
