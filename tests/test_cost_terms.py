"""What a cost counts where there is little to count: no sums, no tokens, one measurement, no memory of its own."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import nce_fx
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.analysis.hardware import HardwareTable
from nce_fx.passes.planning.choices import Rules, legal_choices
from nce_fx.passes.planning.posynomial import constraints
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.quantities import Prices, Quantity, Sums

TWO = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3))


def traced(model, *shape):
    return nce_fx.trace(model.eval(), (torch.randn(1, *shape),))


@pytest.mark.parametrize("bits", [3, 32])
def test_totals_of_many_widths_at_once_are_those_of_each(bits):
    report = analyze_cost(traced(TWO, 3, 8, 8), weight_bits=bits, activation_bits=bits)
    model, names = report.model, tuple(report.total.by_quantity)
    parts = [model.channels.part_widths({"0": width}) for width in range(1, 10)]
    together = model.totals_of_many(np.array(parts, np.float64), names)
    assert together.tolist() == [[model.totals(each)[name] for name in names] for each in parts]


def test_a_quantity_that_sums_nothing_costs_nothing():
    nothing = Quantity(
        name="nothing",
        title="nothing",
        unit="count",
        cost=lambda model: Sums(model.work_macs, (1,) * len(model.work), sets=()),
    )
    report = analyze_cost(traced(TWO, 3, 8, 8), quantities=[nothing])
    assert report.total.nothing == 0
    parts = np.array([report.model.channels.part_widths({})], np.float64)
    assert report.model.totals_of_many(parts, ["nothing"]).tolist() == [[0.0]]


def test_prices_without_a_table_are_nothing():
    priced = Quantity(name="priced", title="priced", unit="price", cost=lambda model: Prices())
    report = analyze_cost(traced(TWO, 3, 8, 8), quantities=[priced])
    assert report.total.priced == 0
    # So a limit on it holds no width back.
    assert constraints(report.model, legal_choices(report.model.channels, Rules()), {"priced": 1.0}).constants == [0.0]


def test_a_table_of_one_measurement_is_scaled_by_all_sizes():
    table = HardwareTable({("linear", 32): ((4.0, 6.0, 1.0, 1.0, 3.0),)})
    sizes = np.array([[4, 6, 1, 1], [8, 6, 1, 1], [4, 3, 5, 1], [4, 6, 1, 2]], np.float64)
    assert table.price("linear", "", sizes, 32, "x") == pytest.approx([3, 6, 7.5, 6])
    # A row of features has no tokens: its height and its width are 1.
    report = analyze_cost(traced(nn.Sequential(nn.Linear(4, 6)), 4), hardware=table)
    assert report.total.custom == pytest.approx(3)
    report = analyze_cost(traced(nn.Sequential(nn.Linear(4, 6)), 5, 4), hardware=table)
    assert report.total.custom == pytest.approx(15)


def test_what_computes_a_weight_is_counted_in_float_whatever_quantizing_made_of_its_layer():
    block = nn.Sequential(spectral_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 3))
    gm = traced(nn.Sequential(block), 6)
    report = analyze_cost(gm, quantized=quantize(gm, QuantSpec(first_last_bits=2)))
    assert report.nodes["0.0"].macs == 2 * 24
    assert report.nodes["0.0"].bit_ops == 24 * 2 * 2 + 24 * 32 * 32


class IntoAnother(nn.Module):
    """A product that is added to what a layer gave, in its memory."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x).baddbmm_(x, x.transpose(1, 2)[:, :, :3])


def test_a_layer_that_writes_into_the_memory_of_another_has_none_of_its_own():
    nodes = analyze_cost(traced(IntoAnother(), 3, 4)).nodes
    assert (nodes["first"].activation_bytes, nodes["baddbmm_"].activation_bytes) == (36, 0)


def test_a_convolution_that_pads_with_what_is_there_reads_quantized_values_at_any_width():
    first = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    second = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    gm = traced(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(4, 2, 1)), 3, 6, 6)
    spec = QuantSpec(first_last_bits=4)
    report = analyze_cost(gm, quantized=quantize(gm, spec))
    assert report.nodes["2"].bit_ops == report.nodes["2"].macs * 2 * 2
    small = nce_fx.resize(gm, widths := {"0": 6, "2": 5})
    assert report.at(widths).total == analyze_cost(small, quantized=quantize(small, spec)).total
