"""Sharded parameters (FSDP2): blocks under fully_shard train as in one process; no parameter is without an axis."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, ReactionDiffusionAdvection, Static
from blocks import DYNAMICS, Branch, block_of, stirred

ROOT = Path(__file__).parent.parent


def network(dynamics: str | None, adjoint: str) -> nn.Sequential:
    """Two blocks with a layer before them, in float64."""
    return stirred(nn.Sequential(nn.Conv2d(4, 4, 1), block_of(dynamics, adjoint), block_of(dynamics, adjoint)).double())


CASES = [(name, adjoint, "block") for name in DYNAMICS for adjoint in ("direct", "checkpoint")]
CASES += [(None, adjoint, part) for adjoint in ("direct", "checkpoint") for part in ("block", "f")]


def largest_difference(case: tuple[str | None, str, str]) -> float:
    """Of outputs and gradients of a sharded network, from those of one process; run on every rank."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    dynamics, adjoint, part = case
    rank, world = distributed.get_rank(), distributed.get_world_size()
    alone, shared = network(dynamics, adjoint), network(dynamics, adjoint)
    z = torch.linspace(-1, 1, 400, dtype=torch.float64).view(4, 4, 5, 5)
    end = alone(z)
    end.square().sum().backward()
    for block in shared[1:]:
        fully_shard(block.get_submodule("f") if part == "f" else block)
    fully_shard(shared)
    own = shared(z.chunk(world)[rank])
    own.square().sum().backward()
    off = [own - end.chunk(world)[rank]]
    for (name, parameter), expected in zip(shared.named_parameters(), alone.parameters(), strict=True):
        assert expected.grad is not None and parameter.grad is not None, name
        off.append(parameter.grad.full_tensor() * world - expected.grad)  # pyright: ignore[reportAttributeAccessIssue]
    return max(difference.abs().max().item() for difference in off)


def on_every_rank() -> None:
    from torch import distributed

    distributed.init_process_group("gloo")
    found: dict[str, object] = {}
    for case in CASES:
        try:
            found[str(case)] = largest_difference(case)
        except Exception as error:  # one case must not hide the others
            found[str(case)] = f"{type(error).__name__}: {error}"
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that takes its time to end


@pytest.fixture(scope="module")
def differences() -> dict[str, float | str]:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths}, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_with_shards_train_as_one_process(case: tuple[str | None, str, str], differences: dict[str, float | str]) -> None:
    assert differences[str(case)] == pytest.approx(0, abs=1e-6), differences[str(case)]


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_no_parameter_of_a_block_is_without_an_axis(dynamics: str) -> None:
    assert all(parameter.ndim for parameter in network(dynamics, "direct").parameters())


def test_weights_saved_without_that_axis_load() -> None:
    block = CoupledODEBlock(Branch(), ReactionDiffusionAdvection(0.3, 0.2, 0.1), steps=2)
    other = CoupledODEBlock(Branch(), ReactionDiffusionAdvection(), steps=2)
    former = {name: value.squeeze() if "tau" in name or "rho" in name else value for name, value in block.state_dict().items()}
    assert [value.ndim for name, value in former.items() if "tau" in name or "rho" in name] == [0] * 4
    for assign in (False, True):
        fresh = nn.Sequential(copy.deepcopy(other))
        fresh.load_state_dict({f"0.{name}": value for name, value in former.items()}, strict=True, assign=assign)
        z = torch.randn(1, 4, 5, 5)
        assert torch.equal(fresh(z), block(z)) and all(parameter.ndim for parameter in fresh.parameters())
    assert not any(value.ndim for name, value in former.items() if "rho" in name)  # the caller's own are left alone


class _Shards(Tensor):
    """What fully_shard leaves in the place of a parameter outside of the forward of the module that it was given."""

    def full_tensor(self) -> Tensor:
        raise AssertionError


def test_weights_that_evolve_and_are_sharded_apart_are_refused() -> None:
    block = CoupledODEBlock(Branch(), Static(), steps=2)
    block.f.conv1.weight = nn.Parameter(torch.randn(4, 4, 3, 3).as_subclass(_Shards))  # pyright: ignore[reportAttributeAccessIssue]
    block.f.reshard = lambda: None  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"conv1\.weight of f=Branch .* fully_shard this CoupledODEBlock"):
        block(torch.randn(1, 4, 5, 5))


if __name__ == "__main__":
    on_every_rank()
