"""An integer file as a plain PyTorch module, to be read, run and tested in Python."""

import keyword
import re

import ml_dtypes
import numpy as np
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from nce_fx.errors import ExportError
from nce_fx.export.integer.onnx_nodes import attributes
from nce_fx.export.integer.operators import OPERATORS


def to_module(model: ModelProto) -> GraphModule:
    """Return a file as a graph of the operators in `nce_fx.export.integer.operators`, named as there: ``gm(*inputs)``.

    What only depends on constants (a packed weight made int8) is computed here, once.

    Raises:
        ExportError: an operator that is not among them.
    """
    root, graph = nn.Module(), Graph()
    values: dict[str, Node | Tensor | None] = {"": None}
    values |= {tensor.name: _tensor(tensor) for tensor in model.graph.initializer}
    for given in model.graph.input:
        values[given.name] = graph.placeholder(_identifier(given.name))
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            raise ExportError(f"{node.name} is {node.op_type}, which has no form in PyTorch here: run the ONNX file")
        function, settings = OPERATORS[node.op_type], attributes(node)
        read = [values[name] for name in node.input]
        if not any(isinstance(value, Node) for value in read):
            values[node.output[0]] = function(*read, **settings)
            continue
        inputs = tuple(
            _read(root, graph, name, value) if isinstance(value, Tensor) else value
            for name, value in zip(node.input, read, strict=True)
        )
        made = graph.create_node("call_function", function, inputs, settings, name=_identifier(node.name))
        values[node.output[0]] = made
    outputs = tuple(values[output.name] for output in model.graph.output)
    graph.output(outputs[0] if len(outputs) == 1 else outputs)
    graph.lint()
    return GraphModule(root, graph).eval()


def _tensor(stored: TensorProto) -> Tensor:
    array = numpy_helper.to_array(stored)
    if array.dtype in (ml_dtypes.int2, ml_dtypes.int4):
        array = array.astype(np.int8)
    return torch.from_numpy(np.array(array))


def _read(root: nn.Module, graph: Graph, name: str, value: Tensor) -> Node:
    place = _identifier(name)
    if not hasattr(root, place):
        root.register_buffer(place, value)
    return graph.get_attr(place)


def _identifier(name: str) -> str:
    """Return a name that Python takes."""
    plain = re.sub(r"\W", "_", name)
    return f"_{plain}" if keyword.iskeyword(plain) or not plain or plain[0].isdigit() else plain
