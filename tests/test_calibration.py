"""Ranges follow from the values that were seen: not from batches, from their order, or from how they lie in memory.

What counts is exact, so what is left is how far the values themselves move: a convolution sums in another order for
another batch size or memory format. A PACT clip is then another one of its candidates at most, 1.1 % apart (`NEAR`).
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.models import MODELS
from nce_fx.passes.transform.quantize import QuantSpec, quantize
from nce_fx.quantizers import ACTIVATION_QUANTIZERS, ActivationQuantizer
from nce_fx.quantizers.counting import count_values, counted
from tests.drawing import one_of, pattern
from tests.zoo import ZOO
from tests.zoo.model import narrow

NEAR = 2 ** (1 / 64) - 1 + 1e-4


def ranges_of(gm: GraphModule) -> dict[str, float]:
    """The largest level of every activation quantizer."""
    found = {name: m for name, m in gm.named_modules() if isinstance(m, ActivationQuantizer)}
    return {name: float(m.integers(torch.zeros(1, 1)).scale) * m.grid.reach for name, m in found.items()}


def near(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=NEAR), name


def by_rows(x: Tensor, sizes: list[int]) -> list[Any]:
    return [(part, None) for part in x.split(sizes)]


@cache
def settled(name: str) -> GraphModule:
    """A built-in network whose norms have statistics."""
    torch.manual_seed(0)
    model = MODELS[name](**narrow(name)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_var").uniform_(0.3, 2)
            module.get_buffer("running_mean").normal_(0, 0.3)
    return nce_fx.trace(model, (torch.randn(2, 3, 32, 32),))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("quantizer", ACTIVATION_QUANTIZERS)
def test_ranges_do_not_depend_on_batches_their_order_or_memory_format(name, quantizer):
    gm = settled(name)
    x = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[:2] *= 4
    spec = QuantSpec(activation=quantizer)
    wanted = ranges_of(quantize(gm, spec, by_rows(x, [9])))
    assert min(wanted.values()) > 0
    for sizes in ([1, 1, 7], [2, 7]):
        near(ranges_of(quantize(gm, spec, by_rows(x, sizes))), wanted)
    near(ranges_of(quantize(gm, spec, by_rows(x.flip(0), [4, 5]))), wanted)
    last = copy.deepcopy(gm).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    near(ranges_of(quantize(last, spec, by_rows(x.contiguous(memory_format=torch.channels_last), [6, 3]))), wanted)


@pytest.mark.parametrize("name", one_of(3, ZOO))
def test_ranges_of_the_zoo_do_not_depend_on_the_order_of_batches(name):
    gm = pattern(name)
    batches = [tuple(scaled(value, factor) for value in ZOO[name].inputs) for factor in (0.5, 1.0, 3.0)]
    one, other = (quantize(gm, None, [(batch, None) for batch in order]) for order in (batches, batches[::-1]))
    near(ranges_of(other), ranges_of(one))


def scaled(value: Any, factor: float) -> Any:
    if isinstance(value, Tensor):
        return value * factor if value.is_floating_point() else value
    return value


@pytest.mark.parametrize("quantizer", ACTIVATION_QUANTIZERS)
def test_a_tensor_whose_rows_have_a_border_is_seen_whole(quantizer):
    # As convolutions with padding leave it: the first of 32 columns is zero, and 32 divides any even stride.
    torch.manual_seed(0)
    x = torch.randn(16, 16, 32, 32)
    x[..., 0] = 0
    whole, rows = (ACTIVATION_QUANTIZERS[quantizer](2) for _ in range(2))
    for module, batches in ((whole, [x]), (rows, list(x.transpose(2, 3).split(3)))):
        for batch in batches:
            module.observe(batch)
        module.settle()
    assert torch.equal(whole.integers(x).scale, rows.integers(x).scale)
    with torch.no_grad():
        assert float((whole(x) - x).square().mean()) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_value_is_counted_once_however_it_lies(dtype):
    x = torch.randn(6, 5, 4, 7).to(dtype)
    values, counts = counted(count_values(x))
    rounded, often = np.unique(x.to(torch.bfloat16).double().numpy(), return_counts=True)
    np.testing.assert_array_equal(values, rounded)
    np.testing.assert_array_equal(counts, often)
    wanted = count_values(x)
    for same in (x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x.flip(0, 2), x.reshape(-1)):
        np.testing.assert_array_equal(count_values(same), wanted)
    np.testing.assert_array_equal(count_values(x[:2]) + count_values(x[2:]), wanted)
    assert count_values(torch.zeros(3).expand(4, 3))[0] == 12
    assert count_values(torch.tensor(-2.0)).sum() == 1


class WritesToItsInput(nn.Module):
    """Scales what it is given in place, as networks for images of bytes do."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.a(x.mul_(255)).relu())


def test_calibration_writes_nothing_to_the_batches():
    x = torch.randn(8, 4)
    before = x.clone()
    gm = nce_fx.trace(WritesToItsInput().eval(), x)
    for batches in ([x], [x, x]):
        nce_fx.quantize(gm, nce_fx.QuantSpec(activation="pact"), batches)
        nce_fx.analyze_sensitivity(gm, [(x, torch.zeros(8, dtype=torch.long))])
        assert torch.equal(x, before)
