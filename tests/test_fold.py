"""Which norms a layer takes in, and that the network computes what it did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nce_fx
from nce_fx.passes.transform.fold import FoldBatchNorm
from tests.observing import difference, run
from tests.zoo.model import image, randomize


class Normed(nn.Module):
    """A convolution and a norm that is a function of buffers, or of the batch."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(3, 6, 3), call
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x: Tensor) -> Any:
        return self.call(self, self.conv(x))


def _of_the_batch(n: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3)), n.scale, n.shift)


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), True),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.3)), True),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)), False),
        (nn.Sequential(nn.ConvTranspose2d(3, 6, 5), nn.BatchNorm2d(6)), True),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 5, groups=2), nn.BatchNorm2d(6)), True),
        (Normed(lambda n, x: F.batch_norm(x, n.running_mean, n.running_var)), True),
        (Normed(lambda n, x: F.batch_norm(x, n.running_mean, n.running_var, n.scale, n.shift)), True),
        (Normed(lambda n, x: F.batch_norm(x, n.running_mean, n.running_var, n.scale, eps=0.3)), True),
        (Normed(lambda n, x: F.batch_norm(x, n.running_mean, n.running_var, training=True)), False),
        (Normed(_of_the_batch), False),
    ],
)
def test_a_norm_is_taken_in_where_its_statistics_are_fixed(model, takes):
    model, x = randomize(model).eval().double(), (image().double(),)
    gm = nce_fx.trace(model, x)
    folded = FoldBatchNorm()(gm)
    assert folded.modified is takes
    assert difference(run(gm, x), run(folded.graph_module, x)) <= 1e-12


def test_what_a_call_of_a_norm_leaves_out_is_the_default():
    model = randomize(Normed(lambda n, x: F.batch_norm(x, n.running_mean, n.running_var))).eval().double()
    x = (image().double(),)
    gm = nce_fx.trace(model, x)
    (norm,) = (node for node in gm.graph.nodes if node.target is F.batch_norm)
    norm.kwargs = {}
    gm.recompile()
    folded = FoldBatchNorm()(gm)
    assert folded.modified
    assert difference(run(model, x), run(folded.graph_module, x)) <= 1e-12
