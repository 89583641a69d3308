"""What a file is for: older opsets, images of other sizes, the model's own names, tied weights, PyTorch's exporters."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

import nce_fx
from nce_fx.errors import ExportError, NceFxError
from nce_fx.export import export_onnx
from nce_fx.export.formats import int2_weight
from nce_fx.export.onnx_names import _wanted
from nce_fx.export.program import Dynamic, program, takes_other_sizes
from nce_fx.passes.transform.quantize import IntegerWeight

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x):
        x = self.second(F.relu(self.first(x))).relu()
        return self.fc(x.mean((2, 3)))


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.out, self.aux = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        low = self.low(x).relu()
        result: OrderedDict[str, Any] = OrderedDict(
            out=F.interpolate(self.out(self.high(low).relu()), size=x.shape[-2:], mode="nearest")
        )
        result["aux"] = [self.aux(low), low.mean(1)]
        return result


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.up(self.embed(ids)).relu())


class Several(nn.Module):
    """Reads a list and a dict."""

    def __init__(self):
        super().__init__()
        self.images, self.numbers, self.out = nn.Conv2d(3, 8, 3), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, images, more):
        x = self.images(images[0]).relu() + self.images(images[1]).relu()
        return self.out(x.mean((2, 3)) + self.numbers(more["numbers"]).relu())


class Bag(nn.Module):
    """In the file its bag is a loop, whose body reads tensors around it."""

    def __init__(self):
        super().__init__()
        self.bag, self.up, self.out = nn.EmbeddingBag(20, 8, mode="mean"), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.up(self.bag(ids)).relu())


@dataclass
class Scores:
    scores: Tensor


class Wrapped(nn.Module):
    """Returns a class of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return Scores(self.out(self.up(x).relu()))


class Encoder(nn.Module):
    """Two weights that are one, in layers that are both quantized."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 8)
        self.last.weight = nn.Parameter(self.first.weight.t().contiguous())
        self.again = nn.Linear(8, 12)
        self.again.weight = self.first.weight

    def forward(self, x):
        return self.again(self.last(self.middle(self.first(x).relu()).relu()).relu())


def quantized(model, *inputs, **spec):
    torch.manual_seed(0)
    made = model().eval()
    return nce_fx.quantize(nce_fx.trace(made, inputs), nce_fx.QuantSpec(**spec), [inputs])


def session(path):
    return onnxruntime.InferenceSession(str(path))


@pytest.mark.parametrize(
    ("form", "opset"), [("qcdq", 13), ("qcdq", 17), ("qcdq", 23), ("qonnx", 13), ("int2", 25), ("integer", 25)]
)
def test_a_file_says_the_opset_that_is_asked_for_and_runs(form, opset, tmp_path):
    nce_fx.export_onnx(quantized(Classes, X), tmp_path / "m.onnx", format=form, opset=opset)
    model = onnx.load(tmp_path / "m.onnx")
    assert {entry.version for entry in model.opset_import if not entry.domain} == {opset}
    if form != "qonnx":
        onnx.checker.check_model(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17 has no integers of 2 bits"),
        ({"opset": 12}, "opset is 12: give one from 13 to 25"),
        ({"opset": True}, "opset is True"),
    ],
)
@pytest.mark.long
def test_an_opset_that_cannot_be_is_refused_and_nothing_is_written(options, message, tmp_path):
    with pytest.raises(NceFxError, match=message) as caught:
        nce_fx.export_onnx(quantized(Classes, X), tmp_path / "m.onnx", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["int2", "qcdq", "integer"])
@pytest.mark.long
def test_images_of_any_size_and_outputs_by_the_models_names(form, tmp_path):
    q = quantized(Pixels, X, exact=True)
    written = nce_fx.export_onnx(q, tmp_path / "m.onnx", format=form)
    assert written.sizes
    run = session(tmp_path / "m.onnx")
    assert [output.name for output in run.get_outputs()] == ["out", "aux.0", "aux.1"]
    large = torch.randn(3, 3, 24, 40)
    wanted, got = q(large), run.run(None, {run.get_inputs()[0].name: large.numpy()})
    assert got[0].shape == wanted["out"].shape
    if form != "qcdq":
        for a, b in zip(got, [wanted["out"], *wanted["aux"]], strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


def test_a_graph_that_fixes_its_size_keeps_it(tmp_path):
    fixed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    assert not nce_fx.export_onnx(quantized(lambda: fixed, X), tmp_path / "m.onnx").sizes
    assert session(tmp_path / "m.onnx").get_inputs()[0].shape[1:] == [3, 8, 8]


class Positioned(nn.Module):
    """Adds how far from the left each pixel is, by an operation whose length PyTorch's exporter writes down."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.a(x).relu()
        return self.b(y + torch.linspace(-1, 1, y.shape[-1]))


def test_a_file_that_is_not_the_graph_at_other_sizes_is_written_for_its_own(tmp_path):
    q = quantized(Positioned, X)
    assert q(torch.randn(2, 3, 8, 24)).shape == (2, 4, 8, 24)
    written = nce_fx.export_onnx(q, tmp_path / "m.onnx")
    assert (written.sizes, written.batch) == (False, None)
    assert session(tmp_path / "m.onnx").get_inputs()[0].shape[1:] == [3, 8, 8]


