"""Law 10, which `tests.laws` states, on networks that people use and on what was retrained."""

from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.passes.transform.inserted_nodes import constant, select
from nce_fx.passes.transform.new_weights import from_scratch
from nce_fx.quantizers.state_dict import fit_problem
from nce_fx.training import Recipe, train
from tests.laws import comes_back, what_is_saved_is_what_was
from tests.training_runs import Blobs
from tests.zoo import randomize
from tests.zoo.model import BUILT_IN, image, narrow


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(name):
    channels, side, _ = INPUT_SHAPES[name]
    # What is saved does not depend on how wide a network is; vgg16_bn's weights alone are half a gigabyte.
    model = randomize(MODELS[name](num_classes=10, **narrow(name))).eval()
    what_is_saved_is_what_was(model, (image(channels, min(side, 32)),))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision():
    from torchvision import models

    what_is_saved_is_what_was(randomize(models.shufflenet_v2_x0_5()).eval(), (image(size=64),))


@pytest.mark.parametrize("spec", [nce_fx.QuantSpec(), nce_fx.QuantSpec(exact=True, weight="lsq", activation="lsq")])
def test_what_was_retrained(spec):
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    x = Blobs().parts["train"].tensors[0][:16]
    gm = nce_fx.trace(net(0).eval(), (x,))
    gm = nce_fx.quantize(nce_fx.resize(gm, {"1": 5, "3": 11}), spec, batches=[x])
    again = comes_back(gm, net(1), (x,))
    recipe = Recipe(epochs=3, batch_size=16, bits=(8, 4, 2))
    trained = [train(start, Blobs(), recipe).model.eval() for start in (gm, again)]
    assert all(torch.equal(a, b) for a, b in zip(*(model.state_dict().values() for model in trained), strict=True))
    comes_back(trained[0], net(3), (x,))
    comes_back(from_scratch(gm, net(4), spec, [x]), net(5), (x,))


def test_torch_saves_what_torch_export_knows_of_a_list():
    """A split's ``val`` is a list of the export's own tensors, which nothing pickles."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Conv2d(3, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = torch.split(self.make(x), 4, dim=1)
            return a * b

    x = image(3, 4)
    gm = nce_fx.trace(torch.export.export(Split().eval(), (x,)).module(), (x,))
    assert any(isinstance(node.meta.get("val"), list | tuple) for node in gm.graph.nodes)
    assert torch.equal(pickle.loads(pickle.dumps(gm))(x), gm(x))


def test_torch_saves_what_torch_export_knows_of_a_number():
    """A number that is computed from a size is torch.export's own, which nothing pickles."""

    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.make(x)
            return made * (x.shape[0] / 2)

    x = torch.randn(4, 4)
    program = torch.export.export(Weighed().eval(), (x,), dynamic_shapes=[{0: torch.export.Dim("batch")}])
    gm = nce_fx.trace(program.module(), (x,))
    assert any(isinstance(node.meta.get("val"), torch.SymFloat) for node in gm.graph.nodes)
    assert torch.equal(pickle.loads(pickle.dumps(gm))(x), gm(x))


def test_orders_of_channels_that_are_alike_are_constants_of_their_own():
    """Of names that share one tensor a module lists one, and the next constant would take the name of the other."""
    gm, order = nce_fx.trace(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),)), np.array([1, 0, 3, 2])
    source, output = next(iter(gm.graph.nodes)), next(iter(reversed(gm.graph.nodes)))
    for _ in range(2):
        select(gm, output, source, 1, order)
    first, second = (gm.get_buffer(f"channel_order_{number}") for number in range(2))
    assert first.data_ptr() != second.data_ptr()
    gm.channel_order_1 = first  # as files have it that were written before
    assert constant(gm, output, "channel_order", torch.arange(4)).target == "channel_order_2"


@pytest.mark.parametrize(
    ("kept", "said"), [(3, "0.weight, 0.bias, 1.weight"), (1, "0.weight, 0.bias, 1.weight and 2 more")]
)
def test_three_names_are_said_of_what_is_missing_and_how_many_more_there_are(kept, said):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    state = dict([*model.state_dict().items()][6 - kept :])
    assert fit_problem(model, state) == f"missing {said}"
