"""Activation quantizers whose range is found on all values that calibration saw, counted."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nce_fx.quantizers.base import ActivationQuantizer, working
from nce_fx.quantizers.histogram import Counts, count_values, counted


class CountingQuantizer(ActivationQuantizer):
    """Base of the quantizers that count the values of each calibration batch, such as PACT, for ``estimate``."""

    _counts: Counts | None = None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Count the values of one calibration batch."""
        super().observe(x)
        counts = count_values(working(x))
        self._counts = counts if self._counts is None else self._counts + counts

    def observed(self) -> tuple[NDArray[np.float64], Counts]:
        """Return the values that were counted, in rising order, and how often each came; counting starts anew."""
        assert self._counts is not None
        found, self._counts = counted(self._counts), None
        return found
