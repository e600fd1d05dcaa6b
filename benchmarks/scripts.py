"""Puts the example scripts on the path of a benchmark that runs them; to be imported before them."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent / "examples"))
