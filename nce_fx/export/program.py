"""What both ways out of PyTorch start from: the graph as a `torch.export` program, and inputs to try it on."""

from dataclasses import is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_map

from nce_fx.by_mode import is_by_mode, leave_evaluation
from nce_fx.copying import shallow_copy
from nce_fx.errors import ArtifactError, ExportError, one_line
from nce_fx.signature import example_of, signature_of

Dynamic = Literal["no", "batch", "sizes"]
"""Which axes of the inputs are of any size: none, the first, or that and height and width, of images."""


def program(gm: GraphModule, inputs: tuple[Any, ...], *, dynamic: Dynamic) -> ExportedProgram:
    """Return the graph as PyTorch exports it; it raises whatever it stumbles over.

    Args:
        gm: the graph, in evaluation mode.
        inputs: an example; with ``dynamic`` of at least two samples.
        dynamic: which axes are of any size; a height or width that the graph fixes stays as it is.
    """
    _check_outputs(gm)
    batch = Dim("batch")
    further = dict.fromkeys((2, 3), Dim.AUTO) if dynamic == "sizes" else {}

    if any(is_by_mode(node) for node in gm.graph.nodes):
        gm = shallow_copy(gm)
        leave_evaluation(gm)

    def axes(value: Any) -> dict[int, Any] | None:
        return {0: batch, **(further if value.dim() == 4 else {})} if isinstance(value, Tensor) else None

    shapes = tree_map(axes, inputs) if dynamic != "no" else None
    with torch.no_grad():
        return torch.export.export(gm, inputs, dynamic_shapes=shapes, strict=False)


def _check_outputs(gm: GraphModule) -> None:
    """Refuse objects of a class that PyTorch's exporter does not know, such as a dataclass of one's own."""
    for value in tree_leaves(gm.graph.output_node().args):
        made = value.target if isinstance(value, Node) and value.op == "call_function" else None
        if is_dataclass(made) and made not in SUPPORTED_NODES:
            raise ExportError(f"the model returns {made.__name__}, a class of its own: return a tuple or a dict")


def share_a_batch(inputs: tuple[Any, ...]) -> bool:
    """Return whether all inputs have a first axis, of one size."""
    tensors = tree_leaves(inputs)
    return all(value.dim() > 0 and value.shape[0] == tensors[0].shape[0] for value in tensors)


def takes_any_batch(gm: GraphModule) -> bool:
    """Whether there is a batch that could be of another size: not so of a graph of nodes and the edges between them."""
    return share_a_batch(example(gm))


def other_sizes(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs with images of another height and width: 16x16 becomes 32x48."""
    grown: tuple[Any, ...] = tree_map(
        lambda value: value.repeat(1, 1, 2, 3) if isinstance(value, Tensor) and value.dim() == 4 else value, inputs
    )
    return grown


def takes_other_sizes(gm: GraphModule, inputs: tuple[Any, ...]) -> bool:
    """Whether a graph gives images for images, and larger ones for larger ones."""
    try:
        with torch.no_grad():
            plain, large = (tree_leaves(gm(*given)) for given in (inputs, other_sizes(inputs)))
    except Exception:  # whatever a graph of fixed sizes stumbles over
        return False
    pairs = [(a, b) for a, b in zip(plain, large, strict=True) if isinstance(a, Tensor) and a.dim() == 4]
    return bool(pairs) and all(a.shape[2:] != b.shape[2:] for a, b in pairs)


def reason(error: BaseException) -> str:
    """Return the innermost cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def example(gm: GraphModule, batch: int | None = None) -> tuple[Any, ...]:
    """Return random inputs of the traced shapes, always the same; ``batch`` replaces the size of the first axis.

    Tensors in lists, tuples and dicts are inputs of the file one by one.

    Raises:
        ExportError: the graph does not say what it takes, or its inputs share no batch that could be of another size.
    """
    try:
        inputs = example_of(signature_of(gm))
    except ArtifactError as error:
        raise ExportError(str(error)) from error
    if not all(isinstance(value, Tensor) for value in tree_leaves(inputs)):
        raise ExportError("the model takes something that is no tensor: ONNX needs a model of tensors alone")
    if batch is not None and not share_a_batch(inputs):
        shapes = " and ".join("x".join(map(str, value.shape)) or "one number" for value in tree_leaves(inputs))
        raise ExportError(f"the model takes {shapes}, which share no first axis: leave the size of the batch out")
    source = torch.Generator().manual_seed(0)
    made: tuple[Any, ...] = tree_map(lambda value: _random(value, batch, source), inputs)
    return made


def _random(value: Tensor, batch: int | None, source: torch.Generator) -> Tensor:
    shape = list(value.shape)
    if batch is not None and shape:
        shape[0] = batch
    if value.is_floating_point():
        return torch.randn(shape, generator=source).to(value.dtype)
    return torch.randint(2, shape, generator=source).to(value.dtype)
