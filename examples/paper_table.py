"""The papers' table of CIFAR-10 accuracies, with our figures beside theirs.

    python examples/paper_table.py                                                       # resnet4 on the small set, in some minutes
    python examples/paper_table.py --models resnet4 --seeds 0 --epochs 10 --data cifar10
    python examples/paper_table.py --models alexnet resnet4 resnet10 --epochs 350 --data cifar10      # theirs: days on a CPU

Each network, variant and seed is a run of train_cifar.py in a process and a folder of its own. How many there are, and how long they
will take by a few steps of each, is told before the first. What is finished, or has diverged, is kept and what was interrupted goes on
when the same command is given again. Writes table.md, runs.csv and curves.png.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from images import DOWNLOADED, load_images
from options import DIFFERENT, Acts, Count, Seeds, acting, mistakes_told, option, parse, refuse_idle
from ranks import Ranks, choose_device
from runs import RunError, in_words, read_json, replacing, write, write_json
from settings import ACTS as TRAINING_ACTS
from settings import Config as TrainingConfig
from training import rehearsal

Variant = Literal["residual", "ode", "coupled-1", "coupled-2", "ode-backsolve"]
Model = Literal["resnet4", "resnet10", "alexnet", "resnet18", "squeezenext", "tiny", "vit"]
Run = tuple[str, str, int]  # model, variant, seed

OPTIONS: dict[str, list[str]] = {
    "residual": ["--block", "residual"],
    "ode": ["--block", "ode"],
    "coupled-1": ["--block", "coupled"],
    "coupled-2": ["--block", "coupled", "--steps", "2"],  # the papers' ten steps of the weights are a closed form here
    "ode-backsolve": ["--block", "ode", "--adjoint", "backsolve"],
}
TITLES: dict[str, str] = {
    "residual": "residual",
    "ode": "neural ODE, exact gradients (ANODE)",
    "coupled-1": "coupled, configuration 1 (ANODEV2)",
    "coupled-2": "coupled, configuration 2 (two steps)",
    "ode-backsolve": "neural ODE, reverse solve",
}
# Read off the table of the authors' talk, mean (min/max); "~": recalled, not checked against the paper.
PAPER: dict[tuple[str, str], str] = {
    ("alexnet", "residual"): "87.03 (86.84/87.15)",
    ("alexnet", "ode"): "88.02 (87.86/88.14)",
    ("alexnet", "coupled-1"): "~88.78",
    ("alexnet", "ode-backsolve"): "75.67 (74.54/76.78)",
    ("resnet4", "residual"): "76.95 (76.47/77.35)",
    ("resnet4", "ode"): "77.30 (76.92/77.45)",
    ("resnet4", "coupled-1"): "~78.11",
    ("resnet4", "ode-backsolve"): "47.37 (44.73/49.91)",
    ("resnet10", "residual"): "88.10 (87.79/88.52)",
    ("resnet10", "ode"): "88.60 (88.48/88.75)",
    ("resnet10", "coupled-1"): "~89.04",
    ("resnet10", "ode-backsolve"): "67.94 (64.7/70.06)",
}


@dataclass(frozen=True)
class Config:
    """The papers' table of CIFAR-10 accuracies, with our figures beside theirs."""

    models: Annotated[tuple[Model, ...], DIFFERENT] = ("resnet4",)
    """networks; the papers' are alexnet resnet4 resnet10"""
    variants: Annotated[tuple[Variant, ...], DIFFERENT] = ("residual", "ode", "coupled-1", "coupled-2", "ode-backsolve")
    """rows of the table"""
    seeds: Seeds = (0, 1, 2)
    """runs of each"""
    epochs: Count = 3
    """of each run; the papers' figures are after 350"""
    steps: Count = 5
    """steps of every block but those of coupled-2"""
    data: str = "mini"
    """as for train_cifar.py"""
    data_dir: Path = Path("data")
    """as for train_cifar.py"""
    subset: Count | None = None
    """use only so many training images"""
    recipe: str = ""
    """further options of train_cifar.py for every run in which they have an effect: --recipe='--schedule paper --batch-size 256'"""
    stack: bool = False
    """the seeds of a network and variant as one network where they can be, in one folder, as by train_cifar.py --stack"""
    out: Path = Path("runs/paper_table")
    """folder of the runs and the table"""


