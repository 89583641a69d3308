"""Channels that come more than once in one value, and are put in another order then: each time stays what it was."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import nce_fx
from tests import laws
from tests.zoo.model import image, randomize

ORDERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "shuffled": nn.ChannelShuffle(2),
    "flipped": lambda y: y.flip(1),
    "rolled": lambda y: y.roll(1, 1),
    "by_views": lambda y: y.view(len(y), 2, y.shape[1] // 2, 8, 8).transpose(1, 2).reshape(len(y), y.shape[1], 8, 8),
    "halves": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "named": lambda y: y[:, torch.tensor([3, 1, 7, 0, 5, 2, 4, 6])],
}
FORMS = {
    "joined": lambda n, x: torch.cat([x, x.relu()], 1),
    "joined_with_what_is_added": lambda n, x: torch.cat([x, x + n.c(x)], 1),
    "joined_in_pieces": lambda n, x: torch.cat([x[:, :2], x.relu(), 2 * x[:, 2:]], 1),
    "joined_before_a_norm": lambda n, x: n.norm(torch.cat([x, x], 1)),
    "repeated": lambda n, x: x.repeat(1, 2, 1, 1) * n.scale,
    "each_repeated": lambda n, x: x.repeat_interleave(2, 1) * n.scale,
    "expanded": lambda n, x: x[:, None].expand(-1, 2, -1, -1, -1).reshape(len(x), -1, 8, 8) * n.scale,
    "stacked": lambda n, x: torch.stack([x, x.relu()], 2).flatten(1, 2),
    "picked_twice": lambda n, x: x[:, torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])] * n.scale,
}


class Twice(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.a, self.c, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.heads = nn.ModuleList(nn.Conv2d(8, 3, 1) for _ in ORDERS)

    def forward(self, x):
        y = self.form(self, self.a(x))
        return sum(head(order(y).sin()) for head, order in zip(self.heads, ORDERS.values(), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_channels_that_come_twice_are_told_apart_in_any_order(form):
    torch.manual_seed(0)
    model, x = randomize(Twice(FORMS[form])).eval(), image()
    channels = nce_fx.analyze_channels(nce_fx.trace(model, x))
    (group,) = [group for group in channels.groups if "a" in group.producers]
    assert group.pinned is None
    laws.widening_keeps_the_function(model, (x,))
    laws.narrowing_is_removal(model, (x,))
