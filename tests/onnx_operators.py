"""The table of ONNX's operators, which PyTorch compiles anew for each export, made once a process: import this first.

It takes a fifth of the time of the export of a small network.
"""

from functools import cache
from importlib import import_module

from torch.onnx._internal import _lazy_import

_functions = import_module(vars(vars(_lazy_import)["onnxscript_apis"])["_name"])
vars(_functions)["get_torchlib_ops"] = cache(_functions.get_torchlib_ops)
