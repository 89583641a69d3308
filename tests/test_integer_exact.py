"""With exact scales a file of integers has PyTorch's level for every sum there is, with all kinds of shortcuts."""

import functools
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

import nce_fx
from nce_fx.export.agreement import LEVELS
from nce_fx.export.formats import FORMATS
from nce_fx.export.integer.staircase import find_rises, requantize
from nce_fx.export.levels import mark
from nce_fx.export.onnx_graph import to_onnx
from nce_fx.models import MODELS
from tests.test_export import PAIRS, random, settled


class Branches(nn.Module):
    """A stem whose sum enters an addition, a concatenation of branches, a gate, and an output behind a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.left, self.left_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.right, self.right_norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.last, self.last_norm = nn.Conv2d(8, 5, 3, bias=False), nn.BatchNorm2d(5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.left_norm(self.left(x)))
        x = torch.cat([x, F.relu(self.right_norm(self.right(x)))], 1)
        x = self.deep_norm(self.deep(x))
        return self.last_norm(self.last(x * torch.sigmoid(x)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": functools.partial(MODELS["resnet8"], width=4),
    "branches": Branches,
}
CASES = [
    ("resnet8", {}),
    ("resnet8", {"weight": "lsq", "weight_bits": 8, "activation_bits": 4}),
    ("resnet8", {"shortcuts": "quantized", "sums": "int8"}),
    ("branches", {}),
    ("branches", {"shortcuts": "float"}),
    *(("branches", {"weight": weight, "activation": activation}) for weight, activation in PAIRS),
]


@functools.cache
def traced(network):
    torch.manual_seed(0)
    return nce_fx.trace(settled(NETWORKS[network]()), (random(2, 3, 12, 12),))


def on_other_levels(gm, model, lowered, x, level):
    """Count values of quantized tensors that the file has on another level; nothing is followed."""
    names = sorted(set(lowered.activations) & {name for node in model.graph.node for name in node.output})
    seen = {}
    for name in names:
        gm.get_submodule(name).register_forward_hook(
            lambda module, given, result, name=name: seen.update({name: result})
        )
    watched = type(model).FromString(model.SerializeToString())
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = LEVELS[level], 1
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    scores, *found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        mine = gm(x).numpy()
    assert names
    off = sum(int((lowered.floats(n, v) != seen[n].numpy()).sum()) for n, v in zip(names, found, strict=True))
    return off, float(np.abs(scores - mine).max())


@pytest.mark.parametrize(("network", "spec"), CASES)
@pytest.mark.long
def test_with_exact_scales_every_value_is_on_pytorchs_level(network, spec):
    gm = nce_fx.quantize(traced(network), nce_fx.QuantSpec(**spec, exact=True), [random(4, 3, 12, 12)]).eval()
    x = random(32, 3, 12, 12, seed=2)
    model, lowered = to_onnx(mark(gm), (x[:2],), FORMATS["integer"], dynamic="batch")
    assert not lowered.misses
    assert lowered.activations
    for level in ("disabled", "all"):
        off, difference = on_other_levels(gm, model, lowered, x, level)
        assert off == 0, level
        # Of the layer behind the last quantizer: a bias may be added first or last.
        assert difference <= (0 if network == "branches" else 1e-6), level


@pytest.mark.parametrize("fineness", [1, 42, 1806])
def test_a_bias_that_puts_all_levels_in_their_place_is_found_where_there_is_one(fineness):
    source = np.random.default_rng(0)
    reach, levels = source.integers(100, 2000, (300, 1)), np.arange(1, 256)
    ratio = (source.uniform(60, 300, (300, 1)) / (fineness * reach)).astype(np.float32)
    bias = source.integers(-fineness * reach, fineness * reach, endpoint=True)
    stairs = find_rises(lambda sums: np.rint((sums * fineness + bias).astype(np.float32) * ratio), levels, reach)
    # The line that is given is another one: less steep, and through another point.
    slope = ratio[:, 0] * fineness * (1 - 0.2 / reach[:, 0])
    start = bias[:, 0] * ratio[:, 0] + source.uniform(-0.6, 0.6, 300) * slope
    found = requantize(stairs, slope, start, fineness, lambda ratio: ratio.astype(np.float32))
    assert not found.misses.any()
