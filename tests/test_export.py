"""ONNX files compute what PyTorch computes, at every optimization level, or are not written; packing is exact."""

import copy
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from typer.testing import CliRunner

import nce_fx
import tests.onnx_operators  # noqa: F401
from nce_fx.cli import app
from nce_fx.errors import ExportError
from nce_fx.export import export_onnx, formats, save_packed, to_integer
from nce_fx.export.agreement import LEVELS, ROUNDING, Agreement, check_agreement, runnable
from nce_fx.export.formats import FORMATS
from nce_fx.export.levels import activation_levels
from nce_fx.export.onnx_names import owner
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import IntegerWeight, RemoveQuantizers
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from nce_fx.quantizers.n2uq import N2uq
from nce_fx.report.records import ModelReference

PAIRS = [("sawb", "pact"), ("lsq", "lsq"), ("dorefa", "dorefa"), ("minmax", "minmax"), ("seq", "lsq+")]
PIECES = {name: form.pieces for name, form in FORMATS.items() if form.pieces is not None}
DEPLOY = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text()


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settled(model):
    """Give every BatchNorm statistics and factors of its own, as training does."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, std=0.3)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def resnet8(weight="sawb", activation="pact"):
    torch.manual_seed(0)
    gm = nce_fx.trace(settled(MODELS["resnet8"](width=4)), (random(1, 3, 16, 16),))
    return nce_fx.quantize(gm, nce_fx.QuantSpec(weight=weight, activation=activation), [random(8, 3, 16, 16)])


class Mlp(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)))

    def forward(self, x):
        return self.layers(x)


def mlp(*widths, spec=None, shape=(2,)):
    torch.manual_seed(0)
    x = random(*shape, widths[0])
    return nce_fx.quantize(nce_fx.trace(Mlp(*widths).eval(), (x,)), spec, [x])


def run(content, x=None, level=LEVELS["all"]):
    model = onnx.load(content) if isinstance(content, Path) else content
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # threads that wait for work take the time of the tests beside this one
    if not model.functions and any(entry.domain == formats.QONNX_DOMAIN for entry in model.opset_import):
        model = runnable(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {} if x is None else {session.get_inputs()[0].name: x.numpy()})[0]


def evaluated(gm, x):
    with torch.no_grad():
        return gm(x).numpy()


def assert_close(got, expected, tolerance=1e-5):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


# Every format with two pairs, every pair with a format; the test of their pieces has all of them.
@pytest.mark.parametrize(
    ("name", "weight", "activation"),
    [(name, *PAIRS[(first + k) % len(PAIRS)]) for first, name in enumerate(FORMATS) for k in range(2)],
)
@pytest.mark.long
def test_resnet8_computes_what_pytorch_computes(tmp_path, name, weight, activation):
    gm = resnet8(weight, activation)
    written = export_onnx(gm, tmp_path / "model.onnx", format=name)
    assert written.batch is None
    assert written.size == written.path.stat().st_size
    x = random(5, 3, 16, 16, seed=3)
    expected = evaluated(gm, x)
    for level in LEVELS if FORMATS[name].exact_when_optimized else ("disabled",):
        got = run(written.path, x, LEVELS[level])
        assert_close(got, expected)
        assert (got.argmax(1) == expected.argmax(1)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("model", "weight", "activation"),
    [*(("resnet8", *pair) for pair in PAIRS), ("resnet18", *PAIRS[0])],
)
@pytest.mark.long
def test_exact_scales_give_every_runtime_the_same_numbers(tmp_path, model, weight, activation):
    torch.manual_seed(0)
    gm = nce_fx.trace(settled(MODELS[model](width=8)), (torch.zeros(2, 3, 16, 16),))
    spec = nce_fx.QuantSpec(weight=weight, activation=activation, exact=True)
    gm = nce_fx.quantize(gm, spec, [random(8, 3, 16, 16)])
    export_onnx(gm, tmp_path / "model.onnx")
    x = random(64, 3, 16, 16, seed=2)
    expected = evaluated(gm, x)
    for level in LEVELS.values():
        assert np.array_equal(run(tmp_path / "model.onnx", x, level), expected)
    # NNPACK's convolutions are by Winograd's method, which is no sum of products.
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        assert np.array_equal(evaluated(gm, x), expected)


class Swish(nn.Module):
    """A convolution on either side of what has a short negative side."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.last(nn.functional.relu(self.inner(nn.functional.silu(3 * self.first(x)))))


