"""The shard of the batches that this process measures: of 8 batches and 2 processes, the first has 0, 2, 4 and 6.

Under a running engine (`nce_fx.processes.start_engine`) every process is given the same batches, and of n
processes each measures every n-th batch. Ranges come from the first batch in all of them, random numbers are those that
one process would draw, and the sums are put together: the scores are those of one process, up to the order of addition.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from nce_fx.processes import all_reduce_sum, running_engine

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Shard:
    """The place of this process among those that measure together: ``Shard(rank=0, processes=2)``."""

    rank: int = 0
    processes: int = 1

    @staticmethod
    def of(batches: int) -> "Shard":
        """Return the shard under the running engine; everything where there are fewer batches than processes."""
        engine = running_engine()
        return Shard(engine.rank, engine.processes) if 1 < engine.processes <= batches else ALONE

    def owns(self, index: int) -> bool:
        """Whether the batch of this number is measured here."""
        return index % self.processes == self.rank

    def count(self, batches: int) -> int:
        """How many of so many batches are measured here."""
        return len(range(self.rank, batches, self.processes))

    def sums(self, values: Mapping[Key, float]) -> dict[Key, float]:
        """Return the sums over all processes; every process has the same names in the same order."""
        if self.processes == 1:
            return dict(values)
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=running_engine().device)
        return dict(zip(values, all_reduce_sum(mine).tolist(), strict=True))


ALONE = Shard()
"""One process, which measures all."""
