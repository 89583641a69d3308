"""Weights that PyTorch's older hooks compute: the quantized graph computes what the hook does, in both modes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import nce_fx
from nce_fx.ops.layers import find_layers
from nce_fx.passes.transform.quantize import RemoveQuantizers, integer_weights
from nce_fx.training import Recipe, train
from tests.training_runs import Blobs
from tests.zoo import normalization

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
HOOKS = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "prune twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3),
    "structured": lambda layer: prune.ln_structured(layer, "weight", 0.25, n=2, dim=0),
    "weight_norm": weight_norm,
    "weight_norm, other axis": lambda layer: weight_norm(layer, dim=1),
    "spectral_norm": spectral_norm,
    "spectral_norm, 3 steps": lambda layer: spectral_norm(layer, n_power_iterations=3),
}


def model(hook, place=2, grad=True):
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.Linear(8, 4)
    )
    HOOKS[hook](made[place])
    with torch.set_grad_enabled(grad):
        made.eval()(X)
    return made


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("grad", [True, False], ids=["after training", "after evaluation"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hooked_weight_is_quantized_trained_and_saved(hook, grad, tmp_path):
    own = model(hook, 5 if hook == "weight_norm" else 2, grad)
    gm = nce_fx.trace(own, (X,))
    q = nce_fx.quantize(gm, nce_fx.QuantSpec(weight="lsq"), [X])
    assert len(integer_weights(q)) == 4
    producers = [name for group in nce_fx.analyze_channels(gm).groups for name in group.producers]
    assert sorted(producers) == ["0", "2", "5", "6"], "a layer is known by its own name, whatever computes its weight"
    plain = RemoveQuantizers()(q).graph_module
    torch.testing.assert_close(plain(X), own(X))
    if "mask" in str(list(own.state_dict())):
        mask = own[2].weight_mask
        assert (integer_weights(q)["2"].dequantize()[mask == 0] == 0).all()
    # In training a spectral norm takes its next step, as the hook does.
    torch.testing.assert_close(plain.train()(X), own.train()(X))
    assert plain.state_dict().keys() == own.state_dict().keys()
    for name, value in own.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value)
    q.train()(X).sum().backward()
    assert all(parameter.grad is not None for parameter in q.parameters())
    nce_fx.save(q.eval(), tmp_path / "out")
    again = nce_fx.load(tmp_path / "out", own.eval())
    assert torch.equal(again(X), q(X))
    copy.deepcopy(gm)


def test_a_pruned_weight_that_comes_back_is_said():
    with pytest.warns(UserWarning, match="2 is pruned, and its quantizer has no zero"):
        nce_fx.quantize(nce_fx.trace(model("prune"), (X,)), nce_fx.QuantSpec(), [X])


def test_a_model_with_hooks_trains():
    data = Blobs()
    inputs = next(iter(data.loader("train", batch_size=8, seed=0, epoch=0, shuffle=False)))[0]
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 8), nn.ReLU(), spectral_norm(nn.Linear(8, 4)))
    net(inputs)
    result = train(net, data, Recipe(epochs=1, batch_size=16))
    assert result.history[0].loss < 10


@pytest.mark.parametrize("name", [name for name in normalization.MODELS if name.startswith("exported_")])
def test_a_layer_whose_weight_is_computed_is_called_as_its_module(name):
    zoo = normalization.MODELS[name]
    gm = nce_fx.trace(zoo.make(), zoo.inputs)
    paths = [layer.path for layer in find_layers(gm)]
    assert [path for path in paths if not path.startswith(("mv", "dot", "vdot"))][:3] == ["a", "b", "c"]
    assert len(set(paths)) == len(paths)
