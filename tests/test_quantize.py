"""Quantizers in graphs: where they stand, that they can be read and taken out again, and that all of it trains."""

from __future__ import annotations

import copy
import operator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nce_fx
from nce_fx.errors import QuantizeError
from nce_fx.models import MODELS
from nce_fx.ops.additions import adds
from nce_fx.passes.analysis.cost import analyze_cost
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize import (
    PUBLISHED,
    InsertQuantizers,
    QuantSpec,
    RemoveQuantizers,
    activation_bits_of,
    calibrate,
    describe,
    integer_weights,
    quantize,
    weight_bits_of,
)
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, ActivationQuantizer, Quantizer, WeightQuantizer
from nce_fx.quantizers.dorefa import DorefaActivation
from nce_fx.quantizers.pact import Pact
from nce_fx.quantizers.saved_tensors import compact_saving
from tests.zoo.model import BUILT_IN, narrow


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def traced(model: nn.Module, x: Tensor, train: bool = True) -> GraphModule:
    torch.manual_seed(0)
    return nce_fx.trace(model.train(train), (x,))


def small(name: str = "resnet8", train: bool = True, **options: Any) -> tuple[GraphModule, Tensor]:
    torch.manual_seed(0)
    x = images(4, 3, 16, 16)
    model = MODELS[name](num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return traced(model, x, train), x


class Tied(nn.Module):
    """One convolution used twice, a concatenation, a shared input, and another padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.left = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.right = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.up = nn.ConvTranspose2d(24, 8, 3, stride=2, padding=1, output_padding=1, groups=4)
        self.mix = nn.Parameter(images(8, 8) / 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(x))
        x = F.relu(self.twice(x))
        x = torch.cat((x, F.relu(self.left(x)), F.relu(self.right(x))), 1)
        x = self.up(x).relu().mean((2, 3))
        return self.head(F.relu(F.linear(x, self.mix)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block with a convolution on its shortcut and one with an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.short, self.norm = nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16)
        self.b1, self.b2, self.b3 = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.a2(F.relu(self.a1(x))) + self.norm(self.short(x)))
        x = F.relu(self.b3(F.relu(self.b2(F.relu(self.b1(x))))) + x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def node(gm: GraphModule, name: str) -> Any:
    return next(n for n in gm.graph.nodes if n.name == name)


def names(gm: GraphModule, ending: str) -> list[str]:
    return [n.name for n in gm.graph.nodes if n.name.endswith(ending)]


# What stands where.


def test_the_graph_shows_its_quantizers():
    gm, x = small()
    quantized = quantize(gm, batches=[x])
    text = str(quantized.graph)
    assert "layer1_0_conv1_weight_quant" in text
    assert "relu_activation_quant" in text
    layers = [row.layer for row in describe(quantized)]
    assert names(quantized, "_weight_quant") == [layer.replace(".", "_") + "_weight_quant" for layer in layers]
    assert dict(gm.named_parameters()).keys() <= dict(quantized.named_parameters()).keys()


def test_bits_by_place():
    gm, _ = small()
    quantized = quantize(gm, QuantSpec(weight_bits=3, activation_bits=2, first_last_bits=8))
    weights, activations = weight_bits_of(quantized), activation_bits_of(quantized)
    assert {name for name, bits in weights.items() if bits == 8} == {"conv1", "fc"}
    assert set(weights.values()) == {3, 8}
    assert {name for name, bits in activations.items() if bits == 8} == {"conv1", "fc"}
    assert set(activations.values()) == {2, 8}
    in_float = quantize(gm, QuantSpec(first_last_bits=None))
    assert set(weight_bits_of(in_float)) == set(weights) - {"conv1", "fc"}
    assert node(in_float, "conv1").op == "call_module"


def test_overrides_go_first_and_the_last_match_counts():
    gm, _ = small()
    layers = [row.layer for row in describe(gm)]
    spec = QuantSpec(
        overrides={
            "layer*": 4,
            "layer3.*": "float",
            "layer1.0.conv2": {"activation_bits": 8},
            "conv1": {"weight_bits": 5, "activation_bits": "float"},
        }
    )
    quantized = quantize(gm, spec)
    weights, activations = weight_bits_of(quantized), activation_bits_of(quantized)
    assert weights == {"conv1": 5, "fc": 8} | {n: 4 for n in layers if n.startswith(("layer1", "layer2"))}
    assert activations["layer1.0.conv2"] == 8
    assert activations["layer1.0.conv1"] == 4
    assert "conv1" not in activations
    with pytest.raises(QuantizeError, match=r"'layer9.\*' matches no layer; the layers are conv1, "):
        quantize(gm, QuantSpec(overrides={"layer9.*": 4}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_bits": 0}, "weight_bits is 0: give 1 to 8 bits"),
        ({"activation_bits": 9}, "activation_bits is 9"),
        ({"first_last_bits": 16}, "first_last_bits is 16"),
        ({"weight": "swab"}, "weight is 'swab': choose one of sawb, sawb-channel, lsq, dorefa, minmax"),
        ({"activation": "sawb"}, "choose one of pact, lsq"),
        ({"shortcuts": "none"}, "choose one of quantized, int8, float"),
        ({"overrides": {"a": 11}}, "override 'a' is 11"),
        ({"overrides": {"a": {"bits": 2}}}, r"override 'a' has \['bits'\]"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_in_words(options, words):
    with pytest.raises(QuantizeError, match=words):
        QuantSpec(**options)


def test_readers_of_one_tensor_share_its_quantizer():
    gm = traced(Block(), x := images(2, 3, 8, 8))
    quantized = quantize(gm, QuantSpec(**PUBLISHED), batches=[x])
    assert names(quantized, "_activation_quant") == [
        f"{name}_activation_quant" for name in ("x", "relu", "relu_1", "relu_2", "relu_3", "relu_4", "mean")
    ]
    shared = node(quantized, "relu_activation_quant")
    assert {user.name for user in shared.users} == {"a1", "short"}
    identity = node(quantized, "relu_2_activation_quant")
    assert {user.name for user in identity.users} == {"b1", "add_1"}


def test_shortcuts_of_8_bits_are_where_activations_are_quantized():
    gm = traced(Block(), x := images(2, 3, 8, 8))
    quantized = quantize(gm, batches=[x])
    bits = {name: module.bits for name, module in quantized.named_modules() if isinstance(module, ActivationQuantizer)}
    assert bits["relu_2_activation_quant"] == 8, "what an addition reads"
    assert bits["relu_2_activation_quant_2"] == 2, "what a layer reads"
    kinds = {type(module).__name__ for module in quantized.modules() if isinstance(module, ActivationQuantizer)}
    assert kinds == {"LsqActivation", "Pact"}, "of 2 and of 8 bits"
    assert not names(quantize(gm, QuantSpec(activation_bits=None, first_last_bits=None)), "_activation_quant")


@pytest.mark.parametrize("written", ["apart", "returned", "alone on its line"])
def test_a_branch_is_8_bits_whatever_overwrites_the_sum(written):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            y = self.conv(x)
            if written == "alone on its line":
                y.add_(x)
                F.relu(y, inplace=True)
                return self.head(y)
            return self.head(y.add_(x).relu_() if written == "returned" else (y + x).relu())

    quantized = quantize(traced(Branch(), x := images(2, 3, 8, 8)), batches=[x])
    assert quantized.get_submodule("conv_activation_quant").bits == 8
    assert [row.weight_bits for row in describe(quantized)] == [8, 2, 8], "the branch's is no last layer"


def test_float_shortcuts():
    gm = traced(Block(), images(2, 3, 8, 8))
    quantized = quantize(gm, QuantSpec(shortcuts="float"))
    assert [row.layer for row in describe(quantized) if row.weight_bits is None] == ["short"], (
        "b1 and b3 are no shortcuts"
    )
    assert {user.name for user in node(quantized, "relu").users} == {"relu_activation_quant", "short"}
    assert {user.name for user in node(quantized, "relu_2").users} == {"relu_2_activation_quant", "add_1"}
    everything = quantize(gm, QuantSpec(shortcuts="quantized"))
    assert all(row.weight_bits for row in describe(everything))


def test_shortcuts_of_eight_bits_between_layers_of_two() -> None:
    gm = traced(MODELS["resnet18"](width=8), images(2, 3, 32, 32))
    quantized = quantize(gm, QuantSpec(shortcuts="int8"))
    additions = [n for n in quantized.graph.nodes if adds(n)]
    operands = [quantized.get_submodule(str(source.target)) for n in additions for source in n.all_input_nodes]
    assert len(additions) == 8
    assert {operand.bits for operand in operands} == {8}
    assert [(row.weight_bits, row.activation_bits) for row in describe(quantized)][1:-1] == [(2, 2)] * 19
    uniform = quantize(gm, QuantSpec(shortcuts="quantized"))
    assert analyze_cost(quantized).bit_ops == analyze_cost(uniform).bit_ops, "additions multiply nothing"


def test_shortcut_convolutions_of_the_built_in_networks():
    for name, count in (("resnet8", 2), ("resnet18", 3), ("resnet50", 4), ("mobilenet_v2", 0)):
        gm = traced(MODELS[name](**narrow(name)), images(1, 3, 32, 32), train=False)
        quantized = quantize(gm, QuantSpec(shortcuts="float"))
        in_float = [row.layer for row in describe(quantized) if row.weight_bits is None]
        assert len(in_float) == count, name
        assert all("downsample" in layer for layer in in_float), name


def test_a_module_used_twice_has_one_weight_quantizer():
    gm = traced(Tied(), images(2, 3, 8, 8))
    quantized = quantize(gm)
    (quantizer,) = names(quantized, "twice_weight_quant")
    assert len(node(quantized, quantizer).users) == 2


def test_two_precisions_of_one_tensor_are_two_quantizers():
    gm = traced(Block(), x := images(2, 3, 8, 8))
    quantized = quantize(gm, QuantSpec(overrides={"short": {"activation_bits": 8}}), [x])
    assert activation_bits_of(quantized)["short"] == 8
    assert activation_bits_of(quantized)["a1"] == 2
    assert names(quantized, "relu_activation_quant_2") == ["relu_activation_quant_2"]


def test_ranges_are_unsigned_where_the_graph_or_the_data_say_so():
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = self.b(F.max_pool2d(F.relu(x), 2) + 1)
            return self.d(F.silu(self.c(x.sigmoid() - 1)))  # type: ignore[no-any-return]

    gm = traced(Signs(), x := images(2, 3, 8, 8).abs())
    quantized = quantize(gm, batches=[x])
    found = {name: module for name, module in quantized.named_modules() if isinstance(module, ActivationQuantizer)}
    assert {name.removesuffix("_activation_quant"): (q.signed, q.origin) for name, q in found.items()} == {
        "x": (False, "data"),
        "add": (False, "graph"),
        "sub": (True, "data"),
        "silu": (True, "data"),
    }
    assert "signed (assumed)" in repr(quantize(gm).silu_activation_quant)


# It computes, trains, and can be taken apart.


@pytest.mark.parametrize("weight", WEIGHT_QUANTIZERS)
@pytest.mark.parametrize("activation", ACTIVATION_QUANTIZERS)
def test_every_parameter_gets_a_gradient(weight, activation):
    for gm, x in (small(), (traced(Tied(), images(2, 3, 8, 8)), images(2, 3, 8, 8))):
        quantized = quantize(gm, QuantSpec(weight, activation), [(x, torch.zeros(len(x)))])
        out = quantized(x)
        assert out.shape == gm(x).shape
        assert bool(out.isfinite().all())
        out.square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in quantized.parameters())
        assert all(p.grad is None for p in gm.parameters())


def test_the_range_of_the_models_own_input_is_not_learned():
    gm, x = small()
    for spec, name in ((QuantSpec(), "clip"), (QuantSpec(activation="lsq", activation_bits=8), "step")):
        quantized = quantize(gm, spec, batches=[x])
        assert not list(quantized.get_submodule("x_activation_quant").parameters())
        assert f"x_activation_quant.{name}" in quantized.state_dict()


@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec("minmax", "lsq", 1, 1, 1), QuantSpec(shortcuts="float")])
def test_what_is_quantized_has_few_levels(spec):
    gm = traced(Tied(), x := images(2, 3, 8, 8))
    quantized = quantize(gm, spec, [x])
    seen: dict[str, tuple[Quantizer, Tensor]] = {}
    for name, module in quantized.named_modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(lambda m, _, out, name=name: seen.update({name: (m, out)}))
    quantized(x)
    assert len(seen) == sum(isinstance(module, Quantizer) for module in quantized.modules())
    # What pads in the place of a layer says its shape, as every other node does.
    padding = [node for node in quantized.graph.nodes if node.target is nn.functional.pad]
    assert padding
    assert all("tensor_meta" in node.meta for node in padding)
    for name, (module, out) in seen.items():
        channels = out.transpose(0, getattr(module, "channel_axis", 0))
        assert all(len(channel.unique()) <= 2**module.bits for channel in channels), name


@pytest.mark.parametrize("build", [lambda: small(), lambda: (traced(Tied(), images(2, 3, 8, 8)), images(2, 3, 8, 8))])
@pytest.mark.parametrize("train", [True, False])
def test_removing_the_quantizers_gives_the_float_graph_back(build, train):
    gm, x = build()
    gm.train(train)
    before = copy.deepcopy(gm)
    quantized = InsertQuantizers(QuantSpec())(gm).graph_module
    for start in (quantized, copy.deepcopy(quantized)):
        result = RemoveQuantizers()(start)
        assert result.modified
        back = result.graph_module
        assert back.code == before.code
        assert list(back.state_dict()) == list(before.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(back.state_dict().values(), before.state_dict().values(), strict=True)
        )
        layers = {n for n, m in before.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)}
        assert {
            n for n, m in back.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        } == layers
        assert torch.equal(copy.deepcopy(back)(x), copy.deepcopy(before)(x))
    assert not RemoveQuantizers()(before).modified
    assert gm.code == before.code, "the input graph must stay as it was"


def test_quantizing_twice_is_refused():
    gm, _ = small()
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize(quantize(gm))


def test_levels_that_no_exact_scale_gives_are_refused():
    gm, _ = small()
    with pytest.raises(QuantizeError, match=r"layer\S+ has no exact scale: minmax at 1 bit"):
        quantize(gm, QuantSpec(weight="minmax", weight_bits=1, exact=True))


def test_weights_that_are_no_numbers_are_refused():
    gm, _ = small()
    gm.get_parameter("layer1.0.conv1.weight").data[0] = float("nan")
    with pytest.raises(QuantizeError, match=r"layer1.0.conv1: its weight has values that are not finite"):
        quantize(gm)


def test_state_copies_and_devices():
    gm, x = small()
    trained, fresh = quantize(gm, batches=[x]), quantize(gm)
    trained.eval(), fresh.eval()
    assert not torch.equal(trained(x), fresh(x))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(trained(x), fresh(x))
    assert torch.equal(copy.deepcopy(trained)(x), trained(x))
    double = copy.deepcopy(trained).double()
    assert double(x.double()).dtype == torch.float64


def test_double_precision_models_stay_double():
    gm, x = small()
    double = quantize(copy.deepcopy(gm).double(), batches=[x.double()])
    assert double(x.double()).dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in double.parameters())


@pytest.mark.parametrize("weight", WEIGHT_QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_integer_weights_are_what_the_graph_computes_with(weight, bits):
    gm = traced(Tied(), x := images(2, 3, 8, 8))
    quantized = quantize(gm, QuantSpec(weight, weight_bits=bits, first_last_bits=8))
    used: dict[str, Tensor] = {}
    for name, module in quantized.named_modules():
        if name.endswith("_quant") and not isinstance(module, ActivationQuantizer):
            module.register_forward_hook(lambda _m, _, out, name=name: used.update({name: out}))
    quantized(x)
    integers = integer_weights(quantized)
    assert set(integers) == set(weight_bits_of(quantized)) == {"stem", "twice", "left", "right", "up", "mix", "head"}
    for layer, packed in integers.items():
        assert packed.integers.dtype == torch.int8
        assert packed.bits == (8 if layer in ("stem", "head") else bits)
        assert -(2 ** (packed.bits - 1)) <= int(packed.integers.min())
        assert int(packed.integers.max()) < 2 ** (packed.bits - 1)
        key = "mix_quant" if layer == "mix" else f"{layer}.weight_quant"
        assert torch.equal(packed.dequantize(), used[key]), layer


def test_weights_computed_in_the_graph_are_quantized_as_computed():
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.conv = nn.Conv2d(4, 4, 3)
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
            x = F.conv2d(x, weight * 2, self.conv.bias)
            return self.last(F.relu(x))  # type: ignore[no-any-return]

    gm = traced(Standardized(), x := images(2, 3, 9, 9))
    quantized = quantize(gm, batches=[x])
    weight = gm.get_parameter("conv.weight")
    packed = integer_weights(quantized)["conv"]
    expected = quantized.get_submodule("conv.weight_quant")((weight - weight.mean((1, 2, 3), keepdim=True)) * 2)
    assert torch.equal(packed.dequantize(), expected)
    quantized(x).sum().backward()
    assert quantized.get_parameter("conv.weight").grad is not None


def test_aten_graphs_are_quantized_as_modules_are():
    torch.manual_seed(0)
    model = MODELS["resnet8"](num_classes=10).eval()
    x = images(2, 3, 16, 16)
    exported = torch.export.export(model, (x,)).module()
    assert isinstance(exported, GraphModule)
    by_modules, by_aten = (quantize(gm, batches=[x]) for gm in (traced(model, x, False), exported))
    assert weight_bits_of(by_aten) == weight_bits_of(by_modules)
    assert activation_bits_of(by_aten) == activation_bits_of(by_modules)
    learned = [
        [name for name, _ in gm.named_parameters() if "activation_quant" in name] for gm in (by_aten, by_modules)
    ]
    assert len(learned[0]) == len(learned[1]) > 0
    torch.testing.assert_close(by_aten(x), by_modules(x))


# Calibration.


def test_calibration_changes_the_quantizers_only():
    gm, x = small()
    quantized = quantize(gm)
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    calibrated = calibrate(quantized, [(x, torch.zeros(4)), (2 * x, torch.zeros(4))])
    assert all(torch.equal(value, before[name]) for name, value in quantized.state_dict().items())
    changed = {name for name, value in calibrated.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("activation_quant" in name for name in changed)
    assert calibrated.training
    again = calibrate(quantized, [(x, torch.zeros(4)), (2 * x, torch.zeros(4))])
    assert all(
        torch.equal(a, b) for a, b in zip(calibrated.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_calibrated_quantizers_see_what_the_float_network_computes():
    gm = traced(Block().eval(), x := images(2, 3, 8, 8), train=False)
    quantized = quantize(gm, QuantSpec(activation="minmax", activation_bits=8), [x])
    seen: dict[str, Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    Watch(gm).run(x)
    for name, module in quantized.named_modules():
        if isinstance(module, ActivationQuantizer) and not module.signed:
            value = seen[name.removesuffix("_activation_quant")]
            assert module.get_buffer("step").item() * 255 == pytest.approx(value.max().item()), name


def test_calibration_without_data_or_with_nan_is_refused():
    gm, x = small()
    with pytest.raises(QuantizeError, match="no batches"):
        quantize(gm, batches=[])
    with pytest.raises(QuantizeError, match="batch 2: the value at x_activation_quant is not finite"):
        quantize(gm, batches=[x, x * float("inf")])


def test_eight_bits_are_close_to_float():
    gm, x = small(train=False)
    quantized = quantize(gm, QuantSpec("minmax", "minmax", 8, 8), [x])
    torch.testing.assert_close(quantized(x), gm(x), rtol=0.05, atol=0.05 * float(gm(x).detach().abs().max()))


# Folding.


@pytest.mark.parametrize(
    "spec", [None, QuantSpec(), QuantSpec("minmax", "lsq"), QuantSpec("lsq", "pact", first_last_bits=None)]
)
def test_folding_keeps_the_output_and_the_integers(spec):
    gm, x = small(train=False)
    gm, x = gm.double(), x.double()
    start = quantize(gm, spec, [x]) if spec else gm
    folded = FoldBatchNorm()(start).graph_module
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), start(x), rtol=1e-9, atol=1e-9)
    if spec:
        assert names(folded, "_weight_quant") == names(start, "_weight_quant")
        before, after = integer_weights(start), integer_weights(folded)
        assert all(torch.equal(before[layer].integers, after[layer].integers) for layer in before)
        scaled = folded.get_submodule("layer1.0.conv1.weight_quant")(folded.get_parameter("layer1.0.conv1.weight"))
        assert torch.equal(after["layer1.0.conv1"].dequantize(), scaled)
        assert after["layer1.0.conv1"].scale.shape == (len(scaled), 1, 1, 1)


def test_folding_knows_transposed_convolutions_and_leaves_what_it_cannot_fold():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)
            self.line, self.line_norm = nn.Linear(6, 5), nn.BatchNorm1d(5)
            self.shared, self.norm_a, self.norm_b = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up_norm(self.up(x)).mean((2, 3))
            x = self.line_norm(self.line(x))
            return self.norm_b(self.shared(self.norm_a(self.shared(x))))  # type: ignore[no-any-return]

    model = Mixed().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)  # type: ignore[arg-type]
    x = images(2, 4, 5, 5, dtype=torch.float64)
    gm = traced(model, x, train=False)
    for start in (gm, quantize(gm, QuantSpec("minmax"), [x])):
        folded = FoldBatchNorm()(start).graph_module
        left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert left == ["norm_a", "norm_b"]
        torch.testing.assert_close(folded(x), start(x), rtol=1e-9, atol=1e-9)


def test_a_learned_clip_stays_the_same_object_of_training():
    """One step of SGD moves weights and clips, and the graph computes with the new ones."""
    gm, x = small()
    quantized = quantize(gm, QuantSpec(**PUBLISHED), batches=[x])
    clips = [module.clip for module in quantized.modules() if isinstance(module, Pact) and module.clip.requires_grad]
    before = [float(clip.detach()) for clip in clips]
    optimizer = torch.optim.SGD(quantized.parameters(), 0.1)
    quantized(x).square().sum().backward()
    optimizer.step()
    assert any(float(clip.detach()) != old for clip, old in zip(clips, before, strict=True))
    assert bool(quantized(x).isfinite().all())


def test_scales_are_kept_where_no_normalization_follows():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    x = torch.randn(2, 3, 8, 8)
    quantized = quantize(nce_fx.trace(model.eval(), (x,)), QuantSpec("dorefa", "dorefa"), [x])
    quantizers = {path: module for path, module in quantized.named_modules() if isinstance(module, WeightQuantizer)}
    for path, quantizer in quantizers.items():
        weight = quantized.get_parameter(path.removesuffix("_quant")).detach()
        reach, levels = float(weight.abs().max()), float(quantizer(weight).detach().abs().max())
        if path == "0.weight_quant":
            assert levels == 1
        else:
            assert 0.3 * reach < levels < 1.5 * reach, path


class OneDevice(TorchDispatchMode):
    """Refuses an op on tensors of another device than the model's; numbers may come from the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor) and value.dim()]
        assert {value.device.type for value in values} <= {"meta"}, func
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def mobilenet() -> GraphModule:
    return nce_fx.trace(MODELS["mobilenet_v2"](**narrow("mobilenet_v2")), (torch.randn(2, 3, 32, 32),))


@pytest.mark.parametrize(("weight", "activation"), [("sawb", "pact"), ("lsq", "lsq"), ("dorefa", "dorefa")])
@pytest.mark.long
def test_a_training_step_makes_no_tensor_on_another_device(
    mobilenet: GraphModule, weight: str, activation: str
) -> None:
    quantized = nce_fx.quantize(mobilenet, QuantSpec(weight=weight, activation=activation)).train().to("meta")
    inputs, target = torch.empty(4, 3, 32, 32, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
    for saving in (nullcontext, compact_saving):
        quantized.zero_grad()
        with OneDevice(), saving():
            F.cross_entropy(quantized(inputs), target).backward()
        gradients = [parameter.grad for parameter in quantized.parameters()]
        assert all(gradient is not None and gradient.is_meta for gradient in gradients)


class InPlace(nn.Module):
    """Additions that write into their first operand, as torchvision has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Conv2d(size, 8, 3, padding=1) for size in (3, 8, 8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        out = self.a(x)
        out += x
        out = self.b(F.relu(out)).add_(self.c(x))
        return self.head(F.relu(out).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shortcuts", ["quantized", "int8", "float"])
@pytest.mark.parametrize("activation", ["dorefa", "lsq"])
def test_sums_of_integers_read_quantized_operands(activation: str, shortcuts: str) -> None:
    x = images(2, 3, 8, 8)
    gm = traced(InPlace(), x)
    spec = QuantSpec("dorefa", activation, shortcuts=shortcuts, sums="int8")
    quantized = quantize(gm, spec, [x])
    additions = [n for n in quantized.graph.nodes if adds(n)]
    assert [n.target for n in additions] == [operator.add, "add"], "what is quantized is not written into"
    for addition in additions:
        operands = [quantized.get_submodule(str(source.target)) for source in addition.all_input_nodes]
        assert all(isinstance(operand, ActivationQuantizer) for operand in operands)
        assert operands[0].bits == 8
        assert not isinstance(operands[0], DorefaActivation), "its range would cut the branch"
    assert torch.equal(RemoveQuantizers()(quantized).graph_module(x), gm(x))
    quantized(x).sum().backward()
    assert all(value.grad is not None for value in quantized.parameters())


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "vgg16_bn"])
def test_every_addition_of_the_built_in_networks_can_be_one_of_integers(name: str) -> None:
    gm = traced(MODELS[name](**narrow(name)), images(2, 3, 32, 32), train=False)
    quantized = quantize(gm, QuantSpec(sums="int8", shortcuts="quantized"))
    additions = list(filter(adds, quantized.graph.nodes))
    assert additions
    for addition in additions:
        for source in addition.all_input_nodes:
            assert isinstance(quantized.get_submodule(str(source.target)), ActivationQuantizer)


@pytest.mark.parametrize("size", [9, 10])
def test_a_transposed_convolution_that_is_asked_for_a_size_still_has_it(size):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)

        def forward(self, x):
            return self.up(self.first(x), output_size=[size, size])

    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5)
    gm = nce_fx.trace(Up().eval(), (x,))
    found = quantize(gm, QuantSpec(weight="minmax", activation="minmax", weight_bits=8, first_last_bits=8), [x])(x)
    assert found.shape == (2, 6, size, size)
    torch.testing.assert_close(found, gm(x), rtol=0.05, atol=0.05)