STEPPED = ("ode", "coupled-1", "ode-backsolve")  # variants whose steps are those of the table
ACTS: Acts = {
    "data_dir": (f"--data {', '.join(DOWNLOADED)}", lambda c: c.data in DOWNLOADED),
    "stack": ("several --seeds and --variants other than ode-backsolve", lambda c: any(together(c, variant) for variant in c.variants)),
    "steps": (f"--variants {', '.join(STEPPED)}", lambda c: not {*STEPPED}.isdisjoint(c.variants)),
}
OWN = {
    "model",
    "block",
    "steps",
    "adjoint",
    "epochs",
    "seeds",
    "stack",
    "data",
    "data_dir",
    "subset",
    "out",
    "resume",
    "init",
    "config",
}  # not for a recipe


def main(argv: list[str] | None = None) -> None:
    with mistakes_told():
        config, given = parse(Config, argv)
        refuse_idle(config, given, ACTS)
        check_recipe(config)
        made = remember(config)
        try:
            foretell(config)
            for model, variant in [(m, v) for m in config.models for v in config.variants if together(config, v)]:
                train_together(config, model, variant)
                report(config)
            for run in runs_of(config):
                train(config, run)
                report(config)
        except RunError:
            forget(config, made)
            raise
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here")
            raise
        print((config.out / "table.md").read_text())


def check_recipe(config: Config) -> None:
    """Each of its options acts in some run, and is none that the table gives itself."""
    try:
        recipe, given = parse(TrainingConfig, shlex.split(config.recipe))
    except ValueError as error:
        raise RunError(f"--recipe {config.recipe!r} cannot be read ({in_words(error)})") from None
    if not OWN.isdisjoint(given):
        raise RunError(f"--recipe has {', '.join(option(name) for name in given if name in OWN)}, which the table itself gives to its runs")
    if recipe.precision == "auto":
        raise RunError("--recipe has --precision auto, by which the runs of one table could differ; name a precision")
    used = {word for model in config.models for variant in config.variants for word in options_of(config, (model, variant, 0))}
    idle = [name for name in given if not {option(name), option(f"no_{name}")} & used]
    if idle:
        raise RunError(f"--recipe has {', '.join(map(option, idle))}, without effect in any of the runs; leave it out")


def remember(config: Config) -> list[Path]:
    """All runs of one table are alike: what they share is kept, and compared when the table is continued. Returns the new folders."""
    shared = {name: str(value) for name, value in asdict(config).items() if name not in ("models", "variants", "seeds", "out", "data_dir")}
    path = config.out / "settings.json"
    if path.exists() and (before := read_json(path, f"--out {config.out}")) != shared:
        changed = ", ".join(f"{name} was {before.get(name)}" for name, value in shared.items() if before.get(name) != value)
        raise RunError(f"--out {config.out} holds a table of other settings ({changed}); give these, or another folder")
    made = [place for place in (config.out, *config.out.parents) if not place.exists()]
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(path, shared)
    return made


def forget(config: Config, made: list[Path]) -> None:
    """Where no run could begin nothing stays, and the next command may have other settings."""
    if not any(config.out.glob("*/config.json")):
        (config.out / "settings.json").unlink(missing_ok=True)
        for place in made:
            with suppress(OSError):
                place.rmdir()


def together(config: Config, variant: str) -> bool:
    """Whether the seeds are one network: the reverse solve takes one at a time."""
    return config.stack and len(config.seeds) > 1 and variant != "ode-backsolve"


def runs_of(config: Config) -> list[Run]:
    """All of them, in the order in which they are trained."""
    return [(model, variant, seed) for seed in config.seeds for model in config.models for variant in config.variants]


def over(place: Path) -> bool:
    """Whether the run in this folder is finished, or has diverged."""
    return (place / "result.json").exists() or (place / "failed.txt").exists()


def foretell(config: Config) -> None:
    """Say how many runs there are and how long they will take, by the start of this process and a few steps of each kind of run."""
    runs = runs_of(config)
    left = [run for run in runs if not over(folder(config, run))]
    if not left:
        return
    start, total = time.process_time(), 0.0
    for model, variant in dict.fromkeys(run[:2] for run in left):
        own = [run for run in left if run[:2] == (model, variant)]
        epoch = seconds_per_epoch(config, own[0])
        total += sum(start + epoch * (config.epochs - epochs_of(folder(config, run))) for run in own)
        print(f"{model}, {TITLES[variant]}: {epoch:.3g} s per epoch")
    done = f", {len(runs) - len(left)} of them over" if len(left) < len(runs) else ""
    print(f"{len(runs)} runs of {config.epochs} epochs{done}: about {in_time(total)}; interrupted, the same command goes on", flush=True)


