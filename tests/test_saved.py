"""Law 10: what is saved is what was. Loaded into a model of other weights it computes the same, bit for bit."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten

import nce_fx
from nce_fx.models import INPUT_SHAPES, MODELS
from nce_fx.passes.transform.quantize.places import find_places
from tests.drawing import traced, wider
from tests.test_laws import subject
from tests.zoo import ZOO, randomize
from tests.zoo.model import image


def is_kept(model: nn.Module, other: nn.Module, inputs: tuple[Any, ...], folder: Path) -> None:
    """Check the law on a network of which some groups were narrowed and others widened, in float and quantized."""
    t = traced(model, inputs, torch.float32)
    gm = nce_fx.resize(t.gm, {**wider(t.channels, 0), **about_half(t.channels)})
    comes_back(gm, other, t.inputs, folder / "float")
    if find_places(gm, nce_fx.QuantSpec()):
        comes_back(nce_fx.quantize(gm, batches=[(t.inputs, None)]), other, t.inputs, folder / "quantized")


def comes_back(gm: GraphModule, other: nn.Module, inputs: tuple[Any, ...], folder: Path) -> GraphModule:
    """Save a network, load it into a model of other weights, and check that nothing is different."""
    before, expected = copy.deepcopy(other.state_dict()), outputs(gm, inputs)
    nce_fx.save(gm, folder)
    loaded = nce_fx.load(folder, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    found = dict([*loaded.named_parameters(), *loaded.named_buffers()])
    for name, value in [*gm.named_parameters(), *gm.named_buffers()]:
        assert torch.equal(value, found[name]), f"{name} is not what was saved"
    for x, y in zip(expected, outputs(loaded, inputs), strict=True):
        assert torch.equal(x, y)
    return loaded


def about_half(channels: nce_fx.ChannelGraph) -> dict[str, int]:
    """Return for all but every third group a width near half of its own: which channels stay, the weights decide."""
    free = [group for group in channels if group.pinned is None and group.min_width < group.width]
    narrowed = [group for index, group in enumerate(free) if index % 3 < 2]
    return {g.id: g.min_width + (g.width - g.min_width) // g.step // 2 * g.step for g in narrowed}


def outputs(gm: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return [leaf for leaf in tree_flatten(gm(*inputs))[0] if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name, tmp_path):
    is_kept(ZOO[name].make(), ZOO[name].make(seed=1).float(), subject(name)[1], tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_built_in(name, tmp_path):
    channels, side, _ = INPUT_SHAPES[name]
    one, two = (randomize(MODELS[name](num_classes=10), seed).eval() for seed in (0, 1))
    is_kept(one, two, (image(channels, min(side, 32)),), tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121"])
def test_torchvision(name, tmp_path):
    from torchvision import models

    one, two = (randomize(models.get_model(name, weights=None), seed).eval() for seed in (0, 1))
    is_kept(one, two, (image(size=64),), tmp_path)
