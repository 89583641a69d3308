"""A module called with a weight that is computed outside of it: how a layer of the user's own reads a quantized weight.

    weight -> middle_weight_quant -> call_with_weight(x, <quantized weight>, middle)

The module stays where it is, and so does its parameter: the call alone puts another value in the parameter's place.
"""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node


def call_with_weight(input: Any, weight: Tensor, module: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """Return ``module(input, *args, **kwargs)`` with ``weight`` in the place of its parameter ``name``."""
    return functional_call(module, {name: weight}, (input, *args), kwargs)


def module_called(node: Node) -> str | None:
    """Return the path of the module that a node calls, with a weight from outside or its own; else ``None``."""
    if node.op == "call_module":
        return str(node.target)
    if node.target is call_with_weight and isinstance(node.args[2], Node):
        return str(node.args[2].target)
    return None
