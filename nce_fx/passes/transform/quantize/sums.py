"""Sums of integers: which tensors enter an addition and have no quantizer yet.

    branch ---> <branch>_activation_quant (8 bits) ---+
                                                      add ---> ...
    shortcut -> its quantizer, the layer's own or 8 bits +

An accelerator adds two integers with two scales and rounds to a third. So both operands are quantized, to enough bits
that nothing is lost to speak of; what is quantized for a layer already stays as it is.
"""

from torch.fx import GraphModule, Node

from nce_fx.ops.liveness import memory_of
from nce_fx.ops.spellings import apart, in_place
from nce_fx.ops.work import ancestors, is_floating
from nce_fx.passes.transform.quantize.quantizable_layers import activations_of, adds

SUM_BITS = 8


def sum_operands(gm: GraphModule) -> dict[Node, list[Node]]:
    """Return every activation that enters an addition -> the additions it enters, in execution order."""
    found: dict[Node, list[Node]] = {}
    memory = memory_of(gm)
    for node in gm.graph.nodes:
        if not adds(node) or not all(_is_activation(source) for source in (node, *activations_of(node))):
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


def _is_activation(node: Node) -> bool:
    """Whether a value is a tensor of real numbers that depends on the model's input, and is no mask.

    A mask is made of whole numbers or truths without a weight, as ``ids == 0``, and may hide by what is not finite.
    """
    before = list(ancestors([node]))
    given = [source for source in before if source.op == "placeholder"]
    weighed = any(source.op in ("call_module", "get_attr") for source in before)
    return is_floating(node) and any(weighed or is_floating(source) for source in given)