def seconds_per_epoch(config: Config, run: Run) -> float:
    """By the quickest of a few first steps; testing is a pass forward, a third of a step."""
    settings, _ = parse(TrainingConfig, options_of(config, run))
    ranks = Ranks(choose_device(settings.device))
    images = load_images(settings.data, settings.data_dir, ranks.device, settings.subset, settings.size, settings.validation)
    step, part = rehearsal(settings, ranks, images), settings.batch_size // settings.accumulate
    took: list[float] = []
    while len(took) < 4 and sum(took) < 5:  # the first one is slower
        began = time.perf_counter()
        step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return min(took) / part * (len(images.y_train) + len(images.y_test) / 3 + len(images.y_valid) / 3)


def epochs_of(place: Path) -> int:
    """How many epochs of the run in this folder are done."""
    rows = place / "metrics.csv"
    return len(rows.read_text().splitlines()) - 1 if rows.exists() else 0


def in_time(seconds: float) -> str:
    """In the largest unit of which there are two."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    name, length = next((unit for unit in units if seconds >= 2 * unit[1]), units[-1])
    return f"{seconds / length:.0f} {name}"


def folder(config: Config, run: Run) -> Path:
    model, variant, seed = run
    return config.out / f"{model}-{variant}" / f"seed-{seed}" if together(config, variant) else config.out / f"{model}-{variant}-{seed}"


def options_of(config: Config, run: Run) -> list[str]:
    """The command line of a run: what the table gives, the recipe, and the variant, as far as it has an effect."""
    model, variant, seed = run
    shared = {"model": model, "seeds": seed, "epochs": config.epochs, "steps": config.steps, "data": config.data}
    shared |= {"data-dir": config.data_dir, "out": folder(config, run)} | ({} if config.subset is None else {"subset": config.subset})
    words = [word for name, value in shared.items() for word in (f"--{name}", str(value))]
    return acting(TrainingConfig, [*words, *shlex.split(config.recipe), *OPTIONS[variant]], TRAINING_ACTS)


def train(config: Config, run: Run) -> None:
    """Begin a run, go on with it, or leave it where it is finished; one that fails (a loss that is not finite) leaves its last words."""
    place = folder(config, run)
    if over(place):
        return
    options = ["--resume", str(place)]
    if not (place / "config.json").exists():
        options = options_of(config, run)
    diverged = failure(place, options)
    if diverged:
        write(place / "failed.txt", diverged.encode())


def train_together(config: Config, model: str, variant: str) -> None:
    """All seeds to their end, or until one diverges or has, after which each goes on alone."""
    places = [folder(config, (model, variant, seed)) for seed in config.seeds]
    place = places[0].parent
    if any((one / "failed.txt").exists() for one in places) or all((one / "result.json").exists() for one in places):
        return
    begun = (place / "config.json").exists()
    first = options_of(config, (model, variant, config.seeds[0]))
    changes = {"--out": [str(place)], "--seeds": [*map(str, config.seeds), "--stack"]}
    words = [word for before, word in zip(["", *first], first, strict=False) for word in changes.get(before, [word])]
    failure(place, ["--resume", str(place)] if begun else words)


def failure(place: Path, options: list[str]) -> str:
    """The last words of a training whose loss became endless, or none where it came to its end."""
    print(f"\n{place.relative_to(place.parent.parent)}: train_cifar.py {shlex.join(options)}", flush=True)
    script = Path(__file__).with_name("train_cifar.py")
    process = subprocess.run([sys.executable, str(script), *options], stderr=subprocess.PIPE, text=True)
    if not process.returncode:
        return ""
    words = (process.stderr.strip().splitlines() or ["no message"])[-1]
    print(words)
    if process.returncode == 130:
        raise KeyboardInterrupt
    if not (place / "config.json").exists() or "the loss became" not in words:
        raise RunError(f"{place} ended with status {process.returncode}: {words}")
    return words


def report(config: Config) -> None:
    """table.md, runs.csv and curves.png of the runs that are there."""
    results = {
        run: read_json(folder(config, run) / "result.json", f"{folder(config, run)}", "test_accuracy")
        for run in sorted(runs_of(config), key=lambda run: (config.models.index(run[0]), config.variants.index(run[1])))
        if (folder(config, run) / "result.json").exists()
    }
    write(config.out / "table.md", table(config, results).encode())
    write(config.out / "runs.csv", rows(results).encode())
    draw_curves(config, results)


def table(config: Config, results: dict[Run, dict[str, Any]]) -> str:
    heads = "".join(f" {model}, here | {model}, papers |" for model in config.models)
    lines = [f"| test accuracy in % |{heads}", "|---|" + "---|---|" * len(config.models)]
    for variant in config.variants:
        cells = "".join(f" {accuracy(config, results, m, variant)} | {PAPER.get((m, variant), '')} |" for m in config.models)
        lines.append(f"| {TITLES[variant]} |{cells}")
    lines += ["", f"Here: {settings(config, results)}. Mean (min/max) of the seeds {', '.join(map(str, config.seeds))}, last epoch."]
    lines += ["Papers: 350 epochs; ANODE and ANODEV2's authors, read off their table; figures with ~ are recalled and not checked.", ""]
    lines += ["| | parameters | seconds per epoch | / residual | peak memory in MiB |", "|---|---|---|---|---|"]
    for model in config.models:
        base = mean(results, model, "residual", "seconds_per_epoch")
        for variant in config.variants:
            seconds = mean(results, model, variant, "seconds_per_epoch")
            if seconds is not None:
                count, memory = mean(results, model, variant, "parameters"), mean(results, model, variant, "peak_memory_mib")
                ratio = "" if base is None else f"{seconds / base:.2f}"
                lines.append(f"| {model}, {TITLES[variant]} | {count:,.0f} | {seconds:.1f} | {ratio} | {memory:.0f} |")
    return "\n".join(lines) + "\n"


def accuracy(config: Config, results: dict[Run, dict[str, Any]], model: str, variant: str) -> str:
    found = [results[model, variant, seed]["test_accuracy"] for seed in config.seeds if (model, variant, seed) in results]
    failed = sum((folder(config, (model, variant, seed)) / "failed.txt").exists() for seed in config.seeds)
    words = [f"{failed} of {len(config.seeds)} diverged"] if failed else []
    if found:
        words.insert(0, f"{statistics.mean(found):.2f}" + (f" ({min(found):.2f}/{max(found):.2f})" if len(found) > 1 else ""))
    if len(found) + failed < len(config.seeds):
        words.append(f"{len(found) + failed} of {len(config.seeds)} runs so far")
    return "; ".join(words)


def mean(results: dict[Run, dict[str, Any]], model: str, variant: str, what: str) -> float | None:
    found = [result[what] for (m, v, _), result in results.items() if (m, v) == (model, variant)]
    return statistics.mean(found) if found else None


def settings(config: Config, results: dict[Run, dict[str, Any]]) -> str:
    used = next(iter(results.values()))["config"] if results else {}
    told = ("batch_size", "schedule", "lr", "precision", "norm", "method")
    words = [
        f"{config.data}",
        f"{config.epochs} epochs",
        f"{config.steps} steps",
        *(f"{name} {used[name]}" for name in told if name in used),
    ]
    devices = {f"{result['device']}, {result['threads']} threads, torch {result['torch']}" for result in results.values()}
    subset = [] if config.subset is None else [f"{config.subset} training images"]
    recipe = [f"options {config.recipe!r}"] if config.recipe else []
    return "; ".join([", ".join([*words, *subset, *recipe]), *sorted(devices)])


def rows(results: dict[Run, dict[str, Any]]) -> str:
    names = [
        "test_accuracy",
        "epochs",
        "parameters",
        "seconds_per_epoch",
        "images_per_second",
        "peak_memory_mib",
        "device",
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "variant", "seed", *names])
    writer.writerows([*run, *(result[name] for name in names)] for run, result in results.items())
    return text.getvalue()


def draw_curves(config: Config, results: dict[Run, dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(config.models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(config.models), squeeze=False)[0], config.models, strict=True):
        for color, variant in enumerate(config.variants):
            for number, seed in enumerate(seed for seed in config.seeds if (model, variant, seed) in results):
                history = list(csv.DictReader((folder(config, (model, variant, seed)) / "metrics.csv").read_text().splitlines()))
                epochs, values = ([float(row[name]) for row in history] for name in ("epoch", "test_accuracy"))
                axes.plot(epochs, values, ".-", color=f"C{color}", lw=1, label=None if number else TITLES[variant])
        axes.set(title=model, xlabel="epoch", ylabel="test accuracy in %")
        if axes.lines:
            axes.legend(fontsize=7)
    with replacing(config.out / "curves.png") as file:
        figure.savefig(file, dpi=120, format="png")


if __name__ == "__main__":
    main()
