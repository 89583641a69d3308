"""Names of an ONNX model's nodes and tensors: those of the user's model, not the exporter's."""

import ast
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto
from torch.fx import GraphModule, Node

from nce_fx.paths import free_name

_SCOPES = "pkg.torch.onnx.name_scopes"


def output_names(gm: GraphModule) -> tuple[str | None, ...]:
    """Return what the model itself calls its outputs: ``out``, ``aux.0``; ``None`` for those that have no name."""
    found: list[str | None] = []

    def walk(value: Any, path: tuple[str, ...], named: bool) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, (*path, str(key)), True)
        elif isinstance(value, tuple | list):
            for index, item in enumerate(value):
                walk(item, (*path, str(index)), named)
        elif isinstance(value, Node):
            kind = made.get(value)
            if kind is not None:
                walk(kind, path, named)
            else:
                found.append(".".join(path) if named else None)

    made = {
        node: dict(*map(list, node.args), **node.kwargs)
        for node in gm.graph.find_nodes(op="call_function", target=dict)
        if all(isinstance(item, list | tuple) for item in node.args)
    }
    walk(gm.graph.output_node().args[0], (), False)
    return tuple(found)


def put_names(model: ModelProto, kept: Container[str] = (), outputs: Sequence[str | None] = ()) -> None:
    """Name nodes, and the tensors they write, as the model names its modules and the graph its functions.

    A module that becomes several nodes gives its name to the last, whose output is the module's, and its name and the
    operator's to the others. Tensors in ``kept`` have their names already. ``outputs`` are what the model calls its
    outputs, where it names them.
    """
    graph = model.graph
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    wanted = _wanted(model, outputs, taken, kept)
    taken |= set(wanted.values())
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
                if output in wanted:
                    renamed[output] = wanted[output]
                elif output and output not in kept:
                    renamed[output] = node.name if index == 0 else _free(f"{node.name}_{index}", taken)
            # Where PyTorch's exporter was in its own code is nothing for the file.
            del node.metadata_props[:]
    rename(model, renamed)
    del graph.value_info[:]


def _wanted(model: ModelProto, outputs: Sequence[str | None], taken: set[str], kept: Container[str]) -> dict[str, str]:
    """The exporter's names of outputs that the model names, and their names; none where two are one tensor."""
    own = [value.name for value in model.graph.output]
    if len(own) != len(outputs) or len(set(own)) < len(own):
        return {}
    pairs = zip(own, outputs, strict=True)
    return {a: b for a, b in pairs if b and a not in taken and b not in taken and a not in kept}


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, in the bodies of loops and branches, too."""
    _rename(model.graph, names)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        rename_in(node, names)
    for output in graph.output:
        output.name = names.get(output.name, output.name)


def rename_in(node: NodeProto, names: Mapping[str, str]) -> None:
    """Give what a node reads and writes other names; no two tensors of a file have one, whichever body they are in."""
    for values in (node.input, node.output):
        for index, name in enumerate(values):
            values[index] = names.get(name, name)
    for body in bodies(node):
        _rename(body, names)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node runs, such as the two branches of an ``If``."""
    for entry in node.attribute:
        yield from [entry.g] if entry.HasField("g") else entry.graphs


def reads(node: NodeProto) -> Iterator[str]:
    """Yield every tensor that a node reads, those that only its bodies read included."""
    yield from filter(None, node.input)
    for body in bodies(node):
        for inner in body.node:
            yield from reads(inner)
        yield from (output.name for output in body.output)


def drop_unread(model: ModelProto) -> None:
    """Take the constants out of a model that nothing reads, in place."""
    read = {name for node in model.graph.node for name in reads(node)} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _free(wanted: str, taken: set[str]) -> str:
    name = free_name(wanted, taken)
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
