"""Convolutions of few products whose output is wanted in float: their sums are counted in eight bits."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from nce_fx.export import export_onnx, to_integer
from tests.test_export import assert_close, evaluated, random, run
from tests.test_integer import integer_file, quantized


class SqueezeExcite(nn.Module):
    """A depthwise convolution whose output is multiplied with a number for each channel that its mean gives."""

    def __init__(self, kernel, normalized, bias, activation):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=8, bias=bias)
        self.norm = nn.BatchNorm2d(8) if normalized else nn.Identity()
        self.activation = activation
        self.narrow, self.wide, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x):
        x = self.activation(self.norm(self.depthwise(self.stem(x))))
        gate = self.wide(self.activation(self.narrow(x.mean((2, 3), keepdim=True))))
        return self.last(x * torch.sigmoid(gate))


@pytest.mark.parametrize(
    ("weight", "activation", "exact", "kernel", "normalized", "bias"),
    [
        ("sawb", "pact", False, 5, True, False),
        ("lsq", "lsq", True, 3, False, True),
        ("dorefa", "dorefa", True, 3, False, False),
    ],
)
@pytest.mark.long
def test_the_sums_of_a_depthwise_convolution_fit_eight_bits(
    tmp_path, weight, activation, exact, kernel, normalized, bias
):
    x = random(4, 3, 17, 17)
    net = SqueezeExcite(kernel, normalized, bias, nn.SiLU())
    gm = quantized(net, x, weight=weight, activation=activation, exact=exact)
    written, operators, model = integer_file(tmp_path, gm, random(8, 3, 17, 17, seed=2))
    assert operators["Conv"] == 0
    assert not any(why.startswith("Conv") for why in written.float_nodes.values())
    assert {node.name for node in model.graph.node} >= {"depthwise"}
    torch.testing.assert_close(to_integer(gm)(x), gm.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "signed"), [(3, True), (5, False), (7, False)])
@pytest.mark.long
def test_counts_are_pytorchs_sums(tmp_path, kernel, signed):
    layers = [nn.Conv2d(4, 4, kernel, padding=2, groups=4, bias=False)]
    net = nn.Sequential(*layers) if signed else nn.Sequential(nn.ReLU(), *layers)
    x = random(4, 4, 9, 9)
    gm = quantized(net, x, exact=True, first_last_bits=2)
    path = tmp_path / "model.onnx"
    export_onnx(gm, path, format="integer", inputs=(x,))
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    # Of 49 products two sums may be 441 apart.
    assert operators["QLinearConv"] == (kernel < 7)
    assert_close(run(path, x), evaluated(gm, x), 0)
