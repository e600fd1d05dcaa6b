"""Why the gradient should go through all passes of a recursive network: 4x4 Sudoku, at the memory of a few passes.

One small network is applied again and again: z_{n+1} = z_n + f(z_n, means of z_n over row, column and box, clues). Trained through all
passes, with states kept by ``CheckpointAdjoint(slots=...)``, it solves puzzles it has not seen. Trained with the gradient of the last pass
alone, as some recursive models are to save memory, it solves few: nothing tells early passes what later ones need. Both hold a few states
and the graph of one pass; what the second holds less is given back to it as a larger batch.

    python examples/deep_recursion.py
"""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from anodev2 import Adjoint, CheckpointAdjoint, DirectAdjoint, odeint, plan
from options import DevicePicture, script
from ranks import choose_device

SIZE, BOX, CELLS = 4, 2, 16
WIDTH, PASSES, SLOTS = 32, 12, 3
CLUES = 6  # of 16 cells
TRAINED = 256  # of the 288 filled grids; puzzles of the others are the test


def filled_grids() -> Tensor:
    """All 288, a row of 16 digits each."""
    rows = list(permutations(range(SIZE)))
    found = [sum(grid, ()) for grid in product(rows, repeat=SIZE) if fits(grid)]
    return torch.tensor(found)


