"""Parameters and multiply-adds of every network in every variant, as a Markdown table: python benchmarks/model_table.py

Multiply-adds are those of the convolutions and matrix products in one forward pass of a 32x32 image, half of what
``torch.utils.flop_counter`` counts; the evolution of the weights, once per forward pass whatever the batch, is in them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import scripts  # noqa: F401 # isort: split
from anodev2 import Galerkin, ODEBlock
from anodev2.models import MODELS
from anodev2.models.blocks import ResidualBlock
from options import script

HEAD = ["network", "block", "norm", "parameters", "in ODE blocks", "multiply-adds"]
VARIANTS: dict[str, dict[str, Any]] = {
    "residual": {"block": "residual"},
    "ode": {"block": "ode", "steps": 5},
    "ode, time channel": {"block": "ode", "steps": 5, "time": True},
    "coupled, configuration 1": {"block": "coupled", "steps": 5},
    "coupled, configuration 2": {"block": "coupled", "steps": 2, "weight_steps": 10},
    'coupled, Galerkin("linear", 3)': {"block": "coupled", "steps": 5, "dynamics": Galerkin("linear", 3)},
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def in_blocks(name: str, model: nn.Module) -> int:
    """Of the blocks that are ODEs, or are their residual form."""
    places = [place for place, module in MODELS[name](block="ode").named_modules() if isinstance(module, ODEBlock)]
    blocks = [model.get_submodule(place) for place in places]
    assert all(isinstance(block, ODEBlock | ResidualBlock) for block in blocks)
    return sum(parameters(block) for block in blocks)


def multiply_adds(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def rows() -> list[list[str]]:
    """The table's rows, of text."""
    found = []
    for name, make in MODELS.items():
        for variant, options in VARIANTS.items():
            products = multiply_adds(make(**options))  # whatever the norm
            for norm in ("per_step", "shared"):
                with torch.device("meta"):  # shapes are enough to count
                    model = make(norm=norm, **options)
                    counts = [parameters(model), in_blocks(name, model), products]
                shown = "plain" if variant == "residual" else norm
                found.append([name, variant, shown, *(f"{count:,}" for count in counts)])
                if variant == "residual":
                    break  # one step has one norm
    return found


def table() -> str:
    lines = [HEAD, ["---", "---", "---", "---:", "---:", "---:"], *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    print(table())


if __name__ == "__main__":
    script(main, __doc__)
