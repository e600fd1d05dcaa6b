"""The table of a run: geometric means over problems, and the rows in which somebody is ahead of us."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS: tuple[str, ...] = ("problem", "family", "tolerance", "who", "method", "evaluations", "steps", "error", "seconds")
LEAST = 1e-3  # of error / tolerance, in means: where the solution is forgotten, an error at the end says nothing
COMPILED = "anodev2, recorded, compiled"


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a table that was written."""
    with file.open() as lines:
        rows = [dict[str, Any](row) for row in csv.DictReader(lines)]
    for row in rows:
        row |= {name: float(row[name]) for name in ("tolerance", "error", "seconds")}
        row |= {name: int(row[name]) if row[name] else None for name in ("evaluations", "steps")}
    return rows


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def mean(values: Iterable[float]) -> float:
    """The geometric one; nan of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line per family, tolerance and contender; times divided by torchdiffeq's and by scipy's on the same problem."""
    lines = [
        "| | tolerance | | problems | evaluations | error / tolerance | time / torchdiffeq | time / scipy | ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["family"], row["tolerance"], row["who"], row["method"]) for row in rows):
        family, tolerance, who, method = key
        same = [row for row in rows if (row["family"], row["tolerance"], row["who"], row["method"]) == key]
        ratios = [ratio(rows, same, peer) for peer in ("torchdiffeq", "scipy")]
        cells = [
            str(len(same)),
            f"{mean(row['evaluations'] for row in same):.0f}",
            f"{mean(max(row['error'], LEAST) for row in same):.2g}",
            *("-" if math.isnan(value) else f"{value:.2f}" for value in ratios),
            f"{1e3 * mean(row['seconds'] for row in same):.2f}",
        ]
        lines.append(f"| {family} | {tolerance:g} | {who}, {method} | " + " | ".join(cells) + " |")
    return lines


def beside(rows: list[dict[str, Any]], row: dict[str, Any], who: str) -> dict[str, Any] | None:
    """What somebody came to in the place of a row."""
    key = ("problem", "family", "tolerance")
    return next((other for other in rows if other["who"] == who and all(other[name] == row[name] for name in key)), None)


def ratio(rows: list[dict[str, Any]], same: list[dict[str, Any]], peer: str) -> float:
    pairs = [(row, beside(rows, row, peer)) for row in same]
    return mean(row["seconds"] / other["seconds"] for row, other in pairs if other is not None)


def behind(rows: list[dict[str, Any]], who: str, peer: str, times: float) -> tuple[int, list[str]]:
    """In how many rows both are, and those in which ``who`` takes more than so many times as long."""
    pairs = [(row, beside(rows, row, peer)) for row in rows if row["who"] == who]
    both = [(row, other) for row, other in pairs if other is not None]
    late = [
        f"{row['problem']}, {row['method']} at {row['tolerance']:g} ({row['seconds'] / other['seconds']:.2f})"
        for row, other in both
        if row["seconds"] > times * other["seconds"]
    ]
    return len(both), late


def report(rows: list[dict[str, Any]], head: str) -> str:
    """Markdown."""
    lines = [
        "# Error control against its peers",
        "",
        "    python -m benchmarks.ode_vs_peers --jax-python PYTHON --out FOLDER",
        "",
        head,
        "",
    ]
    lines += [
        "Geometric means over so many problems, of DETEST's 25 or of 4 stiff ones; errors below a thousandth of the tolerance count as",
        "that. What is recorded and compiled is timed without the search for its grid and without compiling. Evaluations and errors are",
        "exact, times those of a machine that others use too, by turns: a single ratio may be off by a third. Every row is in",
        "[ode_vs_peers.csv](ode_vs_peers.csv).",
        "",
        *table(rows),
        "",
    ]
    for who in ("anodev2", COMPILED):
        plain = [row for row in rows if row["family"] != "stiff"]
        for what, given, peer, times in (
            ("longer than torchdiffeq", rows, "torchdiffeq", 1.0),
            ("more than 1.5 times as long as scipy on what is not stiff", plain, "scipy", 1.5),
        ):
            count, late = behind(given, who, peer, times)
            if count:
                shown = f": {'; '.join(late)}" if 0 < len(late) <= 12 else ""
                lines.append(f"- {who} takes {what} in {len(late)} of {count} rows{shown}.")
    return "\n".join(lines) + "\n"
