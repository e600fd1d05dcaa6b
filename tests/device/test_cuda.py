"""What only a GPU shows: no step waits for the host, and what is kept in host memory comes back as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Adjoint, CheckpointAdjoint, CoupledODEBlock, DirectAdjoint, ODEBlock, ReactionDiffusionAdvection

NULL = torch.cuda.is_available() and torch.cuda.get_device_name() == "null device"  # tests/null_cuda, where all values are zero
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

ADJOINTS = {
    "direct": DirectAdjoint(),
    "checkpoint": CheckpointAdjoint(),
    "slots": CheckpointAdjoint(slots=2),
    "offload": CheckpointAdjoint(offload="cpu"),
}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(z)))


def block(coupled: bool, adjoint: Adjoint) -> ODEBlock:
    torch.manual_seed(0)
    made = (
        CoupledODEBlock(Branch(), ReactionDiffusionAdvection(0.05, 0.1), steps=6, adjoint=adjoint)
        if coupled
        else ODEBlock(Branch(), steps=6, adjoint=adjoint)
    )
    return made.double().cuda()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Waiting for the device is an error. That this mode is a prototype, torch warns once in a process, after it has set the mode."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature", UserWarning)
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def test_the_mode_in_which_waiting_is_an_error_is_left_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torch's mode, which warns as that does, so that it is tried where there is no device."""
    modes = [0]

    def set_mode(mode: int) -> None:
        modes.append(mode)
        text = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
        warnings.warn(f"{text} (Triggered internally at torch/csrc/cuda/Module.cpp:1.)", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_set_sync_debug_mode", set_mode, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_get_sync_debug_mode", lambda: modes[-1], raising=False)
    with no_waiting():
        assert modes[-1] == 2
    assert modes[-1] == 0
    with pytest.raises(UserWarning, match="another"), no_waiting():
        warnings.warn("another", UserWarning, stacklevel=1)
    assert modes[-1] == 0
    with pytest.raises(RuntimeError, match="called a synchronizing"), no_waiting():
        raise RuntimeError("called a synchronizing CUDA operation")
    assert modes == [0, 2, 0, 2, 0, 2, 0]


@on_cuda
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
def test_a_training_step_never_waits_for_the_device(adjoint: Adjoint, coupled: bool) -> None:
    made, z = block(coupled, adjoint), torch.randn(4, 8, 16, 16, dtype=torch.float64, device="cuda", requires_grad=True)
    made(z).square().sum().backward()  # libraries may wait when they are first used
    torch.cuda.synchronize()
    with no_waiting():  # in which waiting is an error
        made(z).square().sum().backward()
    assert z.grad is not None and (NULL or bool(z.grad.isfinite().all()))


@on_cuda
@pytest.mark.parametrize("adjoint", [CheckpointAdjoint(offload="cpu"), CheckpointAdjoint(slots=2, offload="cpu")])
def test_gradients_through_host_memory_are_those_of_stored_states(adjoint: Adjoint) -> None:
    found = []
    for how in (adjoint, DirectAdjoint()):
        z = torch.linspace(-1, 1, 4 * 8 * 64 * 64, dtype=torch.float64, device="cuda").reshape(4, 8, 64, 64).requires_grad_()
        made = block(True, how)
        made(z).square().sum().backward()
        found.append([z.grad, *(p.grad for p in made.parameters())])
    assert [tensor.shape for tensor in found[0]] == [tensor.shape for tensor in found[1]]
    if not NULL:
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
