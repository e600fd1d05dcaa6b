"""Files of weights: where they are, and what they say of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
HEADER = "anodev2"  # where the header of a safetensors file has what is known of its weights, as JSON
TRAINED = {file.stem: file for file in sorted(Path(__file__).with_name("trained").glob("*.safetensors"))}  # they come with the library


def facts(run: str | Path) -> Facts:
    """What is known of the weights of a run, of a file of them, or of those called "resnet4" and "resnet10" that come with the library.

    ``network`` (see ``made_from``), ``classes`` (names), ``mean`` and ``std`` of each channel of its images in 0 ... 255, their ``size``
    in pixels, ``data``, ``seed``, ``epoch``, ``test_accuracy`` (%), ``versions``, ``revision``.

    Raises:
        ValueError: a file that holds no such facts.
    """
    from safetensors import SafetensorError, safe_open

    file = weights_file(run)
    try:
        with safe_open(str(file), "pt") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no readable file of weights: {error}") from None
    if HEADER not in header:
        raise ValueError(f"{file} does not say which network its weights are of; make the network and use load_state_dict")
    return json.loads(header[HEADER])


def weights_file(run: str | Path) -> Path:
    """The file itself, or that of the folder of a run: of its best epoch where one was chosen, else of its last; or that of a name."""
    path = Path(run)
    if str(run) in TRAINED and not path.exists():
        return TRAINED[str(run)]
    found = [path] if path.is_file() else [path / name for name in ("best.safetensors", "last.safetensors") if (path / name).is_file()]
    if found:
        return found[0]
    inside = sorted(str(file.parent) for file in path.glob("seed-*/best.safetensors"))
    there = f"it holds the runs {', '.join(inside)}" if inside else "it has no best.safetensors"
    raise ValueError(f"{path} is no folder of a finished epoch of a run: {there}; weights by name are {', '.join(TRAINED)}")
