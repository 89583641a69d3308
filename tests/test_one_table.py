"""What is known of operations stands in the rows of nce_fx/ops: nothing else keeps a list of them, or asks for one."""

from __future__ import annotations

import ast
import operator
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph

import nce_fx.ops
from nce_fx.ops import OPS
from nce_fx.pickling import graph_of, lines_of
from tests.floors import files

ALLOWED = {
    "nce_fx.export.integer.curves": "what ONNX's functions of one number compute, by ONNX's names",
    "nce_fx.export.integer.operators": "what ONNX's operators compute, by ONNX's names",
    "nce_fx.models": "how networks are built, and which layers start with which weights",
}
"""Files and folders whose lists are no knowledge of the compiler's, and why."""

_SPACES: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "operator": operator}
_TAKEN_APART = {"operator.getitem"}
"""How torch.fx itself takes what a call returns apart."""


def lists_of_operations(source: str) -> Iterator[str]:
    """Yield every collection of operations in a source, and every question whether something is a certain one."""
    for node in ast.walk(ast.parse(source)):
        asked = isinstance(node, ast.Compare) or _name(getattr(node, "func", None)) in ("isinstance", "issubclass")
        items = _items(node)
        found = [_name(item) for item in items if _is_operation(item)]
        names = [str(item.value) for item in items if isinstance(item, ast.Constant) and _is_named(item.value)]
        if found and (asked or isinstance(node, ast.Dict | ast.Set) or len(found) > 1):
            yield f"line {node.lineno}: {', '.join(found)}"  # type: ignore[attr-defined]
        elif len(names) > 1 and not isinstance(node, ast.Compare):
            yield f"line {node.lineno}: {', '.join(names)}"  # type: ignore[attr-defined]


def _items(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return node.elts
    if isinstance(node, ast.Dict):
        return [*filter(None, node.keys), *node.values]
    asked: list[ast.expr] = []
    if isinstance(node, ast.Compare):
        asked = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and _name(node.func) in ("isinstance", "issubclass"):
        asked = node.args[1:]
    return [item for each in asked for item in (each.elts if isinstance(each, ast.Tuple | ast.Set) else [each])]


def _name(node: Any) -> str:
    """Return ``"nn.Conv2d"`` of ``nn.Conv2d``; "" of what is no such name."""
    if isinstance(node, ast.Attribute):
        return f"{owner}.{node.attr}" if (owner := _name(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _is_operation(node: ast.expr) -> bool:
    """Whether a name is one of PyTorch's layers, or what a row is spelled by."""
    name = _name(node)
    first, _, rest = name.partition(".")
    if first == "aten" or name.startswith("torch.ops.aten."):
        return True
    if not rest:
        inner = next((vars(module)[first] for module in _INNER if first in vars(module)), None)
        return isinstance(inner, type) and issubclass(inner, nn.Module)
    value = _SPACES.get(first)
    for part in rest.split("."):
        value = getattr(value, part, None)
    if isinstance(value, type):
        return issubclass(value, nn.Module) and value not in (nn.Module, nn.Sequential)
    return value in OPS.spellings and name not in _TAKEN_APART if callable(value) else False


_INNER = (nn.modules.batchnorm, nn.modules.conv)
"""Where the layers' own base classes stand."""


def _is_named(value: object) -> bool:
    return isinstance(value, str) and (value in OPS.rows or value in OPS.spellings)


FILES = {
    name: path
    for name, path in files().items()
    if not name.startswith("nce_fx.ops") and not any(name == each or name.startswith(f"{each}.") for each in ALLOWED)
}


@pytest.mark.parametrize(
    "source",
    [
        "_NORMS = (nn.BatchNorm2d, nn.LayerNorm)",
        "isinstance(module, nn.Linear)",
        "isinstance(module, (_BatchNorm, int))",
        "_WORDS = {'matmul', 'mm'}",
        "_DROPOUTS = {F.dropout: 1}",
        "node.target is F.pad",
        "node.target in (aten.dropout.default,)",
    ],
)
def test_a_list_is_seen(source):
    assert list(lists_of_operations(source))


@pytest.mark.parametrize(
    "source", ["node.target = F.linear", "isinstance(x, nn.Module)", "node.target is operator.getitem", "{'a': 'add'}"]
)
def test_what_is_no_list_is_none(source):
    assert not list(lists_of_operations(source))


@pytest.mark.long
def test_no_list_of_operations_stands_outside_the_table():
    found = {name: lines for name, path in FILES.items() if (lines := list(lists_of_operations(path.read_text())))}
    assert not found, "ask the row: nce_fx.ops.Op"


def test_what_is_allowed_is_needed():
    for each in ALLOWED:
        owned = [path for name, path in files().items() if name == each or name.startswith(f"{each}.")]
        assert any(list(lists_of_operations(path.read_text())) for path in owned), each


@pytest.mark.parametrize("path", sorted(Path(nce_fx.ops.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_importing_the_rows_draws_no_random_numbers(path):
    """Else what a program draws after its seed would depend on when it first calls nce-fx."""
    before = torch.get_rng_state()
    runpy.run_path(str(path))
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_saves_what_the_table_names():
    for called in filter(callable, OPS.spellings):
        graph = Graph()
        graph.output(graph.call_function(called, (graph.placeholder("x"),)))
        (_, node, _) = graph_of(pickle.loads(pickle.dumps(lines_of(graph)))).nodes
        assert node.target is called