def fits(grid: tuple[tuple[int, ...], ...]) -> bool:
    columns = all(len(set(column)) == SIZE for column in zip(*grid, strict=True))
    boxes = ({grid[BOX * i + k // BOX][BOX * j + k % BOX] for k in range(SIZE)} for i, j in product(range(BOX), repeat=2))
    return columns and all(len(box) == SIZE for box in boxes)


def regions() -> Tensor:
    """(3, 16, 16): means over the row, the column and the box of each cell."""
    cell = torch.arange(CELLS)
    row, column = cell // SIZE, cell % SIZE
    box = row // BOX * BOX + column // BOX
    return torch.stack([(kind[:, None] == kind[None]).float() / SIZE for kind in (row, column, box)])


def puzzles(grids: Tensor, all_grids: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clues (count, 16), 4 where a cell is open, and solutions; each has one solution alone."""
    found: list[Tensor] = []
    while len(found) < count:
        solution = grids[torch.randint(len(grids), (1,), generator=generator)[0]]
        given = torch.randperm(CELLS, generator=generator)[:CLUES]
        if (all_grids[:, given] == solution[given]).all(1).sum() == 1:
            found.append(torch.stack([torch.full_like(solution, SIZE).scatter(0, given, solution[given]), solution]))
    clues, solutions = torch.stack(found).unbind(1)
    return clues, solutions


class Pass(nn.Module):
    """One pass, z -> z + f: z of shape (batch, 16, width), clues (batch, 16, 5)."""

    regions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("regions", regions())
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.Linear(4 * WIDTH + SIZE + 1, 2 * WIDTH)
        self.outer = nn.Linear(2 * WIDTH, WIDTH)
        self.digits = nn.Linear(WIDTH, SIZE)

    def forward(self, n: Tensor, z: Tensor, clues: Tensor) -> Tensor:
        seen = self.norm(z)
        around = torch.einsum("kij,bjw->bikw", self.regions, seen).flatten(2)
        return z + self.outer(torch.relu(self.inner(torch.cat([seen, around, clues], -1))))


def recursion(net: Pass, clues: Tensor, passes: int, last_alone: bool = False) -> Tensor:
    """z after all passes; with ``last_alone`` only the last one has a gradient."""
    z, held = torch.zeros(*clues.shape, WIDTH, device=clues.device), CheckpointAdjoint(slots=SLOTS)
    known = (functional.one_hot(clues, SIZE + 1).float(),)
    if last_alone:
        with torch.no_grad():
            z = odeint(net, z, [0, passes - 1], method="map", args=known)[-1]
    return odeint(net, z, [passes - 1 if last_alone else 0, passes], method="map", args=known, adjoint=held)[-1]


def solved(net: Pass, clues: Tensor, solutions: Tensor, most: int) -> list[float]:
    """The share of puzzles without a mistake after each number of passes."""
    known = (functional.one_hot(clues, SIZE + 1).float(),)
    with torch.no_grad():
        z = odeint(net, torch.zeros(*clues.shape, WIDTH, device=clues.device), list(range(most + 1)), method="map", args=known)[1:]
        return (net.digits(z).argmax(-1) == solutions).all(-1).float().mean(-1).tolist()


def train(last_alone: bool, data: tuple[Tensor, ...], iterations: int, batch: int, seed: int) -> tuple[Pass, list[float]]:
    """The trained network, and the share of unseen puzzles that it solves every tenth of the way."""
    torch.manual_seed(seed)
    net, (clues, solutions, *unseen) = Pass().to(data[0].device), data
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    shares = [0.0]
    for iteration in range(iterations):
        chosen = torch.randint(len(clues), (batch,))
        z = recursion(net, clues[chosen], PASSES, last_alone)
        loss = functional.cross_entropy(net.digits(z).flatten(0, 1), solutions[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (iteration + 1) * 10 // iterations > iteration * 10 // iterations:
            shares.append(solved(net, unseen[0], unseen[1], PASSES)[-1])
    return net, shares


def bytes_held(passes: int, adjoint: Adjoint, batch: int) -> int:
    """The most bytes of states and graphs at once while a batch is trained on."""
    z, clues = torch.zeros(batch, CELLS, WIDTH), torch.zeros(batch, CELLS, SIZE + 1)
    return plan(Pass(), z, [0, passes], method="map", args=(clues,), adjoint=adjoint).peak_bytes


def draw(path: Path, iterations: int, learned: dict[str, list[float]], deeper: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(f"A recursive network learns Sudoku through all its {PASSES} passes, at the memory of a few")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, shares), color in zip(learned.items(), ("#1b6ca8", "#d1495b"), strict=True):
        left.plot([i * iterations / 10 for i in range(len(shares))], shares, "o-", color=color, label=name)
        right.plot(range(1, len(deeper[name]) + 1), deeper[name], color=color)
    left.set(xlabel="training step", ylabel="unseen puzzles solved", ylim=(-0.03, 1.03), title=f"after {PASSES} passes")
    right.axvline(PASSES, color="#222222", linewidth=0.8, linestyle=":")
    right.set(xlabel="passes of the trained network", title="fewer passes, and more than it was trained with")
    left.legend(loc="center right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def main(
    picture: Path | None = None, small: bool = False, iterations: int = 120, batch: int = 32, seed: int = 0, device: str = "cpu"
) -> dict[str, float]:
    if small:
        iterations = 60
    generator, where = torch.Generator().manual_seed(seed), choose_device(device)
    grids = filled_grids()
    grids = grids[torch.randperm(len(grids), generator=generator)]
    known, unseen = (puzzles(part, grids, count, generator) for part, count in ((grids[:TRAINED], 1000), (grids[TRAINED:], 200)))
    learned, deeper = dict[str, list[float]](), dict[str, list[float]]()
    held, more = bytes_held(PASSES, CheckpointAdjoint(slots=SLOTS), batch), batch
    while bytes_held(1, CheckpointAdjoint(slots=1), more + 1) <= held:
        more += 1
    for name, last_alone, size in (("gradient through all passes", False, batch), ("gradient of the last pass", True, more)):
        net, learned[name] = train(last_alone, tuple(part.to(where) for part in (*known, *unseen)), iterations, size, seed)
        deeper[name] = solved(net, unseen[0].to(where), unseen[1].to(where), 3 * PASSES)
        print(f"{name}, batches of {size}: {learned[name][-1]:.0%} of unseen puzzles solved after {PASSES} passes")
    everything = bytes_held(PASSES, DirectAdjoint(), batch)
    print(f"at most {held / 2**20:.2f} MiB of states and graphs held by either; all graphs would be {everything / 2**20:.2f} MiB")
    if picture is not None:
        draw(picture, iterations, learned, deeper)
        print(f"picture: {picture}")
    shares = {name.removeprefix("gradient "): values[-1] for name, values in learned.items()}
    return shares | {"grids": len(grids), "batch": more, "bytes": held, "all graphs": everything}


if __name__ == "__main__":
    script(main, __doc__, DevicePicture)