@pytest.mark.parametrize("activation", ["n2uq", "lsq+"])
@pytest.mark.long
def test_learned_thresholds_and_offsets_are_written_exactly_or_refused_in_words(tmp_path, activation):
    torch.manual_seed(0)
    x = random(2, 3, 8, 8)
    gm = nce_fx.quantize(nce_fx.trace(Swish().eval(), (x,)), nce_fx.QuantSpec("sawb", activation), [x])
    for quantizer in gm.modules():
        if isinstance(quantizer, N2uq):
            quantizer.lengths.data.mul_(torch.linspace(0.7, 1.3, len(quantizer.lengths)))
    for name in FORMATS:
        if (activation, name) == ("n2uq", "qonnx"):
            with pytest.raises(ExportError, match=r"activation_quant.*learned thresholds.*int2, qcdq or integer"):
                export_onnx(gm, tmp_path / "model.onnx", format=name)
            continue
        written = export_onnx(gm, tmp_path / "model.onnx", format=name)
        levels = LEVELS.values() if FORMATS[name].exact_when_optimized else [LEVELS["disabled"]]
        for level in levels:
            assert_close(run(written.path, x, level), evaluated(gm, x))
        if name == "integer":
            why = written.float_nodes.get("inner", "")
            assert ("thresholds" in why) == (activation == "n2uq")
    assert_close(to_integer(gm)(x).detach().numpy(), evaluated(gm, x))


def test_a_batchnorm_is_exact_where_the_scales_are(tmp_path):
    torch.manual_seed(0)
    net = settled(nn.Sequential(nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24)))
    plain = nce_fx.trace(net, (torch.zeros(2, 3, 9, 9),))
    gm = nce_fx.quantize(plain, nce_fx.QuantSpec(exact=True), [random(8, 3, 9, 9)])
    export_onnx(gm, tmp_path / "model.onnx")
    x = random(64, 3, 9, 9, seed=2)
    for level in LEVELS.values():
        assert np.array_equal(run(tmp_path / "model.onnx", x, level), evaluated(gm, x))
    assert np.array_equal(evaluated(RemoveQuantizers()(gm).graph_module, x), evaluated(plain, x))


@pytest.mark.long
def test_folded_qcdq_is_computed_in_integers(tmp_path):
    gm = resnet8()
    written = export_onnx(gm, tmp_path / "model.onnx", format="qcdq", fold_bn=True)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(written.path).graph.node}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(written.path), options, providers=["CPUExecutionProvider"])
    assert "QLinearConv" in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert_close(run(written.path, random(5, 3, 16, 16), LEVELS["disabled"]), evaluated(gm, random(5, 3, 16, 16)))


