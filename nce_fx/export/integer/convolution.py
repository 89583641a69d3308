"""A convolution of integers, with all that lies between it and the next quantizer, as one QLinearConv."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import NodeProto

from nce_fx.export.integer.epilogue import Epilogue
from nce_fx.export.integer.onnx_nodes import Array, Writer, attributes
from nce_fx.export.integer.sources import Convolved
from nce_fx.export.integer.staircase import Requantization, find_rises, line_through, requantize
from nce_fx.export.integer.tensors import IntegerTensor, level_numbers, stored, write_clip
from nce_fx.export.integer.weights import WholeWeight, multiple, whole_weight, write_int8
from nce_fx.export.levels import ActivationLevels
from nce_fx.passes.transform.quantize import IntegerWeight

FALLS, UNEVEN = (
    "the level behind its activation falls before it rises",
    "the levels behind its activation rise unevenly",
)
OFF_BY_ONE = "no whole-number bias puts all {} levels of its quantizer where PyTorch has them"
THRESHOLDS = "the thresholds of its quantizer are learned, and a multiplication has even ones"
_PAIR = 2**15 - 1
"""The largest sum of two products: processors without VNNI add them in sixteen bits."""


@dataclass(frozen=True)
class Fitted:
    """A convolution in whole numbers, and what its sums become: ``Fitted(node, "conv1", ...)``, ready to be written."""

    node: NodeProto
    name: str
    """Of the weight."""
    weight: WholeWeight
    negative: Array
    """Channels whose sign changes, so that levels grow with the sum: bool (channels,)."""
    times: int
    """What the weight's whole numbers are multiplied with; 0: they need nine bits, and two channels for each."""
    finer: int
    """What the activation's are."""
    requantization: Requantization
    ends: tuple[int, int]
    """The least and the largest level."""


def fit_convolution(
    source: Convolved, weight: IntegerWeight, tensor: IntegerTensor, levels: ActivationLevels, *, exact: bool
) -> Fitted | str:
    """Return the convolution and the quantizer behind it in whole numbers, or why it stays in float.

    ``fit_convolution(source, weight, tensor, levels, exact=True)`` of ResNet-18's first layer is "no whole-number bias
    puts all 256 levels of its quantizer where PyTorch has them"; of the others a `Fitted`.

    Args:
        source: the convolution and what follows.
        weight: its weight.
        tensor: what it reads.
        levels: of the quantizer.
        exact: refuse where a level rises at another sum than in PyTorch. That is so where the quantizer has 8 bits and
            weight and activation are so large as integers that nothing can make the bias finer.
    """
    if levels.thresholds:
        return THRESHOLDS
    whole = whole_weight(weight)
    if whole is None:
        return "its weight's levels are no multiples of one number"
    times = multiple(whole)
    if not times and (refused := _refuses_nine_bits(source.node, whole)):
        return refused
    if not source.epilogue.rises(partial(level_numbers, levels)):
        return FALLS
    channels = len(whole.values)
    slope, shift = source.epilogue.line(channels)
    ends = _ends(source.epilogue, levels, slope)
    if ends is None:
        return "what follows it ends at other levels in other channels"
    negative = slope < 0
    unit = np.broadcast_to(whole.unit.reshape(-1, 1), (channels, 1)) * tensor.step
    sign = np.where(negative, -1, 1)[:, None]

    def level(sums: Array) -> Array:
        return level_numbers(levels, source.epilogue((sums * sign * unit).astype(np.float32)))

    reach = np.abs(whole.values).reshape(channels, -1).sum(1, keepdims=True) * tensor.reach
    stairs = find_rises(level, np.arange(ends[0] + 1, ends[1] + 1), reach)
    line = np.abs(slope) * unit[:, 0] / levels.scale, shift / levels.scale - levels.grid.offset
    if source.epilogue.curved:
        line = line_through(stairs)
    best: tuple[Requantization, int] | None = None
    for finer in _finenesses(whole.largest * times, tensor):
        rounded = partial(_ratios, tensor, finer, levels)
        made = requantize(stairs, *line, max(times, 1) * finer, rounded)
        if best is None or made.misses.sum() < best[0].misses.sum():
            best = made, finer
        if not made.misses.any():
            break
    assert best is not None
    if best[0].misses.any() and (source.epilogue.curved or exact):
        return UNEVEN if source.epilogue.curved else OFF_BY_ONE.format(len(stairs.levels) + 1)
    return Fitted(source.node, source.weight, whole, negative, times, best[1], best[0], ends)


