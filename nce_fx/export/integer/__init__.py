"""Quantized networks as ONNX files that stock onnxruntime computes with in integers, from layer to layer.

    packed INT2 weights -> Cast, Mul, Add (once, when a session is made) -> int8
                                                                             |
    uint8 numbers of levels ----------------------------------------> QLinearConv -> Clip -> uint8 numbers of levels

A QLinearConv stands for a convolution, BatchNorm, ReLU and quantizer. Its bias and scale are not those numbers rounded:
they are found so that every level rises at the sum at which PyTorch's does (`staircase`).

partition.py    what runs in integers, and what is wanted of it
sources.py      what a quantizer reads: a convolution, a sum, a pool, branches side by side
epilogue.py     what lies between a convolution and its quantizer; curves.py: of that, SiLU and its like
staircase.py    levels as a function of a whole-number sum
convolution.py  addition.py  linear.py    QLinearConv, QLinearAdd, MatMulIntegerToFloat
counted.py      QLinearConv for outputs wanted in float, where sums fit eight bits
few_rows.py     MatMulNBits, where few rows meet a weight that stays packed
weights.py      tensors.py   onnx_nodes.py   what these are written with
lower.py        writing it down
module.py       operators.py   the file as a PyTorch module
"""

from nce_fx.export.integer.lower import Lowered, lower
from nce_fx.export.integer.module import to_module

__all__ = ["Lowered", "lower", "to_module"]
