"""What products cost whose axes, options or operands are not given as a layer's, and how they are named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nce_fx
from nce_fx.ops.layers import find_layers
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.cost import analyze_cost
from tests.test_cost import NOTHING_KNOWN
from tests.zoo.model import noise


class Calls(nn.Module):
    """Two linear layers, a matrix, a kernel, a weight over its norm, and what is done with them."""

    def __init__(self, call: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.call, self.normed = nn.Linear(6, 4), call, nn.Module()
        self.normed.register_parameter("weight_orig", nn.Parameter(torch.randn(4, 6)))
        self.second, self.matrix = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 5))
        self.kernel = nn.Parameter(torch.randn(6, 5, 3, 3))

    def forward(self, x):
        return self.call(self, x)


@pytest.mark.parametrize(
    ("call", "macs"),
    [
        (lambda n, x: torch.tensordot(x, n.matrix, dims=([1], [1])), 2 * 6 * 3 * 5),
        (lambda n, x: torch.tensordot(x, x, dims=([0, 1], [0, 1])), 6 * 6 * 2 * 5),
        (lambda n, x: torch.tensordot(x.transpose(1, 2), n.matrix.T, 1), 2 * 6 * 3 * 5),
    ],
)
def test_a_product_over_any_axes_is_counted(call, macs):
    assert analyze_cost(nce_fx.trace(Calls(call), (noise(2, 5, 6),)), NOTHING_KNOWN).macs == macs


@pytest.mark.parametrize(("stride", "padding"), [([1, 1], [0, 0]), ([1, 1], [0]), ([1], [0, 0])])
def test_options_of_a_convolution_are_one_for_all_axes_or_one_for_each(stride, padding):
    def call(n, x):
        return torch.ops.aten.convolution.default(x, n.kernel, None, stride, padding, [1], False, [0], 1)

    gm = nce_fx.trace(Calls(call), (noise(2, 5, 8, 8),))
    assert analyze_cost(gm).macs == 2 * 6 * 6 * 6 * 5 * 9
    assert analyze_channels(gm)["kernel"].width == 6


def test_both_products_of_attention_are_of_activations():
    gm = nce_fx.trace(Calls(lambda n, x: F.scaled_dot_product_attention(n.first(x), x[..., :4], x)), (noise(2, 5, 6),))
    cost = analyze_cost(gm, weight_bits=2, activation_bits=8).nodes
    macs = 2 * 5 * 5 * (4 + 6)
    both = cost["scaled_dot_product_attention"]
    assert (both.macs, both.bit_ops, both.weight_bytes) == (macs, macs * 8 * 8, 0)


def _over_its_norm(n, x):
    weight = n.normed.weight_orig
    return F.linear(x, weight / (torch.ones(4) @ weight).norm())


@pytest.mark.parametrize(
    ("call", "paths"),
    [
        (lambda n, x: F.linear(x, n.second.weight @ n.first.weight), {"matmul": "first", "linear": "first"}),
        (_over_its_norm, {"matmul": "matmul", "linear": "normed"}),
    ],
)
def test_what_computes_a_weight_is_named_by_it_where_it_is_a_layer_of_the_module(call, paths):
    layers = find_layers(nce_fx.trace(Calls(call), (noise(2, 5, 6),)))
    assert {layer.node.name: layer.path for layer in layers} == paths
