"""Modules and parameters by their paths, without what PyTorch spends on each step: passes ask for every node."""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn.utils.parametrize import is_parametrized

from nce_fx.by_mode import evaluating

M = TypeVar("M", bound=nn.Module)


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a path; the same as ``get_submodule``."""
    module: nn.Module | None = root
    for name in path.split("."):
        module = module._modules.get(name) if module is not None else None
    return root.get_submodule(path) if module is None else module


def called(gm: nn.Module, node: Node, kind: type[M]) -> M | None:
    """Return the module that a node calls, where it is of a kind: ``called(gm, node, ActivationQuantizer)``."""
    module = module_at(gm, str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, kind) else None


def run_node(gm: nn.Module, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a node's call gives of these arguments: of a module, a method or a function."""
    if node.op == "call_module":
        return module_at(gm, str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def read_at(gm: GraphModule, path: str) -> Node:
    """Put a node that reads the tensor at a path where the graph's insertion point is: ``conv_weight``."""
    node = gm.graph.create_node("get_attr", path, name=path.replace(".", "_"))
    node.meta["tensor_meta"] = _extract_tensor_metadata(tensor_at(gm, path).detach())
    return node


def operation(gm: GraphModule, node: Node) -> str:
    """Return how people call what a node does: ``Conv2d``, ``add``; ``placeholder`` and ``output`` as fx does."""
    if node.op == "call_module":
        return type(module_at(gm, str(node.target))).__name__
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def free_name(wanted: str, taken: Container[str]) -> str:
    """Return a name that is not taken: ``conv``, else ``conv_1``, ``conv_2``, and so on."""
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    return name


def modules_of(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and every module in it with each of their paths; the first has none."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from modules_of(child, f"{path}.{name}" if path else name)


def parameters_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter with each of its paths."""
    for path, owner in modules_of(module):
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, parameter


def tensor_at(root: nn.Module, path: str) -> Tensor:
    """Return the parameter or buffer at a path, or what a parametrized module computes there."""
    owner, _, name = path.rpartition(".")
    return tensor_of(module_at(root, owner) if owner else root, name)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a module's parameter or buffer, or what is computed there in evaluation.

    In training, to look at a spectral norm's weight changes it.
    """
    if not is_parametrized(module, name):
        return getattr(module, name)  # type: ignore[no-any-return]
    listed: Any = module.parametrizations
    with evaluating(listed[name]):
        return getattr(module, name)  # type: ignore[no-any-return]


def used_by(gm: GraphModule) -> Callable[[str], bool]:
    """Return whether a node of a graph uses what is at a path: by itself, or with the module that it is in."""
    used = {str(node.target) for node in gm.graph.nodes if node.op in ("get_attr", "call_module")}

    def uses(name: str) -> bool:
        while name and name not in used:
            name = name.rpartition(".")[0]
        return bool(name)

    return uses


def unused_state(gm: GraphModule) -> Iterator[str]:
    """Yield the names in the state of a graph that no node of it uses."""
    uses = used_by(gm)
    return (name for name in gm.state_dict(keep_vars=True) if not uses(name))
