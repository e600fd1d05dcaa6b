"""What a compiled step still sends to the device, or waits for; rows are the names of dynamics and equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from anodev2 import CoupledODEBlock
from tests.null_cuda.told import steady
from tests.null_cuda.waits import DYNAMICS, EQUATIONS, Branch


def block(name: str) -> Callable[[], Tensor]:
    made = CoupledODEBlock(Branch(), DYNAMICS[name](), steps=3, method="euler", adjoint="direct").cuda()
    z = torch.zeros(4, 8, 16, 16, device="cuda", requires_grad=True)
    return lambda: made(z).sum()


def equation(name: str) -> Callable[[], Tensor]:
    made, u, t = EQUATIONS[name][0](0.1).cuda(), torch.zeros(2, 32, device="cuda", requires_grad=True), torch.zeros((), device="cuda")
    return lambda: made(t, (u, u))[1].sum() if name == "wave" else made(t, u).sum()


CASES = {
    **{f"block {name}": partial(block, name) for name in DYNAMICS},
    **{f"equation {name}": partial(equation, name) for name in EQUATIONS},
}


def answer(row: str) -> list[str]:
    torch._dynamo.reset()
    run = torch.compile(CASES[row](), fullgraph=True, backend="aot_eager")
    seen = steady(lambda: run().backward())
    return [*seen.waits, *(f"{count} of {name}" for name, count in seen.launched.items() if "from the host" in name)]
