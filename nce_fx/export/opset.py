"""An ONNX file for a runtime that knows fewer operators: the same nodes, where an older opset has them.

PyTorch's exporter writes opset 18 and later. A node of a file may be older than its opset; whether every one is there,
with these inputs, attributes and types, is what onnx's checker says.
"""

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from nce_fx.errors import ExportError, one_line
from nce_fx.export.onnx_names import drop_unread

LEAST_OF_EXPORTER = 18
LEAST, MOST = 13, 25
"""What `export_onnx` takes: from 13 on scales are one a channel; the types of 2 bits are of 25, of 4 bits of 21."""
_TYPES = {
    TensorProto.INT4: (21, "integers of 4 bits"),
    TensorProto.UINT4: (21, "integers of 4 bits"),
    TensorProto.INT2: (25, "integers of 2 bits"),
    TensorProto.UINT2: (25, "integers of 2 bits"),
}


def check_opset(opset: int) -> None:
    """Check that an opset is one that files are written in.

    Raises:
        ExportError: it is not.
    """
    if isinstance(opset, bool) or not isinstance(opset, int) or not LEAST <= opset <= MOST:
        raise ExportError(f"opset is {opset!r}: give one from {LEAST} to {MOST}, or leave it out for the format's own")


def set_opset(model: ModelProto, opset: int) -> None:
    """Let a model say another opset, in place.

    Raises:
        ExportError: something in it is younger than that; the message names it.
    """
    for tensor in model.graph.initializer:
        least, what = _TYPES.get(tensor.data_type, (0, ""))
        if opset < least:
            raise ExportError(
                f"opset {opset} has no {what}, which {tensor.name} has: give {least}, or choose format qcdq or qonnx"
            )
    if opset < LEAST_OF_EXPORTER:
        _axes_as_attributes(model)
    for entry in model.opset_import:
        if not entry.domain:
            entry.version = opset
    model.ir_version = max(helper.find_min_ir_version_for([e for e in model.opset_import if not e.domain]), 8)
    del model.graph.value_info[:]
    for node in model.graph.node:
        if node.domain:
            continue
        try:
            onnx.checker.check_node(node, _context(model))
        except Exception as error:
            raise ExportError(f"opset {opset} has no {node.op_type} such as {node.name}: {one_line(error)}") from error


def _context(model: ModelProto) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    return context


def _axes_as_attributes(model: ModelProto) -> None:
    """Reductions have their axes as an input from opset 18 on, as an attribute before."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
            _take_axes(node, constants)
    drop_unread(model)


def _take_axes(node: NodeProto, constants: dict[str, TensorProto]) -> None:
    axes = constants.get(node.input[1])
    if axes is None:
        return
    numbers = numpy_helper.to_array(axes).reshape(-1).tolist()
    del node.input[1:]
    kept = [entry for entry in node.attribute if entry.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend([*kept, *([helper.make_attribute("axes", numbers)] if numbers else [])])
