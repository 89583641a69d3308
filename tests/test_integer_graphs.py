"""Small graphs of markers, written in integers: what runs in integers, and that it is what floats give."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch.fx import Graph, GraphModule

from nce_fx.export.integer import few_rows, lower, to_module
from nce_fx.export.levels import ActivationLevels, Marked
from nce_fx.passes.transform.quantize import IntegerWeight
from nce_fx.quantizers.base import Grid


def levels(bits, low=0, scale=0.5, offset=0.0):
    return ActivationLevels(Grid(low, low + 2**bits - 1, offset), float(np.float32(scale)), bits)


def weight(*shape, bits=2, scale=0.25, offset=0.0):
    """Whole numbers from the least of so many bits to the largest, with a scale for all or one for each output."""
    integers = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    scale = torch.tensor(scale)
    scale = scale.reshape(-1, *[1] * (len(shape) - 1)) if scale.dim() else scale
    return IntegerWeight(torch.tensor(integers, dtype=torch.int8), scale, torch.tensor(offset), bits, torch.float32)


def graph_of(body, nodes, shape, output, constants):
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_empty_tensor_value_info(name) for name in output.split()]
    graph = helper.make_graph(nodes, body, inputs, outputs, constants)
    opsets = [helper.make_opsetid(*pair) for pair in (("", 25), ("nce_fx", 1), ("com.microsoft", 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13)


def parsed(body):
    """Return nodes that are given as text, ``"b = Relu(a) y = Q(b)"``."""
    return list(parser.parse_graph(f"body (float x) => (float y) {{ {body} }}").node)


def ran(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def written(body, *, w=None, v=None, output="y", shape=(2, 16, 4, 4), grids=None, exact=True, module=True, **constants):
    """Write ``body`` in integers, hold the file to what floats give, and return the file and what was said of it.

    ``Q(a)`` is a quantizer named as its result, with the levels of ``grids``; ``w`` and ``v`` are quantized weights;
    ``module``: the file as a PyTorch module gives the same.
    """
    weights = {name: given for name, given in (("w", w), ("v", v)) if given is not None}
    nodes, floats = [], []
    for name in weights:
        nodes.append(helper.make_node("Weight", [], [name], domain="nce_fx"))
        nodes[-1].attribute.append(helper.make_attribute("name", f"{name}.weight"))
    activations = {}
    for node in parsed(body):
        node.name = f"node_{node.output[0]}"
        node.metadata_props.add(key="made for", value=node.output[0])
        if node.op_type != "Q":
            nodes.append(node)
            floats.append(node)
            continue
        name = node.output[0]
        activations[name] = given = (grids or {}).get(name, levels(2))
        marker = helper.make_node("Activation", node.input, [name], domain="nce_fx")
        marker.attribute.append(helper.make_attribute("name", name))
        nodes.append(marker)
        low, high, offset = map(float, given.grid)
        floats += parsed(f"""
            {name}_step = Constant<value_float = {given.scale:.12f}>()
            {name}_low = Constant<value_float = {low:f}>()
            {name}_high = Constant<value_float = {high:f}>()
            {name}_offset = Constant<value_float = {offset:f}>()
            {name}_1 = Div({node.input[0]}, {name}_step)
            {name}_2 = Sub({name}_1, {name}_offset)
            {name}_3 = Clip({name}_2, {name}_low, {name}_high)
            {name}_4 = Round({name}_3)
            {name}_5 = Add({name}_4, {name}_offset)
            {name} = Mul({name}_5, {name}_step)""")
    whole = graph_of(
        "floats", floats, shape, output, constants | {n: g.dequantize().numpy() for n, g in weights.items()}
    )
    x = np.random.default_rng(1).normal(0, 2, shape).astype(np.float32)
    expected = ran(whole, x)
    model = graph_of("marked", nodes, shape, output, constants)
    rounded = [node.output[0] for node in nodes if node.op_type == "Activation" and node.input[0] == "x"]
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in rounded)
    marked = Marked(
        GraphModule({}, Graph()), {f"{name}.weight": given for name, given in weights.items()}, activations, exact
    )
    said = lower(model, marked)
    del model.graph.value_info[:]
    for got in (ran(model, x), *([to_module(model)(torch.from_numpy(x))] if module else [])):
        got = [got] if isinstance(got, torch.Tensor) else got
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(one), other)
    return Counter(node.op_type for node in model.graph.node), said, model


CONV = "a = Q(x) b = Conv<pads = [1, 1, 1, 1]>(a, w)"
SIGNED = {"y": levels(2, -2)}
NORM = {
    "gamma": np.array([1, -1, 0.5, -2], np.float32),
    "beta": np.array([0.5, 1, -0.25, 0], np.float32),
    "mean": np.zeros(4, np.float32),
    "variance": np.ones(4, np.float32),
}
END, FOUR, HALF = np.float32(1.5), np.float32(4), np.full((1, 4, 1, 1), 0.5, np.float32)


@pytest.mark.parametrize(
    ("behind", "settings"),
    [
        ("c = Relu(b) y = Q(c)", {}),
        ("c = Clip(b, , end) y = Q(c)", {"end": END, "grids": SIGNED}),
        ("c = Clip(b, end) y = Q(c)", {"end": -END, "grids": {"y": levels(4, -8, 0.6)}}),
        ("low = Constant<value = float {-1.0}>() end = Constant<value = float {0.5}>() c = Clip(b, low, end) y = Q(c)",
         {"grids": {"y": levels(4, -8)}}),
        ("c = Mul(b, half) d = Relu(c) y = Q(d)", {"half": HALF}),
        ("c = Div(b, four) d = Relu(c) y = Q(d)", {"four": FOUR}),
        ("c = BatchNormalization<epsilon = 0.0>(b, gamma, beta, mean, variance) d = Relu(c) y = Q(d)", NORM),
        ("c = Sigmoid(b) d = Mul(b, c) y = Q(d)", {"grids": {"y": levels(2, scale=0.6)}}),
        ("c = Relu(b) d = MaxPool<kernel_shape = [2, 2]>(c) y = Q(d)", {}),
        ("c = Relu(b) y = Q(c)", {"grids": {"a": levels(1, -1, offset=0.5), "y": levels(2, scale=0.6)}}),
        ("c = Relu(b) y = Q(c)", {"w": weight(4, 16, 3, 3, scale=[0.25, 0.5, 0.125, 0.25])}),
        ("c = Relu(b) y = Q(c)", {"w": weight(4, 16, 3, 3, offset=0.5)}),
        ("c = Relu(b) y = Q(c)", {"grids": {"y": levels(8, scale=0.0625)}}),
    ],
)  # fmt: skip
def test_what_lies_between_a_convolution_and_its_quantizer_is_part_of_it(behind, settings):
    operators, said, _ = written(f"{CONV} {behind}", **{"w": weight(4, 16, 3, 3), **settings})
    assert (operators["QLinearConv"], operators["Conv"]) == (1, 0)
    assert not said.misses
    assert said.computed == {"y"}
    assert not said.float_nodes


@pytest.mark.parametrize(
    ("behind", "settings", "why"),
    [
        ("c = Div(b, three) y = Q(c)", {"three": np.float32(3)}, "Conv: Div (Div) reads it in float"),
        ("c = Relu(b) y = Q(c)", {"grids": {"a": levels(1, -1, offset=0.5)}}, "puts all 4 levels"),
        (
            "c = Identity(bias) d = Conv(a, v, c) e = Relu(d) y = Q(e)",
            {"v": weight(4, 16, 3, 3), "bias": HALF.ravel()},
            "",
        ),
    ],
)
def test_what_is_no_part_of_a_convolution_leaves_it_in_float(behind, settings, why):
    operators, said, _ = written(f"{CONV} {behind}", w=weight(4, 16, 3, 3), **settings)
    assert (operators["QLinearConv"], operators["Conv"]) == (0, 1)
    assert any(why in reason for reason in said.float_nodes.values())


SIDES = "a = Q(x) b = Conv<pads = [1, 1, 1, 1]>(a, w) c = Conv<pads = [1, 1, 1, 1]>(a, v)"
REFUSED = {"v": weight(4, 16, 3, 3, offset=0.25)}


@pytest.mark.parametrize(
    ("behind", "integers", "settings"),
    [
        ("d = Concat<axis = 1>(b, c) y = Q(d)", 2, {}),
        ("d = Concat<axis = 1>(b, c) e = Relu(d) y = Q(e)", 2, {}),
        ("d = Concat<axis = 1>(b, c) y = Q(d)", 1, REFUSED),
        ("d = Concat<axis = 1>(b, c) e = Relu(d) y = Q(e)", 0, REFUSED),
        ("d = Concat<axis = 1>(b, x) y = Q(d)", 1, {}),
        ("d = Concat<axis = 1>(b, x) e = Relu(d) y = Q(e)", 0, {}),
    ],
)
def test_branches_side_by_side_are_rounded_each_by_itself(behind, integers, settings):
    settings = {"w": weight(4, 16, 3, 3), "v": weight(4, 16, 3, 3), "grids": SIGNED, **settings}
    operators, said, _ = written(f"{SIDES} {behind}", **settings)
    assert operators["QLinearConv"] == integers
    assert said.computed == ({"y"} if integers == 2 else set())


@pytest.mark.parametrize(
    ("body", "expected", "settings"),
    [
        # A sum of two tensors of levels.
        ("a = Q(x) b = Neg(x) c = Q(b) d = Add(a, c) y = Q(d)", {"QLinearAdd": 1, "Add": 0}, {"module": False}),
        # Eight bits are all that a number has: nothing is clipped.
        ("y = Q(x)", {"QuantizeLinear": 1, "Clip": 0}, {"grids": {"y": levels(8)}}),
        # A pool of levels, and a border around them.
        ("a = Q(x) b = MaxPool<kernel_shape = [2, 2]>(a) c = Conv(b, w) d = Relu(c) y = Q(d)", {"QLinearConv": 1}, {}),
        ("a = Q(x) b = Pad(a, pads) c = Conv(b, w) d = Relu(c) y = Q(d)", {"QLinearConv": 1, "Pad": 1}, {}),
        ("a = Q(x) b = Pad(a, pads, zero) c = Conv(b, w) d = Relu(c) y = Q(d)", {"QLinearConv": 1}, {}),
        ("a = Q(x) b = Pad(a, pads, one) c = Conv(b, w) d = Relu(c) y = Q(d)", {"QLinearConv": 0}, {}),
        ('a = Q(x) b = Pad<mode = "reflect">(a, pads) c = Conv(b, w) d = Relu(c) y = Q(d)', {"QLinearConv": 1}, {}),
        (
            'a = Q(x) b = Pad<mode = "reflect">(a, two, , last) c = Conv(b, w) d = Relu(c) y = Q(d)',
            {"QLinearConv": 1},
            {"module": False},
        ),
        # Shapes that are computed.
        (
            "a = Q(x) s = Shape(a) b = Reshape(a, s) c = Conv<pads = [1, 1, 1, 1]>(b, w) d = Relu(c) y = Q(d)",
            {"QLinearConv": 1},
            {"module": False},
        ),
        (
            "a = Q(x) b = Conv<pads = [1, 1, 1, 1]>(a, w) t = Shape(x) s = Mul(t, ones) c = Reshape(b, s) y = Q(c)",
            {"QLinearConv": 1},
            {"module": False},
        ),
        # A convolution of 1 by 1 that is wanted in float is a product of matrices.
        (
            "a = Q(x) y = Conv(a, w)",
            {"MatMulIntegerToFloat": 1, "Conv": 0},
            {"shape": (2, 128, 4, 4), "w": weight(4, 128, 1, 1)},
        ),
        (
            "a = Q(x) y = Conv(a, w)",
            {"MatMulIntegerToFloat": 1},
            {"shape": (2, 128, 4, 4), "w": weight(4, 128, 1, 1, scale=[0.25, 0.5, 1.0, 0.125])},
        ),
    ],
)
def test_what_moves_or_adds_levels_works_on_integers(body, expected, settings):
    given = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "zero": np.float32(0),
        "one": np.float32(1),
        "ones": np.array([1, 1, 1, 1]),
        "two": np.array([1, 2]),
        "last": np.array([3]),
    }
    grids = {"a": levels(2, -2)} if "Pad" in body else None
    settings = {"w": weight(16, 16, 3, 3), "grids": grids, **{n: v for n, v in given.items() if n in body}, **settings}
    operators, _, _ = written(body, **settings)
    assert {name: operators[name] for name in expected} == expected


def test_an_operator_of_integers_says_of_which_it_was_made():
    _, _, model = written(f"{CONV} c = Relu(b) y = Q(c)", w=weight(4, 16, 3, 3))
    (node,) = (node for node in model.graph.node if node.op_type == "QLinearConv")
    assert [(entry.key, entry.value) for entry in node.metadata_props] == [("made for", "b")]


def nine_bits(least, most, *shape):
    """A weight of odd whole numbers from the least to the largest."""
    numbers = np.random.default_rng(0).integers((least - 1) // 2, (most + 1) // 2, shape)
    numbers.flat[:2] = (least - 1) // 2, (most - 1) // 2
    return IntegerWeight(
        torch.tensor(numbers, dtype=torch.int8), torch.tensor(2.0), torch.tensor(0.5), 8, torch.float32
    )


@pytest.mark.parametrize(("least", "most"), [(-255, 255), (-129, 127), (-127, 129)])
def test_a_convolution_of_nine_bits_is_one_of_twice_the_channels(least, most):
    operators, _, _ = written(
        f"{CONV} c = Relu(b) y = Q(c)", w=nine_bits(least, most, 4, 16, 3, 3), grids={"y": levels(2, scale=256.6)}
    )
    assert (operators["QLinearConv"], operators["Conv"], operators["BitwiseNot"]) == (1, 0, 1)


@pytest.mark.parametrize(("given", "integers"), [(weight(4, 16, 3, 3), 2), (nine_bits(-255, 255, 4, 16, 3, 3), 0)])
def test_two_quantizers_have_a_convolution_each_unless_it_takes_nine_bits(given, integers):
    body = f"{CONV} y = Q(b) c = MaxPool<kernel_shape = [2, 2]>(b) z = Q(c)"
    grids = {"y": levels(2, scale=200.6), "z": levels(2, scale=200.6)} if not integers else None
    operators, said, _ = written(body, output="y z", w=given, grids=grids)
    assert (operators["QLinearConv"], operators["Conv"]) == (integers, int(not integers))
    assert said.computed == ({"y", "z"} if integers else set())


def whole(*shape, offset):
    """A weight of eight bits that reaches 127, and that plus an offset."""
    numbers = torch.arange(-int(np.prod(shape)), 0, dtype=torch.int32).add(128).reshape(shape).to(torch.int8)
    return IntegerWeight(numbers, torch.tensor(0.25), torch.tensor(offset), 8, torch.float32)


@pytest.mark.parametrize(
    ("body", "expected", "settings"),
    [
        ("y = Gemm(a, w)", "MatMulIntegerToFloat", {"w": whole(16, 4, offset=0.0)}),
        ("y = Gemm(a, w)", "MatMulInteger", {"w": whole(16, 4, offset=1.0)}),
        ("b = MatMul(a, w) y = Add(b, bias)", "MatMulIntegerToFloat", {"shape": (2, 5, 16)}),
        ("b = MatMul(a, w) y = Add(bias, b)", "MatMulIntegerToFloat", {"shape": (2, 5, 16)}),
    ],
)
def test_a_linear_layer_is_one_of_integers_with_its_bias(body, expected, settings):
    bias = {"bias": np.array([0.5, -1, 2, 0.25], np.float32)} if "bias" in body else {}
    operators, said, _ = written(f"a = Q(x) {body}", **{"shape": (2, 16), "w": weight(16, 4), **bias, **settings})
    assert operators[expected] == 1
    assert "Add" not in operators or expected == "MatMulInteger"
    assert not said.float_nodes


def test_a_linear_layer_of_floats_says_that_they_are_not_quantized():
    _, said, _ = written("y = Gemm(x, w)", w=weight(16, 4), shape=(2, 16))
    assert list(said.float_nodes.values()) == ["Gemm: its input is not quantized"]


def test_a_convolution_of_few_places_meets_a_weight_that_stays_packed(monkeypatch):
    monkeypatch.setattr(few_rows, "CACHE", 0)
    monkeypatch.setattr(few_rows, "_SMALL", 0)
    for places, packed in ((3, 1), (4, 0)):
        settings = {"shape": (1, 128, 1, places), "w": weight(4, 128, 1, 1)}
        operators, _, _ = written("a = Q(x) y = Conv(a, w)", **settings)
        assert (operators["MatMulNBits"], operators["MatMulIntegerToFloat"]) == (packed, 1 - packed)
