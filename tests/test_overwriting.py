"""What is said of calls that overwrite a tensor: what makes one of its own instead, and when a value is another."""

import operator

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.ops.liveness import memory_of
from nce_fx.ops.spellings import apart
from tests.zoo.model import noise

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("spelling", "own"),
    [
        (operator.iadd, operator.add),
        (torch.relu_, torch.relu),
        (aten.add_.Tensor, aten.add.Tensor),
        ("add_", "add"),
        ("__iadd__", "__add__"),
        (torch.add, torch.add),
        ("__add__", "__add__"),
    ],
)
def test_a_call_that_overwrites_has_one_that_makes_a_tensor(spelling, own):
    assert apart(spelling) is own or apart(spelling) == own


class Twice(nn.Module):
    """A value is read, overwritten, and read again by its old name and by its new one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.before, self.after = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        y = self.before(x)
        written = x.relu_()
        return y + self.after(written) + self.after(x)


def test_a_value_is_another_for_those_who_read_it_after_it_was_overwritten():
    gm = nce_fx.trace(Twice(), (noise(2, 6),))
    memory, nodes = memory_of(gm), {node.name: node for node in gm.graph.nodes}
    first = nodes["first"]
    assert memory.written(first, nodes["before"]) is None
    assert memory.written(first, nodes["after_1"]) == nodes["relu_"]
    assert memory.written(nodes["relu_"], nodes["after"]) is None, "what overwrites is as it was made"
