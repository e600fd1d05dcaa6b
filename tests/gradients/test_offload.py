"""Offloaded states: sent for one restore ahead of their use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anodev2 import CheckpointAdjoint, odeint
from anodev2.gradients.offload import Offload
from anodev2.solvers import Leaves


@pytest.mark.parametrize("slots", [None, 3])
def test_a_state_sets_out_while_the_steps_after_the_one_restored_before_are_redone(
    monkeypatch: pytest.MonkeyPatch, slots: int | None
) -> None:
    log: list[tuple[str, int]] = []
    prefetch, fetch = Offload.prefetch, Offload.fetch

    def sent(self: Offload, at: int, homes: Leaves) -> None:
        if at not in self.coming:
            log.append(("send for", at))
        prefetch(self, at, homes)

    def fetched(self: Offload, at: int, homes: Leaves) -> Any:
        log.append(("fetch", at))
        return fetch(self, at, homes)

    monkeypatch.setattr(Offload, "prefetch", sent)
    monkeypatch.setattr(Offload, "fetch", fetched)
    w = torch.tensor(0.3, requires_grad=True)

    def f(t: Tensor, y: Tensor, *, step: int) -> Tensor:
        log.append(("f", step))
        return w * torch.sin(y)

    end = odeint(f, torch.ones(3), [0.0, 1.0], method="euler", steps=9, adjoint=CheckpointAdjoint(slots=slots, offload="cpu"))[-1]
    log.clear()
    end.sum().backward()
    fetches = [i for i, (what, _) in enumerate(log) if what == "fetch"]
    assert len(fetches) == 9 if slots is None else len(fetches) > 3
    last = {log[fetches[0]][1]: 0}
    for i in fetches[1:]:
        at = log[i][1]
        ahead = log.index(("send for", at), last.get(at, 0))
        assert ahead < i and any(what == "f" for what, _ in log[ahead:i])  # something is computed meanwhile
        last[at] = i


def test_what_comes_back_is_what_left() -> None:
    y = [torch.randn(3, 4), torch.randn(2, dtype=torch.complex128)]
    offload = Offload(y)
    homes = offload.store(y)
    offload.prefetch(4, homes)
    on_its_way = offload.coming[4]
    assert offload.fetch(4, homes) is on_its_way  # it does not set out again
    for back in (on_its_way, offload.fetch(5, homes)):
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(back, y, strict=True))
    assert not offload.coming