@pytest.mark.parametrize(
    ("model", "weight", "activation"),
    [*(("resnet8", *pair) for pair in PAIRS[:3]), ("mobilenet_v2", *PAIRS[0])],
)
@pytest.mark.long
def test_qonnx_is_what_fpga_flows_take(tmp_path, model, weight, activation):
    """What FINN's conversion and hls4ml's reader refuse a file for, or make something else of."""
    torch.manual_seed(0)
    net = MODELS[model](width=4) if model == "resnet8" else MODELS[model](multiplier=0.25)
    gm = nce_fx.trace(settled(net), (random(1, 3, 16, 16),))
    gm = nce_fx.quantize(gm, nce_fx.QuantSpec(weight=weight, activation=activation), [random(4, 3, 16, 16)])
    written = export_onnx(gm, tmp_path / "model.onnx", format="qonnx", batch=1)
    graph = onnx.load(written.path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    writer = {name: node for node in graph.node for name in node.output}
    quants = [node for node in graph.node if node.op_type == "Quant"]
    layers = 0
    for node in quants:
        _, scale, zero, bits = node.input
        assert all(name in stored for name in (scale, zero, bits))
        assert stored[zero].shape == ()
        assert stored[zero] == 0
        settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        assert settings["rounding_mode"] == b"ROUND"
        if node.input[0] in stored:
            layers += 1
            readers = {other.op_type for other in graph.node if node.output[0] in other.input}
            assert readers <= {"Conv", "Gemm"}
            own = (
                8 if node.input[0] in ("conv1.weight", "features.0.0.weight", "fc.weight", "classifier.1.weight") else 2
            )
            assert stored[bits] == (own if weight == "lsq" else own + 1), "odd levels need a bit more"
            assert len(np.unique((stored[node.input[0]] / stored[scale]).round())) <= 2**own
        elif not settings["signed"]:
            assert writer[node.input[0]].op_type == "Relu"
            assert [other.name for other in graph.node if node.input[0] in other.input] == [node.name]
            assert not settings["narrow"]
    assert layers == len(nce_fx.integer_weights(gm))
    assert {len(node.input) for node in graph.node if node.op_type == "Gemm"} == {3}
    assert not {node.op_type for node in graph.node} & {"Sum", "ReduceMean"}
    assert "Clip" not in {writer[node.input[0]].op_type for node in quants if node.input[0] in writer}


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 1), (-0.3, 1.7), (None, 0.5), (-0.3, None), (0, None)])
def test_a_clip_that_no_quantizer_replaces_is_written_as_relus_in_qonnx(tmp_path, low, high):
    """A mean reads it, as MobileNetV2's last one; hls4ml has no layer for a Clip."""

    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.conv(x).clamp(low, high).mean((2, 3)))

    x = 4 * random(2, 3, 8, 8)
    gm = nce_fx.quantize(nce_fx.trace(Clipped(), (x,)), nce_fx.QuantSpec(), [x])
    model = onnx.load(export_onnx(gm, tmp_path / "model.onnx", format="qonnx", inputs=(x,)).path)
    assert "Clip" not in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(runnable(model).SerializeToString())
    assert_close(session.run(None, {"x": x.numpy()})[0], evaluated(gm, x), 1e-6)


@pytest.mark.parametrize(("weight", "activation"), [("sawb", "pact"), ("dorefa", "dorefa"), ("lsq", "lsq")])
def test_the_qonnx_package_counts_the_bit_operations_that_we_do(tmp_path, weight, activation):
    costs = pytest.importorskip("qonnx.util.inference_cost")
    gm = resnet8(weight, activation)
    file = export_onnx(gm, tmp_path / "model.onnx", format="qonnx", batch=1).path
    theirs = costs.inference_cost(str(file), discount_sparsity=False)["total_cost"]
    # The odd levels of SAWB and DoReFa are written with a bit more.
    bits = {name: each.bits + (weight != "lsq") for name, each in nce_fx.integer_weights(gm).items()}
    ours = nce_fx.analyze_cost(gm, weight_bits=bits).total
    assert (ours.macs, ours.bit_ops) == (theirs["total_macs"], theirs["total_bops"])


