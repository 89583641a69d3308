"""Run a graph on channel ids, twice with the same rules: once to tie ids, once to check them at new widths.

``Run`` is what rules talk to. ``Tie`` records which ids meet; ``Check`` runs the model at new widths, where a code
is (id, copy), and demands that everything meets as it did: so a resize is proved by the analysis itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import TensorMetadata

from nce_fx.custom import missing, rule_of, rule_of_module
from nce_fx.errors import ChannelError, where
from nce_fx.passes.analysis.channels.labels import (
    FIRST_ID,
    FIXED,
    Ids,
    Label,
    constant,
    core,
    varies,
)
from nce_fx.passes.analysis.channels.reparametrized import WeightNormed, plain_class, weight_normed
from nce_fx.passes.analysis.channels.value import ChannelTensor

Axis = tuple[str, int]

_ASIDE = 1000
"""More steps than one node has."""


@dataclass(frozen=True)
class Pin:
    """Ids whose number cannot change, and why."""

    ids: Ids
    node: str
    reason: str


class IdSpace:
    """Hands out ids, one for each position of each parameter axis, and says whose an id is."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.starts: list[int] = []
        self.sizes: list[int] = []
        self.base: dict[Axis, int] = {}
        self.end = FIRST_ID
        self._frozen: tuple[Ids, Ids] | None = None

    def line(self, axis: Axis, size: int) -> torch.Tensor:
        """Return the ids of an axis, fresh ones at the first call."""
        if axis not in self.base:
            self.base[axis] = self.end
            self.axes.append(axis)
            self.starts.append(self.end)
            self.sizes.append(size)
            self.end += size
            self._frozen = None
        start = self.base[axis]
        return torch.arange(start, start + size)

    def owners(self, ids: Ids) -> Ids:
        """Return the index of the axis each id belongs to; -1 for ids that belong to none."""
        if self._frozen is None:
            self._frozen = (np.array(self.starts, dtype=np.int64), np.array([*self.sizes, 0], dtype=np.int64))
        owners: Ids = np.searchsorted(self._frozen[0], ids, side="right") - 1
        return owners

    def widths(self, owners: Ids) -> Ids:
        """Return the length of each owner's axis (0 for -1)."""
        assert self._frozen is not None
        return self._frozen[1][owners]


@dataclass
class Tensors:
    """The parameters and buffers of a graph by path, tied ones under one path."""

    tensors: dict[str, torch.Tensor]
    canonical: dict[str, str]
    normed: dict[str, WeightNormed]
    """Weights that weight normalization computes, by the path they would have as parameters."""

    @staticmethod
    def of(gm: GraphModule) -> Tensors:
        """Collect the floating point parameters and buffers of a graph module."""
        tensors: dict[str, torch.Tensor] = {}
        canonical: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, tensor in [
            *gm.named_parameters(remove_duplicate=False),
            *gm.named_buffers(remove_duplicate=False),
        ]:
            if tensor.is_floating_point():
                canonical[name] = first.setdefault(id(tensor), name)
                tensors[name] = tensor
        normed = weight_normed(gm)
        for name, weight in normed.items():
            tensors[name], canonical[name] = weight.value, name
        return Tensors(tensors, canonical, normed)


