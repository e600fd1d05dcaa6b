"""The command line of the scripts: values of their type and in their range, no option without effect, mistakes told in one sentence."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import tyro

from runs import RunError, in_words, writable

T = TypeVar("T")
Acts = Mapping[str, tuple[str, Callable[[Any], bool]]]  # of an option: where it has an effect, in words and as a question to the settings


class Rule(NamedTuple):
    """What holds for every value of a field, beside its type: ``Annotated[int, Rule("at least 1", lambda n: n >= 1)]``."""

    words: str
    holds: Callable[[Any], bool]


LARGEST = torch.finfo(torch.float32).max
Count = Annotated[int, Rule("at least 1", lambda n: n >= 1)]
CountFrom0 = Annotated[int, Rule("at least 0", lambda n: n >= 0)]
Positive = Annotated[float, Rule("positive and finite", lambda x: 0 < x <= LARGEST)]
NotNegative = Annotated[float, Rule("at least 0 and finite", lambda x: 0 <= x <= LARGEST)]
Share = Annotated[float, Rule("at least 0 and below 1", lambda x: 0 <= x < 1)]
Seed = Annotated[int, Rule("at least 0 and below 2^31", lambda n: 0 <= n < 2**31)]
Drawing = Annotated[Path, tyro.conf.arg(metavar="PICTURE.png|none")]
AUTO = "auto"
DIFFERENT = Rule("one or more, all different", lambda values: len(set(values)) == len(values) > 0)
Seeds = Annotated[tuple[Seed, ...], DIFFERENT, tyro.conf.arg(aliases=("--seed",))]
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


@contextmanager
def mistakes_told() -> Iterator[None]:
    """What a user can mend ends the script with one sentence and status 1, an interruption with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except (RunError, ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        sys.exit(f"error: {in_words(error)}")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sys.exit(f"error: out of memory ({in_words(error)})")


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse(kind: type[T], argv: Sequence[str] | None, default: T | None = None, about: str | None = None) -> tuple[T, list[str]]:
    """The settings of a command line, each in its range, and the names of the options given; ``default``: what holds for the others."""
    argv = sys.argv[1:] if argv is None else argv
    begin: dict[str, Any] = {} if default is None else {"default": default}
    config = tyro.cli(kind, args=argv, description=about, **begin)
    checked(kind, vars(config), option, "the command line")
    words = [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    names = (name for word in words for name in (word, word.removeprefix("no_"), f"{word}s") if name in vars(config))  # the last: an alias
    return config, list(dict.fromkeys(names))


def refuse_idle(config: Any, given: Sequence[str], acts: Acts) -> None:
    """Refuse what was given and has no effect."""
    for name in given:
        if name in acts and not acts[name][1](config):
            raise RunError(f"{option(name)} has no effect here, only with {acts[name][0]}; leave it out")


def acting(kind: type[Any], argv: Sequence[str], acts: Acts) -> list[str]:
    """The options of a command line that have an effect."""
    config, given = parse(kind, argv)
    found: list[str] = []
    for name in given:
        value = getattr(config, name)
        if name in acts and not acts[name][1](config):
            continue
        if isinstance(value, bool):
            found.append(option(name) if value else option(f"no_{name}"))
        else:
            found += [option(name), *map(str, value if isinstance(value, tuple) else [value])]
    return found


def checked(kind: type[T], values: Mapping[str, Any], label: Callable[[str], str], source: str) -> T:
    """kind(**values) of values that have their fields' types and obey their rules, be they from a command line or from JSON."""
    hints, kept = get_type_hints(kind, include_extras=True), {}
    if values.keys() != hints.keys():
        differ = ", ".join(sorted(values.keys() ^ hints.keys()))
        raise RunError(f"{source} is of another version of this script, which differs in {differ}; go on with that version")
    for name, value in values.items():
        try:
            kept[name] = _fitting(hints[name], value)
        except ValueError as error:
            raise RunError(f"{label(name)} {value!r} must be {error}") from None
    return kind(**kept)


def _fitting(hint: Any, value: Any) -> Any:
    """The value as that type, or a ValueError that says what it must be."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fits = _fitting(inner[0], value)
        broken = [rule.words for rule in inner[1:] if isinstance(rule, Rule) and not rule.holds(fits)]
        if broken:
            raise ValueError(broken[0])
        return fits
    if origin in (Union, UnionType):  # of a type and None
        return None if value is None else _fitting(next(part for part in inner if part is not NoneType), value)
    if origin is Literal:
        if not any(type(value) is type(known) and value == known for known in inner):
            raise ValueError(f"one of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError("a list")
        return tuple(_fitting(inner[0], part) for part in value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is not hint:
        raise ValueError(PLAIN[hint])
    return value


@dataclass(frozen=True)
class Nothing:
    """A command line without options."""


@dataclass(frozen=True)
class OnDevice:
    """Where a script computes."""

    device: str = AUTO
    """auto (a GPU where there is one), cpu, cuda, ..."""


@dataclass(frozen=True)
class Picture:
    """Where a script draws; its default is named after the script."""

    out: Drawing = Path("picture.png")
    """where to draw; none: no picture, the numbers alone"""


@dataclass(frozen=True)
class SeededPicture(Picture):
    """The same for a script that draws numbers at random."""

    seed: Seed = 0
    """of all that is random"""


@dataclass(frozen=True)
class DevicePicture(OnDevice, SeededPicture):
    """The same for one that trains a network."""


def script(main: Callable[..., Any], about: str | None, kind: type[Any] = Nothing) -> None:
    """Call ``main`` with the command line's options by their names, its pictures first, once it is sure that these can be written."""
    with mistakes_told():
        default = kind()
        if isinstance(default, Picture):
            default = replace(default, out=Path(Path(inspect.unwrap(main).__code__.co_filename).stem + ".png"))
        config, _ = parse(kind, None, default, about)
        given, hints = vars(config), get_type_hints(kind, include_extras=True)
        pictures = [drawable(given[name], option(name)) for name, hint in hints.items() if hint == Drawing]
        main(*pictures, **{name: value for name, value in given.items() if hints[name] != Drawing})


def drawable(file: Path, name: str = "--out") -> Path | None:
    """The picture's file if it can be written, None for "none"."""
    if file == Path("none"):
        return None
    writable(file, name, ".png")
    return file
