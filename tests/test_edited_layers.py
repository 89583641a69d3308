"""A quantized graph is a module as any other: its layers are replaced, pruned and hooked, and the graph follows."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import nce_fx
from nce_fx.errors import ArtifactError, QuantizeError
from nce_fx.passes.transform.quantize import RemoveQuantizers, describe
from tests.observing import counted
from tests.zoo.model import conv, image, randomize

X = (image(size=6),)


class Net(nn.Module):
    """Two convolutions, one of them padded by what is there, and a head; a layer is shared by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 6), nn.Sequential(conv(6, 6, padding_mode="circular"), nn.ReLU())
        self.fc, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.fc.weight

    def forward(self, x):
        x = torch.relu(self.fc(self.body(torch.relu(self.stem(x))).mean((2, 3))))
        return self.tied(x)


SPECS = {
    "default": nce_fx.QuantSpec(),
    "pact": nce_fx.QuantSpec(weight="sawb", activation="pact"),
    "lsq": nce_fx.QuantSpec(weight="lsq", activation="lsq"),
    "dorefa": nce_fx.QuantSpec(weight="dorefa", activation="dorefa"),
}


@pytest.fixture(scope="module")
def gm():
    return nce_fx.trace(randomize(Net()).eval(), X)


@pytest.fixture(scope="module")
def made(gm):
    return {name: nce_fx.quantize(gm, spec, [X]).eval() for name, spec in SPECS.items()}


@pytest.fixture
def q(made):
    return copy.deepcopy(made["default"])


def bits_of(gm):
    return {row.layer: (row.weight_bits, row.activation_bits) for row in describe(gm)}


def trains(gm):
    """Take a step; every parameter that the graph has moves or has a gradient."""
    gm.train()
    gm(*X).square().sum().backward()
    gm.eval()
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in gm.parameters())


REPLACED = {
    "head": ("fc", lambda: nn.Linear(6, 6)),
    "padded": ("body.0", lambda: conv(6, 6, padding_mode="circular")),
    "stem": ("stem", lambda: conv(3, 6, bias=False)),
    "tied": ("tied", lambda: nn.Linear(6, 4)),
    "nothing": ("tied", nn.Identity),
    "several": ("tied", lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 4))),
}


@pytest.mark.parametrize(("spec", "case"), [*(("default", case) for case in REPLACED), *((s, "head") for s in SPECS)])
@pytest.mark.parametrize("looked", [False, True])
def test_a_layer_in_the_place_of_another_is_called_as_it_is(made, spec, case, looked):
    q, (path, build) = copy.deepcopy(made[spec]), REPLACED[case]
    before, layer = bits_of(q), build()
    calls = []
    layer.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    q.set_submodule(path, layer)
    found = bits_of(q) if looked else {}
    output = q(*X)
    data, given = calls[-1]
    layer._forward_hooks.clear()
    torch.testing.assert_close(layer.eval()(data), given)
    if path == "tied":
        assert torch.equal(output, given)
    found = found or bits_of(q)
    for name, bits in found.items():
        assert bits == (before[name] if name != path else (None, None if case == "several" else before[name][1]))
    assert (case == "several") == ("Sequential" in [row.op for row in describe(q)])
    assert next(iter(q.graph.find_nodes(op="output"))).args[0].meta["tensor_meta"].shape == output.shape
    assert trains(q)
    assert torch.equal(copy.deepcopy(q)(*X), q(*X))
    assert RemoveQuantizers()(q).graph_module(*X).shape == q(*X).shape
    assert nce_fx.analyze_cost(q).macs == counted(q, X)[0]


def test_what_was_replaced_is_exported_and_not_saved(q, tmp_path):
    q.tied = nn.Linear(6, 4)
    nce_fx.export_onnx(q, tmp_path / "q.onnx", format="int2")
    with pytest.raises(ArtifactError, match="changed by hand after quantize"):
        nce_fx.save(q, tmp_path / "saved")


def test_a_layer_that_is_gone_is_said(q):
    del q.fc
    with pytest.raises(
        QuantizeError, match=r"fc is gone, and the graph still runs it: .* gm\.fc = torch\.nn\.Identity"
    ):
        q(*X)
    with pytest.raises(QuantizeError, match="fc is gone"):
        describe(q)
    q.fc = nn.Identity()
    q(*X)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        weight_norm,
        spectral_norm,
        nn.utils.parametrizations.weight_norm,
        lambda layer: prune.custom_from_mask(layer, "weight", torch.ones(6, 6).tril()),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated", "ignore:.*is pruned")
def test_a_weight_that_is_computed_later_is_trained_by_what_it_is_computed_of(q, change):
    change(q.get_submodule("body.0") if change is spectral_norm else q.fc)
    assert trains(q)
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.mul_(1.3)
    before = q(*X)
    assert trains(q), "a second step finds the graph of the first"
    torch.testing.assert_close(q(*X), before)


def test_a_hook_that_would_never_run_is_said(q, gm):
    q.fc.register_forward_hook(print)
    with pytest.warns(UserWarning, match="the hook print of fc does not run: a quantized layer is a function"):
        q(*X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q(*X)
    gm = copy.deepcopy(gm)
    gm.get_submodule("fc").register_forward_pre_hook(print)
    with pytest.warns(UserWarning, match="the hook print of fc does not run"):
        nce_fx.quantize(gm, SPECS["lsq"])


def test_a_compiled_graph_follows_as_well(q):
    q.tied = nn.Linear(6, 4)
    torch.testing.assert_close(torch.compile(q, backend="eager")(*X), q(*X))


def test_a_quantized_graph_is_traced_again_alone_and_in_another_model(q):
    again = torch.fx.symbolic_trace(q)
    assert torch.equal(again(*X), q(*X))
    both = nce_fx.trace(nn.Sequential(q, nn.Linear(6, 2)).eval(), X)
    assert both.meta["traced"] == "fx"
    assert sum(bool(row.weight_bits) for row in describe(both)) == sum(bool(row.weight_bits) for row in describe(q))