@pytest.mark.long
def test_names_and_metadata_are_the_models(tmp_path):
    gm = resnet8()
    model = onnx.load(export_onnx(gm, tmp_path / "model.onnx").path)
    onnx.checker.check_model(model, full_check=True)
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    assert nodes["layer1.0.conv1"].op_type == "Conv"
    assert nodes["layer1.0.conv1"].input[1] == "layer1.0.conv1.weight_quant"
    assert nodes["layer1.0.bn2"].op_type == "BatchNormalization"
    assert nodes["relu_activation_quant"].output[0] == "relu_activation_quant"
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "fc"]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert stored["layer1.0.conv1.weight"].data_type == TensorProto.INT2
    assert stored["fc.weight"].data_type == TensorProto.INT8
    own = gm.state_dict()
    assert np.array_equal(onnx.numpy_helper.to_array(stored["layer2.0.bn1.bias"]), own["layer2.0.bn1.bias"].numpy())
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["nce_fx.weight_quantizer"] == "sawb"
    assert metadata["nce_fx.model_sha256"] == gm.meta["plan"].model
    assert json.loads(metadata["nce_fx.weight_bits"])["layer1.0.conv1.weight"] == 2
    assert metadata["nce_fx.batch"] == "any"


def piece_model(form, piece, result, inputs=()):
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
    graph = helper.make_graph(list(piece.nodes), "piece", list(inputs), outputs, list(piece.constants))
    opsets = [helper.make_opsetid("", form.opset), *(helper.make_opsetid(*item) for item in form.domains.items())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=form.ir_version)
    return runnable(model) if form.domains else model


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("quantizer", WEIGHT_QUANTIZERS)
def test_weights_are_equal_bit_for_bit(name, bits, quantizer):
    weight = random(7, 5, 3, 3)
    module = WEIGHT_QUANTIZERS[quantizer](bits, 0)
    module.start(weight)
    kept = IntegerWeight(*module.integers(weight), bits, weight.dtype)
    piece = PIECES[name].weight("w", kept, "y", False)
    model = piece_model(FORMATS[name], piece, "y")
    for level in LEVELS.values():
        assert np.array_equal(run(model, level=level), kept.dequantize().numpy())
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    if name == "int2":
        per_byte = 4 if bits <= 2 else 2 if bits <= 4 else 1
        assert len(stored.raw_data) == -(-weight.numel() // per_byte)


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("quantizer", ACTIVATION_QUANTIZERS)
def test_activations_are_equal_bit_for_bit(name, signed, bits, quantizer):
    x = random(4, 333) * 2 if signed else random(4, 333).abs() * 2
    module = ACTIVATION_QUANTIZERS[quantizer](bits, signed)
    module.observe(x)
    module.settle()
    levels = activation_levels(module)
    far = torch.tensor([-1e6, 0.0, -0.0, 1e6])
    x = torch.cat([x.reshape(-1), far, torch.arange(-4, 5) * levels.scale])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    if (quantizer, name) == ("n2uq", "qonnx"):
        with pytest.raises(ExportError, match="a has learned thresholds"):
            PIECES[name].activation("a", levels, "x", "a")
        return
    model = piece_model(FORMATS[name], PIECES[name].activation("a", levels, "x", "a"), "a", inputs)
    for level in LEVELS.values():
        assert np.array_equal(run(model, x, level), evaluated(module, x))


@pytest.mark.parametrize("quantizer", ["lsq", "minmax"])
@pytest.mark.parametrize("tokens", [(), (5,)])
@pytest.mark.long
def test_linear_layers_with_widths_that_are_no_multiple_of_four(tmp_path, quantizer, tokens):
    gm = mlp(10, 7, 10, spec=nce_fx.QuantSpec(weight=quantizer, first_last_bits=2), shape=(2, *tokens))
    written = export_onnx(gm, tmp_path / "model.onnx")
    x = random(3, *tokens, 10, seed=4)
    assert_close(run(written.path, x), evaluated(gm, x))


@pytest.mark.long
def test_two_bits_take_a_fifteenth_of_the_float_weights(tmp_path):
    gm = mlp(512, 512, 512, 512, spec=nce_fx.QuantSpec(first_last_bits=2))
    written = export_onnx(gm, tmp_path / "model.onnx")
    floats = sum(parameter.numel() for name, parameter in gm.named_parameters() if "layers" in name) * 4
    assert floats / written.size > 14.5


@pytest.mark.long
def test_a_batch_that_the_graph_fixes_is_kept_and_said(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).reshape(6, 4))

    x = random(3, 6)
    gm = nce_fx.quantize(nce_fx.trace(Fixed().eval(), (x,)), None, [x])
    written = export_onnx(gm, tmp_path / "model.onnx")
    assert written.batch == 3
    assert_close(run(written.path, x), evaluated(gm, x))
    written = export_onnx(mlp(6, 8, 3), tmp_path / "other.onnx", batch=4)
    assert (written.batch, written.sizes) == (4, False)


