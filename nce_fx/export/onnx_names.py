"""Names of an ONNX model's nodes and tensors: those of the user's model, not the exporter's."""

from __future__ import annotations

import ast
from collections.abc import Container, Mapping

from onnx import ModelProto, NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"


def put_names(model: ModelProto, kept: Container[str] = ()) -> None:
    """Name nodes, and the tensors they write, as the model names its modules and the graph its functions.

    A module that becomes several nodes gives its name to the last, whose output is the module's, and its name and the
    operator's to the others. Tensors in ``kept`` have their names already.
    """
    graph = model.graph
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    groups: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        found = owner(node)
        if found is None:
            taken |= {node.name, *node.output}
        else:
            groups.setdefault(found, []).append(node)
    renamed: dict[str, str] = {}
    for path, nodes in groups.items():
        for node in nodes:
            node.name = _free(path if node is nodes[-1] else f"{path}/{node.op_type}", taken)
            for index, output in enumerate(node.output):
                if output and output not in kept:
                    renamed[output] = node.name if index == 0 else _free(f"{node.name}_{index}", taken)
            # Where PyTorch's exporter was in its own code is nothing for the file.
            del node.metadata_props[:]
    rename(model, renamed)
    del graph.value_info[:]


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Give tensors other names."""
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


def owner(node: NodeProto) -> str | None:
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
