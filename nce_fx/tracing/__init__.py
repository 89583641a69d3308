"""Model -> GraphModule with shapes, by whichever way takes the model.

    fx               torch.fx's symbolic tracing: keeps the user's modules, and a batch of any size
    export           torch.export, its ops put back into the modules they came from
    fx with leaves   symbolic tracing that leaves the modules it cannot enter whole

The way is in ``gm.meta["traced"]``, in words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from nce_fx.errors import TraceError, one_line
from nce_fx.paths import modules_of
from nce_fx.pipeline.history import HISTORY, begin
from nce_fx.signature import signature
from nce_fx.tracing.exported import evaluating, export_graph
from nce_fx.tracing.shapes import propagate_shapes
from nce_fx.tracing.symbolic import UntraceableError, symbolic_graph

__all__ = ["trace"]


def trace(model: nn.Module, example_inputs: tuple[Any, ...]) -> GraphModule:
    """Return the graph of a model, in the model's own mode, with fx's ``tensor_meta`` on its nodes.

    The graph shares the model's parameters; ``gm.meta["traced"]`` says how it was made.

    Raises:
        TraceError: no way takes the model, or it does not take the example inputs.
    """
    if not isinstance(example_inputs, tuple):
        example_inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    if isinstance(model, GraphModule):
        return _with_shapes(model, model, example_inputs, str(model.meta.get("traced", "given as a graph")))
    _check_names(model)
    failures: list[str] = []
    try:
        gm = symbolic_graph(model, len(example_inputs))
        if not _hides_weights(gm):
            return _with_shapes(gm, model, example_inputs, "fx")
        failures.append("fx: a function it does not enter holds weights")
    except UntraceableError as error:
        gm = None
        failures.append(f"fx: {error}")
    try:
        return _with_shapes(export_graph(model, example_inputs), model, example_inputs, "export")
    except _UnsuitableError:
        raise
    except Exception as error:
        failures.append(f"export: {one_line(error, libraries=True)}")
    if gm is not None:
        return _with_shapes(gm, model, example_inputs, "fx")
    try:
        gm, leaves = symbolic_graph(model, len(example_inputs), enter=False), ""
    except UntraceableError as error:
        _check_takes(model, example_inputs)
        if str(error) not in failures[0]:
            failures.append(f"fx with leaves: {error}")
        parts = ", ".join(name for name, _ in model.named_children()) or "none"
        raise TraceError(
            f"{type(model).__name__} cannot be traced as one graph: write what stops it so that no tensor's values "
            f"decide what runs, or give a part of the model alone ({parts}). {'; '.join(failures)}"
        ) from error
    leaves = ", ".join(gm.meta.get("leaves", ()))
    return _with_shapes(gm, model, example_inputs, f"fx with leaves: {leaves}")


class _UnsuitableError(TraceError):
    """The example inputs do not fit the model: no other way of tracing will help."""


def _check_names(model: nn.Module) -> None:
    """Check that no part has a name that torch.fx's graphs have for something of their own."""
    taken = {"code", "graph", "meta", *vars(GraphModule)}
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in taken:
            raise TraceError(
                f"{type(model).__name__}.{name} cannot be traced: torch.fx's graphs have a {name!r} of their own; "
                "rename it, or put the model into an nn.Sequential"
            )


def _check_takes(model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    """Check that the model itself takes the example inputs."""
    try:
        with evaluating(model), torch.no_grad():
            model(*example_inputs)
    except Exception as error:
        raise _unsuitable(model, example_inputs, error) from error


def _unsuitable(model: nn.Module, example_inputs: tuple[Any, ...], error: Exception) -> TraceError:
    shapes = ", ".join("x".join(map(str, v.shape)) for v in example_inputs if isinstance(v, torch.Tensor))
    return _UnsuitableError(
        f"{type(model).__name__} does not take the example input ({shapes}): {one_line(error, libraries=True)}"
    )


def _with_shapes(gm: GraphModule, model: nn.Module, example_inputs: tuple[Any, ...], way: str) -> GraphModule:
    try:
        propagate_shapes(gm, example_inputs)
    except Exception as error:
        raise _unsuitable(model, example_inputs, error) from error
    gm.meta["traced"] = way
    gm.meta["inputs"] = signature(example_inputs)
    _take_modes(gm, model)
    if HISTORY not in gm.meta:
        begin(gm, model)
    return gm


def _take_modes(gm: GraphModule, model: nn.Module) -> None:
    """Give what tracing made the mode of what it stands for; what the graph shares with the model keeps its own."""
    own = dict(modules_of(model))
    for path, module in modules_of(gm):
        original = own.get(path, model)
        if module is not original:
            module.training = original.training


def _hides_weights(gm: GraphModule) -> bool:
    """Whether a function outside torch, which the tracer did not enter, is given parameters."""

    def foreign(node: Node) -> bool:
        package = module_of(node).partition(".")[0]
        return node.op == "call_function" and package not in ("torch", "_operator", "builtins", "math")

    return any(
        foreign(node) and module_of(node) and any(a.op == "get_attr" for a in node.all_input_nodes)
        for node in gm.graph.nodes
    )


def module_of(node: Node) -> str:
    """Return the name of the module that defines a function node's target, or an empty string."""
    return str(getattr(node.target, "__module__", None) or "")
