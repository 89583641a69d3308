"""From a marked graph to an ONNX model in one of the formats, with the names of the user's model."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from onnx import ModelProto, NodeProto, helper

from nce_fx.errors import ExportError
from nce_fx.export.formats import Format, Pieces
from nce_fx.export.integer import Lowered, lower
from nce_fx.export.levels import DOMAIN, WEIGHT, Marked
from nce_fx.export.onnx_names import output_names, put_names, rename
from nce_fx.export.opset import LEAST_OF_EXPORTER, set_opset
from nce_fx.export.program import Dynamic, program, reason


def to_onnx(
    marked: Marked, inputs: tuple[Any, ...], form: Format, *, dynamic: Dynamic, opset: int | None = None
) -> tuple[ModelProto, Lowered]:
    """Return the ONNX model of a marked graph, and what of it computes in integers.

    Args:
        marked: what `nce_fx.export.levels.mark` returned.
        inputs: an example; with ``dynamic`` of at least two samples.
        form: how quantizers are written.
        dynamic: which axes of the inputs are of any size.
        opset: of the file; the format's own by default.

    Raises:
        ExportError: PyTorch's exporter cannot say the graph in ONNX, or not with a batch of any size.
    """
    written = form.opset if opset is None else max(opset, LEAST_OF_EXPORTER)
    try:
        with _quiet(), torch.no_grad():
            traced = program(marked.graph_module, inputs, dynamic=dynamic)
            exported: Any = torch.onnx.export(traced, dynamo=True, opset_version=written, verbose=False)
            model: ModelProto = exported.model_proto
    except Exception as error:
        # The exporter raises whatever it stumbles over, often several lines around one reason.
        raise ExportError(f"the graph cannot be written as ONNX: {reason(error)}") from error
    del model.functions[:]
    _set_apart(model, marked)
    lowered = Lowered()
    if form.pieces is None:
        lowered = lower(model, marked)
    else:
        _put_formats(model, marked, form.pieces)
    if form.finish is not None:
        form.finish(model, marked.activations)
    put_names(model, lowered.activations, output_names(marked.graph_module))
    model.ir_version = max(form.ir_version, model.ir_version if form.opset > 18 else 0)
    for name in list(model.opset_import):
        if name.domain == DOMAIN:
            model.opset_import.remove(name)
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in form.domains.items())
    if opset is not None:
        set_opset(model, opset)
    return model, lowered


def _set_apart(model: ModelProto, marked: Marked) -> None:
    """Give a weight that is read in float as well another name: the integers of a tied weight have its own."""
    taken = {tensor.name for tensor in model.graph.initializer}
    names = {name: f"{name}_float" for name in marked.weights if name in taken}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    rename(model, names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its advice on its own internals off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _put_formats(model: ModelProto, marked: Marked, form: Pieces) -> None:
    """Replace every marker by what the format writes for it."""
    nodes: list[NodeProto] = []
    results: dict[str, str] = {}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, set()).add(node.op_type)
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        name = next(helper.get_attribute_value(entry) for entry in node.attribute if entry.name == "name").decode()
        if node.op_type == WEIGHT:
            results[node.output[0]] = f"{name}_quant"
            plain = readers.get(node.output[0], set()) <= {"Conv", "ConvTranspose", "Gemm"}
            piece = form.weight(name, marked.weights[name], f"{name}_quant", not plain)
        else:
            results[node.output[0]] = name
            piece = form.activation(name, marked.activations[name], node.input[0], name)
        nodes += piece.nodes
        model.graph.initializer.extend(piece.constants)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    rename(model, results)
