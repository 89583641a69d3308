"""Linear layers in integers: weights that stay packed, biases, scales and shifts of each output."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import nce_fx
from nce_fx.export import export_onnx
from nce_fx.export.agreement import LEVELS
from nce_fx.export.formats import FORMATS
from nce_fx.export.integer import few_rows, to_module
from nce_fx.export.integer.linear import Linear, find_linear
from nce_fx.export.integer.onnx_nodes import Nodes
from nce_fx.export.integer.tensors import IntegerTensor
from nce_fx.export.integer.weights import WholeWeight
from nce_fx.export.levels import DOMAIN, WEIGHT, ActivationLevels, mark
from nce_fx.export.onnx_graph import to_onnx
from nce_fx.passes.transform.quantize import IntegerWeight
from nce_fx.quantizers.base import Grid
from tests.test_export import PAIRS, assert_close, evaluated, mlp, random, run


@pytest.mark.parametrize(
    ("weight", "activation", "rows"), [*((*pair, 1) for pair in PAIRS), *(("sawb", "pact", n) for n in (3, 4, None))]
)
def test_few_rows_meet_weights_that_stay_packed(tmp_path, monkeypatch, weight, activation, rows):
    monkeypatch.setattr(few_rows, "CACHE", 0)
    monkeypatch.setattr(few_rows, "_SMALL", 0)
    spec = nce_fx.QuantSpec(weight=weight, activation=activation, exact=True, first_last_bits=2)
    gm = mlp(300, 127, 7, 10, spec=spec)
    path, few = tmp_path / "model.onnx", rows is not None and rows < 4
    written = export_onnx(gm, path, format="integer", batch=rows)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (operators["MatMulNBits"], operators["MatMulIntegerToFloat"]) == ((3, 0) if few else (0, 3))
    assert all(agreement.on_border == 0 for agreement in written.agreement.values())
    for seed in range(2):
        x = 3 * random(rows or 5, 300, seed=seed)
        expected, module = evaluated(gm, x), to_module(onnx.load(path))(x).numpy()
        for level in LEVELS.values():
            got = run(path, x, level)
            assert_close(got, expected, 1e-6)
            assert np.array_equal(got, module)


@pytest.mark.parametrize("batch", [None, 1])
def test_the_bias_of_tokens_is_part_of_the_layer(tmp_path, batch):
    gm = mlp(20, 16, 7, spec=nce_fx.QuantSpec(first_last_bits=2, exact=True), shape=(2, 5))
    path = tmp_path / "model.onnx"
    written = export_onnx(gm, path, format="integer", batch=batch)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators["MatMulIntegerToFloat"] == 2
    assert not any(why.startswith("Add") for why in written.float_nodes.values())
    x = random(batch or 3, 5, 20, seed=4)
    assert_close(run(path, x), evaluated(gm, x), 1e-6)


def test_weights_stay_packed_where_they_come_from_memory():
    def weight(*shape, bits=2):
        return WholeWeight(np.ones(shape, np.int64), np.ones((1, 1)), 1, np.zeros((1, 1), np.int64), bits)

    two, eight = (IntegerTensor("x", ActivationLevels(Grid(0, 2**bits - 1), 1.0, bits)) for bits in (2, 8))
    assert few_rows.suits((1, 512), weight(512, 512), two)
    assert not few_rows.suits((4, 512), weight(512, 512), two)
    assert not few_rows.suits((2, 2, 512), weight(512, 512), two)
    assert not few_rows.suits(None, weight(512, 512), two)
    assert not few_rows.suits((1, 512), weight(512, 512, bits=8), two)
    assert not few_rows.suits((1, 512), weight(512, 512), eight)  # 255 is no int8
    assert not few_rows.come_from_memory([weight(512, 512)])
    assert few_rows.come_from_memory([weight(512, 512)] * 16)


def linear_of(weight, **settings):
    """What is found of ``Gemm(x, w)``, both quantized, or why it stays in float."""
    marker = helper.make_node(WEIGHT, ["w"], ["w_quant"], domain=DOMAIN, name="w_quant")
    marker.attribute.append(helper.make_attribute("name", "w"))
    product = helper.make_node("Gemm", ["x", "w_quant"], ["y"], **settings)
    nodes = Nodes(helper.make_model(helper.make_graph([marker, product], "linear", [], [])))
    return find_linear(nodes, product, {"x": IntegerTensor("x", ActivationLevels(Grid(0, 3), 1.0, 2))}, {"w": weight})


@pytest.mark.parametrize(("turned", "axis", "fits"), [(0, 0, False), (0, 1, True), (1, 0, True), (1, 1, False)])
def test_a_scale_for_each_input_is_none_that_can_stand_behind_the_sum(turned, axis, fits):
    scale = torch.ones(2, 1) if axis == 0 else torch.ones(1, 2)
    found = linear_of(IntegerWeight(torch.ones(2, 2), scale, torch.zeros(1, 1), 2, torch.float32), transB=turned)
    assert isinstance(found, Linear) == fits
    assert fits or found == "its weight has a scale for each input"


def test_each_output_has_its_own_shift_where_weights_need_nine_bits():
    gm = mlp(6, 5, 4, spec=nce_fx.QuantSpec(weight="minmax", activation="minmax"))
    content, _ = to_onnx(mark(gm), (random(2, 6),), FORMATS["integer"], dynamic="batch")
    shifts = {t.name: numpy_helper.to_array(t) for t in content.graph.initializer if t.name.endswith("weight_shift")}
    assert any(np.ptp(shift) > 0 for shift in shifts.values())
    x = 3 * random(5, 6, seed=4)
    assert_close(to_module(content)(x).numpy(), evaluated(gm, x), 1e-6)
