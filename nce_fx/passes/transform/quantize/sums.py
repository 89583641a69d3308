"""Sums of integers: which tensors enter an addition and have no quantizer yet.

    branch ---> <branch>_activation_quant (8 bits) ---+
                                                      add ---> ...
    shortcut -> its quantizer, the layer's own or 8 bits +

An accelerator adds two integers with two scales and rounds to a third. So both operands are quantized, to enough bits
that nothing is lost to speak of; what is quantized for a layer already stays as it is.
"""

from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils._pytree import tree_leaves

from nce_fx.ops.additions import activations_of, adds
from nce_fx.ops.liveness import memory_of
from nce_fx.ops.spellings import apart, in_place
from nce_fx.ops.work import descendants, is_floating

SUM_BITS = 8


def sum_operands(gm: GraphModule) -> dict[Node, list[Node]]:
    """Return every activation that enters an addition -> the additions it enters, in execution order."""
    found: dict[Node, list[Node]] = {}
    memory, activations = memory_of(gm), _activations(gm)
    for node in gm.graph.nodes:
        if not adds(node) or not activations.issuperset((node, *activations_of(node))):
            continue
        written = activations_of(node)[0]
        if in_place(node.target) and memory.read_after(written, node):
            continue  # whoever else reads what is written into sees the sum
        for source in activations_of(node):
            # A quantizer keeps what it reads for the backward pass, which what is written into later would spoil.
            if not memory.overwritten_after(source, node):
                found.setdefault(source, []).append(node)
    return found


def add_apart(node: Node) -> None:
    """Let an addition make a tensor of its own: a quantizer's output is not its to change."""
    node.target = apart(node.target)


def _activations(gm: GraphModule) -> set[Node]:
    """Return the values that are tensors of real numbers which depend on the model's input, and no masks.

    A mask is made of sizes, whole numbers or truths without a weight, as ``ids == 0`` and ``x > 0``, and may hide by
    what is not finite.
    """
    nodes, given = gm.graph.nodes, gm.graph.find_nodes(op="placeholder")
    real = [node for node in nodes if _is_real(node)]
    weights = [node for node in nodes if node.op in ("call_module", "get_attr")]
    weighed = descendants(nodes, given) & descendants(real, weights)
    return set(filter(is_floating, weighed | descendants(real, filter(is_floating, given))))


def _is_real(node: Node) -> bool:
    """Whether a node's value is a tensor of real numbers, or has some inside."""
    held = tree_leaves(node.meta.get("tensor_meta"), is_leaf=lambda value: isinstance(value, TensorMetadata))
    return any(isinstance(each, TensorMetadata) and each.dtype.is_floating_point for each in held)
