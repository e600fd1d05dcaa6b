"""Operations of a call, counted by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """``with Operations() as seen:`` then ``seen.counts["_fft_r2c"]``; views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def of(self, *names: str) -> int:
        """How many operations have one of these in their names."""
        return sum(count for name, count in self.counts.items() if any(part in name for part in names))


def counted(run: Callable[[], Any]) -> Operations:
    """What a call does."""
    with Operations() as seen:
        run()
    return seen
