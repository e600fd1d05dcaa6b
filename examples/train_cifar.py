"""Train a CIFAR classifier whose blocks are residual, ODEs or coupled ODEs.

    python examples/train_cifar.py                                        # a minute or two on two cores, data included
    python examples/train_cifar.py --data cifar10 --epochs 30             # the full set, downloaded on first use
    python examples/train_cifar.py --model resnet10 --block ode --steps 3 --seeds 0 1 2          # --stack: as one network
    python examples/train_cifar.py --resume runs/resnet4-coupled-mini-0   # go on after an interruption
    torchrun --nproc-per-node 2 examples/train_cifar.py --data cifar10 --batch-size 512

Every run has a folder: config.json, metrics.csv, curves.png, last.pt (to resume from), best.safetensors and
last.safetensors (weights) and result.json. A run in one process on a CPU that was killed and resumed ends with the same
weights to the bit; one that several processes began may go on in one, and the other way round.
"""

from __future__ import annotations

import dataclasses
import statistics
from datetime import timedelta
from pathlib import Path

from images import Images, load_images
from options import checked, mistakes_told, parse, refuse_idle
from precision import chosen
from ranks import Ranks, joined
from runs import NotWritten, RunError, in_words, new_folder, read_json, refuse_taken, write_json
from settings import ACTS, Config, Precision
from stacked import train_stacked
from training import Training, rehearsal


def main(argv: list[str] | None = None) -> None:
    with mistakes_told():
        config = settled(argv)
        with joined(config.device, timedelta(minutes=10) if config.compile else timedelta(seconds=50)) as ranks:
            images = load_images(config.data, config.data_dir, ranks.device, config.subset, config.size, config.validation)
            check_shares(config, ranks.size, len(images.y_train))
            check_stack(config, ranks)
            if config.resume is None:
                rehearsal(config, ranks, images)()
                config = with_precision(config, ranks, images)
            run = ranks.agree(lambda: run_folder(config))
            try:
                train_seeds(config, run, ranks, images)
            except KeyboardInterrupt:
                if ranks.first:
                    print(f"\ninterrupted; continue from the last epoch with: --resume {run}")
                raise
            except (NotWritten, OSError) as error:
                raise RunError(f"{in_words(error)}; that mended, continue from the last epoch with: --resume {run}") from None


def settled(argv: list[str] | None) -> Config:
    """The options as given, or those of the run to resume."""
    config, given = parse(Config, argv)
    if config.config is not None and config.resume is None:
        config, given = parse(Config, argv, saved_config(config.config, f"--config {config.config}"))
        config = dataclasses.replace(config, config=None)
    if config.resume is None:
        refuse_idle(config, given, ACTS)
        if config.out is not None:
            refuse_taken(config.out)
        return config
    if {*given} - {"resume", "device", "epochs"}:
        raise RunError(
            "--resume continues a run with its own settings; drop the other options but --device and --epochs, or start a new run"
        )
    changes = {name: getattr(config, name) for name in given if name != "resume"}
    saved = saved_config(config.resume / "config.json", f"--resume {config.resume} is no run folder")
    if config.epochs < saved.epochs and "epochs" in given:
        raise RunError(f"--epochs {config.epochs} must be at least the {saved.epochs} of the run in {config.resume}")
    return dataclasses.replace(saved, resume=config.resume, **changes)


def saved_config(path: Path, what: str) -> Config:
    """The settings that a run has left, without its folder."""
    saved = read_json(path, what) | {"out": None, "resume": None, "config": None}
    return checked(Config, saved, lambda name: f"{path}: {name}", str(path))


def run_folder(config: Config) -> Path:
    """The folder of the run to resume, or a new one with its settings."""
    if config.resume is not None:
        if saved_config(config.resume / "config.json", "").epochs != config.epochs:
            write_json(config.resume / "config.json", {**dataclasses.asdict(config), "resume": None})
        return config.resume
    default = Path("runs") / "-".join([config.model, config.block, Path(config.data).name, *map(str, config.seeds)])
    return new_folder(config.out, default, {**dataclasses.asdict(config), "resume": None})