@pytest.mark.parametrize(
    ("layers", "takes"),
    [
        ([nn.Conv2d(3, 4, 3)], True),
        ([nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2)], False),
        ([nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()], False),
        ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)], False),
    ],
)
def test_other_sizes_are_taken_where_images_become_larger_ones(layers, takes):
    gm = nce_fx.trace(nn.Sequential(*layers).eval(), (X,))
    assert takes_other_sizes(gm, (X,)) == takes
    axes: list[tuple[Dynamic, set[int]]] = [("no", set()), ("batch", {0}), ("sizes", {0, 2, 3})]
    for dynamic, free in axes if takes else ():
        graph = program(gm, (torch.cat([X, X]),), dynamic=dynamic).graph
        sizes = graph.find_nodes(op="placeholder")[-1].meta["val"].shape
        assert {axis for axis, size in enumerate(sizes) if not isinstance(size, int)} == free


@pytest.mark.parametrize(
    ("outputs", "taken", "kept", "named"),
    [
        (["a", "b"], set(), (), {"x": "a", "y": "b"}),
        (["a", None], set(), (), {"x": "a"}),
        (["a", "b"], {"a"}, (), {"y": "b"}),
        (["a", "b"], {"x"}, (), {"y": "b"}),
        (["a", "b"], set(), ("x",), {"y": "b"}),
        (["a"], set(), (), {}),
    ],
)
def test_outputs_have_the_models_names_where_these_are_free(outputs, taken, kept, named):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([], "g", [], values)
    assert _wanted(helper.make_model(graph), outputs, taken, kept) == named
    graph.output[1].name = "x"
    assert _wanted(helper.make_model(graph), ["a", "b"], set(), ()) == {}


@pytest.mark.parametrize("form", ["int2", "qcdq", "integer", "qonnx"])
@pytest.mark.parametrize("model", [Tied, Encoder])
@pytest.mark.long
def test_tied_weights_stay_tied_and_are_exported(model, form, tmp_path):
    inputs = torch.randint(20, (2, 5)) if model is Tied else torch.randn(4, 8)
    q = quantized(model, inputs)
    first, last = ("embed", "head") if model is Tied else ("first", "again")
    assert q.get_parameter(f"{first}.weight") is q.get_parameter(f"{last}.weight")
    nce_fx.export_onnx(q, tmp_path / "m.onnx", format=form)
    nce_fx.save(q, tmp_path / "out")
    again = nce_fx.load(tmp_path / "out", model())
    assert again.get_parameter(f"{first}.weight") is again.get_parameter(f"{last}.weight")
    assert torch.equal(again(inputs), q(inputs))


@pytest.mark.parametrize("form", ["int2", "integer"])
@pytest.mark.parametrize(
    ("model", "inputs", "names"),
    [
        (Several, ([X, X + 1], {"numbers": torch.ones(2, 4)}), ["images_0", "images_1", "more_numbers"]),
        (Bag, (torch.arange(8).reshape(2, 4),), ["ids"]),
    ],
)
def test_tensors_in_containers_are_inputs_and_loops_read_what_is_renamed(model, inputs, names, form, tmp_path):
    written = export_onnx(quantized(model, *inputs), tmp_path / "m.onnx", format=form)
    assert [value.name for value in onnx.load(written.path).graph.input] == names
    assert written.batch is None


def test_an_output_of_an_own_class_is_refused_by_its_name(tmp_path):
    with pytest.raises(ExportError, match="returns Scores, a class of its own: return a tuple or a dict"):
        export_onnx(quantized(Wrapped, torch.ones(2, 4)), tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"exact": True},
        {"weight": "dorefa", "activation": "dorefa"},
        {"weight": "lsq", "activation": "lsq"},
        {"weight": "minmax", "activation": "minmax"},
    ],
    ids=str,
)
def test_pytorchs_own_exporters_take_the_result(spec, dynamo, tmp_path):
    q, other = quantized(Classes, X, **spec).eval(), torch.randn(5, 3, 8, 8)
    axes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("b", max=64)},)} if dynamo else {"dynamic_axes": {"x": {0: "b"}}}
    )
    before = {name: value.clone() for name, value in q.state_dict().items()}
    if not dynamo:
        axes["opset_version"] = 17
    torch.onnx.export(q, (X,), tmp_path / "m.onnx", dynamo=dynamo, input_names=["x"], verbose=False, **axes)
    run = session(tmp_path / "m.onnx")
    got, wanted = torch.from_numpy(run.run(None, {"x": other.numpy()})[0]), q(other)
    # A value on the border of two levels may be rounded to the other one.
    near = ((got - wanted).abs().amax(1) < 1e-4 * wanted.abs().max()).float().mean()
    assert near >= 0.6
    assert all(torch.equal(value, q.state_dict()[name]) for name, value in before.items())


def test_other_ways_of_pytorch_take_the_result():
    q, other = quantized(Classes, X).eval(), torch.randn(5, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(q, X)(other), q(other))
    shapes = ({0: torch.export.Dim("b", max=64)},)
    assert torch.equal(torch.export.export(q, (X,), dynamic_shapes=shapes).module()(other), q(other))


@pytest.mark.parametrize("offset", [0.0, 0.5, -1.0, 2.0, 3.0, -2.0])
def test_a_weight_whose_zero_lies_anywhere_comes_out_as_its_levels(offset):
    integers, scale = torch.tensor([[-2, -1], [0, 1]], dtype=torch.int8), torch.tensor([[0.5], [0.25]])
    weight = IntegerWeight(integers, scale, torch.full((2, 1), offset), 2, torch.float32)
    piece = int2_weight("w", weight, "y")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph(piece.nodes, "g", [], [result], piece.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    assert torch.equal(torch.from_numpy(y), weight.dequantize())
