"""Where activations are added up: the sums of residual networks."""

from torch.fx import Node

from nce_fx.ops.table import OPS


def activations_of(node: Node) -> list[Node]:
    """Return what a node reads that is no parameter or buffer."""
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def adds(node: Node) -> bool:
    """Whether a node adds two activations."""
    return (
        node.op in ("call_function", "call_method")
        and OPS.of_call(node.target) is OPS["add"]
        and len(activations_of(node)) == 2
    )
