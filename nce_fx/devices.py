"""Where a model is, how a batch comes there, and on how many threads a CPU sums."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nce_fx.errors import InputError


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or, without any, buffer; the CPU without either."""
    return next((tensor.device for tensor in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def check_values(model: nn.Module, work: str) -> None:
    """Refuse a model whose parameters or buffers are on PyTorch's meta device, where ``work`` needs their values.

    Raises:
        InputError: one is.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"{name} is on the meta device and has no values, which {work} needs: build the model elsewhere, or"
                " load its weights first"
            )


FREE_MEMORY = "NCE_FX_FREE_MEMORY"
"""The environment variable that says, in bytes, what is free on a CPU where the system says it wrongly."""


def free_memory(device: torch.device) -> float:
    """Return the bytes that a device has left, a CPU's with what it can swap; infinity where nothing says it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return float("inf")
    if (said := os.environ.get(FREE_MEMORY, "")).isdigit():
        return int(said)
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        return float("inf")


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


_LARGE = 10**13
"""Parameters times numbers in a batch, above which one thread would be slow: ResNet-50 on 3 images of 3x224x224."""
_THREADS = 4


@contextmanager
def same_sums(module: nn.Module, batch: Any) -> Iterator[None]:
    """Let the CPU sum in one order, whatever number of threads it is given.

    How many threads share a sum decides its last digits, and those may decide between two widths that are as good. So
    what a plan is made from is computed on a number of threads that follows from the work alone: one, or four where a
    batch is large. The caller's number is put back.
    """
    numbers = sum(value.numel() for value in tree_leaves(batch) if isinstance(value, torch.Tensor))
    large = numbers * sum(parameter.numel() for parameter in module.parameters()) > _LARGE
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS if large else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
