"""The operators of an integer file in PyTorch give onnxruntime's numbers, with each of their settings."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from nce_fx.export.integer.operators import OPERATORS


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def numbers(*shape, low=0, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def one(value, dtype=np.float32):
    return np.array(value, dtype)


def ints(*values):
    return np.array(values, np.int64)


IMAGE, ZERO = floats(2, 4, 6, 5), one(7, np.uint8)
WEIGHT = numbers(6, 4, 3, 3, low=-2, high=2, dtype=np.int8)
BIAS = numbers(6, low=-99, high=99, dtype=np.int32)
MATRIX = numbers(4, 5, low=-9, high=9, dtype=np.int8)
LEVELS = (one(0.3), ZERO)
CASES: dict[str, list[tuple[list[Any], dict[str, Any]]]] = {
    "QuantizeLinear": [([IMAGE, *LEVELS], {}), ([np.arange(-4, 9, dtype=np.float32) / 2, one(1), ZERO], {})],
    "DequantizeLinear": [
        ([numbers(2, 4, 3), *LEVELS], {}),
        ([numbers(2, 4, 3), np.abs(floats(4)), numbers(4)], {}),
        ([numbers(2, 4, 3), np.abs(floats(3)), numbers(3)], {"axis": 2}),
    ],
    "QLinearConv": [
        (
            [
                numbers(2, 4, 6, 5),
                *LEVELS,
                WEIGHT,
                np.abs(floats(6)),
                one(0, np.int8),
                one(scale),
                one(3, np.uint8),
                BIAS,
            ],
            {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        )
        # With the second many sums are beyond both ends.
        for scale in (9.5, 0.5)
    ],
    "QLinearAdd": [([numbers(4, 9), *LEVELS, numbers(4, 9, seed=1), one(0.2), one(9, np.uint8), one(0.6), ZERO], {})],
    "QLinearLeakyRelu": [([numbers(64), one(0.3), one(100, np.uint8), one(0.2), one(90, np.uint8)], {"alpha": 0.25})],
    "MatMulInteger": [([numbers(2, 3, 4), MATRIX, ZERO], {})],
    "MatMulIntegerToFloat": [
        ([numbers(3, 4), MATRIX, one(0.5), one(0.25), ZERO, one(0, np.int8), *more], {}) for more in ([], [floats(5)])
    ],
    "Conv": [
        ([IMAGE, floats(6, 2, 3, 2), floats(6)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ([IMAGE, floats(6, 4, 2, 2)], {"dilations": [2, 1]}),
        ([floats(2, 4, 9), floats(6, 4, 3)], {"pads": [2, 0]}),
        ([floats(1, 2, 4, 4, 4), floats(3, 2, 2, 2, 2)], {}),
    ],
    "MaxPool": [
        ([numbers(2, 4, 6, 5)], {"kernel_shape": [2, 3]}),
        ([IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1}),
        ([IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 1]}),
        ([floats(2, 4, 9)], {"kernel_shape": [3], "strides": [2]}),
    ],
    "BatchNormalization": [
        ([IMAGE, floats(4), floats(4, seed=1), floats(4, seed=2), np.abs(floats(4, seed=3))], settings)
        for settings in ({}, {"epsilon": 0.5})
    ],
    "Pad": [
        ([IMAGE, ints(0, 0, 1, 2, 0, 1, 3, 0)], {}),
        ([IMAGE, ints(0, 0, 1, 2, 0, 1, 3, 0), one(1.5)], {"mode": "constant"}),
        ([IMAGE, ints(1, 2), one(1.5), ints(3)], {}),
        ([IMAGE, ints(1, 2), None, ints(3)], {}),
        ([IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
        ([numbers(2, 4, 6, 5), ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    ],
    "Reshape": [
        ([IMAGE, ints(0, -1)], {}),
        ([IMAGE, ints(4, 2, 0, 5)], {}),
        ([floats(0, 4), ints(4, 0)], {"allowzero": 1}),
    ],
    "Slice": [([IMAGE, ints(1), ints(9), ints(-1)], {}), ([IMAGE, ints(0, 1), ints(1, -1), ints(0, 2)], {})],
    "ReduceMean": [([IMAGE, ints(2, 3)], {}), ([IMAGE, ints(1)], {"keepdims": 0})],
    "ReduceSum": [([IMAGE, ints(2, 3)], {}), ([IMAGE, ints(1)], {"keepdims": 0})],
    "Gemm": [([floats(3, 4), floats(4, 5)], {}), ([floats(3, 4), floats(5, 4), floats(5)], {"transB": 1})],
    "Clip": [([IMAGE, one(-1), one(0.5)], {}), ([IMAGE, one(-1)], {})],
    "Cast": [([IMAGE], {"to": kind}) for kind in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)],
    "Sum": [([floats(3, seed=seed) for seed in range(count)], {}) for count in (1, 3)],
    "Concat": [([IMAGE, floats(2, 3, 6, 5, seed=1)], {"axis": 1}), ([IMAGE, IMAGE], {"axis": -1})],
    "Transpose": [([IMAGE], {"perm": [0, 2, 3, 1]})],
    "Flatten": [([IMAGE], {}), ([IMAGE], {"axis": 2}), ([IMAGE], {"axis": 0})],
    "Gather": [([IMAGE, numbers(2, 3, high=2, dtype=np.int64)], {}), ([IMAGE, ints(3, 0)], {"axis": -1})],
    "Sigmoid": [([IMAGE], {})],
    "Tanh": [([IMAGE], {})],
    "Gelu": [([IMAGE], {}), ([IMAGE], {"approximate": "none"}), ([IMAGE], {"approximate": "tanh"})],
    "HardSwish": [([IMAGE], {})],
    "HardSigmoid": [([IMAGE], {}), ([IMAGE], {"alpha": 1 / 6}), ([IMAGE], {"alpha": 0.4, "beta": 0.1})],
    "Mish": [([IMAGE], {})],
    "Elu": [([IMAGE], {}), ([IMAGE], {"alpha": 0.5})],
    "LeakyRelu": [([IMAGE], {}), ([IMAGE], {"alpha": 0.3})],
    "Greater": [([IMAGE, one(0.5)], {})],
    "BitwiseNot": [([numbers(9)], {})],
    "GatherND": [([IMAGE, numbers(3, 2, high=2, dtype=np.int64)], {})],
}
MICROSOFT = ("QLinearAdd", "QLinearLeakyRelu", "MatMulIntegerToFloat")


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in CASES.items() for case in range(len(cases))]
)
def test_an_operator_gives_onnxruntimes_numbers(name, case):
    inputs, settings = CASES[name][case]
    names = ["" if array is None else f"x{place}" for place, array in enumerate(inputs)]
    given = {name: array for name, array in zip(names, inputs, strict=True) if name}
    kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in given.values()]
    values = [helper.make_tensor_value_info(n, k, a.shape) for (n, a), k in zip(given.items(), kinds, strict=True)]
    node = helper.make_node(name, names, ["y"], domain="com.microsoft" if name in MICROSOFT else "", **settings)
    graph = helper.make_graph([node], "one", values, [helper.make_empty_tensor_value_info("y")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (theirs,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)
    as_read = {key: value.encode() if isinstance(value, str) else value for key, value in settings.items()}
    ours = OPERATORS[name](*(None if array is None else torch.from_numpy(array) for array in inputs), **as_read).numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    tolerance = 2e-5 if ours.dtype == np.float32 else 0
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
