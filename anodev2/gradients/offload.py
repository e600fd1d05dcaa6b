"""Host memory for states: copies there and back run beside the computation, on a stream of their own where the device has streams."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..solvers import Leaves


class Offload:
    """Takes states to host memory and back; a state on a CPU device is copied there and handed back as it is.

    On CUDA the copies of one solve are queued on one stream per device, in order: a state leaves once the computation so far has
    made it, sets out on its way back no earlier than it has arrived, and is used once it is there.
    """

    def __init__(self, y: Leaves) -> None:
        self.devices = [leaf.device for leaf in y]
        self.streams = {device: torch.Stream(device) for device in set(self.devices) if device.type == "cuda"}
        self.coming: dict[int, list[Tensor]] = {}

    def store(self, y: Leaves) -> list[Tensor]:
        """Copies in host memory, pinned where a device can copy to it by itself."""
        homes = [torch.empty_like(leaf, device="cpu", pin_memory=leaf.device in self.streams) for leaf in y]
        for device, stream in self.streams.items():
            stream.wait_stream(torch.accelerator.current_stream(device))
        for home, leaf in zip(homes, y, strict=True):
            with self._beside(leaf.device):
                home.copy_(leaf.detach(), non_blocking=True)  # a copy with a history would hold itself
            if leaf.device in self.streams:
                leaf.record_stream(self.streams[leaf.device])  # its memory is not given away before it has been copied
        return homes

    def prefetch(self, at: int, homes: Leaves) -> None:
        """State ``at`` sets out for its devices, unless it has."""
        if at in self.coming:
            return
        leaves = []
        for home, device in zip(homes, self.devices, strict=True):
            with self._beside(device):
                leaves.append(home.to(device, non_blocking=True))
        self.coming[at] = leaves

    def fetch(self, at: int, homes: Leaves) -> list[Tensor]:
        """State ``at`` on its devices, ready for what is computed next; it may have been sent for before."""
        self.prefetch(at, homes)
        leaves = self.coming.pop(at)
        for device, stream in self.streams.items():
            torch.accelerator.current_stream(device).wait_stream(stream)
        for leaf in leaves:
            if leaf.device in self.streams:
                leaf.record_stream(torch.accelerator.current_stream(leaf.device))
        return leaves

    def _beside(self, device: torch.device) -> AbstractContextManager[object]:
        return self.streams.get(device, nullcontext())
