"""Networks in integers: every quantized value is on PyTorch's level, and what stays in float says why."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import nn
from typer.testing import CliRunner

import nce_fx
from nce_fx.cli import app
from nce_fx.data import load_data
from nce_fx.data.images import Images
from nce_fx.errors import ExportError
from nce_fx.export import export_onnx, to_integer
from nce_fx.export.agreement import _difference, _Follower
from nce_fx.export.formats import FORMATS
from nce_fx.export.integer import Lowered, to_module
from nce_fx.export.integer.staircase import count_misses, find_rises, requantize
from nce_fx.export.levels import mark
from nce_fx.export.onnx_graph import to_onnx
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import PUBLISHED
from nce_fx.quantizers.base import ActivationQuantizer
from nce_fx.report.records import ModelReference
from tests.test_export import DEPLOY, PAIRS, random, settled
from tests.zoo.model import BUILT_IN, narrow


@pytest.fixture(autouse=True)
def seeded():
    """Networks are built before anything else in a test: the same weights in each run."""
    torch.manual_seed(0)


def quantized(model, x, **spec):
    """A network with settled statistics, whose additions are of integers, calibrated on four samples."""
    torch.manual_seed(0)
    gm = nce_fx.trace(settled(model), (x[:2],))
    return nce_fx.quantize(gm, nce_fx.QuantSpec(**{**PUBLISHED, "sums": "int8", **spec}), [x])


def integer_file(tmp_path, gm, x):
    """Write the file, which is compared with PyTorch on the way, and return what was said and how many operators."""
    written = export_onnx(gm, tmp_path / "model.onnx", format="integer", inputs=(x,))
    model = onnx.load(written.path)
    onnx.checker.check_model(model)
    return written, Counter(node.op_type for node in model.graph.node), model


@pytest.mark.parametrize(("weight", "activation"), PAIRS)
@pytest.mark.long
def test_resnet8_runs_in_integers_on_pytorchs_levels(tmp_path, weight, activation):
    x = random(4, 3, 16, 16)
    gm = quantized(MODELS["resnet8"](width=4), x, weight=weight, activation=activation)
    written, operators, model = integer_file(tmp_path, gm, random(16, 3, 16, 16, seed=2))
    assert operators["QLinearConv"] == 9
    assert operators["Conv"] == operators["BatchNormalization"] == 0
    assert {agreement.on_border for agreement in written.agreement.values()} == {0}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["layer1.0.conv1.weight"] == TensorProto.INT2
    assert "layer1.0.bn1.weight" not in stored
    names = {node.name for node in model.graph.node}
    assert {"layer1.0.conv1", "layer3.0.downsample.0", "fc", "layer1.0.bn1_activation_quant"} & names
    # What is behind the last sum, and nothing else.
    assert all(name.startswith(("add", "layer3.0.relu2", "avgpool")) for name in written.float_nodes)


def test_a_session_has_few_constants_to_read_and_makes_weights_int8_once(tmp_path):
    x = random(4, 3, 16, 16)
    written, _, model = integer_file(tmp_path, quantized(MODELS["resnet8"](width=4), x), x)
    small = [t for t in model.graph.initializer if t.data_type in (TensorProto.INT8, TensorProto.UINT8)]
    small = [(t.data_type, tuple(t.dims), t.raw_data) for t in small if np.prod(t.dims) == 1]
    assert len(small) == len(set(small))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(written.path), options)
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == "QLinearConv"]
    assert [constants.get(node.input[3]) for node in layers] == [TensorProto.INT8] * 9


@pytest.mark.parametrize(("exact", "allowed"), [(False, 3), (True, 0)])
def test_integers_may_fall_to_the_other_side_of_a_border_as_seldom_as_sums_do(exact, allowed):
    x = torch.linspace(0, 3, 400).reshape(2, 2, 10, 10)
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))
    gm = quantized(net, x, exact=exact, first_last_bits=2).eval()
    (name,) = (n for n, module in gm.named_modules() if isinstance(module, ActivationQuantizer) and module.replaces)
    step = float(gm.get_submodule(name).scale())
    for count in (allowed, allowed + 1):
        x[0, 0, 0, :count] = 1.5 * step
        with torch.no_grad():
            other = gm.get_submodule(name)(x)
        other[0, 0, 0, :count] = 3 * step - other[0, 0, 0, :count]
        follower = _Follower(gm, {name: other.numpy()}, Lowered(computed=frozenset({name})))
        follower.run(x)
        assert follower.on_border == count
        if count == allowed:
            follower.check_counts("all")
        else:
            with pytest.raises(ExportError, match=f"puts {count} of 400 values .* on another level than PyTorch"):
                follower.check_counts("all")


@pytest.mark.parametrize(
    ("got", "expected", "difference"),
    [
        ([[1.0, 2.2], [5.0]], [[1.0, 2.0], [5.0]], 0.1),
        ([[5.0], [1.0, 2.2]], [[5.0], [1.0, 2.0]], 0.1),
        ([[1, 2], [3.0]], [[1, 2], [2.0]], 0.5),
        ([[1, 2], [2.0]], [[1, 3], [2.0]], 1.0),
        ([[], [3.0]], [[], [2.0]], 0.5),
        ([[0.0]], [[0.0]], 0.0),
        ([[1.0]], [[1.0, 2.0]], "output 0 .* has shape"),
        ([[1.0]], [[1.0], [2.0]], "output 0 .* has shape"),
        ([[1]], [[1.0]], "output 0 .* has shape"),
        ([[1.0], [float("nan")]], [[1.0], [1.0]], "output 1 .* is not finite"),
    ],
)
def test_outputs_differ_by_a_share_of_the_largest(got, expected, difference):
    got, expected = (
        [np.array(one, np.int64 if type(one[0]) is int else np.float32) if one else np.zeros(0) for one in of]
        for of in (got, expected)
    )
    if isinstance(difference, str):
        with pytest.raises(ExportError, match=difference):
            _difference(got, expected, "all")
    else:
        assert _difference(got, expected, "all") == pytest.approx(difference)


def test_a_file_is_held_to_these_counts(monkeypatch, tmp_path):
    def too_often(follower, level):
        raise ExportError(f"too often at level {level!r}")

    gm = quantized(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1)), random(2, 2, 4, 4), first_last_bits=2).eval()
    monkeypatch.setattr(_Follower, "check_counts", too_often)
    with pytest.raises(ExportError, match="too often at level"):
        export_onnx(gm, tmp_path / "refused.onnx", format="integer")
    assert not any(tmp_path.iterdir())


def test_what_is_computed_from_integers_alone_is_not_what_is_quantized_from_floats():
    """To each level of the first the file is held; the input and the pooled sum are rounded from floats."""
    x = random(4, 3, 16, 16)
    marked = mark(quantized(MODELS["resnet8"](width=4), x))
    _, lowered = to_onnx(marked, (x,), FORMATS["integer"], dynamic="no")
    assert len(lowered.activations) == 13
    assert lowered.activations.keys() - lowered.computed == {"x_activation_quant", "flatten_activation_quant"}


@pytest.mark.parametrize("bits", [(1, 1), (1, 2), (3, 3), (4, 8)])
@pytest.mark.long
def test_other_bits_run_in_integers(tmp_path, bits):
    x = random(4, 3, 16, 16)
    gm = quantized(
        MODELS["resnet8"](width=4), x, weight="lsq", weight_bits=bits[0], activation_bits=bits[1], exact=True
    )
    written, operators, _ = integer_file(tmp_path, gm, random(8, 3, 16, 16, seed=2))
    if max(bits) < 8:
        assert operators["QLinearConv"] == 9
    else:
        # Of weights of 4 bits and activations of 8 not every level is where a whole bias can put it.
        assert operators["QLinearConv"] + operators["Conv"] == 9
        assert any("no whole-number bias puts all 256 levels" in why for why in written.float_nodes.values())
    assert {agreement.on_border for agreement in written.agreement.values()} == {0}


class Everything(nn.Module):
    """Pools, branches side by side, groups, ReLU6, dilation, another padding, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(8), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU())
        self.mirror = nn.Sequential(
            nn.Conv2d(12, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.hidden, self.head = nn.Linear(8 * 4 * 4, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.depthwise(self.stem(x))
        x = self.mirror(torch.cat((self.left(x), self.right(x)), 1))
        return self.head(F.relu(self.hidden(x.flatten(1))))


@pytest.mark.parametrize(("weight", "activation"), PAIRS)
@pytest.mark.long
def test_layers_of_all_kinds_run_in_integers(tmp_path, weight, activation):
    x = random(4, 3, 16, 16)
    gm = quantized(Everything(), x, weight=weight, activation=activation)
    written, operators, _ = integer_file(tmp_path, gm, random(16, 3, 16, 16, seed=2))
    assert operators["QLinearConv"] == 5
    assert operators["MatMulInteger"] + operators["MatMulIntegerToFloat"] == 2
    assert {agreement.on_border for agreement in written.agreement.values()} == {0}
    assert not {name for name, why in written.float_nodes.items() if why.startswith(("Conv", "Gemm"))}


@pytest.mark.long
def test_negative_zero_and_tiny_factors_of_a_normalization(tmp_path):
    norm = nn.BatchNorm2d(6)
    net = settled(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norm, nn.Hardtanh(-1, 1), nn.Conv2d(6, 4, 3)))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.0, 0.0, -0.3, 1e-7, -1e-20]))
    torch.manual_seed(0)
    gm = nce_fx.trace(net, (random(2, 3, 9, 9),))
    gm = nce_fx.quantize(gm, nce_fx.QuantSpec(first_last_bits=2), [random(4, 3, 9, 9)])
    written, operators, _ = integer_file(tmp_path, gm, random(32, 3, 9, 9, seed=3))
    assert operators["QLinearConv"] == 1
    assert {agreement.on_border for agreement in written.agreement.values()} == {0}


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("why", ["its weight is float", "its weight needs nine bits"])
@pytest.mark.long
def test_a_layer_that_stays_in_float_between_integers_keeps_its_weight(tmp_path, why, bits):
    """onnxruntime rounds a float weight to int8 where it finds one between DequantizeLinear and QuantizeLinear."""
    groups, overrides = (1, {"3": {"weight_bits": None}}) if why == "its weight is float" else (8, {"3": 8})
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1)]
    x = random(4, 3, 8, 8)
    gm = quantized(nn.Sequential(*layers), x, activation_bits=bits, overrides=overrides)
    written, operators, _ = integer_file(tmp_path, gm, random(16, 3, 8, 8, seed=2))
    assert any(said.startswith("Conv") for said in written.float_nodes.values())
    assert operators["Conv"] == 1
    assert all(agreement.on_border <= 10 for agreement in written.agreement.values())
    torch.testing.assert_close(to_integer(gm)(x), gm(x), rtol=1e-5, atol=1e-5)


