"""Who speaks? Weights that learn while they read a sequence, beside networks of as many parameters whose weights do not.

    pip install --no-deps "aeon>=1.6"          # brings the data; nothing of it is imported
    python examples/fast_weights.py            # 5 seeds, under five minutes on two cores
    python examples/fast_weights.py --models hebb delta --seeds 2 --out table.md

JapaneseVowels: nine speakers, 270 utterances to train on and 370 to test, each 7 to 29 frames of 12 numbers. A network reads frames and the
time since the last one; the mean of its outputs chooses the speaker. Printed, and written to ``--out``: parameters, test accuracy in %,
and test accuracy where 30 % of the frames are dropped at random and the others keep their times, mean (min/max) of the seeds.
Nothing is trained with frames missing: what a network makes of irregular times comes from its equation alone.

Source: Kudo, Toyama, Shimbo, Pattern Recognition Letters 20 (1999).
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from anodev2 import CoupledODEBlock, DeltaRule, FastWeights, Galerkin, GradientFlow, Hebb, ODEBlock, Path
from options import DIFFERENT, Count, Positive, Seed, Share, mistakes_told, parse
from ranks import choose_device
from runs import RunError, writable

Name = Literal["hebb", "delta", "exact delta", "gradient flow", "GRU", "neural ODE", "Galerkin"]
BATCH, FILES = 54, "datasets/data/JapaneseVowels"


@dataclass(frozen=True)
class Config:
    """Train networks to tell speakers apart, on whole sequences, and test them on whole and on irregular ones."""

    data: File | None = None
    """where JapaneseVowels_TRAIN.ts and _TEST.ts are: a folder, or a wheel of aeon; default: the installed package"""
    models: Annotated[tuple[Name, ...], DIFFERENT] = get_args(Name)
    """which networks"""
    parameters: Count = 4000
    """of a network, about"""
    epochs: Count = 30
    """of training"""
    lr: Positive = 0.01
    """largest learning rate of Adam"""
    drop: Share = 0.3
    """share of the frames that are missing in the second test"""
    seeds: Count = 5
    """how many runs of each network"""
    seed: Seed = 0
    """of the first run; the next ones follow"""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    out: File | None = None
    """write the table there too, as Markdown"""


@dataclass(frozen=True)
class Sequences:
    """Padded frames (count, longest, 12) at times (count, longest), how many are there, and who speaks."""

    times: Tensor
    frames: Tensor
    lengths: Tensor
    speakers: Tensor

    def __len__(self) -> int:
        return len(self.speakers)

    def these(self, places: Tensor) -> Sequences:
        return Sequences(self.times[places], self.frames[places], self.lengths[places], self.speakers[places])

    def dropped(self, share: float, seed: int) -> Sequences:
        """Without that share of the frames, two at least being left; the others keep their times."""
        chance = torch.rand(self.times.shape, generator=torch.Generator().manual_seed(seed)).to(self.times.device)
        there = torch.arange(self.times.shape[1], device=self.times.device) < self.lengths[:, None]
        left = (self.lengths * (1 - share)).round().long().clamp_min(2).minimum(self.lengths)
        rank = torch.where(there, chance, 2.0).argsort(1).argsort(1)
        kept = rank < left[:, None]
        order = torch.where(kept, 0, 1).argsort(stable=True, dim=1)
        return Sequences(self.times.gather(1, order), self.frames.gather(1, order[..., None].expand_as(self.frames)), left, self.speakers)

    def path(self) -> Path:
        """Frames and the time since the last one, held until the next."""
        gaps = torch.cat([torch.ones_like(self.times[:, :1]), self.times.diff(dim=1)], 1)
        return Path(self.times, torch.cat([self.frames, gaps[..., None]], 2), "hold", lengths=self.lengths)


def load(data: File | None, device: torch.device) -> tuple[Sequences, Sequences]:
    """Training and test set, every channel with mean 0 and deviation 1 in the former."""
    found = importlib.util.find_spec("aeon") if data is None else None
    folder = File(next(iter(found.submodule_search_locations or [""]))) / FILES if found else data
    if folder is None:
        raise RunError(
            'JapaneseVowels is not here: pip install --no-deps "aeon>=1.6", or --data with the folder of its .ts files or that wheel'
        )
    train, test = (parsed(text_of(folder, f"JapaneseVowels_{part}.ts"), device) for part in ("TRAIN", "TEST"))
    there = torch.arange(train.frames.shape[1], device=device) < train.lengths[:, None]
    mean, deviation = train.frames[there].mean(0), train.frames[there].std(0)
    train, test = (Sequences(s.times, (s.frames - mean) / deviation, s.lengths, s.speakers) for s in (train, test))
    return train, test


def text_of(place: File, name: str) -> str:
    """A file of a folder or of a wheel."""
    if place.suffix == ".whl":
        with zipfile.ZipFile(place) as wheel:
            return wheel.read(f"aeon/{FILES}/{name}").decode()
    if not (place / name).exists():
        raise RunError(f"--data {place} holds no {name}")
    return (place / name).read_text()


def parsed(text: str, device: torch.device) -> Sequences:
    """A .ts file: behind @data a line per sequence, its channels and its class between colons, a channel's values between commas."""
    lines = text.lower().partition("@data")[2].split()
    rows = [[[float(value) for value in channel.split(",")] for channel in line.split(":")] for line in lines]
    frames = [torch.tensor(channels).T for *channels, _ in rows]
    lengths = torch.tensor([len(x) for x in frames])
    padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    times = torch.arange(padded.shape[1], dtype=padded.dtype).expand(len(padded), -1)
    speakers = torch.tensor([int(row[-1][0]) - 1 for row in rows])
    return Sequences(*(part.to(device) for part in (times, padded, lengths, speakers)))