class Run(Interpreter, ABC):
    """Interprets a graph on channel tensors; rules call the abstract methods."""

    def __init__(self, gm: GraphModule, space: IdSpace, tensors: Tensors) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.space = space
        self.tensors = tensors
        self.node: Node | None = None
        self.step = 0
        """How many meetings the current node has had: the two runs meet in the same order."""
        self.asked = 0
        self.computing: set[Node] = set()
        self._shadows: dict[str, nn.Module] = {}

    # What rules say.

    @abstractmethod
    def tie(self, a: Label, b: Label) -> None:
        """Demand that two labels of one shape mean the same channels, element by element."""

    @abstractmethod
    def block(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together."""

    @abstractmethod
    def uniform(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together, and equally often (a mean goes over them)."""

    @abstractmethod
    def rigid(self, label: Label, axis: int) -> None:
        """Demand that the channels along an axis are copied together and never meet a copy (a sum goes over them)."""

    def share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        """A parameter meets the channels along an axis: as ``meet`` says, or as one that all heads share."""
        if any(other != axis for other in self.channel_axes(label)):
            self._share(label, axis, meet)
        else:
            meet()

    @abstractmethod
    def _share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        """The same where channels run along other axes too."""

    def _aside(self, step: int, meet: Callable[[], None]) -> None:
        """Let something meet with steps of its own, so that it may happen later in the first run."""
        before = self.step, self.asked
        self.step = self.asked = _ASIDE * (step + 1)
        meet()
        self.step, self.asked = before

    @abstractmethod
    def pin(self, ids: torch.Tensor, reason: str, at: Node | None = None) -> None:
        """Demand that these channels stay as they are."""

    @abstractmethod
    def produce(self, weight: ChannelTensor, axis: int) -> torch.Tensor:
        """Return the ids of the output channels that an axis of a weight makes."""

    @abstractmethod
    def consume(self, weight: ChannelTensor, axis: int, line: torch.Tensor) -> None:
        """An axis of a weight is summed against these channels: one entry for each, divided among copies."""

    @abstractmethod
    def follow(self, parameter: Any, axis: int, line: torch.Tensor) -> None:
        """An axis of a parameter has one entry for each of these channels."""

    @abstractmethod
    def blocks(self, x: ChannelTensor, label: Label, axis: int, size: int) -> tuple[Label, Ids, Ids]:
        """Channels come in blocks of this size, copied whole; return the label, and each block's (old index, copy)."""

    @abstractmethod
    def grouped(
        self, weight: ChannelTensor, axis: int, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]
    ) -> torch.Tensor:
        """Return the output channels of a grouped op: for each input block, a block of the weight's axis."""

    @abstractmethod
    def grouped_outputs(
        self, weight: ChannelTensor, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]
    ) -> torch.Tensor:
        """Return output channels that no axis of the weight holds: a block of this size for each input block."""

    @abstractmethod
    def cut(self, labels: tuple[Label, ...], rows: bool = False) -> None:
        """An axis was cut, or folded into rows: a producer may have to lay its copies out piece by piece."""

    @abstractmethod
    def original(self, value: Any) -> Any:
        """Return what this value was in the first run."""

    @abstractmethod
    def number(self, values: tuple[Any, ...], label: Label) -> None:
        """Demand that numbers that enter the computation are the same: one computed from a width would change."""

    @abstractmethod
    def decide(self, question: Callable[[], Any]) -> Any:
        """Return the answer that the first run gave: both runs take the same path through the rules."""

    @abstractmethod
    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """A module attribute or function argument follows the widths."""

    @abstractmethod
    def parameter_labels(self, path: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        """Return a label for each axis of a parameter."""

    @abstractmethod
    def ids(self, label: torch.Tensor) -> torch.Tensor:
        """Return the channel ids in a label, without the copies."""

    # What rules ask.

    def computes(self) -> None:
        """The current node does more than move values."""
        if self.node is not None:
            self.computing.add(self.node)

    def varies(self, label: Label, axis: int) -> bool:
        """Say whether ids differ along an axis of a label."""
        return bool(self.decide(lambda: varies(label, axis)))

    def carries(self, label: Label, axis: int) -> bool:
        """Say whether an axis has channels: several, or the one of a producer of one channel."""
        return bool(self.decide(lambda: varies(label, axis) or self._only(label, axis)))

    def _only(self, label: Label, axis: int) -> bool:
        if label.shape[axis] != 1 or not label.numel():
            return False
        owners = self.space.owners(self.ids(core(label)).reshape(-1).numpy())
        return bool((self.space.widths(owners) == 1).all())

    def is_single(self, label: Label, axis: int) -> bool:
        """Say whether an axis has one entry."""
        return bool(self.decide(lambda: label.shape[axis] == 1))

    def channel_axes(self, label: Label) -> tuple[int, ...]:
        """Return the axes along which neighbours are different channels of one producer.

        An axis along which ids differ only because tensors were joined (a class token before patches) is not one.
        A producer of one channel has no neighbours of its own, so its channel counts wherever it is joined.
        """
        axes: tuple[int, ...] = self.decide(lambda: self._channel_axes(label))
        return axes

    def _channel_axes(self, label: Label) -> tuple[int, ...]:
        axes = []
        small = None
        for axis in range(label.dim()):
            if not varies(label, axis):
                continue
            if small is None:
                small = self.ids(core(label)).numpy()
            before = small.take(range(small.shape[axis] - 1), axis)
            after = small.take(range(1, small.shape[axis]), axis)
            differ = before != after
            left, right = before[differ], after[differ]
            owner_left, owner_right = self.space.owners(left), self.space.owners(right)
            single = (self.space.widths(owner_left) == 1) | (self.space.widths(owner_right) == 1)
            if bool(((owner_left == owner_right) & (owner_left >= 0) | single).any()):
                axes.append(axis)
        return tuple(axes)

    def activation(self, label: Label, dtype: torch.dtype = torch.float32) -> ChannelTensor:
        """Wrap a label as a value."""
        return ChannelTensor(self, label.shape, (label,), dtype)

    def message(self) -> str:
        """Return how messages name the node at hand."""
        return "" if self.node is None else where(self.node)

    @staticmethod
    def describe(node: Node) -> str:
        """Return how messages name a node."""
        return where(node)

    # The interpretation.

    def parameter(self, path: str) -> Any:
        """Return the channel tensor that stands for a parameter or floating point buffer."""
        tensor = self.tensors.tensors[path]
        return ChannelTensor(self, self.shape_of(path), None, tensor.dtype, self.tensors.canonical[path], alias=path)

    def shape_of(self, path: str) -> tuple[int, ...]:
        """Return the shape of a parameter in this run."""
        return tuple(self.tensors.tensors[path].shape)

    def run_node(self, n: Node) -> Any:
        """Run one node with its meetings counted from zero."""
        self.node, self.step, self.asked = n, 0, 0
        return super().run_node(n)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Stand a fixed label for a floating point input; pass anything else as it is."""
        assert self.node is not None
        next(self.args_iter, None)
        return self._given(self.node.meta.get("tensor_meta", self.node.meta.get("val")))

    def _given(self, meta: Any) -> Any:
        if hasattr(meta, "shape"):
            return self.activation(constant(FIXED, meta.shape), meta.dtype)
        if isinstance(meta, dict):
            return {key: self._given(value) for key, value in meta.items()}
        return type(meta)(self._given(value) for value in meta) if isinstance(meta, list | tuple) else meta

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Stand labels for a parameter or floating point buffer; pass integers and masks as they are."""
        if target in self.tensors.tensors:
            return self.parameter(target)
        return super().get_attr(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a copy of the module whose parameters are channel tensors."""
        from nce_fx.passes.analysis.channels.rules import module_rule

        shadow = self._shadows.get(target)
        if shadow is None:
            shadow = self._shadows[target] = self._shadow(self.fetch_attr(target), target)
        own = rule_of_module(type(shadow))
        if own is not None:
            return self._by_rule(own, (shadow, *args), kwargs)
        rule = module_rule(shadow)
        return shadow(*args, **kwargs) if rule is None else rule(shadow, *args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function on channel tensors, or the user's own rule for it."""
        own = rule_of(target)
        return super().call_function(target, args, kwargs) if own is None else self._by_rule(own, args, kwargs)

    def _by_rule(self, rule: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply a user's rule; what it stands for computes, whatever the rule does, and returns what was traced."""
        self.computes()
        result = rule(*args, **kwargs)
        assert self.node is not None
        meta = self.node.meta.get("tensor_meta")
        shape = self.original(getattr(result, "shape", None))
        if isinstance(meta, TensorMetadata) and shape != meta.shape:
            raise ChannelError(
                f"the channel rule of {self.message()} returns shape {shape and tuple(shape)}, "
                f"but what it stands for returned {tuple(meta.shape)}"
            )
        return result

    def unknown(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], why: str = "") -> Any:
        """Pin everything that reaches a node that cannot be run on channels; return fixed values of the traced shapes.

        Raises:
            ChannelError: what it returned when it was traced is not known.
        """
        self.step = self.asked = 0
        self.computes()
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        reason = f"{missing(module or node.target)}; it cannot be run on channels: {why}"

        def hold(value: Any) -> Any:
            if isinstance(value, ChannelTensor):
                for label in value.labels:
                    self.number(tuple(value.shape), label)
                    self.pin(self.ids(core(label)), reason)
            return value

        torch.fx.node.map_aggregate((args, kwargs), hold)
        for path, layer in module.named_modules(prefix=str(node.target)) if module is not None else ():
            if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and f"{path}.weight" in self.tensors.tensors:
                transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
                self.pin(self.produce(self.parameter(f"{path}.weight"), int(transposed)), reason)
        if "tensor_meta" not in node.meta:
            raise ChannelError(f"channels cannot be followed through {where(node)}: {why}")
        return self._given(node.meta["tensor_meta"])

    def _shadow(self, module: nn.Module, path: str) -> nn.Module:
        kind = plain_class(module)
        shadow = kind.__new__(kind)
        state = shadow.__dict__
        state.update(module.__dict__)
        state["training"] = False
        known = self.tensors.tensors
        for group in ("_parameters", "_buffers"):
            if state[group]:
                state[group] = {
                    name: self.parameter(full) if (full := f"{path}.{name}") in known else tensor
                    for name, tensor in state[group].items()
                }
        if module._modules:
            state["_modules"] = {
                name: child and self._shadow(child, f"{path}.{name}")
                for name, child in module._modules.items()
                if kind is type(module) or name != "parametrizations"
            }
        if f"{path}.weight" in self.tensors.normed:
            state.pop("weight", None)
            state["_parameters"] = {**state["_parameters"], "weight": self.parameter(f"{path}.weight")}
            state["_forward_pre_hooks"] = {}
        return shadow

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Pin what the model returns: its shape is the user's."""
        assert self.node is not None
        node = self.node
        for source in makers(node):
            # The message names what makes the output, and where.
            self.node, self.step, self.asked = node, 0, 0
            torch.fx.node.map_aggregate(self.env[source], partial(self._pin_output, source))
        self.node = node
        return args[0]

    def _pin_output(self, source: Node, value: Any) -> Any:
        if isinstance(value, ChannelTensor):
            for label in value.labels:
                small = self.ids(core(label))
                if not self._channel_axes(label):
                    owners = self.space.owners(small.reshape(-1).numpy())
                    small = small.reshape(-1)[torch.from_numpy(self.space.widths(owners) == 1)]
                self.pin(small, "it makes an output of the model, whose shape is the user's", source)
        return value

    def execute(self) -> None:
        """Run the whole graph; nothing is computed but labels."""
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        with torch.no_grad():
            self.run(*[None] * len(placeholders), enable_io_processing=False)


def makers(node: Node) -> list[Node]:
    """Return the nodes whose values an output holds, through the named tuples that they are put into."""
    found: dict[Node, None] = {}
    for source in node.all_input_nodes:
        structure = isinstance(source.target, type) and issubclass(source.target, tuple)
        found.update(dict.fromkeys(makers(source) if structure else [source]))
    return list(found)