def test_inputs_that_share_no_batch_stay_as_they_were_traced(tmp_path):
    class Nodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x, edges):
            return self.second(torch.relu(edges @ self.first(x))).mean(1)

    x, edges = random(2, 5, 6), random(5, 5)
    gm = nce_fx.quantize(nce_fx.trace(Nodes().eval(), (x, edges)), None, [((x, edges), None)])
    assert export_onnx(gm, tmp_path / "model.onnx").agreement
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert metadata["nce_fx.batch"] == "as traced"
    with pytest.raises(ExportError, match="2x5x6 and 5x5, which share no first axis: leave the size of the batch out"):
        export_onnx(gm, tmp_path / "other.onnx", batch=4)


def test_the_graph_is_not_changed(tmp_path):
    gm = mlp(6, 8, 8, 3).train()
    before, code = {name: value.clone() for name, value in gm.state_dict().items()}, gm.code
    gm.layers.eval()
    export_onnx(gm, tmp_path / "model.onnx")
    assert gm.code == code
    assert gm.training
    assert not gm.layers.training
    assert all(torch.equal(value, gm.state_dict()[name]) for name, value in before.items())


def wrong_weight(name, weight, result, matmul):
    return formats.int2_weight(name, replace(weight, scale=weight.scale * 1.001), result, matmul)


def wrong_rounding(name, levels, source, result):
    piece = formats.int2_activation(name, levels, source, result)
    for node in piece.nodes:
        node.op_type = {"Round": "Floor"}.get(node.op_type, node.op_type)
    return piece


def unknown_operator(name, levels, source, result):
    return formats.Piece((helper.make_node("NoSuchOperator", [source], [result]),), ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": wrong_weight}, "differ|otherwise than PyTorch"),
        ({"activation": wrong_rounding}, "otherwise than PyTorch"),
        ({"activation": unknown_operator}, "onnxruntime refuses"),
    ],
)
@pytest.mark.long
def test_a_file_that_does_not_verify_is_removed(tmp_path, monkeypatch, change, says):
    changed = replace(FORMATS["int2"], pieces=PIECES["int2"]._replace(**change))
    monkeypatch.setattr("nce_fx.export.export.FORMATS", {"int2": changed})
    (tmp_path / "old.onnx").write_text("as it was")
    for name in ("new.onnx", "old.onnx"):
        with pytest.raises(ExportError, match=says) as error:
            export_onnx(mlp(6, 8, 8, 3), tmp_path / name)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_text() == "as it was"


def nudged(by):
    def activation(name, levels, source, result):
        piece = formats.int2_activation(name, levels, f"{name}_nudged", result)
        nudge = onnx.numpy_helper.from_array(np.array(by, np.float32), f"{name}_nudge")
        add = helper.make_node("Add", [source, nudge.name], [f"{name}_nudged"])
        return formats.Piece((add, *piece.nodes), (*piece.constants, nudge))

    return activation