class Learning(nn.Module):
    """A layer of fast weights on a linear map of the frames."""

    def __init__(self, channels: int, dim: int, rule: Callable[[nn.Module], Any], memory: Callable[[int], nn.Module], method: str) -> None:
        super().__init__()
        self.inside = nn.Linear(channels, dim)
        own = memory(dim)
        self.reads = FastWeights(dim, rule=rule(own), memory=own, method=method)

    def forward(self, path: Path) -> Tensor:
        x = self.inside(path.values)
        return x + self.reads(Path(path.times, x, "hold", lengths=path.lengths))


class Recurrent(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.reads = nn.GRU(channels, dim, batch_first=True)

    def forward(self, path: Path) -> Tensor:
        return self.reads(path.values)[0]


class Branch(nn.Module):
    """dh/ds = gap (g(h, x_n) - h) while x_n is held, s counting frames."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels + dim, dim), nn.Linear(dim, dim)
        self.path: Path | None = None

    def forward(self, t: Tensor, h: Tensor, *, step: int) -> Tensor:
        assert self.path is not None
        n = min(step, len(self.path) - 1)
        slope = self.second(torch.tanh(self.first(torch.cat([h, self.path.values[:, n]], 1)))) - h
        held = self.path.gaps[:, n] if n + 1 < len(self.path) else torch.zeros_like(self.path.times[:, 0])
        return (held + (n + 1 == self.path.lengths))[:, None] * slope  # the last frame for a unit of time


class Continuous(nn.Module):
    """A block that the frames drive, its weights standing still or functions of time."""

    def __init__(self, channels: int, dim: int, longest: int, size: int | None) -> None:
        super().__init__()
        branch, options = Branch(channels, dim), {"steps": longest, "t": (0.0, float(longest)), "adjoint": "direct"}
        moving = None if size is None else Galerkin("chebyshev", size, length=longest)
        self.dim, self.branch = dim, branch
        self.block = ODEBlock(branch, **options) if moving is None else CoupledODEBlock(branch, moving, **options)

    def forward(self, path: Path) -> Tensor:
        self.branch.path = path
        return self.block.trajectory(path.values.new_zeros(len(path.values), self.dim))[1 : len(path) + 1].transpose(0, 1)


class Speaker(nn.Module):
    """The mean of a network's outputs over the frames that are there, normalised, decides."""

    def __init__(self, reads: nn.Module, dim: int, speakers: int) -> None:
        super().__init__()
        self.reads, self.norm, self.chooses = reads, nn.LayerNorm(dim), nn.Linear(dim, speakers)

    def forward(self, path: Path) -> Tensor:
        outputs, lengths = self.norm(self.reads(path)), path.lengths
        assert lengths is not None
        there = torch.arange(outputs.shape[1], device=outputs.device) < lengths[:, None]
        return self.chooses((outputs * there[..., None]).sum(1) / lengths[:, None])


def matrix(dim: int) -> nn.Module:
    memory = nn.Linear(dim, dim, bias=False)
    nn.init.zeros_(memory.weight)
    return memory


def layers(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, dim // 2, bias=False), nn.Tanh(), nn.Linear(dim // 2, dim, bias=False))


def recall_error(memory: nn.Module, theta: dict[str, Tensor], z: tuple[Tensor, Tensor]) -> Tensor:
    """Of a sample's memory, what gradient flow makes small."""
    return (functional_call(memory, theta, z[0]) - z[1]).square().sum() / 2


def network(name: Name, channels: int, longest: int, speakers: int, parameters: int) -> Speaker:
    """The one whose size brings it nearest to so many parameters."""
    makes: dict[str, Callable[[int], nn.Module]] = {
        "hebb": lambda dim: Learning(channels, dim, lambda _: Hebb(0.1, decay=0.5), matrix, "euler"),
        "delta": lambda dim: Learning(channels, dim, lambda _: DeltaRule(rate=0.5), matrix, "euler"),
        "exact delta": lambda dim: Learning(channels, dim, lambda _: DeltaRule(rate=0.5), matrix, "exact"),
        "gradient flow": lambda dim: Learning(
            channels, dim, lambda memory: GradientFlow(partial(recall_error, memory), 0.1), layers, "euler"
        ),
        "GRU": lambda dim: Recurrent(channels, dim),
        "neural ODE": lambda dim: Continuous(channels, dim, longest, None),
        "Galerkin": lambda dim: Continuous(channels, dim, longest, 2),
    }

    def made(dim: int) -> Speaker:
        return Speaker(makes[name](dim), dim, speakers)

    state = torch.get_rng_state()
    best = min(range(4, 65), key=lambda dim: abs(count(made(dim)) - parameters))
    torch.set_rng_state(state)
    return made(best)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def train(model: nn.Module, data: Sequences, config: Config, seed: int) -> None:
    """Adam, one cycle of its rate; each epoch in another order, the same for all networks."""
    generator = torch.Generator().manual_seed(seed)
    steps = -(-len(data) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * steps)
    for _ in range(config.epochs):
        for places in torch.randperm(len(data), generator=generator).split(BATCH):
            batch = data.these(places.to(data.speakers.device))
            loss = F.cross_entropy(model(batch.path()), batch.speakers)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Sequences) -> float:
    """In %."""
    return 100 * (model(data.path()).argmax(1) == data.speakers).double().mean().item()


def told(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ({min(values):.1f}/{max(values):.1f})" if len(values) > 1 else "")


def run(config: Config, name: Name, train_set: Sequences, test_set: Sequences) -> dict[str, Any]:
    """All seeds of one network."""
    longest, speakers = max(s.frames.shape[1] for s in (train_set, test_set)), int(train_set.speakers.max()) + 1
    found: dict[str, Any] = {"whole": [], "irregular": []}
    for seed in range(config.seed, config.seed + config.seeds):
        torch.manual_seed(seed)
        model = network(name, train_set.frames.shape[2] + 1, longest, speakers, config.parameters).to(train_set.frames.device)
        train(model, train_set, config, seed)
        found["parameters"] = count(model)
        found["whole"].append(accuracy(model, test_set))
        found["irregular"].append(accuracy(model, test_set.dropped(config.drop, seed)))
    return found


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    with mistakes_told():
        config, _ = parse(Config, argv)
        if config.out is not None:
            writable(config.out, "the table")
        device = choose_device(config.device)
        sets = load(config.data, device)
        lines = [f"| network | parameters | test accuracy | with {config.drop:.0%} of the frames missing |", "|---|---|---|---|"]
        print("\n".join(lines), flush=True)
        found, start = {}, time.process_time()
        for name in config.models:
            found[name] = run(config, name, *sets)
            lines.append(f"| {name} | {found[name]['parameters']:,} | {told(found[name]['whole'])} | {told(found[name]['irregular'])} |")
            print(lines[-1], flush=True)
        last = config.seed + config.seeds - 1
        print(f"{config.epochs} epochs, seeds {config.seed} to {last}, {time.process_time() - start:.0f} s of processor time, {device}")
        if config.out is not None:
            config.out.write_text("\n".join(lines) + "\n")
        return found


if __name__ == "__main__":
    main()
