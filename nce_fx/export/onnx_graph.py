"""From a marked graph to an ONNX model in one of the formats, with the names of the user's model."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from onnx import ModelProto, NodeProto, helper

from nce_fx.errors import ExportError
from nce_fx.export.formats import Format
from nce_fx.export.levels import DOMAIN, WEIGHT, Marked
from nce_fx.export.program import program, reason

_SCOPES = "pkg.torch.onnx.name_scopes"


def to_onnx(marked: Marked, inputs: tuple[Any, ...], form: Format, *, dynamic: bool) -> ModelProto:
    """Return the ONNX model of a marked graph.

    Args:
        marked: what `nce_fx.export.levels.mark` returned.
        inputs: an example; with ``dynamic`` of at least two samples.
        form: how quantizers are written.
        dynamic: whether the first axis of every input is a batch of any size.

    Raises:
        ExportError: PyTorch's exporter cannot say the graph in ONNX, or not with a batch of any size.
    """
    try:
        with _quiet(), torch.no_grad():
            traced = program(marked.graph_module, inputs, dynamic=dynamic)
            exported: Any = torch.onnx.export(traced, dynamo=True, opset_version=form.opset, verbose=False)
            model: ModelProto = exported.model_proto
    except Exception as error:
        # The exporter raises whatever it stumbles over, often several lines around one reason.
        raise ExportError(f"the graph cannot be written as ONNX: {reason(error)}") from error
    del model.functions[:]
    _put_formats(model, marked, form)
    _put_names(model)
    model.ir_version = max(form.ir_version, model.ir_version if form.opset > 18 else 0)
    for name in list(model.opset_import):
        if name.domain == DOMAIN:
            model.opset_import.remove(name)
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in form.domains.items())
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its advice on its own internals off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _put_formats(model: ModelProto, marked: Marked, form: Format) -> None:
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
        for tensor, kind in piece.types.items():
            annotation = model.graph.quantization_annotation.add(tensor_name=tensor)
            annotation.quant_parameter_tensor_names.add(key="finn_datatype", value=kind)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _rename(model, results)


def _put_names(model: ModelProto) -> None:
    """Name nodes, and the tensors they write, as the model names its modules and the graph its functions.

    A module that becomes several nodes gives its name to the last, whose output is the module's, and its name and the
    operator's to the others.
    """
    graph = model.graph
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    groups: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        owner = _owner(node)
        if owner is None:
            taken |= {node.name, *node.output}
        else:
            groups.setdefault(owner, []).append(node)
    renamed: dict[str, str] = {}
    for owner, nodes in groups.items():
        for node in nodes:
            node.name = _free(owner if node is nodes[-1] else f"{owner}/{node.op_type}", taken)
            for index, output in enumerate(node.output):
                if output:
                    renamed[output] = node.name if index == 0 else _free(f"{node.name}_{index}", taken)
            # Where PyTorch's exporter was in its own code is nothing for the file.
            del node.metadata_props[:]
    _rename(model, renamed)
    del graph.value_info[:]


def _rename(model: ModelProto, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.get(name, name)
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


def _free(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    taken.add(name)
    return name


def _owner(node: NodeProto) -> str | None:
    """Return the name that a node of PyTorch's exporter shall have, ``None`` for the nodes of a format."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), None)
    if scopes is None:
        return None if node.name == node.output[0] else node.op_type
    names = _strings(scopes)
    # The last is the operator's own; the exporter's constants have no other.
    return names[-2] if len(names) > 1 else node.op_type


def _strings(text: str) -> list[str]:
    try:
        return [str(entry) for entry in ast.literal_eval(text)]
    except (ValueError, SyntaxError):
        return []
