"""The noise that sensitivities measure: that of the quantizers that will be inserted, and where these stand."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Interpreter

import nce_fx
from nce_fx.passes.analysis.sensitivity import METRICS, analyze_sensitivity, noise_of, real_noise
from nce_fx.passes.transform.quantize import describe
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, ActivationQuantizer, WeightQuantizer
from tests.test_sensitivity import Block, drawn, traced


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return traced(Block(), 3, 6, 6)


def test_the_real_noise_has_few_levels(block):
    noise = real_noise(2)
    assert len(set(noise.weight("second", block.second.weight.detach()).flatten().tolist())) == 4
    sample = torch.randn(100).relu()
    assert len(set(noise.activation("relu", ("second",), sample)(sample).tolist())) == 4


@pytest.mark.parametrize("activation", ACTIVATION_QUANTIZERS)
@pytest.mark.parametrize("weight", WEIGHT_QUANTIZERS)
def test_the_noise_is_that_of_the_quantizers_that_will_be_inserted(block, weight, activation):
    """Of each at the bits of its own layer, with the sign of its own value; levels of any scale at the nearest one."""
    own_bits = {"second": {"weight_bits": 3, "activation_bits": 5}}
    spec = nce_fx.QuantSpec(weight, activation, 2, 4, shortcuts="quantized", overrides=own_bits)
    batches = drawn(3, 6, 6, count=1)
    noise, quantized = noise_of(block, spec), nce_fx.quantize(block, spec, batches)
    values = Interpreter(block)
    values.garbage_collect_values = False
    values.run(batches[0][0])
    seen = 0
    for path, layer in ((row.layer, row) for row in describe(quantized)):
        own = block.get_parameter(f"{path}.weight").detach()
        inserted = quantized.get_submodule(f"{path}.weight_quant")(own).detach()
        if float(inserted.abs().max()) == 1.0:
            inserted *= (inserted * own).sum() / inserted.square().sum()
        assert layer.weight_bits is not None
        assert all(channel.unique().numel() <= 2**layer.weight_bits for channel in inserted)
        assert torch.allclose(noise.weight(path, own), inserted, atol=1e-6), path
    for node in quantized.graph.nodes:
        module = quantized.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            name = module.replaces.name if module.replaces else node.all_input_nodes[0].name
            sample = next(value for key, value in values.env.items() if key.name == name).detach()
            assert torch.equal(noise.activation(node.name, (), sample)(sample), module(sample)), name
            seen += 1
    assert seen == 3
    assert torch.equal(noise.activation("nobody", (), own)(own), own)


class OnlyOne(Interpreter):
    """Runs a quantized graph with one of its quantizers of activations; the others let pass, or are the ReLU."""

    only = ""

    def call_module(self, target, args, kwargs):
        module = self.module.get_submodule(target)
        if isinstance(module, WeightQuantizer):
            return args[0]
        if isinstance(module, ActivationQuantizer) and target != self.only:
            return args[0].relu() if module.replaces else args[0]
        return super().call_module(target, args, kwargs)


class TwoReaders(Block):
    """A value that two layers and an addition read."""

    def forward(self, x):
        x = self.relu(self.first(x))
        return self.head((F.relu(self.norm(self.second(x))) + F.relu(self.second(x)) + x).mean((2, 3)))


@pytest.mark.parametrize("shortcuts", ["float", "quantized"])
@pytest.mark.parametrize("build", [Block, TwoReaders])
def test_noise_enters_where_the_quantizers_stand(build, shortcuts):
    """A layer's quantizer is its own: an addition that reads the float value does not see it."""
    torch.manual_seed(0)
    gm = traced(build(), 3, 6, 6)
    batches = drawn(3, 6, 6, count=1)
    spec = nce_fx.QuantSpec(weight_bits=None, activation_bits=2, first_last_bits=3, shortcuts=shortcuts)
    report, quantized = analyze_sensitivity(gm, batches, "loss", spec), nce_fx.quantize(gm, spec, batches)
    (inputs, target), run = batches[0], OnlyOne(quantized)
    with torch.no_grad():
        plain = F.cross_entropy(run.run(inputs), target)
        for row in describe(quantized):
            if not row.activation_bits:
                continue
            name = next(node.name for node in gm.graph.nodes if node.target == row.layer)
            layer = next(node for node in quantized.graph.nodes if node.name == name)
            run.only = str(layer.args[0].target)
            rise = float(F.cross_entropy(run.run(inputs), target) - plain)
            uses = 2 if build is TwoReaders and row.layer == "second" else 1
            assert report.by_node[row.layer].activation == pytest.approx(uses * rise, rel=1e-4, abs=1e-7), row.layer


@pytest.mark.parametrize("metric", METRICS)
def test_sensitivity_depends_on_the_quantizers(block, metric):
    scores = {
        (weight, activation): analyze_sensitivity(
            block, drawn(3, 6, 6), metric, nce_fx.QuantSpec(weight, activation, first_last_bits=2)
        )
        for weight, activation in (("sawb", "pact"), ("dorefa", "pact"), ("lsq", "minmax"), ("sawb", "dorefa"))
    }
    different = {tuple(report.by_group.values()) for report in scores.values()}
    assert len(different) == (4 if METRICS[metric].needs_data else 3)
    nothing = nce_fx.QuantSpec(weight_bits=None, activation_bits=None, first_last_bits=None)
    assert set(analyze_sensitivity(block, drawn(3, 6, 6), metric, nothing).by_group.values()) == {0.0}
