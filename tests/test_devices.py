"""Models that are on another device than the CPU: one that is imitated everywhere, and a GPU where there is one."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import nce_fx
from nce_fx.devices import to_device
from nce_fx.export import load_pt2
from nce_fx.models import MODELS
from nce_fx.passes.analysis.sensitivity.analyze import METRICS
from nce_fx.training import Recipe, evaluate, train
from tests.drawing import narrower, one_of, wider
from tests.laws import LAWS
from tests.other_device import Elsewhere, OtherDevice, moved
from tests.search_runs import quarters
from tests.zoo import ZOO

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
MAKES_ON_THE_CPU = {
    "flipped",
    "attention_grouped_query",
    "attention_rotary_by_bands",
    "cell_unrolled",
    "channel_ramp",
    "fixed_buffers",
    "constants",
    "constant_blur",
    "text_slopes_by_head",
    "text_normalized_queries",
    "text_bias_by_distance",
    "exported_cells",
}
"""Models whose own code makes a tensor on the CPU: they run nowhere else."""
NOT_IMITATED = {
    "subtract_maximum_where",
    "distances",
    "in_place",
    "add_in_part",
    "encoder_layer",
    "only_channel",
    "norm_of_each_mode",
    "one_way_each",
    "caches",
    "cut_by_numbers",
    "text_with_padding",
    # Models that torch.export alone can follow, and it knows no such device.
    "complex_rotary",
    "exported_spectral_norm",
}


def on_cpu(gm):
    return {name: tensor.here for name, tensor in [*gm.named_parameters(), *gm.named_buffers()]}


@pytest.mark.parametrize("name", one_of(6, ZOO.keys() - MAKES_ON_THE_CPU - NOT_IMITATED))
def test_a_model_elsewhere_is_resized_there_and_alike(name):
    model, inputs = ZOO[name].make(), ZOO[name].inputs
    here = nce_fx.trace(copy.deepcopy(model), inputs)
    channels = nce_fx.analyze_channels(here)
    with OtherDevice(), torch.no_grad():
        there = nce_fx.trace(moved(model), moved(inputs))
        assert nce_fx.analyze_channels(there).widths == channels.widths
        for widths in (wider(channels, 0), narrower(channels, 0)):
            got, expected = nce_fx.resize(there, widths), nce_fx.resize(here, widths)
            got(*moved(inputs))
            tensors = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
            assert all(torch.equal(tensor, tensors[path]) for path, tensor in on_cpu(got).items())


def test_a_model_elsewhere_is_quantized_there():
    model, inputs = ZOO["residual_add"].make(), ZOO["residual_add"].inputs
    with OtherDevice(), torch.no_grad():
        gm = nce_fx.quantize(nce_fx.trace(moved(model), moved(inputs)), nce_fx.QuantSpec(exact=True))
        assert isinstance(gm(*moved(inputs)), Elsewhere)


class Pair(NamedTuple):
    """Inputs that have names."""

    image: torch.Tensor
    scale: float


def test_a_batch_keeps_its_form():
    x = torch.zeros(2)
    there = OrderedDict(pair=Pair(x, 2.0), rest=[x])
    assert to_device(there, torch.device("cpu")) is there
    moved_there = to_device(there, torch.device("meta"))
    assert moved_there["pair"] == Pair(moved_there["pair"].image, 2.0)
    assert {moved_there["pair"].image.device.type, moved_there["rest"][0].device.type} == {"meta"}


@pytest.fixture
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


_RECURRENT = {
    "4": "cuDNN has no gradients in evaluation mode",
    **dict.fromkeys("67", "PyTorch's counter does not see cuDNN's layers"),
}
NOT_FOR_A_GPU = {
    "lstm_tail": _RECURRENT,
    "gru_tail": _RECURRENT,
    "weight_normed": dict.fromkeys("123", "PyTorch's own kernel has the digits of float32"),
}
"""Model -> laws that PyTorch itself does not let hold there."""


def to_gpu(value):
    return tree_map(lambda leaf: leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf, value)


def network():
    torch.manual_seed(0)
    return MODELS["resnet8"](num_classes=4, in_channels=1).eval()


def batches():
    return quarters().batches(2, 16)


@on_gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(("name", "law"), [(n, law) for law in LAWS for n in ZOO if torch.cuda.is_available()])
def test_laws_hold_on_a_gpu(name, law):
    model, inputs = ZOO[name].make().cuda(), to_gpu(ZOO[name].inputs)
    if name in MAKES_ON_THE_CPU:
        pytest.skip("its own code makes a tensor on the CPU")
    if law[0] in NOT_FOR_A_GPU.get(name, {}):
        pytest.skip(NOT_FOR_A_GPU[name][law[0]])
    LAWS[law](model, inputs)


@on_gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_a_model_on_a_gpu_is_rewritten_there(metric, place):
    given = [(x.to(place), y.to(place)) for x, y in batches()]
    result = nce_fx.rewrite(network().cuda(), (given[0][0].cuda(),), batches=given, metric=metric)
    assert {tensor.device.type for tensor in result.graph_module.state_dict().values()} == {"cuda"}
    assert result.report.rewritten.macs <= result.report.original.macs
    assert torch.isfinite(result.graph_module(given[0][0].cuda())).all()


@on_gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("kind", ["sawb+pact", "lsq+lsq", "dorefa+dorefa", "minmax+minmax"])
def test_levels_on_a_gpu_are_those_on_the_cpu(kind):
    weight, activation = kind.split("+")
    spec = nce_fx.QuantSpec(weight=weight, activation=activation)
    x = batches()[0][0]
    here = nce_fx.quantize(nce_fx.trace(network(), (x,)), spec, batches())
    there = nce_fx.quantize(nce_fx.trace(network().cuda(), (x.cuda(),)), spec, batches())
    for name, tensor in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].cpu(), tensor, rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(nce_fx.integer_weights(here).items(), nce_fx.integer_weights(there).values(), strict=True):
        assert (a.integers != b.integers.cpu()).float().mean() < 0.01, name


@on_gpu
def test_training_on_a_gpu_is_the_same_again(tmp_path):
    gm = nce_fx.quantize(nce_fx.trace(network(), (batches()[0][0],)), nce_fx.QuantSpec(), batches())
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05)
    first, second = (train(gm, quarters(), recipe, teacher=network()) for _ in range(2))
    assert first.accuracy == second.accuracy
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert evaluate(first.model, quarters()) == first.accuracy


@on_gpu
def test_what_was_made_on_a_gpu_is_kept_and_written(tmp_path):
    x = batches()[0][0]
    result = nce_fx.rewrite(network().cuda(), (x.cuda(),), batches=batches())
    nce_fx.save(result.graph_module, tmp_path / "kept")
    here = nce_fx.load(tmp_path / "kept", network())
    there = nce_fx.load(tmp_path / "kept", network().cuda())
    for name, tensor in result.graph_module.state_dict().items():
        assert torch.equal(here.state_dict()[name], tensor.cpu()), name
        assert torch.equal(there.state_dict()[name].cpu(), tensor.cpu()), name
    nce_fx.export_onnx(result.graph_module, tmp_path / "model.onnx")
    nce_fx.export.export_pt2(result.graph_module, tmp_path / "model.pt2")
    got = load_pt2(tmp_path / "model.pt2")(x)
    assert np.isfinite(got.detach().cpu().numpy()).all()
    nce_fx.export.save_packed(result.graph_module, tmp_path / "packed.safetensors")


@on_gpu
def test_an_exact_network_gives_the_same_numbers_on_a_gpu():
    x = batches()[0][0]
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1, bias=False),
        nn.BatchNorm2d(8),
    ).eval()
    gm = nce_fx.quantize(nce_fx.trace(net, (x,)), nce_fx.QuantSpec(exact=True), batches())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(gm).cuda()(x.cuda()).cpu(), gm(x))
