"""Learned thresholds in ONNX: how many lie below each value, by halves, one comparison a bit.

    m = 0;   for h in 2^(b-1), ..., 2, 1:   m = m + h * (x > t[m + h - 1])

Comparisons round nothing, so this is exact at every optimization level.
"""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nce_fx.export.levels import ActivationLevels


def count_below(
    name: str, levels: ActivationLevels, source: str, result: str, to: int
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes that count thresholds, and the constants they read.

    Args:
        name: of the quantizer.
        levels: it has 2^b - 1 thresholds.
        source: the float tensor it reads.
        result: name of the counts.
        to: their type, such as `TensorProto.UINT8`.
    """
    thresholds = numpy_helper.from_array(np.array(levels.thresholds, np.float32), f"{name}_thresholds")
    nodes, constants, count = [], [thresholds], ""

    def put(op: str, inputs: list[str], output: str, **settings: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **settings))
        return output

    def number(value: int) -> str:
        constants.append(numpy_helper.from_array(np.array(value, np.int32), f"{name}_number_{len(constants)}"))
        return constants[-1].name

    for bit in reversed(range(levels.bits)):
        half, stem = 2**bit, f"{name}_bit_{bit}"
        place = put("Add", [count, number(half - 1)], f"{stem}_place") if count else number(half - 1)
        above = put("Greater", [source, put("Gather", [thresholds.name, place], f"{stem}_threshold")], f"{stem}_above")
        counted = put("Cast", [above], f"{stem}_one", to=TensorProto.INT32)
        if bit:
            counted = put("Mul", [counted, number(half)], stem)
        count = put("Add", [count, counted], f"{stem}_count") if count else counted
    put("Cast", [count], result, to=to)
    return nodes, constants
