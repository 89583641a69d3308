"""How restless the weights are: the share of them that are on another level than when the epoch began.

At few bits most of that is oscillation: a weight near the border between two levels is pushed over it and back (Nagel
et al. 2022, arXiv 2203.11086). It falls with the learning rate; what is left at the end is noise in the result.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from nce_fx.passes.transform.quantize import integer_weights


@torch.no_grad()
def levels_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the level of every quantized weight by layer, as one byte each; none for a model that is no graph."""
    if not isinstance(model, GraphModule):
        return {}
    return {path: weight.integers for path, weight in integer_weights(model).items()}


def share_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float | None:
    """Return which share of the weights is on another level, in [0, 1]; ``None`` where there are none to compare."""
    pairs = [(before[path], levels) for path, levels in after.items() if path in before]
    pairs = [(old, new) for old, new in pairs if old.shape == new.shape]
    count = sum(new.numel() for _, new in pairs)
    return sum(int((old != new).sum()) for old, new in pairs) / count if count else None
