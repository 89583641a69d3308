"""Where quantizers go and what is said where none does: weights of weights, products in float, modes, kinds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nce_fx
from nce_fx.errors import InputError, QuantizeError
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.passes.transform.quantize.calibrate import carry_ranges
from nce_fx.passes.transform.quantize.quantizable_layers import layers_with_weights, products_in_float
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, ActivationQuantizer, Quantizer
from tests.drawing import pattern
from tests.zoo import ZOO


class Made(nn.Module):
    """One weight is made of two others by a layer's own function, one of data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(5, 2)
        self.left, self.right = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(5, 3))
        self.hyper = nn.Linear(6, 25)

    def forward(self, x):
        x = self.first(x)
        y = F.linear(x, F.linear(self.right, self.left)).relu()
        return self.last(F.linear(y, self.hyper(x.mean(0)).view(5, 5)))


def test_what_makes_a_weight_of_weights_is_no_layer_and_what_makes_one_of_data_is():
    gm = nce_fx.trace(Made().eval(), (torch.randn(2, 4),))
    assert [layer.node.name for layer in layers_with_weights(gm)] == ["first", "linear_1", "hyper", "last"]


class Products(nn.Module):
    """A product with a weight of three axes, added to another parameter or to nothing."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        self.added, self.first = added, nn.Linear(4, 6)
        self.experts, self.shift = nn.Parameter(torch.randn(3, 6, 5)), nn.Parameter(torch.randn(3, 2, 5))

    def forward(self, x):
        x = self.first(x)
        return torch.baddbmm(self.shift, x, self.experts) if self.added else torch.bmm(x, self.experts)


@pytest.mark.parametrize("added", [False, True])
def test_what_is_multiplied_in_float_is_said_and_what_is_added_is_not(added):
    gm = nce_fx.trace(Products(added).eval(), (torch.randn(3, 2, 4),))
    assert list(products_in_float(gm)) == ["experts"]


class Sums(nn.Module):
    """A sum in the memory of a branch that is read by another view of it, and one apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        rows = y.view(-1, 2, 2)
        y.add_(x)
        z = rows.flatten(1).relu()
        return self.out(self.c(z) + z)


def test_a_sum_behind_one_that_stays_in_float_has_quantized_operands():
    gm = nce_fx.trace(Sums().eval(), (torch.randn(2, 4),))
    quantized = quantize(gm, QuantSpec(sums="int8"))
    (add,) = [node for node in quantized.graph.nodes if node.name == "add"]
    read = [quantized.get_submodule(str(node.target)) for node in add.all_input_nodes]
    assert all(isinstance(module, ActivationQuantizer) and module.bits == 8 for module in read)


@pytest.mark.parametrize("name", ACTIVATION_QUANTIZERS)
def test_a_sum_of_eight_bits_has_the_quantizer_of_its_layers_where_that_suits(name):
    gm = nce_fx.trace(nce_fx.models.MODELS["resnet8"](width=4).eval(), (torch.randn(1, 3, 8, 8),))
    quantized = quantize(gm, QuantSpec(activation=name, shortcuts="int8"))
    kinds: dict[int, set[type]] = {8: set(), 2: set()}
    for module in quantized.modules():
        if isinstance(module, ActivationQuantizer):
            kinds[module.bits].add(type(module))
    own, pact = (type(ACTIVATION_QUANTIZERS[kind](2)) for kind in (name, "pact"))
    assert kinds[2] == {own}
    # Of the first and the last layer, and of the sums.
    assert pact in kinds[8] if name in ("lsq", "dorefa", "n2uq") else kinds[8] == {own}


def test_four_layers_are_named_and_of_five_the_fifth_is_not():
    spec = QuantSpec(overrides={"nowhere": 4})
    for paths, said in (("abcd", "the layers are a, b, c, d$"), ("abcde", r"the layers are a, b, c, d \.\.\.$")):
        with pytest.raises(QuantizeError, match=said):
            spec.check_overrides(paths)


@pytest.mark.parametrize("training", [False, True])
def test_quantizers_are_in_the_mode_of_their_network(training):
    gm = nce_fx.trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).train(training), (torch.randn(2, 4),))
    quantized = quantize(gm)
    found = [module.training for module in quantized.modules() if isinstance(module, Quantizer)]
    assert found == [training] * 4


def test_what_only_training_runs_is_calibrated():
    gm = pattern("auxiliary_head")
    batch = (ZOO["auxiliary_head"].inputs[0].to(gm.get_parameter("a.weight").dtype), None)
    calibrated = quantize(gm, None, [batch])
    found = {path: each for path, each in calibrated.named_modules() if isinstance(each, ActivationQuantizer)}
    fresh = dict(quantize(gm).named_modules())
    for path, module in found.items():
        assert not torch.equal(module.step_size(torch.ones(1)), fresh[path].step_size(torch.ones(1))), path


def test_ranges_are_carried_where_all_of_them_are_there():
    gm = nce_fx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), (torch.randn(2, 4),))
    calibrated = quantize(gm, None, [(3 * torch.randn(8, 4), None)])
    wide = quantize(nce_fx.resize(gm, {"0": 9}))
    assert carry_ranges(calibrated, wide)
    for path, module in wide.named_modules():
        if isinstance(module, ActivationQuantizer):
            own = calibrated.get_submodule(path)
            assert isinstance(own, ActivationQuantizer)
            assert torch.equal(own.step_size(torch.ones(1)), module.step_size(torch.ones(1)))
    less = copy.deepcopy(calibrated)
    del less._modules["_1_activation_quant"]
    assert not carry_ranges(less, wide)


def test_a_batch_that_does_not_fit_is_refused_in_one_line():
    gm = nce_fx.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), (torch.randn(2, 4),))
    with pytest.raises(InputError) as caught:
        quantize(gm, None, [(torch.randn(2, 5), None)])
    assert "\n" not in str(caught.value)
    assert "While executing" not in str(caught.value)


def test_a_weight_beside_vectors_that_training_moves_is_quantized_as_evaluation_has_it():
    gm = pattern("exported_spectral_norm").eval()
    spec = QuantSpec(weight="minmax", weight_bits=8, activation_bits=None, first_last_bits=8)
    inputs = ZOO["exported_spectral_norm"].inputs
    found, wanted = quantize(gm, spec).eval()(*inputs), gm(*inputs)
    assert float((found - wanted).detach().abs().max()) < 0.05 * float(wanted.detach().abs().max())
