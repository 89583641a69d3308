"""Activation functions that bend, in integer files: a staircase where no level shows that they fall."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nce_fx.export import to_integer
from nce_fx.export.integer.convolution import FALLS, UNEVEN
from nce_fx.export.integer.curves import Curve, hard_sigmoid
from nce_fx.export.integer.epilogue import Epilogue
from nce_fx.export.integer.staircase import Staircase, count_misses, line_through, requantize
from nce_fx.export.integer.tensors import level_numbers
from nce_fx.export.levels import ActivationLevels
from nce_fx.quantizers.base import ActivationQuantizer, Grid
from tests.test_export import random
from tests.test_integer import integer_file, quantized

CURVES = (nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Hardsigmoid)


def test_a_curve_before_a_quantizer_is_part_of_the_convolution(tmp_path):
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3)]
    for curve in CURVES:
        layers += [nn.BatchNorm2d(8), curve(), nn.Conv2d(8, 8, 3, padding=1, bias=False)]
    net = nn.Sequential(*layers[:-1], nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for norm in (module for module in net if isinstance(module, nn.BatchNorm2d)):
            norm.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -2.0, 1.5, 0.0, 3.0, 1.0]))
    gm = quantized(net, random(4, 3, 9, 9), first_last_bits=2, exact=True)
    for place, kind in enumerate(CURVES, start=1):
        scale(gm, 0.75 if kind in (nn.Sigmoid, nn.Hardsigmoid) else 1.0, place)
    written, operators, _ = integer_file(tmp_path, gm, random(32, 3, 9, 9, seed=3))
    assert (operators["QLinearConv"], operators["Conv"]) == (len(CURVES) + 1, 0)
    assert not written.float_nodes
    assert {agreement.on_border for agreement in written.agreement.values()} == {0}
    x = random(8, 3, 9, 9, seed=4)
    torch.testing.assert_close(to_integer(gm)(x), gm.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("curve", "step", "why"), [(nn.SiLU, 0.3, FALLS), (nn.Tanh, 0.6, UNEVEN)])
def test_where_levels_would_show_the_bend_a_convolution_stays_in_float(tmp_path, curve, step, why):
    torch.manual_seed(0)
    # More products than can be counted in eight bits.
    net = nn.Sequential(nn.Conv2d(3, 8, 7, bias=False), nn.BatchNorm2d(8), curve(), nn.Conv2d(8, 4, 1))
    gm = quantized(net, random(4, 3, 9, 9), first_last_bits=2, exact=True)
    scale(gm, step)
    written, operators, _ = integer_file(tmp_path, gm, random(8, 3, 9, 9, seed=3))
    assert operators["Conv"] == 1
    assert written.float_nodes["0"] == f"Conv: {why}"


def scale(gm, value, place=1):
    """Give the quantizer behind a curve that scale."""
    quantizer = [module for module in gm.modules() if isinstance(module, ActivationQuantizer)][place]
    with torch.no_grad():
        quantizer.clip.fill_(value * quantizer.grid.reach)
    assert quantizer.scale().item() == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("rises", [[[3]], [[-5, 40]], [[-5, 21]], [[-20, 21]], [[21, 21]], [[-20, -20]]])
def test_a_line_through_stairs_gives_no_other_level_within_reach(rises):
    stairs = Staircase(np.arange(1, 1 + len(rises[0])), np.array(rises), np.array([[20]]))
    made = requantize(stairs, *line_through(stairs), 42, lambda ratio: ratio.astype(np.float32))
    assert not made.misses.any()
    assert not count_misses(stairs, made.bias.astype(np.int64), made.ratio.astype(np.float32), 42).any()


@pytest.mark.parametrize(("step", "rises"), [(0.55, False), (0.56, True)])
def test_a_dip_counts_where_it_is_half_a_step_below_zero(step, rises):
    """SiLU falls to -0.2785 at -1.28, and to less than half of 0.55 only between -1.4 and -1.15."""
    levels = ActivationLevels(Grid(-2, 1), step, 2)
    assert Epilogue((Curve(F.silu),)).rises(partial(level_numbers, levels)) == rises


def test_a_hard_sigmoid_with_pytorchs_slope_is_pytorchs_bit_for_bit():
    x = torch.linspace(-4, 4, 4001)
    assert torch.equal(hard_sigmoid(x, alpha=float(np.float32(1 / 6))), F.hardsigmoid(x))
    assert torch.equal(hard_sigmoid(x, alpha=0.25), (x / 4 + 0.5).clamp(0, 1))


def test_of_biases_that_miss_no_rise_one_with_much_room_is_taken():
    """A line that is right as it is, but hardly: another processor may round it otherwise."""
    stairs = Staircase(np.arange(1, 4), np.array([[-4, 2, 8]]), np.array([[20]]))
    slope, bias = 1 / 6, 42 * 7 + 1.0
    assert room(stairs, bias, slope / 42) > 0
    made = requantize(
        stairs, np.array([slope]), np.array([bias * slope / 42]), 42, lambda ratio: ratio.astype(np.float32)
    )
    assert not made.misses.any()
    assert room(stairs, float(made.bias[0]), float(made.ratio[0])) > 2 * room(stairs, bias, slope / 42)


def room(stairs, bias, ratio):
    """How far from a border, in levels, sums are at the least."""
    borders = stairs.levels - 0.5
    below, above = (((stairs.rises[0] - less) * 42 + bias) * ratio for less in (1, 0))
    return min((borders - below).min(), (above - borders).min())
