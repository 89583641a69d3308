"""How many operations a piece of work takes, which no other load on the machine changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Operations(TorchDispatchMode):
    """Counts what torch counts, without hooks on modules: those do not go with ``autograd.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def operations(work: Callable[[], object]) -> int:
    """Return the operations of a piece of work that PyTorch has a formula for: convolutions and matrix products."""
    with Operations() as counter:
        work()
    total: int = counter.total
    return total
