"""Reading and writing ONNX graphs: who writes a tensor, who reads it, which are constants; and new nodes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nce_fx.export.levels import ACTIVATION, DOMAIN, WEIGHT
from nce_fx.export.onnx_names import reads

Array = np.ndarray[Any, Any]
CONTRIB = "com.microsoft"


class Nodes:
    """What a model says, in a form that can be asked: ``nodes.writer["relu_out"]`` is the node that makes a tensor."""

    def __init__(self, model: ModelProto) -> None:
        self.all = list(model.graph.node)
        self.constants: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.writer: dict[str, NodeProto] = {name: node for node in self.all for name in node.output if name}
        self._shapes = {value.name: value for value in (*model.graph.input, *model.graph.value_info)}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.all:
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> Array | None:
        """Return the value of a constant, ``None`` for what is computed."""
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.writer.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the sizes of a tensor, ``None`` where one may be any."""
        axes = self._shapes[name].type.tensor_type.shape.dim if name in self._shapes else []
        sizes = tuple(axis.dim_value for axis in axes)
        return sizes if sizes and all(sizes) else None

    def weight(self, name: str) -> tuple[str, bool] | None:
        """Return which quantized weight a tensor is, and whether it is transposed: ``("fc.weight", True)``."""
        node, turned = self.writer.get(name), False
        if node is not None and node.op_type == "Transpose" and list(attributes(node).get("perm", [1, 0])) == [1, 0]:
            node, turned = self.writer.get(node.input[0]), True
        return (marked(node), turned) if is_marker(node, WEIGHT) else None


def is_marker(node: NodeProto | None, kind: str) -> bool:
    """Whether a node stands for a quantizer of a kind, ``ACTIVATION`` or ``WEIGHT``."""
    return node is not None and node.domain == DOMAIN and node.op_type == kind


def is_activation(node: NodeProto | None) -> bool:
    """Whether a node stands for a quantizer of activations, such as ``relu_activation_quant``."""
    return is_marker(node, ACTIVATION)


def marked(node: NodeProto | None) -> str:
    """Return which quantizer a marker stands for: ``"relu_activation_quant"``."""
    assert node is not None
    return str(attributes(node)["name"].decode())


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as Python values: ``{"strides": [2, 2]}``."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


class Writer:
    """Nodes and constants of the file to be, in the order they run: ``writer.node("Relu", [x], "relu")``."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.written: set[str] = set()
        """Names of tensors that a node writes."""

    def free(self, wanted: str) -> str:
        """Return a name that no tensor has yet, the wanted one where it is free, else ``"relu_1"``."""
        name, count = wanted, 1
        while name in self.constants or name in self.written:
            name, count = f"{wanted}_{count}", count + 1
        return name

    def add(self, node: NodeProto) -> None:
        """Write a node that is made already, as by ``helper.make_node``."""
        self.nodes.append(node)
        self.written.update(node.output)

    def node(self, op: str, inputs: Iterable[str], output: str, like: NodeProto | None = None, **settings: Any) -> str:
        """Write a node and return its output; ``like``: the node of the exporter that it stands for."""
        made = helper.make_node(op, list(inputs), [output], name=output, **settings)
        if like is not None:
            made.metadata_props.extend(like.metadata_props)
        self.add(made)
        return output

    def constant(self, name: str, value: Any) -> str:
        """Write a constant and return its name; another one of that name becomes ``"scale_again_2"``."""
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        while name in self.written or (name in self.constants and not self._same(name, array)):
            stem, _, number = name.rpartition("_again_")
            name = f"{stem}_again_{int(number) + 1}" if stem else f"{name}_again_2"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def number(self, value: np.integer[Any], axes: int = 0) -> str:
        """Write one small number, once for all that read it, and return its name: ``"uint8_3"``.

        A session takes longer to make with each constant there is.
        """
        name = f"{value.dtype}_{value}" + (f"_of_{axes}_axes" if axes else "")
        return self.constant(name, np.full((1,) * axes, value))

    def _same(self, name: str, array: Array) -> bool:
        kept = self.constants[name]
        return kept == numpy_helper.from_array(array, name)