class Inception(nn.Module):
    """Branches side by side, of which one pools what all read, twice over."""

    def __init__(self):
        super().__init__()

        def layers(inputs, outputs, size):
            conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

        self.stem, self.pool, self.last = layers(3, 8, 3), nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)
        self.first = nn.ModuleList([layers(8, 4, 1), layers(8, 6, 3), layers(8, 4, 1)])
        self.second = nn.ModuleList([layers(14, 2, 1), layers(14, 2, 3), layers(14, 2, 1)])

    def forward(self, x):
        x = self.stem(x)
        for one, other, pooled in (self.first, self.second):
            x = torch.cat([one(x), other(x), pooled(self.pool(x))], 1)
        return self.last(x)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.long
def test_what_is_pooled_beside_what_reads_it_as_it_is_runs_in_integers(tmp_path, exact):
    x = random(4, 3, 8, 8)
    gm = nce_fx.quantize(nce_fx.trace(settled(Inception()), (x[:2],)), nce_fx.QuantSpec(exact=exact), [x])
    written, operators, _ = integer_file(tmp_path, gm, random(16, 3, 8, 8, seed=2))
    # Each branch of the first three is computed for two quantizers; twice the stem, of 8 bits, would take longer.
    assert (operators["QLinearConv"], operators["Conv"]) == (9, 1)
    assert written.float_nodes["stem.0"].endswith("several quantizers read it")
    assert all(agreement.on_border <= (0 if exact else 3) for agreement in written.agreement.values())


