"""Where gradients go: what a model computes under ``torch.no_grad()`` is constant in its graph, too.

fx's graphs hold no such regions. What is computed in one is marked as it is traced, and what leaves the region is
detached. A function that defines its own gradient stays whole, for inside of it there is none.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import TensorMetadata

from nce_fx.ops.liveness import overwritten
from nce_fx.paths import tensor_at

MARK = "without_gradient"
"""In the ``meta`` of a node that was made in such a region, until they are seen to."""


@dataclass(frozen=True)
class OwnGradient:
    """A ``torch.autograd.Function``, as a graph calls it."""

    function: type[torch.autograd.Function]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    @property
    def __name__(self) -> str:
        """What the graph calls it."""
        return self.function.__name__


def own_gradients(functions: Iterable[Any]) -> frozenset[str]:
    """Return the names of the functions of autograd that somebody defined."""
    kind = torch.autograd.function.BackwardCFunction
    return frozenset(type(each).__name__.removesuffix("Backward") for each in functions if isinstance(each, kind))


def mark(node: Node, without_gradient: bool = True) -> None:
    """Note of a node whether it was made in a region without gradients."""
    node.meta[MARK] = without_gradient


def detach_marked(gm: GraphModule) -> bool:
    """Detach what leaves regions without gradients, and what is written to a tensor there; say whether there was any.

    The nodes have their shapes.
    """
    # In the order of the graph, so that the same model is traced to the same names.
    inside = dict.fromkeys(node for node in gm.graph.nodes if node.meta.pop(MARK, False))
    learning = _learning(gm) if inside else frozenset()
    constants: dict[Node, Node] = {}

    def detach(node: Node, users: Iterable[Node]) -> None:
        if node not in constants:
            with gm.graph.inserting_after(node):
                constants[node] = gm.graph.call_method("detach", (node,))
            constants[node].stack_trace = node.stack_trace
        for user in users:
            user.replace_input_with(node, constants[node])

    for node in inside:
        written = overwritten(gm, node)
        for source in node.all_input_nodes if written else ():
            if source in learning and source not in written:
                detach(source, [node])
        outside = [user for user in node.users if user not in inside and user is not constants.get(node)]
        if node in learning and outside:
            detach(node, outside)
    return bool(constants)


def _learning(gm: GraphModule) -> frozenset[Node]:
    """Return the nodes whose values gradients go through to a parameter."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        if node.op == "call_module":
            own = any(True for _ in gm.get_submodule(str(node.target)).parameters())
        else:
            own = node.op == "get_attr" and isinstance(tensor_at(gm, str(node.target)), nn.Parameter)
        if (own or any(source in found for source in node.all_input_nodes)) and _has_gradient(node):
            found.add(node)
    return frozenset(found)


def _has_gradient(node: Node) -> bool:
    meta = node.meta.get("tensor_meta")
    whole = isinstance(meta, TensorMetadata) and not (meta.dtype.is_floating_point or meta.dtype.is_complex)
    return isinstance(meta, tuple) and not whole


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Run with gradients, but keep none of the values that a backward pass would need: none will follow."""
    nothing = torch.empty(0)
    with torch.enable_grad(), saved_tensors_hooks(lambda _: nothing, lambda kept: kept):
        yield


def reached(model: nn.Module, outputs: Iterable[Tensor]) -> tuple[frozenset[str] | None, list[Any]]:
    """Return the names of the parameters that gradients of these outputs reach; ``None`` where it cannot be told.

    Of a tied one it is all names: which comes first may be another one in a graph. The functions of the graph come with
    them, for `let_go`.
    """
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    ahead = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    found: set[str] = set()
    seen = set(ahead)
    while ahead:
        function = ahead.pop()
        variable = getattr(function, "variable", None)
        if variable is not None and id(variable) in names:
            found |= names[id(variable)]
        if "Checkpoint" in function.name():
            # It runs its part of the model in the backward pass.
            return None, list(seen)
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                ahead.append(following)
    return frozenset(found), list(seen)


def let_go(functions: list[Any]) -> None:
    """Free a graph of gradients, whose outputs are gone, one function at a time, the last one first.

    Each holds those before it twice, as its inputs and by what it has kept for the backward pass; PyTorch frees the one
    in a loop and the other in a recursion, which needs more stack than there is from some 15,000 layers in a row on.
    """
    functions.sort(key=lambda function: function._sequence_nr())
    while functions:
        functions.pop()
