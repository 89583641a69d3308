"""The operators of an integer file in PyTorch, with onnxruntime's arithmetic: what `to_integer` writes a network with.

Whole-number sums are taken in double precision, which holds them exactly, because PyTorch has no integer convolution on
a CPU. Names and arguments are ONNX's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from nce_fx.export.integer.curves import CURVES

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return ``x / scale + zero`` as uint8 numbers; ties go to the even one."""
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8)


def dequantize_linear(x: Tensor, scale: Tensor, zero: Tensor, axis: int = 1) -> Tensor:
    """Return uint8 numbers as floats: ``(x - zero) * scale``, of one scale or one for each place along an axis."""
    if scale.dim():
        scale, zero = (each.reshape(-1, *[1] * (x.dim() - 1 - axis)) for each in (scale, zero))
    return (x.to(torch.int32) - zero).to(torch.float32) * scale


def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor,
    **settings: Any,
) -> Tensor:
    """Return uint8 numbers of ``conv(x, w)``: a whole-number sum and bias, times one float32 a channel, rounded."""
    sums = conv(x.double() - x_zero, w.double() - w_zero, bias.double(), **settings)
    ratio = (x_scale * w_scale / y_scale).reshape(-1, *[1] * (x.dim() - 2))
    return (torch.round(sums.to(torch.float32) * ratio) + y_zero).clamp(0, 255).to(torch.uint8)


def qlinear_add(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, scale: Tensor, zero: Tensor
) -> Tensor:
    """Return uint8 numbers of ``a + b``; each multiplication and addition is rounded once, to float32."""
    a_ratio, b_ratio = a_scale / scale, b_scale / scale
    places = zero.float() - (a_ratio * a_zero.float() + b_ratio * b_zero.float())
    for numbers, ratio in ((b, b_ratio), (a, a_ratio)):
        places = (numbers.double() * ratio.double() + places.double()).float()
    return torch.round(places).clamp(0, 255).to(torch.uint8)


def qlinear_leaky_relu(x: Tensor, scale: Tensor, zero: Tensor, y_scale: Tensor, y_zero: Tensor, alpha: float) -> Tensor:
    """Return uint8 numbers of other levels; ``alpha`` is what numbers below zero are multiplied with."""
    values = dequantize_linear(x, scale, zero)
    return quantize_linear(torch.where(values < 0, values * alpha, values), y_scale, y_zero)


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor) -> Tensor:
    """Return ``(a - a_zero) @ b`` as int32: (..., n, k) x (k, m)."""
    return torch.matmul(a.double() - a_zero, b.double()).to(torch.int32)


def matmul_integer_to_float(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Tensor, b_zero: None = None, bias: Any = None
) -> Tensor:
    """Return ``(a - a_zero) @ b`` as floats, times two scales, with a bias added."""
    floats = matmul_integer(a, b, a_zero).to(torch.float32) * (a_scale * b_scale)
    return floats if bias is None else floats + bias


def matmul_n_bits(a: Tensor, b: Tensor, scales: Tensor, **settings: Any) -> Tensor:
    """Return ``a @ q.T``: rows of whole numbers (..., K), packed weights of two bits (N, blocks, bytes), q + 2 of q."""
    q = ((b.unsqueeze(-1) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)) & 3).double() - 2
    blocks = q.reshape(*b.shape[:2], -1) * scales.double().reshape(*b.shape[:2], 1)
    return torch.matmul(a.double(), blocks.reshape(settings["N"], -1).t()).to(torch.float32)


def conv(x: Tensor, w: Tensor, bias: Tensor | None = None, **settings: Any) -> Tensor:
    """Return the convolution ``x * w``: (N, in, ...) -> (N, out, ...); padding on each side by itself."""
    axes = x.dim() - 2
    pads = settings.get("pads", [0] * (2 * axes))
    x = F.pad(x, _sides(pads)) if any(pads) else x
    function: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    strides, dilations = settings.get("strides", [1] * axes), settings.get("dilations", [1] * axes)
    return function(x, w, bias, stride=strides, dilation=dilations, groups=settings.get("group", 1))


def _sides(pads: list[int]) -> list[int]:
    """ONNX's pads, all starts and then all ends, as PyTorch's, the last axis first."""
    half = len(pads) // 2
    return [size for axis in reversed(range(half)) for size in (pads[axis], pads[half + axis])]


