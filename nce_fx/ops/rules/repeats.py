"""Channels that come more than once in one value, as those of ``x`` in ``torch.cat([x, x.relu()], 1)``.

Their values differ, or will, where each time meets a parameter of its own. Each entry says which time it is, so that no
later order, as a shuffle makes, takes one for another.
"""

from functools import partial

import torch

from nce_fx.ids.labels import FIRST_ID, Label, at_places, bare, core, line_of, placed, ranks, varies
from nce_fx.ids.rule_interface import RuleInterface


def told_apart(run: RuleInterface, label: Label) -> Label:
    """Return a label with a place for each time that a channel comes along one axis: of ``[5, 7, 5]`` 0, 0 and 1."""
    for axis in run.channel_axes(label):
        if run.decide("has places", (label,), partial(_has_places, label, axis), axis):
            continue
        count = run.decide("times", (label,), partial(_times, label, axis), axis)
        if count > 1:
            label = numbered(label, axis, count)
    return label


def numbered(label: Label, axis: int, count: int) -> Label:
    """Return a label with a place for each of up to ``count`` times that a channel comes along an axis."""
    shape = [-1 if k == axis else 1 for k in range(label.dim())]
    return at_places(core(label), _which(label, axis).reshape(shape), count).expand(label.shape)


def _has_places(label: Label, axis: int) -> bool:
    """Whether space is folded in, along this axis or another: of one channel alone such places are not written down."""
    if not placed(core(label)):
        return False
    line = bare(line_of(label, axis))
    return bool((line[1:] == line[:-1]).any()) or any(varies(label, k) for k in range(label.dim()) if k != axis)


def _which(label: Label, axis: int) -> torch.Tensor:
    line = line_of(label, axis)
    times = torch.from_numpy(ranks(line.numpy()))
    return times.masked_fill(bare(line) < FIRST_ID, 0)


def _times(label: Label, axis: int) -> int:
    return int(_which(label, axis).max()) + 1
