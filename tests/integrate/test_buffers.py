"""Buffers of several types copied together are, bit by bit, what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
