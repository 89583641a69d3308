"""What both ways out of PyTorch start from: the graph as a `torch.export` program, and inputs to try it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from nce_fx.errors import ArtifactError, ExportError, one_line
from nce_fx.signature import example_of, signature_of


def program(gm: GraphModule, inputs: tuple[Any, ...], *, dynamic: bool) -> ExportedProgram:
    """Return the graph as PyTorch exports it; it raises whatever it stumbles over.

    Args:
        gm: the graph, in evaluation mode.
        inputs: an example; with ``dynamic`` of at least two samples.
        dynamic: whether the first axis of every input is a batch of any size.
    """
    batch = Dim("batch")
    shapes = tuple({0: batch} if isinstance(value, Tensor) else None for value in inputs) if dynamic else None
    with torch.no_grad():
        return torch.export.export(gm, inputs, dynamic_shapes=shapes, strict=False)


def share_a_batch(inputs: tuple[Any, ...]) -> bool:
    """Return whether all inputs have a first axis, of one size."""
    return all(value.dim() > 0 and value.shape[0] == inputs[0].shape[0] for value in inputs)


def reason(error: BaseException) -> str:
    """Return the innermost cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def example(gm: GraphModule, batch: int | None = None) -> tuple[Any, ...]:
    """Return random inputs of the traced shapes, always the same; ``batch`` replaces the size of the first axis.

    Raises:
        ExportError: the graph does not say what it takes.
    """
    try:
        inputs = example_of(signature_of(gm))
    except ArtifactError as error:
        raise ExportError(str(error)) from error
    if not all(isinstance(value, Tensor) for value in inputs):
        raise ExportError("the model takes something that is no tensor: ONNX needs a model of tensors alone")
    source = torch.Generator().manual_seed(0)
    return tuple(_random(value, batch, source) for value in inputs)


def _random(value: Tensor, batch: int | None, source: torch.Generator) -> Tensor:
    shape = list(value.shape)
    if batch is not None and shape:
        shape[0] = batch
    if value.is_floating_point():
        return torch.randn(shape, generator=source).to(value.dtype)
    return torch.randint(2, shape, generator=source).to(value.dtype)