def test_values_on_the_border_of_two_levels_may_fall_on_either_side(tmp_path, monkeypatch):
    gm = mlp(6, 16, 3, spec=nce_fx.QuantSpec(first_last_bits=2))
    quantizer = next(module for name, module in gm.named_modules() if name == "x_activation_quant")
    scale = activation_levels(quantizer).scale
    border, short = torch.full((2, 6), 0.5 * scale), torch.full((2, 6), 0.499 * scale)  # ties go to the even level, 0
    pieces = PIECES["int2"]._replace(activation=nudged(0.002 * scale))
    changed = replace(FORMATS["int2"], pieces=pieces)
    monkeypatch.setattr("nce_fx.export.export.FORMATS", {"int2": changed})
    agreement = export_onnx(gm, tmp_path / "model.onnx", inputs=(border,)).agreement
    assert all(value.on_border >= 12 and value.difference <= 1e-5 for value in agreement.values())
    with pytest.raises(ExportError, match="otherwise than PyTorch"):
        export_onnx(gm, tmp_path / "other.onnx", inputs=(short,))


class Cancelling(nn.Module):
    """Large sums of which little is left, so that their last digits are the first of the output."""

    def __init__(self):
        super().__init__()
        self.sum, self.same, self.rest = (nn.Linear(512, 64, bias=False) for _ in range(3))
        with torch.no_grad():
            self.same.weight.copy_(self.sum.weight.flip(1))

    def forward(self, x):
        return self.sum(x) - self.same(x.flip(1)) + 1e-3 * self.rest(x)


@pytest.mark.long
def test_no_file_is_asked_to_round_better_than_pytorch(tmp_path, monkeypatch):
    torch.manual_seed(0)
    x = random(8, 512)
    gm = nce_fx.trace(Cancelling().eval(), (x,))
    with torch.no_grad():
        exact = copy.deepcopy(gm).double()(x.double())
        own = float((gm(x) - exact).abs().max() / exact.abs().max())
    assert own > 1e-5
    agreement = export_onnx(gm, tmp_path / "model.onnx", inputs=(x,)).agreement
    assert all(1e-5 < value.difference <= ROUNDING * own for value in agreement.values())
    monkeypatch.setattr("nce_fx.export.agreement.ROUNDING", 0.1)
    with pytest.raises(ExportError, match="outputs differ"):
        export_onnx(gm, tmp_path / "other.onnx", inputs=(x,))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "int3"}, "choose one of int2, integer, qcdq, qonnx"),
        ({"batch": 0}, "give a number of samples"),
        ({"path": "no/such/folder/model.onnx"}, "its folder is not there"),
    ],
)
def test_options_that_are_not_right_are_refused_in_words(tmp_path, options, says):
    path = tmp_path / options.pop("path", "model.onnx")
    with pytest.raises(ExportError, match=says):
        export_onnx(mlp(6, 8, 3), path, **options)
    assert not list(tmp_path.iterdir())


def test_an_example_that_the_graph_does_not_take_is_said_in_a_line():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 2)

        def forward(self, numbers, offsets):
            return self.bag(numbers, offsets)

    given = torch.arange(4), torch.tensor([1, 2])
    with pytest.raises(ExportError, match=r"does not run on the example .*offsets\[0\] has to be 0.*: give inputs="):
        check_agreement(torch.fx.symbolic_trace(Bag()), onnx.ModelProto(), b"", given)


def test_other_precisions_are_refused(tmp_path):
    gm = nce_fx.quantize(nce_fx.trace(Mlp(4, 4, 4).double(), (random(2, 4).double(),)))
    with pytest.raises(ExportError, match=r"is float64: convert the model with \.float\(\)"):
        export_onnx(gm, tmp_path / "model.onnx")


