"""Where a model is, and how a batch comes there."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or, without any, buffer; the CPU without either."""
    return next((tensor.device for tensor in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device; tuples, lists and mappings keep their form.

    What is there already is returned as it is: a mapping of a class of its own comes out as a dict only where it moves.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        values = {key: to_device(value, device) for key, value in batch.items()}
        return batch if all(values[key] is value for key, value in batch.items()) else values
    if isinstance(batch, (tuple, list)):
        items = [to_device(value, device) for value in batch]
        if all(new is old for new, old in zip(items, batch, strict=True)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch
