"""Run a graph on channel ids, twice with the same rules: once to tie ids, once to check them at new widths.

``ChannelInterpreter`` interprets the graph; ``Tie`` records which ids meet; ``Replay`` goes the same way at new widths,
where (id, copy) stands in the place of an id, and ``Check`` demands that everything meets as it did: so a resize is
proved by the analysis itself.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils._pytree import tree_leaves

from nce_fx.by_mode import ByMode, is_by_mode
from nce_fx.errors import ChannelError, one_line, where
from nce_fx.ids.labels import FIXED, NEUTRAL, Label, along, constant, core, line_of
from nce_fx.ids.rule_interface import NotFollowedError, RuleInterface
from nce_fx.ids.space import IdSpace, ParameterAxis, Tensors, plain_class
from nce_fx.ids.value import ChannelLayer, ChannelTensor, activation
from nce_fx.ops import Absent, Op, WeightLayout, table_of
from nce_fx.ops.given_weight import call_with_weight, module_called
from nce_fx.ops.liveness import overwritten
from nce_fx.ops.rules import elementwise
from nce_fx.ops.rules.calls import missing
from nce_fx.passes.analysis.channels import dispatch
from nce_fx.passes.analysis.channels.dispatch import layer_rule
from nce_fx.passes.analysis.channels.merged import Merged
from nce_fx.quantizers.base import Quantizer

_OWN_MODULES: dict[type[nn.Module], Any] = {Quantizer: elementwise.activation_layer, ByMode: elementwise.by_mode}


class ChannelInterpreter(RuleInterface, Interpreter):
    """Interprets a graph on channel tensors."""

    def __init__(self, gm: GraphModule, space: IdSpace, tensors: Tensors) -> None:
        # fx lists all modules of the one it is given by name, which nothing here asks for.
        super().__init__(nn.Module(), garbage_collect_values=False, graph=gm.graph)
        self.module = gm
        self.ops = table_of(gm)
        self.space = space
        self.tensors = tensors
        self.node: Node | None = None
        self.step = 0
        self.asked = 0
        self.rule = self.within = ""
        self.computing: set[Node] = set()
        self._shadows: dict[str, nn.Module] = {}
        self._axes = {}
        self._read: tuple[Label, int, torch.Tensor] | None = None
        """The last line that was asked for: a norm and the convolution after it ask for one."""
        self.writes = any(overwritten(gm, node) for node in gm.graph.nodes if node.op != "call_module")
        """Whether the graph writes to something, which must be none of the model's own tensors."""
        self.rules: dict[str, Any] = {}
        """The rules of the plain layers by path; ``None`` for any other module."""
        self.merged: dict[Node, Merged] = {}
        """The nodes that compute weights from several parameters, which no rule follows."""

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
        if n in self.merged:
            return self.merged_value(n)
        args, kwargs = self.arguments(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def merged_value(self, n: Node) -> Any:
        """Stand labels for what a merged weight is computed by, each axis that of a parameter."""
        merged = self.merged[n]
        value = merged.values[n]
        if not isinstance(value, torch.Tensor):
            return value
        lines = {k: self.line_of_axis(own[0]) for k, own in enumerate(merged.follows[n]) if own}
        shape = [lines[k].numel() if k in lines else size for k, size in enumerate(value.shape)]
        labels = tuple(along(line, k, shape) for k, line in lines.items()) or (constant(NEUTRAL, shape),)
        return ChannelTensor(self, shape, labels, value.dtype)

    def followed(self, value: Any, axis: int) -> tuple[ParameterAxis, ...]:
        """Return the axes of parameters that an axis of a merged weight goes with; of no other value there are any."""
        node = next((n for n in self.here.all_input_nodes if n in self.merged and self.env[n] is value), None)
        return self.merged[node].follows[node][axis] if node is not None else ()

    def line_of_axis(self, axis: ParameterAxis) -> torch.Tensor:
        """Return the ids along an axis of a parameter."""
        path, k = axis
        return line_of(self.parameter_labels(path, self.shape_of(path))[k], k)

    def arguments(self, n: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a node, with values in the place of nodes."""
        args: Any = torch.fx.node.map_arg(n.args, self.env.__getitem__)
        kwargs: Any = torch.fx.node.map_arg(n.kwargs, self.env.__getitem__) if n.kwargs else {}
        return args, kwargs

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Stand a fixed label for a floating point input; pass anything else as it is."""
        return self._given(self.here.meta.get("tensor_meta", self.here.meta.get("val")))

    def place_of(self, value: Any) -> int | str | None:
        """Return which argument of the current node a value is, by its position or its name; ``None`` for no one."""
        given: list[tuple[int | str, Any]] = [*enumerate(self.here.args), *self.here.kwargs.items()]
        return next((k for k, a in given if isinstance(a, Node) and self.env.get(a) is value), None)

    def place_among(self, data: tuple[ChannelTensor, int] | None) -> int | None:
        """Return which argument of the current node a value is, counted through lists, where the node multiplies it by
        a weight and does nothing else; else ``None``."""
        node = self.here
        if node.op == "call_module":
            alone = self.rules.get(str(node.target)) is not None
        else:
            op = self.ops.of_call(node.target)
            alone = op is not None and op.kind in ("weighted", "product")
        if data is None or not alone:
            return None
        arguments = enumerate(tree_leaves(node.args))
        return next((k for k, a in arguments if isinstance(a, Node) and self.env.get(a) is data[0]), None)

    def _given(self, meta: Any) -> Any:
        if hasattr(meta, "shape"):
            return activation(self, constant(FIXED, meta.shape), meta.dtype)
        if isinstance(meta, dict):
            return {key: self._given(value) for key, value in meta.items()}
        if isinstance(meta, tuple) and hasattr(meta, "_fields"):
            return type(meta)(*map(self._given, meta))
        return type(meta)(self._given(value) for value in meta) if isinstance(meta, list | tuple) else meta

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Stand labels for a parameter or floating point buffer; pass integers and masks as they are."""
        if target in self.tensors.tensors:
            return self.parameter(target)
        value = super().get_attr(target, args, kwargs)
        return _own(value) if self.writes else _on_cpu(value)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Apply the rule of a plain layer; call a copy of any other module, whose parameters are channel tensors."""
        return self._call(target, {}, args, kwargs)

    def _call(self, target: Any, given: dict[str, Any], args: Any, kwargs: Any) -> Any:
        """Call a module, with other values in the place of some of its parameters."""
        if target not in self.rules:
            self.rules[target] = self._plain_rule(self.tensors.modules[target])
        plain = self.rules[target]
        if plain is not None and len(args) == 1 and isinstance(args[0], ChannelTensor) and not kwargs:
            return self.apply(plain, (ChannelLayer(self, self.tensors.modules[target], target, given), args[0]), {})
        shadow = self._shadows.get(target)
        if shadow is None or given:
            shadow = self._shadow(self.fetch_attr(target), target)
            shadow.__dict__["_parameters"] = {**shadow._parameters, **given}
            self._shadows |= {} if given else {target: shadow}
        op = self.ops.of_module(shadow)
        if op is not None and op.catch == "rule":
            return self._by_rule(op, (shadow, *args), kwargs)
        rule = self._module_rule(shadow)
        return shadow(*args, **kwargs) if rule is None else self.apply(rule, (shadow, *args), kwargs)

    def _plain_rule(self, module: nn.Module) -> Any:
        """Return the rule of a plain layer; ``None`` for any other module."""
        plain = not module._forward_pre_hooks and not module._forward_hooks and "forward" not in module.__dict__
        op = self.ops.spellings.get(type(module)) if plain else None
        return None if op is None else layer_rule(op, module)

    def _module_rule(self, module: nn.Module) -> Any:
        """Return the rule of a module that takes it whole; ``None`` for one whose forward is simply run."""
        own = next((rule for kind, rule in _OWN_MODULES.items() if isinstance(module, kind)), None)
        op = self.ops.of_module(module)
        return op.channels if own is None and op is not None and op.catch == "module" else own

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do to channels what a torch function does that was called on them."""
        return dispatch.called(self.ops, self, func, args, kwargs)

    def dispatched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do to channels what an ATen op does."""
        return dispatch.dispatched(self.ops, self, func, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function on channel tensors, or the user's own rule for it."""
        op = self.ops.of_call(target)
        if target is call_with_weight:
            data, weight, _, name, *more = args
            return self._call(module_called(self.here), {name: weight}, (data, *more), kwargs)
        if op is not None and op.catch == "rule":
            return self._by_rule(op, args, kwargs)
        return _on_cpu(super().call_function(target, args, kwargs))

    def _by_rule(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply a user's rule; what it stands for computes, whatever the rule does, and returns what was traced."""
        self.computes()
        assert not isinstance(op.channels, Absent)
        result = self.apply(op.channels, args, kwargs, users=True)
        meta = self.here.meta.get("tensor_meta")
        shape = self.original(getattr(result, "shape", None))
        if isinstance(meta, TensorMetadata) and shape != meta.shape:
            raise ChannelError(
                f"the channel rule of {self.message()} returns shape {shape and tuple(shape)}, "
                f"but what it stands for returned {tuple(meta.shape)}"
            )
        return result

    def unknown(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception | None = None) -> Any:
        """Pin everything that reaches a node that cannot be run on channels; return fixed values of the traced shapes.

        Raises:
            ChannelError: what it returned when it was traced is not known.
        """
        why = "" if error is None else one_line(error) + (_OURS if _is_ours(error) else "")
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
            op = self.ops.derived(layer)
            layout = None if op is None else op.quantize
            if isinstance(layout, WeightLayout) and f"{path}.weight" in self.tensors.tensors:
                self.pin(self.produce(self.parameter(f"{path}.weight"), layout.out_axis), reason)
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
                    name: self.parameter(full) if (full := f"{path}.{name}") in known else _own(tensor)
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
        node = self.here
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
                # One channel that was cut out of several may be more at other widths.
                if not self._channel_axes(label) and 1 not in value.shape[1:]:
                    owners = self.space.owners(small.reshape(-1).numpy())
                    small = small.reshape(-1)[torch.from_numpy(self.space.widths(owners) == 1)]
                self.pin(small, "it makes an output of the model, whose shape is the user's", source)
        return value

    def line(self, label: Label, axis: int) -> torch.Tensor:
        """Return the ids along one axis of a label at the first index of all others."""
        if self._read is None or self._read[0] is not label or self._read[1] != axis:
            self._read = label, axis, line_of(label, axis)
        return self._read[2]

    def execute(self) -> None:
        """Run the whole graph; nothing is computed but labels."""
        with torch.no_grad():
            for node in self.graph.nodes:
                self.env[node] = self.run_node(node)


_OURS = "; the error is inside nce-fx's own rule for it: please report it"


def _is_ours(error: Exception) -> bool:
    """Whether the line that failed is one of this package: a rule that does not know this way of calling its op."""
    if isinstance(error, NotFollowedError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return where.startswith((__package__, "nce_fx.ops.", "nce_fx.ids."))


def _on_cpu(value: Any) -> Any:
    """Bring a tensor that the model holds or makes to where labels are, which an index for example must meet."""
    return value.cpu() if isinstance(value, torch.Tensor) and not isinstance(value, ChannelTensor) else value


def _own(value: Any) -> Any:
    """Return a copy of a tensor that the model holds, for what may write to it."""
    held = isinstance(value, torch.Tensor) and not isinstance(value, ChannelTensor)
    return value.detach().clone().cpu() if held else value


def makers(node: Node) -> list[Node]:
    """Return the nodes whose values an output holds, through what they are put into and what chooses by the mode."""
    found: dict[Node, None] = {}
    read = dict.fromkeys(node.all_input_nodes)
    if is_by_mode(node):
        # Of what it is given, two values are chosen from; the rest is only done in its mode.
        read = {}
        torch.fx.node.map_arg(node.args[:2], read.setdefault)
    for source in read:
        structure = isinstance(source.target, type) or is_by_mode(source)
        found.update(dict.fromkeys(makers(source) if structure else [source]))
    return list(found)
