"""Shapes of every node, by running the graph on tensors without values where that is possible."""

from collections import Counter
from collections.abc import Set
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from nce_fx.errors import one_line, where
from nce_fx.ops import Absent, Op, Ops, table_of
from nce_fx.ops.left_whole import LEFT_WHOLE, macs_of, macs_of_weights
from nce_fx.ops.work import shape_of
from nce_fx.paths import module_at, tensor_at

_WITHOUT_PRODUCTS = frozenset({"_operator", "builtins", "math"})
"""Packages whose functions are in the table where they compute products."""
_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def propagate_shapes(gm: GraphModule, example_inputs: tuple[Any, ...], ops: Ops | None = None) -> None:
    """Write fx's ``tensor_meta`` on every node; the module's parameters, buffers and mode stay as they are.

    What is computed in what is left whole, since no row of ``ops`` or the graph's own table knows it, is counted
    meanwhile, see `nce_fx.ops.left_whole`.

    Raises:
        Exception: whatever the model raises on these inputs.
    """
    with torch.no_grad():
        try:
            given = map_aggregate(example_inputs, lambda v: v.to("meta") if isinstance(v, torch.Tensor) else v)
            run = _Shapes(gm, "meta", ops)
            run.follow(given)
        except Exception:
            # Some ops have no shapes without values; the real run then says what is wrong, if something is.
            run = _Shapes(gm, None, ops)
            run.follow(example_inputs)
    gm.meta.pop(LEFT_WHOLE, None)
    counted = _in_rows(gm, run.rows, run.unknown)
    left = {path: macs - counted[path] for path, macs in run.left_whole.items()}
    if left := {path: macs for path, macs in left.items() if macs > 0}:
        gm.meta[LEFT_WHOLE] = left


def _in_rows(gm: GraphModule, rows: Ops, paths: Set[str]) -> Counter[str]:
    """Return the MACs of modules left whole that the row of the layer that each derives from counts already."""
    named = {node.name: node for node in gm.graph.nodes} if paths else {}
    found: Counter[str] = Counter()
    for node in named.values():
        if node.op != "call_module" or node.target not in paths:
            continue
        op = rows.nearest(gm, node)
        if op is None or isinstance(op.macs, Absent):
            continue
        for product in op.macs(gm, node).work:
            found[str(node.target)] += prod(
                (tensor_at(gm, axis.source).shape if axis.parameter else shape_of(named[axis.source]))[axis.position]
                for axis in product.axes
            )
    return found


def propagate_again(gm: GraphModule) -> None:
    """Write ``tensor_meta`` anew, for inputs of the shapes that it says; where the graph does not run, it stays."""
    inputs = tuple(_stand_for(node) for node in gm.graph.find_nodes(op="placeholder"))
    with suppress(Exception):
        propagate_shapes(gm, inputs)


def first_misfit(gm: GraphModule) -> str | None:
    """Return in words where a graph does not run, or gives another shape than its ``tensor_meta`` says.

    It is run without values on inputs of its own shapes; ``None`` where all fits.
    """
    run = _Misfits(gm)
    try:
        with torch.no_grad():
            run.follow(tuple(_stand_for(node) for node in gm.graph.find_nodes(op="placeholder")))
    except Exception as error:
        return run.found or f"{where(run.node) if run.node is not None else 'its inputs'}: {one_line(error)}"
    return run.found


def _stand_for(placeholder: Node) -> Any:
    """Return an input without values."""

    def tensor(value: Any) -> Any:
        if isinstance(value, TensorMetadata):
            return torch.empty_strided(tuple(value.shape), value.stride, dtype=value.dtype, device="meta")
        if isinstance(value, dict):
            return {key: tensor(item) for key, item in value.items()}
        return type(value)(map(tensor, value)) if type(value) in (list, tuple) else value

    return tensor(placeholder.meta.get("tensor_meta", placeholder.meta.get("val")))


def without_devices(arguments: Any) -> Any:
    """Return arguments of a call on tensors without values, which no device that it names can hold."""

    def stay(value: Any) -> Any:
        named = isinstance(value, str) and value.partition(":")[0] in _DEVICES
        return torch.device("meta") if named or isinstance(value, torch.device) else value

    return map_aggregate(arguments, stay)


