"""What holds a pass to its word: its input is as it was, its result is sound, and whether it changed anything is seen.

A pass is written by anyone, so nothing of this is taken on trust.
"""

import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from nce_fx.errors import PassError
from nce_fx.paths import modules_of

ANALYSIS = "_channel_analysis"
"""Under which a graph keeps what was found of it: nothing that a pass changes, and a copy begins without."""
_OWN = frozenset(vars(nn.Module())) - {"_is_full_backward_hook"} | {"_graph", "_code", "meta", ANALYSIS}
"""What every module has, tables of hooks among it, and what is looked at by itself."""
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.Size)
_LARGE, _BLOCK = 2**20, 2**12


class Snapshot:
    """What a graph was at one moment: its nodes, its modules with their settings, and check sums of its tensors."""

    def __init__(self, gm: GraphModule) -> None:
        self.nodes = [_node(node) for node in gm.graph.nodes]
        self.modules = [(path, *_module(module)) for path, module in modules_of(gm)]
        self._sums: dict[int, int] = {}
        self.tensors = [(path, _kind(t), self._sum(t)) for path, t in tensors_of(gm)]

    def difference(self, other: "Snapshot") -> str | None:
        """Return what differs, in words: ``the node relu``, ``the values of conv.weight``; ``None`` for nothing."""
        if self.nodes != other.nodes:
            changed = (new[0] for new, old in zip(other.nodes, self.nodes, strict=False) if new != old)
            return f"the node {next(changed, 'at the end')}"
        if self.modules != other.modules:
            new = next((m for m in other.modules if m not in self.modules), None)
            return f"the settings of {(new and new[0]) or 'the whole'}"
        if [t[:2] for t in self.tensors] != [t[:2] for t in other.tensors]:
            return "parameters or buffers"
        changed = (new[0] for new, old in zip(other.tensors, self.tensors, strict=True) if new != old)
        name = next(changed, None)
        return None if name is None else f"the values of {name}"

    def _sum(self, tensor: Tensor) -> int:
        if id(tensor) not in self._sums:
            self._sums[id(tensor)] = checksum(tensor)
        return self._sums[id(tensor)]


def check_sound(gm: GraphModule, name: str) -> None:
    """Check that a graph is well formed and that its code is its graph's.

    Raises:
        PassError: it is not; names the pass.
    """
    try:
        gm.graph.lint()
    except Exception as error:
        raise PassError(f"pass {name} made a graph that is not sound: {error}") from error
    if gm.graph.python_code("self").src != gm.code:
        raise PassError(f"pass {name} changed the graph and left the old code: call recompile() before it is returned")


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every tensor of a module by every path: parameters, buffers, and attributes that are plain tensors."""
    found = []
    for path, owner in modules_of(module):
        for values in (owner._parameters, owner._buffers, vars(owner)):
            found += [
                (f"{path}.{name}" if path else name, value)
                for name, value in values.items()
                if isinstance(value, Tensor)
            ]
    return found


def plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the attributes of a module that are plain data: ``("eps", 1e-05)``."""
    return [(name, value) for name, value in vars(module).items() if name not in _OWN and _is_plain(value)]


def checksum(tensor: Tensor) -> int:
    """Return a number that changes with the values of a tensor, whoever changed them: ``.data`` counts no versions.

    Of a large one it is that of the sums of its blocks of 4 KB, which is as fast as memory is read.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or is_lazy(tensor) or tensor.is_meta or not tensor.numel():
        return 0
    if tensor.layout != torch.strided:
        return 0
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if len(flat) < _LARGE:
        return zlib.crc32(flat.numpy().data)
    end = len(flat) // _BLOCK * _BLOCK
    sums = flat[:end].view(torch.int64).reshape(-1, _BLOCK // 8).sum(1)
    return zlib.crc32(flat[end:].numpy().data, zlib.crc32(sums.numpy().data))


def _node(node: Any) -> tuple[Any, ...]:
    meta = node.meta.get("tensor_meta")
    shape = (meta.shape, meta.dtype) if hasattr(meta, "shape") else None
    return node.name, node.op, node.target, repr(node.args), repr(node.kwargs), shape


def _module(module: nn.Module) -> tuple[Any, ...]:
    kind = GraphModule if isinstance(module, GraphModule) else type(module)
    return kind, module.training, repr(plain_attributes(module))


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(item, _PLAIN) for item in value))


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return () if is_lazy(tensor) else (tuple(tensor.shape), tensor.dtype, tensor.requires_grad, type(tensor))