@pytest.mark.long
def test_what_stays_in_float_says_why(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.up = (
                nn.Conv2d(3, 32, 3, padding=1),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.ConvTranspose2d(32, 4, 2),
            )
            self.last = nn.Conv2d(4, 2, 3)

        def forward(self, x):
            x = F.relu(self.a(x))
            x = F.relu(self.b(x) + x)
            return self.last(F.silu(self.up(x)))

    x = random(4, 3, 8, 8)
    said = integer_file(tmp_path, quantized(Net(), x, sums="float"), x)[0].float_nodes
    assert "sums=" in said["b"]
    assert "ConvTranspose" in said["up"]
    assert "output" in said["last"]
    assert any(why.startswith(("Sigmoid", "Swish")) for why in said.values())
    assert not integer_file(tmp_path, quantized(Net(), x), x)[0].float_nodes.keys() & {"a", "b"}


class FiveReasons(nn.Module):
    """Convolutions that stay in float, each for another reason."""

    def __init__(self):
        super().__init__()
        self.twice, self.input = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.weight, self.bits, self.last = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 3)

    def forward(self, x):
        x = self.twice(x)
        x = torch.cat([F.relu(x), F.hardtanh(x)], 1)
        return self.last(F.relu(self.bits(F.relu(self.weight(F.relu(self.input(x)))))))