class _Shapes(Interpreter):
    def __init__(self, gm: GraphModule, device: str | None, ops: Ops | None = None) -> None:
        # fx lists all modules of the one it is given by name, which nothing here asks for.
        super().__init__(nn.Module(), graph=gm.graph)
        self.module = gm
        self.ops = table_of(gm)
        self.rows = ops or self.ops
        self.device = device
        self.left_whole: dict[str, int] = {}
        self.unknown: set[str] = set()
        """Modules whose class has no row: all that they compute is counted."""
        self.place: Node | None = None

    def _stand_in(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if self.device is None:
            # What is run with values may write to its own.
            return tensor.detach().clone()
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)

    def _shadow(self, module: nn.Module) -> nn.Module:
        # A graph module makes a class for each of its own, which holds its code.
        shadow = nn.Module.__new__(module.__class__)
        shadow.__dict__ = dict(module.__dict__)
        shadow.__dict__["training"] = False
        shadow.__dict__["_parameters"] = {k: self._stand_in(v) for k, v in module._parameters.items()}
        shadow.__dict__["_buffers"] = {k: self._stand_in(v) for k, v in module._buffers.items()}
        shadow.__dict__["_modules"] = {k: m and self._shadow(m) for k, m in module._modules.items()}
        names = module.__dict__.get("_flat_weights_names")
        if names is not None:
            shadow.__dict__["_flat_weights"] = [shadow.__dict__["_parameters"][name] for name in names]
        return shadow

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        if isinstance(value, nn.Module):
            return self._shadow(value)
        return self._stand_in(value) if isinstance(value, torch.Tensor) else value

    def follow(self, inputs: tuple[Any, ...]) -> None:
        """Run the whole graph: what fx's own loop does, less its progress bar and records."""
        self.args_iter = iter(inputs)
        for node in self.graph.nodes:
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, ()):
                del self.env[dead]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = module_at(self.module, target)
        plain = not module._forward_hooks and not module._forward_pre_hooks and "forward" not in module.__dict__
        op = self.ops.of_module(module) if plain and args and not kwargs else None
        try:
            known = _known(op, module, args)
        except RuntimeError as error:
            raise RuntimeError(f"{target}: {error}") from error
        if known is not None:
            self._count(target, macs_of_weights(self._shadow(module)) if is_parametrized(module) else 0)
            return known
        shadow = self._shadow(module)
        if self.rows.of_module(module) is not None:
            self._count(target, macs_of_weights(shadow))
            return shadow(*args, **kwargs)
        result, macs = macs_of(lambda: shadow(*args, **kwargs))
        self.unknown.add(target)
        self._count(target, macs)
        return result

    def _count(self, target: str, macs: int) -> None:
        if macs:
            self.left_whole[target] = self.left_whole.get(target, 0) + macs

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        op = self.ops.of_call(target) if args else None
        known = None if kwargs or self.device is None else _known(op, None, args)
        if known is not None:
            return known
        package = str(getattr(target, "__module__", None) or "torch").partition(".")[0]
        if self.place is None or self.rows.of_call(target) is not None or package in _WITHOUT_PRODUCTS:
            return super().call_function(target, args, kwargs)
        result, macs = macs_of(lambda: target(*args, **kwargs))
        self._count(self.place.name, macs)
        return result

    def run_node(self, n: Node) -> Any:
        self.place = n
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = getattr(self, n.op)(n.target, args, kwargs)
        if n.op != "output":
            if type(result) is torch.Tensor:
                n.meta["tensor_meta"], n.meta["type"] = _metadata(result), torch.Tensor
                return result
            meta = map_aggregate(result, lambda v: _metadata(v) if isinstance(v, torch.Tensor) else v)
            leaves = tree_leaves(meta, is_leaf=lambda value: isinstance(value, TensorMetadata))
            if any(isinstance(leaf, TensorMetadata) for leaf in leaves):
                n.meta["tensor_meta"] = meta
            elif n.op == "placeholder":
                n.meta["val"] = result
            n.meta["type"] = type(result)
        return result


class _Misfits(_Shapes):
    """Compares the shape of every value with what its node says of it, which stays as it is."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, "meta")
        self.node: Node | None = None
        self.found: str | None = None

    def run_node(self, n: Node) -> Any:
        self.node = n
        args, kwargs = without_devices(self.fetch_args_kwargs_from_env(n))
        result = getattr(self, n.op)(n.target, args, kwargs)
        meta: Any = n.meta.get("tensor_meta")
        told = isinstance(result, torch.Tensor) and isinstance(meta, TensorMetadata)
        if told and self.found is None and tuple(result.shape) != tuple(meta.shape):
            self.found = f"{where(n)} gives {tuple(result.shape)}, not {tuple(meta.shape)}"
        return result


def _known(op: Op | None, module: nn.Module | None, args: tuple[Any, ...]) -> torch.Tensor | None:
    """Return what the row of an operation says that it makes; ``None`` where it has to be run."""
    if op is None or isinstance(op.shape, Absent) or not isinstance(args[0], torch.Tensor):
        return None
    return op.shape(module, args)


def _metadata(tensor: torch.Tensor) -> TensorMetadata:
    return TensorMetadata(tensor.shape, tensor.dtype, False, tensor.stride(), None, False, {})
