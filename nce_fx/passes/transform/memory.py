"""Whether there is memory for the weights of other widths: anybody may write a plan, and any width is a number."""

from collections import defaultdict
from collections.abc import Mapping
from math import prod

import torch
from torch.fx import GraphModule

from nce_fx.devices import FREE_MEMORY, free_memory
from nce_fx.errors import ChannelError
from nce_fx.ids.space import Tensors
from nce_fx.passes.analysis.channels import ChannelGraph

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_PER_CHANNEL = 8
"""Bytes that say where one channel comes from, on the CPU, wherever the model is."""


def check_memory(gm: GraphModule, channels: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Return if the weights that a resize makes fit into what is free where they are.

    Raises:
        ChannelError: they do not; the message names the group that asks for most, and the bytes.
    """
    for device, needed in _needed(gm, channels, widths).items():
        free = free_memory(device)
        if needed > free:
            asked = {name: _needed(gm, channels, {name: width})[device] for name, width in widths.items()}
            most = max(asked, key=asked.__getitem__)
            raise ChannelError(
                f"these widths need {_said(needed)} of memory, {_said(free)} are free on {device}: group {most}, "
                f"{channels[most].width} channels wide, alone asks for {_said(asked[most])}; make it narrower, or set "
                f"{FREE_MEMORY} to the bytes that there are"
            )


def _needed(gm: GraphModule, channels: ChannelGraph, widths: Mapping[str, int]) -> dict[torch.device, int]:
    """Return the bytes of all weights that change, by the device where they are."""
    before, after = channels.part_widths({}), channels.part_widths(widths)
    result: dict[torch.device, int] = defaultdict(int)
    result[torch.device("cpu")] = _PER_CHANNEL * sum(after)
    tensors = Tensors.of(gm).tensors
    changed = {part for part, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    for path, axes in channels.parameter_axes.items():
        if path in tensors and any(part in changed for axis in axes for part, _ in axis.terms):
            result[tensors[path].device] += prod(axis.at(after) for axis in axes) * tensors[path].element_size()
    return result


def _said(count: float) -> str:
    """Return bytes in words, such as "1.5 GB"; a plan can ask for more than any unit has."""
    unit = next((unit for unit in ("TB", "GB", "MB") if count >= _UNITS[unit]), "kB")
    return f"{int(count) // (_UNITS[unit] // 10) / 10:,} {unit}" if count < 10**18 else "more than 1,000,000 TB"