@pytest.mark.long
def test_every_reason_to_stay_in_float_is_said_of_the_layer_that_it_is_of(tmp_path):
    x = random(4, 3, 10, 10)
    overrides = {"weight": {"weight_bits": None}, "bits": 8, "input": {"activation_bits": None}}
    said = integer_file(tmp_path, quantized(FiveReasons(), x, overrides=overrides), x)[0].float_nodes
    expected = {
        "twice": "Conv: several read it: relu, hardtanh",
        "weight": "Conv: its weight is not quantized, or it has none",
        "bits": "Conv: its weight's levels need nine bits as integers",
        "input": "Conv: its input is not quantized",
        "last": "Conv: its output is the network's",
    }
    assert {layer: said.get(layer, "")[: len(why)] for layer, why in expected.items()} == expected


@pytest.mark.parametrize("fineness", [42, 1806])
def test_where_no_rise_is_missed_every_sum_is_on_its_level(fineness):
    source = np.random.default_rng(0)
    slope, start = 10 ** source.uniform(-3, 1, 200), source.uniform(-20, 260, 200)
    reach = source.integers(1, 2000, (200, 1))
    exact = np.round(slope * 64) / 64
    slope = np.where(source.random(200) < 0.3, np.maximum(exact, 1 / 64), slope)
    start = np.where(source.random(200) < 0.3, np.round(start) + 0.5, start)

    def level(sums):
        return np.rint(np.clip((sums * slope[:, None] + start[:, None]).astype(np.float32), 0, 255))

    stairs = find_rises(level, np.arange(1, 256), reach)
    made = requantize(stairs, slope, start, fineness, lambda ratio: ratio.astype(np.float32))
    ratio = made.ratio.astype(np.float32)
    assert np.array_equal(count_misses(stairs, made.bias.astype(np.int64), ratio, fineness), made.misses)
    for channel in range(200):
        sums = np.arange(-reach[channel, 0], reach[channel, 0] + 1)
        fine = (sums * fineness + int(made.bias[channel])).astype(np.float32) * ratio[channel]
        wrong = np.rint(np.clip(fine, 0, 255)) != level(np.broadcast_to(sums, (200, len(sums))))[channel]
        assert wrong.any() == bool(made.misses[channel])
    assert (made.misses == 0).mean() > (0.95 if fineness > 1000 else 0.3)


@pytest.mark.parametrize(
    ("name", "weight", "activation"),
    [  # ResNet-50 is ResNet-18's kinds of nodes, more of them
        *((name, "sawb", "pact") for name in BUILT_IN if name != "resnet50"),
        (None, "sawb", "pact"),
        (None, "minmax", "minmax"),
    ],
)
@pytest.mark.long
def test_the_module_computes_what_the_file_does(name, weight, activation):
    x = random(4, 3, 32, 32) if name else random(4, 3, 16, 16)
    model = MODELS[name](**narrow(name)) if name else Everything()
    gm = quantized(model, x, weight=weight, activation=activation).eval()
    content, lowered = to_onnx(mark(gm), (x,), FORMATS["integer"], dynamic="batch")
    names = sorted(set(lowered.activations) & {value for node in content.graph.node for value in node.output})
    for watched in names:
        content.graph.output.append(onnx.helper.make_tensor_value_info(watched, TensorProto.UINT8, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    theirs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    ours = to_module(content)(x)
    assert len(ours) == len(theirs) > 3
    assert np.abs(ours[0].numpy() - theirs[0]).max() <= 1e-6 * np.abs(theirs[0]).max()
    for watched, mine, other in zip(names, ours[1:], theirs[1:], strict=True):
        assert np.array_equal(mine.numpy(), other), watched


def test_a_network_becomes_a_module_of_integers():
    x = random(4, 3, 16, 16)
    gm = quantized(MODELS["resnet8"](width=4), x).eval()
    assert torch.allclose(to_integer(gm)(x), gm(x), atol=1e-5)


@pytest.mark.long
def test_the_program_of_the_documentation_runs_the_file_of_one_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    images = load_data("digits").test
    assert isinstance(images, Images)
    x = images.normalised(images.pixels)
    torch.manual_seed(0)
    gm = nce_fx.trace(settled(MODELS["resnet8"](width=4, in_channels=x.shape[1])), (x[:2],))
    gm = nce_fx.quantize(gm, nce_fx.QuantSpec(**PUBLISHED, sums="int8", exact=True), [x[:64]])
    nce_fx.save(gm, tmp_path / "out", model=ModelReference(reference="resnet8", args={"width": 4, "in_channels": 1}))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["export", "out", "--onnx", "model.onnx"]).exit_code == 0
    text = DEPLOY[DEPLOY.index("import onnxruntime") :]
    exec(text[: text.index("```")], {})
    accuracy = float((gm.eval()(x).argmax(1) == images.labels).double().mean())
    assert f"{accuracy:.2%}" in capsys.readouterr().out