def check_shares(config: Config, processes: int, images: int) -> None:
    if config.batch_size % (processes * config.accumulate) or config.batch_size > images:
        parts = f"{processes} processes times --accumulate {config.accumulate}" if processes > 1 else f"--accumulate {config.accumulate}"
        raise RunError(f"--batch-size {config.batch_size} must be a multiple of {parts}, and at most the {images} training images")


def check_stack(config: Config, ranks: Ranks) -> None:
    """Refuse what cannot be the same for several seeds as for each of them."""
    reasons = {
        "several processes": (ranks.size > 1, "each of which trains one network; start one process"),
        "--compile": (config.compile, "which goes with one seed at a time"),
        "--adjoint backsolve": (
            config.block != "residual" and config.adjoint == "backsolve",
            "which solves backwards one network at a time",
        ),
        "--precision float16": (config.precision == "float16", "whose scale of the gradients would be that of all; take float32"),
        "--precision bfloat16 on CUDA": (
            config.precision == "bfloat16" and ranks.device.type == "cuda",
            "whose BatchNorm under vmap takes no 16 bits; take float32",
        ),
    }
    for what, (there, why) in reasons.items():
        if config.stack and there:
            raise RunError(f"--stack does not go with {what}, {why}, or leave out --stack")


def with_precision(config: Config, ranks: Ranks, images: Images) -> Config:
    """The precision that auto stands for here, the same in all processes and for the rest of the run."""
    if config.precision == "auto" and config.stack and ranks.device.type == "cuda":
        print("--precision auto: float32, as the BatchNorm of a stack takes no other on CUDA")
        return dataclasses.replace(config, precision="float32")
    if config.precision != "auto":
        return config

    def choose() -> Config:
        kinds: tuple[Precision, ...] = ("float32", "bfloat16")
        steps = {kind: rehearsal(dataclasses.replace(config, precision=kind), Ranks(ranks.device), images) for kind in kinds}
        found, why = chosen(ranks.device, lambda kind: steps[kind]())
        print(f"--precision auto: {found}, {why}")
        return dataclasses.replace(config, precision=found)

    return ranks.agree(choose)


def train_seeds(config: Config, run: Path, ranks: Ranks, images: Images) -> None:
    """One run per seed; those of several have folders seed-N inside ``run``, and their summary in its result.json."""
    if len(config.seeds) == 1:
        Training(config, run, ranks, images).run()
        return
    open_ones = []
    for seed in config.seeds:
        own, folder = dataclasses.replace(config, seeds=(seed,), stack=False), run / f"seed-{seed}"
        done = ranks.agree(lambda folder=folder: finished(folder, config.epochs))
        if ranks.first and not done:
            folder.mkdir(exist_ok=True)
            write_json(folder / "config.json", {**dataclasses.asdict(own), "resume": None})
        if not done and config.stack:
            open_ones.append(Training(own, folder, ranks, images))
        elif not done:
            Training(own, folder, ranks, images).run()
    train_stacked(open_ones)
    results = [
        ranks.agree(lambda seed=seed: read_json(run / f"seed-{seed}" / "result.json", f"{run}", "test_accuracy")) for seed in config.seeds
    ]
    accuracies = [result["test_accuracy"] for result in results]
    if ranks.first:
        mean, low, high = statistics.mean(accuracies), min(accuracies), max(accuracies)
        summary = {"test_accuracy": {"mean": mean, "min": low, "max": high}, "seeds": dict(zip(config.seeds, accuracies, strict=True))}
        write_json(run / "result.json", summary)
        print(f"\n{len(accuracies)} seeds: {mean:.2f} ({low:.2f}/{high:.2f}) % test accuracy, mean (min/max); {run / 'result.json'}")


def finished(folder: Path, epochs: int) -> bool:
    return (folder / "result.json").exists() and read_json(folder / "result.json", f"{folder}", "epochs")["epochs"] >= epochs


if __name__ == "__main__":
    main()
