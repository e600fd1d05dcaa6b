"""Tests of the suite run on the device; rows are their files."""

from __future__ import annotations

import contextlib
import io

import pytest

IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"  # plugins of pytest, by the tables before


def answer(row: str) -> str:
    """What pytest says in the end if all pass and none is skipped, or everything that it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-W", IMPORTED, row])
    last = said.getvalue().splitlines()[-1]
    return last if code == 0 and "skipped" not in last else said.getvalue()
