"""A module of the user's own, with a rule, MACs and a weight: quantized, trained, described, saved, loaded."""

from __future__ import annotations

import copy
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn, randn

import nce_fx
from nce_fx.errors import InputError
from nce_fx.ops import OPS, Op, WeightLayout
from nce_fx.ops.work import rows_times_weight
from nce_fx.passes.transform.quantize import RemoveQuantizers, describe, integer_weights
from tests.zoo.model import noise, randomize


@nce_fx.channel_rule(
    lambda module, x, scale=1.0: F.linear(x, module.weight, module.bias),
    macs=rows_times_weight("decided", -1),
    quantize=WeightLayout(0),
)
class Decided(nn.Module):
    """A linear layer that looks at values: no tracer enters it."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, width)), nn.Parameter(torch.randn(out))

    def forward(self, x, scale=1.0):
        y = F.linear(x, self.weight, self.bias)
        return scale * y if float(x.detach().abs().max()) > 0 else y


class Kernels(nn.Module):
    """The same, with another name for its weight, known by a whole row."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(out, width))

    def forward(self, x):
        return F.linear(x, self.kernels) if float(x.detach().abs().max()) > 0 else x


ROW = Op(
    name="kernels",
    kind="weighted",
    modules=(Kernels,),
    signature="input, weight",
    attributes={"weight": "kernels"},
    channels=OPS["linear"].channels,
    catch="call",
    macs=rows_times_weight("kernels", -1, weight="kernels"),
    quantize=WeightLayout(0),
    example=lambda: (randn(2, 8), randn(6, 8)),
)
WEIGHTS = nce_fx.QuantSpec(activation_bits=None, first_last_bits=None)


class Net(nn.Module):
    def __init__(self, middle: nn.Module, *more: float) -> None:
        super().__init__()
        self.first, self.middle, self.last, self.more = nn.Linear(5, 8), middle, nn.Linear(6, 3), more

    def forward(self, x):
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)), *self.more)))


CASES = {
    "rule": (lambda: Net(Decided(8, 6)), "middle.weight"),
    "more arguments": (lambda: Net(Decided(8, 6), 2.0), "middle.weight"),
    "row": (lambda: Net(Kernels(8, 6)), "middle.kernels"),
}
X = (noise(4, 5),)


def traced(case, seed=0):
    return nce_fx.trace(randomize(CASES[case][0](), seed=seed).eval(), X, ops=OPS.adding(ROW))


@pytest.mark.parametrize("case", CASES)
def test_the_weight_of_a_module_of_ones_own_is_quantized(case, tmp_path):
    gm, path = traced(case), CASES[case][1]
    quantized = nce_fx.quantize(gm, batches=[X])
    (row,) = [row for row in describe(quantized) if row.layer == "middle"]
    assert (row.weight_bits, row.activation_bits, row.weight_quantizer[:4]) == (2, 2, "Sawb")
    assert "middle_weight_quant" in [node.name for node in quantized.graph.nodes]
    assert set(quantized.state_dict()) >= set(gm.state_dict())
    quantized(*X).square().sum().backward()
    assert bool(torch.as_tensor(quantized.get_parameter(path).grad).any())

    levels = integer_weights(alone := nce_fx.quantize(gm, WEIGHTS))["middle"].dequantize()
    by_hand = copy.deepcopy(gm)
    by_hand.get_parameter(path).data.copy_(levels)
    assert torch.equal(alone(*X), by_hand(*X))

    nce_fx.save(quantized, tmp_path / "saved")
    loaded = nce_fx.load(tmp_path / "saved", traced(case, seed=3))
    assert torch.equal(loaded(*X), quantized(*X))
    assert [row[:5] for row in map(astuple, describe(loaded))] == [row[:5] for row in map(astuple, describe(quantized))]
    assert torch.equal(RemoveQuantizers()(quantized).graph_module(*X), gm(*X))


@pytest.mark.parametrize("case", CASES)
def test_such_a_module_is_resized_before_and_costed_after(case):
    gm, widths = traced(case), {"first": 12, CASES[case][1].removesuffix(".weight"): 10}
    wide = nce_fx.resize(gm, widths)
    torch.testing.assert_close(wide(*X), gm(*X), rtol=1e-4, atol=1e-4)
    quantized = nce_fx.quantize(wide)
    cost = nce_fx.analyze_cost(gm, quantized=nce_fx.quantize(gm))
    assert cost.at(widths).bit_ops == nce_fx.analyze_cost(quantized).total.bit_ops


def test_how_a_weight_is_quantized_is_not_said_without_its_macs():
    with pytest.raises(InputError, match="say its macs, too"):
        nce_fx.channel_rule(lambda module, x: x, quantize=WeightLayout(0))(Kernels)
