"""The laws on networks that people use: a few of torchvision's where it is installed, and the built-in ones.

All of torchvision, timm and transformers run by ``python -m benchmarks.coverage``; see docs/coverage.md.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.models import INPUT_SHAPES, MODELS
from tests.drawing import wider
from tests.observing import counted, difference, layers, run
from tests.zoo.model import BUILT_IN, image, narrow, randomize

# Small nets that between them shuffle, concatenate, gate, group, split, and attend.
TORCHVISION = ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "regnet_y_400mf", "densenet121", "swin"]
SWIN: dict[str, Any] = {"depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16], "window_size": [7, 7], "num_classes": 10}
"""swin_t, a quarter as wide and with fewer blocks of the third stage, which are alike."""
SIDE = 64


def holds(model: nn.Module, x: torch.Tensor, free: float) -> None:
    """Check laws 1, 5 and 6 on one plan in float64, and the share of layers that can be widened."""
    model, x = model.double().eval(), x.double()
    gm = nce_fx.trace(model, (x,))
    channels = nce_fx.analyze_channels(gm)
    producers = {name: group for group in channels.groups for name in group.producers}
    found = {node: paths & set(producers) for node, paths in layers(gm).items()}
    assert all(found.values()), f"in no group: {[node for node, paths in found.items() if not paths]}"
    widths = wider(channels, 0)
    wide = nce_fx.resize(gm, widths)
    assert difference(run(model, (x,)), run(wide, (x,))) <= 1e-9
    at = nce_fx.analyze_cost(gm, channels).at(widths)
    assert (at.macs, at.params) == counted(wide, (x,))
    unpinned = [node for node, paths in found.items() if all(producers[path].pinned is None for path in paths)]
    assert len(unpinned) >= free * (len(found) - 1), f"{len(unpinned)} of {len(found)} layers can be widened"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.long
def test_torchvision(name):
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None) if name != "swin" else models.SwinTransformer([4, 4], 24, **SWIN)
    holds(randomize(model), image(size=SIDE), free=1.0)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.long
def test_built_in(name):
    torch.manual_seed(0)
    channels, side, _ = INPUT_SHAPES[name]
    # vgg16_bn's weights alone are half a gigabyte.
    model = MODELS[name](num_classes=10, **narrow(name))
    holds(randomize(model), image(channels, min(side, SIDE)), free=1.0)
