"""What the page shows of a weight is what the network computes with, for every quantizer."""

import pytest
import torch
from torch import nn

import nce_fx
from nce_fx.quantizers import WEIGHT_QUANTIZERS
from nce_fx.report.graph_view import weight_views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quantizer", sorted(WEIGHT_QUANTIZERS))
def test_levels_are_the_values_that_the_network_computes_with(quantizer: str, channels: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3))
    gm = nce_fx.quantize(
        nce_fx.trace(model, (torch.randn(2, 2, 8, 8),)), nce_fx.QuantSpec(weight=quantizer, first_last_bits=2)
    )
    views = weight_views(gm)
    assert list(views) == ["0", "2"]
    for layer, view in views.items():
        rounded = gm.get_submodule(f"{layer}.weight_quant")(gm.get_submodule(layer).weight)
        assert sum(count for _, count in view.levels) == sum(view.counts) == rounded.numel()
        if view.unit == "weight":
            found = torch.tensor([value for value, _ in view.levels]).float()
            torch.testing.assert_close(found, rounded.unique().detach(), rtol=1e-4, atol=1e-6)
