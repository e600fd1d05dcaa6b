"""Buffers of several types copied together are, bit by bit, what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anodev2 import Adjoint, CheckpointAdjoint, odeint
from anodev2.integrate import buffers

NOT_A_NUMBER = torch.tensor([0x7FC12345, -0x3FEDCC], dtype=torch.int32)  # with a payload
VALUES: dict[str, Tensor] = {
    "statistics": torch.tensor([1.5, -0.0, float("inf")]),
    "not numbers": NOT_A_NUMBER.view(torch.float32),
    "a count": torch.tensor(3_000_000_001),
    "counts": torch.tensor([1, 2**40]),
    "one number": torch.tensor(0.25),
    "kernels": torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "columns": torch.arange(6.0).reshape(2, 3).T,
    "double": torch.tensor([0.1], dtype=torch.float64),
    "half": torch.tensor([0.1], dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]),
    "flags": torch.tensor([True, False]),
    "none": torch.empty(0),
}


@pytest.mark.parametrize("name", VALUES)
def test_words_are_the_same_memory(name: str) -> None:
    value, into = VALUES[name], torch.zeros_like(VALUES[name])
    words = buffers.words(into)
    assert words.data_ptr() == into.data_ptr() and words.nbytes == into.nbytes
    words.copy_(buffers.words(value))
    assert bits(into) == bits(value) and into.stride() == value.stride()


def test_statistics_and_their_count_are_copied_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Module()
    for place, value in enumerate(VALUES.values()):
        module.register_buffer(f"buffer{place}", value.clone())
    held = buffers.Buffers([module])
    rows: list[int] = []
    together, joined = buffers.copy_together, torch.cat
    monkeypatch.setattr(torch, "cat", lambda values: (rows.append(len(values)), joined(values))[1])
    held.mark()
    monkeypatch.setattr(torch, "cat", joined)
    assert sorted(rows) == [1, 1, 1, 1, 6]  # kernels and columns are no rows
    own = list(module.buffers())
    for buffer in own:
        buffer.zero_()
    launches: list[int] = []
    monkeypatch.setattr(buffers, "copy_together", lambda into, values: (launches.append(len(into)), together(into, values)))
    counts = [buffer._version for buffer in own]
    held.retreat()
    assert sorted(launches) == [1, 1, 1, 1, 2, 6]
    assert [bits(buffer) for buffer in own] == [bits(value) for value in VALUES.values()]
    assert [buffer._version for buffer in own] == counts


class Counting(nn.Module):
    """z' = w c sin z, with a c that grows in every evaluation."""

    c: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("c", torch.ones(1, dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            self.c.mul_(1.1)
        return self.w * self.c.clone() * z.sin()


def taken_away(f: Counting, how: str) -> None:
    """c is 5, in place or in other memory."""
    five = torch.full((1,), 5.0, dtype=torch.float64)
    if how == "in place":
        f.c.fill_(5.0)
    elif how == "data":
        f.c.data = five
    elif how == "set_":
        with torch.no_grad():
            f.c.set_(five)  # pyright: ignore[reportArgumentType, reportCallIssue]
    else:
        f.c = five


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=2)], ids=str)
@pytest.mark.parametrize("how", ["in place", "data", "set_", "another buffer"])
def test_what_becomes_of_a_buffer_after_a_solve_is_nothing_to_its_gradient(how: str, adjoint: str | Adjoint) -> None:
    """The gradient is that of what was computed, and the buffer is as it was left: both as with "direct"."""
    found = []
    for way in ("direct", adjoint):
        f, z0 = Counting(), torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
        loss = odeint(f, z0, [0.0, 1.0], method="euler", steps=4, adjoint=way)[-1].sum()
        taken_away(f, how)
        found.append(torch.autograd.grad(loss, [z0, f.w]))
        assert f.c.item() == 5.0
    torch.testing.assert_close(found[1], found[0], rtol=1e-13, atol=0)


class Holder(nn.Module):
    """Counts, beside what it is given to hold."""

    count: Tensor
    held: Tensor

    def __init__(self, held: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", held)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Watched(nn.Module):
    """A BatchNorm, and modules that hold what is its own, or a part of it, beside what they count by themselves, now and then."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 3)
        mean = self.norm.running_mean
        assert mean is not None
        parts = {
            "whole": mean,
            "part": mean[1:],
            "expanded": torch.ones(1).expand(3),
            "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        }
        self.other = Holder(parts[how]) if how in parts else nn.BatchNorm1d(3)
        if isinstance(self.other, nn.BatchNorm1d):
            self.other.running_mean, self.other.running_var = mean, self.norm.running_var

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        early = bool(t < 0.5)
        if isinstance(self.other, Holder):
            read = self.other.held.real.clone().mean()
            if early:
                self.other.count += 1
            return self.linear(self.norm(z)) * (1 + read)
        norm = self.norm if early else self.other
        return self.linear(norm(z)) * (1 + self.other.running_var.clone())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("adjoint", ["checkpoint", CheckpointAdjoint(slots=2), CheckpointAdjoint(offload="cpu")], ids=str)
@pytest.mark.parametrize("how", ["whole", "part", "another norm", "expanded", "conjugate"])
def test_memory_that_modules_share_moves_for_all_of_them(how: str, adjoint: str | Adjoint) -> None:
    """Steps that are redone read what they read, and leave the statistics as they were: as with "direct"."""
    found = []
    for way in ("direct", adjoint):
        torch.manual_seed(0)
        f, z0 = Watched(how), torch.randn(5, 3, requires_grad=True)
        loss = odeint(f, z0, [0.0, 1.0], method="euler", steps=4, adjoint=way)[-1].square().sum()
        found.append([*f.state_dict().values(), *torch.autograd.grad(loss, [z0, f.linear.weight])])
        found[-1] = [value.clone() for value in found[-1]]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