@pytest.mark.long
def test_operators_that_onnx_has_not_are_refused_in_one_line(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.special.bessel_j1(self.layer(x))

    with pytest.raises(ExportError, match="cannot be written as ONNX") as error:
        export_onnx(nce_fx.trace(Odd().eval(), (random(2, 4),)), tmp_path / "model.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("quantizer", WEIGHT_QUANTIZERS)
def test_the_documented_reader_reproduces_packed_weights(tmp_path, bits, quantizer):
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", DEPLOY, re.DOTALL)[-1], names)
    reader = names["read_packed"]
    assert callable(reader)
    gm = mlp(7, 5, 3, spec=nce_fx.QuantSpec(weight=quantizer, weight_bits=bits, first_last_bits=bits))
    weights = reader(save_packed(gm, tmp_path / "weights.safetensors"))
    expected = nce_fx.integer_weights(gm)
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert np.array_equal(weights[name], weight.dequantize().numpy())


def test_a_float_graph_has_nothing_to_pack(tmp_path):
    with pytest.raises(ExportError, match="quantize it first"):
        save_packed(nce_fx.trace(Mlp(4, 4), (random(2, 4),)), tmp_path / "weights.safetensors")


@pytest.mark.long
def test_the_command_exports_a_result_folder(tmp_path):
    gm = resnet8()
    nce_fx.save(gm, tmp_path / "result", model=ModelReference(reference="resnet8", args={"width": 4}))
    target, packed = tmp_path / "model.onnx", tmp_path / "weights.safetensors"
    call = ["export", str(tmp_path / "result"), "--onnx", str(target), "--packed", str(packed), "--json"]
    result = CliRunner().invoke(app, [*call, "--fold-bn", "--verify-each", "--print-after", "fold-batch-norm"])
    assert result.exit_code == 0, result.output
    assert "after fold-batch-norm:" in result.stderr
    said = json.loads(result.stdout)
    assert said["onnx"]["size"] == target.stat().st_size
    assert said["onnx"]["format"] == "integer"
    assert said["onnx"]["float_nodes"]["add_2"] == "Add: its output is not quantized"
    assert said["packed"]["size"] == packed.stat().st_size
    x = random(3, 3, 16, 16)
    assert_close(run(target, x), evaluated(gm, x), 1e-4)
    nothing = CliRunner().invoke(app, ["export", str(tmp_path / "result")])
    assert nothing.exit_code == 1
    assert "nothing to write" in nothing.stderr
    assert "give these as well" in CliRunner().invoke(app, [*call, "--verify-each"]).stderr
    unknown = CliRunner().invoke(app, ["export", str(tmp_path / "result"), "--onnx", str(target), "--format", "tflite"])
    assert unknown.exit_code == 1
    assert "choose one of" in unknown.stderr


@pytest.mark.long
def test_the_command_says_what_keeps_values_off_borders(tmp_path, monkeypatch):
    nce_fx.save(resnet8(), tmp_path / "result", model=ModelReference(reference="resnet8", args={"width": 4}))
    call = ["export", str(tmp_path / "result"), "--onnx", str(tmp_path / "model.onnx")]
    assert "--exact" not in CliRunner().invoke(app, call).stderr
    monkeypatch.setattr("nce_fx.export.export.check_agreement", lambda *_, **__: {"all": Agreement(0.0, 3)})
    said = CliRunner().invoke(app, call, env={"COLUMNS": "500"})
    assert said.exit_code == 0
    assert "3 values on the border" in said.stderr
    assert "--exact" in said.stderr


class Centred(nn.Module):
    """A mean that training moves in place, written out; an exported file must not."""

    mean: torch.Tensor

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.ones(8))

    def forward(self, x):
        x = self.a(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.5).add_(x.mean(0))
        return self.out(torch.relu(x - self.mean))


def test_what_only_training_writes_is_not_in_the_file(tmp_path):
    torch.manual_seed(0)
    x = (torch.randn(3, 4),)
    q = nce_fx.quantize(nce_fx.trace(Centred().eval(), x), batches=[x])
    nce_fx.export_onnx(q, tmp_path / "q.onnx", format="int2", inputs=x)
    assert torch.equal(q.get_buffer("mean"), torch.ones(8))


@pytest.mark.parametrize("scopes", ["no list", "(", "[]", "['one']", None])
def test_a_node_whose_scopes_say_nothing_is_named_by_its_operation(scopes):
    node = helper.make_node("Relu", ["x"], ["y"], name="node")
    if scopes is not None:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert owner(node) == "Relu"
