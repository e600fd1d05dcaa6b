"""The table and picture of what has been run: differences within pairs of one seed, and how sure they are."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from pathlib import Path

from scipy.stats import t as student

KEY = ("data", "images", "kind", "channels", "seed")
COLUMNS: tuple[str, ...] = ("data", "kind", "channels", "seed", "images", "parameters", "accuracy", "loss", "cpu_seconds")
NAMES = {"fashion": "FashionMNIST at 14x14", "cifar10": "CIFAR-10 at 16x16"}
BASE = "shared"
Row = dict[str, str]
Group = tuple[str, str, str]


def read(path: Path) -> list[Row]:
    """The rows of a file of runs, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def interval(differences: list[float], level: float) -> tuple[float, float]:
    """Mean and half width of Student's interval for the mean, at this level of confidence; infinite for one difference."""
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return mean, math.inf
    return mean, float(student.ppf((1 + level) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)


def grouped(rows: list[Row]) -> dict[Group, dict[str, dict[int, Row]]]:
    """By (data, channels, images), then by kind, then by seed."""
    groups: dict[Group, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["data"], row["channels"], row["images"]][row["kind"]][int(row["seed"])] = row
    return groups


def differences(runs: dict[str, dict[int, Row]], kind: str) -> list[float]:
    """Accuracy minus that of the shared weights, for all seeds that both have."""
    base = runs.get(BASE, {})
    return [float(row["accuracy"]) - float(base[seed]["accuracy"]) for seed, row in sorted(runs[kind].items()) if seed in base]


def verdict(found: list[float], others: int) -> str:
    """ "better" or "worse" where the interval that holds for all kinds at once, by Bonferroni, is on one side of 0."""
    mean, half = interval(found, 1 - 0.05 / others)
    return "" if abs(mean) <= half else "better" if mean > 0 else "worse"


def table(runs: dict[str, dict[int, Row]]) -> list[str]:
    lines = ["| kind | parameters | seeds | accuracy in % | minus shared weights, 95 % | for all kinds at once | CPU seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    kinds = sorted(runs, key=lambda kind: -statistics.mean(float(row["accuracy"]) for row in runs[kind].values()))
    others = max(1, len(runs) - 1)
    for kind in kinds:
        rows = list(runs[kind].values())
        accuracy = [float(row["accuracy"]) for row in rows]
        said, clear = "", ""
        if kind != BASE and (found := differences(runs, kind)):
            mean, half = interval(found, 0.95)
            said = f"{mean:+.2f} ± {half:.2f}" if math.isfinite(half) else f"{mean:+.2f}, one pair"
            clear = verdict(found, others)
        seconds = statistics.median(float(row["cpu_seconds"]) for row in rows)
        lines.append(
            f"| {kind} | {int(rows[0]['parameters']):,} | {len(rows)} | {statistics.mean(accuracy):.2f} "
            f"({min(accuracy):.2f}/{max(accuracy):.2f}) | {said} | {clear} | {seconds:.0f} |"
        )
    return lines


def report(path: Path) -> None:
    """depth.md and depth.png beside depth.csv."""
    groups = dict(sorted(grouped(read(path)).items(), key=lambda item: (item[0][0] != "fashion", -int(item[0][2]), -int(item[0][1]))))
    lines = ["# What moving weights are worth", "", "`python -m benchmarks.depth`; every run is a row of depth.csv.", ""]
    for group, runs in groups.items():
        lines += [f"## {title(group)}", "", *table(runs), ""]
    lines += [
        "Images are means of 2x2 pixels; five Euler steps of z + f(z) / 5, f = conv relu BN conv relu BN with a norm for each step; Adam, "
        "one cycle to 0.01, batch 128. Mean (min/max) of the seeds. Differences are within pairs: the same order of images, the same start "
        "wherever shapes allow; ± is half of Student's interval. The sixth column says where the interval at 95 % for all kinds together "
        "(Bonferroni) leaves out 0; where it is empty the runs do not tell a difference from chance.",
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(groups, path.with_suffix(".png"))


def title(group: Group) -> str:
    data, channels, images = group
    return f"{NAMES[data]}, {channels} channels, {int(images):,} images"


def draw(groups: dict[Group, dict[str, dict[int, Row]]], picture: Path) -> None:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(groups) + 2.5, 5), layout="constrained")
    kinds = list(dict.fromkeys(kind for runs in groups.values() for kind in runs))
    looks = {kind: {"fmt": "os^Dv*P"[place // 10 % 7], "color": f"C{place % 10}"} for place, kind in enumerate(kinds)}
    drawn: dict[str, Artist] = {}
    for axes, (group, runs) in zip(figure.subplots(1, max(1, len(groups)), squeeze=False)[0], groups.items(), strict=False):
        for kind in runs:
            if found := differences(runs, kind):
                mean, half = interval(found, 0.95)
                parameters = int(next(iter(runs[kind].values()))["parameters"])
                drawn[kind], *_ = axes.errorbar(parameters, mean, half if math.isfinite(half) else 0.0, capsize=3, **looks[kind])
        axes.axhline(0, color="0.7", lw=1)
        axes.set(xscale="log", xlabel="parameters", title=title(group))
        axes.title.set_fontsize(9)
    figure.supylabel("test accuracy minus that of shared weights, in %", fontsize=10)
    if drawn:
        figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", fontsize=7)
    figure.savefig(picture, dpi=120, metadata={"Software": None})
