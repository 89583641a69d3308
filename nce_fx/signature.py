"""What a graph takes, as JSON: the shape and type of every input tensor, in the structure the model wants them in.

{"tensor": [1, 3, 32, 32], "dtype": "float32"}    a tensor
{"list": [...]}, {"tuple": [...]}, {"dict": {...}}  containers
{"tuple": [...], "fields": ["image", "gain"]}      one whose items have names
{"value": 0.5}                                     a number, a string, or null

An input that the model was given by name has that, too: ``{"tensor": ..., "dtype": ..., "name": "mask"}``.
"""

import math
from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.passes.shape_prop import TensorMetadata

from nce_fx.errors import ArtifactError

MOST_VALUES = 1 << 28
"""Of an example input: a stranger's folder may say any size."""


def signature(inputs: Mapping[str, Any], *, by_name: bool = False) -> list[Any] | None:
    """Return the signature of inputs, or ``None`` where JSON cannot hold it; `nce_fx.trace` keeps it with the graph."""
    try:
        return [input_signature(value) | ({"name": name} if by_name else {}) for name, value in inputs.items()]
    except ArtifactError:
        return None


def signature_of(gm: GraphModule) -> list[Any]:
    """Return the signature of a graph's inputs: as it was traced, or as its placeholders say.

    Raises:
        ArtifactError: an input has no recorded shape, or is of a type that cannot be kept.
    """
    if gm.meta.get("inputs") is not None:
        return list(gm.meta["inputs"])
    inputs = []
    for node in gm.graph.find_nodes(op="placeholder"):
        if node.meta.get("tensor_meta") is None:
            raise ArtifactError(f"input {node.name} has no shape to keep: trace with tensors, numbers and containers")
        inputs.append(input_signature(node.meta["tensor_meta"]))
    return inputs


def input_signature(value: Any) -> dict[str, Any]:
    """Return the signature of one input: a tensor, fx's metadata of one, a container of them, or a plain value.

    Raises:
        ArtifactError: a value that JSON cannot hold.
    """
    if isinstance(value, (torch.Tensor, TensorMetadata)):
        return {"tensor": [int(size) for size in value.shape], "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"dict": {str(key): input_signature(item) for key, item in value.items()}}
    if isinstance(value, list):
        return {"list": [input_signature(item) for item in value]}
    if isinstance(value, tuple):
        names = {"fields": list(value._fields)} if hasattr(value, "_fields") else {}
        return {"tuple": [input_signature(item) for item in value], **names}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ArtifactError(f"an input of type {type(value).__name__} cannot be kept: use tensors, numbers and containers")


def example_of(signature: list[Any]) -> tuple[Any, ...]:
    """Return inputs of a signature: numbers of the right shapes and types, the same ones each time.

    Where they are fractions they are random, and each input is another, so that two graphs that differ do so in what
    they return; whole numbers are zeros, which every table has a row for.

    Raises:
        ArtifactError: not a signature.
    """
    try:
        source = torch.Generator().manual_seed(0)
        return tuple(_example(item, source) for item in signature)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"not the signature of a model's inputs: {signature!r}"[:300]) from error


def call_of(signature: list[Any]) -> Any:
    """Return example inputs as the model takes them: by name where they were given so, else in order.

    Raises:
        ArtifactError: not a signature.
    """
    values = example_of(signature)
    names = [item.get("name") for item in signature]
    return dict(zip(names, values, strict=True)) if names and all(names) else values


def _example(item: dict[str, Any], source: torch.Generator) -> Any:
    if "tensor" in item:
        dtype = getattr(torch, item["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(item["dtype"])
        if math.prod(item["tensor"]) > MOST_VALUES:
            raise ValueError(item["tensor"])
        if not (dtype.is_floating_point or dtype.is_complex):
            return torch.zeros(item["tensor"], dtype=dtype)
        return torch.randn(item["tensor"], generator=source).to(dtype)
    if "dict" in item:
        return {key: _example(value, source) for key, value in item["dict"].items()}
    if "list" in item:
        return [_example(value, source) for value in item["list"]]
    if "tuple" in item:
        values = tuple(_example(value, source) for value in item["tuple"])
        return namedtuple("Inputs", item["fields"])(*values) if "fields" in item else values
    return item["value"]