def max_pool(x: Tensor, **settings: Any) -> Tensor:
    """Return the greatest of each window: ``kernel_shape=[2, 2]`` of (N, C, H, W)."""
    pads, axes = settings.get("pads", []), x.dim() - 2
    values = x.double()
    values = F.pad(values, _sides(pads), value=-torch.inf) if any(pads) else values
    function: Callable[..., Tensor] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[axes]
    steps = {"dilation": settings.get("dilations", 1), "ceil_mode": bool(settings.get("ceil_mode", 0))}
    return function(values, settings["kernel_shape"], settings.get("strides", [1] * axes), **steps).to(x.dtype)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, **settings: Any) -> Tensor:
    """Return ``(x - mean) / sqrt(variance + epsilon) * gamma + beta``, along axis 1."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=settings.get("epsilon", 1e-5))


def pad(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, **settings: Any) -> Tensor:
    """Return a tensor with more around it; ``axes``: the last one alone."""
    if axes is not None:
        return F.pad(x, pads.tolist(), value=0 if value is None else value.item())
    mode = {"edge": "replicate"}.get(name := settings.get("mode", b"constant").decode(), name)
    if mode == "constant":
        return F.pad(x, _sides(pads.tolist()), value=0 if value is None else value.item())
    return F.pad(x.double(), _sides(pads.tolist())[:-4], mode=mode).to(x.dtype)


def reshape(x: Tensor, shape: Tensor, **settings: Any) -> Tensor:
    """Return a tensor in another shape, such as ``[0, -1]``; 0 keeps an axis."""
    keeps = not settings.get("allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and keeps else size for i, size in enumerate(shape.tolist())])


def slices(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor) -> Tensor:
    """Return ``x[start:end]`` along axes, in steps of one."""
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        x = x[(*[slice(None)] * (axis % x.dim()), slice(start, end))]
    return x


def reduce_mean(x: Tensor, axes: Tensor, **settings: Any) -> Tensor:
    """Return means over axes, such as ``[2, 3]``."""
    return x.mean(axes.tolist(), keepdim=bool(settings.get("keepdims", 1)))


def reduce_sum(x: Tensor, axes: Tensor, **settings: Any) -> Tensor:
    """Return sums over axes, such as ``[2, 3]``."""
    return x.sum(axes.tolist(), keepdim=bool(settings.get("keepdims", 1)))


def gemm(x: Tensor, w: Tensor, bias: Tensor | None = None, **settings: Any) -> Tensor:
    """Return a linear layer: ``x @ w.T + bias``, (rows, in) -> (rows, out)."""
    return F.linear(x, w if settings.get("transB", 0) else w.t(), bias)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return numbers between two ends: ``min(max(x, low), high)``."""
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


def cast(x: Tensor, **settings: Any) -> Tensor:
    """Return a tensor in another type, by ONNX's number of it: ``1`` is float32."""
    return x.to(_TYPES[settings["to"]])


def total(*values: Tensor) -> Tensor:
    """Return ``a + b + ...``, of floats."""
    return sum(values[1:], values[0])


def concat(*values: Tensor, **settings: Any) -> Tensor:
    """Return tensors side by side along ``axis``."""
    return torch.cat(values, settings["axis"])


def transpose(x: Tensor, **settings: Any) -> Tensor:
    """Return a tensor with its axes in another order, such as ``perm=[0, 2, 1]``."""
    return x.permute(settings["perm"])


def flatten(x: Tensor, **settings: Any) -> Tensor:
    """Return a matrix: ``x.flatten(1)`` of axis 1."""
    return x.reshape(int(torch.tensor(x.shape[: settings.get("axis", 1)]).prod()), -1)


def gather(x: Tensor, places: Tensor, **settings: Any) -> Tensor:
    """Return the elements at places along an axis: ``x.index_select(axis, places)``."""
    axis = settings.get("axis", 0) % x.dim()
    found = x.index_select(axis, places.reshape(-1).long())
    return found.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def gather_nd(x: Tensor, places: Tensor, **settings: Any) -> Tensor:
    """Return what stands at places that say indices along its first axes: ``[[1, 2]]`` of (4, 8) is one value."""
    assert not settings.get("batch_dims", 0)
    return x[tuple(places.long().unbind(-1))]


OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "QLinearConv": qlinear_conv,
    "QLinearAdd": qlinear_add,
    "QLinearLeakyRelu": qlinear_leaky_relu,
    "MatMulInteger": matmul_integer,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "MatMulNBits": matmul_n_bits,
    "Conv": conv,
    "MaxPool": max_pool,
    "BatchNormalization": batch_norm,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slices,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "Gemm": gemm,
    "Clip": clip,
    "Cast": cast,
    "Sum": total,
    "Concat": concat,
    "Transpose": transpose,
    "Flatten": flatten,
    "MatMul": torch.matmul,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Relu": torch.relu,
    **CURVES,
    "BitwiseNot": torch.bitwise_not,
    "Identity": torch.clone,
    "Gather": gather,
    "GatherND": gather_nd,
    "Greater": torch.gt,
}
"""ONNX's name of an operator -> the same on tensors."""