def write(writer: Writer, fitted: Fitted, tensor: IntegerTensor, levels: ActivationLevels, result: str) -> str:
    """Write a convolution and its quantizer as ``QLinearConv``, and return the name of the numbers."""
    negative = fitted.negative.reshape(-1, *[1] * (fitted.weight.values.ndim - 1))
    settings = {name: value for name, value in attributes(fitted.node).items() if name != "kernel_shape"}
    bias = fitted.requantization.bias.astype(np.int64)
    data = stored(writer, tensor, fitted.finer)
    source = data.name
    if fitted.times:
        weight = write_int8(writer, fitted.name, fitted.weight, fitted.times, negative)
    else:
        values = np.where(negative, -fitted.weight.values, fitted.weight.values)
        if values.max() <= 127 and values.min() >= -128:
            weight = writer.constant(fitted.name, values.astype(np.int8))
        else:
            # w x = a x + b x', with a - b = w and x' = 255 - x: nine bits in two numbers of eight.
            first = values // 2
            second = first - values
            weight = writer.constant(fitted.name, np.concatenate([first, second], 1).astype(np.int8))
            bias -= int(255 - 2 * tensor.zero) * second.reshape(len(second), -1).sum(1)
            source = _doubled(writer, fitted.node, source, data.zero, settings, result)
    scale = _scales(tensor, fitted.finer, levels, fitted.requantization.ratio)
    name, made = result, writer.free(fitted.node.output[0])
    inputs = [source, data.scale, data.zero, weight, writer.constant(f"{name}_weight_scale", scale)]
    inputs.append(writer.number(np.int8(0)))
    inputs.append(writer.constant(f"{result}_scale", np.float32(levels.scale)))
    inputs.append(writer.number(np.uint8(-levels.grid.low)))
    inputs.append(writer.constant(f"{name}_bias", bias.astype(np.int32)))
    low, high = (end - levels.grid.low for end in fitted.ends)
    whole = (low, high) == (0, 255)
    writer.node("QLinearConv", inputs, result if whole else made, fitted.node, **settings)
    return result if whole else write_clip(writer, made, result, low, high)


def _refuses_nine_bits(node: NodeProto, weight: WholeWeight) -> str:
    settings = attributes(node)
    if weight.largest > 255 or settings.get("group", 1) != 1 or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
        return "its weight's levels need nine bits as integers: lsq's need eight"
    return ""


def _ends(epilogue: Epilogue, levels: ActivationLevels, slope: Array) -> tuple[int, int] | None:
    """Return the least and the largest level, ``None`` where they differ among channels."""
    ends = [level_numbers(levels, epilogue(np.full((len(slope), 1), end, np.float32))) for end in (-1e30, 1e30)]
    moving = slope != 0
    low, high = np.minimum(*ends)[moving], np.maximum(*ends)[moving]
    if not moving.any():
        return levels.grid.low, levels.grid.high
    if np.ptp(low) or np.ptp(high):
        return None
    return int(low.flat[0]), int(high.flat[0])


def _finenesses(largest: int, tensor: IntegerTensor) -> tuple[int, ...]:
    """Return what the activation's numbers may be multiplied with: as little as will do is tried first."""
    most = tensor.most * tensor.whole
    finest = min(255 // most, _PAIR // (2 * most * largest)) if largest else 1
    return (1, finest) if finest > 1 else (1,)


def _scales(tensor: IntegerTensor, finer: int, levels: ActivationLevels, ratio: Array) -> Array:
    """Return the scales of a weight that give the ratios wanted."""
    read = float(np.float32(tensor.levels.scale / (finer * tensor.whole)))
    return (ratio * levels.scale / read).astype(np.float32)


def _ratios(tensor: IntegerTensor, finer: int, levels: ActivationLevels, ratio: Array) -> Array:
    """Return the ratios that onnxruntime makes of those scales, in float32."""
    read, scale = np.float32(tensor.levels.scale / (finer * tensor.whole)), _scales(tensor, finer, levels, ratio)
    return (read * scale) / np.float32(levels.scale)


def _doubled(writer: Writer, node: NodeProto, source: str, zero: str, settings: dict[str, object], name: str) -> str:
    """Write a tensor and, as further channels, what is missing to 255; padded before, since both are."""
    pads = list(attributes(node).get("pads", []))
    if any(pads):
        half = len(pads) // 2
        sizes = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        source = writer.node("Pad", [source, writer.constant(f"{name}_pads", sizes), zero], f"{name}_padded")
        settings.pop("pads")
    rest = writer.node("BitwiseNot", [source], f"{name}_rest")
    return writer.node("Concat", [source, rest], f"{name}_both", axis=1)
