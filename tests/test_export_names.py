"""What a file calls its nodes and tensors, which operator sets it says, and that all that is in it is read."""

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nce_fx
from nce_fx.errors import ExportError
from nce_fx.export.formats import FORMATS, QONNX_DOMAIN, int2_weight, qcdq_weight
from nce_fx.export.levels import mark
from nce_fx.export.onnx_graph import to_onnx
from nce_fx.export.opset import set_opset
from nce_fx.passes.transform.quantize import IntegerWeight
from tests.test_export import mlp, random
from tests.zoo import ZOO


def model_of(net, x, form="int2"):
    torch.manual_seed(0)
    gm = nce_fx.quantize(nce_fx.trace(net.eval(), (x,)), None, [x])
    return to_onnx(mark(gm), (x,), FORMATS[form], dynamic="no")[0]


@pytest.mark.parametrize(
    ("form", "sets"),
    [
        ("int2", {"": 25}),
        ("integer", {"": 25, "com.microsoft": 1}),
        ("qcdq", {"": 21}),
        ("qonnx", {"": 18, QONNX_DOMAIN: 1}),
    ],
)
def test_a_file_says_the_operator_sets_of_its_format_and_no_others(form, sets):
    model = model_of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), random(2, 6), form)
    assert {entry.domain: entry.version for entry in model.opset_import} == sets
    assert {node.domain for node in model.graph.node} <= sets.keys()


def test_a_module_of_several_nodes_gives_its_name_to_the_last_and_tensors_are_called_as_their_nodes():
    graph = model_of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), random(2, 5, 6)).graph
    made = {node.name: node.op_type for node in graph.node if node.name.partition("/")[0] in ("0", "2")}
    of_each = {"/Transpose": "Transpose", "/MatMul": "MatMul", "": "Add"}
    assert made == {f"{path}{rest}": kind for path in "02" for rest, kind in of_each.items()}
    assert all(list(node.output) == [node.name] for node in graph.node)


def test_a_module_that_is_called_again_has_another_name_for_each_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.act = nn.Linear(6, 8), nn.Linear(8, 3), nn.Tanh()

        def forward(self, x):
            return self.act(self.last(self.act(self.first(x))))

    graph = model_of(Twice(), random(2, 6)).graph
    assert [node.name for node in graph.node if node.op_type == "Tanh"] == ["act", "act_1"]


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_a_file_computes_is_read(form):
    """QONNX has another ReLU in the place of one that ends higher than its quantizer."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3))
    graph = model_of(net, random(2, 3, 8, 8), form).graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert {name for node in graph.node for name in node.output} <= read
    assert {tensor.name for tensor in graph.initializer} <= read


def test_what_a_quantized_weight_was_computed_from_is_not_exported():
    pattern = ZOO["parametrized"]
    gm = nce_fx.quantize(nce_fx.trace(pattern.make(), pattern.inputs), batches=[(pattern.inputs, None)]).eval()
    assert any("original" in name for name in gm.state_dict())
    assert not any("original" in name for name in mark(gm).graph_module.state_dict())


@pytest.mark.parametrize("exact", [False, True])
def test_a_graph_is_exact_where_its_quantizers_are(exact):
    assert mark(mlp(6, 8, 3, spec=nce_fx.QuantSpec(exact=exact))).exact == exact
    assert not mark(nce_fx.trace(nn.Linear(6, 3).eval(), (random(2, 6),))).exact


@pytest.mark.parametrize(("make", "lowest"), [(int2_weight, -2), (qcdq_weight, -128)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_whole_offset_of_any_size_that_a_type_has_is_its_zero_point(make, lowest, channels):
    for zero in (lowest, -lowest - 1):
        integers = torch.zeros((channels, 2), dtype=torch.int8)
        offset = torch.full((channels, 1), -float(zero))
        weight = IntegerWeight(integers, torch.ones(channels, 1), offset, 2 if lowest == -2 else 8, torch.float32)
        piece = make("w", weight, "y")
        assert [node.op_type for node in piece.nodes] == ["DequantizeLinear"]
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in piece.constants}
        assert stored["w_zero_point"].astype(int).ravel().tolist() == [zero] * channels


def older(nodes, tensors=(), opset=25):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    sets = [helper.make_opsetid("", 25), helper.make_opsetid(QONNX_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=13)
    set_opset(model, opset)
    return {entry.domain: entry.version for entry in model.opset_import}


@pytest.mark.parametrize(
    ("kind", "least"), [("INT2", 25), ("UINT2", 25), ("INT4", 21), ("UINT4", 21)], ids=lambda value: str(value)
)
def test_few_bits_are_of_the_opset_that_brought_them(kind, least):
    tensor = TensorProto(name="w", data_type=getattr(TensorProto, kind), dims=[4], raw_data=b"\x00\x00")
    assert older([], [tensor], least)[""] == least
    with pytest.raises(ExportError, match=f"opset {least - 1} has no integers of . bits, which w has: give {least}, "):
        older([], [tensor], least - 1)


def test_a_node_behind_one_of_another_domain_is_looked_at_too():
    nodes = [
        helper.make_node("Quant", ["x"], ["z"], name="first", domain=QONNX_DOMAIN),
        helper.make_node("Gelu", ["z"], ["y"], name="behind"),
    ]
    assert older(nodes, opset=20) == {"": 20, QONNX_DOMAIN: 1}
    with pytest.raises(ExportError, match="opset 19 has no Gelu such as behind"):
        older(nodes, opset=19)
