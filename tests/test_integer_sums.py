"""Sums of two tensors of integers: every pair of numbers is on PyTorch's level."""

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from nce_fx.export.agreement import LEVELS
from nce_fx.export.integer import addition, to_module
from nce_fx.export.integer.epilogue import Epilogue
from nce_fx.export.integer.onnx_nodes import Writer
from nce_fx.export.integer.tensors import IntegerTensor
from nce_fx.export.levels import ActivationLevels
from nce_fx.quantizers.base import Grid


def sum_operand(scale, low=-128, bits=8):
    return IntegerTensor("x", ActivationLevels(Grid(low, low + 2**bits - 1), float(np.float32(scale)), bits))


def test_a_sum_of_integers_is_written_where_every_pair_is_right():
    short, long, fine = (ActivationLevels(Grid(0, 3), float(np.float32(scale)), 2) for scale in (0.5, 0.625, 1.875))
    nothing, fit = Epilogue(()), partial(addition.fit_sum, exact=True)
    assert fit(sum_operand(1 / 32), sum_operand(1 / 64), nothing, short) == addition.Sum(0.0)
    # 1.5 * 0.625 is a sum of the two, whose quotients are no float32: onnxruntime may round it down.
    assert fit(sum_operand(1 / 32), sum_operand(1 / 64), nothing, long) == addition.Sum(1 / 64, 0)
    # The highest level begins above 300 of the finer unit.
    assert fit(sum_operand(1 / 32), sum_operand(1 / 64), nothing, fine) is None
    # The only sum on a border is rounded to the even level.
    lowest = ActivationLevels(Grid(0, 1), 0.625, 1)
    assert fit(sum_operand(1 / 32), sum_operand(1 / 64), nothing, lowest) == addition.Sum(1 / 64, 0)
    # Sums near a border, but not as near as float32 would be in doubt.
    near = sum_operand(0.5001 / 255, 0), sum_operand(0.3, 0, 2)
    assert fit(*near, nothing, ActivationLevels(Grid(0, 3), 1.0, 2)) == addition.Sum(0.0)
    # A quotient of 3 and a sum on a border.
    assert fit(sum_operand(3 / 64), sum_operand(1 / 64), nothing, long) == addition.Sum(1 / 64, 0)
    assert fit(sum_operand(3 / 64), sum_operand(1 / 32), nothing, long) is None


@pytest.mark.parametrize("low", [0, -2])
@pytest.mark.parametrize("scales", [(1 / 32, 1 / 64), (1 / 16, 1 / 16), (3 / 64, 1 / 64)])
@pytest.mark.parametrize("step", [0.375, 0.625, 0.875])
def test_sums_on_borders_are_on_pytorchs_levels(low, scales, step):
    first, second = (sum_operand(scale, end) for scale, end in zip(scales, (-128, 0), strict=True))
    levels = ActivationLevels(Grid(low, low + 3), step, 2)
    how = addition.fit_sum(first, second, Epilogue(()), levels, exact=True)
    assert how is not None
    assert how.unit
    assert off_in_sum(first, second, levels, how) == 0


@pytest.mark.parametrize("low", [0, -128])
def test_sums_of_scales_as_they_come_are_on_pytorchs_levels(low):
    source, refused = np.random.default_rng(low + 200), 0
    for _ in range(4):
        first, second = (sum_operand(float(np.float32(source.uniform(0.01, 0.05))), end) for end in (-128, 0))
        levels = ActivationLevels(Grid(low, low + 255), float(np.float32(source.uniform(0.02, 0.09))), 8)
        refused += addition.fit_sum(first, second, Epilogue(()), levels, exact=True) is None
        how = addition.fit_sum(first, second, Epilogue(()), levels, exact=False)
        assert how is not None
        # On processors that multiply and add in another way a few of 65,536 may be on the next level.
        assert off_in_sum(first, second, levels, how) <= 4
    assert refused


@pytest.mark.parametrize(
    ("first", "second", "step"),
    [
        # The pair that is near a border has one of the two largest of four numbers.
        (sum_operand(0.04375162348151207), sum_operand(0.8429158329963684, 0, 2), 0.08872798085212708),
        # One that there is not, of 256, would be on another level with whatever scales.
        (sum_operand(0.01282471138983965, 0), sum_operand(0.028897477313876152), 0.04474446922540665),
    ],
)
def test_scales_are_other_ones_for_the_pairs_that_there_are(first, second, step):
    levels = ActivationLevels(Grid(-128, 127), step, 8)
    how = addition.fit_sum(first, second, Epilogue(()), levels, exact=False)
    assert how is not None
    assert any(how.apart)
    assert off_in_sum(first, second, levels, how) == 0


def off_in_sum(first, second, levels, how):
    """Count pairs of numbers whose sum is on another level than in PyTorch, at the worst optimization level."""
    writer, (low, high) = Writer(), levels.grid[:2]
    a, b = (tensor.named(name) for tensor, name in ((first, "a"), (second, "b")))
    addition.write(writer, onnx.helper.make_node("Add", ["a", "b"], ["sum"]), (a, b), how, Epilogue(()), levels, "y")
    numbers = np.mgrid[: first.most + 1, : second.most + 1].astype(np.uint8)
    inputs = [onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, numbers[0].shape) for name in "ab"]
    outputs = [onnx.helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    graph = onnx.helper.make_graph(writer.nodes, "sum", inputs, outputs, list(writer.constants.values()))
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    values = [(given.astype(np.float32) - t.zero) * t.levels.scale for given, t in zip(numbers, (a, b), strict=True)]
    wanted = np.rint(np.clip((values[0] + values[1]) / np.float32(levels.scale), low, high)) - low
    off = [int((to_module(model)(*map(torch.from_numpy, numbers)).numpy() != wanted).sum())]
    for level in LEVELS.values():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        off.append(int((session.run(None, dict(zip("ab", numbers, strict=True)))[0] != wanted).sum()))
    return max(off)
